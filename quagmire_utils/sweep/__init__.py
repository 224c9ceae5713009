"""The grid of candidates: base -> SFT -> measure -> RL -> measure, as independent, resumable cells. Paper: Sec. 4.1.

A profile expands into cells: one for each base model, one for each SFT candidate, and one for each RL run of a
candidate. A cell trains its checkpoints and measures them, and writes its records in one step at the end, so that a
sweep that is killed resumes where it stopped. `collect` gathers the records into the files of `core.records`.
"""

# ruff: noqa: F401 - callers import these names from here

from quagmire_utils.sweep.collect import TABLES, collect, finished_cells
from quagmire_utils.sweep.datasets import benchmark_problems, rl_problems, source_traces
from quagmire_utils.sweep.estimate import dry_run
from quagmire_utils.sweep.grid import Cell, check, plan
from quagmire_utils.sweep.runner import SweepError, only_sweep, run_one, run_sweep
