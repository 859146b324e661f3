"""The roles that plugins fill, as abstract classes. Importing this module imports no torch.

A third-party plugin subclasses one of them, `class Brevity(RewardSource[BrevityOptions])`, and registers it through a
hook (`alignkit.hookspecs`). Shapes: G groups, S responses, R response tokens of a batch (see `alignkit.batch`).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

from alignkit.components import Component, ConfigT, Context
from alignkit.options import Config, Sampling, TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from alignkit.batch import GroupBatch
    from alignkit.companions import Companion, Metrics
    from alignkit.outputs import PolicyOutput, ScorerOutput, TrainResult
    from alignkit.records import Group, Prompt

INTERFACE_VERSION = 1
"""Version of everything in this module and in `hookspecs`; a plugin module declares the one it was written for."""

SCORING_TOKENS = 16384
"""Token budget of passes without gradient, where nothing else is known."""


class Model(ABC):
    """What a policy and a scorer share: they encode groups, are made of modules, and can be saved."""

    @abstractmethod
    def encode(self, groups: Sequence[Group]) -> GroupBatch:
        """The token batch of text records, on this model's device. Each response ends with its stop token.

        Raises:
            InputError: a prompt and its response don't fit the model's context.
        """

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """The modules by name. The engine prepares, optimises, saves and restores them by these names."""

    @abstractmethod
    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        """Runs further forward passes through these modules: the ones that the engine wrapped, under their names."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Writes a folder from which the model loads again, here and in other tools."""


class Scorer(Model):
    """A trunk with one scalar head on every token: a reward model or a critic."""

    @abstractmethod
    def forward(self, batch: GroupBatch) -> ScorerOutput:
        """Scores all responses of every group in one pass."""

    def rescale(self, mean: float, std: float) -> None:
        """From now on values and scores are less by `mean`, then divided by `std`: the head takes both in."""
        raise NotImplementedError(f"{type(self).__name__} has no head that takes in a shift and a scale")


class Policy(Component[ConfigT], Model):
    """A language model that can be sampled, scored and trained."""

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], *, n: int, sampling: Sampling, seed: int) -> GroupBatch:
        """Samples `n` responses a prompt, with the `logprobs` [R] they were sampled with and `finished` [S].

        A response depends on its prompt, its index and the seed, not on what is sampled beside it.
        """

    @abstractmethod
    def forward(
        self, batch: GroupBatch, *, entropy: bool = False, hidden: bool = False, kl_to: Policy[Any] | None = None
    ) -> PolicyOutput:
        """Log-probabilities of the response tokens, and what else is asked for, in one pass.

        Args:
            kl_to: the policy that the exact KL is measured to, of the same plugin; its own pass comes on top.
        """

    @abstractmethod
    def reference(self) -> Policy[Any]:
        """This policy as it is now, frozen: the adapter switched off, or a copy."""

    def explain(self) -> str:
        """How the model is run, for people: what was found out while it was loaded. Shown, and kept in run.json."""
        return ""

    def digest(self) -> str:
        """sha256 of all that the log-probabilities of `forward` depend on beside the batch: weights and options.

        Policies of the same digest give the same numbers, bit for bit. By default all modules and options.
        """
        from alignkit.ops.digests import digest_of_tensors

        tensors = {
            f"{name}.{key}": tensor
            for name, module in self.modules().items()
            for key, tensor in module.state_dict().items()
        }
        return hashlib.sha256(f"{type(self)} {self.config} {digest_of_tensors(tensors)}".encode()).hexdigest()

    @classmethod
    @abstractmethod
    def load(cls, path: Path, config: ConfigT, context: Context) -> Self:
        """The policy that `save` wrote to a folder, with these options otherwise.

        Raises:
            InputError: the folder holds no such policy.
        """


