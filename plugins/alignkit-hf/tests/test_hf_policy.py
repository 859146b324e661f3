"""The policy as a whole: references, adapters, saving, the contract."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from alignkit_hf.options import LoraOptions
from alignkit_hf.policy import HFPolicy
from hf_tiny import BOS, END, assert_equal_figures, build_model, plain_logprobs
from torch import nn

from alignkit.components import Context
from alignkit.errors import InputError
from alignkit.options import Sampling
from alignkit.records import Group, Prompt
from alignkit.testing import PolicyContract
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import BuildFolder, LoadPolicy

    from alignkit.batch import GroupBatch

GROUPS = [
    Group(prompt=Prompt(text="once upon a"), responses=(" time there was", " dog", "")),
    Group(prompt=Prompt(text="the big red"), responses=(" ball",)),
]
LORA = LoraOptions(r=4)


def train(policy: HFPolicy, batch: GroupBatch) -> None:
    """One large step of gradient descent on all trained parameters."""
    policy.forward(batch).logprobs.sum().backward()
    with torch.no_grad():
        for name, parameter in policy.raw.named_parameters():
            if parameter.grad is not None:
                assert parameter.requires_grad, name
                parameter.add_(parameter.grad / (parameter.grad.norm() + 1e-9), alpha=0.3)
            parameter.grad = None


class _HFContract(PolicyContract):
    component = HFPolicy

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        type(self).options = {**type(self).options, "model": str(write_tiny_llama(tmp_path / "model"))}

    def context(self) -> Context:
        return Context(device="cpu")

    def independent_logprobs(self, policy: Any, batch: GroupBatch) -> torch.Tensor | None:
        model = transformers.AutoModelForCausalLM.from_pretrained(policy.config.model)
        return plain_logprobs(model.eval(), batch)


class TestPackedContract(_HFContract):
    options = {"layout": "packed"}  # noqa: RUF012


class TestPaddedContract(_HFContract):
    options = {"layout": "padded"}  # noqa: RUF012


class TestLoraContract(_HFContract):
    options = {"lora": LORA}  # noqa: RUF012


def test_the_result_of_the_probe_is_shown(load_policy: LoadPolicy, caplog: pytest.LogCaptureFixture) -> None:
    said = load_policy("llama").explain()
    assert said.startswith("LlamaForCausalLM runs in the packed layout (log-probabilities are ")
    assert said.endswith((": packed is nearer)", ": padded is nearer)"))
    chosen = load_policy("llama", layout="padded").explain()
    assert chosen == "LlamaForCausalLM runs in the padded layout: the options ask for it"
    found = load_policy("bloom").explain()
    reason = found.removeprefix("BloomForCausalLM runs in the padded layout: ")
    assert reason != found
    assert reason in caplog.text


def test_the_digest_follows_what_is_computed(load_policy: LoadPolicy, build_folder: BuildFolder) -> None:
    folder = build_folder("llama")
    policy, batch = load_policy(folder=folder), load_policy(folder=folder).encode(GROUPS)
    assert policy.digest() == load_policy(folder=folder).digest() == policy.reference().digest()
    assert policy.digest() != load_policy(folder=folder, layout="padded").digest()
    assert policy.digest() != load_policy(folder=folder, dtype="bfloat16").digest()
    before = policy.digest()
    train(policy, batch)
    assert policy.digest() != before


def test_an_adapter_that_is_switched_off_is_not_in_the_digest(load_policy: LoadPolicy) -> None:
    policy = load_policy(lora=LORA)
    policy.add_value_head()
    reference, batch = policy.reference(), policy.encode(GROUPS)
    own, below = policy.digest(), reference.digest()
    train(policy, batch)
    assert policy.digest() != own
    assert reference.digest() == below
    with torch.no_grad():
        next(p for name, p in policy.raw.named_parameters() if "base_layer" in name).view(-1)[0] += 1e-3
    assert reference.digest() != below


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_full_reference_is_a_frozen_copy(load_policy: LoadPolicy, family: str) -> None:
    policy = load_policy(family)
    policy.add_value_head()
    reference, batch = policy.reference(), policy.encode(GROUPS)
    before = policy.forward(batch).logprobs.detach()
    train(policy, batch)
    assert torch.equal(reference.forward(batch).logprobs, before)
    assert not torch.allclose(policy.forward(batch).logprobs, before, atol=1e-3)
    assert not any(parameter.requires_grad for parameter in reference.raw.parameters())


def test_an_adapter_reference_shares_the_weights(load_policy: LoadPolicy) -> None:
    policy = load_policy(lora=LORA)
    reference, batch = policy.reference(), policy.encode(GROUPS)
    assert reference.raw is policy.raw
    before = policy.forward(batch).logprobs.detach()
    train(policy, batch)
    assert not torch.allclose(policy.forward(batch).logprobs, before, atol=1e-3)
    assert torch.equal(reference.forward(batch).logprobs, before)
    assert not reference.forward(batch).logprobs.requires_grad
    assert any(parameter.requires_grad for parameter in policy.raw.parameters()), "switching off froze the adapter"


def test_the_reference_of_a_trained_adapter_is_not_the_model_below_it(load_policy: LoadPolicy) -> None:
    policy = load_policy(lora=LORA)
    batch = policy.encode(GROUPS)
    base = policy.forward(batch).logprobs.detach()
    train(policy, batch)
    tuned = policy.forward(batch).logprobs.detach()
    reference = policy.reference()
    assert reference.raw is policy.raw, "the weights were copied"
    assert_equal_figures(policy.raw, reference.forward(batch).logprobs, tuned)
    assert_equal_figures(policy.raw, policy.forward(batch).logprobs, tuned)
    assert not torch.allclose(base, tuned, atol=1e-2)
    train(policy, batch)
    assert_equal_figures(policy.raw, reference.forward(batch).logprobs, tuned)
    trained = {name for name, parameter in policy.raw.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora" in name for name in trained)


def test_a_copy_can_be_asked_for_with_an_adapter(load_policy: LoadPolicy) -> None:
    policy = load_policy(lora=LORA, reference="copy")
    batch = policy.encode(GROUPS)
    train(policy, batch)
    tuned = policy.forward(batch).logprobs.detach()
    reference = policy.reference()
    train(policy, batch)
    assert torch.equal(reference.forward(batch).logprobs, tuned)


def test_the_reference_runs_through_the_wrapped_module(load_policy: LoadPolicy) -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, *args: Any) -> Any:
            self.calls += 1
            return self.inner(*args)

    policy = load_policy(lora=LORA)
    reference, batch = policy.reference(), policy.encode(GROUPS)
    wrapper = Wrapper(policy.modules()["policy"])
    policy.bind({"policy": wrapper})
    policy.forward(batch)
    reference.forward(batch)
    assert wrapper.calls == 2
    assert policy.generate([Prompt(text="a")], n=1, sampling=Sampling(max_tokens=3), seed=0).num_responses == 1


@pytest.mark.parametrize(
    ("targets", "unknown"),
    [(("q_proj", "no_proj", "k_proj"), "no_proj"), (("attention",), "attention"), (("proj",), "proj")],
)
def test_every_target_of_lora_must_exist(load_policy: LoadPolicy, targets: tuple[str, ...], unknown: str) -> None:
    with pytest.raises(InputError, match=f"no module of the model is called {unknown}\n") as refused:
        load_policy(lora=LoraOptions(r=2, target_modules=targets))
    assert refused.value.fix.startswith("choose from: down_proj, gate_proj, k_proj")


def test_targets_of_lora_may_name_a_part_of_the_path(load_policy: LoadPolicy) -> None:
    policy = load_policy(lora=LoraOptions(r=2, target_modules=("self_attn.q_proj", "v_proj")))
    trained = {name for name, p in policy.modules()["policy"].named_parameters() if p.requires_grad}
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("lora", [LoraOptions(), LORA], ids=["full", "lora"])
def test_what_is_saved_is_what_transformers_loads(load_policy: LoadPolicy, tmp_path: Path, lora: LoraOptions) -> None:
    policy = load_policy(lora=lora)
    batch = policy.encode(GROUPS)
    train(policy, batch)
    expected = policy.forward(batch).logprobs.detach()
    policy.save(tmp_path / "saved")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert_equal_figures(plain, plain_logprobs(plain, batch).detach(), expected)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer("once upon")["input_ids"] == [BOS, *policy.tokenizer("once upon")["input_ids"]]
    again = load_policy(folder=tmp_path / "saved", lora=lora)
    assert_equal_figures(plain, again.forward(batch).logprobs.detach(), expected)
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert config["attention_dropout"] == 0.3, "the config that is saved has lost its dropout"
    assert not list((tmp_path / "saved").rglob("*.bin"))
    assert policy.forward(batch).logprobs.requires_grad


def test_an_adapter_folder_is_loaded_and_merged(load_policy: LoadPolicy, tmp_path: Path) -> None:
    policy = load_policy(lora=LORA)
    batch = policy.encode(GROUPS)
    train(policy, batch)
    policy.save(tmp_path / "saved")
    again = load_policy(folder=tmp_path / "saved/adapter")
    assert_equal_figures(policy.raw, again.forward(batch).logprobs, policy.forward(batch).logprobs)
    assert not again.raw.has_adapter


def test_missing_lora_targets_name_the_candidates(load_policy: LoadPolicy) -> None:
    from alignkit.errors import InputError

    with pytest.raises(InputError, match="q_proj") as raised:
        load_policy(lora=LoraOptions(r=4, target_modules=("c_attn",)))
    assert raised.value.where == "lora.target_modules"


def test_values_come_from_a_head_that_is_saved_with_the_module(load_policy: LoadPolicy) -> None:
    policy = load_policy()
    policy.add_value_head()
    batch = policy.encode(GROUPS)
    head = policy.raw.get_submodule("value_head")
    assert "value_head.weight" in policy.modules()["policy"].state_dict()
    nn.init.normal_(head.weight)
    output = policy.forward(batch, values=True, hidden=True)
    assert output.values is not None
    assert output.hidden is not None
    assert_equal_figures(policy.raw, output.values, output.hidden @ head.weight[0] + head.bias)


def test_generated_text_and_tokens_agree(load_policy: LoadPolicy) -> None:
    policy = load_policy()
    batch = policy.generate([Prompt(text="once upon a")], n=6, sampling=Sampling(max_tokens=40), seed=0)
    ids = torch.split(batch.response_ids, batch.lengths.tolist())
    for text, tokens, finished in zip(batch.groups[0].responses, ids, batch.finished.tolist(), strict=True):
        bare = tokens.tolist()[:-1] if finished else tokens.tolist()
        assert text == policy.tokenizer.decode(bare, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert finished == (tokens[-1].item() == END)
    assert batch.logprobs is not None
    assert not batch.logprobs.is_inference()


def test_dropout_is_off_though_the_config_has_it(load_policy: LoadPolicy) -> None:
    for family in ("llama", "gpt2", "opt", "bloom"):
        policy = load_policy(family)
        batch = policy.encode(GROUPS)
        policy.raw.train()
        assert torch.equal(policy.forward(batch).logprobs, policy.forward(batch).logprobs)


def test_layout_packed_is_refused_for_a_model_that_it_does_not_serve(load_policy: LoadPolicy) -> None:
    from alignkit.errors import InputError

    with pytest.raises(InputError, match="BloomForCausalLM"):
        load_policy("bloom", layout="packed")


def test_an_attention_of_transformers_takes_the_padded_layout(
    load_policy: LoadPolicy, build_folder: BuildFolder
) -> None:
    folder = build_folder("mistral")
    policy = load_policy(folder=folder, attention="eager")
    assert policy.raw.lm.config._attn_implementation == "eager"
    assert not policy.raw.path.packed
    batch = policy.encode(GROUPS)
    expected = plain_logprobs(build_model("mistral"), batch)
    assert_equal_figures(policy.raw, policy.forward(batch).logprobs, expected)
