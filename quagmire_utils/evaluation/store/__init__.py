"""Parquet in, parquet out: atomic files, manifests, and the append-only store of samples.

The paper rests on millions of sampled answers (Sec. 4.1: 256 repetitions of seven benchmarks for hundreds of models).
They are drawn over hours and days, so a store must survive a kill at any moment, take more samples later without
redrawing the first ones, and refuse to mix answers of two models.

    store = SampleStore("results/smoke/samples/base")
    store.append(frame)                                   # one more part file, complete or absent, never half
    store.read(["benchmark", "problem", "verdict"])       # one frame of all parts, in a fixed order
    store.counts()                                        # verdicts per problem: 10^7 samples in seconds
    store.duplicates()                                    # seeds that were used twice
    merge("all", ["from-machine-a", "from-machine-b"])    # shards of one evaluation

A store is a folder: `part-*.parquet` (the samples), `store.json` (what they were drawn with), `prompts.parquet` (the
rendered prompts with their digests), `golds.json` (what they were graded against), and locks.
"""

from quagmire_utils.evaluation.store.counting import COUNTS
from quagmire_utils.evaluation.store.merging import GOLDS, Merged, merge, read_golds
from quagmire_utils.evaluation.store.samples import COLUMNS, KEYS, PROMPT_COLUMNS, SampleStore

__all__ = [
    "COLUMNS",
    "COUNTS",
    "GOLDS",
    "KEYS",
    "PROMPT_COLUMNS",
    "Merged",
    "SampleStore",
    "merge",
    "read_golds",
]
