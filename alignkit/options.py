"""Options of components: frozen dataclasses with declared ranges, checked wherever they are made.

Free of torch, so that options can be shown and checked before anything heavy is imported. Each field of an options
class carries a docstring under it; `plugins show`, `--help` and the docs are generated from them.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Le

from alignkit.checking import check_fields, check_rules, differing, option_names
from alignkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Role:
    """Marks an option that holds a component of a role: `Annotated[ComponentSpec, Role("reward")]`."""

    name: str


NonNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
ComponentSpec = Mapping[str, Any]
"""A component inside another one's options: `{plugin = "name", option = value, ...}`."""
PolicySpec = Annotated[ComponentSpec, Role("policy")]
RewardSpec = Annotated[ComponentSpec, Role("reward")]
PreferencesSpec = Annotated[ComponentSpec, Role("preferences")]
MetricsSpec = Annotated[ComponentSpec, Role("metrics")]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of every options class. An instance has been checked: types, ranges, and what `check` adds.

    Attributes:
        compares_with: another plugin of the same role, whose settings in `[table.for.NAME]` of a recipe count for this
            one too, as far as it knows them.
        takes_function: the option that `--role module:function` sets, where this plugin is the one for functions.
        matters: the options to look at first, at most twelve; the class that first defines an option is its group, and
            the first line of that class's docstring the group's heading.

    Raises:
        OptionsError: naming every option that is wrong.
    """

    compares_with: ClassVar[str] = ""
    takes_function: ClassVar[str] = ""
    matters: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        check_rules(self)

    def check(self) -> None:
        """Checks what types and ranges can't say, before any model loads (a file is there, two options agree).

        Classes are composed of groups, so an override calls `super().check()` first.

        Raises:
            InputError: with the option's name in `where`, relative to this class.
        """

    def counts_only_with(self, setting: str, holds: bool, *names: str) -> None:
        """For `check`: refuses options that were changed although nothing reads them.

        Args:
            setting: what makes them count, as one would write it: "plateau above 0".
            holds: whether it is set.

        Raises:
            InputError: it is not, and one of the options differs from its default.
        """
        idle = [] if holds else differing(self, names)
        if idle:
            raise InputError(f"counts only with {setting}", where=idle[0], fix=f"set {setting}, or leave it out")

    def training(self) -> ComponentSpec | None:
        """The Optimizer that must train the component before it is there; None where nothing has to."""
        return None


def specs_of(config: Config, prefix: str = "") -> Iterator[tuple[str, str, ComponentSpec]]:
    """(key, role, spec) of every component inside these options, as their annotations say."""
    hints = get_type_hints(type(config), include_extras=True)
    for name in option_names(type(config)):
        yield from _specs(hints[name], getattr(config, name), prefix + name)


def _specs(hint: Any, value: Any, key: str) -> Iterator[tuple[str, str, ComponentSpec]]:
    origin, inner = get_origin(hint), get_args(hint)
    role = next((mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Role)), None)
    if value is None:
        return
    if role is not None:
        yield key, role.name, value
    elif isinstance(value, Config):
        yield from specs_of(value, f"{key}.")
    elif origin in (Union, UnionType):
        for option in inner:
            yield from _specs(option, value, key)
    elif origin in (tuple, Mapping):
        items = enumerate(value) if origin is tuple else value.items()
        for place, item in items:
            yield from _specs(inner[origin is Mapping], item, f"{key}.{place}")


def may_be_model(name: str) -> bool:
    """Whether there is a folder of this name, or it reads as a hub id: `owner/name`, the owner being no folder here."""
    path = Path(name).expanduser()
    return path.is_dir() or (re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not path.parent.exists())


def has_nvidia_driver() -> bool:
    """Whether there may be a CUDA device, without loading torch."""
    return Path("/proc/driver/nvidia/version").exists() or bool(os.environ.get("CUDA_VISIBLE_DEVICES"))


@dataclass(frozen=True, kw_only=True)
class LearningOptions(Config):
    """Learning."""

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
    max_grad_norm: Positive = 1.0
    """The gradient is scaled down to this Euclidean norm."""
    n_epochs: Count = 1
    """Passes over each batch: over the data set for offline algorithms, over the rollouts for online ones."""
    minibatch_size: Count = 16
    """Groups (a prompt with its responses) in one optimisation step, over all processes."""


@dataclass(frozen=True, kw_only=True)
class LoopOptions(Config):
    """Memory and checkpoints."""

    adam: Literal["torch", "8bit"] = "torch"
    """8bit keeps AdamW's moments in 8 bits (arXiv:2110.02861), a quarter of the memory; needs CUDA and bitsandbytes."""
    max_tokens: Count | Literal["auto"] = "auto"
    """Token budget of one micro-batch; halved when memory runs out. It never changes the gradient. auto: from the
    memory that is free at the start and an estimate of what a token takes, at most 16384 on a CPU, 32768 on CUDA."""
    save_every: Natural = 0
    """Optimisation steps between checkpoints; 0 saves at the end of each batch of rollouts or epoch."""
    keep_checkpoints: Count = 2
    """Newest checkpoints that are kept."""

    def check(self) -> None:
        super().check()
        if self.adam == "8bit" and importlib.util.find_spec("bitsandbytes") is None:
            raise InputError("8bit needs bitsandbytes", where="adam", fix="pip install bitsandbytes (CUDA only)")
        if self.adam == "8bit" and not has_nvidia_driver():
            raise InputError("8bit needs a CUDA device", where="adam", fix='set adam = "torch"')


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(LearningOptions, LoopOptions):
    """What every Optimizer has."""

    matters: ClassVar[tuple[str, ...]] = ("learning_rate", "n_epochs", "minibatch_size")


