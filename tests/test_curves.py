"""The curves on the algorithms' pages: what is kept of a run, how it is drawn, and that the pages show it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from docs.generate import curves, measured

PAGES = Path(__file__).parent.parent / "docs" / "reference" / "algorithms"
KEPT = json.loads((PAGES.parents[1] / "generate" / "comparison.json").read_text(encoding="utf-8"))
SVG = "{http://www.w3.org/2000/svg}"


def write_run(folder: Path, stages: dict[str, Any], records: list[dict[str, Any]]) -> Path:
    (folder / "run.json").write_text(json.dumps({"stages": stages}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_steps_on_one_batch_of_rollouts_are_one_point(tmp_path: Path) -> None:
    batches = [{"reward": 0.5, "kl": 0.0, "accuracy": 0.1}, {"reward": 0.123456, "kl": 2.0, "accuracy": 0.2}]
    steps = [
        {"stage": "policy", "step": 2 * place + half, **one} for place, one in enumerate(batches) for half in (1, 2)
    ]
    records = [{"stage": "sft", "step": 1, "loss": 9.0}, {"stage": "policy", "step": 1, "planned": 4}, *steps]
    run = write_run(tmp_path, {"align": {"spent": {"prompts": 96}}}, records)
    figures = {"reward": [0.5, 0.1235], "kl": [0.0, 2.0]}
    assert measured.curve(run, "policy") == {"along": "prompts", "x": [0, 48], "figures": figures}


def test_steps_with_the_same_accuracy_are_points_of_their_own(tmp_path: Path) -> None:
    records = [{"stage": "policy", "step": step, "accuracy": 0.5} for step in (1, 2)]
    run = write_run(tmp_path, {"align": {"spent": {"prompts": 20}}}, records)
    assert measured.curve(run, "policy") == {"along": "prompts", "x": [0, 10], "figures": {"accuracy": [0.5, 0.5]}}


def test_a_long_curve_is_thinned_to_means(tmp_path: Path) -> None:
    """58 steps on ten rankings each: 19 points of three, and one of what is left."""
    records = [{"stage": "reward", "step": step, "margin": step, "accuracy": 1 / step} for step in range(1, 59)]
    said = {"spent": {"prompts": 580}, "accuracy": {"value": 0.7}, "prompts": 9}
    found = measured.curve(write_run(tmp_path, {"reward": said}, records), "reward")
    assert found["along"] == "rankings"
    assert found["unseen"] == {"accuracy": 0.7, "prompts": 9}
    assert found["x"] == [10, 40, *range(70, 560, 30), 570]
    assert found["figures"]["margin"] == [2.0, 5.0, *range(8, 58, 3), 58.0]
    assert found["figures"]["accuracy"][0] == 0.6111  # (1 + 1/2 + 1/3) / 3
    assert "loss" not in found["figures"]


def test_what_is_kept_of_a_comparison() -> None:
    def figures(**values: float) -> dict[str, Any]:
        return {name: {"value": value} for name, value in values.items()}

    variant = {
        **figures(gold=3.0, reward=1.0, kl=2.0, win_rate=0.75),
        "spent": {"flops": 2e11, "prompts": 9.0, "seconds": 6.5},
        "memory": 700,
    }
    said = {"start": figures(gold=1.0, reward=-0.5, kl=0.0), "variants": {"dpo": variant}}
    kept = measured.rows(said)
    assert kept["dpo"] == {
        "algorithm": "dpo", "gold": 3.0, "reward": 1.0, "kl": 2.0, "win_rate": 0.75, "flops": 2e11, "memory": 700,
    }  # fmt: skip
    assert kept["sft"] == {"algorithm": "sft", "gold": 1.0, "reward": -0.5, "kl": 0.0}


def test_comparison_json_is_made_from_a_folder_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {name: {"value": 1.0} for name in ("gold", "reward", "kl", "win_rate")}
    variant = {**figures, "spent": {"flops": 1e9}, "memory": 7}
    said = {"failed": {}, "start": figures, "variants": {"dpo": variant}}
    stages = {name: {"spent": {"prompts": 8}} for name in ("sft", "reward", "align")}
    stages["reward"] |= {"accuracy": {"value": 0.7}, "prompts": 9}
    losses = {"comparison/runs/dpo": "pairwise", "rewards/runs/dpo_loss=infonce": "infonce"}
    for place, loss in losses.items():
        records = [
            {"stage": "sft", "step": 1, "loss": 3.0},
            {"stage": "reward", "step": 1, "accuracy": 0.5 if loss == "pairwise" else 0.6},
            {"stage": "policy", "step": 1, "accuracy": 0.9},
        ]
        folder = tmp_path / place / "seed-0"
        folder.mkdir(parents=True)
        write_run(folder, stages, records)
        (folder / "recipe.toml").write_text(f'[reward]\nloss = "{loss}"\n')
    (tmp_path / "comparison/comparison.json").write_text(json.dumps(said))
    monkeypatch.setattr(measured, "INPUTS", tmp_path)
    measured.main(tmp_path)
    text = (tmp_path / "comparison.json").read_text()
    kept = json.loads(text)
    assert set(kept["rows"]) == {"sft", "dpo"}
    assert {name: curve["figures"] for name, curve in kept["curves"].items()} == {
        "dpo": {"accuracy": [0.9]}, "sft": {"loss": [3.0]}, "bradley-terry": {"accuracy": [0.5]},
        "infonce": {"accuracy": [0.6]},
    }  # fmt: skip
    assert text.count('\n  "') == 6  # a line each
    (tmp_path / "comparison/comparison.json").write_text(json.dumps(said | {"failed": {"ppo": "x"}}))
    with pytest.raises(SystemExit, match="failed: ppo"):
        measured.main(tmp_path)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two algorithms on prompts, and one on rankings."""
    kept: dict[str, dict[str, Any]] = {
        "a+": {"along": "prompts", "x": [0, 10, 20], "figures": {"kl": [0.0, 1.0, 4.0], "reward": [1.0, 2.0, 3.0]}},
        "b": {"along": "prompts", "x": [10, 30], "figures": {"kl": [2.0, 3.0]}},
        "c": {
            "along": "rankings",
            "x": [0, 1],
            "figures": {"kl": [0.0, 1.0]},
            "unseen": {"accuracy": 0.5, "prompts": 3},
        },
    }
    monkeypatch.setattr(curves, "measured", lambda: {"curves": kept})


