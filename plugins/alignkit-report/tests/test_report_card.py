"""Model cards: what they say of a run, and that people's own stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from alignkit_report.card import MARK, card, write_report

from alignkit import Run

ESTIMATE = {"value": 0.85, "low": 0.81, "high": 0.875, "n": 512}
EVAL = {
    "on": "9 prompts, 2 of them trained on",
    "trained_on": 2,
    "unknown_before": ["base"],
    "start": {"reward": {"value": -0.0, "low": -0.5, "high": 0.5, "n": 18}},
    "policy": {"reward": ESTIMATE, "finished": 0.75},
    "win_rate/reward": ESTIMATE,
}
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""SHA-256 of nothing (FIPS 180-4, example)."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    for model in ("policy", "reward"):
        (path / model).mkdir(parents=True)
        (path / model / "config.json").write_text("{}")
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    recipe = f'[run]\nseed = 7\n[policy]\nplugin = "hf"\nmodel = "{base}"\n[optimizer]\nplugin = "dpo"\n'
    (path / "recipe.toml").write_text(recipe)
    reward = {"accuracy": ESTIMATE, "on": "9 unseen prompts", "shorter_wins": ESTIMATE, "worth": "AI | labels"}
    state = {"stages": {"reward": reward, "eval": EVAL}, "argv": ["run", "a b.toml"], "versions": {"torch": "2.13"}}
    (path / "run.json").write_text(json.dumps(state))
    (path / "preferences.jsonl").touch()
    alarm = {"stage": "policy", "step": 4, "alarm": "alarm_kl", "text": "the KL is high"}
    (path / "metrics.jsonl").write_text(json.dumps(alarm) + "\n")
    return path


def header(text: str) -> Any:
    _, found, _ = text.split("---\n", 2)
    return yaml.safe_load(found)


def test_the_card_of_a_policy(folder: Path) -> None:
    text = card(Run.open(folder), "policy")
    assert header(text) == {
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["alignkit", "dpo"],
    }
    assert "aligned by `dpo`" in text
    assert "On 9 prompts, 2 of them trained on." in text
    assert "| reward | 0 [-0.5, 0.5], n = 18 | 0.85 [0.81, 0.875], n = 512 |" in text
    assert "| finished |  | 0.75 |" in text
    assert "| win_rate by reward |  | 0.85 [0.81, 0.875], n = 512 |" in text
    assert f"| preferences.jsonl | 0 | {EMPTY} |" in text
    assert "- One run, seed 7:" in text
    assert "- 2 of the prompts it was measured on were trained on." in text
    assert "- policy, step 4: the KL is high" in text
    assert "alignkit run 'a b.toml'" in text
    assert "With torch 2.13" in text


def test_the_card_of_a_reward_model(folder: Path) -> None:
    text = card(Run.open(folder), "reward")
    assert header(text)["pipeline_tag"] == "text-classification"
    assert "- Accuracy on preferences: 0.85 [0.81, 0.875], n = 512, on 9 unseen prompts." in text
    assert "Nothing was measured" in text
    assert "win_rate" not in text


def test_a_public_base_is_named_and_no_licence_is_invented(folder: Path) -> None:
    (folder / "recipe.toml").write_text('[policy]\nmodel = "org/base"\n[optimizer]\nplugin = "ppo"\n')
    text = card(Run.open(folder), "policy")
    assert header(text)["base_model"] == "org/base"
    assert "license" not in header(text)
    assert "Not known" in text


def test_the_home_folder_is_not_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: folder.parent)
    text = card(Run.open(folder), "policy")
    assert "`~/base`" in text
    assert str(folder.parent) not in text


def test_a_card_of_ones_own_stays(folder: Path) -> None:
    own = folder / "policy" / "README.md"
    assert write_report(Run.open(folder)).split(", ") == [
        str(folder / name / "README.md") for name in ("reward", "policy")
    ]
    assert MARK in own.read_text()
    own.write_text(own.read_text().replace(MARK, "mine"))
    assert write_report(Run.open(folder)) == str(folder / "reward" / "README.md")
    assert "mine" in own.read_text()
