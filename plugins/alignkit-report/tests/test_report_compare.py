"""`alignkit compare`: its cells, its jobs here and on a Ray cluster, and runs of real recipes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from alignkit_report.compare.budget import Budget, mean_spent
from alignkit_report.compare.cells import Cell, Variant, cells_of, sweeps_of
from alignkit_report.compare.jobs import Job, Jobs

from alignkit import InputError, Run, cli, read_groups
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def test_a_comparison_is_every_combination() -> None:
    sweeps = sweeps_of(["optimizer.beta=0.1,0.3", 'reward.loss="pairwise","infonce"'])
    cells = cells_of(["dpo", "ipo"], sweeps, range(2))
    assert len(cells) == 16
    assert cells[0] == Cell(Variant("dpo", (("optimizer.beta", "0.1"), ("reward.loss", '"pairwise"'))), 0)
    assert cells[0].overrides() == ["run.seed=0", "optimizer.beta=0.1", 'reward.loss="pairwise"']
    assert [cell.seed for cell in cells] == [0] * 8 + [1] * 8
    assert len({cell.folder for cell in cells}) == 16


def test_values_of_a_sweep_may_hold_commas() -> None:
    assert sweeps_of(['a.b=[1,2],{x="p,q"},"r,s",t']) == [("a.b", ["[1,2]", '{x="p,q"}', '"r,s"', "t"])]


@pytest.mark.parametrize(
    ("sweep", "optimizers", "said"),
    [
        (["optimizer.beta"], ["dpo"], "is not KEY=A,B"),
        (["a=1", "a=2"], ["dpo"], "is swept twice"),
        ([], ["dpo", "dpo"], "dpo is named twice"),
    ],
)
def test_a_wrong_comparison_is_refused(sweep: list[str], optimizers: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        cells_of(optimizers, sweeps_of(sweep), range(1))


def test_a_budget_is_a_unit_and_a_number() -> None:
    assert Budget.of("prompts=20000") == Budget("prompts", 20000)
    assert Budget.of("response_tokens=5000") == Budget("response_tokens", 5000)
    assert Budget.of("flops=1e15") == Budget("flops", 1e15)
    assert Budget.of("seconds=0.5") == Budget("seconds", 0.5)
    assert Budget.of("") is None
    texts = ("prompts=20000", "seconds=600", "flops=4e+11", "flops=123456789.5")
    assert [found.text for text in texts if (found := Budget.of(text))] == [*texts]
    for wrong in ("20000", "prompts=", "prompts=0", "prompts=1.5", "seconds=-1", "flops=nan", "flops=inf", "hours=2"):
        with pytest.raises(InputError, match="is not prompts, response_tokens, seconds or flops"):
            Budget.of(wrong)


def test_what_is_spent_is_a_mean_and_unknown_where_a_run_does_not_say() -> None:
    runs = [{"prompts": 8, "seconds": 2.0, "flops": 1e9}, {"prompts": 9, "seconds": 5.0}]
    assert mean_spent(runs) == {"prompts": 8.5, "seconds": 3.5}


def test_a_failed_job_does_not_stop_the_others(tmp_path: Path) -> None:
    notes: list[str] = []
    jobs = [Job(name, words, tmp_path / f"{name}.log", tmp_path / f"{name}.json") for name, words in WORDS.items()]
    ended = Jobs(2, notes.append).run(jobs)
    assert [one.code for one in ended] == [0, 2, 0]
    assert "no such recipe" in ended[1].said
    assert ended[0].memory > 10
    assert json.loads((tmp_path / "one.json").read_text())["memory"] == ended[0].memory
    assert not (tmp_path / "two.json").exists()
    assert sum("failed with exit code 2" in note for note in notes) == 1


WORDS = {"one": ("--version",), "two": ("run", "nowhere.toml"), "three": ("--version",)}


RECIPE = """
[policy]
model = "model"
[run]
holdout = 0.5
[preferences]
plugin = "dataset"
path = "pairs.jsonl"
[reward]
plugin = "function"
function = "gold:brevity"
[eval]
count = 6
samples = 2
rewards = { gold = { plugin = "function", function = "gold:length" } }
[optimizer]
learning_rate = 1e-3
[optimizer.for.grpo]
batch_size = 4
group_size = 2
[sampling]
max_tokens = 6
"""
GOLD = """
def length(prompts, completions):
    return [float(len(text)) for text in completions]

