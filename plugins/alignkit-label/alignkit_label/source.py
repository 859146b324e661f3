"""The preference source `human`: what annotators have said so far on the page of `alignkit label serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alignkit import InputError, PreferenceSource
from alignkit_label.options import HumanOptions
from alignkit_label.records import labelled
from alignkit_label.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignkit import Ask, Group


class Human(PreferenceSource[HumanOptions]):
    """Ranked groups of the labelled items. With `k`, fresh responses first become items for the annotators."""

    samples = True
    _said = ""

    def preferences(self, ask: Ask) -> Iterator[Group]:
        """The groups, in the order of the items, with every verdict in `meta.annotations`. Never waits.

        Raises:
            InputError: nothing is labelled yet.
        """
        config = self.config
        store = Store(Path(config.database))
        asked: set[str] | None = None
        if config.k:
            fresh = [group.without_duplicates() for group in ask(ask.prompts, config.k)]
            asked = set(store.add_items(group for group in fresh if len(group.responses) > 1))
        found = labelled(store, min_annotators=config.min_annotators, min_gold=config.min_gold)
        self._said = f"{config.database}: {found.summary}"
        if asked is not None:
            missing = asked.intersection(found.unjudged)
            self._said += f"; {len(missing)} of the {len(asked)} items of this run are missing"
        if not found.groups:
            fix = f"label some: alignkit label serve {config.database}"
            raise InputError(self._said, where="human", fix=fix)
        yield from found.groups

    def explain(self) -> str:
        return self._said
