"""What is wrong with a row is said with its place and exit code 2, before a run directory or a model exists."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import alignkit
from alignkit import cli
from alignkit.errors import InputError
from alignkit.recipe.reading import read_recipe
from alignkit.runs import single
from alignkit.runs.reporting import Reporter

if TYPE_CHECKING:
    from pathlib import Path

STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<end>{% endfor %}"
)
GOOD = {"messages": [{"role": "user", "content": "Name a pet."}, {"role": "assistant", "content": "Cat."}]}
SYSTEM = {"messages": [{"role": "system", "content": "Be brief."}, *GOOD["messages"]]}
ASKED = {"messages": GOOD["messages"][:1]}
PAIR = {"prompt": "Name a pet.", "chosen": "Cat.", "rejected": "Stone."}
CHAT_PAIR = {"prompt": GOOD["messages"][:1], "chosen": "Cat.", "rejected": "Stone."}
SYSTEM_PAIR = {**CHAT_PAIR, "prompt": SYSTEM["messages"][:2]}
LENGTH = {"plugin": "rules", "length": {"maximum": 3}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer whose template is strict, and no weights: loading it fails."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    backend = Tokenizer(models.BPE(vocab={"a": 0, "<end>": 1}, merges=[]))
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", chat_template=STRICT)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").touch()
    return folder


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(tmp_path: Path, tables: dict[str, Any]) -> InputError:
    with pytest.raises(InputError) as error:
        alignkit.run(tables, out=tmp_path / "out", progress=False)
    assert error.value.exit_code == 2
    assert not (tmp_path / "out").exists()
    return error.value


@pytest.mark.parametrize("table", ["demonstrations", "prompts"])
def test_rows_that_the_template_refuses(tmp_path: Path, model: Path, table: str) -> None:
    file = written(tmp_path / "a.jsonl", GOOD, SYSTEM)
    tables: dict[str, Any] = {"policy": {"plugin": "hf", "model": str(model)}, table: {"path": str(file)}}
    if table == "prompts":
        tables |= {"optimizer": {"plugin": "grpo"}, "reward": {"plugin": "rules", "length": {"maximum": 3}}}
    error = refused(tmp_path, tables)
    assert error.where == f"{file}:2"
    assert "System role not supported" in error.what


def test_prompts_among_demonstrations(tmp_path: Path, model: Path) -> None:
    file = written(tmp_path / "a.jsonl", ASKED, GOOD)
    error = refused(tmp_path, {"policy": {"model": str(model)}, "demonstrations": {"path": str(file)}})
    assert (error.where, error.what) == (f"{file}:1", "a prompt without an answer to learn")


def test_demonstrations_among_preferences(tmp_path: Path, model: Path) -> None:
    file = written(tmp_path / "a.jsonl", GOOD, GOOD)
    policy = {"policy": {"model": str(model)}, "preferences": {"path": str(file)}}
    error = refused(tmp_path, {**policy, "optimizer": {"plugin": "dpo"}})
    assert (error.where, error.what) == (f"{file}:1", "no rankings, which dpo learns from")
    assert refused(tmp_path, {**policy, "optimizer": {"plugin": "kto"}}).what == "no labels, which kto learns from"


def test_preferences_whose_columns_have_other_names(tmp_path: Path, model: Path) -> None:
    file = written(tmp_path / "a.jsonl", {"prompt": "a", "good": "b", "bad": "c"})
    tables = {"policy": {"model": str(model)}, "preferences": {"path": str(file)}, "optimizer": {"plugin": "dpo"}}
    assert refused(tmp_path, tables).fix.startswith(
        "if good, bad should count, rename: --columns OLD=chosen; else give"
    )


def test_prompts_to_sample_for(tmp_path: Path, model: Path) -> None:
    file = written(tmp_path / "a.jsonl", ASKED, SYSTEM)
    resolved = read_recipe(None, flags={"policy": "hf"}, overrides=[f"policy.model={model}"])
    with pytest.raises(InputError, match="System role not supported") as error:
        single.sample(resolved, file, 1, tmp_path / "out.jsonl", Reporter())
    assert error.value.where == f"{file}:2"


@pytest.fixture
def policy(model: Path) -> dict[str, Any]:
    return {"policy": {"plugin": "hf", "model": str(model)}}


def dataset(file: Path) -> dict[str, Any]:
    return {"plugin": "dataset", "path": str(file)}


def judging(file: Path) -> dict[str, Any]:
    """A judge, which is not asked, of the responses in a file."""
    return {"plugin": "judge", "model": "m", "base_url": "http://127.0.0.1:9/v1", "responses": dataset(file)}


def test_texts_without_an_answer_to_be_surprised_by(tmp_path: Path, policy: dict[str, Any]) -> None:
    pairs, texts = written(tmp_path / "a.jsonl", CHAT_PAIR), written(tmp_path / "b.jsonl", ASKED, GOOD)
    tables = {
        **policy,
        "preferences": dataset(pairs),
        "optimizer": {"plugin": "dpo"},
        "eval": {"texts": dataset(texts)},
    }
    error = refused(tmp_path, tables)
    assert (error.where, error.what) == (f"{texts}:1", "a prompt without an answer to learn")


@pytest.mark.parametrize("wrong", [SYSTEM_PAIR, {**CHAT_PAIR, "chosen": None}, {"prompt": "Hi?", "chosen": "Yes."}])
@pytest.mark.parametrize("source", ["mix", "judge"])
def test_wrong_rows_of_a_source_inside_another(
    tmp_path: Path, policy: dict[str, Any], source: str, wrong: dict[str, Any]
) -> None:
    good, file = written(tmp_path / "a.jsonl", CHAT_PAIR), written(tmp_path / "b.jsonl", CHAT_PAIR, wrong)
    mixed = {"plugin": "mix", "sources": [dataset(good), dataset(file)]}
    preferences = mixed if source == "mix" else judging(file)
    error = refused(tmp_path, {**policy, "preferences": preferences, "optimizer": {"plugin": "dpo"}})
    assert f"{file}:2" in str(error)
    assert wrong is not SYSTEM_PAIR or (error.where, "System role" in error.what) == (f"{file}:2", True)


def test_a_mixture_of_files_must_hold_what_the_algorithm_learns_from(tmp_path: Path, policy: dict[str, Any]) -> None:
    pairs, file = written(tmp_path / "a.jsonl", CHAT_PAIR), written(tmp_path / "b.jsonl", GOOD)
    mixed = {"plugin": "mix", "sources": [dataset(pairs), dataset(file)]}
    error = refused(tmp_path, {**policy, "preferences": mixed, "optimizer": {"plugin": "dpo"}})
    assert (error.where, error.what) == (f"{file}:1", "no rankings, which dpo learns from")


@pytest.mark.parametrize(
    ("rows", "line", "said"),
    [
        (
            [{"prompt": "Hi?", "responses": list("ab")}, {"prompt": "Hi?", "responses": list("abcdefghij")}],
            2,
            "10 resp",
        ),
        ([GOOD, GOOD], 1, "nothing to compare"),
    ],
)
def test_responses_that_no_judge_can_rank(
    tmp_path: Path, policy: dict[str, Any], rows: list[Any], line: int, said: str
) -> None:
    file = written(tmp_path / "a.jsonl", *rows)
    error = refused(tmp_path, {**policy, "preferences": judging(file), "optimizer": {"plugin": "dpo"}})
    assert error.where == f"{file}:{line}"
    assert said in error.what


def test_prompts_to_measure_on(tmp_path: Path, policy: dict[str, Any]) -> None:
    prompts, file = written(tmp_path / "a.jsonl", ASKED), written(tmp_path / "b.jsonl", ASKED, SYSTEM)
    tables = {**policy, "prompts": dataset(prompts), "reward": LENGTH, "optimizer": {"plugin": "grpo"}}
    error = refused(tmp_path, {**tables, "eval": {"prompts": dataset(file)}})
    assert error.where == f"{file}:2"
    assert "System role not supported" in error.what


@pytest.mark.parametrize("wrong", [{"prompt": SYSTEM["messages"][:2], "responses": ["Cat."]}, {"prompt": "Hi?"}])
def test_groups_to_score_with_a_reward_model(tmp_path: Path, model: Path, wrong: dict[str, Any]) -> None:
    file = written(tmp_path / "a.jsonl", {"prompt": ASKED["messages"], "responses": ["Cat."]}, wrong)
    resolved = read_recipe(None, flags={"reward": "model"}, overrides=[f"reward.model={model}"])
    with pytest.raises(InputError) as error:
        single.score(resolved, file, tmp_path / "out.jsonl", Reporter())
    assert error.value.where == f"{file}:2"
    assert ("System role not supported" in error.value.what) == ("responses" in wrong)


@pytest.mark.parametrize(
    ("command", "rows"),
    [
        (
            "run {policy} --preferences mix -o preferences.sources=[{data},{data}] --optimizer dpo",
            (CHAT_PAIR, SYSTEM_PAIR),
        ),
        (
            "preferences make {policy} --preferences judge -o preferences.model=m -o preferences.responses={data}"
            " -o preferences.base_url=http://127.0.0.1:9/v1",
            (CHAT_PAIR, SYSTEM_PAIR),
        ),
        ("eval {policy} --reward rules -o reward.length.maximum=3 -o eval.prompts={data}", (ASKED, SYSTEM)),
        ("eval {policy} --reward rules -o reward.length.maximum=3 -o eval.prompts={data}", (ASKED, {"messages": 3})),
        (
            "align {policy} --optimizer grpo -o prompts.path={file} --reward rules -o reward.answer.column=to",
            ({**ASKED, "to": 1}, ASKED),
        ),
        (
            "score {file} --reward rules -o reward.answer.column=to",
            ({"prompt": "Hi?", "responses": ["1"], "to": 1}, {"prompt": "Hi?", "responses": ["1"]}),
        ),
    ],
)
def test_on_the_command_line(
    tmp_path: Path, model: Path, command: str, rows: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "a.jsonl", *rows)
    given = {"policy": f"-o policy.model={model}", "file": str(file)}
    words = [word.format(**given, data=f'{{plugin="dataset",path="{file}"}}') for word in command.split(" ")]
    arguments = [part for word in words for part in word.split(" ")]
    assert cli.run([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert f"{file}:2: " in capsys.readouterr().err


@pytest.fixture
def exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A reward that needs the prompts' column `answer`."""
    (tmp_path / "checks_answers.py").write_text("def exact(completions, answer, unit=None, **columns): ...\n")
    monkeypatch.chdir(tmp_path)
    return {"plugin": "function", "function": "checks_answers:exact"}


