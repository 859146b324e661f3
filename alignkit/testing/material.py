"""Small inputs for tests: groups of unequal sizes and lengths for every feed, and helpers to move and compare them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from alignkit.interfaces import Feed
from alignkit.options import Sampling
from alignkit.records import Group, Prompt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from alignkit.batch import GroupBatch
    from alignkit.interfaces import Policy, RewardSource

_ROWS: tuple[tuple[str, tuple[str, ...], tuple[int, ...]], ...] = (
    ("name a fruit.", ("a banana", "no"), (0, 1)),
    ("the cat", ("sat on the mat", "ran", "is a cat of cats"), (1, 0, 1)),
    ("why does the sun rise in the east and set in the west", ("it turns", "ask a sailor about that"), (1, 0)),
    ("say hello", ("hello there", "hi", "good day to all of you", "yo"), (0, 2, 1, 3)),
    ("two", ("and two are four", "three"), (0, 1)),
)


def prompts() -> list[Prompt]:
    """Five prompts of unequal length, with meta."""
    return [Prompt.of(text, {"id": number}) for number, (text, _, _) in enumerate(_ROWS)]


def groups() -> list[Group]:
    """Five groups of 2 to 4 responses of unequal length, without feedback."""
    return [Group(prompt, responses) for prompt, (_, responses, _) in zip(prompts(), _ROWS, strict=True)]


def groups_for(feed: Feed) -> list[Group]:
    """Groups as an offline algorithm gets them; the rankings contain a tie."""
    if feed is Feed.DEMONSTRATIONS:
        return [replace(group, responses=group.responses[:1]) for group in groups()]
    if feed is Feed.RANKINGS:
        return [replace(group, ranks=ranks) for group, (_, _, ranks) in zip(groups(), _ROWS, strict=True)]
    if feed is Feed.LABELS:
        return [
            replace(group, responses=group.responses[:1], labels=(number % 2 == 0,))
            for number, group in enumerate(groups())
        ]
    raise ValueError("rollouts are sampled, not read")


def batch_for(feed: Feed, policy: Policy[Any], reward: RewardSource[Any] | None, *, n: int) -> GroupBatch:
    """The input of an algorithm's `prepare`: encoded records, or `n` scored rollouts per prompt."""
    if feed is not Feed.ROLLOUTS:
        return policy.encode(groups_for(feed))
    if reward is None:
        raise ValueError("rollouts need a reward")
    batch = policy.generate(prompts(), n=n, sampling=Sampling(max_tokens=12), seed=0)
    scores = [0.0 if score is None else score for row in reward.score(batch.groups) for score in row]
    return batch.replace(rewards=torch.tensor(scores, device=batch.device))


def trained_parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The trained parameters by qualified name, each once."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, module in modules.items():
        for key, parameter in module.named_parameters():
            if parameter.requires_grad:
                found.setdefault(id(parameter), (f"{name}.{key}", parameter))
    return dict(found.values())


def nudge(modules: Mapping[str, nn.Module], size: float = 0.1) -> None:
    """Moves every trained parameter a little, always in the same direction, as some steps of training would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained_parameters(modules).values():
            parameter.add_((size * torch.randn(parameter.shape, generator=generator)).to(parameter))


def gradients(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Gradients of the trained parameters, zero if missing."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in trained_parameters(modules).items()
    }


def clear_gradients(modules: Mapping[str, nn.Module]) -> None:
    for parameter in trained_parameters(modules).values():
        parameter.grad = None


def backward(loss: Tensor) -> None:
    """`loss.backward()`, which has no annotations in torch."""
    loss.backward()


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All values on one axis, in float64."""
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def differing_fields(one: GroupBatch, other: GroupBatch) -> list[str]:
    """Names of the fields in which two batches differ."""
    return [field.name for field in fields(one) if not _same(getattr(one, field.name), getattr(other, field.name))]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


class CountingModule(nn.Module):
    """A stand-in for the engine's wrappers: forwards and counts calls, hides everything else of the module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        self.calls += 1
        return self.inner(*arguments, **keywords)


class FixedSampler:
    """A sampler that gives every prompt the same responses, of 1 to k words."""

    def __init__(self, sampled: Sequence[Prompt] | None = None) -> None:
        self.prompts: Sequence[Prompt] = sampled if sampled is not None else prompts()

    def __call__(self, prompts: Sequence[Prompt], k: int) -> list[Group]:
        return [Group(prompt, tuple(" ".join(["yes"] * (1 + i)) for i in range(k))) for prompt in prompts]
