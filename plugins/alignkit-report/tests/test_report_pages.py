"""`alignkit report`: what the answer claims, what a page and the other formats hold, and what is left out."""

from __future__ import annotations

import csv
import json
import re
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_report.compare.table import show_comparison
from alignkit_report.pages import (
    answers,
    charts,
    drawing,
    numbers,
    of_comparison,
    reward_model,
)
from alignkit_report.pages.command import read_document, report
from alignkit_report.pages.document import NUMBER, PERCENT, Column, Document, Section, Table
from alignkit_report.pages.formats import FOLDERS, WRITERS, markdown, table_csv
from alignkit_report.pages.html import write_quick_html
from alignkit_report.pages.replies import within

from alignkit import Group, InputError, Prompt, cli, write_groups

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<img src=x onerror=alert(1)>\u202e"


def estimate(value: float, low: float, high: float, n: int = 512) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "n": n}


def variant(win: dict[str, float], rating: float, kl: float = 3.6, gold: float = 2.0) -> dict[str, Any]:
    return {
        "seeds": [0, 1, 2],
        "rating": estimate(rating, rating - 20, rating + 20),
        "win_rate": win,
        "kl": estimate(kl, kl - 0.2, kl + 0.2),
        "gold": estimate(gold, gold - 0.1, gold + 0.1),
        "reward": estimate(1.0, 0.9, 1.1),
        "words": estimate(20.0, 19.0, 21.0),
        "spent": {"prompts": 1440, "flops": 2.5e14, "response_tokens": None},
        "seconds": 90.0,
        "memory": 700,
    }


def comparison(**changes: Any) -> dict[str, Any]:
    found = {
        "judge": "gold",
        "on": "256 unseen prompts",
        "seeds": [0, 1, 2],
        "budget": "prompts=1440",
        "failed": {},
        "rewards": ["reward", "gold"],
        "start": {
            "kl": estimate(0.0, 0.0, 0.0),
            "gold": estimate(1.0, 0.9, 1.1),
            "reward": estimate(-0.0001, -0.1, 0.1),
        },
        "variants": {
            "dpo": variant(estimate(0.75, 0.70, 0.80), 190.0, kl=2.0, gold=1.8),
            "ppo": variant(estimate(0.85, 0.81, 0.87), 300.0),
        },
        "pairs": [
            {"a": "dpo", "b": "ppo", "win_rate": estimate(0.4, 0.35, 0.45), "p": 0.001, "p_corrected": 0.001},
        ],
    }
    return {**found, **changes}


def with_win(low: float, value: float, high: float, n: int = 512) -> dict[str, Any]:
    return comparison(variants={"ppo": variant(estimate(value, low, high, n), 300.0)}, pairs=[])


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            comparison(),
            "ppo does best: its replies are preferred to the start's in 85% of 512 comparisons [81, 87]; mean KL 3.6 "
            "nats; no sign of over-optimisation.",
        ),
        (with_win(0.81, 0.85, 0.87), "ppo's replies are preferred to the start's in 85% of 512 comparisons [81, 87]; "),
        (with_win(0.49, 0.84, 1.19), "It can't be told whether ppo's replies are better than the start's: they are "),
        (with_win(0.49, 0.84, 1.19), "preferred in 84% of 512 comparisons [49, 100]; "),
        (with_win(0.2, 0.3, 0.4), "ppo's replies are worse than the start's: they are preferred in only 30% of 512 "),
        (
            with_win(1.0, 1.0, 1.0, 19),
            "19 comparisons can't tell whether ppo's replies are better than the start's; mean KL 3.6 nats.",
        ),
        (with_win(1.0, 1.0, 1.0, 20), "ppo's replies are preferred to the start's in 100% of 20 comparisons; "),
        (comparison(pairs=[]), "ppo rates highest: its replies "),
        (comparison(seeds=[4]), "By gold, on 256 unseen prompts, seed 4 alone, which says nothing about other seeds."),
        (comparison(), "By gold, on 256 unseen prompts, 3 seeds."),
        (comparison(), "It differs from dpo (p ≤ 0.05 after correction)."),
        (comparison(pairs=[{"a": "ppo", "b": "dpo", "p_corrected": 0.06}]), "It can't be told from dpo (p > 0.05 "),
        (comparison(failed={"kto, seed 1": "no room"}), "1 run failed: kto, seed 1."),
        (comparison(variants={}), "No algorithm has finished all of its runs."),
        (comparison(start={}), "; without a gold reward, nobody can tell whether it over-optimised."),
        (comparison(start={"gold": estimate(2.3, 2.2, 2.4)}), "; gold falls."),
        (
            comparison(start={"gold": estimate(2.3, 2.2, 2.4), "reward": estimate(0.5, 0.4, 0.6)}),
            "; over-optimised: gold falls while the learned reward rises.",
        ),
        (comparison(start={"gold": estimate(2.3, 2.05, 2.4)}), "; no sign of over-optimisation."),
        (
            comparison(fits={"ppo": {"verdict": "past the peak: KL 9 of 4"}}),
            "; over-optimised, past the peak: KL 9 of 4.",
        ),
        (comparison(fits={"ppo": {"verdict": "before the peak"}}), "; no sign of over-optimisation (before the peak)."),
    ],
)
def test_a_comparison_s_answer_claims_what_its_figures_support(found: dict[str, Any], said: str) -> None:
    assert said in " ".join(answers.of_comparison(found, []))