ANSWERED = {"prompt": "What is 1 + 1?", "answer": "#### 2"}
RULE = {"plugin": "rules", "answer": {"column": "answer"}}
FUNCTION = "checks_answers:exact needs 'answer', which is not a column of the prompts (id)"


@pytest.mark.usefixtures("exact")
class TestColumnsThatAnswersAreCheckedBy:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return written(tmp_path / "a.jsonl", ANSWERED, {"prompt": "What is 1 + 2?", "id": 7})

    @pytest.mark.parametrize(
        ("added", "said"),
        [
            ({"reward": "exact"}, FUNCTION),
            ({"reward": RULE}, "the prompt has no column 'answer', but id"),
            ({"reward": {"plugin": "sum", "sources": [LENGTH, RULE]}}, "the prompt has no column 'answer', but id"),
            ({"reward": LENGTH, "optimizer": {"plugin": "grpo", "stop": {"gold": "exact"}}}, FUNCTION),
            ({"reward": LENGTH, "eval": {"rewards": {"gold": "exact"}}}, FUNCTION),
            ({"preferences": {"plugin": "reward", "source": "exact"}, "optimizer": {"plugin": "dpo"}}, FUNCTION),
            (
                {"preferences": {"plugin": "rules", "answer": {"column": "answer"}}, "optimizer": {"plugin": "dpo"}},
                "the prompt has no column 'answer', but id",
            ),
        ],
    )
    def test_are_looked_for_before_a_model_loads(
        self, tmp_path: Path, policy: dict[str, Any], exact: dict[str, Any], file: Path, added: Any, said: str
    ) -> None:
        tables = json.loads(
            json.dumps({"optimizer": {"plugin": "grpo"}, **added}).replace('"exact"', json.dumps(exact))
        )
        error = refused(tmp_path, {**policy, "prompts": dataset(file), **tables})
        assert (error.where, error.what) == (f"{file}:2", said)

    @pytest.mark.parametrize("reward", ["exact", "rules"])
    def test_by_align_alone(
        self, tmp_path: Path, policy: dict[str, Any], exact: dict[str, Any], file: Path, reward: str
    ) -> None:
        scored = {"reward": exact if reward == "exact" else RULE, "optimizer": {"plugin": "ppo", "critic": "policy"}}
        tables = {**policy, "prompts": dataset(file), **scored}
        with pytest.raises(InputError) as error:
            alignkit.run(tables, out=tmp_path / "out", stages=["align"], progress=False)
        assert error.value.where == f"{file}:2"

    @pytest.mark.parametrize("reward", ["exact", "rules"])
    def test_by_score(self, tmp_path: Path, exact: dict[str, Any], file: Path, reward: str) -> None:
        groups = written(file, *({**json.loads(line), "responses": ["2"]} for line in file.read_text().splitlines()))
        flags = {"reward": exact["function"] if reward == "exact" else "rules"}
        overrides = [] if reward == "exact" else ["reward.answer.column=answer"]
        with pytest.raises(InputError) as error:
            single.score(read_recipe(None, flags=flags, overrides=overrides), groups, tmp_path / "o.jsonl", Reporter())
        assert error.value.where == f"{file}:2"

    def test_an_answer_that_is_no_number(self, tmp_path: Path, policy: dict[str, Any]) -> None:
        file = written(tmp_path / "b.jsonl", ANSWERED, {**ANSWERED, "answer": "two"})
        tables = {**policy, "prompts": dataset(file), "optimizer": {"plugin": "grpo"}, "reward": RULE}
        error = refused(tmp_path, tables)
        assert (error.where, error.what) == (f"{file}:2", "the right answer 'two' is not a number")

    def test_not_where_nothing_scores_those_prompts(self, tmp_path: Path, policy: dict[str, Any], file: Path) -> None:
        pairs = written(tmp_path / "b.jsonl", PAIR)
        tables = {**policy, "prompts": dataset(file), "preferences": dataset(pairs), "optimizer": {"plugin": "dpo"}}
        tables |= {"reward": RULE, "eval": {"prompts": dataset(written(tmp_path / "c.jsonl", ANSWERED))}}
        with pytest.raises(InputError, match="can't load"):  # the model, which has no weights
            alignkit.run(tables, out=tmp_path / "out", progress=False)
