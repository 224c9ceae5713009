"""What a set is made of, and which traces that selects, of a pool in memory or of a scanned dataset.

Implements the selections of Sec. 2 and App. D: random, the shortest, the longest, or several of these; length is the
response's, in tokens of the model's own tokenizer.

    sft_set = select(traces, "shortest", 1000, tokenizer=tokenizer, seed=0)

A recipe is a few parameters (or an entry under `sets:` in a YAML file). Every choice is a function of the seed and the
traces: files and their order do not matter, a smaller random set is part of a larger one, so that candidates of
different size differ in size alone, and every set of one pool and seed holds out the same problems.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import SELECTIONS
from quagmire_utils.core.tokenizer import load_tokenizer
from quagmire_utils.core.validation import Count, Integer, Settings, read_yaml
from quagmire_utils.data.curation.contamination import NGRAM
from quagmire_utils.data.dataset import BENCHMARKS, Dataset, Texts, load_datasets
from quagmire_utils.data.pretrained import locate
from quagmire_utils.data.problems import Trace

if TYPE_CHECKING:
    import pandas as pd
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


class Recipe(Settings):
    """A set's parameters. Lengths are the responses', in tokens of `tokenizer`, EOS included."""

    source: str  # the dataset's name
    tokenizer: str | None = None  # path or hub id; None if neither lengths nor budgets are asked for
    selection: str = "random"  # shortest | longest | random, several joined by +, sharing n or the budget evenly
    n: Count | None = None  # traces; neither n nor token_budget: all that there are
    token_budget: Count | None = None  # tokens at most; each part ends before the first trace that would exceed it
    mixture: dict[str, Count] = Field(default_factory=dict)  # instead of selection and n: {longest: 10000, ...}
    files: Texts = ()  # local files with the dataset's columns, instead of its hub
    generators: Texts | None = None  # None: the dataset's own
    where: dict[str, Texts] = Field(default_factory=dict)  # replaces the dataset's, column by column
    max_tokens: Count | None = None
    benchmarks: Texts = BENCHMARKS  # names or .jsonl files that no question may match
    ngram: Annotated[Integer, Field(ge=2)] = NGRAM
    validation_problems: Count | None = None  # held out, with all their traces
    seed: Integer = 0

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        asked = [name for name in ("n", "token_budget", "mixture") if getattr(self, name)]
        if len(asked) > 1:
            raise ParameterError(asked[1], getattr(self, asked[1]), reason=f"it cannot be given with {asked[0]}")
        if not asked and tuple(self.parts()) != ("random",):
            raise ParameterError("n", reason=f"n or token_budget must be given with selection {self.selection}")
        if self.needs_lengths and self.tokenizer is None:
            raise ParameterError("tokenizer", reason="it is needed to select by length or by tokens")
        return self

    @property
    def needs_lengths(self) -> bool:
        """Whether choosing needs every trace's length."""
        by_tokens = self.token_budget or self.max_tokens
        return bool(by_tokens or set(self.parts()) & {"shortest", "longest"})

    def parts(self) -> dict[str, int | None]:
        """Return the selections in the order they are filled, each with its count or budget; None: all there are."""
        if self.mixture:
            return dict(shares(self.mixture, None, "mixture"))
        if total := self.n or self.token_budget:
            return dict(shares(self.selection, total))
        return dict.fromkeys(shares(self.selection, 100))  # any number: only the names matter

    def applied_to(self, dataset: Dataset) -> Dataset:
        """Return the dataset with the recipe's files and filters."""
        dataset = dataset.from_files(self.files) if self.files else dataset
        generators = dataset.generators if self.generators is None else self.generators
        return dataset.replace(generators=generators, where={**dataset.where, **self.where})


class _SetsFile(Settings):
    """A YAML file with sets."""

    sets: dict[Annotated[str, Field(pattern=r"^[^/\\]+$")], dict[str, Any]] = Field(min_length=1)  # by folder
    defaults: dict[str, Any] = Field(default_factory=dict)  # parameters that the sets share
    datasets: dict[str, Any] = Field(default_factory=dict)  # one's own, in the form of the catalogue


def load_sets(path: str | Path) -> tuple[dict[str, Recipe], dict[str, Dataset]]:
    """Return the recipes under `sets:` in a YAML file, and all datasets, those under its `datasets:` included.

    Files of the file's own datasets are looked for beside it first.
    """
    content = _SetsFile.load(read_yaml(Path(path), str(path)))
    recipes = {name: Recipe.load({**content.defaults, **entry}, f"sets.{name}") for name, entry in content.sets.items()}
    return recipes, load_datasets(content.datasets, Path(path).resolve().parent)


