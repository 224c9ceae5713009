"""What claims are tested on: the records of one family, and comparisons between candidates with their noise.

Two kinds of claim need two kinds of interval.

- A claim about how measurements go together ("the loss tracks the gain") is one about candidates: its interval is a
  bootstrap over candidates (`over_candidates.py`, `predictors.py`).
- A claim that some candidates do better than others compares given models on given problems. Its interval holds what
  another measurement of them would change: the sampling of answers and, after RL, the noise between RL runs. That noise
  is taken as the same for all candidates of a family, so that few runs of each add up to many degrees of freedom
  (`RunNoise`). Not in it: other problems, and other SFT runs of the same candidate, of which there is one each.

Comparisons are linear in the scores (`contrast`), so that what two pairs share, such as the base model, is counted
once. Candidates whose RL ran a different number of times than the family's others are left out: the best of four runs
lies above the best of two for no other reason than the number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pandas as pd
from scipy import integrate, stats

from quagmire_utils.analysis.claims.claim import Array, Estimate, Interval, student, too_few
from quagmire_utils.analysis.records import base_models
from quagmire_utils.core.records import Records
from quagmire_utils.evaluation.pass_at_k.averages import checkpoint_scores

SIMULATED = 20_000  # draws for the quantile of a largest deviation among several
MEASURED = {
    "pass1": "Pass@1 after SFT",
    "outcome": "Pass@1 after RL",
    "gain": "what RL adds",
}
Pair = tuple[int, int]  # rows of Evidence.rows: the first minus the second


@dataclass(frozen=True)
class RunNoise:
    """How far RL runs of the same candidate differ: one standard deviation for a family, from all its candidates."""

    deviation: float  # of one run's outcome; NaN where no candidate has two runs
    degrees: int  # of freedom: runs minus one, summed over candidates
    best_of: bool  # the outcome is the best of the runs, else their mean

    def standard_errors(self, n_runs: Array, sampling: Array) -> Array:
        """Of the outcome of candidates with so many runs; where no noise is known, that of the sampled answers."""
        if not self.degrees:
            return sampling
        shrink = [deviation_of_best(int(n)) if self.best_of else 1 / math.sqrt(n) for n in n_runs]
        return self.deviation * np.array(shrink)

    @property
    def text(self) -> str:
        if not self.degrees:
            return "sampling of answers alone (one RL run each, so the noise between runs is unknown)"
        return (
            f"sampling of answers and noise between RL runs (standard deviation {100 * self.deviation:.1f} points, "
            f"{self.degrees} degrees of freedom)"
        )


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one family offers: all its rows of the candidate frame, and those that comparisons may use."""

    family: str
    model: str  # the paper's
    outcome: str  # column of the frame
    frame: pd.DataFrame  # the family's rows of the candidate frame
    rows: pd.DataFrame  # measured before and after RL, the same number of runs; the base first, if it is there
    noise: RunNoise
    own_loss: pd.Series | None = None  # loss on traces selected as the candidate's own were, by candidate

    @property
    def base(self) -> int | None:
        """Row of the model without SFT."""
        found = np.flatnonzero(self.rows["selection"] == "none")
        return int(found[0]) if found.size else None

    def select(self, selection: str | None = None, scenario: str | None = None, *, main: bool = True) -> pd.DataFrame:
        """Trained candidates among the rows, by how their examples were selected; main: of the family's own settings.

        Its own settings are the base's source and learning rate, or the most frequent ones.
        """
        trained = self.rows[self.rows["selection"] != "none"]
        if main and len(trained):
            reference = trained if self.base is None else self.rows.iloc[[self.base]]
            for column in ("source", "learning_rate"):
                trained = trained[trained[column] == reference[column].mode().iloc[0]]
        if selection is not None:
            trained = trained[trained["selection"] == selection]
        if scenario is not None:
            trained = trained[trained["scenario"].str.split("+").map(lambda names: scenario in names).astype(bool)]
        return trained


