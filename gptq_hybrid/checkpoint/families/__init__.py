"""One module a family of architectures; each turns a ``config.json`` into a :class:`TensorLayout`."""
