"""Reading problems and traces from a local mirror, a file, or the hub, checked as they are read."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from numbers import Integral
from pathlib import Path

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT
from quagmire_utils.data.domains import domain_problem
from quagmire_utils.data.golds import _plain_number
from quagmire_utils.data.problems import Benchmark, Problem, Row, Trace
from quagmire_utils.data.recipes import RECIPES, Recipe, read_recipe, recipe_problem
from quagmire_utils.data.table import BENCHMARKS, TRAINING_SETS
from quagmire_utils.grading.registry import GRADERS

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_HUB_TIMEOUT = 5.0  # seconds until an unreachable hub is reported; the hub library alone would retry for half a minute


def load_benchmark(name: str | Path, *, data_dir: str | Path | None = None, limit: int | None = None) -> list[Problem]:
    """The problems of a benchmark, in its own order; the first `limit` of them where that is given.

    `name` is one of `benchmark_names()`, the path of a .yaml file that says where a benchmark is and how it is graded
    (`recipes`), or the path of a .jsonl file with the columns id, question, answer and, optionally, tolerance and
    grader (for the further columns of other domains see `domains`). Raises ParameterError for an unknown name, for a
    mirror whose rows are not the expected ones, and where neither a mirror nor the hub has the benchmark.
    """
    _check_limit(limit)
    if str(name) in BENCHMARKS:
        return _load(BENCHMARKS[str(name)], data_dir)[:limit]
    if str(name).endswith(".jsonl"):
        return _load_problem_file(Path(name))[:limit]
    shipped = RECIPES / f"{name}.yaml"
    if str(name) in benchmark_names():
        return _load_recipe(read_recipe(shipped), data_dir)[:limit]
    if str(name).endswith((".yaml", ".yml")):
        return _load_recipe(read_recipe(Path(name)), data_dir)[:limit]
    raise ParameterError(
        f"unknown benchmark {str(name)!r}: it is one of {', '.join(benchmark_names())}, or the path of a .jsonl or "
        ".yaml file"
    )


def benchmark_names() -> list[str]:
    """The paper's seven, then the benchmarks of other domains that a file of `catalogue/` describes."""
    return [*BENCHMARKS, *sorted(path.stem for path in RECIPES.glob("*.yaml"))]


def load_training_problems(name: str, *, data_dir: str | Path | None = None, limit: int | None = None) -> list[Problem]:
    """The problems of `gsm8k_train` or `math_train`, or of a file as for `load_benchmark`.

    Rows without an answer are left out.
    """
    _check_limit(limit)
    if str(name).endswith((".jsonl", ".yaml", ".yml")):
        return load_benchmark(name, data_dir=data_dir, limit=limit)
    if name not in TRAINING_SETS:
        raise ParameterError(f"unknown training set {name!r}: it is one of {', '.join(TRAINING_SETS)}")
    return _load(TRAINING_SETS[name], data_dir)[:limit]


def digest(problems: Iterable[Problem]) -> str:
    """sha256 over the problems' ids, questions, answers and tolerances, in order: what a mirror is checked against."""
    sha = hashlib.sha256()
    for problem in problems:
        row = [problem.id, problem.question, problem.answer, problem.tolerance]
        if problem.grader != "math" or problem.instruction is not None:
            row += [problem.grader, problem.instruction]
        sha.update(json.dumps(row, ensure_ascii=True).encode() + b"\n")
    return sha.hexdigest()


def load_traces(path: str | Path) -> list[Trace]:
    """Traces from a .jsonl file with the fields of Trace as columns. A bad row is a ParameterError with its line."""
    path = Path(path)
    known = {field.name for field in fields(Trace)}
    required = ("id", "problem_id", "question", "response")
    traces = []
    for number, row in _read_jsonl(path):
        missing = [column for column in required if row.get(column) in (None, "")]
        unknown = sorted(set(row) - known)
        if missing or unknown:
            what = f"has no {missing[0]!r}" if missing else f"has the unknown column {unknown[0]!r}"
            raise ParameterError(f"traces {path}: line {number} {what}")
        traces.append(Trace(**{column: str(value) for column, value in row.items() if value is not None}))
    _check_ids(traces, f"traces {path}")
    return traces


def save_traces(path: str | Path, traces: Iterable[Trace]) -> None:
    """Write traces as .jsonl, atomically: a reader sees the old file or the new one.

    Raises ParameterError for a trace that `load_traces` would refuse because of half a character.
    """
    from quagmire_utils.core.files import write_text

    lines = [json.dumps(asdict(trace)) for trace in traces]
    for number, line in enumerate(lines, start=1):
        _read_row(line, f"traces {path}: line {number}")
    write_text("".join(line + "\n" for line in lines), path)


