"""The preference sources `dataset`, `function` and `candidates`."""

from __future__ import annotations

import random
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import AlignkitError, Group, InputError, PluginError, PreferenceSource, load_function
from alignkit_data.options import CHECKED_ROWS, CandidatesOptions, DatasetOptions, FunctionOptions
from alignkit_data.readers import Row
from alignkit_data.turns import kind
from alignkit_data.worth import worth_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from alignkit import Ask
    from alignkit_data.loading import Detected


class Dataset(PreferenceSource[DatasetOptions]):
    """Groups from files or the hub, in the order of the rows or a seeded order. Read once, at first use."""

    @classmethod
    def options_of_file(cls, path: Path, columns: Mapping[str, str]) -> Mapping[str, Any]:
        return {"path": str(path), "columns": dict(columns)}

    @classmethod
    def of_file(cls, path: Path, columns: Mapping[str, str]) -> Dataset:
        """The groups of a file, no matter how many rows can't be used.

        Raises:
            InputError: the file is missing, has no usable row, or a row is wrong; names the file or the row.
        """
        try:
            return cls(DatasetOptions(path=str(path), columns=columns, max_bad_share=1.0))
        except InputError as error:
            where = error.where if error.where.startswith(str(path)) else str(path)
            raise InputError(error.what, where=where, fix=error.fix) from error

    def preferences(self, ask: Ask | None = None) -> Iterator[Group]:
        """The groups; `ask` is not used.

        Raises:
            InputError: as in `DatasetOptions.check`, but for all rows.
        """
        return iter(self.groups())

    def groups(self) -> list[Group]:
        """The groups as a list."""
        return self._loaded[0]

    def first(self) -> Iterator[tuple[str, Group]]:
        """The groups of the rows that `DatasetOptions.check` reads."""
        return self.config.maker().placed(islice(self.config.rows(), CHECKED_ROWS))

    def explain(self) -> str:
        return self.describe().render()

    def figures(self) -> Mapping[str, Any]:
        """What the verdicts of AIs in the file are worth."""
        return worth_of(self.groups())

    def describe(self) -> Detected:
        """The detected form, a sample and the counts."""
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[list[Group], Detected]:
        config = self.config
        rows = config.rows()
        if config.shuffle is not None:
            shuffled = list(rows)
            random.Random(config.shuffle).shuffle(shuffled)
            rows = iter(shuffled)
        maker = config.maker(Path(config.path).name)
        groups = list(islice(maker.groups(rows), config.limit))
        maker.check(config.path, config.max_bad_share, limited=len(groups) == config.limit)
        return groups, maker.detected()


class FunctionSource(PreferenceSource[FunctionOptions]):
    """Groups that a function yields, given `ask`, which samples the run's current policy."""

    def preferences(self, ask: Ask) -> Iterator[Group]:
        """The groups, as the function yields them.

        Raises:
            InputError: the function can't be found, or yields a row that fits no form.
            PluginError: the function raised an error.
        """
        config = self.config
        function = load_function(config.function)
        maker = config.maker(config.function)
        for row in self._rows(lambda: function(ask, **config.args)):
            if isinstance(row, Group):
                maker.rows += 1
                yield row
            else:
                yield from maker.groups([row])
        maker.check(config.function, config.max_bad_share)

    def _rows(self, call: Any) -> Iterator[Group | Row]:
        name = self.config.function
        try:
            for number, item in enumerate(call(), start=1):
                where = f"{name}, row {number}"
                if isinstance(item, Group):
                    yield item
                elif isinstance(item, dict):
                    yield Row(where, item)
                else:
                    raise InputError(
                        f"the function yielded {kind(item)}", where=where, fix="yield Group objects or dicts"
                    )
        except AlignkitError:
            raise
        except Exception as error:
            raise PluginError(f"{name} raised {type(error).__name__}: {error}") from error


class Candidates(PreferenceSource[CandidatesOptions]):
    """Unranked responses of the policy to the run's prompts, for people or an outside judge to label."""

    samples = True
    judges = False

    def preferences(self, ask: Ask) -> Iterator[Group]:
        """One group for each prompt."""
        return iter(ask(ask.prompts, self.config.k))
