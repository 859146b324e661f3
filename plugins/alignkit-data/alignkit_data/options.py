"""Options of the preference sources. Free of torch; `check` reads the first rows of local files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from alignkit.errors import InputError
from alignkit.imports import check_function
from alignkit.options import ComponentSpec, Config, Count, Fraction, Natural, NonNegative, Positive

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


@dataclass(frozen=True, kw_only=True)
class CandidatesOptions(Config):
    """Fresh responses of the policy to the run's prompts, not ranked yet."""

    k: Count = 4
    """Responses to each prompt; candidates.count overrides it."""


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


@dataclass(frozen=True, kw_only=True)
class MixOptions(Config):
    """Several sources: in shares, or AIs first and people for what the AIs are unsure of."""

    sources: tuple[ComponentSpec, ...]
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

    def nested(self) -> Iterable[tuple[str, str, ComponentSpec]]:
        return [(f"sources.{index}", "preferences", spec) for index, spec in enumerate(self.sources)]

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
