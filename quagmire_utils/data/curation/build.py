"""From a recipe to a set on disk: scan, choose, read the chosen texts again, write.

    build(Recipe(source="openr1_math", tokenizer="Qwen/Qwen3-4B-Base", selection="shortest", n=10_000,
                 max_tokens=7168, validation_problems=500), "data/shortest-10k")
    train, validation = load_set("data/shortest-10k")

The folder holds `train.jsonl` and, where problems were held out, `validation.jsonl` (or `.parquet`), `removed.jsonl`
with what was taken out and why, and `manifest.json`, written last: a folder that has it is complete. While a set is
being written its folder has `.unfinished` in it. Texts pass through in pieces of 64 MB, so memory does not grow with
the set.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from quagmire_utils.core import files, provenance
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_path, read_json, read_parquet, write_json
from quagmire_utils.core.locks import exclusive
from quagmire_utils.data import Trace, load_benchmark, load_traces
from quagmire_utils.data.curation.contamination import BenchmarkIndex
from quagmire_utils.data.curation.counting import TokenCounter
from quagmire_utils.data.curation.files import Unit, read_unit, units
from quagmire_utils.data.curation.recipes import FORMATS, Choice, Recipe, choose
from quagmire_utils.data.curation.scan import Hit, Table, problem_digest, scan, tokenizer_json, trace_id
from quagmire_utils.data.curation.sources import Dropped, Record, Source, load_source

CACHE = Path(".quagmire/curation")
_PIECE_BYTES = 64 * 2**20
_MOST_PIECES = 256  # files that are open at once
_UNFINISHED = ".unfinished"
_FILES = ("removed.jsonl", *(f"{name}.{kind}" for name in ("train", "validation") for kind in FORMATS))


def build(
    recipe: Recipe,
    output: str | Path,
    *,
    cache: str | Path = CACHE,
    registry: str | Path | None = None,
    data_dir: str | Path | None = None,
    workers: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Make the set that `recipe` describes in the folder `output`; returns its manifest.

    A folder that already holds this set (same recipe, same files or commit) is left alone; one with another set is an
    error, not overwritten. Stopped at any moment and started again, it goes on after the units that were read.
    Raises ParameterError for whatever cannot work, before anything is written to `output`.
    """
    started = time.monotonic()
    plan = prepare(recipe, output, registry=registry, data_dir=data_dir)
    if plan.made is not None:
        return plan.made
    source, output = plan.source, plan.output
    counting = plan.tokenizer if recipe.needs_lengths else None
    table = scan(source, plan.pieces, plan.index, counting, cache=cache, workers=workers, progress=progress)
    if not len(table):
        raise ParameterError(f"source {source.name}: no trace passes its filters ({_most_common(table)})")
    choice = choose(table, recipe)
    with exclusive(output / _UNFINISHED):
        made = _made(output, plan.configuration)  # by a process that was asked for the same at the same time
        if made is not None:
            return made
        for name in _FILES:
            (output / name).unlink(missing_ok=True)
        sets = {}
        for name, rows in {"train": choice.train, "validation": choice.validation}.items():
            if len(rows):
                path = output / f"{name}.{recipe.format}"
                sets[name] = _write_set(path, rows, table, source, recipe, plan.tokenizer, progress)
        _write_removed(output / "removed.jsonl", choice, table)
        manifest = provenance.manifest(
            plan.configuration,
            seeds=[recipe.seed],
            wall_seconds=time.monotonic() - started,
            sets=sets,
            counts=choice.counts,
            not_taken=dict(table.dropped.most_common()),
            generators=_by_generator(table, choice.pool),
            problems={"pool": len(np.unique(table.problem[choice.pool])), "benchmarks": plan.benchmark_problems},
            licence=source.licence,
        )
        write_json(manifest, output / "manifest.json")
    shutil.rmtree(output / _UNFINISHED, ignore_errors=True)
    return read_json(output / "manifest.json")


