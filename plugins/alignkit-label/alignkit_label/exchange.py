"""Records in and out: any file that `dataset` reads, JSON of Argilla 2 and Label Studio, and TRL's columns.

docs/data.md describes the forms of the two programs. They follow the programs' sources and manuals and have not been
tried against a running server.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from alignkit_data import Dataset, content_of, text_of, to_trl_rows

from alignkit import Group, InputError, Prompt, check_storable
from alignkit.preferences import Annotation, annotations_of, with_annotations
from alignkit_label.store import without_gaps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

Form = Literal["groups", "pairs", "labels", "argilla", "label-studio"]
Record = dict[str, Any]
TIE, RANKING, VERDICT = "tie", "ranking", "verdict"
NAMES = uuid.UUID("6f0f4a5e-1d0b-4f0e-9f57-0d5a8f8b7c11")
NUMBERED = re.compile(r"response[-_ ]?(\d+)$")


def read_records(path: Path, columns: Mapping[str, str]) -> list[Group]:
    """The groups of a file. Single responses to one prompt (KTO) become one group.

    Raises:
        InputError: the file is missing, or fits none of the forms.
    """
    if not path.is_file():
        raise InputError("no such file", where=str(path), fix="check the path")
    foreign = _foreign(path)
    if foreign is None:
        return _joined(Dataset.of_file(path, columns).groups())
    convert, rows = foreign
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            check_storable(json.dumps(row, ensure_ascii=False))
            found.append(convert(row))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(what, where=f"{path}, record {number}", fix="docs/data.md shows the form") from error
    return found


def rows_of(groups: Iterable[Group], form: Form) -> Iterator[Record]:
    """Rows in this form; `pairs` and `labels` have TRL's columns."""
    if form == "pairs":
        return to_trl_rows(groups, form)
    if form == "labels":
        return to_trl_rows(_with_labels(groups), form)
    if form == "label-studio":
        return ({"id": number, **_to_label_studio(group)} for number, group in enumerate(groups, start=1))
    return (_to_argilla(group) if form == "argilla" else group.to_json() for group in groups)


def write_rows(path: Path, rows: Iterable[Record], form: Form) -> int:
    """Writes JSON lines, or one JSON list for Argilla and Label Studio, whole or not at all. Returns the row count."""
    listed = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    if form in ("argilla", "label-studio"):
        text = json.dumps(listed, ensure_ascii=False, indent=1) + "\n"
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return len(listed)


def _joined(groups: Iterable[Group]) -> list[Group]:
    """Joins groups of one response by prompt, at the place of the first; their labels become ranks."""
    joined: dict[str, list[Group]] = {}
    for number, group in enumerate(groups):
        key = group.prompt.key if len(group.responses) == 1 else f"group {number}"
        joined.setdefault(key, []).append(group)
    found = []
    for parts in joined.values():
        first = parts[0]
        if len(parts) > 1:
            known = [part.labels[0] for part in parts if part.labels]
            ranks = tuple(int(not label) for label in known) if len(set(known)) == 2 else None
            texts = tuple(part.responses[0] for part in parts)
            turns = [turn for part in parts for turn in part.meta.get("turns") or [None]]
            meta = {"turns": turns} if any(turns) else {}
            ranks = ranks if len(known) == len(parts) else None
            first = Group(first.prompt, texts, ranks, source=first.source, meta=meta)
        found.append(first)
    return [group for group in found if len(group.responses) > 1]


def _foreign(path: Path) -> tuple[Callable[[Any], Group], list[Any]] | None:
    """The converter and the rows of a JSON file of Argilla or Label Studio; None for other files, which `dataset` reads
    or refuses."""
    if path.suffix != ".json":
        return None
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    first = rows[0] if isinstance(rows, list) and rows else None
    if not isinstance(first, dict):
        return None
    if isinstance(first.get("fields"), dict):
        return _from_argilla, rows
    if isinstance(first.get("data"), dict):
        return _from_label_studio, rows
    return None


def _from_argilla(row: Record) -> Group:
    fields, metadata = row["fields"], row.get("metadata") or {}
    names = _numbered(fields)
    people = json.loads(metadata.get("annotators", "{}"))
    said = []
    for question, answers in (row.get("responses") or {}).items():
        for answer in answers if question in (RANKING, VERDICT) else []:
            user = str(answer["user_id"])
            ranks = _ranks_of_answer(answer["value"], names)
            said.append(Annotation(people.get(user, user), ranks, "human"))
    return _group(fields["prompt"], [text_of(fields[name], name) for name in names], said, "argilla")


def _group(prompt: Any, responses: Sequence[str], said: Sequence[Annotation], source: str) -> Group:
    """A group with verdicts. Raises ValueError if one of them is about another number of responses."""
    group = Group(Prompt.of(content_of(prompt, "prompt")), tuple(responses), source=source)
    group = with_annotations(group, said) if said else group
    annotations_of(group)
    return group


def _ranks_of_answer(value: Any, names: Sequence[str]) -> tuple[int, ...]:
    if value == TIE:
        return (0,) * len(names)
    order = [{"value": one} if isinstance(one, str) else one for one in value]
    ranks: dict[str, Any] = {one["value"]: one.get("rank", place) for place, one in enumerate(order, start=1)}
    if not all(type(rank) is int for rank in ranks.values()):
        raise ValueError(f"a ranking holds the ranks {list(ranks.values())}, expected whole numbers")
    return without_gaps([ranks[name] for name in names])


