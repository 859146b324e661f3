"""The known forms of rows, how to detect them, and how to convert a row of each form to a group.

A converter raises ValueError for a malformed row and Unusable for a row with nothing to learn from.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from alignkit import Group, Prompt
from alignkit.preferences import RANKS_OF_VERDICT, Annotation, with_annotations
from alignkit_data.comparisons import checked_verdict, fitted_ranks, ranks_of_comparisons
from alignkit_data.messages import Content, Unusable, content_of, kind, part, split_last_turn, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """A form of rows.

    Attributes:
        needs: columns that each row must have; the first form whose needs are met applies.
        may: optional columns. All others go to the prompt's `meta`.
        group: the converter.
    """

    name: str
    needs: tuple[str, ...]
    may: tuple[str, ...]
    group: Callable[[Values], Group]

    def uses(self, columns: Collection[str]) -> set[str]:
        """The columns of a row that become part of the group itself."""
        instruction = set() if "prompt" in columns or "instruction" not in columns else set(_INSTRUCTION)
        return {*self.needs, *self.may, *instruction} & set(columns)


_INSTRUCTION = ("instruction", "input", "system", "history")


def _prompt(values: Values) -> Content:
    if "prompt" in values:
        content = content_of(values["prompt"], "prompt")
    elif "instruction" in values:
        content = _instruction(values)
    else:
        raise ValueError("no column 'prompt'")
    if not (content.strip() if isinstance(content, str) else any(message["content"] for message in content)):
        raise Unusable("empty prompt")
    return content


def _instruction(values: Values) -> Content:
    """Alpaca's columns as a chat: the history's turns, then the instruction with the input below it."""
    messages: list[dict[str, Any]] = []
    if values.get("system"):
        messages.append({"role": "system", "content": text_of(values["system"], "system")})
    for index, turn in enumerate(values.get("history") or ()):
        if not (isinstance(turn, list) and len(turn) == 2):
            raise ValueError(f"history[{index}] is not a pair of texts")
        for role, text in zip(("user", "assistant"), turn, strict=True):
            messages.append({"role": role, "content": text_of(text, f"history[{index}]")})
    request = text_of(values["instruction"], "instruction")
    if values.get("input"):
        request += "\n\n" + text_of(values["input"], "input")
    return [*messages, {"role": "user", "content": request}]


def _response(text: str) -> str:
    if not text.strip():
        raise Unusable("empty response")
    return text


def _pair(prompt: Content | None, values: Values, first: str, second: str) -> tuple[Prompt, tuple[str, str]]:
    content, (left, right) = part(prompt, [content_of(values[first], first), content_of(values[second], second)])
    if left.strip() == right.strip():
        raise Unusable(f"{first} and {second} are the same")
    return Prompt.of(content), (_response(left), _response(right))


def _preference(values: Values) -> Group:
    prompt = _prompt(values) if "prompt" in values or "instruction" in values else None
    parted, responses = _pair(prompt, values, "chosen", "rejected")
    return Group(parted, responses, ranks=(0, 1))


def _verdict(values: Values) -> Group:
    verdict = checked_verdict(values["verdict"], "verdict")
    prompt, responses = _pair(_prompt(values), values, "response_1", "response_2")
    return Group(prompt, responses, ranks=RANKS_OF_VERDICT[verdict])


def _annotated(values: Values) -> Group:
    """A pair with the verdicts of several people and AIs, ranked by the majority of people, or of AIs without people.

    Booleans and numbers count as text, because spreadsheets turn texts into them. Empty responses stay, because the
    verdicts on them tell something about the annotators.
    """
    responses = tuple(
        str(values[name]) if isinstance(values[name], int | float) else text_of(values[name], name)
        for name in ("response_1", "response_2")
    )
    annotations = [*_said(values, "human"), *_said(values, "ai")]
    people, machines = ([said.ranks for said in annotations if said.kind == who] for who in ("human", "ai"))
    ranks = _most_frequent(people) or _most_frequent(machines)
    return with_annotations(Group(Prompt.of(_prompt(values)), responses, ranks=ranks), annotations)


def _said(values: Values, column: Literal["human", "ai"]) -> list[Annotation]:
    """The verdicts in a column: by the annotator's name, in a list by the annotator's place in it, or one alone.

    An AI's pair of verdicts, `[1, 2]`, was given with response_1 shown first and then with response_2 shown first; both
    numbers name the better response.
    """
    given = values.get(column)
    if type(given) is int:
        given = [given]
    if isinstance(given, list | tuple):
        given = {f"{column}-{number}": verdict for number, verdict in enumerate(given, start=1)}
    if not isinstance(given, dict | None):
        raise ValueError(f"{column} is {kind(given)}, expected verdicts by annotator")
    said = []
    for name, verdicts in (given or {}).items():
        both = column == "ai" and isinstance(verdicts, list | tuple) and len(verdicts) == 2
        for verdict, order in zip(verdicts if both else [verdicts], ((0, 1), (1, 0)), strict=False):
            ranks = None if verdict is None else RANKS_OF_VERDICT[checked_verdict(verdict, f"{column}.{name}")]
            said.append(Annotation(name, ranks, column, order=order))
    return said


def _most_frequent(rankings: Iterable[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """The ranks that most annotators gave; a tie if two are equally frequent, None if all abstained."""
    ranked = Counter(ranks for ranks in rankings if ranks is not None).most_common(2)
    if not ranked:
        return None
    return (0, 0) if len(ranked) == 2 and ranked[0][1] == ranked[1][1] else ranked[0][0]


def _completion(values: Values) -> Group:
    """A demonstration. Its prompt may be empty: plain text to learn from."""
    content, (response,) = part(
        content_of(values["prompt"], "prompt"), [content_of(values["completion"], "completion")]
    )
    return Group(Prompt.of(content), (_response(response),))


def _label(values: Values) -> Group:
    label = values["label"]
    if isinstance(label, str):
        label = {"true": True, "false": False, "1": True, "0": False}.get(label.strip().lower(), label)
    if not (isinstance(label, bool | int) and label in (0, 1)):
        raise ValueError(f"label is {values['label']!r}, expected true or false (1 or 0)")
    _prompt(values)
    return replace(_completion(values), labels=(bool(label),))


def _messages(values: Values) -> Group:
    return _chat(values, "messages")


def _conversations(values: Values) -> Group:
    return _chat(values, "conversations")


def _chat(values: Values, column: str) -> Group:
    messages = content_of(values[column], column)
    if isinstance(messages, str):
        raise ValueError(f"{column} is text, expected messages")
    before, response = split_last_turn(messages)
    return Group(Prompt.of(before), (_response(response),))


def _alpaca(values: Values) -> Group:
    prompt = Prompt.of(_prompt({key: value for key, value in values.items() if key != "prompt"}))
    return Group(prompt, (_response(text_of(values["output"], "output")),))


def _prompts(values: Values) -> Group:
    """A prompt to sample from; its one response is empty and not for learning."""
    return Group(Prompt.of(_prompt(values)), ("",))


def _groups(values: Values) -> Group:
    """The form that alignkit writes, one row per group; ranks may start at 0 or 1."""
    content, responses = _responses(values)
    group = Group(
        Prompt.of(content, _mapping(values, "prompt_meta")),
        responses,
        scores=_scores(values),
        labels=_listed(values, "labels"),
        finished=_listed(values, "finished"),
        source=values.get("source") or "",
        meta=_mapping(values, "meta"),
    )
    ranks = _listed(values, "ranks")
    if ranks is not None:
        return _ranked(group, _checked_ranks(ranks))
    return _ranked_by_scores(group)


def _comparisons(values: Values) -> Group:
    content, responses = _responses(values)
    ranks = ranks_of_comparisons(values["pairwise"], len(responses))
    return _ranked(Group(Prompt.of(content), responses, scores=_scores(values)), ranks)


def fitted_comparisons(values: Values) -> Group:
    """Like `comparisons`, but ranked by a Bradley-Terry fit, with cycles in the group's meta."""
    content, responses = _responses(values)
    ranks, cycles = fitted_ranks(values["pairwise"], len(responses))
    meta = {"cycles": cycles} if cycles else {}
    return _ranked(Group(Prompt.of(content), responses, scores=_scores(values), meta=meta), ranks)


