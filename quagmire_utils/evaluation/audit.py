"""Check verdicts on mathematics by a second grader: math-verify's own verdict, or `math` where that gave the first.

audit(responses, golds, grade(responses, golds))                                  # where the two graders disagree
audit_store(SampleStore("samples/mine"), {"math500": load_benchmark("math500")})  # the same for all stored answers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data.problems import Problem
from quagmire_utils.evaluation.marking import OPEN, opened
from quagmire_utils.grading import UNDECIDED, Grade, Verdict, grade
from quagmire_utils.grading.verdicts import MATH, MATH_VERIFY

if TYPE_CHECKING:
    from quagmire_utils.evaluation.store import SampleStore

AUDIT_KINDS = ("only the first grader says correct", "only the second grader says correct", "the first is undecided")
AUDIT_KINDS += ("neither could read it",)
_SECOND = {MATH: MATH_VERIFY, MATH_VERIFY: MATH}  # by the first grader
_ENDING = 200  # characters of a response that the audit shows

_READ = ["benchmark", "problem", "index", "text", "verdict", "extracted"]
_ALIKE = ["kind", "benchmark", "problem", "verdict", "extracted", "second_verdict", "second_extracted"]


def audit(responses: Sequence[str], golds: Sequence[str | Problem], grades: Sequence[Grade]) -> pd.DataFrame:
    """Grade responses a second time; return those on which the two graders disagree, or which neither could read.

    responses: n texts; golds: n answers in LaTeX (graded by `math`), or Problems (those of other graders are left out);
    grades: n, as `grade` returns them. Columns: index (of the response), kind (one of `AUDIT_KINDS`), gold, verdict,
    extracted, second_verdict, second_extracted, ending (the last 200 characters of the response).

    `attrs` has samples (judged by the second grader), disagreements, unread (rows of the last kind: the second grader
    cannot judge, and the first cannot either or says wrong), undecided (those, and others that only the second grader
    cannot judge), not_math (left out), either and both (samples that either grader and that both call correct), and
    agreement (both / either; NaN without any).
    """
    if not len(responses) == len(golds) == len(grades):
        raise ParameterError("grades", len(grades), f"as many as responses and golds ({len(responses)}, {len(golds)})")
    problems = [gold if isinstance(gold, Problem) else Problem("", "", gold) for gold in golds]
    asked = [index for index, problem in enumerate(problems) if problem.grader in _SECOND]
    second_golds = [replace(problems[index], grader=_SECOND[problems[index].grader]) for index in asked]
    seconds = grade([responses[index] for index in asked], second_golds)
    rows, undecided, either, both = [], 0, 0, 0
    for index, second in zip(asked, seconds, strict=True):
        first = grades[index]
        kind = _disagreement(first.verdict, second.verdict)
        right = (first.verdict == Verdict.CORRECT) + (second.verdict == Verdict.CORRECT)
        either, both = either + (right > 0), both + (right == 2)
        undecided += second.verdict in UNDECIDED and first.verdict != Verdict.CORRECT
        if kind is not None:
            said = (first.verdict.value, first.extracted, second.verdict.value, second.extracted)
            rows.append((index, kind, problems[index].answer, *said, responses[index][-_ENDING:]))
    columns = ["index", "kind", "gold", "verdict", "extracted", "second_verdict", "second_extracted", "ending"]
    table = pd.DataFrame(rows, columns=columns).astype({"index": int})
    table.attrs = {
        "samples": len(asked),
        "disagreements": int((table["kind"] != AUDIT_KINDS[3]).sum()),
        "unread": int((table["kind"] == AUDIT_KINDS[3]).sum()),
        "undecided": undecided,
        "not_math": len(problems) - len(asked),
        "either": either,
        "both": both,
        "agreement": both / either if either else float("nan"),
    }
    return table


def _disagreement(first: Verdict, second: Verdict) -> str | None:
    """Return the kind of row in an audit, or None where the graders agree."""
    if first == Verdict.CORRECT:
        return None if second == Verdict.CORRECT else AUDIT_KINDS[0]
    if second in UNDECIDED:
        return None if first == Verdict.NO_ANSWER else AUDIT_KINDS[3]
    if first in UNDECIDED:
        return AUDIT_KINDS[2]
    return AUDIT_KINDS[1] if second == Verdict.CORRECT else None


def audit_store(
    store: SampleStore, problems: Mapping[str, Sequence[Problem]], *, progress: bool = True
) -> pd.DataFrame:
    """Return one row per distinct disagreement of the two graders about the samples of a store.

    problems: each benchmark's, by its name. Samples of other problems or without a verdict are left out. The store is
    read one part at a time. progress: show a bar on stderr after ten seconds.

    Columns: those of `audit`, and benchmark, problem, index (of the first such sample), samples (how many are
    alike). Rows are sorted by kind, the most frequent first. `attrs` are those of `audit`, and
    unread_by_benchmark (how many answers neither grader could read, where there are any).
    """
    from tqdm import tqdm

    known = {(name, problem.id): problem for name, listed in problems.items() for problem in listed}
    tables, thinking = [audit([], [], [])], opened(store)
    for part in tqdm(store.parts(), desc="audit", unit="part", delay=10, leave=False, disable=not progress):
        frame = store.read_part(part, _READ)
        if frame is None:
            continue
        found = [known.get(key) for key in zip(frame["benchmark"], frame["problem"], strict=True)]
        frame = frame.assign(gold=pd.Series(found, dtype=object, index=frame.index)).dropna(subset=["gold", "verdict"])
        verdicts = zip(frame["verdict"], frame["extracted"].fillna(""), strict=True)
        grades = [Grade(Verdict(verdict), extracted) for verdict, extracted in verdicts]
        asked = zip(frame["benchmark"], frame["problem"], strict=True)
        texts = [OPEN * (key in thinking) + text for key, text in zip(asked, frame["text"], strict=True)]
        table = audit(texts, frame["gold"].tolist(), grades)
        keys = frame[["benchmark", "problem", "index"]].iloc[table["index"]].reset_index(drop=True)
        tables.append(table.assign(**keys))
    attrs = [table.attrs for table in tables]
    total = {name: sum(each[name] for each in attrs) for name in attrs[0] if name != "agreement"}
    total["agreement"] = total["both"] / total["either"] if total["either"] else float("nan")
    for table in tables:
        table.attrs = {}  # pandas compares them when it concatenates
    rows = pd.concat([table for table in tables if len(table)] or [tables[0].assign(benchmark=[], problem=[])])
    grouped = rows.sort_values(["benchmark", "problem", "index"]).groupby(_ALIKE, sort=False)
    listed = grouped[["index", "gold", "ending"]].first().assign(samples=grouped.size()).reset_index()
    listed["order"] = listed["kind"].map(AUDIT_KINDS.index)
    listed = listed.sort_values(["order", "samples"], ascending=[True, False], kind="stable").reset_index(drop=True)
    columns = [*_ALIKE[:3], "index", "samples", "gold", *_ALIKE[3:], "ending"]
    listed = listed[columns]
    unread = listed[listed["kind"] == AUDIT_KINDS[-1]].groupby("benchmark")["samples"].sum()
    listed.attrs = total | {"unread_by_benchmark": unread.to_dict()}
    return listed


def unread_shares(disagreements: pd.DataFrame, counts: pd.DataFrame) -> pd.Series:
    """Return the share of each benchmark's answers that neither grader could read; empty if there are none.

    disagreements: of `audit_store`. counts: of `SampleStore.counts`.
    """
    unread = pd.Series(disagreements.attrs["unread_by_benchmark"], dtype=float, name="unread")
    answers = counts.groupby("benchmark")["n"].sum()
    return (unread.reindex(answers.index).fillna(0) / answers).rename("unread") if len(unread) else unread
