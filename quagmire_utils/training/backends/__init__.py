"""Training as the paper trained: SFT with LLaMA-Factory, GRPO with verl, on one machine or on nodes of GPUs. App. B.2.

Both live in environments of their own (`./reproduce.sh setup llamafactory`, `./reproduce.sh setup verl`; the pinned
lists are beside this file), because neither installs beside the versions that the rest of this package uses. They are
driven by files that a person can read, change and run by hand:

    from quagmire_utils.backends import Machines, llamafactory, verl

    llamafactory.write(model, traces, "runs/sft", SFTSettings(epochs=2), machines=Machines(nodes=1, devices=8))
    llamafactory.train("runs/sft")          # or: runs/sft/run.sh; the checkpoint for our engines: runs/sft/model

    verl.write("runs/sft/model", problems, "runs/rl", RLSettings(), epochs=3, machines=Machines(nodes=1, devices=8))
    verl.train("runs/rl")                   # or: runs/rl/run.sh; checkpoints: runs/rl/checkpoint-<step>

`write` computes nothing twice and refuses what cannot work before anything expensive starts. `check` has the back-end
itself tokenise what it was given and compares every token with the ones that sampling and the generalization loss use;
`train` does so first. A run that was killed goes on from its last checkpoint when it is started again.
"""

from quagmire_utils.training.backends.environments import BACKENDS, Machines, environment_python
from quagmire_utils.training.backends.runs import BackendError

__all__ = ["BACKENDS", "BackendError", "Machines", "environment_python"]
