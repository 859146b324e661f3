"""Tokens that the model has no embedding for: an error at loading, or never fed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
import transformers
from hf_tiny import END, PEFT_WARNS, VOCABULARY, assert_equal_figures, build_model, plain_logprobs
from tokenizers import AddedToken

from alignkit.errors import InputError
from alignkit.records import Group, Prompt

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import BuildFolder, LoadPolicy

GROUPS = [Group(Prompt(text="once upon a"), (" time there was", " dog")), Group(Prompt(text="the big red"), (" ball",))]
pytestmark = pytest.mark.filterwarnings(PEFT_WARNS)
CHAT = "{% for m in messages %}<|turn|>{{ m.content }}<end>{% endfor %}"


@pytest.fixture(autouse=True)
def forget_probes() -> None:
    """Probes are remembered here."""


def with_tokens(
    folder: Path, *, pad: str | None = None, special: tuple[str, ...] = (), plain: tuple[str, ...] = ()
) -> Any:
    """Gives the folder's tokenizer more tokens than its model has."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.add_tokens(list(plain))
    if pad is not None:
        tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.save_pretrained(folder)
    return tokenizer


def test_real_tokens_without_an_embedding_are_named(build_folder: BuildFolder, load_policy: LoadPolicy) -> None:
    folder = build_folder("llama")
    with_tokens(folder, plain=("doggy", "kitty"))
    with pytest.raises(InputError, match="token doggy, kitty, but the model's embedding has only 300 rows") as raised:
        load_policy(folder=folder)
    assert raised.value.where == "model"


def test_special_tokens_that_the_template_or_the_end_writes_are_real(
    build_folder: BuildFolder, load_policy: LoadPolicy
) -> None:
    folder = build_folder("llama", template=CHAT)
    with_tokens(folder, special=("<|turn|>",))
    with pytest.raises(InputError, match=r"token <\|turn\|>"):
        load_policy(folder=folder)
    folder = build_folder("llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "<stop>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="token <stop>"):
        load_policy(folder=folder)


def test_a_special_token_that_nothing_writes_is_refused_in_texts_only(
    build_folder: BuildFolder, load_policy: LoadPolicy
) -> None:
    folder = build_folder("llama")
    with_tokens(folder, special=("<image>",))
    policy = load_policy(folder=folder)
    policy.forward(policy.encode(GROUPS))
    with pytest.raises(InputError, match="no embedding for the token '<image>' in the text 'see <image>'"):
        policy.encode([Group(Prompt(text="see <image>"), (" yes",))])


def test_a_padding_token_without_an_embedding_is_replaced(
    build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = build_folder("llama")
    assert with_tokens(folder, pad="[PAD]").pad_token_id == VOCABULARY
    policy = load_policy(folder=folder)
    assert r"[PAD] has no row" in caplog.text
    policy.save(tmp_path / "saved")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert tokenizer.pad_token_id == plain.generation_config.pad_token_id == END
    rows = tokenizer(["once upon a time", "dog"], padding=True, return_tensors="pt")
    assert bool(plain(**rows).logits.isfinite().all())
    load_policy(folder=tmp_path / "saved")
    scorer = load_policy(folder=folder).scorer()
    scorer.save(tmp_path / "reward")
    reward = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "reward")
    assert tokenizer.pad_token_id == reward.config.pad_token_id < reward.get_input_embeddings().weight.shape[0]
    assert reward.config.pad_token_id != END


def grown_adapter(base: Path, folder: Path, **options: Any) -> tuple[Any, Any]:
    """peft's model of an adapter with two new tokens, saved with its tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["doggy", "kitty"])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **options)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return model.eval(), tokenizer


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}], ids=["resized", "trained"])
def test_an_adapter_that_grew_the_vocabulary_brings_its_embedding(
    build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path, options: dict[str, Any], *, tied: bool
) -> None:
    base = build_folder("llama", tie_word_embeddings=tied)
    expected, tokenizer = grown_adapter(base, tmp_path / "adapter", **options)
    expected.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    policy = load_policy(folder=tmp_path / "adapter")
    batch = policy.encode([*GROUPS, Group(Prompt(text="doggy"), (" kitty", "dog"))])
    assert {VOCABULARY, VOCABULARY + 1} <= {*batch.prompt_ids.tolist(), *batch.response_ids.tolist()}
    wanted = plain_logprobs(expected, batch).detach()
    assert_equal_figures(policy.raw, policy.forward(batch).logprobs, wanted)
    policy.save(tmp_path / "saved")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert_equal_figures(policy.raw, plain_logprobs(plain, batch).detach(), wanted)


def test_an_adapter_with_more_tokens_but_no_embedding_for_them_is_refused(
    build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path
) -> None:
    model, tokenizer = grown_adapter(build_folder("llama"), tmp_path / "adapter")
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="token doggy, kitty"):
        load_policy(folder=tmp_path / "adapter")


def test_an_adapter_that_brings_the_embedding_alone_is_refused(
    build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path
) -> None:
    model, tokenizer = grown_adapter(build_folder("llama"), tmp_path / "adapter", modules_to_save=["embed_tokens"])
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="holds no vocabulary head"):
        load_policy(folder=tmp_path / "adapter")


def test_rows_without_a_token_are_no_error(build_folder: BuildFolder, load_policy: LoadPolicy) -> None:
    folder = build_folder("llama", vocab_size=320)
    policy = load_policy(folder=folder)
    batch = policy.encode(GROUPS)
    expected = plain_logprobs(build_model("llama", vocab_size=320), batch)
    assert_equal_figures(policy.raw, policy.forward(batch).logprobs, expected)
