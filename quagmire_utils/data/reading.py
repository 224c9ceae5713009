"""The rows of a dataset's files, local or public, whatever their format: benchmarks, SFT, RL and curation read here.

    for number, row in read_rows("rows.parquet"): ...

Of a hub's file only the bytes that are read are downloaded, a few hundred rows at a time. `datasets` finds the files of
a hub, but does not read them: its streaming of JSON lines refuses a whole file for a column that is null at first or
for one lone surrogate, and took 2.4 times as long.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from xml.etree import ElementTree

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.tokenizer import first_line

if TYPE_CHECKING:
    import pyarrow as pa

Row = Mapping[str, Any]
Columns = Callable[[Sequence[str]], Sequence[str] | None]
_BATCH_ROWS = 256  # of a table that are read together


def read_rows(path: str | Path, columns: Columns = lambda names: None) -> Iterator[tuple[int, Row]]:
    """Yield (number, row) of a file's rows, from 1; of JSON lines the number is that of the line.

    `columns(names)`: those to read of a parquet file with these columns; None: all. Raises ParameterError for a file
    that cannot be read to its end, with the line or row where there is one.
    """
    name = str(path)
    try:
        with open_file(name) as file:
            for number, row in _READERS.get(Path(name.removesuffix(".gz")).suffix, _read_lines)(file, columns):
                if not isinstance(row, Mapping):
                    raise ValueError(f"line {number} is {str(row)[:40]}, not a mapping of columns")
                yield number, row
    except (ParameterError, MemoryError):
        raise
    except Exception as error:  # of whatever library
        raise ParameterError(name, reason=f"cannot be read: {first_line(error)}") from error


def open_file(name: str) -> BinaryIO:
    """Open a file on this machine or at a public address, decompressed."""
    if name.startswith(("http:", "https:", "file:")):
        file = urllib.request.urlopen(name, timeout=20.0)
    elif "://" in name:
        import fsspec

        file = fsspec.open(name, "rb").open()
    else:
        file = open(name, "rb")  # noqa: SIM115 (the caller closes it)
    return gzip.open(file) if name.endswith(".gz") else file


# --- formats ----------------------------------------------------------------------------------------------------------


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text, large whole numbers that are written as floats exact. Raises ValueError."""
    try:
        return _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also for numbers of too many digits, and too many brackets
        raise ValueError(str(error).split(";")[0]) from error


def _number(text: str) -> int | float:
    """Return the number that a JSON text writes with a point or an exponent."""
    value = float(text)
    return int(Decimal(text)) if value.is_integer() and 2**53 <= abs(value) < 1e30 else value


_DECODER = json.JSONDecoder(parse_float=_number)


def _read_lines(file: BinaryIO, _: Columns) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON ({error})") from None


def _read_json(file: BinaryIO, columns: Columns) -> Iterator[tuple[int, Any]]:
    """Read a list of rows, one under "examples" (BIG-Bench), or one row a line, as many .json files hold."""
    start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    if start.startswith(b"{") and not re.search(rb'"examples"\s*:\s*\[', start):
        return _read_lines(file, columns)
    found = parse_json(file.read())
    return enumerate(found["examples"] if isinstance(found, dict) else found, start=1)


def _read_csv(file: BinaryIO, _: Columns) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(2**31 - 1)  # a cell may hold a whole trace
    reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""))
    names = reader.fieldnames or []
    if len(set(names)) < len(names):
        raise ValueError("a column's name stands twice in the header")
    for number, row in enumerate(reader, start=1):
        if None in row:
            raise ValueError(f"row {number} has {len(row[None]) + len(names)} cells for {len(names)} columns")
        yield number, row


def _read_xml(file: BinaryIO, _: Columns) -> Iterator[tuple[int, Row]]:
    """Read the problems of ASDiv."""
    problems = ElementTree.parse(file).iter("Problem")
    rows = ({**problem.attrib, **{part.tag: part.text or "" for part in problem}} for problem in problems)
    return enumerate(rows, start=1)


def _read_table(file: BinaryIO, columns: Columns) -> Iterator[tuple[int, Row]]:
    return enumerate((row for batch in _batches(file, columns) for row in batch.to_pylist()), start=1)


def _batches(file: BinaryIO, columns: Columns) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"PAR1"):
        table = pq.ParquetFile(file)
        yield from table.iter_batches(_BATCH_ROWS, columns=columns(table.schema_arrow.names))
    elif magic == b"ARROW1":
        reader = pa.ipc.open_file(file)
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        yield from pa.ipc.open_stream(file)


_READERS = {".jsonl": _read_lines, ".json": _read_json, ".csv": _read_csv, ".xml": _read_xml}
_READERS |= dict.fromkeys((".parquet", ".arrow"), _read_table)
