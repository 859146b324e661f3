"""The answer in sentences that the figures support, of a run and of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkit_report.pages.numbers import interval, number, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FEW = 20
"""Comparisons below which nothing is claimed, whatever their interval."""
STILL = 0.01
"""KL, in nats per reply, below which a policy is hardly another one."""
SURE = 0.05
"""Largest corrected p of a difference that is called one."""
GOLD, LEARNED = "gold", "reward"
GOLD_ALARM = "alarm_gold"
NO_SIGN = "no sign of over-optimisation"
NO_GOLD = "without a gold reward, nobody can tell whether it over-optimised"


def all_of(others: Sequence[str]) -> str:
    """Other variants in a sentence: how many, or the name of a single one."""
    return f"all {len(others)} others" if len(others) > 1 else others[0]


def by_rating(found: Mapping[str, Any]) -> list[str]:
    """The variants, best rating first."""
    return sorted(found["variants"], key=lambda name: -found["variants"][name]["rating"]["value"])


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""


def plural(count: int, what: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def in_percent(share: Mapping[str, Any], of: str = "comparisons") -> str:
    """`85% of 512 comparisons [81, 87]`."""
    said = f"{percent(share['value'])} of {share['n']:,} {of}"
    return f"{said} {interval(share, 0, as_percent=True)}".rstrip()


def judge_of(rewards: Iterable[str]) -> str:
    """Which reward's duels say most: gold, else one that nobody optimised, else the learned one; empty for none."""
    names = list(rewards)
    return next((name for name in (GOLD, *names) if name in names and name != LEARNED), names[0] if names else "")


