"""A row's columns decide its form; columns are renamed, and templates make prompts from them."""

from __future__ import annotations

from typing import Any

import pytest
from alignkit_data.loading import GroupMaker
from alignkit_data.readers import Row
from data_rows import SYSTEM, USER, form_of, make, says

from alignkit.errors import InputError
from alignkit.records import Group, Prompt


class TestDetection:
    @pytest.mark.parametrize(
        ("columns", "form"),
        [
            ("prompt chosen rejected messages score_chosen", "preference"),
            ("chosen rejected prompt_id", "preference"),
            ("instruction input chosen rejected", "preference"),
            ("prompt completion label", "label"),
            ("prompt completion", "completion"),
            ("prompt messages", "messages"),
            ("instruction input output text", "alpaca"),
            ("prompt question answer", "prompts"),
            ("prompt responses ranks chosen rejected", "groups"),
            ("prompt responses pairwise scores", "comparisons"),
            ("id conversations", "sharegpt"),
        ],
    )
    def test_by_the_columns(self, columns: str, form: str) -> None:
        assert form_of(dict.fromkeys(columns.split())) == form

    @pytest.mark.parametrize(
        ("columns", "missing", "hint"),
        [
            ("prompt chosen", "preference data needs chosen, rejected (missing: rejected)", "--columns old=new"),
            ("question chosen rejected", "prompt, chosen, rejected (missing: prompt)", "--columns question=prompt;"),
            ("promt chosen rejected", "prompt, chosen, rejected (missing: prompt)", "--columns promt=prompt;"),
            ("prompt chosen rejcted", "rejected", "--columns rejcted=rejected"),
            (
                "question chosen_response rejected_response",
                "chosen, rejected",
                "--columns question=prompt, --columns chosen_r",
            ),
            ("question answer", "prompt, completion", "--columns question=prompt, --columns answer=completion"),
            (
                "query good bad",
                "chosen, rejected",
                "--columns query=prompt, --columns good=chosen, --columns bad=rejected",
            ),
            (
                "question completions scores",
                "prompt, responses",
                "--columns question=prompt, --columns completions=resp",
            ),
            ("x y", "preference (chosen, rejected); verdict (prompt, ", "--columns old=new"),
        ],
    )
    def test_missing_columns_say_what_to_map(self, columns: str, missing: str, hint: str) -> None:
        with pytest.raises(InputError) as error:
            make(dict.fromkeys(columns.split(), "text"))
        assert error.value.where == "data.jsonl:7"
        assert f"found {', '.join(columns.split())};" in error.value.what
        assert missing in error.value.what
        assert hint in error.value.fix

    def test_a_form_can_be_forced(self) -> None:
        row = {"prompt": "Hi?", "chosen": "a", "rejected": "b", "messages": [USER, says("c")]}
        assert make(row, form="messages").responses == ("c",)
        with pytest.raises(InputError, match=r"needs prompt, completion, label \(missing: completion, label\)"):
            make(row, form="label")

    def test_later_rows_must_have_the_columns_of_the_form(self) -> None:
        rows = [Row("f:1", {"prompt": "p", "chosen": "a", "rejected": "b"}), Row("f:2", {"prompt": "p", "chosen": "a"})]
        with pytest.raises(InputError, match=r"f:2: no column 'rejected', which the form 'preference'"):
            list(GroupMaker().groups(rows))
        rows = [rows[0], Row("f:2", {"chosen": "p a", "rejected": "p b"})]
        with pytest.raises(InputError, match=r"f:2: no column 'prompt', which the form 'preference'"):
            list(GroupMaker().groups(rows))


class TestColumnsAndTemplates:
    def test_columns_are_renamed(self) -> None:
        row = {"question": "Hi?", "prompt": "displaced", "good": "a", "bad": "b"}
        group = make(row, columns={"question": "prompt", "good": "chosen", "bad": "rejected"})
        assert group == Group(Prompt("Hi?"), ("a", "b"), ranks=(0, 1))

    def test_a_column_that_is_not_there(self) -> None:
        with pytest.raises(InputError) as error:
            make({"question": "Hi?", "answer": "a"}, columns={"qestion": "prompt"})
        assert (error.value.where, error.value.fix) == ("columns", "did you mean 'question'?")
        assert "has question, answer" in error.value.what

    def test_a_template_makes_prompts(self) -> None:
        group = make({"name": "Ann", "kind": "girl"}, template="A {kind} named {name}.")
        assert group == Group(Prompt("A girl named Ann.", meta={"name": "Ann", "kind": "girl"}), ("",))

    def test_a_template_fills_the_last_message_of_a_chat(self) -> None:
        row = {"prompt": [SYSTEM, USER], "context": "Bo says hi.", "completion": "Yes."}
        group = make(row, template="{context}\n\n{prompt}")
        assert group.prompt.messages == (SYSTEM, {"role": "user", "content": "Bo says hi.\n\nHi?"})
        assert row["prompt"] == [SYSTEM, USER]

    @pytest.mark.parametrize("row", [{"prompt": "Hi?"}, {"prompt": "Hi?", "context": None}])
    def test_a_template_needs_its_columns(self, row: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=r"data\.jsonl:7: the template names 'context'"):
            make(row, template="{context} {prompt}")
