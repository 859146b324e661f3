"""The preference source `mix`: sources in given proportions, or AIs first and people for what the AIs are unsure of."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any, cast

from alignkit import PreferenceSource
from alignkit.preferences import Kind, agreement_with_people, annotations_of, voted_ranks, with_annotations
from alignkit_data.options import MixOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from alignkit import Ask, Context, Group, Prompt
    from alignkit.preferences import Annotation

Content = tuple[str, frozenset[str]]
FIELD = "mix"


class Mix(PreferenceSource[MixOptions]):
    """Groups from several sources; `meta.mix` names the source of each group's ranks."""

    samples = True

    def __init__(self, config: MixOptions, context: Context | None = None) -> None:
        super().__init__(config, context)
        self._said: list[str] = []
        self._doubtful: list[Group] = []

    def preferences(self, ask: Ask) -> Iterator[Group]:
        """The groups. By shares: each from the source that is furthest behind its share. By doubt: the AIs' groups in
        order, with people's ranks in place of theirs where people gave any, then the groups that only people have."""
        self._said = []
        return self._shared(ask) if self.config.rule == "shares" else iter(self._escalated(ask))

    def first(self) -> Iterator[tuple[str, Group]]:
        """The sources' first groups. By doubt, those without ranks get some."""
        to_rank = self.config.rule == "unsure"
        for source in self._sources:
            for place, group in source.first():
                yield place, replace(group, ranks=(0,) * len(group.responses)) if to_rank else group

    @cached_property
    def _sources(self) -> list[PreferenceSource[Any]]:
        build = self.context.build
        return [cast("PreferenceSource[Any]", build("preferences", spec)) for spec in self.config.sources]

    def explain(self) -> str:
        return "\n".join(self._said)

    def figures(self) -> Mapping[str, Any]:
        """The figures of each source by name, and how far people agree with AIs where these are unsure."""
        named = zip(self.config.names, self._sources, strict=True)
        found: dict[str, Any] = {name: dict(said) for name, source in named if (said := source.figures())}
        worth = [f"{name}: {said.pop('worth')}" for name, said in found.items() if "worth" in said]
        unsure = agreement_with_people(self._doubtful)
        if unsure.n:
            worth.append(
                f"people were asked where the AIs are unsure, and agree with them there on {unsure} pairs;"
                " only a random sample tells more (alignkit label audit RUN)"
            )
        if not worth:
            return {"sources": found} if found else {}
        return {"sources": found, "agreement_where_unsure": unsure.to_json(), "worth": "; ".join(worth)}

    def _shared(self, ask: Ask) -> Iterator[Group]:
        names, config = self.config.names, self.config
        groups = [list(source.preferences(ask)) for source in self._sources]
        weights = config.weights or tuple(float(len(found)) or 1.0 for found in groups)
        taken = [0] * len(groups)
        while config.limit is None or sum(taken) < config.limit:
            index = min(range(len(groups)), key=lambda i: ((taken[i] + 1) / weights[i], i))
            if taken[index] == len(groups[index]):
                break
            yield _noted(groups[index][taken[index]], names[index])
            taken[index] += 1
        for name, used, found in zip(names, taken, groups, strict=True):
            self._said.append(f"{name}: {used} of {len(found)} groups")

    def _escalated(self, ask: Ask) -> list[Group]:
        config, names = self.config, self.config.names
        judged = _ensemble(self._sources[:-1], names[:-1], ask)
        doubts = [_doubt(group, config) for group in judged]
        unsure = [index for index, doubt in enumerate(doubts) if doubt is not None]
        unsure.sort(key=lambda index: (-cast("float", doubts[index]), index))
        asked = unsure[: config.budget]
        said = self._sources[-1].preferences(Given([judged[index] for index in asked]))
        people = {_content(group): group for group in said if group.ranks is not None}
        others = [index for index in range(len(judged)) if index not in asked]
        answered = [index for index in (*asked, *others) if _content(judged[index]) in people][: config.budget]
        for index in answered:
            judged[index] = _overridden(judged[index], people.pop(_content(judged[index])), names[-1])
            if index in unsure:
                judged[index] = _noted(judged[index], names[-1], rule="unsure")
        self._doubtful = [judged[index] for index in answered if index in unsure]
        known = {_content(group) for group in judged}
        alone = [group for content, group in people.items() if content not in known]
        alone = alone[: None if config.budget is None else config.budget - len(answered)]
        left = [index for index in unsure if index not in answered]
        dropped = {i for i in left if config.undecided == "drop" or judged[i].ranks is None}
        kept = [group for index, group in enumerate(judged) if index not in dropped]
        self._said.append(
            f"{len(judged)} groups from {', '.join(names[:-1])}; unsure of {len(unsure)}, asked {names[-1]} for"
            f" {len(asked)}; {names[-1]} ranked {len(answered)} of the groups and {len(alone)} others;"
            f" {len(left)} unsure groups remain, {len(dropped)} of them dropped"
        )
        return [*kept, *(_noted(_with_kind(group, names[-1], "human"), names[-1]) for group in alone)]


