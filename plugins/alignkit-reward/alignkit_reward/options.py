"""Options of the plugin's components. Imports no torch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Interval

from alignkit import (
    ComponentSpec,
    Config,
    Count,
    InputError,
    Natural,
    NonNegative,
    Positive,
    RewardSpec,
    TrainingOptions,
    load_function,
    may_be_model,
)

RankingLoss = Literal["pairwise", "infonce", "plackett-luce"]
OPTIMIZER_OF_LOSS = {"pairwise": "bradley-terry", "infonce": "infonce", "plackett-luce": "plackett-luce"}


@dataclass(frozen=True, kw_only=True)
class BradleyTerryOptions(TrainingOptions):
    """A reward model from all ordered pairs of each ranking (arXiv:2203.02155).

    Formula: -log sigmoid(s_w - s_l - margin * (a_w - a_l)) + center_coef * (s_w + s_l)^2, the mean over the pairs of a
        group; s is the model's score, a the annotators'
    Paper: Ouyang et al., arXiv:2203.02155, eq. 1; the margin: arXiv:2307.09288, eq. 2; centring: arXiv:2312.09244.
    Use it when: you have pairs, or rankings whose annotators compared two responses at a time. The usual choice.
    """

    matters: ClassVar[tuple[str, ...]] = (*TrainingOptions.matters, "margin", "label_smoothing", "center_coef")

    margin: NonNegative = 0.0
    """The better response should lead by this times the gap of the annotators' scores; needs groups with scores."""
    label_smoothing: Annotated[float, Interval(ge=0, lt=0.5)] = 0.0
    """Probability that a preference is recorded the wrong way round."""
    center_coef: NonNegative = 0.0
    """Coefficient of (better + worse)^2, which holds the scores around zero; 0.01 is usual."""


@dataclass(frozen=True, kw_only=True)
class InfoNCEOptions(TrainingOptions):
    """A reward model from the best response of each group against the rest (arXiv:1807.03748).

    Formula: -log(exp(s_best / temperature) / sum of exp(s / temperature) over the best and those ranked below it)
    Paper: van den Oord et al., arXiv:1807.03748, eq. 4.
    Use it when: only the best of K responses is known, or only that one matters (best-of-n).
    """

    matters: ClassVar[tuple[str, ...]] = (*TrainingOptions.matters, "temperature")

    temperature: Positive = 1.0
    """Divisor of the scores before the softmax."""


@dataclass(frozen=True, kw_only=True)
class PlackettLuceOptions(TrainingOptions):
    """A reward model from whole rankings, with ties (Plackett 1975).

    Formula: -sum over places k of log(exp(s_k) / sum of exp(s_j) over those not placed before k)
    Paper: Plackett 1975, J. R. Stat. Soc. C 24(2); ties: Efron 1977, J. Am. Stat. Assoc. 72, 557-565.
    Use it when: annotators ordered all K responses at once.
    """


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Config):
    """A reward model; trained first on the preferences unless you give one."""

    supersedes: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("train", "loss")}

    model: str = ""
    """Folder (or hub id) of a sequence classifier with one label; empty trains one on the preferences first."""
    loss: RankingLoss = "pairwise"
    """Training loss: `pairwise` (Bradley-Terry), `infonce` or `plackett-luce`."""
    normalise: bool = True
    """Shift and scale the scores to mean 0 and variance 1 on demonstrations."""
    append_end: bool | None = None
    """For a reward model that another tool trained: whether an end token follows a response to a prompt of plain text,
    as in TRL. Unset: its tokenizer decides; where prompts are messages, its chat template."""
    max_tokens: Count = 16384
    """Token budget of one forward pass. It never changes a score."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """Options of the Optimizer that trains it (`learning_rate`, `n_epochs`, `temperature`, ...). `plugin` names another
    Optimizer than the loss's."""

    def check(self) -> None:
        """Raises InputError if `model` is neither a folder nor looks like a hub id, or lacks where it is needed."""
        if self.model and not may_be_model(self.model):
            raise InputError(
                f"there is no folder {self.model!r}",
                where="model",
                fix="set the folder of a trained reward model, or leave it out",
            )
        if self.append_end is not None and not self.model:
            raise InputError(
                "is for a reward model of another tool", where="append_end", fix="leave it out, or set model"
            )
        for name in self.supersedes["model"]:
            if self.model and getattr(self, name) not in ({}, "pairwise"):
                raise InputError(
                    "has no effect with reward.model, which is trained already", where=name, fix="leave one of them out"
                )

    def training(self) -> ComponentSpec | None:
        """The Optimizer of the loss; None if a model is given."""
        return None if self.model else {"plugin": OPTIMIZER_OF_LOSS[self.loss], **self.train}


