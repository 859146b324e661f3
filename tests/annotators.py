"""People at the page of `alignkit label serve`, played over its HTTP interface by the demo's simulated annotators."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignkit_demo import world

from alignkit import Group, Prompt

if TYPE_CHECKING:
    from pathlib import Path

LATE_KETTLE = {"intent": "late", "product": "kettle"}
"""What prompts are about that aren't in the demo's data."""


def what_prompts_are_about(prompts: Path) -> dict[str, Any]:
    """Customer's words -> intent and product, from the demo's prompts.jsonl."""
    rows = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    return {row["prompt"][-1]["content"]: {name: row[name] for name in LATE_KETTLE} for row in rows}


@dataclass(frozen=True)
class Annotator:
    """Somebody who ranks what the page shows.

    Args:
        link: as `serve` prints it.
        about: customer's words -> intent and product.
    """

    name: str
    link: str
    about: dict[str, Any]

    def work(self, most: int | None = None) -> int:
        """Judges what comes, at most so many items; returns how many it was."""
        state = self._post("state", {})
        judged = 0
        while state["item"] is not None and judged != most:
            state = self._post("annotate", self._verdict(state["item"]))
            judged += 1
        return judged

    def _verdict(self, item: dict[str, Any]) -> dict[str, Any]:
        words = item["prompt"][-1]["content"]
        shown = Group(Prompt.of(words, self.about.get(words, LATE_KETTLE)), tuple(item["responses"]))
        ranks = world.rank(shown, self.name).ranks
        write = f"{self.name}-{item['id']}"
        return {"write": write, "item": item["id"], "verdict": "ranked", "ranks": ranks, "seconds": 12.5}

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        base, _, token = self.link.partition("/#token=")
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Origin": base}
        request = urllib.request.Request(f"{base}/api/{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.load(answer))
