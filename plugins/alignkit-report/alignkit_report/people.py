"""How far annotators agree: every two of them, AIs with people, and all together. Imports no torch."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.preferences import FIRST, SECOND, TIE, random_person
from alignkit_report.agreement import krippendorff_alpha, ordinal, raw_agreement, resampled

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from alignkit_report.agreement import Agreement, Estimate, Floats
    from alignkit_report.verdicts import Unit, Verdicts

    Figures = dict[str, Any]

UNSURE = (
    "People were asked where the AIs were unsure, so these figures say nothing about where they are sure: draw a random"
    " sample with `alignkit label audit`."
)


def agreement_figures(verdicts: Verdicts) -> Figures:
    """Every two annotators; every AI against people; Krippendorff's alpha of people and of all, nominal on verdicts and
    ordinal on the ranks of responses."""
    people, machines = verdicts.of_kind("human"), verdicts.of_kind("ai")
    between = []
    for one, other in combinations(verdicts.kinds, 2):
        found = agreement_of(verdicts.units, one, other)
        if found is not None:
            between.append({"annotators": [one, other], **found.to_json()})
    against = {name: against_people(verdicts.units, name, people) for name in machines}
    return {
        "between": between,
        "ai_against_people": {name: found for name, found in against.items() if found is not None},
        "note": UNSURE if _asked_where_unsure(verdicts.units, people) else "",
        **_alphas("people", verdicts, people),
        **_alphas("all", verdicts, list(verdicts.kinds)),
    }


def agreement_of(units: Iterable[Unit], one: str, other: str) -> Agreement | None:
    """Of two annotators, on the units that both judged."""
    said = [(unit.prompt, unit.settled(one), unit.settled(other)) for unit in units]
    both = [case for case in said if None not in case[1:]]
    return raw_agreement([case[1:] for case in both], [case[0] for case in both])


def against_people(units: Iterable[Unit], name: str, people: Sequence[str]) -> Figures | None:
    """An AI against people: against their most frequent verdict, which drops the pairs on which they have none
    (`left_out`) and so flatters the AI; against each person; and against a random person on each pair."""
    judged = [unit for unit in units if unit.settled(name) is not None and unit.said_by(people)]
    majorities = [(unit.prompt, unit.majority(people), unit.settled(name)) for unit in judged]
    both = [case for case in majorities if case[1] is not None]
    whole = raw_agreement([case[1:] for case in both], [case[0] for case in both])
    if not judged:
        return None
    decided = [case for case in both if TIE not in case[1:]]
    strict = raw_agreement([case[1:] for case in decided], [case[0] for case in decided])
    table = Counter(case[1:] for case in both)
    each = {person: agreement_of(judged, name, person) for person in people}
    return {
        **(whole.to_json() if whole else {"n": 0, "agreement": None, "kappa": None}),
        "left_out": len(judged) - len(both),
        "without_ties": strict.to_json() if strict else None,
        "people_by_ai": [[table[a, b] for b in (FIRST, SECOND, TIE)] for a in (FIRST, SECOND, TIE)],
        "each_person": {person: found.to_json() for person, found in each.items() if found is not None},
        "random_person": random_person_figures(judged, name, people),
    }


def random_person_figures(judged: Sequence[Unit], name: str, people: Sequence[str]) -> Figures:
    """How often the AI gives the verdict of a random person on a pair: value, low, high and n."""
    sums: dict[str, list[float]] = {}
    for unit in judged:
        row = sums.setdefault(unit.prompt, [0.0, 0.0])
        row[0] += random_person(unit.settled(name), unit.said_by(people))
        row[1] += 1
    parts = np.array(list(sums.values()))
    low, high = resampled(parts, _ratio) or (0.0, 1.0)
    value = float(parts[:, 0].sum() / parts[:, 1].sum())
    return {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4), "n": len(judged)}


def _ratio(sums: Floats) -> Floats:
    ratio: Floats = sums[:, 0] / sums[:, 1]
    return ratio


def _asked_where_unsure(units: Iterable[Unit], people: Sequence[str]) -> bool:
    """Whether people's verdicts come from a mixture that asks them where AIs are unsure."""
    return any(unit.unsure and not unit.audited and unit.said_by(people) for unit in units)


def _alphas(who: str, verdicts: Verdicts, names: Sequence[str]) -> Figures:
    if len(names) < 2:
        return {f"alpha_{who}": None, f"alpha_rankings_{who}": None}
    units = [[unit.settled(name) for name in names] for unit in verdicts.units]
    nominal = krippendorff_alpha(units, [unit.prompt for unit in verdicts.units])
    ranks = {key: [by.get(name) for name in names] for key, by in verdicts.ranks.items()}
    rankings = krippendorff_alpha(ranks.values(), [prompt for prompt, _, _ in ranks], ordinal)
    return {**_named(f"alpha_{who}", nominal), **_named(f"alpha_rankings_{who}", rankings)}


def _named(name: str, found: Estimate | None) -> Mapping[str, Any]:
    if found is None:
        return {name: None}
    said = found.to_json()
    return {name: said["value"], f"{name}_interval": [said["low"], said["high"]]}
