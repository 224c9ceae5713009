"""Train as the paper trained: SFT with LLaMA-Factory, GRPO with verl, each on the GPUs of one machine. App. B.2.

Each is installed in an environment of its own (`./reproduce.sh setup llamafactory`, `./reproduce.sh setup verl`),
because neither installs next to the versions of this package. A run is a folder of files that a person can read,
change, and start by hand with its run.sh; `llamafactory` and `verl` have examples.

`write` refuses what cannot work. `check` lets the back-end tokenise its data and compares every token with those of
sampling and of the generalization loss; `train` does so first. A run that was killed resumes from its last checkpoint.
"""

from quagmire_utils.training.backends.runs import BACKENDS, BackendError, environment_python

__all__ = ["BACKENDS", "BackendError", "environment_python"]