def optimised(run_alarms: Iterable[Mapping[str, Any]], before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Whether a run over-optimised its reward: in figures before and after, and in alarms."""
    if any(alarm.get("alarm") == GOLD_ALARM for alarm in run_alarms):
        return "the alarm for over-optimisation fired: gold fell while the reward rose"
    gold, learned = ((before.get(name), after.get(name)) for name in (GOLD, LEARNED))
    if not (gold[0] and gold[1]):
        return NO_GOLD
    if gold[1]["high"] < gold[0]["low"]:
        rises = learned[0] and learned[1] and learned[1]["low"] > learned[0]["high"]
        return "over-optimised: gold falls while the learned reward rises" if rises else "gold falls"
    return NO_SIGN


def preferred(share: Mapping[str, Any], ours: str, theirs: str) -> str:
    """Whose replies are preferred, or why nobody can tell."""
    said = in_percent(share)
    better = f"{ours}'s replies are better than {theirs}'s"
    if share["n"] < FEW:
        return f"{plural(share['n'], 'comparison')} can't tell whether {better}"
    if share["low"] > 0.5:
        return f"{ours}'s replies are preferred to {theirs}'s in {said}"
    if share["high"] < 0.5:
        return f"{ours}'s replies are worse than {theirs}'s: they are preferred in only {said}"
    return f"It can't be told whether {better}: they are preferred in {said}"


def _kl(figures: Mapping[str, Any]) -> str:
    if not figures.get("kl"):
        return ""
    if (kl := figures["kl"]["value"]) < STILL:
        return f"; it hardly moved (mean KL {kl:.1g} nats): try a higher learning rate, or more steps"
    return f"; mean KL {number(kl, 1 if kl >= 1 else 2)} nats"


def of_run(
    stages: Mapping[str, Any], alarms: Sequence[Mapping[str, Any]], *, ours: str, theirs: str, learns_from: bool
) -> list[str]:
    """What a run came to.

    Args:
        ours, theirs: what the policy and its start are called.
        learns_from: whether the policy was trained on the rewards of its own replies.
    """
    measured = stages.get("eval", {})
    judge = judge_of(
        name.partition("/")[2] for name in measured if name.startswith("win_rate/") and name.count("/") == 1
    )
    warned = _warned(len(alarms))
    if not judge:
        return [*_unmeasured(stages), *warned]
    before, after = measured.get("start", {}), measured.get("policy", {})
    first = preferred(measured[f"win_rate/{judge}"], ours, theirs) + _kl(after)
    by = f"By {judge}"
    if judge == LEARNED:
        by = "By the reward that it was trained on, which flatters it" if learns_from else "By the learned reward"
    seed = f"{by}, on {measured.get('on', 'prompts of unknown history')}; one run says nothing about other seeds."
    shape = _enough(optimised(alarms, before, after), measured[f"win_rate/{judge}"], after)
    return [f"{first}{shape}.", *warned, seed]


def _enough(shape: str, share: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """What is said of over-optimisation: no sign means nothing of a few comparisons, or of one that hardly moved."""
    still = figures.get("kl", {"value": STILL})["value"] < STILL and shape in (NO_SIGN, NO_GOLD)
    return "" if still or (share["n"] < FEW and shape == NO_SIGN) else f"; {shape}"


def _unmeasured(stages: Mapping[str, Any]) -> list[str]:
    """What can be said of a run without an evaluation."""
    said = []
    accuracy = stages.get("reward", {}).get("accuracy")
    if accuracy:
        said.append(f"The reward model orders {in_percent(accuracy, 'pairs')} as their labels do.")
    done = f"Done so far: {listed(list(stages))}." if stages else "No stage is done yet."
    return [*said, f"The policy has not been compared with its start. {done}"]


def _warned(alarms: int) -> list[str]:
    if not alarms:
        return []
    return [f"{'An alarm' if alarms == 1 else plural(alarms, 'alarm')} fired: read below before you trust the figures."]


def of_comparison(found: Mapping[str, Any], alarms: Sequence[tuple[str, str]]) -> list[str]:
    """What a comparison came to."""
    failed = found.get("failed", {})
    lost = [f"{plural(len(failed), 'run')} failed: {listed(list(failed))}."] if failed else []
    if not found.get("variants"):
        return ["No algorithm has finished all of its runs.", *lost]
    ranked = by_rating(found)
    best = ranked[0]
    figures = found["variants"][best]
    return [
        f"{_first(found, ranked)}{_kl(figures)}{_enough(_shape(found, best), figures['win_rate'], figures)}.",
        *_apart(found, ranked),
        *lost,
        *_warned(len(alarms)),
        f"By {found['judge']}, on {found.get('on', 'prompts of unknown history')}, {_seeds(found['seeds'])}.",
    ]


def _first(found: Mapping[str, Any], ranked: Sequence[str]) -> str:
    best, share = ranked[0], found["variants"][ranked[0]]["win_rate"]
    if share["n"] < FEW or not share["low"] > 0.5:
        return preferred(share, best, "the start")
    highest = "does best" if len(ranked) > 1 and not _unsure(found, ranked) else "rates highest"
    said = f"replies are preferred to the start's in {in_percent(share)}"
    return f"{best} {highest}: its {said}" if len(ranked) > 1 else f"{best}'s {said}"


def _unsure(found: Mapping[str, Any], ranked: Sequence[str]) -> list[str]:
    """The variants that don't differ from the best, after correction."""
    corrected = {frozenset((pair["a"], pair["b"])): pair["p_corrected"] for pair in found.get("pairs", ())}
    return [name for name in ranked[1:] if not corrected.get(frozenset((ranked[0], name)), 1.0) <= SURE]


def _apart(found: Mapping[str, Any], ranked: Sequence[str]) -> list[str]:
    others, unsure = ranked[1:], _unsure(found, ranked)
    if not others:
        return []
    if not unsure:
        return [f"It differs from {all_of(others)} (p \u2264 {SURE} after correction)."]
    if len(unsure) == len(others) > 1:
        return [f"None of the others can be told from it (p > {SURE} after correction)."]
    return [f"It can't be told from {listed(unsure)} (p > {SURE} after correction)."]


def _shape(found: Mapping[str, Any], best: str) -> str:
    """Whether the best one over-optimised: by its figures, and by where it stands to the fitted peak of gold."""
    by_figures = optimised((), found.get("start", {}), found["variants"][best])
    verdict = str(found.get("fits", {}).get(best, {}).get("verdict", "")).rstrip(".")
    if verdict.startswith("past"):
        return f"over-optimised, {verdict}"
    return f"{by_figures} ({verdict})" if verdict else by_figures


def _seeds(seeds: Sequence[int]) -> str:
    one = f"seed {seeds[0]} alone, which says nothing about other seeds" if seeds else ""
    return one if len(seeds) < 2 else plural(len(seeds), "seed")
