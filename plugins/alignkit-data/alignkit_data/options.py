"""Options of the preference sources. Imports no torch; `check` reads the first rows of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from alignkit import (
    Config,
    Count,
    Fraction,
    InputError,
    Natural,
    NonNegative,
    Positive,
    PreferencesSpec,
    check_function,
    load_function,
)
from alignkit_data.hub import hub_rows, is_hub_id
from alignkit_data.loading import GroupMaker
from alignkit_data.messages import template_parts
from alignkit_data.readers import Row, local_rows

CHECKED_ROWS = 5000
"""Rows that `check` reads."""

FormName = Literal[
    "auto",
    "comparisons",
    "groups",
    "preference",
    "verdict",
    "annotated",
    "rejected",
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
    """Form of the rows (docs/reference/data.md); `auto` detects it from the first row's columns."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Renames columns, old name to new: `{question = "prompt"}`, or `--columns question=prompt`."""
    template: str = ""
    """Builds each prompt from the row's columns: `"{context}\\n\\n{prompt}"`; in a chat, fills the last message."""
    malformed: Literal["stop", "drop"] = "stop"
    """Rows that can't be read (broken JSON, null, a wrong type): stop at the first, or drop and count them."""
    comparisons: Literal["exact", "fit"] = "exact"
    """`exact` drops rows of `comparisons` that no ranking reproduces; `fit` ranks all by a Bradley-Terry fit."""
    max_bad_share: Fraction = 0.5
    """Stop if a larger share of the rows is dropped (identical or empty responses, intransitive verdicts)."""

    def check(self) -> None:
        """Checks the template.

        Raises:
            InputError: it holds something else than names of columns.
        """
        super().check()
        try:
            template_parts(self.template)
        except ValueError as error:
            fix = "write {name of a column}; for a brace in the text, write it twice"
            raise InputError(str(error), where="template", fix=fix) from error

    def maker(self, source: str = "") -> GroupMaker:
        """Makes groups from rows with these options; `source` is the groups' source."""
        return GroupMaker(
            form=self.form,
            columns=self.columns,
            template=self.template,
            drop_malformed=self.malformed == "drop",
            fit_comparisons=self.comparisons == "fit",
            source=source,
        )


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(RowOptions):
    """An existing data set: local files in many forms, or a data set on the Hugging Face hub."""

    path: str
    """Local file (.jsonl, .json, .csv, .tsv, .parquet, .arrow; text also .gz), a folder of them, or a hub id."""
    split: str = ""
    """Split of a folder or hub data set; empty: the only one, or `train`."""
    subset: str = ""
    """Configuration of a hub data set that has several."""
    limit: Count | None = None
    """Use at most this many groups; none: all."""
    shuffle: int | None = None
    """Seed of a random order, applied before the limit; none: the order of the file."""

    def check(self) -> None:
        """Reads the first rows, or all of a small file.

        Raises:
            InputError: the data set is missing or empty, or its rows fit no form.
        """
        super().check()
        maker = self.maker()
        limit = self.limit if self.shuffle is None else None
        usable = sum(1 for _ in islice(maker.groups(islice(self.rows(), CHECKED_ROWS)), limit))
        if not usable or maker.rows < CHECKED_ROWS:
            maker.check(self.path, self.max_bad_share, limited=usable == limit)

    def rows(self) -> Iterator[Row]:
        """The rows of the files or of the hub data set."""
        path = Path(self.path).expanduser()
        if not path.exists() and is_hub_id(self.path):
            return hub_rows(self.path, self.subset, self.split)
        return local_rows(path, self.split)


@dataclass(frozen=True, kw_only=True)
class FunctionOptions(RowOptions):
    """A Python function that yields groups or rows."""

    takes_function: ClassVar[str] = "function"

    function: str
    """`module:function`, called as `f(ask, **args)`; yields groups, or rows in any form that `dataset` reads."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for the function."""

    def check(self) -> None:
        """Imports the function.

        Raises:
            InputError: it can't be imported, or called in this way.
        """
        super().check()
        check_function(self.function)
        try:
            signature(load_function(self.function)).bind(None, **self.args)
        except TypeError as error:
            what = f"{self.function} can't be called as f(ask{''.join(f', {name}=...' for name in self.args)}): {error}"
            fix = "a function that scores goes to --preferences reward -o preferences.source.plugin=function "
            fix += f"-o preferences.source.function={self.function}; this one yields groups, and args has the rest"
            raise InputError(what, where="function", fix=fix) from error


@dataclass(frozen=True, kw_only=True)
class CandidatesOptions(Config):
    """Fresh responses of the policy to the run's prompts, not ranked."""

    k: Count = 4
    """Responses for each prompt; candidates.count overrides it."""


@dataclass(frozen=True, kw_only=True)
class MixOptions(Config):
    """Several sources: in given proportions, or AIs first and people for what the AIs are unsure of."""

    sources: tuple[PreferencesSpec, ...]
    """Two or more sources: `[{plugin = "judge", ...}, {plugin = "dataset", path = "people.jsonl"}]`."""
    rule: Literal["shares", "unsure"] = "shares"
    """shares: groups from all sources, by weights. unsure: the last source is people, the others are AIs (several form
    an ensemble); people are asked for what the AIs are unsure of, and their verdicts override."""
    weights: tuple[Positive, ...] = ()
    """shares: proportions of the sources, until a source that is due runs out; empty: all groups of all sources."""
    limit: Count | None = None
    """shares: at most this many groups; none: as many as the weights allow."""
    min_margin: NonNegative = 0.0
    """unsure: AIs are unsure below this margin: the judge's (0 to 1), or the gap between the best two scores."""
    max_disagreement: Fraction = 0.25
    """unsure: AIs are unsure if a larger share of their verdicts, over all AIs and orders and averaged over pairs,
    differs from the most frequent one; and always if nothing is ranked above anything."""
    budget: Natural | None = None
    """unsure: at most this many groups from people, the most doubtful first; none: no limit."""
    undecided: Literal["keep", "drop"] = "keep"
    """unsure: keep or drop groups that the AIs are unsure of and people have not decided."""

    def check(self) -> None:
        """Raises InputError if the options contradict each other."""
        if len(self.sources) < 2:
            raise InputError("a mixture needs at least two sources", where="sources", fix="add a source")
        if self.weights and len(self.weights) != len(self.sources):
            said = f"{len(self.weights)} weights for {len(self.sources)} sources"
            raise InputError(said, where="weights", fix="give one weight for each source")
        of_doubt = ("budget", "min_margin", "max_disagreement", "undecided")
        self.counts_only_with("rule = 'shares'", self.rule == "shares", "weights", "limit")
        self.counts_only_with("rule = 'unsure'", self.rule == "unsure", *of_doubt)

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each source: its plugin's name, numbered if several sources share it."""
        plugins = [str(spec.get("plugin", "")) for spec in self.sources]
        seen: Counter[str] = Counter()
        names = []
        for plugin in plugins:
            seen[plugin] += 1
            names.append(f"{plugin}-{seen[plugin]}" if plugins.count(plugin) > 1 else plugin)
        return tuple(names)
