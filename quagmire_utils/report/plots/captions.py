"""The captions of the ten figures: fixed texts, with names and numbers filled in."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from quagmire_utils.report.plots.look import NOT_RUN, SELECTION_STYLE
from quagmire_utils.report.plots.series import Panel, counted

STAGES = (
    "Small hollow markers: Pass@1 after SFT; large filled ones: after RL; grey lines: the base without SFT, before RL "
    "(dashed) and after it (solid)."
)
BARS = "Hatched bars: after SFT; plain bars: after RL; grey line: the base after RL."
LABELS = "Labels: number of examples; s: shortest, l: longest, ×: epochs if not one."
FIGURES = {  # what is drawn; {examples}: which kinds of them
    1: f"SFT on {{examples}} examples, then RL. {STAGES} Left: by SFT tokens, a line for each selection and number of "
    f"epochs. Right: the score after RL against the one after SFT; rings: of the candidates of one epoch, as in the "
    f"paper, the best after SFT (dashed) and after RL (solid). {LABELS}",
    2: f"SFT on more and more {{examples}} examples, then RL; a line for each number of epochs. {STAGES}",
    3: "One marker per SFT candidate: shape for the number of unique examples, shade for the epochs, label examples × "
    "epochs.",
    4: f"SFT for more epochs on the same {{examples}} examples, then RL; a line for each number of examples. {STAGES}",
    5: "A line for each number of unique examples; overlapping markers are moved apart. Left: Pass@1 after SFT and "
    "after RL. Middle: loss on held-out traces. Right: that loss against what RL adds, with Pearson's and Spearman's "
    "correlation (the paper calls it strong and prints no number).",
    6: f"SFT on {{examples}} examples of several sources (a panel each), unique ones for one epoch or fewer ones "
    f"repeated, at a lower or a higher learning rate (LR), then RL. {BARS}",
    7: f"SFT on {{examples}} examples, then RL. {STAGES} {LABELS}",
    8: f"SFT on more and more {{examples}} examples, then RL. {STAGES} {LABELS}",
    9: f"SFT on more and more {{examples}} examples, then RL. {STAGES} {LABELS}",
    10: f"SFT on {{examples}} examples, then RL. {BARS} s+l: half of the examples of each kind. {LABELS}",
}
OURS = "*The layout is ours: only the text of the paper's figure was at hand.*"
SCORES = {  # what the score after RL and its interval are
    "outcome": "After RL: the best checkpoint of all RL runs, as in the paper. Error bars: 95 % intervals from the "
    "sampling of answers alone (all candidates answer the same problems).",
    "outcome_last": "After RL: mean of the last checkpoints of the RL runs. Error bars: 95 % intervals, after SFT from "
    "the sampling of answers, after RL from the spread between RL runs, pooled over the candidates.",
}


def caption(figure: int, panels: Sequence[Panel], benchmarks: Sequence[str]) -> str:
    """Return the caption of a figure of the paper. benchmarks: names of those that the scores average."""
    everyone = pd.concat([panel.candidates for panel in panels])
    one = panels[0]
    if everyone.empty:
        return f"**Figure {figure} (profile {one.profile}, {NOT_RUN}).** No candidate was run."
    families = everyone.groupby("family", sort=False)["stands_for"].first()
    who = "; ".join(f"{family}, standing for {model}" for family, model in families.items())
    count = len(everyone[["family", "candidate"]].drop_duplicates())
    kinds = [name for name in SELECTION_STYLE if name in set(everyone["selection"])]
    scores = f"Pass@1 on {benchmarks[0]}" if len(benchmarks) == 1 else f"Mean Pass@1 of {len(benchmarks)} benchmarks"
    dashes = " Dashes: single RL runs." if one.runs is not None else ""
    return (
        f"**Figure {figure} (profile {one.profile}, measured).** {who}; {counted(count, 'SFT candidate')}. "
        f"{FIGURES[figure].format(examples=' or '.join(kinds))} {scores}. {SCORES[one.outcome]}{dashes} {OURS}"
    )
