"""The command `alignkit serve-reward`. Importing this module imports neither torch nor a web server."""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import os
import re
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit import InputError, check_key_variable
from alignkit.commands import AsJson, Overrides, PluginFiles, Recipe, RewardName, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignkit.commands import Resolved

app = typer.Typer(help="Serve a reward over HTTP, for `--reward http`.", rich_markup_mode=None)

Host = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free port.")]
KeyEnv = Annotated[
    str, typer.Option("--key-env", metavar="NAME", help="Environment variable with the key that clients must send.")
]


@app.command("serve-reward")
def serve_reward(
    recipe: Recipe = None,
    reward: RewardName = "",
    _plugin: PluginFiles = None,
    options: Overrides = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    key_env: KeyEnv = "",
    as_json: AsJson = False,
) -> None:
    """Serve a reward over HTTP, for `--reward http -o reward.url=URL` in runs on other machines.

    Examples:
        alignkit serve-reward --reward model -o reward.model=runs/first/reward --port 8000
    """
    from alignkit.commands import read_recipe
    from alignkit_serve.protocol import Served
    from alignkit_serve.server import Scorer, listen, make_app, make_server

    if key_env:
        check_key_variable(key_env, where="--key-env")
    elif not _is_local(host):
        raise InputError(
            "anyone who reaches this address could use the reward",
            where=f"--host {host}",
            fix="set a key: --key-env NAME, or listen on 127.0.0.1 and forward the port through ssh",
        )
    resolved = read_recipe(recipe, flags={"reward": reward}, overrides=options or ())
    source = resolved.build("reward")
    served = Served(resolved.names["reward"], digest_of(resolved))
    listening = listen(host, port)
    address, bound = listening.getsockname()[:2]
    url = f"http://{f'[{address}]' if ':' in address else address}:{bound}"
    show({"url": url, "reward": served.reward, "digest": served.digest}, as_json)
    if sys.__stdout__ is not None:
        sys.__stdout__.flush()
    make_server(make_app(Scorer(source, served), os.environ.get(key_env, ""))).run(sockets=[listening])


def digest_of(resolved: Resolved) -> str:
    """sha256 of what determines the reward's scores: its options, and the files and functions that they name.

    A model on the hub counts by its name only.
    """
    said = hashlib.sha256(resolved.digest_of("reward").encode())
    for text in _texts(dataclasses.asdict(resolved.config("reward"))):
        for path in _files(text):
            said.update(path.name.encode())
            with path.open("rb") as file:
                said.update(hashlib.file_digest(file, "sha256").digest())
    return said.hexdigest()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _files(text: str) -> list[Path]:
    """The files of a folder, a file, or the module of `module:function`."""
    if not text or "\0" in text or len(text) > 4000:
        return []
    try:
        path = Path(text).expanduser()
        if re.fullmatch(r"[\w.]+:\w+", text):
            spec = find_spec(text.partition(":")[0])
            path = Path(spec.origin if spec and spec.origin else text)
        found = sorted(path.rglob("*")) if path.is_dir() and path != Path() else [path]
        return [one for one in found if one.is_file()]
    except (OSError, ImportError, RuntimeError, ValueError):
        return []


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
