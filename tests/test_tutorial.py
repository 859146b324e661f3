"""The tutorial, its notebook and its translation say one thing, and it works; so do the how-to guides."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import torch
from demo_files import FEW_REWARD_STEPS, FEW_STEPS
from walkthrough import Walk

from alignkit.algorithms import ResponseLogprobs
from alignkit.testing import TinyPolicy
from docs.generate import notebook

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial" / "first-hour.md"
CHINESE = DOCS / "zh"
TRANSLATED = [
    (ROOT / "README.md", CHINESE / "index.md"),
    (TUTORIAL, CHINESE / "tutorial" / "first-hour.md"),
    *(
        (DOCS / "explanation" / f"{name}.md", CHINESE / "explanation" / f"{name}.md")
        for name in ("rlhf", "groups", "defaults")
    ),
]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(r"^<!-- not run: [^\n]+ -->\n```\w+\n.*?^```$", re.DOTALL | re.MULTILINE)
FACTS = re.compile(r"arXiv:[\d.]+\d|`[^`\n]+`")
"""What a translation leaves as it is."""
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-\d)?")
FEW = " ".join(f"-o {option}" for option in FEW_STEPS)
FEW_WITH_REWARD = " ".join(f"-o {option}" for option in (*FEW_STEPS, *FEW_REWARD_STEPS))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path) -> list[tuple[str, str]]:
    """(language, text) of each block that is run."""
    return FENCED.findall(NOT_RUN.sub("", read(path)))


GUIDES = [
    page.stem
    for page in sorted((DOCS / "how-to").glob("*.md"))
    if any(language == "console" for language, _ in blocks(page))
]


@pytest.mark.parametrize(("page", "translation"), TRANSLATED, ids=lambda path: path.stem)
def test_a_translation_has_the_same_blocks_and_facts(page: Path, translation: Path) -> None:
    assert FENCED.findall(read(translation)) == FENCED.findall(read(page))
    assert NOT_RUN.findall(read(translation)) == NOT_RUN.findall(read(page))
    if page.parent.name == "explanation":
        assert sorted(FACTS.findall(read(translation))) == sorted(FACTS.findall(read(page)))
        english, chinese = (
            [line for line in read(path).splitlines() if line.startswith("|")] for path in (page, translation)
        )
        assert len(english) == len(chinese)
        for one, other in zip(english, chinese, strict=True):
            assert sorted(NUMBER.findall(one)) == sorted(NUMBER.findall(other))


def test_the_notebook_is_the_page_and_was_executed() -> None:
    if not notebook.NOTEBOOK.exists():
        pytest.skip("make notebook")
    made = json.loads(read(notebook.NOTEBOOK))
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in made["cells"]]
    assert cells == notebook.cells_of(read(TUTORIAL)), "make notebook"
    for cell in made["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"], cell["source"]
            assert all(output["output_type"] == "stream" for output in cell["outputs"])
    assert notebook.NOTEBOOK.stat().st_size < 100_000


def test_cells_are_blocks_that_are_run() -> None:
    page = "# A\n\n```console\none\ntwo\n```\n\nB\n\n```python\n# a.py\nx = 1\n```\n"
    page += "<!-- not run: no -->\n```console\nc\n```\n"
    assert notebook.cells_of(page) == [
        ("markdown", "# A"),
        ("code", "%%bash -e\none\ntwo"),
        ("markdown", "B"),
        ("code", "%%writefile a.py\nx = 1"),
        ("markdown", "<!-- not run: no -->\n```console\nc\n```"),
    ]


def test_the_tutorials_algorithm_is_dpo_with_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    source = next(text for _, text in blocks(TUTORIAL) if text.startswith("# margin_dpo.py"))
    made = ModuleType("margin_dpo")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    exec(compile(source, "margin_dpo.py", "exec"), vars(made))
    options = made.MarginDPOOptions(beta=0.5, margin=2.0)
    algorithm = made.MarginDPO(options, policy=TinyPolicy())
    one = torch.ones(1)
    losses = algorithm.pair_losses(ResponseLogprobs(-3 * one, -5 * one, one), ResponseLogprobs(-4 * one, -3 * one, one))
    # Rewards 0.5 * 2 and 0.5 * -1, a lead of 1.5.
    assert losses.item() == pytest.approx(math.log(1 + math.exp(2.0 - 1.5)), abs=1e-6)


def test_figures_of_the_explanation_are_those_that_were_measured() -> None:
    rows = json.loads(read(next(DOCS.rglob("comparison.json"))))["rows"]
    said = re.findall(
        r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", read(DOCS / "explanation" / "rlhf.md"), re.MULTILINE
    )
    assert len(said) == 4
    for name, reward, kl, gold in said:
        row = rows[name]
        assert (f"{row['reward']:.2f}", f"{row['kl']:.1f}", f"{row['gold']:.2f}") == (reward, kl, gold)


@pytest.fixture
def folder(demo_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """What the guides are about: a demo, a recipe, pairs and a model."""
    for name, target in {
        "demo": demo_folder,
        "examples": ROOT / "examples",
        "recipe.toml": demo_folder / "recipe.toml",
        "pairs.jsonl": demo_folder / "ppo" / "preferences.jsonl",
        "model": demo_folder / "ppo" / "sft",
    }.items():
        (tmp_path / name).symlink_to(target)
    yield tmp_path


def type_page(page: Path, folder: Path) -> None:
    """Types the blocks of a page that are run, with few steps; writes the files that its Python blocks name."""
    walk = Walk(
        folder,
        instead={"alignkit demo": lambda: None},
        appended={
            "alignkit run demo/": FEW,
            "alignkit run recipe.toml": FEW_WITH_REWARD,
            "alignkit run -": "-o optimizer.n_epochs=1",
            "alignkit compare": FEW,
        },
    )
    for language, text in blocks(page):
        named = re.match(r"# (\w+\.py)\n", text) if language == "python" else None
        if named:
            (folder / named[1]).write_text(text, encoding="utf-8")
        for command in text.splitlines() if language == "console" else ():
            done = walk.type(command)
            assert done.code == 0, f"{command}\n{done.out[-2000:]}\n{done.err[-2000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDES)
def test_the_commands_of_a_guide_work(name: str, folder: Path) -> None:
    type_page(DOCS / "how-to" / f"{name}.md", folder)


@pytest.mark.slow
def test_the_tutorial_can_be_followed(folder: Path) -> None:
    for name in ("recipe.toml", "pairs.jsonl", "model", "examples"):
        (folder / name).unlink()
    type_page(TUTORIAL, folder)
    assert (folder / "runs/margin/policy/model.safetensors").exists()
    assert "margin-dpo" in read(folder / "comparison" / "comparison.json")


@pytest.mark.slow
def test_the_notebook_executes(demo_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(DOCS / "generate" / "notebook.py"), "--demo", str(demo_folder)]
    command += [
        "--out",
        str(tmp_path / "out.ipynb"),
        "--replace",
        f"alignkit run demo/from-sft.toml=>alignkit run demo/from-sft.toml {FEW}",
    ]
    command += ["--replace", f"alignkit compare demo/from-sft.toml=>alignkit compare demo/from-sft.toml {FEW}"]
    subprocess.run(command, check=True)
    assert len(json.loads(read(tmp_path / "out.ipynb"))["cells"]) > 20
