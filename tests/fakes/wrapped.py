"""A stranger's policy around `hf` and a reward that is trained first; neither has an option called `model`."""

from dataclasses import dataclass

from alignkit import (
    Config,
    HasValues,
    Policy,
    RewardSource,
    build_component,
    hookimpl,
    registry,
)


@dataclass(frozen=True, kw_only=True)
class WrappedOptions(Config):
    """A policy that leaves all to another one."""

    checkpoint: str = ""
    """Folder of the model."""


class Wrapped(Policy[WrappedOptions], HasValues):
    """The policy `hf`, behind options of its own."""

    def __init__(self, config=None, context=None, *, inner=None):
        super().__init__(config, context)
        spec = {"plugin": "hf", "model": self.config.checkpoint}
        self.inner = inner or build_component("policy", spec, self.context)

    @classmethod
    def load(cls, path, config, context):
        return cls(config, context, inner=build_component("policy", {"plugin": "hf", "model": str(path)}, context))

    @classmethod
    def load_scorer(cls, path, context):
        return registry().load("policy", "hf").load_scorer(path, context)

    def reference(self):
        return Wrapped(self.config, self.context, inner=self.inner.reference())

    def forward(self, batch, *, kl_to=None, **asked):
        return self.inner.forward(batch, kl_to=kl_to.inner if kl_to else None, **asked)

    def encode(self, groups):
        return self.inner.encode(groups)

    def generate(self, prompts, **how):
        return self.inner.generate(prompts, **how)

    def modules(self):
        return self.inner.modules()

    def bind(self, modules):
        self.inner.bind(modules)

    def save(self, path):
        self.inner.save(path)

    def add_value_head(self):
        self.inner.add_value_head()

    def scorer(self):
        return self.inner.scorer()


@dataclass(frozen=True, kw_only=True)
class LearnedOptions(Config):
    """A reward that is trained first."""

    def training(self):
        return {"plugin": "bradley-terry", "n_epochs": 1}


class Learned(RewardSource[LearnedOptions]):
    """What Bradley-Terry has left."""

    def __init__(self, config=None, context=None, *, trained=None):
        super().__init__(config, context)
        self.trained = trained

    @classmethod
    def load(cls, path, config, context):
        return cls(config, context, trained=build_component("reward", {"plugin": "model", "model": str(path)}, context))

    def score(self, groups):
        return self.trained.score(groups)


@hookimpl
def register_policies(register):
    register("wrapped", Wrapped)


@hookimpl
def register_reward_sources(register):
    register("learned", Learned)
