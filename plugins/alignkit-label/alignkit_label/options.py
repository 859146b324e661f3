"""Options of the preference source `human`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from alignkit import Config, Count, Fraction, InputError


@dataclass(frozen=True, kw_only=True)
class HumanOptions(Config):
    """What people have said so far on the page of `alignkit label serve`. Never waits for more."""

    database: str
    """The SQLite file of `alignkit label`."""
    k: Annotated[int, Interval(ge=0, le=9)] = 0
    """New responses for the annotators: 2 to 9 sampled for each prompt of the run; 0 samples none. Inside `mix`, the
    responses that it is unsure of are added instead."""
    min_annotators: Count = 1
    """Annotators that an item needs; items with fewer are dropped and counted as missing."""
    min_gold: Fraction = 0.0
    """Share of gold items that an annotator must get right; otherwise all their verdicts are dropped."""

    def check(self) -> None:
        """Checks that the database exists.

        Raises:
            InputError: it does not, and `k` would not fill a new one.
        """
        if self.k == 1:
            raise InputError("one response leaves nothing to compare", where="k", fix="set 2 to 9, or 0 to sample none")
        if not self.k and not Path(self.database).expanduser().is_file():
            raise InputError(
                f"no such file: {self.database}",
                where="database",
                fix=f"create it: alignkit label import FILE --db {self.database}",
            )
