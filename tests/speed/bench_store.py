"""Counting ten million samples, and what the store costs besides: seconds and peak memory.

    python tests/speed/bench_store.py                       # 10^7 samples, 2,442 files, some minutes to write them
    python tests/speed/bench_store.py --samples 1000000

The store looks like one that `sample` and `grade_store` leave: 4096 samples in a file, 64 of each problem, graded. Each
measurement runs in a process of its own, so that its peak is its own. Beside it: the obvious way, one pandas frame of
all samples and a groupby.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from quagmire_utils.core.files import read_parquet, write_parquet
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.evaluation.store.parts import verdict_file

PROBLEMS, FILE = 64, 4096  # in a file: problems, samples


def write_store(folder: Path, samples: int, characters: int) -> None:
    """A store of so many samples with random verdicts and texts."""
    rng = np.random.default_rng(0)
    store = SampleStore(folder)
    texts = ["".join(rng.choice(list("0123456789+-= abcdefgh"), characters)) for _ in range(64)]
    for first in range(0, samples, FILE):
        n = min(FILE, samples - first)
        store.append(
            pd.DataFrame(
                {
                    "benchmark": "math500",
                    "problem": np.repeat([f"test/algebra/{first // 64 + i}.json" for i in range(PROBLEMS)], 64)[:n],
                    "index": np.tile(np.arange(64), PROBLEMS)[:n],
                    "text": [f"{texts[i % 64]} \\boxed{{{i}}}" for i in range(n)],
                    "tokens": rng.integers(1, 2048, n),
                    "finish_reason": np.where(rng.random(n) < 0.1, "length", "stop"),
                    "extracted": [str(i) for i in range(n)],
                    "verdict": rng.choice(["correct", "wrong", "no_answer"], n),
                }
            )
        )


def streaming(folder: Path) -> int:
    """`SampleStore.counts`."""
    return int(SampleStore(folder).counts()["n"].sum())


def all_at_once(folder: Path) -> int:
    """One frame, one groupby."""
    columns = ["benchmark", "problem", "index", "tokens", "finish_reason", "verdict"]
    frame = pd.concat([read_parquet(verdict_file(part), columns) for part in SampleStore(folder).parts()])
    frame = frame.drop_duplicates(columns[:3])
    frame.groupby(["benchmark", "problem"])["tokens"].mean()
    return int(frame.groupby(["benchmark", "problem", "verdict"]).size().sum())


def existing(folder: Path) -> int:
    """`SampleStore.existing`: reads and verifies everything, as a run does that is started again."""
    return len(SampleStore(folder).existing())


def measure(function: Callable[[Path], int], folder: Path) -> tuple[int, float, float]:
    """Its result, seconds, and peak memory in GiB, in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (function, folder))


def _measured(function: Callable[[Path], int], folder: Path) -> tuple[int, float, float]:
    started = time.perf_counter()
    result = function(folder)
    return result, time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Write a store, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10**7)
    parser.add_argument("--characters", type=int, default=40, help="of a text, besides its answer")
    parser.add_argument("--folder", type=Path, help="keeps the store there, or uses the one that is there")
    parser.add_argument("--only-counts", action="store_true", help="leave out the rows below the first")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        if not SampleStore(folder).parts():
            started = time.perf_counter()
            write_store(folder, arguments.samples, arguments.characters)
            print(f"written in {time.perf_counter() - started:.0f} s")
        rows = [("counts, file by file", streaming)]
        if not arguments.only_counts:
            rows += [("one pandas frame", all_at_once), ("existing (verified)", existing)]
        print(f"{'':<24}{'result':>12}{'seconds':>10}{'GiB':>8}")
        for name, function in rows:
            result, seconds, memory = measure(function, folder)
            print(f"{name:<24}{result:>12,}{seconds:>10.2f}{memory:>8.2f}")
        counts = Path(scratch) / "counts.parquet"
        write_parquet(SampleStore(folder).counts(), counts)
        print(f"counts as a file: {counts.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
