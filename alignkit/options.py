"""Options of plugins: frozen dataclasses with declared ranges, and the kinds of value that they share.

Free of torch, so that options can be shown and checked before anything heavy is imported. Each field of an options
class carries a docstring under it; `plugins show`, `--help` and the docs are generated from them.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Interval, Le, Lt

from alignkit.errors import InputError

NonNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
ComponentSpec = Mapping[str, Any]
"""A component inside another one's options: `{plugin = "name", option = value, ...}`."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of every options class.

    Attributes:
        compares_with: another plugin of the same role, whose settings in `[table.for.NAME]` of a recipe count for this
            one too, as far as it knows them.
    """

    compares_with: ClassVar[str] = ""

    def check(self) -> None:
        """Checks what types and ranges can't say, before any model loads (a file is there, two options agree).

        Raises:
            InputError: with the option's name in `where`, relative to this class.
        """

    def nested(self) -> Iterable[tuple[str, str, ComponentSpec]]:
        """(key, role, spec) of every component inside these options, so that they are checked before the start."""
        return ()


def may_be_model(name: str) -> bool:
    """Whether there is a folder of this name, or it reads as a hub id: `owner/name`, the owner being no folder here."""
    path = Path(name).expanduser()
    return path.is_dir() or (re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not path.parent.exists())


def has_nvidia_driver() -> bool:
    """Whether there may be a CUDA device, without loading torch."""
    return Path("/proc/driver/nvidia/version").exists() or bool(os.environ.get("CUDA_VISIBLE_DEVICES"))


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Config):
    """Options that every Optimizer has: how the one training loop of the engine runs it."""

    learning_rate: NonNegative = 1e-5
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Course of the learning rate after the warm-up, towards zero over the planned steps."""
    warmup: Fraction = 0.05
    """Share of the planned steps over which the learning rate rises from zero."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of AdamW."""
    adam_beta2: Fraction = 0.99
    """Decay of AdamW's second moment."""
    adam: Literal["torch", "8bit"] = "torch"
    """8bit keeps AdamW's moments in 8 bits (arXiv:2110.02861), a quarter of the memory; needs CUDA and bitsandbytes."""
    max_grad_norm: Positive = 1.0
    """The gradient is scaled down to this Euclidean norm."""
    n_epochs: Count = 1
    """Passes over each batch: over the data set for offline algorithms, over the rollouts for online ones."""
    minibatch_size: Count = 16
    """Groups (a prompt with its responses) in one optimisation step, over all processes."""
    max_tokens: Count | Literal["auto"] = "auto"
    """Token budget of one micro-batch; halved when memory runs out. It never changes the gradient. auto: from the
    memory that is free at the start and an estimate of what a token takes, at most 16384 on a CPU, 32768 on CUDA."""
    save_every: Natural = 0
    """Optimisation steps between checkpoints; 0 saves at the end of each batch of rollouts or epoch."""
    keep_checkpoints: Count = 2
    """Newest checkpoints that are kept."""

    def check(self) -> None:
        if self.adam == "8bit" and importlib.util.find_spec("bitsandbytes") is None:
            raise InputError("8bit needs bitsandbytes", where="adam", fix="pip install bitsandbytes (CUDA only)")
        if self.adam == "8bit" and not has_nvidia_driver():
            raise InputError("8bit needs a CUDA device", where="adam", fix='set adam = "torch"')


@dataclass(frozen=True, kw_only=True)
class StopOptions(Config):
    """When an online run ends before its last iteration. That is a success: what was trained is saved as usual, and
    run.json says why it ended."""

    plateau: Natural = 0
    """The run ends when the mean reward of this many batches is at most plateau_delta above that of as many batches
    before them; 0 never ends it."""
    plateau_delta: NonNegative = 0.0
    """Rise, in units of reward, that still counts as standing still."""
    gold: ComponentSpec | None = None
    """A second reward source that scores every batch of rollouts and is not optimised: `{plugin = "function", function
    = "m:f"}`. The trained weights at the best moving mean of its scores are kept in checkpoints/best."""
    gold_fall: NonNegative = 0.0
    """The run ends when gold's moving mean is more than this below its best, in gold's units, while that of the reward
    has risen since (over-optimisation, arXiv:2210.10760), and the weights of the best are saved; 0 never ends it."""
    gold_window: Count = 5
    """Batches in the moving means of gold and of the reward."""

    def check(self) -> None:
        if self.plateau_delta and not self.plateau:
            raise InputError(
                "counts only together with plateau", where="plateau_delta", fix="set plateau, or leave it out"
            )
        if self.gold_fall and self.gold is None:
            raise InputError("there is no gold reward to fall", where="gold_fall", fix="name a reward source as gold")


