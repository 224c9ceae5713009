"""The ledger: each claim of the paper, tested on our records by a statistic with a 95 % interval, and a verdict.

    frame = candidate_frame(records)
    found = claims.about(frame, "Fig. 4", records=records)     # the claims of one figure or table
    claims.show_ledger(found)                                  # as a table of text
    results = claims.all_results(frame, records)               # all claims, for each family
    claims.ledger(results), claims.matrix({"ours": results})   # as numbers, as rows by claim

`analysis/claims.yaml` lists the claims; `statistics` has what tests them, `evidence` the intervals. A claim `holds` or
`fails` if its whole interval lies on one side of the bound, else it is `undecided`; there are also `too few candidates`
and `not run`. Of some sixty 95 % intervals a few are expected to miss the truth, so `ledger` also gives the verdict at
a level that allows for their number.
"""

# ruff: noqa: F401 - callers import these names from here

from quagmire_utils.analysis.claims.ledger import (
    DECIDABLE,
    VERDICTS,
    Claim,
    Result,
    about,
    all_claims,
    all_results,
    headline,
    ledger,
    message,
    published_results,
    show_ledger,
)
from quagmire_utils.analysis.claims.matrix import matrix
