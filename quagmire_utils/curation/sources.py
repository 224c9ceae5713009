"""Where traces come from: the hub's datasets as they are, streamed, or local files with the same columns.

The SFT and RL sets of App. B are described in `sources.yaml`; a dataset of one's own is a few more lines of the same
kind. Nothing is downloaded as a whole and nothing is held: a source falls into units (a row group of a parquet file,
64 MB of a .jsonl file, a shard of a hub dataset), and a unit is read a thousand rows at a time.

    source = load_source("openr1_math")                                     # streamed from its hub
    source = load_source("openr1_math", files=["mirror/openr1/*.parquet"])  # the same columns, from here
    for unit in units(source):
        for position, part, record in read_unit(source, unit): ...
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from quagmire_utils.benchmarks import last_boxed, mirror_folder
from quagmire_utils.config import ParameterError

REGISTRY = Path(__file__).with_name("sources.yaml")
ENDINGS = (".parquet", ".jsonl", ".json")
ANSWER_FORMATS = ("plain", "boxed", "gsm8k")
UNIT_BYTES = 64 * 2**20
_BATCH_ROWS = 1000
_HUB_TIMEOUT = 5.0  # seconds until an unreachable hub is reported


@dataclass(frozen=True)
class Source:
    """A dataset and how its rows are read. What the fields mean is said at the top of `sources.yaml`."""

    name: str
    title: str = ""
    hub_id: str = ""
    revision: str | None = None
    configs: tuple[str | None, ...] = (None,)
    split: str = "train"
    hub_files: tuple[str, ...] = ()
    mirror: str = ""
    files: tuple[str, ...] = ()  # local files to read instead of the hub
    question: str = "question"
    response: str | None = "response"
    answer: tuple[str, ...] = ()
    answer_format: str = "plain"
    generator: str = ""
    generator_column: str | None = None
    generators: tuple[str, ...] = ()
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    strip: tuple[str, ...] = ()
    licence: str = ""

    @property
    def columns(self) -> list[str]:
        """Columns that every row must have."""
        named = [self.question, self.response, self.generator_column if self.generators else None]
        return list(dict.fromkeys(column for column in (*named, *self.where, *self.keep) if column))

    @property
    def optional_columns(self) -> list[str]:
        """Columns that are read where a row has them."""
        return [column for column in (*self.answer, self.generator_column) if column and column not in self.columns]


class Record(NamedTuple):
    """One trace (or, without a response, one problem) as read."""

    question: str
    response: str
    answer: str
    generator: str


@dataclass(frozen=True)
class Unit:
    """A piece of a source that is read as a whole and recognised again by its fields."""

    kind: str  # parquet | jsonl | json | hub
    name: str  # the file, or the hub's configuration
    start: int  # parquet: row group; jsonl: byte; hub: shard
    stop: int  # parquet: the row group after it; jsonl: byte; hub: number of shards
    size: int  # bytes, for the progress bar; 1 where unknown
    stamp: str  # the file's size and time, or the hub's commit


# --- the registry -----------------------------------------------------------------------------------------------------


def load_sources(path: str | Path | None = None) -> dict[str, Source]:
    """The sources of the registry, and those under `sources:` in the YAML file `path`, which replace namesakes."""
    entries: dict[str, Any] = dict(_read_yaml(REGISTRY)["sources"])
    if path is not None:
        entries.update(_read_yaml(Path(path)).get("sources") or {})
    return {str(name): _to_source(str(name), entry) for name, entry in entries.items()}


def load_source(
    name: str, *, files: Sequence[str] = (), registry: str | Path | None = None, data_dir: str | Path | None = None
) -> Source:
    """A source by its name; with `files` (paths or globs), read from these rather than the hub.

    Without `files`, a local mirror is used where there is one: the source's `mirror` under `data_dir`, else under
    `$QUAGMIRE_DATA_DIR` or `../shared/data`. ParameterError for an unknown name and for files that are not there.
    """
    sources = load_sources(registry)
    if name not in sources:
        raise ParameterError(
            f"unknown source {name!r}: it is one of {', '.join(sources)}, or an entry of your own YAML"
        )
    source = sources[name]
    if files:
        return replace(source, files=tuple(expand(files)))
    if source.files:
        return replace(source, files=tuple(expand(source.files)))
    if source.mirror and (folder := mirror_folder(data_dir)):
        found = sorted(path for path in glob.glob(str(folder / source.mirror)) if path.endswith(ENDINGS))
        if found:
            return replace(source, files=tuple(found))
    if not source.hub_id:
        raise ParameterError(f"source {name}: it has neither files nor a hub_id")
    return source


def expand(patterns: Sequence[str]) -> list[str]:
    """The files that paths, folders and globs name, sorted, each once."""
    found: set[str] = set()
    for pattern in patterns:
        path = Path(pattern).expanduser()
        matches = (
            [str(p) for p in path.rglob("*") if p.suffix in ENDINGS]
            if path.is_dir()
            else glob.glob(str(path), recursive=True)
        )
        if not matches:
            raise ParameterError(f"files: there is nothing at {pattern}")
        found.update(matches)
    for path in found:
        if not path.endswith(ENDINGS):
            raise ParameterError(f"files: {path} is none of {', '.join(ENDINGS)}")
    return sorted(found)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ParameterError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ParameterError(f"{path} holds no mapping")
    return content


def _to_source(name: str, entry: Any) -> Source:
    if not isinstance(entry, dict):
        raise ParameterError(f"source {name}: its entry is no mapping")
    known = {f.name for f in fields(Source)} - {"name"}
    unknown = sorted(set(entry) - known)
    if unknown:
        raise ParameterError(f"source {name}: unknown key {unknown[0]!r}; there are {', '.join(sorted(known))}")
    lists = ("configs", "hub_files", "files", "answer", "generators", "keep", "strip")
    values = {key: _strings(value) if key in lists else value for key, value in entry.items()}
    for key, value in values.items():
        if not isinstance(value, (tuple, Mapping if key == "where" else str, type(None))):
            raise ParameterError(f"source {name}: {key} has a value of the wrong type, {value!r}")
    values["where"] = {str(column): _strings(allowed) for column, allowed in (entry.get("where") or {}).items()}
    source = Source(name=name, **values)
    if source.answer_format not in ANSWER_FORMATS:
        raise ParameterError(f"source {name}: answer_format must be one of {', '.join(ANSWER_FORMATS)}")
    if source.response is None and not source.answer:
        raise ParameterError(f"source {name}: without a response column it needs an answer column")
    return source


def _strings(value: Any) -> tuple[Any, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(item if item is None else str(item) for item in items)


# --- units ------------------------------------------------------------------------------------------------------------


def units(source: Source) -> list[Unit]:
    """The pieces of a source. Raises ParameterError where a file cannot be read or the hub gives no answer."""
    if source.files:
        return [unit for path in source.files for unit in _file_units(Path(path), UNIT_BYTES)]
    commit = _hub_commit(source)
    pieces = []
    for config in source.configs:
        count = _from_hub(source, lambda config=config: _hub_dataset(source, config, commit).num_shards)
        pieces += [Unit("hub", config or "", shard, count, 1, commit or "local") for shard in range(count)]
    return pieces


def _file_units(path: Path, unit_bytes: int) -> list[Unit]:
    status = path.stat()
    stamp = f"{status.st_size}-{status.st_mtime_ns}"
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
        except pa.ArrowException as error:
            raise ParameterError(f"files: {path} cannot be read as parquet ({str(error).splitlines()[0]})") from error
        pieces, start = [], 0
        for i in range(len(sizes)):  # small row groups are read together
            if i + 1 == len(sizes) or sum(sizes[start : i + 2]) > unit_bytes:
                pieces.append(Unit("parquet", str(path), start, i + 1, sum(sizes[start : i + 1]), stamp))
                start = i + 1
        return pieces
    if path.suffix == ".json":
        return [Unit("json", str(path), 0, 1, max(1, status.st_size), stamp)]
    sizes = [(start, min(unit_bytes, status.st_size - start)) for start in range(0, status.st_size, unit_bytes)]
    return [Unit("jsonl", str(path), start, start + size, size, stamp) for start, size in sizes]


def _hub_commit(source: Source) -> str | None:
    """The commit to read; None where `hub_id` is a folder on this machine."""
    if Path(source.hub_id).is_dir():
        return None
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return source.revision
    ask = HfApi().dataset_info
    return _from_hub(source, lambda: ask(source.hub_id, revision=source.revision, timeout=_HUB_TIMEOUT).sha)


def _hub_dataset(source: Source, config: str | None, commit: str | None) -> Any:
    import datasets

    return datasets.load_dataset(
        source.hub_id,
        config or None,
        split=source.split,
        revision=commit,
        streaming=True,
        data_files=list(source.hub_files) or None,
    )


def _from_hub(source: Source, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except ParameterError:
        raise
    except Exception as error:  # the hub's client raises many kinds, from three libraries
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ParameterError(
            f"source {source.name}: {source.hub_id} gave no answer ({reason}); give the files of a local copy instead"
        ) from error


# --- rows -------------------------------------------------------------------------------------------------------------


class Dropped(NamedTuple):
    """Why a row (or one of its responses) is no record."""

    reason: str
    generator: str = ""


def read_unit(
    source: Source, unit: Unit, positions: Collection[int] | None = None
) -> Iterator[tuple[int, int, Record | Dropped]]:
    """(position of the row in its file or shard, number of the response in the row, record or why there is none).

    With `positions`, only these rows; in a .jsonl file the others are not even read. Raises ParameterError where a
    column is missing, naming those that there are.
    """
    wanted = None if positions is None else set(positions)
    for position, row in _rows(source, unit, wanted):
        for part, record in enumerate(_records(source, row)):
            yield position, part, record


def _rows(source: Source, unit: Unit, wanted: set[int] | None) -> Iterator[tuple[int, Mapping[str, Any]]]:
    where = f"source {source.name}: {unit.name or source.hub_id}"
    if unit.kind == "jsonl":
        yield from _jsonl_rows(source, unit, wanted, where)
    elif unit.kind == "json":
        with open(unit.name, encoding="utf-8") as file:
            try:
                rows = json.load(file)
            except ValueError as error:
                raise ParameterError(f"{where} is no JSON ({error})") from error
        if not isinstance(rows, list):
            raise ParameterError(f"{where} holds no list of rows")
        for position, row in enumerate(rows):
            if wanted is None or position in wanted:
                _check_columns(source, row, where)
                yield position, row
    else:
        position = 0
        for batch in _batches(source, unit, where):
            count = batch.num_rows
            chosen = range(count) if wanted is None else [i for i in range(count) if position + i in wanted]
            if chosen:
                table = batch if wanted is None else batch.take(list(chosen))
                columns = {name: table.column(name).to_pylist() for name in table.schema.names}
                names = list(columns)
                for i, values in zip(chosen, zip(*columns.values(), strict=True), strict=True):
                    yield position + i, dict(zip(names, values, strict=True))
            position += count


def _batches(source: Source, unit: Unit, where: str) -> Iterator[Any]:
    """Arrow batches of the columns that are needed."""
    if unit.kind == "parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(unit.name) as file:
            names = file.schema_arrow.names
            _check_columns(source, names, where)
            columns = [*source.columns, *(column for column in source.optional_columns if column in names)]
            yield from file.iter_batches(_BATCH_ROWS, range(unit.start, unit.stop), columns)
        return
    commit = None if unit.stamp == "local" else unit.stamp
    stream = _from_hub(
        source, lambda: _hub_dataset(source, unit.name, commit).shard(num_shards=unit.stop, index=unit.start)
    )
    tables = iter(stream.with_format("arrow").iter(_BATCH_ROWS))
    while (table := _from_hub(source, lambda: next(tables, None))) is not None:
        _check_columns(source, table.schema.names, where)
        names = set(table.schema.names)
        yield table.select([*source.columns, *(column for column in source.optional_columns if column in names)])


def _jsonl_rows(source: Source, unit: Unit, wanted: set[int] | None, where: str) -> Iterator[tuple[int, Any]]:
    """Rows of the lines that begin inside the unit; a row's position is its first byte in the file."""
    with open(unit.name, "rb") as file:
        if wanted is not None:
            for position in sorted(wanted):
                file.seek(position)
                yield position, json.loads(file.readline())
            return
        if unit.start:
            file.seek(unit.start - 1)
            file.readline()
        position = file.tell()
        while position < unit.stop:
            line = file.readline()
            if not line:
                return
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ParameterError(f"{where}: the line at byte {position} is no JSON ({error})") from error
                _check_columns(source, row, where)
                yield position, row
            position += len(line)


