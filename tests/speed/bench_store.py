"""Counting ten million samples beside one pandas frame of all: seconds and peak memory, each in its own process.

python tests/speed/bench_store.py                       # 10^7 samples, 2,442 files, some minutes to write them
python tests/speed/bench_store.py 1000000
"""

import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from timing import alone, best_of

from quagmire_utils.core.files import read_parquet
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.evaluation.store_files import verdict_file

PROBLEMS, FILE = 64, 4096  # in a file: problems, samples
CHARACTERS = 40  # of a text, besides its answer


def write_store(folder: Path, samples: int) -> None:
    """A store of so many samples with random verdicts and texts."""
    rng = np.random.default_rng(0)
    store = SampleStore(folder)
    texts = ["".join(rng.choice(list("0123456789+-= abcdefgh"), CHARACTERS)) for _ in range(64)]
    for first in range(0, samples, FILE):
        n = min(FILE, samples - first)
        columns = {
            "benchmark": "math500",
            "problem": np.repeat([f"test/algebra/{first // 64 + i}.json" for i in range(PROBLEMS)], 64)[:n],
            "index": np.tile(np.arange(64), PROBLEMS)[:n],
            "text": [f"{texts[i % 64]} \\boxed{{{i}}}" for i in range(n)],
            "tokens": rng.integers(1, 2048, n),
            "finish_reason": np.where(rng.random(n) < 0.1, "length", "stop"),
            "extracted": [str(i) for i in range(n)],
            "verdict": rng.choice(["correct", "wrong", "no_answer"], n),
        }
        store.append(pd.DataFrame(columns))


def streaming(folder: Path) -> int:
    return int(SampleStore(folder).counts()["n"].sum())


def all_at_once(folder: Path) -> int:
    columns = ["benchmark", "problem", "index", "tokens", "finish_reason", "verdict"]
    frame = pd.concat([read_parquet(verdict_file(part), columns) for part in SampleStore(folder).parts()])
    frame = frame.drop_duplicates(columns[:3])
    frame.groupby(["benchmark", "problem"])["tokens"].mean()
    return int(frame.groupby(["benchmark", "problem", "verdict"]).size().sum())


def existing(folder: Path) -> int:
    """`SampleStore.existing`: reads and verifies everything, as a run does that is started again."""
    return len(SampleStore(folder).existing())


def measured(function: Callable[[Path], int], folder: Path) -> tuple[int, float, float]:
    seconds, result = best_of(1, lambda: function(folder))
    return result, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(samples: int = 10**7) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), samples)
        print(f"{'':<16}{'result':>12}{'seconds':>10}{'GiB':>8}")
        for function in (streaming, all_at_once, existing):
            result, seconds, memory = alone(measured, function, Path(folder))
            print(f"{function.__name__:<16}{result:>12,}{seconds:>10.2f}{memory:>8.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
