"""Atomic files and folders: text, JSON, CSV, and parquet that holds any text a model can write.

write_json({"seed": 3}, "manifest.json")      # readers see the old file or the new one, never a part
write_parquet(frame, "counts.parquet")
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import unicodedata
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    import pyarrow as pa

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; flush it and move it to `path` when the block ends without an exception.

    The temporary file's name starts with a dot. It is removed if the block fails. Raise an OSError that says what to do
    if the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        reason = "what was stored before is safe: free some space and start again"
        raise OSError(error.errno, f"no space is left for {path}; {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place when the block ends without an exception."""
    scratch = target.with_name(target.name + ".writing")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    yield scratch
    if target.exists():
        shutil.rmtree(target)
    scratch.rename(target)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write `text` as UTF-8, atomically. Raise UnicodeEncodeError for a lone surrogate."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(value: Any, path: str | os.PathLike[str]) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    write_text(json.dumps(value, indent=2, sort_keys=True, default=to_plain) + "\n", path)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the value in a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def to_plain(value: Any) -> Any:
    """Convert a value that JSON lacks (numpy scalar or array, path, set); for `default=` of `json.dumps`."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write `table` as CSV in one step; a cell that a spreadsheet would run as a formula gets an apostrophe."""
    safe = table.map(lambda cell: f"'{cell}" if isinstance(cell, str) and _is_formula(cell) else cell)
    with atomic_path(path) as temporary:
        # All texts in quotes: a bare carriage return would begin a row, and its first cell.
        safe.to_csv(temporary, index=False, errors="backslashreplace", quoting=csv.QUOTE_NONNUMERIC)


def _is_formula(cell: str) -> bool:
    """Whether a spreadsheet may take a cell for a formula: it skips spaces and invisible characters."""
    seen = (c for c in unicodedata.normalize("NFKC", cell) if not c.isspace() and unicodedata.category(c)[0] != "C")
    return next(seen, " ") in "=+-@" or cell[:1] in tuple("\t\r\n")


def digest(value: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a JSON-like value; the order of its keys does not matter."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=to_plain)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


# Arrow strings are UTF-8, which has no lone surrogates, but decoded model output may hold some. A column with at least
# one is stored escaped, and the file's metadata names it, so that other columns are read as they are. The escape
# character is a Unicode noncharacter; it is doubled where it stands for itself.
_ESCAPE = "\U0010ffff"
_ESCAPED_COLUMNS = b"quagmire_utils.escaped_columns"


def _escape(text: str | None) -> str | None:
    if not isinstance(text, str):
        return None
    return re.sub("[\ud800-\udfff]", lambda c: f"{_ESCAPE}{ord(c[0]):04x}", text.replace(_ESCAPE, _ESCAPE * 2))


def _unescape(text: str | None) -> str | None:
    if text is None or _ESCAPE not in text:
        return text
    pattern = f"{_ESCAPE}({_ESCAPE}|[0-9a-f]{{4}})"
    return re.sub(pattern, lambda c: _ESCAPE if c[1] == _ESCAPE else chr(int(c[1], 16)), text)


def write_parquet(
    frame: pd.DataFrame, path: str | os.PathLike[str], *, metadata: Mapping[bytes, bytes] | None = None
) -> None:
    """Write the columns of a frame as parquet, atomically, with zstd compression and page checksums.

    Any text survives, NUL characters and lone surrogates included (pandas holds the latter only in a column of dtype
    object). `metadata` becomes the file's key-value metadata.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays, escaped = {}, []
    for name in frame.columns:
        try:
            array = pa.Array.from_pandas(frame[name])
        except UnicodeEncodeError:
            array = pa.array([_escape(text) for text in frame[name]], type=pa.string())
            escaped.append(name)
        arrays[name] = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    marks = dict(metadata or {}) | ({_ESCAPED_COLUMNS: json.dumps(escaped).encode()} if escaped else {})
    table = pa.table(arrays).replace_schema_metadata(marks or None)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_parquet(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the frame in a parquet file, or only its `columns`, in this order."""
    return to_frame([read_arrow(path, columns)])


def read_arrow(
    path: str | os.PathLike[str], columns: Sequence[str] | None = None, dictionaries: Sequence[str] = ()
) -> pa.Table:
    """Return the table in a parquet file; columns in `dictionaries` are read as codes into their distinct values."""
    import pyarrow.parquet as pq

    # ParquetFile instead of read_table: a folder name such as `benchmark=gsm8k` must not add columns
    with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=list(dictionaries)) as file:
        return file.read(columns=None if columns is None else list(columns))


def to_frame(tables: Sequence[pa.Table]) -> pd.DataFrame:
    """Concatenate tables of `read_arrow` to one frame; a column with escaped texts becomes one of Python objects."""
    import pyarrow as pa

    escaped = [set(json.loads((table.schema.metadata or {}).get(_ESCAPED_COLUMNS, "[]"))) for table in tables]
    plain = [table.replace_schema_metadata(None) for table in tables]
    frame = pa.concat_tables(plain, promote_options="permissive").to_pandas()
    for name in set().union(*escaped).intersection(frame.columns):
        texts: list[str | None] = []
        for table, names in zip(tables, escaped, strict=True):
            values = table.column(name).to_pylist()
            texts += map(_unescape, values) if name in names else values
        frame[name] = pd.Series(texts, index=frame.index, dtype=object)
    return frame
