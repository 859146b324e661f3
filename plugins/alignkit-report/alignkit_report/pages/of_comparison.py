"""A comparison as a report: its comparison.json, and the runs beside it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from alignkit import Run
from alignkit_report.compare.cells import Variant
from alignkit_report.compare.ranked import BESIDE
from alignkit_report.pages import answers, charts, overopt, replies, reward_model, series
from alignkit_report.pages.colours import START
from alignkit_report.pages.document import (
    NUMBER,
    PERCENT,
    Column,
    Document,
    KeyFigure,
    Listing,
    Plot,
    Section,
    Table,
)
from alignkit_report.pages.numbers import (
    digits_of,
    duration,
    interval,
    is_estimate,
    is_number,
    number,
    percent,
    within_0_and_1,
)
from alignkit_report.pages.of_run import settings
from alignkit_report.pages.policies import figures_of, tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignkit import Group

    Runs = Mapping[str, Mapping[int, Run]]

START_NAME = "start"
PRICE_LEAD = "Joined: the best at their price; every other policy is beaten by one that costs no more."
SEEDS_LEAD = "Lines: means over seeds. Bands: lowest to highest seed. A step is one update of the weights."
COSTS = {
    "prompts": "prompts learned from",
    "response_tokens": "tokens of responses",
    "seconds": "seconds of training",
    "flops": "TFLOPs",
    "memory": "peak memory, in MiB",
}
PLOTTED = ("response_tokens", "seconds", "flops", "memory")
TERA = 1e12
TELLS = 1.25
"""How much more the dearest must have cost than the cheapest for a plot of it to tell anything."""


def document_of(folder: Path, found: Mapping[str, Any]) -> Document:
    """The report of a comparison.

    Args:
        folder: of the comparison; its runs may be missing.
        found: what comparison.json says.
    """
    variants = found.get("variants", {})
    ranked = answers.by_rating(found) if variants else []
    numbers = {START_NAME: START} | {name: place for place, name in enumerate(variants, start=1)}
    runs = runs_of(folder, ranked)
    metrics = {name: [run.metrics for run in of_seeds.values()] for name, of_seeds in runs.items()}
    alarms = [
        (f"{name}, seed {seed}, before step {said['step']:.0f}", said["text"])
        for name, of_seeds in runs.items()
        for seed, run in of_seeds.items()
        for said in run.alarms
    ]
    samples = _samples(runs)
    first = next((run for of_seeds in runs.values() for run in of_seeds.values()), None)
    judge = found.get("judge", "").removesuffix(BESIDE)  # its places stand in no run
    lead = f"The first seed's first reply to each prompt, first where the policies are furthest apart by {judge}."
    sections = (
        Section("Leaderboard", _legend(found), leaderboard(found, ranked, numbers) if ranked else ()),
        Section("Who beats whom", _pairs_lead(found), *_pairs(found, ranked, numbers)),
        Section("What the gain costs", PRICE_LEAD, _costs(found, ranked, numbers), _prices(found, ranked, numbers)),
        overopt.section(found, numbers),
        Section("Learning curves", SEEDS_LEAD, plots=series.curves(metrics, numbers, "policy"), legend=list(metrics)),
        _single(samples, numbers, _rewards(found)),
        Section("Samples", lead, samples=replies.side_by_side(samples, judge)),
        reward_model.of_comparison(found.get("reward_models", {}), _agreement(samples, numbers, ranked, judge)),
        Section("Runs that failed", "", [_failed(found)] if found.get("failed") else ()),
        Section("Settings", _budget(found), listings=settings(first) if first else ()),
        Section("How to reproduce", "", listings=_reproduce(found, first)),
    )
    answer = answers.of_comparison(found, alarms)
    title = folder.resolve().name
    return Document("comparison", title, answer, _figures(found, ranked), alarms, sections, numbers if ranked else {})


def runs_of(folder: Path, names: Sequence[str]) -> dict[str, dict[int, Run]]:
    """The run directories of each variant, by seed."""
    found: dict[str, dict[int, Run]] = {}
    for name in names:
        below = (folder / "runs" / Variant(name).folder).glob("seed-*/run.json")
        by_seed = {int(path.parent.name.removeprefix("seed-")): Run.open(path.parent) for path in below}
        if by_seed:
            found[name] = dict(sorted(by_seed.items()))
    return found


def _samples(runs: Runs) -> dict[str, Sequence[Group]]:
    """The samples of each variant's first seed, and of the start of the first of them."""
    found: dict[str, Sequence[Group]] = {}
    for name, of_seeds in runs.items():
        groups = next(iter(of_seeds.values())).samples
        if START_NAME not in found:
            found[START_NAME] = [group for group in groups if group.source == "start"]
        found[name] = [group for group in groups if group.source == "policy"]
    return {name: groups for name, groups in found.items() if groups}


