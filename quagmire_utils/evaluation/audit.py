"""Check the verdicts in a sample store: a second grader judges every answer, and the score gets its bounds.

audit_store(SampleStore("samples/mine"), {"math500": load_benchmark("math500")})  # where the two graders disagree
score_table(store.counts())  # the score with undecided answers as wrong, and as right
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.evaluation.pass_at_k import score_bounds
from quagmire_utils.grading import AUDIT_KINDS, UNDECIDED, Grade, Verdict, audit

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
    tables = [audit([], [], [])]
    for part in tqdm(store.parts(), desc="audit", unit="part", delay=10, leave=False, disable=not progress):
        frame = store.read_part(part, _READ)
        if frame is None:
            continue
        found = [known.get(key) for key in zip(frame["benchmark"], frame["problem"], strict=True)]
        frame = frame.assign(gold=pd.Series(found, dtype=object, index=frame.index)).dropna(subset=["gold", "verdict"])
        verdicts = zip(frame["verdict"], frame["extracted"].fillna(""), strict=True)
        grades = [Grade(Verdict(verdict), extracted) for verdict, extracted in verdicts]
        table = audit(frame["text"].tolist(), frame["gold"].tolist(), grades)
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


def score_table(counts: pd.DataFrame) -> pd.DataFrame:
    """Return the score of each benchmark with its bounds, and their macro average in the last row.

    counts: as `SampleStore.counts` returns them. Columns: benchmark, problems, samples, low (undecided answers count as
    wrong, as in Pass@1), high (they count as right), undecided (share of the samples). Problems without a graded sample
    are left out. Raises ParameterError for missing columns or no graded sample.
    """
    counts = counts[counts["n"] > 0]
    if counts.empty:
        raise ParameterError("counts", reason="no sample has a verdict, so there is no score")
    bounds = score_bounds(counts, [1]).set_index("benchmark")
    undecided = counts[[str(verdict) for verdict in UNDECIDED]].sum(axis=1)
    groups = counts.assign(undecided=undecided).groupby("benchmark", sort=False, observed=True)
    table = groups.agg(problems=("problem", "size"), samples=("n", "sum"), undecided=("undecided", "sum"))
    table["undecided"] /= table["samples"]
    table.loc[bounds.index[-1]] = [table["problems"].sum(), table["samples"].sum(), table["undecided"].mean()]
    table = table.astype({"problems": int, "samples": int}).join(bounds[["as_wrong", "as_right"]])
    table = table.rename(columns={"as_wrong": "low", "as_right": "high"}).rename_axis("benchmark").reset_index()
    return table[["benchmark", "problems", "samples", "low", "high", "undecided"]]
