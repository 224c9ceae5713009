"""Macro-averaged Pass@k of every checkpoint in a sweep's counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import CHECKPOINT, check_columns, check_once
from quagmire_utils.evaluation.pass_at_k.estimator import COUNT_COLUMNS, pass_at_k


def checkpoint_scores(counts: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """Return one row per checkpoint, in order of appearance: the CHECKPOINT keys and its scores.

    counts: one row per checkpoint and problem, as in counts.parquet. For each k the scores are pass@k (mean over
    problems, then over benchmarks) and se@k (its standard error, from the choice of problems and the sampling of
    answers). sampling_se is the standard error of Pass@1 from sampling alone, which is what counts between checkpoints
    measured on the same problems. n is the fewest answers to a problem.

    Errors are NaN for a benchmark of one problem or a problem of one answer. Raises ParameterError for missing columns,
    repeated problems, and checkpoints measured on different problems.
    """
    problem = ["benchmark", "problem"]
    check_columns(counts, [*CHECKPOINT, *COUNT_COLUMNS], "counts")
    check_once(counts, CHECKPOINT + problem, "counts")
    checkpoint = counts.groupby(CHECKPOINT, sort=False).ngroup().to_numpy()
    sizes, problems = np.bincount(checkpoint), len(counts[problem].drop_duplicates())
    if (sizes != problems).any():
        row = counts.iloc[np.flatnonzero(checkpoint == np.argmax(sizes != problems))[0]]
        name = " ".join(str(row[key]) for key in CHECKPOINT)
        some = sizes[sizes != problems][0]
        raise ParameterError("counts", reason=f"{name} was measured on {some} of the {problems} problems")
    group = counts.groupby([*CHECKPOINT, "benchmark"], sort=False).ngroup().to_numpy()
    size = np.bincount(group)  # problems in each benchmark of a checkpoint
    owner = checkpoint[np.unique(group, return_index=True)[1]]
    benchmarks = np.bincount(owner)
    values = pass_at_k(counts["n"], counts["correct"], ks).T
    n, correct = counts["n"].to_numpy(np.float64), counts["correct"].to_numpy(np.float64)
    table = counts[CHECKPOINT].drop_duplicates().reset_index(drop=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        for k, score in zip(ks, values, strict=True):
            mean = np.bincount(group, score) / size
            variance = np.bincount(group, (score - mean[group]) ** 2) / (size * (size - 1.0))
            table[f"pass@{k}"] = np.bincount(owner, mean) / benchmarks
            table[f"se@{k}"] = np.sqrt(np.bincount(owner, variance)) / benchmarks
        noise = correct / n * (1 - correct / n) / (n - 1)
        sampling = np.bincount(group, noise) / size**2.0
        table["sampling_se"] = np.sqrt(np.bincount(owner, sampling)) / benchmarks
    table["n"] = counts.groupby(CHECKPOINT, sort=False)["n"].min().to_numpy()
    return table