def gather(
    frame: pd.DataFrame, family: str, records: Records | None = None, outcome: str = "outcome"
) -> Evidence | None:
    """The evidence of a family in a candidate frame; None where no candidate of it has an outcome.

    Without records the noise between runs comes from `outcome_last_std`, their last checkpoints', also for the best.
    """
    mine = frame[frame["family"] == family].reset_index(drop=True)
    rows = mine.dropna(subset=["pass1", outcome])
    if not (rows["selection"] != "none").any():
        return None
    rows = rows[rows["n_runs"] == rows["n_runs"].mode().iloc[0]]
    bases = base_models(rows, family)
    rows = pd.concat([bases, rows[rows["selection"] != "none"]], ignore_index=True)
    own = None
    if records is not None:
        loss = records.generalization_loss
        loss = loss[(loss["family"] == family) & (loss["validation_set"] == "own")] if len(loss) else loss
        own = loss.set_index("candidate")["nll"] if len(loss) else None
    noise = run_noise(mine, records, outcome)
    return Evidence(family, str(mine["stands_for"].iloc[0]), outcome, mine, rows, noise, own)


def run_noise(frame: pd.DataFrame, records: Records | None, outcome: str) -> RunNoise:
    """The noise between RL runs of a family, pooled over its candidates."""
    best_of = outcome != "outcome_last"
    if records is None:
        variance, degrees = frame["outcome_last_std"] ** 2, (frame["n_runs"] - 1).clip(lower=0)
    else:
        counts = records.counts
        counts = counts[(counts["stage"] == "rl") & (counts["family"] == frame["family"].iloc[0])]
        if counts.empty:
            return RunNoise(math.nan, 0, best_of)
        scores = checkpoint_scores(counts, [1]).sort_values("checkpoint")
        runs = scores.groupby(["candidate", "rl_run"])["pass@1"].agg("max" if best_of else "last")
        grouped = runs.groupby("candidate")
        variance, degrees = grouped.var(), grouped.size() - 1
    known = variance.notna() & (degrees > 0)
    total = int(degrees[known].sum())
    deviation = math.sqrt((variance * degrees)[known].sum() / total) if total else math.nan
    return RunNoise(deviation, total, best_of)


@cache
def deviation_of_best(n: int) -> float:
    """Standard deviation of the largest of n independent standard normal values."""
    moments = [
        integrate.quad(lambda x, p=power: x**p * n * stats.norm.pdf(x) * stats.norm.cdf(x) ** (n - 1), -12, 12)[0]
        for power in (1, 2)
    ]
    return math.sqrt(moments[1] - moments[0] ** 2)


@dataclass(frozen=True)
class Entry:
    """One claim of the paper."""

    name: str
    places: Mapping[str, tuple[str, ...]]  # where the paper makes it -> of which models
    claim: str  # in our words
    quote: str  # the paper's
    test: Callable[[Evidence], Estimate]
    below: bool = False  # the claim says: statistic < bound; else > bound
    bound: float = 0.0
    unit: str = "points"
    published: Mapping[str, float] = field(default_factory=dict)  # by model, where a number is printed
    scenario: str = ""  # the candidates that a figure shows and the claim goes for; "": the claim chooses them itself

    def where(self, model: str) -> str:
        """The places that make the claim of this model."""
        return ", ".join(place for place, models in self.places.items() if model in models)


# --- comparisons ------------------------------------------------------------------------------------------------------


def contrast(evidence: Evidence, pairs: Sequence[Pair], what: str, counted: str = "pairs") -> Estimate:
    """Mean over pairs of first minus second, of "pass1", "outcome", or "gain" (outcome minus pass1).

    Student's t interval; where the noise of RL runs and of answers before RL come together, Satterthwaite's degrees of
    freedom.
    """
    if not pairs:
        return too_few(MEASURED[what], 0, counted)
    weights = _weights(evidence, pairs)
    differences = [_values(evidence, what) @ _weights(evidence, [pair]) for pair in pairs]
    value = float(np.mean(differences))
    error, degrees = _error(evidence, weights, what)
    text = f"{MEASURED[what]}, {_named(evidence, pairs)}"
    if len(pairs) > 1:
        text += f" ({sum(one > 0 for one in differences)} of {len(pairs)} positive)"
    return Estimate(value, text, len(pairs), student(value, error, degrees), _held(evidence, what), counted)


