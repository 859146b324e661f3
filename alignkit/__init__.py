"""alignkit: align language models with preferences, every part a plugin. Importing this package imports no torch."""

from alignkit.lazy import public_names

__getattr__, __all__ = public_names(__name__)
