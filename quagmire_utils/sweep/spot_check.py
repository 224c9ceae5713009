"""Retrain one recorded candidate and compare what comes out with its records.

    quagmire sweep mini --spot-check random                        # a candidate and an RL run drawn at random
    quagmire sweep mini --spot-check micro-llama/random-32x16      # this candidate; .../rl1 names the RL run too
    quagmire sweep mini --spot-check micro-llama/base              # the base model itself, from random weights, and RL

The candidate's SFT and one of its RL runs are computed and measured again in a temporary folder. They start from the
base model beside the records; if there is none, or the base is what is checked, that is trained first. With the
processor and the packages of the records every row must be bit-equal. Elsewhere sums in another order make other
models, and differences must be within the noise of sampling and training (see `judge`).
"""

from __future__ import annotations

import math
import random
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_parquet
from quagmire_utils.core.provenance import hardware, package_versions
from quagmire_utils.core.records import CANDIDATE, Records, load_records
from quagmire_utils.core.records import TABLES as SCHEMA
from quagmire_utils.core.settings import Profile
from quagmire_utils.evaluation.pass_at_k.averages import checkpoint_scores
from quagmire_utils.sweep.cells import restore_base
from quagmire_utils.sweep.checks import check
from quagmire_utils.sweep.collect import TABLES
from quagmire_utils.sweep.grid import Cell, plan
from quagmire_utils.sweep.pools import LocalPool
from quagmire_utils.sweep.runner import SweepError, run_cells

LIMIT = 3.0  # standard errors that a difference may have
PACKAGES = ("numpy", "torch", "transformers", "tokenizers", "trl", "math-verify", "sympy")  # what results depend on
NOT_COMPARED = {"cell", "seconds", "trace_nll", "trace_tokens"}  # times are no result; a loss sums up its traces


@dataclass(frozen=True)
class SpotCheck:
    """What came out, beside the records."""

    rl: Cell
    rows: dict[str, tuple[int, int]]  # by table: bit-equal, all
    quantities: pd.DataFrame  # quantity, recorded, recomputed, difference, noise (largest allowed; NaN: not judged)
    same_machine: bool  # as made the records, so that bit-equality is expected
    noise: str  # how the allowed differences were computed

    @property
    def verdict(self) -> str:
        """bit-equal, within noise, or differs."""
        if all(equal == rows for equal, rows in self.rows.values()):
            return "bit-equal"
        frame = self.quantities
        one_missing = frame["recorded"].isna() != frame["recomputed"].isna()
        beyond = frame["difference"].abs() > frame["noise"]
        return "differs" if self.same_machine or (one_missing | beyond).any() else "within noise"

    def __str__(self) -> str:
        """Return the table of quantities, the equal rows, and the verdict with its reason."""
        table = self.quantities.rename(columns={"quantity": "", "noise": "noise allows"})
        lines = [table.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.6g}"), ""]
        lines += [f"{name}: {equal} of {rows} rows bit-equal" for name, (equal, rows) in self.rows.items()]
        place = "the processor and packages of the records" if self.same_machine else "another processor or packages"
        expected = "every row should be bit-equal" if self.same_machine else self.noise
        return "\n".join([*lines, "", f"{self.verdict}: on {place}, where {expected}"])


