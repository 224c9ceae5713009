"""From a recipe to a set on disk: scan, choose, read the chosen texts again, write.

The folder holds `train.jsonl` and, if problems were held out, `validation.jsonl`, `removed.jsonl` with
what was taken out and why, and `manifest.json`, written last: a folder that has it is complete. While a set is being
written its folder has `.unfinished` in it. Texts pass through a scratch file there, so memory does not grow with the
set.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from quagmire_utils.core import files, provenance
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_path, read_json, write_json
from quagmire_utils.core.locks import exclusive
from quagmire_utils.data.curation.contamination import BenchmarkIndex
from quagmire_utils.data.curation.recipes import Choice, Recipe, choose
from quagmire_utils.data.curation.scan import Hit, Table, changed, problem_digest, scan, trace_id
from quagmire_utils.data.curation.source_files import Unit, read_unit, units
from quagmire_utils.data.curation.token_counts import TokenCounter, tokenizer_json
from quagmire_utils.data.dataset import Dataset, load_datasets, local_files
from quagmire_utils.data.loading import load_benchmark
from quagmire_utils.data.problems import Trace, load_traces
from quagmire_utils.data.rows import Dropped, Record

CACHE = Path(".quagmire/curation")
_UNFINISHED = ".unfinished"
_FILES = ("removed.jsonl", "train.jsonl", "validation.jsonl")
_BATCH = 256  # traces that are written together


def build(
    recipe: Recipe,
    output: str | Path,
    *,
    cache: str | Path = CACHE,
    datasets: Mapping[str, Dataset] | None = None,
    data_dir: str | Path | None = None,
    workers: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Make the set that `recipe` describes in the folder `output`; return its manifest.

    `datasets`: those that the recipe may name, see `load_datasets`; None: the catalogue. A folder that already holds
    this set (same recipe, same files or commit) is left alone; one with another set is an error, not overwritten.
    Stopped at any moment and started again, it resumes after the units that were read. Raises ParameterError for
    whatever cannot work, before anything is written to `output`.
    """
    started = time.monotonic()
    plan = prepare(recipe, output, datasets=datasets, data_dir=data_dir)
    if plan.made is not None:
        return plan.made
    counting = plan.tokenizer if recipe.needs_lengths else None
    table = scan(plan.dataset, plan.pieces, plan.index, counting, cache=cache, workers=workers, progress=progress)
    if not len(table):
        dropped = ", ".join(f"{reason}: {count:,}" for reason, count in table.dropped.most_common(5))
        reason = f"no trace of {recipe.source} passes ({dropped or 'it has no rows'})"
        raise ParameterError("source", recipe.source, reason=reason)
    choice = choose(table, recipe)
    output = plan.output
    with exclusive(Path(cache) / "locks" / files.digest(str(output.absolute()))):
        made = _made(output, plan.configuration)  # by a process that was asked for the same at the same time
        if made is not None:
            return made
        (output / _UNFINISHED).mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            (output / name).unlink(missing_ok=True)
        sets = {
            name: _write_set(output / f"{name}.jsonl", rows, table, plan, recipe, progress)
            for name, rows in {"train": choice.train, "validation": choice.validation}.items()
            if len(rows)
        }
        _write_removed(output / "removed.jsonl", choice, table)
        generators = np.bincount(table.generator[choice.pool], minlength=len(table.generators)).tolist()
        manifest = provenance.manifest(
            plan.configuration,
            seeds=[recipe.seed],
            wall_seconds=time.monotonic() - started,
            sets=sets,
            counts=choice.counts,
            not_taken=dict(table.dropped.most_common()),
            generators={name or "not named": n for name, n in zip(table.generators, generators, strict=False) if n},
            problems={"pool": len(np.unique(table.problem[choice.pool])), "benchmarks": plan.benchmark_problems},
            licence=plan.dataset.licence,
        )
        write_json(manifest, output / "manifest.json")
        shutil.rmtree(output / _UNFINISHED, ignore_errors=True)
    return read_json(output / "manifest.json")


