"""Shards of one evaluation, drawn on several machines, put into one store.

    merge("samples/checkpoint", ["from-machine-a", "from-machine-b"])

Each machine draws its part of the work, `sample(..., shard=(0, 2))` on one and `shard=(1, 2)` on the other, or other
problems, or other benchmarks. A merge that is killed is started again; doing it twice changes nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_path, digest, read_json, write_json
from quagmire_utils.core.locks import exclusive
from quagmire_utils.evaluation.store.samples import KEYS, ORIGIN, PROMPTS, SampleStore, origins_differ

GOLDS = "golds.json"  # in a store's folder: what each problem was graded against


@dataclass(frozen=True)
class Merged:
    """What a merge did: samples added; those that were there already with the same text, or with another one."""

    added: int
    repeated: int
    differing: int  # one seed gave two texts: the machines round differently. The first text is kept


def merge(
    target: SampleStore | str | os.PathLike[str], shards: Sequence[SampleStore | str | os.PathLike[str]]
) -> Merged:
    """Bring the samples of all `shards` into `target`, which may be new; the shards stay as they are.

    Verdicts come along, unless they rest on another gold answer than the target's do. Raises ParameterError, before
    anything is written, where a shard is no store, or was drawn with another model, engine, template, prompt or
    parameters than the target or the first shard.
    """
    target = target if isinstance(target, SampleStore) else SampleStore(target)
    stores = [shard if isinstance(shard, SampleStore) else SampleStore(shard) for shard in shards]
    if not stores:
        raise ParameterError("shards is empty: name at least one store to merge")
    for shard in stores:
        if not shard.origin:
            raise ParameterError(f"store: {shard.path} is no store of samples (it has no store.json)")
    first = target if target.origin else stores[0]
    for shard in stores:
        differing = origins_differ(first.origin, shard.origin)
        if differing:
            raise ParameterError(
                f"store: {shard.path} was not drawn like {first.path} ({differing}), so they can't be merged"
            )
    prompts = _all_prompts([first, *stores])
    for held in (target, *stores):
        read_golds(held.path)
    stores = [shard for shard in stores if shard.path.resolve() != target.path.resolve()]

    target.bind(first.origin, notes=read_json(first.path / "store.json").get("notes"))
    target.add_prompts(prompts.drop(columns="digest"))
    held: dict[tuple[str, str], np.ndarray] = {}
    for _, table in target.verified():
        _take(held, table.select(KEYS).to_pandas())
    added, twice = 0, []
    for shard in stores:
        stale = _merge_golds(target, shard)
        for part, table in shard.verified():
            keys = table.select(KEYS).to_pandas()
            new = _take(held, keys)
            added += int(new.sum())
            regrade = np.array([key in stale for key in zip(keys["benchmark"], keys["problem"], strict=True)], bool)
            marked = {ORIGIN, PROMPTS} <= (table.schema.metadata or {}).keys()
            if new.all() and not regrade.any() and marked and not (target.path / part.name).exists():
                with exclusive(target.path), target.writing(), atomic_path(target.path / part.name) as temporary:
                    shutil.copyfile(part, temporary)
                continue
            frame = shard.read_part(part)
            if new.any():
                kept = frame.assign(
                    **{name: frame[name].astype(object).mask(regrade, None) for name in ("extracted", "verdict")}
                )
                target.append(kept[new])
            if not new.all():
                twice.append(_hashed(frame[~new]))
    repeated = differing = 0
    if twice:
        others = pd.concat(twice, ignore_index=True)
        for part, _ in target.verified():
            both = others.merge(_hashed(target.read_part(part)), on=KEYS, suffixes=("", "_kept"))
            repeated += int((both["text"] == both["text_kept"]).sum())
            differing += int((both["text"] != both["text_kept"]).sum())
    if differing and not repeated:
        warnings.warn(
            f"{target.path}: all {differing} samples that were drawn twice have other texts the second time, so the "
            "shards come of different weights or an engine that does not heed seeds; the first texts are kept",
            stacklevel=2,
        )
    return Merged(added, repeated, differing)


def read_golds(path: str | os.PathLike[str]) -> dict[str, list[Any]]:
    """What the samples of the store in `path` were graded against: {"benchmark/problem": [answer, tolerance]}.

    A third entry is the grader, where it is not math-verify, with its version. Empty where nothing was. Raises
    ParameterError, with what helps, for a damaged file.
    """
    file = Path(path) / GOLDS
    if not file.is_file():
        return {}
    try:
        golds = read_json(file)
        whole = isinstance(golds, dict) and all(isinstance(g, list) and len(g) in (2, 3) for g in golds.values())
        if not whole:
            raise ValueError("no answers and tolerances by problem")
    except ValueError as error:
        raise ParameterError(
            f"store: {file} is damaged ({error}); delete it, and the next grading makes the grades again"
        ) from error
    return golds


def _all_prompts(stores: Sequence[SampleStore]) -> pd.DataFrame:
    """The stores' prompts together; ParameterError where two have different ones for a problem."""
    held = [store.prompts().assign(path=str(store.path)) for store in stores]
    together = pd.concat(held, ignore_index=True).drop_duplicates(["benchmark", "problem", "digest"])
    clash = together[together.duplicated(["benchmark", "problem"], keep=False)]
    if len(clash):
        one, two = clash[clash["problem"] == clash["problem"].iloc[0]].iloc[:2].itertuples()
        raise ParameterError(
            f"store: {two.path} has another prompt for {two.benchmark} problem {two.problem} than {one.path} (a "
            "template that changed?), so they can't be merged"
        )
    return together.drop(columns="path").reset_index(drop=True)


def _take(held: dict[tuple[str, str], np.ndarray], keys: pd.DataFrame) -> np.ndarray:
    """Which of the rows of `keys` are not yet held; they are from then on."""
    new = np.zeros(len(keys), dtype=bool)
    for problem, rows in keys.groupby(["benchmark", "problem"]).indices.items():
        index = keys["index"].to_numpy()[rows]
        there = held.get(problem, np.zeros(0, dtype=bool))
        if index.max() >= len(there):
            there = np.concatenate([there, np.zeros(index.max() + 1 - len(there), dtype=bool)])
        new[rows] = ~there[index]
        there[index] = True
        held[problem] = there
    return new


def _hashed(frame: pd.DataFrame) -> pd.DataFrame:
    texts = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in frame["text"]]
    return frame[KEYS].assign(text=pd.Series(texts, index=frame.index, dtype=object))


def _merge_golds(target: SampleStore, shard: SampleStore) -> set[tuple[str, str]]:
    """Note in `target` what the shard was graded against; the problems for which the two disagree."""
    theirs = read_golds(shard.path)
    with exclusive(target.path):
        ours = read_golds(target.path)
        if theirs.keys() - ours.keys():
            write_json(theirs | ours, target.path / GOLDS)
    clash = {name for name, gold in theirs.items() if digest(ours.get(name, gold)) != digest(gold)}
    return {(benchmark, problem) for benchmark, _, problem in (name.partition("/") for name in clash)}
