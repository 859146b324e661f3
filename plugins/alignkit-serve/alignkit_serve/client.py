"""Asks a score server, again and again until it answers or the patience ends. Imports no torch."""

from __future__ import annotations

import json
import os
import time
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from alignkit import InputError, PluginError, RetryGate, StoppedByCheck, redacted, retry_after
from alignkit_serve.protocol import SHOWN, BadReply, Scored, Served, request_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignkit import Group
    from alignkit_serve.options import HttpOptions

FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0
REACH_SECONDS = 10.0
_LATER = (408, 425, 429)
_REFUSED_KEY = (401, 403)


class NoAnswer(Exception):  # noqa: N818
    """This try failed; another one may succeed."""


class ScoreClient:
    """A client of one server; its methods may be called from several threads.

    Attributes:
        served: what the server said of itself at the start.

    Raises:
        InputError: no score server answers, or it refuses the key.
    """

    def __init__(self, options: HttpOptions) -> None:
        self._options, self._url = options, options.url.rstrip("/")
        self._secret = os.environ.get(options.key_env, "") if options.key_env else ""
        self._opener = build_opener(_NoRedirect)
        self.gate = RetryGate()
        self.served = self._reach()

    def score(self, groups: Sequence[Group]) -> Scored:
        """The scores of groups.

        Raises:
            StoppedByCheck: no answer for the whole of `patience`, or another reward answers.
            PluginError: the reward behind the server failed.
            InputError: the server refuses the key, or what is there is no score server.
            Unanswered: the gate has opened for good.
        """
        body, start, wait = request_of(groups), time.monotonic(), 0.0
        while True:
            self.gate.wait(wait)
            try:
                scored = Scored.of(self._send("/score", body, self._options.timeout), groups)
                break
            except (NoAnswer, BadReply) as error:
                problem = redacted(str(error), self._secret)
            if time.monotonic() - start >= self._options.patience:
                raise StoppedByCheck(
                    f"reward server {self._url}: no scores for {self._options.patience:g} s (the last: {problem})\n"
                    "  fix: start it again, or raise reward.patience; then continue with --resume"
                )
            wait = min(2 * wait or FIRST_WAIT, LONGEST_WAIT)
        if scored.digest != self.served.digest:
            raise StoppedByCheck(
                f"reward server {self._url}: it serves another reward than at the start of the run\n"
                "  fix: start it with the reward that it had; then continue with --resume"
            )
        return scored

    def _reach(self) -> Served:
        where = "reward.url"
        try:
            return Served.of(self._send("/health", None, min(self._options.timeout, REACH_SECONDS)))
        except NoAnswer as error:
            said = redacted(str(error), self._secret)
            fix = f"start one: alignkit serve-reward, or correct url = {self._url}"
            raise InputError(f"no server answers: {said}", where=where, fix=fix) from error
        except BadReply as error:
            said = redacted(str(error), self._secret)
            raise InputError(f"{self._url} is no score server: {said}", where=where, fix="correct the url") from error

    def _send(self, path: str, body: bytes | None, timeout: float) -> bytes:
        """The body of the reply. Raises NoAnswer, and what `_judge` raises."""
        headers = {"content-type": "application/json"}
        if self._secret:
            headers["authorization"] = f"Bearer {self._secret}"
        try:
            with self._opener.open(Request(self._url + path, body, headers), timeout=timeout) as reply:
                said: bytes = reply.read()
                return said
        except HTTPError as error:
            with error:
                raise self._judged(error, error.read()) from None
        except TimeoutError as error:
            raise NoAnswer(f"no byte for {timeout:g} s") from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise NoAnswer(f"{type(reason).__name__}: {reason}") from error

    def _judged(self, error: HTTPError, body: bytes) -> Exception:
        """What a status other than 200 means; closes the gate for the time that the server asks to wait."""
        said = redacted(f"status {error.code}: {_error_in(body)}", self._secret)
        if error.code in _LATER or error.code >= 500:
            headers = {name.lower(): value for name, value in error.headers.items()}
            self.gate.close_for(min(retry_after(headers, time.time()), self._options.patience))
            return NoAnswer(said)
        if error.code in _REFUSED_KEY:
            variable = f"the variable {self._options.key_env}" if self._options.key_env else "key_env"
            return InputError(said, where="reward.key_env", fix=f"check {variable}")
        if error.code == 422:
            return PluginError(f"reward server {self._url}: {_error_in(body)}")
        return InputError(f"{self._url} is no score server: {said}", where="reward.url", fix="correct the url")


class _NoRedirect(HTTPRedirectHandler):
    """Follows no redirect, which would send the key elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _error_in(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])[:SHOWN]
    except (ValueError, LookupError, TypeError, RecursionError):
        return repr(body[:SHOWN].decode(errors="replace"))
