"""From a recipe to a set on disk: scan, choose, write.

The folder holds `train.jsonl` and, if problems were held out, `validation.jsonl`, `removed.jsonl` with what was taken
out and why, and `manifest.json`. It is written under another name and appears when it is complete. Texts pass through a
temporary file, so memory does not grow with the set.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from filelock import FileLock

from quagmire_utils.core import files, provenance
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_folder, atomic_path, read_json, write_json
from quagmire_utils.data.curation.contamination import BenchmarkIndex
from quagmire_utils.data.curation.recipes import Choice, Recipe, choose, fast_tokenizer
from quagmire_utils.data.curation.scan import scan
from quagmire_utils.data.dataset import Dataset, SourceFile, load_datasets, local_files, source_files
from quagmire_utils.data.loading import load_benchmark
from quagmire_utils.data.problems import Trace, load_traces

if TYPE_CHECKING:
    import pandas as pd
    from tokenizers import Tokenizer

CACHE = Path(".quagmire/curation")
_TEXT_ROWS = 1024  # that are in memory at once


def build(
    recipe: Recipe,
    output: str | Path,
    *,
    cache: str | Path = CACHE,
    datasets: Mapping[str, Dataset] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Make the set that `recipe` describes in the folder `output`; return its manifest.

    `datasets`: those that the recipe may name, see `load_datasets`; None: the catalogue. A folder that already holds
    this set (same recipe, same files or commit) is left alone; one with anything else is an error. Stopped at any
    moment and started again, it resumes after the files that were read. Raises ParameterError for whatever cannot work,
    before anything is written to `output`.
    """
    started = time.monotonic()
    plan = prepare(recipe, output, datasets=datasets)
    if plan.made is not None:
        return plan.made
    how = {"cache": cache, "progress": progress}
    table, dropped, texts = scan(plan.dataset, plan.sources, plan.index, plan.tokenizer, **how)
    if table.empty:
        left_out = ", ".join(f"{reason}: {count:,}" for reason, count in dropped.most_common(5))
        reason = f"no trace of {recipe.source} passes ({left_out or 'it has no rows'})"
        raise ParameterError("source", recipe.source, reason=reason)
    choice = choose(table, recipe)
    output = Path(output).absolute()
    lock = Path(cache) / "locks" / f"{files.digest(str(output))}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        made = _made(output, plan.configuration)  # by a process that was asked for the same at the same time
        if made is not None:
            return made
        with atomic_folder(output) as unfinished:  # it takes the place of an empty folder
            chosen = {"train": choice.train, "validation": choice.validation}
            sets = {
                name: _write_set(unfinished / f"{name}.jsonl", table.iloc[rows], plan, texts)
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
    return read_json(output / "manifest.json")


@dataclass(frozen=True)
class Plan:
    """A recipe whose parameters were found to work: what there is to read, and what for."""

    dataset: Dataset
    index: BenchmarkIndex
    benchmark_problems: int
    tokenizer: Tokenizer | None
    sources: list[SourceFile]
    configuration: dict[str, Any]
    made: dict[str, Any] | None  # the manifest, if the set is there already


def prepare(recipe: Recipe, output: str | Path, *, datasets: Mapping[str, Dataset] | None = None) -> Plan:
    """Check all that can be checked before the dataset is read. Raises ParameterError for what cannot work."""
    known = load_datasets() if datasets is None else datasets
    if recipe.source not in known:
        raise ParameterError("source", recipe.source, f"one of {', '.join(known)}, or a dataset of your own")
    dataset = recipe.applied_to(known[recipe.source])
    problems = [problem for name in recipe.benchmarks for problem in load_benchmark(name)]
    index = BenchmarkIndex(problems, recipe.ngram)
    tokenizer = fast_tokenizer(recipe.tokenizer) if recipe.tokenizer is not None else None
    paths = local_files(dataset)
    sources = source_files(dataset, paths)
    named = recipe.tokenizer
    names = {"files": [path.name for path in paths]}
    names["tokenizer"] = Path(named).name if named and Path(named).is_dir() else named
    configuration = {
        "recipe": {**recipe.model_dump(), **names},
        "source": dataset.model_dump(exclude={"files", "folder"}),
        # the stamp without the time of change, which does not identify a set
        "inputs": [[Path(file.name).name, file.stamp.split("-")[0]] for file in sources],
        "benchmarks": index.digest,
        "tokenizer": None if tokenizer is None else files.digest(tokenizer.to_str()),
    }
    made = _made(Path(output), configuration)
    return Plan(dataset, index, len(problems), tokenizer, sources, configuration, made)


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


def _write_set(path: Path, rows: pd.DataFrame, plan: Plan, texts: Sequence[Path]) -> dict[str, Any]:
    """Write the rows' traces in their order and return what they are."""
    with tempfile.TemporaryFile(dir=path.parent) as lines, atomic_path(path) as temporary, temporary.open("wb") as file:
        for place in _copy_texts(rows, plan.dataset, texts, lines).tolist():
            lines.seek(place)
            file.write(lines.readline())
    return {
        "file": path.name,
        "digest": sha256(rows["id"].to_numpy().astype(">u8").tobytes()).hexdigest(),
        "traces": len(rows),
        "problems": rows["problem"].nunique(),
        "tokens": int(rows["tokens"].sum()) if plan.tokenizer is not None else None,
        "bytes": int(rows["bytes"].sum()),
    }


def _copy_texts(rows: pd.DataFrame, dataset: Dataset, texts: Sequence[Path], lines: BinaryIO) -> np.ndarray:
    """Copy the rows' traces, in the order of the files, to `lines`; return where each row's begins."""
    import pyarrow.parquet as pq

    names = ["id", "problem", "question", "answer"] + (["response"] if dataset.response else [])
    places = np.full(len(rows), -1, np.int64)
    numbered = rows.assign(number=np.arange(len(rows)))
    for file, group in numbered.groupby("file"):
        wanted, start = group.set_index("row")["number"].sort_index(), 0
        for batch in pq.ParquetFile(texts[file]).iter_batches(_TEXT_ROWS, columns=names):
            here = wanted.loc[start : start + len(batch) - 1]
            for number, row in zip(here, batch.take(here.index.to_numpy() - start).to_pylist(), strict=True):
                row |= {"id": f"{row['id']:016x}", "problem_id": f"{row.pop('problem'):016x}"}
                row |= {"source": dataset.name} if dataset.response else {}
                places[number] = lines.tell()
                lines.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            start += len(batch)
    return places


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
