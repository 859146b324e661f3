"""Options of components: frozen dataclasses with declared ranges, checked wherever they are made.

Imports no torch, so that options are shown and checked before anything heavy loads. `plugins show`, `--help` and the
docs are generated from the docstring under each field.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Lt

from alignkit.checking import check_fields, check_rules, differing, option_names
from alignkit.errors import InputError, missing_package


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
"""A nested component: `{plugin = "name", option = value, ...}`."""
PolicySpec = Annotated[ComponentSpec, Role("policy")]
RewardSpec = Annotated[ComponentSpec, Role("reward")]
PreferencesSpec = Annotated[ComponentSpec, Role("preferences")]
MetricsSpec = Annotated[ComponentSpec, Role("metrics")]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of every options class. Making an instance checks types and ranges and calls `check`.

    Attributes:
        compares_with: another plugin of the same role. Its settings in `[table.for.NAME]` of a recipe apply to this one
            too, where it has options of that name.
        supersedes: option -> those of the recipe that count no more where `-o` sets it.
        takes_function: for the plugin that wraps functions: the option that `--role module:function` sets.
        noise: options that don't influence results: a run resumes although they have changed.
        matters: the options to show first, at most twelve. The others are grouped by the class that first defines them,
            under the first line of its docstring.

    Raises:
        OptionsError: lists every wrong option.
    """

    compares_with: ClassVar[str] = ""
    supersedes: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    takes_function: ClassVar[str] = ""
    noise: ClassVar[frozenset[str]] = frozenset()
    matters: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        check_rules(self)

    def check(self) -> None:
        """Checks what types and ranges can't express, before any model loads: a file exists, two options fit.

        An override calls `super().check()` first, because options classes are composed of groups.

        Raises:
            InputError: with the name of the option, in this class, as `where`.
        """

    def counts_only_with(self, setting: str, holds: bool, *names: str) -> None:
        """For `check`: refuses options that were changed but have no effect.

        Args:
            setting: what they need, as a user would write it: "plateau above 0".
            holds: whether that is so.
            names: the options.

        Raises:
            InputError: `holds` is false and one of the options differs from its default.
        """
        idle = [] if holds else differing(self, names)
        if idle:
            raise InputError(f"has no effect without {setting}", where=idle[0], fix=f"set {setting}, or leave it out")

    def training(self) -> ComponentSpec | None:
        """The Optimizer that must train the component before use; None if it needs no training."""
        return None


def specs_of(config: Config, prefix: str = "") -> Iterator[tuple[str, str, ComponentSpec]]:
    """(key, role, spec) of every component nested in these options, found by their annotations."""
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
    """Whether the name is a folder, or looks like a hub id `owner/name` (and `owner` is no folder here)."""
    path = Path(name).expanduser()
    return path.is_dir() or (re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not path.parent.exists())


def require_package(name: str, *, where: str) -> None:
    """For `check`: raises InputError if the option `where` needs a package that is not installed."""
    if importlib.util.find_spec(name) is None:
        raise missing_package(ModuleNotFoundError(name=name), where)


def has_nvidia_driver() -> bool:
    """Whether there may be a CUDA device; does not import torch."""
    return Path("/proc/driver/nvidia/version").exists() or bool(os.environ.get("CUDA_VISIBLE_DEVICES"))


@dataclass(frozen=True, kw_only=True)
class LearningOptions(Config):
    """Learning."""

    learning_rate: NonNegative = 1e-5
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning rate after the warm-up; linear and cosine decay to zero over the planned steps."""
    warmup: Fraction = 0.05
    """Share of the planned steps in which the learning rate rises from zero."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay."""
    adam_beta2: Annotated[float, Ge(0), Lt(1)] = 0.99
    """AdamW's beta2, the decay of the second moment."""
    max_grad_norm: Positive = 1.0
    """Clip the gradient to this Euclidean norm."""
    n_epochs: Count = 1
    """Passes over the data set (offline algorithms) or over each batch of rollouts (online ones)."""
    minibatch_size: Count = 16
    """Groups (a prompt with its responses) per optimisation step, over all processes."""


