"""Reward models of other tools: scored at the token where transformers reads them, on the tokens of their tokenizer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
import transformers
from alignkit_hf.policy import HFPolicy
from hf_tiny import (
    BOS,
    CHAT,
    END,
    PAD,
    PEFT_WARNS,
    assert_equal_figures,
    build_tokenizer,
    classifier_folder,
    save_adapter,
)
from tokenizers import processors

from alignkit.components import Context
from alignkit.records import Group, Prompt

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import BuildFolder

pytestmark = pytest.mark.filterwarnings(PEFT_WARNS)
CPU = Context(device="cpu")
TEXTS = [
    Group(Prompt(text="once upon a"), (" time there was", " time", "")),
    Group(Prompt(text="the big r"), ("ed ball",)),
]
CHATS = [
    Group(Prompt(messages=({"role": "user", "content": "a ball"},)), ("the big red one", "no", "")),
    Group(Prompt(messages=({"role": "user", "content": "once upon a time"},)), ("there was",)),
]


@pytest.fixture(autouse=True)
def forget_probes() -> None:
    """Probes are remembered here."""


def foreign(build_folder: BuildFolder, folder: Path, *, pad: str | None, pad_id: int | None, **options: Any) -> Path:
    return classifier_folder(folder, build_folder("llama", pad=pad, **options), pad_token_id=pad_id)


def assert_scored_like_transformers(folder: Path, groups: list[Group], rows: list[list[int]]) -> None:
    """Compares with transformers' own forward of the rows, one by one and padded by the model's own tokenizer."""
    scorer = HFPolicy.load_scorer(folder, CPU)
    batch = scorer.encode(groups)
    found = scorer.forward(batch).scores.detach()
    assert found.std() > 0.05
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        alone = torch.cat([plain(torch.tensor([ids])).logits[0] for ids in rows])
    assert_equal_figures(scorer.raw, found, alone)
    if plain.config.pad_token_id is None:
        return
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for side in ("left", "right"):
        inputs = tokenizer.pad({"input_ids": rows}, padding=True, padding_side=side, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        assert_equal_figures(scorer.raw, found, plain(**inputs).logits[:, 0].detach())


@pytest.mark.parametrize(
    ("pad", "pad_id", "template"),
    [
        ("<pad>", PAD, CHAT),
        ("<pad>", None, CHAT),
        ("<end>", END, CHAT),
        ("<end>", END, CHAT.replace("\n{% endfor", "{% endfor")),
    ],
)
def test_a_conversation_is_scored_where_its_template_ends(
    build_folder: BuildFolder, tmp_path: Path, pad: str, pad_id: int | None, template: str
) -> None:
    folder = foreign(build_folder, tmp_path / "reward", pad=pad, pad_id=pad_id, template=template)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    chats = [
        [*group.prompt.messages, {"role": "assistant", "content": text}] for group in CHATS for text in group.responses
    ]
    rows = [tokenizer.apply_chat_template(chat)["input_ids"] for chat in chats]
    assert_scored_like_transformers(folder, CHATS, rows)


@pytest.mark.parametrize(
    ("pad", "pad_id", "ends"),
    [
        ("<pad>", PAD, "$A"),
        ("<end>", END, "<bos> $A"),
        ("<pad>", PAD, "<bos> $A <end>"),
        ("<end>", END, "<bos> $A <end>"),
    ],
)
def test_a_text_is_scored_where_its_tokenizer_ends(
    build_folder: BuildFolder, tmp_path: Path, pad: str, pad_id: int, ends: str
) -> None:
    folder = foreign(build_folder, tmp_path / "reward", pad=pad, pad_id=pad_id)
    tokenizer = build_tokenizer(pad=pad)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=ends, special_tokens=[("<bos>", BOS), ("<end>", END)]
    )
    tokenizer.save_pretrained(folder)
    plain = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [plain((group.prompt.text or "") + text)["input_ids"] for group in TEXTS for text in group.responses]
    assert (rows[0][-1] == END) == ends.endswith("<end>")
    assert_scored_like_transformers(folder, TEXTS, rows)


def test_an_end_token_is_appended_on_request_as_trl_does(build_folder: BuildFolder, tmp_path: Path) -> None:
    folder = foreign(build_folder, tmp_path / "reward", pad="<pad>", pad_id=PAD)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    texts = [f"{group.prompt.text}{text}{tokenizer.eos_token}" for group in TEXTS for text in group.responses]
    with torch.no_grad():
        expected = torch.cat([plain(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts])
    scorer = HFPolicy.load_scorer(folder, CPU, append_end=True)
    batch = scorer.encode(TEXTS)
    assert_equal_figures(scorer.raw, scorer.forward(batch).scores, expected)
    other = HFPolicy.load_scorer(folder, CPU)
    assert not torch.allclose(other.forward(other.encode(TEXTS)).scores, expected, atol=0.05)


def test_a_model_of_ours_is_not_told_where_it_ends(build_folder: BuildFolder, tmp_path: Path) -> None:
    folder = foreign(build_folder, tmp_path / "reward", pad="<pad>", pad_id=PAD)
    (folder / "alignkit_encoding.json").write_text(json.dumps({"stop_token_ids": [END], "end_token_id": END}))
    with pytest.raises(Exception, match="says how it ends"):
        HFPolicy.load_scorer(folder, CPU, append_end=False)


def test_what_is_too_long_keeps_its_end(
    build_folder: BuildFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = foreign(build_folder, tmp_path / "reward", pad="<pad>", pad_id=PAD)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    long = Group(Prompt(text="the dog and " * 60), ("the ball", "the park"))
    scorer = HFPolicy.load_scorer(folder, CPU)
    scores = scorer.forward(scorer.encode([long, TEXTS[1]])).scores
    rows = [tokenizer((long.prompt.text or "") + text)["input_ids"][-128:] for text in long.responses]
    assert all(len(row) == 128 for row in rows)
    with torch.no_grad():
        expected = torch.cat([plain(torch.tensor([row])).logits[0] for row in rows])
    assert_equal_figures(scorer.raw, scores[:2], expected)
    assert "1 of 2 groups exceed the limit" in caplog.text


def test_a_reward_adapter_is_scored_like_peft_scores_it(build_folder: BuildFolder, tmp_path: Path) -> None:
    base = build_folder("llama", template=CHAT)
    folder = save_adapter(tmp_path / "adapter", base, task_type="SEQ_CLS")
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    plain = peft.PeftModel.from_pretrained(
        transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), folder
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    chats = [[*CHATS[0].prompt.messages, {"role": "assistant", "content": text}] for text in CHATS[0].responses]
    rows = [tokenizer.apply_chat_template(chat)["input_ids"] for chat in chats]
    with torch.no_grad():
        expected = torch.cat([plain(torch.tensor([ids])).logits[0] for ids in rows])
    scorer = HFPolicy.load_scorer(folder, CPU)
    assert_equal_figures(scorer.raw, scorer.forward(scorer.encode(CHATS[:1])).scores, expected)
