"""Talks to one vLLM server. Every wait has a limit, and its error names what was waited for."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2

from alignkit import PluginError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Sampling

_QUICK_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
_SHOWN = 300


class Trouble(Exception):  # noqa: N818
    """The server is dead, silent, broken or has other weights; starting it again, or a whole update, may help."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A sampled response: token ids with the stop token, their log-probabilities, and whether it ended by itself."""

    ids: list[int]
    logprobs: list[float]
    finished: bool


class Client:
    """One server's address."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx2.Client(base_url=self.url, limits=httpx2.Limits(max_connections=None))
        self._model = ""

    def close(self) -> None:
        self._http.close()

    def is_healthy(self) -> bool:
        """Whether the server answers that it is well."""
        try:
            return self._http.get("/health", timeout=_CONNECT_SECONDS).status_code == httpx2.codes.OK
        except httpx2.TransportError:
            return False

    def ask(
        self, what: str, path: str, body: Mapping[str, Any] | None = None, *, get: bool = False, seconds: float = 0.0
    ) -> Any:
        """The JSON answer.

        Args:
            what: is waited for, as in "to load weights".
            seconds: the longest wait.

        Raises:
            Trouble: no answer in time, or a server error.
            PluginError: the server refuses the request; the same one would be refused again.
        """
        limit = seconds or _QUICK_SECONDS
        try:
            answer = self._http.request(
                "GET" if get else "POST",
                path,
                json=body,
                timeout=httpx2.Timeout(limit, connect=min(limit, _CONNECT_SECONDS)),
            )
        except httpx2.TimeoutException as error:
            raise Trouble(f"waited {limit:g} s for {self.url} {what}") from error
        except httpx2.TransportError as error:
            raise Trouble(f"{self.url} is gone while asked {what} ({type(error).__name__}: {error})") from error
        if self._http.is_closed:  # while this thread was connecting, so the connection was not yet among those closed
            answer.extensions["network_stream"].close()
        if answer.is_server_error:
            raise Trouble(f"{self.url} failed {what}: {answer.status_code} {answer.text[:_SHOWN]}")
        if answer.status_code == httpx2.codes.NOT_FOUND:
            raise PluginError(
                f"{self.url} has no {path}: start it with VLLM_SERVER_DEV_MODE=1 and vLLM 0.32 or newer, "
                "see the README of alignkit-vllm"
            )
        if answer.is_error:
            raise PluginError(f"{self.url} refused {what}: {answer.status_code} {answer.text[:_SHOWN]}")
        with suppress(json.JSONDecodeError):
            return answer.json()
        return None

    def version(self) -> str:
        """The version of the server's weights."""
        said = self.ask("to say the version of its weights", "/weight_info", get=True)
        return str(said["weight_version"])

    def workers(self) -> int:
        """The processes of the server that hold weights, over all its devices."""
        return int(self.ask("for the number of its workers", "/get_world_size", get=True)["world_size"])

    def connect(self, info: Mapping[str, Any] | None = None, *, seconds: float = 0.0) -> None:
        """Prepares the server for weights; once in its life."""
        self.ask("to prepare for weights", "/init_weight_transfer_engine", {"init_info": info or {}}, seconds=seconds)

    def update(self, paths: Sequence[str], version: str, *, seconds: float) -> None:
        """Has the server load weights from files."""
        self.begin_update(seconds=seconds)
        self.load({"paths": list(paths), "version": version}, version, seconds=seconds)
        self.finish_update(version, seconds=seconds)

    def begin_update(self, *, seconds: float) -> None:
        """From now on nothing samples."""
        self.ask("to pause", "/pause?mode=abort", seconds=seconds)
        self.ask("to begin an update of its weights", "/start_weight_update", seconds=seconds)

    def load(self, info: Mapping[str, Any], version: str, *, seconds: float) -> None:
        """Has the server load weights, or some of them: `info` tells its engine which and from where."""
        self.ask(f"to load weights {version}", "/update_weights", {"update_info": info}, seconds=seconds)

    def finish_update(self, version: str, *, seconds: float) -> None:
        """The server samples again, and no key or value of old weights stays."""
        done = {"weight_version": version}
        self.ask(f"to finish the update to weights {version}", "/finish_weight_update", done, seconds=seconds)
        said = self.ask("to forget keys and values of old weights", "/reset_prefix_cache", seconds=seconds)
        forgot = not isinstance(said, dict) or bool(said.get("success", True))
        require_updated(self.url, version, found=self.version(), forgot=forgot)
        self.ask("to resume", "/resume", seconds=seconds)

    def complete(
        self,
        prompt: Sequence[int],
        *,
        n: int,
        sampling: Sampling,
        seed: int,
        stop_ids: Sequence[int],
        seconds: float,
    ) -> list[Sampled]:
        """`n` responses to token ids.

        Raises:
            Trouble: as `ask`, or the answer is none: too few responses, a log-probability missing, aborted.
            PluginError: the server read other tokens than these.
        """
        drawn = n if sampling.temperature else 1  # vLLM refuses to draw the likeliest tokens twice
        body = {
            "model": self._served_model(),
            "prompt": list(prompt),
            "n": drawn,
            "seed": seed,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or -1,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "min_tokens": sampling.min_tokens,
            "repetition_penalty": sampling.repetition_penalty,
            "stop": list(sampling.stop),
            "stop_token_ids": list(stop_ids),
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
        }
        said = self.ask(f"for {n} responses", "/v1/completions", body, seconds=seconds)
        try:
            choices = sorted(said["choices"], key=lambda choice: int(choice["index"]))
            found = [_sampled(choice) for choice in choices]
            read = choices[0].get("prompt_token_ids")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise Trouble(f"{self.url} gave no responses: {json.dumps(said)[:_SHOWN]}") from error
        if read is not None and read != list(prompt):
            raise PluginError(f"{self.url} read the tokens {read[:8]}... where it was given {list(prompt)[:8]}...")
        if len(found) != drawn:
            raise Trouble(f"{self.url} gave {len(found)} responses where {drawn} were asked for")
        return found * (n // drawn)

    def _served_model(self) -> str:
        if not self._model:
            self._model = self.ask("for the name of its model", "/v1/models", get=True)["data"][0]["id"]
        return self._model


def require_updated(url: str, version: str, *, found: str, forgot: bool) -> None:
    """What must be true of an engine after an update: keys and values of old weights are gone, and it has the new ones.

    Raises:
        Trouble: one of them is not.
    """
    if not forgot:
        raise Trouble(f"{url} keeps keys and values of old weights: its prefix cache could not be reset")
    if found != version:
        raise Trouble(f"{url} has weights {found} after an update to {version}")


def _sampled(choice: Mapping[str, Any]) -> Sampled:
    ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    if choice["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"finish_reason is {choice['finish_reason']}")
    if not ids or len(ids) != len(logprobs) or None in logprobs:
        raise ValueError(f"{len(ids)} tokens with {len(logprobs)} log-probabilities")
    return Sampled([int(token) for token in ids], [float(x) for x in logprobs], choice["finish_reason"] == "stop")
