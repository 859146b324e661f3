"""Plugin: rewards. Imports no torch; components are imported on use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit import hookimpl
from alignkit_reward import options

if TYPE_CHECKING:
    from alignkit import Register

ALIGNKIT_INTERFACE = 1


@hookimpl
def register_optimizers(register: Register) -> None:
    """Registers `bradley-terry`, `infonce` and `plackett-luce`."""
    register("bradley-terry", "alignkit_reward.training:BradleyTerry", config=options.BradleyTerryOptions)
    register("infonce", "alignkit_reward.training:InfoNCE", config=options.InfoNCEOptions)
    register("plackett-luce", "alignkit_reward.training:PlackettLuce", config=options.PlackettLuceOptions)


@hookimpl
def register_reward_sources(register: Register) -> None:
    """Registers `model`, `function`, `rules`, `sum` and `ensemble`."""
    register("model", "alignkit_reward.model:ModelReward", config=options.ModelOptions)
    register("function", "alignkit_reward.function:FunctionReward", config=options.FunctionOptions)
    register("rules", "alignkit_reward.rules:RulesReward", config=options.RulesOptions)
    register("sum", "alignkit_reward.composed:SumReward", config=options.SumOptions)
    register("ensemble", "alignkit_reward.composed:EnsembleReward", config=options.EnsembleOptions)


@hookimpl
def register_preference_sources(register: Register) -> None:
    """Registers `reward` and `rules`."""
    register("reward", "alignkit_reward.labeller:RewardLabeller", config=options.LabellerOptions)
    register("rules", "alignkit_reward.labeller:RulesLabeller", config=options.RulesLabellerOptions)
