"""Metric sinks, in addition to metrics.jsonl; only the main process uses them."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from alignkit.errors import AlignkitError, blamed
from alignkit.ops.distributed import process_index
from alignkit.records import Group
from alignkit.runs.results import EVENTS
from alignkit.training.signals import terminated_cleanly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from alignkit.interfaces import MetricSink
    from alignkit.recipe.resolved import Resolved

    Write = Callable[[Mapping[str, Any]], None]


@contextmanager
def open_sinks(resolved: Resolved, folder: Path, on_notice: Callable[[str], None]) -> Iterator[Write]:
    """Yields a function that gives a record of metrics.jsonl to each sink of `run.metrics`. Closes each sink once,
    however the run ends.

    Args:
        folder: the run directory.
        on_notice: receives errors of closing a sink when another error is raised.

    Raises:
        PluginError: a sink raised; the message names its plugin.
    """
    specs = resolved.run.metrics if process_index() == 0 else ()
    sinks: dict[str, MetricSink[Any]] = {}

    def write(record: Mapping[str, Any]) -> None:
        groups = [Group.from_json(said) for said in record.get("samples", ())]
        for key, sink in sinks.items():
            if groups:
                with blamed(f"{key}:", "write_samples() failed"):
                    sink.write_samples(groups, record["stage"], int(record["step"]))
            elif not EVENTS & record.keys():
                with blamed(f"{key}:", "write() failed"):
                    sink.write(record)

    with terminated_cleanly() if specs else nullcontext():
        try:
            for index, spec in enumerate(specs):
                key = f"run.metrics.{index}: plugin {resolved.registry.get('metrics', spec['plugin'])}"
                sinks[key] = resolved.build_spec("metrics", spec, folder=folder)
            yield write
        except BaseException:
            for failure in _close(sinks):
                on_notice(str(failure))
            raise
        failures = _close(sinks)
        for failure in failures[1:]:
            on_notice(str(failure))
        if failures:
            raise failures[0]


def _close(sinks: Mapping[str, MetricSink[Any]]) -> list[AlignkitError]:
    """Closes all sinks and returns their errors."""
    failures = []
    for key, sink in sinks.items():
        try:
            with blamed(f"{key}:", "close() failed"):
                sink.close()
        except AlignkitError as failure:
            failures.append(failure)
    return failures
