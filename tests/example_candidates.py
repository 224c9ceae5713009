"""Measurements of made-up candidates, for tests of ranking and forecasting; never a result."""

import math

import numpy as np
import pandas as pd

from quagmire_utils.analysis.measurements import Measurements
from quagmire_utils.evaluation.pass_at_k import benchmark_average


def world(chances: np.ndarray, n: int, k: int, seed: int = 0, losses: float | np.ndarray = math.nan) -> Measurements:
    """Measurements of candidates (rows) whose chance of a correct answer to each problem (columns) is known."""
    random = np.random.default_rng(seed)
    names = [f"c{i}" for i in range(len(chances))]
    rows = [
        {"candidate": name, "benchmark": "one", "problem": f"p{j}", "n": n, "correct": int(random.binomial(n, p))}
        for name, mine in zip(names, chances, strict=True)
        for j, p in enumerate(mine)
    ]
    counts = pd.DataFrame(rows)
    scores = [benchmark_average(counts[counts["candidate"] == name], [1, k])["pass_at_k"].to_numpy() for name in names]
    table = pd.DataFrame(scores, columns=["pass1", "pass_k"]).assign(candidate=names, gen_loss=losses)
    return Measurements(table, counts, table, k, "a simulated world")


def with_errors(values: list[tuple[float, float, float]], errors: tuple[float, float, float]) -> Measurements:
    table = pd.DataFrame(values, columns=["pass1", "gen_loss", "pass_k"])
    table = table.assign(candidate=[f"c{i}" for i in range(len(table))])
    table[["pass1_se", "gen_loss_se", "pass_k_se"]] = errors
    return Measurements(table, None, table, 64, "mine.csv")


def linear_world(total: int, seed: int, noise: float = 0.03) -> pd.DataFrame:
    """Candidates whose outcome is a line of an ability that Pass@k shows and the loss shows less well."""
    random = np.random.default_rng(seed)
    ability = random.uniform(0, 1, total)
    table = {
        "candidate": [f"c{i}" for i in range(total)],
        "pass1": random.uniform(0, 0.5, total),
        "pass_k": 0.5 + 0.4 * ability,
        "gen_loss": 1 - 0.6 * ability + 0.08 * random.normal(size=total),
        "outcome": 0.5 + 0.2 * ability + noise * random.normal(size=total),
    }
    return pd.DataFrame(table)


def hidden(table: pd.DataFrame, shown: list[str]) -> pd.DataFrame:
    return table.assign(outcome=table["outcome"].where(table["candidate"].isin(shown)))


def five_candidates() -> pd.DataFrame:
    """Return candidates of one family: b and a beat c in score and loss; d has the worst loss and the best score."""
    table = {
        "pass1": [0.50, 0.45, 0.40, 0.60, 0.30],
        "gen_loss": [0.60, 0.55, 0.70, 0.90, 0.50],
        "pass_k": [0.80, 0.90, 0.95, 0.70, 0.60],
        "outcome": [0.55, 0.60, 0.50, 0.45, 0.40],
    }
    return pd.DataFrame({"candidate": list("abcde"), **table, "family": "llama", "scenario": "dataset"})
