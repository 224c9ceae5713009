"""The second domain: multi-label choice, which of eleven statements about the lettered tables are true.

aPQ37 states that table P and then table Q send 3 to 7; aPQ37bAC12...=? asks which statements are true. It is worked
statement by statement: its digit, each table with the digit after it, the digit that it claims, then y or n, as in
a3P5Q77yb1A0C42n..., and answered by the labels of the true ones, such as \\boxed{adf}. Eleven statements have 2,047
answers, so that 64 guesses succeed 3 % of the time. A base that had to find table and digit by the label alone looked
nothing up, and one that had to find the claimed digit judged at random.
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
        """Draw the statements; each is true with a chance of a half, and at least one of them is."""
        while True:
            claims = []
            for true in rng.random(STATEMENTS) < 0.5:
                letters, digit = draw_letters(self.letters, self.terms - 1, rng), str(rng.integers(10))
                right = follow(letters, digit)[-1]
                claimed = right if true else str((int(right) + rng.integers(1, 10)) % 10)
                claims.append((letters, digit, claimed))
            if (drawn := Statements(tuple(claims))).answer:
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
    """Statements (letters, digit, claimed digit)."""

    claims: tuple[tuple[str, str, str], ...]

    @property
    def terms(self) -> tuple[str, ...]:
        """The letters of a statement, and its digit."""
        letters, digit, _ = self.claims[0]
        return *letters, digit

    @property
    def steps(self) -> int:
        """How many statements a worked solution checks."""
        return len(self.claims)

    @property
    def question(self) -> str:
        """The problem as the model reads it."""
        return "".join(label + "".join(claim) for label, claim in zip(LABELS, self.claims, strict=False)) + "=?"

    @property
    def answer(self) -> str:
        """The labels of the true statements."""
        return self._choose(self.work())

    def work(self, look_up: LookUp | None = None, steps: int = STATEMENTS) -> list[str]:
        """Return the digits of the first `steps` statements, by the tables or by another `look_up`."""
        how = () if look_up is None else (look_up,)
        return [follow(letters, digit, *how) for letters, digit, _ in self.claims[:steps]]

    def write(self, style: str = "stepwise", results: Sequence[str] | None = None) -> str:
        """Return a worked solution; `restated` sets = before each digit. `results`: as `tasks.write_trace`."""
        equals, results = "=" if style == "restated" else "", results or self.work()
        worked = zip(LABELS, self.claims, results, strict=False)
        lines = []
        for label, (letters, digit, claimed), digits in worked:
            passed = "".join(letter + equals + after for letter, after in zip(letters, digits, strict=True))
            lines.append(label + digit + passed + claimed + "ny"[digits[-1] == claimed])
        return "".join(lines) + f"\\boxed{{{self._choose(results)}}}"

    def guess(self, rng: np.random.Generator) -> str:
        """Return a random answer."""
        return "".join(label for label, chosen in zip(LABELS, rng.random(STATEMENTS) < 0.5, strict=False) if chosen)

    def _choose(self, results: Sequence[str]) -> str:
        checked = zip(LABELS, self.claims, results, strict=False)
        return "".join(label for label, claim, digits in checked if digits[-1] == claim[-1])
