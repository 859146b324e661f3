"""Over-optimisation: fits against curves of known laws, frontiers by hand, real runs."""

from __future__ import annotations

import json
import tomllib
from math import e, inf
from typing import TYPE_CHECKING

import numpy as np
import pytest
from alignkit_report.overopt import best_of, fit
from alignkit_report.overopt.curves import Course, as_toml, lost_by_alarm, means_of, rows_of, tracking
from alignkit_report.overopt.findings import of_comparison, of_run
from alignkit_report.overopt.frontier import cost_frontier, frontier, optimal

from alignkit import Run, cli, read_groups
from alignkit.commands import read_recipe
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


ALPHA, BETA = 2.0, 0.8
PEAK_D, PEAK_GAIN = e**1.5, 0.8 * e**1.5  # exp(alpha / beta - 1), and beta times it


def training(starts: list[float], noise: float, seed: int, most: float = 60.0) -> list[list[dict[str, float]]]:
    """Rows of runs whose gold follows the law of reinforcement learning."""
    draw = np.random.default_rng(seed)
    kls = np.linspace(0, most, 60)
    d = np.sqrt(kls)
    gold = d * (ALPHA - BETA * np.log(np.maximum(d, 1e-9)))
    return [
        [{"kl": kl, "gold": start + one + noise * draw.normal()} for kl, one in zip(kls, gold, strict=True)]
        for start in starts
    ]


def test_the_law_of_training_is_found() -> None:
    exact = fit.fit_training(training([1.0, 1.5], 0.0, 0))
    assert exact is not None
    assert exact.starts == pytest.approx([1.0, 1.5], abs=1e-6)
    assert (exact.alpha.value, exact.beta.value) == pytest.approx((ALPHA, BETA), abs=1e-6)
    assert (exact.peak_kl.value, exact.peak_gain.value) == pytest.approx((PEAK_D**2, PEAK_GAIN), abs=1e-4)
    assert exact.measured == pytest.approx((60 / 59, 60))
    assert exact.problem == ""
    assert exact.gain(25.0) == pytest.approx(5 * (2 - 0.8 * 1.6094379), abs=1e-4)


def test_the_law_of_best_of_n_is_found() -> None:
    kl = np.array([best_of.kl_of(n) for n in best_of.sizes(512)])
    d = np.sqrt(kl)
    draw = np.random.default_rng(1)
    shifts = draw.normal(size=(2, 50))
    gold = (d * (1.5 - 0.5 * d))[:, None, None] + shifts
    exact = fit.fit_best_of(kl, gold)
    assert exact is not None
    assert exact.starts == pytest.approx(shifts.mean(axis=1))
    assert (exact.alpha.value, exact.beta.value) == pytest.approx((1.5, 0.5))
    assert (exact.peak_kl.value, exact.peak_gain.value) == pytest.approx((2.25, 1.125))
    assert exact.problem == ""


def share_that_holds(kind: str, simulations: int = 60) -> dict[str, float]:
    """How often the intervals hold the truth of simulated curves with noise."""
    held = {"alpha": 0, "beta": 0, "peak": 0}
    for seed in range(simulations):
        if kind == "rl":
            found, truth = fit.fit_training(training([1.0], 0.3, seed)), (ALPHA, BETA, PEAK_D**2)
        else:
            draw = np.random.default_rng(seed)
            kl = np.array([best_of.kl_of(n) for n in best_of.sizes(256)])
            of_prompts = 1.5 + 0.5 * draw.normal(size=(1, 1, 80))
            d = np.sqrt(kl)[:, None, None]
            found, truth = fit.fit_best_of(kl, d * (of_prompts - 0.5 * d) + draw.normal(size=(1, 1, 80))), (1.5, 0.5, 0)
            assert found is not None
            truth = (1.5, 0.5, 2.25)
        assert found is not None
        for name, one, true in zip(held, (found.alpha, found.beta, found.peak_kl), truth, strict=True):
            held[name] += one.low <= true + 1e-9 and true - 1e-9 <= one.high
    return {name: count / simulations for name, count in held.items()}