def test_the_terminal_claims_what_the_report_does(capsys: pytest.CaptureFixture[str]) -> None:
    worse = with_win(0.2, 0.3, 0.4)
    show_comparison(worse)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith(" ".join(answers.of_comparison(worse, [])))
    assert "rating" in printed


def test_alarms_are_said_before_what_was_measured() -> None:
    said = answers.of_comparison(comparison(), [("ppo, seed 0", "Too far."), ("ppo, seed 1", "Too far.")])
    assert said[-2] == "2 alarms fired: read below before you trust the figures."


def run_answer(alarms: list[dict[str, Any]], *, learns: bool = True, **measured: Any) -> list[str]:
    stages = {"eval": {"on": "9 prompts", **measured}}
    return answers.of_run(stages, alarms, ours="PPO", theirs="SFT", learns_from=learns)


def test_a_run_s_answer_says_by_whom_it_was_judged() -> None:
    win = estimate(0.85, 0.81, 0.87)
    said = run_answer([], **{"win_rate/reward": win, "policy": {"kl": estimate(0.123, 0.1, 0.2)}})
    assert said[0].startswith(
        "PPO's replies are preferred to SFT's in 85% of 512 comparisons [81, 87]; mean KL 0.12 nats;"
    )
    assert said[1].startswith("By the reward that it was trained on, which flatters it, on 9 prompts; one run")
    still = run_answer([], **{"win_rate/reward": win, "policy": {"kl": estimate(0.00012, 0.0001, 0.0002)}})
    assert still[0].endswith("; it hardly moved (mean KL 0.0001 nats): try a higher learning rate, or more steps.")
    assert run_answer([], learns=False, **{"win_rate/reward": win})[1].startswith("By the learned reward, on")
    both = {"win_rate/reward": win, "win_rate/rules": win, "win_rate/rules/policy, best of 4": win}
    assert run_answer([], **both)[1].startswith("By rules, on 9 prompts")
    assert run_answer([], **both, **{"win_rate/gold": win})[1].startswith("By gold, on 9 prompts")


def test_an_alarm_for_gold_is_a_sign_of_over_optimisation() -> None:
    measured = {"win_rate/gold": estimate(0.6, 0.55, 0.65), "start": {"gold": estimate(1, 0.9, 1.1)}}
    measured["policy"] = {"gold": estimate(2, 1.9, 2.1)}
    assert run_answer([], **measured)[0].endswith("; no sign of over-optimisation.")
    said = run_answer([{"alarm": "alarm_gold"}], **measured)
    assert "the alarm for over-optimisation fired" in said[0]
    assert said[1] == "An alarm fired: read below before you trust the figures."
    assert "no sign" in run_answer([{"alarm": "alarm_length"}], **measured)[0]


