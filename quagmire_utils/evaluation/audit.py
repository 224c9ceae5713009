"""Check the verdicts in a sample store: a second grader judges every answer.

audit_store(SampleStore("samples/mine"), {"math500": load_benchmark("math500")})  # where the two graders disagree
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from quagmire_utils.evaluation.thinking import OPEN, opened
from quagmire_utils.grading import AUDIT_KINDS, Grade, Verdict, audit

if TYPE_CHECKING:
    from quagmire_utils.data import Problem
    from quagmire_utils.evaluation.store import SampleStore

_READ = ["benchmark", "problem", "index", "text", "verdict", "extracted"]
_ALIKE = ["kind", "benchmark", "problem", "verdict", "extracted", "second_verdict", "second_extracted"]


def audit_store(
    store: SampleStore, problems: Mapping[str, Sequence[Problem]], *, progress: bool = True
) -> pd.DataFrame:
    """Return one row per distinct disagreement of the two graders about the samples of a store.

    problems: each benchmark's, by its name. Samples of other problems or without a verdict are left out. The store is
    read one part at a time. progress: show a bar on stderr after ten seconds.

    Columns: those of `grading.audit`, and benchmark, problem, index (of the first such sample), samples (how many are
    alike). Rows are sorted by kind, the most frequent first. `attrs` are those of `grading.audit`, and
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
