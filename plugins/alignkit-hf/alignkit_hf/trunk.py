"""A transformers model, with or without an adapter, and where its parts are."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

    LowRank = Mapping[str, tuple[Tensor, Tensor]]
    """For each adapted module the factors A [r, in] and B [out, r] of what an adapter adds to its weight."""


class TrunkModel(nn.Module):
    """The parts of a transformers model that freezing and further heads build on.

    Attributes:
        model: the causal LM or sequence classifier, inside a PeftModel if it has an adapter.
        autocast: dtype of the computation; None for the weights' own.
        merged: what each adapter that is merged into the weights added; None if that is more than low-rank products.
    """

    def __init__(self, model: nn.Module, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast
        self.merged: list[LowRank | None] = []

    @property
    def lm(self) -> PreTrainedModel:
        """The transformers model itself."""
        get_base_model = getattr(self.model, "get_base_model", None)
        lm: PreTrainedModel = self.model if get_base_model is None else get_base_model()  # type: ignore[assignment]
        return lm

    @property
    def trunk(self) -> nn.Module:
        """The model without its head."""
        trunk: nn.Module = self.lm.base_model
        return trunk

    @property
    def has_adapter(self) -> bool:
        """Whether the model is trained through a LoRA adapter."""
        return hasattr(self.model, "get_base_model")

    @property
    def adapter_is_trained(self) -> bool:
        """Whether the adapter adds anything."""
        return any(bool(parameter.any()) for name, parameter in self.model.named_parameters() if "lora_B" in name)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def vocabulary_head(self) -> nn.Linear:
        """Hidden states to logits."""
        head: nn.Linear = self.lm.get_output_embeddings()  # type: ignore[no-untyped-call]
        return head

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """The mixed precision of this model's computation."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)