@dataclass(frozen=True, kw_only=True)
class FunctionOptions(Config):
    """A Python function with the signature of TRL's reward functions."""

    takes_function: ClassVar[str] = "function"

    function: str
    """`module:function`, called as `f(prompts=..., completions=..., **columns)`; returns one float per completion."""

    def check(self) -> None:
        """Raises InputError if the function can't be imported or requires what a text record does not have."""
        try:
            parameters = inspect.signature(load_function(self.function)).parameters.values()
        except ValueError:  # a builtin without a signature
            return
        for parameter in parameters:
            if parameter.name in ("completion_ids", "trainer_state") and parameter.default is parameter.empty:
                raise InputError(
                    f"{self.function} requires {parameter.name!r}, which exists only inside TRL's trainer",
                    where="function",
                    fix=f"give it a default: {parameter.name}=None",
                )


@dataclass(frozen=True, kw_only=True)
class LengthRule(Config):
    """1 for a response within the limits, 0 outside; with a target, less with the distance from it."""

    weight: float = 1.0
    """Factor of this rule."""
    target: Natural = 0
    """Word count that scores 1; the score falls linearly to 0 at no words and at twice the target. 0: no target."""
    minimum: Natural = 0
    """Fewest words."""
    maximum: Natural = 0
    """Most words; 0: no limit."""


@dataclass(frozen=True, kw_only=True)
class KeywordRule(Config):
    """Distinct good words found minus distinct bad ones: whole words in any case; `smil*` matches a beginning."""

    weight: float = 1.0
    """Factor of this rule."""
    good: tuple[str, ...] = ()
    """Words that count +1, once each."""
    bad: tuple[str, ...] = ()
    """Words that count -1, once each."""


@dataclass(frozen=True, kw_only=True)
class JSONRule(Config):
    """1 if the whole response is valid JSON, 0 otherwise."""

    weight: float = 1.0
    """Factor of this rule."""
    keys: tuple[str, ...] = ()
    """Keys that the object must have."""


@dataclass(frozen=True, kw_only=True)
class AnswerRule(Config):
    """1 if the last number in the response is right, 0 otherwise."""

    weight: float = 1.0
    """Factor of this rule."""
    column: str = "final_answer"
    """Prompt column with the right number, or with a text that states it as a response would."""
    pattern: str = r"(?im)^[\s*_]*(?:A:|Answer:|####)[\s*_]*([-+−–]?\s*\\?[$€£¥]?\s*[-+−–]?\s*[.,]?\d[^\n]*)"  # noqa: RUF001
    """Regular expression with one group, which begins with the number; the last match counts. Numbers are read as
    people write them (-$1,234.50, 1/2, **42**); what is no number is wrong."""


