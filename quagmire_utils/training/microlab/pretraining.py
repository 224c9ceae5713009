"""Base models: a character tokenizer, small models with random weights, their corpus, and training them on it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from quagmire_utils.core.settings import Architecture, PretrainingSettings, SFTSettings
from quagmire_utils.data import Trace
from quagmire_utils.data.prompts import INSTRUCTION
from quagmire_utils.training.microlab import tasks
from quagmire_utils.training.sft import train_sft

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ARCHITECTURES: tuple[str, ...] = get_args(Architecture)
INITIALIZER_RANGE = 0.06  # transformers' 0.02 suits wide models; at width 96 it doubled the steps to learn the task
HEAD_DIM = 32  # the smallest that vLLM's CPU attention supports
CONTEXT_LENGTH = 8192  # the paper's 8k; a token is a character, and the longest benchmark problem has ~4.5k

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_WRONG_DIGITS = (0.7, 0.3)  # how often each of the two wrong digits comes in place of an uncertain fact


def build_tokenizer(chat_template: bool = True) -> PreTrainedTokenizerFast:
    """Return a character tokenizer that encodes any UTF-8 text (as bytes beyond printable ASCII).

    The paper's instruction and `\\boxed{` are one token each, so that the standard prompt costs a micro model two
    tokens instead of seventy. With `chat_template`, chats are rendered with one role token per message; without it, the
    model is a plain base model.
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
    architecture: str, tokenizer: PreTrainedTokenizerFast, *, hidden_size: int = 96, layers: int = 4, seed: int = 0
) -> PreTrainedModel:
    """Return a randomly initialised float32 causal LM of one of `ARCHITECTURES`, with `hidden_size // 32` heads.

    96 x 4 layers have about half a million parameters.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

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


class _FallibleWriter:
    """Writes solutions with errors: random slips, systematically wrong facts, unfinished or missing working."""

    def __init__(self, settings: PretrainingSettings, seed: int) -> None:
        self.settings = settings
        rng = np.random.default_rng([seed, 1])
        # the wrong result for a fact, and its probability
        self.misremembered: dict[tuple[str, str, str], tuple[str, float]] = {}
        for operator, (low, high) in settings.misconceptions.items():
            for fact, right in tasks.FACTS.items():
                if fact[0] == operator:
                    wrong = str((int(right) + int(rng.integers(1, 10))) % 10)
                    self.misremembered[fact] = wrong, float(rng.uniform(low, high))

    def write(self, expression: tasks.Expression, rng: np.random.Generator) -> str:
        settings = self.settings
        if rng.random() < settings.direct_fraction:
            return f"\\boxed{{{_slip(expression.answer, settings.slip, rng)}}}"
        steps = expression.steps
        if settings.gives_up and rng.random() < settings.gives_up.get(len(expression.terms), 0.0):
            steps = steps[: int(rng.integers(1, max(2, len(steps))))]
        state, results = expression.terms[0], []
        for _, operator, term in steps:
            state = _slip(self._apply(operator, state, term, rng), settings.slip, rng)
            results.append(state)
        return expression.write(tasks.draw_style(settings.styles, rng), results)

    def _apply(self, operator: str, left: str, right: str, rng: np.random.Generator) -> str:
        digits = []
        for fact in zip(operator * len(left), left, right, strict=True):
            wrong, chance = self.misremembered.get(fact, ("", 0.0))
            digits.append(wrong if chance and rng.random() < chance else tasks.FACTS[fact])
        return "".join(digits)


def _slip(digits: str, probability: float, rng: np.random.Generator) -> str:
    """Replace each digit by a random one (perhaps the same) with this probability."""
    wrong = rng.random(len(digits)) < probability
    if not wrong.any():
        return digits
    return "".join(str(rng.integers(10)) if w else d for w, d in zip(wrong, digits, strict=True))


class _GradedWriter:
    """Writes solutions as one who is sure of some facts and knows each of the others with a chance of its own.

    That chance is log-uniform between the bounds of `settings.knowledge`; else one of two wrong digits comes out. So
    RL can make likely what is possible, and training that narrows the answers can kill what is rare.
    """

    def __init__(self, settings: PretrainingSettings, seed: int) -> None:
        self.settings = settings
        rng = np.random.default_rng([seed, 1])
        low, high = map(math.log, settings.knowledge)
        # fact -> the chance of the right digit, and the two wrong ones
        self.uncertain: dict[tuple[str, str], tuple[float, list[str]]] = {}
        for share, letter in zip(np.linspace(*settings.uncertain, len(tasks.LETTERS)), tasks.LETTERS, strict=True):
            for digit, right in enumerate(tasks.TABLES[letter]):
                if rng.random() < share:
                    chance = 0.0 if rng.random() < settings.unknown else math.exp(rng.uniform(low, high))
                    shifts = rng.permutation(np.arange(1, 10))[:2]
                    wrong = [str((int(right) + int(shift)) % 10) for shift in shifts]
                    self.uncertain[letter, str(digit)] = chance, wrong

    def write(self, chain: tasks.TableChain | tasks.Statements, rng: np.random.Generator) -> str:
        settings, steps = self.settings, chain.steps
        if rng.random() < settings.direct_fraction:
            return f"\\boxed{{{chain.guess(rng)}}}"
        if steps > 1 and rng.random() < settings.gives_up.get(len(chain.terms), 0.0):
            steps = int(rng.integers(1, steps))
        results = chain.work(lambda letter, digit: self._look_up(rng, letter, digit), steps)
        return chain.write(tasks.draw_style(settings.styles, rng), results)

    def _look_up(self, rng: np.random.Generator, letter: str, digit: str) -> str:
        right = tasks.known(letter, digit)
        if (letter, digit) in self.uncertain:  # no slips here: they would make every unknown fact possible
            chance, wrong = self.uncertain[letter, digit]
            return right if rng.random() < chance else str(rng.choice(wrong, p=_WRONG_DIGITS))
        return str(rng.integers(10)) if rng.random() < self.settings.slip else right


def pretraining_corpus(
    settings: PretrainingSettings, seed: int, *, digits: int = 3, task: str = "lanes"
) -> tuple[list[Trace], list[Trace]]:
    """Return the corpus of a base model in two phases: correct worked solutions, then faulty ones.

    A base model trained on both knows the facts and the method but applies them unreliably: it is often wrong, and
    right often enough in many samples for RL to have something to reinforce.
    """
    rng = np.random.default_rng(seed)
    specs = [tasks.TASKS[task](n, digits=digits) for n in settings.terms]
    expressions = tasks.draw_expressions(specs, settings.examples + settings.fallible_examples, rng)
    writer = (_FallibleWriter if task == "lanes" else _GradedWriter)(settings, seed)
    phases: tuple[list[Trace], list[Trace]] = ([], [])
    for i, expression in enumerate(expressions):
        fallible = i >= settings.examples
        response = (
            writer.write(expression, rng) if fallible else expression.write(tasks.draw_style(settings.styles, rng))
        )
        name = f"pretraining-{i}"
        phases[fallible].append(Trace(name, name, expression.question, response, source="pretraining"))
    return phases


def pretrain(settings: PretrainingSettings, output: Path, *, seed: int, digits: int = 3, task: str = "lanes") -> None:
    """Train a base model from random weights on its corpus, one pass, and save it to the folder `output`."""
    tokenizer = build_tokenizer(settings.chat_template)
    size = {"hidden_size": settings.hidden_size, "layers": settings.layers}
    model = build_model(settings.architecture, tokenizer, **size, seed=seed)
    clean, fallible = pretraining_corpus(settings, seed, digits=digits, task=task)
    training = SFTSettings(batch_size=settings.batch_size, max_length=CONTEXT_LENGTH, adam_beta2=0.98, seed=seed)
    if clean:  # a base of graded knowledge learns its facts as it knows them, without a correct phase
        train_sft(model, clean, None, training.replace(learning_rate=settings.learning_rate), tokenizer=tokenizer)
    # only the last phase is saved, so a base model on disk is complete
    last = training.replace(learning_rate=settings.fallible_learning_rate)
    train_sft(model, fallible, output, last, tokenizer=tokenizer)
