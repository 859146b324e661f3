"""Logs of clicks: the fit recovers a known bias and known preferences, while counting picks gets them wrong."""

from __future__ import annotations

import csv
import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_clicks.options import ClicksOptions
from alignkit_clicks.position_bias import Impression, fit, propensity_intervals
from alignkit_clicks.source import Clicks
from alignkit_data.export import write_parquet

from alignkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PROMPTS, READERS = 20, 600
BIAS = (1.0, 0.4)


def a_b_log(seed: int = 0) -> list[Impression]:
    """Items 2p and 2p + 1 of prompt p; the first is twice as strong, but is shown second nine times out of ten.

    So it is picked 0.9 * 0.8 / 1.8 + 0.1 * 2 / 2.4 = 48% of the time; without the bias it would be 67%.
    """
    draw = random.Random(seed)
    log = []
    for prompt in range(PROMPTS):
        better, worse = 2 * prompt, 2 * prompt + 1
        for _ in range(READERS):
            shown = (worse, better) if draw.random() < 0.9 else (better, worse)
            chances = [BIAS[place] * (2.0 if item == better else 1.0) for place, item in enumerate(shown)]
            log.append(Impression(shown, (draw.choices((0, 1), chances)[0],)))
    return log


def test_choices_recover_bias_and_preference_and_the_naive_count_does_not() -> None:
    log = a_b_log()
    found = fit(log, 2 * PROMPTS, choice=True)
    assert found.propensities[1] == pytest.approx(0.4, abs=0.05)
    leads = [found.worth[2 * p] - found.worth[2 * p + 1] for p in range(PROMPTS)]
    assert sum(leads) / PROMPTS == pytest.approx(0.693, abs=0.1)
    assert sum(lead > 0 for lead in leads) >= PROMPTS - 1
    naive = fit(log, 2 * PROMPTS, choice=True, propensities=(1.0, 1.0))
    wrong = [naive.worth[2 * p] - naive.worth[2 * p + 1] for p in range(PROMPTS)]
    assert sum(wrong) / PROMPTS == pytest.approx(-0.08, abs=0.1)
    assert sum(lead > 0 for lead in wrong) <= PROMPTS / 2


def test_examination_recovers_rates_and_the_naive_count_does_not() -> None:
    """Three responses with rates 0.6, 0.45 and 0.3; the best one is mostly shown last."""
    bias, rates = (1.0, 0.6, 0.3), (0.6, 0.45, 0.3)
    draw = random.Random(1)
    log = []
    for _ in range(20000):
        shown = [2, 1, 0]
        if draw.random() < 0.2:
            draw.shuffle(shown)
        picked = tuple(k for k, item in enumerate(shown) if draw.random() < bias[k] * rates[item])
        log.append(Impression(tuple(shown), picked))
    found = fit(log, 3, choice=False)
    assert found.propensities == pytest.approx(bias, abs=0.05)
    assert [2.718281828**worth for worth in found.worth] == pytest.approx(rates, abs=0.04)
    naive = fit(log, 3, choice=False, propensities=(1, 1, 1))
    assert naive.worth[0] < naive.worth[2]


def test_rates_of_known_propensities_by_hand() -> None:
    """Shown once at each of positions 1 and 2, with propensities 1 and 0.5: two picks in 1.5 looks."""
    log = [Impression((0, 1), (0,)), Impression((1, 0), (1,))] * 1000
    found = fit(log, 2, choice=False, propensities=(2.0, 1.0))
    assert 2.718281828 ** found.worth[0] == pytest.approx(2 / 1.5, rel=1e-3)
    assert (found.shown.tolist(), found.picked.tolist()) == ([2000, 2000], [2000, 0])


def test_confidence_by_hand() -> None:
    """Log odds of 200 to 100 picks, in the same places: 0.693 / sqrt(1/200 + 1/100) = 5.66 deviations."""
    log = [Impression((0, 1), (0,)), Impression((1, 0), (1,))] * 5 + [
        Impression((0, 1), (1,)),
        Impression((1, 0), (0,)),
    ] * 4
    found = fit(log, 2, choice=True)
    lead = found.worth[0] - found.worth[1]
    assert lead == pytest.approx(0.2231, abs=0.005)
    assert found.confidence(0, 1) == pytest.approx(0.682, abs=0.003)
    assert found.confidence(0, 1) + found.confidence(1, 0) == pytest.approx(1.0)


