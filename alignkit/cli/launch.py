"""`--launch`: the same command in several processes, started by torchrun, or the job file that starts it on a cluster.

Only torch's own launcher starts processes. It ends all of them when one fails, and passes on signals; what is added is
the exit code of the run.
"""

from __future__ import annotations

import logging
import re
import shlex
import sys
from pathlib import Path
from signal import SIGTERM
from string import Template
from typing import TYPE_CHECKING, Any

from alignkit.errors import InputError, closest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SUBMIT = {"slurm": "sbatch", "sky": "sky launch"}
"""Scheduler -> the command that submits its job file."""
SUFFIXES = {"slurm": ".slurm", "sky": ".sky.yaml"}
FLAGS = ("launch", "processes", "nodes", "rendezvous")
SECONDS_TO_STOP = 45
"""For the processes to save and end after a signal, or after one of them has failed; then they are killed."""


def launches(given: Mapping[str, Any]) -> bool:
    """Whether the flags ask for other processes.

    Raises:
        InputError: they contradict each other.
    """
    how = given["launch"]
    if not how:
        if others := [flag for flag in FLAGS if given[flag]]:
            raise InputError("needs --launch", where=f"--{others[0]}", fix="add --launch torchrun")
        return False
    if how not in ("torchrun", *SUBMIT):
        raise InputError("is unknown", where=f"--launch {how}", fix=closest(how, ("torchrun", *SUBMIT)))
    if not given["processes"]:
        raise InputError("needs --processes", where=f"--launch {how}", fix="give the processes of a node, one per GPU")
    if how in SUBMIT and given["rendezvous"]:
        raise InputError(
            "has no effect with a job file, which names the first node", where="--rendezvous", fix="omit it"
        )
    if given["recipe"] is not None:
        from alignkit.recipe.recipe import read_tables

        read_tables(given["recipe"])
    if how == "torchrun" and (given["nodes"] or 1) > 1 and not given["rendezvous"]:
        fix = "start the same command on every node, with --rendezvous HOST:PORT of one of them"
        raise InputError("needs a place to meet", where="--nodes", fix=fix)
    return True


def torchrun(command: Sequence[str], processes: int, nodes: int, rendezvous: str) -> int:
    """Runs an alignkit command in `processes` processes on this node; returns the exit code of the run.

    Raises:
        InputError: there are fewer GPUs, if any.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    if 0 < (gpus := torch.cuda.device_count()) < processes:
        fix = 'one per GPU; to train on the CPU, set CUDA_VISIBLE_DEVICES=""'
        raise InputError(f"this machine has {gpus} GPUs", where=f"--processes {processes}", fix=fix)
    for name in ("torch.distributed.run", "torch.distributed.elastic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the processes tell of their failures themselves
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={rendezvous}", "--rdzv-id=alignkit"]
    words = [f"--nproc-per-node={processes}", f"--nnodes={nodes}", *(meeting if rendezvous else ["--standalone"])]
    arguments = get_args_parser().parse_args([*words, "-m", "alignkit", *command])
    arguments.shutdown_timeout = SECONDS_TO_STOP
    try:
        run(arguments)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        return exit_code_of([failure.exitcode for failure in failed.failures.values()])
    return 0


def exit_code_of(codes: Sequence[int]) -> int:
    """The exit code of a run from those of its processes that failed: the one that says most. Those that lost the
    connection to another end with 1, or by the launcher's SIGTERM."""
    telling = [code for code in codes if code not in (1, -SIGTERM)] or [min(codes, key=abs)]
    return max(128 - code if code < 0 else code for code in telling)


class _JobTemplate(Template):
    """Shell text has `$` of its own."""

    delimiter = "@"


def write_job(how: str, command: Sequence[str], out: Path, processes: int, nodes: int) -> Path:
    """Writes the job file of a scheduler beside the run directory `out`; returns its path."""
    template = Path(__file__).parent / "job_templates" / f"{how}.tmpl"
    python = sys.executable if how == "slurm" else "python"
    path = out.with_name(out.name + SUFFIXES[how])
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _JobTemplate(template.read_text(encoding="utf-8")).substitute(
        name=re.sub(r"[^\w.-]", "-", out.name),
        folder=shlex.quote(str(Path.cwd())),
        command=shlex.join([python, "-m", "alignkit", *command]),
        processes=processes,
        nodes=nodes,
    )
    path.write_text(text, encoding="utf-8")
    return path
