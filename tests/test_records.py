"""Text records: what they refuse, and that files give back what was written."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import TYPE_CHECKING, Any

import pytest

from alignkit.errors import InputError
from alignkit.records import Group, Prompt, read_groups, write_groups

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USER = {"role": "user", "content": "Hi?"}
SYSTEM = {"role": "system", "content": "Be kind."}
PLAIN = Group(Prompt("Hé?"), ("a",))
FULL = Group(
    Prompt(messages=(SYSTEM, USER), meta={"answer": 7, "tags": ["x"]}),
    ("a", "", "c\nd"),
    ranks=(1, 1, 0),
    scores=(0.5, None, -2.0),
    labels=(True, False, True),
    finished=(True, True, False),
    source="people",
    meta={"annotator": "Ann"},
)


class TestPrompt:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "either text or messages"),
            ({"text": "Hi?", "messages": (USER,)}, "either text or messages"),
            ({"messages": ()}, "at least one message"),
            ({"messages": ({"content": "Hi?"},)}, r"needs 'role' and 'content', found \['content'\]"),
            ({"messages": ({"role": "user"},)}, r"needs 'role' and 'content', found \['role'\]"),
            ({"messages": ({"role": 1, "content": "Hi?"},)}, "needs 'role' and 'content'"),
        ],
    )
    def test_it_is_text_or_messages(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Prompt(**arguments)

    def test_an_empty_text_is_a_prompt(self) -> None:
        assert (Prompt("").content, Prompt("").plain) == ("", "")

    def test_of_either_form(self) -> None:
        assert Prompt.of("Hi?", {"x": 1}) == Prompt("Hi?", meta={"x": 1})
        assert Prompt.of([USER]) == Prompt(messages=(USER,))
        assert Prompt.of("Hi?").content == "Hi?"
        assert Prompt.of([SYSTEM, USER]).content == [SYSTEM, USER]

    def test_of_copies_messages(self) -> None:
        message = dict(USER)
        prompt = Prompt.of([message])
        message["content"] = "changed"
        assert prompt.content == [USER]

    def test_plain_text(self) -> None:
        assert Prompt("Hi?").plain == "Hi?"
        assert Prompt(messages=(SYSTEM, USER)).plain == "system: Be kind.\nuser: Hi?"

    def test_the_key_depends_on_the_content_alone(self) -> None:
        assert Prompt("Hi?").key == "81c135b7c6feef23"  # printf '"Hi?"' | sha256sum | cut -c1-16
        assert Prompt("Hi?", meta={"x": 1}).key == Prompt("Hi?").key
        assert Prompt("Hi?", meta={"x": 1, "y": 2}).identity == Prompt("Hi?", meta={"y": 2, "x": 1}).identity
        kinds = [Prompt("Hi?"), Prompt("Hi?", meta={"x": 1}), Prompt("Hi?", meta={"x": 2}), Prompt(messages=(USER,))]
        assert len({prompt.identity for prompt in kinds}) == 4
        assert Prompt(messages=(USER,)).key == Prompt(messages=({"content": "Hi?", "role": "user"},)).key
        keys = {
            prompt.key for prompt in (Prompt("Hi?"), Prompt("Hi"), Prompt(messages=(USER,)), Prompt(messages=(SYSTEM,)))
        }
        assert len(keys) == 4

    def test_it_is_frozen(self) -> None:
        with pytest.raises(FrozenInstanceError):
            Prompt("Hi?").text = "changed"  # type: ignore[misc]


class TestGroup:
    def test_other_columns_of_a_row_are_for_rewards(self) -> None:
        row = {"prompt": "2+40?", "final_answer": "42", "responses": ["42"], "prompt_meta": {"id": 3}}
        group = Group.from_json(row)
        assert dict(group.prompt.meta) == {"final_answer": "42", "id": 3}
        assert Group.from_json(group.to_json()) == group

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"responses": ()}, "at least one response"),
            ({"responses": ("a", None)}, "responses must be strings"),
            ({"ranks": (0,)}, "1 ranks for 2 responses"),
            ({"ranks": (0, 1, 2)}, "3 ranks for 2 responses"),
            ({"scores": (0.5,)}, "1 scores for 2 responses"),
            ({"labels": ()}, "0 labels for 2 responses"),
            ({"ranks": (0, -1)}, r"ranks must be integers from 0 \(best\), found \[0, -1\]"),
            ({"ranks": (0, 1.0)}, "ranks must be integers"),
            ({"ranks": (0, True)}, "ranks must be integers"),
            ({"ranks": (0, None)}, "ranks must be integers"),
            ({"scores": (0.5, float("nan"))}, r"scores must be finite numbers or null, found \[0.5, nan\]"),
            ({"scores": (0.5, float("inf"))}, "scores must be finite"),
            ({"scores": (float("-inf"), None)}, "scores must be finite"),
            ({"labels": (True, 1)}, r"labels must be true or false, found \[True, 1\]"),
            ({"labels": (True, None)}, "labels must be true or false"),
            ({"finished": (True,)}, "1 finished for 2 responses"),
            ({"finished": (True, 0)}, r"finished must be true or false, found \[True, 0\]"),
            ({"meta": {"weight": "2"}}, "meta.weight must be a number >= 0, found '2'"),
            ({"meta": {"weight": -0.5}}, "meta.weight must be a number >= 0"),
            ({"meta": {"weight": float("nan")}}, "meta.weight must be a number >= 0"),
        ],
    )
    def test_what_it_refuses(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Group(**{"prompt": Prompt("Hi?"), "responses": ("a", "b"), **arguments})

    @pytest.mark.parametrize(
        ("ranks", "pairs"),
        [
            (None, []),
            ((0, 0), []),
            ((0, 1), [(0, 1)]),
            ((1, 0), [(1, 0)]),
            ((1, 0, 1, 2), [(0, 3), (1, 0), (1, 2), (1, 3), (2, 3)]),
        ],
    )
    def test_preferred_pairs_are_better_then_worse(
        self, ranks: tuple[int, ...] | None, pairs: list[tuple[int, int]]
    ) -> None:
        responses = tuple("abcd"[: len(ranks or "ab")])
        assert Group(Prompt("Hi?"), responses, ranks=ranks).preferred_pairs() == pairs

    @pytest.mark.parametrize(
        ("scores", "responses", "ranks"),
        [
            ((1.0, 3.0, 2.0), "abc", (2, 0, 1)),
            ((1.0, 1.0, 2.0), "abc", (1, 1, 0)),
            ((0.0, 0.0, 0.0), "abc", (0, 0, 0)),
            ((None, -1.0, -0.5), "bc", (1, 0)),
            ((None, None, -1.0), "c", (0,)),
        ],
    )
    def test_ranks_from_scores(self, scores: tuple[float | None, ...], responses: str, ranks: tuple[int, ...]) -> None:
        group = Group(Prompt("Hi?"), ("a", "b", "c"), scores=scores, labels=(True,) * 3, source="s", meta={"x": 1})
        ranked = group.ranked_by_scores()
        assert (ranked.responses, ranked.ranks) == (tuple(responses), ranks)
        assert ranked.scores == tuple(score for score in scores if score is not None)
        assert (ranked.labels, ranked.source, ranked.meta) == (None, "s", {"x": 1})

    def test_chosen_responses_keep_what_is_known_about_them(self) -> None:
        chosen = FULL.choose([2, 0])
        assert (chosen.responses, chosen.ranks, chosen.scores) == (("c\nd", "a"), (0, 1), (-2.0, 0.5))
        assert (chosen.labels, chosen.finished) == ((True, True), (False, True))
        assert (chosen.prompt, chosen.source, chosen.meta) == (FULL.prompt, FULL.source, FULL.meta)
        assert PLAIN.choose([0]) == PLAIN

    def test_of_equal_responses_the_first_is_kept(self) -> None:
        group = Group(Prompt("Hi?"), ("b", "a", "b", "c", "a"), ranks=(0, 1, 2, 3, 4)).without_duplicates()
        assert (group.responses, group.ranks) == (("b", "a", "c"), (0, 1, 3))

    @pytest.mark.parametrize("scores", [None, (None, None)])
    def test_no_ranks_without_scores(self, scores: tuple[None, None] | None) -> None:
        with pytest.raises(ValueError, match="no response has a score"):
            Group(Prompt("Hi?"), ("a", "b"), scores=scores).ranked_by_scores()


class TestJSON:
    def test_the_record(self) -> None:
        assert PLAIN.to_json() == {"prompt": "Hé?", "responses": ["a"]}
        assert FULL.to_json() == {
            "prompt": [SYSTEM, USER],
            "responses": ["a", "", "c\nd"],
            "ranks": [1, 1, 0],
            "scores": [0.5, None, -2.0],
            "labels": [True, False, True],
            "finished": [True, True, False],
            "source": "people",
            "meta": {"annotator": "Ann"},
            "prompt_meta": {"answer": 7, "tags": ["x"]},
        }

    @pytest.mark.parametrize("group", [PLAIN, FULL, replace(FULL, labels=None), replace(FULL, ranks=None, meta={})])
    def test_the_round_trip(self, group: Group) -> None:
        assert Group.from_json(json.loads(json.dumps(group.to_json()))) == group

    def test_null_fields_are_missing_ones(self) -> None:
        record = {"prompt": "Hé?", "responses": ["a"], "ranks": None, "scores": None, "meta": None, "prompt_meta": None}
        assert Group.from_json(record) == PLAIN


class TestFiles:
    def test_the_round_trip(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "groups.jsonl"
        assert write_groups(path, iter([PLAIN, FULL])) == 2
        assert list(read_groups(path)) == [PLAIN, FULL]
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0] == '{"prompt": "Hé?", "responses": ["a"]}'
        assert len(lines) == 2

    def test_an_empty_file(self, tmp_path: Path) -> None:
        path = tmp_path / "groups.jsonl"
        assert write_groups(path, []) == 0
        assert list(read_groups(path)) == []

    def test_a_failed_write_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "groups.jsonl"
        write_groups(path, [PLAIN])

        def broken() -> Iterator[Group]:
            yield FULL
            raise RuntimeError("the source died")

        with pytest.raises(RuntimeError, match="the source died"):
            write_groups(path, broken())
        assert list(read_groups(path)) == [PLAIN]
        assert [file.name for file in tmp_path.iterdir()] == ["groups.jsonl"]

    def test_a_line_that_is_not_utf_8_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "groups.jsonl"
        path.write_bytes(
            '{"prompt": "Hé?", "responses": ["a"]}\n'.encode() + b'{"prompt": "H\xe9?", "responses": ["a"]}\n'
        )
        groups = read_groups(path)
        assert next(groups) == PLAIN
        with pytest.raises(InputError, match=r"groups\.jsonl:2: 'utf-8' codec can't decode"):
            next(groups)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as error:
            next(read_groups(tmp_path / "none.jsonl"))
        assert (error.value.where, error.value.what) == (str(tmp_path / "none.jsonl"), "no such file")

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ('{"prompt": "Hi?"', "Expecting ',' delimiter"),
            ('{"responses": ["a"]}', "no field 'prompt'"),
            ('{"prompt": "Hi?"}', "no field 'responses'"),
            ('{"prompt": "Hi?", "responses": []}', "at least one response"),
            ('{"prompt": "Hi?", "responses": ["a"], "ranks": [0, 1]}', "2 ranks for 1 responses"),
            ('{"prompt": "Hi?", "responses": ["a"], "scores": [NaN]}', "scores must be finite"),
            ('{"prompt": "Hi?", "responses": ["a"], "scores": ["1"]}', "scores must be finite"),
            ('{"prompt": null, "responses": ["a"]}', "not iterable"),
            ('{"prompt": "Hi?", "responses": "abc"}', "must be a list of strings"),
            ('{"prompt": ["Hi?"], "responses": ["a"]}', ""),
            ("[]", ""),
        ],
    )
    def test_a_broken_line_is_named(self, tmp_path: Path, line: str, reason: str) -> None:
        path = tmp_path / "groups.jsonl"
        write_groups(path, [PLAIN, PLAIN])
        with path.open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")
        groups = read_groups(path)
        assert [next(groups), next(groups)] == [PLAIN, PLAIN]
        with pytest.raises(InputError) as error:
            next(groups)
        assert error.value.where == f"{path}:3"
        assert reason in error.value.what
        assert "'prompt' and 'responses'" in error.value.fix
