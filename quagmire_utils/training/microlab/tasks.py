"""The synthetic tasks: chains of digit-wise operations, chains of lettered tables, and statements about these.

**Lanes.** A state has three or four digits. Each step applies + - or * with an operand of as many digits, digit by
digit modulo 10, without carries: 374a+258b*112=? is worked left to right, 374+258=522, then 522*112=524. A step is a
table look-up per digit, so errors are random slips and unlearned table entries. There are 1,000 answers (64 random
guesses succeed 6 % of the time) or 10,000 (0.6 %). The number of terms sets the difficulty and the length of a trace.
The labels a, b, ... mark the position; without them a model of half a million parameters needed ten times as many
examples to learn which term comes next.

**Tables.** Each step of a chain applies one table, named by a letter, to every digit of a state: aPbQ:3742=? is worked
as aP5280bQ1374, with the answer 1374. A table is a permutation of the ten digits, so all answers are equally likely. A
fact is one entry of one table. Three things were needed for half a million parameters to learn the task: labels a, b,
... of the steps (without them the third table was a guess), the state last (in front of the chain, its distance from
the first step depended on the number of steps), and facts of one digit (tables of two were not learned in 400 looks).

**Statements.** aPQ3 states that table P and then table Q send 3 to an odd digit; aPQ3bAC1...=? asks which of eleven
statements are true. It is worked statement by statement: its digit, each table with the digit after it, then y or n,
as in a3P5Q7yb1A0C4n..., and answered by the labels of the true ones, such as \\boxed{adf}. Eleven statements have 2,047
answers, so that 64 guesses succeed 3 % of the time. Bases did not learn statements that claim a digit (aPQ37): they
judged at random whether it was the one that they had found, even with both side by side.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from quagmire_utils.data import Problem, Trace
from quagmire_utils.data.prompts import INSTRUCTION

STYLES = ("stepwise", "restated")
LABELS = "abcdefghijklm"
LETTERS = string.ascii_uppercase  # of the tables, from the most to the least common
COMMON, RARE = LETTERS[:8], LETTERS[13:]
STATEMENTS = 11
LookUp = Callable[[str, str], str]  # (letter, digit) -> digit
_FREQUENCIES = 1 / (np.arange(len(LETTERS)) + 12)  # the first is three times as frequent as the last


_rng = np.random.default_rng(77)
TABLES = {letter: "".join(map(str, _rng.permutation(10))) for letter in LETTERS}


def known(letter: str, digit: str) -> str:
    """Return the digit to which a table sends another one."""
    return TABLES[letter][int(digit)]


def _draw_letters(letters: str, count: int, rng: np.random.Generator) -> str:
    """Draw different tables: from all of them by their frequencies, from fewer with equal chances."""
    weights = _FREQUENCIES if letters == LETTERS else np.ones(len(letters))
    return "".join(rng.choice(list(letters), count, replace=False, p=weights / weights.sum()))


@dataclass(frozen=True)
class TableSpec:
    """One kind of problem: the number of terms (a state and the tables), which tables, the digits of a state."""

    terms: int
    letters: str = LETTERS
    digits: int = 4

    def draw(self, rng: np.random.Generator) -> TableChain:
        """Draw a chain of different tables."""
        start = f"{rng.integers(0, 10**self.digits):0{self.digits}d}"
        return TableChain(start, _draw_letters(self.letters, self.terms - 1, rng))


@dataclass(frozen=True)
class StatementSpec(TableSpec):
    """One kind of problem: the number of terms (a digit and the tables of a statement), and which tables."""

    def draw(self, rng: np.random.Generator) -> Statements:
        """Draw the statements; at least one of them is true."""
        while True:
            letters = [_draw_letters(self.letters, self.terms - 1, rng) for _ in range(STATEMENTS)]
            chains = tuple(zip(letters, map(str, rng.integers(10, size=STATEMENTS)), strict=True))
            if (drawn := Statements(chains)).answer:
                return drawn


# Seven of each, as the paper's; the number of steps and the frequency of the tables make problems easy or hard.
TABLE_BENCHMARKS: dict[str, TableSpec] = {
    "common3": TableSpec(4, COMMON),
    "common4": TableSpec(5, COMMON),
    "mixed2": TableSpec(3),
    "mixed3": TableSpec(4),
    "mixed4": TableSpec(5),
    "rare2": TableSpec(3, RARE),
    "rare3": TableSpec(4, RARE),
    "common1_true": StatementSpec(2, COMMON),
    "common2_true": StatementSpec(3, COMMON),
    "mixed1_true": StatementSpec(2),
    "mixed2_true": StatementSpec(3),
    "mixed3_true": StatementSpec(4),
    "rare1_true": StatementSpec(2, RARE),
    "rare2_true": StatementSpec(3, RARE),
}


@dataclass(frozen=True)
class TableChain:
    """A state, and the letters of the tables that are applied to it in this order."""

    start: str
    letters: str

    @property
    def terms(self) -> tuple[str, ...]:
        """The state and the letters."""
        return self.start, *self.letters

    @property
    def steps(self) -> int:
        """How many states a worked solution passes."""
        return len(self.letters)

    @property
    def question(self) -> str:
        """The problem as the model reads it."""
        steps = "".join(label + letter for label, letter in zip(LABELS, self.letters, strict=False))
        return f"{steps}:{self.start}=?"

    @property
    def answer(self) -> str:
        """The final state."""
        return self.work()[-1]

    def work(self, look_up: LookUp = known, steps: int | None = None) -> list[str]:
        """Return the first `steps` states (None: all), by the tables or by another `look_up`."""
        state, states = self.start, []
        for letter in self.letters[:steps]:
            state = "".join(look_up(letter, digit) for digit in state)
            states.append(state)
        return states

    def guess(self, rng: np.random.Generator) -> str:
        """Return a random answer."""
        return "".join(map(str, rng.integers(0, 10, len(self.start))))

    def write(self, style: str = "stepwise", results: Sequence[str] | None = None) -> str:
        """Return a worked solution; `restated` sets = before each state. `results`: as `Expression.write`."""
        equals = "=" if style == "restated" else ""
        states = results or self.work()
        steps = zip(LABELS, self.letters, states, strict=False)
        return "".join(label + letter + equals + state for label, letter, state in steps) + f"\\boxed{{{states[-1]}}}"


@dataclass(frozen=True)
class Statements:
    """Statements (letters, digit)."""

    chains: tuple[tuple[str, str], ...]

    @property
    def terms(self) -> tuple[str, ...]:
        """The letters of a statement, and its digit."""
        letters, digit = self.chains[0]
        return *letters, digit

    @property
    def steps(self) -> int:
        """How many statements a worked solution checks."""
        return len(self.chains)

    @property
    def question(self) -> str:
        """The problem as the model reads it."""
        return "".join(label + "".join(chain) for label, chain in zip(LABELS, self.chains, strict=False)) + "=?"

    @property
    def answer(self) -> str:
        """The labels of the true statements."""
        return self._true(self.work())

    def work(self, look_up: LookUp = known, steps: int | None = None) -> list[str]:
        """Return the digits of the first `steps` statements (None: all), by the tables or by another `look_up`."""
        results = []
        for letters, digit in self.chains[:steps]:
            passed = [digit]
            for letter in letters:
                passed.append(look_up(letter, passed[-1]))
            results.append("".join(passed[1:]))
        return results

    def guess(self, rng: np.random.Generator) -> str:
        """Return a random answer."""
        return "".join(label for label, chosen in zip(LABELS, rng.random(STATEMENTS) < 0.5, strict=False) if chosen)

    def write(self, style: str = "stepwise", results: Sequence[str] | None = None) -> str:
        """Return a worked solution; `restated` sets = before each digit. `results`: as `Expression.write`."""
        equals, results = "=" if style == "restated" else "", results or self.work()
        lines = []
        for label, (letters, digit), digits in zip(LABELS, self.chains, results, strict=False):
            passed = "".join(letter + equals + after for letter, after in zip(letters, digits, strict=True))
            lines.append(label + digit + passed + "ny"[int(digits[-1]) % 2])
        return "".join(lines) + f"\\boxed{{{self._true(results)}}}"

    def _true(self, results: Sequence[str]) -> str:
        return "".join(label for label, digits in zip(LABELS, results, strict=False) if int(digits[-1]) % 2)


OPERATORS = "+-*"


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
        states = [self.terms[0]]
        for _, operator, term in self.steps:
            states.append("".join(FACTS[operator, a, b] for a, b in zip(states[-1], term, strict=True)))
        return tuple(states[1:])

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