def _check_columns(source: Source, row: Any, where: str) -> None:
    if not isinstance(row, Mapping | list):
        raise ParameterError(f"{where} has a row that is no mapping of columns")
    for column in source.columns:
        if column not in row:
            raise ParameterError(f"{where} has no column {column!r}; it has {', '.join(sorted(row))}")


def _records(source: Source, row: Mapping[str, Any]) -> list[Record | Dropped]:
    for column, allowed in source.where.items():
        if str(row[column]) not in allowed:
            return [Dropped(f"{column} is {row[column]}")]
    generator = str(row.get(source.generator_column) or "") if source.generator_column else source.generator
    if source.generators and not made_by(generator, source.generators):
        return [Dropped("generator", generator)]
    question = _clean_question(_question(row[source.question]), source.strip)
    answer = _answer(source, row)
    if not question or (source.response is None and not answer):
        return [Dropped("empty")]
    if source.response is None:
        return [_checked(Record(question, "", answer, generator))]
    responses = row[source.response]
    if not isinstance(responses, list):
        responses = [responses]
    kept: list[Record | Dropped] = []
    for i, response in enumerate(responses):
        if not all(_flag(row[column], i) for column in source.keep):
            kept.append(Dropped(f"not {' and '.join(source.keep)}"))
        elif not isinstance(response, str) or not response.strip():
            kept.append(Dropped("empty"))
        else:
            kept.append(_checked(Record(question, response, answer, generator)))
    return kept