def smallest_contrast(
    evidence: Evidence,
    alternatives: Sequence[Sequence[Pair]],
    what: str,
    label: str,
    n: int,
    counted: str = "candidates",
) -> Estimate:
    """The smallest of several mean differences, such as one candidate minus the best of the others.

    n: how many are compared in all, which is one more than the differences where one stands against all others.

    The estimate itself is biased, being an extreme; the interval is not misled by that. The true smallest difference
    is above the lowest of the single lower ends as surely as each of these is below its difference. It is below the
    lowest of the upper ends if all of them are above their differences at once, so these allow for the largest
    deviation among them, as Dunnett's and Hsu's comparisons do. Together they hold the truth at least as often as they
    say.
    """
    if not alternatives:
        return too_few(label, 0, counted)
    weights = np.array([_weights(evidence, pairs) for pairs in alternatives])
    differences = weights @ _values(evidence, what)
    errors, degrees = np.array([_error(evidence, one, what) for one in weights]).T
    scale = _scale(evidence, what)
    value = float(differences.min())
    text = f"{label} ({_named(evidence, alternatives[int(differences.argmin())])})"
    interval = _smallest_interval(differences, errors, degrees, weights * scale)
    return Estimate(value, text, n, interval, _held(evidence, what), counted)


def _smallest_interval(differences: Array, errors: Array, degrees: Array, loadings: Array) -> Interval:
    """loadings: (differences, rows), how the noise of each row moves each difference."""
    rng = np.random.default_rng(0)
    free = float(degrees.min())
    moved = rng.standard_normal((SIMULATED, loadings.shape[1])) @ loadings.T
    common = np.ones(SIMULATED) if math.isinf(free) else np.sqrt(rng.chisquare(free, SIMULATED) / free)
    with np.errstate(invalid="ignore", divide="ignore"):
        largest = np.nanmax(np.where(errors > 0, moved / errors, 0.0), axis=1) / common

    def interval(confidence: float) -> tuple[float, float]:
        single = stats.t.ppf((1 + confidence) / 2, degrees)
        several = float(np.quantile(largest, (1 + confidence) / 2))
        return float((differences - single * errors).min()), float((differences + several * errors).min())

    return interval


def _weights(evidence: Evidence, pairs: Sequence[Pair]) -> Array:
    weights = np.zeros(len(evidence.rows))
    for first, second in pairs:
        weights[first] += 1 / len(pairs)
        weights[second] -= 1 / len(pairs)
    return weights


def _values(evidence: Evidence, what: str) -> Array:
    before = evidence.rows["pass1"].to_numpy(np.float64)
    after = evidence.rows[evidence.outcome].to_numpy(np.float64)
    return {"pass1": before, "outcome": after, "gain": after - before}[what]


def _errors(evidence: Evidence) -> tuple[Array, Array]:
    """Standard errors of each row's Pass@1 before and after RL."""
    rows = evidence.rows
    sampling = rows["outcome_sampling_se"].to_numpy(np.float64)
    before = rows["pass1_sampling_se"].to_numpy(np.float64)
    return before, evidence.noise.standard_errors(rows["n_runs"].to_numpy(), sampling)


def _scale(evidence: Evidence, what: str) -> Array:
    """Standard error of each row's value."""
    before, after = _errors(evidence)
    return {"pass1": before, "outcome": after, "gain": np.hypot(before, after)}[what]


def _error(evidence: Evidence, weights: Array, what: str) -> tuple[float, float]:
    """Standard error and degrees of freedom of a weighted sum of rows."""
    before, after = ((weights * errors) ** 2 for errors in _errors(evidence))
    variance = {"pass1": before, "outcome": after, "gain": before + after}[what].sum()
    if what == "pass1" or not evidence.noise.degrees or not after.sum():
        return math.sqrt(variance), math.inf
    return math.sqrt(variance), evidence.noise.degrees * (variance / after.sum()) ** 2


def _named(evidence: Evidence, pairs: Sequence[Pair]) -> str:
    names = evidence.rows["candidate"].to_numpy()
    shown = [f"{names[first]} minus {names[second]}" for first, second in pairs[:4]]
    if len(pairs) > len(shown):
        shown.append(f"and {len(pairs) - len(shown)} more")
    return ("mean of " if len(pairs) > 1 else "") + ", ".join(shown)


def _held(evidence: Evidence, what: str) -> str:
    return "sampling of answers" if what == "pass1" else evidence.noise.text
