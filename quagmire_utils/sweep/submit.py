"""A sweep on a cluster: `sweep --submit slurm` prints job scripts, `--submit ray` submits one Ray job.

Slurm: an element of a job array computes one cell, `sweep PROFILE --cell ID --digest D`. A cell that is finished ends
at once, one that was cut off goes on, and one whose parameters have changed since the scripts were printed refuses. SFT
waits for its base model, RL for the SFT of its own candidate alone. All nodes see the results folder, this Python and
the folder in which the scripts were printed.

    quagmire sweep paper --submit slurm --output jobs && bash jobs/submit.sh
    quagmire sweep paper --submit ray --ray http://head:8265

Ray: the job runs the sweep itself on the cluster's nodes (`sweep PROFILE --ray auto`).
"""

from __future__ import annotations

import importlib.util
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import Profile
from quagmire_utils.sweep.estimate import CellCost, estimate
from quagmire_utils.sweep.grid import Cell, plan
from quagmire_utils.sweep.runner import FIRST_RUNS

AFTER_BASE = '--dependency="afterok:$base" --kill-on-invalid-dep=yes '  # what can never start must not wait for ever
DASHBOARD_TIMEOUT = 10.0  # seconds
WARNING = 120  # seconds before its time limit that a job is told
SLACK = 2.0  # on the computed hours, for the time limit of a job
MOST_HOURS = 120  # App. B: an RL run takes up to 5 days; what takes longer queues again


def slurm_scripts(profile: Profile, name: str, folder: Path, done: set[str]) -> dict[str, str]:
    """Job scripts by file name: `submit.sh`, and one array for each stage. `done`: ids of the cells left out.

    `name`: how the profile is called on the command line. Raises ParameterError where nothing is left to do.
    """
    cells = plan(profile)
    todo = [cell for cell in cells if cell.id not in done]
    if not todo:
        raise ParameterError("submit: every cell is finished; there is nothing to submit")
    costs = {item.cell.id: item for item in estimate(profile, folder)}
    # the same index for a candidate's SFT and for each of its RL runs, so that one can wait for the other
    starts = [cell for cell in cells if cell.kind != "rl"]
    index = {cell.id: i for i, cell in enumerate(starts)}
    scripts = {}
    for stage, mine in _stages(todo).items():
        scripts[f"{stage}.sbatch"] = _array(profile, name, folder, stage, mine, index, costs)
    scripts["submit.sh"] = _submit(profile, name, folder, _stages(todo), index)
    return scripts


def ray_command(name: str, folder: Path, address: str, arguments: Sequence[str] = ()) -> list[str]:
    """The command that submits a sweep to the Ray cluster whose dashboard is at `address`."""
    if not address.startswith(("http://", "https://")):
        raise ParameterError(
            f"ray: --submit ray needs the address of the cluster's dashboard, such as http://head:8265, not {address}"
        )
    job = [sys.executable, "-m", "quagmire_utils", "sweep", name, "--results", str(folder.resolve()), "--ray", "auto"]
    there = ["env", f"--chdir={Path.cwd()}"]  # of the paths in the profile; a job begins in a folder of Ray's
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    return [*ray, "job", "submit", "--address", address, "--no-wait", "--", *there, *job, *arguments]


def check_dashboard(address: str) -> None:
    """Raise ParameterError, within seconds, unless Ray can submit jobs from here and its dashboard is at `address`."""
    if importlib.util.find_spec("ray") is None:
        raise ParameterError("ray: it is not installed; `pip install 'ray[default]' -c constraints.txt` does it")
    if importlib.util.find_spec("aiohttp_cors") is None:  # the job client imports what only ray[default] brings
        raise ParameterError("ray: it cannot submit jobs; `pip install 'ray[default]' -c constraints.txt` adds that")
    import httpx

    try:
        httpx.get(f"{address}/api/version", timeout=DASHBOARD_TIMEOUT).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ParameterError(
            f"ray: no dashboard answers at {address} ({error}); the head node needs ray[default], and "
            "`ray start --head --disable-usage-stats`"
        ) from error


