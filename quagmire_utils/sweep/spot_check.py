"""Retrains one recorded candidate and compares what comes out with its records.

    ./reproduce.sh --profile mini --spot-check                            # a candidate and an RL run chosen at random
    ./reproduce.sh --profile mini --spot-check micro-llama/random-32x16   # this candidate; .../rl1 names the RL run too
    ./reproduce.sh --profile mini --spot-check micro-llama/base           # the base model itself, from nothing, and RL

The candidate's SFT is done again, its measurement, and one of its RL runs with its measurements, in a temporary folder,
on two cores. It starts from the base model that is kept beside the records; where there is none, and where the base is
what is checked, that is trained from nothing first. Where the processor and the packages are those that made the
records, every row has to be bit-equal; elsewhere a sum in another order makes another model, and the differences have
to be within the noise of sampling and training (`judge` says how much that is).
"""

from __future__ import annotations

import math
import random
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_parquet
from quagmire_utils.core.provenance import hardware, package_versions
from quagmire_utils.core.records import Records, load_records
from quagmire_utils.core.settings import Profile
from quagmire_utils.evaluation.pass_at_k.averages import checkpoint_scores
from quagmire_utils.sweep.cells import has_checkpoint, restore_base
from quagmire_utils.sweep.collect import TABLES
from quagmire_utils.sweep.grid import Cell, cell_folder, check, log_path, model_folder, plan, progress_path
from quagmire_utils.sweep.pools import LocalPool
from quagmire_utils.sweep.runner import SweepError

LIMIT = 3.0  # standard errors that a difference may have
PACKAGES = ("numpy", "torch", "transformers", "tokenizers", "trl", "math-verify", "sympy")  # what results depend on
KEYS = {
    "counts": ["stage", "rl_run", "checkpoint", "benchmark", "problem"],
    "generalization_loss": ["stage", "validation_set"],
    "rl_curves": ["rl_run", "step"],
}
NOT_COMPARED = {"cell", "seconds"}  # what a step took is no result


@dataclass(frozen=True)
class Chosen:
    """What is computed again: a candidate, one of its RL runs, and the base model that both need."""

    base: Cell
    start: Cell  # the candidate's SFT; the base itself for the candidate without SFT
    rl: Cell


@dataclass(frozen=True)
class Quantity:
    """A number of the record beside its recomputed value; `allowed`: the largest difference that is noise."""

    name: str
    recorded: float
    recomputed: float
    allowed: float | None = None  # None: not judged

    @property
    def difference(self) -> float:
        """Recomputed minus recorded."""
        return self.recomputed - self.recorded

    @property
    def is_noise(self) -> bool:
        """Whether the difference is no larger than allowed; a NaN on one side only is a difference."""
        if math.isnan(self.recorded) and math.isnan(self.recomputed):
            return True
        return self.allowed is None or abs(self.difference) <= self.allowed


@dataclass(frozen=True)
class SpotCheck:
    """The outcome: equal and all rows by table, the quantities side by side, and whether bit-equality was due."""

    chosen: Chosen
    rows: dict[str, tuple[int, int]]  # table -> (bit-equal rows, rows)
    quantities: list[Quantity]
    same_machine: bool  # processor and packages are those of the records
    noise: str  # what `allowed` is made of, in words

    @property
    def verdict(self) -> str:
        """bit-equal | within noise | differs."""
        if all(equal == rows > 0 for equal, rows in self.rows.values()):
            return "bit-equal"
        if self.same_machine or not all(quantity.is_noise for quantity in self.quantities):
            return "differs"
        return "within noise"

    def __str__(self) -> str:
        table = pd.DataFrame(
            [(q.name, q.recorded, q.recomputed, q.difference, q.allowed) for q in self.quantities],
            columns=["", "recorded", "recomputed", "difference", "noise allows"],
        )
        lines = [table.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.6g}"), ""]
        lines += [f"{name}: {equal} of {rows} rows bit-equal" for name, (equal, rows) in self.rows.items()]
        where = (
            "the same processor and packages as" if self.same_machine else "another processor or other packages than"
        )
        reasons = {
            "bit-equal": "everything that was recorded came out again, to the last bit",
            "within noise": f"on {where} the records'; {self.noise}",
            "differs": f"on {where} the records', where "
            + ("every row should be bit-equal" if self.same_machine else self.noise),
        }
        return "\n".join([*lines, "", f"{self.verdict}: {reasons[self.verdict]}"])