def spot_check(profile: Profile, folder: str | Path, name: str = "", *, seed: int | None = None) -> SpotCheck:
    """Compute one candidate of the records in `folder` again and compare.

    name: family/candidate, or family/candidate/rlN; the rest is drawn with `seed` (None: a new one) from what is
    recorded. Raises ParameterError for records that are missing, were made with other parameters or lack the candidate;
    SweepError if a cell fails.
    """
    check(profile)
    folder = Path(folder)
    records = load_records(folder)
    seed = secrets.randbelow(2**31) if seed is None else seed
    rl = choose(profile, records, name, seed)
    print(f"Spot check of {rl.id} (seed {seed}) against the records in {folder}", flush=True)
    with tempfile.TemporaryDirectory(prefix="quagmire-spot-check-") as temporary:
        place, base = Path(temporary), rl.needs.needs
        restored = base is not None and restore_base(place, base, folder)
        todo = [rl.needs, rl] if base is None or restored else [base, rl.needs, rl]
        print("Starts from " + ("the base model kept there" if restored else "random weights"), flush=True)
        try:
            with (
                tqdm(desc="spot check", total=len(todo), unit="cell") as bar,
                LocalPool(profile, place, workers=2) as pool,
            ):
                run_cells(place, todo, pool, bar)
        except SweepError as error:
            tail = error.log.read_text().splitlines()[-15:] if error.log and error.log.is_file() else []
            raise SweepError("\n".join([str(error.__cause__), *tail])) from error
        return judge(records, rl, place, profile.evaluation.k)


def choose(profile: Profile, records: Records, name: str, seed: int) -> Cell:
    """Return the RL cell to compute again, drawn with `seed` from the recorded cells that match `name`."""
    cells = plan(profile)
    if name and name not in {cell.id for cell in cells}:
        known = ", ".join(cell.id for cell in cells if cell.kind != "rl")
        raise ParameterError("spot-check", name, f"a candidate of profile {profile.name} ({known}) or its RL run")
    digests = dict(zip(records.cells["cell"], records.cells["digest"], strict=True))
    wanted = [cell for cell in cells if cell.kind == "rl" and (not name or name in (cell.id, cell.needs.id))]
    kept = [c for c in wanted if digests.get(c.id) == c.digest and digests.get(c.needs.id) == c.needs.digest]
    if not kept:
        reason = f"the records in {records.folder} hold no RL run of it yet"
        if any(cell.id in digests for cell in wanted):
            reason = f"the records in {records.folder} were made with other parameters than the profile has now"
        raise ParameterError("spot-check", name, reason=reason)
    draw = random.Random(seed)
    kept = [cell for cell in kept if cell.needs.kind == "sft"] or kept  # a base takes long: drawn only if named
    start = draw.choice(list(dict.fromkeys(cell.needs for cell in kept)))
    return draw.choice([cell for cell in kept if cell.needs == start])


def judge(records: Records, rl: Cell, folder: Path, k: int) -> SpotCheck:
    """Compare the recomputed cells in `folder` with their records.

    Where bit-equality is not expected, Pass@1 may differ by 3 standard errors of the difference: the variance of
    sampling the answers, both times, plus twice the variance between RL runs of one candidate at the same checkpoint,
    pooled over candidates, which stands for the noise of all training. The mean reward may differ by 3 pooled standard
    deviations between runs, times the root of 2. The generalization loss may differ by 3 of its standard errors, both
    times.
    """
    cells = [rl.needs, rl]
    old, new = {}, {}
    for table in TABLES:
        frame = getattr(records, table)
        old[table] = frame[frame["cell"].isin([cell.id for cell in cells])]
        if old[table].empty:
            reason = f"{table}.parquet in {records.folder} has no rows of {rl.needs.id} and {rl.id}"
            raise ParameterError("spot-check", rl.id, reason=reason)
        places = [cell.path(folder, "cells") / f"{table}.parquet" for cell in cells]
        new[table] = pd.concat([read_parquet(path) for path in places if path.is_file()], ignore_index=True)
    spread, reward_spread = run_spread(records)
    rewards = [float(tables["rl_curves"]["reward"].mean()) for tables in (old, new)]
    reward = ("mean reward in RL", *rewards, LIMIT * math.sqrt(2) * reward_spread)
    rows = [*_scores(old["counts"], new["counts"], k, spread), *_losses(old, new), reward]
    quantities = pd.DataFrame(rows, columns=["quantity", "recorded", "recomputed", "noise"])
    quantities.insert(3, "difference", quantities["recomputed"] - quantities["recorded"])
    base = rl.needs.needs or rl.needs
    cpus = set(records.cells.loc[records.cells["cell"].isin([base.id, rl.needs.id, rl.id]), "hardware"])
    packages, here = records.manifest.get("packages", {}), package_versions(PACKAGES)
    same = cpus == {str(hardware()["cpu"])} and all(packages.get(name) == here.get(name) for name in PACKAGES)
    training = "unknown, as no candidate has two RL runs" if math.isnan(spread) else f"{spread:.4f}"
    noise = f"a difference within {LIMIT:g} standard errors is noise (spread of Pass@1 between RL runs: {training})"
    equal = {table: equal_rows(old[table], new[table], SCHEMA[table].keys) for table in TABLES}
    return SpotCheck(rl, equal, quantities, same, noise)