@dataclass(frozen=True, kw_only=True)
class LoopOptions(Config):
    """Memory, checkpoints and budget."""

    noise: ClassVar[frozenset[str]] = frozenset({"max_tokens", "save_every", "keep_checkpoints"})

    adam: Literal["torch", "8bit"] = "torch"
    """8bit stores AdamW's moments in 8 bits (arXiv:2110.02861), a quarter of the memory; needs CUDA and
    bitsandbytes."""
    max_tokens: Count | Literal["auto"] = "auto"
    """Tokens per micro-batch; halved when memory runs out, and never changes the gradient. auto: from the free memory
    and an estimate per token, at most 16384 on a CPU, 32768 on CUDA."""
    save_every: Natural = 0
    """Optimisation steps between checkpoints; 0 saves after each batch of rollouts or epoch."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints to keep."""
    budget: Mapping[Literal["response_tokens", "seconds", "flops"], Positive] = field(default_factory=dict)
    """End the training, as a success, at the first step that has spent so much: `budget.seconds = 600`. The learning
    rate follows what is spent, where that is ahead of the steps. docs/how-to/comparing.md says what counts."""

    def check(self) -> None:
        super().check()
        if self.adam == "8bit":
            require_package("bitsandbytes", where="adam")
            if not has_nvidia_driver():
                raise InputError("8bit needs a CUDA device", where="adam", fix='set adam = "torch"')


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(LearningOptions, LoopOptions):
    """The options of every Optimizer."""

    matters: ClassVar[tuple[str, ...]] = ("learning_rate", "n_epochs", "minibatch_size")


@dataclass(frozen=True, kw_only=True)
class IterationOptions(Config):
    """Rollouts."""

    iterations: Count = 100
    """Rounds of sampling, scoring and optimising."""
    batch_size: Count = 32
    """Prompts per iteration, over all processes."""
    group_size: Count = 1
    """Responses sampled per prompt."""
    max_abstained: Fraction = 0.5
    """Stop the run (exit code 3) when the reward abstains on more than this share of an iteration's responses."""


@dataclass(frozen=True, kw_only=True)
class RolloutOptions(IterationOptions, TrainingOptions):
    """The options of every Optimizer that learns from rollouts."""

    matters: ClassVar[tuple[str, ...]] = ("learning_rate", "iterations", "batch_size", "group_size", "minibatch_size")


@dataclass(frozen=True, kw_only=True)
class StopOptions(Config):
    """When an online run ends before its last iteration. That is a success: the model is saved as usual, and run.json
    says why the run ended."""

    plateau: Natural = 0
    """End the run when the mean reward of the last so many batches is at most plateau_delta above the mean of as many
    before them; 0 never does."""
    plateau_delta: NonNegative = 0.0
    """Largest rise of the mean reward that still counts as a plateau."""
    gold: RewardSpec | None = None
    """A second reward source that scores every batch of rollouts but is not optimised: `{plugin = "function", function
    = "m:f"}`. checkpoints/best keeps the weights at the best moving mean of its scores."""
    gold_fall: NonNegative = 0.0
    """End the run when gold's moving mean is more than this, in its units, below its best while the reward's has risen
    since (over-optimisation, arXiv:2210.10760), and save the best weights; 0 never does."""
    gold_window: Count = 5
    """Batches in the moving means of gold and the reward."""

    def check(self) -> None:
        super().check()
        self.counts_only_with("plateau above 0", self.plateau > 0, "plateau_delta")
        self.counts_only_with("gold", self.gold is not None, "gold_fall", "gold_window")


@dataclass(frozen=True, kw_only=True)
class EarlyStopOptions(Config):
    """Early stopping."""

    stop: StopOptions = field(default_factory=StopOptions)
    """When to end the run early: `stop.plateau = 20`."""


@dataclass(frozen=True, kw_only=True)
class AlarmOptions(Config):
    """Alarms.

    Attributes:
        figures: the figure of a batch that each rule is about; a rule that is set on one that the algorithm does not
            report is refused.
    """

    figures: ClassVar[Mapping[str, str]] = {
        "max_kl": "kl",
        "alarm_kl": "kl",
        "alarm_entropy": "entropy",
        "alarm_length": "response_length",
        "alarm_repetition": "repetition",
        "alarm_cut_off": "finished",
        "alarm_gold": "gold_drop",
    }

    max_kl: NonNegative = 0.0
    """Stop the run (exit code 3) at once when the mean KL to the reference, in nats per response, passes this; 0 never
    does."""
    alarm_kl: NonNegative = 30.0
    """Alarm when that KL is above this; 0 never."""
    alarm_entropy: Fraction = 0.2
    """Alarm when the entropy is below this share of the first batches'; 0 never."""
    alarm_length: NonNegative = 2.0
    """Alarm when the mean length of the responses is above this times the first batches', or below these divided by
    this; 0 never."""
    alarm_repetition: Fraction = 0.2
    """Alarm when the share of four tokens in a row that stand earlier in their response, too, is more than this above
    the first batches'; 0 never."""
    alarm_cut_off: Fraction = 0.5
    """Alarm when more than this share of the responses is cut off at sampling.max_tokens; 0 never."""
    alarm_gold: NonNegative = 4.5
    """Alarm when the moving mean of stop.gold's scores is more than this, in standard errors, below its best while the
    reward's has risen since; 0 never."""
    alarm_batches: Count = 3
    """How many batches in a row must be beyond a threshold before the alarm (gold's moving mean: one), or within it
    before the next one, and how many first batches entropy, length and repetition are compared with."""
    on_alarm: Literal["warn", "stop", "raise-kl"] = "warn"
    """What an alarm does beside telling: nothing, stop the run (exit code 3) with its checkpoint, or multiply the KL
    weight by 1.5."""

    @property
    def can_raise_kl(self) -> bool:
        """Whether there is a KL weight that `raise-kl` can multiply."""
        return False

    def check(self) -> None:
        super().check()
        if 0 < self.alarm_length <= 1:
            raise InputError(
                "every batch would be above or below it", where="alarm_length", fix="set it above 1, or to 0"
            )
        watches = any(getattr(self, option) for option in self.figures if option != "max_kl")
        self.counts_only_with("an alarm_... above 0", watches, "alarm_batches", "on_alarm")
        if self.on_alarm == "raise-kl" and not self.can_raise_kl:
            raise InputError(
                "there is no KL weight to multiply, or it follows a schedule",
                where="on_alarm",
                fix="choose 'warn' or 'stop', or an algorithm with kl_coef (or beta) above 0 that is not `linear`",
            )


