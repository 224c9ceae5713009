"""quagmire_utils: measure SFT checkpoints, grade their answers, and forecast what RL will make of them.

The shared package behind the notebooks that reproduce "Quagmires in SFT-RL Post-Training" (arXiv 2510.01624). Importing
it loads nothing heavy: each subpackage (`quagmire_utils.evaluation.sampling`, `.grading`, `.analysis`, ...) imports its
libraries where it uses them.
"""

from quagmire_utils.core.threads import wait_asleep

__version__ = "0.1.0"

wait_asleep()
