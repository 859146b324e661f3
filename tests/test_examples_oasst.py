"""examples/oasst.py makes rankings of OpenAssistant's messages."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from alignkit import InputError

if TYPE_CHECKING:
    from types import ModuleType

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def oasst(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("oasst")


def row(name: str, parent: str | None, text: str, rank: int | None = None, lang: str = "en") -> dict[str, Any]:
    role = "prompter" if name.startswith("p") else "assistant"
    return {"message_id": name, "parent_id": parent, "text": text, "role": role, "lang": lang, "rank": rank}


def test_ranked_replies_become_groups_with_the_conversation_before_them(tmp_path: Path, oasst: ModuleType) -> None:
    rows = [
        row("p1", None, "Hello?"), row("a2", "p1", "Hm", 1), row("a1", "p1", "Hi!", 0), row("a3", "p1", "Eh."),
        row("p2", "a1", "And now?"), row("a4", "p2", "Bye.", 0), row("a5", "p2", "Once.", 2), row("a6", "p2", "No.", 1),
        row("p3", None, "Only one."), row("a7", "p3", "One.", 0), row("p4", None, "Hola?", lang="es"),
        row("a8", "p4", "Si.", 0, "es"), row("a9", "p4", "No.", 1, "es"),
    ]  # fmt: skip
    path = tmp_path / "messages.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    first, second = oasst.rankings(None, path=str(path), split="")
    assert [(turn["role"], turn["content"]) for turn in first.prompt.content] == [("user", "Hello?")]
    assert (first.responses, first.ranks) == (("Hm", "Hi!"), (1, 0))
    assert [(turn["role"], turn["content"]) for turn in second.prompt.content] == [
        ("user", "Hello?"), ("assistant", "Hi!"), ("user", "And now?"),
    ]  # fmt: skip
    assert (second.responses, second.ranks) == (("Bye.", "Once.", "No."), (0, 2, 1))
    (spanish,) = oasst.rankings(None, path=str(path), split="", language="es")
    assert spanish.ranks == (0, 1)


def test_without_a_network_the_data_set_is_named(oasst: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = importlib.import_module("alignkit_data.hub")
    monkeypatch.setattr(hub, "_is_reachable", lambda _: False)
    monkeypatch.setattr(hub, "_is_cached", lambda *_: False)
    with pytest.raises(InputError, match=r"OpenAssistant/oasst1.*can't be reached"):
        next(oasst.rankings(None))
