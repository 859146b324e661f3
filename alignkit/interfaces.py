"""The roles that plugins fill, as abstract classes. Importing this module imports no torch.

A plugin subclasses one of them, `class Brevity(RewardSource[BrevityOptions])`, and registers it through a hook
(`alignkit.hookspecs`). Shapes: G groups, S responses, R response tokens of a batch (see `alignkit.batch`).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

from alignkit.components import Component, ConfigT, Context
from alignkit.options import Config, LearningOptions, Sampling, TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from alignkit.batch import GroupBatch
    from alignkit.companions import Companion, Metrics
    from alignkit.outputs import PolicyOutput, ScorerOutput, TrainResult
    from alignkit.records import Group, Prompt

    OnStep = Callable[[dict[str, float]], None]

INTERFACE_VERSION = 1
"""Version of this module and `hookspecs`. A plugin may declare the one it needs as `ALIGNKIT_INTERFACE`."""

SCORING_TOKENS = 16384
"""Default token budget of passes without gradient."""


class Model(ABC):
    """The base of policies and scorers: they encode groups, consist of modules, and can be saved."""

    @abstractmethod
    def encode(self, groups: Sequence[Group]) -> GroupBatch:
        """Tokenises groups, on this model's device. Each response ends with its stop token.

        Raises:
            InputError: a prompt and its response exceed the model's context.
        """

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """The modules by name. The engine prepares, optimises, saves and restores them under these names."""

    @abstractmethod
    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        """Uses these modules, which the engine wrapped, in all further forward passes."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Writes a folder that alignkit and other tools can load."""


class Scorer(Model):
    """A trunk with one scalar head on every token: a reward model or a critic."""

    @abstractmethod
    def forward(self, batch: GroupBatch) -> ScorerOutput:
        """Scores all responses of every group in one pass."""

    def rescale(self, mean: float, std: float) -> None:
        """Changes the head so that it subtracts `mean` from values and scores, then divides by `std`."""
        raise NotImplementedError(f"{type(self).__name__} can't rescale its head")


class Policy(Component[ConfigT], Model):
    """A language model that is sampled and trained."""

    @abstractmethod
    def generate(
        self, prompts: Sequence[Prompt], *, n: int, sampling: Sampling, seed: int, places: Sequence[int] | None = None
    ) -> GroupBatch:
        """Samples `n` responses per prompt, with the sampling `logprobs` [R] and `finished` [S].

        A response follows from its prompt, the seed, its index and its prompt's place (default: 0, 1, 2, ...) alone.
        """

    @abstractmethod
    def forward(
        self, batch: GroupBatch, *, entropy: bool = False, hidden: bool = False, kl_to: Policy[Any] | None = None
    ) -> PolicyOutput:
        """Log-probabilities of the response tokens, and whatever else is requested, in one pass. `kl_to`, a policy of
        the same plugin, asks for the exact KL to it, at the cost of a pass of that policy."""

    @abstractmethod
    def reference(self) -> Policy[Any]:
        """This policy as it is now, frozen: with its adapter off, or a copy."""

    def explain(self) -> str:
        """How the model runs, as found while loading it. Shown to the user and stored in run.json."""
        return ""

    def digest(self) -> str:
        """sha256 of what determines the log-probabilities of `forward` for a given batch: weights and options.

        Policies with equal digests give the same numbers, bit for bit. By default of all modules and options.
        """
        from alignkit.ops.digests import digest_of_tensors

        states = ((name, module.state_dict()) for name, module in self.modules().items())
        tensors = {f"{name}.{key}": tensor for name, state in states for key, tensor in state.items()}
        return hashlib.sha256(f"{type(self)} {self.config} {digest_of_tensors(tensors)}".encode()).hexdigest()

    @classmethod
    @abstractmethod
    def load(cls, path: Path, config: ConfigT, context: Context) -> Self:
        """Loads the policy that `save` wrote; everything else follows the options.

        Raises:
            InputError: the folder holds no such policy.
        """


class HasValues(ABC):
    """A Policy with value heads and scorers, for algorithms with a critic and for reward models."""

    @abstractmethod
    def forward(
        self,
        batch: GroupBatch,
        *,
        entropy: bool = False,
        hidden: bool = False,
        values: bool = False,
        kl_to: Policy[Any] | None = None,
    ) -> PolicyOutput:
        """Like `Policy.forward`; `values` adds those of the value head."""

    @abstractmethod
    def add_value_head(self) -> None:
        """Adds a scalar head, initially zero, on every token of this policy's trunk, for `forward(values=True)`."""

    def add_value_branch(self, layers: int) -> None:
        """Adds such a head on copies of the trunk's last layers. Raises InputError if it has fewer."""
        raise NotImplementedError(f"{type(self).__name__} has no layers to copy")

    @abstractmethod
    def scorer(self) -> Scorer:
        """A new scorer: a copy of this policy's trunk with a head that is initially zero."""

    @classmethod
    @abstractmethod
    def load_scorer(cls, path: Path, context: Context, *, append_end: bool | None = None) -> Scorer:
        """Loads the scorer that `Scorer.save` wrote. One of another tool is scored behind an end token if `append_end`.
        Raises InputError if the folder holds none (a causal LM has no scoring head)."""

    @classmethod  # noqa: B027
    def try_records_of_scorer(cls, path: Path, records: Iterable[tuple[str, Group]]) -> None:
        """Like `try_records`, for the scorer in a folder."""


