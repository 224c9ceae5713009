"""Pass@k from few samples: error and coverage on real counts, beside a published first look at fourteen estimators.

    QUAGMIRE_DATA_DIR=... python tests/speed/bench_extrapolation.py [draws]

Counts: Pythia 70M to 12B on 128 MATH problems, 10,000 answers each, from which n are drawn; and all counts after SFT of
the records of `mini` (128 answers). The truth is Pass@k of all answers.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from quagmire_utils.evaluation.pass_at_k import MACRO
from quagmire_utils.evaluation.pass_at_k.extrapolation import MAX_RATIO, extrapolate, rehearse

METHODS = ["hold", "Bayes@N", "power law", "smoothed NPMLE", "beta-binomial", "combined"]
# mean absolute error in points on the same Pythia counts, best of fourteen estimators at each (n, k)
BEST = {(8, 64): 5.2, (16, 64): 3.4, (16, 256): 6.6, (32, 64): 2.9, (32, 256): 5.4, (64, 256): 3.2, (64, 1000): 3.9}


def errors(pythia: pd.DataFrame, draws: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return mean absolute errors in points by method: one row per (n, k) of the table that we compare with.

    "mean of three" is that table's best method on the same draws. standard_error: of "combined", over draws; gain: how
    much smaller its error is than that of the mean of three, with its standard error.
    """
    rows = []
    for n, k in BEST:
        for _, model in pythia.groupby("model"):
            found = rehearse(model, n, [k], draws, rng)  # of one benchmark and its equal average
            found = found[found["benchmark"] != MACRO].set_index(["n", "k", "draw"])
            found["mean of three"] = found[["power law", "smoothed NPMLE", "beta-binomial"]].mean(axis=1)
            rows.append(100 * found[[*METHODS, "mean of three"]].sub(found["truth"], axis=0).abs())
    by_draw = pd.concat(rows).groupby(["n", "k", "draw"]).mean()
    table = by_draw.groupby(["n", "k"]).mean()
    gain = (by_draw["mean of three"] - by_draw["combined"]).groupby(["n", "k"])
    table["standard_error"] = by_draw["combined"].groupby(["n", "k"]).sem()
    return table.assign(published_best=pd.Series(BEST), gain=gain.mean(), gain_error=gain.sem())


def intervals(counts: pd.DataFrame, sizes: Sequence[int], draws: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return coverage and width in points of each interval; `counts` has one more key, `model`."""
    rows = []
    for model, own in counts.groupby("model"):
        for n in sizes:
            ks = [ratio * n for ratio in (1, 2, 4, 8, MAX_RATIO) if ratio * n <= own["n"].min()]
            rows.append(rehearse(own, n, ks, draws, rng).assign(model=model))
    table = pd.concat(rows)
    table["covered"] = table["truth"].between(table["low"] - 1e-9, table["high"] + 1e-9)
    table["width"], table["error"] = (
        100 * (table["high"] - table["low"]),
        100 * (table["combined"] - table["truth"]).abs(),
    )
    return table.assign(ratio=table["k"] // table["n"])


def show(title: str, table: pd.DataFrame) -> None:
    """Print means by n and k / n."""
    means = table.astype({"covered": float}).pivot_table(["covered", "width", "error"], "n", "ratio")
    print(f"\n{title}\n", means.round(2).to_string())


def main(draws: int = 20) -> None:
    """Print the tables."""
    rng = np.random.default_rng(0)
    for what in ("first call, with imports", "second call"):
        start = time.perf_counter()
        extrapolate(32, rng.binomial(32, rng.beta(0.4, 10, 500)), 256)
        print(f"500 problems, n = 32, k = 256, {what}: {time.perf_counter() - start:.3f} s")
    path = Path(os.environ.get("QUAGMIRE_DATA_DIR", "")) / "public/counts/monkeys_pythia_math_n10000.parquet"
    if path.is_file():
        pythia = pd.read_parquet(path)
        print("\nMean absolute error in points, Pythia\n", errors(pythia, draws, rng).round(2).to_string())
        held = intervals(pythia, [8, 16, 32, 64, 128], max(1, draws // 5), rng)
        show("Intervals, Pythia", held)
        print(held.groupby("model")["covered"].mean().round(3).to_string())
    records = pd.read_parquet(Path(__file__).parents[2] / "results/mini/counts.parquet")
    records = records[records["stage"] == "sft"].assign(model=lambda frame: frame["cell"])
    held = intervals(records, [8, 16, 32, 64], 1, rng)
    show("Intervals, mini", held[held["benchmark"] != MACRO])
    show("Intervals of the macro average, mini", held[held["benchmark"] == MACRO])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