@dataclass(frozen=True, kw_only=True)
class PtxOptions(Config):
    """Texts in the loss."""

    ptx_coef: NonNegative = 0.0
    """Weight in the loss of the negative log-likelihood, in nats per token, of the texts of [ptx] (default: the
    demonstrations), against forgetting (PPO-ptx, arXiv:2203.02155, eq. 2); 0 turns it off."""
    ptx_batch_size: Count = 16
    """Texts per optimisation step, over all processes."""

    def check(self) -> None:
        super().check()
        self.counts_only_with("ptx_coef above 0", self.ptx_coef > 0, "ptx_batch_size")


@dataclass(frozen=True, kw_only=True)
class MovingReferenceOptions(Config):
    """Moving reference."""

    reference_refresh_every: Natural = 0
    """Optimisation steps between updates of the reference from the policy; 0 never updates it. With LoRA this needs
    policy.reference = "copy"."""
    reference_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of its own weights that the reference keeps in an update (arXiv:2404.09656): 0 copies the policy; 0.99
    after each step is an exponential moving average. With LoRA the adapter's two factors are averaged."""
    reference_max_kl: NonNegative = 0.0
    """Skip an update when the last batch's KL to the reference, in nats per response, is above this, so that a policy
    gone astray does not become the reference; 0 never skips."""

    def check(self) -> None:
        super().check()
        moves = self.reference_refresh_every > 0
        self.counts_only_with("reference_refresh_every above 0", moves, "reference_decay", "reference_max_kl")


@dataclass(frozen=True, kw_only=True)
class Sampling(Config):
    """How responses are sampled."""

    max_tokens: Count = 128
    """Longest response, in tokens; a response cut off there is unfinished."""
    temperature: NonNegative = 1.0
    """Divides the logits; 0 takes the likeliest token. Log-probabilities are at this temperature."""
    top_k: Natural = 0
    """Sample from the k likeliest tokens only; 0 from all. Not for training rollouts."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Sample from the likeliest tokens whose probabilities sum to this. Not for training rollouts."""
    min_p: Annotated[float, Ge(0), Le(1)] = 0.0
    """Sample from tokens with at least this share of the likeliest one's probability (arXiv:2407.01082). Not for
    training rollouts."""
    repetition_penalty: Positive = 1.0
    """Divides positive logits, and multiplies others, of tokens already in the prompt or the response
    (arXiv:1909.05858, section 4.1). Not for training rollouts."""
    min_tokens: Natural = 0
    """No stop token before this many tokens. Not for training rollouts."""
    stop: tuple[str, ...] = ()
    """Finish a response at the first of these strings, which is cut off. Not for training rollouts."""

    def check(self) -> None:
        if "" in self.stop:
            raise InputError("an empty string would stop every response", where="stop", fix="remove it")

    def check_rollouts(self) -> None:
        """Raises InputError if training rollouts can't be sampled like this."""
        if self.distortions:
            raise InputError(
                "rollouts need the policy's full distribution: a truncated one makes the ratio wrong",
                where="sampling",
                fix=f"remove {', '.join(self.distortions)}",
            )

    @property
    def distortions(self) -> tuple[str, ...]:
        """The options that make sampling differ from the policy's full distribution at a temperature."""
        names = ("top_k", "top_p", "min_p", "repetition_penalty", "min_tokens", "stop")
        changed = [name for name in names if getattr(self, name) != getattr(Sampling, name)]
        return (*(["temperature"] if self.temperature == 0 else []), *changed)
