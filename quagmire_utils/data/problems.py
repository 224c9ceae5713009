"""What a benchmark is made of: problems, traces, and the description of where they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Gold = tuple[str, float | None]  # answer, absolute tolerance


@dataclass(frozen=True)
class Problem:
    """A question and its gold answer in bare LaTeX (several: comma-separated); `tolerance` is absolute, inclusive.

    With another `grader` than math (see `grading.registry`) the answer is what that one judges by: the letter of a
    choice, or the tests of a program as JSON. `instruction` is what the prompt says after the question; None: what
    `prompts.INSTRUCTIONS` has for the grader.
    """

    id: str
    question: str
    answer: str
    tolerance: float | None = None
    grader: str = "math"
    instruction: str | None = None


@dataclass(frozen=True)
class Trace:
    """A worked solution, for SFT or for held-out loss. `source` names the dataset or model that wrote it."""

    id: str
    problem_id: str
    question: str
    response: str
    answer: str = ""
    source: str = ""


@dataclass(frozen=True)
class Benchmark:
    """Where a set of problems comes from and how its rows are read."""

    name: str
    title: str
    count: int  # problems in the mirror
    hub_count: int  # problems at the pinned hub revision
    hub_id: str  # "" where the set is read from a mirror only
    config: str | None
    split: str
    revision: str  # commit of the hub's repository
    file: str  # inside a mirror
    id_column: str | None  # None: the row's number
    question_columns: tuple[str, ...]  # the first that a row has (mirrors and hubs name it differently)
    gold: Callable[[Row], Gold | None]  # None: a row without an answer, left out
    licence: str
    digest: str  # of the mirror's problems, see `digest`


# ---------------------------------------------------------------------------------------------------------------- golds
