"""How the benchmarks measure: best of some rounds, in turns, or in a process of its own."""

import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pandas as pd


def best_of(rounds: int, call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the shortest wall time of several calls, in seconds, and the last result."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def in_turns(runs: Mapping[str, Callable[[int], int]], rounds: int) -> pd.DataFrame:
    """Call each with the round's number, all in turn, so that a busy moment hurts them alike; calls return tokens.

    Returns the last number of tokens and the best microseconds per token, wall and processor; ratios to the first."""
    rows = []
    for round_ in range(rounds):
        for name, call in runs.items():
            started, used = time.perf_counter(), time.process_time()
            tokens = call(round_)
            times = {"us": time.perf_counter() - started, "processor us": time.process_time() - used}
            rows.append({"name": name, "tokens": tokens, **{what: 1e6 * s / tokens for what, s in times.items()}})
    table = pd.DataFrame(rows).groupby("name", sort=False).agg({"tokens": "last", "us": "min", "processor us": "min"})
    table.insert(1, "tokens/s", 1e6 / table["us"])
    return table.assign(ratio=table["us"] / table["us"].iloc[0])


def alone(function: Callable, *arguments: Any) -> Any:
    """Call a function in a process of its own, so that its peak of memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
