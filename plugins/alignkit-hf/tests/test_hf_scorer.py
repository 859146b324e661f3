"""Scorers: standard sequence classifiers whose score is read at the last response token."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from alignkit_hf.options import LoraOptions
from alignkit_hf.policy import HFPolicy
from hf_tiny import END, assert_equal_figures
from torch import nn

from alignkit.components import Context
from alignkit.errors import InputError
from alignkit.records import Group, Prompt

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit_hf.scorer import HFScorer
    from conftest import BuildFolder, LoadPolicy

GROUPS = [
    Group(prompt=Prompt(text="once upon a"), responses=(" time there was", " dog", "")),
    Group(prompt=Prompt(text="the big red"), responses=(" ball",)),
]
CPU = Context(device="cpu")
LORA = LoraOptions(r=4)


def noisy(scorer: HFScorer) -> HFScorer:
    """Every trained parameter moved, so that a lost one is noticed; factors of adapters less, because their product is
    added to the weights, and weights of that size amplify every rounding."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in scorer.raw.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise, alpha=0.05 if "lora_" in name else 0.2)
    return scorer


def sequences(scorer: HFScorer) -> list[list[int]]:
    batch = scorer.encode(GROUPS)
    prompts = torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())
    responses = torch.split(batch.response_ids, batch.lengths.tolist())
    return [prompts[g].tolist() + ids.tolist() for g, ids in zip(batch.group_index.tolist(), responses, strict=True)]


@pytest.mark.parametrize("lora", [LoraOptions(), LORA], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "opt", "mistral", "bloom"])
def test_transformers_gives_the_same_scores(
    load_policy: LoadPolicy, tmp_path: Path, family: str, lora: LoraOptions
) -> None:
    scorer = noisy(load_policy(family, lora=lora).scorer())
    batch = scorer.encode(GROUPS)
    output = scorer.forward(batch)
    assert output.scores.std() > 0.02
    scorer.save(tmp_path / "scorer")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "scorer").eval()
    rows = sequences(scorer)
    one_by_one = torch.cat([plain(torch.tensor([ids])).logits[0] for ids in rows])
    # a head's terms may cancel in all four scores, hardly in all values too
    scale = float(torch.cat((output.scores, output.values)).detach().abs().max())
    assert_equal_figures(scorer.raw, output.scores, one_by_one, scale=scale)
    loaded = HFPolicy.load_scorer(tmp_path / "scorer", CPU)
    assert_equal_figures(scorer.raw, loaded.forward(loaded.encode(GROUPS)).scores, output.scores, scale=scale)
    assert_equal_figures(scorer.raw, loaded.forward(loaded.encode(GROUPS)).values, output.values)


