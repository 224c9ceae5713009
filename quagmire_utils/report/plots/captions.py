"""What stands under each figure, in Markdown: whose candidates, what is drawn how, what is averaged, what is ours."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from quagmire_utils.analysis.fits import LinearFit
from quagmire_utils.core import published as paper
from quagmire_utils.report.plots.look import NOT_RUN, SELECTION_STYLE
from quagmire_utils.report.plots.series import Panel, _counted

STAGES = "Small hollow markers: Pass@1 after SFT; large filled ones: after RL"
BASE = "grey lines: the base without SFT, before RL (dashed) and after it (solid)"
LAYOUT = {  # what is drawn; {examples}: of which kinds they are
    1: f"SFT on {{examples}} examples, then RL. {STAGES}; {BASE}. Left: by the amount of SFT, a line per selection and "
    "number of epochs; s, l: shortest, longest, ×: epochs where not one. Right: the score after RL against the one "
    "after SFT. Rings, among the candidates of one epoch (the paper's are of one): best after SFT (dashed), best after "
    "RL (solid)",
    2: f"SFT on more and more {{examples}} examples, then RL; a line per number of epochs. {STAGES}; {BASE}",
    4: f"SFT for more epochs on the same {{examples}} examples, then RL; a line per number of unique examples. "
    f"{STAGES}; {BASE}",
    6: "SFT on {examples} examples of several sources (a panel each), unique ones for one epoch or fewer repeated, at "
    "a lower or a higher learning rate (LR), then RL. Hatched bars: after SFT; plain bars: after RL; labels: unique "
    "examples × epochs; grey line: the base after RL",
    7: f"SFT on {{examples}} examples, then RL. {STAGES}; {BASE}. Labels: examples, s for shortest, ×: epochs where "
    "not one",
    8: f"SFT on more and more {{examples}} examples, then RL. {STAGES}; {BASE}. ×: epochs where not one",
    9: f"SFT on more and more {{examples}} examples, then RL. {STAGES}; {BASE}. ×: epochs where not one",
    10: "SFT on {examples} examples, then RL. s: shortest, l: longest, s+l: half of the examples of each kind, ×: "
    "epochs where not one. Hatched bars: after SFT; plain bars: after RL; grey line: the base after RL",
}
OURS = {  # what the text of the paper leaves open
    1: "The axes, the panel on the right and the rings are ours",
    2: "The axes and the lines for several numbers of epochs are ours",
    4: "The axes and the lines for several numbers of examples are ours",
    6: "The bars, one panel for each source, and which micro benchmark stands for MATH-500 are ours",
    7: "The axes are ours (the markers are the paper's: smaller after SFT, larger after RL)",
    8: "The axes are ours",
    9: "The axes are ours",
    10: "The bars are ours",
}


def caption(
    figure: int,
    panels: Sequence[Panel],
    profile: str,
    *,
    benchmarks: Sequence[str],
    outcome: str = "outcome",
) -> str:
    """What stands under Figs. 1, 2, 4, 6 to 10. benchmarks: names of those that the scores average."""
    shown = [one for one in panels if len(one.candidates)]
    state = "measured" if shown else NOT_RUN
    who = "; ".join(dict.fromkeys(_who(one.candidates) for one in shown)) or "No candidate was run"
    count = len(pd.concat([one.candidates for one in panels])[["family", "candidate"]].drop_duplicates())
    scores = f"Pass@1 on {benchmarks[0]}" if len(benchmarks) == 1 else f"Mean Pass@1 of {len(benchmarks)} benchmarks"
    kinds = set(pd.concat([one.candidates for one in panels])["selection"])
    names = [name for name in SELECTION_STYLE if name in kinds] or ["chosen"]
    examples = " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    amount = f", {_counted(count, 'SFT candidate')}" if shown else ""
    parts = [
        f"**Figure {figure} (profile {profile}, {state}).** {who}{amount}.",
        f"{LAYOUT[figure].format(examples=examples)}.",
        f"{scores}; {_intervals(outcome)}.",
        f"*{OURS[figure]}: only the text of the paper's figure was at hand.*",
    ]
    return " ".join(parts)


def caption_sft_vs_rl(
    candidates: pd.DataFrame, fit: LinearFit | None, profile: str, n_benchmarks: int, outcome: str = "outcome"
) -> str:
    """What stands under Fig. 3."""
    published = float(paper.claims().set_index("name").loc["fig03_r2", "value"])
    if fit is None:
        return (
            f"**Figure 3 (profile {profile}, {NOT_RUN if candidates.empty else 'measured'}).** {len(candidates)} "
            f"candidates, too few for a line; **the paper's: R² = {published:.2f}**."
        )
    return (
        f"**Figure 3 (profile {profile}, measured).** {_who(candidates)}. One marker per SFT candidate: shape for the "
        f"number of unique examples, shade for the epochs, label examples×epochs. Mean Pass@1 of {n_benchmarks} "
        f"benchmarks; {_intervals(outcome, dashes=False)}. Line: R² = {fit.r2:.2f} over {fit.n} candidates; **the "
        f"paper's: R² = {published:.2f}**."
    )


def caption_loss(candidates: pd.DataFrame, profile: str, n_benchmarks: int, outcome: str = "outcome") -> str:
    """What stands under Fig. 5."""
    if candidates.empty:
        return f"**Figure 5 (profile {profile}, {NOT_RUN}).** No candidate of this family was run."
    return (
        f"**Figure 5 (profile {profile}, measured).** {_who(candidates)}; {len(candidates)} SFT candidates, a line per "
        "number of unique examples, moved sideways a little so that none hides another. Left: mean Pass@1 of "
        f"{n_benchmarks} benchmarks after SFT and after RL. Middle: loss on held-out traces. Right: that loss against "
        "what RL added, with Pearson's and Spearman's correlation (the paper calls it strong and prints no number). "
        f"Score {_intervals(outcome, dashes=False)}. *The three panels are ours: only the text of the paper's "
        "figure was at hand.*"
    )


def _who(candidates: pd.DataFrame) -> str:
    return f"{', '.join(candidates['family'].unique())}, standing for {candidates['stands_for'].iloc[0]}"


def _intervals(outcome: str, *, dashes: bool = True) -> str:
    """What the score after RL is, and what its interval holds."""
    if outcome == "outcome_last":
        said = (
            "after RL: mean of the runs' last checkpoints; error bars: 95 % intervals, after SFT from the sampling of "
            "answers, after RL from the spread between RL runs, pooled over the candidates"
        )
        return said + ("; dashes: each RL run" if dashes else "")
    said = (
        "after RL: the best checkpoint of all RL runs, as in the paper; error bars: 95 % intervals from the sampling "
        "of answers alone (all candidates answer the same problems)"
    )
    return said + ("; dashes: each RL run's best checkpoint, for the spread between runs" if dashes else "")
