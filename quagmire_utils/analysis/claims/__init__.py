"""The ledger: each claim of the paper, tested on our records by a statistic with a 95 % interval, and a verdict.

    frame = candidate_frame(records)
    claims.about(frame, "Fig. 4", records=records)       # the claims of one figure or table
    print(claims.describe(claims.about(frame, "Table 3")))
    table = claims.ledger(frame, records)                 # all of them, one row per claim and family
    claims.show_ledger(table), claims.summarize(table)

Verdicts are computed, never written by hand: `holds` or `does not hold` where the whole interval is on one side of the
claim's bound, `undecided` where it is not; `too few candidates` (or pairs), and `not run`. `entries` lists the claims
with the paper's words, `evidence` says what the intervals hold, `comparisons`, `over_candidates` and `predictors` have
the statistics. Some sixty intervals of 95 % are not all right: `ledger` also gives the verdict at a level that allows
for their number.
"""

from __future__ import annotations

import pandas as pd

from quagmire_utils.analysis.claims import over_candidates
from quagmire_utils.analysis.claims.claim import (
    CONFIDENCE,
    MIN_CANDIDATES,
    VERDICTS,
    Claim,
    Estimate,
    correlation,
    rank_correlation,
    verdict,
)
from quagmire_utils.analysis.claims.entries import ENTRIES, LLAMA, MISTRAL, NOTHING, PARTLY, QWEN
from quagmire_utils.analysis.claims.evidence import Entry
from quagmire_utils.analysis.claims.headline import headline
from quagmire_utils.analysis.claims.ledger import about, caption, claim_from, describe, ledger, show_ledger, summarize

_BY_NAME = {entry.name: entry for entry in ENTRIES}


def score_explains_part(candidates: pd.DataFrame, outcome: str = "outcome") -> Claim:
    """Fig. 3 on given candidates: the line from post-SFT Pass@1 to the outcome explains only part of its variance."""
    return claim_from(_BY_NAME["score_explains_part"], over_candidates.fitted_r2(candidates, outcome), LLAMA)


def repeating_raises_loss(candidates: pd.DataFrame) -> Claim:
    """Fig. 5 on given candidates: repeating the same examples for more epochs ends up raising the loss."""
    return claim_from(_BY_NAME["repeating_raises_loss"], over_candidates.loss_rise(candidates), LLAMA)


def loss_tracks_gain(candidates: pd.DataFrame, seed: int = 0) -> Claim:
    """Fig. 5 on given candidates: the higher the generalization loss after SFT, the less RL adds."""
    return claim_from(_BY_NAME["loss_tracks_gain"], over_candidates.loss_and_gain(candidates, seed), LLAMA)


__all__ = [
    "CONFIDENCE",
    "ENTRIES",
    "LLAMA",
    "MIN_CANDIDATES",
    "MISTRAL",
    "NOTHING",
    "PARTLY",
    "QWEN",
    "VERDICTS",
    "Claim",
    "Entry",
    "Estimate",
    "about",
    "caption",
    "correlation",
    "describe",
    "headline",
    "ledger",
    "loss_tracks_gain",
    "rank_correlation",
    "repeating_raises_loss",
    "score_explains_part",
    "show_ledger",
    "summarize",
    "verdict",
]
