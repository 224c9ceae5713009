"""Can the verdicts be believed? Every graded sample put before the second grader, and the score with its bounds.

    audit(SampleStore("samples/mine"), {"math500": load_benchmark("math500")})  # what the two graders disagree on
    score_bounds(store.counts())  # the score, undecided as wrong, as right
    grade_store(store, problems, grader.grade, regrade=True)  # of `sampling`: verdicts anew, no GPU

From a shell: `python -m quagmire_utils.grading score|audit|regrade STORE`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.grading.graders import MATH
from quagmire_utils.grading.second import second_grade
from quagmire_utils.grading.verdicts import Grade, Verdict

if TYPE_CHECKING:
    import pandas as pd

    from quagmire_utils.data import Problem
    from quagmire_utils.evaluation.store import SampleStore

AUDIT_COLUMNS = [
    "kind", "benchmark", "problem", "index", "samples", "gold", "verdict", "extracted", "second_verdict",
    "second_extracted", "ending",
]  # fmt: skip
KINDS = ("only the first says correct", "only the second says correct", "the first is undecided")
UNDECIDED = (Verdict.TIMEOUT, Verdict.ERROR)
_NEEDED = ["benchmark", "problem", "index", "text", "verdict", "extracted"]
_ENDING = 200  # characters of the response that are shown


def audit(
    store_or_frames: SampleStore | pd.DataFrame | Iterable[pd.DataFrame],
    problems: Mapping[str, Sequence[Problem]] | Sequence[Problem],
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """The graded samples that the second grader judges otherwise, one row per distinct disagreement.

    `store_or_frames`: a store, or frames with the columns benchmark, problem, index, text, verdict, extracted (of one
    benchmark: without that column, if `problems` is one list). `problems`: as for `sampling.grade_store`, by benchmark.
    Samples without a verdict, or of other problems, are passed over; so are those of other graders than math, as the
    second grader reads mathematics alone: a letter is compared letter by letter, and a program is really run. A store
    is read one part at a time. `progress`: a bar on stderr once it has lasted ten seconds.

    Columns: kind (of `KINDS`, in this order: where only the first grader says correct, it may be a false positive;
    there the second may also be ERROR, unable to tell), benchmark, problem, index (of the first such sample), samples
    (how many are alike), gold, verdict and extracted (math-verify's), second_verdict and second_extracted, ending (the
    last 200 characters of the response). `attrs` hold `samples` (judged), `passed_over` (of other graders, if any),
    `disagreements` (samples, not rows), `undecided` (samples that are not listed, although the second grader can't
    tell: the first can't either, or says wrong) and `agreement` (a share of the samples without the undecided; NaN if
    there are no others). Raises ParameterError for missing columns.
    """
    import pandas as pd

    by_name = problems if isinstance(problems, Mapping) else {"": problems}
    known = {(name, problem.id): problem for name, listed in by_name.items() for problem in listed}
    rows: dict[tuple[str, ...], dict[str, object]] = {}
    judged = disagreements = undecided = passed_over = 0
    for frame in _frames(store_or_frames, by_name, progress):
        for benchmark, name, index, text, verdict, extracted in frame.itertuples(index=False, name=None):
            problem = known.get((benchmark, name))
            if problem is None or not isinstance(verdict, str):
                continue
            if getattr(problem, "grader", MATH) != MATH:
                passed_over += 1
                continue
            judged += 1
            second = second_grade(text, problem)
            kind = _kind(Verdict(verdict), second.verdict)
            if kind is None:
                undecided += second.verdict in UNDECIDED
                continue
            disagreements += 1
            extracted = extracted if isinstance(extracted, str) else ""
            key = (KINDS[kind], benchmark, name, verdict, extracted, second.verdict.value, second.extracted)
            row = rows.setdefault(
                key, {"index": index, "samples": 0, "gold": problem.answer, "ending": text[-_ENDING:]}
            )
            row["samples"] += 1
    names = ["kind", "benchmark", "problem", "verdict", "extracted", "second_verdict", "second_extracted"]
    table = pd.DataFrame([dict(zip(names, key, strict=True)) | row for key, row in rows.items()], columns=AUDIT_COLUMNS)
    order = table["kind"].map({kind: i for i, kind in enumerate(KINDS)})
    table = table.assign(order=order).sort_values(["order", "samples"], ascending=[True, False], kind="stable")
    table = table.drop(columns="order").reset_index(drop=True)
    table.attrs = {
        "samples": judged,
        "disagreements": disagreements,
        "undecided": undecided,
        "agreement": 1 - disagreements / (judged - undecided) if judged > undecided else float("nan"),
    }
    if passed_over:
        table.attrs["passed_over"] = passed_over
    return table


def _frames(
    source: SampleStore | pd.DataFrame | Iterable[pd.DataFrame],
    problems: Mapping[str, Sequence[Problem]],
    progress: bool,
) -> Iterator[pd.DataFrame]:
    from tqdm import tqdm

    if hasattr(source, "read_part"):
        for part in tqdm(source.parts(), desc="audit", unit="part", delay=10, leave=False, disable=not progress):
            frame = source.read_part(part, _NEEDED)
            if frame is not None:
                yield frame[_NEEDED]
        return
    for frame in [source] if hasattr(source, "columns") else source:
        if "benchmark" not in frame.columns and list(problems) == [""]:
            frame = frame.assign(benchmark="")
        missing = [name for name in _NEEDED if name not in frame.columns]
        if missing:
            raise ParameterError(f"the samples to audit lack the columns {', '.join(missing)}")
        yield frame[_NEEDED]


def _kind(first: Verdict, second: Verdict) -> int | None:
    """Which disagreement it is, if it is one: an index of KINDS."""
    if first == Verdict.CORRECT:
        return None if second == Verdict.CORRECT else 0
    if first in UNDECIDED:
        return None if second in UNDECIDED else 2
    return 1 if second == Verdict.CORRECT else None


def bounds(verdicts: Iterable[Verdict | str | Grade]) -> tuple[float, float]:
    """The share of correct answers if every undecided one (timeout, error) is wrong, and if every one is right.

    Raises ParameterError for no verdicts at all.
    """
    values = [Verdict(item.verdict if isinstance(item, Grade) else item) for item in verdicts]
    if not values:
        raise ParameterError("verdicts is empty, so there is no score")
    correct, undecided = values.count(Verdict.CORRECT), sum(value in UNDECIDED for value in values)
    return correct / len(values), (correct + undecided) / len(values)


def score_bounds(counts: pd.DataFrame) -> pd.DataFrame:
    """The score of each benchmark and its bounds, from counts as `SampleStore.counts` gives them.

    One row per benchmark and a last one, "average", that weighs benchmarks alike (Sec. 4.1). Columns: benchmark,
    problems, samples, low (mean over problems of the share of correct answers; undecided ones count as wrong, which is
    the score that Pass@1 shows), high (undecided ones as right), undecided (share of samples). Problems without a
    graded sample are left out. Raises ParameterError for missing columns, or no graded sample.
    """
    import pandas as pd

    needed = ["benchmark", "problem", "n", "correct", *map(str, UNDECIDED)]
    missing = [name for name in needed if name not in counts.columns]
    if missing:
        raise ParameterError(f"counts lacks the columns {', '.join(missing)}")
    counts = counts[counts["n"] > 0]
    if counts.empty:
        raise ParameterError("counts has no graded samples, so there is no score")
    undecided = counts[[str(verdict) for verdict in UNDECIDED]].sum(axis=1)
    each = counts[["benchmark"]].assign(
        problems=1,
        samples=counts["n"],
        low=counts["correct"] / counts["n"],
        high=(counts["correct"] + undecided) / counts["n"],
        undecided=undecided,
    )
    how = {"problems": "sum", "samples": "sum", "low": "mean", "high": "mean", "undecided": "sum"}
    table = each.groupby("benchmark", sort=False, observed=True).agg(how).reset_index()
    table["undecided"] /= table["samples"]
    average = {
        "benchmark": "average",
        "problems": table["problems"].sum(),
        "samples": table["samples"].sum(),
        **table[["low", "high", "undecided"]].mean().to_dict(),
    }
    return pd.concat([table, pd.DataFrame([average])], ignore_index=True)
