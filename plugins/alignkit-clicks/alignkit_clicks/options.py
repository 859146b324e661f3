"""Options of the preference source `clicks`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from alignkit import Config, Count, InputError, NonNegative, Positive


@dataclass(frozen=True, kw_only=True)
class ClicksOptions(Config):
    """A log of what people saw and what they picked, corrected for position bias."""

    path: str
    """Local file or folder (.csv, .tsv, .jsonl, .json, .parquet, .arrow) with the columns of docs/reference/data.md."""
    split: str = ""
    """Split of a folder; empty: the only one, or `train`."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Renames columns, old name to new: `{chosen = "choice"}`."""
    model: Literal["auto", "choice", "examination"] = "auto"
    """choice: exactly one response is picked, and impressions with another number of picks are dropped. examination:
    any number may be picked. auto: choice if every impression has one pick."""
    propensities: tuple[Positive, ...] = ()
    """Each position's chance of a pick relative to the first position, all else being equal. Empty: estimated from
    responses that were shown at several positions. `[1, 1]` corrects nothing."""
    min_shown: Count = 20
    """Impressions that a response needs; responses with fewer are dropped."""
    min_confidence: Annotated[float, Ge(0.5), Le(1)] = 0.8
    """A response ranks above the next one if it is better with at least this probability; otherwise they tie."""
    min_seconds: NonNegative = 0.0
    """Impressions with fewer `seconds` are dropped."""

    def check(self) -> None:
        """Checks that the log exists.

        Raises:
            InputError: the file is missing.
        """
        if not Path(self.path).expanduser().exists():
            raise InputError(f"no such file: {self.path}", where="path", fix="check the path")
