"""A run that was stopped in any way and is started again ends with the records of an unbroken one.

Answers two of the pains that users of other tools have: a crash loses everything that was sampled, and a torn last
write can't be read. Processes are really killed, the disk is really full.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import crash_worker
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from crash_worker import CHUNKS, PROBLEMS, SAMPLES, live, load, save_model
from filelock import FileLock

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.evaluation.store import SampleStore, samples

pytest.importorskip("torch", reason="crash safety is tested with the transformers engine")
pytest.importorskip("transformers", reason="crash safety is tested with the transformers engine")

KILLS = 10
TOTAL = len(PROBLEMS) * SAMPLES


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


class Worker:
    """A `crash_worker` process."""

    def __init__(self, model):
        command = [sys.executable, crash_worker.__file__, str(model)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def start(self, folder, **order) -> int:
        """Begin a life; the child's process id."""
        self.process.stdin.write(json.dumps({"folder": str(folder), **order}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> int:
        """Wait for the child; its exit status, negative for a signal."""
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def worker(model):
    worker = Worker(model)
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def unbroken(worker, tmp_path_factory):
    """The records of a run that nothing disturbs, and how long it takes."""
    folder = tmp_path_factory.mktemp("unbroken") / "store"
    started = time.perf_counter()
    worker.start(folder)
    assert worker.end() == 0
    frame = SampleStore(folder).read()
    assert len(frame) == TOTAL
    assert set(frame["verdict"]) == {"correct", "wrong"}
    assert len(SampleStore(folder).parts()) == CHUNKS
    return frame, time.perf_counter() - started, folder


def _alive(process: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


def _kill_when(process: int, moment) -> None:
    """SIGKILL as soon as `moment()` is true, unless the process has ended by then."""
    while _alive(process) and not moment():
        time.sleep(0.0002)
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _temporaries(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".tmp")] if folder.is_dir() else []


def test_kills_at_random_moments_leave_the_records_of_an_unbroken_run(worker, unbroken, tmp_path):
    """While sampling, while grading, while writing a file: nothing is lost that was stored, nothing is there twice."""
    expected, duration, whole = unbroken
    rng = np.random.default_rng(0)
    kills: Counter[str] = Counter()
    for run in range(1000):
        folder = tmp_path / str(run)
        held, lives = 0, 0
        while True:
            child = worker.start(folder)
            lives += 1
            old = set(_temporaries(folder))
            kind = rng.choice(["moment", "write", "grading"])
            if lives > 14:  # let it finish
                pass
            elif kind == "moment":
                end = time.perf_counter() + rng.uniform(0, 0.3) * duration
                _kill_when(child, lambda end=end: time.perf_counter() > end)
            elif kind == "write":
                after = time.perf_counter() + rng.uniform(0, 0.3) * duration
                _kill_when(
                    child, lambda after=after, old=old, folder=folder: time.perf_counter() > after
                    and set(_temporaries(folder)) - old
                )  # fmt: skip
            else:
                after = rng.uniform(0, 0.3) * duration
                _kill_when(child, lambda folder=folder: len(SampleStore(folder).parts()) == CHUNKS)
                with suppress(ProcessLookupError):
                    time.sleep(after)
                    os.kill(child, signal.SIGKILL)
            status = worker.end()
            if status == 0:
                break
            assert status == -signal.SIGKILL
            now = SampleStore(folder).read(["verdict"])
            assert len(now) >= held, "a kill lost samples that were stored"
            held = len(now)
            kills["sampling" if held < TOTAL else "grading"] += 1
            kills["writing"] += bool(set(_temporaries(folder)) - old)
        pd.testing.assert_frame_equal(SampleStore(folder).read(), expected)
        pd.testing.assert_frame_equal(SampleStore(folder).counts(), SampleStore(whole).counts())
        assert {p.name for p in SampleStore(folder).parts()} == {p.name for p in SampleStore(whole).parts()}
        if kills["sampling"] + kills["grading"] >= KILLS and min(kills[k] for k in ("sampling", "grading", "writing")):
            break
    print(dict(kills))
    assert kills["sampling"] + kills["grading"] >= KILLS


def test_a_second_process_is_refused_until_the_first_ends(model, unbroken, tmp_path):
    engine = load(model)
    with FileLock(tmp_path / ".drawing.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "LOCK_SECONDS", 0.1)
        with pytest.raises(ParameterError, match="another process draws into") as raised:
            live(engine, tmp_path)
    assert raised.value.parameter == "store"
    live(engine, tmp_path)
    pd.testing.assert_frame_equal(SampleStore(tmp_path).read(), unbroken[0])


# --- no space left ----------------------------------------------------------------------------------------------------


def _namespace() -> list[str] | None:
    """What lets a command mount a file system of its own, if anything does; no privilege is needed for it on Linux."""
    for prefix in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        test = [*prefix, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        if shutil.which("unshare") and subprocess.run(test, capture_output=True, check=False).returncode == 0:
            return prefix
    return None


def test_a_full_disk_is_one_sentence_and_costs_nothing_that_was_stored(model, unbroken, tmp_path):
    prefix = _namespace()
    if prefix is None:
        pytest.skip("no file system can be mounted here, not even in a namespace of its own")
    disk, out = tmp_path / "disk", tmp_path / "records.pickle"
    disk.mkdir()
    code = f"import crash_worker; crash_worker.fill_disk({str(model)!r}, {str(disk)!r}, {str(out)!r})"
    mount = f'mount -t tmpfs -o size=4m tmpfs "{disk}" && exec "{sys.executable}" -c "{code}"'
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    done = subprocess.run(
        [*prefix, "sh", "-c", mount],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *failures, temporaries = [json.loads(line) for line in done.stdout.splitlines()]
    assert [work for work, *_ in failures] == ["sampling", "grading"]
    for _, number, sentence, before, after in failures:
        assert number == errno.ENOSPC
        assert "what was stored before is safe: free some space and start again" in sentence
        assert after >= before
    assert 0 < failures[0][4] < TOTAL  # it was full in the middle
    assert temporaries == []
    pd.testing.assert_frame_equal(pd.read_pickle(out), unbroken[0])


# --- torn writes ------------------------------------------------------------------------------------------------------


def _zero_last_row_group(part: Path) -> None:
    """What a machine leaves that loses power before the last pages reach the disk: their length, not their bytes."""
    table = pq.read_table(part)
    pq.write_table(table, part, compression="zstd", write_page_checksum=True, row_group_size=len(table) // 3)
    group = pq.read_metadata(part).row_group(pq.read_metadata(part).num_row_groups - 1)
    columns = [group.column(i) for i in range(group.num_columns)]
    start = min(c.dictionary_page_offset or c.data_page_offset for c in columns)
    data = bytearray(part.read_bytes())
    end = start + sum(column.total_compressed_size for column in columns)
    data[start:end] = bytes(end - start)
    part.write_bytes(data)


@pytest.mark.parametrize(
    "tear",
    [
        _zero_last_row_group,
        lambda part: part.write_bytes(part.read_bytes()[: part.stat().st_size * 2 // 3]),
        lambda part: part.write_bytes(b""),
        lambda part: part.write_bytes(bytes(part.stat().st_size)),
    ],
    ids=["zeros in the last row group", "cut off", "empty", "all zeros"],
)
def test_a_torn_part_is_drawn_and_graded_again(worker, unbroken, tmp_path, tear):
    folder = tmp_path / "store"
    shutil.copytree(unbroken[2], folder)
    torn = SampleStore(folder).parts()[5]
    rows = len(pq.read_table(torn))
    tear(torn)
    with pytest.warns(UserWarning, match="set aside"):
        assert len(SampleStore(folder).existing()) == TOTAL - rows
    worker.start(folder)
    assert worker.end() == 0
    pd.testing.assert_frame_equal(SampleStore(folder).read(), unbroken[0])


def test_an_error_of_the_engine_keeps_what_was_stored(model, unbroken, tmp_path):
    """What a streaming engine had finished when it failed (a server that goes away) is stored."""
    engine = crash_worker.load(model)

    class Failing:
        """The engine as one that streams, and stops working now and then."""

        answered, streams = 0, True

        def __getattr__(self, name):
            return getattr(engine, name)

        def stream(self, requests, params):
            for i, request in enumerate(requests):
                self.answered += 1
                if self.answered % 7 == 0:
                    raise ConnectionError("the server has gone away")
                yield i, engine.generate([request], params)[0]

    failing, held = Failing(), 0
    for _ in range(100):
        with suppress(ConnectionError):
            live(failing, tmp_path, chunk_samples=256)
            break
        now = len(SampleStore(tmp_path).existing())
        assert now > held, "an answer that was finished is lost"
        held = now
    frame = SampleStore(tmp_path).read()
    keys = ["benchmark", "problem", "index"]
    pd.testing.assert_frame_equal(frame[keys], unbroken[0][keys])
    # the batches were others: the texts are the same but for rounding
    assert (frame["text"] == unbroken[0]["text"]).mean() > 0.99
