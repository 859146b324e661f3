"""A report in a real Chromium: nothing is loaded, sorting and search work, it is accessible, light and dark, wide and
narrow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_report.pages.command import report

from alignkit import Group, Prompt, write_groups

if TYPE_CHECKING:
    from collections.abc import Iterator

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
HTML = "<b>bold</b><img src=x onerror=\"document.title='broken'\">"
PROMPTS, SEEDS = 60, 2
VARIANTS = {"dpo": (0.70, 2.0), "kto": (0.64, 1.5), "ppo beta=0.1": (0.85, 3.6)}

playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}"),
]


def estimate(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "n": 240}


def found() -> dict[str, Any]:
    """A comparison.json with every key."""
    variants = {
        name: {
            "seeds": [0, 1],
            "rating": estimate(400 * win, 20),
            "win_rate": estimate(win, 0.03),
            "gold": estimate(2 * win, 0.1),
            "reward": estimate(3 * win, 0.1),
            "kl": estimate(kl, 0.2),
            "words": estimate(20 + kl, 1),
            "measures": {"self_bleu": estimate(0.4, 0.1)},
            "memory": 700,
            "spent": {"prompts": 1440, "seconds": 90 * kl, "response_tokens": 9000 * kl, "flops": None},
        }
        for name, (win, kl) in VARIANTS.items()
    }
    curve = [
        {"seed": seed, "step": step, "kl": step / 3, "reward": step / 4, "gold": step / 4 - step**2 / 80}
        for seed in range(SEEDS)
        for step in range(20)
    ]
    fit = {"kind": "rl", "start": 0.0, "alpha": 1.0, "beta": 0.4, "peak_kl": 3.2, "peak_gold": 1.2}
    names = list(VARIANTS)
    return {
        "judge": "gold",
        "on": "60 unseen prompts",
        "seeds": [0, 1],
        "budget": "prompts=1440",
        "rewards": ["reward", "gold"],
        "failed": {"orpo, seed 1": "out of memory"},
        "start": {"gold": estimate(0.5, 0.1), "reward": estimate(0.1, 0.1), "kl": estimate(0.0, 0.0)},
        "variants": variants,
        "pairs": [
            {"a": a, "b": b, "win_rate": estimate(0.6, 0.1), "p": 0.01, "p_corrected": 0.03}
            for place, a in enumerate(names)
            for b in names[place + 1 :]
        ],
        "curves": {"ppo beta=0.1": curve},
        "best_of_n": {"start": [{"n": n, "kl": n / 4, "reward": n / 3, "gold": n / 5} for n in (1, 2, 4, 8)]},
        "fits": {"ppo beta=0.1": {**fit, "low": 2.0, "high": 4.0, "verdict": "before the peak"}},
        "frontier": [{"variant": "dpo", "seed": 0, "step": 4, "kl": 1.0, "gold": 1.0, "pareto": True}],
        "reward_models": {
            "reward": {
                "accuracy": estimate(0.8, 0.02),
                "categories": {"chat": {"accuracy": estimate(0.9, 0.05)}},
                "reliability": [{"said": said, "right": said - 0.02, "n": 50} for said in (0.55, 0.7, 0.95)],
            }
        },
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with its runs."""
    folder = tmp_path_factory.mktemp("reports") / "versus"
    for place, name in enumerate(VARIANTS):
        for seed in range(SEEDS):
            run = folder / "runs" / name.replace(" ", "_") / f"seed-{seed}"
            run.mkdir(parents=True)
            groups = [
                Group(
                    Prompt.of(f"question {number}"),
                    (f"{source} of {name} answers {number} {HTML}",),
                    source=source,
                    meta={"figures": {"gold": [value], "reward": [value / 2], "kl": [place + 0.5]}},
                )
                for number in range(PROMPTS)
                for source, value in (("start", 0.0), ("policy", float(number * (place + 1) % 7)))
            ]
            write_groups(run / "samples.jsonl", groups)
            steps = [{"stage": "policy", "step": n, "kl": n / 9 + seed, "reward": n / 5} for n in range(1, 30)]
            alarm = {"stage": "policy", "step": 9, "alarm": "alarm_length", "text": f"Too long {HTML}."}
            (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*steps, alarm])))
            (run / "recipe.toml").write_text("[run]\nseed = 0\n")
            (run / "run.json").write_text(json.dumps({"stages": {}, "versions": {"alignkit": "0.1.0"}, "argv": []}))
    (folder / "comparison.json").write_text(json.dumps(found()))
    return folder


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    report(folder, quiet=True)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield chromium
        chromium.close()


