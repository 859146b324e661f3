"""`--launch` keeps the command, starts it or writes the job file that starts it, and refuses what makes no sense."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from alignkit.cli import run
from alignkit.errors import InputError
from alignkit.ops import distributed

ASKED = ("run", "my recipe.toml", "--optimizer", "dpo", "-o", "run.seed=3", "-o", "optimizer.beta=0.2", "--resume")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Works where two recipes are."""
    monkeypatch.chdir(tmp_path)
    for name in ("recipe.toml", "my recipe.toml"):
        Path(name).touch()


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


@pytest.mark.parametrize(("how", "submit"), [("slurm", "sbatch"), ("sky", "sky launch")])
def test_a_job_file_starts_the_same_command(capsys: pytest.CaptureFixture[str], how: str, submit: str) -> None:
    code = run([*ASKED, "--out", "runs/big", "--launch", how, "--processes", "8", "--nodes", "2", "--json"])
    assert code == 0
    told = json.loads(said(capsys))
    assert told["submit"] == f"{submit} {told['job']}"
    text = Path(told["job"]).read_text()
    lines = text.replace("\\\n", " ").splitlines()
    command = next(line for line in lines if "-m alignkit" in line)
    words = shlex.split(command[command.index("-m alignkit") :])
    asked = ["--option" if word == "-o" else word for word in ASKED[:-1]]
    assert words[2:14] == [*asked, "--out", "runs/big", "--resume", "--json"]
    assert words[14:17] == ["--launch", "torchrun", "--processes"]
    assert not Path("runs/big").exists()


def test_the_slurm_file_is_a_shell_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sft", "my recipe.toml", "--launch", "slurm", "--processes", "4", "--quiet"]) == 0
    assert "sbatch 'runs/my recipe.slurm'" in said(capsys)
    path = tmp_path / "runs" / "my recipe.slurm"
    subprocess.run(["bash", "-n", str(path)], check=True)
    settings = [line.removeprefix("#SBATCH ") for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=1", "--gpus-per-node=4", "--ntasks-per-node=1", "--signal=TERM@300"} <= set(settings)
    assert {"--job-name=my-recipe", "--output=my-recipe.%j.log"} <= set(settings), "a blank ends a value"


def test_the_sky_file_is_yaml(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    assert run(["align", "recipe.toml", "--launch", "sky", "--processes", "8", "--nodes", "3", "--quiet"]) == 0
    job = yaml.safe_load((tmp_path / "runs" / "recipe.sky.yaml").read_text())
    assert job["num_nodes"] == 3
    assert job["resources"]["accelerators"]["H100"] == 8
    subprocess.run(["bash", "-n", "-c", job["run"]], check=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--launch", "ray", "--processes", "2"], "--launch ray: is unknown"),
        (["--launch", "torchrun"], "needs --processes"),
        (["--processes", "2"], "--processes: needs --launch"),
        (["--launch", "torchrun", "--processes", "2", "--nodes", "2"], "needs a place to meet"),
        (["--launch", "slurm", "--processes", "2", "--rendezvous", "a:1"], "--rendezvous: has no effect with a job"),
        (["--on", "cuda"], "--on: is for --dry-run"),
    ],
)
def test_what_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert run(["run", "recipe.toml", *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize("how", ["torchrun", "slurm"])
def test_a_recipe_that_is_not_there_is_no_job(capsys: pytest.CaptureFixture[str], how: str) -> None:
    assert run(["run", "nope.toml", "--launch", how, "--processes", "2"]) == 2
    assert capsys.readouterr().err.startswith("error: nope.toml: no such recipe\n")
    assert not Path("runs").exists()


def test_processes_without_a_gpu_of_their_own_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = []
    monkeypatch.setattr("torch.distributed.run.run", lambda arguments: started.append(arguments.nproc_per_node))
    for gpus, processes, code in ((1, 2, 2), (2, 2, 0), (0, 2, 0)):
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        assert run(["run", "recipe.toml", "--launch", "torchrun", "--processes", str(processes)]) == code
    assert started == ["2", "2"]
    assert "--processes 2: this machine has 1 GPUs\n  fix: one per GPU" in capsys.readouterr().err


def test_accelerate_that_starts_one_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --cpu --num_processes 2` sets: where to meet, but no rank."""
    for name in ("RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    distributed.start_processes()
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(InputError, match="started one"):
        distributed.start_processes()
