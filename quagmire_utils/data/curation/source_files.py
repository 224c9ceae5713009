"""The files of a dataset, on this machine or on its hub, read row by row.

Nothing is downloaded as a whole: of a hub's file only the bytes that are read, a few hundred rows at a time.

    dataset = find_dataset("openr1_math")
    for file in source_files(dataset, local_files(dataset)):
        for record in read_file(dataset, file): ...

`datasets` finds the files of a hub, but does not read them: its streaming of JSON lines refuses a whole file for a
column that is null at first or for one lone surrogate, and took 2.4 times as long.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
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

_BATCH_ROWS = 256


@dataclass(frozen=True)
class SourceFile:
    """A file of a dataset, recognised again by its fields."""

    kind: str  # parquet | arrow | jsonl | json | csv
    name: str  # the file, or its address on the hub
    size: int  # bytes
    stamp: str  # its size and time, or the hub's commit


def source_files(dataset: Dataset, files: Sequence[Path] = ()) -> list[SourceFile]:
    """Return these local files, or else those of the hub, without empty ones.

    Raises ParameterError if a file cannot be read, and if the hub gives no answer.
    """
    try:
        named = [(str(path), None) for path in files] or _hub_files(dataset)
        found = [file for file in (_source_file(dataset, *each) for each in named) if file.size]
    except ParameterError:
        raise
    except Exception as error:  # the hub's client raises many kinds, from three libraries
        raise unreachable(dataset, error) from error
    if not found:
        raise ParameterError(dataset.name, reason=f"{', '.join(name for name, _ in named)} is empty")
    return found


def read_file(dataset: Dataset, file: SourceFile) -> Iterator[Record | Dropped]:
    """Yield the records of each row in order, or why there are none.

    Raises ParameterError if the first row lacks a column, with those that there are, and if a file is cut off or
    damaged.
    """
    first = True
    try:
        for row in _rows(dataset, file):
            if not isinstance(row, Mapping):
                raise ValueError(f"a row is {str(row)[:40]}, not a mapping of columns")
            try:
                found = records(dataset, row)
            except NoColumn as error:
                if first:
                    raise
                found = [Dropped(f"no {error.column}")]
            first = False
            yield from found
    except (ParameterError, MemoryError):
        raise
    except Exception as error:  # of whatever library
        raise _unreadable(dataset, file.name, error) from error


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


def _source_file(dataset: Dataset, name: str, commit: str | None) -> SourceFile:
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
    return SourceFile(kind, name, size, stamp)


def _open(name: str) -> BinaryIO:
    if "://" in name:
        import fsspec

        file = fsspec.open(name, "rb").open()
    else:
        file = open(name, "rb")  # noqa: SIM115 (the caller closes it)
    return gzip.open(file) if name.endswith(".gz") else file


def _rows(dataset: Dataset, source: SourceFile) -> Iterator[Any]:
    """Yield the rows of a file."""
    with _open(source.name) as file:
        if source.kind == "jsonl":
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield parse_json(line)
                    except ValueError as error:
                        raise ValueError(f"line {number} is not JSON ({error})") from None
        elif source.kind == "json":
            yield from parse_json(file.read())
        elif source.kind == "csv":
            yield from csv_rows(io.TextIOWrapper(file, "utf-8-sig", newline=""))
        else:
            for batch in _batches(dataset, source, file):
                yield from batch.to_pylist()


def _batches(dataset: Dataset, source: SourceFile, file: BinaryIO) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if source.kind == "parquet":
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
