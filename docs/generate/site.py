"""Builds the site of the docs in build/site, its Chinese part in build/site/zh: `python -m docs.generate.site`.

The pages are copied to build/pages first, with the plugins' READMEs and the examples' walk-throughs. Links there lead
to pages of the site; of a link to any other file of the repository only the text stays. The order of a chapter's
pages is that of the links in index.md.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from docs.generate.text import DOCS, INPUTS, ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
BESIDE = {
    "README.md": "readme/readme.md",
    "examples/*.md": "examples/{0.name}",
    "examples/*/README.md": "examples/{0.parent.name}.md",
    "plugins/*/README.md": "packages/{0.parent.name}.md",
}
"""Pages outside of docs/ -> where they stand in the English part."""


def build(folder: Path) -> None:
    """Writes the pages of each language to a folder, and has zensical build them in `site` there."""
    settings = tomllib.loads((INPUTS / "zensical.toml").read_text(encoding="utf-8"))
    shutil.rmtree(folder / "site", ignore_errors=True)
    found = {name: ROOT / language["folder"] for name, language in settings["languages"].items()}
    languages = [name for name, folder in found.items() if (folder / "index.md").exists()]
    places = {name: staged(found[name], name) for name in languages}
    for name in languages:
        _write(folder / "pages" / name, name, places)
        config = project(
            name, settings, nav(places[name], settings["languages"][name]["chapters"]), several=len(languages) > 1
        )
        path = folder / f"{name}.toml"
        path.write_text(tomli_w.dumps({"project": config}), encoding="utf-8")
        zensical = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", str(path)]
        subprocess.run(zensical, check=True, cwd=folder)


def staged(folder: Path, language: str) -> dict[Path, str]:
    """Every file of a language's part -> its place there."""
    left_out = [INPUTS, *([DOCS / "zh"] if language == "en" else [])]
    files = [path for path in folder.rglob("*") if path.suffix in (".md", ".png", ".svg", ".ipynb")]
    found = {path: str(path.relative_to(folder)) for path in files if not any(map(path.is_relative_to, left_out))}
    found |= {INPUTS / name: name for name in ("site.css", "site.js")}
    if language == "en":
        found |= {path: to.format(path) for pattern, to in BESIDE.items() for path in ROOT.glob(pattern)}
    return found


def _write(folder: Path, language: str, places: Mapping[str, Mapping[Path, str]]) -> None:
    """Copies a language's files, with the links of its pages led to where they stand."""
    shutil.rmtree(folder, ignore_errors=True)
    for source, place in places[language].items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".md":
            shutil.copyfile(source, target)
            continue
        change = partial(_led, source=source, language=language, places=places)
        pieces = FENCED.split(source.read_text(encoding="utf-8"))
        text = "".join(piece if piece.startswith("```") else LINK.sub(change, piece) for piece in pieces)
        target.write_text(text, encoding="utf-8")


def _led(found: re.Match[str], *, source: Path, language: str, places: Mapping[str, Mapping[Path, str]]) -> str:
    """A link of a page, as it is on the site."""
    image, text, path, anchor = found[1], found[2], found[3], found[4] or ""
    if not path or ":" in path:
        return found[0]
    target = (source.parent / path).resolve()
    here = Path(places[language][source]).parent
    for name in (language, *places):
        if place := places.get(name, {}).get(target):
            if name == language:
                return f"{image}[{text}]({os.path.relpath(place, here)}{anchor})"
            to, base = _url(name, place), _url(language, str(here))
            return f"[{text}]({os.path.relpath(to, base)}{anchor})"
    return text


def _url(language: str, place: str) -> str:
    """Where a page stands in the whole site."""
    path = place.removesuffix(".md") + ".html" if place.endswith(".md") else place
    return path if language == "en" else f"{language}/{path}"


def nav(places: Mapping[Path, str], chapters: Mapping[str, str]) -> list[Any]:
    """The chapters, each the pages of a folder in the order in which docs/index.md names them."""
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    order = {os.path.normpath(link[3]): number for number, link in enumerate(LINK.finditer(text))}
    by_place = {place: source for source, place in places.items() if source.suffix == ".md"}
    ordered = sorted(by_place, key=lambda place: (order.get(place, len(order)), place))
    found: list[Any] = [{_title(by_place["index.md"]): "index.md"}]
    for folder, title in chapters.items():
        pages = [_entry(place, by_place) for place in ordered if folder in (str(Path(place).parent), _folder(place))]
        found += [{title: place} for page in pages[:1] for place in page.values()] if len(pages) == 1 else []
        found += [{title: pages}] if len(pages) > 1 else []
    return found


def _folder(place: str) -> str:
    """For the index of a folder, the one above."""
    return str(Path(place).parent.parent) if place.endswith("/index.md") else ""


def _entry(place: str, by_place: Mapping[str, Path]) -> dict[str, Any]:
    """A page, or for the index of a folder the folder."""
    title = _title(by_place[place])
    if not place.endswith("/index.md"):
        return {title: place}
    others = sorted(other for other in by_place if Path(other).parent == Path(place).parent and other != place)
    return {title: [place, *({_title(by_place[other]): other} for other in others)]}


def _title(page: Path) -> str:
    """The heading of a page."""
    found = re.search(r"^# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"{page} has no heading"
    return found[1].replace("`", "")


def project(language: str, settings: Mapping[str, Any], pages: Sequence[Any], *, several: bool) -> dict[str, Any]:
    """zensical's settings for a language."""
    common, own = settings["project"], settings["languages"][language]
    up = "" if language == "en" else "../"
    switch = [{**one, "link": up + one["link"]} for one in common["extra"]["alternate"]] if several else []
    return {
        **common,
        "site_description": own["description"],
        "docs_dir": f"pages/{language}",
        "site_dir": "site" if language == "en" else f"site/{language}",
        "nav": list(pages),
        "theme": {**common["theme"], "language": language},
        "extra": {**common["extra"], "alternate": switch},
    }


if __name__ == "__main__":
    build(ROOT / "build")