def spot_check(
    profile: Profile, folder: str | Path, name: str = "", *, seed: int | None = None, progress: bool = True
) -> SpotCheck:
    """Compute one candidate of the records in `folder` again and compare.

    name: family/candidate, or family/candidate/rlN; what it leaves open is drawn with `seed` (None: a new one), from
    what is recorded. Raises ParameterError where there are no records, where they were made with other parameters than
    the profile has now, or for a name that they do not hold; SweepError where a cell fails.
    """
    check(profile)
    folder = Path(folder)
    records = load_records(folder)
    seed = secrets.randbelow(2**31) if seed is None else seed
    chosen = choose(profile, records, name, seed)
    if progress:
        print(f"Spot check of {chosen.rl.id} (seed {seed}) against the records in {folder}", flush=True)
    seconds = records.cells.set_index("cell")
    with tempfile.TemporaryDirectory(prefix="quagmire-spot-check-") as temporary:
        place = Path(temporary)
        restored = chosen.start != chosen.base and restore_base(place, chosen.base, folder)
        if progress:
            print("Starts from " + ("the base model kept there" if restored else "nothing"), flush=True)
        _recompute(profile, place, chosen, _Estimate(seconds, chosen, base=not restored, shown=progress))
        return judge(records, chosen, place, profile.evaluation.k)


def choose(profile: Profile, records: Records, name: str, seed: int) -> Chosen:
    """The cells to compute again; what `name` leaves open is drawn with `seed` among those that are recorded."""
    cells = {cell.id: cell for cell in plan(profile)}
    family_candidate, _, run = name.partition("/rl")
    if name and name not in cells and family_candidate not in cells:
        raise ParameterError(
            f"spot-check: there is no {name!r} in profile {profile.name}; its candidates are named family/candidate, "
            f"for example {next((c.id for c in cells.values() if c.kind == 'sft'), next(iter(cells)))}"
        )
    digests = dict(zip(records.cells["cell"], records.cells["digest"], strict=True))
    wanted = [c for c in cells.values() if c.kind == "rl" and (not name or name in (c.id, c.needs))]
    kept = [c for c in wanted if digests.get(c.id) == c.digest and digests.get(c.needs) == cells[c.needs].digest]
    if not kept:
        what = f"RL run {run} of {family_candidate}" if run else name or "candidates"
        if not any(c.id in digests for c in wanted):
            raise ParameterError(f"spot-check: the records in {records.folder} hold no {what} that went through RL yet")
        raise ParameterError(
            f"spot-check: the records in {records.folder} were made with other parameters than profile {profile.name} "
            "has now, so that nothing of them can come out again"
        )
    draw = random.Random(seed)
    tuned = [c for c in kept if cells[c.needs].kind == "sft"]  # a base takes long: it is checked where it is named
    kept = tuned or kept
    start = draw.choice(list(dict.fromkeys(c.needs for c in kept)))
    rl = draw.choice([c for c in kept if c.needs == start])
    return Chosen(base=cells[f"{rl.family}/base"], start=cells[start], rl=rl)


# --- computing it again -----------------------------------------------------------------------------------------------


def _recompute(profile: Profile, folder: Path, chosen: Chosen, estimate: _Estimate) -> None:
    """Run the chosen cells in `folder`: the RL run as soon as its starting checkpoint is there."""
    with estimate:
        if chosen.start != chosen.base and not has_checkpoint(folder, chosen.base):
            with LocalPool(profile, folder, workers=1) as pool:
                pool.submit(chosen.base)
                _wait(pool, folder, lambda: has_checkpoint(folder, chosen.base), estimate)
                pool.stop()  # it measures now, and its measurement is nothing that was asked for
        with LocalPool(profile, folder, workers=2) as pool:
            pool.submit(chosen.start)
            _wait(pool, folder, lambda: has_checkpoint(folder, chosen.start), estimate)
            pool.submit(chosen.rl)
            _wait(pool, folder, lambda: not pool.running, estimate)


def _wait(pool: LocalPool, folder: Path, done: Callable[[], bool], estimate: _Estimate) -> None:
    while not done():
        estimate.show(folder, pool.running)
        for cell, error in pool.wait(0.5):
            if error is not None:
                log = log_path(folder, cell)
                tail = "\n".join(log.read_text().splitlines()[-15:]) if log.is_file() else ""
                raise SweepError(f"cell {cell.id} failed: {str(error).strip() or type(error).__name__}\n{tail}")


