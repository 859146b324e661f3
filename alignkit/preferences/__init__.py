"""Tools for preference labels: annotations, agreement, fitted rankings, near-duplicates. Imports no torch."""

from alignkit.lazy import public_names

__getattr__, __all__ = public_names(__name__)
