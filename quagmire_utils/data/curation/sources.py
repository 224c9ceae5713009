"""Where traces come from, and what a row of theirs says.

The SFT and RL sets of App. B are described in `sources.yaml`; a dataset of one's own is a few more lines of the same
kind. Its files are read by `files`.

    source = load_source("openr1_math")                                     # streamed from its hub
    source = load_source("openr1_math", files=["mirror/openr1/*.parquet"])  # the same columns, from here
    records(source, {"problem": "What is $1+1$?", "generations": ["2"], ...})  # one a response, or why it is left out
"""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data import last_boxed, mirror_folder

REGISTRY = Path(__file__).with_name("sources.yaml")
ENDINGS = (".parquet", ".arrow", ".jsonl", ".json", ".jsonl.gz", ".json.gz")
ANSWER_FORMATS = ("plain", "boxed", "gsm8k")
_MAY_BE_NULL = ("revision", "response", "generator_column")
_NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # beside the rows


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


# --- the registry -----------------------------------------------------------------------------------------------------


def load_sources(path: str | Path | None = None) -> dict[str, Source]:
    """The sources of the registry, and those under `sources:` in the YAML file `path`, which replace namesakes."""
    entries: dict[str, Any] = dict(_read_yaml(REGISTRY)["sources"])
    if path is not None:
        entries.update(mapping(_read_yaml(Path(path)).get("sources"), "sources"))
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
        matches = glob.glob(str(folder / source.mirror), recursive=True)
        found = sorted(path for path in matches if is_data(path) and Path(path).is_file())
        if found:
            return replace(source, files=tuple(found))
    if not source.hub_id:
        raise ParameterError(f"source {name}: it has neither files nor a hub_id")
    return source


def expand(patterns: Sequence[str]) -> list[str]:
    """The files that paths, folders and globs name, sorted, each once; of folders those that can be read."""
    found: set[str] = set()
    for pattern in patterns:
        path = Path(pattern).expanduser()
        matches = [path] if path.exists() else [Path(match) for match in glob.glob(str(path), recursive=True)]
        for match in matches:
            inside = match.rglob("*") if match.is_dir() else ()
            hidden = len(match.parts)
            found.update(
                str(one)
                for one in inside
                if is_data(one.name) and one.is_file() and not any(p[0] == "." for p in one.parts[hidden:])
            )
            if match.is_file():
                if not match.name.endswith(ENDINGS):
                    raise ParameterError(f"files: {match} is none of {', '.join(ENDINGS)}")
                found.add(str(match))
        if not matches:
            raise ParameterError(f"files: there is nothing at {pattern}")
    if not found:
        raise ParameterError(f"files: {', '.join(patterns)} holds no {', '.join(ENDINGS)}")
    return sorted(found)


def is_data(name: str) -> bool:
    """Whether a file of this name holds rows."""
    return name.endswith(ENDINGS) and Path(name).name not in _NO_ROWS


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ParameterError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ParameterError(f"{path} holds no mapping")
    return content


def mapping(value: Any, name: str) -> dict[str, Any]:
    """A mapping of a YAML file, empty where it is not given."""
    if value is not None and not isinstance(value, Mapping):
        raise ParameterError(f"{name} must be a mapping, not {value!r}")
    return dict(value or {})


def _to_source(name: str, entry: Any) -> Source:
    entry = mapping(entry, f"source {name}: its entry")
    known = {f.name for f in fields(Source)} - {"name"}
    unknown = sorted(set(entry) - known)
    if unknown:
        raise ParameterError(f"source {name}: unknown key {unknown[0]!r}; there are {', '.join(sorted(known))}")
    lists = ("configs", "hub_files", "files", "answer", "generators", "keep", "strip")
    values = {key: _strings(value) if key in lists else value for key, value in entry.items()}
    where = mapping(entry.get("where"), f"source {name}: where")
    values["where"] = {str(column): _strings(allowed) for column, allowed in where.items()}
    for key in set(values) - {*lists, "where"}:
        if not isinstance(values[key], str) and (values[key] is not None or key not in _MAY_BE_NULL):
            raise ParameterError(f"source {name}: {key} must be text, not {values[key]!r}")
    source = Source(name=name, **values)
    if source.answer_format not in ANSWER_FORMATS:
        raise ParameterError(f"source {name}: answer_format must be one of {', '.join(ANSWER_FORMATS)}")
    if source.response is None and not any(source.answer):
        raise ParameterError(f"source {name}: without a response column it needs an answer column")
    return source


def _strings(value: Any) -> tuple[Any, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(item if item is None else str(item) for item in items)


# --- rows -------------------------------------------------------------------------------------------------------------


_USER, _MODEL = ("user", "human"), ("assistant", "gpt")


class Dropped(NamedTuple):
    """Why a row (or one of its responses) is no record."""

    reason: str
    generator: str = ""


def records(source: Source, row: Mapping[str, Any]) -> list[Record | Dropped]:
    """The traces of a row that has the source's columns (of a source without responses its problem), or why not."""
    for column, allowed in source.where.items():
        if str(row[column]) not in allowed:
            return [Dropped(f"{column} is {row[column]}")]
    generator = str(row.get(source.generator_column) or "") if source.generator_column else source.generator
    if source.generators and not made_by(generator, source.generators):
        return [Dropped("generator", generator)]
    question = _clean_question(_said(row[source.question], _USER), source.strip)
    answer = _answer(source, row)
    if not question or (source.response is None and not answer):
        return [Dropped("empty")]
    if source.response is None:
        return [_checked(Record(question, "", answer, generator))]
    responses = row[source.response]
    if not isinstance(responses, list):
        responses = [responses]
    elif responses and isinstance(responses[0], dict):  # a chat
        if sum(_speaker(turn) in _MODEL for turn in responses) > 1:
            return [Dropped("a chat of several answers")]
        responses = [_said(responses, _MODEL)]
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


def _said(value: Any, speakers: Collection[str]) -> str:
    """A text, or what these speakers say in a chat: turns of role and content, or of from and value."""
    if isinstance(value, list):
        turns = [turn.get("content", turn.get("value")) for turn in value if _speaker(turn) in speakers]
        value = "\n\n".join(turn for turn in turns if isinstance(turn, str))
    return value if isinstance(value, str) else ""


def _speaker(turn: Any) -> Any:
    return turn.get("role", turn.get("from")) if isinstance(turn, dict) else None


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
    """Whether response `i` carries the flag, the row's or its own in a list; in a shorter list it does not."""
    return flags is True or (isinstance(flags, list) and i < len(flags) and flags[i] is True)


def made_by(generator: str, wanted: Sequence[str]) -> bool:
    """Whether one of the models that `generator` names (comma-separated) is one of `wanted`.

    Names are compared by letters and digits, and the wanted one may lack a prefix: `QwQ-32B` is `Qwen/QwQ-32B`, but
    `DeepSeek-R1` is not `DeepSeek-R1-Distill-Qwen-7B`.
    """
    names = [_letters(name) for name in generator.split(",")]
    return any(name.endswith(_letters(want)) for name in names for want in wanted if name and want)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
