"""Rungs of evidence side by side: how well predictors rank candidates of micro models, small models, published ones.

draws = {name: judge(rows) for name, rows in measured_sets("results/mini").items()}
gain(draws, "pass_k")     # the mean gain over Pass@1 as text, and whether Pass@1 is beaten
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from quagmire_utils.analysis import public_evidence
from quagmire_utils.analysis.candidates import candidate_frame, select_candidates
from quagmire_utils.analysis.predictors import FEWEST, RESAMPLES, bootstrap_scores, interval_text
from quagmire_utils.core.records import load_records

NAMES = {"pass1": "Pass@1", "gen_loss": "generalization loss", "pass_k": "Pass@large k"}


def measured_frame(folder: str | Path, k: int = 64) -> pd.DataFrame | None:
    """Return the candidate frame of a folder's records, with their number of answers as k if that is less.

    None if the folder holds no records yet.
    """
    if not (Path(folder) / "manifest.json").is_file():
        return None
    records = load_records(folder)
    least = records.counts.loc[records.counts["stage"] != "rl", "n"].min()
    return candidate_frame(records, k=min(k, int(least)))


def measured_sets(frame: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    """Return the SFT candidates of each family and level, where there are enough of them.

    At instance level no candidate has a loss: losses of candidates trained on other data do not compare (Sec. 4.3).
    """
    sets = {}
    for family in [] if frame is None else frame["family"].unique():
        rows = select_candidates(frame, family, "dataset")
        sets[f"{family}, dataset level"] = rows
        sets[f"{family}, instance level"] = select_candidates(frame, family, "instance").assign(gen_loss=np.nan)
    return {name: rows for name, rows in sets.items() if len(rows) >= FEWEST}


def published_sets() -> dict[str, pd.DataFrame]:
    """Return the published groups of SFT checkpoints, where there are enough of them."""
    groups = public_evidence.comparable(public_evidence.load_rows())
    groups = groups[groups["kind"] == public_evidence.KINDS[0]].groupby("family", sort=False)
    return {str(name): rows for name, rows in groups if len(rows) >= public_evidence.SMALLEST}


def judge(rows: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """Return the rank correlation of each predictor with the outcome, and its gain over Pass@1 on the same candidates.

    Columns (rank or gain, predictor); row 0 has all candidates, the others resamples of them.
    """
    found = {}
    for column in NAMES:
        known = rows.dropna(subset=[column])
        pair = known[list(dict.fromkeys(["pass1", column]))]
        drawn = bootstrap_scores(pair, known["outcome"], resamples, seed, fewest=public_evidence.SMALLEST)["spearman"]
        found |= {("rank", column): drawn[column], ("gain", column): drawn[column] - drawn["pass1"]}
    return pd.DataFrame(found)


def gain(draws: Mapping[str, pd.DataFrame], column: str, *, draw_sets: bool = False) -> tuple[str, str]:
    """Return the mean gain of a predictor over the sets that have it, with its interval, and a verdict.

    draws: from `judge`, by set. draw_sets: the interval covers the choice of sets too, as of published groups. The
    verdict is better, worse or undecided.
    """
    found = [drawn["gain", column] for drawn in draws.values() if drawn["gain", column].notna().any()]
    if not found:
        return "not measured", "undecided"
    mean = public_evidence.pooled(found) if draw_sets else np.mean(found, axis=0)
    low, high = np.nanquantile(mean[1:], [0.025, 0.975])
    counted = f"{len(found)} set{'s' * (len(found) > 1)}"
    text = f"{interval_text(pd.Series(mean), sign='+')} ({counted})"
    return text, "better" if low > 0 else "worse" if high < 0 else "undecided"