@dataclass(frozen=True)
class Plan:
    """A recipe whose parameters were found to work: what there is to read, and what for."""

    output: Path
    source: Source
    index: BenchmarkIndex
    benchmark_problems: int
    tokenizer: str | None
    pieces: list[Unit]
    configuration: dict[str, Any]
    made: dict[str, Any] | None  # the manifest, where the set is there already


def prepare(
    recipe: Recipe, output: str | Path, *, registry: str | Path | None = None, data_dir: str | Path | None = None
) -> Plan:
    """All that can be checked before the source is read. Raises ParameterError for what cannot work."""
    output = Path(output)
    source = with_filters(load_source(recipe.source, files=recipe.files, registry=registry, data_dir=data_dir), recipe)
    problems = [problem for name in recipe.benchmarks for problem in load_benchmark(name, data_dir=data_dir)]
    index = BenchmarkIndex(problems, recipe.ngram)
    tokenizer = tokenizer_json(recipe.tokenizer) if recipe.tokenizer is not None else None
    pieces = units(source)
    configuration = _configuration(recipe, source, index, tokenizer, pieces)
    made = _made(output, configuration)
    return Plan(output, source, index, len(problems), tokenizer, pieces, configuration, made)


def _made(output: Path, configuration: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of the set in `output`, if it is this one. Raises ParameterError where the folder is another's."""
    path = output / "manifest.json"
    if path.is_file():
        try:
            manifest = read_json(path)
            same = manifest["configuration_digest"] == files.digest(configuration)
        except (ValueError, KeyError, TypeError) as error:
            raise ParameterError(f"output: {path} is no set's manifest; name another folder") from error
        if same:
            return manifest
        raise ParameterError(f"output: {output} holds another set; remove it, or name another folder")
    mine = (output / _UNFINISHED).is_dir()
    if not mine and (there := [name for name in _FILES if (output / name).exists()]):
        raise ParameterError(f"output: {output} has a {there[0]} that is no set's; name another folder")
    nearest = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ParameterError(f"output: {output} cannot be made, {nearest} is no folder that may be written to")
    return None


def load_set(folder: str | Path) -> tuple[list[Trace], list[Trace]]:
    """(training, validation) traces of a set that `build` made; the second is empty where nothing was held out."""
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        raise ParameterError(f"{folder} holds no complete set: it has no manifest.json")
    loaded: list[list[Trace]] = []
    for name in ("train", "validation"):
        jsonl, parquet = folder / f"{name}.jsonl", folder / f"{name}.parquet"
        if jsonl.is_file():
            loaded.append(load_traces(jsonl))
        elif parquet.is_file():
            columns = ["id", "problem_id", "question", "response", "answer", "source"]
            rows = read_parquet(parquet, columns)
            loaded.append([Trace(*row) for row in rows.itertuples(index=False, name=None)])
        else:
            loaded.append([])
    return loaded[0], loaded[1]


def with_filters(source: Source, recipe: Recipe) -> Source:
    """The source with the recipe's own filters."""
    generators = source.generators if recipe.generators is None else recipe.generators
    return replace(source, generators=generators, where={**source.where, **recipe.where})


def _configuration(
    recipe: Recipe, source: Source, index: BenchmarkIndex, tokenizer: str | None, pieces: Sequence[Unit]
) -> dict[str, Any]:
    inputs = [
        # a file's time of change is no part of what a set is
        [unit.kind, Path(unit.name).name, unit.start, unit.stop, unit.stamp.split("-")[0]]
        for unit in pieces
    ]
    return {
        "recipe": {
            **asdict(recipe),
            "files": [Path(path).name for path in source.files],
            "tokenizer": Path(recipe.tokenizer).name
            if recipe.tokenizer and Path(recipe.tokenizer).is_dir()
            else recipe.tokenizer,
        },
        "source": {k: v for k, v in asdict(source).items() if k not in ("files", "mirror")},
        "inputs": inputs,
        "benchmarks": index.digest,
        "tokenizer": None if tokenizer is None else files.digest(tokenizer),
    }


def _by_generator(table: Table, rows: np.ndarray) -> dict[str, int]:
    counts = np.bincount(table.generator[rows], minlength=len(table.generators)).tolist()
    return {name or "not named": count for name, count in zip(table.generators, counts, strict=False) if count}


def _most_common(table: Table) -> str:
    return ", ".join(f"{reason}: {count:,}" for reason, count in table.dropped.most_common(5)) or "it has no rows"


# --- writing ----------------------------------------------------------------------------------------------------------


def _write_set(
    path: Path,
    rows: np.ndarray,
    table: Table,
    source: Source,
    recipe: Recipe,
    tokenizer: str | None,
    progress: bool,
) -> dict[str, Any]:
    """Write the rows in their order and say what they are."""
    sizes = np.cumsum(table.bytes[rows], dtype=np.int64)
    piece = sizes // max(_PIECE_BYTES, int(sizes[-1]) // _MOST_PIECES)
    scratch = path.parent / _UNFINISHED / path.name
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        _sort_out(rows, piece, table, source, scratch, progress)
        count = TokenCounter(tokenizer) if tokenizer is not None and not recipe.needs_lengths else None
        digest, counted = sha256(), 0
        with atomic_path(path) as temporary, ExitStack() as stack:
            writer = _Writer(temporary, recipe.format, source, stack)
            for number in np.unique(piece):
                records = _read_piece(scratch / f"{number}")
                texts = [record.response or record.question for _, record in records]
                lengths = [n + 1 for n in count(texts)] if count else table.tokens[rows[piece == number]].tolist()
                for _, record in records:
                    digest.update(trace_id(record).to_bytes(8))
                counted += sum(lengths)
                writer.write([record for _, record in records], lengths)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {
        "file": path.name,
        "digest": digest.hexdigest(),
        "traces": len(rows),
        "problems": len(np.unique(table.problem[rows])),
        "tokens": counted if tokenizer is not None else None,
        "bytes": int(table.bytes[rows].sum(dtype=np.int64)),
    }


def _sort_out(rows: np.ndarray, piece: np.ndarray, table: Table, source: Source, scratch: Path, progress: bool) -> None:
    """Read the rows' texts in the order of the files; each goes to the piece of the set that it belongs to."""
    from tqdm import tqdm

    order = np.lexsort((table.part[rows], table.position[rows], table.unit[rows]))
    starts = np.flatnonzero(np.diff(table.unit[rows][order], prepend=-1))
    with (
        ExitStack() as stack,
        tqdm(total=len(rows), desc="writing", unit="trace", unit_scale=True, disable=not progress, delay=3) as bar,
    ):
        open_pieces: dict[int, BinaryIO] = {
            number: stack.enter_context(open(scratch / f"{number}", "wb")) for number in np.unique(piece).tolist()
        }
        found = 0
        for group in np.split(order, starts[1:]):
            unit = table.units[table.unit[rows[group[0]]]]
            places = zip(table.position[rows[group]].tolist(), table.part[rows[group]].tolist(), strict=True)
            rank = dict(zip(places, group.tolist(), strict=True))
            for position, part, record in read_unit(source, unit, {position for position, _ in rank}):
                i = rank.get((position, part))
                if i is None:
                    continue
                if isinstance(record, Dropped) or trace_id(record) != int(table.id[rows[i]]):
                    raise ParameterError(f"{unit.name} changed while it was read; start again")
                pickle.dump((i, tuple(record)), open_pieces[int(piece[i])])
                found += 1
                bar.update()
        if found < len(rows):
            raise ParameterError(f"source {source.name} changed while it was read; start again")


def _read_piece(path: Path) -> list[tuple[int, Record]]:
    """The piece's records in the set's order."""
    records = []
    with open(path, "rb") as file:
        while True:
            try:
                rank, fields = pickle.load(file)
            except EOFError:
                break
            records.append((rank, Record(*fields)))
    return sorted(records)


class _Writer:
    """Appends records to a .jsonl or .parquet file."""

    def __init__(self, path: Path, kind: str, source: Source, stack: ExitStack) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.source, self.kind = source, kind
        if kind == "jsonl":
            self.file = stack.enter_context(path.open("w", encoding="utf-8"))
        else:
            text = [(name, pa.string()) for name in ("id", "problem_id", "question", "response", "answer", "source")]
            self.schema = pa.schema([*text, ("generator", pa.string()), ("tokens", pa.int32())])
            self.file = stack.enter_context(pq.ParquetWriter(path, self.schema, compression="zstd"))

    def write(self, records: Sequence[Record], tokens: Sequence[int]) -> None:
        rows = [self._row(record) for record in records]
        if self.kind == "jsonl":
            self.file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return
        import pyarrow as pa

        for row, record, length in zip(rows, records, tokens, strict=True):
            row |= {"response": record.response, "source": self.source.name}
            row |= {"generator": record.generator, "tokens": length if length >= 0 else None}
        self.file.write_table(pa.Table.from_pylist(rows, self.schema))

    def _row(self, record: Record) -> dict[str, Any]:
        """The fields of Trace; of Problem, where the source has no responses."""
        row: dict[str, Any] = {"id": f"{trace_id(record):016x}"}
        if self.source.response is not None:
            row |= {"problem_id": problem_digest(record.question).hex(), "question": record.question}
            return row | {"response": record.response, "answer": record.answer, "source": self.source.name}
        return row | {
            "problem_id": problem_digest(record.question).hex(),
            "question": record.question,
            "answer": record.answer,
        }


def _write_removed(path: Path, choice: Choice, table: Table) -> None:
    """One line for each question that met a benchmark, then one for each duplicate."""

    def lines() -> Iterator[dict[str, Any]]:
        problems = table.problem[choice.contaminated].tolist()
        traces = Counter(problems)
        met: dict[int, Hit] = {}
        for problem, number in zip(problems, table.hit[choice.contaminated].tolist(), strict=True):
            if number >= 0:  # of several spellings the first in the alphabet, wherever it stood
                met[problem] = min(met.get(problem, table.hits[number]), table.hits[number])
        for problem, hit in sorted(met.items()):
            yield {
                "reason": "shares words with a benchmark" if hit.shared else "equals a benchmark's question",
                "benchmark_problem": hit.problem_id,
                "shared": hit.shared,
                "problem_id": f"{problem:016x}",
                "traces": traces[problem],
                "question": hit.question,
            }
        for removed, kept in choice.duplicates.tolist():
            exact = table.id[removed] == table.id[kept]
            yield {
                "reason": "repeats a trace" if exact else "repeats a trace up to spacing and case",
                "id": f"{int(table.id[removed]):016x}",
                "kept": f"{int(table.id[kept]):016x}",
            }

    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines())


def summary(folder: Path, manifest: dict[str, Any]) -> str:
    """Return what a set holds and why traces were left out, in lines for the terminal."""
    lines = [f"{folder}:"]
    for name, facts in manifest["sets"].items():
        tokens = "" if facts["tokens"] is None else f", {facts['tokens']:,} tokens"
        lines.append(
            f"  {name}: {facts['traces']:,} traces of {facts['problems']:,} problems{tokens} ({facts['file']}, "
            f"digest {facts['digest'][:12]})"
        )
    counts = sorted(manifest["counts"].items(), key=lambda item: -item[1])
    lines.append("  on the way: " + ", ".join(f"{reason} {count:,}" for reason, count in counts))
    if manifest["not_taken"]:
        lines.append("  not taken: " + ", ".join(f"{k} {v:,}" for k, v in list(manifest["not_taken"].items())[:8]))
    return "\n".join(lines)