# --- selecting from a pool --------------------------------------------------------------------------------------------


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
    ids = [trace.id for trace in traces]
    if len(set(ids)) < len(ids):
        raise ParameterError("traces", reason="an id occurs twice, so a selection would not be reproducible")
    parts, lengths = shares(how, n), np.zeros(len(traces), int)
    if set(parts) & {"shortest", "longest"}:
        if tokenizer is None:
            raise ParameterError("tokenizer", reason="it is needed to select by length")
        lengths = np.array(response_lengths(traces, tokenizer))
    return [traces[row] for row in take(parts, lengths, seeded_order(ids, seed))]


def take(
    parts: Mapping[str, int | None], lengths: np.ndarray, seeded: np.ndarray, *, budget: bool = False, pool: str = ""
) -> np.ndarray:
    """Return the rows of each part in turn, from `seeded` rows; `lengths` has that of every row.

    parts: how many rows each takes (None: all there are), or with `budget`, how many tokens at most. Raises
    ParameterError for a part with too few rows or tokens left; `pool` says where the others went.
    """
    chosen = seeded[:0]
    for part, size in parts.items():
        free = seeded[~np.isin(seeded, chosen)]
        if part != "random":
            free = free[np.argsort(lengths[free], kind="stable")][:: 1 if part == "shortest" else -1]
        if size is not None:
            spent = np.cumsum(lengths[free] if budget else np.ones(len(free)), dtype=np.int64)
            have, what = int(spent[-1]) if len(free) else 0, "tokens" if budget else "traces"
            if have < size:
                reason = f"{size:,} {what} were asked for, but there are only {have:,} to choose from{pool}"
                raise ParameterError(part, size, reason=reason)
            free = free[: np.searchsorted(spent, size, side="right")]
            if not len(free):
                raise ParameterError(part, size, f"at least the {spent[0]:,} tokens of its first trace")
        chosen = np.concatenate([chosen, free])
    return chosen


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


# --- choosing from a scanned dataset ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """Rows of a table: the set in its order, the held-out traces, the pool they came from, and what was left out."""

    train: np.ndarray
    validation: np.ndarray
    pool: np.ndarray
    contaminated: np.ndarray
    duplicates: np.ndarray  # pairs (removed, kept)
    counts: dict[str, int]


def choose(table: pd.DataFrame, recipe: Recipe) -> Choice:
    """Return the rows that a recipe takes: no benchmark's questions, lengths in bounds, no duplicates, split, selected.

    `table` is what `scan` gives. Raises ParameterError if the pool is smaller than what is asked of it, with what was
    left out on the way.
    """
    ids, problems, near, tokens = (table[name].to_numpy() for name in ("id", "problem", "near", "tokens"))
    rows = np.arange(len(table))
    counts = {"read": len(rows)}
    # a problem goes with all its spellings if one of them matches a benchmark
    dirty = np.isin(problems, problems[table["hit"].notna()])
    contaminated, rows = rows[dirty], rows[~dirty]
    counts["met a benchmark"] = len(contaminated)
    if recipe.max_tokens is not None:
        long = tokens[rows] > recipe.max_tokens
        counts["above max_tokens"] = int(long.sum())
        rows = rows[~long]
    rows, duplicates = _distinct(ids, near, rows)
    counts["duplicates"] = len(duplicates)
    counts["pool"] = len(rows)
    train, validation = _split(ids, problems, rows, recipe)
    counts["held out"] = len(validation)
    seeded = train[_seeded(ids[train], recipe.seed)]
    pool = f" ({', '.join(f'{reason} {count:,}' for reason, count in counts.items())})"
    chosen = take(recipe.parts(), tokens, seeded, budget=bool(recipe.token_budget), pool=pool)
    return Choice(chosen, validation, rows, contaminated, duplicates, counts)


def _distinct(ids: np.ndarray, near: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows without repeats, pairs of a removed row and the one kept): the smallest id of equal traces stays."""
    order = rows[np.lexsort((ids[rows], near[rows]))]
    _, first, group = np.unique(near[order], return_index=True, return_inverse=True)
    kept = order[first]
    pairs = np.delete(np.stack([order, kept[group]], axis=1), first, axis=0)
    return np.sort(kept), pairs[np.lexsort(ids[pairs].T)]


def _split(ids: np.ndarray, problems: np.ndarray, rows: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Return (training rows, held-out rows in seeded order): problems are drawn, so that none is on both sides.

    Other solutions of a held-out problem in training would make the validation loss measure memory.
    """
    held = recipe.validation_problems
    if held is None:
        return rows, rows[:0]
    there = np.unique(problems[rows])
    if held >= len(there):
        raise ParameterError("validation_problems", held, f"less than the number of problems, {len(there)}")
    out = np.isin(problems[rows], there[_seeded(there, recipe.seed)[:held]])
    held_rows = rows[out]
    return rows[~out], held_rows[_seeded(ids[held_rows], recipe.seed)]


def _seeded(names: np.ndarray, seed: int) -> np.ndarray:
    """Return the order of hashes under a seed: that of `select` for traces with these ids."""
    return seeded_order((f"{name:016x}" for name in names.tolist()), seed)
