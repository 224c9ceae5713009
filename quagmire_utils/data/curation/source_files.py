"""The files of a dataset, on this machine or on its hub, read in pieces.

Nothing is downloaded as a whole: rows are read a few hundred at a time, of a hub's file only their bytes. A file of
JSON lines is split into units of 64 MB, any other is one unit; a kill loses at most the units that are being read.

    dataset = find_dataset("openr1_math")
    for unit in units(dataset, local_files(dataset)):
        for position, part, record in read_unit(dataset, unit): ...

`datasets` finds the files of a hub, but does not read them: its streaming of JSON lines cannot begin in the middle of a
file, refuses all of it for a column that is null at first or for one lone surrogate, and took 2.4 times as long.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data.dataset import ENDINGS, Dataset, has_rows
from quagmire_utils.data.loading import HUB_TIMEOUT, unreachable
from quagmire_utils.data.problems import csv_rows, parse_json
from quagmire_utils.data.rows import Dropped, NoColumn, Record, records

if TYPE_CHECKING:
    import pyarrow as pa

UNIT_BYTES = 64 * 2**20
_BATCH_ROWS = 256
_SPARSE = 2**20  # bytes between two wanted rows from which a hub's file is read in small blocks
_Rows = Iterator[tuple[int, Any]]


@dataclass(frozen=True)
class Unit:
    """A piece of a file that is read as a whole and recognised again by its fields."""

    kind: str  # parquet | arrow | jsonl | json | csv
    name: str  # the file, or its address on the hub
    number: int  # of the pieces of this file
    count: int
    size: int  # bytes of the whole file
    stamp: str  # the file's size and time, or the hub's commit


def units(dataset: Dataset, files: Sequence[Path] = ()) -> list[Unit]:
    """Return the pieces of these local files, or else of the hub's.

    Raises ParameterError if a file cannot be read, and if the hub gives no answer.
    """
    try:
        named = [(str(path), None) for path in files] or _hub_files(dataset)
        found = [unit for name, commit in named for unit in _file_units(dataset, name, commit)]
    except ParameterError:
        raise
    except Exception as error:  # the hub's client raises many kinds, from three libraries
        raise unreachable(dataset, error) from error
    if not found:
        raise ParameterError(dataset.name, reason=f"{', '.join(name for name, _ in named)} is empty")
    return found


def read_unit(
    dataset: Dataset, unit: Unit, positions: Collection[int] | None = None
) -> Iterator[tuple[int, int, Record | Dropped]]:
    """Yield (position of the row in its file or unit, number of the response in the row, record or why there is none).

    With `positions`, only these rows; of a .jsonl file the others are not even read. Raises ParameterError if the first
    row lacks a column, with those that there are, and if a file is cut off or damaged.
    """
    rows = _json_lines(unit, positions) if unit.kind == "jsonl" else _numbered(dataset, unit, positions)
    first = True
    try:
        for position, row in rows:
            if not isinstance(row, Mapping):
                raise ValueError(f"a row is {str(row)[:40]}, not a mapping of columns")
            try:
                found = records(dataset, row)
            except NoColumn as error:
                if first:
                    raise
                found = [Dropped(f"no {error.column}")]
            first = False
            for part, record in enumerate(found):
                yield position, part, record
    except (ParameterError, MemoryError):
        raise
    except Exception as error:  # of whatever library; a ParameterError can pass between processes
        raise _unreadable(dataset, unit.name, error) from error


def _unreadable(dataset: Dataset, name: str, error: Exception) -> ParameterError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ParameterError(dataset.name, name, reason=f"{name} cannot be read: {reason}")


# --- which files ------------------------------------------------------------------------------------------------------


def _hub_files(dataset: Dataset) -> list[tuple[str, str | None]]:
    """Return (path or address, commit) of each file; the commit is None if `hub_id` is a folder on this machine."""
    import datasets
    from huggingface_hub import HfApi

    commit = None
    if not Path(dataset.hub_id).is_dir():
        commit = HfApi().dataset_info(dataset.hub_id, revision=dataset.revision, timeout=HUB_TIMEOUT).sha
    split, wanted = dataset.split or "train", list(dataset.hub_files) or None
    found = []
    for config in dataset.configs or (None,):
        builder = datasets.load_dataset_builder(dataset.hub_id, config, revision=commit, data_files=wanted)
        by_split = builder.config.data_files or {}
        named = [str(name) for name in by_split.get(split) or () if has_rows(str(name))]
        if not named:
            reason = f"{dataset.hub_id} has no {', '.join(ENDINGS)} under this split; give local files instead"
            raise ParameterError(f"{dataset.name}.split", split, f"one of {', '.join(by_split) or 'none'}: {reason}")
        found += [(name, commit) for name in named]
    return found


def _file_units(dataset: Dataset, name: str, commit: str | None) -> list[Unit]:
    remote = "://" in name
    if remote:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(name)
        size, stamp = system.size(path), commit or "remote"
    else:
        status = Path(name).stat()
        size, stamp = status.st_size, f"{status.st_size}-{status.st_mtime_ns}"
    kind = Path(name.removesuffix(".gz")).suffix[1:]
    if kind == "json":
        try:
            with _open(name) as file:  # many .json files hold one row a line
                kind = "json" if file.read(4096).lstrip().startswith(b"[") else "jsonl"
        except Exception as error:
            raise error if remote else _unreadable(dataset, name, error) from error
    count = -(-size // UNIT_BYTES) if kind == "jsonl" and not name.endswith(".gz") else 1
    return [Unit(kind, name, number, count, size, stamp) for number in range(count)]


def _open(name: str, block_size: int | None = None) -> BinaryIO:
    if "://" in name:
        import fsspec

        file = fsspec.open(name, "rb", **({"block_size": block_size} if block_size else {})).open()
    else:
        file = open(name, "rb")  # noqa: SIM115 (the caller closes it)
    return gzip.open(file) if name.endswith(".gz") else file


# --- rows of a unit ---------------------------------------------------------------------------------------------------


def _json_lines(unit: Unit, wanted: Collection[int] | None) -> _Rows:
    """Yield the rows of the lines that begin inside the unit; a row's position is its first byte in the file."""
    if wanted is not None:
        # one block is fetched for each place that is read: not five megabytes for a line of twenty kilobytes
        sparse = unit.size > unit.count * _SPARSE * len(wanted)
        with _open(unit.name, _SPARSE // 8 if sparse else None) as file:
            for position in sorted(wanted):
                file.seek(position)
                yield position, parse_json(file.readline())
        return
    start, stop = ((unit.number + i) * UNIT_BYTES for i in (0, 1))
    with _open(unit.name) as file:
        if start:
            file.seek(start - 1)
            file.readline()
        position = file.tell()
        while (position < stop or unit.count == 1) and (line := file.readline()):
            if line.strip():
                try:
                    row = parse_json(line)
                except ValueError as error:
                    raise ValueError(f"the line at byte {position} is not JSON ({error})") from None
                yield position, row
            position += len(line)


def _numbered(dataset: Dataset, unit: Unit, wanted: Collection[int] | None) -> _Rows:
    """Yield the rows of a file; a row's position is its number."""
    with _open(unit.name) as file:
        if unit.kind == "json":
            rows = parse_json(file.read())
        elif unit.kind == "csv":
            rows = csv_rows(io.TextIOWrapper(file, "utf-8-sig", newline=""))
        else:
            rows = (row for batch in _batches(dataset, unit, file) for row in batch.to_pylist())
        for position, row in enumerate(rows):
            if wanted is None or position in wanted:
                yield position, row


def _batches(dataset: Dataset, unit: Unit, file: BinaryIO) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if unit.kind == "parquet":
        table = pq.ParquetFile(file)
        yield from table.iter_batches(_BATCH_ROWS, columns=dataset.columns_among(table.schema_arrow.names))
        return
    is_file = file.read(6) == b"ARROW1"  # else a stream
    file.seek(0)
    if is_file:
        reader = pa.ipc.open_file(file)
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        yield from pa.ipc.open_stream(file)
