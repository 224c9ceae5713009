"""The ledger: each claim of the paper, tested on our records by a statistic with a 95 % interval, and a verdict.

    frame = candidate_frame(records)
    found = claims.about(frame, "Fig. 4", records=records)     # the claims of one figure or table
    print(claims.describe(found))
    table = claims.ledger(frame, records)                      # all claims, one row per claim and family
    claims.show_ledger(table), claims.summarize(table)

`analysis/claims.yaml` lists the claims; `statistics` has what tests them, `evidence` the intervals. A claim `holds` or
`fails` if its whole interval lies on one side of the bound, else it is `undecided`; there are also `too few candidates`
and `not run`. Of some sixty 95 % intervals a few are expected to miss the truth, so `ledger` also gives the verdict at
a level that allows for their number.
"""

from quagmire_utils.analysis.claims.evidence import Estimate, Evidence, gather
from quagmire_utils.analysis.claims.ledger import (
    CONFIDENCE,
    DECIDABLE,
    VERDICTS,
    Claim,
    Result,
    about,
    all_claims,
    amount,
    describe,
    headline,
    ledger,
    show_ledger,
    summarize,
)
from quagmire_utils.analysis.claims.statistics import STATISTICS

__all__ = [
    "CONFIDENCE",
    "DECIDABLE",
    "STATISTICS",
    "VERDICTS",
    "Claim",
    "Estimate",
    "Evidence",
    "Result",
    "about",
    "all_claims",
    "amount",
    "describe",
    "gather",
    "headline",
    "ledger",
    "show_ledger",
    "summarize",
]
