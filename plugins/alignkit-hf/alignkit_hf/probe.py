"""Finds out how a model may be run: some architectures compute something else in the packed layout, without any error.

A few short groups are compared with plain forward passes of one sequence at a time, once for each architecture and
config in a process. Sliding windows are made short meanwhile, so that the groups are longer than them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit_hf.attention import NAME
from alignkit_hf.modeling import Path

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_path(lm: PreTrainedModel, *, layout: str, attention: str) -> Path:
    """The way in which the model computes what its own forward does."""
    if layout == "padded" or attention != "auto":
        return Path(packed=False)
    lm.set_attn_implementation(NAME)
    return Path()