class _Estimate:
    """A bar in seconds of the records' machine along the longest way: base, SFT, then RL beside the SFT's measuring."""

    def __init__(self, cells: pd.DataFrame, chosen: Chosen, *, base: bool = True, shown: bool) -> None:
        from tqdm import tqdm

        def seconds(cell: Cell, name: str) -> float:
            column = f"seconds_{name}"
            value = cells.loc[cell.id, column] if column in cells and cell.id in cells.index else float("nan")
            return 0.0 if pd.isna(value) else float(value)

        self.phases: list[tuple[Cell, float, float]] = []  # what trains, for how long; with what follows it
        if chosen.start != chosen.base and base:
            spent = seconds(chosen.base, "pretraining")
            self.phases.append((chosen.base, spent, spent))
        spent = seconds(chosen.start, "pretraining" if chosen.start.kind == "base" else "sft")
        self.phases.append((chosen.start, spent, spent))
        after = max(seconds(chosen.rl, "total"), seconds(chosen.start, "total") - spent)
        self.phases.append((chosen.rl, seconds(chosen.rl, "rl"), after))
        self.phase = 0
        self.trained: dict[Cell, float] = {}  # when
        self.bar = tqdm(
            total=sum(whole for _, _, whole in self.phases) or None,
            desc="spot check",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}, about {remaining} left{postfix}",
            disable=not shown,
        )

    def __enter__(self) -> _Estimate:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, folder: Path, running: Sequence[Cell]) -> None:
        """Redraw with the fraction of what trains; what comes after it is judged by the clock."""
        position, texts = 0.0, []
        for i, (cell, training, whole) in enumerate(self.phases):
            if cell in running:
                self.phase = max(self.phase, i)
            if i < self.phase:
                position += whole
            elif i == self.phase:
                fraction = _fraction(folder, cell)
                since = time.monotonic() - self.trained.setdefault(cell, time.monotonic()) if fraction == 1 else 0.0
                position += min(fraction * training + since, whole)
        for cell in running:
            fraction = _fraction(folder, cell)
            texts.append(f"{cell.id} " + (f"training {fraction:.0%}" if fraction < 1 else "measuring"))
        self.bar.n = min(position, self.bar.total or position)
        self.bar.set_postfix_str(", ".join(texts))


def _fraction(folder: Path, cell: Cell) -> float:
    """How far a cell's training is."""
    trained = (
        has_checkpoint(folder, cell) if cell.kind != "rl" else (model_folder(folder, cell.id) / "rl.json").is_file()
    )
    if trained:
        return 1.0
    try:
        return min(0.99, float(progress_path(folder, cell).read_text()))
    except (OSError, ValueError):
        return 0.0


# --- comparing --------------------------------------------------------------------------------------------------------


def judge(records: Records, chosen: Chosen, folder: Path, k: int) -> SpotCheck:
    """Compare the chosen cells in `folder` with their records.

    What noise allows, where bit-equality is not due: Pass@1 may differ by 3 standard errors of the difference, whose
    variance is that of sampling the answers (both times) plus twice the variance between RL runs of one candidate in
    the records, pooled over candidates, at the same checkpoint: it stands for the noise of training, SFT included. It
    contains sampling noise too and so allows a little more. The mean reward of the RL run may differ by 3 of the
    records' pooled standard deviations between runs, times the root of 2. The generalization loss may differ by 3 of
    its standard errors (both times), which is generous, because both were measured on the same traces.
    """
    ids = [chosen.start.id, chosen.rl.id]
    old, new = {}, {}
    for table in TABLES:
        frame = getattr(records, table)
        old[table] = frame[frame["cell"].isin(ids)]
        if old[table].empty:
            raise ParameterError(f"spot-check: {table}.parquet in {records.folder} has no rows of {' and '.join(ids)}")
        places = [cell_folder(folder, cell) / f"{table}.parquet" for cell in (chosen.start, chosen.rl)]
        new[table] = pd.concat([read_parquet(path) for path in places if path.is_file()], ignore_index=True)
    rows = {table: equal_rows(old[table], new[table], KEYS[table]) for table in TABLES}
    spread, reward_spread = run_spread(records)
    quantities = [*_scores(old["counts"], new["counts"], k, spread), *_losses(old, new)]
    rewards = [float(tables["rl_curves"]["reward"].mean()) for tables in (old, new)]
    allowed = None if reward_spread is None else LIMIT * math.sqrt(2) * reward_spread
    quantities.append(Quantity("mean reward in RL", *rewards, allowed))
    # load_records has seen the manifest; its packages are those of the process that collected
    packages = records.manifest.get("packages", {})
    here = package_versions(PACKAGES)
    cpus = set(records.cells.loc[records.cells["cell"].isin([chosen.base.id, *ids]), "hardware"])
    same = cpus == {str(hardware()["cpu"])} and all(packages.get(name) == here.get(name) for name in PACKAGES)
    training = "no training noise, as no candidate has two RL runs" if spread is None else f"{spread:.4f} of training"
    noise = (
        f"noise is a difference within {LIMIT:g} standard errors: for Pass@1 of sampling, and {training} "
        "(the spread of the records' RL runs); for the loss of its own error; for the reward of the runs' spread"
    )
    return SpotCheck(chosen, rows, quantities, same, noise)