def test_figures_have_as_many_digits_as_their_interval_supports() -> None:
    assert numbers.digits_of([estimate(3.44, 3.36, 3.52)]) == 2
    assert numbers.digits_of([estimate(277, 253, 300)]) == 0
    assert numbers.digits_of([estimate(3.4, 1.9, 4.9)]) == 1
    assert numbers.digits_of([36058, None, "x"]) == 0
    assert numbers.digits_of([0.123456, 0.2]) == 3
    assert numbers.interval(estimate(0.84, -0.2, 1.19), 0, as_percent=True) == "[0, 100]"
    assert [numbers.short(value) for value in (128.0, 0.3517, -3.8649, 0.0001)] == ["128", "0.35", "\u22123.86", "0.00"]
    assert [numbers.duration(seconds) for seconds in (3.42, 95.4, 130, 9000)] == ["3.4 s", "95 s", "2 min", "2.5 h"]


def document(found: dict[str, Any], folder: Path) -> Document:
    return of_comparison.document_of(folder, json.loads(json.dumps(found)))


def titles(found: dict[str, Any], folder: Path) -> list[str]:
    return [section.title for section in document(found, folder).parts]


def test_what_is_not_known_has_no_heading(tmp_path: Path) -> None:
    assert titles(comparison(variants={}), tmp_path) == []
    always = ["Leaderboard", "Who beats whom", "What the gain costs"]
    assert titles(comparison(), tmp_path) == [*always, "How to reproduce"]
    gold = [{"seed": 0, "step": step, "kl": step, "reward": 0.1 * step, "gold": 1.0} for step in (1.0, 2.0)]
    assert "Over-optimisation" in titles(comparison(curves={"ppo": gold}), tmp_path)
    learned = [{key: value for key, value in point.items() if key != "gold"} for point in gold]
    assert "Over-optimisation" not in titles(comparison(curves={"ppo": learned}), tmp_path)
    assert "Runs that failed" in titles(comparison(failed={"kto, seed 0": "no room"}), tmp_path)


def test_the_leaderboard_has_every_figure_and_the_best_first(tmp_path: Path) -> None:
    found = comparison()
    found["variants"]["ppo"]["measures"] = {"self_bleu": estimate(0.4, 0.3, 0.5)}
    found["variants"]["ppo"]["measures"] |= {"win_rate_same_length/gold": estimate(0.7, 0.6, 0.8)}
    table, more = document(found, tmp_path).parts[0].tables
    assert [column.title for column in table.columns] == [
        *(
            "policy",
            "rating",
            "wins over the start",
            "wins at the same length by gold",
            "gold",
            "reward",
            "KL",
            "words",
        ),
    ]
    assert ([column.title for column in more.columns], more.cells()[0][1].text) == (["policy", "self-BLEU"], "40%")
    assert [row[0] for row in table.rows] == ["ppo", "dpo", "start"]
    cells = table.cells()
    assert [(cells[0][place].text, cells[0][place].interval) for place in (1, 2)] == [
        ("300", "[280, 320]"),
        ("85%", "[81, 87]"),
    ]
    assert cells[2][5].text == "0.0"


def test_the_frontier_is_what_nothing_cheaper_beats(tmp_path: Path) -> None:
    found = comparison()
    found["variants"]["kto"] = variant(estimate(0.6, 0.5, 0.7), 50.0, kl=2.5, gold=1.7)
    section = next(one for one in document(found, tmp_path).parts if one.title == "What the gain costs")
    rows = {row[0]: row[-1] for row in section.plots[0].table.rows}
    assert rows == {"start": "yes", "ppo": "yes", "dpo": "yes", "kto": ""}


def test_costs_and_the_command_are_said(tmp_path: Path) -> None:
    sections = {section.title: section for section in document(comparison(), tmp_path).parts}
    costs = sections["What the gain costs"].tables[0]
    assert [column.title for column in costs.columns] == [
        *("policy", "prompts learned from", "seconds of training", "TFLOPs", "peak memory, in MiB"),
    ]
    assert [cell.text for cell in costs.cells()[0]] == ["ppo", "1,440", "90", "250", "700"]
    assert [plot.name for plot in sections["What the gain costs"].plots] == ["frontier"], "all cost the same"
    typed = sections["How to reproduce"].listings[0].text
    assert typed == "alignkit compare RECIPE --optimizers dpo,ppo --seeds 3 --budget prompts=1440"