def _stages(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Cells by job array: base, sft, rl0, rl1, ..."""
    stages: dict[str, list[Cell]] = {}
    for cell in cells:
        stages.setdefault(cell.kind if cell.run is None else f"rl{cell.run}", []).append(cell)
    order = sorted(stages, key=lambda stage: (0, stage == "sft") if stage in ("base", "sft") else (1, int(stage[2:])))
    return {stage: stages[stage] for stage in order}


def _array(
    profile: Profile,
    name: str,
    folder: Path,
    stage: str,
    cells: Sequence[Cell],
    index: dict[str, int],
    costs: dict[str, CellCost],
) -> str:
    gpus = profile.compute.gpus
    hours = max(costs[cell.id].hours for cell in cells) / max(1, gpus)
    limit = min(MOST_HOURS, max(1, math.ceil(SLACK * hours)))
    log = folder.resolve() / "scratch" / "slurm" / f"{stage}-%a.log"
    options = {
        "job-name": f"{profile.name}-{stage}",
        "array": ",".join(str(_index(cell, index)) for cell in cells),
        "nodes": "1",
        "ntasks": "1",
        "time": f"{limit // 24}-{limit % 24:02}:00:00",
        "requeue": "",
        "open-mode": "append",
        "signal": f"B:USR1@{WARNING}",
        "chdir": _quoted(Path.cwd()),  # of the paths in the profile
        "output": _quoted(log),
        **({"gpus-per-node": str(gpus), "exclusive": ""} if gpus > 1 else {"gpus": "1"} if gpus else {}),
        **profile.compute.slurm,
    }
    rows = [f"    [{_index(cell, index)}]={shlex.quote(f'{cell.id} {cell.digest}')}" for cell in cells]
    command = shlex.join([sys.executable, "-m", "quagmire_utils", "sweep", name, "--results", str(folder.resolve())])
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(f"#SBATCH --{key}{f'={value}' if value else ''}" for key, value in options.items()),
            f"# {len(cells)} cells of {profile.name}; the longest is expected to take {hours:.1f} hours.",
            "set -euo pipefail",
            "declare -A cells=(",
            *rows,
            ")",
            'read -r cell digest <<<"${cells[$SLURM_ARRAY_TASK_ID]}"',
            "# at its time limit it queues again under the same number: what waits for it goes on waiting",
            """trap 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' USR1""",
            f'{command} --cell "$cell" --digest "$digest" &',
            "child=$!",
            "while true; do # a signal ends a wait, too",
            '    wait "$child" && status=0 || status=$?',
            '    kill -0 "$child" 2>/dev/null || exit "$status"',
            "done",
            "",
        ]
    )


def _quoted(path: Path) -> str:
    """A path in an #SBATCH line, where a space would end the option."""
    return f'"{path}"' if " " in str(path) else str(path)


def _index(cell: Cell, index: dict[str, int]) -> int:
    """The place of a cell in its array: for RL, that of the cell it starts from."""
    return index[cell.needs if cell.kind == "rl" and cell.needs else cell.id]


def _submit(profile: Profile, name: str, folder: Path, stages: dict[str, list[Cell]], index: dict[str, int]) -> str:
    lines = [
        "#!/usr/bin/env bash",
        f"# Submits {profile.name}: base models, then SFT, then RL. Run again, it goes on with what is not finished.",
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")"',
        f"mkdir -p {shlex.quote(str(folder.resolve() / 'scratch' / 'slurm'))}",
    ]
    jobs = []
    sft = {_index(cell, index) for cell in stages.get("sft", [])}
    for stage, cells in stages.items():
        if stage == "base":
            lines.append("base=$(sbatch --parsable base.sbatch)")
        elif stage == "sft":
            after = AFTER_BASE if "base" in stages else ""
            lines.append(f"sft=$(sbatch --parsable {after}sft.sbatch)")
        else:
            # later runs of every candidate come after the first ones of all
            nice = "--nice=100 " if int(stage[2:]) >= FIRST_RUNS else ""
            waiting = [i for cell in cells if (i := _index(cell, index)) in sft]
            others = [i for cell in cells if (i := _index(cell, index)) not in sft]
            if waiting:
                array = ",".join(map(str, waiting))
                after = '--dependency="aftercorr:$sft" --kill-on-invalid-dep=yes'
                lines.append(f"{stage}=$(sbatch --parsable {nice}--array={array} {after} {stage}.sbatch)")
                jobs.append(stage)
            if others:  # RL from a base model, or from a candidate that is there already
                array = ",".join(map(str, others))
                after = AFTER_BASE if "base" in stages else ""
                lines.append(f"{stage}b=$(sbatch --parsable {nice}--array={array} {after}{stage}.sbatch)")
                jobs.append(f"{stage}b")
            continue
        jobs.append(stage)
    after = ":".join(f"${job}" for job in jobs)
    place = folder.resolve()
    collect = shlex.join([sys.executable, "-m", "quagmire_utils", "sweep", name, "--results", str(place), "--collect"])
    log = shlex.quote(str(place / "scratch" / "slurm" / "collect.log"))
    lines += [
        f'sbatch --dependency="afterany:{after}" --job-name={profile.name}-collect --output={log} '
        f"--chdir={shlex.quote(str(Path.cwd()))} "
        f"--wrap={shlex.quote(collect)}",
        "",
    ]
    return "\n".join(lines)
