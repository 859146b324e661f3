"""The job files, read by the tools that they are for.

SLURM: Debian's slurm-client, slurmctld and munge; a controller of a cluster of four nodes that don't exist says where
the job would run. SkyPilot: ALIGNKIT_SKY_PYTHON names a Python that has it; it pins other versions than alignkit.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from alignkit.cli import run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow
SLURM = ("sbatch", "slurmctld", "munged")
SKY = os.environ.get("ALIGNKIT_SKY_PYTHON", "")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmctldPort={port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
GresTypes=gpu
SuspendProgram=/bin/true
ResumeProgram=/bin/true
NodeName=node[1-4] NodeAddr=127.0.0.1 CPUs=64 RealMemory=100000 Gres=gpu:8 State=CLOUD
PartitionName=main Nodes=node[1-4] Default=YES State=UP
"""


def job(how: str, *, nodes: int, processes: int) -> Path:
    words = ["run", "recipe.toml", "--out", "runs/big", "--launch", how, "--quiet"]
    assert run([*words, "--processes", str(processes), "--nodes", str(nodes)]) == 0
    return Path("runs") / {"slurm": "big.slurm", "sky": "big.sky.yaml"}[how]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A controller, and the daemon that it trusts, until the test ends."""
    if missing := [name for name in SLURM if shutil.which(name) is None]:
        pytest.skip(f"{', '.join(missing)}: not installed")
    if os.getuid():
        pytest.skip("a SLURM controller of one's own needs root")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config, key = tmp_path / "slurm.conf", tmp_path / "munge.key"
    config.write_text(CONFIG.format(host=socket.gethostname(), folder=tmp_path, port=port))
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    files = {"socket": "munge.sock", "pid-file": "munge.pid", "log-file": "munge.log", "seed-file": "munge.seed"}
    places = [f"--{option}={tmp_path / name}" for option, name in files.items()]
    monkeypatch.setenv("SLURM_CONF", str(config))
    subprocess.run(["munged", "--force", f"--key-file={key}", *places], check=True, capture_output=True)
    try:
        subprocess.run(["slurmctld", "-f", str(config)], check=True, capture_output=True)
        end = time.monotonic() + 30
        while subprocess.run(["scontrol", "ping"], check=False, capture_output=True).returncode:
            assert time.monotonic() < end, (tmp_path / "slurmctld.log").read_text()
            time.sleep(0.1)
        yield
    finally:
        for name in ("slurmctld.pid", "munge.pid"):
            if (tmp_path / name).exists():
                os.kill(int((tmp_path / name).read_text()), signal.SIGTERM)


@pytest.mark.usefixtures("cluster")
def test_sbatch_would_start_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for nodes, found in ((2, "on nodes node[1-2] in partition main"), (5, "node configuration is not available")):
        words = ["sbatch", "--test-only", str(job("slurm", nodes=nodes, processes=8))]
        said = subprocess.run(words, check=False, capture_output=True, text=True).stderr
        assert found in said
        (tmp_path / "runs" / "big.slurm").unlink()


@pytest.mark.skipif(not SKY, reason="ALIGNKIT_SKY_PYTHON names no Python with SkyPilot")
def test_skypilot_reads_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = job("sky", nodes=3, processes=8)
    code = (
        "import json, sys, sky\n"
        "task = sky.Task.from_yaml(sys.argv[1])\n"
        "gpus = [resources.accelerators for resources in task.resources]\n"
        "print(json.dumps({'nodes': task.num_nodes, 'gpus': gpus, 'run': task.run, 'name': task.name}))\n"
    )
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    ran = subprocess.run([SKY, "-c", code, str(path)], check=True, capture_output=True, text=True, env=home)
    found = json.loads(ran.stdout.splitlines()[-1])
    assert (found["nodes"], found["name"]) == (3, "big")
    assert {"H100": 8} in found["gpus"]
    assert "-m alignkit run recipe.toml --out runs/big" in found["run"]
