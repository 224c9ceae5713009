"""The from-scratch miniature: a tokenizer, a synthetic verifiable task, and base models pretrained on it.

The paper's models have 4-12 billion parameters and its study took over a million GPU hours. This room makes worlds in
which the same questions (does the best SFT score end best after RL? do the generalization loss and Pass@large k know
better?) can be *measured* on two CPU cores. The models are ordinary `transformers` classes (Llama, Mistral, Qwen3),
so vLLM, TRL and every other room load them like any other checkpoint; only their size and their language are small.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quagmire_utils.benchmarks import Problem, Trace
from quagmire_utils.config import ParameterError, PretrainingSettings, SFTSettings
from quagmire_utils.prompts import INSTRUCTION
from quagmire_utils.sft import train_sft
from quagmire_utils.store import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ARCHITECTURES = ("llama", "mistral", "qwen3")
INITIALIZER_RANGE = 0.06  # transformers' 0.02 suits wide models; at width 96 it doubled the steps to learn the task
HEAD_DIM = 32  # the smallest head that vLLM's CPU attention takes
CONTEXT_LENGTH = (
    8192  # the paper's 8k; the longest real benchmark problem is ~4.5k characters, and a character is a token
)

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(chat_template: bool = True) -> PreTrainedTokenizerFast:
    """A character tokenizer that encodes any UTF-8 text (bytes stand in for characters beyond printable ASCII).

    The paper's instruction and `\\boxed{` are one token each, so that the standard prompt costs a micro model two
    tokens instead of seventy. With `chat_template` the tokenizer renders chats with one role token per message,
    without it the model is a plain base model.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    specials = ["<|pad|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>"]
    characters = ["\n", *(chr(code) for code in range(32, 127))]
    entries = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in (INSTRUCTION, "\\boxed{")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|eos|>",
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    if chat_template:
        fast.chat_template = _CHAT_TEMPLATE
    return fast


