"""The append-only store of sampled answers and their verdicts.

The paper rests on millions of sampled answers (Sec. 4.1: 256 answers to each problem of seven benchmarks, for hundreds
of models). They are drawn over hours and days, so a store survives a kill at any moment, takes more samples later
without redrawing the first ones, and refuses to mix the answers of two models.

    store = SampleStore("results/smoke/samples/base")
    store.append(frame)                                   # one more part file, complete or absent, never half
    store.read(["benchmark", "problem", "verdict"])       # one frame of all parts, in a fixed order
    store.counts()                                        # verdicts per problem: 10^7 samples in seconds

A store is a folder: `part-*.parquet` (samples, never rewritten), `verdicts-*.parquet` (the verdicts on the samples of
the part of that name), `store.json` (what the samples were drawn with), `prompts.parquet` (the rendered prompts with
their digests), and locks.
"""

from quagmire_utils.evaluation.store.counting import COUNTS
from quagmire_utils.evaluation.store.parts import COLUMNS, GRADED, KEYS
from quagmire_utils.evaluation.store.samples import PROMPT_COLUMNS, SampleStore

__all__ = ["COLUMNS", "COUNTS", "GRADED", "KEYS", "PROMPT_COLUMNS", "SampleStore"]
