"""Averages of Pass@k over problems and then over benchmarks, each benchmark weighing the same (Sec. 4.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import CHECKPOINT, check_columns, check_once
from quagmire_utils.evaluation.pass_at_k.estimator import (
    Counts,
    checked_counts,
    checked_ks,
    mean_and_variance,
    pass_at_k,
)

MACRO = "macro average"  # name of the mean over benchmarks
_PROBLEM = ["benchmark", "problem"]
_COUNTS = [*_PROBLEM, "n", "correct"]


def each_benchmark(counts: pd.DataFrame) -> Iterator[tuple[str, Counts, Counts]]:
    """Yield (benchmark, n, correct) in order of appearance; raise ParameterError if `counts` cannot be averaged."""
    check_columns(counts, _COUNTS, "counts")
    if counts.empty:
        raise ParameterError("counts", reason="it has no rows, so there is nothing to average")
    if counts[_PROBLEM].isna().any(axis=None):
        raise ParameterError("counts", reason="it has rows without a benchmark or without a problem")
    check_once(counts, _PROBLEM, "counts")
    for benchmark, rows in counts.groupby("benchmark", sort=False, observed=True):
        yield benchmark, *checked_counts(rows["n"], rows["correct"])


def benchmark_pass_at_k(counts: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """Return mean Pass@k of each benchmark: one row per benchmark (in order of appearance) and k.

    counts: one row per problem, columns benchmark, problem, n (answers), correct. Columns of the result: benchmark, k,
    pass_at_k, standard_error (of the mean over problems; it covers the choice of problems and the sampling of answers;
    NaN for a single problem), problems, min_n (fewest answers to a problem). Raise ParameterError for a missing column,
    a repeated problem, and bad counts.
    """
    k = checked_ks(ks)
    parts = []
    for benchmark, samples, correct in each_benchmark(counts):
        mean, variance = mean_and_variance(samples, correct, k)
        part = {"benchmark": benchmark, "k": k, "pass_at_k": mean, "standard_error": np.sqrt(variance / len(samples))}
        parts.append(pd.DataFrame({**part, "problems": len(samples), "min_n": int(samples.min())}))
    return pd.concat(parts, ignore_index=True)


def benchmark_average(counts: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """Return the macro average of Pass@k over benchmarks: one row per k.

    counts: as in `benchmark_pass_at_k`. Columns: k, pass_at_k, standard_error (benchmarks are independent: the root of
    the sum of squares, over their number), benchmarks, problems. NaN where a problem has fewer than k answers.
    """
    each = benchmark_pass_at_k(counts, ks)
    shape = (-1, np.size(ks))  # benchmark x k, the order of rows; a repeated k stays repeated
    mean = each["pass_at_k"].to_numpy().reshape(shape)
    error = each["standard_error"].to_numpy().reshape(shape)
    average = {
        "k": each["k"].to_numpy().reshape(shape)[0],
        "pass_at_k": mean.mean(axis=0),
        "standard_error": np.sqrt((error**2).sum(axis=0)) / len(mean),
        "benchmarks": len(mean),
        "problems": len(counts),
    }
    return pd.DataFrame(average)


def checkpoint_scores(counts: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """Return the macro averages of many checkpoints at once: one row per checkpoint, in order of appearance.

    counts: one row per checkpoint and problem, as in counts.parquet. Columns: the CHECKPOINT keys; for each k pass@k
    and se@k (its standard error, from the choice of problems and the sampling of answers); sampling_se, the standard
    error of Pass@1 from sampling alone, which is what counts between checkpoints measured on the same problems; n, the
    fewest answers to a problem. Errors are NaN for a benchmark of one problem or a problem of one answer. Raise
    ParameterError for missing columns, repeated problems, and checkpoints measured on different problems.
    """
    check_columns(counts, [*CHECKPOINT, *_COUNTS], "counts")
    check_once(counts, CHECKPOINT + _PROBLEM, "counts")
    checkpoint = counts.groupby(CHECKPOINT, sort=False).ngroup().to_numpy()
    sizes, problems = np.bincount(checkpoint), len(counts[_PROBLEM].drop_duplicates())
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