def _single(samples: Mapping[str, Sequence[Group]], numbers: Mapping[str, int], rewards: Sequence[str]) -> Section:
    """How figures of single replies are distributed; strips name their policies themselves."""
    overlaid = len(samples) <= replies.OVERLAID
    lead = "" if overlaid else "Thin line: 90% of replies. Bar: half of them. Tick: the median. Of the first seed."
    plots = replies.distributions(samples, numbers, rewards)
    return Section("Single replies", lead, plots=plots, legend=list(samples) if overlaid else ())


def _agreement(
    samples: Mapping[str, Sequence[Group]], numbers: Mapping[str, int], ranked: Sequence[str], judge: str
) -> list[Plot]:
    """The learned reward against the judge's, of the start and of the best variant."""
    shown = {name: samples[name] for name in (START_NAME, *ranked[:1]) if name in samples}
    return replies.agreement(shown, numbers, answers.LEARNED, judge)


def _rewards(found: Mapping[str, Any]) -> list[str]:
    names = found.get("rewards", [])
    return sorted(names, key=lambda name: (name != found.get("judge"), name))


def leaderboard(found: Mapping[str, Any], ranked: Sequence[str], numbers: Mapping[str, int]) -> list[Table]:
    """A row for each variant, the best first, and the start."""
    variants, same = found["variants"], f"win_rate_same_length/{found['judge']}"
    rows = {name: figures_of(variants[name]) for name in ranked}
    rows |= {START_NAME: figures_of(found["start"])} if found.get("start") else {}
    shown = {name: {figure: value for figure, value in of.items() if is_estimate(value)} for name, of in rows.items()}
    return tables("leaderboard", shown, ["rating", "win_rate", same, *_rewards(found), "kl", "words"], numbers)


def _legend(found: Mapping[str, Any]) -> str:
    one = len(found.get("seeds", ())) == 1
    tail = " One seed: the intervals say nothing about other seeds." if one else ""
    rating = f"Rating: Elo points above the start, by {found.get('judge')}."
    return f"{rating} In brackets: 95% intervals.{tail}"


def _pairs_lead(found: Mapping[str, Any]) -> str:
    return (
        f"How often the row's replies are preferred to the column's, by {found.get('judge')}. A star: they "
        f"differ (p \u2264 {answers.SURE} after correction for the number of pairs)."
    )


def _pairs(
    found: Mapping[str, Any], ranked: Sequence[str], numbers: Mapping[str, int]
) -> tuple[list[Table], list[Plot]]:
    """Every two variants against each other, and each against the start."""
    if not ranked:
        return [], []
    rows = [{"policy": name, **_share(found["variants"][name]["win_rate"])} for name in ranked]
    policies = {name: numbers[name] for name in ranked}
    title = "share of replies preferred to the start's"
    table = Table("wins", [Column("policy"), Column(title, PERCENT)], [[r["policy"], r] for r in rows], numbers)

    def draw(width: int) -> Any:
        return charts.intervals(rows, policies, title, width, at=0.5, form="%")

    plots = [Plot("wins", "Wins over the start", "Lines: 95% intervals. Dashed: no difference.", table, draw)]
    if not found.get("pairs"):
        return [], plots
    shares: dict[tuple[str, str], str] = {}
    for pair in found["pairs"]:
        star = "*" if pair["p_corrected"] <= answers.SURE else ""
        value = pair["win_rate"]["value"]
        shares[pair["a"], pair["b"]] = percent(value) + star
        shares[pair["b"], pair["a"]] = percent(1 - value) + star
    matrix = [[name, *(shares.get((name, other), "") for other in ranked)] for name in ranked]
    return [Table("pairs", [Column(""), *(Column(name, NUMBER) for name in ranked)], matrix, numbers)], plots


def _share(estimate: Mapping[str, Any]) -> dict[str, float]:
    low, high = within_0_and_1(estimate)
    return {"value": estimate["value"], "low": low, "high": high}


def _prices(found: Mapping[str, Any], ranked: Sequence[str], numbers: Mapping[str, int]) -> list[Plot]:
    """Gain against KL, and wins against cost."""
    if not ranked:
        return []
    variants, judge = found["variants"], found["judge"]
    plots = []
    if all(judge in said and "kl" in said for said in variants.values()):
        rows = [
            {"policy": name, "x": said["kl"]["value"], "x_low": said["kl"]["low"], "x_high": said["kl"]["high"]}
            | {"y": said[judge]["value"], "low": said[judge]["low"], "high": said[judge]["high"]}
            for name, said in [(START_NAME, found.get("start", {})), *((name, variants[name]) for name in ranked)]
            if judge in said and "kl" in said
        ]
        runs = [
            {"policy": one["variant"], "x": one["kl"], "y": one[judge]}
            for one in found.get("frontier", ())
            if judge in one and one["variant"] in numbers
        ]
        titles = ("KL to the start, in nats per reply", judge)
        caption = "Lines: 95% intervals." + (" Small: single runs and checkpoints." if runs else "")
        plots.append(_tradeoff(f"{judge.capitalize()} against KL", "frontier", rows, numbers, titles, caption, runs))
    for unit in PLOTTED:
        costs = {name: costs_of(variants[name]).get(unit, 0.0) for name in ranked}
        if max(costs.values()) > TELLS * min(costs.values()) > 0:
            rows = [
                {"policy": name, "x": costs[name], **share, "y": share["value"]}
                for name, share in ((name, _share(variants[name]["win_rate"])) for name in ranked)
            ]
            titles = (COSTS[unit], "share preferred to the start's")
            heading = f"Wins against {COSTS[unit].partition(',')[0]}"
            plots.append(_tradeoff(heading, f"cost-{unit}", rows, numbers, titles, "", form="%"))
    return plots


