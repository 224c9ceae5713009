"""The paper's tables: ours, computed from the records, beside the published values. Paper: Sec. 4, App. C.

    frame = candidate_frame(load_records("results/mini"))
    table = compute_table(frame, 5)                            # numbers, one row per cell of the paper's Table 5
    table = compute_table(frame, 5, Options(n_splits=1000))    # with other parameters
    show_table(table, "mini"), compare_gains(table)            # as text, ours beside the paper's
    compute_table(frame, 3, supplement=True)                   # rows that complete it: within each SFT budget
    show_sensitivity(compute_sensitivity(frame, 1))            # the same under other definitions

`analysis/tables.yaml` says what each table shows. A model of the paper that was not run has the status `not run`.
"""

# ruff: noqa: F401 - callers import these names from here

from quagmire_utils.analysis.tables.compute import Options, compute_sensitivity, compute_table, usable_groups, verdict
from quagmire_utils.analysis.tables.show import (
    compare_gains,
    headline,
    number_text,
    predictor_title,
    show_sensitivity,
    show_table,
)
from quagmire_utils.analysis.tables.spec import STATISTICS, TABLES, table_lines, table_spec
