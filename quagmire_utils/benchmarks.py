"""Benchmarks and training sets: the paper's seven mathematics benchmarks as `Problem` rows.

Implements the evaluation sets of Sec. 4 and App. B: MATH-500, AIME 1983-2024, GSM8K (test), AIME 2025, AMC,
OlympiadBench (maths, English, open-ended, text only) and Minerva. None is shipped; each is read from a local mirror or
else from its hub.

    problems = load_benchmark("math500")            # one of BENCHMARKS, in the paper's order
    problems = load_benchmark("my_problems.jsonl")  # any file with the columns id, question, answer (and tolerance)

A mirror is a folder with `benchmarks/` and `train/`: `data_dir`, else `$QUAGMIRE_DATA_DIR`, else `../shared/data`
beside the repo. Its rows are checked against a count and a digest. Rows from the hub are pinned by commit (the hashes
below are those that published evaluations cite for each dataset) and checked against a count.

Gold answers are those that the hubs publish, reduced to bare LaTeX (no `$`, no prose), so that math-verify reads them
inside `\\boxed{...}`, which is how a grader should hand them over: outside it, `1,3,5` parses as the number 1.3.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from quagmire_utils.config import ParameterError

Row = Mapping[str, Any]
Gold = tuple[str, float | None]  # answer, absolute tolerance

_REPO = Path(__file__).resolve().parent.parent
_HUB_TIMEOUT = 5.0  # seconds until an unreachable hub is reported; the hub library alone would retry for half a minute


@dataclass(frozen=True)
class Problem:
    """A question and its gold answer in bare LaTeX (several: comma-separated); `tolerance` is absolute, inclusive."""

    id: str
    question: str
    answer: str
    tolerance: float | None = None


@dataclass(frozen=True)
class Trace:
    """A worked solution, for SFT or for held-out loss. `source` names the dataset or model that wrote it."""

    id: str
    problem_id: str
    question: str
    response: str
    answer: str = ""
    source: str = ""


@dataclass(frozen=True)
class Benchmark:
    """Where a set of problems comes from and how its rows are read."""

    name: str
    title: str
    count: int  # problems in the mirror
    hub_count: int  # problems at the pinned hub revision
    hub_id: str  # "" where the set is read from a mirror only
    config: str | None
    split: str
    revision: str  # commit of the hub's repository
    file: str  # inside a mirror
    id_column: str | None  # None: the row's number
    question_columns: tuple[str, ...]  # the first that a row has (mirrors and hubs name it differently)
    gold: Callable[[Row], Gold | None]  # None: a row without an answer, left out
    licence: str
    digest: str  # of the mirror's problems, see `digest`


# ---------------------------------------------------------------------------------------------------------------- golds


def last_boxed(text: str) -> str | None:
    """The content of the last complete `\\boxed{...}` in a text, braces balanced; None where there is none."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            if text[end - 1] == "\\" and text[end] in "{}":
                continue  # an escaped brace, as in a set
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start:end].strip()
    return None


def _plain_number(value: object) -> str:
    """`142.0` -> `142`; text is kept as it is."""
    if isinstance(value, float):
        # never 1e-07, which a grader reads as e - 7
        return str(int(value)) if value.is_integer() else format(Decimal(repr(value)), "f")
    return str(value).strip()


# Golds that math-verify misreads, where it reads the same answer in another spelling as meant.
_READABLE = {
    "m_{\\max }=n^{2}-n-1": "n^{2}-n-1",  # not read at all
    "t(0,4]": "(0,4]",  # not read at all: t is the unknown, and the element sign was lost
    (
        "f(x)=a x+b, where b is an arbitrary integer, and a is an arbitrary positive integer with \\mho(a)=0"
    ): "f(x)=a x+b",  # read as 0
    "\\frac{1}{m} t": "\\frac{t}{m}",  # read as 1/m: the t is taken for tons
    "\\frac{1}{\\sqrt{2}}c": "\\frac{c}{\\sqrt{2}}",  # read as 1/sqrt(2): the c is taken for a unit
    "\\approx 8.24 \\text{ mph}": "8.24",
    "2007 + \\frac\\pi 2": "2007 + \\frac{\\pi}{2}",
}


