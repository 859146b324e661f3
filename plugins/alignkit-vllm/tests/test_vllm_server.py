"""A server that the run starts: it ends with the run, whoever is killed, and is started again when it dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_vllm.options import VLLMOptions
from alignkit_vllm.sampler import VLLMSampler
from alignkit_vllm.server import Server, _environment, _worker_site
from scripted_vllm import ScriptedVLLM

from alignkit import Context, InputError, Prompt, Sampling, StoppedByCheck
from alignkit.testing import TinyPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COMMAND = (sys.executable, str(Path(__file__).with_name("scripted_vllm.py")))
PROMPTS = [Prompt(text="one"), Prompt(text="two")]
SECONDS = 30.0


@pytest.fixture
def sampler(tmp_path: Path) -> Iterator[Callable[..., VLLMSampler]]:
    made: list[VLLMSampler] = []

    def make(*flags: str, **more: Any) -> VLLMSampler:
        options = {"command": COMMAND, "flags": flags, "transfer_folder": str(tmp_path), "start_seconds": 120.0} | more
        made.append(VLLMSampler(VLLMOptions(**options), Context(folder=tmp_path / "run")))
        return made[-1]

    yield make
    for one in made:
        one.close()


def sampled(sampler: VLLMSampler) -> Any:
    return sampler.generate(PROMPTS, n=2, sampling=Sampling(max_tokens=6), seed=0).groups


def members(group: int) -> list[int]:
    """The processes of a group that run; a zombie does not."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            except (OSError, ValueError):
                continue
            if int(its_group) == group and state != "Z":
                found.append(int(folder.name))
    return found


def gone(group: int) -> bool:
    end = time.monotonic() + SECONDS
    while members(group) and time.monotonic() < end:
        time.sleep(0.05)
    return not members(group)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@needs_proc
@pytest.mark.slow
def test_a_server_that_dies_in_a_request_is_started_again_with_the_same_samples(sampler: Any, tmp_path: Path) -> None:
    policy = TinyPolicy()
    with ScriptedVLLM() as other:
        there = VLLMSampler(VLLMOptions(urls=(other.url,), transfer_folder=str(tmp_path)))
        there.sync(policy, 0)
        expected = sampled(there)
        there.close()
    dying = sampler("--die-after", "2", "--once", str(tmp_path / "died"), restarts=1)
    dying.sync(policy, 0)
    first = dying.server.pid
    assert len(members(first)) == 3, "the guard, the server and its worker"
    assert sampled(dying) == expected
    assert (tmp_path / "died").exists()
    assert gone(first), "the worker of the dead server lives on"
    second = dying.server.pid
    assert (dying.tries, second != first) == (0, True)
    dying.close()
    assert gone(second)
    assert not (tmp_path / "run" / "sampler" / "model").exists()


@pytest.mark.slow
def test_a_server_that_dies_in_an_update_is_started_again_until_the_tries_are_used_up(
    sampler: Any, tmp_path: Path
) -> None:
    dying = sampler("--die-in-update", "0", "--once", str(tmp_path / "died"), restarts=1)
    dying.sync(TinyPolicy(), 0)
    assert len(sampled(dying)) == 2
    assert dying.tries == 0
    always = sampler("--die-in-update", "0", restarts=0)
    with pytest.raises(StoppedByCheck, match=r"is gone while asked to load weights \w+-0") as raised:
        always.sync(TinyPolicy(), 0)
    assert "the server has ended, exit code -9" in str(raised.value), "its last words are missing"
    assert always.server is None


