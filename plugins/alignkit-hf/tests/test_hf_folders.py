"""What is loaded is complete: every tensor comes from the files and is used, from folders, adapters and hub ids."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import huggingface_hub.constants
import peft
import pytest
import torch
import transformers
from alignkit_hf.options import HFOptions, LoraOptions
from alignkit_hf.policy import HFPolicy
from hf_tiny import PEFT_WARNS, assert_equal_figures, build_model, classifier_folder, plain_logprobs, save_adapter
from safetensors.torch import load_file, save_file

from alignkit.components import Context
from alignkit.errors import InputError
from alignkit.records import Group, Prompt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import BuildFolder, LoadPolicy

    Tensors = dict[str, torch.Tensor]

GROUPS = [Group(Prompt(text="once upon a"), (" time there was", " dog")), Group(Prompt(text="the big red"), (" ball",))]
pytestmark = pytest.mark.filterwarnings(PEFT_WARNS)
CPU = Context(device="cpu")


@pytest.fixture(autouse=True)
def forget_probes() -> None:
    """Probes are remembered here."""


def edit(file: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Changes the tensors of a file."""
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def plus(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: torch.ones(shape)}


def prefixed(tensors: Tensors) -> Tensors:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("lm_head.weight"), "lacks lm_head.weight"),
        (without("model.layers.1.mlp.up_proj.weight"), r"lacks model\.layers\.1\.mlp\.up_proj\.weight"),
        (prefixed, "remove 'module.' from the front"),
        (plus("v_head.summary.weight", 1, 32), "holds v_head.summary.weight, which LlamaForCausalLM doesn't have"),
        (plus("model.norm.weight", 31), r"holds model.norm.weight as \[31\], and its config says \[32\]"),
    ],
    ids=["no-head", "no-layer", "module", "left-over", "shape"],
)
def test_a_policy_with_other_tensors_than_its_own_is_refused(
    build_folder: BuildFolder, load_policy: LoadPolicy, change: Callable[[Tensors], Tensors], said: str
) -> None:
    folder = build_folder("llama")
    edit(folder / "model.safetensors", change)
    with pytest.raises(InputError, match=said) as raised:
        load_policy(folder=folder)
    assert raised.value.where == "model"


def test_what_transformers_expects_is_no_error(build_folder: BuildFolder, load_policy: LoadPolicy) -> None:
    tied = build_folder("llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    load_policy(folder=tied)
    old = build_folder("gpt2")
    for constant in ("transformer.h.1.attn.bias", "transformer.h.1.attn.masked_bias"):
        edit(old / "model.safetensors", plus(constant, 1, 1, 8, 8))
    load_policy(folder=old)


def test_weights_that_the_config_ties_but_the_files_do_not_stay_two(
    build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path
) -> None:
    folder = build_folder("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    policy = load_policy(folder=folder)
    batch = policy.encode(GROUPS)
    expected = plain_logprobs(build_model("llama"), batch)
    assert_equal_figures(policy.raw, policy.forward(batch).logprobs, expected)
    policy.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["tie_word_embeddings"] is False


def test_a_damaged_file_and_an_impossible_config_are_errors_of_the_input(
    build_folder: BuildFolder, load_policy: LoadPolicy
) -> None:
    folder = build_folder("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": 300}))
    with pytest.raises(InputError, match="can't load"):
        load_policy(folder=folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(InputError, match="can't load"):
        load_policy(folder=folder)


def quantised(folder: Path) -> Path:
    """Stores the linear modules in 8 bits, each with its scale."""

    def change(tensors: Tensors) -> Tensors:
        stored = {}
        for name, tensor in tensors.items():
            stored[name] = tensor
            if "proj" in name:
                scale = tensor.abs().max() / torch.finfo(torch.float8_e4m3fn).max
                stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
                stored[f"{name}_scale_inv"] = scale.reshape(1, 1)
        return stored

    edit(folder / "model.safetensors", change)
    config = json.loads((folder / "config.json").read_text())
    how = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "dequantize": True}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": how}))
    return folder


def test_a_quantised_model_is_checked_too(build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path) -> None:
    folder = quantised(build_folder("llama"))
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    policy = load_policy(folder=folder)
    batch = policy.encode(GROUPS)
    assert_equal_figures(policy.raw, policy.forward(batch).logprobs, plain_logprobs(plain, batch).detach())
    policy.save(tmp_path / "saved")
    load_policy(folder=tmp_path / "saved")
    edit(folder / "model.safetensors", without("model.layers.1.mlp.up_proj.weight_scale_inv"))
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight in 8 bits, but not the scale"):
        load_policy(folder=folder)
    edit(folder / "model.safetensors", without("lm_head.weight"))
    with pytest.raises(InputError, match=r"lacks lm_head\.weight"):
        load_policy(folder=folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("score.weight"), "lacks score.weight"),
        (plus("score.bias", 1), "holds score.bias, which LlamaForSequenceClassification doesn't have"),
        (prefixed, "remove 'module.' from the front"),
    ],
    ids=["no-head", "left-over", "module"],
)
def test_a_reward_model_with_other_tensors_than_its_own_is_refused(
    build_folder: BuildFolder, tmp_path: Path, change: Callable[[Tensors], Tensors], said: str
) -> None:
    folder = classifier_folder(tmp_path / "reward", build_folder("llama"))
    edit(folder / "model.safetensors", change)
    with pytest.raises(InputError, match=said):
        HFPolicy.load_scorer(folder, CPU)