def _reduce(answer: str) -> str:
    """A published answer without dollar signs, thousands separators and the full stop of its sentence."""
    answer = answer.replace("\\$", "").replace("$", "").strip().rstrip(".,; ")
    answer = re.sub(r"(?<=\d),\\!\s*(?=\d{3})", "", answer)
    answer = re.sub(r"(?<!\\)%", r"\\%", answer)  # a bare % starts a LaTeX comment
    return _READABLE.get(answer, answer)


def _answer_gold(row: Row) -> Gold | None:
    answer = row["answer"]
    if answer is None or str(answer).strip() == "":
        return None
    return _reduce(_plain_number(answer)), None


def _aime_gold(row: Row) -> Gold:
    # One problem counts two neighbouring integers as right: "080 or 081 (both were accepted)". AIME answers are
    # integers, so their midpoint with a tolerance of a half accepts exactly these two.
    both = re.fullmatch(r"(\d+) or (\d+) \(both were accepted\)", row["Answer"].strip())
    if both:
        low, high = int(both[1]), int(both[2])
        return str((low + high) / 2), (high - low) / 2
    return row["Answer"].strip(), None


def _gsm8k_gold(row: Row) -> Gold:
    _, mark, answer = row["answer"].rpartition("####")
    if not mark:
        raise ValueError("an answer without ####")
    return answer.strip().replace(",", ""), None


def _minerva_gold(row: Row) -> Gold:
    # A mirror holds the solution with its boxed answer, the hub's own column holds the answer alone.
    text = row.get("solution") or row["answer"]
    answer = last_boxed(text) or text
    # Some golds are Python rather than LaTeX: 4.5e33 would read as 4.5*e*33, "-1./3" not at all.
    answer = re.sub(r"(?<![\w.])(\d+\.?\d*)e([+-]?\d+)", lambda m: f"{m[1]} \\times 10^{{{int(m[2])}}}", answer)
    return _reduce(re.sub(r"(\d)\./", r"\1/", answer).replace("np.arcsin", "\\arcsin")), None


def _olympiad_gold(row: Row) -> Gold:
    answers = [row["final_answer"]] if isinstance(row["final_answer"], str) else row["final_answer"]
    error = row.get("error")
    return _reduce(",".join(answers)), (float(error) if error not in (None, "") else None)


# ---------------------------------------------------------------------------------------------------------------- table

