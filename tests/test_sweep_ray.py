"""A sweep on a real Ray cluster: the records of one machine, also when a node dies in the middle."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from ray_nodes import start_cluster
from test_sweep import TINY, records

from quagmire_utils import store, sweep
from quagmire_utils.config import ParameterError, load_profile
from quagmire_utils.sweep import ray_pool
from quagmire_utils.sweep.grid import cell_folder, digest_path, log_path, model_folder
from quagmire_utils.sweep.pools import CellLostError

pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]' -c constraints.txt")
MEMORY = 80 * 2**20  # bytes of a node's object store


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with a core each, on this machine; they know of each other what machines would."""
    node = {"num_cpus": 1, "object_store_memory": MEMORY}
    cluster = start_cluster([{**node, "include_dashboard": False}, node])
    yield cluster
    cluster.shutdown()


@pytest.fixture
def connection(cluster):
    import ray

    ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
    yield
    ray.shutdown()


def cell_process(node) -> psutil.Process | None:
    """The process on `node` that computes a cell now: Ray puts the task's name into its title."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in raylet.children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith("ray::a/"):
                return process
        except psutil.Error:
            continue
    return None


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_leaves_the_records_of_one_machine(tiny, cluster, tmp_path):
    command = [sys.executable, "-m", "quagmire_utils.sweep", str(tiny), "--results"]
    subprocess.run([*command, str(tmp_path / "local")], check=True, capture_output=True)
    remote = tmp_path / "remote"
    with (tmp_path / "output").open("w") as output:
        driver = subprocess.Popen([*command, str(remote), "--ray", cluster.address], stdout=output, stderr=output)
        doomed = next(iter(cluster.worker_nodes))
        deadline = time.monotonic() + 1200
        while not ((remote / "scratch/cells/a__base").exists() and cell_process(doomed)):
            assert driver.poll() is None, (tmp_path / "output").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        lost = cell_process(doomed)
        cluster.remove_node(doomed, allow_graceful=False)
        assert driver.wait(timeout=1200) == 0, (tmp_path / "output").read_text()
    assert not lost.is_running() or lost.status() == psutil.STATUS_ZOMBIE
    logs = [path.read_text() for path in (remote / "scratch/logs").iterdir()]
    assert sum("lost, and started again" in log for log in logs) == 1
    for name, frame in records(tmp_path / "local").items():
        pd.testing.assert_frame_equal(records(remote)[name], frame, obj=name)
    # all that a local sweep leaves is there, and nothing else: the next one goes on from it
    left = {folder: sorted(_files(tmp_path / folder / "scratch")) for folder in ("local", "remote")}
    assert left["remote"] == left["local"]
    for name in left["local"]:
        if name.endswith(".safetensors"):
            contents = [(tmp_path / folder / "scratch" / name).read_bytes() for folder in ("local", "remote")]
            assert contents[0] == contents[1], name
    manifest = store.read_json(remote / "manifest.json")
    assert manifest["cells_finished"] == manifest["cells"] == 6
    assert re.search(r"sweep tiny: 100%.*6 of 6 cells", (tmp_path / "output").read_text())


def _files(folder: Path) -> list[str]:
    """All files but the lock; parts of a sample store have names of their own."""
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    return [re.sub(r"part-.*\.parquet", "part", name) for name in names if name != "lock"]


@pytest.mark.slow
def test_a_cell_that_takes_its_process_along_is_given_up_after_some_attempts(tiny, cluster, tmp_path, monkeypatch):
    import ray

    def die(*_: object) -> None:
        os._exit(1)  # what a process does that the system kills

    profile = load_profile(tiny)
    monkeypatch.setattr(ray_pool, "_remote_cell", die)
    cell = sweep.plan(profile)[0]
    with ray_pool.RayPool(profile, tmp_path, "auto") as pool:
        pool.submit(cell)
        ended = []
        while not ended:
            ended = pool.wait(1)
    assert not ray.is_initialized()  # a connection of its own
    assert [each for each, _ in ended] == [cell]
    assert isinstance(ended[0][1], CellLostError)
    assert f"a/base was lost {ray_pool.ATTEMPTS} times" in str(ended[0][1])
    assert log_path(tmp_path, cell).read_text().count("started again") == ray_pool.ATTEMPTS - 1


@pytest.mark.slow
def test_a_failing_cell_brings_its_log_and_leaves_the_cluster_free(tiny, cluster, connection, tmp_path):
    import ray

    profile = load_profile(tiny)
    candidate = next(cell for cell in sweep.plan(profile) if cell.kind == "sft")
    with ray_pool.RayPool(profile, tmp_path, cluster.address) as pool:
        pool.submit(candidate)  # without its base's checkpoint
        ended = []
        while not ended:
            ended = pool.wait(1)
        assert not pool.running
    assert ended[0][1] is not None
    assert "Traceback" in log_path(tmp_path, candidate).read_text()
    assert not cell_folder(tmp_path, candidate).exists()
    assert ray.is_initialized()  # a connection that was there before stays


# --- without a cluster ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:9", "ray: no cluster answers at 127.0.0.1:9; start one with `ray start --head"),
        ("nowhere", "ray: no cluster answers at nowhere"),
        ("ray://127.0.0.1:10001", "ray: ray://127.0.0.1:10001 is no address"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_sentence_within_seconds(tiny, tmp_path, address, sentence):
    started = time.monotonic()
    with pytest.raises(ParameterError, match=re.escape(sentence)):
        sweep.run_sweep(load_profile(tiny), tmp_path, ray=address, progress=False)
    assert time.monotonic() - started < 30
    with sweep.only_sweep(tmp_path):  # the folder is free again
        pass


def test_a_node_with_other_versions_refuses_the_cell(tiny, tmp_path):
    import pickle

    profile = load_profile(tiny)
    cell = sweep.plan(profile)[0]
    own = ray_pool._versions()
    assert {"python", "torch", "transformers", "numpy"} <= own.keys()
    files, failure = ray_pool._remote_cell(pickle.dumps((profile, cell)), {}, {**own, "torch": "1.0"}, None, None)
    assert (files, f"has torch {own['torch']}, not 1.0" in failure) == ({}, True)
    other = pickle.dumps((load_profile(tiny, {"seed": 5}), cell))
    files, failure = ray_pool._remote_cell(other, {}, own, None, None)
    assert (files, "another version of this package" in failure) == ({}, True)


def test_what_arrives_replaces_what_was_there(tiny, tmp_path):
    """Also when a kill left half of an earlier arrival; and nothing counts as measured before all of it is there."""
    profile = load_profile(tiny)
    cell = next(cell for cell in sweep.plan(profile) if cell.kind == "sft")
    node, here = tmp_path / "node", tmp_path / "here"
    for folder, text in ((node, "new"), (here, "old")):
        for place in (cell_folder(folder, cell) / "cell.json", model_folder(folder, cell.id) / f"{text}.bin"):
            place.parent.mkdir(parents=True)
            place.write_text(text)
        store.write_text(cell.digest, digest_path(folder, cell))
    log_path(node, cell).parent.mkdir()
    log_path(node, cell).write_text("printed\n")
    half = here / "scratch/arrived" / "a__random-16x2" / "scratch/models/a__random-16x2/half.bin"
    half.parent.mkdir(parents=True)
    half.touch()
    for _ in range(2):
        ray_pool._put_files(here, cell, ray_pool._read_files(node, [node / "scratch"]))
        assert (cell_folder(here, cell) / "cell.json").read_text() == "new"
        assert [file.name for file in model_folder(here, cell.id).iterdir()] == ["new.bin"]
        assert digest_path(here, cell).read_text() == cell.digest
        assert not list((here / "scratch/arrived").iterdir())
    assert log_path(here, cell).read_text() == "printed\nprinted\n"