@dataclass(frozen=True, kw_only=True)
class RolloutOptions(TrainingOptions):
    """Options of every online Optimizer: how many rollouts are sampled."""

    iterations: Count = 100
    """Rounds of sampling, scoring and optimising."""
    batch_size: Count = 32
    """Prompts sampled in each iteration, over all processes."""
    group_size: Count = 1
    """Responses sampled for each prompt."""
    max_kl: NonNegative = 0.0
    """The run stops (exit code 3) when the mean KL to the reference, in nats a response, passes this; 0 never stops."""
    stop: StopOptions = field(default_factory=StopOptions)
    """When the run ends early: `stop.plateau = 20`."""
    ptx_coef: NonNegative = 0.0
    """Weight of the negative log-likelihood, in nats a token, of the texts of [ptx] (or else of the demonstrations) in
    the loss, against forgetting (PPO-ptx, arXiv:2203.02155, eq. 2); 0 leaves it out."""
    ptx_batch_size: Count = 16
    """Texts, over all processes, in the ptx part of each optimisation step."""

    def check(self) -> None:
        super().check()
        try:
            self.stop.check()
        except InputError as error:
            raise InputError(error.what, where=f"stop.{error.where}", fix=error.fix) from error

    def nested(self) -> Iterable[tuple[str, str, ComponentSpec]]:
        return [("stop.gold", "reward", self.stop.gold)] if self.stop.gold is not None else []


@dataclass(frozen=True, kw_only=True)
class Sampling(Config):
    """How responses are sampled."""

    max_tokens: Count = 128
    """Longest response, in tokens; a response that reaches it is unfinished."""
    temperature: NonNegative = 1.0
    """The logits are divided by it; 0 takes the likeliest token. Log-probabilities are of the tempered distribution."""
    top_k: Natural = 0
    """Only the k likeliest tokens; 0 keeps all. Not for rollouts that are trained on."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Only the likeliest tokens whose probabilities sum to this. Not for rollouts that are trained on."""
    min_p: Annotated[float, Ge(0), Le(1)] = 0.0
    """Only tokens with at least this share of the likeliest one's probability (arXiv:2407.01082). Not for rollouts that
    are trained on."""
    repetition_penalty: Positive = 1.0
    """Logits of tokens that the prompt or the response has already are divided by it where they are positive and
    multiplied by it elsewhere (arXiv:1909.05858, section 4.1). Not for rollouts that are trained on."""
    min_tokens: Natural = 0
    """No stop token before this many tokens. Not for rollouts that are trained on."""
    stop: tuple[str, ...] = ()
    """A response is finished when one of these strings is in its text, which ends before it. Not for rollouts that are
    trained on."""

    def check(self) -> None:
        if "" in self.stop:
            raise InputError("an empty string is in every text", where="stop", fix="leave it out")

    @property
    def distortions(self) -> tuple[str, ...]:
        """The options under which something else is sampled than the policy's whole distribution at a temperature."""
        names = ("top_k", "top_p", "min_p", "repetition_penalty", "min_tokens", "stop")
        changed = [name for name in names if getattr(self, name) != getattr(Sampling, name)]
        return (*(["temperature"] if self.temperature == 0 else []), *changed)