@dataclass(frozen=True, kw_only=True)
class IterationOptions(Config):
    """Rollouts."""

    iterations: Count = 100
    """Rounds of sampling, scoring and optimising."""
    batch_size: Count = 32
    """Prompts sampled in each iteration, over all processes."""
    group_size: Count = 1
    """Responses sampled for each prompt."""


@dataclass(frozen=True, kw_only=True)
class RolloutOptions(IterationOptions, TrainingOptions):
    """What every Optimizer on rollouts has."""

    matters: ClassVar[tuple[str, ...]] = ("learning_rate", "iterations", "batch_size", "group_size", "minibatch_size")


@dataclass(frozen=True, kw_only=True)
class StopOptions(Config):
    """When an online run ends before its last iteration. That is a success: what was trained is saved as usual, and
    run.json says why it ended."""

    plateau: Natural = 0
    """The run ends when the mean reward of this many batches is at most plateau_delta above that of as many batches
    before them; 0 never ends it."""
    plateau_delta: NonNegative = 0.0
    """Rise, in units of reward, that still counts as standing still."""
    gold: RewardSpec | None = None
    """A second reward source that scores every batch of rollouts and is not optimised: `{plugin = "function", function
    = "m:f"}`. The trained weights at the best moving mean of its scores are kept in checkpoints/best."""
    gold_fall: NonNegative = 0.0
    """The run ends when gold's moving mean is more than this below its best, in gold's units, while that of the reward
    has risen since (over-optimisation, arXiv:2210.10760), and the weights of the best are saved; 0 never ends it."""
    gold_window: Count = 5
    """Batches in the moving means of gold and of the reward."""

    def check(self) -> None:
        super().check()
        self.counts_only_with("plateau above 0", self.plateau > 0, "plateau_delta")
        self.counts_only_with("gold", self.gold is not None, "gold_fall", "gold_window")


@dataclass(frozen=True, kw_only=True)
class EarlyStopOptions(Config):
    """Early end."""

    stop: StopOptions = field(default_factory=StopOptions)
    """When the run ends early: `stop.plateau = 20`."""


@dataclass(frozen=True, kw_only=True)
class KLLimitOptions(Config):
    """Limit of the KL."""

    max_kl: NonNegative = 0.0
    """The run stops (exit code 3) when the mean KL to the reference, in nats a response, passes this; 0 never stops."""


@dataclass(frozen=True, kw_only=True)
class PtxOptions(Config):
    """Texts in the loss."""

    ptx_coef: NonNegative = 0.0
    """Weight of the negative log-likelihood, in nats a token, of the texts of [ptx] (or else of the demonstrations) in
    the loss, against forgetting (PPO-ptx, arXiv:2203.02155, eq. 2); 0 leaves it out."""
    ptx_batch_size: Count = 16
    """Texts, over all processes, in the ptx part of each optimisation step."""

    def check(self) -> None:
        super().check()
        self.counts_only_with("ptx_coef above 0", self.ptx_coef > 0, "ptx_batch_size")


@dataclass(frozen=True, kw_only=True)
class MovingReferenceOptions(Config):
    """Reference that follows the policy."""

    reference_refresh_every: Natural = 0
    """The reference follows the policy after each so many optimisation steps; 0 leaves it where training started. With
    LoRA this needs policy.reference = "copy"."""
    reference_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of its own weights that the reference keeps in a refresh (arXiv:2404.09656): 0 takes the policy's weights;
    0.99 at each step is an exponential moving average. With LoRA the adapter's two factors are averaged."""
    reference_max_kl: NonNegative = 0.0
    """The reference does not follow while the last batch's KL to it, in nats a response, is above this, so that a
    policy that has gone astray is not made the reference; 0 always follows."""

    def check(self) -> None:
        super().check()
        moves = self.reference_refresh_every > 0
        self.counts_only_with("reference_refresh_every above 0", moves, "reference_decay", "reference_max_kl")


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