@dataclass(frozen=True)
class Plan:
    """A recipe whose parameters were found to work: what there is to read, and what for."""

    output: Path
    dataset: Dataset
    index: BenchmarkIndex
    benchmark_problems: int
    tokenizer: str | None
    pieces: list[Unit]
    configuration: dict[str, Any]
    made: dict[str, Any] | None  # the manifest, if the set is there already


def prepare(
    recipe: Recipe,
    output: str | Path,
    *,
    datasets: Mapping[str, Dataset] | None = None,
    data_dir: str | Path | None = None,
) -> Plan:
    """Check all that can be checked before the dataset is read. Raises ParameterError for what cannot work."""
    output = Path(output)
    known = load_datasets() if datasets is None else datasets
    if recipe.source not in known:
        raise ParameterError("source", recipe.source, f"one of {', '.join(known)}, or a dataset of your own")
    dataset = recipe.applied_to(known[recipe.source])
    problems = [problem for name in recipe.benchmarks for problem in load_benchmark(name, data_dir=data_dir)]
    index = BenchmarkIndex(problems, recipe.ngram)
    tokenizer = tokenizer_json(recipe.tokenizer) if recipe.tokenizer is not None else None
    paths = local_files(dataset, data_dir)
    pieces = units(dataset, paths)
    named = recipe.tokenizer
    names = {"files": [path.name for path in paths]}
    names["tokenizer"] = Path(named).name if named and Path(named).is_dir() else named
    configuration = {
        "recipe": {**recipe.model_dump(), **names},
        "source": dataset.model_dump(exclude={"files", "folder"}),
        # the stamp without the time of change, which does not identify a set
        "inputs": [[u.kind, Path(u.name).name, u.number, u.count, u.stamp.split("-")[0]] for u in pieces],
        "benchmarks": index.digest,
        "tokenizer": None if tokenizer is None else files.digest(tokenizer),
    }
    made = _made(output, configuration)
    return Plan(output, dataset, index, len(problems), tokenizer, pieces, configuration, made)