def test_the_vocabulary_head_beside_a_reward_head_is_not_used(build_folder: BuildFolder, tmp_path: Path) -> None:
    folder = classifier_folder(tmp_path / "reward", build_folder("llama"))
    scorer = HFPolicy.load_scorer(folder, CPU)
    expected = scorer.forward(scorer.encode(GROUPS)).scores
    edit(folder / "model.safetensors", plus("lm_head.weight", 300, 32))
    again = HFPolicy.load_scorer(folder, CPU)
    assert torch.equal(again.forward(again.encode(GROUPS)).scores, expected)


def plain_adapter(folder: Path, **arguments: Any) -> Any:
    """The model that peft makes of an adapter's folder."""
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = transformers.AutoModelForCausalLM.from_pretrained(base, **arguments)
    return peft.PeftModel.from_pretrained(model, folder).eval()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"), "has no tensor .*q_proj.lora_B"),
        (plus("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", 2, 32), "holds .*up_proj.lora_A"),
    ],
    ids=["missing", "left-over"],
)
def test_an_adapter_with_other_tensors_than_its_own_is_refused(
    build_folder: BuildFolder,
    load_policy: LoadPolicy,
    tmp_path: Path,
    change: Callable[[Tensors], Tensors],
    said: str,
) -> None:
    folder = save_adapter(tmp_path / "adapter", build_folder("llama"))
    load_policy(folder=folder)
    edit(folder / "adapter_model.safetensors", change)
    with pytest.raises(InputError, match=said):
        load_policy(folder=folder)


def test_the_base_of_an_adapter_is_checked_too(
    build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path
) -> None:
    base = build_folder("llama")
    folder = save_adapter(tmp_path / "adapter", base)
    edit(base / "model.safetensors", without("lm_head.weight"))
    with pytest.raises(InputError, match=r"lacks lm_head\.weight"):
        load_policy(folder=folder)


def test_an_adapter_on_an_adapter_is_loaded_whole(
    build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path
) -> None:
    first = save_adapter(tmp_path / "first", build_folder("llama"))
    merged = plain_adapter(first).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    second = save_adapter(tmp_path / "second", tmp_path / "merged", seed=1)
    expected = plain_adapter(second)
    config = json.loads((second / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(first)}))
    transformers.AutoTokenizer.from_pretrained(build_folder("llama")).save_pretrained(first)
    policy = load_policy(folder=second)
    batch = policy.encode(GROUPS)
    assert_equal_figures(policy.raw, policy.forward(batch).logprobs, plain_logprobs(expected, batch).detach())


def test_an_adapter_that_stands_on_itself_is_refused(load_policy: LoadPolicy, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match="stands on itself"):
        load_policy(folder=tmp_path)


def test_a_reward_adapter_needs_its_head(build_folder: BuildFolder, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter", build_folder("llama"), task_type="SEQ_CLS")
    edit(folder / "adapter_model.safetensors", without("base_model.model.score.weight"))
    with pytest.raises(InputError, match="no scoring head"):
        HFPolicy.load_scorer(folder, CPU)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], str]:
    """Puts a folder into the hub's cache, as `owner/name` at the branch main."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def put(folder: Path, name: str) -> str:
        repository = cache / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text("a" * 40)
        shutil.copytree(folder, repository / "snapshots" / ("a" * 40))
        return name

    return put


def test_hub_ids_are_checked_like_folders(
    build_folder: BuildFolder, tmp_path: Path, hub: Callable[[Path, str], str]
) -> None:
    base = build_folder("llama")
    adapter = save_adapter(tmp_path / "adapter", base)
    reward = classifier_folder(tmp_path / "reward", base)
    name = hub(base, "own/base")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": name}))
    plain = peft.PeftModel.from_pretrained(build_model("llama"), adapter).eval()
    policy = HFPolicy(HFOptions(model=hub(adapter, "own/adapter"), lora=LoraOptions(r=2)), CPU)
    batch = policy.encode(GROUPS)
    assert_equal_figures(policy.raw, policy.forward(batch).logprobs, plain_logprobs(plain, batch).detach())
    policy.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/adapter/adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == name
    scorer, local = (
        HFPolicy.load_scorer(type(tmp_path)(hub(reward, "own/reward")), CPU),
        HFPolicy.load_scorer(reward, CPU),
    )
    assert torch.equal(scorer.forward(scorer.encode(GROUPS)).scores, local.forward(local.encode(GROUPS)).scores)
    edit(base / "model.safetensors", without("lm_head.weight"))
    with pytest.raises(InputError, match=r"own/damaged lacks lm_head\.weight"):
        HFPolicy(HFOptions(model=hub(base, "own/damaged")), CPU)
