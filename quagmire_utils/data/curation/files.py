"""The files of a source, on this machine or on its hub, read in pieces.

Nothing is downloaded as a whole and nothing is held: a file falls into units (row groups of a parquet file, 64 MB of a
.jsonl file), and a unit is read some hundred rows at a time, of a hub's file just its bytes. So a unit is what a kill
can lose, wherever the file is.

    source = load_source("openr1_math")
    for unit in units(source):
        for position, part, record in read_unit(source, unit): ...
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data.curation.sources import ENDINGS, Dropped, Record, Source, is_data, records

UNIT_BYTES = 64 * 2**20
_BATCH_ROWS = 256
_HUB_TIMEOUT = 5.0  # seconds until an unreachable hub is reported
_SPARSE = 2**20  # bytes between two chosen rows from which on a hub's file is read in small blocks
_BUFFER = 2**20  # bytes of a column that are read ahead, however long its row group is
_WHOLE = 2**62  # the end of a unit that is a whole file of unknown length


@dataclass(frozen=True)
class Unit:
    """A piece of a source that is read as a whole and recognised again by its fields."""

    kind: str  # parquet | arrow | jsonl | json
    name: str  # the file, or its address on the hub
    start: int  # parquet: row group; jsonl: byte
    stop: int  # parquet: the row group after it; jsonl: byte
    size: int  # bytes, for the progress bar
    stamp: str  # the file's size and time, or the hub's commit


def units(source: Source) -> list[Unit]:
    """The pieces of a source. Raises ParameterError where a file cannot be read or the hub gives no answer."""
    if source.files:
        return [unit for path in source.files for unit in _file_units(path, None)]
    return [unit for name, commit in _hub_files(source) for unit in _remote(source, _listed_units, name, commit)]


def read_unit(
    source: Source, unit: Unit, positions: Collection[int] | None = None
) -> Iterator[tuple[int, int, Record | Dropped]]:
    """(position of the row in its file or unit, number of the response in the row, record or why there is none).

    With `positions`, only these rows; of a .jsonl file the others are not even read. Raises ParameterError where a
    column is missing, naming those that there are, and where a file is cut off or damaged.
    """
    wanted = None if positions is None else set(positions)
    where = f"source {source.name}: {unit.name}"
    with ExitStack() as stack:
        file = stack.enter_context(_guarded(where, lambda: _open(unit, wanted)))
        rows = _ROWS[unit.kind](source, unit, file, wanted, where)
        checked = False
        while (found := _guarded(where, lambda: next(rows, None))) is not None:
            position, row = found
            if not isinstance(row, Mapping):
                raise ParameterError(f"{where} has a row that is no mapping of columns")
            lost = next((column for column in source.columns if column not in row), None)
            if lost is not None and not checked:
                there = ", ".join(sorted(map(str, row)))
                raise ParameterError(f"{where} has no column {lost!r}; it has {there}")
            checked = True  # a file's later rows may lack one: they are left out, and counted
            for part, record in enumerate(records(source, row) if lost is None else [Dropped(f"no {lost}")]):
                yield position, part, record


def _guarded(where: str, read: Callable[[], Any]) -> Any:
    """What `read` returns; whatever a library raises becomes a sentence (and can pass between processes)."""
    try:
        return read()
    except (ParameterError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ParameterError(f"{where} cannot be read: {reason}") from error


# --- which files ------------------------------------------------------------------------------------------------------


def _hub_files(source: Source) -> list[tuple[str, str | None]]:
    """(path or address, commit) of each file; the commit is None where `hub_id` is a folder on this machine."""
    commit = None if Path(source.hub_id).is_dir() else _remote(source, _hub_commit, source)
    found = []
    for config in source.configs:
        files = _remote(source, _hub_data_files, source, config, commit)
        named = [str(name) for name in files.get(source.split) or () if is_data(str(name))]
        if not named:
            there = ", ".join(files) or "none"
            raise ParameterError(
                f"source {source.name}: {source.hub_id} has no {' or '.join(ENDINGS)} under split "
                f"{source.split!r} (its splits: {there}); give the files of a local copy instead"
            )
        found += [(name, commit) for name in named]
    return found


def _hub_commit(source: Source) -> str | None:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(source.hub_id, revision=source.revision, timeout=_HUB_TIMEOUT).sha


def _hub_data_files(source: Source, config: str | None, commit: str | None) -> Mapping[str, Sequence[str]]:
    """The names of a dataset's files by split: what `datasets` would load."""
    import datasets

    builder = datasets.load_dataset_builder(
        source.hub_id, config or None, revision=commit, data_files=list(source.hub_files) or None
    )
    return builder.config.data_files or {}