@dataclass(frozen=True, kw_only=True)
class RulesOptions(Config):
    """The sum of checkable rules: length, keywords, patterns, JSON, a numeric answer."""

    length: LengthRule | None = None
    """Number of words."""
    keywords: KeywordRule | None = None
    """Good and bad words."""
    patterns: Mapping[str, float] = field(default_factory=dict)
    """Regular expressions, each with the score of a response that it matches."""
    json: JSONRule | None = None
    """Validity as JSON."""
    answer: AnswerRule | None = None
    """A numeric answer."""

    def check(self) -> None:
        """Raises InputError if there is no rule, or a rule can't be applied."""
        super().check()
        if not (self.length or self.keywords or self.patterns or self.json or self.answer):
            raise InputError("no rule is given", fix="set one of: length, keywords, patterns, json, answer")
        for pattern in self.patterns:
            _compiled(pattern, "patterns")
        if self.answer and _compiled(self.answer.pattern, "answer.pattern").groups != 1:
            raise InputError("needs exactly one group, the number", where="answer.pattern", fix="use (?:...) elsewhere")
        if self.length and 0 < self.length.maximum < self.length.minimum:
            raise InputError("is below the minimum", where="length.maximum", fix="swap the two")
        if self.keywords and not (self.keywords.good or self.keywords.bad):
            raise InputError("has no words", where="keywords", fix="set good or bad words")


@dataclass(frozen=True, kw_only=True)
class ComposedOptions(Config):
    """Sources."""

    sources: tuple[RewardSpec, ...]
    """The reward sources: `[{plugin = "model"}, {plugin = "rules", length = {maximum = 60}}]`."""

    def check(self) -> None:
        """Raises InputError if there are no sources."""
        if not self.sources:
            raise InputError("is empty", where="sources", fix="name at least one reward source")


@dataclass(frozen=True, kw_only=True)
class SumOptions(ComposedOptions):
    """The weighted sum of other reward sources."""

    weights: tuple[float, ...] = ()
    """Factor of each source; empty means 1 for all."""

    def check(self) -> None:
        """Raises InputError if the number of weights and sources differ."""
        super().check()
        if self.weights and len(self.weights) != len(self.sources):
            raise InputError(
                f"{len(self.weights)} weights for {len(self.sources)} sources",
                where="weights",
                fix="give one weight per source",
            )


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions(ComposedOptions):
    """Several reward models for one objective, less their disagreement (arXiv:2310.02743).

    To get different reward models from one recipe, train them with different `run.seed`, or better from different SFT
    policies; `sources` names their folders.
    """

    sources: tuple[RewardSpec, ...]
    """The members: `[{plugin = "model", model = "run-1/reward"}, {plugin = "model", model = "run-2/reward"}]`."""
    combine: Literal["mean-spread", "minimum"] = "mean-spread"
    """`mean-spread` is the members' mean less spread_coef times their spread, `minimum` the lowest score."""
    spread_coef: NonNegative = 1.0
    """Weight of the spread, the paper's lambda; 0: the mean."""
    spread: Literal["std", "variance"] = "std"
    """Spread of the members: standard deviation, in units of reward, or variance, as in the paper."""

    def check(self) -> None:
        """Raises InputError if there is only one member, or an option does nothing."""
        super().check()
        if len(self.sources) < 2:
            raise InputError("an ensemble needs at least two members", where="sources", fix="name two or more")
        self.counts_only_with("combine = 'mean-spread'", self.combine == "mean-spread", "spread_coef", "spread")


@dataclass(frozen=True, kw_only=True)
class RankingOptions(Config):
    """Responses to rank."""

    k: Annotated[int, Ge(2)] = 4
    """Responses sampled for each prompt; duplicates are dropped."""
    temperature: NonNegative = 0.0
    """Noise of a simulated annotator: rankings follow Plackett-Luce on score / temperature. 0: no noise."""


@dataclass(frozen=True, kw_only=True)
class LabellerOptions(RankingOptions):
    """Samples K responses to each prompt and ranks them by a reward source."""

    source: RewardSpec
    """Reward source to rank by: `{plugin = "model", model = "runs/rm/reward"}`."""


@dataclass(frozen=True, kw_only=True)
class RulesLabellerOptions(RankingOptions, RulesOptions):
    """Samples K responses to each prompt and ranks them by checkable rules."""


def _compiled(pattern: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"{pattern!r} is not a regular expression: {error}", where=where, fix="correct it") from error
