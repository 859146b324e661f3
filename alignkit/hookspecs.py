"""The hooks that plugins implement. Each is called once, with `register(name, target, config=None)`.

`target` is a class, or a `"module:Class"` string that is imported when the plugin is used. `config` is the options
class; only a string target with options needs it, a class knows its own. The module named by the entry point (group
`alignkit`) must import neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from alignkit.options import Config

hookspec = pluggy.HookspecMarker("alignkit")
hookimpl = pluggy.HookimplMarker("alignkit")


class Register(Protocol):
    """Registers a component of the hook's role."""

    def __call__(self, name: str, target: type[Any] | str, config: type[Config] | None = None) -> None: ...


@hookspec
def register_policies(register: Register) -> None:
    """`register("hf", "alignkit_hf.policy:HFPolicy", config=HFOptions)`"""


@hookspec
def register_samplers(register: Register) -> None:
    """`register("vllm", "alignkit_vllm.sampler:VLLMSampler", config=VLLMOptions)`"""


@hookspec
def register_reward_sources(register: Register) -> None:
    """`register("length", LengthReward)`"""


@hookspec
def register_preference_sources(register: Register) -> None:
    """`register("dataset", "alignkit_data.source:Dataset", config=DatasetOptions)`"""


@hookspec
def register_optimizers(register: Register) -> None:
    """`register("dpo", "alignkit_dpo.dpo:DPO", config=DPOOptions)`"""


@hookspec
def register_metric_sinks(register: Register) -> None:
    """`register("csv", CsvSink)`"""
