"""Rows with several responses to a prompt: groups as alignkit writes them, and pairwise comparisons."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alignkit.preferences import annotations_of
from alignkit_data.comparisons import fitted_ranks, ranks_of_comparisons
from alignkit_data.messages import Answer, Content, Unusable, content_of, group_of, part, text_of
from alignkit_data.turns import kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Group

    Values = Mapping[str, Any]


def written_groups(values: Values) -> Group:
    """The form that alignkit writes, one row per group; ranks may start at 0 or 1."""
    content, responses = _responses(values)
    group = group_of(
        content,
        responses,
        scores=_scores(values),
        labels=listed(values, "labels"),
        finished=listed(values, "finished"),
        source="" if values.get("source") is None else text_of(values["source"], "source"),
        meta=_mapping(values, "meta"),
    )
    group = replace(group, prompt=replace(group.prompt, meta=_mapping(values, "prompt_meta")))
    annotations_of(group)
    ranks = listed(values, "ranks")
    if ranks is not None:
        return _ranked(group, _checked_ranks(ranks))
    return _ranked_by_scores(group)


def exact_comparisons(values: Values) -> Group:
    content, responses = _responses(values)
    ranks = ranks_of_comparisons(values["pairwise"], len(responses))
    return _ranked(group_of(content, responses, scores=_scores(values)), ranks)


def fitted_comparisons(values: Values) -> Group:
    """Like `comparisons`, but ranked by a Bradley-Terry fit, with cycles in the group's meta."""
    content, responses = _responses(values)
    ranks, cycles = fitted_ranks(values["pairwise"], len(responses))
    meta = {"cycles": cycles} if cycles else {}
    return _ranked(group_of(content, responses, scores=_scores(values), meta=meta), ranks)


def _responses(values: Values) -> tuple[Content, Sequence[Answer]]:
    given = values["responses"]
    if not isinstance(given, list | tuple):
        raise ValueError(f"responses is {kind(given)}, expected a list of texts")
    prompt = content_of(values["prompt"], "prompt")
    if all(isinstance(response, str) for response in given):
        return prompt, given
    return part(prompt, [content_of(item, f"responses[{index}]") for index, item in enumerate(given)])


def _mapping(values: Values, name: str) -> dict[str, Any]:
    value = values.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {kind(value)}, expected an object")
    return value


def listed(values: Values, name: str) -> tuple[Any, ...] | None:
    """The list that a column holds, None where it is absent. Raises ValueError for anything else."""
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {kind(value)}, expected a list")
    return tuple(value)


def _scores(values: Values) -> tuple[float | None, ...] | None:
    scores = listed(values, "scores")
    for score in scores or ():
        if score is not None and (type(score) not in (int, float) or not abs(score) <= sys.float_info.max):
            raise ValueError(f"scores holds {score!r}, expected finite numbers or null")
    return None if scores is None else tuple(None if score is None else float(score) for score in scores)


def _checked_ranks(ranks: Sequence[Any]) -> tuple[int, ...]:
    if len(ranks) == 1:
        raise ValueError("a ranking needs at least two entries")
    ranks = [int(rank) if isinstance(rank, float) and rank.is_integer() else rank for rank in ranks]
    for rank in ranks:
        if type(rank) is not int or rank < 0:
            raise ValueError(f"ranks holds {rank!r}, expected integers from 0 (best)")
    order = sorted(set(ranks))
    return tuple(order.index(rank) for rank in ranks)


def _ranked_by_scores(group: Group) -> Group:
    """With ranks from the scores if two or more are known; otherwise unchanged."""
    known = [score for score in group.scores or () if score is not None]
    if len(known) < 2:
        return group
    ranked = group.ranked_by_scores()
    if len(known) == len(group.responses):
        ranked = replace(ranked, labels=group.labels)
    return _ranked(ranked, ranked.ranks or ())


def _ranked(group: Group, ranks: tuple[int, ...]) -> Group:
    group = replace(group, ranks=ranks)
    if len(set(zip(group.responses, ranks, strict=True))) > len(set(group.responses)):
        raise Unusable("the same response at two ranks")
    return group
