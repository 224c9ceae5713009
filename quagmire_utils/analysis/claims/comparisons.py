"""Claims that some candidates do better than others: Figs. 1, 2, 4 and 6 to 10, and the abstract.

Which candidates are set against each other follows from what they were trained on, never from how they did; where a
claim speaks of a best or a worst one, the interval allows for the choice (`smallest_contrast`). Equal SFT tokens means
equal within a quarter, as close as the grid has them.
"""

from __future__ import annotations

import pandas as pd

from quagmire_utils.analysis.claims.claim import Estimate, too_few
from quagmire_utils.analysis.claims.evidence import MEASURED, Evidence, Pair, contrast, smallest_contrast

MIN_OTHERS = 4  # candidates, for a claim about the best of them
EQUAL_TOKENS = 1.25  # ratio of SFT tokens up to which two candidates count as trained on equally many


# --- repeating --------------------------------------------------------------------------------------------------------


def repetition(evidence: Evidence, what: str) -> Estimate:
    """The last step of repeating the same random examples: the most epochs minus the next fewer, mean over sets."""
    pairs = []
    for _, rows in evidence.select("random").groupby("n_examples"):
        if len(rows) > 1:
            order = rows.sort_values("epochs").index
            pairs.append((order[-1], order[-2]))
    return contrast(evidence, pairs, what, "sets of examples")


def repeated_below_base(evidence: Evidence) -> Estimate:
    """Candidates that saw random examples more than once, minus RL from the base: mean outcome."""
    rows = evidence.select("random")
    return _from_base(evidence, rows[rows["epochs"] > 1], "outcome")


def fewer_repeated(evidence: Evidence, what: str) -> Estimate:
    """Fewer random examples repeated, minus more of them once, at equal SFT tokens.

    The partner of a candidate of one epoch is the one of equal tokens with the fewest epochs above one: half the
    examples twice where the grid has it, else a quarter four times.
    """
    return contrast(evidence, _once_and_repeated(evidence.select("random")), what)


def _once_and_repeated(rows: pd.DataFrame) -> list[Pair]:
    pairs = []
    for one in rows[rows["epochs"] == 1].itertuples():
        others = rows[(rows["epochs"] > 1) & rows["sft_tokens"].map(lambda tokens, o=one: _equal(tokens, o.sft_tokens))]
        if len(others):
            pairs.append((others["epochs"].idxmin(), one.Index))
    return pairs


# --- the lengths of examples ------------------------------------------------------------------------------------------


def shortest_against_random(evidence: Evidence, what: str) -> Estimate:
    """The shortest examples minus random ones, at equal SFT tokens (and as many epochs, where there is a choice)."""
    return contrast(evidence, _partners(evidence.select("shortest"), evidence.select("random")), what)


def mixture_against_others(evidence: Evidence) -> Estimate:
    """Longest + shortest examples minus the best other selection at equal SFT tokens, one epoch: mean outcomes."""
    label = f"{MEASURED['outcome']}, longest + shortest minus the best other selection at equal tokens"
    mixtures = _once(evidence.select("shortest+longest"))
    found = [_partners(mixtures, _once(evidence.select(other))) for other in ("shortest", "longest", "random")]
    others = [pairs for pairs in found if pairs]
    return smallest_contrast(evidence, others, "outcome", label, 1 + len(others), "selections")


def _partners(ones: pd.DataFrame, others: pd.DataFrame) -> list[Pair]:
    """For each of `ones` its partner among `others`: equal tokens, if possible equal epochs, then the nearest."""
    pairs = []
    for one in ones.itertuples():
        near = others[others["sft_tokens"].map(lambda tokens, o=one: _equal(tokens, o.sft_tokens))]
        if len(near):
            order = pd.DataFrame(
                {"epochs": near["epochs"] != one.epochs, "far": (near["sft_tokens"] / one.sft_tokens - 1).abs()}
            )
            pairs.append((one.Index, order.sort_values(["epochs", "far"]).index[0]))
    return pairs


def _equal(first: float, second: float) -> bool:
    return max(first, second) <= EQUAL_TOKENS * min(first, second)


def _once(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["epochs"] == 1]


# --- against the base -------------------------------------------------------------------------------------------------


def selection_from_base(evidence: Evidence, selections: tuple[str, ...], what: str) -> Estimate:
    """Candidates of one epoch on examples selected so, minus the base: the mean."""
    rows = _once(evidence.select())
    return _from_base(evidence, rows[rows["selection"].isin(selections)], what)


