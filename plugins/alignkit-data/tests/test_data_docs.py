"""Each form has example rows in docs/reference/data.md, and they are detected as that form."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from alignkit_data.forms import FORMS, detected_form
from alignkit_data.loading import GroupMaker
from alignkit_data.readers import Row

DOCUMENT = Path(__file__).parents[3] / "docs/reference/data.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
EXAMPLES = [
    (form, line)
    for form, block in re.findall(r"^`(\w+)`[^\n]*:\n```json\n(.*?)```", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


def test_each_form_has_an_example_and_a_line_in_the_table_in_the_order_of_detection() -> None:
    assert list(dict.fromkeys(form for form, _ in EXAMPLES)) == list(FORMS)
    assert re.findall(r"^\| `(\w+)`", TEXT, re.MULTILINE) == list(FORMS)
    assert TEXT.count("```json") == len(FORMS)


@pytest.mark.parametrize(("form", "line"), EXAMPLES)
def test_the_example_is_of_its_form(form: str, line: str) -> None:
    row = json.loads(line)
    found = detected_form(row)
    assert found is not None
    assert found.name == form
    (group,) = GroupMaker().groups([Row("docs/reference/data.md", row)])
    assert "prime" in group.prompt.plain or "Add" in group.prompt.plain
    answers = {text.strip() for text in group.responses}
    assert answers <= {"5", "7", "9", ""}
    if group.ranks:
        best = {text.strip() for text, rank in zip(group.responses, group.ranks, strict=True) if rank == 0}
        assert best <= {"5", "7"}
