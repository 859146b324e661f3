"""Options of the preference sources. Free of torch; `check` reads the first rows of local files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
)
from alignkit_data.hub import hub_rows, is_hub_id
from alignkit_data.loading import GroupMaker
from alignkit_data.readers import Row, local_rows

CHECKED_ROWS = 5000
"""Rows that are read before the start."""

FormName = Literal[
    "auto",
    "comparisons",
    "groups",
    "preference",
    "verdict",
    "annotated",
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
    comparisons: Literal["exact", "fit"] = "exact"
    """Rows of `comparisons` that no ranking reproduces are left out, or all are ranked by a Bradley-Terry fit."""
    max_bad_share: Fraction = 0.5
    """An error if a larger share of the rows is dropped (identical or empty responses, intransitive verdicts)."""

    def maker(self, source: str = "") -> GroupMaker:
        """Makes groups of rows as these options say; `source` is the name that the groups get."""
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
        maker = self.maker()
        limit = self.limit if self.shuffle is None else None
        usable = sum(1 for _ in islice(maker.groups(islice(self.rows(), CHECKED_ROWS)), limit))
        if not usable or maker.rows < CHECKED_ROWS:
            maker.check(self.path, self.max_bad_share, limited=usable == limit)

    def rows(self) -> Iterator[Row]:
        """The rows of the files, or of the hub's data set."""
        path = Path(self.path).expanduser()
        if not path.exists() and is_hub_id(self.path):
            return hub_rows(self.path, self.subset, self.split)
        return local_rows(path, self.split)


@dataclass(frozen=True, kw_only=True)
class FunctionOptions(RowOptions):
    """A Python function that yields groups or rows."""

    takes_function: ClassVar[str] = "function"

    function: str
    """`module:function`, called as `f(ask, **args)`. It yields groups, or rows of any form that `dataset` reads."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function."""

    def check(self) -> None:
        """Imports the function.

        Raises:
            InputError: it can't be imported.
        """
        check_function(self.function)


@dataclass(frozen=True, kw_only=True)
class CandidatesOptions(Config):
    """Fresh responses of the policy to the run's prompts, not ranked yet."""

    k: Count = 4
    """Responses to each prompt; candidates.count overrides it."""


@dataclass(frozen=True, kw_only=True)
class MixOptions(Config):
    """Several sources: in shares, or AIs first and people for what the AIs are unsure of."""

    sources: tuple[PreferencesSpec, ...]
    """The sources, two or more: `[{plugin = "judge", ...}, {plugin = "dataset", path = "people.jsonl"}]`."""
    rule: Literal["shares", "unsure"] = "shares"
    """shares: groups of all sources, by weights. unsure: the last source is people, those before it are AIs, an
    ensemble where they are several; people are asked for what the AIs are unsure of, and what they say overrides."""
    weights: tuple[Positive, ...] = ()
    """shares: how many groups of each source, in proportion, until one that is due has no more; empty takes all."""
    limit: Count | None = None
    """shares: at most this many groups; none takes as many as the weights allow."""
    min_margin: NonNegative = 0.0
    """unsure: AIs are unsure below this margin, of the judge's votes (0 to 1) or else between the best two scores."""
    max_disagreement: Fraction = 0.25
    """unsure: AIs are unsure where a larger share of their verdicts on a pair, of all AIs and orders, isn't the most
    frequent one. They always are where nothing is ranked above anything."""
    budget: Natural | None = None
    """unsure: at most this many groups are taken from people, the most doubtful first; none takes all."""
    undecided: Literal["keep", "drop"] = "keep"
    """unsure: what becomes of groups that AIs are unsure of and people haven't decided."""

    def check(self) -> None:
        """Raises InputError where the options don't fit together."""
        if len(self.sources) < 2:
            raise InputError("a mixture needs two sources", where="sources", fix="add a source")
        if self.weights and len(self.weights) != len(self.sources):
            said = f"{len(self.weights)} weights for {len(self.sources)} sources"
            raise InputError(said, where="weights", fix="give one a source")
        of_shares = {"weights": bool(self.weights), "limit": self.limit is not None}
        of_doubt = {"budget": self.budget is not None, "min_margin": self.min_margin > 0}
        for name, given in (of_shares if self.rule == "unsure" else of_doubt).items():
            if given:
                raise InputError(f'counts only under another rule than "{self.rule}"', where=name, fix="leave it out")

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each source: its plugin's, numbered where several are of one."""
        plugins = [str(spec.get("plugin", "")) for spec in self.sources]
        seen: Counter[str] = Counter()
        names = []
        for plugin in plugins:
            seen[plugin] += 1
            names.append(f"{plugin}-{seen[plugin]}" if plugins.count(plugin) > 1 else plugin)
        return tuple(names)