def _load(benchmark: Benchmark, data_dir: str | Path | None) -> list[Problem]:
    folder = mirror_folder(data_dir)
    path = folder / benchmark.file if folder else None
    if path is None or not path.is_file():
        if not benchmark.hub_id:
            raise ParameterError(_missing(benchmark, path, "it has no hub of its own"))
        problems = _to_problems(benchmark, enumerate(_hub_rows(benchmark, path)), benchmark.hub_id)
        if len(problems) != benchmark.hub_count:
            raise ParameterError(
                f"benchmark {benchmark.name}: {benchmark.hub_id} has {len(problems)} problems, "
                f"expected {benchmark.hub_count}; set QUAGMIRE_DATA_DIR to a folder with {benchmark.file}"
            )
        return problems
    rows = _read_csv(path) if path.suffix == ".csv" else (row for _, row in _read_jsonl(path))
    problems = _to_problems(benchmark, enumerate(rows), str(path))
    found = digest(problems)
    if len(problems) != benchmark.count or found != benchmark.digest:
        what = f"{len(problems)} problems, expected {benchmark.count}"
        if len(problems) == benchmark.count:
            what = f"the expected {benchmark.count} problems with changed text (digest {found[:12]})"
        raise ParameterError(
            f"benchmark {benchmark.name}: {path} has {what}; restore the file, or set QUAGMIRE_DATA_DIR to a folder "
            "without it to read the hub"
        )
    return problems


def _to_problems(benchmark: Benchmark, rows: Iterable[tuple[int, Row]], source: str) -> list[Problem]:
    problems = []
    for index, row in rows:
        try:
            question = next(row[column] for column in benchmark.question_columns if row.get(column))
            if row.get("context"):  # OlympiadBench: shared premises of several questions
                question = f"{row['context'].strip()}\n\n{question}"
            gold = benchmark.gold(row)
            raw_id = str(index if benchmark.id_column is None else row[benchmark.id_column])
        except (KeyError, StopIteration, TypeError, ValueError, AttributeError) as error:
            raise ParameterError(
                f"benchmark {benchmark.name}: row {index + 1} of {source} lacks the columns of {benchmark.title} "
                f"({error!r}); restore the file, or set QUAGMIRE_DATA_DIR to a folder without it to read the hub"
            ) from error
        if gold is not None:
            raw_id = raw_id.removeprefix(f"{benchmark.split}/").removesuffix(".json")
            problems.append(Problem(f"{benchmark.name}/{raw_id}", question.strip(), *gold))
    _check_ids(problems, f"benchmark {benchmark.name}: {source}")
    return problems


def _load_problem_file(path: Path) -> list[Problem]:
    problems = []
    for number, row in _read_jsonl(path):
        grader = row.get("grader") or "math"
        for column in ("id", "question", "answer"):
            if column == "answer" and grader != "math":
                continue
            if row.get(column) is None or str(row[column]).strip() == "":
                raise ParameterError(f"benchmark {path}: line {number} has no {column!r}")
        if not isinstance(row["question"], str):
            raise ParameterError(f"benchmark {path}: line {number} has a question that is no text")
        if grader != "math":
            if grader not in GRADERS:  # a file of data names no code to import
                known = ", ".join(["math", *GRADERS])
                raise ParameterError(
                    f"benchmark {path}: line {number} has the grader {grader!r}, not one of {known}; "
                    "a grader of your own is named in a YAML file"
                )
            try:
                problems.append(domain_problem(str(row["id"]), grader, row))
            except ValueError as error:
                raise ParameterError(f"benchmark {path}: line {number}: {error}") from error
            continue
        answer = row["answer"]
        if isinstance(answer, bool) or not isinstance(answer, str | int | float) or answer in (math.inf, -math.inf):
            raise ParameterError(f"benchmark {path}: line {number} has the answer {answer!r}, not text or a number")
        if answer != answer:
            raise ParameterError(f"benchmark {path}: line {number} has the answer NaN, not text or a number")
        tolerance = row.get("tolerance")
        if tolerance is not None and not (
            isinstance(tolerance, int | float) and math.isfinite(tolerance) and tolerance >= 0
        ):
            raise ParameterError(f"benchmark {path}: line {number} has the tolerance {tolerance!r}, not a number >= 0")
        tolerance = None if tolerance is None else float(tolerance)
        problems.append(Problem(str(row["id"]), str(row["question"]), _plain_number(row["answer"]), tolerance))
    if not problems:
        raise ParameterError(f"benchmark {path} has no problems")
    _check_ids(problems, f"benchmark {path}")
    return problems


