"""Every split of Tables 5, 6, 7 and 9 of the paper against a loop: python tests/speed/bench_prediction.py (15 s)."""

import itertools
import time

import numpy as np

from quagmire_utils.analysis.fits import fit_predict_r2
from quagmire_utils.core import published as paper

LOOPED = 2000  # splits that the loop is timed on


def loop_r2(predictors, y, fits):
    everyone, values = set(range(len(y))), []
    for fit in fits:
        fit, held = list(fit), sorted(everyone - set(fit))
        lines = [(x, np.polyfit(x[fit], y[fit], 1)) for x in predictors]
        prediction = np.mean([slope * x[held] + intercept for x, (slope, intercept) in lines], axis=0)
        values.append(1 - ((y[held] - prediction) ** 2).sum() / ((y[held] - y[held].mean()) ** 2).sum())
    return np.array(values)


def predictors_of(cells, random):
    """One artificial predictor (or pair) per column of the table, and the outcome."""
    total = int(cells["n_fit"].iloc[0] + cells["n_validation"].iloc[0])
    y = random.uniform(0.2, 0.6, total)
    series = {name: y + 0.1 * random.normal(size=total) for name in ("pass1", "gen_loss", "pass_k")}
    series["avg_genloss_pass_k"] = (series["gen_loss"], series["pass_k"])
    return series, y


def main():
    random = np.random.default_rng(0)
    print(f"{'table':12}{'splits':>9}{'seconds':>9}{'loop (scaled)':>15}{'ratio':>8}{'largest difference':>20}")
    total_splits = total_seconds = total_loop = 0.0
    for table in (5, 6, 7, 9):
        cells = paper.published(table)
        series, y = predictors_of(cells, random)
        rows = [(int(cell.n_fit), series[cell.column]) for cell in cells.itertuples()]
        start = time.perf_counter()
        results = [fit_predict_r2(x, y, n_fit, n_splits="all") for n_fit, x in rows]
        seconds = time.perf_counter() - start
        splits, loop, difference = sum(result.n_splits for result in results), 0.0, 0.0
        for (n_fit, x), result in zip(rows, results, strict=True):
            few = list(itertools.islice(itertools.combinations(range(len(y)), n_fit), LOOPED // len(rows)))
            predictors = x if isinstance(x, tuple) else (x,)
            start = time.perf_counter()
            values = loop_r2(predictors, y, few)
            loop += (time.perf_counter() - start) * result.n_splits / len(few)
            scale = np.maximum(1, np.abs(values))  # three close candidates can give an R2 of minus thousands
            difference = max(difference, (np.abs(values - result.r2[: len(few)]) / scale).max())
        print(f"Table {table:<6}{splits:>9,}{seconds:9.3f}{loop:15.1f}{loop / seconds:8.0f}{difference:20.1e}")
        total_splits, total_seconds, total_loop = total_splits + splits, total_seconds + seconds, total_loop + loop
    print(f"{'all':12}{total_splits:>9,.0f}{total_seconds:9.3f}{total_loop:15.1f}{total_loop / total_seconds:8.0f}")


if __name__ == "__main__":
    main()
