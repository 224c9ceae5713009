"""Loading the problems of a dataset from a local copy, a file, or the hub, checked as they are read."""

from __future__ import annotations

import itertools
import sys
import warnings
from pathlib import Path

from quagmire_utils.core.errors import ParameterError, check_whole
from quagmire_utils.data.dataset import Dataset, benchmark_names, find_dataset, load_datasets, local_files, public_files
from quagmire_utils.data.problems import Problem, check_ids, check_texts, digest
from quagmire_utils.data.prompts import INSTRUCTIONS
from quagmire_utils.data.reading import read_rows
from quagmire_utils.data.rows import NoAnswer, make_problem, to_problem


def load_benchmark(name: str | Path, *, data_dir: str | Path | None = None, limit: int | None = None) -> list[Problem]:
    """Return the problems of a benchmark or training set in their own order, the first `limit` of them if given.

    `name` is a dataset of the catalogue, the path of a .yaml file in the same form (`dataset`), or the path of a .jsonl
    file with the columns id, question, answer and, optionally, tolerance, grader and those of `rows.make_problem`. Rows
    of a training set without an answer are left out. Raises ParameterError for an unknown name, for a row without a
    problem, for a local copy whose rows are not the expected ones, and if neither a copy nor the hub can be read.
    """
    if limit is not None:
        check_whole("limit", limit, 1)
    if str(name).endswith(".jsonl"):
        return _load_file(str(name))[:limit]
    if str(name) not in load_datasets() and not str(name).endswith((".yaml", ".yml")):
        known = ", ".join(benchmark_names())
        raise ParameterError("benchmark", str(name), f"one of {known}, or the path of a .jsonl or .yaml file")
    return _load(find_dataset(name), data_dir)[:limit]


def _load(dataset: Dataset, data_dir: str | Path | None) -> list[Problem]:
    if ":" in dataset.grader and dataset.folder not in sys.path:
        sys.path.append(dataset.folder)  # a grader of one's own may lie beside the YAML file; workers get the same path
    local = local_files(dataset, data_dir)
    if dataset.hub_id and not local and not dataset.revision:
        message = f"benchmark {dataset.name}: no revision pins {dataset.hub_id}, so its rows may change"
        warnings.warn(message, stacklevel=3)
    rows = (row for file in local or public_files(dataset) for _, row in read_rows(file))
    if local:
        rows = itertools.islice(rows, *(dataset.local_rows or (None,)))
        rows = ({dataset.local_columns.get(name, name): value for name, value in row.items()} for row in rows)
    where = ", ".join(map(str, local)) or dataset.hub_id or dataset.address
    problems, left_out = [], 0
    for index, row in enumerate(rows):
        try:
            problems.append(to_problem(dataset, index, row))
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            if isinstance(error, NoAnswer) and (dataset.kind == "training" or dataset.where):
                left_out += 1
                continue
            said = str(error) if isinstance(error, ValueError) else repr(error)
            raise ParameterError(dataset.name, reason=f"row {index + 1} of {where}: {said}") from error
    check_ids(problems, f"{dataset.name}: {where}")
    expected = dataset.count if local else dataset.hub_count or dataset.count
    remedy = f"restore the file, or set QUAGMIRE_DATA_DIR to a folder with {dataset.files[0]}" if dataset.files else ""
    if not problems or expected not in (None, len(problems), len(problems) + left_out):
        reason = f"{where} has {len(problems)} problems, expected {expected or 'some'}; {remedy or 'correct count'}"
        raise ParameterError(dataset.name, len(problems), reason=reason)
    if local and dataset.digest is not None and digest(problems) != dataset.digest:
        reason = f"{where} has the expected {len(problems)} problems with changed text; {remedy}"
        raise ParameterError(dataset.name, digest(problems), reason=reason)
    return problems


def _load_file(path: str) -> list[Problem]:
    problems = []
    for number, row in read_rows(path):
        try:
            for column in ("id", "question"):
                if row.get(column) is None or not str(row[column]).strip():
                    raise ValueError(f"has no {column!r}")
            check_texts(row)
            grader = row.get("grader") or "math"
            if grader not in INSTRUCTIONS:  # a file of data names no code to import
                known = ", ".join(INSTRUCTIONS)
                raise ValueError(f"has the grader {grader!r}, not one of {known}; name your own in a .yaml file")
            problems.append(make_problem(str(row["id"]), grader, row))
        except ValueError as error:
            raise ParameterError(path, reason=f"line {number}: {error}") from error
    if not problems:
        raise ParameterError(path, reason="it has no problems")
    check_ids(problems, path)
    return problems