def _remote(source: Source, ask: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return ask(*arguments)
    except ParameterError:
        raise
    except Exception as error:  # the hub's client raises many kinds, from three libraries
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ParameterError(
            f"source {source.name}: {source.hub_id} gave no answer ({reason}); give the files of a local copy instead"
        ) from error


def _listed_units(name: str, commit: str | None) -> list[Unit]:
    return list(_file_units(name, commit))


def _file_units(name: str, commit: str | None) -> Iterator[Unit]:
    if "://" in name:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(name)
        size, stamp = system.size(path), commit or "remote"
    else:
        status = Path(name).stat()
        size, stamp = status.st_size, f"{status.st_size}-{status.st_mtime_ns}"
    whole = Unit("jsonl", name, 0, _WHOLE, max(1, size), stamp)
    if name.endswith(".parquet"):
        yield from _parquet_units(whole)
    elif name.endswith(".arrow"):
        yield Unit("arrow", name, 0, 1, max(1, size), stamp)
    elif ".json" in Path(name).suffixes and _is_list(whole):
        yield Unit("json", name, 0, 1, max(1, size), stamp)
    elif name.endswith(".gz"):
        yield whole
    else:
        for start in range(0, size, UNIT_BYTES):
            stop = min(start + UNIT_BYTES, size)
            yield Unit("jsonl", name, start, stop, stop - start, stamp)


def _is_list(unit: Unit) -> bool:
    """Whether a .json file is one list of rows; many are .jsonl by another name."""
    with _guarded(unit.name, lambda: _open(unit, None)) as file:
        return _guarded(unit.name, lambda: file.read(4096)).lstrip().startswith(b"[")


def _parquet_units(whole: Unit) -> Iterator[Unit]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _open(whole, None) as handle, pq.ParquetFile(handle) as file:
            sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
    except pa.ArrowInvalid as error:
        raise ParameterError(f"files: {whole.name} cannot be read as parquet ({error})") from error
    start = 0
    for i in range(len(sizes)):  # small row groups are read together
        if i + 1 == len(sizes) or sum(sizes[start : i + 2]) > UNIT_BYTES:
            yield Unit("parquet", whole.name, start, i + 1, sum(sizes[start : i + 1]), whole.stamp)
            start = i + 1


def _open(unit: Unit, wanted: set[int] | None) -> BinaryIO:
    if "://" in unit.name:
        import fsspec

        # a block is fetched for each place that is read: not five megabytes for one line of twenty kilobytes
        sparse = unit.kind == "jsonl" and wanted is not None and unit.size > _SPARSE * len(wanted)
        file = fsspec.open(unit.name, "rb", **({"block_size": _SPARSE // 8} if sparse else {})).open()
    else:
        file = open(unit.name, "rb")  # noqa: SIM115 (the caller closes it)
    return gzip.open(file) if unit.name.endswith(".gz") else file


# --- rows of a unit ---------------------------------------------------------------------------------------------------

_Rows = Iterator[tuple[int, Any]]


def _jsonl_rows(source: Source, unit: Unit, file: BinaryIO, wanted: set[int] | None, where: str) -> _Rows:
    """Rows of the lines that begin inside the unit; a row's position is its first byte in the file."""
    if wanted is not None:
        for position in sorted(wanted):
            file.seek(position)
            yield position, json.loads(file.readline())
        return
    if unit.start:
        file.seek(unit.start - 1)
        file.readline()
    position = file.tell()
    while position < unit.stop and (line := file.readline()):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ParameterError(f"{where}: the line at byte {position} is no JSON ({error})") from error
            yield position, row
        position += len(line)


def _json_rows(source: Source, unit: Unit, file: BinaryIO, wanted: set[int] | None, where: str) -> _Rows:
    try:
        rows = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"{where} is no JSON ({error})") from error
    for position, row in enumerate(rows):
        if wanted is None or position in wanted:
            yield position, row


def _parquet_rows(source: Source, unit: Unit, file: BinaryIO, wanted: set[int] | None, where: str) -> _Rows:
    import pyarrow.parquet as pq

    remote = "://" in unit.name  # whose row groups are fetched with few requests
    with pq.ParquetFile(file, pre_buffer=remote, buffer_size=0 if remote else _BUFFER) as table:
        columns = _needed(source, table.schema_arrow.names)
        yield from _batch_rows(table.iter_batches(_BATCH_ROWS, range(unit.start, unit.stop), columns), wanted)


def _arrow_rows(source: Source, unit: Unit, file: BinaryIO, wanted: set[int] | None, where: str) -> _Rows:
    import pyarrow as pa

    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        table = pa.ipc.open_file(file)
        batches = map(table.get_batch, range(table.num_record_batches))
    else:  # what `datasets` saves
        table = batches = pa.ipc.open_stream(file)
    columns = _needed(source, table.schema.names)
    yield from _batch_rows((batch.select(columns) for batch in batches), wanted)


def _needed(source: Source, names: Sequence[str]) -> list[str]:
    """The columns to read; all, where one is missing: the message names them."""
    if set(source.columns) - set(names):
        return list(names)
    return [*source.columns, *(column for column in source.optional_columns if column in names)]


def _batch_rows(batches: Iterator[Any], wanted: set[int] | None) -> _Rows:
    position = 0
    for batch in batches:
        count = batch.num_rows
        chosen = range(count) if wanted is None else [i for i in range(count) if position + i in wanted]
        if chosen:
            rows = batch if wanted is None else batch.take(list(chosen))
            names = rows.schema.names
            columns = [rows.column(name).to_pylist() for name in names]
            for i, values in zip(chosen, zip(*columns, strict=True), strict=True):
                yield position + i, dict(zip(names, values, strict=True))
        position += count


_ROWS = {"jsonl": _jsonl_rows, "json": _json_rows, "parquet": _parquet_rows, "arrow": _arrow_rows}
