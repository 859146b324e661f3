"""What AIs' labels are worth: how often a judge agrees with people, a verdict on it, and what the labels cost.

An audit is a random sample of the pairs that AIs judged, drawn by `alignkit label audit` and judged by people. The
rules of the verdict stand in docs/reference/data.md. Imports no torch.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

from alignkit.preferences import TIE, Share, panel_verdict, random_person

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignkit_report.verdicts import Unit, Verdicts

    Figures = dict[str, Any]

ENOUGH = 30
"""Pairs that a verdict needs."""
MARGIN = 0.10
"""How far the judge may be below people's agreement with each other."""
ALONE = 0.70
"""What the judge must reach if too few pairs have two people."""


def preferences_of(path: Path) -> Path:
    """The file of preferences: of a run directory, or the path itself."""
    return path / "preferences.jsonl" if (path / "run.json").is_file() else path


def audit_database(path: Path) -> Path:
    """Where `alignkit label audit` puts the sample of a run directory (RUN/audit.db) or of a file (FILE.audit.db)."""
    if path.is_dir():
        return path / "audit.db"
    return path.with_name(path.name.partition(".")[0] + ".audit.db")


def audit_figures(verdicts: Verdicts) -> Figures | None:
    """The judge (all AIs as one) against people on the audited pairs that people have judged; None without an audit."""
    people, machines = verdicts.of_kind("human"), verdicts.of_kind("ai")
    drawn = [unit for unit in verdicts.units if unit.audited]
    cases = [(unit, said) for unit in drawn if (said := unit.said_by(people))]
    if not drawn:
        return None
    judge = [panel_verdict(unit.verdicts_of(name) for name in machines) for unit, _ in cases]
    alike = [random_person(verdict, said) for verdict, (_, said) in zip(judge, cases, strict=True)]
    strict = [[verdict for verdict in said if verdict != TIE] for _, said in cases]
    decided = [
        random_person(one, said) for one, said in zip(judge, strict, strict=True) if one not in (None, TIE) and said
    ]
    agree, agree_decided = (Share(sum(found), len(found)) for found in (alike, decided))
    people_agree, people_decided = (_each_other(said) for said in ([said for _, said in cases], strict))
    verdict, why = verdict_on(agree, agree_decided, people_agree, people_decided)
    return {
        "drawn": len(drawn),
        "pairs": len(cases),
        "agree": agree.to_json(),
        "agree_where_both_decide": agree_decided.to_json(),
        "people_agree": people_agree.to_json(),
        "people_agree_where_both_decide": people_decided.to_json(),
        "each_person": {name: _with(cases, judge, name).to_json() for name in people},
        "judge_tied": judge.count(TIE),
        "judge_abstained": judge.count(None),
        "verdict": verdict,
        "why": why,
    }


def verdict_on(agree: Share, decided: Share, people: Share, people_decided: Share) -> tuple[str, str]:
    """(verdict, why) by the rules of docs/reference/data.md.

    Args:
        agree: the judge with a random person, on all audited pairs.
        decided: the same where neither calls a tie or abstains.
        people, people_decided: two people with each other, on the same two sets.
    """
    if agree.n < ENOUGH:
        return "unknown", f"people have judged {agree.n} pairs of the audit, and a verdict needs {ENOUGH}"
    if not decided.n or decided.interval[0] <= 0.5:
        return "do not use", f"where both decide, it agrees on {decided}, which may be no better than a coin"
    (limit, of), (limit_decided, of_decided) = _limit(people), _limit(people_decided)
    if (agree.value or 0.0) >= limit:
        return "use", f"it reaches {limit:.0%} ({of})"
    told = f"{limit_decided:.0%} ({of_decided})"
    if (decided.value or 0.0) >= limit_decided:
        return "use with people for ties", f"where both decide, it reaches {told}, but with ties it misses {limit:.0%}"
    return "do not use", f"where both decide, it misses {told}: {decided}"


def _limit(people: Share) -> tuple[float, str]:
    """What a judge must reach, and why."""
    if people.value is None or people.n < ENOUGH:
        return ALONE, "too few pairs have two people"
    return people.value - MARGIN, f"{MARGIN:.0%} below people"


def opening(figures: Mapping[str, Any]) -> list[str]:
    """What a report opens with: how far people agree with the AIs, the verdict, and the cost; empty without AIs."""
    names = [name for name, said in figures["annotators"].items() if said["kind"] == "ai"]
    if not names:
        return []
    said = _audited(figures["audit"]) if figures["audit"] else _unaudited(figures["agreement"])
    cost = ", ".join(f"{value:,.10g} {name}" for name, value in figures["cost"].items())
    return [*said, *([f"The labels cost {cost}."] if cost else [])]


def _audited(audit: Mapping[str, Any]) -> list[str]:
    if not audit["pairs"]:
        return [f"An audit of {audit['drawn']} random pairs is drawn, and nobody has judged one yet."]
    people, decided = audit["people_agree"], audit["agree_where_both_decide"]
    told = f"people agree with each other on {_percent(people)} of {people['n']}" if people else ""
    first = f"The judge agrees with people on {_percent(audit['agree'], audit['agree']['n'])}"
    where = f"Where both decide, it is right in {_percent(decided)} of {decided['n']}." if decided else ""
    return [
        f"{first}; {told or 'no pair has two people, so how far people agree is unknown'}.",
        *([where] if where else []),
        f"Verdict: {audit['verdict']}: {audit['why']}.",
    ]


def _unaudited(agreement: Mapping[str, Any]) -> list[str]:
    against = agreement["ai_against_people"]
    if not against:
        return ["Nobody has checked these labels of AIs: draw a random sample for people with `alignkit label audit`."]
    found = [
        f"{name} agrees with a random person on {_percent(row['random_person'])} of {row['random_person']['n']} pairs."
        for name, row in against.items()
    ]
    return [*found, agreement["note"] or "Whether these pairs are a random sample is unknown: `alignkit label audit`."]


def _percent(share: Mapping[str, Any], pairs: int | None = None) -> str:
    interval = f"[{round(100 * share['low'])}, {round(100 * share['high'])}]"
    return (
        f"{share['value']:.0%} {interval}"
        if pairs is None
        else f"{share['value']:.0%} of {pairs} random pairs {interval}"
    )


def _each_other(cases: Sequence[Sequence[int]]) -> Share:
    """How often two different people say the same, over the pairs that several have judged."""
    pairs = [list(combinations(said, 2)) for said in cases if len(said) > 1]
    return Share(sum(sum(one == other for one, other in found) / len(found) for found in pairs), len(pairs))


def _with(cases: Sequence[tuple[Unit, Sequence[int]]], judge: Sequence[int | None], name: str) -> Share:
    known = [(unit.settled(name), verdict) for (unit, _), verdict in zip(cases, judge, strict=True)]
    same = [person == verdict for person, verdict in known if person is not None]
    return Share(sum(same), len(same))
