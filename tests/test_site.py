"""The site of the docs: every page can be reached, no link is broken, nothing comes from a network, and a real Chromium
finds no fault with it, in both languages."""

from __future__ import annotations

import re
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest

from docs.generate.site import build, nav, staged

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CHROMIUM = Path("/usr/bin/chromium")
SEARCHED = {"index.html": ("leave-one-out", "rloo"), "zh/index.html": ("奖励模型", "zh/")}
"""Where a search begins -> what is typed, and what the address of a result must hold."""
LOOKED_AT = [
    "index.html", "readme/readme.html", "tutorial/first-hour.html", "how-to/scale.html", "reference/cli.html",
    "reference/algorithms/index.html", "reference/algorithms/ppo.html", "reference/api/ops.html", "zh/index.html",
    "zh/explanation/rlhf.html",
]  # fmt: skip


class Page(HTMLParser):
    """The anchors of a page, and what it links to and loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(given["href"])


def places_in(pages: list[Any]) -> Iterator[str]:
    """The pages of a navigation."""
    for page in pages:
        for value in page.values() if isinstance(page, dict) else [page]:
            yield from places_in(value) if isinstance(value, list) else [value]


@pytest.mark.parametrize(("language", "folder"), [("en", DOCS), ("zh", DOCS / "zh")])
def test_every_page_can_be_reached(language: str, folder: Path) -> None:
    chapters = {"readme": "a", "tutorial": "b", "how-to": "c", "reference": "d", "explanation": "e"}
    places = staged(folder, language)
    pages = nav(places, chapters | {"examples": "f", "packages": "g"})
    reached = list(places_in(pages))
    assert sorted(reached) == sorted(place for place in places.values() if place.endswith(".md"))
    assert reached[0] == "index.md"


def test_the_index_names_every_page_but_those_of_a_folder() -> None:
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    for path in DOCS.glob("*/*.md"):
        place = path.relative_to(DOCS).as_posix()
        assert path.parent.name == "zh" or f"]({place})" in text, f"docs/index.md lacks {place}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it; zensical itself refuses links that lead nowhere."""
    pytest.importorskip("zensical", reason="zensical isn't installed")
    folder = tmp_path_factory.mktemp("site")
    build(folder)
    return folder / "site"


@pytest.mark.slow
def test_no_link_is_broken_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 80
    links = 0
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme:
                assert link not in page.loaded, f"{path.name} loads {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path.name}: {link}"
            anchor = unquote(parts.fragment)
            assert not anchor or target not in pages or anchor in pages[target].anchors, f"{path.name}: {link}"
            links += 1
    assert links > 5000
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?https?:|@import", style.read_text(encoding="utf-8")), style.name


@pytest.mark.slow
def test_links_beyond_the_docs_keep_their_text_only(site: Path) -> None:
    text = (site / "explanation" / "reliability.html").read_text(encoding="utf-8")
    assert "killed and resumed is bitwise the uninterrupted run" in text
    assert "test_kill.py" not in text


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site on loopback."""
    handler = partial(Silent, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Silent(SimpleHTTPRequestHandler):
    """Serves files, and logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


class Reader:
    """Somebody who looks at the site; remembers what went wrong."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.address = address
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("requestfailed", lambda request: self.problems.append(f"failed: {request.url}"))
        self.page.on("request", self._see)

    def _see(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.problems.append(f"from elsewhere: {request.url}")

    def open(self, place: str) -> None:
        self.page.goto(self.address + place)
        self.page.wait_for_load_state("networkidle")


@pytest.mark.slow
@pytest.mark.parametrize("start", SEARCHED)
def test_search_finds_pages(browser: Any, address: str, start: str) -> None:
    reader, (typed, holds) = Reader(browser, address), SEARCHED[start]
    reader.open(start)
    reader.page.click(".md-search__button")
    reader.page.wait_for_timeout(300)
    reader.page.keyboard.type(typed)
    results = reader.page.locator("a[role=option]")
    results.first.wait_for()
    found = results.evaluate_all("all => all.map(one => one.href)")
    assert any(holds in one for one in found), found
    results.first.click()
    reader.page.wait_for_url("**/*h=*")
    assert typed.split("-")[0] in reader.page.locator("article").inner_text().lower()
    assert reader.problems == []


@pytest.mark.slow
def test_the_language_can_be_switched(browser: Any, address: str) -> None:
    reader = Reader(browser, address)
    reader.open("reference/algorithms/ppo.html")
    for language, place in (("zh", "zh/index.html"), ("en", "index.html")):
        reader.page.hover(".md-select")
        reader.page.click(f".md-select__link[hreflang={language}]")
        reader.page.wait_for_url(address + place)
        assert reader.page.get_attribute("html", "lang") == language
    assert reader.problems == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_pages_fit_the_screen_and_are_accessible(
    browser: Any, address: str, width: int, scheme: str, tmp_path: Path
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python isn't installed")
    reader = Reader(browser, address, viewport={"width": width, "height": 900}, color_scheme=scheme)
    for number, place in enumerate(LOOKED_AT):
        reader.open(place)
        reader.page.screenshot(path=str(tmp_path / f"{width}-{scheme}-{number}.png"))
        assert reader.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), place
        found = axe.Axe().run(reader.page).response["violations"]
        serious = [
            f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found if one["impact"] in ("serious", "critical")
        ]
        assert not serious, f"{place}: {serious}"
    assert reader.problems == []
