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


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


@pytest.mark.parametrize(("how", "submit"), [("slurm", "sbatch"), ("sky", "sky launch")])
def test_a_job_file_starts_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str, submit: str
) -> None:
    monkeypatch.chdir(tmp_path)
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


def test_the_slurm_file_is_a_shell_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["sft", "recipe.toml", "--launch", "slurm", "--processes", "4", "--quiet"]) == 0
    path = tmp_path / "runs" / "recipe.slurm"
    subprocess.run(["bash", "-n", str(path)], check=True)
    settings = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --nodes=1", "#SBATCH --gpus-per-node=4", "#SBATCH --ntasks-per-node=1"} <= set(settings)


def test_the_sky_file_is_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml = pytest.importorskip("yaml")
    monkeypatch.chdir(tmp_path)
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
    ],
)
def test_what_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert run(["run", "recipe.toml", *words]) == 2
    assert message in capsys.readouterr().err


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