@pytest.mark.parametrize("kind", ["rl", "best-of-n"])
def test_intervals_hold_the_truth(kind: str) -> None:
    assert all(share >= 0.88 for share in share_that_holds(kind).values())


def test_what_is_no_better_than_a_line_has_no_peak() -> None:
    draw = np.random.default_rng(2)
    rows = [{"kl": kl, "gold": 0.5 * kl**0.5 + 0.2 * draw.normal()} for kl in np.linspace(0, 20, 40)]
    found = fit.fit_training([rows])
    assert found is not None
    assert found.problem == "no peak: a straight line fits as well"
    assert found.peak_kl.high == inf
    said = fit.to_json(found, "x")
    assert said["high"] is None
    json.dumps(said, allow_nan=False)


def test_a_peak_that_was_not_measured_does_not_count() -> None:
    found = fit.fit_training(training([0.0], 0.0, 0, most=12.0))  # the peak is at 20
    assert found is not None
    assert found.problem == "no peak within what was measured, 0.2 to 12 nats"
    assert fit.verdict(found, 3.0, 1.0) == found.problem


def test_too_few_points_are_not_fitted() -> None:
    assert fit.fit_training([training([0.0], 0.0, 0)[0][:5]]) is None
    assert fit.fit_training([[{"kl": 1.0, "reward": 1.0}] * 9]) is None
    assert fit.fit_training([[{"kl": 0.0, "gold": 1.0}] * 9]) is None
    assert fit.fit_best_of(np.arange(4.0), np.zeros((4, 1, 9))) is None


@pytest.mark.parametrize(
    ("kl", "gain", "said"),
    [
        (5.0, 1.0, "before the peak: KL 5.0 of 10.0, 50% of the peak's gain"),
        (8.0, 1.9, "at the peak: KL 8.0 of 10.0, 95% of the peak's gain"),
        (13.0, -0.5, "past the peak: KL 13.0 of 10.0, -25% of the peak's gain"),
    ],
)
def test_where_a_run_stands(kl: float, gain: float, said: str) -> None:
    sure = fit.Interval(1.0, 0.5, 1.5)
    one = fit.Fit("rl", (0.0,), sure, sure, fit.Interval(10, 7, 12), fit.Interval(2, 1, 3), (0.1, 40))
    assert fit.verdict(one, kl, gain) == said


def test_peaks_by_hand() -> None:
    kl, gain = fit.peaks("best-of-n", np.array([2.0, -1.0, 1.0]), np.array([0.5, 0.5, -0.1]))
    assert kl.tolist() == [4.0, 0.0, inf]
    assert gain.tolist() == [2.0, 0.0, inf]
    kl, gain = fit.peaks("rl", np.array([1.0, 3.0]), np.array([1.0, 0.0]))
    assert kl.tolist() == [1.0, inf]
    assert gain.tolist() == [1.0, inf]


def test_only_what_is_beaten_is_not_optimal() -> None:
    costs = [1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 0.5]
    values = [5.0, 5.0, 4.0, 6.0, 5.0, 7.0, 1.0]
    assert optimal(costs, values) == [True, True, False, True, False, True, True]
    assert optimal([], []) == []


def test_steps_on_the_same_batch_are_one_row() -> None:
    one, two = {"kl": 0.0, "reward": 1.0, "gold_reward": 3.0}, {"kl": 0.5, "reward": 2.0, "gold_reward": 2.5}
    records = [{"step": step, "loss": step, **(one if step < 3 else two)} for step in (1, 2, 3, 4)]
    assert rows_of(records) == [
        {"step": 0, "kl": 0.0, "reward": 1.0, "gold": 3.0},
        {"step": 2, "kl": 0.5, "reward": 2.0, "gold": 2.5},
    ]
    assert rows_of([{"step": 1, "loss": 1.0}]) == []


