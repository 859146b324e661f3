"""What is saved means the same in plain transformers and peft as here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
import transformers
from alignkit_hf.options import HFOptions, LoraOptions
from alignkit_hf.policy import HFPolicy
from hf_tiny import BOS, CHAT, END, PAD, PEFT_WARNS, assert_equal_figures, plain_logprobs, save_adapter
from safetensors.torch import load_file

from alignkit.components import Context
from alignkit.records import Group, Prompt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignkit_hf.scorer import HFScorer
    from conftest import BuildFolder, LoadPolicy

GROUPS = [
    Group(Prompt(text="once upon a"), (" time there was a dog", " dog", "")),
    Group(Prompt(text="the big red"), (" ball",)),
]
CHATS = [
    Group(Prompt(messages=({"role": "user", "content": "a ball"},)), ("the big red one", "no")),
    Group(Prompt(messages=({"role": "user", "content": "once upon a time"},)), ("there was",)),
]
pytestmark = pytest.mark.filterwarnings(PEFT_WARNS)
LORA = LoraOptions(r=2)
CPU = Context(device="cpu")


@pytest.fixture(autouse=True)
def forget_probes() -> None:
    """Probes are remembered here."""


def shake(module: Any, *, seed: int = 0) -> None:
    """Moves every trained parameter, so that a lost one is noticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def rows_of(batch: Any) -> list[list[int]]:
    """The tokens of each response with its prompt."""
    prompts = torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())
    responses = torch.split(batch.response_ids, batch.lengths.tolist())
    return [prompts[g].tolist() + ids.tolist() for g, ids in zip(batch.group_index.tolist(), responses, strict=True)]


def padded(tokenizer: Any, rows: list[list[int]], side: str) -> dict[str, torch.Tensor]:
    """The rows as the saved tokenizer pads them."""
    batch = tokenizer.pad({"input_ids": rows}, padding=True, padding_side=side, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("pad", ["<pad>", "<end>", None])
def test_a_policy_gives_the_same_logprobs_in_a_padded_batch(
    build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path, pad: str | None
) -> None:
    policy = load_policy(folder=build_folder("llama", pad=pad))
    shake(policy.raw)
    batch = policy.encode(GROUPS)
    policy.save(tmp_path / "saved")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for side in ("left", "right"):
        inputs = padded(tokenizer, rows_of(batch), side)
        logits = plain(**inputs).logits.detach()
        found = []
        for index, length in enumerate(batch.lengths.tolist()):
            row = inputs["attention_mask"][index].bool()
            ids, distribution = inputs["input_ids"][index][row], logits[index][row].log_softmax(-1)
            found += [float(distribution[at - 1, ids[at]]) for at in range(len(ids) - length, len(ids))]
        assert_equal_figures(policy.raw, policy.forward(batch).logprobs, torch.tensor(found))


@pytest.mark.parametrize(
    ("pad", "bos", "rank"), [("<pad>", "<bos>", 0), ("<end>", "<bos>", 0), ("<end>", None, 2), (None, "<end>", 0)]
)
def test_a_reward_model_gives_the_same_scores_in_a_padded_batch(
    build_folder: BuildFolder,
    load_policy: LoadPolicy,
    tmp_path: Path,
    pad: str | None,
    bos: str | None,
    rank: int,
) -> None:
    folder = build_folder("llama", pad=pad, pad_token_id=None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = bos
    tokenizer.save_pretrained(folder)
    scorer = load_policy(folder=folder, lora=LoraOptions(r=rank)).scorer()
    shake(scorer.raw)
    batch = scorer.encode(GROUPS)
    assert scorer.forward(batch).scores.std() > 0.01
    scorer.save(tmp_path / "reward")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "reward")
    for side in ("left", "right"):
        inputs = padded(saved, rows_of(batch), side)
        assert int((1 - inputs["attention_mask"]).sum()) > 0
        assert_equal_figures(scorer.raw, scorer.forward(batch).scores, plain(**inputs).logits[:, 0].detach())
    again = HFPolicy.load_scorer(tmp_path / "reward", CPU)
    assert again.encode(GROUPS).response_ids.tolist() == batch.response_ids.tolist()


@pytest.mark.parametrize(
    ("template", "adds_bos"),
    [
        (CHAT, True),
        (CHAT.replace("<end>\n", ""), False),
        ("{{ bos_token }}" + CHAT.replace("<end>\n", "<end><pad>\n"), True),
        (None, False),
    ],
    ids=["line-break", "no-end", "two-ends", "plain"],
)
def test_the_saved_template_and_tokenizer_give_the_tokens_that_are_scored(
    build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path, template: str | None, *, adds_bos: bool
) -> None:
    folder = build_folder("llama", template=template)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_bos_token = adds_bos
    tokenizer.save_pretrained(folder)
    policy = load_policy(folder=folder)
    scorer = policy.scorer()
    shake(scorer.raw)
    batch = scorer.encode(CHATS)
    scorer.save(tmp_path / "reward")
    policy.save(tmp_path / "policy")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "reward")
    chats = [
        [*group.prompt.messages, {"role": "assistant", "content": text}] for group in CHATS for text in group.responses
    ]
    inputs = saved.apply_chat_template(chats, padding=True, return_tensors="pt", return_dict=True)
    assert_equal_figures(scorer.raw, scorer.forward(batch).scores, plain(**inputs).logits[:, 0].detach())
    prompts = torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())
    for kind in ("reward", "policy"):
        saved = transformers.AutoTokenizer.from_pretrained(tmp_path / kind)
        for group, ids in zip(CHATS, prompts, strict=True):
            said = saved.apply_chat_template(list(group.prompt.messages), add_generation_prompt=True)["input_ids"]
            assert said == ids.tolist()
    again = load_policy(folder=tmp_path / "policy")
    assert again.encode(CHATS).prompt_ids.tolist() == batch.prompt_ids.tolist()
    assert again.encode(CHATS).response_ids.tolist() == batch.response_ids.tolist()


