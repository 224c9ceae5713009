"""A sweep on a Slurm cluster: `sweep --submit slurm` writes a job script.

    quagmire sweep paper --submit slurm --output paper.sbatch && bash paper.sbatch

An element of a job array computes one cell (see `runner.run_one`). All nodes see the results folder, this Python and
the folder in which the script was written.
"""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import Profile
from quagmire_utils.sweep.estimate import estimate
from quagmire_utils.sweep.grid import check, first_runs_first, plan

TEMPLATE = Path(__file__).with_name("slurm.sbatch.jinja")
SLACK = 2.0  # on the computed hours, for the time limit of a job
MOST_HOURS = 120  # App. B: an RL run takes up to 5 days; what takes longer queues again


def slurm_script(profile: Profile, name: str, folder: Path, done: set[str]) -> str:
    """Fill in the template for the cells that are not `done`. Raises ParameterError if nothing is left to do.

    `name`: how the profile is called on the command line.
    """
    import jinja2

    check(profile, here=False)
    name = str(Path(name).resolve()) if name.endswith((".yaml", ".yml")) else name
    cells = plan(profile)
    todo = first_runs_first([cell for cell in cells if cell.id not in done])
    if not todo:
        raise ParameterError("submit", "slurm", reason="every cell is finished; there is nothing to submit")
    todo.sort(key=lambda cell: ("base", "sft", "rl").index(cell.kind))
    gpus = profile.compute.gpus
    options = {
        "nodes": "1",
        "ntasks": "1",
        "requeue": "",
        "open-mode": "append",
        "signal": "B:USR1@120",  # to the script, two minutes before its time limit
        "chdir": f'"{Path.cwd()}"',  # paths in the profile are relative to it
        **({"gpus-per-node": str(gpus), "exclusive": ""} if gpus > 1 else {"gpus": "1"} if gpus else {}),
        **profile.compute.slurm,
    }
    hours = estimate(profile, cells, folder)["hours"] / max(1, gpus)
    stages = []
    for kind in dict.fromkeys(cell.kind for cell in todo):
        mine = [i for i, cell in enumerate(todo) if cell.kind == kind]
        limit = min(MOST_HOURS, max(1, math.ceil(SLACK * max(hours[todo[i].id] for i in mine))))
        time = "" if "time" in profile.compute.slurm else f" --time={limit // 24}-{limit % 24:02}:00:00"
        stages.append({"kind": kind, "array": f"{mine[0]}-{mine[-1]}", "time": time})
    command = [sys.executable, "-m", "quagmire_utils", "sweep", name, "--results", str(folder.resolve())]
    return jinja2.Template(TEMPLATE.read_text(), keep_trailing_newline=True).render(
        name=profile.name,
        options=options,
        cells=[cell.id for cell in todo],
        stages=stages,
        command=shlex.join(command),
        collect=shlex.quote(shlex.join([*command, "--collect"])),
        logs=shlex.quote(str(folder.resolve() / "scratch" / "slurm")),
        folder=shlex.quote(str(Path.cwd())),
    )
