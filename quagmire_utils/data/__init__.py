"""Benchmarks and training sets: one catalogue, read as problems for evaluation and RL and as traces for SFT.

Implements the evaluation sets of Sec. 4 and App. B. None is shipped; each is read from a local copy (`data_dir`, else
`$QUAGMIRE_DATA_DIR`), which is checked against a count and a digest, or else from its hub, pinned by commit and checked
against a count.

    problems = load_benchmark("math500")            # any dataset of `catalogue/`
    problems = load_benchmark("my_benchmark.yaml")  # and one's own, in the same form (`dataset`)
    problems = load_benchmark("my_problems.jsonl")  # a file with the columns id, question, answer (and tolerance)
"""

from quagmire_utils.data.dataset import BENCHMARKS, Dataset, benchmark_names, find_dataset, load_datasets
from quagmire_utils.data.loading import load_benchmark
from quagmire_utils.data.problems import Problem, Trace, load_traces

__all__ = [
    "BENCHMARKS", "Dataset", "Problem", "Trace", "benchmark_names", "find_dataset",
    "load_benchmark", "load_datasets", "load_traces",
]  # fmt: skip
