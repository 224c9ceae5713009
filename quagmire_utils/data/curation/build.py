"""From a recipe to a set on disk: scan, choose, read the chosen texts again, write.

The folder holds `train.jsonl` and, if problems were held out, `validation.jsonl`, `removed.jsonl` with what was taken
out and why, and `manifest.json`. It is written under another name and appears when it is complete. Texts pass through a
temporary file, so memory does not grow with the set.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from quagmire_utils.core import files, provenance
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_path, read_json, write_json
from quagmire_utils.core.locks import exclusive
from quagmire_utils.data.curation.contamination import BenchmarkIndex
from quagmire_utils.data.curation.recipes import Choice, Recipe, choose
from quagmire_utils.data.curation.scan import problem_digest, scan, trace_id
from quagmire_utils.data.curation.source_files import Unit, read_unit, units
from quagmire_utils.data.curation.token_counts import tokenizer_json
from quagmire_utils.data.dataset import Dataset, load_datasets, local_files
from quagmire_utils.data.loading import load_benchmark
from quagmire_utils.data.problems import Trace, load_traces
from quagmire_utils.data.rows import Record

if TYPE_CHECKING:
    import pandas as pd

CACHE = Path(".quagmire/curation")


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
    this set (same recipe, same files or commit) is left alone; one with anything else is an error. Stopped at any
    moment and started again, it resumes after the units that were read. Raises ParameterError for whatever cannot work,
    before anything is written to `output`.
    """
    started = time.monotonic()
    plan = prepare(recipe, output, datasets=datasets, data_dir=data_dir)
    if plan.made is not None:
        return plan.made
    options = {"cache": cache, "workers": workers, "progress": progress}
    table, dropped = scan(plan.dataset, plan.pieces, plan.index, plan.tokenizer, **options)
    if table.empty:
        left_out = ", ".join(f"{reason}: {count:,}" for reason, count in dropped.most_common(5))
        reason = f"no trace of {recipe.source} passes ({left_out or 'it has no rows'})"
        raise ParameterError("source", recipe.source, reason=reason)
    choice = choose(table, recipe)
    output = Path(output).absolute()
    with exclusive(Path(cache) / "locks" / files.digest(str(output))):
        made = _made(output, plan.configuration)  # by a process that was asked for the same at the same time
        if made is not None:
            return made
        unfinished = output.with_name(f".{output.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        chosen = {"train": choice.train, "validation": choice.validation}
        sets = {
            name: _write_set(unfinished / f"{name}.jsonl", table.iloc[rows], plan, progress)
            for name, rows in chosen.items()
            if len(rows)
        }
        _write_removed(unfinished / "removed.jsonl", choice, table)
        pool = table.iloc[choice.pool]
        generators = pool["generator"].value_counts().to_dict()
        manifest = provenance.manifest(
            plan.configuration,
            seeds=[recipe.seed],
            wall_seconds=time.monotonic() - started,
            sets=sets,
            counts=choice.counts,
            not_taken=dict(dropped.most_common()),
            generators={name or "not named": n for name, n in sorted(generators.items()) if n},
            problems={"pool": pool["problem"].nunique(), "benchmarks": plan.benchmark_problems},
            licence=plan.dataset.licence,
        )
        write_json(manifest, unfinished / "manifest.json")
        unfinished.replace(output)  # which is empty, if it is there
    return read_json(output / "manifest.json")


@dataclass(frozen=True)
class Plan:
    """A recipe whose parameters were found to work: what there is to read, and what for."""

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
    made = _made(Path(output), configuration)
    return Plan(dataset, index, len(problems), tokenizer, pieces, configuration, made)


def _made(output: Path, configuration: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of the set in `output` if it is this one; raise ParameterError if the folder is not free."""
    reason = ""
    if (output / "manifest.json").is_file():
        manifest = read_json(output / "manifest.json")
        if manifest.get("configuration_digest") == files.digest(configuration):
            return manifest
        reason = "holds another set"
    elif output.is_dir() and any(output.iterdir()):
        reason = "is not empty"
    else:
        nearest = next(folder for folder in output.absolute().parents if folder.exists())
        if output.is_file() or not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            reason = f"cannot be made: {nearest} is not a writable folder, or it is a file"
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


def _write_set(path: Path, rows: pd.DataFrame, plan: Plan, progress: bool) -> dict[str, Any]:
    """Write the rows' traces in their order and return what they are."""
    with (
        tempfile.TemporaryFile(dir=path.parent) as texts,
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
    ):
        for place in _copy_texts(rows, plan, texts, progress).tolist():
            texts.seek(place)
            file.write(texts.readline())
    return {
        "file": path.name,
        "digest": sha256(rows["id"].to_numpy().astype(">u8").tobytes()).hexdigest(),
        "traces": len(rows),
        "problems": rows["problem"].nunique(),
        "tokens": int(rows["tokens"].sum()) if plan.tokenizer is not None else None,
        "bytes": int(rows["bytes"].sum()),
    }


def _copy_texts(rows: pd.DataFrame, plan: Plan, texts: BinaryIO, progress: bool) -> np.ndarray:
    """Copy the rows' traces, in the order of the files, to `texts`, one a line; return where each row's begins."""
    from tqdm import tqdm

    places = np.full(len(rows), -1, np.int64)
    numbered = rows.assign(row=np.arange(len(rows)))
    with tqdm(total=len(rows), desc="writing", unit="trace", unit_scale=True, disable=not progress, delay=3) as bar:
        for number, group in numbered.groupby("unit"):
            unit = plan.pieces[number]
            wanted = {(row.position, row.part): (row.row, row.id) for row in group.itertuples()}
            for position, part, record in read_unit(plan.dataset, unit, {position for position, _ in wanted}):
                i, known = wanted.get((position, part), (None, None))
                if i is None:
                    continue
                if not isinstance(record, Record) or trace_id(record) != known:
                    break
                places[i] = texts.tell()
                texts.write(json.dumps(_as_row(record, plan.dataset), ensure_ascii=False).encode() + b"\n")
                bar.update()
            if (places[group["row"]] < 0).any():
                raise ParameterError("files", unit.name, reason=f"{unit.name} changed while it was read; start again")
    return places


def _as_row(record: Record, dataset: Dataset) -> dict[str, Any]:
    """Return the fields of a Trace; of a Problem, if the dataset has no responses."""
    row = {"id": f"{trace_id(record):016x}", "problem_id": problem_digest(record.question).hex()}
    if dataset.response is None:
        return {**row, "question": record.question, "answer": record.answer}
    texts = {"question": record.question, "response": record.response, "answer": record.answer}
    return {**row, **texts, "source": dataset.name}


def _write_removed(path: Path, choice: Choice, table: pd.DataFrame) -> None:
    """Write one line for each question that matched a benchmark, then one for each duplicate."""

    def lines() -> Iterator[dict[str, Any]]:
        for problem, group in table.iloc[choice.contaminated].groupby("problem"):
            # of several spellings the first in the alphabet, wherever it stood
            question, benchmark_problem, shared, benchmark_question = json.loads(min(group["hit"].dropna()))
            yield {
                "reason": "shares words with a benchmark" if shared else "equals a benchmark's question",
                "benchmark_problem": benchmark_problem,
                "shared": shared,
                "problem_id": f"{problem:016x}",
                "traces": len(group),
                "question": question,
                "benchmark_question": benchmark_question,
            }
        for removed, kept in table["id"].to_numpy()[choice.duplicates].tolist():
            reason = "repeats a trace" if removed == kept else "repeats a trace up to spacing and case"
            yield {"reason": reason, "id": f"{removed:016x}", "kept": f"{kept:016x}"}

    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines())
