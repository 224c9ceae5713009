"""Benchmarks and training sets: the paper's seven mathematics benchmarks as `Problem` rows.

Implements the evaluation sets of Sec. 4 and App. B: MATH-500, AIME 1983-2024, GSM8K (test), AIME 2025, AMC,
OlympiadBench (maths, English, open-ended, text only) and Minerva. None is shipped; each is read from a local mirror or
else from its hub.

    problems = load_benchmark("math500")            # one of BENCHMARKS, in the paper's order
    problems = load_benchmark("my_problems.jsonl")  # any file with the columns id, question, answer (and tolerance)
    problems = load_benchmark("gpqa_diamond")       # other domains, each a few lines of YAML in `catalogue/`
    problems = load_benchmark("my_benchmark.yaml")  # and one's own: dataset, columns, grader (`recipes`)

A mirror is a folder with `benchmarks/` and `train/`: `data_dir`, else `$QUAGMIRE_DATA_DIR`, else `../shared/data`
beside the repo. Its rows are checked against a count and a digest. Rows from the hub are pinned by commit (the hashes
below are those that published evaluations cite for each dataset) and checked against a count.

Gold answers are those that the hubs publish, reduced to bare LaTeX (no `$`, no prose), so that math-verify reads them
inside `\\boxed{...}`, which is how a grader should hand them over: outside it, `1,3,5` parses as the number 1.3.
"""

from quagmire_utils.data.golds import last_boxed
from quagmire_utils.data.loading import (
    benchmark_names,
    digest,
    load_benchmark,
    load_traces,
    load_training_problems,
    mirror_folder,
    save_traces,
)
from quagmire_utils.data.problems import Benchmark, Gold, Problem, Row, Trace
from quagmire_utils.data.recipes import Recipe, read_recipe
from quagmire_utils.data.table import BENCHMARKS, TRAINING_SETS

__all__ = [
    "BENCHMARKS",
    "TRAINING_SETS",
    "Benchmark",
    "Gold",
    "Problem",
    "Recipe",
    "Row",
    "Trace",
    "benchmark_names",
    "digest",
    "last_boxed",
    "load_benchmark",
    "load_traces",
    "load_training_problems",
    "mirror_folder",
    "read_recipe",
    "save_traces",
]