def equal_rows(recorded: pd.DataFrame, recomputed: pd.DataFrame, keys: Sequence[str]) -> tuple[int, int]:
    """(rows that are on both sides and the same in every column, rows on either side), matched by `keys`."""
    values = [name for name in recorded.columns if name in recomputed and name not in {*keys, *NOT_COMPARED}]
    both = recorded.merge(recomputed, on=list(keys), how="outer", suffixes=("", "_recomputed"), indicator=True)
    equal = both["_merge"] == "both"
    for name in values:
        left, right = both[name], both[f"{name}_recomputed"]
        equal &= (left == right) | (left.isna() & right.isna())
    return int(equal.sum()), len(both)


def run_spread(records: Records) -> tuple[float | None, float | None]:
    """Pooled standard deviations between RL runs of one candidate: of Pass@1 at a checkpoint, and of the mean reward.

    None where no candidate has two runs.
    """
    scores = checkpoint_scores(records.counts[records.counts["stage"] == "rl"], [1])
    rewards = records.rl_curves.groupby(["family", "candidate", "rl_run"])["reward"].mean().reset_index()
    groups = (
        scores.groupby(["family", "candidate", "checkpoint"])["pass@1"],
        rewards.groupby(["family", "candidate"])["reward"],
    )
    pooled = []
    for group in groups:
        degrees = group.count() - 1
        variance = (group.var() * degrees)[degrees > 0].sum() / max(1, degrees[degrees > 0].sum())
        pooled.append(math.sqrt(variance) if (degrees > 0).any() else None)
    return pooled[0], pooled[1]


def _scores(old: pd.DataFrame, new: pd.DataFrame, k: int, spread: float | None) -> list[Quantity]:
    """Pass@1 before RL and at every checkpoint, and Pass@k before RL, which is shown and not judged."""
    keys = ["stage", "rl_run", "checkpoint"]
    sides = [checkpoint_scores(counts, list(dict.fromkeys([1, k]))).set_index(keys) for counts in (old, new)]
    quantities = []
    for key in sides[1].index:
        where = "before RL" if key[0] != "rl" else f"after {key[2]} RL steps"
        before, after = (side.loc[key] if key in side.index else None for side in sides)
        if before is None:  # the records lack a checkpoint
            quantities.append(Quantity(f"Pass@1 {where}", math.nan, after["pass@1"], 0.0))
            continue
        variance = before["sampling_se"] ** 2 + after["sampling_se"] ** 2 + 2 * (spread or 0.0) ** 2
        quantities.append(Quantity(f"Pass@1 {where}", before["pass@1"], after["pass@1"], LIMIT * math.sqrt(variance)))
        if key[0] != "rl" and k > 1:
            quantities.append(Quantity(f"Pass@{k} {where}", before[f"pass@{k}"], after[f"pass@{k}"]))
    return quantities


def _losses(old: dict[str, pd.DataFrame], new: dict[str, pd.DataFrame]) -> list[Quantity]:
    """The generalization loss on each validation set."""
    sides = [tables["generalization_loss"].set_index("validation_set") for tables in (old, new)]
    quantities = []
    for name in sides[1].index:
        before, after = (side.loc[name] if name in side.index else None for side in sides)
        recorded = math.nan if before is None else float(before["nll"])
        error = 0.0 if before is None else math.hypot(before["standard_error"], after["standard_error"])
        quantities.append(Quantity(f"generalization loss ({name})", recorded, float(after["nll"]), LIMIT * error))
    return quantities
