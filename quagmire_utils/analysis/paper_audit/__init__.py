"""The published tables checked against themselves: findings computed from the printed numbers alone. Tables 1-10.

    paper_audit.findings()               # a DataFrame: kind, place, printed, computed; a few seconds

`printed` compares cells with each other, `kinds` asks which R2 and which ± the printed ones can be, `simulation` runs
the paper's protocol on as many random candidates as the paper has. No records of this project are read.
"""

# ruff: noqa: F401 - callers import these names from here

from quagmire_utils.analysis.paper_audit.findings import findings
from quagmire_utils.analysis.paper_audit.kinds import KINDS, RATIO_TABLES
from quagmire_utils.analysis.paper_audit.simulation import split_alone, what_candidates_show
