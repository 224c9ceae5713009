"""Sampling: n answers to every problem, streamed to a store (paper Sec. 4.1 and App. B.3).

    engine = load_engine(EngineConfig(engine="vllm", model="path/to/checkpoint"))
    store = SampleStore("samples/checkpoint")
    samples = sample(engine, problems, 64, SamplingParams(max_tokens=2048), store, benchmark="math500")
    grade_store(store, {"math500": problems}, grade)
    samples.counts()

The work is cut into chunks, each a fixed set of problems and sample indices, and each chunk is one file of the store.
A run that was killed draws what is missing when it is started again and ends with the records of an unbroken run; a
run with a larger n adds to what is there. Sample i of a problem has a seed of its own, derived from the run's seed,
the benchmark, the problem's id and i, so it does not matter what else is drawn, when, in which order, or where.

On a Ray cluster, one engine per GPU (or per core):

    sample(EngineConfig(model="path/to/checkpoint"), problems, 64, params, store, benchmark="math500", ray="auto")
"""

from quagmire_utils.engines.cluster import ReplicaLostError
from quagmire_utils.evaluation.sampling.actors import tokenizer_and_context
from quagmire_utils.evaluation.sampling.drawing import Samples, sample
from quagmire_utils.evaluation.sampling.marking import grade_store
from quagmire_utils.evaluation.sampling.work import problem_seed

__all__ = ["ReplicaLostError", "Samples", "grade_store", "problem_seed", "sample", "tokenizer_and_context"]