def _checked(record: Record) -> Record | Dropped:
    try:
        for text in record:
            text.encode()
    except UnicodeEncodeError:
        return Dropped("not Unicode text")  # a lone surrogate, which no tokenizer takes
    return record


def _question(value: Any) -> str:
    """The question's text, or the user turns of a chat."""
    if isinstance(value, list):
        turns = [turn.get("content") for turn in value if isinstance(turn, dict) and turn.get("role") == "user"]
        value = "\n\n".join(turn for turn in turns if isinstance(turn, str))
    return value if isinstance(value, str) else ""


def _clean_question(question: str, instructions: Sequence[str]) -> str:
    question = question.strip()
    for instruction in instructions:
        question = question.removeprefix(instruction).removesuffix(instruction).strip()
    return question


def _answer(source: Source, row: Mapping[str, Any]) -> str:
    value = next((row[column] for column in source.answer if row.get(column) not in (None, "")), "")
    text = str(value).strip()
    if source.answer_format == "boxed":
        return last_boxed(text) or text
    if source.answer_format == "gsm8k":
        return text.rpartition("####")[2].strip().replace(",", "")
    return text


def _flag(flags: Any, i: int) -> bool:
    """Whether response `i` carries the flag; where a row has no list, or a shorter one, it does not."""
    return isinstance(flags, list) and i < len(flags) and flags[i] is True


def made_by(generator: str, wanted: Sequence[str]) -> bool:
    """Whether one of the models that `generator` names (comma-separated) is one of `wanted`.

    Names are compared by letters and digits, and the wanted one may lack a prefix: `QwQ-32B` is `Qwen/QwQ-32B`, but
    `DeepSeek-R1` is not `DeepSeek-R1-Distill-Qwen-7B`.
    """
    names = [_letters(name) for name in generator.split(",")]
    return any(name.endswith(_letters(want)) for name in names for want in wanted if name)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
