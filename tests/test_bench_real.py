"""The workloads on a pretrained model: what they need, and that both programs train the same adapter."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from alignkit.testing import near
from tests.bench import programs
from tests.bench.clock import Clock
from tests.bench.material import Material, generated, open_material
from tests.bench.real import REAL_MODEL, draw_adapter, make_real_material
from tests.bench.shapes import Shape
from tests.bench.workloads import WORKLOADS, Settings

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = Shape("llama", 512, 32, 48, 2, 4, 2, 1024)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Conversations in the form of the HH file, in words that the tiny model knows."""
    file = tmp_path / "rows.jsonl.gz"
    with gzip.open(file, "wt", encoding="utf-8") as out:
        for number in range(40):
            words = [f"{chr(97 + (number * 7 + place) % 26)}{chr(97 + place % 26)}" for place in range(30)]
            row = {
                "prompt": [{"role": "user", "content": " ".join(words[: 5 + number % 20])}],
                "chosen": [{"role": "assistant", "content": " ".join(words[:6])}],
                "rejected": [{"role": "assistant", "content": " ".join(words[10:22])}],
            }
            out.write(json.dumps(row) + "\n")
    return file


@pytest.fixture
def material(tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> Material:
    """As of the pretrained model, but of a tiny one."""
    generated(SHAPE, tmp_path / "made", torch.float32, rows=4)
    monkeypatch.setenv(REAL_MODEL, str(tmp_path / "made" / "lm"))
    make_real_material(tmp_path / "real", rows)
    return open_material(tmp_path / "real")


def test_without_a_model_or_rows_it_says_what_to_do(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(REAL_MODEL, raising=False)
    with pytest.raises(RuntimeError, match=f"make real-model.*{REAL_MODEL}"):
        make_real_material(tmp_path / "real", rows)
    monkeypatch.setenv(REAL_MODEL, str(tmp_path))
    with pytest.raises(RuntimeError, match="make real-model"):
        make_real_material(tmp_path / "real", rows)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RuntimeError, match=r"there is no .*nowhere"):
        make_real_material(tmp_path / "real", tmp_path / "nowhere.gz")


def test_the_adapter_is_drawn_alike_whatever_wraps_the_model() -> None:
    layers = torch.nn.ModuleDict({"lora_A": torch.nn.Linear(4, 2, bias=False), "lora_B": torch.nn.Linear(2, 4)})
    wrapped = torch.nn.ModuleDict({"policy": torch.nn.ModuleDict({"lora_A": torch.nn.Linear(4, 2, bias=False)})})
    before = layers["lora_B"].weight.clone()
    draw_adapter(layers)
    draw_adapter(wrapped)
    assert torch.equal(layers["lora_A"].weight, wrapped["policy"]["lora_A"].weight)
    assert torch.equal(layers["lora_B"].weight, before)


@pytest.mark.filterwarnings("ignore")  # of TRL
def test_both_programs_train_the_same_adapter(material: Material) -> None:
    workload = replace(WORKLOADS["real-dpo"], groups=2, peer_rows=2)
    settings = Settings(steps=3, threads=1)
    ours, peer = (programs.measure(side, workload, material, settings, Clock()) for side in ("ours", "peer"))
    assert ours["losses"] == near(peer["losses"], terms=SHAPE.vocabulary)
    assert ours["losses"][0] == near(0.6931471805599453, terms=SHAPE.vocabulary)
    assert ours["losses"][2] != ours["losses"][0], "nothing was trained"
    assert ours["probe_seconds"] > 0
    assert ours["load_seconds"] > ours["probe_seconds"]
    assert peer["load_seconds"] > 0


@pytest.mark.filterwarnings("ignore")  # of TRL
def test_online_steps_run_on_both_sides(material: Material) -> None:
    workload = replace(WORKLOADS["real-grpo"], groups=1, responses=2, peer_rows=2, max_new=4)
    for side in ("ours", "peer"):
        figures = programs.measure(side, workload, material, Settings(steps=2, threads=1), Clock())
        assert len(figures["seconds"]) == 2
