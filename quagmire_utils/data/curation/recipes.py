"""What a set is made of, and which rows of a scanned source that comes to.

A recipe is a few parameters (or an entry under `sets:` in a YAML file). Choosing is done on numbers alone and is a
function of the seed and the traces: shards, files and their order do not matter, a smaller random set is part of a
larger one, and every set of one pool and seed holds out the same problems.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data import BENCHMARKS
from quagmire_utils.data.curation.contamination import NGRAM
from quagmire_utils.data.curation.scan import Table
from quagmire_utils.data.curation.selection import SELECTIONS, _counts, _order
from quagmire_utils.data.curation.sources import _read_yaml, _strings, mapping

FORMATS = ("jsonl", "parquet")
DEDUPLICATION = ("near", "exact")


@dataclass(frozen=True)
class Recipe:
    """A set's parameters. Lengths are the responses', in tokens of `tokenizer`, EOS included."""

    source: str
    tokenizer: str | None = None  # path or hub id; None where neither lengths nor budgets are asked for
    selection: str = "random"  # shortest | longest | random, several joined by +, sharing n or the budget evenly
    n: int | None = None  # traces; neither n nor token_budget: all that there are
    token_budget: int | None = None  # tokens at most; each part ends before the first trace that would exceed it
    mixture: Mapping[str, int] = field(default_factory=dict)  # instead of selection and n: {longest: 10000, ...}
    budgets: Mapping[str, int] = field(default_factory=dict)  # instead of selection and token_budget
    files: tuple[str, ...] = ()  # local files with the source's columns, instead of its hub
    generators: tuple[str, ...] | None = None  # None: the source's own
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # replaces the source's, column by column
    min_tokens: int = 1
    max_tokens: int | None = None
    deduplicate: str = "near"  # near: equal up to case, spacing, dollar signs and Unicode forms; exact
    benchmarks: tuple[str, ...] = tuple(BENCHMARKS)  # names or .jsonl files that no question may meet
    ngram: int = NGRAM
    validation_problems: int | None = None  # held out, with all their traces
    validation_fraction: float | None = None  # of the problems
    format: str = "jsonl"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be made."""
        if self.format not in FORMATS:
            raise ParameterError(f"format must be one of {', '.join(FORMATS)}, not {self.format!r}")
        if self.deduplicate not in DEDUPLICATION:
            raise ParameterError(f"deduplicate must be one of {', '.join(DEDUPLICATION)}, not {self.deduplicate!r}")
        asked = [name for name in ("n", "token_budget", "mixture", "budgets") if getattr(self, name)]
        if len(asked) > 1:
            raise ParameterError(f"{asked[0]} and {asked[1]} cannot both be given")
        if self.n is not None and self.n < 1:
            raise ParameterError(f"n must be at least 1, not {self.n}")
        if self.token_budget is not None and self.token_budget < 1:
            raise ParameterError(f"token_budget must be at least 1, not {self.token_budget}")
        parts = self.parts()
        if not asked and tuple(parts) != ("random",):
            raise ParameterError(f"n or token_budget must be given with selection={self.selection!r}")
        if self.ngram < 2:
            raise ParameterError(f"ngram must be at least 2, not {self.ngram}")
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ParameterError(f"max_tokens ({self.max_tokens}) must not be below min_tokens ({self.min_tokens})")
        if self.validation_problems is not None and self.validation_fraction is not None:
            raise ParameterError("validation_problems and validation_fraction cannot both be given")
        if self.validation_problems is not None and self.validation_problems < 1:
            raise ParameterError(f"validation_problems must be at least 1, not {self.validation_problems}")
        if self.validation_fraction is not None and not 0 < self.validation_fraction < 1:
            raise ParameterError(f"validation_fraction must be between 0 and 1, not {self.validation_fraction}")
        if self.needs_lengths and self.tokenizer is None:
            raise ParameterError("tokenizer is needed to select by length or by tokens")

    @property
    def needs_lengths(self) -> bool:
        """Whether choosing needs every trace's length."""
        by_tokens = self.token_budget or self.budgets or self.max_tokens or self.min_tokens > 1
        return bool(by_tokens or set(self.parts()) & {"shortest", "longest"})

    def parts(self) -> dict[str, int | None]:
        """Selections in the order they are filled, each with its count or budget; None: all that there are."""
        name = next((name for name in ("mixture", "budgets") if getattr(self, name)), "selection")
        sized = self.mixture or self.budgets
        asked = list(sized) or self.selection.split("+")
        unknown = [part for part in asked if part not in SELECTIONS]
        if unknown:
            raise ParameterError(f"{name} must be of {', '.join(SELECTIONS)}, joined by +, not {unknown[0]!r}")
        total = self.n or self.token_budget
        if sized or total:
            return dict(_counts(sized or self.selection, None if sized else total))
        return dict.fromkeys(asked)


def load_recipes(path: str | Path) -> dict[str, Recipe]:
    """The recipes under `sets:` in a YAML file; `defaults:` beside it holds what they share."""
    content = _read_yaml(Path(path))
    sets, defaults = mapping(content.get("sets"), "sets"), mapping(content.get("defaults"), "defaults")
    if not sets:
        raise ParameterError(f"{path} has no entry under sets:")
    recipes = {}
    for name, entry in sets.items():
        if Path(str(name)).name != str(name):
            raise ParameterError(f"set {name}: its name must be that of a folder, without a path")
        recipes[str(name)] = to_recipe({**defaults, **mapping(entry, f"set {name}")}, str(name))
    return recipes


