"""Each form becomes the group that one would write by hand, and malformed rows say what is wrong with them."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from alignkit_data.forms import FORMS
from alignkit_data.loading import GroupMaker
from alignkit_data.options import FormName
from alignkit_data.readers import Row
from data_rows import SYSTEM, USER, dropped, make, says

from alignkit.errors import InputError
from alignkit.preferences.annotations import Annotation, annotations_of
from alignkit.records import Group, Prompt


def test_the_option_lists_the_forms() -> None:
    assert get_args(FormName) == ("auto", *FORMS)


class TestPreference:
    def test_texts(self) -> None:
        group = make({"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."})
        assert group == Group(Prompt("Hi?"), ("Yes.", "No."), ranks=(0, 1))

    @pytest.mark.parametrize(
        ("prompt", "chosen", "rejected"),
        [
            ("No", "No problem, maybe later!", "Not nice of you."),
            ("1", "12 comes to mind.", "100 it is."),
            ("Q: Hi? A:", "Q: Hi? A: Yes.", "Q: Hi? A: No."),
        ],
    )
    def test_a_given_prompt_is_never_taken_off_a_text(self, prompt: str, chosen: str, rejected: str) -> None:
        group = make({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        assert (group.prompt.text, group.responses) == (prompt, (chosen, rejected))

    def test_chats_of_the_last_turn(self) -> None:
        group = make({"prompt": [SYSTEM, USER], "chosen": [says("Yes.")], "rejected": [says("No.")]})
        assert group == Group(Prompt(messages=(SYSTEM, USER)), ("Yes.", "No."), ranks=(0, 1))

    def test_chats_of_the_whole_conversation(self) -> None:
        group = make({"prompt": [USER], "chosen": [USER, says("Yes.")], "rejected": [USER, says("No.")]})
        assert group == Group(Prompt(messages=(USER,)), ("Yes.", "No."), ranks=(0, 1))

    def test_a_text_prompt_with_whole_conversations(self) -> None:
        group = make({"prompt": "Hi?", "chosen": [SYSTEM, USER, says("Yes.")], "rejected": [SYSTEM, USER, says("No.")]})
        assert group.prompt.messages == (SYSTEM, USER)
        assert group.responses == ("Yes.", "No.")

    def test_a_text_prompt_with_last_turns(self) -> None:
        group = make({"prompt": "Hi?", "chosen": [says("Yes.")], "rejected": [says("No.")]})
        assert (group.prompt.messages, group.responses) == ((USER,), ("Yes.", "No."))

    def test_a_chat_prompt_with_texts(self) -> None:
        group = make({"prompt": [USER], "chosen": "Yes.", "rejected": "No."})
        assert (group.prompt.messages, group.responses) == ((USER,), ("Yes.", "No."))

    def test_shared_messages_are_the_prompt(self) -> None:
        first = [USER, says("Hm."), USER]
        group = make({"chosen": [*first, says("Yes.")], "rejected": [*first, says("No.")]})
        assert (group.prompt.messages, group.responses) == (tuple(first), ("Yes.", "No."))

    @pytest.mark.parametrize(
        ("chosen", "rejected", "prompt", "responses"),
        [
            ("The sky is blue.", "The sky is green.", "The sky is", (" blue.", " green.")),
            ("The sky is black.", "The sky is blue.", "The sky is", (" black.", " blue.")),
            ("The sky is blue ", "The sky is blue and vast", "The sky is", (" blue ", " blue and vast")),
            (
                "\n\nHuman: Hi?\n\nAssistant: No, yes.",
                "\n\nHuman: Hi?\n\nAssistant: No, no.",
                "\n\nHuman: Hi?\n\nAssistant:",
                (" No, yes.", " No, no."),
            ),
            (
                "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D",
                "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: E",
                "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:",
                (" D", " E"),
            ),
        ],
    )
    def test_the_common_beginning_is_the_prompt(
        self, chosen: str, rejected: str, prompt: str, responses: tuple[str, str]
    ) -> None:
        group = make({"chosen": chosen, "rejected": rejected})
        assert (group.prompt.text, group.responses) == (prompt, responses)

    def test_texts_with_nothing_in_common_have_no_prompt(self) -> None:
        assert dropped({"chosen": "Yes", "rejected": "No"}) == ["no prompt, and no common beginning of the responses"]

    def test_an_instruction_is_a_prompt(self) -> None:
        group = make({"instruction": "Add.", "input": "2 and 5", "chosen": "7", "rejected": "8", "id": 3})
        assert group.prompt.content == [{"role": "user", "content": "Add.\n\n2 and 5"}]
        assert group.prompt.meta == {"id": 3}

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"prompt": "p", "chosen": "a", "rejected": "a "}, "chosen and rejected are the same"),
            ({"chosen": [USER, says("a")], "rejected": [USER, says("a")]}, "chosen and rejected are the same"),
            ({"prompt": "p", "chosen": " \n", "rejected": "a"}, "empty response"),
            ({"prompt": "p", "chosen": "a", "rejected": ""}, "empty response"),
            ({"prompt": [USER], "chosen": [], "rejected": [says("a")]}, "empty response"),
            ({"prompt": "", "chosen": "a", "rejected": "b"}, "empty prompt"),
            ({"prompt": [{"role": "user", "content": ""}], "chosen": "a", "rejected": "b"}, "empty prompt"),
            ({"prompt": [USER], "chosen": [USER], "rejected": [says("b")]}, "the response is not an assistant turn"),
        ],
    )
    def test_rows_with_nothing_to_learn_from_are_dropped(self, row: dict[str, Any], reason: str) -> None:
        assert dropped(row) == [reason]


class TestVerdict:
    @pytest.mark.parametrize(("verdict", "ranks"), [(0, (0, 0)), (1, (0, 1)), (2, (1, 0))])
    def test_the_verdict_ranks(self, verdict: int, ranks: tuple[int, int]) -> None:
        group = make({"prompt": "Hi?", "response_1": "a", "response_2": "b", "verdict": verdict})
        assert group == Group(Prompt("Hi?"), ("a", "b"), ranks=ranks)

    @pytest.mark.parametrize("verdict", [3, -1, True, "1", None, 1.0])
    def test_another_verdict_is_an_error(self, verdict: Any) -> None:
        with pytest.raises(InputError, match=r"data.jsonl:7: verdict is .*expected 0 \(tie\)"):
            make({"prompt": "Hi?", "response_1": "a", "response_2": "b", "verdict": verdict})


class TestAnnotated:
    ROW = {"prompt": "Hi?", "response_1": "a", "response_2": True}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("human", "ai", "ranks"),
        [
            ([1, 2, 2], {"j": 1}, (1, 0)),
            ([1, 2, 0], None, (0, 0)),
            ({"anna": 1, "ben": None}, {}, (0, 1)),
            ([None], {"j": 2}, (1, 0)),
            ([None], {"j": None}, None),
            (1, None, (0, 1)),
            (0, {"j": 1}, (0, 0)),
            (None, {"j": [1, 2]}, (0, 0)),
            (None, {"j": [2, 2]}, (1, 0)),
        ],
    )
    def test_most_of_the_people_rank(self, human: Any, ai: Any, ranks: tuple[int, int] | None) -> None:
        assert make({**self.ROW, "human": human, "ai": ai}).ranks == ranks

    def test_every_verdict_is_kept(self) -> None:
        group = make({**self.ROW, "human": [1, None], "ai": {"j": 2}})
        assert group.responses == ("a", "True")
        assert annotations_of(group) == [
            Annotation("human-1", (0, 1), "human", order=(0, 1)),
            Annotation("human-2", None, "human", order=(0, 1)),
            Annotation("j", (1, 0), "ai", order=(0, 1)),
        ]

    def test_one_person_alone_and_both_orders_of_an_ai(self) -> None:
        group = make({**self.ROW, "human": 0, "ai": {"j": [1, 2], "one": 1}})
        assert annotations_of(group) == [
            Annotation("human-1", (0, 0), "human", order=(0, 1)),
            Annotation("j", (0, 1), "ai", order=(0, 1)),
            Annotation("j", (1, 0), "ai", order=(1, 0)),
            Annotation("one", (0, 1), "ai", order=(0, 1)),
        ]

    @pytest.mark.parametrize(
        ("human", "said"),
        [
            (["1"], "human.human-1 is '1'"),
            ("1", "expected verdicts by annotator"),
            (True, "expected verdicts by annotator"),
            (3, "human.human-1 is 3"),
            ([[1, 2]], r"human.human-1 is \[1, 2\]"),
        ],
    )
    def test_wrong_verdicts_are_errors(self, human: Any, said: str) -> None:
        with pytest.raises(InputError, match=rf"data.jsonl:7: .*{said}"):
            make({**self.ROW, "human": human})


class TestLabelsAndDemonstrations:
    @pytest.mark.parametrize(
        ("label", "expected"), [(True, True), (False, False), (1, True), (0, False), ("True", True), ("0", False)]
    )
    def test_labels(self, label: Any, expected: bool) -> None:
        group = make({"prompt": "Hi?", "completion": "a", "label": label})
        assert group == Group(Prompt("Hi?"), ("a",), labels=(expected,))

    @pytest.mark.parametrize("label", [None, 2, -1, "good", float("nan"), 0.5, [True]])
    def test_another_label_names_the_row(self, label: Any) -> None:
        with pytest.raises(InputError, match=r"data.jsonl:7: label is .*expected true or false"):
            make({"prompt": "Hi?", "completion": "a", "label": label})

    def test_completions(self) -> None:
        assert make({"prompt": [USER], "completion": [says("Yes.")]}) == Group(Prompt(messages=(USER,)), ("Yes.",))
        assert make({"prompt": "Hi?", "completion": "Hi? Yes."}).responses == ("Hi? Yes.",)

    def test_plain_text_to_learn_from_has_an_empty_prompt(self) -> None:
        assert make({"prompt": "", "completion": "Once."}) == Group(Prompt(""), ("Once.",))

    def test_messages_end_with_the_answer(self) -> None:
        group = make({"messages": [SYSTEM, USER, says("Hm."), USER, says("Yes.")], "id": 1})
        assert group.prompt.messages == (SYSTEM, USER, says("Hm."), USER)
        assert (group.responses, group.prompt.meta) == (("Yes.",), {"id": 1})

    def test_messages_that_wait_for_an_answer_are_prompts(self) -> None:
        for messages in (
            [USER],
            [SYSTEM, USER, says("Hm."), USER],
            [USER, says("Hm."), {"role": "tool", "content": "7"}],
        ):
            assert make({"messages": messages}) == Group(Prompt(messages=tuple(messages)), ("",))
        turns = [{"from": "human", "value": "Hi?"}]
        assert make({"conversations": turns}) == Group(Prompt(messages=(USER,)), ("",))

    def test_among_prompts_an_answer_is_left_out(self) -> None:
        rows = [Row("f:1", {"messages": [USER]}), Row("f:2", {"messages": [USER, says("Yes.")]})]
        assert [group.prompt.messages for group in GroupMaker().groups(rows)] == [(USER,), (USER,)]

    @pytest.mark.parametrize(
        ("messages", "reason"),
        [
            ([USER, says("Yes."), USER], "the last turn is not an answer: its role is user"),
            ([USER], "no assistant turn"),
            ([says("Yes.")], "no prompt before the response"),
            ([USER, says("")], "empty response"),
            ([USER, {**says("Yes."), "weight": 0}], "the last turn is marked as not to be learned"),
            ([USER, {**says("Yes."), "loss": False}], "the last turn is marked as not to be learned"),
        ],
    )
    def test_demonstrations_without_an_answer_are_dropped(self, messages: list[Any], reason: str) -> None:
        assert dropped({"messages": messages}, form="messages") == [reason]

    def test_empty_fields_of_messages_are_left_out(self) -> None:
        group = make({"messages": [{**USER, "tool_calls": None}, says("Yes.")]})
        assert group.prompt.messages == (USER,)

    def test_sharegpt(self) -> None:
        turns = [("system", "Be kind."), ("human", "Hi?"), ("gpt", "Yes.")]
        group = make({"conversations": [{"from": role, "value": text} for role, text in turns]})
        assert group == Group(Prompt(messages=(SYSTEM, USER)), ("Yes.",))

    def test_alpaca(self) -> None:
        row = {"instruction": "Add.", "input": "2 and 5", "output": "7", "text": "kept"}
        assert make(row) == Group(
            Prompt(messages=({"role": "user", "content": "Add.\n\n2 and 5"},), meta={"text": "kept"}), ("7",)
        )
        assert make({"instruction": "Hi?", "input": "", "output": "Yes."}).prompt.messages == (USER,)

    def test_alpaca_with_a_history(self) -> None:
        row = {"instruction": "Hi?", "output": "Yes.", "system": "Be kind.", "history": [["Hi?", "Hm."]]}
        assert make(row).prompt.messages == (SYSTEM, USER, says("Hm."), USER)

    def test_prompts_have_one_empty_response(self) -> None:
        assert make({"prompt": "Hi?", "answer": "7"}) == Group(Prompt("Hi?", meta={"answer": "7"}), ("",))


class TestGroups:
    def test_what_alignkit_writes_comes_back(self) -> None:
        group = Group(
            Prompt("Hi?", meta={"answer": 7}), ("a", "", "b"), ranks=(2, 1, 0), scores=(0.5, None, 2.0),
            labels=(True, False, True), source="people", meta={"annotator": 3},
        )  # fmt: skip
        assert make(group.to_json()) == group

    def test_other_columns_join_the_prompts_meta(self) -> None:
        group = make({"prompt": "Hi?", "responses": ["a", "b"], "prompt_meta": {"x": 1}, "answer": "7"})
        assert (group.prompt.meta, group.ranks) == ({"x": 1, "answer": "7"}, None)

    def test_ranks_may_start_anywhere(self) -> None:
        assert make({"prompt": "Hi?", "responses": ["a", "b", "c"], "ranks": [3, 1, 3]}).ranks == (1, 0, 1)

    def test_scores_rank(self) -> None:
        group = make({"prompt": "Hi?", "responses": ["a", "b", "c"], "scores": [1, 2.5, 1], "labels": [True] * 3})
        assert (group.ranks, group.scores, group.labels) == ((1, 0, 1), (1.0, 2.5, 1.0), (True,) * 3)

    def test_ranks_win_over_scores(self) -> None:
        group = make({"prompt": "Hi?", "responses": ["a", "b"], "scores": [1, 2], "ranks": [0, 1]})
        assert (group.ranks, group.scores) == ((0, 1), (1.0, 2.0))

    def test_responses_without_a_score_leave_a_scored_ranking(self) -> None:
        group = make({"prompt": "Hi?", "responses": ["a", "b", "c"], "scores": [1, None, 2]})
        assert (group.responses, group.ranks, group.scores) == (("a", "c"), (1, 0), (1.0, 2.0))

    def test_one_score_ranks_nothing(self) -> None:
        group = make({"prompt": "Hi?", "responses": ["a", "b"], "scores": [1, None]})
        assert (group.responses, group.ranks, group.scores) == (("a", "b"), None, (1.0, None))

    def test_responses_as_chats(self) -> None:
        group = make({"prompt": [USER], "responses": [[says("a")], [says("b")]]})
        assert (group.prompt.messages, group.responses) == ((USER,), ("a", "b"))

    def test_the_same_response_at_two_ranks_is_dropped(self) -> None:
        assert dropped({"prompt": "p", "responses": ["a", "b", "a"], "ranks": [0, 1, 2]}) == [
            "the same response at two ranks"
        ]
        assert make({"prompt": "p", "responses": ["a", "b", "a"], "ranks": [0, 1, 0]}).ranks == (0, 1, 0)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"responses": ["a"], "ranks": [0]}, "a ranking needs at least two entries"),
            ({"responses": ["a", "b"], "ranks": [0]}, "a ranking needs at least two entries"),
            ({"responses": ["a", "b"], "ranks": [0, 1, 2]}, "3 ranks for 2 responses"),
            ({"responses": ["a", "b"], "ranks": [0, float("nan")]}, "ranks holds nan"),
            ({"responses": ["a", "b"], "ranks": [0, -1]}, "ranks holds -1"),
            ({"responses": ["a", "b"], "ranks": [0, True]}, "ranks holds True"),
            ({"responses": ["a", "b"], "ranks": "0, 1"}, "ranks is text, expected a list"),
            ({"responses": ["a", "b"], "scores": [0.5, float("nan")]}, "scores holds nan"),
            ({"responses": ["a", "b"], "scores": [0.5, float("inf")]}, "scores holds inf"),
            ({"responses": ["a", "b"], "scores": [0.5, "1"]}, "scores holds '1'"),
            ({"responses": ["a", "b"], "scores": [0.5, True]}, "scores holds True"),
            ({"responses": ["a", "b"], "scores": [0.5]}, "1 scores for 2 responses"),
            ({"responses": ["a", "b"], "labels": [True, None]}, "labels must be true or false"),
            ({"responses": []}, "at least one response"),
            ({"responses": "a"}, "responses is text, expected a list"),
            ({"responses": ["a", None]}, r"responses\[1\] is null, expected text or messages"),
            ({"responses": ["a", [says("b")]]}, "some responses are texts and others messages"),
            ({"responses": ["a"], "meta": 3}, "meta is a number, expected an object"),
        ],
    )
    def test_malformed_groups_name_the_row(self, columns: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=rf"data\.jsonl:7: .*{message}"):
            make({"prompt": "Hi?", **columns})


def test_comparisons_rank() -> None:
    row = {"prompt": "Hi?", "responses": ["a", "b"], "pairwise": [[0, 1, 2]], "scores": [0, 1], "context": "c"}
    assert make(row) == Group(
        Prompt("Hi?", meta={"context": "c"}), ("a", "b"), ranks=(1, 0), scores=(0.0, 1.0)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "prompt is null, expected text or messages"),
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, "chosen is a number"),
        ({"prompt": "p", "chosen": True, "rejected": "b"}, "chosen is a boolean"),
        ({"prompt": "p", "chosen": ["a"], "rejected": "b"}, r"chosen\[0\] is text, expected a message"),
        ({"prompt": "p", "chosen": [says("a")], "rejected": "b"}, "some responses are texts and others messages"),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, r"prompt\[0\] is a message without 'content'"),
        ({"prompt": [{"role": 1, "content": ""}], "completion": "a"}, r"prompt\[0\].role is a number"),
        ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\].content is null"),
        ({"messages": "Hi?"}, "messages is text, expected messages"),
        ({"instruction": "p", "output": None}, "output is null, expected text"),
        ({"instruction": "p", "output": "a", "history": ["x"]}, r"history\[0\] is not a pair"),
    ],
)
def test_wrong_types_name_the_row(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"data\.jsonl:7: {message}"):
        make(row)