def test_unlinked_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="no response links positions 1 and 2, even indirectly"):
        fit([Impression((0, 1), (0,))] * 9, 2, choice=True)
    with pytest.raises(ValueError, match="1 propensities for 2"):
        fit([Impression((0, 1), (0,))] * 9, 2, choice=True, propensities=(1.0,))


def rows(counts: Sequence[tuple[str, str, Any, int]]) -> list[dict[str, Any]]:
    """Rows of one prompt from (shown first, shown second, choice, how often)."""
    return [
        {"prompt": "p", "response_1": one, "response_2": other, "choice": choice, "seconds": 3}
        for one, other, choice, count in counts
        for _ in range(count)
    ]


SWAPPED = [("good", "bad", 1, 40), ("good", "bad", 2, 10), ("bad", "good", 1, 20), ("bad", "good", 2, 30)]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        write_parquet(path, records)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, records[0].keys())
            table.writeheader()
            table.writerows(records)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["log.csv", "log.parquet", "log.jsonl"])
def test_a_log_becomes_a_ranking_with_its_evidence(tmp_path: Path, name: str) -> None:
    source = Clicks(ClicksOptions(path=str(write(tmp_path / name, rows(SWAPPED)))))
    (group,) = source.preferences()
    assert (group.prompt.text, group.responses, group.ranks, group.source) == ("p", ("good", "bad"), (0, 1), "clicks")
    assert group.meta["shown"] == [100, 100]
    assert group.meta["picked"] == [70, 30]
    assert group.meta["weight"] > 0.95
    # Odds 4 = b * s and 2/3 = b / s of first against second: s = sqrt(6), b = sqrt(8 / 3).
    assert group.scores is not None
    assert group.scores[0] - group.scores[1] == pytest.approx(0.896, abs=0.01)
    assert "propensity by position: 1.000, 0.61" in source.explain()


def test_long_logs_and_lists_of_responses_say_the_same(tmp_path: Path) -> None:
    wide = rows(SWAPPED)
    listed = [{"prompt": "p", "responses": [r["response_1"], r["response_2"]], "choice": [r["choice"]]} for r in wide]
    long = [
        {
            "impression": n,
            "prompt": "p",
            "response": r[f"response_{k}"],
            "position": k,
            "clicked": int(r["choice"] == k),
        }
        for n, r in enumerate(wide)
        for k in (2, 1)
    ]
    found = [
        next(Clicks(ClicksOptions(path=str(write(tmp_path / name, records)))).preferences())
        for name, records in (("a.csv", wide), ("b.jsonl", listed), ("c.csv", long))
    ]
    assert found[0] == found[1] == found[2]


def test_estimated_propensities_have_intervals_and_given_ones_have_none(tmp_path: Path) -> None:
    """By the delta method: half the sum of two log odds, of 40 to 10 and 20 to 30, has the deviation 0.5 *
    sqrt(1/40 + 1/10 + 1/20 + 1/30) = 0.228; sqrt(3 / 8) = 0.612."""
    path = str(write(tmp_path / "log.csv", rows(SWAPPED)))
    first, second = Clicks(ClicksOptions(path=path)).figures()["propensities"]
    assert first == 1.0
    assert second["value"] == pytest.approx(0.612, abs=0.01)
    assert second["low"] == pytest.approx(0.612 * 2.718281828 ** (-1.96 * 0.228), abs=0.05)
    assert second["high"] == pytest.approx(0.612 * 2.718281828 ** (1.96 * 0.228), abs=0.1)
    given = Clicks(ClicksOptions(path=path, propensities=(1.0, 0.5)))
    assert given.figures()["propensities"] == [1.0, 0.5]
    assert "propensity by position: 1.000, 0.500\n" in given.explain()


def test_an_interval_covers_a_known_propensity() -> None:
    log = a_b_log()
    found = fit(log, 2 * PROMPTS, choice=True)
    low, high = propensity_intervals(log, found, choice=True)[1]
    assert low < 0.4 < high
    assert high / low < 1.4


