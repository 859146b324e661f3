"""Makes groups from rows: renames columns, detects the form, drops and counts rows with nothing to learn from."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from alignkit import Group, InputError, check_storable, closest, visible
from alignkit_data.context import SYSTEM, TOOLS, VARIABLES, in_context, is_name, system_of
from alignkit_data.forms import (
    CHAT_FORMS,
    CHATS,
    FORMS,
    Form,
    detected_form,
    is_prompt,
    missing_columns,
    with_known_names,
)
from alignkit_data.messages import Unusable, filled_template, template_parts
from alignkit_data.rankings import fitted_comparisons

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from alignkit_data.readers import Row

_SHOWN = 300
_TELLING_ROWS = 50


@dataclass(frozen=True)
class Detected:
    """What was found in a data set.

    Attributes:
        form: its name, a key of `alignkit_data.forms.FORMS`.
        columns: the first row's columns that became part of its group, after renaming.
        meta_columns: the others, kept in the prompt's `meta`.
        template_columns: what the chat template gets beside the messages.
        sample: the first group.
        rows: number of rows read.
        dropped: number of rows dropped, by reason.
        circles: number of rows kept although their comparisons are intransitive.
    """

    form: str
    columns: tuple[str, ...]
    meta_columns: tuple[str, ...]
    sample: Group
    rows: int
    dropped: Mapping[str, int]
    circles: int = 0
    template_columns: tuple[str, ...] = ()

    def render(self) -> str:
        """The form, the counts and the sample as text."""
        kept = self.rows - sum(self.dropped.values())
        lines = [f"form: {self.form} ({', '.join(self.columns)})", f"rows: {kept} of {self.rows}"]
        lines += [f"  dropped {count}: {reason}" for reason, count in self.dropped.items()]
        if self.circles:
            lines.append(f"  intransitive {self.circles}: ranked by the fit")
        if self.template_columns:
            lines.append(f"for the chat template: {', '.join(self.template_columns)}")
        if self.meta_columns:
            names = (f"{name} (names, no texts)" if name in SYSTEM else name for name in self.meta_columns)
            lines.append(f"kept for rewards: {', '.join(names)}")
        lines.append(f"prompt: {_short(self.sample.prompt.plain)}")
        for index, response in enumerate(self.sample.responses):
            lines.append(f"response{_known(self.sample, index)}: {_short(response)}")
        return visible("\n".join(lines))


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN else f"{flat[: _SHOWN // 2]} ... {flat[-_SHOWN // 2 :]}"


def _known(group: Group, index: int) -> str:
    parts = [
        f"{name} {values[index]}"
        for name, values in (("rank", group.ranks), ("score", group.scores), ("label", group.labels))
        if values is not None
    ]
    return f" ({', '.join(parts)})" if parts else ""


@dataclass
class GroupMaker:
    """Makes groups from rows one by one, all of the same form, and counts.

    Attributes:
        form: a form's name, or "auto" to detect it from the first row's columns.
        columns: new names by old name.
        template: makes the prompt from a row's columns, or "".
        drop_malformed: drop and count malformed rows too, instead of raising an error.
        fit_comparisons: rank comparisons by a fit, instead of dropping those that no ranking reproduces.
        source: the groups' source if a row names none.
    """

    form: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    template: str = ""
    drop_malformed: bool = False
    fit_comparisons: bool = False
    source: str = ""
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    circles: int = 0
    _first_dropped: str = ""
    _form: Form | None = None
    _needs: set[str] = field(default_factory=set)
    _detected: Detected | None = None
    _labels: set[bool] = field(default_factory=set)
    _named_systems: bool | None = None

    def groups(self, rows: Iterable[Row]) -> Iterator[Group]:
        """The groups of the usable rows; see `placed`."""
        return (group for _, group in self.placed(rows))

    def placed(self, rows: Iterable[Row]) -> Iterator[tuple[str, Group]]:
        """The groups of the usable rows, each with its place.

        Raises:
            InputError: a row is malformed, or the columns fit no form.
        """
        for row in rows:
            self.rows += 1
            try:
                yield row.where, self._group(row)
            except Unusable as reason:
                self._drop(str(reason), row)
            except ValueError as error:
                if not self.drop_malformed:
                    raise InputError(str(error), where=row.where, fix=_MEND) from error
                self._drop("malformed", row)

    def detected(self) -> Detected:
        """What was found so far. Needs at least one group."""
        if self._detected is None:
            raise ValueError("no group has been made yet")
        return replace(self._detected, rows=self.rows, dropped=dict(self.dropped), circles=self.circles)

    def check(self, place: str, max_bad_share: float, *, limited: bool = False) -> None:
        """Checks the rows read so far as a whole.

        Args:
            place: the data set, for the error.
            max_bad_share: share of rows that may be dropped.
            limited: reading stopped at a limit; a few rows then say little about the share or the labels.

        Raises:
            InputError: there are none, too many were dropped, or all labels are the same.
        """
        bad = sum(self.dropped.values())
        if self.rows == 0:
            raise InputError("the data set is empty", where=place, fix="give a file with at least one row")
        telling = not limited or self.rows >= _TELLING_ROWS
        if bad == self.rows or (telling and bad > max_bad_share * self.rows):
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common(5))
            raise InputError(
                f"{bad} of {self.rows} rows can't be used: {reasons} (the first at {self._first_dropped})",
                where=place,
                fix=f"fix the rows, or raise max_bad_share (now {max_bad_share:g})",
            )
        if telling and self._form is FORMS["label"] and len(self._labels) == 1:
            raise InputError(
                f"every label is {str(*self._labels).lower()}: unpaired feedback needs both kinds",
                where=place,
                fix='add rows of the other kind, raise limit, or read them as demonstrations with form = "completion"',
            )

    def _drop(self, reason: str, row: Row) -> None:
        self.dropped[reason] += 1
        self._first_dropped = self._first_dropped or row.where

    def _group(self, row: Row) -> Group:
        if row.problem:
            raise ValueError(row.problem)
        check_storable(json.dumps(row.values, ensure_ascii=False, default=str))
        values = self._renamed(row)
        if self.template:
            values["prompt"] = filled_template(self.template, values)
        if self._form is None:
            self._form = self._choose_form(values, row.where)
            used = self._form.uses(values)
            self._needs = {*self._form.needs, *self._form.base(values), *({"prompt", *CHATS} & used)}
        form = self._form
        if missing := sorted(name for name in self._needs if name not in values):
            raise ValueError(f"no column {missing[0]!r}, which the form {form.name!r} of the other rows needs")
        used = form.uses(values)
        given = {name: values[name] for name in used}
        fitted = self.fit_comparisons and form is FORMS["comparisons"]
        group = fitted_comparisons(given) if fitted else form.group(given)
        self.circles += "cycles" in group.meta
        if "label" in form.may and group.labels is None:
            used.discard("label")
            if self._labels:
                raise ValueError(f"label is {values.get('label')!r}, expected true or false as in the other rows")
        self._labels.update(group.labels or ())
        return self._in_context(group, values, used)

    def _in_context(self, group: Group, values: Mapping[str, Any], used: set[str]) -> Group:
        """The group with what the columns that the form did not use say about its prompt."""
        form = cast("Form", self._form)
        named = {name for _, name in template_parts(self.template)} | self._names_of_systems(values, used)
        others = {name: value for name, value in values.items() if name not in used}
        beside = {name: value for name, value in others.items() if name not in named}
        whole = form is FORMS["preference"] and not {"prompt", "instruction", *CHATS} & used
        prompt, read = in_context(group.prompt, beside, holds_all=whole and group.prompt.text is not None)
        kept = {name: value for name, value in others.items() if name in named}
        prompt = replace(prompt, meta={**prompt.meta, **kept})
        group = replace(group, prompt=prompt, source=group.source or self.source)
        if self._detected is None:
            columns = tuple(name for name in values if name in used or (name in read and name in SYSTEM))
            passed = tuple(name for name in (TOOLS, VARIABLES) if prompt.meta.get(name))
            extra = tuple(name for name in others if name not in read)
            self._detected = Detected(form.name, columns, extra, group, self.rows, {}, template_columns=passed)
        return group

    def _names_of_systems(self, values: Mapping[str, Any], used: set[str]) -> set[str]:
        """The columns that name the system which answered, where the first row's do; rewards get them."""
        system = system_of({name: value for name, value in values.items() if name not in used})
        if system and self._named_systems is None:
            self._named_systems = is_name(system)
        if system and self._named_systems and not is_name(system):
            raise ValueError("system is a text, but a name in the rows before; rename the column, or fix the row")
        return set(SYSTEM) if self._named_systems else set()

    def _renamed(self, row: Row) -> dict[str, Any]:
        missing = [old for old in self.columns if old not in row.values]
        if missing and self._form is None:
            raise InputError(
                f"no column {missing[0]!r}: {row.where} has {_listed(row.values)}",
                where="columns",
                fix=closest(missing[0], row.values),
            )
        renamed = {self.columns[old]: row.values[old] for old in self.columns if old in row.values}
        kept = {name: value for name, value in row.values.items() if name not in self.columns and name not in renamed}
        return with_known_names({**renamed, **kept})

    def _choose_form(self, values: Mapping[str, Any], where: str) -> Form:
        wanted = FORMS.get(self.form)
        found = detected_form(values) if wanted is None else wanted
        if found is not None and {*found.needs, *found.base(values)} <= set(values):
            return FORMS["prompts"] if wanted is None and found.name in CHAT_FORMS and is_prompt(values) else found
        needed, hint = missing_columns(values, FORMS.values() if wanted is None else [wanted])
        raise InputError(
            f"missing columns: found {_listed(values)}; {needed}",
            where=where,
            fix=f"rename columns: {hint}; docs/reference/data.md lists the forms",
        )


_MEND = 'fix the row, or drop such rows with malformed = "drop"; docs/reference/data.md shows the forms'


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
