"""Metric sinks: one real run into all installed tools, read back with each tool's own reader."""

from __future__ import annotations

import importlib
import json
import os
import struct
import subprocess
import sys
from collections import defaultdict
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_report import MlflowOptions, TensorBoardOptions, TrackioOptions, WandbOptions, options
from alignkit_report.options import is_installed
from alignkit_report.sinks import Mlflow, TensorBoard, Wandb

from alignkit import Context, InputError, Run
from alignkit.plugins import read_component, registry
from alignkit.testing import MetricSinkContract
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Series = dict[str, list[tuple[int, float]]]

NAMES = ("tensorboard", "wandb", "mlflow", "trackio")
CONFIGS = {"tensorboard": TensorBoardOptions, "wandb": WandbOptions, "mlflow": MlflowOptions, "trackio": TrackioOptions}
FOUND = SimpleNamespace(origin="somewhere/__init__.py")
INSTALLED = [name for name in NAMES if is_installed(name)]
SAMPLES = "eval/samples"
WORDS = ("red", "green", "blue", "black", "white", "brown")
RECIPE = """
[run]
holdout = 0.0
metrics = [{sinks}]
[policy]
plugin = "hf"
model = "llama"
[demonstrations]
path = "demonstrations.jsonl"
[sft]
minibatch_size = 3
[preferences]
path = "pairs.jsonl"
[optimizer]
plugin = "dpo"
minibatch_size = 2
[sampling]
max_tokens = 2
"""


def needs(name: str) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)


def environment(home: Path) -> dict[str, str]:
    """The environment of a user without any accounts."""
    prefixes = ("WANDB", "MLFLOW", "TRACKIO", "HF_TOKEN")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    return {**kept, "HOME": str(home), "TRACKIO_DIR": str(home / "trackio")}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of `alignkit run`: two stages of a few steps, with every installed sink."""
    folder = tmp_path_factory.mktemp("sinks")
    write_tiny_llama(folder / "llama")
    said = [{"prompt": f"say {word}", "completion": word} for word in WORDS]
    pairs = [{"prompt": f"say {word}", "chosen": word, "rejected": "no"} for word in WORDS]
    for name, rows in (("demonstrations", said), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sinks = ", ".join(f'{{plugin = "{name}"}}' for name in INSTALLED)
    (folder / "recipe.toml").write_text(RECIPE.format(sinks=sinks))
    words = [sys.executable, "-m", "alignkit", "run", "recipe.toml", "--out", "first-run", "--json"]
    given = ["-o", "run.seed=7"]
    done = subprocess.run(
        [*words, *given], cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["sft"]["steps"] == 2, "stdout is for the result alone"
    return folder / "first-run"


def logged(run: Path) -> Series:
    """The figures in metrics.jsonl, under the names that sinks get."""
    found: Series = defaultdict(list)
    for record in Run.open(run).metrics:
        for name in record.keys() - {"stage", "step", "time"}:
            found[f"{record['stage']}/{name}"].append((int(record["step"]), record[name]))
    return found


def of_tensorboard(run: Path) -> Series:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def of_mlflow(run: Path) -> Series:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("alignkit")
    assert experiment is not None
    assert experiment.artifact_location == (run / "mlflow" / "artifacts").as_uri()
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("first-run", "FINISHED")
    return {
        key: [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, key)]
        for key in found.data.metrics
    }


def of_trackio(run: Path) -> Series:
    """Read in a separate process, because trackio reads its folder's name on import."""
    script = """
import json
from trackio import Api
from trackio.sqlite_storage import SQLiteStorage
(run,) = Api().runs("alignkit")
print(json.dumps([run.name, SQLiteStorage.get_logs("alignkit", run.name, run_id=run.id)]))
"""
    words = [sys.executable, "-W", "ignore", "-c", script]
    said = subprocess.run(words, env=environment(run.parent), capture_output=True, text=True, check=True)
    name, records = json.loads(said.stdout)
    assert name == "first-run"
    found: Series = defaultdict(list)
    for record in records:
        for key in record.keys() - {"step", "timestamp", SAMPLES}:
            found[key].append((record["step"], record[key]))
    return found