def _load_recipe(recipe: Recipe, data_dir: str | Path | None) -> list[Problem]:
    folder = mirror_folder(data_dir)
    beside = recipe.path.parent / recipe.file if recipe.file else None
    path = beside if beside and beside.is_file() else folder / recipe.file if folder and recipe.file else beside
    if path is not None and path.is_file():
        rows: Iterable[Row] = _read_csv(path) if path.suffix == ".csv" else (row for _, row in _read_jsonl(path))
        source = str(path)
    elif recipe.hub_id:
        rows, source = _hub_rows(recipe, path), recipe.hub_id
        if not recipe.revision:
            message = f"benchmark {recipe.name}: no revision pins {recipe.hub_id}, so its rows may change"
            warnings.warn(message, stacklevel=3)
    else:
        where = f"beside {recipe.path} or in a mirror (QUAGMIRE_DATA_DIR)"
        raise ParameterError(f"benchmark {recipe.name}: there is no {recipe.file} {where}, and it names no hub_id")
    problems = []
    for index, row in enumerate(rows):
        try:
            problems.append(recipe_problem(recipe, index, row))
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise ParameterError(f"benchmark {recipe.name}: row {index + 1} of {source}: {_said(error)}") from error
    if recipe.count is not None and len(problems) != recipe.count:
        raise ParameterError(f"benchmark {recipe.name}: {source} has {len(problems)} problems, expected {recipe.count}")
    if not problems:
        raise ParameterError(f"benchmark {recipe.name}: {source} has no problems")
    _check_ids(problems, f"benchmark {recipe.name}: {source}")
    return problems


def _said(error: Exception) -> str:
    return str(error) if type(error) is ValueError else repr(error)  # ours are sentences


def mirror_folder(data_dir: str | Path | None) -> Path | None:
    """The mirror's folder, or None where there is none; a folder that was asked for must exist."""
    for name, value in (("data_dir", data_dir), ("QUAGMIRE_DATA_DIR", os.environ.get("QUAGMIRE_DATA_DIR"))):
        if value:
            folder = Path(value).expanduser()
            if not folder.is_dir():
                raise ParameterError(f"{name}={value} is not a folder")
            return folder
    beside = ROOT.parent / "shared" / "data"
    return beside if beside.is_dir() else None


def _hub_rows(benchmark: Benchmark | Recipe, path: Path | None) -> Iterable[Row]:
    try:
        import datasets
        from huggingface_hub import HfApi, constants

        if not constants.HF_HUB_OFFLINE:  # offline mode answers at once, from the cache
            HfApi().dataset_info(benchmark.hub_id, revision=benchmark.revision, timeout=_HUB_TIMEOUT)
        return datasets.load_dataset(
            benchmark.hub_id, benchmark.config, split=benchmark.split, revision=benchmark.revision
        )
    except Exception as error:  # the hub's client raises many kinds, from three libraries
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ParameterError(
            _missing(benchmark, path, f"its hub {benchmark.hub_id} gave no answer ({reason})")
        ) from error


def _missing(benchmark: Benchmark | Recipe, path: Path | None, hub: str) -> str:
    mirror = f"there is no {path}" if path else "there is no local mirror"
    return (
        f"benchmark {benchmark.name}: {mirror} and {hub}; set QUAGMIRE_DATA_DIR to a folder with "
        f"{benchmark.file or 'its file, named in its recipe'}"
        + (", or allow access to the hub (HF_HUB_OFFLINE=1 reads its cache alone)" if benchmark.hub_id else "")
    )


def _read_csv(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ParameterError(f"{path} cannot be read as CSV in UTF-8: {error}") from error


def _read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number, row) of each line that is not blank."""
    try:
        with path.open(encoding="utf-8-sig") as file:  # with or without a byte order mark
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _read_row(line, f"{path}: line {number}")
    except OSError as error:
        raise ParameterError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ParameterError(f"{path} is not JSON lines in UTF-8: {error}") from error


def _read_row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # also a number of too many digits, and too many brackets
        reason = str(error).split(";")[0]
        raise ParameterError(f"{where} is not JSON, so the file is not JSON lines ({reason})") from error
    if not isinstance(row, dict):
        raise ParameterError(f"{where} is not a JSON object")
    for column, value in row.items():
        if isinstance(value, str) and _LONE_SURROGATE.search(value):
            raise ParameterError(
                f"{where} has half of a character (a lone surrogate) in {column!r}: no tokenizer reads it"
            )
    return row


def _check_limit(limit: int | None) -> None:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, Integral) or limit < 1):
        raise ParameterError(f"limit must be a whole number of at least 1, or None, not {limit!r}")


def _check_ids(rows: Iterable[Problem | Trace], source: str) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise ParameterError(f"{source} has the id {row.id!r} twice")
        seen.add(row.id)
