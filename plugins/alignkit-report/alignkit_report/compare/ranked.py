"""Duels that a judge decides by comparing replies side by side, instead of scoring each: in both orders, with ties.

Of each seed, prompt and sample the replies of all policies form one group, in which equal ones are one. The judge ranks
it as a source of preferences, and the figure of a reply is minus its place.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from alignkit import Group, InputError, Run, read_groups, registry, write_groups
from alignkit.commands import SAMPLE_FIGURES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignkit import ComponentSpec, PreferenceSource, Prompt
    from alignkit.commands import Resolved

RESPONSES = "responses"
"""The option of a source of preferences that names the source of the responses that it ranks."""
BESIDE = " side by side"
"""What the name of the figure adds to the judge's."""
DUEL = "duel"
"""Key of a group's meta: its number."""


def figure_of(judge: str) -> str:
    """How the places that a judge gives are called."""
    return judge + BESIDE


def ranking(resolved: Resolved, judge: str) -> ComponentSpec:
    """The source of preferences that ranks where the recipe's reward `judge` scores: the plugin of the same name, with
    the options that both have.

    Raises:
        InputError: it ranks no given replies.
    """
    spec: dict[str, Any] = dict(resolved.eval.rewards.get(judge, {}))
    plugin, known = str(spec.get("plugin", "")), registry()
    options: set[str] = set()
    if plugin in known.names("preferences"):
        options = {field.name for field in fields(known.get("preferences", plugin).config)}
    if RESPONSES not in options:
        raise InputError(
            f"the reward {judge!r} can't compare replies",
            where="--side-by-side",
            fix='name a language model: --judge judge, with eval.rewards.judge = {plugin = "judge", model = ...}',
        )
    return {key: value for key, value in spec.items() if key in {"plugin", *options}}


class SideBySide:
    """The samples of a comparison's runs, with the places that a judge gave them.

    Args:
        resolved: a recipe of the comparison.
        judge: a reward of it that `ranking` takes.
        kept: folder that keeps replies and ranks; nothing that is there is ranked again.
    """

    prompts: Sequence[Prompt] = ()

    def __init__(self, resolved: Resolved, judge: str, kept: Path) -> None:
        self.resolved, self.figure, self.kept = resolved, figure_of(judge), kept
        self.spec = ranking(resolved, judge)

    def __call__(self, prompts: Sequence[Prompt], k: int) -> list[Group]:
        """Samples nothing: every reply is there."""
        return []

    def of_seed(self, runs: Mapping[str, Path]) -> dict[str, list[Group]]:
        """Variant -> the samples of its run.

        Args:
            runs: variant -> run directory, of one seed.
        """
        samples = {variant: Run(folder).samples for variant, folder in runs.items()}
        replies: dict[tuple[str, int], dict[str, None]] = {}
        prompts: dict[str, Prompt] = {}
        for group in (group for of in samples.values() for group in of):
            prompts.setdefault(group.prompt.identity, group.prompt)
            for number, text in enumerate(group.responses):
                replies.setdefault((group.prompt.identity, number), {})[text] = None
        duels = [Group(prompts[key], (*texts,), meta={DUEL: n}) for n, ((key, _), texts) in enumerate(replies.items())]
        places = self._places(duels)
        found = [
            places.get(n, dict.fromkeys(texts, -1.0) if len(texts) == 1 else {})
            for n, texts in enumerate(replies.values())
        ]
        known = dict(zip(replies, found, strict=True))
        return {variant: [self._told(group, known) for group in of] for variant, of in samples.items()}

    def _told(self, group: Group, places: Mapping[tuple[str, int], Mapping[str, float]]) -> Group:
        row = [places[group.prompt.identity, n].get(text) for n, text in enumerate(group.responses)]
        return replace(group, meta={**group.meta, SAMPLE_FIGURES: {**group.meta[SAMPLE_FIGURES], self.figure: row}})

    def _places(self, duels: Sequence[Group]) -> dict[int, dict[str, float]]:
        """Number of a group -> response -> minus its place, from 1; without those from which the judge abstained."""
        asked = [group for group in duels if len(group.responses) > 1]
        said = json.dumps([self.spec, [group.to_json() for group in asked]], sort_keys=True, default=str)
        replies = self.kept / f"replies-{sha256(said.encode()).hexdigest()[:12]}.jsonl"
        ranked = replies.with_suffix(".ranked.jsonl")
        if asked and not ranked.exists():
            write_groups(replies, asked)
            spec = {**self.spec, RESPONSES: {"plugin": "dataset", "path": str(replies)}}
            source: PreferenceSource[Any] = self.resolved.build_spec("preferences", spec, folder=self.kept)
            write_groups(ranked, source.preferences(self))
        return {
            group.meta[DUEL]: {text: -1.0 - rank for text, rank in zip(group.responses, group.ranks, strict=True)}
            for group in (read_groups(ranked) if asked else ())
            if group.ranks is not None
        }
