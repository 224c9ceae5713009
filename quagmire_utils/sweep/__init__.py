"""The grid of candidates: base -> SFT -> measure -> RL -> measure, as independent, resumable cells. Paper: Sec. 4.1.

A profile expands into cells: one that makes and measures each base model, one that trains and measures each
candidate, and one for each RL run of a candidate (trained, measured at every checkpoint). A cell writes its records
in one step when it has finished, so a sweep that is killed goes on where it stopped, and `collect` gathers the
records into the files from which every table and figure is derived:

    candidates.parquet  counts.parquet  generalization_loss.parquet  rl_curves.parquet  cells.parquet  manifest.json

    quagmire sweep smoke            # all cells of a profile, on `workers` processes
    quagmire sweep smoke --plan     # only says what there is to do
    quagmire sweep paper --dry-run  # hours, price, disk, and what is missing on this machine
    quagmire sweep paper --submit slurm --output jobs       # job scripts for a cluster
"""

from quagmire_utils.sweep.cells import run_cell
from quagmire_utils.sweep.collect import TABLES, collect, finished_cells
from quagmire_utils.sweep.dry_run import dry_run
from quagmire_utils.sweep.estimate import estimate
from quagmire_utils.sweep.grid import Cell, benchmark_problems, check, plan, rl_problems, source_traces
from quagmire_utils.sweep.runner import SweepError, only_sweep, run_one, run_sweep

__all__ = [
    "TABLES",
    "Cell",
    "SweepError",
    "benchmark_problems",
    "check",
    "collect",
    "dry_run",
    "estimate",
    "finished_cells",
    "only_sweep",
    "plan",
    "rl_problems",
    "run_cell",
    "run_one",
    "run_sweep",
    "source_traces",
]
