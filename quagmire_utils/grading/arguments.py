"""What the pool is asked, checked before anything is started."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.grading.verdicts import _Pair

if TYPE_CHECKING:
    from quagmire_utils.data import Problem

_MAX_WORKERS = 32  # by default


def _count_workers(workers: int | None) -> int:
    if workers is None:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cpus, _MAX_WORKERS)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ParameterError(f"workers must be a whole number of at least 1, or None, not {workers!r}")
    return workers


def _checked_seconds(name: str, seconds: float) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 86400:
        raise ParameterError(f"{name} must be a positive number of seconds, at most a day, not {seconds!r}")
    return float(seconds)


def _checked_pairs(responses: Iterable[str], golds: Iterable[str | Problem]) -> list[_Pair]:
    if isinstance(responses, str) or isinstance(golds, str):
        raise ParameterError("responses and golds must be two sequences of texts, not one text")
    responses, golds = list(responses), list(golds)
    if len(responses) != len(golds):
        raise ParameterError(f"responses and golds must be equally many, not {len(responses)} and {len(golds)}")
    pairs = []
    for i, (response, gold) in enumerate(zip(responses, golds, strict=True)):
        answer = gold if isinstance(gold, str) else getattr(gold, "answer", None)
        if not isinstance(response, str):
            raise ParameterError(f"responses[{i}] must be a text, not {type(response).__name__}")
        if not isinstance(answer, str) or not answer.strip():
            raise ParameterError(f"golds[{i}] has no answer ({answer!r}), so no response could be equal to it")
        pairs.append(_Pair(answer.strip(), getattr(gold, "tolerance", None), response))
    return pairs
