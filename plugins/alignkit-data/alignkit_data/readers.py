"""Rows of local files and folders, each with its place in the file. Reads lazily; imports no torch.

The standard library reads text formats, for exact line numbers and a fast start; pyarrow reads Parquet and Arrow.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import zlib
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from alignkit import InputError, closest
from alignkit_data.turns import kind

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHARD = re.compile(r"-\d+-of-\d+$")
_METADATA = {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"}
_LIST_KEYS = ("data", "rows", "examples", "train")
_LONGEST_CELL = 1 << 30


@dataclass(frozen=True, slots=True)
class Row:
    """A row's values by column and its place, or the `problem` that kept it from being read."""

    where: str
    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def local_rows(path: Path, split: str) -> Iterator[Row]:
    """The rows of a file, or of one split of a folder.

    Raises:
        InputError: the path or split is missing, or the format is unknown or broken beyond single rows.
    """
    for file in _files(path, split):
        yield from _file_rows(file)


def _files(path: Path, split: str) -> list[Path]:
    if path.is_dir():
        return _files_of_split(path, split)
    if not path.is_file():
        siblings = [file.name for file in path.parent.iterdir() if is_data_file(file)] if path.parent.is_dir() else []
        hint = f"in {path.parent}: {closest(path.name, siblings)}" if siblings else "check the path"
        raise InputError(f"no such file: {path}", where="path", fix=hint)
    if split not in ("", "train", _split_name(path)):
        raise InputError(
            f"there is no split {split!r}: {path} is a single file",
            where="split",
            fix="leave split out, or give a folder",
        )
    return [path]


def _files_of_split(folder: Path, split: str) -> list[Path]:
    splits: dict[str, list[Path]] = {}
    for file in sorted([*folder.iterdir(), *folder.glob("data/*"), *folder.glob("*/*.arrow")]):
        if is_data_file(file):
            name = file.parent.name if file.suffix == ".arrow" and file.parent != folder else _split_name(file)
            splits.setdefault(name, []).append(file)
    return splits[choose_split(split, list(splits), str(folder))]


def choose_split(split: str, splits: list[str], place: str) -> str:
    """The split with this name; without a name, the only one or `train`.

    Raises:
        InputError: it is missing; lists the others.
    """
    if not splits:
        raise InputError(f"{place} holds no data files", where="path", fix=f"formats: {', '.join(sorted(_READERS))}")
    if split in splits:
        return split
    if split:
        raise InputError(f"{place} has no split {split!r}", where="split", fix=f"splits: {', '.join(sorted(splits))}")
    if len(splits) == 1:
        return splits[0]
    if "train" in splits:
        return "train"
    raise InputError(f"{place} has several splits", where="split", fix=f"choose one: {', '.join(sorted(splits))}")


def is_data_file(path: Path) -> bool:
    """Whether the path is a data file in a known format."""
    return _format(path) in _READERS and path.name not in _METADATA and path.is_file()


def _split_name(path: Path) -> str:
    return _SHARD.sub("", path.name.partition(".")[0])


def _format(path: Path) -> str:
    return (Path(path.stem) if path.suffix == ".gz" else path).suffix.lower()


def _file_rows(path: Path) -> Iterator[Row]:
    reader = _READERS.get(_format(path))
    if reader is None:
        raise InputError(
            f"unknown format: {path.name}", where="path", fix=f"give a file that ends in {', '.join(sorted(_READERS))}"
        )
    try:
        if reader not in (_parquet, _arrow):
            _refuse_utf16(path)
        yield from reader(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"the compressed file is broken: {error}", where=str(path), fix="download it again") from error
    except OSError as error:
        raise InputError(
            f"can't be read: {error}", where=str(path), fix="check the file and its permissions"
        ) from error


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _refuse_utf16(path: Path) -> None:
    with _open(path) as file:
        start = file.read(2)
    little = start == codecs.BOM_UTF16_LE or start.endswith(b"\0")
    if little or start == codecs.BOM_UTF16_BE or start.startswith(b"\0"):
        raise InputError(
            "the file is UTF-16, expected UTF-8",
            where=str(path),
            fix=f"iconv -f UTF-16{'LE' if little else 'BE'} -t UTF-8 {path} > NEW, or save it again as UTF-8",
        )


def _json_lines(path: Path) -> Iterator[Row]:
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _json_line(line, f"{path}:{number}")


def _json_line(line: bytes, where: str) -> Row:
    try:
        return _object_row(json.loads(line.decode("utf-8-sig").rstrip()), where)
    except UnicodeDecodeError as error:
        return Row(where, problem=f"not UTF-8 (byte {error.start + 1} of the line)")
    except (ValueError, RecursionError) as error:
        return Row(where, problem=_broken_json(error))


def _broken_json(error: Exception) -> str:
    """What is wrong: the syntax, nesting that is too deep, or a number of thousands of digits."""
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg} at column {error.colno}"
    return f"JSON that can't be read: {error}"


def _object_row(value: Any, where: str) -> Row:
    if isinstance(value, dict):
        return Row(where, value)
    return Row(where, problem=f"a row is {kind(value)}, expected an object with the columns as keys")


