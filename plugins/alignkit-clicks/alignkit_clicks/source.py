"""The preference source `clicks`: rankings from logs of what people saw and what they picked."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit_data.messages import content_of, text_of
from alignkit_data.readers import local_rows

from alignkit import Group, InputError, PreferenceSource, Prompt
from alignkit_clicks.options import ClicksOptions
from alignkit_clicks.position_bias import Fit, Impression, fit, propensity_intervals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from alignkit_data.readers import Row

    from alignkit import Ask
    from alignkit_clicks.position_bias import Floats

LONG = ("impression", "prompt", "response", "position", "clicked")
WIDE = ("prompt", "responses", "choice")
PAIR = ("prompt", "response_1", "response_2", "choice")
WIDEST = 4.0
"""A propensity whose interval's ends are this many times apart is refused: a factor of two to either side."""


@dataclass
class ClickLog:
    """Impressions of a log, with the prompts and responses of their items.

    Attributes:
        items: the number of each (prompt's key, response).
        too_fast: number of impressions dropped because they took less than `min_seconds`.
    """

    impressions: list[Impression] = field(default_factory=list)
    items: dict[tuple[str, str], int] = field(default_factory=dict)
    prompts: dict[str, Prompt] = field(default_factory=dict)
    too_fast: int = 0

    def add(self, prompt: Prompt, responses: list[str], picked: list[int]) -> None:
        """One impression; `picked` holds positions from 0.

        Raises:
            ValueError: there are fewer than two responses, one was shown twice, or a picked position does not exist.
        """
        if len(responses) < 2 or len(set(responses)) < len(responses):
            raise ValueError("an impression needs two or more responses, each shown once")
        if not all(0 <= position < len(responses) for position in picked):
            raise ValueError(f"picked position {max(picked) + 1} of {len(responses)}")
        self.prompts.setdefault(prompt.key, prompt)
        shown = tuple(self.items.setdefault((prompt.key, text), len(self.items)) for text in responses)
        self.impressions.append(Impression(shown, tuple(sorted(set(picked)))))

    @property
    def one_pick_each(self) -> bool:
        return all(len(impression.picked) == 1 for impression in self.impressions)


class Clicks(PreferenceSource[ClicksOptions]):
    """One ranked group for each prompt, with the responses that have enough evidence, in the order of the log. Read at
    first use."""

    def preferences(self, ask: Ask | None = None) -> Iterator[Group]:
        """The groups; `ask` is not used.

        Raises:
            InputError: the log can't be read, or its position bias can't be estimated.
        """
        return iter(self._fitted[0])

    def explain(self) -> str:
        return self._fitted[1]

    def figures(self) -> Mapping[str, Any]:
        """`propensities` by position; estimated ones with their interval."""
        _ = self._fitted
        return {"propensities": self._propensities}

    @cached_property
    def _fitted(self) -> tuple[list[Group], str]:
        config = self.config
        log = read_log(config)
        choice = log.one_pick_each if config.model == "auto" else config.model == "choice"
        used = [impression for impression in log.impressions if not choice or len(impression.picked) == 1]
        if not used:
            raise InputError("no impression has exactly one pick", where=config.path, fix='set model = "examination"')
        try:
            found = fit(used, len(log.items), choice=choice, propensities=config.propensities)
        except ValueError as error:
            fix = "show responses in random order, or set propensities"
            raise InputError(f"position bias can't be estimated: {error}", where=config.path, fix=fix) from error
        intervals = None if config.propensities else propensity_intervals(used, found, choice=choice)
        if intervals is not None:
            _check_width(intervals, found, config.path)
        groups = list(_groups(log, found, config))
        if not groups:
            raise InputError(
                f"no prompt has two responses that were shown {config.min_shown} times",
                where=config.path,
                fix="lower min_shown",
            )
        self._propensities = _with_intervals(found, intervals)
        return groups, _explained(log, groups, self._propensities, choice=choice)


def read_log(config: ClicksOptions) -> ClickLog:
    """The log of a file.

    Raises:
        InputError: a row is malformed, or the columns fit no form of log.
    """
    log = ClickLog()
    long: dict[str, list[tuple[Row, dict[str, Any]]]] = defaultdict(list)
    columns: tuple[str, ...] = ()
    for row in local_rows(Path(config.path).expanduser(), config.split):
        values = {config.columns.get(name, name): value for name, value in row.values.items()}
        columns = columns or _columns(values, row)
        with _Located(row):
            if row.problem:
                raise ValueError(row.problem)
            if columns == LONG:
                long[str(values["impression"])].append((row, values))
            elif _fast(values, config):
                log.too_fast += 1
            else:
                shown = values["responses"] if columns == WIDE else [values["response_1"], values["response_2"]]
                texts = [text_of(response, "a response") for response in shown]
                log.add(Prompt.of(content_of(values["prompt"], "prompt")), texts, _picked(values["choice"]))
    for rows in long.values():
        _add_long(log, rows, config)
    if not log.impressions:
        raise InputError("the log is empty", where=config.path, fix="give a file with at least one impression")
    return log


def _add_long(log: ClickLog, rows: list[tuple[Row, dict[str, Any]]], config: ClicksOptions) -> None:
    """Adds one impression from several rows, one for each response."""
    with _Located(rows[0][0]):
        values = [value for _, value in rows]
        if any(_fast(value, config) for value in values):
            log.too_fast += 1
            return
        values.sort(key=lambda value: _whole(value["position"], "position"))
        if [_whole(value["position"], "position") for value in values] != list(range(1, len(values) + 1)):
            raise ValueError(f"the positions of impression {values[0]['impression']!r} don't count up from 1")
        if len({str(value["prompt"]) for value in values}) > 1:
            raise ValueError(f"impression {values[0]['impression']!r} has several prompts")
        picked = [place for place, value in enumerate(values) if _flag(value["clicked"])]
        texts = [text_of(value["response"], "response") for value in values]
        log.add(Prompt.of(content_of(values[0]["prompt"], "prompt")), texts, picked)


