"""`alignkit rewards check`, pass rates of real answers, and tasks of lm-eval."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from alignkit_report.measures.solved import pass_rates
from alignkit_report.measures.tasks import figures_of_tasks

from alignkit import Group, InputError, Prompt, build_component, cli
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from collections.abc import Sequence

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
ANSWERS = DATA / "gsm8k_model_solutions_kto.jsonl.gz"


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pairs whose better reply is longer, except in one subset; beside a reward that likes length."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.py").write_text(
        "def liking(prompts, completions):\n    return [len(c) / 4 for c in completions]\n"
    )
    rows = [
        {"prompt": f"{subset} {place}", "chosen": "a" * good, "rejected": "b" * bad, "subset": subset}
        for subset, good, bad in (("donotanswer", 8, 4), ("hep-go", 4, 8), ("hep-js", 12, 4), ("math-prm", 6, 2))
        for place in range(4 if subset == "math-prm" else 2)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def check(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.run(["rewards", "check", *words])
    return (code, *capsys.readouterr())


def test_a_reward_is_checked_on_rewardbench_s_form(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, said = check(capsys, str(pairs), "--reward", "long:liking", "--json")
    assert code == 0, said
    found = json.loads(printed)
    assert (found["pairs"], found["abstained"], found["by"]) == (10, 0, "subset")
    assert found["accuracy"]["value"] == 0.8
    assert {name: row["accuracy"]["value"] for name, row in found["categories"].items()} == {
        "donotanswer": 1.0, "hep-go": 0.0, "hep-js": 1.0, "math-prm": 1.0,
    }  # fmt: skip
    assert found["sections"] == {"Safety": 1.0, "Reasoning": 0.75}  # math counts as much as the code subsets
    # Margins of 1, -1, 2 and 1: 8 of 10 say 73.1%, 6 of them rightly, 2 say 88.1%, both rightly.
    sure, surer = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-2))
    assert found["calibration_error"]["value"] == pytest.approx(0.8 * (0.75 - sure) + 0.2 * (1 - surer), abs=1e-4)
    assert [row["n"] for row in found["reliability"]] == [8, 2]


def test_a_check_reads_as_a_table(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, said = check(capsys, str(pairs), "--reward", "long:liking", "--by", "subset", "--quiet")
    assert code == 0, said
    lines = [line.split() for line in printed.splitlines()]
    assert lines[1][:3] == ["all", "10", "80%"]
    assert "RewardBench: Safety 100.0%, Reasoning 75.0%; their mean 87.5%" in printed
    assert lines[-1] == ["85%", "to", "90%", "2", "88.1%", "100.0%"]


def test_what_can_not_be_checked_is_refused(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = check(capsys, str(pairs), "--reward", "long:liking", "--by", "topic")
    assert (code, "no column 'topic'" in said, "one of subset" in said) == (2, True, True)
    demonstrations = pairs.with_name("demonstrations.jsonl")
    demonstrations.write_text('{"prompt": "a", "completion": "b"}\n')
    code, _, said = check(capsys, str(demonstrations), "--reward", "long:liking")
    assert (code, "no pair is ordered" in said) == (2, True)
    code, _, said = check(capsys, str(pairs))
    assert code == 2
    untrained = ("--reward", "model", "-o", "reward.train.plugin=bradley-terry")
    code, _, said = check(capsys, str(pairs), *untrained)
    assert (code, "is not trained yet" in said) == (2, True)


def test_a_reward_that_abstains_is_told(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "def liking(prompts, completions):\n    return [None if 'b' in c else 1.0 for c in completions]\n"
    pairs.with_name("mute.py").write_text(text)
    code, printed, _ = check(capsys, str(pairs), "--reward", "mute:liking", "--quiet")
    assert (code, printed) == (0, "The reward abstained on all 10 pairs.\n")


@pytest.mark.skipif(not ANSWERS.exists(), reason=f"needs ../shared/data/{ANSWERS.name}")
def test_pass_rates_of_real_answers_are_those_of_their_published_labels() -> None:
    lines = (DATA / "gsm8k_test_100.jsonl").read_text(encoding="utf-8").splitlines()
    final = {row["prompt"][0]["content"]: row["final_answer"] for row in map(json.loads, lines)}
    answers: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    with gzip.open(ANSWERS, "rt") as rows:
        for row in map(json.loads, rows):
            answers[row["prompt"][0]["content"]].append((row["completion"][0]["content"], row["label"]))
    asked = [question for question in answers if question in final]
    assert len(asked) > 90
    groups = [Group(Prompt.of(q, {"final_answer": final[q]}), tuple(text for text, _ in answers[q])) for q in asked]
    reward: Any = build_component("reward", {"plugin": "rules", "answer": {}})
    found = pass_rates(np.array(reward.score(groups), dtype=np.float64))
    for k in (1, 2, 4):
        draws = [any(right) for q in asked for right in combinations([label for _, label in answers[q]], k)]
        assert found[f"pass@{k}"].mean() == pytest.approx(np.mean(draws))
    assert found["pass@1"].mean() < found["pass@4"].mean() - 0.1


def test_figures_of_tasks_have_intervals() -> None:
    results = {
        "t": {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": "t", "f1,strict": 0.4, "f1_stderr,strict": "N/A"},
        "g": {"em,strict": 1.0, "em_stderr,strict": 0.0},
    }
    counts = {name: {"original": 9, "effective": 7} for name in results}
    assert figures_of_tasks({"results": results, "n-samples": counts}) == {
        "task/t/acc": {"value": 0.5, "low": 0.304, "high": 0.696, "n": 7},
        "task/g/em (strict)": {"value": 1.0, "low": 1.0, "high": 1.0, "n": 7},
    }


TASK = """
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc}]
"""


def test_tasks_without_lm_eval_say_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("alignkit.recipe.tables.find_spec", lambda _: None)
    assert cli.run(["eval", "--tasks", "arc_easy,boolq"]) == 2
    said = capsys.readouterr().err
    assert "pip install 'alignkit-report[tasks]'" in said
    assert "tasks" in said


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("lm_eval"), reason="lm-eval is not installed")
def test_lm_eval_runs_a_task_of_local_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignkit_report.measures.tasks import run_tasks

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_tiny_llama(tmp_path / "model")
    items = [{"q": q, "choices": ["a", "b"], "gold": k % 2} for k, q in enumerate(("ab", "ba", "abc", "ca"))]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "letters.yaml").write_text(TASK.replace("FILE", str(tmp_path / "items.jsonl")))
    policy: Any = build_component("policy", {"plugin": "hf", "model": str(tmp_path / "model")})
    found = run_tasks(policy, [str(tmp_path / "letters.yaml")])
    assert found.keys() == {"task/letters/acc"}
    assert found["task/letters/acc"]["n"] == 4
    assert found["task/letters/acc"]["value"] == likelier(policy, items)
    with pytest.raises(InputError, match="nothing_such"):
        run_tasks(policy, ["nothing_such"])


def likelier(policy: Any, items: Sequence[dict[str, Any]]) -> float:
    """The share of items whose right choice is likelier as the next letter, by the policy itself."""
    rows = [Group(Prompt(text=item["q"]), (" a", " b")) for item in items]
    batch = policy.encode(rows)
    first = policy.forward(batch).logprobs[batch.first_token].view(-1, 2)
    return float((first.argmax(1).tolist() == np.array([item["gold"] for item in items])).mean())
