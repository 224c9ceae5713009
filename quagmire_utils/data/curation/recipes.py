"""What a set is made of, and which rows of a scanned dataset that selects.

A recipe is a few parameters (or an entry under `sets:` in a YAML file). Choosing needs numbers alone and is a function
of the seed and the traces: shards, files and their order do not matter, a smaller random set is part of a larger one,
and every set of one pool and seed holds out the same problems.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.validation import Count, Integer, Settings, read_yaml
from quagmire_utils.data.curation.contamination import NGRAM
from quagmire_utils.data.curation.selection import free_rows, seeded_order, shares
from quagmire_utils.data.dataset import BENCHMARKS, Dataset, Texts, load_datasets

if TYPE_CHECKING:
    import pandas as pd


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


# --- choosing ---------------------------------------------------------------------------------------------------------


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
    return Choice(_select(ids, tokens, train, recipe, counts), validation, rows, contaminated, duplicates, counts)


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


def _select(
    ids: np.ndarray, tokens: np.ndarray, rows: np.ndarray, recipe: Recipe, counts: Mapping[str, int]
) -> np.ndarray:
    """Return the set's rows in its order; as `select`."""
    seeded = rows[_seeded(ids[rows], recipe.seed)]
    chosen = rows[:0]
    what = "tokens" if recipe.token_budget else "traces"
    for part, size in recipe.parts().items():
        free = free_rows(part, tokens, seeded, chosen)
        if size is not None:
            spent = np.cumsum(tokens[free] if recipe.token_budget else np.ones(len(free)), dtype=np.int64)
            have = int(spent[-1]) if len(free) else 0
            if have < size:
                left_out = ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
                reason = f"{size:,} {what} were asked for, but there are only {have:,} to choose from ({left_out})"
                raise ParameterError(part, size, reason=reason)
            free = free[: np.searchsorted(spent, size, side="right")]
            if not len(free):
                raise ParameterError(part, size, f"at least the {spent[0]:,} tokens of its first trace")
        chosen = np.concatenate([chosen, free])
    return chosen


def _seeded(names: np.ndarray, seed: int) -> np.ndarray:
    """Return the order of hashes under a seed: that of `select` for traces with these ids."""
    return seeded_order((f"{name:016x}" for name in names.tolist()), seed)