def of_wandb(run: Path) -> Series:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
    found: Series = defaultdict(list)
    axes = {}
    for content in wandb_records(file.read_bytes()):
        record = Record.FromString(content)
        if record.HasField("metric"):
            axes[record.metric.glob_name] = record.metric.step_metric
        values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for axis in [key for key in values if key.endswith("/step")]:
            for key in values.keys() - {axis, "_step", "_runtime", "_timestamp"}:
                if key.startswith(SAMPLES):
                    continue
                assert key.startswith(axis.removesuffix("step"))
                found[key].append((values[axis], values[key]))
    assert axes == {"sft/*": "sft/step", "policy/*": "policy/step", "eval/*": "eval/step"}
    return found


def wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: 7 bytes, then LevelDB's log format, with blocks counted from the file's start."""
    assert data[:4] == b":W&B"
    position, parts = 7, b""
    while position + 7 <= len(data):
        if position % 32768 > 32768 - 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def text_in_tensorboard(run: Path) -> str:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    (event,) = events.Tensors(f"{SAMPLES}/text_summary")
    return str(event.tensor_proto.string_val[0].decode())


def texts_in(value: Any) -> Iterator[str]:
    """All strings in JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_in(inner)


def text_in_mlflow(run: Path) -> str:
    (file,) = (run / "mlflow" / "artifacts").rglob("samples/eval/step-0.txt")
    return file.read_text()


def text_in_trackio(run: Path) -> str:
    """From its database: the tables are JSON there."""
    import sqlite3

    (file,) = (run.parent / "trackio").glob("*.db")
    with closing(sqlite3.connect(file)) as database:
        records = [json.loads(row) for (row,) in database.execute("select metrics from metrics")]
    return "\n".join(texts_in([record[SAMPLES] for record in records if SAMPLES in record]))


def text_in_wandb(run: Path) -> str:
    (table,) = (run / "wandb").glob("offline-run-*/files/media/table/eval/*.table.json")
    return "\n".join(texts_in(json.loads(table.read_text())))


TEXTS: dict[str, Callable[[Path], str]] = {
    "tensorboard": text_in_tensorboard,
    "wandb": text_in_wandb,
    "mlflow": text_in_mlflow,
    "trackio": text_in_trackio,
}
READERS: dict[str, Callable[[Path], Series]] = {
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
    "mlflow": of_mlflow,
    "trackio": of_trackio,
}


# These tools warn about their own dependencies on import.
@pytest.mark.filterwarnings("ignore:::(tensorboard|wandb|mlflow|google|pydantic|sqlalchemy|alembic)")
@pytest.mark.parametrize("name", NAMES)
def test_every_figure_of_both_stages_is_in_the_tools_own_files(run_folder: Path, name: str) -> None:
    needs(name)
    expected, found = logged(run_folder), READERS[name](run_folder)
    assert {"sft/loss", "policy/loss", "policy/margin"} <= expected.keys()
    assert found.keys() == expected.keys()
    for key, series in expected.items():
        assert [step for step, _ in sorted(found[key])] == list(range(1, len(series) + 1))
        # metrics.jsonl has six digits; TensorBoard has float32
        assert [value for _, value in sorted(found[key])] == pytest.approx([value for _, value in series], rel=6e-6)


@pytest.mark.filterwarnings("ignore:::(tensorboard|wandb|mlflow|google|pydantic|sqlalchemy|alembic)")
@pytest.mark.parametrize("name", NAMES)
def test_the_samples_of_the_evaluation_are_there(run_folder: Path, name: str) -> None:
    needs(name)
    samples, text = Run.open(run_folder).samples, TEXTS[name](run_folder)
    assert {group.source for group in samples} == {"start", "policy"}
    assert not [group for group in samples if group.prompt.plain not in text or group.source not in text]
    assert not [said for group in samples for said in group.responses if said not in text]


def test_no_tool_keeps_the_command_line(run_folder: Path) -> None:
    """It may contain keys."""
    folders = [run_folder / name for name in INSTALLED] + [run_folder.parent / "trackio"]
    files = [path for folder in folders if folder.is_dir() for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= len(INSTALLED)
    assert not [path for path in files if b"run.seed=7" in path.read_bytes()]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_reported_before_anything_loads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "find_spec", lambda package: None)
    with pytest.raises(InputError, match=f"needs the package '{name}'") as error:
        CONFIGS[name]()
    assert error.value.fix == f'pip install "alignkit-report[{name}]"'
    part, (problem,) = read_component(registry(), "metrics", {"plugin": name})
    assert part is None
    assert (problem.key, problem.fix) == ((), error.value.fix)


