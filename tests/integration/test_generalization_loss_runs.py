"""The generalization loss of large sets: computations that are killed and started again, and a real Ray cluster."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from ray_nodes import start_cluster
from test_generalization_loss import TOKENIZER, TRACES, build, save

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_parquet
from quagmire_utils.data import Trace, save_traces
from quagmire_utils.engines import cluster as clusters
from quagmire_utils.evaluation.generalization_loss import generalization_loss, partial, scoring
from quagmire_utils.evaluation.generalization_loss.loss_replicas import ScorerReplica
from quagmire_utils.evaluation.generalization_loss.scoring import Scorer, load_model
from quagmire_utils.evaluation.generalization_loss.sequences import encode


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A micro Llama and its tokenizer, on the CPU."""
    return save(build("llama"), tmp_path_factory.mktemp("checkpoint") / "model")


# --- a computation that is interrupted --------------------------------------------------------------------------------

WORKER = """
import sys
from quagmire_utils.data import load_traces
from quagmire_utils.engines import EngineConfig
from quagmire_utils.evaluation.generalization_loss import generalization_loss, partial
partial.WRITE_SECONDS = 0
model, traces, file = sys.argv[1:]
config = EngineConfig(model=model, device="cpu")
generalization_loss(config, None, load_traces(traces), batch_tokens=1, partial=file, progress=False)
"""


@pytest.fixture
def scored(monkeypatch):
    """How many sequences each batch that was scored had."""
    batches: list[int] = []
    score = Scorer.score

    def counting(self, batch):
        sums = score(self, batch)
        batches.append(len(batch))
        return sums

    monkeypatch.setattr(Scorer, "score", counting)
    return batches


def test_a_killed_computation_resumes_where_it_stopped(checkpoint, scored, tmp_path):
    """SIGKILL in the middle; what is there is not done again."""
    traces = [
        Trace(f"{k}-{trace.id}", trace.problem_id, trace.question, f"{k} {trace.response}")
        for k in range(40)
        for trace in TRACES
    ]
    save_traces(tmp_path / "traces.jsonl", traces)
    file = tmp_path / "losses.parquet"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, checkpoint.model, str(tmp_path / "traces.jsonl"), str(file)], env=environment
    )
    try:
        deadline = time.monotonic() + 300
        while not file.exists():
            assert worker.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    done = len(read_parquet(file))
    assert 0 < done < len(traces), "the worker ended too early for the test to mean anything"

    arguments = {"batch_tokens": 1, "progress": False}
    resumed = generalization_loss(checkpoint, None, traces, partial=file, **arguments)
    assert sum(scored) == len(traces) - done
    unbroken = generalization_loss(checkpoint, None, traces, **arguments)
    # this process may compute with another number of threads, and so add in another order
    np.testing.assert_allclose(resumed.per_trace["nll"], unbroken.per_trace["nll"], atol=1e-5)


def test_resuming_gives_the_bits_of_an_unbroken_run(checkpoint, scored, tmp_path):
    """Stopped in the middle; whole batches are kept, so the others are the same batches as before."""
    arguments = {"batch_tokens": 200, "progress": False}
    unbroken = generalization_loss(checkpoint, None, TRACES, **arguments)
    assert len(scored) > 4
    scored.clear()
    original = Scorer.score

    def stopping(self, batch):
        if len(scored) == 3:
            raise KeyboardInterrupt
        return original(self, batch)

    file = tmp_path / "new folder" / "losses.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "score", stopping)
        with pytest.raises(KeyboardInterrupt):
            generalization_loss(checkpoint, None, TRACES, partial=file, **arguments)
    done = sum(scored)
    assert 0 < done < len(TRACES)
    scored.clear()
    resumed = generalization_loss(checkpoint, None, TRACES, partial=file, **arguments)
    assert sum(scored) == len(TRACES) - done
    for name in ("per_trace", "by_position", "by_length"):
        pd.testing.assert_frame_equal(getattr(resumed, name), getattr(unbroken, name), check_exact=True)
    assert (resumed.nll, resumed.standard_error) == (unbroken.nll, unbroken.standard_error)

    # where all is known no model is loaded; of a larger set only the new traces are scored
    scored.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "load_model", lambda config: pytest.fail("loaded a model for nothing"))
        again = generalization_loss(checkpoint, None, TRACES[::-1], partial=file, **arguments)
    assert list(again.per_trace["nll"]) == list(unbroken.per_trace["nll"])[::-1]
    more = [*TRACES, Trace("new", "p", "3+3?", "6"), Trace("twice", "p", "3+3?", "6")]
    loss = generalization_loss(checkpoint, None, more, partial=file, **arguments)
    assert sum(scored) == 1
    assert loss.per_trace["nll"].iloc[-1] == loss.per_trace["nll"].iloc[-2]
    assert list(loss.per_trace["nll"])[: len(TRACES)] == list(unbroken.per_trace["nll"])


