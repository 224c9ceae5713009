"""The second domain: multi-label choice, which of eleven statements about the lettered tables are true.

aPQ3 states that table P and then table Q send 3 to an odd digit; aPQ3bAC1...=? asks which statements are true. It is
worked statement by statement: its digit, each table with the digit after it, then y or n, as in a3P5Q7yb1A0C4n...,
and answered by the labels of the true ones, such as \\boxed{adf}. Eleven statements have 2,047 answers, so that 64
guesses succeed 3 % of the time. Bases did not learn statements that claim a digit (aPQ37): they judged at random
whether it was the one that they had found, even with both side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from quagmire_utils.training.microlab.table_chains import COMMON, LABELS, LETTERS, RARE, TABLES, draw_letters

STATEMENTS = 11
LookUp = Callable[[str, str], str]  # (letter, digit) -> digit


@dataclass(frozen=True)
class StatementSpec:
    """One kind of problem: tables of a statement plus one, and from which tables they are drawn."""

    terms: int
    letters: str = LETTERS
    digits: int = 1  # of a state; this task has no other

    def draw(self, rng: np.random.Generator) -> Statements:
        """Draw the statements; at least one of them is true."""
        while True:
            letters = [draw_letters(self.letters, self.terms - 1, rng) for _ in range(STATEMENTS)]
            chains = tuple(zip(letters, map(str, rng.integers(10, size=STATEMENTS)), strict=True))
            if (drawn := Statements(chains)).answer:
                return drawn


def follow(letters: str, digit: str, look_up: LookUp = lambda letter, digit: TABLES[letter][int(digit)]) -> str:
    """Return the digit after each of the tables."""
    passed = ""
    for letter in letters:
        digit = look_up(letter, digit)
        passed += digit
    return passed


# Seven as the paper's, from easy to hard.
STATEMENT_BENCHMARKS: dict[str, StatementSpec] = {
    "common1_true": StatementSpec(2, COMMON),
    "common2_true": StatementSpec(3, COMMON),
    "mixed1_true": StatementSpec(2),
    "mixed2_true": StatementSpec(3),
    "mixed3_true": StatementSpec(4),
    "rare1_true": StatementSpec(2, RARE),
    "rare2_true": StatementSpec(3, RARE),
}


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
        return self._choose(self.work())

    def work(self, look_up: LookUp | None = None, steps: int = STATEMENTS) -> list[str]:
        """Return the digits of the first `steps` statements, by the tables or by another `look_up`."""
        how = () if look_up is None else (look_up,)
        return [follow(letters, digit, *how) for letters, digit in self.chains[:steps]]

    def write(self, style: str = "stepwise", results: Sequence[str] | None = None) -> str:
        """Return a worked solution; `restated` sets = before each digit. `results`: as `tasks.write_trace`."""
        equals, results = "=" if style == "restated" else "", results or self.work()
        lines = []
        for label, (letters, digit), digits in zip(LABELS, self.chains, results, strict=False):
            passed = "".join(letter + equals + after for letter, after in zip(letters, digits, strict=True))
            lines.append(label + digit + passed + "ny"[int(digits[-1]) % 2])
        return "".join(lines) + f"\\boxed{{{self._choose(results)}}}"

    def guess(self, rng: np.random.Generator) -> str:
        """Return a random answer."""
        return "".join(label for label, chosen in zip(LABELS, rng.random(STATEMENTS) < 0.5, strict=False) if chosen)

    def _choose(self, results: Sequence[str]) -> str:
        return "".join(label for label, digits in zip(LABELS, results, strict=False) if int(digits[-1]) % 2)
