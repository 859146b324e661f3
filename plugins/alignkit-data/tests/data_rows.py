"""Rows of a file, and the groups made from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from alignkit_data.forms import detected_form
from alignkit_data.loading import GroupMaker
from alignkit_data.readers import Row

from alignkit.errors import InputError

if TYPE_CHECKING:
    from alignkit.records import Group

USER = {"role": "user", "content": "Hi?"}
SYSTEM = {"role": "system", "content": "Be kind."}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def make(values: dict[str, Any], **options: Any) -> Group:
    groups = list(GroupMaker(**options).groups([Row("data.jsonl:7", values)]))
    assert len(groups) == 1
    return groups[0]


def dropped(values: dict[str, Any], **options: Any) -> list[str]:
    maker = GroupMaker(**options)
    assert not list(maker.groups([Row("data.jsonl:7", values)]))
    return list(maker.dropped)


def said_of(values: dict[str, Any], **options: Any) -> str:
    """What is wrong with a malformed row, which is line 7."""
    with pytest.raises(InputError) as error:
        make(values, **options)
    assert error.value.where == "data.jsonl:7"
    return error.value.what


def form_of(values: dict[str, Any]) -> str:
    form = detected_form(values)
    assert form is not None
    return form.name
