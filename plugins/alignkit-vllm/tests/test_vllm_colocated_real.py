"""A real vLLM engine in the training process, on CPU: `make test-vllm`. It runs in vLLM's own environment.

alignkit's folders and those of its distributions' metadata are put on its path; what else alignkit needs must be there.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from importlib.metadata import distributions
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from safetensors.torch import load_file
from scripted_vllm import steps_of
from test_vllm_real import FLAGS, PYTHON, RECIPE, REWARD, load, sampled, started, write_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="ALIGNKIT_VLLM_PYTHON names no Python with vLLM: make test-vllm"),
]
NEEDS = (
    "accelerate",
    "jinja2",
    "networkx",
    "peft",
    "pluggy",
    "psutil",
    "pydantic",
    "rich",
    "tomli_w",
    "typer",
    "httpx2",
)


def alignkits(site: Path) -> list[str]:
    """Folders to import alignkit from; entry points and metadata of its distributions are written to `site`.

    alignkit-report is left out: it needs more packages, and a run only needs it for a page.
    """
    folders = [str(site)]
    for one in distributions():
        if not one.metadata["Name"].startswith("alignkit") or one.metadata["Name"] == "alignkit-report":
            continue
        info = site / f"{one.metadata['Name'].replace('-', '_')}-{one.version}.dist-info"
        info.mkdir(parents=True)
        for name in ("METADATA", "entry_points.txt"):
            if text := one.read_text(name):
                (info / name).write_text(text, encoding="utf-8")
        modules = {point.value.partition(":")[0].partition(".")[0] for point in one.entry_points}
        found = [find_spec(name) for name in sorted(modules)]
        folders += [str(Path(spec.origin).parents[1]) for spec in found if spec is not None and spec.origin]
    return list(dict.fromkeys(folders))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """In which vLLM's Python imports alignkit; ALIGNKIT_VLLM_SITE may name a folder with what it lacks."""
    more = os.environ.get("ALIGNKIT_VLLM_SITE", "")
    path = os.pathsep.join([*alignkits(tmp_path_factory.mktemp("of") / "site"), *([more] if more else [])])
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    found = {**settings, **os.environ, "PYTHONPATH": path}
    code = f"from importlib.util import find_spec; print(*[name for name in {NEEDS} if find_spec(name) is None])"
    lacks = subprocess.run([PYTHON, "-c", code], env=found, capture_output=True, text=True, check=True).stdout.split()
    if lacks:
        pytest.skip(f"vLLM's environment lacks what alignkit needs: {' '.join(lacks)}; see ALIGNKIT_VLLM_SITE")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), tied=True)


def test_rollouts_follow_every_sync_and_are_those_of_a_server(
    environment: Mapping[str, str], folder: Path, tmp_path: Path
) -> None:
    child = Path(__file__).with_name("colocated_child.py")
    words = [PYTHON, str(child), str(folder), str(tmp_path)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "", "vLLM writes where the results of a command go"
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert len(found["apart"]) == 12
    assert max(found["apart"]) < 1e-4
    assert found["versions"] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert found["again"] == [True] * 4, "the same seeds gave other samples"
    assert all(one != other for one, other in pairwise(found["texts"])), "samples did not change with a sync"
    assert found["random numbers"], "the engine changed our random numbers"
    assert found["environment"], "the engine changed the environment"
    assert "holds version" in found["wrong file"]
    assert found["after it"], "a refused update changed the weights"
    assert found["left"] == 0, "processes are left after close"
    assert "unrecognized arguments: --port" in found["unknown flag"]
    assert "vLLM in this process died while asked to" in found["killed"]
    for server in started(folder, tmp_path / "server"):
        server.sync(load(folder), 0)
        texts = [list(group.responses) for group in sampled(server).groups]
    assert texts == found["texts"][0]


@pytest.fixture(scope="module")
def work(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe whose batches take a second or two to sample."""
    found = tmp_path_factory.mktemp("work")
    values = {"model": str(folder), "python": "", "flags": json.dumps(FLAGS), "seconds": 900.0}
    (found / "recipe.toml").write_text(RECIPE.format(**values), encoding="utf-8")
    (found / "vowels.py").write_text(REWARD, encoding="utf-8")
    rows = [json.dumps({"prompt": f"{word} the cat sat"}) for word in ("a", "one", "here", "then", "after that")]
    (found / "prompts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return found


def words_of(out: str, *more: str) -> list[str]:
    options = ("sampler.colocated=true", "sampling.max_tokens=300", "optimizer.save_every=1")
    return ["run", "recipe.toml", "--out", out, "--quiet", *more, *(word for one in options for word in ("-o", one))]


def finished(work: Path, environment: Mapping[str, str], out: str, *more: str) -> Mapping[str, torch.Tensor]:
    """The weights of a run."""
    words = [PYTHON, "-m", "alignkit", *words_of(out, *more)]
    done = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(work / out / "policy/model.safetensors")


@pytest.fixture(scope="module")
def whole(work: Path, environment: Mapping[str, str]) -> Mapping[str, torch.Tensor]:
    return finished(work, environment, "whole")


def test_a_training_with_it_learns(whole: Mapping[str, torch.Tensor], work: Path, folder: Path) -> None:
    log = steps_of(work / "whole")
    assert len(log) == 3 * 3, "three iterations of minibatches of two, two and one prompts"
    assert max(record["sampler_kl"] for record in log) < 1e-7
    start = load_file(folder / "model.safetensors")
    assert max(float((whole[key] - start[key]).abs().max()) for key in start) > 1e-4, "nothing was learned"


def test_a_training_that_is_killed_while_it_samples_takes_its_engine_along_and_goes_on(
    whole: Mapping[str, torch.Tensor], work: Path, environment: Mapping[str, str]
) -> None:
    begun, ended, log = work / "begun", work / "ended", work / "killed.log"
    child = Path(__file__).with_name("colocated_watched.py")
    words = [PYTHON, str(child), str(begun), str(ended), *words_of("killed")]
    with log.open("wb") as output:  # a pipe would stay open as long as the engine lives
        run = psutil.Popen(words, cwd=work, env=environment, stdout=output, stderr=output)
    end = time.monotonic() + 600
    while not begun.exists() and run.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    engine = [one for one in run.children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]
    run.kill()
    run.wait()
    assert begun.exists(), log.read_text(encoding="utf-8")[-3000:]
    assert not ended.exists(), "the batch was sampled before the process was killed"
    assert len(engine) > 1, "no process of an engine was there"
    left = psutil.wait_procs(engine, timeout=30)[1]
    for one in left:
        one.kill()
    assert not left, "processes of the engine live on"
    assert len(steps_of(work / "killed")) == 2 * 3, "it was not killed in the third batch"
    found = finished(work, environment, "killed", "--resume")
    assert len(steps_of(work / "killed")) == 3 * 3
    assert max(float((found[key] - value).abs().max()) for key, value in whole.items()) < 1e-6
