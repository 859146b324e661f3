"""What a plugin's command needs: the shared flags, reading a recipe, running it, showing a result."""

from alignkit.lazy import public_names

__getattr__, __all__ = public_names(__name__)