def every_score_above_base(evidence: Evidence) -> Estimate:
    """The smallest rise of Pass@1 by any SFT of an instance-level grid."""
    if evidence.base is None:
        return too_few(MEASURED["pass1"], 0)
    pairs = [[(row, evidence.base)] for row in evidence.select(scenario="instance").index]
    return smallest_contrast(evidence, pairs, "pass1", "smallest rise of Pass@1 over the base by any SFT", len(pairs))


def worst_against_base(evidence: Evidence) -> Estimate:
    """RL from the SFT candidate that ends lowest minus RL from the base, among those that SFT had lifted above it."""
    label = "Pass@1 after RL, lowest SFT candidate minus the base"
    if evidence.base is None:
        return too_few(label, 0)
    trained = evidence.select(main=False)
    lifted = trained[trained["pass1"] > evidence.rows["pass1"].iloc[evidence.base]]
    pairs = [[(row, evidence.base)] for row in lifted.index]
    return smallest_contrast(evidence, pairs, "outcome", label, len(pairs))


def fewest_from_base(evidence: Evidence, what: str) -> Estimate:
    """SFT on the fewest of the shortest examples minus the base."""
    rows = evidence.select("shortest")
    return _from_base(evidence, rows.nsmallest(1, "sft_tokens") if len(rows) > 1 else rows.iloc[:0], what)


def most_from_base(evidence: Evidence, what: str) -> Estimate:
    """SFT on the most of the shortest examples minus the base."""
    rows = evidence.select("shortest")
    return _from_base(evidence, rows.nlargest(1, "sft_tokens") if len(rows) > 1 else rows.iloc[:0], what)


def outcome_lags_score(evidence: Evidence) -> Estimate:
    """How far the shortest examples lift the outcome above the base's, minus how far they lift the score."""
    return _from_base(evidence, evidence.select("shortest"), "gain")


def _from_base(evidence: Evidence, rows: pd.DataFrame, what: str) -> Estimate:
    if evidence.base is None:
        return too_few(MEASURED[what], 0)
    return contrast(evidence, [(row, evidence.base) for row in rows.index], what, "candidates")


# --- more examples, sources, the best ---------------------------------------------------------------------------------


def more_examples(evidence: Evidence, what: str) -> Estimate:
    """The most random examples of one epoch minus the fewest."""
    rows = _once(evidence.select("random")).sort_values("n_examples")
    pairs = [(rows.index[-1], rows.index[0])] if len(rows) > 1 else []
    return contrast(evidence, pairs, what)


def best_score_against_best(evidence: Evidence, scenario: str, selections: tuple[str, ...] = ()) -> Estimate:
    """Outcome of the candidate with the best score minus the best outcome of the others.

    selections: those that a figure shows, of one epoch as in the paper; empty for all candidates of the scenario.
    """
    label = "Pass@1 after RL, candidate with the best score minus the best of the others"
    rows = evidence.select(scenario=scenario, main=False)
    if selections:
        rows = _once(rows[rows["selection"].isin(selections)])
        label += f", among {', '.join(selections)} examples of one epoch"
    if len(rows) < MIN_OTHERS:
        return too_few(label, len(rows))
    best = rows["pass1"].idxmax()
    pairs = [[(best, other)] for other in rows.index if other != best]
    return smallest_contrast(evidence, pairs, "outcome", label, len(rows))


def repeated_across_sources(evidence: Evidence, what: str) -> Estimate:
    """Fewer examples repeated minus more of them once, equal tokens, within each source and learning rate (Fig. 6)."""
    rows = evidence.select("random", "source", main=False)
    pairs = [pair for _, part in rows.groupby(["source", "learning_rate"]) for pair in _once_and_repeated(part)]
    return contrast(evidence, pairs, what)


def larger_learning_rate(evidence: Evidence, what: str) -> Estimate:
    """The largest learning rate minus the smallest for the same examples and epochs, across sources (Fig. 6)."""
    rows = evidence.select("random", "source", main=False)
    pairs = []
    for _, part in rows.groupby(["source", "n_examples", "epochs"]):
        if part["learning_rate"].max() > part["learning_rate"].min():
            pairs.append((part["learning_rate"].idxmax(), part["learning_rate"].idxmin()))
    return contrast(evidence, pairs, what)
