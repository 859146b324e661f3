"""A new plugin to start from: what `plugins new` writes, and what stands in examples/third-party-plugin."""

from __future__ import annotations

import re
from string import Template
from typing import TYPE_CHECKING

from alignkit.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$distribution"
version = "0.1.0"
description = "alignkit reward: responses of about the wanted length."
requires-python = ">=3.11"
dependencies = ["alignkit>=0.1"]

[project.entry-points.alignkit]
$name = "$module"

[tool.setuptools]
py-modules = ["$module"]
"""

README = """\
# $distribution

A reward for [alignkit](https://pypi.org/project/alignkit/): responses of about the wanted length.

    pip install $distribution
    alignkit plugins show $name
    alignkit score groups.jsonl --reward $name -o reward.words=12 --out scored.jsonl

`pytest` runs the contract that every reward has to keep, and what is special about this one.
"""

MODULE = '''\
"""The reward `$name`: responses of about the wanted length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignkit import RewardSource, hookimpl
from alignkit.options import Config, Count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignkit import Group
    from alignkit.hookspecs import Register

ALIGNKIT_INTERFACE = 1


@dataclass(frozen=True, kw_only=True)
class ${stem}Options(Config):
    """Responses of about the wanted length."""

    words: Count = 20
    """Words of the response that scores best, 0; twice as many, or none, score -1."""


class ${stem}Reward(RewardSource[${stem}Options]):
    """Minus the distance to the wanted number of words, as a share of it."""

    Config = ${stem}Options

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        return [[self._score_one(response) for response in group.responses] for group in groups]

    def _score_one(self, response: str) -> float:
        return -abs(len(response.split()) / self.config.words - 1)


@hookimpl
def register_reward_sources(register: Register) -> None:
    register("$name", ${stem}Reward, config=${stem}Options)
'''

TEST = """\
from __future__ import annotations

from $module import ${stem}Options, ${stem}Reward

from alignkit import Group, Prompt
from alignkit.testing import RewardSourceContract


class Test${stem}(RewardSourceContract):
    component = ${stem}Reward


def test_the_wanted_length_scores_best() -> None:
    reward = ${stem}Reward(${stem}Options(words=4))
    group = Group(Prompt.of("Say hello."), ("good day to you", "good day", "a very good day to you and all", ""))
    assert reward.score([group]) == [[0.0, -0.5, -1.0, -1.0]]
"""


def write_distribution(name: str, parent: Path) -> Path:
    """Writes `parent/alignkit-NAME`: a distribution with the reward NAME and its contract test.

    Raises:
        InputError: the name can't be one of a plugin, or the folder is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise InputError(f"{name!r} is no name for a plugin", where="NAME", fix="lower-case words joined by '-'")
    folder = parent / f"alignkit-{name}"
    if folder.exists():
        raise InputError("is there already", where=str(folder), fix="another name, or another --out")
    module = f"alignkit_{name.replace('-', '_')}"
    stem = "".join(word.capitalize() for word in name.split("-"))
    files = {"pyproject.toml": PYPROJECT, "README.md": README, f"{module}.py": MODULE, f"tests/test_{module}.py": TEST}
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        filled = Template(text).substitute(name=name, distribution=f"alignkit-{name}", module=module, stem=stem)
        (folder / path).write_text(filled, encoding="utf-8")
    return folder
