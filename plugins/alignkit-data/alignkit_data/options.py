"""Options of the preference sources. Free of torch; `check` reads the first rows of local files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from alignkit.imports import check_function
from alignkit.options import Config, Count, Fraction

FormName = Literal[
    "auto",
    "comparisons",
    "groups",
    "preference",
    "annotated",
    "verdict",
    "label",
    "completion",
    "messages",
    "sharegpt",
    "alpaca",
    "prompts",
]


@dataclass(frozen=True, kw_only=True)
class RowOptions(Config):
    """How rows become groups."""

    form: FormName = "auto"
    """Form of the rows (docs/data.md); `auto` detects it from the columns of the first row."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """New names of columns by their old ones: `{question = "prompt"}`, or `--columns question=prompt`."""
    template: str = ""
    """Makes each prompt from the row's columns: `"{context}\\n\\n{prompt}"`. Of a chat it fills the last message."""
    malformed: Literal["stop", "drop"] = "stop"
    """Rows that can't be read (broken JSON, null, a wrong type): an error naming the first, or dropped and counted."""
    max_bad_share: Fraction = 0.5
    """An error if a larger share of the rows is dropped (identical or empty responses, intransitive verdicts)."""


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(RowOptions):
    """A data set that is already there: local files of many forms, or one of the hub."""

    path: str
    """Local file (.jsonl, .json, .csv, .tsv, .parquet, .arrow; text also .gz), a folder of them, or a hub id."""
    split: str = ""
    """Split of a folder or of the hub's data set; empty takes the only one, or `train`."""
    subset: str = ""
    """Configuration of the hub's data set, where it has several."""
    limit: Count | None = None
    """At most this many groups; none takes all."""
    shuffle: int | None = None
    """Seed of a random order, before the limit; none keeps the order of the file."""

    def check(self) -> None:
        """Reads the first rows, and all of a small file.

        Raises:
            InputError: the data set isn't there, is empty, or its rows fit no form.
        """
        from alignkit_data.source import check_dataset

        check_dataset(self)


@dataclass(frozen=True, kw_only=True)
class FunctionOptions(RowOptions):
    """A Python function that yields groups or rows."""

    function: str
    """`module:function`, called as `f(sampler, **args)`. It yields groups, or rows of any form that `dataset` reads."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function."""

    def check(self) -> None:
        """Imports the function.

        Raises:
            InputError: it can't be imported.
        """
        check_function(self.function)
