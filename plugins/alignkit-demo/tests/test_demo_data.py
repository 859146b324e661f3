"""The demo's files: reproducible data, an ordinary model folder, recipes that are complete as they stand."""

from __future__ import annotations

import json
import shutil
import tomllib
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from alignkit_demo.data import Sizes, write_data
from alignkit_demo.demo import make_untrained_model, write_recipes
from alignkit_demo.world import gold
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit import Prompt
from alignkit.plugins import registry
from alignkit.recipe.reading import resolve
from alignkit.recipe.recipe import load_recipe

if TYPE_CHECKING:
    from pathlib import Path

SMALL = Sizes(raw=400, demonstrations=12, prompts=8, evaluation=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / 'a "quoted" folder'
    write_data(path / "data", SMALL, seed=0)
    make_untrained_model(path, seed=0)
    write_recipes(path, seed=7)
    return path


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_file_has_its_rows_and_depends_on_the_seed_alone(folder: Path, tmp_path: Path) -> None:
    names = {"raw": 400, "demonstrations": 12, "prompts": 8, "evaluation": 6}
    assert {name: len(rows(folder / "data" / f"{name}.jsonl")) for name in names} == names
    write_data(tmp_path / "same", SMALL, seed=0)
    write_data(tmp_path / "other", SMALL, seed=1)
    for name in names:
        text = (folder / "data" / f"{name}.jsonl").read_text()
        assert (tmp_path / "same" / f"{name}.jsonl").read_text() == text
        assert (tmp_path / "other" / f"{name}.jsonl").read_text() != text


def test_prompts_that_are_measured_on_stand_in_no_other_file(tmp_path: Path) -> None:
    sizes = Sizes(raw=3000, demonstrations=400, prompts=400, evaluation=100)
    write_data(tmp_path, sizes, seed=0)
    asked = {}
    for name in ("evaluation", "prompts", "demonstrations"):
        turns = [row["prompt"] if "prompt" in row else row["messages"] for row in rows(tmp_path / f"{name}.jsonl")]
        asked[name] = {turn[0]["content"] for turn in turns}  # type: ignore[index]
    read = {str(row["completion"]).partition("<agent>")[0] for row in rows(tmp_path / "raw.jsonl")}
    assert len(asked["evaluation"]) == 100
    assert not asked["evaluation"] & (asked["prompts"] | asked["demonstrations"] | read)
    held_out = {text for text in asked["prompts"] if int(digest_by_hand(text), 16) < 16**16 / 10}
    assert 20 < len(held_out) < 60
    assert not held_out & read
    assert (asked["prompts"] - held_out) & read


def digest_by_hand(text: str) -> str:
    return sha256(json.dumps([["user", text]]).encode()).hexdigest()[:16]


def test_what_gold_needs_survives_reading_as_any_other_data_set(folder: Path) -> None:
    source = registry().load("preferences", "dataset")
    config = registry().get("preferences", "dataset").config
    for name in ("prompts", "evaluation", "demonstrations"):
        groups = list(source(config(path=str(folder / "data" / f"{name}.jsonl"))).preferences(None))  # type: ignore[call-arg, attr-defined]
        assert len(groups) == len(rows(folder / "data" / f"{name}.jsonl"))
        assert all(isinstance(gold(group.prompt, group.responses[0]), float) for group in groups)
        assert all(group.prompt.messages is not None for group in groups)


def test_the_model_folder_is_an_ordinary_one_with_a_chat_template(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "untrained")
    model = AutoModelForCausalLM.from_pretrained(folder / "untrained")
    prompt = Prompt.of([{"role": "user", "content": "Where is my lamp?"}])
    rendered = tokenizer.apply_chat_template(prompt.content, tokenize=False, add_generation_prompt=True)
    assert rendered == "<user>Where is my lamp?<agent>"
    assert model.config.vocab_size == len(tokenizer)
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == ("<pad>", "<end>", None)
    assert tokenizer.decode(tokenizer(rendered).input_ids) == rendered


def test_raw_text_is_one_conversation_whose_markers_are_single_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "untrained")
    markers = tokenizer.convert_tokens_to_ids(["<user>", "<agent>"])
    for row in rows(folder / "data" / "raw.jsonl")[:50]:
        ids = tokenizer(f"{row['prompt']}{row['completion']}").input_ids
        assert [token for token in ids if token in markers] == markers


def test_the_untrained_model_depends_on_the_seed_alone(folder: Path, tmp_path: Path) -> None:
    weights = "untrained/model.safetensors"
    for seed in (0, 1):
        path = tmp_path / str(seed)
        write_data(path / "data", SMALL, seed=0)
        make_untrained_model(path, seed=seed)
    assert (tmp_path / "0" / weights).read_bytes() == (folder / weights).read_bytes()
    assert (tmp_path / "1" / weights).read_bytes() != (folder / weights).read_bytes()


def test_the_written_recipe_knows_settings_of_every_algorithm(folder: Path) -> None:
    shutil.copytree(folder / "untrained", folder / "pretraining" / "sft", dirs_exist_ok=True)
    for optimizer, beta in (("ppo", None), ("dpo", 0.3), ("ipo", 2.5)):
        resolved = resolve(
            load_recipe(folder / "recipe.toml", flags={"optimizer": optimizer}, overrides=[]), registry()
        )
        assert resolved.run.seed == 7
        assert resolved.notices == ()
        assert getattr(resolved.config("optimizer"), "beta", None) == beta


def test_the_recipe_that_goes_on_from_sft_has_no_first_stages(folder: Path) -> None:
    whole, rest = (tomllib.loads((folder / f"{name}.toml").read_text()) for name in ("recipe", "from-sft"))
    assert whole.keys() - rest.keys() == {"demonstrations", "sft"}
    assert rest["policy"]["model"] == f"{folder}/ppo/sft"
    assert rest["preferences"] == {"plugin": "dataset", "path": f"{folder}/ppo/preferences.jsonl"}
    kept = {key: value for key, value in whole["reward"].items() if key != "train"}
    assert rest["reward"] == {**kept, "model": f"{folder}/ppo/reward"}
    assert all(rest[table] == whole[table] for table in ("run", "prompts", "sampling", "optimizer", "eval"))