class HasValues(ABC):
    """A Policy that can carry value heads and scorers, for algorithms with a critic and for reward models.

    Its `forward` takes `values=True` too, which asks for `PolicyOutput.values`.
    """

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
        """See `Policy.forward`; `values` reads the value head."""

    @abstractmethod
    def add_value_head(self) -> None:
        """Adds a scalar head, zero at the start, on every token of this policy's trunk, for `forward(values=True)`."""

    def add_value_branch(self, layers: int) -> None:
        """Adds such a head on copies of the trunk's last layers. Raises InputError where there are not so many."""
        raise NotImplementedError(f"{type(self).__name__} has no layers that could be copied")

    @abstractmethod
    def scorer(self) -> Scorer:
        """A new scorer with its own trunk, a copy of this policy's, and a head that is zero at the start."""

    @classmethod
    @abstractmethod
    def load_scorer(cls, path: Path, context: Context) -> Scorer:
        """The scorer that `Scorer.save` wrote.

        Raises:
            InputError: the folder holds no scorer (a causal LM has no scoring head).
        """


class RewardSource(Component[ConfigT]):
    """Scores responses: a trained model, a rule, a judge, a function."""

    @abstractmethod
    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        """One float a response, higher is better, None to abstain. Never depends on what is scored beside it."""

    def calibrate(self, groups: Sequence[Group]) -> None:
        """Called once after training with demonstrations, to fix the scale of the scores. Does nothing by default."""

    def start_critic(self) -> Scorer | None:
        """A trainable copy of the model behind this source, on the scale of `score`, for a critic to start from."""
        return None

    def figures(self) -> Mapping[str, float]:
        """Figures of the last call of `score`, logged with a batch of rollouts; of the same names in every process."""
        return {}

    @classmethod
    def load(cls, path: Path, config: ConfigT, context: Context) -> Self:
        """The source whose training (`Config.training`) has written this folder, with these options otherwise."""
        raise NotImplementedError(f"{cls.__name__} is trained first, but has no load(path, config, context)")


class Ask(Protocol):
    """Samples from the policy that a run is at; what labellers of fresh responses are given."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        """The run's prompts: of the [prompts] table, or else of its preferences."""

    def __call__(self, prompts: Sequence[Prompt], k: int) -> list[Group]:
        """K responses for each prompt."""


class PreferenceSource(Component[ConfigT]):
    """Yields groups: a data set, human labels, or a labeller that ranks fresh responses, which says so by `samples`."""

    samples: ClassVar[bool] = False

    @abstractmethod
    def preferences(self, ask: Ask) -> Iterator[Group]:
        """The groups in a fixed order. Files ignore `ask`; labellers call `ask(prompts, k)`."""

    def explain(self) -> str:
        """What was read, for people: the form, the counts, a sample. Asked for after `preferences`."""
        return ""

    @classmethod
    def options_of_file(cls, path: Path, columns: Mapping[str, str]) -> Mapping[str, Any]:
        """The options with which this source reads a file, for commands that are given one.

        Args:
            columns: new names of its columns by their old ones.
        """
        raise NotImplementedError(f"{cls.__name__} reads no files")


class Feed(Enum):
    """What an algorithm learns from, and so what the pipeline must bring."""

    DEMONSTRATIONS = "demonstrations"
    RANKINGS = "rankings"
    LABELS = "labels"
    ROLLOUTS = "rollouts"


OptionsT = TypeVar("OptionsT", bound=TrainingOptions)


class Algorithm(Component[ConfigT]):
    """What the role `optimizer` asks of every algorithm, with the engine's loop (`Optimizer`) or one of its own.

    Attributes:
        consumes: the kind of feed.
        uses_reference: whether it is held to a frozen copy of the policy at the start; of the class, or set before
            `__init__` where options decide.
        reports: figures of a batch that it promises (`kl`); a rule on a figure that nobody reports is refused.
        needs_values: whether it puts value heads or scorers on the policy (`HasValues`).
    """

    Config: ClassVar[type[Config]] = TrainingOptions
    consumes: ClassVar[Feed]
    uses_reference: bool = False
    reports: ClassVar[frozenset[str]] = frozenset()
    needs_values: ClassVar[bool] = False

    def __init__(
        self,
        config: ConfigT | None = None,
        context: Context | None = None,
        *,
        policy: Policy[Any],
        reward: RewardSource[Any] | None = None,
    ) -> None:
        super().__init__(config, context)
        self.policy = policy
        self.reward = reward

    def save(self, path: Path) -> None:
        """Writes what was trained: the policy, or a reward model."""
        self.policy.save(path)


