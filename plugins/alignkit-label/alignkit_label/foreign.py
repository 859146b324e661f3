"""JSON of Argilla 2 and Label Studio, in and out.

Both follow the programs' sources and manuals and have not been tried against a running server. What has no place of its
own there (AIs' verdicts, seconds, reasons, skips in Argilla) stands as JSON in one field that the programs pass on.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alignkit_data import content_of, text_of

from alignkit import Group
from alignkit.preferences import Annotation, annotations_of, stored_annotations, with_annotations
from alignkit_label.records import ALL_BAD
from alignkit_label.store import without_gaps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Record = dict[str, Any]
KEPT = "alignkit"
"""The field of `metadata` (Argilla) or `data` (Label Studio) with the whole record but its texts."""
TIE, SKIP, RANKING, VERDICT = "tie", "skip", "ranking", "verdict"
NAMES = uuid.UUID("6f0f4a5e-1d0b-4f0e-9f57-0d5a8f8b7c11")
NUMBERED = re.compile(r"response[-_ ]?(\d+)$")


def from_argilla(row: Record) -> Group:
    """The group of a record. Raises ValueError, KeyError, TypeError or AttributeError if it is none."""
    fields, metadata = row["fields"], row.get("metadata") or {}
    names = _numbered(fields)
    people = json.loads(metadata.get("annotators", "{}"))
    said = []
    for question, answers in (row.get("responses") or {}).items():
        for answer in answers if question in (RANKING, VERDICT) else []:
            user = str(answer["user_id"])
            ranks = _ranks_of_answer(answer["value"], names)
            reason = ALL_BAD if answer["value"] == ALL_BAD else ""
            said.append(Annotation(people.get(user, user), ranks, "human", reason=reason))
    texts = [text_of(fields[name], name) for name in names]
    return _restored(fields["prompt"], texts, said, metadata.get(KEPT), "argilla")


def to_argilla(group: Group) -> Record:
    """The record of a group, as `Record.to_dict` has it."""
    names = [f"response-{number}" for number in range(1, len(group.responses) + 1)]
    answers: dict[str, list[Record]] = {}
    people = {str(uuid.uuid5(NAMES, one.annotator)): one for one in _people(group)}
    for user, one in people.items():
        if one.ranks is not None:
            question, value = _answer(one, one.ranks, names)
            answers.setdefault(question, []).append({"value": value, "user_id": user})
    annotators = json.dumps({user: one.annotator for user, one in people.items()})
    return {
        "fields": {"prompt": group.prompt.content, **dict(zip(names, group.responses, strict=True))},
        "metadata": {**({"annotators": annotators} if people else {}), KEPT: _kept(group)},
        "suggestions": {},
        "responses": answers,
        "vectors": {},
    }


def from_label_studio(row: Record) -> Group:
    """The group of a task. Raises ValueError, KeyError, TypeError or AttributeError if it is none."""
    data = row["data"]
    listed = data.get("items")
    names = [str(item["id"]) for item in listed] if listed else _numbered(data)
    given = [item["body"] for item in listed] if listed else [data[name] for name in names]
    said = [one for annotation in row.get("annotations") or [] if (one := _annotation(annotation, names)) is not None]
    prompt = data["messages"] if "messages" in data else data["prompt"]
    texts = [text_of(text, name) for text, name in zip(given, names, strict=True)]
    return _restored(prompt, texts, said, data.get(KEPT), "label-studio")


def to_label_studio(group: Group) -> Record:
    """The task of a group, without an id.

    The annotations name no `completed_by`, because Label Studio refuses users that it does not know; each result's
    `meta` names the annotator.
    """
    names = [str(number) for number in range(1, len(group.responses) + 1)]
    texts = list(zip(names, group.responses, strict=True))
    data: Record = {"prompt": group.prompt.plain, KEPT: _kept(group)}
    if group.prompt.messages is not None:
        data["messages"] = group.prompt.content
    if len(texts) == 2:
        data |= {f"response_{name}": text for name, text in texts}
    else:
        data["items"] = [{"id": name, "title": f"Response {name}", "body": text} for name, text in texts]
    annotations = [
        {
            "result": [{**_result(one, names), "meta": {"annotator": one.annotator}}],
            "was_cancelled": one.ranks is None,
            "lead_time": one.seconds,
        }
        for one in _people(group)
    ]
    return {"data": data, "annotations": annotations}


def _kept(group: Group) -> str:
    record = group.to_json()
    return json.dumps({name: record[name] for name in record if name not in ("prompt", "responses")})


def _restored(prompt: Any, texts: Sequence[str], said: Sequence[Annotation], kept: str | None, source: str) -> Group:
    """The group with people's answers, and with what the program could not hold.

    A person's stored verdict counts if their answer has the same ranks; AIs' verdicts and skips have no answer.

    Raises:
        ValueError: a verdict is about another number of responses.
    """
    record = {"source": source, **(json.loads(kept) if kept else {})}
    content, responses = content_of(prompt, "prompt"), list(texts)
    group = Group.from_json({**record, "prompt": content, "responses": responses})
    stored = stored_annotations(group)
    before = {one.annotator: one for one in stored if one.kind != "ai"}
    answers = {one.annotator: _known(one, before.get(one.annotator)) for one in said}
    known = {name: one for name, one in before.items() if name in answers or one.ranks is not None}
    if answers != known:
        group = replace(group, ranks=None, labels=None)
    others = [one for one in stored if one.kind == "ai" or one.annotator not in known]
    group = with_annotations(group, [*others, *answers.values()]) if others or answers else group
    annotations_of(group)
    return group


def _known(answer: Annotation, stored: Annotation | None) -> Annotation:
    """The stored verdict if the answer says the same; otherwise the answer."""
    if stored is None or stored.ranks != answer.ranks or _is_bad(stored) != _is_bad(answer):
        return answer
    return stored


def _is_bad(said: Annotation) -> bool:
    return said.reason.startswith(ALL_BAD)


def _answer(said: Annotation, ranks: Sequence[int], names: Sequence[str]) -> tuple[str, Any]:
    """(question, value) of a person's verdict in Argilla."""
    if len(set(ranks)) == 1:
        return VERDICT, ALL_BAD if _is_bad(said) else TIE
    order = sorted(range(len(names)), key=ranks.__getitem__)
    if len(set(ranks)) == len(names):
        return RANKING, [names[index] for index in order]
    return RANKING, [{"value": names[index], "rank": ranks[index] + 1} for index in order]