class RewardSource(Component[ConfigT]):
    """Scores responses: a trained model, a rule, a judge, a function."""

    @abstractmethod
    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        """One float per response; higher is better, None abstains. A score never depends on the rest of the batch."""

    def calibrate(self, groups: Sequence[Group]) -> None:
        """Called once after training, with demonstrations, to fix the scale of the scores. Does nothing by default."""

    def start_critic(self) -> Scorer | None:
        """A trainable copy of this source's model, on the scale of `score`, to start a critic from."""
        return None

    def figures(self) -> Mapping[str, float]:
        """Figures of the last `score` call, logged with each batch of rollouts; the same names in every process."""
        return {}

    def worth(self) -> str:
        """A sentence on how far to trust the scores so far, for the run's last lines and its report."""
        return ""

    @classmethod
    def load(cls, path: Path, config: ConfigT, context: Context) -> Self:
        """Loads the source that its training (`Config.training`) wrote; everything else follows the options."""
        raise NotImplementedError(f"{cls.__name__} needs training, so it must define load(path, config, context)")


class Ask(Protocol):
    """Samples from the run's current policy, for labellers."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        """The run's prompts: from [prompts], else from its preferences."""

    def __call__(self, prompts: Sequence[Prompt], k: int) -> list[Group]:
        """`k` responses per prompt."""


class PreferenceSource(Component[ConfigT]):
    """Yields groups: a data set, human labels, or a labeller that ranks fresh responses (it sets `samples`). One that
    only collects responses for others to judge sets `judges` to False."""

    samples: ClassVar[bool] = False
    judges: ClassVar[bool] = True

    @abstractmethod
    def preferences(self, ask: Ask) -> Iterator[Group]:
        """The groups in a fixed order. Files ignore `ask`; labellers call `ask(prompts, k)`."""

    def explain(self) -> str:
        """Describes what was read, for people: form, counts, a sample. Called after `preferences`."""
        return ""

    def figures(self) -> Mapping[str, Any]:
        """JSON figures for the stage's summary; `worth`, a sentence on its labels, also ends the run's output."""
        return {}

    def first(self) -> Iterable[tuple[str, Group]]:
        """The first groups of a file, each with its place, to try before a model loads; those to rank have ranks."""
        return ()

    @classmethod
    def options_of_file(cls, path: Path, columns: Mapping[str, str]) -> Mapping[str, Any]:
        """The options with which this source reads a file, for commands; `columns` maps old names to new ones."""
        raise NotImplementedError(f"{cls.__name__} reads no files")


class Feed(Enum):
    """What an algorithm learns from, which the pipeline must provide."""

    DEMONSTRATIONS = "demonstrations"
    RANKINGS = "rankings"
    LABELS = "labels"
    ROLLOUTS = "rollouts"


LearningT = TypeVar("LearningT", bound=LearningOptions)
TrainingT = TypeVar("TrainingT", bound=TrainingOptions)


class Algorithm(Component[LearningT]):
    """Base of the role `optimizer`: algorithms with the engine's loop (`Optimizer`) or their own (`ForeignTrainer`).

    Attributes:
        consumes: what it learns from.
        uses_reference: whether it needs a frozen copy of the initial policy. Where options decide, set it before
            `super().__init__`.
        reports: figures of a batch that it always reports (`kl`); an option that needs another figure is refused.
        needs_values: whether it adds value heads or scorers to the policy (`HasValues`).
    """

    Config: ClassVar[type[Config]] = LearningOptions
    consumes: ClassVar[Feed]
    uses_reference: bool = False
    reports: ClassVar[frozenset[str]] = frozenset()
    needs_values: ClassVar[bool] = False

    def __init__(
        self,
        config: LearningT | None = None,
        context: Context | None = None,
        *,
        policy: Policy[Any],
        reward: RewardSource[Any] | None = None,
    ) -> None:
        super().__init__(config, context)
        self.policy = policy
        self.reward = reward

    def save(self, path: Path) -> None:
        """Writes the trained model: the policy, or a reward model."""
        self.policy.save(path)