@pytest.mark.parametrize("pad", ["<pad>", "<end>"])
def test_a_padded_batch_in_transformers_gives_the_same_scores(
    build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path, pad: str
) -> None:
    """If the tokenizer pads with its end token, transformers would read the score before it: the config differs."""
    folder = build_folder("llama", pad=pad, pad_token_id=END if pad == "<end>" else 0)
    scorer = noisy(load_policy(folder=folder).scorer())
    scorer.save(tmp_path / "scorer")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "scorer").eval()
    assert plain.config.pad_token_id != END
    rows = sequences(scorer)
    width = max(map(len, rows))
    ids = torch.tensor([row + [plain.config.pad_token_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    expected = plain(ids, attention_mask=mask).logits[:, 0]
    assert_equal_figures(scorer.raw, scorer.forward(scorer.encode(GROUPS)).scores, expected)


def test_values_stand_where_tokens_are_predicted(load_policy: LoadPolicy, tmp_path: Path) -> None:
    scorer = noisy(load_policy().scorer())
    batch = scorer.encode(GROUPS)
    output = scorer.forward(batch)
    rows, head = sequences(scorer), scorer.raw.score_head
    trunk: Any = scorer.raw.trunk
    values = []
    for row, length in zip(rows, batch.lengths.tolist(), strict=True):
        scores = head(trunk(input_ids=torch.tensor([row])).last_hidden_state[0])[:, 0]
        values += scores[len(row) - length - 1 : -1].tolist()
    assert_equal_figures(scorer.raw, output.values, torch.tensor(values))


def test_a_new_scorer_gives_zero_and_leaves_the_policy_alone(load_policy: LoadPolicy) -> None:
    policy = load_policy()
    before = {name: p.clone() for name, p in policy.raw.state_dict().items()}
    scorer = policy.scorer()
    batch = scorer.encode(GROUPS)
    assert scorer.forward(batch).scores.tolist() == [0.0] * 4
    assert scorer.forward(batch).values.abs().max() == 0
    noisy(scorer)
    assert all(torch.equal(p, before[name]) for name, p in policy.raw.state_dict().items())
    assert policy.raw.lm.config.num_labels != 1


def test_with_lora_the_head_and_the_adapter_are_trained_and_nothing_else(load_policy: LoadPolicy) -> None:
    scorer = load_policy(lora=LORA).scorer()
    scorer.forward(scorer.encode(GROUPS)).scores.sum().backward()
    trained = {name for name, p in scorer.raw.named_parameters() if p.requires_grad}
    assert any("score" in name for name in trained)
    assert all("score" in name or "lora" in name for name in trained)
    heads = [p for name, p in scorer.raw.named_parameters() if "score" in name and p.grad is not None and p.grad.any()]
    assert heads


def test_the_scorer_of_a_trained_adapter_starts_from_what_was_trained(load_policy: LoadPolicy) -> None:
    policy = load_policy(lora=LORA)
    with torch.no_grad():
        for name, parameter in policy.raw.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    scorer = policy.scorer()
    nn.init.ones_(scorer.raw.lm.get_submodule("score.modules_to_save.default").weight)
    batch = policy.encode(GROUPS)
    hidden = policy.forward(batch, hidden=True).hidden
    assert hidden is not None
    assert_equal_figures(scorer.raw, scorer.forward(batch).values, hidden.sum(-1))


def test_a_causal_lm_is_refused(build_folder: BuildFolder) -> None:
    with pytest.raises(InputError, match="no scoring head"):
        HFPolicy.load_scorer(build_folder("llama"), CPU)


def test_a_missing_folder_and_several_labels_are_refused(load_policy: LoadPolicy, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        HFPolicy.load_scorer(tmp_path / "nothing", CPU)
    load_policy().scorer().save(tmp_path / "scorer")
    config = json.loads((tmp_path / "scorer/config.json").read_text())
    config["id2label"] = {"0": "a", "1": "b"}
    (tmp_path / "scorer/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="more than one label"):
        HFPolicy.load_scorer(tmp_path / "scorer", CPU)


def test_bound_modules_are_used(load_policy: LoadPolicy) -> None:
    scorer = load_policy().scorer()
    calls = []

    class Wrapper(nn.Module):
        def forward(self, *args: Any) -> Any:
            calls.append(1)
            return scorer.raw(*args)

    assert list(scorer.modules()) == ["scorer"]
    scorer.bind({"scorer": Wrapper()})
    scorer.forward(scorer.encode(GROUPS))
    assert calls == [1]


def test_a_stop_token_that_is_the_padding_learns(load_policy: LoadPolicy, build_folder: BuildFolder) -> None:
    """Transformers gives the padding token's embedding no gradient, which would freeze the stop token's."""
    policy = load_policy(folder=build_folder("llama", pad="<end>", pad_token_id=END, tie_word_embeddings=False))
    scorer = noisy(policy.scorer())
    batch = scorer.encode(GROUPS)
    assert int(batch.response_ids[-1]) == END
    scorer.forward(batch).scores.sum().backward()
    embedding = next(module for module in scorer.raw.modules() if isinstance(module, nn.Embedding))
    assert embedding.weight.grad is not None
    assert float(embedding.weight.grad[END].abs().sum()) > 0
