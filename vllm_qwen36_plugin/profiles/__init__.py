"""Shipped profiles of GPUs: cards by name (``cards``) and starts of prefill routes (``derived_prefill``)."""

from .cards import CARDS

__all__ = ["CARDS"]
