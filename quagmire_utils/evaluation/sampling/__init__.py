"""Sampling: n answers to every problem, written to a store as they come (paper Sec. 4.1 and App. B.3).

    config = EngineConfig(engine="vllm", model="path/to/checkpoint")     # ray="auto": on the nodes of a Ray cluster
    store = sample(config, problems, 64, SamplingParams(max_tokens=2048), "samples/checkpoint", benchmark="math500")
    grade_store(store, {"math500": problems}, grade)
    store.counts()

The work is cut into chunks, each a fixed set of problems and sample indices, and each chunk is one file of the store. A
killed run that is started again draws what is missing and ends with the records of an unbroken run; a run with more
samples adds to what is there. Sample i of a problem has its own seed, derived from the run's seed, the benchmark, the
problem's id and i, so it does not depend on what else is drawn, when, in which order, or where.
"""

from quagmire_utils.evaluation.sampling.drawing import problem_seed, sample
from quagmire_utils.evaluation.sampling.marking import grade_store

__all__ = ["grade_store", "problem_seed", "sample"]