def test_a_folder_of_the_trackers_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder_of_a_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_installed("folder_of_a_tracker")
    (tmp_path / "folder_of_a_tracker" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert is_installed("folder_of_a_tracker")


def test_a_database_of_mlflows_own_needs_more_than_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(options, "find_spec", lambda package: None if package == "sqlalchemy" else FOUND)
    with pytest.raises(InputError, match="needs the package 'sqlalchemy'"):
        MlflowOptions().check()
    MlflowOptions(tracking_uri="http://localhost:1").check()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    MlflowOptions().check()


@pytest.mark.parametrize(
    ("mode", "variables", "effective"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, "disabled"),
        ("online", {}, "online"),
        ("offline", {"WANDB_API_KEY": "k", "WANDB_MODE": "online"}, "offline"),
    ],
)
def test_wandb_is_offline_where_there_is_no_key(
    monkeypatch: pytest.MonkeyPatch, mode: Any, variables: dict[str, str], effective: str
) -> None:
    monkeypatch.setattr(options, "find_spec", lambda package: FOUND)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert WandbOptions(mode=mode).effective_mode == effective


def test_a_name_that_tensorboard_would_not_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "find_spec", lambda package: FOUND)
    with pytest.raises(InputError, match="has no effect without folder"):
        TensorBoardOptions(name="mine").check()
    TensorBoardOptions(name="mine", folder="runs").check()


@pytest.mark.filterwarnings("ignore:::(tensorboard|google)")
def test_runs_share_a_folder_of_tensorboard(tmp_path: Path) -> None:
    needs("tensorboard")
    for number, name in enumerate(("", "other")):
        options = TensorBoardOptions(folder=str(tmp_path / "all"), name=name)
        sink = TensorBoard(options, Context(folder=tmp_path / "runs" / "mine"))
        sink.write({"stage": "sft", "step": 1, "loss": float(number)})
        sink.close()
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["mine", "other"]


@pytest.fixture
def mlflow_at_rest(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MLflow without any settings; what a test sets is undone."""
    needs("mlflow")
    import mlflow

    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    yield mlflow
    mlflow.set_tracking_uri(None)


@pytest.mark.filterwarnings("ignore:::(mlflow|google|pydantic|sqlalchemy|alembic)")
@pytest.mark.parametrize("before", ["", "sqlite:///elsewhere.db"])
def test_mlflow_is_left_as_it_was(run_folder: Path, mlflow_at_rest: Any, before: str) -> None:
    """Otherwise the next run in this process would write into this run's store."""
    mlflow, uri = mlflow_at_rest, f"sqlite:///{run_folder}/mlflow/mlflow.db"
    mlflow.set_tracking_uri(before or None)
    sink = Mlflow(MlflowOptions(tracking_uri=uri, project=f"after {before}", name="n"), Context(folder=run_folder))
    sink.write({"stage": "sft", "step": 1, "loss": 0.25})
    sink.close()
    assert mlflow.is_tracking_uri_set() == bool(before)
    assert os.environ.get("MLFLOW_TRACKING_URI", "") == before
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name(f"after {before}").experiment_id])
    assert (run.info.run_name, run.data.metrics) == ("n", {"sft/loss": 0.25})


def test_they_are_registered() -> None:
    """The four are registered under the names of their packages."""
    plugins = {
        r.name: r for r in registry().registrations if r.role == "metrics" and r.distribution == "alignkit-report"
    }
    assert {name: plugin.config for name, plugin in plugins.items()} == CONFIGS
    assert plugins["wandb"].load() is Wandb


@pytest.mark.skipif("tensorboard" not in INSTALLED, reason="tensorboard is not installed")
@pytest.mark.filterwarnings("ignore:::(tensorboard|google)")
class TestTensorBoard(MetricSinkContract):
    component = TensorBoard

    def kept(self, folder: Path) -> dict[tuple[str, int, str], float]:
        """Its figures are float32, which holds those of the contract exactly."""
        found = {}
        for tag, series in of_tensorboard(folder).items():
            stage, _, name = tag.partition("/")
            found |= {(stage, step, name): value for step, value in series}
        return found
