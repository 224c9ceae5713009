"""What a set is made of, and which rows of a scanned dataset that selects.

A recipe is a few parameters (or an entry under `sets:` in a YAML file). Choosing needs numbers alone and is a function
of the seed and the traces: shards, files and their order do not matter, a smaller random set is part of a larger one,
and every set of one pool and seed holds out the same problems.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.validation import Count, Integer, Settings, read_yaml
from quagmire_utils.data.curation.contamination import NGRAM
from quagmire_utils.data.curation.scan import Table
from quagmire_utils.data.curation.selection import free_rows, seeded_order, shares
from quagmire_utils.data.dataset import BENCHMARKS, Dataset, Texts, load_datasets

Share = Annotated[float, Field(gt=0, lt=1)]


class Recipe(Settings):
    """A set's parameters. Lengths are the responses', in tokens of `tokenizer`, EOS included."""

    source: str  # the dataset's name
    tokenizer: str | None = None  # path or hub id; None if neither lengths nor budgets are asked for
    selection: str = "random"  # shortest | longest | random, several joined by +, sharing n or the budget evenly
    n: Count | None = None  # traces; neither n nor token_budget: all that there are
    token_budget: Count | None = None  # tokens at most; each part ends before the first trace that would exceed it
    mixture: dict[str, Count] = Field(default_factory=dict)  # instead of selection and n: {longest: 10000, ...}
    budgets: dict[str, Count] = Field(default_factory=dict)  # instead of selection and token_budget
    files: Texts = ()  # local files with the dataset's columns, instead of its hub
    generators: Texts | None = None  # None: the dataset's own
    where: dict[str, Texts] = Field(default_factory=dict)  # replaces the dataset's, column by column
    min_tokens: Count = 1
    max_tokens: Count | None = None
    deduplicate: Literal["near", "exact"] = "near"  # near: equal up to case, spacing, dollar signs and Unicode forms
    benchmarks: Texts = BENCHMARKS  # names or .jsonl files that no question may match
    ngram: Annotated[Integer, Field(ge=2)] = NGRAM
    validation_problems: Count | None = None  # held out, with all their traces
    validation_fraction: Share | None = None  # of the problems
    seed: Integer = 0

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        asked = [name for name in ("n", "token_budget", "mixture", "budgets") if getattr(self, name)]
        if len(asked) > 1:
            raise ParameterError(asked[1], getattr(self, asked[1]), reason=f"it cannot be given with {asked[0]}")
        if not asked and tuple(self.parts()) != ("random",):
            raise ParameterError("n", reason=f"n or token_budget must be given with selection {self.selection}")
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ParameterError("max_tokens", self.max_tokens, f"at least min_tokens ({self.min_tokens})")
        if self.validation_problems is not None and self.validation_fraction is not None:
            raise ParameterError("validation_fraction", reason="it cannot be given with validation_problems")
        if self.needs_lengths and self.tokenizer is None:
            raise ParameterError("tokenizer", reason="it is needed to select by length or by tokens")
        return self

    @property
    def needs_lengths(self) -> bool:
        """Whether choosing needs every trace's length."""
        by_tokens = self.token_budget or self.budgets or self.max_tokens or self.min_tokens > 1
        return bool(by_tokens or set(self.parts()) & {"shortest", "longest"})

    def parts(self) -> dict[str, int | None]:
        """Return the selections in the order they are filled, each with its count or budget; None: all there are."""
        sized, total = self.mixture or self.budgets, self.n or self.token_budget
        if sized:
            return dict(shares(sized, None, "mixture" if self.mixture else "budgets"))
        if total:
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


def choose(table: Table, recipe: Recipe) -> Choice:
    """Return the rows that a recipe takes: no benchmark's questions, lengths in bounds, no duplicates, split, selected.

    Raises ParameterError if the pool is smaller than what is asked of it, with what was left out on the way.
    """
    rows = np.arange(len(table))
    counts = {"read": len(rows)}
    # a problem goes with all its spellings if one of them matches a benchmark
    dirty = np.isin(table.problem, table.problem[table.hit >= 0])
    contaminated, rows = rows[dirty], rows[~dirty]
    counts["met a benchmark"] = len(contaminated)
    if recipe.max_tokens is not None or recipe.min_tokens > 1:
        short = table.tokens[rows] < recipe.min_tokens
        long = table.tokens[rows] > (recipe.max_tokens or np.iinfo(np.int32).max)
        counts["below min_tokens"], counts["above max_tokens"] = int(short.sum()), int(long.sum())
        rows = rows[~(short | long)]
    rows, duplicates = _distinct(table, rows, recipe.deduplicate)
    counts["duplicates"] = len(duplicates)
    counts["pool"] = len(rows)
    train, validation = _split(table, rows, recipe)
    counts["held out"] = len(validation)
    return Choice(_select(table, train, recipe, counts), validation, rows, contaminated, duplicates, counts)


def _distinct(table: Table, rows: np.ndarray, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows without repeats, pairs of a removed row and the one kept): the smallest id of equal traces stays."""
    same = table.near if how == "near" else table.id
    order = rows[np.lexsort((table.id[rows], same[rows]))]
    first = np.ones(len(order), bool)
    first[1:] = same[order[1:]] != same[order[:-1]]
    kept = order[first]
    stands_for = kept[np.cumsum(first) - 1] if len(order) else order
    pairs = np.stack([order[~first], stands_for[~first]], axis=1)
    return np.sort(kept), pairs[np.lexsort((table.id[pairs[:, 0]], table.id[pairs[:, 1]]))]


def _split(table: Table, rows: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Return (training rows, held-out rows in seeded order): problems are drawn, so that none is on both sides.

    Other solutions of a held-out problem in training would make the validation loss measure memory.
    """
    if recipe.validation_problems is None and recipe.validation_fraction is None:
        return rows, rows[:0]
    problems = np.unique(table.problem[rows])
    held = recipe.validation_problems or max(1, round(recipe.validation_fraction * len(problems)))
    if held >= len(problems):
        raise ParameterError("validation_problems", held, f"less than the number of problems, {len(problems)}")
    chosen = problems[_seeded(problems, recipe.seed)[:held]]
    out = np.isin(table.problem[rows], chosen)
    held_rows = rows[out]
    return rows[~out], held_rows[_seeded(table.id[held_rows], recipe.seed)]


def _select(table: Table, rows: np.ndarray, recipe: Recipe, counts: Mapping[str, int]) -> np.ndarray:
    """Return the set's rows in its order; as `select`."""
    seeded = rows[_seeded(table.id[rows], recipe.seed)]
    chosen = rows[:0]
    by_tokens = bool(recipe.token_budget or recipe.budgets)
    for part, size in recipe.parts().items():
        free = free_rows(part, table.tokens, seeded, chosen)
        if size is not None:
            amounts = table.tokens[free] if by_tokens else np.ones(len(free), np.int64)
            spent = np.cumsum(amounts, dtype=np.int64)
            have, what = int(spent[-1]) if len(free) else 0, "tokens" if by_tokens else "traces"
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
