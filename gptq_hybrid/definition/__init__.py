"""gptqmodel's model definition for the hybrid layout."""

from ._hybrid import register_definitions

__all__ = ["register_definitions"]