class Optimizer(Algorithm[TrainingT]):
    """An alignment algorithm: it prepares batches and computes losses; the engine does the rest.

    Attributes:
        couples_responses: whether the loss compares the responses of a group, so that groups must stay whole.
        weighs_rollouts: whether importance weights on its advantages make up for rollouts of older weights.
        reference: the frozen copy, if `uses_reference`.
        max_tokens: token budget that memory allows, for the algorithm's own passes; the engine updates it.
        batch_metrics: figures of the last batch passed to `prepare`, logged with each of its steps.
    """

    Config: ClassVar[type[Config]] = TrainingOptions
    couples_responses: ClassVar[bool] = True
    weighs_rollouts: ClassVar[bool] = False
    moves_weights: ClassVar[bool] = False

    def __init__(
        self,
        config: TrainingT | None = None,
        context: Context | None = None,
        *,
        policy: Policy[Any],
        reward: RewardSource[Any] | None = None,
    ) -> None:
        super().__init__(config, context, policy=policy, reward=reward)
        self.reference: Policy[Any] | None = policy.reference() if self.uses_reference else None
        self.max_tokens = SCORING_TOKENS if self.config.max_tokens == "auto" else self.config.max_tokens
        self.batch_metrics: dict[str, float] = {}

    def companions(self, texts: Sequence[Group], seed: int) -> Sequence[Companion]:
        """The companions of the training, called once before it.

        Args:
            texts: texts to keep likely, if the options ask for them (`PtxOptions`).
        """
        return ()

    def prepare(self, batch: GroupBatch) -> GroupBatch:
        """Called once per batch, without gradient: reference log-probabilities, advantages. Returns a new batch.

        An offline algorithm gets its data set in pieces, an online one the scored rollouts of an iteration.
        """
        return batch

    def begin_step(self, batch: GroupBatch) -> None:
        """Called before each optimisation step, without gradient: measures what `loss` needs of the whole step.

        What refers to all micro-batches (a baseline, a dynamic coefficient) is computed here from this process's whole
        minibatch, prepared, and read by `loss`. `alignkit.ops.mean_over_processes` turns its means into the step's.
        """

    @abstractmethod
    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        """The loss of a micro-batch, a scalar computed with the batch's means, and its metrics."""

    def take_step(self, batch: GroupBatch) -> dict[str, float]:
        """Called in each optimisation step, after the gradients and before AdamW: the algorithm's own updates.

        An algorithm that updates parameters itself sets `moves_weights` (they can't be split over processes) and their
        gradients to None (AdamW skips them), alike in every process. The learning rate does not apply to them.

        Args:
            batch: this process's whole minibatch, with the step's totals; memory holds `max_tokens` tokens of it.

        Returns:
            figures to log, the same in every process.
        """
        return {}

    def keep_going(self, metrics: Mapping[str, float]) -> bool:
        """Called after each optimisation step: whether to continue with this batch (early stop on KL)."""
        return True

    def modules(self) -> dict[str, nn.Module]:
        """What is trained, by name: the policy's modules, and the algorithm's own critic or head."""
        return self.policy.modules()

    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        """Uses the wrapped modules; see `Model.bind`."""
        self.policy.bind(modules)

    def learning_rate_scales(self) -> Mapping[str, float]:
        """Learning rate factors, by prefix of the qualified parameter name (`policy.value_head`)."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State beside the modules that a resumed run needs, as JSON types (KL controller, running statistics)."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""


class ForeignTrainer(Algorithm[LearningT]):
    """An algorithm with its own loop, such as another library's trainer.

    The pipeline provides what it `consumes` and calls `save` after `run`. Its reference and checkpoints are its own
    business; an interrupted stage starts again.
    """

    @abstractmethod
    def run(
        self, groups: Sequence[Group], *, sampling: Sampling, folder: Path, seed: int, on_step: OnStep
    ) -> TrainResult:
        """Trains the policy, or its own model, in place.

        Args:
            groups: all records; for rollouts, one group with an empty response per prompt.
            sampling: how rollouts are sampled.
            folder: for its own files.
            on_step: call it after each optimisation step with `step`, from 1, and figures named as the engine's.
        """


class MetricSink(Component[ConfigT]):
    """Receives the metrics of every optimisation step, in addition to metrics.jsonl."""

    @abstractmethod
    def write(self, record: Mapping[str, Any]) -> None:
        """One record: `stage`, `step` and the figures."""

    def write_samples(self, groups: Sequence[Group], stage: str, step: int) -> None:
        """Sampled responses: a scored group that a step starts to learn from; last, those of `eval`."""

    def close(self) -> None:
        """Called once when the run ends, also after an error."""