def _ranks_of_answer(value: Any, names: Sequence[str]) -> tuple[int, ...]:
    if value in (TIE, ALL_BAD):
        return (0,) * len(names)
    order = [{"value": one} if isinstance(one, str) else one for one in value]
    ranks: dict[str, Any] = {one["value"]: one.get("rank", place) for place, one in enumerate(order, start=1)}
    if not all(type(rank) is int for rank in ranks.values()):
        raise ValueError(f"a ranking holds the ranks {list(ranks.values())}, expected whole numbers")
    return without_gaps([ranks[name] for name in names])


def _annotation(annotation: Record, names: Sequence[str]) -> Annotation | None:
    """A person's verdict in Label Studio, None if it holds none."""
    results = annotation.get("result") or []
    by = next((one["meta"]["annotator"] for one in results if "annotator" in (one.get("meta") or {})), None)
    by = annotation.get("completed_by") if by is None else by
    name = by["email" if "email" in by else "id"] if isinstance(by, dict) else by
    if not isinstance(name, str | int):
        raise ValueError(f"completed_by is {by!r}, expected a name, an id, or an object with one of them")
    seconds = annotation.get("lead_time")
    if annotation.get("was_cancelled"):
        return Annotation(str(name), None, "human", None, seconds, "skipped")
    found = next(((ranks, one) for one in results if (ranks := _ranks_of(one, names)) is not None), None)
    if found is None:
        return None
    bad = found[1]["value"].get("choices") == [ALL_BAD]
    return Annotation(str(name), found[0], "human", None, seconds, ALL_BAD if bad else "")


def _ranks_of(result: Record, names: Sequence[str]) -> tuple[int, ...] | None:
    value = result["value"]
    if result["type"] == "pairwise":
        return {"left": (0, 1), "right": (1, 0)}[value["selected"]]
    if result["type"] == "choices" and value["choices"] in ([TIE], [ALL_BAD]):
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


def _result(said: Annotation, names: Sequence[str]) -> Record:
    """A person's verdict as a result in Label Studio."""
    ranks = said.ranks
    if ranks is None or len(set(ranks)) == 1:
        choice = SKIP if ranks is None else ALL_BAD if _is_bad(said) else TIE
        return {"from_name": VERDICT, "to_name": "prompt", "type": "choices", "value": {"choices": [choice]}}
    if len(names) == 2:
        selected = "left" if ranks[0] < ranks[1] else "right"
        return {"from_name": "pairwise", "to_name": "response_1", "type": "pairwise", "value": {"selected": selected}}
    buckets: dict[str, list[str]] = {f"rank-{rank + 1}": [] for rank in sorted(set(ranks))}
    for name, rank in zip(names, ranks, strict=True):
        buckets[f"rank-{rank + 1}"].append(name)
    return {"from_name": "ranker", "to_name": "items", "type": "ranker", "value": {"ranker": buckets}}


def _people(group: Group) -> list[Annotation]:
    return [one for one in annotations_of(group) if one.kind != "ai"]


def _numbered(fields: Mapping[str, Any]) -> list[str]:
    found = {int(match[1]): name for name in fields if (match := NUMBERED.match(name))}
    if len(found) < 2:
        raise ValueError(f"needs at least two fields response-1, response-2, ...; found {', '.join(fields)}")
    return [found[number] for number in sorted(found)]
