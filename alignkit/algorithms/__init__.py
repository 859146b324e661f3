"""Bases to build algorithms on: losses on rankings, policy gradients, and passes without gradient."""

from alignkit.lazy import public_names

__getattr__, __all__ = public_names(__name__)