def _tradeoff(
    heading: str,
    name: str,
    rows: Sequence[dict[str, Any]],
    numbers: Mapping[str, int],
    titles: tuple[str, str],
    caption: str,
    runs: Sequence[Mapping[str, Any]] = (),
    form: str = "",
) -> Plot:
    marked = [{**row, "pareto": not any(_beats(other, row) for other in rows)} for row in rows]
    policies = {row["policy"]: numbers[row["policy"]] for row in rows}
    shown = [
        [
            row["policy"],
            row["x"],
            {"value": row["y"], "low": row["low"], "high": row["high"]},
            "yes" if row["pareto"] else "",
        ]
        for row in marked
    ]
    columns = [Column("policy"), Column(titles[0], NUMBER), Column(titles[1], NUMBER), Column("best at its price")]
    table = Table(name, columns, shown, numbers)
    return Plot(
        name,
        heading,
        caption,
        table,
        lambda width: charts.tradeoff(marked, policies, titles, width, runs, form),
        wide=name == "frontier",
    )


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether one gains no less at no higher price, and is better in one of the two."""
    no_worse = one["x"] <= other["x"] and one["y"] >= other["y"]
    return bool(no_worse and (one["x"], one["y"]) != (other["x"], other["y"]))


def _failed(found: Mapping[str, Any]) -> Table:
    return Table("failed", [Column("run"), Column("why")], [[name, why] for name, why in found["failed"].items()])


def _figures(found: Mapping[str, Any], ranked: Sequence[str]) -> list[KeyFigure]:
    """The best one's numbers."""
    if not ranked:
        return []
    best = found["variants"][ranked[0]]
    share = best["win_rate"]
    figures = [KeyFigure("Preferred", percent(share["value"]), interval(share, 0, as_percent=True), "to the start")]
    for name, title, note in (
        ("rating", "Rating", "Elo above the start"),
        (found["judge"], found["judge"].capitalize(), ""),
        ("kl", "KL", "nats per reply"),
        ("words", "Length", "words"),
    ):
        if name in best:
            digits = digits_of([best[name]])
            figures.append(KeyFigure(title, number(best[name]["value"], digits), interval(best[name], digits), note))
    if seconds := costs_of(best).get("seconds"):
        figures.append(KeyFigure("Training", duration(seconds), "", "per run"))
    return figures


def costs_of(said: Mapping[str, Any]) -> dict[str, float]:
    """What a variant's alignment has spent, the mean over seeds."""
    every = {**said, **said.get("spent", {})}
    costs = {unit: float(every[unit]) for unit in COSTS if is_number(every.get(unit))}
    return {unit: cost / TERA if unit == "flops" else cost for unit, cost in costs.items()}


def _costs(found: Mapping[str, Any], ranked: Sequence[str], numbers: Mapping[str, int]) -> list[Table]:
    costs = {name: costs_of(found["variants"][name]) for name in ranked}
    units = [unit for unit in COSTS if any(unit in of for of in costs.values())]
    columns = [Column("policy"), *(Column(COSTS[unit], NUMBER) for unit in units)]
    rows = [[name, *(of.get(unit) for unit in units)] for name, of in costs.items()]
    return [Table("costs", columns, rows, numbers, sortable=True)] if units else []


def _budget(found: Mapping[str, Any]) -> str:
    seeds = f"Each ran with {answers.plural(len(found.get('seeds', ())), 'seed')}"
    return f"{seeds}, under a budget of {found['budget']}." if found.get("budget") else f"{seeds}, as its recipe says."


def _reproduce(found: Mapping[str, Any], first: Run | None) -> list[Listing]:
    names = list(found.get("variants", ()))
    listings = []
    if names and not any(" " in name for name in names):  # what was swept is not known by its whole key
        words = ["alignkit", "compare", "RECIPE", "--optimizers", ",".join(names), "--seeds", str(len(found["seeds"]))]
        words += ["--budget", str(found["budget"])] if found.get("budget") else []
        listings.append(Listing("All of it", shlex.join(words)))
    if first:
        recipe = first.path / "recipe.toml"
        listings.append(Listing("One run", f"alignkit run {shlex.quote(str(recipe))} --out again"))
    return listings
