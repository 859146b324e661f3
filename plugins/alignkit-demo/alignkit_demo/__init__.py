"""The demo of alignkit (`alignkit demo`): a small world with a known true reward."""

from __future__ import annotations
