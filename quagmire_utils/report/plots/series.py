"""What an axis shows: the candidates of a family, in series with a marker and shade each, and their 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quagmire_utils.analysis.candidates import check_outcome, select_candidates
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.report.clean import render
from quagmire_utils.report.plots.look import (
    INK,
    INTERVAL,
    MARKERS,
    NOT_RUN,
    OTHER_SELECTION,
    SELECTION_STYLE,
    shades,
    write_note,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green and blue
LIGHTEST_LINE = 0.62
OUTCOMES = {"outcome": "best", "outcome_last": "last"}  # column of the frame -> column of `design.run_outcomes`
APART = 0.035  # of the axis' width: smallest distance between markers sideways


def choose_candidates(
    frame: pd.DataFrame,
    family: str,
    scenario: str,
    *,
    selections: Sequence[str] | None = None,
    epochs: float = 0,
    n_examples: int = 0,
) -> pd.DataFrame:
    """Return the candidates of a family (ours, or a model of the paper), narrowed to selections, epochs and examples.

    None and 0 narrow nothing. Empty if the family was not run. Raises ParameterError for a value that neither the
    records nor the paper know, and for epochs or examples that no candidate has.
    """
    if selections is not None and (unknown := set(selections or [None]) - set(SELECTION_STYLE)):
        raise ParameterError("selections", unknown.pop(), f"some of {', '.join(SELECTION_STYLE)}")
    rows = select_candidates(frame, family, scenario)
    rows = rows[rows["selection"].isin(list(selections))] if selections else rows
    for column, wanted in (("epochs", epochs), ("n_examples", n_examples)):
        if wanted and len(rows) and not (rows[column] == wanted).any():
            known = ", ".join(f"{value:g}" for value in sorted(rows[column].unique()))
            raise ParameterError(column, wanted, f"one of {known} (as the candidates of {family}), or 0 for all")
        rows = rows[rows[column] == wanted] if wanted else rows
    return rows.reset_index(drop=True)


@dataclass(frozen=True, eq=False)
class Panel:
    """One axis: the candidates that it shows, the base model as a reference, and what their outcome is."""

    family: str  # as chosen: the title if nothing was run
    candidates: pd.DataFrame  # from `choose_candidates`
    base: pd.DataFrame  # from `candidates.base_models`
    outcome: str = "outcome"  # or outcome_last
    runs: pd.DataFrame | None = None  # from `design.run_outcomes`: each RL run is then a short dash
    profile: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        """Raise ParameterError for an unknown outcome; make the title if none is given."""
        check_outcome(self.outcome)
        known = pd.concat([self.candidates, self.base])
        if not self.title:
            names, models = (", ".join(known[column].unique()) for column in ("family", "stands_for"))
            object.__setattr__(self, "title", f"{names} (for {models})" if len(known) else self.family)

    def begin(self, ax: Axes, needs: int = 1, **labels: str) -> bool:
        """Label an axis; return whether `needs` candidates are there to be drawn on it, else the axis says so."""
        ax.set(**labels)
        count = len(self.candidates)
        if not count:
            write_note(ax, f"{NOT_RUN} at profile {self.profile}", gid=NOT_RUN)
        elif count < needs:
            write_note(ax, f"too few candidates at profile {self.profile}: {count}")
        return count >= needs

    def draw_runs(self, ax: Axes, candidates: pd.DataFrame, x: np.ndarray, **look: Any) -> pd.DataFrame:
        """Draw a short dash for each RL run of `candidates`, which are at `x`; return the runs: candidate, score."""
        if self.runs is None:
            return pd.DataFrame({"candidate": [], "score": []})
        runs = self.runs.rename(columns={OUTCOMES[self.outcome]: "score"})
        runs = runs[runs["family"].isin(candidates["family"]) & runs["candidate"].isin(candidates["candidate"])]
        at = runs["candidate"].map(dict(zip(candidates["candidate"], x, strict=True)))
        ax.scatter(at, runs["score"], marker="_", color=INK, linewidths=0.9, **look)
        return runs


@dataclass(frozen=True, eq=False)
class Series:
    """Candidates drawn with one marker and shade, joined by a line."""

    rows: pd.DataFrame
    label: str
    marker: str
    colour: Any
    rate: float | None  # learning rate if it is not the most common one of the figure: a dot in the marker

    @property
    def line_colour(self) -> tuple[float, ...]:
        """The shade, darkened if a line of it would be hard to see on white paper."""
        from matplotlib.colors import to_rgb

        rgb = np.array(to_rgb(self.colour))
        return tuple(rgb * min(1.0, LIGHTEST_LINE / max(float(rgb @ LUMINANCE), 1e-9)))


def series(candidates: pd.DataFrame, by: str, among: pd.DataFrame | None = None) -> list[Series]:
    """Group candidates by `by` (selection, n_examples or epochs), never across families or learning rates.

    Epochs of one selection are series with the same looks. among: all candidates of the figure, which decide the looks.
    """
    among = candidates if among is None else among
    if candidates.empty:
        return []
    values = [*SELECTION_STYLE, *among[by].unique()] if by == "selection" else sorted(among[by].unique())
    order = {value: i for i, value in enumerate(dict.fromkeys(values))}
    if by == "selection":
        looks = {value: SELECTION_STYLE.get(value, OTHER_SELECTION) for value in order}
    else:
        looks = {v: (MARKERS[i % len(MARKERS)], shade) for i, (v, shade) in enumerate(shades(values).items())}
    usual = among["learning_rate"].mode()[0]
    keys = ["family", by, "learning_rate"] + (["epochs"] if by == "selection" else [])
    groups = []
    for (_, value, rate, *_), rows in candidates.groupby(keys, sort=True):
        label = value if by == "selection" else counted(value, "example" if by == "n_examples" else "epoch")
        groups.append((order[value], Series(rows, label, *looks[value], None if rate == usual else float(rate))))
    return [one for _, one in sorted(groups, key=lambda group: group[0])]


def half_widths(rows: pd.DataFrame, column: str, pool: pd.DataFrame | None = None) -> np.ndarray:
    """Return half the 95 % interval of pass1, gen_loss, outcome or outcome_last of each row, NaN if unknown.

    pass1 and outcome: from the sampling of answers alone. outcome_last, a mean over RL runs: from the spread between
    runs, pooled over the candidates of `pool` (default: the rows), with Student's t.
    """
    if column != "outcome_last":
        return INTERVAL * rows["gen_loss_se" if column == "gen_loss" else f"{column}_sampling_se"].to_numpy(np.float64)
    from scipy import stats

    repeated = (rows if pool is None else pool).query("n_runs > 1")
    freedom = (repeated["n_runs"] - 1).sum()
    if not freedom:
        return np.full(len(rows), np.nan)
    spread = np.sqrt(((repeated["n_runs"] - 1) * repeated["outcome_last_std"] ** 2).sum() / freedom)
    return (stats.t.ppf(0.975, freedom) * spread / np.sqrt(rows["n_runs"].clip(lower=1))).to_numpy(np.float64)


def places(everything: Sequence[Series], x: str, apart: float = APART) -> list[np.ndarray]:
    """Return the x of each series' candidates, on the logarithmic axis moved `apart` (a share of its width)."""
    from scipy.optimize import isotonic_regression

    logs = [np.log2(one.rows[x].to_numpy(np.float64)) for one in everything]
    flat = np.concatenate(logs)
    order = np.argsort(flat, kind="stable")
    steps = apart * max(float(np.ptp(flat)), 1.0) * np.arange(len(flat))
    placed = np.empty(len(flat))
    placed[order] = isotonic_regression(flat[order] - steps).x + steps
    return np.split(2.0**placed, np.cumsum([len(values) for values in logs])[:-1])


def counted(number: float, noun: str) -> str:
    """Return "1 epoch" or "4 epochs"."""
    return f"{number:,g} {noun}" + ("" if number == 1 else "s")


def caption(figure: int, panels: Sequence[Panel], benchmarks: Sequence[str]) -> str:
    """Return the caption of a figure of the paper in Markdown. benchmarks: names of those that the scores average."""
    everyone = pd.concat([panel.candidates for panel in panels])
    count = len(everyone[["family", "candidate"]].drop_duplicates()) if len(everyone) else 0
    values = {
        "families": everyone.groupby("family", sort=False)["stands_for"].first().items() if count else (),
        "count": counted(count, "SFT candidate") if count else "",
        "runs": f"the first {counted(everyone['n_runs'].max(), 'RL run')}" if count else "",
        "kinds": " or ".join(name for name in SELECTION_STYLE if count and name in set(everyone["selection"])),
    }
    return render("captions.md.j2", figure=figure, panel=panels[0], benchmarks=benchmarks, **values).strip()
