"""Options of the preference source `human`. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from alignkit import Config, Count, Fraction, InputError


@dataclass(frozen=True, kw_only=True)
class HumanOptions(Config):
    """What people have said so far on the page of `alignkit label serve`; nothing is waited for."""

    database: str
    """The SQLite file that `alignkit label` keeps."""
    k: Annotated[int, Interval(ge=0, le=9)] = 0
    """Responses to sample for each of the run's prompts and put before the annotators, where they aren't there yet;
    2 to 9, 0 samples none. Inside `mix` the responses that it is unsure of are put there instead."""
    min_annotators: Count = 1
    """People who must have judged an item; others are left out and counted as missing."""
    min_gold: Fraction = 0.0
    """Share of the gold items that an annotator must get right; what others said is left out."""

    def check(self) -> None:
        """Looks whether the database is there.

        Raises:
            InputError: there is none, and nothing would be put into a new one.
        """
        if self.k == 1:
            raise InputError("one response leaves nothing to compare", where="k", fix="2 to 9, or 0 to sample none")
        if not self.k and not Path(self.database).expanduser().is_file():
            raise InputError(
                f"no such file: {self.database}",
                where="database",
                fix=f"make it: alignkit label import FILE --db {self.database}",
            )