def test_batches_are_averaged() -> None:
    rows = [{"step": step, "kl": float(step), "gold": 2.0 * step} for step in range(5)]
    assert means_of(rows, 2) == [
        {"step": 1, "kl": 0.5, "gold": 1.0},
        {"step": 3, "kl": 2.5, "gold": 5.0},
        {"step": 4, "kl": 4.0, "gold": 8.0},
    ]


def test_what_is_lost_by_the_alarm() -> None:
    golds = [1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 2.5, 2.0, 1.5, 0.0]
    rows = [{"step": 4.0 * place, "kl": 1.0, "gold": gold} for place, gold in enumerate(golds)]
    # The best five batches score 3; around the alarm they score 2.5, 2 and 1.5; the start scored 1.
    assert lost_by_alarm(Course(0, rows, {}, {}, 44, alarm=32)) == pytest.approx(0.5)
    assert lost_by_alarm(Course(0, rows, {}, {}, 44)) is None
    fallen = [{"step": 4.0 * place, "kl": 1.0, "gold": -gold} for place, gold in enumerate(golds)]
    assert lost_by_alarm(Course(0, fallen, {}, {}, 44, alarm=32)) is None


def test_the_frontier_holds_evaluations_and_means_of_batches() -> None:
    rows = [{"step": 2 * place, "kl": float(place), "gold": 1.0, "reward": 0.0} for place in range(5)]
    courses = {
        "ppo": [Course(0, rows, {}, {"kl": 3.0, "gold": 0.9, "reward": 2.0}, 10)],
        "dpo": [Course(0, [], {}, {"kl": 2.5, "gold": 2.0, "reward": 1.0}, 4), Course(1, [], {}, {}, 4)],
    }
    assert frontier(courses, "gold") == [
        {"variant": "ppo", "seed": 0, "step": 8, "kl": 2.0, "gold": 1.0, "pareto": True},
        {"variant": "ppo", "seed": 0, "step": 10, "kl": 3.0, "gold": 0.9, "pareto": False},
        {"variant": "dpo", "seed": 0, "step": 4, "kl": 2.5, "gold": 2.0, "pareto": True},
    ]
    assert [row["pareto"] for row in frontier(courses, "reward")] == [True, True, True]


def test_the_win_rate_against_each_cost() -> None:
    rows = {
        "ppo": {"seconds": 9.0, "tokens": 50, "memory": 700, "win_rate": {"value": 0.8}},
        "dpo": {"seconds": 3.0, "tokens": 60, "memory": None, "win_rate": {"value": 0.7}},
        "kto": {"seconds": 4.0, "tokens": 50, "memory": 900, "win_rate": {"value": 0.6}},
    }
    found = cost_frontier(rows)
    assert found[0] == {"variant": "ppo", "cost": 9.0, "value": 0.8, "unit": "seconds", "pareto": True}
    marked = {(row["variant"], row["unit"]) for row in found if row["pareto"]}
    assert marked == {("ppo", "seconds"), ("dpo", "seconds"), ("ppo", "tokens"), ("ppo", "MiB")}
    assert ("dpo", "MiB") not in {(row["variant"], row["unit"]) for row in found}


def test_gold_and_the_kl_are_measured_where_they_can_be(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "model")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[policy]\nmodel = "{tmp_path}/model"\n[preferences]\npath = "pairs.jsonl"\n'
        '[reward]\nplugin = "function"\nfunction = "zeros:zero"\n[sampling]\nmax_tokens = 6\n'
        '[eval.rewards]\ngold = {plugin = "function", function = "zeros:zero"}\n'
    )
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (tmp_path / "zeros.py").write_text("def zero(prompts, completions):\n    return [0.0 for _ in completions]\n")

    def found(optimizer: str, *options: str) -> tuple[str, ...]:
        given = [f"preferences.path={tmp_path}/pairs.jsonl", *options]
        return tracking(read_recipe(recipe, flags={"optimizer": optimizer}, overrides=given))

    gold = 'optimizer.stop.gold={"plugin" = "function", "function" = "zeros:zero"}'
    assert found("dpo") == ()
    assert found("rloo", "optimizer.kl_coef=0") == (gold, "optimizer.track_kl=true")
    assert found("rloo", "optimizer.kl_coef=0.1") == (gold,)
    assert found("rloo", "optimizer.kl_coef=0.1", gold) == ()