def brevity(prompts, completions):
    return [-float(len(text)) for text in completions]
"""


def world(folder: Path) -> Path:
    """A recipe with a tiny Llama and pairs that prefer longer texts."""
    write_tiny_llama(folder / "model")
    letters = [f"{a}{b}" for a in "abcdef" for b in "abcd"]
    pairs = [{"prompt": two, "chosen": "abab", "rejected": "a"} for two in letters]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "gold.py").write_text(GOLD)
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE)
    return recipe


Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a command beside a small world; returns its exit code and what it printed."""
    world(tmp_path)
    monkeypatch.chdir(tmp_path)

    def type_words(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run(list(words))
        return (code, *capsys.readouterr())

    return type_words


def test_algorithms_are_compared_and_nothing_is_repeated(tmp_path: Path, typed: Typed) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"prompt": "", "completion": "{x}"}}\n' for x in ("abc", "fed")))
    texts = "eval.texts={plugin='dataset', path='texts.jsonl'}"
    words = ("compare", "recipe.toml", "--optimizers", "dpo,grpo", "--budget", "prompts=8", "-o", texts, "--json")
    code, printed, said = typed(*words, "--jobs", "2")
    assert code == 0, said
    found = json.loads(printed)
    assert set(found["variants"]) == {"dpo", "grpo"}
    assert found["budget"] == "prompts=8"
    assert {name: row["spent"]["prompts"] for name, row in found["variants"].items()} == {"dpo": 8, "grpo": 8}
    spent = found["variants"]["dpo"]["spent"]
    assert spent["response_tokens"] == 8 * (5 + 2)  # "abab" and "a", with their ends
    assert found["judge"] == "gold"
    for row in found["variants"].values():
        assert row["gold"]["n"] == 6
        assert row["gold"]["value"] == -row["reward"]["value"]
    check_measures(found, tmp_path / "comparison" / "runs" / "dpo" / "seed-0")
    assert [(pair["a"], pair["b"]) for pair in found["pairs"]] == [("dpo", "grpo")]
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "comparison").rglob("run.json")}
    assert len(runs) == 3  # the preferences once, and two runs
    assert json.loads(typed(*words)[1]) == found
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "comparison").rglob("run.json")} == runs
    code, _, said = typed(*words, "-o", "optimizer.learning_rate=1e-4")
    assert code == 2
    assert "holds a run of another recipe" in said


def check_measures(found: dict[str, Any], run: Path) -> None:
    """Both variants and the start have all measures, and they are those of the run."""
    names = {"kl_sampled", "entropy", "cut_off", "tokens", "distinct_words", "self_bleu", "perplexity"}
    assert found["start"]["measures"].keys() >= names
    assert found["pairs"][0]["measures"].keys() >= names | {"gold", "kl", "words", "win_rate_same_length/gold"}
    assert found["changes"]["grpo"].keys() >= names | {"gold"}
    measures, own = found["variants"]["dpo"]["measures"], Run.open(run).stages["eval"]["policy"]["measures"]
    assert measures["perplexity"]["n"] == 2
    assert measures["win_rate/gold"] == found["variants"]["dpo"]["win_rate"]
    for name in ("entropy", "kl_sampled", "perplexity", "distinct_words", "self_bleu"):
        assert measures[name]["value"] == pytest.approx(own[name]["value"], abs=2e-4)
    assert own["kl_sampled"]["n"] == 12
    texts = list(read_groups(run / "texts.jsonl"))
    surprise = [group.meta["figures"]["surprise"][0] for group in texts if group.source == "policy"]
    tokens = [group.meta["figures"]["tokens"][0] for group in texts if group.source == "policy"]
    assert own["perplexity"]["value"] == pytest.approx(np.exp(sum(surprise) / sum(tokens)), rel=1e-3)


def test_wrong_recipes_are_refused_before_anything_runs(tmp_path: Path, typed: Typed) -> None:
    wrong = {
        ("--sweep", "optimizer.beta=-1"): "beta",
        ("--optimizers", "dqo"): "did you mean",
        ("--judge", "silver"): "the recipe has no reward 'silver'",
        ("--budget", "5"): "is not prompts",
        ("--budget", "flops=1e9", "-o", "run.rounds=2"): "samples its preferences in rounds",
        ("--budget", "seconds=60", "--optimizers", "dpo,trl-dpo"): "trl-dpo has a loop of its own",
        ("--resources", "cpus=2"): "has no effect without --on ray",
        ("--on", "ray", "--resources", "cpus=two"): "is not cpus=N,gpus=N",
    }
    for words, expected in wrong.items():
        code, _, said = typed("compare", "recipe.toml", "--optimizers", "dpo", *words)
        assert code == 2
        assert expected in said
    assert not (tmp_path / "comparison").exists()
    code, _, said = typed("compare", "--optimizers", "dpo")
    assert (code, "this needs a policy" in said) == (2, True)


