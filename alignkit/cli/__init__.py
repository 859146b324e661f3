"""The command line. `main` turns every outcome into an exit code and, on failure, one message.

0 done, 2 wrong input (nothing started), 3 stopped by a check, 128 + n signal n, 1 anything else.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import nullcontext
from typing import TYPE_CHECKING

from alignkit.checking import NO_SECRETS, secret_arguments
from alignkit.errors import AlignkitError, InputError, missing_package, visible, wants_traceback
from alignkit.files import is_disk_full

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "run"]


def main() -> None:
    """The console script `alignkit`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code; never raises."""
    from alignkit.cli.app import build_app
    from alignkit.commands.flags import stdout_for_results

    as_json = "--json" in arguments
    try:
        for place, option in secret_arguments(arguments).items():
            raise InputError("looks like a secret", where=option or f"argument {place + 1}", fix=NO_SECRETS)
        with stdout_for_results() if as_json else nullcontext():
            outcome = build_app(arguments)(args=list(arguments), prog_name="alignkit", standalone_mode=False)
    except AlignkitError as error:
        return _complain(error, error.exit_code, as_json)
    except KeyboardInterrupt:
        outcome = 130  # which Typer makes of it, too
    except ModuleNotFoundError as error:
        return _complain(missing_package(error), 2, as_json, cause=error)
    except Exception as error:
        return _unexpected(error, as_json)
    if outcome == 130:
        return _complain(AlignkitError("stopped by SIGINT"), outcome, as_json)
    return outcome if isinstance(outcome, int) else 0


def _unexpected(error: Exception, as_json: bool) -> int:
    """Reports Typer's own errors about arguments, recognised by duck typing (Typer may bundle its own click)."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error)
        return 0
    if hasattr(error, "format_message"):
        command = getattr(getattr(error, "ctx", None), "command_path", "alignkit")
        return _complain(InputError(error.format_message(), fix=f"{command} --help"), 2, as_json)
    if type(error).__name__ == "Abort":
        return 130
    if is_disk_full(error):
        full = AlignkitError(f"the disk is full: {error}\n  fix: free disk space and type the same command again")
        return _complain(full, 1, as_json, cause=error)
    hint = "" if wants_traceback() else "; set ALIGNKIT_TRACEBACK=1 to see where"
    return _complain(AlignkitError(f"{type(error).__name__}: {error}{hint}"), 1, as_json, cause=error)


def _complain(error: AlignkitError, code: int, as_json: bool, cause: BaseException | None = None) -> int:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from alignkit.training.processes import failure_to_show

        shown = failure_to_show(error, cause or error)
        if shown is None:
            return code
        error = shown
    if wants_traceback():
        print(visible("".join(traceback.format_exception(cause or error))), end="", file=sys.stderr)
    if as_json:
        parts = {name: getattr(error, name) for name in ("what", "where", "fix") if getattr(error, name, "")}
        print(json.dumps({"error": {"message": str(error), "exit_code": code, **parts}}), file=sys.stderr)
    else:
        print(f"error: {error}", file=sys.stderr)
    return code
