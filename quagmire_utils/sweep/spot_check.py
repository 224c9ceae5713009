"""Retrain one recorded candidate and compare what comes out with its records.

    quagmire sweep mini --spot-check random                        # a candidate and an RL run drawn at random
    quagmire sweep mini --spot-check micro-llama/random-32x16      # this candidate; .../rl1 names the RL run too

The candidate's SFT and one of its RL runs are computed and measured again in a temporary folder. They start from the
base model beside the records; if there is none, or the base is what is checked (.../base), that is trained first. With
the processor and the packages of the records every row must be bit-equal. Elsewhere sums in another order make other
models, and differences must be within the noise of sampling and training (see `judge`).
"""

from __future__ import annotations

import math
import random
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
from quagmire_utils.sweep.collect import TABLES
from quagmire_utils.sweep.grid import Cell, check, plan
from quagmire_utils.sweep.pools import LocalPool
from quagmire_utils.sweep.runner import SweepError, run_cells

LIMIT = 3.0  # standard errors that a difference may have
PACKAGES = ("numpy", "torch", "transformers", "tokenizers", "trl", "math-verify", "sympy")  # what results depend on
NOT_COMPARED = {"cell", "seconds", "trace_nll", "trace_tokens"}  # times are no result; a loss sums up its traces


@dataclass(frozen=True)
class SpotCheck:
    """What came out, beside the records."""

    rows: dict[str, tuple[int, int]]  # by table: bit-equal, all
    quantities: pd.DataFrame  # quantity, recorded, recomputed, difference, noise (the largest difference allowed)
    same_machine: bool  # as made the records, so that bit-equality is expected
    spread: float  # of Pass@1 between RL runs

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
        rows = [f"{name}: {equal} of {rows} rows bit-equal" for name, (equal, rows) in self.rows.items()]
        where = "the processor and packages of the records, where every row should be bit-equal"
        if not self.same_machine:
            spread = "unknown, as no candidate has two RL runs" if math.isnan(self.spread) else f"{self.spread:.4f}"
            where = f"another processor or packages, where a difference within {LIMIT:g} standard errors is noise "
            where += f"(spread of Pass@1 between RL runs: {spread})"
        shown = table.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.6g}")
        return "\n".join([shown, "", *rows, "", f"{self.verdict}: on {where}"])


def spot_check(profile: Profile, folder: Path, name: str = "") -> SpotCheck:
    """Compute one candidate of the records in `folder` again and compare.

    name: family/candidate, or family/candidate/rlN; the rest is drawn from what is recorded. Raises ParameterError for
    records that are missing, were made with other parameters or lack the candidate; SweepError if a cell fails.
    """
    check(profile)
    records = load_records(folder)
    rl = choose(profile, records, name)
    print(f"Spot check of {rl.id} against the records in {folder}", flush=True)
    with tempfile.TemporaryDirectory(prefix="quagmire-spot-check-") as temporary:
        place, base = Path(temporary), rl.needs.needs
        restored = base is not None and restore_base(place, base, folder)
        todo = [rl.needs, rl] if base is None or restored else [base, rl.needs, rl]
        print("Starts from " + ("the base model kept there" if restored else "random weights"), flush=True)
        bar = tqdm(desc="spot check", total=len(todo), unit="cell")
        try:
            with bar, LocalPool(profile, place, workers=2) as pool:
                run_cells(place, todo, pool, bar)
        except SweepError as error:
            tail = error.log.read_text().splitlines()[-15:] if error.log and error.log.is_file() else []
            raise SweepError("\n".join([str(error.__cause__), *tail])) from error
        return judge(records, rl, place)


def choose(profile: Profile, records: Records, name: str) -> Cell:
    """Return the RL cell to compute again, drawn from the recorded cells that match `name`."""
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
    kept = [cell for cell in kept if cell.needs.kind == "sft"] or kept  # a base takes long: drawn only if named
    start = random.choice(list(dict.fromkeys(cell.needs for cell in kept)))
    return random.choice([cell for cell in kept if cell.needs == start])


def judge(records: Records, rl: Cell, folder: Path) -> SpotCheck:
    """Compare the recomputed cells in `folder` with their records.

    Where bit-equality is not expected, Pass@1 may differ by 3 standard errors of the difference: the variance of
    sampling the answers, both times, plus twice the variance between RL runs of one candidate at the same checkpoint,
    pooled over candidates, which stands for the noise of all training. The generalization loss may differ by 3 of its
    standard errors, both times.
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
    spread, keys = run_spread(records), ["stage", "rl_run", "checkpoint"]
    before, after = (checkpoint_scores(tables["counts"], [1]).set_index(keys) for tables in (old, new))
    stages = ["before RL" if stage != "rl" else f"after {step} RL steps" for stage, _, step in after.index]
    scores = _beside(before, after, [f"Pass@1 {stage}" for stage in stages], "pass@1", "sampling_se")
    scores["noise"] = LIMIT * np.hypot(scores["noise"], math.sqrt(2) * np.nan_to_num(spread))
    before, after = (tables["generalization_loss"].set_index("validation_set") for tables in (old, new))
    names = [f"generalization loss ({name})" for name in after.index]
    losses = _beside(before, after, names, "nll", "standard_error")
    losses["noise"] *= LIMIT
    base = rl.needs.needs or rl.needs
    cpus = set(records.cells.loc[records.cells["cell"].isin([base.id, rl.needs.id, rl.id]), "hardware"])
    packages, here = records.manifest.get("packages", {}), package_versions(PACKAGES)
    same = cpus == {str(hardware()["cpu"])} and all(packages.get(name) == here.get(name) for name in PACKAGES)
    equal = {table: equal_rows(old[table], new[table], SCHEMA[table].keys) for table in TABLES}
    return SpotCheck(equal, pd.concat([scores, losses], ignore_index=True), same, spread)


def _beside(before: pd.DataFrame, after: pd.DataFrame, names: Sequence[str], value: str, error: str) -> pd.DataFrame:
    """Return the `quantities` of a value, recorded and recomputed; their noise is the error of the difference."""
    before = before.reindex(after.index)  # NaN for what the records lack
    columns = {"recorded": before[value], "recomputed": after[value], "difference": after[value] - before[value]}
    return pd.DataFrame({"quantity": names, **columns, "noise": np.hypot(before[error], after[error])})


def equal_rows(recorded: pd.DataFrame, recomputed: pd.DataFrame, keys: Sequence[str]) -> tuple[int, int]:
    """Return (rows on both sides that are the same in every column, rows on either side), matched by `keys`."""
    values = [name for name in recorded.columns if name in recomputed and name not in {*keys, *NOT_COMPARED}]
    both = recorded.merge(recomputed, on=list(keys), how="outer", suffixes=("", "_recomputed"), indicator=True)
    equal = both["_merge"] == "both"
    for name in values:
        left, right = both[name], both[f"{name}_recomputed"]
        equal &= (left == right) | (left.isna() & right.isna())
    return int(equal.sum()), len(both)


def run_spread(records: Records) -> float:
    """Return the pooled standard deviation of Pass@1 between RL runs of a candidate; NaN if none has two runs."""
    scores = checkpoint_scores(records.counts[records.counts["stage"] == "rl"], [1])
    runs = scores.groupby([*CANDIDATE, "checkpoint"])["pass@1"]
    degrees = runs.count() - 1
    squares = (runs.var() * degrees).sum()  # var is NaN for a single run
    return math.sqrt(squares / degrees.sum()) if degrees.any() else math.nan
