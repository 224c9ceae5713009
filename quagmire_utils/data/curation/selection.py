"""Which traces of a pool to train on.

Implements the selections of Sec. 2 and App. D: random, the shortest, the longest, or several of these; length is the
response's, in tokens of the model's own tokenizer.

    sft_set = select(traces, "shortest", 1000, tokenizer=tokenizer, seed=0)

Every choice is a function of the seed and the ids: the pool's order does not matter, and a smaller random set is part
of a larger one at the same seed, so that candidates of different size differ in size alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import SELECTIONS
from quagmire_utils.core.tokenizer import load_tokenizer
from quagmire_utils.data.pretrained import locate
from quagmire_utils.data.problems import Trace

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


def select(
    traces: Sequence[Trace],
    how: str | Mapping[str, int],
    n: int | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    seed: int,
) -> list[Trace]:
    """Return `n` of the traces, each at most once.

    `how` is `shortest`, `longest` or `random`; several joined by `+` share `n` evenly (`"shortest+longest"`); a
    mapping such as `{"longest": 1000, "shortest": 1000}` gives each its own count, and `n` may be left out. Parts are
    filled in the order named, each from what the earlier ones left. Random comes in seeded order (its prefixes are the
    smaller sets), shortest and longest by length, ties in seeded order. `tokenizer` may be None if only `random` is
    asked for.

    Raises ParameterError for an unknown selection, a count below 1, and more than there are.
    """
    parts = shares(how, n)
    if sum(parts.values()) > len(traces):
        raise ParameterError("n", sum(parts.values()), f"at most {len(traces)}, the number of traces")
    ids = [trace.id for trace in traces]
    if len(set(ids)) < len(ids):
        raise ParameterError("traces", reason="an id occurs twice, so a selection would not be reproducible")
    lengths = np.zeros(len(traces), int)
    if set(parts) & {"shortest", "longest"}:
        if tokenizer is None:
            raise ParameterError("tokenizer", reason="it is needed to select by length")
        lengths = np.array(response_lengths(traces, tokenizer))
    seeded = seeded_order(ids, seed)
    chosen: list[int] = []
    for part, count in parts.items():
        chosen += free_rows(part, lengths, seeded, chosen)[:count].tolist()
    return [traces[index] for index in chosen]


def free_rows(part: str, lengths: np.ndarray, seeded: np.ndarray, taken: Sequence[int]) -> np.ndarray:
    """Return the rows that are not `taken`, in the order in which this part of a selection takes them."""
    free = seeded[~np.isin(seeded, taken)]
    if part == "random":
        return free
    by_length = free[np.argsort(lengths[free], kind="stable")]
    return by_length if part == "shortest" else by_length[::-1]


def response_lengths(traces: Sequence[Trace], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of each response, its EOS included."""
    return [tokens + 1 for tokens in count_tokens(fast_tokenizer(tokenizer), [trace.response for trace in traces])]


def shares(how: str | Mapping[str, int], n: int | None, name: str = "selection") -> dict[str, int]:
    """Return the count (or tokens) of each part, in the order named, see `select`."""
    if isinstance(how, str):
        names = how.split("+")
        if n is None:
            raise ParameterError("n", reason=f"it must be given with {how!r}")
        # An odd count gives the parts named first one more.
        counts = {part: n // len(names) + (i < n % len(names)) for i, part in enumerate(names)}
        if len(counts) < len(names):
            raise ParameterError(name, how, "several different selections")
    else:
        counts = dict(how)
        if n is not None and n != sum(counts.values()):
            raise ParameterError("n", n, f"the sum of {counts}")
    if not counts or set(counts) - set(SELECTIONS):
        raise ParameterError(name, how, f"of {', '.join(SELECTIONS)}, joined by + or with counts")
    for part, count in counts.items():
        if count < 1:
            raise ParameterError("n", n, f"large enough for each part, but {part} gets {count}")
    return counts


def seeded_order(names: Iterable[str], seed: int) -> np.ndarray:
    """Return the indices of names in an order that depends on the seed and each name alone, not on the other names."""
    hashed = (hashlib.sha256(f"{seed}\n{name}".encode("utf-8", "surrogatepass")).digest()[:8] for name in names)
    return np.argsort(np.array([int.from_bytes(key) for key in hashed], np.uint64), kind="stable")


def fast_tokenizer(tokenizer: str | Path | PreTrainedTokenizerBase) -> Tokenizer:
    """Return a tokenizer (a path, a hub id or a loaded one) of its library, without truncation and padding.

    Raises ParameterError if there is none, and for one without a fast version.
    """
    if isinstance(tokenizer, str | Path):
        try:
            tokenizer = load_tokenizer(locate(str(tokenizer)))
        except ParameterError as error:
            raise ParameterError("tokenizer", str(tokenizer), reason=error.reason) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ParameterError("tokenizer", reason=f"{type(tokenizer).__name__} has no fast version")
    from tokenizers import Tokenizer

    fast = Tokenizer.from_str(backend.to_str())
    fast.no_truncation()
    fast.no_padding()
    return fast


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text, special tokens not added."""
    return [len(one) for one in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