def test_partial_losses_are_never_mixed(checkpoint, tmp_path):
    file = tmp_path / "losses.parquet"
    arguments = {"progress": False, "partial": file}
    plain = generalization_loss(checkpoint.replace(template="plain"), None, TRACES[:5], **arguments)
    chat = generalization_loss(checkpoint.replace(template="chat"), None, TRACES[:5], **arguments)
    assert plain.nll != chat.nll  # another prompt makes another trace
    with pytest.raises(ParameterError, match=r"losses\.parquet are of another dtype; name another file"):
        generalization_loss(checkpoint.replace(dtype="bfloat16"), None, TRACES[:5], **arguments)
    with pytest.raises(ParameterError, match=r"losses\.parquet are of another model; name another file"):
        generalization_loss(save(build("qwen3"), tmp_path / "other"), None, TRACES[:5], **arguments)
    for content in (b"", b"not parquet"):
        (tmp_path / "text").write_bytes(content)
        with pytest.raises(ParameterError, match=r"text is damaged, or not a file of losses"):
            generalization_loss(checkpoint, None, TRACES[:5], **{**arguments, "partial": tmp_path / "text"})
    whole = bytearray(file.read_bytes())
    whole[100] ^= 255  # in the first column's page
    file.write_bytes(whole)
    with pytest.raises(ParameterError, match=r"losses\.parquet is damaged"):
        generalization_loss(checkpoint, None, TRACES[:5], **arguments)


# --- a cluster --------------------------------------------------------------------------------------------------------


def test_a_replica_scores_as_one_machine_does(checkpoint):
    sequences = encode(TRACES, TOKENIZER, "auto", False)
    settings = (checkpoint, 1024, sequences[0])
    replica = ScorerReplica(checkpoint.model, None, clusters.versions(ScorerReplica.packages), settings)
    replica.load()
    own = Scorer(load_model(checkpoint), 1024, sequences[0])
    np.testing.assert_array_equal(replica.score(sequences[:5]), own.score(sequences[:5]))


NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with a core each, and one without that starts them."""
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]' -c constraints.txt")
    cluster = start_cluster([{**NODE, "num_cpus": 0, "include_dashboard": False}, NODE, NODE])
    yield cluster
    cluster.shutdown()


def is_scoring(node) -> bool:
    """Whether `node` scores a batch now: Ray puts the method's name into the process's title."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in raylet.children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith("ray::ScorerReplica.score"):
                return True
        except psutil.Error:
            continue
    return False


@pytest.mark.slow
def test_a_node_that_dies_loses_only_its_batch(checkpoint, cluster, tmp_path, monkeypatch):
    """Two replicas, one killed with its node in the middle; then a single one; then no cluster: the same losses."""
    traces = [
        Trace(f"{k}-{trace.id}", trace.problem_id, trace.question, f"{k} {trace.response * 8}")
        for k in range(20)
        for trace in TRACES
    ]
    arguments = {"batch_tokens": 2048, "progress": False}
    monkeypatch.setattr(partial, "WRITE_SECONDS", 0)
    file = tmp_path / "losses.parquet"
    known: list[int] = []  # traces, when the node died

    def kill():
        while not known:
            time.sleep(0.002)
            for node in list(cluster.worker_nodes) if file.exists() else []:
                if is_scoring(node):
                    known.append(len(read_parquet(file)))
                    cluster.remove_node(node, allow_graceful=False)
                    break

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with pytest.warns(UserWarning, match="ray: a replica was lost"):
        broken = generalization_loss(checkpoint.replace(ray=cluster.address), None, traces, partial=file, **arguments)
    thread.join(timeout=60)
    assert 0 < known[0] < len(traces), "the node died too late for the test to mean anything"
    monkeypatch.chdir(Path(checkpoint.model).parent)  # means nothing to the node
    there = checkpoint.replace(model="model", ray=cluster.address, replicas=1)
    one = generalization_loss(there, None, traces, **arguments)
    for name in ("per_trace", "by_position", "by_length"):
        pd.testing.assert_frame_equal(getattr(broken, name), getattr(one, name), check_exact=True)
    here = generalization_loss(checkpoint, None, traces, **arguments)
    np.testing.assert_allclose(one.per_trace["nll"], here.per_trace["nll"], atol=1e-5)
    assert one.standard_error == pytest.approx(here.standard_error, rel=1e-5)
