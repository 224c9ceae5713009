"""The from-scratch miniature: a tokenizer, a synthetic verifiable task, and base models pretrained on it.

The paper's models have 4-12 billion parameters and its study took over a million GPU hours. This room makes worlds in
which the same questions (does the best SFT score end best after RL? do the generalization loss and Pass@large k know
better?) can be *measured* on two CPU cores. The models are ordinary `transformers` classes (Llama, Mistral, Qwen3),
so vLLM, TRL and every other room load them like any other checkpoint; only their size and their language are small.
"""

from quagmire_utils.training.microlab.models import ARCHITECTURES, CONTEXT_LENGTH, build_model, build_tokenizer
from quagmire_utils.training.microlab.pretraining import check_pretraining, pretrain, pretraining_corpus
from quagmire_utils.training.microlab.tasks import (
    DIGITS,
    MICRO_BENCHMARKS,
    STYLES,
    Expression,
    TaskSpec,
    check_styles,
    check_terms,
    draw_expressions,
    make_mixed_problems,
    make_problems,
    make_traces,
    write_problems,
    write_trace,
)

__all__ = [
    "ARCHITECTURES",
    "CONTEXT_LENGTH",
    "DIGITS",
    "MICRO_BENCHMARKS",
    "STYLES",
    "Expression",
    "TaskSpec",
    "build_model",
    "build_tokenizer",
    "check_pretraining",
    "check_styles",
    "check_terms",
    "draw_expressions",
    "make_mixed_problems",
    "make_problems",
    "make_traces",
    "pretrain",
    "pretraining_corpus",
    "write_problems",
    "write_trace",
]
