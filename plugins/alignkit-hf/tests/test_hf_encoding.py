"""Encoding: prompt and response tokenised separately, one BOS, an end token, cut at the limit."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_hf.encoding import Encoder
from hf_tiny import BOS, END, PAD, build_tokenizer

from alignkit.errors import InputError
from alignkit.records import Group, Prompt

if TYPE_CHECKING:
    from alignkit.batch import GroupBatch

WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
    "{% endif %}|{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
WITHOUT_BOS = WITH_BOS.removeprefix("{{ bos_token }}")
ENDS_WITH_PAD = WITH_BOS.replace("{{ eos_token }}", "{{ pad_token }}")
CHAT = Prompt.of([{"role": "user", "content": "a big dog"}])


def encoder(tokenizer: Any = None, **arguments: Any) -> Encoder:
    defaults: dict[str, Any] = {"stop_ids": (END,), "end_id": None, "max_length": 100}
    return Encoder(tokenizer if tokenizer is not None else build_tokenizer(), **{**defaults, **arguments})


def rows(batch: GroupBatch) -> tuple[list[list[int]], list[list[int]]]:
    prompts, responses = batch.prompt_ids.tolist(), batch.response_ids.tolist()
    return (
        [[prompts.pop(0) for _ in range(length)] for length in batch.prompt_lengths.tolist()],
        [[responses.pop(0) for _ in range(length)] for length in batch.lengths.tolist()],
    )


def test_prompt_and_response_are_tokenised_apart_with_one_bos_and_one_end() -> None:
    tokenizer = build_tokenizer()
    joined = tokenizer("the big", add_special_tokens=False)["input_ids"]
    apart = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the bi", "g", "")]
    assert joined != apart[0] + apart[1], "the texts don't merge across their boundary"
    prompts, responses = rows(encoder().encode([Group(prompt=Prompt(text="the bi"), responses=("g", ""))], "cpu"))
    assert prompts == [[BOS, *apart[0]]]
    assert responses == [[*apart[1], END], [END]]


def test_a_bos_in_the_text_is_not_doubled() -> None:
    assert encoder().prompts([Prompt(text="<bos>the dog")]) == encoder().prompts([Prompt(text="the dog")])


@pytest.mark.parametrize("template", [WITH_BOS, WITHOUT_BOS])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_chat_prompt_has_exactly_one_bos_where_template_or_tokenizer_put_one(template: str, adds_bos: bool) -> None:
    from tokenizers import processors

    tokenizer = build_tokenizer(template=template)
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", BOS)]
        )
    [ids] = encoder(tokenizer).prompts([CHAT])
    assert ids.count(BOS) == (1 if adds_bos or template == WITH_BOS else 0)
    assert tokenizer.decode([i for i in ids if i != BOS]) == "<user>a big dog|<assistant>"


def test_the_end_token_is_the_templates_end_of_turn() -> None:
    assert encoder(build_tokenizer(template=ENDS_WITH_PAD), stop_ids=(END, PAD)).end_id == PAD
    assert encoder(build_tokenizer(template=WITH_BOS), stop_ids=(PAD, END)).end_id == END
    added = encoder(build_tokenizer(template=ENDS_WITH_PAD), stop_ids=(END,))
    assert (added.end_id, added.stop_ids) == (PAD, (END, PAD))
    assert encoder(build_tokenizer(template=ENDS_WITH_PAD), stop_ids=(END, PAD), end_id=END).end_id == END
    assert encoder(stop_ids=(PAD, END)).end_id == PAD


@pytest.mark.parametrize("use_template", [True, False])
def test_without_a_template_messages_are_plain_lines_and_it_is_said_once(
    use_template: bool, caplog: pytest.LogCaptureFixture
) -> None:
    plain = encoder(build_tokenizer(template=None if use_template else WITH_BOS), use_template=use_template)
    chat = Prompt.of([{"role": "system", "content": "be kind"}, {"role": "user", "content": [{"text": "hi"}]}])
    with caplog.at_level(logging.WARNING, logger="alignkit_hf"):
        assert plain.render(chat) == "System: be kind\nUser: hi\nAssistant:"
        plain.render(chat)
    assert len(caplog.records) == 1


def test_special_tokens_are_left_out_of_decoded_text() -> None:
    coder = encoder(stop_ids=(END, 50))
    ids = coder.tokenizer(" the dog", add_special_tokens=False)["input_ids"]
    assert coder.decode([[*ids, END], [*ids, 50], [BOS, *ids, PAD], [END]]) == [" the dog"] * 3 + [""]


def test_a_prompt_too_long_keeps_its_bos_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    coder = encoder(max_length=12)
    long = Group(prompt=Prompt(text="x" * 30 + "y"), responses=("zz", "z"))
    short = Group(prompt=Prompt(text="x"), responses=("z",))
    with caplog.at_level(logging.WARNING, logger="alignkit_hf"):
        batch = coder.encode([long, short], "cpu")
    prompts, responses = rows(batch)
    [x], [y], [z] = (coder.tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "xyz")
    assert prompts == [[BOS, *[x] * 7, y], [BOS, x]]
    assert responses == [[z, z, END], [z, END], [z, END]]
    assert batch.finished.tolist() == [True, True, True]
    assert "1 of 2" in caplog.text


def test_a_response_that_was_cut_off_gets_no_end_token() -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer("the dog", add_special_tokens=False)["input_ids"]
    group = Group(Prompt(text="the"), ("the dog", "the dog", ""), finished=(True, False, False))
    batch = encoder(tokenizer).encode([group], "cpu")
    assert rows(batch)[1] == [[*ids, END], ids, [END]], "even an empty response has a token"
    assert batch.finished.tolist() == [True, False, False]


def test_a_response_too_long_is_cut_and_unfinished() -> None:
    coder = encoder(max_length=12)
    groups = [
        Group(prompt=Prompt(text="x" * 8), responses=("z" * 20, "z")),
        Group(prompt=Prompt(text="x"), responses=("z" * 9,)),
    ]
    batch = coder.encode(groups, "cpu")
    prompts, responses = rows(batch)
    assert [len(ids) for ids in prompts] == [6, 2]
    assert [len(ids) for ids in responses] == [6, 2, 10]
    assert batch.finished.tolist() == [False, True, True]
    assert END not in responses[0]


def test_when_nothing_fits_it_is_an_error() -> None:
    with pytest.raises(InputError, match="none of 1 prompts fits"):
        encoder(max_length=8).encode([Group(prompt=Prompt(text="x" * 9), responses=("z",))], "cpu")
    with pytest.raises(InputError, match="context of 8"):
        encoder(max_length=8).prompts_with_room([Prompt(text="x")], 8)


def test_room_for_the_response_is_kept() -> None:
    prompts = encoder(max_length=10).prompts_with_room([Prompt(text="x" * 30), Prompt(text="x")], 6)
    assert [len(ids) for ids in prompts] == [4, 2]


def test_without_a_bos_an_empty_prompt_still_has_a_token() -> None:
    tokenizer = build_tokenizer()
    tokenizer.bos_token = None
    assert encoder(tokenizer).prompts([Prompt(text=""), Prompt(text="<bos>")]) == [[END], [BOS]]