def test_values_are_written_as_toml() -> None:
    value = {"plugin": "sum", "sources": [{"plugin": "a b", "x": 0.5}, {"ok": True}], "n": 3}
    assert tomllib.loads(f"key = {as_toml(value)}") == {"key": value}


def write_run(folder: Path, seed: int) -> Path:
    """A run directory of PPO whose gold follows the law, two steps to each batch."""
    folder.mkdir(parents=True)
    rows = training([1.0], 0.05, seed)[0]
    records = [
        {"stage": "policy", "step": 2 * place + step, "kl": row["kl"], "reward": place / 10, "gold_reward": row["gold"]}
        for place, row in enumerate(rows)
        for step in (1, 2)
    ]
    alarm = {"stage": "policy", "step": 1.0, "alarm": "alarm_kl", "value": 99.0, "threshold": 30.0, "text": "far"}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*records, alarm]))
    said = {name: {"kl": {"value": kl}, "reward": {"value": kl}, "gold": {"value": gold}}
            for name, kl, gold in (("start", 0.0, 1.0), ("policy", 61.0, 3.9))}  # fmt: skip
    stages = {"align": {"steps": 120, "seconds": 1.0}, "eval": {"on": "4 unseen prompts", **said}}
    (folder / "run.json").write_text(json.dumps({"stages": stages}))
    (folder / "recipe.toml").write_text(f'[run]\nseed = {seed}\n[optimizer]\nplugin = "ppo"\n')
    return folder


def test_what_a_run_says(tmp_path: Path) -> None:
    found = of_run(Run.open(write_run(tmp_path / "run", 3)))
    assert set(found) == {"curves", "best_of_n", "fits", "frontier"}
    assert found["curves"]["ppo"][1] == {
        "seed": 3, "step": 2, "kl": 1.0169, "reward": 0.1, "gold": pytest.approx(3.0, abs=0.3)
    }  # fmt: skip
    assert len(found["curves"]["ppo"]) == 60
    assert found["best_of_n"] == {}
    one = found["fits"]["ppo"]
    assert one["kind"] == "rl"
    assert one["low"] < PEAK_D**2 < one["high"]
    assert one["peak_gold"] == pytest.approx(1 + PEAK_GAIN, abs=0.1)
    # The last five of sixty batches end at KL 60: their mean is 60 less two steps of 60 / 59.
    assert one["verdict"].startswith("past the peak: KL 58.0 of ")
    gain = 58**0.5 * (ALPHA - BETA * 0.5 * np.log(58)) / PEAK_GAIN
    assert int(one["verdict"].split(", ")[1].split("%")[0]) == pytest.approx(100 * gain, abs=3)
    assert one["runs"] == [{"seed": 3, "verdict": one["verdict"], "lost_by_alarm": None}]
    assert found["frontier"][-1] == {
        "variant": "ppo", "seed": 3, "step": 120, "kl": 61.0, "gold": 3.9, "pareto": False
    }  # fmt: skip
    assert len(found["frontier"]) == 13


def test_a_run_knows_its_first_alarm_on_gold(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 3)
    with (folder / "metrics.jsonl").open("a") as lines:
        for step in (71.0, 91.0):
            lines.write(json.dumps({"stage": "policy", "step": step, "alarm": "alarm_gold", "text": ""}) + "\n")
    assert Course.read(folder, 3).alarm == 70
    assert of_run(Run.open(folder))["fits"]["ppo"]["runs"][0]["lost_by_alarm"] == pytest.approx(0.04, abs=0.04)


