"""Shipped profiles of GPUs: serve flags (``ada``) and starts of prefill routes (``ada_prefill``)."""

from .ada import ADA_PROFILES

__all__ = ["ADA_PROFILES"]