def test_a_server_that_can_not_start_says_why(sampler: Any) -> None:
    noise = "print('RuntimeError: heads of 7, which no kernel serves', *map(str, range(40)), sep=chr(10), flush=True)"
    broken = (sys.executable, "-c", f"{noise}; raise SystemExit(1)")
    with pytest.raises(StoppedByCheck, match=r"ended while it started[\s\S]*heads of 7, which") as raised:
        sampler(command=broken, restarts=1).sync(TinyPolicy(), 0)
    assert str(raised.value).count("heads of 7, which no kernel serves") == 1, "the first start's words again"
    assert "| 39\n" in str(raised.value)
    assert "| 19\n" not in str(raised.value)
    silent = (sys.executable, "-c", "import time; time.sleep(60)")
    with pytest.raises(StoppedByCheck, match=r"waited 0.5 s for http://127.0.0.1:\d+ to start"):
        sampler(command=silent, restarts=0, start_seconds=0.5).sync(TinyPolicy(), 0)


def test_a_policy_whose_weights_are_split_needs_a_model_to_start_with(sampler: Any) -> None:
    policy = TinyPolicy()
    policy.modules()["policy"].unshard = lambda: None  # as FSDP2's modules have it
    with pytest.raises(InputError, match=r"sampler\.model: a policy whose weights are split can't save a copy"):
        sampler().sync(policy, 0)


@needs_proc
@pytest.mark.parametrize("victim", ["run", "guard", "server"])
def test_nothing_outlives_whoever_is_killed(victim: str, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from alignkit_vllm.options import VLLMOptions; from alignkit_vllm.server import Server\n"
        f"server = Server(VLLMOptions(command={(sys.executable, '-c', SLEEPER)!r}), 'm', Path({str(tmp_path)!r}))\n"
        "print(server.pid, flush=True)\n"
        "while server.alive: time.sleep(0.05)\n"
        "server.stop()\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    group = int(run.stdout.readline())
    end = time.monotonic() + SECONDS
    while len(members(group)) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    server = next(pid for pid in members(group) if pid != group and parent_of(pid) == group)
    os.kill({"run": run.pid, "guard": group, "server": server}[victim], signal.SIGKILL)
    assert gone(group)
    run.wait(SECONDS)
    run.stdout.close()


SLEEPER = "import os, time; os.fork(); time.sleep(600)"


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_the_server_gets_its_flags_and_an_environment_without_this_ones_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("VLLM_HOST_IP", "10.0.0.1")
    site = _worker_site(tmp_path)
    said = _environment(site)
    assert (said["PYTHONPATH"], said["VLLM_SERVER_DEV_MODE"], said["VLLM_HOST_IP"]) == (str(site), "1", "10.0.0.1")
    assert "RANK" not in said
    script = tmp_path / "echo.py"
    script.write_text("import sys; print(' '.join(sys.argv[1:]))")
    options = VLLMOptions(command=(sys.executable, str(script)), flags=("--max-model-len", "64"))
    server = Server(options, "some/model", tmp_path)
    end = time.monotonic() + SECONDS
    while server.alive and time.monotonic() < end:
        time.sleep(0.05)
    server.stop()
    said_by_it = server.log.read_text()
    assert "--model some/model --served-model-name policy --host 127.0.0.1 --port " in said_by_it
    assert "--logprobs-mode processed_logprobs --generation-config vllm" in said_by_it
    assert '--weight-transfer-config {"backend": "alignkit-file"} --max-model-len 64' in said_by_it
    assert re.search(r"exit code 0\n", said_by_it)


def test_vllm_finds_the_workers_half_without_alignkit(tmp_path: Path) -> None:
    site = _worker_site(tmp_path)
    code = (
        "import sys; from importlib.metadata import entry_points\n"
        "found = [p for p in entry_points(group='vllm.general_plugins') if p.name == 'alignkit']\n"
        "point, = {p.value: p for p in found}.values()\n"
        "print(point.load().__module__, 'alignkit' in sys.modules)"
    )
    bare = {"PYTHONPATH": str(site), "PATH": os.environ["PATH"]}
    found = subprocess.run([sys.executable, "-c", code], env=bare, check=True, capture_output=True, text=True).stdout
    assert found.split() == ["alignkit_vllm_worker", "False"]
