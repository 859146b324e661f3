"""What a row says reaches the model (system texts, tools, calls, reasoning, rejected answers), or it is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow
import pytest
from alignkit_data import Dataset, DatasetOptions
from alignkit_data.loading import GroupMaker
from alignkit_data.readers import Row
from data_rows import SYSTEM, USER, dropped, make, said_of, says
from pyarrow import parquet

from alignkit.errors import InputError
from alignkit.records import Group, Prompt, read_groups, write_groups

if TYPE_CHECKING:
    from pathlib import Path

FUNCTION = {"name": "sky", "arguments": {"city": "Rome"}}
WRITTEN = '{"city": "Rome"}'
CALL = {"type": "function", "function": FUNCTION}
ASKED = {"role": "user", "content": "Weather?"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "clear"}
CALL_TEXT = '<tool_call>\n{"name": "sky", "arguments": {"city": "Rome"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "sky"}}]


class TestSystem:
    @pytest.mark.parametrize(
        "row",
        [
            {"prompt": "Hi?", "chosen": "a", "rejected": "b"},
            {"prompt": [USER], "chosen": "a", "rejected": "b"},
            {"prompt": [SYSTEM, USER], "chosen": [says("a")], "rejected": [says("b")]},
            {"chosen": [USER, says("a")], "rejected": [USER, says("b")]},
            {"instruction": "Hi?", "chosen": "a", "rejected": "b"},
            {"prompt": "Hi?", "completion": "a"},
            {"prompt": "Hi?", "completion": "a", "label": True},
            {"prompt": "Hi?", "responses": ["a", "b"], "ranks": [0, 1]},
            {"prompt": "Hi?", "responses": ["a", "b"], "pairwise": [[0, 1, 1]]},
            {"prompt": "Hi?", "response_1": "a", "response_2": "b", "verdict": 1},
            {"prompt": "Hi?", "response_1": "a", "response_2": "b", "human": [1]},
            {"instruction": "Hi?", "output": "a"},
            {"messages": [USER, says("a")]},
            {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "a"}]},
            {"messages": [USER, says("a")], "rejected_response": "b"},
            {"prompt": "Hi?"},
            {"messages": [USER]},
        ],
    )
    @pytest.mark.parametrize("column", ["system", "system_prompt"])
    def test_the_column_is_the_system_turn(self, row: dict[str, Any], column: str) -> None:
        group = make({**row, column: "Be kind."})
        assert (group.prompt.messages, group.prompt.meta) == ((SYSTEM, USER), {})

    @pytest.mark.parametrize("nothing", [None, "", " "])
    def test_an_empty_one_says_nothing(self, nothing: str | None) -> None:
        assert make({"prompt": "Hi?", "completion": "a", "system": nothing}) == Group(Prompt("Hi?"), ("a",))

    def test_rows_that_differ_in_it_alone_are_different_prompts(self) -> None:
        one, two = (make({"prompt": "Hi?", "completion": "a", "system": f"Be {how}."}) for how in ("kind", "brief"))
        assert one.prompt.key != two.prompt.key

    def test_names_of_systems_are_for_rewards_and_it_is_said(self) -> None:
        maker = GroupMaker()
        row = {"prompt": "Hi?", "completion": "a", "system": "6b_finetuning"}
        [group] = maker.groups([Row("f:1", row)])
        assert group == Group(Prompt("Hi?", meta={"system": "6b_finetuning"}), ("a",))
        assert "kept for rewards: system (names, no texts)" in maker.detected().render()
        with pytest.raises(InputError, match="f:2: system is a text, but a name in the rows before"):
            list(maker.groups([Row("f:2", {**row, "system": "Be kind."})]))

    def test_a_template_may_use_it(self) -> None:
        group = make({"prompt": "Hi?", "system": "Be kind."}, template="{system} {prompt}")
        assert group.prompt == Prompt("Be kind. Hi?", meta={"system": "Be kind."})

    def test_contradictions_are_refused(self) -> None:
        row = {"prompt": [SYSTEM, USER], "completion": "a"}
        assert "the system turn differ" in said_of({**row, "system": "Be brief."})
        assert said_of({**row, "system": 3}) == "system is a number, expected text"
        whole = {"chosen": "Human: Hi?\n\nAssistant: a", "rejected": "Human: Hi?\n\nAssistant: b"}
        assert "system needs a prompt of its own" in said_of({**whole, "system": "Be kind."})


class TestTools:
    @pytest.mark.parametrize("tools", [TOOLS, [{"name": "sky"}], json.dumps([{"name": "sky"}]), {"name": "sky"}])
    def test_they_go_to_the_template(self, tools: Any) -> None:
        maker = GroupMaker()
        [group] = maker.groups([Row("f:1", {"prompt": "Weather?", "completion": "a", "tools": tools})])
        assert group.prompt == Prompt(messages=(ASKED,), meta={"tools": TOOLS})
        assert "for the chat template: tools" in maker.detected().render()

    @pytest.mark.parametrize("nothing", [None, "", [], "[]", {}])
    def test_there_may_be_none(self, nothing: Any) -> None:
        assert make({"prompt": "Hi?", "completion": "a", "tools": nothing}) == Group(Prompt("Hi?"), ("a",))

    def test_variables_of_the_template(self) -> None:
        row = {"prompt": [USER], "completion": "a", "chat_template_kwargs": {"enable_thinking": False}}
        assert make(row).prompt.meta == {"chat_template_kwargs": {"enable_thinking": False}}
        assert "is a number, expected an object" in said_of({**row, "chat_template_kwargs": 3})

    @pytest.mark.parametrize("tools", ["hammer", 3, [3], [{"colour": "red"}], "[3]"])
    def test_other_things_are_refused(self, tools: Any) -> None:
        assert "tools" in said_of({"prompt": "Hi?", "completion": "a", "tools": tools})

    @pytest.mark.parametrize(
        "turns",
        [
            [{"role": "assistant", "content": None, "tool_calls": [CALL]}, {**RESULT, "name": None}],
            [
                {"role": "assistant", "tool_calls": [{"function": {**FUNCTION, "arguments": '{"city": "Rome"}'}}]},
                RESULT,
            ],
            [{"role": "assistant", "content": "", "tool_calls": [FUNCTION]}, RESULT],
            [{"role": "assistant", "content": "", "function_call": FUNCTION}, {**RESULT, "role": "function"}],
            [{"from": "function_call", "value": json.dumps(FUNCTION)}, {"from": "observation", "value": "clear"}],
            [{"role": "tool_call", "content": json.dumps([FUNCTION])}, {"role": "tool_response", "content": "clear"}],
        ],
    )
    def test_calls_and_results_in_every_form(self, turns: list[Any]) -> None:
        group = make({"messages": [ASKED, *turns, says("It is clear.")]})
        assert group == Group(Prompt(messages=(ASKED, CALLED, RESULT)), ("It is clear.",))

    def test_a_result_may_be_an_object(self) -> None:
        group = make({"messages": [ASKED, CALLED, {"role": "tool", "content": {"sky": "clear"}}, says("Clear.")]})
        assert group.prompt.messages == (ASKED, CALLED, {"role": "tool", "content": '{"sky": "clear"}'})

    def test_a_call_after_a_text_is_one_turn(self) -> None:
        turns = [ASKED, says("Let me look."), *[{"role": "function_call", "content": json.dumps(FUNCTION)}] * 2]
        group = make({"messages": turns})
        assert group.responses == (f"Let me look.\n{CALL_TEXT}\n{CALL_TEXT}",)
        assert group.meta == {"turns": [{**says("Let me look."), "tool_calls": [CALL, CALL]}]}

    def test_a_call_is_an_answer(self) -> None:
        group = make({"messages": [ASKED, CALLED]})
        assert group == Group(Prompt(messages=(ASKED,)), (CALL_TEXT,), meta={"turns": [CALLED]})
        pair = make({"prompt": [ASKED], "chosen": [CALLED], "rejected": [says("No idea.")]})
        assert pair.meta == {"turns": [CALLED, None]}
        assert pair.choose([1, 0]).meta == {"turns": [None, CALLED]}

    @pytest.mark.parametrize(
        ("turn", "said"),
        [
            ({"role": "function_call", "content": "sky(Rome)"}, "broken JSON"),
            ({"role": "function_call", "content": "3"}, "is a number, expected tool calls"),
            ({"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}, "a call without a name"),
            ({"role": "assistant", "content": "", "tool_calls": "x"}, "broken JSON"),
            ({"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{"}]}, "arguments of f"),
            ({"role": "assistant", "tool_calls": []}, "is null, expected text"),
        ],
    )
    def test_malformed_calls_name_the_message(self, turn: dict[str, Any], said: str) -> None:
        what = said_of({"messages": [ASKED, turn]})
        assert said in what
        assert what.startswith("messages[1]")


class TestReasoning:
    @pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
    def test_it_is_part_of_the_turn(self, name: str) -> None:
        group = make({"messages": [USER, {**says("Yes."), name: "A greeting."}]})
        assert group.responses == ("<think>\nA greeting.\n</think>\n\nYes.",)
        assert group.meta == {"turns": [{**says("Yes."), "reasoning_content": "A greeting."}]}

    def test_no_reasoning_leaves_no_trace(self) -> None:
        assert make({"messages": [USER, {**says("Yes."), "thinking": ""}]}) == Group(
            Prompt(messages=(USER,)), ("Yes.",)
        )

    def test_it_must_be_text(self) -> None:
        assert "the reasoning is a list" in said_of({"messages": [USER, {**says("Yes."), "thinking": ["x"]}]})


class TestParts:
    def test_texts_are_joined(self) -> None:
        user = {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "?"}]}
        answer = {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}
        expected = Group(Prompt(messages=(USER,)), ("Yes.",))
        assert make({"messages": [user, answer]}) == expected
        assert make({"prompt": [user], "completion": [answer]}) == expected
        assert make({"prompt": [USER], "completion": answer["content"]}) == expected
        assert make({"prompt": [user], "responses": ["a", "b"]}).prompt.messages == (USER,)

    @pytest.mark.parametrize(
        "part", [{"type": "image", "image": "a.png"}, {"type": "image_url", "image_url": {"url": "data:,"}}, 3]
    )
    def test_images_are_refused(self, part: Any) -> None:
        user = {"role": "user", "content": [part, {"type": "text", "text": "Hi?"}]}
        assert "only text can be read" in said_of({"messages": [user, says("Yes.")]})
        assert dropped({"messages": [user, says("Yes.")]}, drop_malformed=True) == ["malformed"]
        with pytest.raises(ValueError, match="only text can be read"):
            Prompt.of([user])

    @pytest.mark.parametrize("column", ["images", "image", "videos", "audio"])
    def test_columns_of_images_are_refused(self, column: str) -> None:
        row = {"messages": [USER, says("Yes.")], column: ["a.png"]}
        assert said_of(row) == f"{column} is not empty, but only text can be read"
        assert "only text can be read" in said_of({"messages": [{**USER, column: ["a.png"]}, says("Yes.")]})
        assert make({**row, column: []}).responses == ("Yes.",)


class TestPairs:
    PAIR = Group(Prompt(messages=(USER,)), ("Yes.", "No."), ranks=(0, 1))

    @pytest.mark.parametrize(
        "row",
        [
            {"messages": [USER, says("Yes.")], "rejected_response": "No."},
            {"messages": [USER, says("Yes.")], "rejected_messages": [USER, says("No.")]},
            {"messages": [USER, says("Yes.")], "rejected_messages": [says("No.")]},
            {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}],
             "rejected_response": "No."},
            {"instruction": "Hi?", "output": "Yes.", "rejected_response": "No."},
            {"query": "Hi?", "response": "Yes.", "rejected_response": "No."},
            {"prompt": [USER], "completion": "Yes.", "rejected_response": "No."},
            {"conversations": [{"from": "human", "value": "Hi?"}], "chosen": {"from": "gpt", "value": "Yes."},
             "rejected": {"from": "gpt", "value": "No."}},
            {"messages": [USER], "chosen": "Yes.", "rejected": "No."},
            {"messages": [USER, says("Yes.")], "chosen": [USER, says("Yes.")], "rejected": [USER, says("No.")]},
        ],
    )  # fmt: skip
    def test_in_every_form(self, row: dict[str, Any]) -> None:
        assert make(row) == self.PAIR

    def test_what_is_no_pair(self) -> None:
        row = {"messages": [USER, says("Yes.")], "rejected_response": "Yes."}
        assert dropped(row) == ["the answer and the rejected one are the same"]
        assert dropped({**row, "rejected_response": ""}) == ["empty response"]
        assert "2 turns follow" in said_of({**row, "rejected_response": [SYSTEM, says("No.")]})
        ends = {"messages": [USER, says("Yes.")], "chosen": "Yes.", "rejected": "No."}
        assert "messages ends with an answer, beside chosen and rejected" in said_of(ends)

    @pytest.mark.parametrize("name", ["label", "kto_tag"])
    def test_messages_with_a_label(self, name: str) -> None:
        row = {"messages": [USER, says("Yes.")]}
        assert make({**row, name: False}) == Group(Prompt(messages=(USER,)), ("Yes.",), labels=(False,))
        assert make({"instruction": "Hi?", "output": "Yes.", name: True}).labels == (True,)
        assert make({**row, "label": "greeting"}).prompt.meta == {"label": "greeting"}
        with pytest.raises(InputError, match="f:2: label is None, expected true or false as in the other rows"):
            list(GroupMaker().groups([Row("f:1", {**row, name: True}), Row("f:2", row)]))


class TestSurrogates:
    @pytest.mark.parametrize("column", ["prompt", "completion", "note"])
    def test_the_line_is_named(self, tmp_path: Path, column: str) -> None:
        path = tmp_path / "a.jsonl"
        row = {"prompt": "Hi?", "completion": "Yes.", "note": ""}
        path.write_text("".join(json.dumps(one) + "\n" for one in (row, {**row, column: "moon \ud83d"})))
        with pytest.raises(InputError, match="a lone surrogate") as error:
            DatasetOptions(path=str(path))
        assert f"{path}:2" in str(error.value)
        assert error.value.exit_code == 2
        with pytest.raises(InputError) as error:  # as `label import` and `preferences report` read it
            Dataset.of_file(path, {})
        assert error.value.where == f"{path}:2"

    def test_files_of_groups(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text('{"prompt": "Hi?", "responses": ["Yes."], "meta": {"note": "\\ud83d"}}\n')
        with pytest.raises(InputError, match=r"a\.jsonl:1: a lone surrogate"):
            list(read_groups(path))
        with pytest.raises(ValueError, match="a lone surrogate"):
            Group(Prompt("Hi?"), ("moon \ud83d",))
        with pytest.raises(ValueError, match="a lone surrogate"):
            Prompt.of([{"role": "user", "content": "moon \ud83d"}])


def test_what_is_more_than_text_survives_the_file(tmp_path: Path) -> None:
    group = make({"messages": [ASKED, CALLED, RESULT, {**CALLED, "reasoning_content": "Hm."}], "tools": TOOLS})
    write_groups(tmp_path / "a.jsonl", [group])
    assert list(read_groups(tmp_path / "a.jsonl")) == [group]
    assert Dataset(DatasetOptions(path=str(tmp_path / "a.jsonl"))).groups()[0].meta == group.meta


def test_nulls_that_arrow_adds_are_gone(tmp_path: Path) -> None:
    other = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "Oslo"}}}
    rows = [
        {"messages": [ASKED, {**says(""), "tool_calls": [CALL]}, RESULT, says("Clear.")], "scores": [0.5, None]},
        {"messages": [ASKED, {**says(""), "tool_calls": [other]}, RESULT, says("Noon.")], "scores": None},
    ]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    first, second = Dataset(DatasetOptions(path=str(path))).groups()
    assert first.prompt == Prompt(messages=(ASKED, CALLED, RESULT), meta={"scores": [0.5, None]})
    assert second.prompt.messages == (ASKED, {**says(""), "tool_calls": [other]}, RESULT)
    assert second.prompt.meta == {"scores": None}


def test_whole_numbers_that_pandas_wrote_as_floats() -> None:
    assert make({"prompt": "Hi?", "responses": ["a", "b"], "ranks": [1.0, 2.0]}).ranks == (0, 1)
    assert make({"prompt": "Hi?", "completion": "a", "label": 0.0}).labels == (False,)
