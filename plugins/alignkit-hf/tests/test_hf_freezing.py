"""Layers that are not trained: bit for bit the same after training, without gradient or optimiser state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_hf.options import HFOptions, LoraOptions, SFTOptions
from alignkit_hf.sft import SFT
from hf_tiny import assert_equal_figures

from alignkit.errors import InputError
from alignkit.records import Group, Prompt
from alignkit.training.engine import Engine
from alignkit.training.feeds import OfflineFeed
from alignkit.training.replicas import Replicas

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit_hf.policy import HFPolicy
    from conftest import BuildFolder, LoadPolicy

GROUPS = [
    Group(prompt=Prompt(text="once upon a"), responses=(" time there was",)),
    Group(prompt=Prompt(text="the big"), responses=(" ball",)),
]
BELOW = {
    "llama": ("model.embed_tokens.",),
    "gpt2": ("transformer.wte.", "transformer.wpe."),
    "opt": ("model.decoder.embed_tokens.", "model.decoder.embed_positions."),
    "bloom": ("transformer.word_embeddings.", "transformer.word_embeddings_layernorm."),
}
LAYER = {"llama": "model.layers.{}.", "gpt2": "transformer.h.{}.", "opt": "model.decoder.layers.{}.",
         "bloom": "transformer.h.{}."}  # fmt: skip
TIED = {"llama": False, "gpt2": True, "opt": True, "bloom": True}


def kept_names(policy: HFPolicy, family: str, layers: int) -> set[str]:
    """By hand: the parameters of the lower layers and of the modules known to lie below them."""
    prefixes = (*BELOW[family], *(LAYER[family].format(number) for number in range(layers)))
    return {name for name, _ in policy.raw.lm.named_parameters() if name.startswith(prefixes)}


def engine_after(policy: HFPolicy, folder: Path, steps: int = 2) -> Engine:
    """A few steps of supervised fine-tuning in the real training loop."""
    options = SFTOptions(learning_rate=0.01, minibatch_size=2, n_epochs=steps, weight_decay=0.1)
    feed = OfflineFeed(GROUPS, policy)
    nothing: Any = lambda _: None  # noqa: E731
    optimizer = SFT(options, policy=policy)
    engine = Engine(optimizer, feed, folder / "checkpoints", 0, nothing, nothing, "", True, (), Replicas(optimizer))
    engine.run()
    return engine


@pytest.mark.parametrize("options", [{"freeze_layers": 1}, {"train_last": 1}, {"freeze_layers": 2}, {"train_last": 2}])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom"])
def test_what_is_kept_is_the_same_and_the_rest_moves(
    load_policy: LoadPolicy, tmp_path: Path, family: str, options: dict[str, int]
) -> None:
    policy = load_policy(family, **options)
    kept = kept_names(policy, family, options.get("freeze_layers", 2 - options.get("train_last", 2)))
    before = {name: parameter.detach().clone() for name, parameter in policy.raw.lm.named_parameters()}
    engine = engine_after(policy, tmp_path)
    after = dict(policy.raw.lm.named_parameters())
    same = {name for name, parameter in after.items() if torch.equal(parameter, before[name])}
    assert same == kept
    assert len(kept) < len(after)
    with_state = {id(parameter) for parameter in engine.layout.adam.state}
    assert {name for name, parameter in after.items() if id(parameter) not in with_state} == kept
    assert all(after[name].grad is None for name in kept)
    saved = torch.load(next((tmp_path / "checkpoints").glob("step-*")) / "modules.pt")
    assert not {f"policy.model.{name}" for name in kept} & saved.keys()
    assert (policy.raw.vocabulary_head.weight.requires_grad) is not TIED[family]
    assert ("tied" in policy.explain()) is TIED[family]
    assert f"first {options.get('freeze_layers', 2 - options.get('train_last', 2))} of 2 layers" in policy.explain()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradients_of_what_is_trained_are_those_of_the_whole_model(
    load_policy: LoadPolicy, build_folder: BuildFolder, family: str
) -> None:
    folder = build_folder(family)
    gradients: list[dict[str, torch.Tensor]] = []
    for layers in (0, 1):
        policy = load_policy(folder=folder, freeze_layers=layers)
        SFT(SFTOptions(), policy=policy).loss(policy.encode(GROUPS))[0].backward()  # type: ignore[no-untyped-call]
        found = {n: p.grad for n, p in policy.raw.lm.named_parameters() if p.grad is not None}
        gradients.append(found)
    whole, upper = gradients
    assert 0 < len(upper) < len(whole)
    assert_equal_figures(policy.raw, upper, {name: whole[name] for name in upper})


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_with_lora_only_adapters_of_upper_layers_are_trained(load_policy: LoadPolicy, tmp_path: Path) -> None:
    policy = load_policy("llama", freeze_layers=1, lora=LoraOptions(r=2))
    trained = {name for name, parameter in policy.raw.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name and ".layers.1." in name for name in trained)
    before = {name: parameter.detach().clone() for name, parameter in policy.raw.named_parameters()}
    engine_after(policy, tmp_path)
    moved = {n for n, p in policy.raw.named_parameters() if not torch.equal(p, before[n])}
    assert moved == trained
    policy.reference()  # merges the trained adapter, and starts a new one
    again = {name for name, parameter in policy.raw.named_parameters() if parameter.requires_grad}
    assert again == trained
    scorer = policy.scorer().modules()["scorer"]
    of_scorer = {name for name, parameter in scorer.named_parameters() if parameter.requires_grad}
    assert of_scorer and all((".layers.1." in name and "lora_" in name) or "score" in name for name in of_scorer)


def test_a_scorer_keeps_the_same_layers_and_holds_them_once(load_policy: LoadPolicy) -> None:
    policy = load_policy("llama", freeze_layers=1)
    scorer = policy.scorer()
    own = dict(scorer.raw.lm.named_parameters())
    shared = {name for name, p in policy.raw.lm.named_parameters() if name in own and own[name] is p}
    assert shared == kept_names(policy, "llama", 1)
    assert {name for name, parameter in own.items() if not parameter.requires_grad} == shared
    assert not any(parameter.requires_grad for name, parameter in policy.raw.lm.named_parameters() if name in shared)
    batch = policy.encode(GROUPS)
    with torch.no_grad():
        own["score.weight"].fill_(0.1)
        before = scorer.forward(batch).scores
        own["model.layers.1.mlp.down_proj.weight"].add_(0.5)
        assert not torch.equal(scorer.forward(batch).scores, before)
    assert torch.equal(policy.forward(batch).logprobs, load_policy("llama").forward(batch).logprobs)


def test_without_the_options_all_is_trained_and_nothing_shared(load_policy: LoadPolicy) -> None:
    policy = load_policy("llama")
    assert all(parameter.requires_grad for parameter in policy.raw.parameters())
    own = {id(parameter) for parameter in policy.scorer().raw.parameters()}
    assert not own & {id(parameter) for parameter in policy.raw.parameters()}
    assert "layers are not trained" not in policy.explain()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"freeze_layers": 3}, "freeze_layers: the model has 2 layers, not 3"),
        ({"train_last": 4}, "train_last: the model has 2 layers, not 4"),
        ({"freeze_layers": 1, "train_last": 1}, "train_last: can't be combined with freeze_layers"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_wrong_numbers_are_refused_before_a_model_loads(
    build_folder: BuildFolder, family: str, options: dict[str, int], said: str
) -> None:
    folder = build_folder(family)
    with pytest.raises(InputError, match=f"HFOptions {said}"):
        HFOptions(model=str(folder), **options)  # type: ignore[arg-type]


def test_a_hub_model_is_refused_once_its_layers_are_known(
    load_policy: LoadPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HFOptions, "_check_against_config", lambda *_: None)
    with pytest.raises(InputError, match="train_last: the model has 2 layers, not 9"):
        load_policy("llama", train_last=9)