_MIT, _APACHE, _MAA = "MIT", "Apache-2.0", "problems (c) Mathematical Association of America"

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="math500",
            title="MATH-500",
            count=500,
            hub_count=500,
            hub_id="HuggingFaceH4/MATH-500",
            config=None,
            split="test",
            revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
            file="benchmarks/math500.jsonl",
            id_column="unique_id",
            question_columns=("problem",),
            gold=_answer_gold,
            licence=_MIT,
            digest="8ab6ccc566c5c36a0b597a3504ed1c63245f487447f4ac479a4dd788df879d78",
        ),
        Benchmark(
            name="aime",
            title="AIME 1983-2024",
            count=933,
            hub_count=933,
            hub_id="gneubig/aime-1983-2024",  # the hub's copy of the Kaggle set that the paper cites
            config=None,
            split="train",
            revision="5d610df981dec508dd93d0a16333a029ac1739d8",
            file="benchmarks/aime_1983_2024.csv",
            id_column="ID",
            question_columns=("Question",),
            gold=_aime_gold,
            licence=_MAA,
            digest="ae4770b30554d2ca61ebae99598810eb6f811c64fadc032d4ddcf72fe8541f6b",
        ),
        Benchmark(
            name="gsm8k",
            title="GSM8K",
            count=1319,
            hub_count=1319,
            hub_id="openai/gsm8k",
            config="main",
            split="test",
            revision="740312add88f781978c0658806c59bc2815b9866",
            file="benchmarks/gsm8k.jsonl",
            id_column=None,
            question_columns=("question",),
            gold=_gsm8k_gold,
            licence=_MIT,
            digest="935f3a45547dcec03883d678aeffe273575da5d515a6a9cde212ed62d6acebe3",
        ),
        Benchmark(
            name="aime2025",
            title="AIME 2025",
            count=30,
            hub_count=30,
            hub_id="yentinglin/aime_2025",
            config=None,
            split="train",
            revision="6f71d77b0b89b9dabe07ab466c51df33f514df7f",
            file="benchmarks/aime_2025.jsonl",
            id_column="id",
            question_columns=("question", "problem"),
            gold=_answer_gold,
            licence=_MAA,
            digest="21595621ae89f43f541e10be0ee88dfc87005bdc3808a784e8cfcd15fbcc1833",
        ),
        Benchmark(
            name="amc",
            title="AMC",
            count=83,
            hub_count=83,
            hub_id="AI-MO/aimo-validation-amc",
            config=None,
            split="train",
            revision="69d78a4a2c840e82d69af6bc742bda09005f6316",
            file="benchmarks/amc.jsonl",
            id_column="id",
            question_columns=("problem",),
            gold=_answer_gold,
            licence=_MAA,
            digest="7691600884b728bb71eed9fdb883cb45b5963a136eb6a428f9283e9b12793862",
        ),
        Benchmark(
            name="olympiad",
            title="OlympiadBench",
            count=675,  # of the copy that evaluation suites pass around; the hub has one problem fewer
            hub_count=674,
            hub_id="Hothan/OlympiadBench",
            config="OE_TO_maths_en_COMP",
            split="train",
            revision="91184b52131e7fc9455fef848035173aea8cc01a",
            file="benchmarks/olympiad.jsonl",
            id_column="id",
            question_columns=("question",),
            gold=_olympiad_gold,
            licence=_APACHE,
            digest="218e0a42548947aa2081dc0f5c6793a9361685a1d3e953cf59aa5ffd6e8faa41",
        ),
        Benchmark(
            name="minerva",
            title="Minerva",
            count=272,
            hub_count=272,
            hub_id="math-ai/minervamath",
            config=None,
            split="test",
            revision="ee46ddc498933b1977577953250ca5c66be64f96",
            file="benchmarks/minerva.jsonl",
            id_column=None,  # the hub has no id column; the mirror's is the row's number
            question_columns=("problem", "question"),
            gold=_minerva_gold,
            licence=_MIT,
            digest="ec7e9393ab16ec229abe0edcf34741312fad214cf0a3550050d59cc36ce1e191",
        ),
    )
}

TRAINING_SETS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="gsm8k_train",
            title="GSM8K (train)",
            count=7473,
            hub_count=7473,
            hub_id="openai/gsm8k",
            config="main",
            split="train",
            revision="740312add88f781978c0658806c59bc2815b9866",
            file="train/gsm8k_train.jsonl",
            id_column=None,
            question_columns=("question",),
            gold=_gsm8k_gold,
            licence=_MIT,
            digest="3e748a2e9eec4f1ed333ea81af67470331f69877936541ddee177676d54f4c0e",
        ),
        Benchmark(
            name="math_train",
            title="MATH (train)",
            count=7470,  # 7,474 rows, of which four have no answer
            hub_count=0,
            hub_id="",
            config=None,
            split="train",
            revision="",
            file="train/math_train.jsonl",
            id_column=None,
            question_columns=("problem",),
            gold=_answer_gold,
            licence=_MIT,
            digest="07234fe3171fbc4ca72f1bd7b637f1b7f3179daa0496d4a2187bbc6d7fedca14",
        ),
    )
}

# -------------------------------------------------------------------------------------------------------------- loading


