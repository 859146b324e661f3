"""Models that lack a token, bring code of their own, or meet a reward model with another tokenizer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
import transformers
from alignkit_hf.options import HFOptions
from alignkit_hf.policy import HFPolicy
from hf_tiny import END, PAD, assert_equal_figures
from tokenizers import Tokenizer, models, pre_tokenizers

from alignkit import Context, Group, InputError, Prompt, Sampling
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import BuildFolder, LoadPolicy

CPU = Context(device="cpu")
LETTERS = "abcdefghijklmnopqrstuvwxyz "


def without_end(folder: Path) -> Path:
    """Takes the end token out of everything that names it."""
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        said = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**said, "eos_token_id": None, "eos_token": None}))
    return folder


def test_without_a_padding_token_the_end_token_pads(build_folder: BuildFolder, load_policy: LoadPolicy) -> None:
    policy = load_policy(folder=build_folder(pad=None, pad_token_id=None))
    groups = [Group(Prompt(text="once upon a time"), ("there was",)), Group(Prompt(text="the"), ("dog",))]
    together = policy.forward(policy.encode(groups)).logprobs
    alone = [policy.forward(policy.encode([group])).logprobs for group in groups]
    assert_equal_figures(policy.raw, together, torch.cat(alone))
    assert policy.tokenizer.pad_token_id == END != PAD


def test_without_an_end_token_it_is_explained(build_folder: BuildFolder, load_policy: LoadPolicy) -> None:
    folder = without_end(build_folder())
    with pytest.raises(InputError, match="stop_token_ids: the model names no end token\n  fix: set it"):
        load_policy(folder=folder)
    assert load_policy(folder=folder, stop_token_ids=[END]).encoder.end_id == END


def classifier_with_letters(folder: Path) -> Path:
    """A reward model with one token a letter, as transformers saves it."""
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<end>", *LETTERS, "?"])}
    backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", unk_token="?"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    config = transformers.LlamaConfig(vocab_size=len(vocabulary), num_labels=1, initializer_range=0.5, **sizes, **ids)
    torch.manual_seed(0)
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_scorer_with_another_tokenizer_reads_the_text(tmp_path: Path) -> None:
    policy = HFPolicy(HFOptions(model=str(write_tiny_llama(tmp_path / "policy"))), CPU)
    rollouts = policy.generate([Prompt(text="a b")], n=2, sampling=Sampling(max_tokens=5), seed=0)
    folder = classifier_with_letters(tmp_path / "reward")
    scorer = HFPolicy.load_scorer(folder, CPU, append_end=True)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    numbers = {letter: number for number, letter in enumerate(LETTERS, start=2)}
    for group in [*rollouts.groups, Group(Prompt(text="a b"), ("no", "yes"))]:
        texts = [group.prompt.plain + response for response in group.responses]
        rows = [[numbers.get(letter, len(LETTERS) + 2) for letter in text] + [1] for text in texts]
        expected = torch.cat([plain(torch.tensor([ids])).logits[0] for ids in rows])
        assert_equal_figures(scorer.raw, scorer.forward(scorer.encode([group])).scores, expected)


def test_code_of_a_model_folder_is_not_run_unless_asked_for(build_folder: BuildFolder, tmp_path: Path) -> None:
    folder, trace = build_folder(), tmp_path / "trace"
    config = json.loads((folder / "config.json").read_text())
    places = {"AutoConfig": "custom.Custom", "AutoModelForCausalLM": "custom.CustomLM"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "custom", "auto_map": places}))
    (folder / "custom.py").write_text(f"open({str(trace)!r}, 'w').close()\nraise RuntimeError('it ran')\n")
    with pytest.raises(InputError, match=r"custom code(.|\n)*fix: read that code, then set trust_remote_code"):
        HFPolicy(HFOptions(model=str(folder)), CPU)
    assert not trace.exists()
    with pytest.raises(InputError, match="it ran"):
        HFPolicy(HFOptions(model=str(folder), trust_remote_code=True), CPU)
    assert trace.exists()