@pytest.mark.parametrize("swapped", [2, 4])
def test_a_log_that_can_hardly_tell_is_refused_unless_the_bias_is_known(tmp_path: Path, swapped: int) -> None:
    shown = [
        ("good", "bad", 1, 4000),
        ("good", "bad", 2, 1000),
        ("bad", "good", 1, swapped // 2),
        ("bad", "good", 2, swapped // 2),
    ]
    path = str(write(tmp_path / "log.csv", rows(shown)))
    with pytest.raises(
        InputError, match="can hardly tell position from quality: the propensity of position 2"
    ) as refused:
        list(Clicks(ClicksOptions(path=path)).preferences())
    assert "propensities that you have measured" in str(refused.value)
    (group,) = Clicks(ClicksOptions(path=path, propensities=(1.0, 0.5), min_shown=1)).preferences()
    assert group.ranks == (0, 1)


def test_responses_with_too_little_evidence(tmp_path: Path) -> None:
    path = str(write(tmp_path / "log.csv", [*rows(SWAPPED), *rows([("good", "rare", 1, 5), ("rare", "good", 2, 5)])]))
    (group,) = Clicks(ClicksOptions(path=path)).preferences()
    assert group.responses == ("good", "bad")
    assert next(Clicks(ClicksOptions(path=path, min_shown=10)).preferences()).responses == ("good", "bad", "rare")
    even = write(tmp_path / "even.csv", rows([("good", "bad", 1, 11), ("bad", "good", 1, 10)]))
    (tied,) = Clicks(ClicksOptions(path=str(even), min_confidence=0.9)).preferences()
    assert (tied.ranks, tied.meta["weight"]) == ((0, 0), 0.0)
    with pytest.raises(InputError, match="shown 500 times"):
        list(Clicks(ClicksOptions(path=path, min_shown=500)).preferences())


def test_fast_impressions_and_those_without_a_pick(tmp_path: Path) -> None:
    hasty = [{**row, "seconds": 0.5} for row in rows([("bad", "good", 1, 70)])]
    none = rows([("good", "bad", 0, 10), ("bad", "good", "", 10)])
    path = str(write(tmp_path / "log.csv", [*rows(SWAPPED), *hasty, *none]))
    source = Clicks(ClicksOptions(path=path, min_seconds=1, model="choice"))
    assert next(source.preferences()).meta["shown"] == [100, 100]
    assert "(70 more were too fast)" in source.explain()
    auto = Clicks(ClicksOptions(path=path, min_seconds=1))
    assert next(auto.preferences()).meta["shown"] == [120, 120]
    assert "examination" in auto.explain()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"choice": 3}, "picked position 3 of 2"),
        ({"choice": "left"}, "choice is 'left'"),
        ({"choice": 1.5}, "choice is '1.5'"),
        ({"choice": [1, 2]}, "choice is "),
        ({"response_2": "good"}, "each shown once"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    records = rows(SWAPPED)[:2]
    path = write(tmp_path / "log.csv", [records[0], {**records[1], **change}])
    with pytest.raises(InputError, match=rf"log.csv:3: .*{said}"):
        list(Clicks(ClicksOptions(path=str(path))).preferences())


def test_a_log_always_in_one_order_is_refused_unless_the_bias_is_known(tmp_path: Path) -> None:
    path = str(write(tmp_path / "log.csv", rows([("good", "bad", 1, 60), ("good", "bad", 2, 40)])))
    with pytest.raises(InputError, match="can't be estimated"):
        list(Clicks(ClicksOptions(path=path)).preferences())
    (group,) = Clicks(ClicksOptions(path=path, propensities=(1.0, 0.5))).preferences()
    assert group.ranks == (1, 0)


def test_other_columns_and_no_file(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", [{"a": 1, "b": 2}])
    with pytest.raises(InputError, match="not those of a click log: found a, b"):
        list(Clicks(ClicksOptions(path=str(path))).preferences())
    with pytest.raises(InputError, match="no such file"):
        ClicksOptions(path=str(tmp_path / "none.csv")).check()
