"""What is drawn alike: panels of one family, series of candidates with their marker and shade, 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from quagmire_utils.analysis.records import base_models, select_candidates
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.report.plots.look import INTERVAL, MARKERS, OTHER_SELECTION, SELECTION_STYLE, _shades

LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green and blue
LIGHTEST_LINE = 0.62
OUTCOMES = {"outcome": "best", "outcome_last": "last"}  # column of the frame -> column of `design.run_outcomes`


@dataclass(frozen=True, eq=False)
class Panel:
    """One axis: the candidates that it shows, and the base model as a reference."""

    title: str
    candidates: pd.DataFrame  # from `records.select_candidates`
    base: pd.DataFrame  # from `records.base_models`


def panel(
    frame: pd.DataFrame,
    family: str,
    scenario: str,
    *,
    selections: Sequence[str] | None = None,
    epochs: float = 0,
    n_examples: int = 0,
) -> Panel:
    """The candidates of a family (ours, or a model of the paper) for one axis; without any where they were not run.

    None or 0 in `selections`, `epochs` and `n_examples` takes all of them. Raises ParameterError for a family, scenario
    or selection that neither the records nor the paper know, and for epochs or examples that no candidate has.
    """
    if selections is not None and not list(selections):
        raise ParameterError(f"selections is empty: name some of {', '.join(SELECTION_STYLE)}")
    ours = frame[["family", "stands_for"]].drop_duplicates()
    mine = ours[(ours["family"] == family) | (ours["stands_for"] == family)]
    unknown = set(selections or ()) - set(SELECTION_STYLE)
    if unknown:
        raise ParameterError(f"selections has {sorted(unknown)[0]!r}, which is none of {', '.join(SELECTION_STYLE)}")
    rows = select_candidates(frame, family, scenario)  # refuses an unknown family or scenario
    rows = rows[rows["selection"].isin(list(selections))] if selections else rows
    for column, wanted in (("epochs", epochs), ("n_examples", n_examples)):
        if wanted and len(rows) and not (rows[column] == wanted).any():
            known = ", ".join(f"{value:g}" for value in sorted(rows[column].unique()))
            raise ParameterError(f"{column}: no candidate of {family} has {wanted:g}; there are {known}, and 0 for all")
        rows = rows[rows[column] == wanted] if wanted else rows
    title = family
    if len(mine):
        title = f"{', '.join(mine['family'])} (for {', '.join(mine['stands_for'].unique())})"
    return Panel(title, rows.reset_index(drop=True), base_models(frame, family))


def panels(
    frame: pd.DataFrame,
    families: Sequence[str],
    scenario: str,
    *,
    selections: Sequence[str] | None = None,
    epochs: float = 0,
    n_examples: int = 0,
) -> list[Panel]:
    """A `panel` for each family. Raises ParameterError, besides what that refuses, where there is none."""
    if not list(families):
        raise ParameterError(f"families is empty: name some of {', '.join(dict.fromkeys(frame['stands_for']))}")
    return [
        panel(frame, family, scenario, selections=selections, epochs=epochs, n_examples=n_examples)
        for family in families
    ]


@dataclass(frozen=True, eq=False)
class Series:
    """Candidates drawn with one marker and shade, joined by a line."""

    rows: pd.DataFrame
    label: str
    marker: str
    colour: Any
    rate: float | None  # learning rate where it isn't the usual one of the figure: a dot in the marker

    @property
    def line_colour(self) -> tuple[float, float, float]:
        """The shade, darkened where white paper would swallow a line of it."""
        from matplotlib.colors import to_rgb

        rgb = np.array(to_rgb(self.colour))
        return tuple(rgb * min(1.0, LIGHTEST_LINE / max(float(rgb @ LUMINANCE), 1e-9)))


def series(candidates: pd.DataFrame, by: str, among: pd.DataFrame | None = None) -> list[Series]:
    """Candidates grouped by `by` (selection, n_examples or epochs), and never across families or learning rates.

    Different epochs of one selection are different series, alike in looks. `among`: all candidates of the figure, which
    decide the looks, so that its axes agree; by default `candidates`.
    """
    among = candidates if among is None else among
    if candidates.empty:
        return []
    if by == "selection":
        looks = {name: SELECTION_STYLE.get(name, OTHER_SELECTION) for name in among[by].unique()}
        labels = {name: name for name in looks}
    else:
        values = sorted(among[by].unique())
        shades = _shades(values)
        looks = {value: (MARKERS[i % len(MARKERS)], shades[value]) for i, value in enumerate(values)}
        labels = {value: _counted(value, "example" if by == "n_examples" else "epoch") for value in values}
    usual = among["learning_rate"].mode()[0]
    order = {value: i for i, value in enumerate([*SELECTION_STYLE] if by == "selection" else sorted(looks))}
    keys = ["family", by, "learning_rate"] + (["epochs"] if by == "selection" else [])
    groups = []
    for key, rows in candidates.groupby(keys, sort=True):
        value, rate = key[1], float(key[2])
        marker, colour = looks[value]
        own = Series(rows, labels[value], marker, colour, None if rate == usual else rate)
        groups.append((order.get(value, len(order)), len(groups), own))
    return [own for _, _, own in sorted(groups, key=lambda group: group[:2])]


def half_widths(rows: pd.DataFrame, column: str, pool: pd.DataFrame | None = None) -> np.ndarray:
    """Half the 95 % interval of pass1, gen_loss, outcome or outcome_last of each row; NaN where it is not known.

    pass1 and outcome: from the sampling of answers alone. outcome_last is a mean over RL runs: from the standard
    deviation between runs, pooled over the candidates of `pool` (default: the rows) because each has few runs, with
    Student's t. Raises ParameterError for another column.
    """
    if column in ("pass1", "outcome"):
        return INTERVAL * rows[f"{column}_sampling_se"].to_numpy(np.float64)
    if column == "gen_loss":
        return INTERVAL * rows["gen_loss_se"].to_numpy(np.float64)
    if column != "outcome_last":
        raise ParameterError(f"outcome must be one of {', '.join(OUTCOMES)}, not {column!r}")
    repeated = (rows if pool is None else pool).query("n_runs > 1")
    freedom = (repeated["n_runs"] - 1).sum()
    if not freedom:
        return np.full(len(rows), np.nan)
    spread = np.sqrt(((repeated["n_runs"] - 1) * repeated["outcome_last_std"] ** 2).sum() / freedom)
    width = stats.t.ppf(0.975, freedom) * spread / np.sqrt(rows["n_runs"].clip(lower=1))
    return width.to_numpy(np.float64)


def _counted(number: float, noun: str) -> str:
    return f"{number:,g} {noun}" + ("" if number == 1 else "s")
