"""The known forms of rows, how to detect them, and how to convert a row of each form to a group.

A converter raises ValueError for a malformed row and Unusable for a row with nothing to learn from.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from alignkit import Group, Prompt
from alignkit.preferences import RANKS_OF_VERDICT, Annotation, with_annotations
from alignkit_data.comparisons import checked_verdict
from alignkit_data.messages import (
    Content,
    Unusable,
    answer_text,
    content_of,
    group_of,
    part,
    split_last_turn,
    text_of,
)
from alignkit_data.rankings import exact_comparisons, listed, written_groups
from alignkit_data.turns import kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """A form of rows.

    Attributes:
        needs: columns that each row must have; the first form whose needs are met applies.
        may: optional columns. All others go to the prompt's `meta`.
        group: the converter.
        beside: sets of columns, one of which each row must have too.
    """

    name: str
    needs: tuple[str, ...]
    may: tuple[str, ...]
    group: Callable[[Values], Group]
    beside: tuple[tuple[str, ...], ...] = ()

    def base(self, columns: Collection[str]) -> tuple[str, ...]:
        """The first of the sets in `beside` that these columns have; the first of all if they have none."""
        return next((names for names in self.beside if set(names) <= set(columns)), (*self.beside, ())[0])

    def uses(self, columns: Collection[str]) -> set[str]:
        """The columns of a row that become part of the group itself."""
        instruction = set() if "prompt" in columns or "instruction" not in columns else set(_INSTRUCTION)
        chat = set(CHATS) if self.name == "preference" and not {"prompt", "instruction"} & set(columns) else set()
        return {*self.needs, *self.may, *self.base(columns), *instruction, *chat} & set(columns)


_INSTRUCTION = ("instruction", "input", "history")
CHATS = ("messages", "conversations")


def _prompt(values: Values) -> Content:
    chat = _chat_column(values)
    if "prompt" in values:
        content = content_of(values["prompt"], "prompt")
    elif "instruction" in values:
        content = _instruction(values)
    elif chat:
        content = _conversation(values, chat)
    else:
        raise ValueError("no column 'prompt'")
    if not (content.strip() if isinstance(content, str) else any(message["content"] for message in content)):
        raise Unusable("empty prompt")
    return content


def _chat_column(values: Values) -> str:
    """The column with a whole conversation, "" if there is none."""
    return next((name for name in CHATS if name in values), "")


def _conversation(values: Values, column: str) -> list[dict[str, Any]]:
    messages = content_of(values[column], column)
    if isinstance(messages, str):
        raise ValueError(f"{column} is text, expected messages")
    return messages


def _instruction(values: Values) -> Content:
    """Alpaca's columns as a chat: the history's turns, then the instruction with the input below it."""
    messages: list[dict[str, Any]] = []
    for index, turn in enumerate(listed(values, "history") or ()):
        if not (isinstance(turn, list) and len(turn) == 2):
            raise ValueError(f"history[{index}] is not a pair of texts")
        for role, text in zip(("user", "assistant"), turn, strict=True):
            messages.append({"role": role, "content": text_of(text, f"history[{index}]")})
    request = text_of(values["instruction"], "instruction")
    more = text_of(values.get("input") or "", "input")
    if more.strip():
        request += "\n\n" + more
    return [*messages, {"role": "user", "content": request}]


def _pair(prompt: Content | None, first: Content, second: Content, names: str, **fields: Any) -> Group:
    content, answers = part(prompt, [first, second])
    left, right = map(answer_text, answers)
    if left.strip() == right.strip():
        raise Unusable(f"{names} are the same")
    if not (left.strip() and right.strip()):
        raise Unusable("empty response")
    return group_of(content, answers, **fields)


def _preference(values: Values) -> Group:
    given = {"prompt", "instruction"} & set(values)
    chat = _chat_column(values)
    chosen, rejected = (content_of(values[name], name) for name in ("chosen", "rejected"))
    prompt = _prompt(values) if given else None
    if chat and not given:
        before = _conversation(values, chat)
        if before and before[-1]["role"] != "assistant":
            prompt = before
        elif isinstance(chosen, str):
            raise ValueError(f"{chat} ends with an answer, beside chosen and rejected: rename or drop one of them")
    return _pair(prompt, chosen, rejected, "chosen and rejected", ranks=(0, 1))


def _rejected(values: Values) -> Group:
    """A demonstration with a worse answer beside it, as ms-swift writes pairs."""
    prompt, chosen = _demonstration(values)
    worse = content_of(values["rejected_response"], "rejected_response")
    if isinstance(worse, str) and not isinstance(chosen, str):
        worse = [{"role": "assistant", "content": worse}]
    return _pair(prompt, chosen, worse, "the answer and the rejected one", ranks=(0, 1))


def _demonstration(values: Values) -> tuple[Content, Content]:
    """The prompt and the answer of a row of any form with one answer."""
    chat = _chat_column(values)
    if chat:
        before, answer = split_last_turn(_conversation(values, chat))
        return before, [answer]
    if "completion" in values:
        return content_of(values["prompt"], "prompt"), content_of(values["completion"], "completion")
    return _prompt(values), text_of(values["output"], "output")


def _answered(values: Values) -> Group:
    """A demonstration, labelled if a column `label` says true or false. A text prompt may be empty: text to learn."""
    prompt, answer = _demonstration(values)
    content, answers = part(prompt, [answer])
    if not answer_text(answers[0]).strip():
        raise Unusable("empty response")
    return group_of(content, answers, labels=(label,) if (label := truth(values.get("label"))) is not None else None)


def truth(value: Any) -> bool | None:
    """The boolean that a label means, None if it means something else."""
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def _verdict(values: Values) -> Group:
    verdict = checked_verdict(values["verdict"], "verdict")
    first, second = (content_of(values[name], name) for name in ("response_1", "response_2"))
    return _pair(_prompt(values), first, second, "response_1 and response_2", ranks=RANKS_OF_VERDICT[verdict])


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


def is_prompt(values: Values) -> bool:
    """Whether the row is a conversation that waits for an answer."""
    try:
        return bool(_conversation(values, _chat_column(values))[-1]["role"] != "assistant")
    except (KeyError, ValueError, IndexError):
        return False


def _label(values: Values) -> Group:
    if truth(values["label"]) is None:
        raise ValueError(f"label is {values['label']!r}, expected true or false (1 or 0)")
    _prompt(values)
    return _answered(values)


def _prompts(values: Values) -> Group:
    """A prompt to sample from; its one response is empty and not for learning."""
    content = _prompt(values)
    if "prompt" not in values and not isinstance(content, str) and content[-1]["role"] == "assistant":
        content, _ = split_last_turn(content)
    return Group(Prompt.of(content), ("",))


_ANSWERED = (("messages",), ("conversations",), ("prompt", "completion"), ("instruction", "output"))

FORMS = {
    form.name: form
    for form in (
        Form("comparisons", ("prompt", "responses", "pairwise"), ("scores",), exact_comparisons),
        Form(
            "groups",
            ("prompt", "responses"),
            ("ranks", "scores", "labels", "finished", "source", "meta", "prompt_meta"),
            written_groups,
        ),
        Form("preference", ("chosen", "rejected"), ("prompt",), _preference),
        Form("verdict", ("prompt", "response_1", "response_2", "verdict"), (), _verdict),
        Form("annotated", ("prompt", "response_1", "response_2", "human"), ("ai",), _annotated),
        Form("rejected", ("rejected_response",), (), _rejected, _ANSWERED),
        Form("label", ("prompt", "completion", "label"), (), _label),
        Form("completion", ("prompt", "completion"), (), _answered),
        Form("messages", ("messages",), ("label",), _answered),
        Form("sharegpt", ("conversations",), ("label",), _answered),
        Form("alpaca", ("instruction", "output"), ("input", "history", "label"), _answered),
        Form("prompts", (), (), _prompts, (("prompt",), ("messages",), ("conversations",))),
    )
}
"""By name, in the order in which they are tried."""

CHAT_FORMS = ("messages", "sharegpt")
_RENAMED = {"rejected_messages": "rejected_response", "kto_tag": "label"}
_QUERY = {"query": "instruction", "response": "output"}

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


def with_known_names(values: Values) -> dict[str, Any]:
    """The row with the names of the forms in place of those of ms-swift and LLaMA-Factory."""
    bare = set(_QUERY) <= set(values) and not {"prompt", "instruction", "output", *CHATS} & set(values)
    names = _RENAMED | (_QUERY if bare else {})
    return {(names[name] if name in names and names[name] not in values else name): values[name] for name in values}


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
        needs = "; ".join(f"{form.name} ({', '.join((*form.needs, *form.base(())))})" for form in forms)
        return f"known forms: {needs}", "--columns old=new"
    missing = _lacks(form, columns)
    every = (*form.needs, *form.base(columns))
    needs = ", ".join([*(name for name in missing if name not in every), *every])
    needed = f"{form.name} data needs {needs} (missing: {', '.join(missing)})"
    return needed, ", ".join(f"--columns {old}={new}" for old, new in mapping.items()) or "--columns old=new"


def _lacks(form: Form, columns: Collection[str]) -> list[str]:
    """Columns that the form needs and the row lacks.

    A preference pair may lack the prompt, unless a column looks like the prompt under another name.
    """
    missing = [name for name in (*form.needs, *form.base(columns)) if name not in columns]
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
