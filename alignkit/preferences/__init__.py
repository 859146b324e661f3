"""What is known about labels: single verdicts, agreement, fitted rankings, near-duplicates. Free of torch."""

from alignkit.lazy import public_names

__getattr__, __all__ = public_names(__name__)
