"""The embedded demo of alignkit: a small world in which the true reward is known (`alignkit demo`)."""

from __future__ import annotations