@pytest.mark.usefixtures("two")
def test_a_picture_by_hand() -> None:
    """The area is 216 wide and 150 high, with its corner at (46, 22); the axes end at 0 and 30, and at 0 and 4."""
    pictures = curves.pictures({"a+": "b", "c": "b"})
    assert {path.rpartition("/")[2] for path in pictures} == {
        "a-plus-kl.svg",
        "a-plus-reward.svg",
        "b-kl.svg",
        "c-kl.svg",
    }
    drawn = ElementTree.fromstring(pictures["reference/algorithms/curves/a-plus-kl.svg"])
    lines = [line.attrib for line in drawn.iter(f"{SVG}polyline")]
    assert [line["points"] for line in lines[:2]] == ["46.0,172.0 118.0,134.5 190.0,22.0", "118.0,97.0 262.0,59.5"]
    assert [(line["stroke"], line["stroke-dasharray"]) for line in lines[:2]] == [
        ("var(--c1)", "none"), ("var(--c2)", "6 2"),
    ] == [(line["stroke"], line["stroke-dasharray"]) for line in lines[2:]]  # fmt: skip
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert texts[0] == "KL to the SFT policy, nats a reply"
    assert texts[-3:] == ["prompts", "a+", "b"]
    assert (
        drawn.findtext(f"{SVG}title")
        == "KL to the SFT policy along training: a+ from 0.00 to 4.00, b from 2.00 to 3.00"
    )
    style = drawn.findtext(f"{SVG}style") or ""
    light, dark = style.split("@media(prefers-color-scheme:dark)")
    for part in (light, dark):
        assert re.findall(r"--(\w+):#[0-9a-f]{6};", part) == ["muted", "rule", "c1", "c2"]


@pytest.mark.usefixtures("two")
def test_another_algorithm_stands_beside_where_it_has_the_same_figure_of_the_same_training() -> None:
    pictures = curves.pictures({"a+": "b", "c": "b"})
    assert all(">b<" not in pictures[f"reference/algorithms/curves/{name}.svg"] for name in ("a-plus-reward", "c-kl"))
    caption, images, table = curves.parts("a+", "b")
    assert caption == curves.CAPTIONS["kl"] + "\n"
    assert [line.partition("](")[2] for line in images.splitlines()] == [
        "curves/a-plus-kl.svg)",
        "curves/a-plus-reward.svg)",
    ]
    assert table.splitlines() == [
        "|  | prompts | KL to the SFT policy, a+ | KL to the SFT policy, b | learned reward, a+ |",
        "| --- | --- | --- | --- | --- |",
        "| start | 0 | 0.00 | 2.00 | 1.00 |",
        "| a quarter | 0 | 0.00 | 2.00 | 1.00 |",
        "| half | 10 | 1.00 | 2.00 | 2.00 |",
        "| end | 20 | 4.00 | 3.00 | 3.00 |",
    ]
    assert "50.0% of the pairs of 3 unseen prompts" in next(curves.parts("c", "b"))
    assert list(curves.parts("d", "b")) == []


def test_every_algorithm_that_was_measured_shows_its_curves() -> None:
    assert {*KEPT["rows"], "bradley-terry", "infonce", "plackett-luce"} == set(KEPT["curves"])
    for name, curve in KEPT["curves"].items():
        file = name.replace("+", "-plus")
        text = (PAGES / f"{file}.md").read_text(encoding="utf-8")
        for figure, values in curve["figures"].items():
            picture = f"{file}-{figure.replace('_', '-')}.svg"
            assert re.search(rf"!\[\w.*{re.escape(name)} from .*\]\(curves/{picture}\)", text), f"{name} lacks {figure}"
            drawn = ElementTree.parse(PAGES / "curves" / picture).getroot()
            own = next(drawn.iter(f"{SVG}polyline")).attrib["points"].split()
            assert len(own) == len(values) == len(curve["x"]) <= 30
            heights = [float(point.partition(",")[2]) for point in own]
            assert heights.index(min(heights)) == values.index(max(values)), f"{name}: {figure} is upside down"
        assert ("so the KL is that from it" in text) == ("reference_kl" in curve["figures"])
        assert re.search(rf"^\| end \| {curve['x'][-1]} \|", text, re.MULTILINE), name
