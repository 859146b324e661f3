"""The contract of metric sinks."""

from __future__ import annotations

import copy
import gc
import os
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from alignkit.interfaces import MetricSink
from alignkit.testing.contracts.component import ComponentContract

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from alignkit.components import Context

    Figures = Mapping[tuple[str, int, str], float]

RECORDS: tuple[dict[str, Any], ...] = (
    {"stage": "sft", "step": 1, "loss": 2.5, "grad_norm": 1.0, "tokens_per_s": 812.5},
    {"stage": "sft", "step": 2, "loss": 2.25, "grad_norm": 0.5, "tokens_per_s": 790.0},
    {"stage": "policy", "step": 1, "loss": -0.125, "kl": 0, "reward": 1.5},
    {"stage": "policy", "step": 2, "loss": -0.25, "kl": 0.0625, "reward": 1.75, "clip_fraction": 0.125},
)
"""Two stages that both count from 1; a figure may appear later, or be a whole number."""
WRONG = {"nan": float("nan"), "inf": float("inf"), "none": None, "text": "?", "flag": True, "list": [1.0]}
_KEPT = ("PATH", "PYTHON", "LANG", "LC_", "LD_", "DYLD_", "TMP", "TEMP", "SYSTEMROOT", "OMP_", "PYTEST", "VIRTUAL_ENV")


class MetricSinkContract(ComponentContract):
    """`class TestMine(MetricSinkContract): component = Mine`

    Override `kept` to show that nothing is lost. The sink runs as for a user without accounts: no variables with keys
    or servers, an empty home folder.
    """

    def kept(self, folder: Path) -> Figures | None:
        """(stage, step, name) -> figure, as read from what the closed sink left in the folder; None skips the check."""
        return None

    @pytest.fixture(autouse=True)
    def no_accounts(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A sink must not send these figures to somebody's server."""
        for name in list(os.environ):
            if not name.upper().startswith(_KEPT):
                monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def _sink(self, folder: Path) -> MetricSink[Any]:
        folder.mkdir(parents=True, exist_ok=True)
        sink: Any = self.component(self.config(), self._context_in(folder))
        assert isinstance(sink, MetricSink)
        return sink

    def _context_in(self, folder: Path) -> Context:
        return replace(self.context(), folder=folder)

    def _write(self, folder: Path, *extra: Mapping[str, Any]) -> None:
        """Writes the records, with others in between."""
        first, *others = RECORDS
        with closing(self._sink(folder)) as sink:
            for record in (first, *extra, *others):
                sink.write(record)

    def test_it_keeps_the_figures_of_every_step(self, tmp_path: Path) -> None:
        self._write(tmp_path / "run")
        kept = self.kept(tmp_path / "run")
        if kept is None:
            pytest.skip("what it keeps is not read back: override kept")
        missing = [place for place, value in _figures().items() if kept.get(place) != value]
        assert not missing, f"(stage, step, figure) that are lost, or differ: {missing}"

    def test_records_stay_as_they_are(self, tmp_path: Path) -> None:
        records = copy.deepcopy(RECORDS)
        with closing(self._sink(tmp_path / "run")) as sink:
            for record in records:
                sink.write(record)
        assert records == RECORDS, "write() changes its record, which other sinks and metrics.jsonl get too: copy it"

    def test_wrong_figures_do_not_stop_the_run(self, tmp_path: Path) -> None:
        for name, value in WRONG.items():
            folder = tmp_path / name
            try:
                self._write(folder, {"stage": "sft", "step": 1, "wrong": value})
            except Exception as error:
                message = f"write() fails on {value!r}, so a run of days would end there: leave such a figure out"
                raise AssertionError(message) from error
            kept = self.kept(folder)
            lost = [] if kept is None else [place for place, known in _figures().items() if kept.get(place) != known]
            assert not lost, f"after {value!r}, these are lost: {lost}"

    def test_closing_twice_is_harmless(self, tmp_path: Path) -> None:
        for records in ((), RECORDS):
            sink = self._sink(tmp_path / str(len(records)))
            for record in records:
                sink.write(record)
            sink.close()
            before = _files(tmp_path)
            try:
                sink.close()
            except Exception as error:
                raise AssertionError("the second close() fails: let it return if there is nothing to close") from error
            assert _files(tmp_path) == before, "the second close() writes again"

    def test_it_can_be_closed_after_a_failed_write(self, tmp_path: Path) -> None:
        sink, folder = self._sink(tmp_path / "run"), tmp_path / "run"
        sink.write(RECORDS[0])
        with suppress(Exception):
            sink.write({"stage": "sft", "step": 2, "loss": _Unreadable()})
        try:
            sink.close()
        except Exception as error:
            raise AssertionError("close() fails after a failed write(), and hides what ended the run") from error
        kept = self.kept(folder)
        first = {place: value for place, value in _figures().items() if place[:2] == ("sft", 1)}
        assert kept is None or first.items() <= kept.items(), "a failed write() loses the steps before it"

    def test_its_files_are_whole_once_it_is_closed(self, tmp_path: Path) -> None:
        sink = self._sink(tmp_path / "run")
        for record in RECORDS:
            sink.write(record)
        sink.close()
        closed = _files(tmp_path)
        del sink
        gc.collect()
        late = [name for name, content in _files(tmp_path).items() if closed.get(name) != content]
        assert not late, f"close() leaves {', '.join(late)} incomplete: close the files in it"


class _Unreadable:
    """A figure that can't be converted or shown."""

    def __float__(self) -> float:
        raise ValueError("no figure")

    def __repr__(self) -> str:
        raise ValueError("no figure")


def _figures() -> dict[tuple[str, int, str], float]:
    """(stage, step, name) -> figure of the records."""
    return {
        (record["stage"], record["step"], name): value
        for record in RECORDS
        for name, value in record.items()
        if name not in ("stage", "step")
    }


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
