"""Sweeps that really run: records, resuming after kills, damage, failures, a Slurm of one machine, Ctrl-C."""

import contextlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
from example_cells import TINY, assert_same_records, command, run_sweep, tiny_profile
from verdicts import wait_until

from quagmire_utils import cli, sweep
from quagmire_utils.core.files import read_json, read_parquet
from quagmire_utils.core.settings import load_profile
from quagmire_utils.sweep import pools


def worker_of(process):
    """Wait for a worker process of a sweep."""
    while process.poll() is None:
        for child in psutil.Process(process.pid).children():
            with contextlib.suppress(psutil.Error):
                if "spawn_main" in " ".join(child.cmdline()):
                    return child
        time.sleep(0.05)
    raise AssertionError("the sweep ended before it had a worker")


def test_a_sweep_leaves_every_record(unbroken):
    profile, counts = tiny_profile(), read_parquet(unbroken / "counts.parquet")
    starts = ["a/base", "a/random-16x2", "a/shortest-16x1"]
    sizes = {cell: rows for start in starts for cell, rows in ((start, 4), (f"{start}/rl0", 8))}
    assert counts.groupby("cell", sort=False).size().to_dict() == sizes
    assert set(counts.loc[counts.stage != "rl", "n"]) == {4}
    assert set(counts.loc[counts.stage == "rl", "n"]) == {2}
    assert (counts[["correct", "wrong", "no_answer", "timeout", "error"]].sum(axis=1) == counts["n"]).all()
    assert (counts[["distinct_answers", "chance_correct", "correct_math"]].max(axis=1) <= counts["n"]).all()
    losses = read_parquet(unbroken / "generalization_loss.parquet").set_index(["candidate", "validation_set"])
    both = ["validation", "own"]
    sets = [("base", "validation"), *((name, s) for name in ("random-16x2", "shortest-16x1") for s in both)]
    assert losses.index.tolist() == sets
    # random traces are held out as they are trained on; the shortest have held-out traces of their own
    assert losses.loc[("random-16x2", "own"), "nll"] == losses.loc[("random-16x2", "validation"), "nll"]
    assert losses.loc[("shortest-16x1", "own"), "tokens"] < losses.loc[("shortest-16x1", "validation"), "tokens"]
    assert read_parquet(unbroken / "rl_curves.parquet").groupby("cell").size().tolist() == [2, 2, 2]
    manifest = read_json(unbroken / "manifest.json")
    assert manifest["cells"] == manifest["cells_finished"] == 6
    assert manifest["configuration"]["name"] == "tiny"
    cells = sweep.plan(profile)
    assert sweep.finished_cells(unbroken, cells) == {cell.id for cell in cells}


def test_budgets_group_by_trained_tokens(tiny, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "copy")
    tokens = read_parquet(unbroken / "candidates.parquet").set_index("candidate")["sft_tokens"]
    assert 0 == tokens["base"] < tokens["shortest-16x1"] < tokens["random-16x2"]
    profile = load_profile(tiny, {"budgets": {"low": float(tokens["shortest-16x1"]), "high": 1e6}})
    budget = sweep.collect(profile, tmp_path / "copy")["candidates"].set_index("candidate")["budget"]
    assert (budget["shortest-16x1"], budget["random-16x2"]) == ("low", "high")
    assert pd.isna(budget["base"])


def test_a_finished_sweep_computes_and_rewrites_nothing(tiny, unbroken):
    def state():
        places = [unbroken, unbroken / "scratch" / "cells"]
        return {p: p.stat().st_mtime_ns for place in places for p in place.rglob("*.*") if p.is_file()}

    before = state()
    sweep.run_sweep(load_profile(tiny), unbroken)
    assert state() == before


def test_records_are_enough_to_resume_from(unbroken, tmp_path):
    """A clone holds the collected records, without checkpoints. Nothing is recomputed, nothing is lost."""
    for file in unbroken.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    sweep.run_sweep(tiny_profile(), tmp_path)
    assert not (tmp_path / "scratch" / "cells").exists()
    assert_same_records(tmp_path, unbroken)


@pytest.mark.slow
def test_further_runs_start_from_the_base_that_the_records_ship(unbroken, tmp_path):
    folder = tmp_path / "clone"
    shutil.copytree(unbroken, folder, ignore=shutil.ignore_patterns("scratch"))
    sweep.run_sweep(tiny_profile(rl={"runs": 2}), folder, workers=1)
    logs = {path.stem for path in (folder / "scratch" / "logs").iterdir()}
    assert "a__base" not in logs
    assert {"a__base__rl1", "a__random-16x2__rl1", "a__shortest-16x1__rl1"} <= logs
    counts, old = (read_parquet(place / "counts.parquet") for place in (folder, unbroken))
    again = counts[counts["cell"].isin(set(old["cell"]))].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, old)


@pytest.mark.slow
def test_a_killed_sweep_ends_like_an_unbroken_one(tiny, unbroken, tmp_path):
    rng, quiet = random.Random(0), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for _ in range(3):
        process = subprocess.Popen(command(tiny, tmp_path), **quiet, start_new_session=True)
        worker = worker_of(process)
        time.sleep(rng.uniform(2, 12))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not psutil.wait_procs([worker], timeout=60)[1]  # workers notice by themselves
    run_sweep(tiny, tmp_path).check_returncode()
    assert_same_records(tmp_path, unbroken)


