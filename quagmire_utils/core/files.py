"""Files that are complete or not there: text, JSON, and parquet that holds any text a model can write."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    import pyarrow as pa


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, flushed to disk, when the block ends without an exception.

    Readers see the old file or the new one, never a part of it. The temporary file's name starts with a dot; it is
    removed if the block fails.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner reads
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write `text` as UTF-8, atomically; a lone surrogate is an error here (JSON escapes it, parquet files mark it)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(value: Any, path: str | os.PathLike[str]) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    write_text(json.dumps(value, indent=2, sort_keys=True, default=_plain) + "\n", path)


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _plain(value: Any) -> Any:
    """What JSON has no word for: numpy scalars and arrays, paths, sets."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits that stand for a JSON-like value, whatever the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


# Arrow strings are UTF-8, which has no lone surrogates; a JSON file with "\\ud800" in it does. A column with at least
# one is stored escaped and named in the file's metadata, so that reading back touches nothing else. The escape
# character is a Unicode noncharacter, doubled where it stands for itself.
_ESCAPE = "\U0010ffff"
_ESCAPED_COLUMNS = b"quagmire_utils.escaped_columns"


def _escape(text: str | None) -> str | None:
    if not isinstance(text, str):
        return None
    doubled = text.replace(_ESCAPE, _ESCAPE * 2)
    return "".join(f"{_ESCAPE}{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in doubled)


def _unescape(text: str | None) -> str | None:
    if text is None or _ESCAPE not in text:
        return text
    first, *rest = text.split(_ESCAPE)
    pieces, i = [first], 0
    while i < len(rest):
        if rest[i] == "" and i + 1 < len(rest):  # doubled: the character itself
            pieces += [_ESCAPE, rest[i + 1]]
            i += 2
        else:
            pieces += [chr(int(rest[i][:4], 16)), rest[i][4:]]
            i += 1
    return "".join(pieces)


def write_parquet(
    frame: pd.DataFrame, path: str | os.PathLike[str], *, metadata: Mapping[bytes, bytes] | None = None
) -> None:
    """Write a frame (its columns, not its index) as parquet, zstd-compressed with page checksums, atomically.

    `metadata`: goes into the file's own key-value metadata.

    Any text survives, NUL characters and lone surrogates included (pandas itself holds the latter only in a column of
    dtype object).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays, escaped = {}, []
    for name in frame.columns:
        column = frame[name]
        try:
            arrays[name] = pa.Array.from_pandas(column)
        except UnicodeEncodeError:
            arrays[name] = pa.array([_escape(text) for text in column], type=pa.string())
            escaped.append(name)
        if isinstance(arrays[name], pa.ChunkedArray):
            arrays[name] = arrays[name].combine_chunks()
    marks = dict(metadata or {})
    if escaped:
        marks[_ESCAPED_COLUMNS] = json.dumps(escaped).encode()
    table = pa.table(arrays).replace_schema_metadata(marks or None)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_parquet(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The frame that `write_parquet` (or anyone) wrote; `columns` reads only these, in this order."""
    return _to_frame([_read_table(path, columns)])


def _read_table(path: str | os.PathLike[str], columns: Sequence[str] | None, names: Sequence[str] = ()) -> pa.Table:
    """The file's table; columns in `names` come as numbers into the list of their different values."""
    import pyarrow.parquet as pq

    # ParquetFile instead of read_table: a folder name such as `benchmark=gsm8k` must not add columns
    with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=list(names)) as file:
        return file.read(columns=None if columns is None else list(columns))


def _to_frame(tables: Sequence[pa.Table]) -> pd.DataFrame:
    """One frame of several tables; a column with escaped texts in it becomes a column of Python objects."""
    import pyarrow as pa

    escaped = {
        name for table in tables for name in json.loads((table.schema.metadata or {}).get(_ESCAPED_COLUMNS, "[]"))
    }
    plain = [table.replace_schema_metadata(None) for table in tables]
    frame = pa.concat_tables(plain, promote_options="permissive").to_pandas()
    for name in escaped.intersection(frame.columns):
        texts: list[str | None] = []
        for table in tables:
            marked = json.loads((table.schema.metadata or {}).get(_ESCAPED_COLUMNS, "[]"))
            values = table.column(name).to_pylist()
            texts += map(_unescape, values) if name in marked else values
        frame[name] = pd.Series(texts, index=frame.index, dtype=object)
    return frame
