"""Command line of the sweep: `python -m quagmire_utils.sweep smoke`."""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from quagmire_utils.cli import clock
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import write_text
from quagmire_utils.core.settings import Profile, load_profile
from quagmire_utils.report.notebook import results_folder
from quagmire_utils.sweep import SweepError, check, collect, dry_run, finished_cells, plan, run_one, run_sweep
from quagmire_utils.sweep.spot_check import spot_check
from quagmire_utils.sweep.submit import check_dashboard, ray_command, slurm_scripts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a profile's sweep, show its plan, or compute one recorded candidate again.

    Exit status: 0 done, 1 a cell failed or the candidate came out otherwise, 2 a parameter is wrong, 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m quagmire_utils.sweep", description="Trains and measures the grid of candidates."
    )
    parser.add_argument("profile", nargs="?", help="smoke, mini, single_gpu, paper, or the path of a YAML file")
    parser.add_argument("--profile", dest="named", metavar="PROFILE", help="the same")
    parser.add_argument("--results", type=Path, help="where records go (default: results/<profile>)")
    parser.add_argument("--workers", type=int, help="processes, one core each (default: the profile's)")
    parser.add_argument("--ray", metavar="ADDRESS", help="use the cores of this Ray cluster; auto: this machine's")
    parser.add_argument(
        "--spot-check",
        nargs="?",
        const="",
        metavar="NAME",
        help="retrain one recorded candidate (family/candidate; default: one chosen at random) and compare",
    )
    parser.add_argument("--seed", type=int, help="of the spot check's choice (default: a new one)")
    parser.add_argument("--plan", action="store_true", help="only list the cells and which of them are done")
    scale = parser.add_argument_group("before and beyond one machine")
    scale.add_argument("--dry-run", action="store_true", help="hours, price, disk, and what is missing here")
    scale.add_argument("--cells", action="store_true", help="with --dry-run: a line for each cell")
    scale.add_argument("--gpu", help="with --dry-run: another GPU than the profile's")
    scale.add_argument("--price", type=float, help="with --dry-run: dollars per GPU hour")
    scale.add_argument("--mfu", type=float, help="with --dry-run: share of the GPU's peak that training reaches")
    scale.add_argument(
        "--submit", choices=["ray", "slurm"], help="submit to Ray (--ray http://...), or print job scripts"
    )
    scale.add_argument("--output", type=Path, help="with --submit slurm: write the scripts to this folder instead")
    scale.add_argument("--cell", metavar="ID", help="compute one cell, unless it is finished")
    scale.add_argument("--digest", help="with --cell: refuse if the cell's parameters are no longer these")
    scale.add_argument("--collect", action="store_true", help="only gather the records of the finished cells")
    options = parser.parse_args(arguments)
    if (options.profile is None) == (options.named is None):
        parser.error("name one profile")
    options.profile = options.profile or options.named
    _check_together(parser, options)
    spot = options.spot_check is not None
    try:
        profile = load_profile(options.profile, _overrides(options))
        folder = options.results or results_folder(options.profile)
        if options.plan:
            cells = plan(profile)
            done = finished_cells(folder, cells)
            for cell in cells:
                print("done" if cell.id in done else "to do", cell.id)
            return 0
        if options.dry_run:
            print(dry_run(profile, folder, cells=options.cells))
            return 0
        if options.submit is not None:
            return _submit(profile, folder, options)
        if options.cell is not None:
            run_one(profile, folder, options.cell, options.digest)
            return 0
        if options.collect:
            collect(profile, folder)
            return 0
        if spot:
            started = time.monotonic()
            outcome = spot_check(profile, folder, options.spot_check, seed=options.seed)
            print(f"{outcome}\nTook {clock(time.monotonic() - started)}.")
            return int(outcome.verdict == "differs")
        run_sweep(profile, folder, workers=options.workers, ray=options.ray)
    except ParameterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "" if spot else "; what is finished is kept, and the same command goes on from there"
        print(f"\ninterrupted{kept}", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except SweepError as error:
        print(f"error: {error}", file=sys.stderr)
        if not spot:  # which leaves nothing to go on from
            again = shlex.join(["python", "-m", "quagmire_utils.sweep", *(arguments or sys.argv[1:])])
            print(f"Go on with: {again}", file=sys.stderr)
        return 1
    return 0


def _check_together(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options of which one would silently be left out: it might have been the one that was meant."""
    asked = {
        "--plan": options.plan,
        "--dry-run": options.dry_run,
        "--submit": options.submit is not None,
        "--cell": options.cell is not None,
        "--collect": options.collect,
        "--spot-check": options.spot_check is not None,
    }
    modes = [name for name, chosen in asked.items() if chosen]
    if len(modes) > 1:
        parser.error(f"{' and '.join(modes)} do not go together")
    for name, given, mode in (
        ("--cells", options.cells, "--dry-run"),
        ("--digest", options.digest is not None, "--cell"),
        ("--output", options.output is not None, "--submit"),
        ("--seed", options.seed is not None, "--spot-check"),
    ):
        if given and mode not in modes:
            parser.error(f"{name} goes with {mode}")


def _overrides(options: argparse.Namespace) -> dict[str, object]:
    named = {"gpu": options.gpu, "dollars_per_gpu_hour": options.price, "train_mfu": options.mfu}
    asked = {f"compute.{name}": value for name, value in named.items() if value is not None}
    if asked and not options.dry_run:
        raise ParameterError("--gpu, --price and --mfu go with --dry-run; what runs is said by the profile")
    return asked


def _submit(profile: Profile, folder: Path, options: argparse.Namespace) -> int:
    """Print or write Slurm scripts, or hand the sweep to a Ray cluster."""
    check(profile, here=False)
    name = options.profile
    if Path(name).suffix in (".yaml", ".yml"):
        name = str(Path(name).resolve())
    if options.submit == "ray":
        command = ray_command(name, folder, options.ray or "")
        print(shlex.join(command), flush=True)
        check_dashboard(options.ray)
        return subprocess.run(command, check=False).returncode
    scripts = slurm_scripts(profile, name, folder, finished_cells(folder, plan(profile)))
    for file, text in scripts.items():
        if options.output is None:
            print(f"### {file}\n{text}")
        else:
            write_text(text, options.output / file)
    if options.output is not None:
        print(f"{len(scripts)} files in {options.output}; submit them with: bash {options.output / 'submit.sh'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
