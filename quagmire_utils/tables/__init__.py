"""The paper's tables: ours, computed from the records, beside the published values. Paper: Sec. 4, App. C.

    frame = candidate_frame(load_records("results/smoke"))
    table = compute_table(frame, 1)                     # tidy numbers, one row per cell of the paper's Table 1
    show_table(table, "smoke")                          # as text, ours beside the paper's
    print(describe_table(table))                        # what our scale says about the paper's claim

`compute_table` takes any of the paper's Tables 1-10: what a table's rows are (families, fit sizes, SFT budgets) and
which predictors it has is read off the published one. Families that the paper has and we did not run say `not run`.
"""

from quagmire_utils.tables.measured import (
    evaluation_table,
    pass_at_k_curves,
    records_summary,
    show_candidates,
    show_evaluation,
    time_table,
)
from quagmire_utils.tables.published import (
    JACKKNIFE_SPLITS,
    MIN_CANDIDATES,
    NUMBERS,
    OUTCOMES,
    PREDICTORS,
    VERDICTS,
    Array,
    compute_table,
)
from quagmire_utils.tables.show import describe_table, predictor_title, show_table, table_title

__all__ = [
    "JACKKNIFE_SPLITS",
    "MIN_CANDIDATES",
    "NUMBERS",
    "OUTCOMES",
    "PREDICTORS",
    "VERDICTS",
    "Array",
    "compute_table",
    "describe_table",
    "evaluation_table",
    "pass_at_k_curves",
    "predictor_title",
    "records_summary",
    "show_candidates",
    "show_evaluation",
    "show_table",
    "table_title",
    "time_table",
]