def _json(path: Path) -> Iterator[Row]:
    """A list of objects, an object that holds such a list (`{"data": [...]}`), or JSON lines in a .json file."""
    with _open(path) as file:
        raw = file.read()
    try:
        content = json.loads(raw.decode("utf-8-sig") or "[]")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError("not UTF-8", where=f"{path}:{line}", fix="store the file as UTF-8") from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and raw.lstrip().startswith(b"{"):
            yield from _json_lines(path)
            return
        raise InputError(_broken_json(error), where=f"{path}:{error.lineno}", fix="fix the file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(_broken_json(error), where=str(path), fix="fix the file") from error
    if isinstance(content, dict):
        content = next((content[key] for key in _LIST_KEYS if isinstance(content.get(key), list)), [content])
    if not isinstance(content, list):
        raise InputError(f"the file holds {kind(content)}", where=str(path), fix="store a list of objects")
    for number, value in enumerate(content, start=1):
        yield _object_row(value, f"{path}, row {number}")


def _comma_separated(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    delimiter = "\t" if _format(path) == ".tsv" else ","
    with _open(path) as lines:
        reader = csv.reader(_decoded(lines, path), delimiter=delimiter, strict=True)
        start = 1
        try:
            header = _checked_header(next(reader, []), delimiter, path)
            start = reader.line_num + 1
            for cells in reader:
                where = f"{path}:{start}"
                start = reader.line_num + 1
                if not cells:
                    continue
                if len(cells) == len(header):
                    yield _csv_row({name: cell for name, cell in zip(header, cells, strict=True) if name}, where)
                else:
                    yield Row(where, problem=f"{len(cells)} cells under a header of {len(header)}")
        except csv.Error as error:
            what = "a carriage return outside quotes" if "new-line character" in str(error) else error
            raise InputError(
                f"broken CSV: {what}", where=f"{path}:{start}", fix="quote cells that contain line breaks or quotes"
            ) from error


def _checked_header(cells: list[str], delimiter: str, path: Path) -> list[str]:
    """The columns' names, without spaces around them."""
    header = [cell.strip() for cell in cells]
    if len(header) == 1 and (other := next((mark for mark in ",;\t|" if mark in header[0]), "")):
        raise InputError(
            f"the cells are separated by {other!r}, expected {delimiter!r}",
            where=f"{path}:1",
            fix=_SEPARATED.get(other, "export the file again with commas between the cells"),
        )
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise InputError(
            f"two columns are called {twice[0]!r}", where=f"{path}:1", fix="rename or remove one of them in the file"
        )
    return header


_SEPARATED = {"\t": "rename the file to end in .tsv", ",": "rename the file to end in .csv"}


def _decoded(lines: IO[bytes], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError("not UTF-8", where=f"{path}:{number}", fix="store the file as UTF-8") from error


_JSON_CELLS = {
    "responses", "ranks", "scores", "labels", "finished", "pairwise", "messages", "conversations", "meta",
    "prompt_meta", "human", "ai",
}  # fmt: skip


def _csv_row(cells: dict[str, str], where: str) -> Row:
    values: dict[str, Any] = dict(cells)
    for name, cell in cells.items():
        if cell and (name in _JSON_CELLS or cell.startswith('[{"')):
            try:
                values[name] = json.loads(cell)
            except (ValueError, RecursionError) as error:
                return Row(where, problem=f"{name} is {_broken_json(error)}")
        elif not cell and name in _JSON_CELLS:
            values[name] = None
    return Row(where, values)


def _parquet(path: Path) -> Iterator[Row]:
    yield from _arrow_rows(path, lambda: import_module("pyarrow.parquet").ParquetFile(path).iter_batches(1024))


def _arrow(path: Path) -> Iterator[Row]:
    yield from _arrow_rows(path, lambda: _arrow_stream(path))


def _arrow_stream(path: Path) -> Iterator[Any]:
    """The batches of a stream, checked in full first: pyarrow reads beyond the memory of a broken one."""
    pyarrow = import_module("pyarrow")
    for batch in pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))):
        batch.validate(full=True)
        yield batch


def _arrow_rows(path: Path, batches: Any) -> Iterator[Row]:
    broken = import_module("pyarrow").ArrowException
    number = 0
    try:
        for batch in batches():
            for values in _values_of(batch):
                number += 1
                where = f"{path}, row {number}"
                yield Row(where, problem=values) if isinstance(values, str) else Row(where, plain_row(values))
    except broken as error:
        raise InputError(f"broken file: {error}", where=str(path), fix="write it again") from error


def _values_of(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The values of each row, or what is wrong with it: text that isn't UTF-8, a date that Python has not."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for place in range(batch.num_rows):
            try:
                yield from batch.slice(place, 1).to_pylist()
            except UnicodeDecodeError:
                yield "not UTF-8"
            except (ValueError, OverflowError) as error:
                yield f"can't be read: {error}"


def plain_row(values: dict[str, Any]) -> dict[str, Any]:
    """A row in JSON types; other types (dates, decimals, bytes) as text.

    Arrow gives all objects of a column the same keys, so null stands where an object had no such key: those are left
    out again.
    """
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


_READERS = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _comma_separated,
    ".tsv": _comma_separated,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