def load_benchmark(name: str | Path, *, data_dir: str | Path | None = None, limit: int | None = None) -> list[Problem]:
    """The problems of a benchmark, in its own order; the first `limit` of them where that is given.

    `name` is a key of BENCHMARKS, or the path of a .jsonl file with the columns id, question, answer and, optionally,
    tolerance. Raises ParameterError for an unknown name, for a mirror whose rows are not the expected ones, and where
    neither a mirror nor the hub has the benchmark.
    """
    _check_limit(limit)
    if str(name) in BENCHMARKS:
        return _load(BENCHMARKS[str(name)], data_dir)[:limit]
    if str(name).endswith(".jsonl"):
        return _load_problem_file(Path(name))[:limit]
    raise ParameterError(
        f"unknown benchmark {str(name)!r}: it is one of {', '.join(BENCHMARKS)}, or the path of a .jsonl file"
    )


def load_training_problems(name: str, *, data_dir: str | Path | None = None, limit: int | None = None) -> list[Problem]:
    """The problems of `gsm8k_train` or `math_train`, as `load_benchmark`; rows without an answer are left out."""
    _check_limit(limit)
    if name not in TRAINING_SETS:
        raise ParameterError(f"unknown training set {name!r}: it is one of {', '.join(TRAINING_SETS)}")
    return _load(TRAINING_SETS[name], data_dir)[:limit]


def digest(problems: Iterable[Problem]) -> str:
    """sha256 over the problems' ids, questions, answers and tolerances, in order: what a mirror is checked against."""
    sha = hashlib.sha256()
    for problem in problems:
        row = [problem.id, problem.question, problem.answer, problem.tolerance]
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
    """Write traces as .jsonl, atomically: a reader sees the old file or the new one."""
    from quagmire_utils.store import write_text

    write_text("".join(json.dumps(asdict(trace)) + "\n" for trace in traces), path)


def _load(benchmark: Benchmark, data_dir: str | Path | None) -> list[Problem]:
    folder = _data_dir(data_dir)
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
        for column in ("id", "question", "answer"):
            if row.get(column) is None or str(row[column]).strip() == "":
                raise ParameterError(f"benchmark {path}: line {number} has no {column!r}")
        if not isinstance(row["question"], str):
            raise ParameterError(f"benchmark {path}: line {number} has a question that is no text")
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


def _data_dir(data_dir: str | Path | None) -> Path | None:
    """The mirror's folder, or None where there is none; a folder that was asked for must exist."""
    for name, value in (("data_dir", data_dir), ("QUAGMIRE_DATA_DIR", os.environ.get("QUAGMIRE_DATA_DIR"))):
        if value:
            folder = Path(value).expanduser()
            if not folder.is_dir():
                raise ParameterError(f"{name}={value} is not a folder")
            return folder
    beside = _REPO.parent / "shared" / "data"
    return beside if beside.is_dir() else None


def _hub_rows(benchmark: Benchmark, path: Path | None) -> Iterable[Row]:
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


def _missing(benchmark: Benchmark, path: Path | None, hub: str) -> str:
    mirror = f"there is no {path}" if path else "there is no local mirror"
    return (
        f"benchmark {benchmark.name}: {mirror} and {hub}; set QUAGMIRE_DATA_DIR to a folder with {benchmark.file}"
        + (", or allow access to the hub (HF_HUB_OFFLINE=1 reads its cache alone)" if benchmark.hub_id else "")
    )


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number, row) of each line that is not blank."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ParameterError(f"{path}: line {number} is not a JSON object")
                    yield number, row
    except OSError as error:
        raise ParameterError(f"cannot read {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path} is not JSON lines in UTF-8: {error}") from error


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise ParameterError(f"limit must be at least 1, not {limit}")


def _check_ids(rows: Iterable[Problem | Trace], source: str) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise ParameterError(f"{source} has the id {row.id!r} twice")
        seen.add(row.id)
