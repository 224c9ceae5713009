"""Loading the problems of a dataset from a local copy, a file, or the hub, checked as they are read."""

from __future__ import annotations

import itertools
import sys
import urllib.request
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

from quagmire_utils.core.errors import ParameterError, check_whole
from quagmire_utils.core.files import atomic_path
from quagmire_utils.core.files import digest as short_digest
from quagmire_utils.core.paths import ROOT
from quagmire_utils.data.dataset import Dataset, benchmark_names, find_dataset, load_datasets, local_files
from quagmire_utils.data.problems import Problem, Row, check_ids, digest, parse_json, read_csv, read_jsonl
from quagmire_utils.data.prompts import INSTRUCTIONS
from quagmire_utils.data.rows import NoAnswer, make_problem, to_problem

CACHE = ROOT / ".quagmire" / "datasets"  # of files at a public address
HUB_TIMEOUT = 5.0  # seconds until an unreachable hub is reported; the hub library alone would retry for half a minute


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
        return _load_file(Path(name))[:limit]
    if str(name) not in load_datasets() and not str(name).endswith((".yaml", ".yml")):
        known = ", ".join(benchmark_names())
        raise ParameterError("benchmark", str(name), f"one of {known}, or the path of a .jsonl or .yaml file")
    return _load(find_dataset(name), data_dir)[:limit]


def _load(dataset: Dataset, data_dir: str | Path | None) -> list[Problem]:
    if ":" in dataset.grader and dataset.folder not in sys.path:
        sys.path.append(dataset.folder)  # a grader of one's own may lie beside the YAML file; workers get the same path
    files = local_files(dataset, data_dir)
    if files:
        rows = itertools.islice((row for path in files for row in _read(path)), *(dataset.local_rows or (None,)))
        rows = ({dataset.local_columns.get(name, name): value for name, value in row.items()} for row in rows)
    else:
        rows = _public_rows(dataset) if dataset.address else _hub_rows(dataset)
    where = ", ".join(map(str, files)) or dataset.hub_id or dataset.address
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
    expected = dataset.count if files else dataset.hub_count or dataset.count
    remedy = f"restore the file, or set QUAGMIRE_DATA_DIR to a folder with {dataset.files[0]}" if dataset.files else ""
    if not problems or expected not in (None, len(problems), len(problems) + left_out):
        reason = f"{where} has {len(problems)} problems, expected {expected or 'some'}; {remedy or 'correct count'}"
        raise ParameterError(dataset.name, len(problems), reason=reason)
    if files and dataset.digest is not None and digest(problems) != dataset.digest:
        reason = f"{where} has the expected {len(problems)} problems with changed text; {remedy}"
        raise ParameterError(dataset.name, digest(problems), reason=reason)
    return problems


def _read(path: Path) -> Iterator[Row]:
    if not path.name.endswith((".jsonl", ".csv")):
        raise ParameterError("files", str(path), "a .jsonl or .csv file")
    return (row for _, row in (read_csv if path.suffix == ".csv" else read_jsonl)(path))


def _public_rows(dataset: Dataset) -> list[Row]:
    """Return the rows of the file at a dataset's address. Raises ParameterError if it cannot be downloaded or read."""
    address = dataset.address
    kept = CACHE / f"{dataset.name}-{short_digest(address)[:8]}{Path(urlsplit(address).path).suffix}"
    try:
        if not kept.is_file():
            raw = address.replace("https://github.com/", "https://raw.githubusercontent.com/").replace("/blob/", "/", 1)
            with urllib.request.urlopen(raw, timeout=20.0) as answer, atomic_path(kept) as scratch:
                scratch.write_bytes(answer.read())
        return _parsed(kept)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        local = f"; set QUAGMIRE_DATA_DIR to a folder with {dataset.files[0]}" if dataset.files else ""
        reason = f"no rows from {address} ({error}){local}"
        raise ParameterError(dataset.name, address, reason=reason) from error


def _parsed(path: Path) -> list[Row]:
    """Return the rows of a JSON list (bare, or as "examples"), of JSON lines, or of the problems of ASDiv's XML."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".xml":
        problems = ElementTree.fromstring(text).iter("Problem")
        return [{**problem.attrib, **{part.tag: part.text or "" for part in problem}} for problem in problems]
    if path.suffix == ".jsonl" or text.count("\n{") > 1:
        return [parse_json(line) for line in text.splitlines() if line.strip()]
    found = parse_json(text)
    return found["examples"] if isinstance(found, dict) else found


def _hub_rows(dataset: Dataset) -> Iterable[Row]:
    """Return all rows of the pinned revision, from the cache of `datasets` or from the hub."""
    if not dataset.revision:
        message = f"benchmark {dataset.name}: no revision pins {dataset.hub_id}, so its rows may change"
        warnings.warn(message, stacklevel=4)
    files = {"data_files": list(dataset.hub_files)} if dataset.hub_files else {}
    try:
        import datasets
        from huggingface_hub import HfApi, constants

        if not constants.HF_HUB_OFFLINE:  # offline mode answers at once, from the cache
            HfApi().dataset_info(dataset.hub_id, revision=dataset.revision, timeout=HUB_TIMEOUT)
        split = dataset.split or "train"
        parts = [
            datasets.load_dataset(dataset.hub_id, config, split=split, revision=dataset.revision, **files)
            for config in dataset.configs or (None,)
        ]
    except Exception as error:  # the hub's client raises many kinds, from three libraries
        raise unreachable(dataset, error) from error
    return (row for part in parts for row in part)


def unreachable(dataset: Dataset, error: Exception) -> ParameterError:
    """Build the error for a hub that gave no answer."""
    reason = (str(error).strip() or type(error).__name__).split("\n")[0]
    local = f"set QUAGMIRE_DATA_DIR to a folder with {dataset.files[0]}" if dataset.files else "name local files"
    sentence = f"its hub {dataset.hub_id} gave no answer ({reason}); {local}, or allow access to the hub"
    return ParameterError(dataset.name, dataset.hub_id, reason=f"{sentence} (HF_HUB_OFFLINE=1 reads its cache alone)")


def _load_file(path: Path) -> list[Problem]:
    problems = []
    for number, row in read_jsonl(path):
        try:
            for column in ("id", "question"):
                if row.get(column) is None or str(row[column]).strip() == "":
                    raise ValueError(f"it has no {column!r}")
            grader = row.get("grader") or "math"
            if grader not in INSTRUCTIONS:  # a file of data names no code to import
                known = ", ".join(INSTRUCTIONS)
                raise ValueError(f"its grader {grader!r} is not one of {known}; name your own in a .yaml file")
            problems.append(make_problem(str(row["id"]), grader, row))
        except ValueError as error:
            raise ParameterError(str(path), reason=f"line {number}: {error}") from error
    if not problems:
        raise ParameterError(str(path), reason="it has no problems")
    check_ids(problems, str(path))
    return problems