def test_a_cost_is_plotted_where_policies_differ_in_it(tmp_path: Path) -> None:
    found = comparison()
    found["variants"]["ppo"] |= {"seconds": 120.0, "memory": 800}
    names = [plot.name for section in document(found, tmp_path).parts for plot in section.plots]
    assert names == ["wins", "frontier", "cost-seconds"]


def test_the_calibration_of_a_reward_model_in_either_form() -> None:
    bins = [{"from": 0.5, "to": 0.6, "n": 9, "said": 0.55, "right": 0.5}, {"n": 3, "said": 0.9, "right": 0.7}]
    of = {"categories": {"chat": {"pairs": 4, "accuracy": estimate(0.9, 0.8, 1.0)}}, "reliability": bins}
    section = reward_model.of_stage({"accuracy": estimate(0.8, 0.7, 0.9), **of})
    assert [table.name for table in section.tables] == ["reward-model", "categories"]
    assert [[cell.text for cell in row] for row in section.plots[0].table.cells()] == [
        ["55%", "50%", "9"],
        ["90%", "70%", "3"],
    ]
    assert not reward_model.of_stage({"steps": 3})


def hostile(folder: Path) -> Path:
    """A run whose every text tries to be markup."""
    folder.mkdir()
    figures = {"figures": {"gold": [1.0], "reward": [2.0], "kl": [0.5]}}
    groups = [
        Group(Prompt.of(f"{HOSTILE} {number}"), (f"{HOSTILE} {source}",), source=source, meta=figures)
        for number in range(30)
        for source in ("start", "policy")
    ]
    write_groups(folder / "samples.jsonl", groups)
    record = {"stage": "policy", "kl": 1.0, "reward": 2.0}
    lines = [{**record, "step": step, "kl": step / 7} for step in range(9)]
    lines.append({"stage": HOSTILE, "step": 3, "alarm": "alarm_kl", "text": HOSTILE})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "recipe.toml").write_text('[optimizer]\nplugin = "<i>dpo"\n')
    stages = {"eval": {"on": HOSTILE, "win_rate/gold": estimate(0.6, 0.55, 0.65), "start": {}, "policy": {}}}
    state = {"stages": stages, "argv": ["run", HOSTILE], "versions": {"alignkit": "0.1.0"}, "python": HOSTILE}
    (folder / "run.json").write_text(json.dumps(state))
    return folder


def test_nothing_in_a_page_is_markup_and_nothing_is_loaded(tmp_path: Path) -> None:
    page = write_quick_html(tmp_path / "page.html", read_document(hostile(tmp_path / "<run>"))).read_text()
    assert not re.search("<img|<i>|<run>|\u202e|https?://(?!www.w3.org)", page)
    assert "Single replies" not in page, "its plots need Altair"
    assert page.count("&lt;img src=x onerror=alert(1)&gt;\\u202e") > 60
    assert "script-src &#39;sha256-" in page or "script-src 'sha256-" in page


def test_markdown_shows_texts_as_they_are(tmp_path: Path) -> None:
    said = markdown(read_document(hostile(tmp_path / "run")))
    assert "\\<img src=x onerror=alert(1)\\>" in said
    listed = [line for line in said.splitlines() if line.startswith("    ")]
    assert said.count("<img") - said.count("\\<img") == sum(line.count("<img") for line in listed) > 0
    assert said.startswith("# run\n\n\\<i\\>dpo's replies are preferred to the start's in 60% of 512 comparisons")


def test_a_table_as_csv_has_both_ends_of_intervals() -> None:
    columns = [Column("policy"), Column("wins", PERCENT), Column("steps", NUMBER)]
    table = Table("t", columns, [["ppo", estimate(0.5, 0.4, 0.6), 3], ["=1+1", None, None]])
    assert list(csv.reader(table_csv(table).splitlines())) == [
        ["policy", "wins", "wins low", "wins high", "steps"],
        ["ppo", "0.5", "0.4", "0.6", "3"],
        ["'=1+1", "", "", "", ""],
    ]


