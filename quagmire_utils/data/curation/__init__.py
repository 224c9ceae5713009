"""Curation of SFT sets: which traces to train on, which to hold out, and which a benchmark forbids.

Implements the data side of Sec. 2 and Apps. B and D: the paper's candidates differ in how many traces they see and
whether these are random, the shortest, the longest, or both ends; length is the response's, in tokens of the model's
own tokenizer.

Of a pool in memory:

    clean, removed = decontaminate(traces, load_benchmark("math500"))
    train, validation = split_by_problem(clean, n_validation=500, seed=0)
    sft_set = select(train, "shortest", 1000, tokenizer=tokenizer, seed=0)

Of the hub's datasets, streamed, millions of traces in little memory:

    quagmire curate --help
    build(Recipe(source="llama_nemotron", tokenizer="meta-llama/Meta-Llama-3-8B-Instruct", selection="shortest",
                 n=10_000, max_tokens=7168, validation_problems=500), "data/s10k")
    train, validation = load_set("data/s10k")

Every choice is a function of the seed and the traces: the pool's order does not matter, and a smaller random set is
part of a larger one at the same seed, so that candidates of different size differ in size alone.
"""

from quagmire_utils.data.curation.build import build, load_set
from quagmire_utils.data.curation.contamination import BenchmarkIndex, Removal, decontaminate
from quagmire_utils.data.curation.recipes import Recipe, load_recipes
from quagmire_utils.data.curation.selection import SELECTIONS, response_lengths, select, split_by_problem
from quagmire_utils.data.curation.sources import Source, load_source, load_sources

__all__ = [
    "SELECTIONS",
    "BenchmarkIndex",
    "Recipe",
    "Removal",
    "Source",
    "build",
    "decontaminate",
    "load_recipes",
    "load_set",
    "load_source",
    "load_sources",
    "response_lengths",
    "select",
    "split_by_problem",
]