def _responses(values: Values) -> tuple[Content, tuple[str, ...]]:
    listed = values["responses"]
    if not isinstance(listed, list | tuple):
        raise ValueError(f"responses is {kind(listed)}, expected a list of texts")
    prompt = content_of(values["prompt"], "prompt")
    if all(isinstance(response, str) for response in listed):
        return prompt, tuple(listed)
    content, texts = part(prompt, [content_of(item, f"responses[{index}]") for index, item in enumerate(listed)])
    return content, tuple(texts)


def _mapping(values: Values, name: str) -> dict[str, Any]:
    value = values.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {kind(value)}, expected an object")
    return value


def _listed(values: Values, name: str) -> tuple[Any, ...] | None:
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {kind(value)}, expected a list")
    return tuple(value)


def _scores(values: Values) -> tuple[float | None, ...] | None:
    scores = _listed(values, "scores")
    for score in scores or ():
        if score is not None and (type(score) not in (int, float) or not math.isfinite(score)):
            raise ValueError(f"scores holds {score!r}, expected finite numbers or null")
    return None if scores is None else tuple(None if score is None else float(score) for score in scores)


def _checked_ranks(ranks: Sequence[Any]) -> tuple[int, ...]:
    if len(ranks) == 1:
        raise ValueError("a ranking needs at least two entries")
    for rank in ranks:
        if type(rank) is not int or rank < 0:
            raise ValueError(f"ranks holds {rank!r}, expected integers from 0 (best)")
    order = sorted(set(ranks))
    return tuple(order.index(rank) for rank in ranks)