def test_the_saved_tokenizer_begins_a_text_as_here(load_policy: LoadPolicy, tmp_path: Path) -> None:
    policy = load_policy("llama")
    assert policy.tokenizer("a dog")["input_ids"][0] != BOS
    policy.save(tmp_path / "saved")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    expected = policy.encoder.prompts([Prompt(text="a dog")])[0]
    assert expected[0] == BOS
    assert tokenizer("a dog")["input_ids"] == expected
    assert load_policy(folder=tmp_path / "saved").encoder.prompts([Prompt(text="a dog")]) == [expected]


def test_all_stop_tokens_and_the_padding_are_in_the_generation_config(
    build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path
) -> None:
    load_policy(stop_token_ids=(END, 7, 9)).save(tmp_path / "several")
    generation = json.loads((tmp_path / "several/generation_config.json").read_text())
    assert generation["eos_token_id"] == [END, 7, 9]
    assert generation["pad_token_id"] == PAD
    assert load_policy(folder=tmp_path / "several").encoder.stop_ids == (END, 7, 9)
    load_policy(folder=build_folder("gpt2", pad=None, pad_token_id=None)).save(tmp_path / "one")
    generation = json.loads((tmp_path / "one/generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (END, END)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "one").pad_token_id == END


def test_a_generation_config_that_transformers_refuses_to_save_is_saved(
    build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path
) -> None:
    folder = build_folder("llama")
    file = folder / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": END, "temperature": 0.6, "top_p": 0.9}))
    load_policy(folder=folder).save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/generation_config.json").read_text())
    assert (saved["temperature"], saved["top_p"], saved["do_sample"]) == (0.6, 0.9, True)


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("strict_umask")
def test_the_modes_of_saved_files_follow_the_umask(load_policy: LoadPolicy, tmp_path: Path) -> None:
    policy = load_policy(lora=LORA)
    policy.save(tmp_path / "policy")
    policy.scorer().save(tmp_path / "reward")
    files = [file for kind in ("policy", "reward") for file in (tmp_path / kind).rglob("*") if file.is_file()]
    assert len([file for file in files if file.suffix == ".safetensors"]) == 3
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o640"}


def test_the_config_names_the_type_of_the_weights(load_policy: LoadPolicy, tmp_path: Path) -> None:
    for weights in ("float32", "bfloat16"):
        policy = load_policy(weights=weights)
        policy.save(tmp_path / weights / "policy")
        policy.scorer().save(tmp_path / weights / "reward")
        for kind in ("policy", "reward"):
            tensors = load_file(tmp_path / weights / kind / "model.safetensors")
            config = json.loads((tmp_path / weights / kind / "config.json").read_text())
            trunk = {str(tensor.dtype) for name, tensor in tensors.items() if not name.startswith("score")}
            assert {f"torch.{config['dtype']}"} == trunk
            assert config["dtype"] == weights


def of_adapter(folder: Path) -> Any:
    """The model that peft makes of an adapter's folder and the base that it names."""
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    return peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), folder).eval()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_trained_on_an_adapter_fits_the_base_that_it_names(
    build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path, family: str
) -> None:
    base = build_folder(family)
    targets = ["q_proj", "v_proj"] if family == "llama" else ["c_attn"]
    first = save_adapter(
        tmp_path / "first",
        base,
        target_modules=targets,
        lora_alpha=8,
        r=3,
        use_rslora=True,
        fan_in_fan_out=family == "gpt2",
    )
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(first)
    policy = load_policy(folder=first, lora=LORA)
    shake(policy.raw)
    batch = policy.encode(GROUPS)
    policy.save(tmp_path / "saved")
    expected = policy.forward(batch).logprobs.detach()
    plain = of_adapter(tmp_path / "saved/adapter")
    assert_equal_figures(policy.raw, plain_logprobs(plain, batch).detach(), expected)
    policy.reference()
    shake(policy.raw, seed=1)
    policy.save(tmp_path / "saved")
    expected = policy.forward(batch).logprobs.detach()
    plain = of_adapter(tmp_path / "saved/adapter")
    assert_equal_figures(policy.raw, plain_logprobs(plain, batch).detach(), expected)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert_equal_figures(policy.raw, plain_logprobs(merged, batch).detach(), expected)
    again = load_policy(folder=tmp_path / "saved/adapter")
    assert_equal_figures(policy.raw, again.forward(batch).logprobs, expected)


