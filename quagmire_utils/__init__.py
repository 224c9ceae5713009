"""quagmire_utils: measure SFT checkpoints, grade their answers, and forecast what RL will make of them.

The shared package behind the notebooks that reproduce "Quagmires in SFT-RL Post-Training" (arXiv 2510.01624). Importing
it loads nothing heavy: each subpackage (`quagmire_utils.evaluation.sampling`, `.grading`, `.analysis`, ...) imports its
libraries where it uses them.
"""

import os

__version__ = "0.1.0"

# OpenMP reads it when torch is imported: its threads sleep while they wait, instead of taking cores from other jobs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
