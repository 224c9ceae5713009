"""A sweep on a cluster: `sweep --submit slurm` writes a job script, `--submit ray` submits one Ray job.

    quagmire sweep paper --submit slurm --output paper.sbatch && bash paper.sbatch
    quagmire sweep paper --submit ray --ray http://head:8265

Slurm: an element of a job array computes one cell (see `runner.run_one`). All nodes see the results folder, this
Python and the folder in which the script was written. Ray: the job runs `sweep PROFILE --ray auto` on the cluster.
"""

from __future__ import annotations

import importlib.util
import math
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import Profile
from quagmire_utils.sweep.estimate import estimate
from quagmire_utils.sweep.grid import Cell, plan
from quagmire_utils.sweep.runner import FIRST_RUNS

TEMPLATE = Path(__file__).with_name("slurm.sbatch.jinja")
DASHBOARD_TIMEOUT = 10.0  # seconds
SLACK = 2.0  # on the computed hours, for the time limit of a job
MOST_HOURS = 120  # App. B: an RL run takes up to 5 days; what takes longer queues again


def _command(name: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "quagmire_utils", "sweep", name, "--results", str(folder.resolve())]


def slurm_script(profile: Profile, name: str, folder: Path, done: set[str]) -> str:
    """Fill in the template for the cells that are not `done`. Raises ParameterError if nothing is left to do.

    `name`: how the profile is called on the command line.
    """
    import jinja2

    cells = plan(profile)
    todo = [cell for cell in cells if cell.id not in done]
    if not todo:
        raise ParameterError("submit", "slurm", reason="every cell is finished; there is nothing to submit")
    # a candidate's SFT and its RL runs have the same index, so that an element can wait for the one of its index
    starts = [cell.id for cell in cells if cell.kind != "rl"]
    index = {cell.id: starts.index(cell.needs.id if cell.kind == "rl" else cell.id) for cell in todo}
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
    command = _command(name, folder)
    return jinja2.Template(TEMPLATE.read_text(), keep_trailing_newline=True).render(
        name=profile.name,
        options=options,
        cells={f"{_stage(cell)}:{index[cell.id]}": cell for cell in todo},
        jobs=list(_jobs(profile, todo, index, hours.to_dict())),
        command=shlex.join(command),
        collect=shlex.quote(shlex.join([*command, "--collect"])),
        logs=shlex.quote(str(folder.resolve() / "scratch" / "slurm")),
        folder=shlex.quote(str(Path.cwd())),
    )


def _stage(cell: Cell) -> str:
    return cell.kind if cell.run is None else f"rl{cell.run}"


def _jobs(
    profile: Profile, todo: list[Cell], index: dict[str, int], hours: dict[str, float]
) -> Iterator[dict[str, str]]:
    """Yield the job arrays in the order of their dependencies: base, sft, and two for the same runs of all candidates.

    RL of a candidate whose SFT is submitted too waits for the element of its index; the rest only for the base models.
    """
    ids = {cell.id for cell in todo}
    stages = {_stage(cell): (cell.kind != "base", cell.kind != "sft", cell.run or 0) for cell in todo}
    after_base = ' --dependency="afterok:$base" --kill-on-invalid-dep=yes' if "base" in stages else ""
    after_sft = ' --dependency="aftercorr:$sft" --kill-on-invalid-dep=yes'
    for stage, (*_, run) in sorted(stages.items(), key=lambda item: item[1]):
        mine = [cell for cell in todo if _stage(cell) == stage]
        waiting = [cell for cell in mine if cell.kind == "rl" and cell.needs.kind == "sft" and cell.needs.id in ids]
        others = [cell for cell in mine if cell not in waiting]
        limit = min(MOST_HOURS, max(1, math.ceil(SLACK * max(hours[cell.id] for cell in mine))))
        options = "" if "time" in profile.compute.slurm else f" --time={limit // 24}-{limit % 24:02}:00:00"
        options += " --nice=100" if run >= FIRST_RUNS else ""  # after the first runs of all candidates
        own = f"{stage}b" if stage.startswith("rl") else stage
        for variable, cells, after in ((own, others, after_base * (stage != "base")), (stage, waiting, after_sft)):
            if cells:
                array = ",".join(str(index[cell.id]) for cell in cells)
                yield {"variable": variable, "stage": stage, "array": array, "options": options + after}


def ray_command(name: str, folder: Path, address: str) -> list[str]:
    """Return the command that submits a sweep to the Ray cluster whose dashboard is at `address`."""
    if not address.startswith(("http://", "https://")):
        raise ParameterError("ray", address, "the address of the cluster's dashboard, such as http://head:8265")
    submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", address, "--no-wait", "--"]
    there = ["env", f"--chdir={Path.cwd()}"]  # a job begins in a folder of Ray's
    return [*submit, *there, *_command(name, folder), "--ray", "auto"]


def check_dashboard(address: str) -> None:
    """Raise ParameterError, within seconds, unless Ray can submit jobs from here and its dashboard is at `address`."""
    if importlib.util.find_spec("aiohttp_cors") is None:  # the job client imports it
        raise ParameterError("ray", address, reason="jobs need `pip install 'ray[default]' -c constraints.txt`")
    import httpx

    try:
        httpx.get(f"{address}/api/version", timeout=DASHBOARD_TIMEOUT).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        remedy = "start the head node with ray[default] and `ray start --head --disable-usage-stats`"
        raise ParameterError("ray", address, reason=f"no dashboard answers at {address} ({error}); {remedy}") from error
