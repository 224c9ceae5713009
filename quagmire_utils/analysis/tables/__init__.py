"""The paper's tables: ours, computed from the records, beside the published values. Paper: Sec. 4, App. C.

    frame = candidate_frame(load_records("results/smoke"))
    table = compute_table(frame, 1)                     # tidy numbers, one row per cell of the paper's Table 1
    show_table(table, "smoke")                          # as text, ours beside the paper's
    print(describe_table(table))                        # what our scale says, and what differs from the paper
    show_table(compute_supplement(frame, 3), "smoke")   # rows that complete it: within each SFT budget
    show_sensitivity(compute_sensitivity(frame, 1))     # the same under other definitions

`compute_table` takes any of the paper's Tables 1-10: what a table's rows are (families, fit sizes, SFT budgets) and
which predictors it has is read off the published one. Families that the paper has and we did not run say `not run`.
"""

from quagmire_utils.analysis.tables.layout import (
    AVERAGED,
    BUDGETS,
    PREDICTORS,
    TOGETHER,
    Line,
    printed_again,
    supplement_lines,
    table_lines,
)
from quagmire_utils.analysis.tables.published import (
    CEILING,
    MIN_CANDIDATES,
    MIN_RESAMPLED,
    NUMBERS,
    OUTCOMES,
    VERDICTS,
    Array,
    compute_supplement,
    compute_table,
)
from quagmire_utils.analysis.tables.sensitivity import R2_KINDS, SPEARMAN_KINDS, compute_sensitivity
from quagmire_utils.analysis.tables.show import (
    predictor_title,
    show_sensitivity,
    show_table,
    table_caption,
    table_title,
)
from quagmire_utils.analysis.tables.words import (
    count_verdicts,
    describe_printed,
    describe_sensitivity,
    describe_table,
    differences,
    headline,
)

__all__ = [
    "AVERAGED",
    "BUDGETS",
    "CEILING",
    "MIN_CANDIDATES",
    "MIN_RESAMPLED",
    "NUMBERS",
    "OUTCOMES",
    "PREDICTORS",
    "R2_KINDS",
    "SPEARMAN_KINDS",
    "TOGETHER",
    "VERDICTS",
    "Array",
    "Line",
    "compute_sensitivity",
    "compute_supplement",
    "compute_table",
    "count_verdicts",
    "describe_printed",
    "describe_sensitivity",
    "describe_table",
    "differences",
    "headline",
    "predictor_title",
    "printed_again",
    "show_sensitivity",
    "show_table",
    "supplement_lines",
    "table_caption",
    "table_lines",
    "table_title",
]
