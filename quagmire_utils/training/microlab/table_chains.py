"""The second synthetic task: chains of lettered tables.

Each step of a chain applies one table, named by a letter, to every digit of a state: aPbQ:3742=? is worked as
aP5280bQ1374, with the answer 1374. A table is a permutation of the ten digits, so all answers are equally likely. A
fact is one entry of one table. Three things were needed for half a million parameters to learn the task: labels a, b,
... of the steps (without them the third table was a guess), the state last (in front of the chain, its distance from
the first step depended on the number of steps), and facts of one digit (tables of two were not learned in 400 looks).
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

LABELS = "abcdefghijklm"
LETTERS = string.ascii_uppercase  # of the tables, from the most to the least common
COMMON, RARE = LETTERS[:8], LETTERS[13:]
_FREQUENCIES = 1 / (np.arange(len(LETTERS)) + 12)  # the first is three times as frequent as the last


def _make_tables() -> dict[str, str]:
    rng = np.random.default_rng(77)
    return {letter: "".join(map(str, rng.permutation(10))) for letter in LETTERS}


TABLES = _make_tables()


def _look_up(state: str, letter: str) -> str:
    return "".join(TABLES[letter][int(digit)] for digit in state)


def draw_letters(letters: str, count: int, rng: np.random.Generator) -> str:
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
        return TableChain(start, draw_letters(self.letters, self.terms - 1, rng))


# Seven as the paper's; the number of steps and the frequency of the tables make problems easy or hard.
TABLE_BENCHMARKS: dict[str, TableSpec] = {
    "common3": TableSpec(4, COMMON),
    "common4": TableSpec(5, COMMON),
    "mixed2": TableSpec(3),
    "mixed3": TableSpec(4),
    "mixed4": TableSpec(5),
    "rare2": TableSpec(3, RARE),
    "rare3": TableSpec(4, RARE),
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
    def question(self) -> str:
        """The problem as the model reads it."""
        steps = "".join(label + letter for label, letter in zip(LABELS, self.letters, strict=False))
        return f"{steps}:{self.start}=?"

    @property
    def steps(self) -> int:
        """How many states a worked solution passes."""
        return len(self.letters)

    @property
    def states(self) -> tuple[str, ...]:
        """The state after each step; the last one is the answer."""
        return tuple(accumulate(self.letters, _look_up, initial=self.start))[1:]

    @property
    def answer(self) -> str:
        """The final state."""
        return self.states[-1]

    def work(self, look_up: Callable[[str, str], str], steps: int) -> list[str]:
        """Return the first `steps` states if (letter, digit) -> digit is looked up so."""
        states = accumulate(
            self.letters[:steps], lambda state, letter: "".join(look_up(letter, d) for d in state), initial=self.start
        )
        return [*states][1:]

    def guess(self, rng: np.random.Generator) -> str:
        """Return a random answer."""
        return "".join(map(str, rng.integers(0, 10, len(self.start))))

    def write(self, style: str = "stepwise", results: Sequence[str] | None = None) -> str:
        """Return a worked solution; `restated` sets = before each state. `results`: as `tasks.write_trace`."""
        equals = "=" if style == "restated" else ""
        states = results or self.states
        steps = zip(LABELS, self.letters, states, strict=False)
        return "".join(label + letter + equals + state for label, letter, state in steps) + f"\\boxed{{{states[-1]}}}"
