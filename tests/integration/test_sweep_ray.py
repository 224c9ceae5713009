"""A sweep on a real Ray cluster: the records of one machine, also when a node dies in the middle."""

import re
import subprocess
import time
from ast import literal_eval
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from example_cells import assert_same_records, command, tiny_profile
from ray_nodes import start_cluster

from quagmire_utils import sweep
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json
from quagmire_utils.core.settings import load_profile
from quagmire_utils.engines import cluster as clusters
from quagmire_utils.sweep import pools

pytestmark = pytest.mark.requires_ray
MEMORY = 80 * 2**20  # bytes of a node's object store


def two_nodes(**resources):
    node = {**resources, "object_store_memory": MEMORY}
    cluster = start_cluster([{**node, "include_dashboard": False}, node])
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with a core each, on this machine; they know of each other what machines would."""
    yield from two_nodes(num_cpus=1)


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


def run_and_lose_a_node(cluster, line: list[str], output: Path, after: Path, cwd: Path) -> None:
    """Take a node away, with the cell that it computes, once `after` exists; the sweep must end well without it."""
    doomed = next(iter(cluster.worker_nodes))
    deadline = time.monotonic() + 1200
    with output.open("w") as file:
        driver = subprocess.Popen(line, stdout=file, stderr=file, cwd=cwd)
    while not (lost := after.exists() and cell_process(doomed)):
        assert driver.poll() is None, output.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    cluster.remove_node(doomed, allow_graceful=False)
    assert driver.wait(timeout=1200) == 0, output.read_text()
    assert not lost.is_running() or lost.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_leaves_the_records_of_one_machine(cluster, tiny, unbroken, tmp_path):
    """Nodes begin elsewhere; the folder in which the sweep was started goes with the cells."""
    local, remote = unbroken, tmp_path / "remote"
    line = command(tiny, Path("remote"), "--ray", cluster.address)
    run_and_lose_a_node(cluster, line, tmp_path / "output", remote / "scratch/cells/a__base", cwd=tmp_path)
    assert_same_records(remote, local)
    left = [sorted(_files(folder / "scratch")) for folder in (local, remote)]
    assert left[0] == left[1]
    for name in left[0]:
        if name.endswith(".safetensors"):
            assert (local / "scratch" / name).read_bytes() == (remote / "scratch" / name).read_bytes(), name
    manifest = read_json(remote / "manifest.json")
    assert manifest["cells_finished"] == manifest["cells"] == 6
    assert re.search(r"sweep tiny: 100%.* 6/6 ", (tmp_path / "output").read_text())


def _files(folder: Path) -> list[str]:
    """All files but locks; parts of a sample store have names of their own."""
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    names = [name for name in names if not name.endswith("lock")]
    return [re.sub(r"(part|verdicts)-.*\.parquet", r"\1", name) for name in names]


@pytest.fixture(scope="module")
def gpu_cluster():
    """Two nodes that say they have two GPUs each."""
    yield from two_nodes(num_cpus=4, num_gpus=2)


@pytest.mark.slow
def test_each_cell_has_gpus_of_one_node_that_no_other_has(gpu_cluster, tmp_path, monkeypatch):
    """What Ray grants to the cells, in place of what they compute, which would need the GPUs."""
    import ray

    notes = str(tmp_path)

    def note(profile, cell, *_):
        import time
        from pathlib import Path

        began = time.time()
        time.sleep(1.5)
        context = ray.get_runtime_context()
        line = [context.get_node_id(), sorted(context.get_accelerator_ids()["GPU"]), began, time.time()]
        Path(notes, cell.id.replace("/", "__") + ".note").write_text(repr(line))

    monkeypatch.setattr(pools, "_remote_cell", note)
    profile = load_profile("single_gpu")
    waiting, ended = sweep.plan(profile)[:8], []
    with pools.RayPool(profile, tmp_path, gpu_cluster.address) as pool:
        while len(ended) < 8:
            while waiting and pool.has_room():
                pool.submit(waiting.pop(0))
            assert len(pool.running) <= 4  # places for one GPU: two on each of two nodes
            ended += pool.wait(1)
    assert {error for _, error in ended} == {None}
    granted = sorted(literal_eval(path.read_text()) for path in tmp_path.glob("*.note"))
    assert len(granted) == 8
    assert len({node for node, *_ in granted}) == 2
    assert all(len(ids) == 1 for _, ids, *_ in granted)
    for (node, ids, _, over), (other, its, start, _) in pairwise(granted):
        assert (node, ids) != (other, its) or over <= start
    # four GPUs in all are not three in one node: the sweep gives up and does not wait for ever
    monkeypatch.setattr(pools, "NO_NODE_TIMEOUT", 1.0)
    with pools.RayPool(profile.replace(compute={"gpus": 3}), tmp_path, gpu_cluster.address) as pool:
        assert not pool.has_room()
        time.sleep(1.5)
        with pytest.raises(pools.CellLostError, match=r"no node with 3 GPUs \(compute\.gpus\)"):
            pool.has_room()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere", "ray://127.0.0.1:10001"])
def test_a_cluster_that_is_not_there_is_one_sentence_within_seconds(tmp_path, address):
    started = time.monotonic()
    with pytest.raises(ParameterError, match=re.escape(address)) as raised:
        sweep.run_sweep(tiny_profile(), tmp_path, ray=address)
    assert raised.value.parameter == "ray"
    assert time.monotonic() - started < 30
    with sweep.only_sweep(tmp_path):  # the folder is free again
        pass


def test_a_node_with_other_versions_or_without_the_folder_refuses_the_cell(tmp_path):
    cell = sweep.plan(tiny_profile())[0]
    own = clusters.versions()
    assert {"python", "torch", "transformers", "numpy"} <= own.keys()
    for profile, versions, folder, said in (
        (tiny_profile(), {**own, "torch": "1.0"}, tmp_path, f"has torch {own['torch']}, not 1.0"),
        (tiny_profile(seed=5), own, tmp_path, "another version of this package"),
        (tiny_profile(), own, tmp_path / "elsewhere", "does not see the folder"),
    ):
        assert said in pools._remote_cell(profile, cell, versions, folder, tmp_path, {})
