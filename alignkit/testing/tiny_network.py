"""The network of `TinyPolicy`: a few thousand parameters that see the prompt, the last few tokens and the position.

Everything happens inside one `forward`, as sharded or wrapped modules need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import log_softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

EMBEDDING = 8
POSITIONS = 64


@dataclass(frozen=True)
class Contexts:
    """The network's inputs when it predicts C tokens.

    Attributes:
        windows: [C, window] the last tokens before the predicted one.
        positions: [C] position of the predicted token within its response.
        prompts: [C] index of its prompt.
        prompt_ids, prompt_index: [P] tokens of all prompts, and the index of each one's prompt.
    """

    windows: Tensor
    positions: Tensor
    prompts: Tensor
    prompt_ids: Tensor
    prompt_index: Tensor

    @classmethod
    def of(
        cls,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[tuple[int, Sequence[int], range]],
        *,
        window: int,
        start: int,
        device: torch.device,
    ) -> Contexts:
        """The contexts of rows (prompt number, response tokens, positions to predict)."""
        windows, positions, owners = [], [], []
        for prompt, response, predicted in rows:
            sequence = [start] * window + [*prompts[prompt], *response]
            offset = len(prompts[prompt])
            for position in predicted:
                windows.append(sequence[offset + position : offset + position + window])
                positions.append(min(position, POSITIONS - 1))
                owners.append(prompt)

        def integers(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        return cls(
            windows=torch.tensor(windows, dtype=torch.long, device=device).reshape(-1, window),
            positions=integers(positions),
            prompts=integers(owners),
            prompt_ids=integers([token for prompt in prompts for token in prompt]),
            prompt_index=integers([index for index, prompt in enumerate(prompts) for _ in prompt]),
        )


class TinyTrunk(nn.Module):
    """Contexts -> [C, H] hidden states."""

    def __init__(self, vocabulary: int, hidden: int, window: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary + 1, EMBEDDING)
        self.window = nn.Linear(window * EMBEDDING, hidden)
        self.prompt = nn.Linear(EMBEDDING, hidden, bias=False)
        self.position = nn.Embedding(POSITIONS, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, contexts: Contexts) -> Tensor:
        count = 1 + max(int(index.max()) for index in (contexts.prompts, contexts.prompt_index) if len(index))
        tokens = self.embedding(contexts.prompt_ids)
        sums = tokens.new_zeros(count, EMBEDDING).index_add(0, contexts.prompt_index, tokens)
        lengths = torch.bincount(contexts.prompt_index, minlength=count).clamp(min=1)
        prompts = self.prompt(sums / lengths[:, None])
        windows = self.window(self.embedding(contexts.windows).flatten(1))
        hidden: Tensor = self.dropout(
            torch.tanh(windows + prompts[contexts.prompts] + self.position(contexts.positions))
        )
        return hidden


class TinyLanguageModel(nn.Module):
    """Trunk, vocabulary head and, once added, a value head."""

    def __init__(self, vocabulary: int, hidden: int, window: int, dropout: float) -> None:
        super().__init__()
        self.trunk = TinyTrunk(vocabulary, hidden, window, dropout)
        self.vocabulary_head = nn.Linear(hidden, vocabulary)
        self.value_head: nn.Linear | None = None

    def add_value_head(self) -> None:
        if self.value_head is None:
            weight = self.vocabulary_head.weight
            self.value_head = zero_head(weight.shape[1]).to(weight.device)

    def forward(
        self, contexts: Contexts, targets: Tensor | None, temperature: float, *, values: bool = False
    ) -> dict[str, Tensor]:
        """`log_distribution` [C, V], `hidden` [C, H]; `logprobs` [C] of the targets; `values` [C] on request."""
        hidden = self.trunk(contexts)
        output = {"hidden": hidden, "log_distribution": log_softmax(self.vocabulary_head(hidden) / temperature, dim=-1)}
        if targets is not None:
            output["logprobs"] = output["log_distribution"].gather(1, targets[:, None])[:, 0]
        if values:
            if self.value_head is None:
                raise RuntimeError("this policy has no value head: call add_value_head() first")
            output["values"] = self.value_head(hidden)[:, 0]
        return output


class TinyScoreModel(nn.Module):
    """Trunk and scalar head."""

    def __init__(self, trunk: TinyTrunk, hidden: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.score = zero_head(hidden)

    def forward(self, contexts: Contexts) -> Tensor:
        """[C] one scalar per context."""
        scalars: Tensor = self.score(self.trunk(contexts))[:, 0]
        return scalars


def zero_head(hidden: int) -> nn.Linear:
    """A linear map to one scalar, zero at the start."""
    head = nn.Linear(hidden, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
