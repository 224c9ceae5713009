"""Curation from a hub over HTTP and from files of every kind; killed, on a full disk, two at once."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from curation_files import ace, make, pool_rows, read, write
from fake_hub import COMMIT, serve

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json
from quagmire_utils.core.paths import ROOT
from quagmire_utils.data import find_dataset, load_datasets
from quagmire_utils.data.curation import load_set
from quagmire_utils.data.dataset import source_files
from quagmire_utils.data.rows import Dropped, Record

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "QUAGMIRE_DATA_DIR": ""}
COMMAND = [sys.executable, "-m", "quagmire_utils", "curate"]
KINDS = ("a.parquet", "b.jsonl", "list.json", "lines.json", "c.jsonl.gz", "list.json.gz", "stream.arrow", "file.arrow")


@pytest.mark.parametrize("shards", [1, 3, 9])
def test_a_set_does_not_depend_on_files_formats_or_order(tmp_path, shards):
    rows = pool_rows(300)
    expected = make(tmp_path / "expected", write(tmp_path / "one.jsonl", rows), n=90, validation_problems=9)
    random.Random(shards).shuffle(rows)
    for k in range(shards):
        write(tmp_path / f"in/{9 - k}/{[*KINDS, 'd.csv'][(k + shards) % 9]}", rows[k::shards])
    made = make(tmp_path / "out", tmp_path / "in", n=90, validation_problems=9)
    for key in ("sets", "counts", "not_taken", "problems", "generators"):
        assert made[key] == expected[key]
    assert made["counts"]["duplicates"] > 30
    for name in ("train.jsonl", "validation.jsonl", "removed.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def test_a_folder_as_datasets_saves_it_and_as_the_hubs_client_copies_it(tmp_path):
    import datasets

    copy = tmp_path / "copy"
    datasets.Dataset.from_list(pool_rows(90)).save_to_disk(str(copy / "sft_data.parquet"), num_shards=2)
    write(copy / ".cache/huggingface/download/x.jsonl", [{"half": 1}])
    (copy / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    (copy / "empty.jsonl").write_text("")
    assert len(read("acereason", copy)) == 103
    (copy / "empty.jsonl").unlink()
    entry = {"hub_id": str(copy), "split": "train", "question": "input", "response": "output"}
    assert len(read(load_datasets({"mine": entry})["mine"])) == 103


LINE = json.dumps(ace("q", "r")) + "\n"


def test_a_file_that_is_cut_off_or_damaged_is_a_sentence(tmp_path):
    for name, text, message in (
        *((name, None, f"{re.escape(name)}: cannot be read: .") for name in KINDS),
        ("a.jsonl", LINE + "[" * 100_000, "line 2 is not JSON"),
        ("a.jsonl", LINE + "[1]", "not a mapping of columns"),
        ("a.jsonl", LINE + '{"input": ', "is not JSON"),
    ):
        path = write(tmp_path / name, pool_rows(300))
        content = path.read_bytes()
        path.write_bytes(text.encode() if text else content[: len(content) * 2 // 3])
        with pytest.raises(ParameterError, match=message):
            read("acereason", path)


def test_rows_with_holes_are_left_out_and_counted(tmp_path):
    rows = [ace("q", "r"), ace(None, "r"), ace("q", None), ace("q", 7), ace("q", "r", category=None)]
    rows += [{"category": "math", "source": "s", "input": "only a question"}, ace("q", "x" * 5_000_000)]
    found = read("acereason", write(tmp_path / "a.jsonl", rows))
    assert found[0] == Record("q", "r", "", "DeepSeek-R1")
    assert found[1:6] == [*[Dropped("empty")] * 3, Dropped("category is None"), Dropped("no output")]
    assert len(found[6].response) == 5_000_000


def test_a_column_that_is_null_at_first_is_read(tmp_path):
    """The streaming of `datasets` refuses such a file, whose first 10 MB have no generator."""
    row = {"input": "q" * 3000, "output": "r", "category": "math", "generator": None}
    path = write(tmp_path / "a.jsonl", [row] * 4000 + [{**row, "generator": "DeepSeek-R1"}])
    assert sum(isinstance(record, Record) for record in read("llama_nemotron", path)) == 1


@pytest.fixture
def hub_set(tmp_path):
    """A repository laid out as Llama-Nemotron's, a YAML file with sets from it, and the same rows on this machine."""
    nemotron = find_dataset("llama_nemotron")
    rows = [
        {
            "input": [{"role": "user", "content": f"{nemotron.strip[0]}\n\nWhat is {i // 3}+1?"}],
            "output": "<think>" + "so " * (i % 400) + str(i),
            "category": "math",
            "generator": "Qwen-2.5-32B-Instruct, DeepSeek-R1",
        }
        for i in range(6000)
    ]
    repository = tmp_path / "hub" / nemotron.hub_id
    write(repository / "SFT/math/math_v1.jsonl", [{"wrong": "file"}])
    names = [f"SFT/math/math_v2.{k}.jsonl" for k in range(6)]
    files = [write(repository / name, rows[k::6]) for k, name in enumerate(names)]
    splits = [{"split": "math", "path": "SFT/math/*.jsonl"}]
    card = yaml.safe_dump({"configs": [{"config_name": "SFT", "data_files": splits, "default": True}]})
    (repository / "README.md").write_text(f"---\n{card}---\n")
    asked = {"source": "llama_nemotron", "n": 40, "benchmarks": [], "validation_problems": 5}
    entry = nemotron.model_dump(mode="json", exclude_defaults=True, exclude={"name", "folder"}) | {"hub_files": names}
    described = {"datasets": {"llama_nemotron": entry}, "sets": {"s": asked}}
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump(described))
    return files, make(tmp_path / "expected", repository / "SFT/math/math_v2.*", **asked)