class Opened:
    """The page as a reader has it, and whatever went wrong."""

    def __init__(self, browser: Any, path: Path, width: int = 1440, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda said: self.problems.append(said.text))
        self.page.on("request", lambda asked: self.problems.append(asked.url) if asked.url != path.as_uri() else None)
        self.page.goto(path.as_uri())

    def column(self, table: str, place: int) -> list[str]:
        cells = self.page.locator(f"{table} tbody tr td:nth-child({place + 1})")
        return [text.split("\n")[0].strip() for text in cells.all_inner_texts()]


@pytest.fixture
def opened(browser: Any, path: Path) -> Iterator[Opened]:
    page = Opened(browser, path)
    yield page
    assert page.problems == []
    assert "broken" not in page.page.title()
    page.context.close()


def test_a_page_is_small_and_every_section_is_there(path: Path, opened: Opened) -> None:
    assert path.stat().st_size < 3_000_000
    headings = opened.page.locator("section > h2").all_inner_texts()
    assert headings == [
        *("Leaderboard", "Who beats whom", "What the gain costs", "Over-optimisation", "Learning curves"),
        *("Single replies", "Samples", "Reward model", "Runs that failed", "Settings", "How to reproduce"),
    ]
    plots, tables = opened.page.locator("figure"), opened.page.locator("figure details table")
    assert plots.count() == tables.count() > 10
    assert opened.page.locator("figure svg").count() > plots.count(), "wide plots are drawn for phones too"
    assert opened.page.locator(".alarms li").count() == len(VARIANTS) * SEEDS


def test_the_leaderboard_is_sorted_by_keyboard_and_mouse(opened: Opened) -> None:
    table = "table[data-name=leaderboard]"
    assert opened.column(table, 0) == ["ppo beta=0.1", "dpo", "kto", "start"]
    kl = opened.page.locator(f"{table} th", has_text="KL")
    kl.locator("button").click()
    assert opened.column(table, 0) == ["ppo beta=0.1", "dpo", "kto", "start"]
    assert kl.get_attribute("aria-sort") == "descending"
    kl.locator("button").press("Enter")
    assert opened.column(table, 0) == ["start", "kto", "dpo", "ppo beta=0.1"]
    opened.page.locator(f"{table} th", has_text="rating").locator("button").press("Enter")
    assert opened.column(table, 0)[-1] == "start", "who has no rating is last, whatever the order"
    opened.page.locator(f"{table} th", has_text="policy").locator("button").press("Space")
    assert opened.column(table, 0) == ["dpo", "kto", "ppo beta=0.1", "start"]


def test_samples_are_searched_and_ordered(opened: Opened) -> None:
    page = opened.page
    shown = page.locator("#samples-list article:visible")
    assert shown.count() == 8
    spreads = [float(one.get_attribute("data-spread")) for one in shown.all()]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[0] == 6.0
    page.fill("#search", "DPO answers 17")
    assert page.locator("#found").inner_text() == "1 of 60 prompts"
    assert shown.count() == 1
    assert "policy of dpo answers 17 <b>bold</b>" in shown.inner_text()
    page.fill("#search", "nobody says this")
    assert shown.count() == 0
    page.fill("#search", "")
    page.select_option("#order", "agree")
    assert float(shown.first.get_attribute("data-spread")) == 0.0
    page.click("#more")
    assert shown.count() == 24


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_a_page_is_accessible_and_fits(browser: Any, path: Path, tmp_path: Path, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.base", reason="axe-playwright-python isn't installed")
    opened = Opened(browser, path, width, scheme)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.evaluate(Path(axe.AXE_FILE_PATH).read_text(encoding="utf-8"))
    faults = [
        f"{one['impact']}: {one['id']}: {one['nodes'][0]['html'][:200]}"
        for one in page.evaluate("axe.run()")["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert faults == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing to scroll sideways"
    page.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, ground[4:-1].split(","))) < 64) == (scheme == "dark")
    assert opened.problems == []
    opened.context.close()


def test_without_scripts_a_page_shows_everything(browser: Any, path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("#samples-list article:visible").count() == PROMPTS
    assert not page.locator("#tools").is_visible()
    context.close()
