"""Options of the preference source `clicks`. Free of torch; `check` reads the first rows of local files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from alignkit import Config, Count, InputError, NonNegative, Positive


@dataclass(frozen=True, kw_only=True)
class ClicksOptions(Config):
    """A log of what people were shown and what they picked, corrected for where it stood."""

    path: str
    """Local file or folder (.csv, .tsv, .jsonl, .json, .parquet, .arrow) with the columns that docs/data.md lists."""
    split: str = ""
    """Split of a folder; empty takes the only one, or `train`."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """New names of columns by their old ones: `{chosen = "choice"}`."""
    model: Literal["auto", "choice", "examination"] = "auto"
    """choice: one of the shown responses is picked, impressions with another number of picks are left out;
    examination: any number may be picked. auto: choice if every impression has one pick."""
    propensities: tuple[Positive, ...] = ()
    """Chance of a position to be picked from, relative to the first, all else being equal; empty estimates it from the
    responses that were shown at several positions. `[1, 1]` corrects nothing."""
    min_shown: Count = 20
    """Impressions that a response needs; others are left out."""
    min_confidence: Annotated[float, Ge(0.5), Le(1)] = 0.8
    """Probability of being better from which a response stands above the next one; below it they tie."""
    min_seconds: NonNegative = 0.0
    """Impressions whose `seconds` are fewer are left out."""

    def check(self) -> None:
        """Looks whether the log is there.

        Raises:
            InputError: there is no such file.
        """
        if not Path(self.path).expanduser().exists():
            raise InputError(f"no such file: {self.path}", where="path", fix="check the path")
