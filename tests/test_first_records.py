"""What is wrong with a row is said with its place and exit code 2, before a run directory or a model exists."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import alignkit
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


def test_prompts_to_sample_for(tmp_path: Path, model: Path) -> None:
    file = written(tmp_path / "a.jsonl", ASKED, SYSTEM)
    resolved = read_recipe(None, flags={"policy": "hf"}, overrides=[f"policy.model={model}"])
    with pytest.raises(InputError, match="System role not supported") as error:
        single.sample(resolved, file, 1, tmp_path / "out.jsonl", Reporter())
    assert error.value.where == f"{file}:2"
