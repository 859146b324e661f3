"""A plugin with every kind of options, for tests of recipes: no component of it does anything."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from alignkit import Config, Feed, InputError, Optimizer, RewardSource, TrainingOptions, hookimpl
from alignkit.options import Count, NonNegative, RewardSpec

ALIGNKIT_INTERFACE = 1


@dataclass(frozen=True, kw_only=True)
class Limits(Config):
    low: Count = 1
    high: Count = 9


@dataclass(frozen=True, kw_only=True)
class PushOptions(TrainingOptions):
    kl_coef: NonNegative = 0.05
    """Weight of the KL, at least 0."""
    mode: Literal["soft", "hard"] = "soft"
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True)
class PullOptions(TrainingOptions):
    beta: NonNegative = 0.1
    start: Path | None = None

    def check(self):
        if self.beta > 10:
            raise InputError("is beyond all reason", where="optimizer.beta", fix="try 0.1")
        if self.learning_rate > 10:
            raise ValueError("the learning rate is beyond all reason")


@dataclass(frozen=True, kw_only=True)
class GivenOptions(Config):
    value: float
    api_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class FunctionOptions(Config):
    takes_function: ClassVar[str] = "function"

    function: str

    def check(self):
        if self.function.endswith(":missing"):
            raise InputError("there is no such function", where="reward.function")


@dataclass(frozen=True, kw_only=True)
class BlendOptions(Config):
    sources: tuple[RewardSpec, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainedOptions(Config):
    model: str = ""
    train: dict = field(default_factory=dict)

    def training(self):
        return None if self.model else {"plugin": "pull", **self.train}


class Source(RewardSource):
    def score(self, groups):
        return [[0.0 for _ in group.responses] for group in groups]


class Blend(Source):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.sources = [context.build("reward", spec) for spec in config.sources]


class Algorithm(Optimizer):
    consumes = Feed.RANKINGS

    def loss(self, batch):
        raise NotImplementedError


class Faulty(Source):
    def __init__(self, config, context):
        raise RuntimeError("out of cheese")


@hookimpl
def register_reward_sources(register):
    register("given", Source, config=GivenOptions)
    register("function", Source, config=FunctionOptions)
    register("blend", Blend, config=BlendOptions)
    register("trained", Source, config=TrainedOptions)
    register("faulty", Faulty, config=Config)


@hookimpl
def register_optimizers(register):
    register("push", Algorithm, config=PushOptions)
    register("pull", Algorithm, config=PullOptions)


@hookimpl
def register_policies(register):
    register("still", "fake_plugin:Nowhere", config=Config)
