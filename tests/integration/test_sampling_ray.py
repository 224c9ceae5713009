"""Sampling on a real Ray cluster: the samples of one machine, also when a node dies in the middle."""

import threading
import time
import warnings
from pathlib import Path

import pandas as pd
import psutil
import pytest
from crash_worker import draw, load, save_model
from ray_nodes import start_cluster

from quagmire_utils.engines import EngineConfig
from quagmire_utils.evaluation.store import SampleStore

pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]' -c constraints.txt")

MEMORY = 80 * 2**20  # bytes of a node's object store
NODE = {"num_cpus": 1, "object_store_memory": MEMORY}


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    model = save_model(tmp_path_factory.mktemp("checkpoint") / "model")
    return EngineConfig(engine="transformers", model=model, device="cpu")


@pytest.fixture(scope="module")
def single(spec, tmp_path_factory):
    """The samples of one machine."""
    return draw(load(spec.model), tmp_path_factory.mktemp("single") / "store")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with a core each, and one without that starts them; they know of each other what machines would."""
    cluster = start_cluster([{**NODE, "num_cpus": 0, "include_dashboard": False}, NODE, NODE])
    yield cluster
    cluster.shutdown()


def _draws(process: psutil.Process) -> bool:
    """Whether it draws a chunk now: Ray puts the method's name into the title of the process."""
    try:
        return " ".join(process.cmdline()).startswith("ray::EngineReplica.draw")
    except psutil.Error:
        return False


def _drawing(node) -> psutil.Process | None:
    """The process on `node` that draws a chunk now."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return next((process for process in raylet.children(recursive=True) if _draws(process)), None)


def _records(store: SampleStore) -> tuple[pd.DataFrame, pd.DataFrame, dict, set[str]]:
    return store.read(), store.prompts(), store.origin, {part.name for part in store.parts()}


@pytest.mark.slow
def test_a_node_that_dies_loses_only_its_batch(spec, single, cluster, tmp_path, monkeypatch):
    """The checkpoint's path is relative, and the nodes were started elsewhere."""
    monkeypatch.chdir(Path(spec.model).parent)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)  # what "auto" means on a machine with several clusters
    store = SampleStore(tmp_path / "store")
    stored: dict[str, int] = {}
    lost: list[psutil.Process] = []

    def kill():
        while not lost:
            time.sleep(0.002)
            for node in list(cluster.worker_nodes) if len(store.parts()) >= 2 else []:
                process = _drawing(node)
                if process is None:
                    continue
                process.suspend()  # so that it can't finish before its node is gone
                if not _draws(process):
                    process.resume()
                    continue
                lost.append(process)
                stored.update({part.name: part.stat().st_mtime_ns for part in store.parts()})
                cluster.remove_node(node, allow_graceful=False)
                process.kill()
                break

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw(spec.replace(model="model", ray="auto"), store)
    thread.join(timeout=60)
    assert not lost[0].is_running() or lost[0].status() == psutil.STATUS_ZOMBIE
    assert len(stored) < len(single.parts()), "the node died too late for the test to mean anything"
    assert sum("a replica was lost, and its samples" in str(each.message) for each in caught) == 1
    assert {part.name: part.stat().st_mtime_ns for part in store.parts() if part.name in stored} == stored
    for mine, theirs in zip(_records(store)[:2], _records(single)[:2], strict=True):
        pd.testing.assert_frame_equal(mine, theirs)
    assert _records(store)[2:] == _records(single)[2:]


@pytest.mark.slow
def test_what_no_replica_can_do_is_one_sentence(spec, cluster, tmp_path, refused):
    import ray

    with refused("device"):
        draw(spec.replace(device="cuda", ray=cluster.address), tmp_path / "a")
    assert not ray.is_initialized()  # a connection of its own
    assert not (tmp_path / "a").exists()
