"""A few hundred mutated inputs: each is read or refused. `make fuzz` runs more; ALIGNKIT_FUZZ says how many here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from alignkit_data import Dataset, DatasetOptions

from alignkit import InputError, cli
from tests.fuzz.raw import RAW, kept, seeds
from tests.fuzz.targets import TARGETS, example

CASES = Path(__file__).parents[2] / "shared/cases/fuzz"
EXAMPLES = {"readers": 150, "replies": 150, "labels": 60, "recipes": 60, "manifests": 60, "only_manifests": 40}


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_inputs_are_read_or_refused(target: str, tmp_path: Path) -> None:
    count = int(os.environ.get("ALIGNKIT_FUZZ") or EXAMPLES[target])
    outcomes = set()
    for number in range(count):
        try:
            outcomes.add(example(target, number, tmp_path))
        except Exception as error:
            raise AssertionError(f"example {number} of {target}: {error}") from error
    assert "refused" in outcomes


@pytest.mark.parametrize("target", RAW)
def test_what_was_found_is_read_or_refused(target: str, tmp_path: Path) -> None:
    """The corpus of tests/fuzz/guided.py, where inputs stand that ended in raw errors once."""
    outcomes = [RAW[target](content, tmp_path) for content in [*seeds(target), *kept(target)]]
    assert {"read", "refused"} == {*outcomes}
    assert len(kept(target)) >= 5


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the mutated files in ../shared/cases/fuzz")
def test_files_that_ended_in_raw_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(CASES.iterdir())
    assert len(files) == 17
    for file in files:
        if "-label-" in file.name:
            assert cli.run(["label", "import", str(file), "--db", str(tmp_path / "labels.db"), "--labels", "keep"]) == 2
            assert f"error: {file}, r" in capsys.readouterr().err
        else:
            with pytest.raises(InputError, match="fix: ") as refused:
                Dataset(DatasetOptions(path=str(file), max_bad_share=1.0)).groups()
            assert f"{file}:" in str(refused.value) or f"{file}, row" in str(refused.value)
