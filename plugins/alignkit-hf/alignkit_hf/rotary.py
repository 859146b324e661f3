"""Rotary scalings that switch on the longest row of a pass (longrope): transformers takes the long factors for all
rows, or for none, so what a response gets would depend on what stands beside it.

In training, every row is computed on its own side of the switch, as it is alone; `by_side` does so in sampling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from alignkit import GroupBatch

SWITCH = "original_max_position_embeddings"


def scalings(lm: PreTrainedModel) -> list[dict[str, Any]]:
    """The parameters of each scaling that switches."""
    parameters: dict[str, Any] = getattr(lm.config.get_text_config(), "rope_parameters", None) or {}
    found = [parameters, *(own for own in parameters.values() if isinstance(own, dict))]
    return [own for own in found if own.get("rope_type") == "longrope"]


def sides(lm: PreTrainedModel, batch: GroupBatch) -> list[Tensor]:
    """Masks [S] of responses whose rows stand on the same side of every switch; none for other models."""
    if not (switching := scalings(lm)):
        return []
    lengths = batch.prompt_lengths[batch.group_index] + batch.lengths
    passed = sum(((lengths > own[SWITCH]).long() for own in switching), torch.zeros_like(lengths))
    return [passed == number for number in passed.unique().tolist()]