def build_model(
    architecture: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int = 96,
    layers: int = 4,
    seed: int = 0,
) -> PreTrainedModel:
    """A randomly initialised float32 causal LM of one of `ARCHITECTURES`, with `hidden_size // 32` attention heads.

    96 x 4 layers has about half a million parameters. Raises ParameterError for an unknown architecture or a hidden
    size that 32 does not divide.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    _check_architecture(architecture, hidden_size)
    heads = hidden_size // HEAD_DIM
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=INITIALIZER_RANGE,
    )
    if architecture == "mistral":
        config.sliding_window = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.do_sample = True
    return model.eval()


def _check_architecture(architecture: str, hidden_size: int) -> None:
    if architecture not in ARCHITECTURES:
        raise ParameterError(f"architecture must be one of {', '.join(ARCHITECTURES)}, not {architecture!r}")
    if hidden_size < HEAD_DIM or hidden_size % HEAD_DIM:
        raise ParameterError(f"hidden_size must be a multiple of {HEAD_DIM}, not {hidden_size}")


# --- the synthetic task -----------------------------------------------------------------------------------------------
#
# A state of three digits; each step applies + - or * with a three-digit operand, digit by digit modulo 10, without
# carries: 374a+258b*112=? is worked left to right, 374+258=522, then 522*112=524. One step is three table look-ups, so
# errors are random slips and unlearned table entries rather than one systematic mistake, the answer space is 1,000 (64
# guesses by chance hit 6 % of the time), and the number of terms sets both the difficulty and the cost of a trace. The
# labels a, b, ... tell a model of half a million parameters where it is; without them it took ten times as many
# examples to learn which term comes next.

DIGITS = 3
OPERATORS = "+-*"
LABELS = "abcdefghijklm"
STYLES = ("stepwise", "digitwise", "terse")


@dataclass(frozen=True)
class TaskSpec:
    """One kind of problem: how many terms, and which operators stand between them."""

    terms: int
    operators: str = OPERATORS


# Seven benchmarks, as many as the paper's, graded from easy to hard.
MICRO_BENCHMARKS: dict[str, TaskSpec] = {
    "sums2": TaskSpec(2, "+-"),
    "lanes2": TaskSpec(2),
    "sums3": TaskSpec(3, "+-"),
    "lanes3": TaskSpec(3),
    "lanes4": TaskSpec(4),
    "lanes5": TaskSpec(5),
    "lanes6": TaskSpec(6),
}


_DIGITWISE = {
    (operator, a, b): str(value % 10)
    for a in "0123456789"
    for b in "0123456789"
    for operator, value in (("+", int(a) + int(b)), ("-", int(a) - int(b)), ("*", int(a) * int(b)))
}


def _apply(operator: str, left: str, right: str) -> str:
    return "".join(_DIGITWISE[operator, a, b] for a, b in zip(left, right, strict=True))


@dataclass(frozen=True)
class Expression:
    """A chain such as 374a+258b*112: its terms and the operators between them, worked left to right."""

    terms: tuple[str, ...]
    operators: str

    @property
    def question(self) -> str:
        """The problem as the model sees it."""
        return self.terms[0] + "".join("".join(step) for step in self.steps) + "=?"

    @property
    def steps(self) -> tuple[tuple[str, str, str], ...]:
        """(label, operator, term) of each step; the label says which step it is."""
        return tuple(zip(LABELS[: len(self.operators)], self.operators, self.terms[1:], strict=True))

    @property
    def states(self) -> tuple[str, ...]:
        """The state after each step; the last one is the answer."""
        state, states = self.terms[0], []
        for operator, term in zip(self.operators, self.terms[1:], strict=True):
            state = _apply(operator, state, term)
            states.append(state)
        return tuple(states)

    @property
    def answer(self) -> str:
        """The final state, three digits."""
        return self.states[-1]


def check_terms(terms: Sequence[int], where: str) -> None:
    """Raise ParameterError unless there are labels for the steps of every length."""
    most = len(LABELS) + 1
    if not terms or not all(2 <= n <= most for n in terms):
        raise ParameterError(f"{where} must name numbers of terms between 2 and {most}, not {list(terms)}")


def check_style(style: str, where: str = "style") -> None:
    """Raise ParameterError for a style of traces that nobody writes."""
    if style not in STYLES:
        raise ParameterError(f"{where} must be one of {', '.join(STYLES)}, not {style!r}")


def check_pretraining(settings: PretrainingSettings, where: str) -> None:
    """Raise ParameterError for a base model that cannot be made."""
    _check_architecture(settings.architecture, settings.hidden_size)
    check_terms(settings.terms, f"{where}.pretraining.terms")
    check_style(settings.style, f"{where}.pretraining.style")


def draw_expressions(specs: Sequence[TaskSpec], count: int, rng: np.random.Generator) -> list[Expression]:
    """`count` expressions without repeats, each of a spec drawn uniformly from `specs` (repeat a spec to weight it)."""
    check_terms([spec.terms for spec in specs], "terms")
    drawn: dict[str, Expression] = {}
    while len(drawn) < count:
        spec = specs[rng.integers(len(specs))]
        numbers = rng.integers(0, 10**DIGITS, spec.terms)
        operators = "".join(spec.operators[i] for i in rng.integers(0, len(spec.operators), spec.terms - 1))
        expression = Expression(tuple(f"{number:0{DIGITS}d}" for number in numbers), operators)
        drawn.setdefault(expression.question, expression)
    return list(drawn.values())


def write_trace(
    expression: Expression,
    style: str = "stepwise",
    *,
    slip: float = 0.0,
    rng: np.random.Generator | None = None,
) -> str:
    """A worked solution ending in \\boxed{...}, in one of `STYLES` (standing for the paper's SFT sources).

    For 374a+258=? stepwise writes a3+257+524+82 (digit, operator, digit, result, lane by lane), digitwise a:3+2=5 7+5=2
    4+8=2=522 (longer, and each token easier), terse only the states. With `slip`, each digit of a result is replaced by
    a random one with that probability and the error is carried on, as a fallible writer would.
    """
    check_style(style)
    state = expression.terms[0]
    lines = []
    for label, operator, term in expression.steps:
        result = _apply(operator, state, term)
        if slip:
            result = _slip(result, slip, rng)
        if style == "stepwise":
            digits = "".join(f"{a}{operator}{b}{c}" for a, b, c in zip(state, term, result, strict=True))
            lines.append(f"{label}{digits}")
        elif style == "digitwise":
            digits = " ".join(f"{a}{operator}{b}={c}" for a, b, c in zip(state, term, result, strict=True))
            lines.append(f"{label}:{digits}={result}")
        else:
            lines.append(result)
        state = result
    return "\n".join([*lines, f"\\boxed{{{state}}}"])


def _slip(digits: str, probability: float, rng: np.random.Generator) -> str:
    """Each digit replaced by a random one (perhaps itself) with this probability."""
    wrong = rng.random(len(digits)) < probability
    return (
        "".join(str(rng.integers(10)) if w else d for w, d in zip(wrong, digits, strict=True))
        if wrong.any()
        else digits
    )


def make_problems(name: str, spec: TaskSpec, count: int, seed: int) -> list[Problem]:
    """`count` problems of one spec as benchmark rows."""
    rng = np.random.default_rng([seed, spec.terms, len(spec.operators)])
    return [
        Problem(id=f"{name}-{i}", question=e.question, answer=e.answer)
        for i, e in enumerate(draw_expressions([spec], count, rng))
    ]


def make_mixed_problems(terms: Sequence[int], count: int, seed: int) -> list[Problem]:
    """`count` problems whose numbers of terms are drawn uniformly from `terms`: what RL learns from."""
    expressions = draw_expressions([TaskSpec(n) for n in terms], count, np.random.default_rng(seed))
    return [Problem(id=f"mixed-{i}", question=e.question, answer=e.answer) for i, e in enumerate(expressions)]


def make_traces(terms: Sequence[int], count: int, *, style: str, source: str, seed: int) -> list[Trace]:
    """`count` correct worked solutions of different problems, in one style: a source of SFT examples."""
    expressions = draw_expressions([TaskSpec(n) for n in terms], count, np.random.default_rng(seed))
    return [
        Trace(f"{source}-{i}", f"{source}-{i}", e.question, write_trace(e, style), answer=e.answer, source=source)
        for i, e in enumerate(expressions)
    ]


def write_problems(problems: Sequence[Problem], path: str | Path) -> None:
    """Problems as a .jsonl file, which `benchmarks.load_benchmark` reads like any other benchmark."""
    write_text(
        "".join(json.dumps({"id": p.id, "question": p.question, "answer": p.answer}) + "\n" for p in problems), path
    )


# --- base models ------------------------------------------------------------------------------------------------------


def pretraining_corpus(settings: PretrainingSettings, seed: int) -> tuple[list[Trace], list[Trace]]:
    """What a base model reads, in two phases: correct worked solutions, then a fallible writer's.

    The second phase has slips in its results, and a share of answers without any working, mostly wrong. A base made so
    knows the facts and the method but does not put them to use reliably: it is often wrong, and right often enough in
    many tries for RL to have something to reinforce.
    """
    rng = np.random.default_rng(seed)
    specs = [TaskSpec(n) for n in settings.terms]
    expressions = draw_expressions(specs, settings.examples + settings.fallible_examples, rng)
    phases: tuple[list[Trace], list[Trace]] = ([], [])
    for i, expression in enumerate(expressions):
        fallible = i >= settings.examples
        if fallible and rng.random() < settings.direct_fraction:
            response = f"\\boxed{{{_slip(expression.answer, settings.slip, rng)}}}"
        else:
            response = write_trace(expression, settings.style, slip=settings.slip if fallible else 0.0, rng=rng)
        name = f"pretraining-{i}"
        phases[fallible].append(Trace(name, name, expression.question, response, source="pretraining"))
    return phases


def pretrain(
    settings: PretrainingSettings,
    output: str | Path,
    *,
    seed: int,
    progress: bool = False,
    on_progress: Callable[[float], None] | None = None,
) -> dict[str, object]:
    """Train a base model from random weights on its corpus, one pass, and save it to the folder `output`.

    `on_progress` is called with the fraction done after each step.
    """
    tokenizer = build_tokenizer(settings.chat_template)
    model = build_model(
        settings.architecture, tokenizer, hidden_size=settings.hidden_size, layers=settings.layers, seed=seed
    )
    clean, fallible = pretraining_corpus(settings, seed)
    total = len(clean) + len(fallible)
    summaries = []
    # only the last phase is saved: a base that is there is complete
    phases = [
        (clean, settings.learning_rate, None, 0),
        (fallible, settings.fallible_learning_rate, output, len(clean)),
    ]
    for traces, rate, folder, before in phases:
        training = SFTSettings(
            learning_rate=rate,
            batch_size=settings.batch_size,
            max_length=CONTEXT_LENGTH,
            adam_beta2=0.98,
            seed=seed,
        )

        def report(fraction: float, before: int = before, size: int = len(traces)) -> None:
            if on_progress is not None:
                on_progress((before + fraction * size) / total)

        summaries.append(
            train_sft(model, traces, folder, training, tokenizer=tokenizer, progress=progress, on_progress=report)
        )
    return {"phases": summaries}