def die(profile, folder, cell, devices):
    """In place of a cell: the process is killed, for an SFT cell once, for the base every time."""
    mark = folder / cell.id.replace("/", "__")
    if cell.kind == "base" or not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_cell_whose_process_dies_starts_again_and_is_given_up_after_some_attempts(tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "_compute", die)
    base, sft = [cell for cell in sweep.plan(tiny_profile()) if cell.kind != "rl"][:2]
    with pools.LocalPool(tiny_profile(), tmp_path, workers=2) as pool:
        pool.submit(base)
        pool.submit(sft)
        ended = {}
        while len(ended) < 2:
            ended |= dict(pool.wait(1))
    assert ended[sft] is None
    assert isinstance(ended[base], pools.CellLostError)
    starts = [cell.path(tmp_path, "logs").read_text().count("started again") for cell in (base, sft)]
    assert starts == [pools.ATTEMPTS - 1, 1]


def test_an_interrupt_is_one_line_and_leaves_no_process(tiny, tmp_path):
    process = subprocess.Popen(command(tiny, tmp_path), stderr=subprocess.PIPE, text=True, start_new_session=True)
    worker = worker_of(process)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does: all of its processes
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "interrupted; what is finished is kept" in said.strip().splitlines()[-1]
    assert "Traceback" not in said
    assert not psutil.wait_procs([worker], timeout=20)[1]


def test_a_failing_cell_names_itself_its_log_and_how_to_resume_and_leaves_no_process(tiny, tmp_path, capfd):
    """In a notebook's kernel the process lives on; workers that lived on with it would meet the next sweep."""
    blocked = tmp_path / "scratch" / "models"
    blocked.parent.mkdir()
    blocked.write_text("a file where the checkpoints should go")
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    assert cli.main(["sweep", str(tiny), "--results", str(tmp_path)]) == 1
    said, log = capfd.readouterr().err, tmp_path / "scratch" / "logs" / "a__base.log"
    assert "cell a/base failed" in said
    assert str(log) in said
    assert "resumes" in said
    assert "Traceback" in log.read_text()
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert not [p for p in left if "spawn_main" in " ".join(p.cmdline())]


@pytest.mark.parametrize("damage", ["gone", "torn"])
@pytest.mark.parametrize("name", ["counts.parquet", "cells.parquet", "candidates.parquet", "manifest.json"])
def test_lost_record_files_are_collected_again(unbroken, tmp_path, name, damage):
    folder = shutil.copytree(unbroken, tmp_path / "copy")
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage == "torn":
        (folder / name).write_bytes(content[:50])
    sweep.run_sweep(tiny_profile(), folder)
    assert read_json(folder / "manifest.json")["cells_finished"] == 6
    assert_same_records(folder, unbroken)


def test_two_sweeps_do_not_share_a_folder(tiny, tmp_path):
    with sweep.only_sweep(tmp_path):
        result = run_sweep(tiny, tmp_path)
    assert result.returncode == 2
    assert "another sweep is running" in result.stderr


SBATCH = r"""#!/usr/bin/env bash
# A Slurm of one machine: runs what it is given at once, element by element.
set -euo pipefail
array=""; script=""
for argument in "$@"; do
    case "$argument" in
        --array=*) array=${argument#--array=} ;;
        --wrap=*) bash -c "${argument#--wrap=}" >&2; echo 99; exit ;;
        --*) ;;
        *) script=$argument ;;
    esac
done
script=$(realpath "$script")
cd "$(sed -n 's/^#SBATCH --chdir="\([^"]*\)"$/\1/p' "$script")"
for index in $(seq ${array/-/ }); do SLURM_ARRAY_TASK_ID=$index bash "$script" >&2; done
echo 7
"""


@pytest.mark.slow
def test_a_slurm_script_computes_a_sweep_and_leftovers_of_other_parameters_are_not_used(unbroken, tmp_path):
    """The jobs of a changed profile leave the records of a sweep that begins with the cells of another SFT rate."""
    mixed, folder, job = tmp_path / "mixed", tmp_path / "my results", tmp_path / "my job"
    changed = tmp_path / "my tiny.yaml"
    changed.write_text(TINY.replace("sft: {learning_rate: 0.001", "sft: {learning_rate: 0.005"))
    shutil.copytree(unbroken, mixed)
    run_sweep(changed, mixed).check_returncode()
    with pytest.raises(AssertionError):
        assert_same_records(mixed, unbroken)
    run_sweep(changed, folder, "--submit", "slurm", "--output", job).check_returncode()
    (tmp_path / "sbatch").write_text(SBATCH)
    (tmp_path / "sbatch").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", str(job)], env=environment, cwd="/", check=True)
    assert_same_records(folder, mixed)
    assert read_json(folder / "manifest.json")["complete"]
    profile = load_profile(changed)
    sweep.run_one(profile, folder, sweep.plan(profile)[-1].id)  # a finished cell ends at once


@pytest.mark.parametrize("ending", [0, 3])
def test_a_job_at_its_time_limit_queues_again_and_ends_as_its_cell_does(tiny, tmp_path, ending):
    result, python = run_sweep("paper", tmp_path, "--submit", "slurm"), tmp_path / "python"
    python.write_text(f"#!/usr/bin/env bash\necho $* >started\nuntil [ -e go ]; do sleep 0.1; done\nexit {ending}\n")
    (tmp_path / "scontrol").write_text("#!/usr/bin/env bash\necho $* >asked\n")
    for name in ("python", "scontrol"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job").write_text(result.stdout.replace(shlex.quote(sys.executable), str(python)))
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    job = subprocess.Popen(["bash", "job"], cwd=tmp_path, env=environment)
    for file, then in (("started", lambda: job.send_signal(signal.SIGUSR1)), ("asked", (tmp_path / "go").touch)):
        wait_until((tmp_path / file).is_file)
        then()
    assert job.wait(timeout=60) == ending
    assert (tmp_path / "started").read_text().endswith("--cell llama3-8b/base\n")
    assert (tmp_path / "asked").read_text() == "requeue 7_0\n"