def test_a_page_has_room_for_so_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    from alignkit_report.pages.document import Reply, Sample

    monkeypatch.setattr("alignkit_report.pages.replies.MOST_CHARACTERS", 25)
    samples = [Sample("12345", [Reply("a", "12345")], 0.0)] * 4
    assert len(within(samples)) == 2
    assert len(within([Sample("x" * 99, [], 0.0)])) == 1, "one is always shown"


def test_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "versus"
    folder.mkdir()
    (folder / "comparison.json").write_text(json.dumps(comparison()))
    for form in ("md", "json", "csv"):
        report(folder, form)
    assert "ppo does best" in capsys.readouterr().out
    assert (folder / "report.md").read_text().startswith("# versus\n\nppo does best")
    found = json.loads((folder / "report.json").read_text())
    assert found["tables"]["leaderboard"][0]["wins over the start"] == estimate(0.85, 0.81, 0.87)
    rows = list(csv.DictReader((folder / "report-csv" / "leaderboard.csv").read_text().splitlines()))
    assert [row["gold low"] for row in rows] == ["1.9", "1.7", "0.9"]
    report(folder / "comparison.json", "json", tmp_path / "mine.json", as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert (printed["kind"], printed["written"]) == ("comparison", [str(tmp_path / "mine.json")])
    assert set(FOLDERS) < set(WRITERS) == {"html", "md", "json", "csv", "png"}


def test_preferences_have_a_report(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    groups = [Group(Prompt.of(f"ask {number}"), ("a longer reply", "short"), ranks=(0, 1)) for number in range(30)]
    write_groups(path, groups)
    found = read_document(path)
    assert found.answer[0] == "30 ordered pairs of replies to 30 prompts; the longer reply wins in 100% of them."
    assert {"Counts", "Length"} <= {section.title for section in found.parts}
    report(path, "md", quiet=True)
    assert (tmp_path / "pairs-report.md").is_file()


@pytest.mark.parametrize(
    ("name", "form", "said"),
    [
        ("nothing", "html", "holds no run, comparison or preferences"),
        ("nothing", "pdf", "one of html, md, json, csv, png"),
        ("broken", "html", "is damaged"),
    ],
)
def test_wrong_sources_and_formats_are_refused(tmp_path: Path, name: str, form: str, said: str) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "comparison.json").write_text("{")
    with pytest.raises(InputError, match=said):
        report(tmp_path / name, form)


def test_the_command_is_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not any(point.name == "report" for point in entry_points(group="alignkit.commands")):
        pytest.skip("alignkit-report was installed before it had this command: install it again")
    run = hostile(tmp_path / "run")
    assert cli.run(["report", str(run), "--format", "json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == [str(run / "report.json")]
    assert cli.run(["report", str(tmp_path), "--quiet"]) == 2


@pytest.mark.slow
def test_plots_as_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "versus"
    folder.mkdir()
    (folder / "comparison.json").write_text(json.dumps(comparison()))
    report(folder, "png", tmp_path / "plots", quiet=True)
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    assert pictures.keys() == {"wins.png", "frontier.png"}
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 2000 for picture in pictures.values())


@pytest.mark.slow
def test_a_drawing_has_the_page_s_colours_and_its_numbers_whole() -> None:
    rows = [{"policy": f"a{HOSTILE}", "x": x, "y": x / 1000, "low": 0, "high": x / 999} for x in (1.0, 5.0)]
    drawn = drawing.svg(charts.curves(rows, {f"a{HOSTILE}": 2}, ("step", HOSTILE), 330))
    assert "var(--c2)" in drawn
    assert "currentColor" not in drawn, "no ink in this one"
    assert ">0.005<" in drawn
    assert not re.search(r"#[0-9a-f]{6}|role=|aria-|<img|\u202e", drawn)
    assert "&lt;img src=x" in drawn


def test_sections_are_found_by_their_headings() -> None:
    assert Section("What the gain costs").slug == "what-the-gain-costs"