@pytest.mark.slow
def test_a_comparison_that_is_stopped_goes_on_with_the_same_command(tmp_path: Path, typed: Typed) -> None:
    words = ["compare", "recipe.toml", "--optimizers", "dpo,grpo,rloo", "--seeds", "2", "--jobs", "2"]
    words += ["-o", "optimizer.n_epochs=2"]
    with subprocess.Popen([sys.executable, "-m", "alignkit", *words], cwd=tmp_path, stderr=subprocess.PIPE) as process:
        while not list((tmp_path / "comparison").glob("runs/*/*/cost.json")):
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(120) == 130
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cost.json")}
    code, printed, ended = typed(*words, "--json")
    assert code == 0, ended
    found = json.loads(printed)
    assert [row["seeds"] for row in found["variants"].values()] == [[0, 1]] * 3
    assert len(found["pairs"]) == 3
    assert {path: path.stat().st_mtime_ns for path in done} == done


NODES = """
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
print("address", cluster.address, flush=True)
input()
cluster.shutdown()
"""
TELLS_ITS_NODE = """
import os
from pathlib import Path

if node := os.environ.get("RAY_RAYLET_PID", ""):
    Path(__file__).with_name(f"node-{node}").touch()
"""


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@contextmanager
def two_nodes() -> Iterator[str]:
    """The address of a cluster of two nodes with a CPU each."""
    words = [sys.executable, "-c", NODES]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            lines = (line.decode() for line in process.stdout)
            yield next(line.split()[1] for line in lines if line.startswith("address"))
        finally:
            process.stdin.close()
            process.wait(60)


@pytest.mark.slow
@needs_ray
def test_runs_are_spread_over_the_nodes_and_go_on_after_a_stop(tmp_path: Path) -> None:
    world(tmp_path)
    with (tmp_path / "gold.py").open("a") as file:
        file.write(TELLS_ITS_NODE)
    words = [
        sys.executable,
        "-m",
        "alignkit",
        "compare",
        "recipe.toml",
        "--optimizers",
        "dpo,grpo,rloo",
        "--seeds",
        "2",
    ]
    words += ["--jobs", "2", "--on", "ray", "--json", "-o", "optimizer.n_epochs=2"]
    with two_nodes() as address:
        environment = {**os.environ, "RAY_ADDRESS": address}

        def started() -> subprocess.Popen[str]:
            pipe: Any = subprocess.PIPE
            return subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True)

        with started() as process:
            while not list((tmp_path / "comparison").glob("runs/*/*/cost.json")):
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=300)
            assert process.returncode == 130, said
        logs = [file.read_text() for file in tmp_path.glob("comparison/logs/*.log")]
        assert any("a checkpoint is saved" in log or "stopped by SIGTERM" in log for log in logs)
        assert not list(tmp_path.glob("comparison/logs/.stop-*"))
        done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cost.json")}
        assert 0 < len(done) < 6
        with started() as process:
            printed, said = process.communicate(timeout=600)
            assert process.returncode == 0, said
    found = json.loads(printed)
    assert [row["seeds"] for row in found["variants"].values()] == [[0, 1]] * 3
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert all(row["memory"] > 10 for row in found["variants"].values())
    assert len(list(tmp_path.glob("node-*"))) == 2


@pytest.mark.slow
@needs_ray
def test_more_than_any_node_has_is_refused(tmp_path: Path) -> None:
    world(tmp_path)
    words = [sys.executable, "-m", "alignkit", "compare", "recipe.toml", "--optimizers", "dpo", "--on", "ray"]
    with two_nodes() as address:
        ended = subprocess.run(
            [*words, "--resources", "cpus=2"],
            cwd=tmp_path,
            env={**os.environ, "RAY_ADDRESS": address},
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 2
    assert "no machine of the cluster has 2 CPUs" in ended.stderr
