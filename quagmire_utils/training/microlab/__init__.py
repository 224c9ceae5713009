"""Micro models: a tokenizer, a synthetic verifiable task, and base models pretrained on it from scratch.

They answer the paper's questions by measurement on two CPU cores. The models are ordinary `transformers` classes
(Llama, Mistral, Qwen3), so vLLM, TRL and everything else load them like any other checkpoint.
"""

# ruff: noqa: F401 - callers import these names from here

from quagmire_utils.training.microlab.pretraining import (
    ARCHITECTURES,
    CONTEXT_LENGTH,
    build_model,
    build_tokenizer,
    pretrain,
    pretraining_corpus,
)  # fmt: skip
from quagmire_utils.training.microlab.tasks import (
    MICRO_BENCHMARKS,
    STYLES,
    TABLES,
    Expression,
    Statements,
    TableChain,
    TaskSpec,
    make_mixed_problems,
    make_problems,
    make_traces,
)  # fmt: skip