def _to_argilla(group: Group) -> Record:
    names = [f"response-{number}" for number in range(1, len(group.responses) + 1)]
    answers: dict[str, list[Record]] = {}
    people = {}
    for one in _people(group):
        user = str(uuid.uuid5(NAMES, one.annotator))
        people[user] = one.annotator
        assert one.ranks is not None
        order = sorted(range(len(names)), key=one.ranks.__getitem__)
        tied, strict = len(set(one.ranks)) == 1, len(set(one.ranks)) == len(names)
        value: Any = (
            [names[i] for i in order] if strict else [{"value": names[i], "rank": one.ranks[i] + 1} for i in order]
        )
        answers.setdefault(VERDICT if tied else RANKING, []).append({"value": TIE if tied else value, "user_id": user})
    return {
        "fields": {"prompt": group.prompt.content, **dict(zip(names, group.responses, strict=True))},
        "metadata": {"annotators": json.dumps(people)} if people else {},
        "suggestions": {},
        "responses": answers,
        "vectors": {},
    }


def _from_label_studio(row: Record) -> Group:
    data = row["data"]
    listed = data.get("items")
    names = [str(item["id"]) for item in listed] if listed else _numbered(data)
    given = [item["body"] for item in listed] if listed else [data[name] for name in names]
    said = []
    for annotation in row.get("annotations") or []:
        by = annotation.get("completed_by")
        name = by["email" if "email" in by else "id"] if isinstance(by, dict) else by
        if not isinstance(name, str | int):
            raise ValueError(f"completed_by is {by!r}, expected a name, an id, or an object with one of them")
        seconds = annotation.get("lead_time")
        results = annotation.get("result") or []
        ranks = (
            None
            if annotation.get("was_cancelled")
            else next(filter(None, (_ranks_of(r, names) for r in results)), None)
        )
        if ranks is not None:
            said.append(Annotation(str(name), ranks, "human", None, seconds))
        elif annotation.get("was_cancelled"):
            said.append(Annotation(str(name), None, "human", None, seconds, "skipped"))
    prompt = data["messages"] if "messages" in data else data["prompt"]
    return _group(prompt, [text_of(text, name) for text, name in zip(given, names, strict=True)], said, "label-studio")


def _ranks_of(result: Record, names: Sequence[str]) -> tuple[int, ...] | None:
    value = result["value"]
    if result["type"] == "pairwise":
        return {"left": (0, 1), "right": (1, 0)}[value["selected"]]
    if result["type"] == "choices" and value["choices"] == [TIE]:
        return (0,) * len(names)
    if result["type"] != "ranker":
        return None
    ranking = value["ranker"]
    if isinstance(ranking, dict) and all(re.fullmatch(r"rank-\d+", bucket) for bucket in ranking):
        places = {name: int(bucket[5:]) for bucket, members in ranking.items() for name in members}
    else:
        order = next(iter(ranking.values())) if isinstance(ranking, dict) else ranking
        places = {name: place for place, name in enumerate(order)}
    return without_gaps([places[name] for name in names])


def _to_label_studio(group: Group) -> Record:
    pair = len(group.responses) == 2
    names = [str(number) for number in range(1, len(group.responses) + 1)]
    texts = list(zip(names, group.responses, strict=True))
    prompt: Record = {"prompt": group.prompt.plain}
    if group.prompt.messages is not None:
        prompt["messages"] = group.prompt.content
    annotations = [
        {
            "completed_by": {"email": one.annotator},
            "result": [_result(one.ranks, names)] if one.ranks is not None else [],
            "was_cancelled": one.ranks is None,
            "lead_time": one.seconds,
        }
        for one in _people(group, skips=True)
    ]
    if pair:
        return {"data": {**prompt, **{f"response_{n}": text for n, text in texts}}, "annotations": annotations}
    items = [{"id": name, "title": f"Response {name}", "body": text} for name, text in texts]
    return {"data": {**prompt, "items": items}, "annotations": annotations}


def _result(ranks: Sequence[int], names: Sequence[str]) -> Record:
    if len(set(ranks)) == 1:
        return {"from_name": VERDICT, "to_name": "prompt", "type": "choices", "value": {"choices": [TIE]}}
    if len(names) == 2:
        selected = "left" if ranks[0] < ranks[1] else "right"
        return {"from_name": "pairwise", "to_name": "response_1", "type": "pairwise", "value": {"selected": selected}}
    buckets: dict[str, list[str]] = {f"rank-{rank + 1}": [] for rank in sorted(set(ranks))}
    for name, rank in zip(names, ranks, strict=True):
        buckets[f"rank-{rank + 1}"].append(name)
    return {"from_name": "ranker", "to_name": "items", "type": "ranker", "value": {"ranker": buckets}}


def _people(group: Group, *, skips: bool = False) -> list[Annotation]:
    return [one for one in annotations_of(group) if skips or one.ranks is not None]


def _numbered(fields: Mapping[str, Any]) -> list[str]:
    found = {int(match[1]): name for name in fields if (match := NUMBERED.match(name))}
    if len(found) < 2:
        raise ValueError(f"needs at least two fields response-1, response-2, ...; found {', '.join(fields)}")
    return [found[number] for number in sorted(found)]


def _with_labels(groups: Iterable[Group]) -> Iterator[Group]:
    """The best are desirable, the worst are not, those between are dropped. Existing labels (all bad) stay."""
    for group in groups:
        ranks = group.ranks or ()
        if group.labels is not None:
            yield group
        elif len(set(ranks)) > 1:
            kept = [index for index, rank in enumerate(ranks) if rank in (min(ranks), max(ranks))]
            yield replace(group.choose(kept), labels=tuple(ranks[index] == min(ranks) for index in kept))
