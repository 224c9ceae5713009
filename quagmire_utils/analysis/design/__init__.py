"""Is a micro world worth measuring? What its base can do, how outcomes spread, overtraining, long traces, and the cost.

The paper's questions (Sec. 4) are about which of many candidates ends best, so a grid whose candidates all end alike
answers none of them. These tables say, for the records of any microlab profile, whether its design meets the criteria
in `CRITERIA`; `notebooks/design_microlab.ipynb` shows them for the pilot on which the world of `mini` was fixed.

    records = load_records("results/mini-pilot")
    spread_table(records)                          # outcomes between candidates against noise between RL runs
    print(describe(criteria_table(records)))       # each criterion, what was measured, met or not

Scores and changes of scores are fractions (0.05 is five points). Records may be partial: what is not there yet is NaN,
or "not measured".
"""

from quagmire_utils.analysis.design.base import base_table, informed_chance
from quagmire_utils.analysis.design.criteria import CRITERIA, cost_table, criteria_table, describe, show
from quagmire_utils.analysis.design.spread import run_outcomes, spread_table
from quagmire_utils.analysis.design.traces import (
    length_contrast,
    length_table,
    overtraining_table,
    paired_change,
    split_by_length,
)

__all__ = [
    "CRITERIA",
    "base_table",
    "cost_table",
    "criteria_table",
    "describe",
    "informed_chance",
    "length_contrast",
    "length_table",
    "overtraining_table",
    "paired_change",
    "run_outcomes",
    "show",
    "split_by_length",
    "spread_table",
]