@dataclass
class Given:
    """An `ask` that returns the existing responses of these groups."""

    groups: list[Group]

    @property
    def prompts(self) -> Sequence[Prompt]:
        return [group.prompt for group in self.groups]

    def __call__(self, prompts: Sequence[Prompt], k: int) -> list[Group]:
        waiting: dict[str, list[Group]] = defaultdict(list)
        for group in self.groups:
            waiting[group.prompt.key].append(replace(group, ranks=None, scores=None, labels=None, meta={}, source=""))
        given = (waiting[prompt.key] for prompt in prompts)
        return [groups.pop(0) if len(groups) > 1 else groups[0] for groups in given if groups]


def _ensemble(sources: Sequence[PreferenceSource[Any]], names: Sequence[str], ask: Ask) -> list[Group]:
    """The first source's groups, with the other sources' verdicts on the same responses. With several sources, the
    ranks come from a Bradley-Terry fit to all verdicts."""
    first, *others = sources
    groups = [_with_kind(group, names[0], "ai") for group in first.preferences(ask)]
    for source, name in zip(others, names[1:], strict=True):
        said = {_content(group): group for group in source.preferences(Given(list(groups)))}
        groups = [
            _joined(group, _with_kind(said[_content(group)], name, "ai")) if _content(group) in said else group
            for group in groups
        ]
    voted = [_voted(group) for group in groups] if others else groups
    return [_noted(group, "+".join(names)) for group in voted]


def _content(group: Group) -> Content:
    return group.prompt.key, frozenset(group.responses)


def _with_kind(group: Group, name: str, kind: Kind) -> Group:
    """With its verdicts as annotations, of this kind if they name none. A source known only by its plugin's name gets
    its name in the mixture, which tells two sources of one plugin apart."""
    if not group.source or name.startswith(group.source):
        group = replace(group, source=name)
    said = [replace(one, kind=one.kind or kind) for one in annotations_of(group)]
    return with_annotations(group, said)


def _joined(group: Group, other: Group) -> Group:
    """With the annotations of both, in the order of this group's responses."""
    aligned = other.choose([other.responses.index(response) for response in group.responses])
    cost: Counter[str] = Counter(group.meta.get("cost", {}))
    cost.update(other.meta.get("cost", {}))
    meta = {**group.meta, **({"cost": dict(cost)} if cost else {})}
    said = annotations_of(group)
    new = [one for one in annotations_of(aligned) if one not in said]
    return with_annotations(replace(group, meta=meta), [*said, *new])


def _voted(group: Group) -> Group:
    ranks = voted_ranks(_of_ais(group), len(group.responses))
    return replace(group, ranks=ranks, scores=None, labels=None)


def _of_ais(group: Group) -> list[Annotation]:
    """The verdicts that are no person's; the record of a judge may hold people's too."""
    return [one for one in annotations_of(group) if one.kind != "human"]


def _verdicts(group: Group) -> dict[tuple[int, int], list[int]]:
    """All AIs' verdicts on each pair of responses, without abstentions."""
    annotations = _of_ais(group)
    pairs = combinations(range(len(group.responses)), 2)
    found = {pair: [verdict for one in annotations if (verdict := one.verdict(*pair)) is not None] for pair in pairs}
    return {pair: said for pair, said in found.items() if said}


def _doubt(group: Group, config: MixOptions) -> float | None:
    """How unsure the AIs are of a group, from 0 to 1; None if they are sure enough.

    1 if nothing is ranked above anything. Otherwise the larger of two numbers: the share of verdicts (of any AI, in any
    order) against the most frequent one, averaged over pairs; and how far the margin falls short.
    """
    if not group.preferred_pairs():
        return 1.0
    said = list(_verdicts(group).values())
    against = sum(1 - Counter(one).most_common(1)[0][1] / len(one) for one in said) / len(said) if said else 0.0
    margin = _margin(group)
    short = 1 - margin / config.min_margin if margin is not None and margin < config.min_margin else 0.0
    return max(against, short) if against > config.max_disagreement or short else None


def _margin(group: Group) -> float | None:
    """`meta.judge.margin` if present, otherwise the gap between the best two scores."""
    judge = group.meta.get("judge")
    if isinstance(judge, dict) and "margin" in judge:
        return float(judge["margin"])
    known = sorted((score for score in group.scores or () if score is not None), reverse=True)
    return known[0] - known[1] if len(known) > 1 else None


def _overridden(group: Group, people: Group, name: str) -> Group:
    """The AIs' group with people's ranks and the annotations of both."""
    said = _with_kind(people, name, "human")
    aligned = said.choose([said.responses.index(response) for response in group.responses])
    joined = _joined(group, said)
    joined = replace(joined, meta={name: value for name, value in joined.meta.items() if name != "ranks_by"})
    return _noted(replace(joined, ranks=aligned.ranks, scores=None, labels=None, source=said.source), name)


def _noted(group: Group, name: str, **more: str) -> Group:
    return replace(group, source=group.source or name, meta={**group.meta, FIELD: {"ranks_from": name, **more}})
