"""Claims that some candidates do better than others: Figs. 1, 2, 4 and 6 to 10, the abstract.

Which candidates are compared follows from what they were trained on, never from how they did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from quagmire_utils.analysis.claims.evidence import (
    MEASURED,
    Estimate,
    Evidence,
    Pair,
    contrast,
    missing,
    smallest_contrast,
    statistic,
)

MIN_OTHERS = 4  # candidates, for a claim about the best of them
EQUAL_TOKENS = 1.25  # two candidates have equal SFT tokens up to this ratio, as close as the grid has them

What = Literal["pass1", "outcome", "gain"]


@statistic
def more_epochs(evidence: Evidence, what: What) -> Estimate:
    """Compare the most epochs on the same random examples with the next fewer; mean over sets of examples."""
    pairs = []
    for _, rows in evidence.select("random").groupby("n_examples"):
        if len(rows) > 1:
            order = rows.sort_values("epochs").index
            pairs.append((order[-1], order[-2]))
    return contrast(evidence, pairs, what, "sets of examples")


@statistic
def repeated_minus_unique(evidence: Evidence, what: What, across_sources: bool = False) -> Estimate:
    """Compare fewer random examples, repeated, with more of them once, at equal SFT tokens.

    The partner of a candidate of one epoch has the fewest epochs above one: half the examples twice if the grid has
    it, else a quarter four times. across_sources: within each source and learning rate (Fig. 6).
    """
    groups = [evidence.select("random")]
    if across_sources:
        rows = evidence.select("random", "source", main=False)
        groups = [part for _, part in rows.groupby(["source", "learning_rate"])]
    pairs = []
    for rows in groups:
        for one in rows[rows["epochs"] == 1].itertuples():
            others = rows[(rows["epochs"] > 1) & _equal_tokens(rows, one.sft_tokens)]
            if len(others):
                pairs.append((others["epochs"].idxmin(), one.Index))
    return contrast(evidence, pairs, what)


@statistic
def selection_minus_random(evidence: Evidence, what: What, selection: str) -> Estimate:
    """Compare examples selected in some way with random ones, at equal SFT tokens and if possible equal epochs."""
    return contrast(evidence, _partners(evidence.select(selection), evidence.select("random")), what)


@statistic
def mixture_minus_best_other(evidence: Evidence) -> Estimate:
    """Compare longest + shortest examples with the best other selection, at equal SFT tokens: mean outcomes."""
    label = f"{MEASURED['outcome']}, longest + shortest minus the best other selection at equal tokens"
    mixtures = _once(evidence.select("shortest+longest"))
    found = [_partners(mixtures, _once(evidence.select(other))) for other in ("shortest", "longest", "random")]
    others = [pairs for pairs in found if pairs]
    return smallest_contrast(evidence, others, "outcome", label, 1 + len(others), "selections")


@statistic
def minus_base(
    evidence: Evidence,
    what: What,
    selections: Sequence[str],
    epochs: Literal["one", "several", "any"] = "one",
    keep: Literal["all", "fewest", "most"] = "all",
) -> Estimate:
    """Compare candidates trained on these selections with the base model: the mean.

    keep: only the candidate with the fewest or the most SFT tokens, if there are several.
    """
    if evidence.base is None:
        return missing(MEASURED[what], 0)
    rows = evidence.select()
    rows = rows[rows["selection"].isin(selections)]
    if epochs != "any":
        rows = rows[rows["epochs"] == 1] if epochs == "one" else rows[rows["epochs"] > 1]
    if keep != "all":
        chosen = rows.nsmallest(1, "sft_tokens") if keep == "fewest" else rows.nlargest(1, "sft_tokens")
        rows = chosen if len(rows) > 1 else rows.iloc[:0]
    return contrast(evidence, [(row, evidence.base) for row in rows.index], what, "candidates")


@statistic
def smallest_rise_over_base(evidence: Evidence) -> Estimate:
    """Return the smallest rise of Pass@1 over the base by any SFT of an instance-level grid."""
    rows = evidence.select(scenario="instance").index
    pairs = [] if evidence.base is None else [[(row, evidence.base)] for row in rows]
    return smallest_contrast(evidence, pairs, "pass1", "smallest rise of Pass@1 over the base by any SFT", len(pairs))


@statistic
def lowest_outcome_minus_base(evidence: Evidence) -> Estimate:
    """Compare the lowest outcome of the candidates that SFT had lifted above the base with RL from the base."""
    pairs, label = [], "Pass@1 after RL, lowest SFT candidate minus the base"
    if evidence.base is not None:
        trained = evidence.select(main=False)
        lifted = trained[trained["pass1"] > evidence.rows["pass1"].iloc[evidence.base]]
        pairs = [[(row, evidence.base)] for row in lifted.index]
    return smallest_contrast(evidence, pairs, "outcome", label, len(pairs))


@statistic
def more_examples(evidence: Evidence, what: What) -> Estimate:
    """Compare the most random examples of one epoch with the fewest."""
    rows = _once(evidence.select("random")).sort_values("n_examples")
    return contrast(evidence, [(rows.index[-1], rows.index[0])] if len(rows) > 1 else [], what)


@statistic
def best_score_minus_best_other(evidence: Evidence, scenario: str, selections: Sequence[str] = ()) -> Estimate:
    """Compare the outcome of the candidate with the best score with the best outcome of the others.

    selections: those that a figure shows, of one epoch as in the paper; empty for all candidates of the scenario.
    """
    label = "Pass@1 after RL, candidate with the best score minus the best of the others"
    rows = evidence.select(scenario=scenario, main=False)
    if selections:
        rows = _once(rows[rows["selection"].isin(selections)])
        label += f", among {', '.join(selections)} examples of one epoch"
    if len(rows) < MIN_OTHERS:
        return missing(label, len(rows))
    best = rows["pass1"].idxmax()
    pairs = [[(best, other)] for other in rows.index if other != best]
    return smallest_contrast(evidence, pairs, "outcome", label, len(rows))


@statistic
def larger_learning_rate(evidence: Evidence, what: What) -> Estimate:
    """Compare the largest learning rate with the smallest for the same examples and epochs, across sources (Fig. 6)."""
    pairs = []
    for _, part in evidence.select("random", "source", main=False).groupby(["source", "n_examples", "epochs"]):
        if part["learning_rate"].max() > part["learning_rate"].min():
            pairs.append((part["learning_rate"].idxmax(), part["learning_rate"].idxmin()))
    return contrast(evidence, pairs, what)


def _partners(ones: pd.DataFrame, others: pd.DataFrame) -> list[Pair]:
    """Pair each of `ones` with the nearest of `others`: equal tokens, if possible equal epochs."""
    pairs = []
    for one in ones.itertuples():
        near = others[_equal_tokens(others, one.sft_tokens)]
        if len(near):
            far = (near["sft_tokens"] / one.sft_tokens - 1).abs()
            order = near.assign(differ=near["epochs"] != one.epochs, far=far)
            pairs.append((one.Index, order.sort_values(["differ", "far"]).index[0]))
    return pairs


def _equal_tokens(rows: pd.DataFrame, tokens: float) -> pd.Series:
    return np.maximum(rows["sft_tokens"], tokens) <= EQUAL_TOKENS * np.minimum(rows["sft_tokens"], tokens)


def _once(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["epochs"] == 1]
