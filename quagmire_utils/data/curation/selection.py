"""Which traces of a pool to train on and which to hold out, for pools that fit in memory.

Implements the selections of Sec. 2 and App. D: random, the shortest, the longest, or several of these; length is the
response's, in tokens of the model's own tokenizer.

    train, validation = split_by_problem(traces, n_validation=500, seed=0)
    sft_set = select(train, "shortest", 1000, tokenizer=tokenizer, seed=0)

Every choice is a function of the seed and the ids: the pool's order does not matter, and a smaller random set is part
of a larger one at the same seed, so that candidates of different size differ in size alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import SELECTIONS
from quagmire_utils.data import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def select(
    traces: Sequence[Trace],
    how: str | Mapping[str, int],
    n: int | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    seed: int,
) -> list[Trace]:
    """`n` of the traces, each at most once.

    `how` is `shortest`, `longest` or `random`; several joined by `+` share `n` evenly (`"shortest+longest"`); a
    mapping such as `{"longest": 1000, "shortest": 1000}` gives each its own count, and `n` may be left out. Parts are
    filled in the order named, each from what the ones before left. Random comes in seeded order (its prefixes are the
    smaller sets), shortest and longest by length, ties in seeded order. `tokenizer` may be None where only `random`
    is asked for.

    Raises ParameterError for an unknown selection, a count below 1, and more than there are.
    """
    counts = _counts(how, n)
    total = sum(counts.values())
    if total > len(traces):
        raise ParameterError(f"n={total} traces were asked for, but there are only {len(traces)}")
    _check_unique(traces)
    seeded = sorted(range(len(traces)), key=lambda index: _order(seed, traces[index].id))
    by_length: list[int] = []
    if set(counts) & {"shortest", "longest"}:
        if tokenizer is None:
            raise ParameterError("tokenizer is needed to select by length")
        lengths = response_lengths(traces, tokenizer)
        by_length = sorted(seeded, key=lengths.__getitem__)
    orders = {"shortest": by_length, "longest": by_length[::-1], "random": seeded}
    taken: dict[int, None] = {}
    for part, count in counts.items():
        free = (index for index in orders[part] if index not in taken)
        taken.update(dict.fromkeys([index for index, _ in zip(free, range(count), strict=False)]))
    return [traces[index] for index in taken]


def response_lengths(traces: Sequence[Trace], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of each response, its EOS included."""
    from tqdm import tqdm

    lengths: list[int] = []
    with tqdm(total=len(traces), desc="response lengths", unit="trace", delay=3) as bar:
        for start in range(0, len(traces), 1000):
            responses = [trace.response for trace in traces[start : start + 1000]]
            encoded = tokenizer(responses, add_special_tokens=False, return_attention_mask=False)["input_ids"]
            lengths.extend(len(ids) + 1 for ids in encoded)
            bar.update(len(responses))
    return lengths


def split_by_problem(
    traces: Sequence[Trace],
    *,
    validation_fraction: float | None = None,
    n_validation: int | None = None,
    seed: int,
) -> tuple[list[Trace], list[Trace]]:
    """(training, validation) traces, in their order, with no problem on both sides.

    What is drawn are problems: `n_validation` of them, or `validation_fraction` of them rounded to at least one.
    Splitting by trace would leave other solutions of a held-out problem in training, and the validation loss would
    measure memory. Raises ParameterError unless exactly one of the two is given and both sides get at least one
    problem.
    """
    problems = sorted({trace.problem_id for trace in traces}, key=lambda problem: _order(seed, problem))
    if (validation_fraction is None) == (n_validation is None):
        raise ParameterError("exactly one of validation_fraction and n_validation must be given")
    if n_validation is None:
        if not 0 < validation_fraction < 1:
            raise ParameterError(f"validation_fraction must be between 0 and 1, not {validation_fraction}")
        n_validation = max(1, round(validation_fraction * len(problems)))
    if not 1 <= n_validation < len(problems):
        raise ParameterError(
            f"n_validation={n_validation} must leave at least one of the {len(problems)} problems on either side"
        )
    held_out = set(problems[:n_validation])
    return (
        [trace for trace in traces if trace.problem_id not in held_out],
        [trace for trace in traces if trace.problem_id in held_out],
    )


def _counts(how: str | Mapping[str, int], n: int | None) -> dict[str, int]:
    if isinstance(how, str):
        parts = how.split("+")
        if n is None:
            raise ParameterError(f"n must be given with how={how!r}")
        # An odd count gives the parts named first one more.
        counts = {part: n // len(parts) + (i < n % len(parts)) for i, part in enumerate(parts)}
        if len(counts) < len(parts):
            raise ParameterError(f"how={how!r} names a selection twice")
    else:
        counts = dict(how)
        if n is not None and n != sum(counts.values()):
            raise ParameterError(f"n={n} is not the sum of how={counts}")
    unknown = [part for part in counts if part not in SELECTIONS]
    if unknown or not counts:
        raise ParameterError(f"how must be of {', '.join(SELECTIONS)}, joined by + or with counts, not {how!r}")
    for part, count in counts.items():
        if count < 1:
            raise ParameterError(f"n must give every selection at least one trace, but {part} gets {count}")
    return counts


def _order(seed: int, name: str) -> bytes:
    """A random-looking, reproducible sort key for one id, whatever else the pool holds."""
    return hashlib.sha256(f"{seed}\n{name}".encode("utf-8", "surrogatepass")).digest()


def _check_unique(traces: Sequence[Trace]) -> None:
    if len({trace.id for trace in traces}) < len(traces):
        raise ParameterError("traces holds an id twice, so a selection would not be reproducible")
