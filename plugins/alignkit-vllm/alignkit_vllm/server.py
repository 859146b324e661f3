"""A vLLM server that this process starts, in a process group of its own that ends with this process."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import alignkit_vllm_worker

from alignkit_vllm import guard
from alignkit_vllm.client import Client, Trouble

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignkit_vllm.options import ServerOptions

logger = logging.getLogger(__name__)

BACKEND = "alignkit-{}"
"""Of vLLM's weight transfer, by the name of the sampler's."""
SERVED_AS = "policy"
_LAST_LINES = 15
_FIRST_ERRORS = 3
_NAMES_AN_ERROR = re.compile(r"\w(Error|Exception): ")
_FIND_SECONDS = 0.5
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


class Server:
    """A running server.

    Args:
        model: folder or hub id.
        folder: for its log and what it imports.
        transfer: how weights will come.
    """

    def __init__(self, options: ServerOptions, model: str, folder: Path, transfer: str = "file") -> None:
        self.log = folder / "server.log"
        self.url = f"http://127.0.0.1:{free_port()}"
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, guard.__file__, str(os.getpid()), *_command(options, model, self.url, transfer)]
        with self.log.open("ab") as log:
            self._said_before = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(_worker_site(folder), transfer),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the process group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def has_died(self) -> bool:
        """Whether it has ended, or does so while its guard looks: a broken connection is seen before that."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10 * guard.CHECK_SECONDS)
        return not self.alive

    def last_words(self) -> str:
        """The first errors in its part of the log, which vLLM buries, and the end of it, for a message."""
        said = self.log.read_bytes()[self._said_before :]
        lines = said.decode("utf-8", errors="replace").splitlines()
        errors = [line for line in lines[:-_LAST_LINES] if _NAMES_AN_ERROR.search(line)][:_FIRST_ERRORS]
        lines = [*errors, *lines[-_LAST_LINES:]]
        return "\n".join([f"; of {self.log}:", *(f"  | {line}" for line in lines)])

    def stop(self) -> None:
        """Ends the whole group: in order if it can, else by force."""
        if self.alive:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(guard.GRACE_SECONDS + 2)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def wait_until_ready(client: Client, seconds: float, server: Server | None) -> None:
    """Returns when the server answers; `server` is the one that this process started, if it is that.

    Raises:
        Trouble: it did not in time, or `server` ended meanwhile; shows the end of its log.
    """
    if server is None and not client.is_healthy():
        logger.warning("waiting for a vLLM server at %s, for at most %g s", client.url, seconds)
    end = time.monotonic() + seconds
    while not client.is_healthy():
        said = "" if server is None else server.last_words()
        if server is not None and not server.alive:
            raise Trouble(f"the vLLM server ended while it started{said}")
        if time.monotonic() > end:
            raise Trouble(f"waited {seconds:g} s for {client.url} to {'start' if server else 'answer'}{said}")
        time.sleep(min(_FIND_SECONDS, seconds / 10))


def _command(options: ServerOptions, model: str, url: str, transfer: str) -> list[str]:
    python = str(Path(options.python).expanduser()) if options.python else sys.executable
    words = list(options.command) or [python, "-m", "vllm.entrypoints.openai.api_server"]
    words += ["--model", model, "--served-model-name", SERVED_AS]
    words += ["--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    words += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    return [*words, "--weight-transfer-config", json.dumps({"backend": BACKEND.format(transfer)}), *options.flags]


def _environment(site: Path, transfer: str = "file") -> Mapping[str, str]:
    """This process's environment without its own imports and torchrun's places, with what the server needs."""
    kept = {k: v for k, v in os.environ.items() if k not in _OF_TORCHRUN and not k.startswith("TORCHELASTIC_")}
    switches = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if transfer == "ipc":
        switches["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # handles of CUDA memory come pickled
    return {"VLLM_HOST_IP": "127.0.0.1", **kept, **switches, "PYTHONPATH": str(site)}


def _worker_site(folder: Path) -> Path:
    """A folder from which vLLM, whose environment has no alignkit, imports the worker's half by its entry point."""
    site, package = folder / "site", Path(alignkit_vllm_worker.__file__).parent
    shutil.copytree(package, site / package.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    info = site / f"{package.name}-0.1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.name}\nVersion: 0.1.0\n", encoding="utf-8")
    points = f"[vllm.general_plugins]\nalignkit = {package.name}:register\n"
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    return site


def free_port(address: str = "127.0.0.1") -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as free:
        free.bind((address, 0))
        port: int = free.getsockname()[1]
        return port