def test_an_adapter_that_fits_no_stored_base_is_not_written(
    build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = build_folder("llama")
    first = save_adapter(tmp_path / "first", base, modules_to_save=["lm_head"])
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(first)
    policy = load_policy(folder=first, lora=LORA)
    policy.save(tmp_path / "saved")
    assert not (tmp_path / "saved/adapter").exists()
    assert "no stored model is the base of this adapter" in caplog.text
    batch = policy.encode(GROUPS)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert_equal_figures(policy.raw, plain_logprobs(plain, batch).detach(), policy.forward(batch).logprobs.detach())


def test_the_base_that_an_adapter_names_is_found_from_anywhere(
    build_folder: BuildFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = build_folder("llama")
    monkeypatch.chdir(tmp_path)
    HFPolicy(HFOptions(model=base.name, lora=LORA), CPU).save(tmp_path / "saved")
    named = json.loads((tmp_path / "saved/adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(named) == base


def test_saving_over_an_old_policy_leaves_no_old_adapter(load_policy: LoadPolicy, tmp_path: Path) -> None:
    load_policy(lora=LORA).save(tmp_path / "saved")
    load_policy().save(tmp_path / "saved")
    assert not (tmp_path / "saved/adapter").exists()


def test_a_new_adapter_depends_on_the_seed_alone(build_folder: BuildFolder) -> None:
    folder = build_folder("llama")

    def factors(seed: int, *, of_scorer: bool = False) -> list[torch.Tensor]:
        torch.rand(seed + 1)  # the state of the process is another each time
        owner: HFPolicy | HFScorer = HFPolicy(HFOptions(model=str(folder), lora=LORA), Context(device="cpu", seed=seed))
        if of_scorer:
            owner = owner.scorer()
        return [parameter for name, parameter in owner.raw.named_parameters() if "lora_A" in name]

    state = torch.get_rng_state()
    for of_scorer in (False, True):
        one, same, other = (factors(seed, of_scorer=of_scorer) for seed in (5, 5, 6))
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    torch.set_rng_state(state)


def test_an_adapter_on_weights_in_4_bits_is_not_rounded_away(
    build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes")
    monkeypatch.setattr("alignkit_hf.options.has_nvidia_driver", lambda: True)
    folder = build_folder("llama", hidden_size=64, intermediate_size=64)
    policy = load_policy(folder=folder, lora=LORA, quantize="4bit")
    scorer = policy.scorer()
    for owner, kind in ((policy, "policy"), (scorer, "reward")):
        shake(owner.raw)
        owner.save(tmp_path / kind)
        assert "quantization_config" not in json.loads((tmp_path / kind / "config.json").read_text())
        saved = load_file(tmp_path / kind / "model.safetensors")
        for name, module in owner.raw.lm.named_modules():
            if not name.endswith("_proj"):
                continue
            module.state_dict()  # undoes a CPU's order
            base = functional.dequantize_4bit(module.base_layer.weight.data, module.base_layer.weight.quant_state)
            above, below = (part["default"].weight for part in (module.lora_B, module.lora_A))
            expected = (base.double() + above.double() @ below.double() * LORA.alpha / LORA.r).detach()
            error = (saved[f"{name}.weight"].double() - expected).abs().max()
            assert error <= 2 * torch.finfo(torch.bfloat16).eps * expected.abs().max()
