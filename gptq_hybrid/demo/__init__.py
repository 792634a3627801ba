"""A small, real checkpoint of the architecture whose behaviour is known by construction, and text for it."""