def to_recipe(entry: Mapping[str, Any], name: str = "set") -> Recipe:
    """A recipe from plain values. Raises ParameterError for an unknown key and for a value of the wrong kind."""
    known = {f.name for f in fields(Recipe)}
    unknown = sorted(set(entry) - known)
    if unknown:
        raise ParameterError(f"set {name}: unknown key {unknown[0]!r}; there are {', '.join(sorted(known))}")
    if not entry.get("source"):
        raise ParameterError(f"set {name}: source must be given")
    values = {k: v for k, v in entry.items() if v is not None}
    for key in ("n", "token_budget", "min_tokens", "max_tokens", "ngram", "validation_problems", "seed"):
        if key in values and (isinstance(values[key], bool) or not isinstance(values[key], int)):
            raise ParameterError(f"set {name}: {key} must be a whole number, not {values[key]!r}")
    for key in ("source", "tokenizer", "selection", "deduplicate", "format"):
        if key in values and not isinstance(values[key], str):
            raise ParameterError(f"set {name}: {key} must be text, not {values[key]!r}")
    fraction = values.get("validation_fraction", 0.5)
    if isinstance(fraction, bool) or not isinstance(fraction, int | float):
        raise ParameterError(f"set {name}: validation_fraction must be a number, not {fraction!r}")
    for key in ("files", "generators", "benchmarks"):
        if key in values:
            values[key] = _strings(values[key])
    for key in ("mixture", "budgets", "where"):
        if not isinstance(values.get(key, {}), Mapping):
            raise ParameterError(f"set {name}: {key} must be a mapping, not {values[key]!r}")
        for part, size in values.get(key, {}).items() if key != "where" else ():
            if isinstance(size, bool) or not isinstance(size, int):
                raise ParameterError(f"set {name}: {key}.{part} must be a whole number, not {size!r}")
    values["where"] = {str(k): _strings(v) for k, v in values.get("where", {}).items()}
    return Recipe(**values)


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
    """Which rows a recipe takes: benchmarks' questions out, lengths in bounds, duplicates out, split, selection.

    Raises ParameterError where the pool is smaller than what is asked of it, with what was left out on the way.
    """
    rows = np.arange(len(table))
    counts = {"read": len(rows)}
    # a problem goes with all its spellings, if one of them meets a benchmark
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
    """(rows without repeats, pairs of a removed row and the one kept): of equal traces the smallest id stays."""
    same = table.near if how == "near" else table.id
    order = rows[np.lexsort((table.id[rows], same[rows]))]
    first = np.ones(len(order), bool)
    first[1:] = same[order[1:]] != same[order[:-1]]
    kept = order[first]
    stands_for = kept[np.cumsum(first) - 1] if len(order) else order
    pairs = np.stack([order[~first], stands_for[~first]], axis=1)
    return np.sort(kept), pairs[np.lexsort((table.id[pairs[:, 0]], table.id[pairs[:, 1]]))]


def _split(table: Table, rows: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """(training rows, held-out rows in seeded order), no problem on both sides; as `split_by_problem`."""
    if recipe.validation_problems is None and recipe.validation_fraction is None:
        return rows, rows[:0]
    problems = np.unique(table.problem[rows])
    held = recipe.validation_problems or max(1, round(recipe.validation_fraction * len(problems)))
    if held >= len(problems):
        raise ParameterError(
            f"validation_problems={held} must leave at least one of the {len(problems)} problems to train on"
        )
    chosen = np.sort(problems[_seeded(problems, recipe.seed)[:held]])
    position = np.minimum(np.searchsorted(chosen, table.problem[rows]), held - 1)
    out = chosen[position] == table.problem[rows]
    held_rows = rows[out]
    return rows[~out], held_rows[_seeded(table.id[held_rows], recipe.seed)]


def _select(table: Table, rows: np.ndarray, recipe: Recipe, counts: Mapping[str, int]) -> np.ndarray:
    """The set's rows in its order; as `select`."""
    seeded = rows[_seeded(table.id[rows], recipe.seed)]
    by_length = seeded[np.argsort(table.tokens[seeded], kind="stable")]
    orders = {"shortest": by_length, "longest": by_length[::-1], "random": seeded}
    taken = np.zeros(len(table), bool)
    chosen = []
    by_tokens = bool(recipe.token_budget or recipe.budgets)
    for part, size in recipe.parts().items():
        free = orders[part][~taken[orders[part]]]
        if size is None:
            got = free
        elif by_tokens:
            spent = np.cumsum(table.tokens[free], dtype=np.int64)
            if len(free) == 0 or spent[-1] < size:
                have = 0 if len(free) == 0 else int(spent[-1])
                raise ParameterError(f"{part}: {size:,} tokens were asked for, but {_account(have, 'tokens', counts)}")
            got = free[: np.searchsorted(spent, size, side="right")]
            if not len(got):
                raise ParameterError(
                    f"{part}: {size:,} tokens were asked for, and its first trace has {int(spent[0]):,}"
                )
        else:
            if len(free) < size:
                raise ParameterError(
                    f"{part}: {size:,} traces were asked for, but {_account(len(free), 'traces', counts)}"
                )
            got = free[:size]
        taken[got] = True
        chosen.append(got)
    return np.concatenate(chosen)


def _account(have: int, what: str, counts: Mapping[str, int]) -> str:
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
    return f"there are only {have:,} {what} to choose from ({left_out})"


def _seeded(names: np.ndarray, seed: int) -> np.ndarray:
    """The order of hashes under a seed: that of `select` for traces with these ids."""
    keys = np.fromiter(
        (int.from_bytes(_order(seed, f"{name:016x}")[:8]) for name in names.tolist()), np.uint64, len(names)
    )
    return np.lexsort((names, keys))