def equal_rows(recorded: pd.DataFrame, recomputed: pd.DataFrame, keys: Sequence[str]) -> tuple[int, int]:
    """Return (rows on both sides that are the same in every column, rows on either side), matched by `keys`."""
    values = [name for name in recorded.columns if name in recomputed and name not in {*keys, *NOT_COMPARED}]
    both = recorded.merge(recomputed, on=list(keys), how="outer", suffixes=("", "_recomputed"), indicator=True)
    equal = both["_merge"] == "both"
    for name in values:
        left, right = both[name], both[f"{name}_recomputed"]
        equal &= (left == right) | (left.isna() & right.isna())
    return int(equal.sum()), len(both)


def run_spread(records: Records) -> tuple[float, float]:
    """Return pooled standard deviations between RL runs of a candidate: of Pass@1 at a checkpoint, of the mean reward.

    NaN if no candidate has two runs.
    """
    scores = checkpoint_scores(records.counts[records.counts["stage"] == "rl"], [1])
    rewards = records.rl_curves.groupby([*CANDIDATE, "rl_run"])["reward"].mean().reset_index()
    pooled = []
    for group in (scores.groupby([*CANDIDATE, "checkpoint"])["pass@1"], rewards.groupby(CANDIDATE)["reward"]):
        degrees = group.count() - 1
        squares = (group.var() * degrees).sum()  # var is NaN for a single run
        pooled.append(math.sqrt(squares / degrees.sum()) if degrees.any() else math.nan)
    return pooled[0], pooled[1]


def _scores(old: pd.DataFrame, new: pd.DataFrame, k: int, spread: float) -> list[tuple[object, ...]]:
    """Return Pass@1 before RL and at every checkpoint, and Pass@k before RL, which is shown and not judged."""
    keys = ["stage", "rl_run", "checkpoint"]
    before, after = (checkpoint_scores(counts, sorted({1, k})).set_index(keys) for counts in (old, new))
    before = before.reindex(after.index)  # NaN for checkpoints that the records lack
    rows = []
    for key in after.index:
        recorded, recomputed = before.loc[key], after.loc[key]
        where = "before RL" if key[0] != "rl" else f"after {key[2]} RL steps"
        variance = recorded["sampling_se"] ** 2 + recomputed["sampling_se"] ** 2 + 2 * np.nan_to_num(spread) ** 2
        rows.append((f"Pass@1 {where}", recorded["pass@1"], recomputed["pass@1"], LIMIT * math.sqrt(variance)))
        if key[0] != "rl" and k > 1:
            rows.append((f"Pass@{k} {where}", recorded[f"pass@{k}"], recomputed[f"pass@{k}"], math.nan))
    return rows


def _losses(old: dict[str, pd.DataFrame], new: dict[str, pd.DataFrame]) -> list[tuple[object, ...]]:
    """Return the generalization loss on each validation set."""
    before, after = (tables["generalization_loss"].set_index("validation_set") for tables in (old, new))
    before = before.reindex(after.index)
    error = (before["standard_error"] ** 2 + after["standard_error"] ** 2) ** 0.5
    names = [f"generalization loss ({name})" for name in after.index]
    return list(zip(names, before["nll"], after["nll"], LIMIT * error, strict=True))
