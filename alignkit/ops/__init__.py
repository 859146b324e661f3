"""The mathematics: pure functions of tensors."""

from alignkit.lazy import public_names

__getattr__, __all__ = public_names(__name__)
