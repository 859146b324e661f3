"""What `alignkit.testing` gives authors: pytest fixtures that cost nothing unused, and the known-answer problem."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from alignkit_dpo.dpo import DPO
from alignkit_dpo.kto import KTO
from alignkit_grpo.members import RLOO

from alignkit import testing
from alignkit.testing import KnownAnswer
from alignkit.testing import fixtures as fixtures_module
from alignkit.testing.known_answer import policy_of_four_tokens, token_distribution

ROOT = Path(__file__).parent.parent
AUTHORS_TEST = """
def test_parts(tiny_policy, tiny_reward, tiny_groups, known_answer):
    batch = tiny_policy.encode(tiny_groups)
    assert tiny_policy.forward(batch).logprobs.shape == (batch.num_tokens,)
    assert [len(row) for row in tiny_reward.score(tiny_groups)] == [len(group.responses) for group in tiny_groups]
    assert all(group.ranks and min(group.ranks) == 0 for group in tiny_groups)
    assert any(len(set(group.ranks)) < len(group.ranks) for group in tiny_groups)
    assert known_answer.rewards == {"": 0.3, "a": 1.0, "b": -0.5, "c": 0.0}

def test_fresh(tiny_policy):
    assert not any(parameter.grad is not None for parameter in tiny_policy.modules()["policy"].parameters())
"""


def test_pytest_finds_the_fixtures_by_the_entry_point() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    assert points["pytest11"] == {"alignkit": "alignkit.testing.fixtures"}


def test_the_page_on_publishing_names_all_that_authors_get() -> None:
    page = (ROOT / "docs/how-to/publishing.md").read_text(encoding="utf-8")
    contracts = [name for name in testing.__all__ if name.endswith("Contract") and name != "ComponentContract"]
    fixtures = re.findall(r"^@pytest.fixture\ndef (\w+)", Path(fixtures_module.__file__).read_text(), re.MULTILINE)
    assert len(contracts) == 7
    assert len(fixtures) == 4
    assert [name for name in (*contracts, *fixtures) if f"{name}" not in page] == []


def test_unused_they_load_nothing() -> None:
    program = "import sys, alignkit.testing.fixtures as f; print(sorted({'torch', 'numpy', 'typer'} & {*sys.modules}))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


def test_an_author_uses_them(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(AUTHORS_TEST)
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "alignkit.testing.fixtures"]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, *words, f"--rootdir={tmp_path}", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert "2 passed" in ran.stdout


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_distance_is_that_from_the_closed_form(beta: float) -> None:
    reference = token_distribution(policy_of_four_tokens()).tolist()
    weights = [p * math.exp(r / beta) for p, r in zip(reference, (0.3, 1.0, -0.5, 0.0), strict=True)]
    apart = sum(abs(p - w / sum(weights)) for p, w in zip(reference, weights, strict=True)) / 2
    problem, policy = KnownAnswer(), policy_of_four_tokens()
    assert problem.distance(policy, beta=beta) == pytest.approx(apart, abs=1e-6)
    assert [problem.probability(policy, text) for text in ("", "a", "b", "c")] == pytest.approx(reference, abs=1e-6)


def test_an_algorithm_on_rollouts_finds_the_best_response() -> None:
    problem = KnownAnswer()
    trained = problem.train(RLOO, steps=30, n=64, rate=0.1, kl_coef=0.0)
    assert problem.probability(trained.policy, "a") > 0.95
    turned = KnownAnswer({"": 0.3, "a": 0.0, "b": 1.0, "c": 0.0})
    assert turned.probability(turned.train(RLOO, steps=30, n=64, rate=0.1, kl_coef=0.0).policy, "b") > 0.95


@pytest.mark.slow
def test_algorithms_on_rollouts_and_on_rankings_reach_the_optimum() -> None:
    """Rankings are a sample of 2048, so chance leaves about 0.02."""
    problem = KnownAnswer()
    online = problem.train(RLOO, kl_coef=0.5, normalize_advantages="none")
    assert problem.distance(online.policy, beta=0.5) < 0.01
    offline = problem.train(DPO, n=2048, beta=0.5)
    assert problem.distance(offline.policy, beta=0.5) < 0.03
    assert problem.distance(policy_of_four_tokens(), beta=0.5) > 0.4


def test_other_feeds_are_refused() -> None:
    with pytest.raises(ValueError, match="rollouts and rankings, no labels"):
        KnownAnswer().train(KTO)