def _ranked_by_scores(group: Group) -> Group:
    """With ranks from the scores if two or more are known; otherwise unchanged."""
    known = [score for score in group.scores or () if score is not None]
    if len(known) < 2:
        return group
    ranked = group.ranked_by_scores()
    if len(known) == len(group.responses):
        ranked = replace(ranked, labels=group.labels)
    return _ranked(ranked, ranked.ranks or ())


def _ranked(group: Group, ranks: tuple[int, ...]) -> Group:
    group = replace(group, ranks=ranks)
    if len(set(zip(group.responses, ranks, strict=True))) > len(set(group.responses)):
        raise Unusable("the same response at two ranks")
    return group


FORMS = {
    form.name: form
    for form in (
        Form("comparisons", ("prompt", "responses", "pairwise"), ("scores",), _comparisons),
        Form(
            "groups",
            ("prompt", "responses"),
            ("ranks", "scores", "labels", "finished", "source", "meta", "prompt_meta"),
            _groups,
        ),
        Form("preference", ("chosen", "rejected"), ("prompt",), _preference),
        Form("verdict", ("prompt", "response_1", "response_2", "verdict"), (), _verdict),
        Form("annotated", ("prompt", "response_1", "response_2", "human"), ("ai",), _annotated),
        Form("label", ("prompt", "completion", "label"), (), _label),
        Form("completion", ("prompt", "completion"), (), _completion),
        Form("messages", ("messages",), (), _messages),
        Form("sharegpt", ("conversations",), (), _conversations),
        Form("alpaca", ("instruction", "output"), ("input", "system", "history"), _alpaca),
        Form("prompts", ("prompt",), (), _prompts),
    )
}
"""By name, in the order in which they are tried."""

_NOT_BARE = {"completion", "completions", "responses", "response", "pairwise", "response_1", "response_2", "verdict"}
_OTHER_NAMES = {
    "prompt": ("question", "query", "instruction", "problem", "input", "context", "post"),
    "completion": ("answer", "response", "output", "reply", "solution", "assistant", "text"),
    "chosen": ("preferred", "winner", "better", "good", "accepted", "win", "positive"),
    "rejected": ("dispreferred", "loser", "worse", "bad", "lose", "negative"),
    "label": ("desirable", "thumbs_up", "is_good", "feedback"),
    "responses": ("completions", "candidates", "answers", "outputs", "generations"),
    "messages": ("conversation", "dialog", "dialogue", "chat", "turns"),
    "verdict": ("winner", "preference", "label", "human_majority"),
}


def detected_form(columns: Collection[str]) -> Form | None:
    """The first form whose needs these columns meet, or None.

    Rows count as bare prompts only if no column hints at another form.
    """
    for form in FORMS.values():
        if not _lacks(form, columns):
            half = any(name in _NOT_BARE or "chosen" in name or "rejected" in name for name in columns)
            return None if form.name == "prompts" and half else form
    return None


def missing_columns(columns: Collection[str], forms: Collection[Form]) -> tuple[str, str]:
    """For columns that fit none of these forms: what the closest form lacks, and which columns to rename."""
    guesses = [(form, _guess(columns, form)) for form in forms if _lacks(form, columns)]

    def distance(guess: tuple[Form, dict[str, str]]) -> tuple[int, int]:
        form, mapping = guess
        return len(_lacks(form, columns)) - len(mapping), -len(form.uses(columns)) - len(mapping)

    form, mapping = min(guesses, key=distance)
    if len(forms) > 1 and not mapping and not form.uses(columns):
        needs = "; ".join(f"{form.name} ({', '.join(form.needs)})" for form in forms)
        return f"known forms: {needs}", "--columns old=new"
    missing = _lacks(form, columns)
    needs = ", ".join([*(name for name in missing if name not in form.needs), *form.needs])
    needed = f"{form.name} data needs {needs} (missing: {', '.join(missing)})"
    return needed, ", ".join(f"--columns {old}={new}" for old, new in mapping.items()) or "--columns old=new"


def _lacks(form: Form, columns: Collection[str]) -> list[str]:
    """Columns that the form needs and the row lacks.

    A preference pair may lack the prompt, unless a column looks like the prompt under another name.
    """
    missing = [name for name in form.needs if name not in columns]
    if form.name == "preference" and not {"prompt", "instruction"} & set(columns):
        renamed = set(_OTHER_NAMES["prompt"]) & set(columns) or get_close_matches("prompt", columns, cutoff=0.85)
        return ["prompt", *missing] if missing or renamed else []
    return missing


def _guess(columns: Collection[str], form: Form) -> dict[str, str]:
    free = [column for column in columns if column not in form.uses(columns)]
    mapping: dict[str, str] = {}
    for name in _lacks(form, columns):
        aliases = {alias for alias in _OTHER_NAMES.get(name, ()) if alias in free}
        near = get_close_matches(name, free, n=1, cutoff=0.7) or [column for column in free if column in aliases]
        near = near or [column for column in free if name in column.lower()]
        if near:
            mapping[near[0]] = name
            free.remove(near[0])
    return mapping