@dataclass(frozen=True, kw_only=True)
class RunOptions(Config):
    """The recipe's table `run`: what concerns the run as a whole."""

    seed: Natural = 0
    """Everything random follows from it."""
    device: str = "auto"
    """Where models run: auto, cpu, cuda, cuda:1 or mps."""
    threads: Natural = 0
    """CPU threads of torch; 0 leaves the number to torch."""
    holdout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Share of the prompts that is never trained on and that `eval` uses; chosen by a digest of the prompt."""
    rounds: Count = 1
    """Rounds of an algorithm that learns from recorded preferences. From the second on, the policy as it is then is
    sampled on the prompts, the source of [reward] (or a [preferences] plugin that samples) ranks what it says, and the
    algorithm goes on from there."""
    round_samples: Annotated[int, Ge(2)] = 4
    """Responses to each prompt that [reward] ranks in a round."""
    round_reference: Literal["kept", "moved"] = "kept"
    """The reference of later rounds: the policy that alignment started from, or the one that the round starts from."""
    cache: str = "auto"
    """Folder of results that are kept from run to run (log-probabilities of references); empty keeps none. auto:
    `alignkit` in $XDG_CACHE_HOME, or in ~/.cache."""
    metrics: tuple[ComponentSpec, ...] = ()
    """Further receivers of the metrics, beside metrics.jsonl: `[{plugin = "name", option = value}]`."""

    def check(self) -> None:
        if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", self.device):
            raise InputError(f"no device {self.device!r}", where="device", fix="auto, cpu, cuda, cuda:1 or mps")

    @property
    def cache_folder(self) -> Path | None:
        """The folder that `cache` means."""
        if self.cache != "auto":
            return Path(self.cache).expanduser() if self.cache else None
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignkit"

    def nested(self) -> Iterable[tuple[str, str, ComponentSpec]]:
        return [(f"metrics.{index}", "metrics", spec) for index, spec in enumerate(self.metrics)]


@dataclass(frozen=True, kw_only=True)
class CandidateOptions(Config):
    """The recipe's table `candidates`: the responses that labellers (judges, people, rewards) are given to rank."""

    count: Annotated[int, Interval(ge=2, le=9)] | None = None
    """Responses to each prompt, 2 to 9 (`--sample K`); none leaves it to the labeller."""
    policies: tuple[ComponentSpec, ...] = ()
    """Policies to sample from beside the run's own, in turn: `[{plugin = "hf", model = "..."}]`."""
    temperatures: tuple[NonNegative, ...] = ()
    """Temperatures to sample at, in turn; empty takes that of [sampling]."""
    near_duplicate: Fraction = 0.0
    """Of responses whose runs of three words are as alike as this (Jaccard index), the first is kept; 0 keeps all."""
    spare: Natural = 0
    """Responses sampled beyond the count, to take the places of near-duplicates."""

    def check(self) -> None:
        if self.spare and not self.near_duplicate:
            raise InputError("counts only together with near_duplicate", where="spare", fix="set near_duplicate")

    def nested(self) -> Iterable[tuple[str, str, ComponentSpec]]:
        return [(f"policies.{index}", "policy", spec) for index, spec in enumerate(self.policies)]


@dataclass(frozen=True, kw_only=True)
class EvalOptions(Config):
    """The recipe's table `eval`: what the trained policy is measured on, and against."""

    prompts: ComponentSpec | None = None
    """Where unseen prompts come from, as a preference source; left out, the held-out prompts of the run."""
    rewards: Mapping[str, ComponentSpec] = field(default_factory=dict)
    """Reward sources to report beside the run's own, by name: `{gold = {plugin = "function", function = "m:f"}}`."""
    count: Count = 256
    """At most this many prompts."""
    samples: Count = 1
    """Responses sampled for each prompt."""
    best_of: Count = 1
    """Above 1, both policies are also measured as best of n: of so many responses for each one, the one that [reward]
    scores highest (arXiv:2009.01325). Its KL to the policy it samples from is at most log n - (n - 1) / n nats."""
    against: str = "sft"
    """What the policy is held against: `sft` (where alignment started), `base` (before it), or a model's folder."""

    def nested(self) -> Iterable[tuple[str, str, ComponentSpec]]:
        prompts = [("prompts", "preferences", self.prompts)] if self.prompts is not None else []
        return [*prompts, *((f"rewards.{name}", "reward", spec) for name, spec in self.rewards.items())]
