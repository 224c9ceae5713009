"""Curation of SFT sets: which traces to train on, which to hold out, and which a benchmark forbids.

Implements the data side of Sec. 2 and Apps. B and D.

Of a pool in memory:

    clean, removed = decontaminate(traces, load_benchmark("math500"))
    sft_set = select(clean, "shortest", 1000, tokenizer=tokenizer, seed=0)

Of the hub's datasets, streamed, millions of traces in little memory (in a shell: `quagmire curate --help`):

    recipe = Recipe(source="llama_nemotron", tokenizer="meta-llama/Meta-Llama-3-8B-Instruct", selection="shortest",
                    n=10_000, max_tokens=7168, validation_problems=500)
    build(recipe, "data/s10k")
    train, validation = load_set("data/s10k")
"""

from quagmire_utils.data.curation.build import build, load_set
from quagmire_utils.data.curation.contamination import BenchmarkIndex, decontaminate
from quagmire_utils.data.curation.recipes import Recipe, load_sets, response_lengths, select

__all__ = ["BenchmarkIndex", "Recipe", "build", "decontaminate", "load_set", "load_sets", "response_lengths", "select"]
