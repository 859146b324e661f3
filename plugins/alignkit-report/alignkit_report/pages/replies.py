"""Replies of several policies to the same prompts: side by side, and how their figures are distributed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.commands import SAMPLE_FIGURES
from alignkit_report.pages import charts
from alignkit_report.pages.document import NUMBER, Column, Plot, Reply, Sample, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Group, Prompt

    ByPolicy = Mapping[str, Sequence[Group]]

LONGEST_TEXT = 4000
"""Characters of a text that a page shows."""
MOST_CHARACTERS = 900_000
"""Characters of all samples on a page, so that it stays below 3 MB."""
MOST_SAMPLES, MOST_POINTS = 200, 250
"""Samples of a page, and points of a policy in a plot."""
BINS, OVERLAID = 24, 3
"""Bins of a histogram, and how many policies it shows at most; more are shown as strips."""
QUANTILES = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
KL, WORDS = "kl", "words"
TITLES = {KL: "KL to the start, in nats per reply", WORDS: "length, in words"}


def values_of(groups: Sequence[Group], name: str) -> list[float]:
    """A figure of every reply; words are counted, rewards and the KL stand with the samples."""
    if name == WORDS:
        return [float(len(text.split())) for group in groups for text in group.responses]
    rows = [group.meta.get(SAMPLE_FIGURES, {}).get(name, ()) for group in groups]
    return [float(value) for row in rows for value in row if value is not None]


def side_by_side(policies: ByPolicy, judge: str) -> list[Sample]:
    """The first reply of each policy to each prompt; first where the judge's scores are furthest apart."""
    replies: dict[str, list[Reply]] = {}
    prompts: dict[str, str] = {}
    for name, groups in policies.items():
        for group in groups:
            prompts.setdefault(group.prompt.identity, _asked(group.prompt))
            known = group.meta.get(SAMPLE_FIGURES, {})
            figures = {figure: float(row[0]) for figure, row in known.items() if row and row[0] is not None}
            replies.setdefault(group.prompt.identity, []).append(Reply(name, cut(group.responses[0]), figures))
    found = [Sample(cut(prompts[key]), said, _spread(said, judge)) for key, said in replies.items()]
    return within(sorted(found, key=lambda sample: -sample.spread))


def _asked(prompt: Prompt) -> str:
    """The prompt as text; of a single question, without who asks."""
    return prompt.plain.removeprefix("user: ") if len(prompt.messages or ()) == 1 else prompt.plain


def cut(text: str) -> str:
    """A text, without the end of a very long one."""
    left = len(text) - LONGEST_TEXT
    return text if left <= 0 else f"{text[:LONGEST_TEXT]} \u2026 ({left:,} more characters)"


def within(samples: Sequence[Sample]) -> list[Sample]:
    """The first samples that a page has room for."""
    found: list[Sample] = []
    room = MOST_CHARACTERS
    for sample in samples[:MOST_SAMPLES]:
        room -= len(sample.prompt) + sum(len(reply.text) for reply in sample.replies)
        if room < 0 and found:
            break
        found.append(sample)
    return found


def _spread(replies: Sequence[Reply], judge: str) -> float:
    scores = [reply.figures[judge] for reply in replies if judge in reply.figures]
    return max(scores) - min(scores) if len(scores) > 1 else 0.0


def distributions(policies: ByPolicy, numbers: Mapping[str, int], rewards: Sequence[str]) -> list[Plot]:
    """A plot of each reward, the length and the KL of single replies."""
    found = []
    for figure in (*rewards, WORDS, KL):
        values = {name: values_of(groups, figure) for name, groups in policies.items()}
        values = {name: row for name, row in values.items() if row and any(row) and numbers.get(name) is not None}
        if values and len({value for row in values.values() for value in row}) > 1:
            found.append(_distribution(figure, values, numbers, overlaid=len(policies) <= OVERLAID))
    return found


def _distribution(
    figure: str, values: Mapping[str, Sequence[float]], numbers: Mapping[str, int], *, overlaid: bool
) -> Plot:
    """Histograms over one another for a few policies, else one strip for each."""
    quantiles: list[dict[str, Any]] = [
        {"policy": name, **dict(zip(QUANTILES, map(float, np.quantile(row, [*QUANTILES.values()])), strict=True))}
        for name, row in values.items()
    ]
    policies = {name: numbers[name] for name in values}
    title = TITLES.get(figure, f"{figure} of a reply")
    columns = [Column("policy"), *(Column(f"{share:.0%}", NUMBER) for share in QUANTILES.values())]
    table = Table(figure, columns, [list(row.values()) for row in quantiles])
    name = f"distribution-of-{figure}"
    heading = {KL: "KL", WORDS: "Length"}.get(figure, figure.capitalize())
    if overlaid:
        bins = _bins(values)
        return Plot(name, heading, "", table, lambda width: charts.histogram(bins, policies, title, width))
    return Plot(name, heading, "", table, lambda width: charts.strips(quantiles, policies, title, width))


def agreement(policies: ByPolicy, numbers: Mapping[str, int], learned: str, judge: str) -> list[Plot]:
    """The learned reward of single replies against the judge's; none where there is only one of them."""
    from scipy.stats import spearmanr

    rows: list[dict[str, Any]] = []
    shown: list[list[Any]] = []
    for name, groups in policies.items():
        pairs = [
            (x, y)
            for group in groups
            for x, y in zip(*(group.meta.get(SAMPLE_FIGURES, {}).get(f, ()) for f in (learned, judge)), strict=False)
            if x is not None and y is not None
        ]
        if learned != judge and len({x for x, _ in pairs}) > 1 and len({y for _, y in pairs}) > 1:
            shown.append([name, float(spearmanr(pairs).statistic), len(pairs)])
            chosen = pairs[:: 1 + (len(pairs) - 1) // MOST_POINTS]
            rows += [{"policy": name, "x": x, "y": y} for x, y in chosen]
    if not rows:
        return []
    known = {name: numbers[name] for name, *_ in shown}
    titles = (f"{learned} of a reply", f"{judge} of a reply")
    columns = [Column("policy"), Column("rank correlation", NUMBER), Column("replies", NUMBER)]
    table = Table("agreement", columns, shown, known)
    caption = (
        "A point is a reply. Where replies of high reward have low gold, the policy has found a fault of the model."
    )
    heading = f"{judge.capitalize()} against the learned reward"
    return [Plot("agreement", heading, caption, table, lambda width: charts.scatter(rows, known, titles, width))]


def _bins(values: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """The share of each policy's replies in each bin; counts of words have bins of whole words."""
    every = np.array([value for row in values.values() for value in row])
    whole = bool((every == every.round()).all()) and np.ptp(every) <= BINS
    edges = np.arange(every.min(), every.max() + 2) if whole else np.histogram_bin_edges(every, BINS)
    rows = []
    for name, row in values.items():
        shares = np.histogram(row, edges)[0] / len(row)
        ends = zip(edges.tolist(), [*shares.tolist(), 0.0], strict=True)
        rows += [{"policy": name, "x": x, "share": share} for x, share in ends]
    return rows
