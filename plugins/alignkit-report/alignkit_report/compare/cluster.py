"""Jobs as tasks of Ray, on all machines of a cluster, which share the comparison's folder and the recipe's files."""

from __future__ import annotations

import logging
import os
import uuid
from functools import partial
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Any

from alignkit import InputError
from alignkit_report.compare.jobs import LAST_WORDS, Ended, execute, wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignkit_report.compare.jobs import Job

CPU, GPU = "CPU", "GPU"
SECONDS_BETWEEN_LOOKS = 1.0


class OnRay:
    """Runs jobs on a Ray cluster: the one of RAY_ADDRESS or of this machine, else a new one here.

    A task that is lost with its machine runs again elsewhere, where it goes on from its checkpoint. A file beside the
    logs tells tasks to stop, so that their runs save one.

    Args:
        cpus, gpus: of each job; None: 1, of GPUs as many as the cluster has for it, 0 or 1.

    Raises:
        InputError: Ray is not installed, or no machine has as much.
    """

    def __init__(self, cpus: float | None = None, gpus: float | None = None) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            what = "needs Ray, which is not installed"
            raise InputError(what, where="--on ray", fix="pip install 'alignkit-report[ray]'") from error
        self._ray: Any = ray
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.WARNING)
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        has_gpus = any(machine.get(GPU) for machine in machines)
        needed = {CPU: 1.0 if cpus is None else cpus, GPU: float(has_gpus) if gpus is None else gpus}
        check_resources(needed, machines)
        self._task = ray.remote(_execute).options(num_cpus=needed[CPU], num_gpus=needed[GPU], max_retries=2)
        self._threads = max(1, int(needed[CPU]))
        self._running: set[Path] = set()
        self._name = f".stop-{uuid.uuid4().hex[:12]}"

    def run(self, job: Job) -> Ended:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        stop = job.log.parent / self._name
        self._running.add(job.log)
        try:
            ended: Ended = self._ray.get(self._task.remote(job, Path.cwd(), stop, self._threads))
        except self._ray.exceptions.RayError as error:
            return Ended(1, said=str(error)[-LAST_WORDS:])
        finally:
            self._running.remove(job.log)
            if not self._running:
                stop.unlink(missing_ok=True)
        return ended

    def stop(self, number: int) -> int:
        running = set(self._running)
        for folder in {log.parent for log in running}:
            (folder / self._name).touch()
        return len(running)


def check_resources(needed: Mapping[str, float], machines: list[Mapping[str, float]]) -> None:
    """Raises InputError if no machine has what a job needs, because its task would wait for ever."""
    if not any(all(machine.get(name, 0.0) >= amount for name, amount in needed.items()) for machine in machines):
        said = " and ".join(f"{amount:g} {name}s" for name, amount in needed.items() if amount)
        found = "; ".join(f"{machine.get(CPU, 0):g} CPUs, {machine.get(GPU, 0):g} GPUs" for machine in machines)
        raise InputError(f"no machine of the cluster has {said} ({found})", where="--resources", fix="ask for less")


def resources_of(text: str) -> tuple[float | None, float | None]:
    """`cpus=2,gpus=1` as CPUs and GPUs; None for one that is not named.

    Raises:
        InputError: it is anything else.
    """
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, amount = part.partition("=")
        if name not in ("cpus", "gpus") or not amount.replace(".", "", 1).isdigit() or name in found:
            raise InputError("is not cpus=N,gpus=N", where=f"--resources {text}", fix="write --resources cpus=2,gpus=1")
        found[name] = float(amount)
    return found.get("cpus"), found.get("gpus")


def _execute(job: Job, folder: Path, stop: Path, threads: int) -> Ended:
    """A job on a machine of the cluster, from the folder where the comparison was started, until `stop` exists."""
    if not folder.is_dir() or not (folder / job.log).parent.is_dir():
        said = f"{os.uname().nodename} doesn't see {(folder / job.log).parent}: use a folder that all machines share"
        return Ended(1, said=said)
    os.chdir(folder)
    return Ended(128 + SIGTERM) if stop.exists() else execute(job, threads, partial(_wait, stop))


def _wait(stop: Path, number: int) -> tuple[int, int]:
    told: list[Path] = []

    def look() -> None:
        if not told and stop.exists():
            os.kill(number, SIGTERM)
            told.append(stop)

    return wait_for(number, look, SECONDS_BETWEEN_LOOKS)
