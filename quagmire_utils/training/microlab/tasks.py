"""The synthetic task: chains of digit-wise operations, their worked solutions, problems and benchmarks.

`TASKS` names it and those of `lettered_tables.py`; problems and traces are drawn here for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from quagmire_utils.data import Problem, Trace
from quagmire_utils.data.prompts import INSTRUCTION
from quagmire_utils.training.microlab.lettered_tables import (
    LABELS,
    TABLE_BENCHMARKS,
    Statements,
    StatementSpec,
    TableChain,
    TableSpec,
)

# A state has three or four digits. Each step applies + - or * with an operand of as many digits, digit by digit modulo
# 10, without carries: 374a+258b*112=? is worked left to right, 374+258=522, then 522*112=524. A step is a table look-up
# per digit, so errors are random slips and unlearned table entries. There are 1,000 answers (64 random guesses succeed
# 6 % of the time) or 10,000 (0.6 %). The number of terms sets the difficulty and the length of a trace. The labels a,
# b, ... mark the position; without them a model of half a million parameters needed ten times as many examples to learn
# which term comes next.

OPERATORS = "+-*"
STYLES = ("stepwise", "restated")


@dataclass(frozen=True)
class TaskSpec:
    """One kind of problem: the number of terms, the operators between them, the digits of a term."""

    terms: int
    operators: str = OPERATORS
    digits: int = 3

    def draw(self, rng: np.random.Generator) -> Expression:
        """Draw a chain, all terms and operators equally likely."""
        numbers = rng.integers(0, 10**self.digits, self.terms)
        operators = "".join(self.operators[i] for i in rng.integers(0, len(self.operators), self.terms - 1))
        return Expression(tuple(f"{number:0{self.digits}d}" for number in numbers), operators)


Spec = TaskSpec | TableSpec  # a StatementSpec is a TableSpec

# A profile measures seven of a task, as many as the paper's, from easy to hard.
MICRO_BENCHMARKS: dict[str, Spec] = {
    "sums2": TaskSpec(2, "+-"),
    "products2": TaskSpec(2, "*"),
    "lanes2": TaskSpec(2),
    "sums3": TaskSpec(3, "+-"),
    "lanes3": TaskSpec(3),
    "sums4": TaskSpec(4, "+-"),
    "sums5": TaskSpec(5, "+-"),
    "lanes4": TaskSpec(4),
    "lanes5": TaskSpec(5),
    "lanes6": TaskSpec(6),
    **TABLE_BENCHMARKS,
}

FACTS = {
    (operator, a, b): str(value % 10)
    for a in "0123456789"
    for b in "0123456789"
    for operator, value in (("+", int(a) + int(b)), ("-", int(a) - int(b)), ("*", int(a) * int(b)))
}


def _apply(operator: str, left: str, right: str) -> str:
    return "".join(FACTS[operator, a, b] for a, b in zip(left, right, strict=True))


@dataclass(frozen=True)
class Expression:
    """A chain such as 374a+258b*112, worked left to right."""

    terms: tuple[str, ...]
    operators: str

    @property
    def question(self) -> str:
        """The problem as the model reads it."""
        return self.terms[0] + "".join("".join(step) for step in self.steps) + "=?"

    @property
    def steps(self) -> tuple[tuple[str, str, str], ...]:
        """(label, operator, term) of each step; the label says which step it is."""
        return tuple(zip(LABELS[: len(self.operators)], self.operators, self.terms[1:], strict=True))

    @property
    def states(self) -> tuple[str, ...]:
        """The state after each step; the last one is the answer."""
        states = accumulate(self.steps, lambda state, step: _apply(step[1], state, step[2]), initial=self.terms[0])
        return tuple(states)[1:]

    @property
    def answer(self) -> str:
        """The final state."""
        return self.states[-1]

    def write(self, style: str = "stepwise", results: Sequence[str] | None = None) -> str:
        """Return a worked solution ending in \\boxed{...}, in one of `STYLES` (for the paper's SFT sources).

        For 374a+258=? stepwise writes a3+257+524+82 (digit, operator, digit, result, for each digit), and restated adds
        =522. `results` replace the states after each step; if they are fewer than the steps, the solution ends there.
        """
        state, lines = self.terms[0], []
        for (label, operator, term), result in zip(self.steps, results or self.states, strict=False):
            lanes = "".join(f"{a}{operator}{b}{c}" for a, b, c in zip(state, term, result, strict=True))
            lines.append(label + lanes + (f"={result}" if style == "restated" else ""))
            state = result
        return "\n".join([*lines, f"\\boxed{{{state}}}"])


TASKS: dict[str, type[Spec]] = {"lanes": TaskSpec, "tables": TableSpec, "statements": StatementSpec}


def draw_style(styles: Sequence[str], rng: np.random.Generator) -> str:
    """Draw one of the styles uniformly."""
    return styles[int(rng.integers(len(styles)))] if len(styles) > 1 else styles[0]


def draw_expressions(
    specs: Sequence[Spec], count: int, rng: np.random.Generator
) -> list[Expression | TableChain | Statements]:
    """Draw `count` different chains, each of a spec drawn uniformly from `specs` (repeat a spec to weight it)."""
    drawn: dict[str, Expression | TableChain | Statements] = {}
    while len(drawn) < count:
        expression = specs[rng.integers(len(specs))].draw(rng)
        drawn.setdefault(expression.question, expression)
    return list(drawn.values())


def make_problems(name: str, spec: Spec, count: int, seed: int) -> list[Problem]:
    """Return `count` problems of one spec."""
    kinds = spec.operators if isinstance(spec, TaskSpec) else spec.letters
    rng = np.random.default_rng([seed, spec.terms, len(kinds)])
    return _problems(name, draw_expressions([spec], count, rng))


def make_mixed_problems(
    terms: Sequence[int], count: int, seed: int, *, digits: int = 3, task: str = "lanes"
) -> list[Problem]:
    """Return `count` problems for RL, with numbers of terms drawn uniformly from `terms`."""
    specs = [TASKS[task](n, digits=digits) for n in terms]
    return _problems("mixed", draw_expressions(specs, count, np.random.default_rng(seed)))


def _problems(name: str, expressions: Sequence[Expression | TableChain | Statements]) -> list[Problem]:
    how = {"grader": "text", "instruction": INSTRUCTION} if isinstance(expressions[0], Statements) else {}
    return [Problem(f"{name}-{i}", e.question, e.answer, **how) for i, e in enumerate(expressions)]


def make_traces(
    terms: Sequence[int],
    count: int,
    *,
    styles: Sequence[str],
    source: str,
    seed: int,
    digits: int = 3,
    task: str = "lanes",
) -> list[Trace]:
    """Return `count` correct solutions of different problems, each in one of the styles: a source of SFT examples."""
    specs, rng = [TASKS[task](n, digits=digits) for n in terms], np.random.default_rng(seed)
    traces = []
    for i, expression in enumerate(draw_expressions(specs, count, rng)):
        name, response = f"{source}-{i}", expression.write(draw_style(styles, rng))
        traces.append(Trace(name, name, expression.question, response, answer=expression.answer, source=source))
    return traces
