"""What is trained is the turn as the chat template renders it, once, up to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from alignkit_hf import HFOptions
from alignkit_hf.policy import HFPolicy
from hf_chats import (
    CHATML,
    CLOSES,
    DROPS,
    EMPTIES,
    END,
    EOS,
    PARTS,
    SPACED,
    STRICT,
    THINK,
    THINKS,
    THOUGHT,
    TOOLS,
    chat,
    chat_encoder,
    chat_tokenizer,
    says,
    texts,
)

from alignkit.errors import InputError
from alignkit.records import Group, Prompt

if TYPE_CHECKING:
    from pathlib import Path

ASK = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
CALL = {"id": "c1", "type": "function", "function": {"name": "sky", "arguments": {"city": "Rome"}}}
TOOL = {"type": "function", "function": {"name": "sky"}}
ASKED = {"role": "user", "content": "Hi"}


def test_a_plain_answer_ends_with_the_turn() -> None:
    assert texts(chat_encoder(CHATML), says("Yes.", "No.", prompt=chat("Hi"))) == [
        (ASK, ["Yes.<|im_end|>", "No.<|im_end|>"])
    ]


class TestThoughts:
    def test_thoughts_in_the_content_are_opened_once(self) -> None:
        group = says("<think>\nA greeting.\n</think>\n\nYes.", prompt=chat("Hi"))
        for template in (THINKS, CLOSES):
            assert texts(chat_encoder(template), group) == [
                (ASK + "<think>\n", ["A greeting.\n</think>\n\nYes.<|im_end|>"])
            ]

    def test_reasoning_of_its_own_is_rendered(self) -> None:
        group = says({"content": "Yes.", "reasoning_content": "A greeting."}, prompt=chat("Hi"))
        assert group.responses == ("<think>\nA greeting.\n</think>\n\nYes.",)
        for template in (THINKS, CLOSES, THINKS.replace("reasoning_content", "thinking")):
            assert texts(chat_encoder(template), group) == [
                (ASK + "<think>\n", ["A greeting.\n</think>\n\nYes.<|im_end|>"])
            ]

    def test_an_answer_without_thoughts_is_what_the_template_renders(self) -> None:
        group = says("Yes.", prompt=chat("Hi"))
        assert texts(chat_encoder(THINKS), group) == [(ASK, ["Yes.<|im_end|>"])]
        assert texts(chat_encoder(CLOSES), group) == [(ASK + "<think>\n", ["\n</think>\n\nYes.<|im_end|>"])]

    def test_a_pair_of_both_kinds_shares_the_prompt_before_the_opening(self) -> None:
        group = says("<think>\nHm.\n</think>\n\nYes.", "No.", prompt=chat("Hi"))
        assert texts(chat_encoder(THINKS), group) == [
            (ASK, ["<think>\nHm.\n</think>\n\nYes.<|im_end|>", "No.<|im_end|>"])
        ]

    def test_a_template_that_drops_them_is_refused(self) -> None:
        group = says({"content": "Yes.", "reasoning_content": "A greeting."}, prompt=chat("Hi"))
        with pytest.raises(InputError, match="prompt ends with 'user: Hi': the chat template does not render"):
            chat_encoder(CHATML).encode([group], "cpu")

    def test_thoughts_that_a_template_drops_from_turns_are_what_the_model_goes_on_with(self) -> None:
        expected = [(ASK + "<think>\n", ["A greeting.\n</think>\n\nYes.<|im_end|>"])]
        for answer in (
            "<think>\nA greeting.\n</think>\n\nYes.",
            {"content": "Yes.", "reasoning_content": "A greeting."},
        ):
            assert texts(chat_encoder(DROPS), says(answer, prompt=chat("Hi"))) == expected
        assert texts(chat_encoder(DROPS), says("Yes.", prompt=chat("Hi"))) == [(ASK, ["Yes.<|im_end|>"])]

    def test_a_prompt_that_closes_them_is_cut_where_a_turn_has_some(self) -> None:
        group = says({"content": "Yes.", "reasoning_content": "A greeting."}, prompt=chat("Hi"))
        assert texts(chat_encoder(EMPTIES), says("Yes.", prompt=chat("Hi")), group) == [
            (ASK + "<think>\n\n</think>\n\n", ["Yes.<|im_end|>"]),
            (ASK + "<think>\n", ["A greeting.\n</think>\n\nYes.<|im_end|>"]),
        ]

    @pytest.mark.parametrize("template", [THINKS, CLOSES, DROPS])
    def test_what_was_sampled_comes_back_as_it_was(self, template: str) -> None:
        encoder, prompt = chat_encoder(template), chat("Hi")
        sampled = [*encoder.tokenizer("Hm.\n")["input_ids"], THOUGHT, *encoder.tokenizer("\n\nYes.")["input_ids"], END]
        [text] = encoder.decode([sampled])
        content = encoder.chat.content(prompt, text)
        assert content == "<think>\nHm.\n</think>\n\nYes."
        batch = encoder.encode([Group(prompt, (content,), finished=(True,))], "cpu")
        assert batch.response_ids.tolist() == sampled
        assert batch.prompt_ids.tolist() == encoder.prompts([prompt])[0]
        cut = encoder.encode([Group(prompt, (encoder.chat.content(prompt, "Hm"),), finished=(False,))], "cpu")
        assert encoder.tokenizer.decode(cut.response_ids) == "Hm"
        assert encoder.tokenizer.decode(cut.prompt_ids) == ASK + "<think>\n"

    def test_only_what_frames_turns_is_left_out_of_a_sampled_text(self) -> None:
        encoder = chat_encoder(THINKS)
        assert encoder.decode([[THINK, 65, EOS, THOUGHT, END]]) == ["<think>" + chr(33 + 65) + "</think>"]


class TestTools:
    def test_tools_and_calls_are_rendered(self) -> None:
        prompt = chat("Hi", {"role": "assistant", "content": "", "tool_calls": [CALL]},
                      {"role": "tool", "content": "clear"}, tools=[TOOL])  # fmt: skip
        tools = '<|im_start|>system\nTOOLS [{"type": "function", "function": {"name": "sky"}}]<|im_end|>\n'
        call = '<call>{"name": "sky", "arguments": {"city": "Rome"}}</call>'
        asked = f"{tools}{ASK}{call}<|im_end|>\n<|im_start|>tool\nclear<|im_end|>\n<|im_start|>assistant\n"
        [(read, answers)] = texts(chat_encoder(TOOLS), says("It is clear.", prompt=prompt))
        assert sorted(read) == sorted(asked)  # tojson sorts no keys, but may space them in another way
        assert call in read
        assert answers == ["It is clear.<|im_end|>"]

    def test_a_call_is_the_answer(self) -> None:
        first = says({"content": "Let me look.", "tool_calls": [CALL]}, prompt=chat("Hi", tools=[TOOL]))
        second = says({"content": "", "tool_calls": [CALL]}, prompt=chat("Hi", tools=[TOOL]))
        call = '<call>{"name": "sky", "arguments": {"city": "Rome"}}</call><|im_end|>'
        found = texts(chat_encoder(TOOLS), first, second)
        assert [answers for _, answers in found] == [["Let me look." + call], [call]]

    @pytest.mark.parametrize(
        ("group", "said"),
        [
            (says("Yes.", prompt=chat("Hi", tools=[TOOL])), "renders no tools"),
            (says({"content": "", "tool_calls": [CALL]}, prompt=chat("Hi")), "does not render the tool calls"),
            (
                says("Yes.", prompt=chat("Hi", {"role": "assistant", "content": "", "tool_calls": [CALL]}, "Hm")),
                "renders no tool calls",
            ),
        ],
    )
    def test_a_template_that_drops_them_is_refused(self, group: Group, said: str) -> None:
        with pytest.raises(InputError, match=said):
            chat_encoder(CHATML).encode([group], "cpu")
        with pytest.raises(InputError, match="no chat template"):
            chat_encoder(None).encode([group], "cpu")

    def test_a_template_that_adds_arguments_to_a_text_gets_them_as_text(self) -> None:
        template = TOOLS.replace(
            "{{ c['function'] | tojson }}", "{{ c['function']['name'] + c['function']['arguments'] }}"
        )
        group = says({"content": "", "tool_calls": [CALL]}, prompt=chat("Hi", tools=[TOOL]))
        assert texts(chat_encoder(template), group)[0][1] == ['<call>sky{"city": "Rome"}</call><|im_end|>']

    def test_a_template_that_needs_the_call_before_a_result(self) -> None:
        check = (
            "{% if m['role'] == 'tool' and not messages[loop.index0 - 1].get('tool_calls') %}{{ raise_exception('x') }}"
        )
        template = TOOLS.replace("<|im_start|>{{ m", check + "{% endif %}<|im_start|>{{ m")
        called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
        prompt = chat("Hi", called, {"role": "tool", "content": "clear"}, tools=[TOOL])
        assert texts(chat_encoder(template), says("Clear.", prompt=prompt))[0][1] == ["Clear.<|im_end|>"]

    def test_a_column_of_rewards_that_is_called_tools_is_left_alone(self) -> None:
        assert texts(chat_encoder(CHATML), says("Yes.", prompt=chat("Hi", tools="hammer"))) == [
            (ASK, ["Yes.<|im_end|>"])
        ]


class TestEnds:
    def test_the_space_before_an_answer_is_learned(self) -> None:
        encoder = chat_encoder(SPACED, stop_ids=(EOS,), eos="<|endoftext|>")
        assert texts(encoder, says("Yes.", prompt=chat("Hi"))) == [("[INST] Hi [/INST]", [" Yes.<|endoftext|>"])]
        assert encoder.chat.content(chat("Hi"), " Yes.") == "Yes."
        assert encoder.note == ""

    @pytest.mark.parametrize("template", [SPACED, SPACED.replace("%} {{", "%}{{")])
    def test_a_tokenizer_that_puts_spaces_before_texts_puts_none_there(self, template: str) -> None:
        encoder = chat_encoder(template, stop_ids=(EOS,), eos="<|endoftext|>", adds_space=True)
        space = " " if template == SPACED else ""
        [(_, answers)] = texts(encoder, says("Yes.", prompt=chat("Hi")))
        assert answers == [f"{space}Yes.<|endoftext|>"]

    def test_plain_lines_have_a_space_before_the_answer(self) -> None:
        found = texts(chat_encoder(None), says("Yes.", prompt=chat("Hi", "Hm.", "Hi")))
        assert found == [("User: Hi\nAssistant: Hm.\nUser: Hi\nAssistant:", [" Yes.<|im_end|>"])]
        assert texts(chat_encoder(None), Group(Prompt("Hi"), ("Yes.",))) == [("Hi", ["Yes.<|im_end|>"])]

    def test_what_stands_before_the_end_token_is_learned(self) -> None:
        template = CHATML.replace("<|im_end|>", "\n<|im_end|>")
        [(_, answers)] = texts(chat_encoder(template), says("Yes.", prompt=chat("Hi")))
        assert answers == ["Yes.\n<|im_end|>"]

    def test_an_end_that_is_no_stop_token_becomes_one_and_is_said(self) -> None:
        encoder = chat_encoder(CHATML, stop_ids=(EOS,), eos="<|endoftext|>")
        assert (encoder.end_id, encoder.stop_ids) == (END, (EOS, END))
        assert encoder.note == (
            "the chat template ends a turn with '<|im_end|>', which becomes an end token;"
            " the tokenizer's eos is '<|endoftext|>'"
        )
        assert texts(encoder, says("Yes.", prompt=chat("Hi")))[0][1] == ["Yes.<|im_end|>"]

    def test_an_eos_that_is_not_the_end_is_said(self) -> None:
        encoder = chat_encoder(CHATML, stop_ids=(EOS, END), eos="<|endoftext|>")
        assert encoder.note == "the chat template ends a turn with '<|im_end|>'; the tokenizer's eos is '<|endoftext|>'"
        assert chat_encoder(CHATML).note == ""

    def test_a_given_end_replaces_the_templates(self) -> None:
        encoder = chat_encoder(CHATML, stop_ids=(EOS,), end_id=EOS)
        assert texts(encoder, says("Yes.", prompt=chat("Hi")))[0][1] == ["Yes.<|endoftext|>"]
        assert encoder.stop_ids == (EOS,)

    def test_a_template_that_ends_turns_with_text_gets_the_stop_token(self) -> None:
        encoder = chat_encoder(CHATML.replace("<|im_end|>", ""))
        assert texts(encoder, says("Yes.", prompt=chat("Hi")))[0][1] == ["Yes.<|im_end|>"]
        assert encoder.note == (
            "the chat template ends a turn with no token of its own; responses end with '<|im_end|>'"
        )

    def test_an_answer_that_was_cut_off_has_no_end(self) -> None:
        group = says("Yes", "No.", prompt=chat("Hi"), finished=(False, True))
        assert texts(chat_encoder(CHATML), group)[0][1] == ["Yes", "No.<|im_end|>"]


def test_a_template_that_reads_parts_alone_gets_parts() -> None:
    assert texts(chat_encoder(PARTS), says("Yes.", prompt=chat("Hi"))) == [(ASK, ["Yes.<|im_end|>"])]


def test_variables_of_the_row_reach_the_template() -> None:
    template = CHATML.replace("assistant\n{% endif", "assistant\n{% if terse %}Briefly: {% endif %}{% endif")
    [(prompt, _)] = texts(chat_encoder(template), says("Yes.", prompt=chat("Hi", chat_template_kwargs={"terse": True})))
    assert prompt == ASK
    assert chat_encoder(template).render(chat("Hi", chat_template_kwargs={"terse": True})) == ASK + "Briefly: "


def test_a_template_that_shows_earlier_turns_in_another_way_once_answered() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] if loop.last or m['role'] == 'user' else '(left out)' }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    prompt = chat("Hi", {"role": "tool", "content": "clear"})
    [(read, answers)] = texts(chat_encoder(template), says("Yes.", prompt=prompt))
    assert "tool\nclear<|im_end|>" in read
    assert answers == ["Yes.<|im_end|>"]


class TestTrial:
    """The tokenizer alone tells which rows a template refuses."""

    def options(self, tmp_path: Path, template: str) -> HFOptions:
        chat_tokenizer(template).save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
        (tmp_path / "model.safetensors").touch()
        return HFOptions(model=str(tmp_path))

    @pytest.mark.parametrize(
        ("messages", "said"),
        [
            (
                ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}),
                "System role not supported",
            ),
            (({"role": "user", "content": "Hi"}, {"role": "user", "content": "You?"}), "roles must alternate"),
        ],
    )
    def test_a_strict_template(self, tmp_path: Path, messages: tuple[dict[str, str], ...], said: str) -> None:
        records = [("a.jsonl:1", says("Yes.", prompt=chat("Hi"))), ("a.jsonl:2", says("Yes.", prompt=chat(*messages)))]
        with pytest.raises(InputError, match=said) as error:
            HFPolicy.try_records(self.options(tmp_path, STRICT), records)
        assert (error.value.where, error.value.exit_code) == ("a.jsonl:2", 2)

    def test_what_it_takes(self, tmp_path: Path) -> None:
        groups = [says("Yes.", prompt=chat("Hi")), Group(chat("Hi"), ("",)), Group(Prompt("Hi"), ("Yes.",))]
        HFPolicy.try_records(self.options(tmp_path, STRICT), [(f"a:{place}", one) for place, one in enumerate(groups)])
