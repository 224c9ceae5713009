"""The published tables against themselves: every finding computed from the printed numbers alone. Tables 1-10.

    for finding in paper_audit.findings():               # a few seconds
        print(finding.title, finding.text)

`printed` compares cells with each other, `kinds` asks which R2 and which +- the printed ones can be, `simulation` runs
the paper's protocol on random candidates as many as its own. None of it needs records of this project.
"""

from quagmire_utils.analysis.paper_audit.findings import Finding, findings, provenance
from quagmire_utils.analysis.paper_audit.kinds import (
    KINDS,
    RATIO_TABLES,
    feasibility,
    largest_deviation,
    r2_values,
    smoothness,
)
from quagmire_utils.analysis.paper_audit.printed import (
    attainable,
    averages,
    budget_sizes,
    gains,
    headlines,
    rows_that_stand_twice,
)
from quagmire_utils.analysis.paper_audit.simulation import (
    fit_explains,
    protocol,
    rank_gain_range,
    rank_interval,
    split_alone,
    what_candidates_show,
)

__all__ = [
    "KINDS",
    "RATIO_TABLES",
    "Finding",
    "attainable",
    "averages",
    "budget_sizes",
    "feasibility",
    "findings",
    "fit_explains",
    "gains",
    "headlines",
    "largest_deviation",
    "protocol",
    "provenance",
    "r2_values",
    "rank_gain_range",
    "rank_interval",
    "rows_that_stand_twice",
    "smoothness",
    "split_alone",
    "what_candidates_show",
]
