"""For plugins' commands: shared flags, reading and running a recipe, showing a result."""

from alignkit.lazy import public_names

__getattr__, __all__ = public_names(__name__)