class Optimizer(Algorithm[OptionsT]):
    """An alignment algorithm: what happens to a batch once, and the loss of a micro-batch. The engine does the rest.

    Attributes:
        couples_responses: whether the loss compares the responses of a group, so that a group must stay whole.
        reference: the frozen copy, where `uses_reference`.
        max_tokens: token budget of a pass that memory allows, for passes of the algorithm's own; kept by the engine.
        batch_metrics: figures of the last batch that `prepare` was given; they are logged with each of its steps.
    """

    couples_responses: ClassVar[bool] = True

    def __init__(
        self,
        config: OptionsT | None = None,
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
        """What accompanies the training, made once before it.

        Args:
            texts: the run's texts to keep likely, where the options ask for them (`PtxOptions`).
        """
        return ()

    def prepare(self, batch: GroupBatch) -> GroupBatch:
        """Called once for each batch, without gradient: reference log-probabilities, advantages. Returns a new batch.

        An offline algorithm is given its data set in pieces, an online one the scored rollouts of an iteration.
        """
        return batch

    def begin_step(self, batch: GroupBatch) -> None:
        """Before each optimisation step, without gradient: what `loss` has to know of the step as a whole.

        A micro-batch can't see the others, so a loss that refers to all of them (a baseline, a dynamic coefficient) is
        measured here, kept on the Optimizer and read by `loss`. Most algorithms need nothing.

        Args:
            batch: this process's whole minibatch, prepared. Its means, averaged over processes by
                `alignkit.ops.distributed.mean_over_processes`, are those of the step.
        """

    @abstractmethod
    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        """The loss of a micro-batch, a scalar written with the batch's means, and its metrics."""

    def take_step(self, batch: GroupBatch) -> dict[str, float]:
        """In each optimisation step, when the gradients are there and before AdamW: updates of another kind.

        An algorithm that moves parameters itself sets their gradients to None, so that AdamW leaves them alone, and
        moves them alike in every process. The learning rate doesn't concern them.

        Args:
            batch: this process's whole minibatch, with the step's totals; `max_tokens` of it at a time fit in memory.

        Returns:
            figures to log, the same in every process.
        """
        return {}

    def keep_going(self, metrics: Mapping[str, float]) -> bool:
        """After each optimisation step: whether to go on with the rest of this batch (early stop on KL)."""
        return True

    def modules(self) -> dict[str, nn.Module]:
        """What is trained, by name: the policy's modules, and any critic or head of the algorithm's own."""
        return self.policy.modules()

    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        """Takes over the wrapped modules; see `Model.bind`."""
        self.policy.bind(modules)

    def learning_rate_scales(self) -> Mapping[str, float]:
        """Factors on the learning rate by prefix of the qualified parameter name (`policy.value_head`)."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State beside the modules that a resumed run needs (KL controller, running statistics): JSON types."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""


class ForeignTrainer(Algorithm[ConfigT]):
    """An algorithm that brings its own loop, such as another library's trainer.

    The pipeline brings what it `consumes`, and calls `save` when it has run. How it keeps its reference and its
    checkpoints is its own matter; a stage that was cut off begins again.
    """

    @abstractmethod
    def run(
        self,
        groups: Sequence[Group],
        *,
        sampling: Sampling,
        folder: Path,
        seed: int,
        on_step: Callable[[dict[str, float]], None],
    ) -> TrainResult:
        """Trains the policy, or a model of its own, in place.

        Args:
            groups: all records; for rollouts, a group with one empty response for each prompt.
            sampling: how rollouts are sampled.
            folder: where files of its own may go.
            on_step: takes `step`, counted from 1, and the figures of each optimisation step, named as the engine's.
        """


class MetricSink(Component[ConfigT]):
    """Receives the metrics of every optimisation step, beside metrics.jsonl."""

    @abstractmethod
    def write(self, record: Mapping[str, Any]) -> None:
        """One record: `stage`, `step` and the figures."""

    def close(self) -> None:
        """The run has ended."""
