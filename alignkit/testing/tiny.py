"""A policy, a scorer and a reward for tests: pure torch, no download, deterministic, milliseconds per step.

They fulfil `alignkit.interfaces` completely, and the contract suite runs on them as on any plugin. Text is read
character by character in lower case; a character outside the alphabet becomes the alphabet's last character.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from alignkit.batch import GroupBatch
from alignkit.errors import InputError
from alignkit.interfaces import HasValues, Policy, RewardSource, Scorer
from alignkit.ops.flops import count_pass
from alignkit.options import Config, Count, Fraction
from alignkit.outputs import PolicyOutput, ScorerOutput
from alignkit.records import Group
from alignkit.samplers import Servable
from alignkit.testing.tiny_network import Contexts, TinyLanguageModel, TinyScoreModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from alignkit.components import Context
    from alignkit.options import Sampling
    from alignkit.records import Prompt

_WEIGHTS, _OPTIONS = "model.safetensors", "tiny.json"


@dataclass(frozen=True, kw_only=True)
class TinyOptions(Config):
    """Options of `TinyPolicy`."""

    model: str = ""
    """Folder written by `TinyPolicy.save`; empty: fresh weights."""
    alphabet: str = "abcdefghijklmnopqrstuvwxyz ."
    """Characters of the vocabulary, without the stop token."""
    hidden: Count = 16
    """Width of the hidden state."""
    window: Count = 3
    """Number of last tokens seen one by one; the prompt is also seen as the mean of its tokens."""
    dropout: Fraction = 0.1
    """Dropout of the network. The policy switches it off, as every policy must."""
    context: Count = 512
    """Maximum length of a prompt with its response, in tokens."""


class TinyText:
    """Characters to tokens and back; token 0 is the stop token."""

    def __init__(self, options: TinyOptions) -> None:
        self._options = options
        self._tokens = {character: index + 1 for index, character in enumerate(options.alphabet)}

    @property
    def vocabulary(self) -> int:
        return len(self._options.alphabet) + 1

    def tokens(self, text: str) -> list[int]:
        return [self._tokens.get(character, len(self._options.alphabet)) for character in text.lower()]

    def text(self, tokens: Sequence[int]) -> str:
        return "".join(self._options.alphabet[token - 1] for token in tokens if token)

    def encode(self, groups: Sequence[Group], device: torch.device) -> GroupBatch:
        prompts = [self.tokens(group.prompt.plain) for group in groups]
        ends = [ended for group in groups for ended in group.finished or (True,) * len(group.responses)]
        tails = iter(ends)
        responses = [[self.tokens(text) + [0] * next(tails) for text in group.responses] for group in groups]
        for prompt, rows in zip(prompts, responses, strict=True):
            longest = len(prompt) + max(map(len, rows))
            if longest > self._options.context:
                raise InputError(
                    f"a prompt with its response has {longest} tokens, but the context is {self._options.context}",
                    where="context",
                    fix="shorten the records or raise the option",
                )
        return GroupBatch.from_ids(prompts, responses, groups, finished=ends, device=device)

    def contexts(self, batch: GroupBatch, *, after_last: bool) -> Contexts:
        """Contexts of all response tokens; with `after_last` one more after each response."""
        prompts = [part.tolist() for part in torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())]
        responses = [part.tolist() for part in torch.split(batch.response_ids, batch.lengths.tolist())]
        rows = [
            (group, response, range(len(response) + int(after_last)))
            for group, response in zip(batch.group_index.tolist(), responses, strict=True)
        ]
        return self._contexts(prompts, rows, batch.device)

    def next_contexts(
        self, prompts: Sequence[Sequence[int]], rows: Sequence[tuple[int, list[int]]], device: torch.device
    ) -> Contexts:
        """The context of the next token of each row (prompt number, tokens so far)."""
        return self._contexts(prompts, [(p, tokens, range(len(tokens), len(tokens) + 1)) for p, tokens in rows], device)

    def _contexts(
        self, prompts: Sequence[Sequence[int]], rows: Sequence[tuple[int, Sequence[int], range]], device: torch.device
    ) -> Contexts:
        return Contexts.of(prompts, rows, window=self._options.window, start=self.vocabulary, device=device)


class TinyScorer(Scorer):
    """A tiny trunk with a scalar head."""

    def __init__(self, network: TinyScoreModel, options: TinyOptions) -> None:
        self._network = self._wrapped = network
        self._options = options
        self._text = TinyText(options)

    def encode(self, groups: Sequence[Group]) -> GroupBatch:
        return self._text.encode(groups, _device(self._network))

    def forward(self, batch: GroupBatch) -> ScorerOutput:
        count_pass(self.modules(), batch)
        scalars: Tensor = self._wrapped(self._text.contexts(batch, after_last=True))
        lasts = (batch.lengths + 1).cumsum(0) - 1
        predicting = torch.ones_like(scalars, dtype=torch.bool)
        predicting[lasts] = False
        return ScorerOutput(values=scalars[predicting], scores=scalars[lasts])

    def rescale(self, mean: float, std: float) -> None:
        head = self._network.score
        with torch.no_grad():
            head.bias.sub_(mean).div_(std)
            head.weight.div_(std)

    def modules(self) -> dict[str, nn.Module]:
        return {"scorer": self._network}

    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        self._wrapped = modules["scorer"]  # type: ignore[assignment]

    def save(self, path: Path) -> None:
        _save(path, self._network, self._options, {"kind": "scorer"})


class TinyPolicy(Policy[TinyOptions], HasValues, Servable):
    """A language model over characters.

    `temperature=0` takes the likeliest token, with log-probabilities at temperature 1. `top_k`, `top_p`, `min_p` and
    `min_tokens` restrict the choice of tokens; log-probabilities stay those of the whole distribution.
    `repetition_penalty` and `stop` are refused.
    """

    counts_flops = True

    def __init__(
        self,
        config: TinyOptions | None = None,
        context: Context | None = None,
        *,
        network: TinyLanguageModel | None = None,
    ) -> None:
        super().__init__(config, context)
        if network is None:
            network = self._load(Path(self.config.model)) if self.config.model else self._new_network()
        _switch_dropout_off(network)
        self._text = TinyText(self.config)
        self._network = network
        self._wrapped: nn.Module = network

    @classmethod
    def load(cls, path: Path, config: TinyOptions, context: Context) -> TinyPolicy:
        return cls(replace(config, model=str(path)), context)

    def _load(self, folder: Path) -> TinyLanguageModel:
        stored = _read_options(folder, "policy")
        self.config = TinyOptions(**{**stored["options"], "model": self.config.model})
        network = self._new_network()
        if stored["value_head"]:
            network.add_value_head()
        network.load_state_dict(load_file(folder / _WEIGHTS))
        return network

    def _new_network(self) -> TinyLanguageModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.context.seed)
            options = self.config
            vocabulary = TinyText(options).vocabulary
            network = TinyLanguageModel(vocabulary, options.hidden, options.window, options.dropout)
        return network.to("cpu" if self.context.device == "auto" else self.context.device)

    def encode(self, groups: Sequence[Group]) -> GroupBatch:
        return self._text.encode(groups, _device(self._network))

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], *, n: int, sampling: Sampling, seed: int, places: Sequence[int] | None = None
    ) -> GroupBatch:
        _refuse_unknown(sampling)
        ids = self.prompt_ids(prompts, sampling.max_tokens)
        temperature = sampling.temperature or 1.0
        owners = [p for p in range(len(prompts)) for _ in range(n)]
        places = range(len(prompts)) if places is None else places
        uniforms = [_uniforms(seed, place, k, sampling.max_tokens) for place in places for k in range(n)]
        tokens: list[list[int]] = [[] for _ in owners]
        logprobs: list[list[float]] = [[] for _ in owners]
        alive = list(range(len(owners)))
        for step in range(sampling.max_tokens):
            if not alive:
                break
            contexts = self._text.next_contexts(ids, [(owners[row], tokens[row]) for row in alive], self._device)
            distribution = self._wrapped(contexts, None, temperature)["log_distribution"]
            draws = torch.tensor([uniforms[row][step] for row in alive], dtype=torch.float64, device=self._device)
            chosen = _choose(distribution, draws, sampling, first=step < sampling.min_tokens)
            taken = distribution.gather(1, chosen[:, None])[:, 0]
            for row, token, logprob in zip(alive, chosen.tolist(), taken.tolist(), strict=True):
                tokens[row].append(token)
                logprobs[row].append(logprob)
            alive = [row for row in alive if tokens[row][-1]]
        responses = [tokens[p * n : (p + 1) * n] for p in range(len(prompts))]
        batch = self.batch_of(prompts, ids, responses, [row[-1] == 0 for row in tokens], sampling)
        count_pass(self.modules(), batch, learns=False)
        return batch.replace(logprobs=torch.tensor([x for row in logprobs for x in row], device=self._device))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (0,)

    def named_weights(self, *, merged: bool = True) -> Iterator[tuple[str, Tensor]]:
        own = self._network.state_dict() if merged else {}
        return ((name, tensor) for name, tensor in own.items() if not name.startswith("value_head"))

    def prompt_ids(self, prompts: Sequence[Prompt], room: int) -> list[list[int]]:
        return [self._text.tokens(prompt.plain) for prompt in prompts]

    def batch_of(
        self,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        responses: Sequence[Sequence[Sequence[int]]],
        finished: Sequence[bool],
        sampling: Sampling,
    ) -> GroupBatch:
        ends, temperature = iter(finished), sampling.temperature or 1.0
        groups = [
            Group(prompt, tuple(self._text.text(row) for row in rows), finished=tuple(next(ends) for _ in rows))
            for prompt, rows in zip(prompts, responses, strict=True)
        ]
        return GroupBatch.from_ids(
            prompt_ids, responses, groups, finished=finished, device=self._device, temperature=temperature
        )

    def forward(
        self,
        batch: GroupBatch,
        *,
        entropy: bool = False,
        hidden: bool = False,
        values: bool = False,
        kl_to: Policy[Any] | None = None,
    ) -> PolicyOutput:
        count_pass(self.modules(), batch)
        contexts = self._text.contexts(batch, after_last=False)
        output = self._wrapped(contexts, batch.response_ids, batch.temperature, values=values)
        distribution: Tensor = output["log_distribution"]
        return PolicyOutput(
            logprobs=output["logprobs"],
            entropy=-(distribution.exp() * distribution).sum(-1) if entropy else None,
            hidden=output["hidden"] if hidden else None,
            values=output.get("values"),
            kl=None if kl_to is None else self._kl(distribution, kl_to, batch),
        )

    def _kl(self, distribution: Tensor, other: Policy[Any], batch: GroupBatch) -> Tensor:
        assert isinstance(other, TinyPolicy)
        with torch.no_grad():
            count_pass(other.modules(), batch)
            contexts = self._text.contexts(batch, after_last=False)
            theirs: Tensor = other._wrapped(contexts, batch.response_ids, batch.temperature)["log_distribution"]
        return (distribution.exp() * (distribution - theirs)).sum(-1)

    def reference(self) -> TinyPolicy:
        frozen = copy.deepcopy(self._network).requires_grad_(False)
        return TinyPolicy(self.config, self.context, network=frozen)

    def add_value_head(self) -> None:
        self._network.add_value_head()

    def scorer(self) -> TinyScorer:
        trunk = copy.deepcopy(self._network.trunk).requires_grad_(True)
        return TinyScorer(TinyScoreModel(trunk, self.config.hidden).to(self._device), self.config)

    @classmethod
    def load_scorer(cls, path: Path, context: Context, *, append_end: bool | None = None) -> TinyScorer:
        if append_end is not None:
            raise InputError("no other tool trains this policy's scorers", where="append_end", fix="leave it out")
        options = TinyOptions(**_read_options(path, "scorer")["options"])
        scorer = cls(options, context).scorer()
        scorer.modules()["scorer"].load_state_dict(load_file(path / _WEIGHTS))
        return scorer

    def modules(self) -> dict[str, nn.Module]:
        return {"policy": self._network}

    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        self._wrapped = modules["policy"]

    def save(self, path: Path) -> None:
        kind = {"kind": "policy", "value_head": self._network.value_head is not None}
        _save(path, self._network, self.config, kind)

    @property
    def _device(self) -> torch.device:
        return _device(self._network)


@dataclass(frozen=True, kw_only=True)
class TinyRewardOptions(Config):
    """Options of `TinyReward`."""

    letter: str = "a"
    """The rewarded letter."""


class TinyReward(RewardSource[TinyRewardOptions]):
    """The share of one letter among a response's characters, 0 for an empty response."""

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        return [[text.count(self.config.letter) / max(len(text), 1) for text in group.responses] for group in groups]


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _switch_dropout_off(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _uniforms(seed: int, place: int, index: int, count: int) -> list[float]:
    """`count` numbers in [0, 1) for one response only."""
    digest = hashlib.sha256(f"{seed}/{place}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(count, generator=generator, dtype=torch.float64).tolist()


def _refuse_unknown(sampling: Sampling) -> None:
    for name in ("repetition_penalty", "stop"):
        if name in sampling.distortions:
            raise InputError("the tiny policy does not support this", where=f"sampling.{name}", fix="leave it out")


def _choose(log_distribution: Tensor, draws: Tensor, sampling: Sampling, *, first: bool) -> Tensor:
    """[rows] the token of each row, by inverse CDF after top-k, top-p, min-p and the minimum length."""
    probabilities = log_distribution.double().exp()
    if first:
        probabilities[:, 0] = 0.0
    if not sampling.temperature:
        return probabilities.argmax(-1)
    ordered, order = probabilities.sort(-1, descending=True)
    if sampling.top_k:
        ordered[:, sampling.top_k :] = 0.0
    before = ordered.cumsum(-1) - ordered
    ordered[before >= sampling.top_p * probabilities.sum(-1, keepdim=True)] = 0.0
    ordered[ordered < sampling.min_p * ordered[:, :1]] = 0.0
    cumulative = ordered.cumsum(-1)
    place = torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)
    place = place.clamp(max=ordered.shape[1] - 1)
    return order.gather(1, place)[:, 0]


def _save(path: Path, network: nn.Module, options: TinyOptions, extra: Mapping[str, Any]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}, path / _WEIGHTS)
    record = {"options": {**asdict(options), "model": ""}, **extra}
    (path / _OPTIONS).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _read_options(path: Path, kind: str) -> dict[str, Any]:
    file = path / _OPTIONS
    if not file.is_file():
        raise InputError(
            f"no {_OPTIONS} in this folder", where=str(path), fix="use a folder written by TinyPolicy.save"
        )
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if record["kind"] != kind:
        raise InputError(f"this folder holds a {record['kind']}, not a {kind}", where=str(path))
    return record