def test_what_a_comparison_says(tmp_path: Path) -> None:
    runs = {"ppo": [(seed, write_run(tmp_path / str(seed), seed)) for seed in (0, 1)]}
    draw = np.random.default_rng(5)
    learned = draw.normal(size=(2, 40, 64))
    gold = learned - 0.35 * learned**2  # highest where the learned reward is 1.4
    found = of_comparison(runs, {"best of n": list(zip(learned, gold, strict=True))})
    assert [row["seed"] for row in found["curves"]["ppo"]] == [0] * 60 + [1] * 60
    rows = found["best_of_n"]["best of n"]
    assert [row["n"] for row in rows] == [1, 2, 4, 8, 16, 32, 64]
    golds, rewards = [row["gold"] for row in rows], [row["reward"] for row in rows]
    assert rewards == sorted(rewards)
    assert golds[0] < golds[-1] < max(golds)
    one = found["fits"]["best of n"]
    assert one["kind"] == "best-of-n"
    assert one["verdict"].startswith("past the peak")
    assert [run["seed"] for run in found["fits"]["ppo"]["runs"]] == [0, 1]
    json.dumps(found, allow_nan=False)


LENGTHS = """
def long(prompts, completions):
    return [float(len(text)) for text in completions]

def short(prompts, completions):
    return [-float(len(text)) for text in completions]
"""
RECIPE = """
[policy]
model = "model"
[run]
holdout = 0.5
[preferences]
path = "pairs.jsonl"
[reward]
plugin = "function"
function = "lengths:long"
[eval]
count = 3
rewards = { gold = { plugin = "function", function = "lengths:short" } }
[optimizer]
plugin = "rloo"
iterations = 6
batch_size = 2
group_size = 2
minibatch_size = 2
n_epochs = 1
[sampling]
max_tokens = 5
"""


@pytest.mark.slow
def test_a_real_comparison_measures_gold_along_training_and_along_best_of_n(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_llama(tmp_path / "model")
    pairs = [{"prompt": f"{a}{b}", "chosen": "abab", "rejected": "a"} for a in "abcdef" for b in "ab"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "lengths.py").write_text(LENGTHS)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    words = ["compare", "recipe.toml", "--seeds", "2", "--best-of", "8", "--json"]
    assert cli.run(words) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed)
    curve = found["curves"]["recipe"]
    assert [(row["seed"], row["step"]) for row in curve] == [(seed, step) for seed in (0, 1) for step in range(6)]
    assert all(row["gold"] == pytest.approx(-row["reward"], abs=1e-3) for row in curve)
    assert curve[0]["kl"] == 0
    rows = found["best_of_n"]["best of n"]
    assert [row["n"] for row in rows] == [1, 2, 4, 8]
    assert all(row["gold"] == -row["reward"] for row in rows)
    # By hand: the mean and the largest of all the lengths in each pool.
    pools = [list(read_groups(path)) for path in sorted((tmp_path / "comparison/shared").glob("best-of-8-*.jsonl"))]
    assert [len(pool) for pool in pools] == [3, 3]
    lengths = np.array([[[len(text) for text in group.responses] for group in pool] for pool in pools])
    assert rows[0]["reward"] == pytest.approx(lengths.mean(), abs=1e-4)
    assert rows[3]["reward"] == pytest.approx(lengths.max(axis=2).mean(), abs=1e-4)
    assert {row["unit"] for row in found["cost_frontier"]} == {"seconds", "tokens", "MiB"}
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "comparison/shared").glob("*.jsonl")}
    assert len(kept) == 4
    assert cli.run(words) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert cli.run([*words, "--sweep", "reward.function=lengths:short", "--out", "other", "-o", "eval.rewards={}"]) == 2
    assert "needs a learned reward that chooses and gold that judges the choice" in capsys.readouterr().err