def _made(output: Path, configuration: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of the set in `output` if it is this one. Raises ParameterError if the folder is not ours."""
    path = output / "manifest.json"
    reason = ""
    if path.is_file():
        try:
            manifest = read_json(path)
            if manifest["configuration_digest"] == files.digest(configuration):
                return manifest
            reason = "holds another set"
        except (ValueError, KeyError, TypeError):
            reason = "has a manifest.json of something else"
    elif not (output / _UNFINISHED).is_dir() and (there := [name for name in _FILES if (output / name).exists()]):
        reason = f"has a {there[0]} of something else"
    else:
        nearest = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            reason = f"cannot be made: {nearest} is not a writable folder"
    if reason:
        raise ParameterError("output", str(output), reason=f"{output} {reason}; name another folder")
    return None


def load_set(folder: str | Path) -> tuple[list[Trace], list[Trace]]:
    """Return (training, validation) traces of a set that `build` made; the second is empty if none were held out."""
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        raise ParameterError("folder", str(folder), reason=f"{folder} holds no complete set: it has no manifest.json")
    validation = folder / "validation.jsonl"
    return load_traces(folder / "train.jsonl"), load_traces(validation) if validation.is_file() else []


def summary(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Return what a set holds and why traces were left out, in lines for the terminal."""
    lines = [f"{folder}:"]
    for name, facts in manifest["sets"].items():
        tokens = "" if facts["tokens"] is None else f", {facts['tokens']:,} tokens"
        size = f"{facts['traces']:,} traces of {facts['problems']:,} problems{tokens}"
        lines.append(f"  {name}: {size} ({facts['file']}, digest {facts['digest'][:12]})")
    counts = sorted(manifest["counts"].items(), key=lambda item: -item[1])
    lines.append("  on the way: " + ", ".join(f"{reason} {count:,}" for reason, count in counts))
    if manifest["not_taken"]:
        lines.append("  not taken: " + ", ".join(f"{k} {v:,}" for k, v in list(manifest["not_taken"].items())[:8]))
    return "\n".join(lines)


# --- writing ----------------------------------------------------------------------------------------------------------


def _write_set(
    path: Path, rows: np.ndarray, table: Table, plan: Plan, recipe: Recipe, progress: bool
) -> dict[str, Any]:
    """Write the rows' traces in their order and return what they are."""
    count = TokenCounter(plan.tokenizer) if plan.tokenizer is not None and not recipe.needs_lengths else None
    digest, tokens = sha256(), 0
    scratch = path.parent / _UNFINISHED / f"{path.name}.scratch"
    try:
        with ExitStack() as stack:
            texts = stack.enter_context(scratch.open("w+b"))
            places = _copy_texts(rows, table, plan.dataset, texts, progress)
            temporary = stack.enter_context(atomic_path(path))
            file = stack.enter_context(temporary.open("w", encoding="utf-8"))
            for start in range(0, len(rows), _BATCH):
                records = []
                for place in places[start : start + _BATCH].tolist():
                    texts.seek(place)
                    records.append(Record(*pickle.load(texts)))
                lengths = table.tokens[rows[start : start + _BATCH]].tolist()
                if count is not None:
                    lengths = [n + 1 for n in count([record.response or record.question for record in records])]
                tokens += sum(lengths)
                for record in records:
                    digest.update(trace_id(record).to_bytes(8))
                    file.write(json.dumps(_as_row(record, plan.dataset), ensure_ascii=False) + "\n")
    finally:
        scratch.unlink(missing_ok=True)
    return {
        "file": path.name,
        "digest": digest.hexdigest(),
        "traces": len(rows),
        "problems": len(np.unique(table.problem[rows])),
        "tokens": tokens if plan.tokenizer is not None else None,
        "bytes": int(table.bytes[rows].sum(dtype=np.int64)),
    }


def _copy_texts(rows: np.ndarray, table: Table, dataset: Dataset, scratch: BinaryIO, progress: bool) -> np.ndarray:
    """Copy the rows' texts, in the order of the files, to a scratch file; return where each row's begins."""
    from tqdm import tqdm

    order = np.lexsort((table.part[rows], table.position[rows], table.unit[rows]))
    starts = np.flatnonzero(np.diff(table.unit[rows][order], prepend=-1))
    places = np.full(len(rows), -1, np.int64)
    with tqdm(total=len(rows), desc="writing", unit="trace", unit_scale=True, disable=not progress, delay=3) as bar:
        for group in np.split(order, starts[1:]):
            unit = table.units[table.unit[rows[group[0]]]]
            wanted = zip(table.position[rows[group]].tolist(), table.part[rows[group]].tolist(), strict=True)
            rank = dict(zip(wanted, group.tolist(), strict=True))
            for position, part, record in read_unit(dataset, unit, {position for position, _ in rank}):
                i = rank.get((position, part))
                if i is None:
                    continue
                if isinstance(record, Dropped) or trace_id(record) != int(table.id[rows[i]]):
                    raise changed(unit.name)
                places[i] = scratch.tell()
                pickle.dump(tuple(record), scratch)
                bar.update()
            if (places[group] < 0).any():
                raise changed(unit.name)
    return places


def _as_row(record: Record, dataset: Dataset) -> dict[str, Any]:
    """Return the fields of a Trace; of a Problem, if the dataset has no responses."""
    row = {"id": f"{trace_id(record):016x}", "problem_id": problem_digest(record.question).hex()}
    if dataset.response is None:
        return {**row, "question": record.question, "answer": record.answer}
    texts = {"question": record.question, "response": record.response, "answer": record.answer}
    return {**row, **texts, "source": dataset.name}


def _write_removed(path: Path, choice: Choice, table: Table) -> None:
    """Write one line for each question that matched a benchmark, then one for each duplicate."""

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