class _Located:
    """Turns a ValueError inside into an InputError that names the row."""

    def __init__(self, row: Row) -> None:
        self._row = row

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError):
            fix = "fix the row; docs/reference/data.md shows the forms of logs"
            raise InputError(str(error), where=self._row.where, fix=fix) from error


def _columns(values: Mapping[str, Any], row: Row) -> tuple[str, ...]:
    for form in (LONG, WIDE, PAIR):
        if set(form) <= set(values):
            return form
    raise InputError(
        f"the columns are not those of a click log: found {', '.join(values) or 'none'}",
        where=row.where,
        fix=f"rename the columns to {'; or '.join(', '.join(form) for form in (WIDE, PAIR, LONG))}",
    )


def _fast(values: Mapping[str, Any], config: ClicksOptions) -> bool:
    seconds = values.get("seconds")
    if seconds in (None, "") or not config.min_seconds:
        return False
    try:
        return float(seconds) < config.min_seconds
    except (TypeError, ValueError):
        raise ValueError(f"seconds is {seconds!r}, expected a number") from None


def _picked(choice: Any) -> list[int]:
    """The picked positions, from 0. A choice is a position from 1, a list of them, or 0 or empty for no pick."""
    if isinstance(choice, list | tuple):
        return [_whole(one, "choice") - 1 for one in choice]
    if choice in (None, ""):
        return []
    position = _whole(choice, "choice")
    return [position - 1] if position else []


def _whole(value: Any, name: str) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(value, bool) or number < 0 or number != int(number):
        raise ValueError(f"{name} is {value!r}, expected a position from 1")
    return int(number)


def _flag(value: Any) -> bool:
    known = {"1": True, "true": True, "0": False, "false": False, "": False, "none": False}
    if (text := str(value).strip().lower()) not in known:
        raise ValueError(f"clicked is {value!r}, expected 1 or 0")
    return known[text]


def _groups(log: ClickLog, found: Fit, config: ClicksOptions) -> Iterator[Group]:
    by_prompt: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for (key, text), item in log.items.items():
        if found.shown[item] >= config.min_shown:
            by_prompt[key].append((text, item))
    for key, responses in by_prompt.items():
        if len(responses) < 2:
            continue
        items = [item for _, item in responses]
        ranks = _ranks(found, items, config.min_confidence)
        sure = [
            abs(2 * found.confidence(items[a], items[b]) - 1)
            for a, b in combinations(range(len(items)), 2)
            if ranks[a] != ranks[b]
        ]
        yield Group(
            log.prompts[key],
            tuple(text for text, _ in responses),
            ranks=ranks,
            scores=tuple(round(float(found.worth[item]), 6) for item in items),
            source="clicks",
            meta={
                "weight": round(sum(sure) / len(sure), 4) if sure else 0.0,
                "shown": [int(found.shown[item]) for item in items],
                "picked": [int(found.picked[item]) for item in items],
            },
        )


def _ranks(found: Fit, items: list[int], min_confidence: float) -> tuple[int, ...]:
    """By worth; a response that isn't clearly worse than the one before it ties with it."""
    order = sorted(range(len(items)), key=lambda place: (-found.worth[items[place]], place))
    ranks = [0] * len(items)
    for before, place in pairwise(order):
        ranks[place] = ranks[before] + (found.confidence(items[before], items[place]) >= min_confidence)
    return tuple(ranks)


def _check_width(intervals: Floats, found: Fit, path: str) -> None:
    """Refuses a log that can hardly tell the positions' propensities from the responses' worth."""
    for position, (low, high) in enumerate(intervals.tolist(), start=1):
        if high > WIDEST * low:
            raise InputError(
                f"the log can hardly tell position from quality: the propensity of position {position} is"
                f" {found.propensities[position - 1]:.2f}, but its 95% interval is [{low:.2f}, {high:.2f}]",
                where=path,
                fix="show more responses at several positions, or give propensities that you have measured",
            )


def _with_intervals(found: Fit, intervals: Floats | None) -> list[Any]:
    """A number for each position, or an estimate with its interval; the first position is 1 by definition."""
    values = [round(value, 4) for value in found.propensities.tolist()]
    if intervals is None:
        return values
    bounds = [[round(bound, 4) for bound in row] for row in intervals.tolist()]
    estimates = [{"value": v, "low": low, "high": high} for v, (low, high) in zip(values, bounds, strict=True)]
    return [1.0, *estimates[1:]]


def _explained(log: ClickLog, groups: list[Group], propensities: list[Any], *, choice: bool) -> str:
    ordered = sum(len(group.preferred_pairs()) for group in groups)
    kept = sum(len(group.responses) for group in groups)
    said = [
        f"{len(log.impressions)} impressions ({log.too_fast} more were too fast), model: "
        + ("choice" if choice else "examination"),
        "propensity by position: " + ", ".join(map(_shown, propensities)),
        f"{len(groups)} of {len(log.prompts)} prompts and {kept} of {len(log.items)} responses have enough evidence;"
        f" {ordered} pairs are ordered",
    ]
    return "\n".join(said)


def _shown(propensity: Any) -> str:
    if not isinstance(propensity, dict):
        return f"{propensity:.3f}"
    return f"{propensity['value']:.3f} [{propensity['low']:.3f}, {propensity['high']:.3f}]"
