"""The page in a real Chromium: two annotators at once, by keys alone, while the server is killed and restarted."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_label.records import labelled, status
from alignkit_label.store import Store

from alignkit import Group, Prompt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import StartServer

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HTML = "<b>bold</b><img src=x onerror=\"document.title='broken'\">"
ITEMS = 40

playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "labels.db")
    store.configure(guidelines="Prefer the one that is right.\nThen the shorter one.")
    return store


def pairs(count: int) -> list[Group]:
    return [Group(Prompt.of(f"question {n}"), (f"good {n} {HTML}", f"bad {n}")) for n in range(count)]


class Person:
    """Somebody at a page who uses only the keyboard."""

    def __init__(self, browser: Any, link: str, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1100, "height": 800}, **options)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(link)
        self.page.wait_for_selector("#item-title:visible")

    def texts(self) -> list[str]:
        return list(self.page.locator(".response").all_inner_texts())

    def press(self, *keys: str) -> None:
        """Presses keys, then waits until what they sent is answered."""
        for key in keys:
            self.page.keyboard.press(key)
        self.page.wait_for_selector("body:not([aria-busy])")

    def prefer_good(self) -> None:
        (number,) = [place for place, text in enumerate(self.texts(), start=1) if text.startswith("good")]
        self.press(str(number))

    @property
    def done(self) -> bool:
        return bool(self.page.locator("#end").is_visible())


def test_two_annotators_at_once_by_keys_alone_with_a_kill_between(
    browser: Any, store: Store, start_server: StartServer
) -> None:
    start = time.monotonic()
    store.add_items(pairs(ITEMS))
    server = start_server(store.path, "anna", "ben")
    port = server.port
    people = {name: Person(browser, link) for name, link in server.links.items()}
    for _ in range(6):
        for person in people.values():
            person.prefer_good()
    anna, ben = people["anna"], people["ben"]
    before = anna.texts()
    anna.press("t")
    anna.press("u")
    assert anna.texts() == before, "undo shows the same item in the same order"
    anna.prefer_good()
    ben.press("s")
    ben.page.keyboard.press("ArrowDown")
    ben.page.keyboard.press("Tab")
    ben.page.keyboard.type("12tbsu")
    ben.press("Enter")
    ben.press("b")
    assert "token" not in anna.page.url
    assert anna.page.locator("b, img").count() == 0, "texts are texts"
    server.kill()
    assert status(store)["verdicts"] == 14
    (number,) = [place for place, text in enumerate(anna.texts(), start=1) if text.startswith("good")]
    anna.page.keyboard.press(str(number))
    anna.page.wait_for_selector("#problem:visible")
    ben.page.keyboard.press("t")
    start_server(store.path, "anna", "ben", port=port)
    for person in people.values():
        person.page.wait_for_selector("body:not([aria-busy])")
    while not all(person.done for person in people.values()):
        for person in people.values():
            if not person.done:
                person.prefer_good()
    passed = time.monotonic() - start
    found = labelled(store)
    assert (len(found.groups), found.missing) == (ITEMS, 0)
    said = store.said()
    kept = [one for one in said if one.verdict != "skip"]
    assert len(kept) == len({one.item for one in kept}) == ITEMS, "nothing lost and nothing twice"
    (skip,) = [one for one in said if one.verdict == "skip"]
    assert (skip.annotator, skip.reason) == ("ben", "the prompt is unclear: 12tbsu")
    assert sorted(group.ranks for group in found.groups if group.ranks) == [(0, 0)] * 2 + [(0, 1)] * (ITEMS - 2)
    assert all(one.seconds is not None and 0 <= one.seconds < passed for one in said)
    assert all(person.problems == [] and person.page.title() == "Compare responses" for person in people.values())


def test_a_ranking_of_four_by_keys_by_buttons_and_by_dragging(
    browser: Any, store: Store, start_server: StartServer
) -> None:
    store.add_items(Group(Prompt.of(f"question {n}"), ("a", "b", "c", "d")) for n in range(3))
    server = start_server(store.path, "anna")
    person = Person(browser, server.links["anna"])

    def place(text: str) -> str:
        return str(person.texts().index(text) + 1)

    person.press(place("c"), place("a"), "=", place("d"), place("b"), "Backspace", place("b"), "Enter")
    for text in "abcd":
        person.page.get_by_role("button", name=f"Response {place(text)} next").click()
    person.page.get_by_role("button", name=f"Response {place('b')} up").click()
    person.page.get_by_role("button", name="Save ranking").click()
    person.press()
    person.press(*(place(text) for text in "abcd"))
    rows = person.page.locator("#places li")
    start, end = rows.nth(3).locator(".handle").bounding_box(), rows.nth(0).bounding_box()
    person.page.mouse.move(start["x"] + 5, start["y"] + 5)
    person.page.mouse.down()
    person.page.mouse.move(end["x"] + 5, end["y"] + 1, steps=4)
    person.page.mouse.up()
    person.press("Enter")
    person.page.wait_for_selector("#end:visible")
    assert person.problems == []
    assert [one.ranks for one in store.said()] == [(1, 2, 0, 1), (1, 0, 2, 3), (1, 2, 3, 0)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 390])
def test_the_page_has_no_accessibility_faults(
    browser: Any, store: Store, start_server: StartServer, scheme: str, width: int
) -> None:
    """Needs axe-core's script (npm pack axe-core); AXE_CORE holds its path."""
    script = os.environ.get("AXE_CORE", "")
    if not script:
        pytest.skip("AXE_CORE names no copy of axe.min.js")
    store.add_items([Group(Prompt.of("question"), ("a", "b", "c")), *pairs(2)])
    server = start_server(store.path, "anna")
    person = Person(browser, server.links["anna"], bypass_csp=True)
    page = person.page
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})

    def faults() -> list[str]:
        page.evaluate(Path(script).read_text(encoding="utf-8"))
        found = page.evaluate("axe.run()")["violations"]
        return [f"{one['impact']}: {one['id']}: {one['nodes'][0]['html']}" for one in found]

    person.press("1", "2")
    assert faults() == []
    person.press("3", "Enter")
    assert faults() == []
    for key, dialog in (("?", "help"), ("g", "guidelines"), ("s", "skip")):
        page.keyboard.press(key)
        page.wait_for_selector(f"#{dialog}:visible")
        assert faults() == []
        page.keyboard.press("Escape")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing to scroll sideways"
    for _ in range(2):
        person.prefer_good()
    assert faults() == []
