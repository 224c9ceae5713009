"""A run that was really killed, or met a full disk or a torn write, ends with the records of an unbroken one."""

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

from quagmire_utils.evaluation import store as samples
from quagmire_utils.evaluation.store import SampleStore

KILLS = 10
TOTAL = len(PROBLEMS) * SAMPLES


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


class Worker:
    def __init__(self, model):
        command = [sys.executable, crash_worker.__file__, str(model)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def start(self, folder) -> int:
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> int:
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


def _temporaries(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if name.endswith(".tmp")} if folder.is_dir() else set()


def _kill(process: int, folder: Path, rng: np.random.Generator, duration: float) -> None:
    """SIGKILL a life at a random moment: anywhere, while it writes a file or while it grades, unless it has ended."""
    old, wait = _temporaries(folder), rng.uniform(0, 0.3) * duration
    end = time.perf_counter() + wait
    moments = {
        "anywhere": lambda: time.perf_counter() > end,
        "writing": lambda: time.perf_counter() > end and _temporaries(folder) - old,
        "grading": lambda: len(SampleStore(folder).parts()) == CHUNKS and (time.sleep(wait) or True),
    }
    moment = moments[rng.choice(list(moments))]
    while _alive(process) and not moment():
        time.sleep(0.0002)
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def test_kills_at_random_moments_leave_the_records_of_an_unbroken_run(worker, unbroken, tmp_path):
    expected, duration, whole = unbroken
    rng = np.random.default_rng(0)
    kills: Counter[str] = Counter()
    for run in range(100):
        folder, held = tmp_path / str(run), 0
        for life in range(16):
            child, old = worker.start(folder), _temporaries(folder)
            if life < 14:  # then let it finish
                _kill(child, folder, rng, duration)
            status = worker.end()
            if status == 0:
                break
            assert status == -signal.SIGKILL
            now = len(SampleStore(folder).read(["verdict"]))
            assert now >= held, "a kill lost samples that were stored"
            held = now
            kills["sampling" if held < TOTAL else "grading"] += 1
            kills["writing"] += bool(_temporaries(folder) - old)
        pd.testing.assert_frame_equal(SampleStore(folder).read(), expected)
        pd.testing.assert_frame_equal(SampleStore(folder).counts(), SampleStore(whole).counts())
        assert {p.name for p in SampleStore(folder).parts()} == {p.name for p in SampleStore(whole).parts()}
        if kills["sampling"] + kills["grading"] >= KILLS and len(+kills) == 3:
            break
    assert kills["sampling"] + kills["grading"] >= KILLS


def test_a_second_process_is_refused_until_the_first_ends(model, unbroken, tmp_path, monkeypatch, refused):
    engine = load(model)
    monkeypatch.setattr(samples, "LOCK_SECONDS", 0.1)
    with FileLock(tmp_path / ".drawing.lock"), refused("store"):
        live(engine, tmp_path)
    live(engine, tmp_path)
    pd.testing.assert_frame_equal(SampleStore(tmp_path).read(), unbroken[0])


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
    how = {"env": {**os.environ, "PYTHONPATH": path}, "capture_output": True, "text": True}
    done = subprocess.run([*prefix, "sh", "-c", mount], **how, check=False)
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


def test_a_torn_part_is_drawn_and_graded_again(worker, unbroken, tmp_path):
    folder = shutil.copytree(unbroken[2], tmp_path / "store")
    torn = SampleStore(folder).parts()[5]
    rows = len(pq.read_table(torn))
    _zero_last_row_group(torn)
    with pytest.warns(UserWarning, match="set aside"):
        assert len(SampleStore(folder).existing()) == TOTAL - rows
    worker.start(folder)
    assert worker.end() == 0
    pd.testing.assert_frame_equal(SampleStore(folder).read(), unbroken[0])