def curate(tmp_path: Path, endpoint: str) -> subprocess.Popen:
    """Begin to make the sets of `hub_set` with this hub."""
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    folders = ["--output", str(tmp_path / "out"), "--cache", str(tmp_path / "hub_cache")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*COMMAND, str(tmp_path / "sets.yaml"), *folders], env=ENVIRONMENT | own, **pipes)


def test_a_hub_is_streamed_resumes_after_a_kill_and_forgives_an_error(tmp_path, hub_set):
    files, expected = hub_set
    scanned = lambda: list((tmp_path / "hub_cache").glob("rows-*.parquet"))  # noqa: E731
    with serve(tmp_path / "hub") as hub:
        process, deadline = curate(tmp_path, hub.endpoint), time.monotonic() + 120
        while len(scanned()) < 2 and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        process.kill()
        process.communicate()
        done = {path: path.stat().st_mtime_ns for path in scanned()}
        assert 2 <= len(done) < len(files)
        hub.failures = 2
        process = curate(tmp_path, hub.endpoint)
        said = process.communicate()[1]
        assert process.returncode == 0, said
        assert hub.failures == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    manifest = read_json(tmp_path / "out/s/manifest.json")
    assert manifest["sets"] == expected["sets"]
    assert load_set(tmp_path / "out/s") == load_set(tmp_path / "expected")
    names = [file.name for file in files]
    assert manifest["configuration"]["inputs"] == [[name, COMMIT] for name in names]
    assert hub.sent <= {"README.md", *(f"SFT/math/{name}" for name in names)}


def test_a_hub_without_the_file_or_out_of_reach_is_a_sentence(tmp_path, hub_set):
    files, _ = hub_set
    files[0].unlink()
    with serve(tmp_path / "hub") as hub:
        for endpoint in (hub.endpoint, "http://127.0.0.1:9"):
            process = curate(tmp_path, endpoint)
            shown, said = process.communicate()
            assert (process.returncode, shown) == (2, "")
            assert "Traceback" not in said
            assert re.search(r"llama_nemotron: .* gave no answer \(.*\); set QUAGMIRE_DATA_DIR", said)


