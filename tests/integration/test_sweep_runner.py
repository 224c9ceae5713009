"""What runs when in a sweep, and what can be read of it meanwhile; `test_sweep` runs the cells themselves."""

import re
import shutil

import numpy as np
import pytest
from example_cells import write_cell
from test_sweep import TINY

from quagmire_utils import sweep
from quagmire_utils.analysis.records import candidate_frame
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json, write_text
from quagmire_utils.core.records import load_records
from quagmire_utils.core.settings import load_profile
from quagmire_utils.sweep import runner
from quagmire_utils.sweep.cells import restore_base
from quagmire_utils.sweep.grid import shipped_folder
from quagmire_utils.sweep.pools import CellLostError


class InstantPool:
    """A pool of one worker whose cells are finished when they are waited for."""

    def __init__(self, profile, folder, failures=()):
        self.profile, self.folder, self.failures = profile, folder, dict(failures)
        self.running, self.started, self.seen = [], [], []
        self.rng = np.random.default_rng(0)

    def has_room(self, cell):
        return not self.running

    def submit(self, cell):
        self.running.append(cell)
        self.started.append(cell.id)

    def wait(self, seconds):
        if (self.folder / "manifest.json").is_file():  # what a reader finds while this cell runs
            frame = candidate_frame(load_records(self.folder), k=4)
            self.seen.append((read_json(self.folder / "manifest.json")["cells_finished"], int(frame["n_runs"].sum())))
        (cell,) = self.running
        self.running.clear()
        if cell.id not in self.failures:
            write_cell(self.profile, self.folder, cell, self.rng)
        return [(cell, self.failures.get(cell.id))]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("runs: 1", "runs: 4"))
    return load_profile(path)


@pytest.fixture
def pool(profile, tmp_path, monkeypatch):
    pool = InstantPool(profile, tmp_path / "results")
    monkeypatch.setattr(runner, "_open_pool", lambda *_: pool)
    return pool


def test_every_candidate_has_two_rl_runs_before_any_has_three(profile, pool):
    sweep.run_sweep(profile, pool.folder, progress=False)
    names = ["a/base", "a/random-16x2", "a/shortest-16x1"]
    first = [[name, f"{name}/rl0", f"{name}/rl1"] for name in names]
    later = [[f"{name}/rl2", f"{name}/rl3"] for name in names]
    assert pool.started == [cell for group in (*first, *later) for cell in group]
    assert pool.seen == []  # nothing is collected within the first minutes


def test_records_can_be_read_while_the_sweep_runs(profile, pool):
    sweep.run_sweep(profile, pool.folder, progress=False, collect_every=0)
    # there are rows for every table once a cell of each kind has finished: base, its two RL runs, and an SFT
    assert pool.seen == [(4, 2), (5, 3), (6, 4), (7, 4), (8, 5), (9, 6), (10, 7), (11, 8), (12, 9), (13, 10), (14, 11)]
    assert read_json(pool.folder / "manifest.json")["cells_finished"] == 15


def test_what_was_collected_on_the_way_is_what_a_stopped_sweep_goes_on_from(profile, pool):
    error = RuntimeError("no memory")
    pool.failures["a/random-16x2/rl3"] = error
    with pytest.raises(
        sweep.SweepError, match=r"cell a/random-16x2/rl3 failed: no memory\. Log: .* goes on from there"
    ):
        sweep.run_sweep(profile, pool.folder, progress=False, collect_every=0)
    before = len(pool.started)
    pool.failures.clear()
    sweep.run_sweep(profile, pool.folder, progress=False)
    again = pool.started[before:]
    assert again[:3] == ["a/base", "a/random-16x2", "a/shortest-16x1"]  # this pool leaves no checkpoints
    assert again[3:] == ["a/random-16x2/rl3", "a/shortest-16x1/rl2", "a/shortest-16x1/rl3"]


@pytest.mark.parametrize("table", ["counts", "cells", "generalization_loss"])
@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_a_damaged_record_does_not_start_the_grid_again(profile, pool, table, damage):
    sweep.run_sweep(profile, pool.folder, progress=False)
    shutil.rmtree(pool.folder / "scratch")  # as in a fresh clone
    done, path = len(pool.started), pool.folder / f"{table}.parquet"
    kept = path.read_bytes()
    path.write_bytes(kept[:-20])
    if damage == "gone":
        path.unlink()
    said = rf"{table}\.parquet: missing or damaged .*; `git checkout .*results` restores .* --fresh"
    with pytest.raises(ParameterError, match=said):
        sweep.run_sweep(profile, pool.folder, progress=False)
    with pytest.raises(ParameterError, match=said):
        sweep.finished_cells(pool.folder, sweep.plan(profile))
    assert len(pool.started) == done
    path.write_bytes(kept)
    sweep.run_sweep(profile, pool.folder, progress=False)
    assert len(pool.started) == done


@pytest.mark.parametrize("text", ["[]", "{", '"5738d06175225871"'])
def test_a_damaged_note_of_a_shipped_base_is_one_sentence(profile, pool, text):
    base = sweep.plan(profile)[0]
    write_text(text, shipped_folder(pool.folder, base) / "base.json")
    with pytest.raises(ParameterError, match=r"base\.json: (missing or damaged|not a JSON object).*git checkout"):
        restore_base(pool.folder, base)


def test_a_lost_cell_is_told_in_the_pools_words(profile, pool):
    pool.failures["a/base"] = CellLostError("a process died (out of memory?) while these cells ran: a/base")
    with pytest.raises(
        sweep.SweepError, match=re.escape("a process died (out of memory?) while these cells ran: a/base. Log:")
    ):
        sweep.run_sweep(profile, pool.folder, progress=False)
