"""Base models: their pretraining corpus, and training them from random weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from quagmire_utils.core.settings import PretrainingSettings, SFTSettings
from quagmire_utils.data import Trace
from quagmire_utils.training.microlab.models import CONTEXT_LENGTH, build_model, build_tokenizer
from quagmire_utils.training.microlab.statements import Statements
from quagmire_utils.training.microlab.table_chains import LETTERS, TABLES, TableChain
from quagmire_utils.training.microlab.tasks import (
    DIGITS,
    FACTS,
    TASKS,
    Expression,
    draw_expressions,
    draw_style,
    write_trace,
)
from quagmire_utils.training.sft import train_sft

_WRONG_DIGITS = (0.7, 0.3)  # how often each of the two wrong digits comes in place of an uncertain fact


class _FallibleWriter:
    """Writes solutions with errors: random slips, systematically wrong facts, unfinished or missing working."""

    def __init__(self, settings: PretrainingSettings, seed: int) -> None:
        self.settings = settings
        rng = np.random.default_rng([seed, 1])
        # the wrong result for a fact, and its probability
        self.misremembered: dict[tuple[str, str, str], tuple[str, float]] = {}
        for operator, (low, high) in settings.misconceptions.items():
            for fact, right in FACTS.items():
                if fact[0] == operator:
                    wrong = str((int(right) + int(rng.integers(1, 10))) % 10)
                    self.misremembered[fact] = wrong, float(rng.uniform(low, high))

    def write(self, expression: Expression, rng: np.random.Generator) -> str:
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
        return write_trace(expression, draw_style(settings.styles, rng), results)

    def _apply(self, operator: str, left: str, right: str, rng: np.random.Generator) -> str:
        digits = []
        for fact in zip(operator * len(left), left, right, strict=True):
            wrong, chance = self.misremembered.get(fact, ("", 0.0))
            digits.append(wrong if chance and rng.random() < chance else FACTS[fact])
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
        for share, letter in zip(np.linspace(*settings.uncertain, len(LETTERS)), LETTERS, strict=True):
            for digit, right in enumerate(TABLES[letter]):
                if rng.random() < share:
                    chance = 0.0 if rng.random() < settings.unknown else math.exp(rng.uniform(low, high))
                    shifts = rng.permutation(np.arange(1, 10))[:2]
                    wrong = [str((int(right) + int(shift)) % 10) for shift in shifts]
                    self.uncertain[letter, str(digit)] = chance, wrong

    def write(self, chain: TableChain | Statements, rng: np.random.Generator) -> str:
        settings, steps = self.settings, chain.steps
        if rng.random() < settings.direct_fraction:
            return f"\\boxed{{{chain.guess(rng)}}}"
        if steps > 1 and rng.random() < settings.gives_up.get(len(chain.terms), 0.0):
            steps = int(rng.integers(1, steps))
        results = chain.work(lambda letter, digit: self._look_up(rng, letter, digit), steps)
        return chain.write(draw_style(settings.styles, rng), results)

    def _look_up(self, rng: np.random.Generator, letter: str, digit: str) -> str:
        right = TABLES[letter][int(digit)]
        if (letter, digit) in self.uncertain:  # no slips here: they would make every unknown fact possible
            chance, wrong = self.uncertain[letter, digit]
            return right if rng.random() < chance else str(rng.choice(wrong, p=_WRONG_DIGITS))
        return str(rng.integers(10)) if rng.random() < self.settings.slip else right


def pretraining_corpus(
    settings: PretrainingSettings, seed: int, *, digits: int = DIGITS[0], task: str = "lanes"
) -> tuple[list[Trace], list[Trace]]:
    """Return the corpus of a base model in two phases: correct worked solutions, then faulty ones.

    The faulty ones have random slips, answers without working, mostly wrong, and by the settings wrong facts and
    unfinished solutions. A base model trained on both knows the facts and the method but applies them unreliably: it is
    often wrong, and right often enough in many samples for RL to have something to reinforce.
    """
    rng = np.random.default_rng(seed)
    specs = [TASKS[task](n, digits=digits) for n in settings.terms]
    expressions = draw_expressions(specs, settings.examples + settings.fallible_examples, rng)
    writer = (_FallibleWriter if task == "lanes" else _GradedWriter)(settings, seed)
    phases: tuple[list[Trace], list[Trace]] = ([], [])
    for i, expression in enumerate(expressions):
        fallible = i >= settings.examples
        response = writer.write(expression, rng) if fallible else expression.write(draw_style(settings.styles, rng))
        name = f"pretraining-{i}"
        phases[fallible].append(Trace(name, name, expression.question, response, source="pretraining"))
    return phases


def pretrain(
    settings: PretrainingSettings,
    output: str | Path,
    *,
    seed: int,
    digits: int = DIGITS[0],
    task: str = "lanes",
) -> None:
    """Train a base model from random weights on its corpus, one pass, and save it to the folder `output`."""
    tokenizer = build_tokenizer(settings.chat_template)
    size = {"hidden_size": settings.hidden_size, "layers": settings.layers}
    model = build_model(settings.architecture, tokenizer, **size, seed=seed)
    clean, fallible = pretraining_corpus(settings, seed, digits=digits, task=task)
    training = SFTSettings(batch_size=settings.batch_size, max_length=CONTEXT_LENGTH, adam_beta2=0.98, seed=seed)
    # only the last phase is saved, so a base model on disk is complete
    for traces, rate, folder in (
        (clean, settings.learning_rate, None),
        (fallible, settings.fallible_learning_rate, output),
    ):
        if not traces:  # a base of graded knowledge learns its facts as it knows them, without a correct phase
            continue
        phase = training.replace(learning_rate=rate)
        train_sft(model, traces, folder, phase, tokenizer=tokenizer)
