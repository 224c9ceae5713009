"""Pass@k from few samples: error on real counts, beside a published first look at fourteen estimators.

    QUAGMIRE_DATA_DIR=... python tests/speed/bench_extrapolation.py [draws]

Counts: Pythia 70M to 12B on 128 MATH problems, 10,000 answers each, from which n are drawn. The truth is Pass@k of all
answers. How often the intervals hold it: notebooks/pass_at_k_from_few_samples.ipynb.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from quagmire_utils.evaluation.pass_at_k import MACRO
from quagmire_utils.evaluation.pass_at_k.extrapolation import extrapolate, rehearse

METHODS = ["hold", "Bayes@N", "power law", "smoothed NPMLE", "beta-binomial", "combined"]
# mean absolute error in points on the same Pythia counts, best of fourteen estimators at each (n, k)
BEST = {(8, 64): 5.2, (16, 64): 3.4, (16, 256): 6.6, (32, 64): 2.9, (32, 256): 5.4, (64, 256): 3.2, (64, 1000): 3.9}


def errors(pythia: pd.DataFrame, draws: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return mean absolute errors in points, a row per (n, k); gain: over "mean of three", BEST's best method."""
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


def main(draws: int = 20) -> None:
    rng = np.random.default_rng(0)
    for what in ("first call, with imports", "second call"):
        start = time.perf_counter()
        extrapolate(32, rng.binomial(32, rng.beta(0.4, 10, 500)), 256)
        print(f"500 problems, n = 32, k = 256, {what}: {time.perf_counter() - start:.3f} s")
    path = Path(os.environ.get("QUAGMIRE_DATA_DIR", "")) / "public/counts/monkeys_pythia_math_n10000.parquet"
    if path.is_file():
        pythia = pd.read_parquet(path)
        print("\nMean absolute error in points, Pythia\n", errors(pythia, draws, rng).round(2).to_string())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
