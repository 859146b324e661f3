"""What AIs' labels in groups are worth: who ranked, and whether people agree. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkit.preferences import agreement_with_people, ranked_by_ai, stored_annotations

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Group


def worth_of(groups: Sequence[Group]) -> Mapping[str, Any]:
    """`ai`: how many groups AIs ranked, and how often they give the verdict of a random person; `worth`: the same in
    words. Empty without verdicts of AIs."""
    if not any(one.kind == "ai" for group in groups for one in stored_annotations(group)):
        return {}
    people, ranked = agreement_with_people(groups), sum(map(ranked_by_ai, groups))
    checked = f"they agree with a random person on {people} pairs" if people.n else "nobody has checked their labels"
    audit = "" if people.n else " (alignkit label audit RUN)"
    return {
        "ai": {"ranked_by_ai": ranked, "agreement_with_people": people.to_json()},
        "worth": f"AIs alone ranked {ranked} of {len(groups)} groups, {checked}{audit}",
    }