def test_configurations_and_splits_are_those_of_the_card(tmp_path):
    hub = tmp_path / "hub"
    files = [write(hub / f"SFT/math/math_v{k}.jsonl", pool_rows(30)[k::3]) for k in range(3)]
    write(hub / "SFT/code/code_v1.jsonl", [{"category": "code", "input": "Sort.", "output": "def"}])
    splits = [{"split": name, "path": f"SFT/{name}/*.jsonl"} for name in ("code", "math")]
    card = yaml.safe_dump({"configs": [{"config_name": "SFT", "data_files": splits}]})
    (hub / "README.md").write_text(f"---\n{card}---\n")
    entry = {"hub_id": str(hub), "configs": "SFT", "split": "math", "question": "input", "response": "output"}
    assert sorted(file.name for file in source_files(load_datasets({"mine": entry})["mine"])) == sorted(map(str, files))
    with pytest.raises(ParameterError, match=r"split must be one of code, math.*'mth'"):
        source_files(load_datasets({"mine": {**entry, "split": "mth"}})["mine"])
    with pytest.raises(ParameterError, match=r"no column 'prompt', but 'category', 'input', 'output', 'source'"):
        read(load_datasets({"mine": {**entry, "question": "prompt"}})["mine"])


def test_a_full_disk_is_a_sentence_and_the_same_command_resumes(tmp_path):
    for k in range(4):
        write(tmp_path / f"in/{k}.jsonl", pool_rows(3000)[k::4])
    arguments = [*COMMAND, "--source", "acereason", "-p", "benchmarks=[]", "--n", "2200"]
    arguments += ["--files", str(tmp_path / "in"), "--cache", str(tmp_path / "cache"), "--output"]
    for size in (2_000, 100_000):  # full while the source is read, and while the set is written
        limit = {"preexec_fn": lambda size=size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}
        full = subprocess.run([*arguments, tmp_path / "out"], env=ENVIRONMENT, capture_output=True, text=True, **limit)
        assert full.returncode == 1
        assert "Traceback" not in full.stderr
        assert re.search("no space is left|File too large", full.stderr)
        assert not (tmp_path / "out/manifest.json").exists()
        assert not list(tmp_path.rglob("*.tmp"))
    assert len(list((tmp_path / "cache").glob("rows-*"))) == 4
    subprocess.run([*arguments, str(tmp_path / "out")], env=ENVIRONMENT, check=True, capture_output=True)
    make(tmp_path / "unbroken", tmp_path / "in", tmp_path / "cache2", n=2200)
    for name in ("train.jsonl", "removed.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["manifest.json", "removed.jsonl", "train.jsonl"]


def test_two_at_once_make_one_set(tmp_path):
    command = [*COMMAND, "--source", "acereason", "-p", "benchmarks=[]", "--n", "900"]
    command += ["--files", str(write(tmp_path / "a.jsonl", pool_rows(3000))), "--cache", str(tmp_path / "cache")]
    command += ["--output", str(tmp_path / "out")]
    both = [subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        assert process.wait() == 0, process.stderr.read()
        process.stderr.close()
    assert len(load_set(tmp_path / "out")[0]) == 900


def test_nothing_of_an_unfinished_set_is_left_in_the_next(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", pool_rows(60))
    module = sys.modules["quagmire_utils.data.curation.build"]
    monkeypatch.setattr(module, "_write_removed", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    if (child := os.fork()) == 0:
        make(tmp_path / "out", path, n=10, validation_problems=3)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    monkeypatch.undo()
    assert (tmp_path / "out.writing/validation.jsonl").is_file()
    assert not (tmp_path / "out").exists()
    make(tmp_path / "out", path, n=12)
    assert not (tmp_path / "out.writing").exists()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["manifest.json", "removed.jsonl", "train.jsonl"]
    assert [len(side) for side in load_set(tmp_path / "out")] == [12, 0]
