"""The store: any text survives, nothing half-written is ever read, and samples of two origins never mix."""

import json
import os
import platform
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quagmire_utils.config import ParameterError
from quagmire_utils.store import (
    COLUMNS,
    COUNTS,
    SampleStore,
    digest,
    files,
    git_state,
    manifest,
    provenance,
    read_json,
    read_parquet,
    write_json,
    write_parquet,
)

TEXTS = st.text(st.characters())  # every code point, NUL and lone surrogates included
HOSTILE = [
    "",
    "\0",
    "a\0b",
    "\ud800",
    "\udfff\ud800x",
    "\U0010ffff",
    "\U0010ffff\ud812\U0010ffff\U0010ffff",
    "é\r\n\u2028",
]


def _frame(problem="p", indices=range(3), benchmark="b", text="\\boxed{1}", **columns):
    texts = [text] * len(indices) if isinstance(text, str) else text
    frame = pd.DataFrame({"benchmark": benchmark, "problem": problem, "index": list(indices)})
    frame["text"] = pd.Series(texts, dtype=object)
    return frame.assign(**{"tokens": 5, "finish_reason": "stop", **columns})


# --- files ------------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | TEXTS, max_size=8))
@example(HOSTILE)
@example([None, "\ud800", None])
def test_any_text_survives_parquet(tmp_path_factory, texts):
    path = tmp_path_factory.getbasetemp() / "texts.parquet"
    frame = pd.DataFrame({"text": pd.Series(texts, dtype=object), "i": range(len(texts))})
    write_parquet(frame, path)
    back = read_parquet(path)
    assert [None if pd.isna(text) else text for text in back["text"]] == texts
    assert back["i"].tolist() == frame["i"].tolist()


def test_frames_come_back_as_they_were(tmp_path):
    frame = pd.DataFrame(
        {"a": [1, 2], "b": [0.5, np.nan], "c": ["x", None], "d": [True, False], "e": [[1, 2], []], "f": [10**15, -1]}
    )
    write_parquet(frame, tmp_path / "f.parquet")
    back = read_parquet(tmp_path / "f.parquet")
    pd.testing.assert_frame_equal(back.drop(columns="e"), frame.drop(columns="e"))
    assert [list(row) for row in back["e"]] == [[1, 2], []]
    assert list(read_parquet(tmp_path / "f.parquet", ["d", "a"]).columns) == ["d", "a"]
    write_parquet(frame.iloc[:0], tmp_path / "f.parquet")
    assert len(read_parquet(tmp_path / "f.parquet")) == 0


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "f.json"
    write_json({"a": 1}, path)
    with pytest.raises(ValueError, match="Circular"):
        write_json((loop := []).append(loop) or loop, path)
    with suppress(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["f.json"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~files._umask()


def test_json_takes_numpy_and_surrogates(tmp_path):
    write_json({"n": np.int64(3), "x": np.array([1.5]), "p": Path("a"), "s": "\ud800"}, tmp_path / "f.json")
    assert read_json(tmp_path / "f.json") == {"n": 3, "x": [1.5], "p": "a", "s": "\ud800"}


def test_digest():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": (1, 2), "a": np.int64(1)}) == "8baa73198470c7bb"
    assert digest({"a": 1}) != digest({"a": 2})


def test_manifest_says_where_and_not_who():
    made = manifest({"n": 3}, seeds={"sampling": 7}, wall_seconds=1.234, tokens=5)
    assert made["configuration_digest"] == digest({"n": 3})
    assert made["seeds"] == {"sampling": 7}
    assert made["wall_seconds"] == 1.2
    assert made["tokens"] == 5
    assert made["packages"]["numpy"] == np.__version__
    assert made["hardware"]["cores"] >= 1
    assert made["hardware"]["memory_gib"] > 0.1
    text = json.dumps(made)
    for secret in (platform.node(), str(Path.home()), str(Path(provenance.__file__).parent)):
        assert secret not in text


def test_git_state_is_that_of_this_repository(monkeypatch, tmp_path):
    root = Path(provenance.__file__).resolve().parents[2]
    if (root / ".git").exists():
        status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
        assert git_state()["dirty"] == bool(status.stdout.strip())
    # installed inside the repository of somebody else
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    module = tmp_path / "site-packages" / "quagmire_utils" / "store" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(module))
    (tmp_path / "site-packages").mkdir()
    assert git_state() == {"commit": None, "dirty": None}


# --- the store --------------------------------------------------------------------------------------------------------


def test_samples_come_back_in_order(tmp_path):
    store = SampleStore(tmp_path / "s")
    assert store.read().columns.tolist() == COLUMNS
    assert store.counts().columns.tolist() == COUNTS
    assert len(store.existing()) == 0
    store.append(_frame("q", range(8), text=HOSTILE))
    store.append(_frame("p", [2, 1, 0]))
    store.append(_frame("p", [3], benchmark="a", text="x\ud800"))
    frame = store.read()
    assert list(zip(frame["benchmark"], frame["problem"], frame["index"], strict=True)) == [
        *(("a", "p", 3), ("b", "p", 0), ("b", "p", 1), ("b", "p", 2)),
        *(("b", "q", i) for i in range(8)),
    ]
    assert frame["text"].tolist() == ["x\ud800", *["\\boxed{1}"] * 3, *HOSTILE]
    assert frame["verdict"].isna().all()
    assert store.read(["tokens", "benchmark"]).columns.tolist() == ["tokens", "benchmark"]
    assert len(store.existing()) == 12
    with pytest.raises(ParameterError, match="has no length; it has benchmark"):
        store.read(["length"])


def test_no_sample_is_there_twice(tmp_path):
    store = SampleStore(tmp_path)
    with pytest.raises(ParameterError, match="b problem p index 1 occurs twice"):
        store.append(_frame(indices=[1, 2, 1]))
    with pytest.raises(ParameterError, match="need the columns text, tokens"):
        store.append(_frame().drop(columns=["text", "tokens"]))
    assert not store.parts()
    store.append(_frame(indices=[0, 1]))
    store.append(_frame(indices=[1, 0]))  # the same chunk, by another process: the same file
    assert len(store.parts()) == 1
    store.append(_frame(indices=[1, 2]))
    with pytest.warns(UserWarning, match="1 samples are there twice"):
        assert store.read()["index"].tolist() == [0, 1, 2]
    assert store.existing()["index"].tolist() == [0, 1, 2]


def test_unreadable_parts_are_set_aside(tmp_path):
    store = SampleStore(tmp_path)
    store.append(_frame(indices=[0]))
    good = store.parts()[0].read_bytes()
    middle = len(good) // 2
    (tmp_path / "part-aaa.parquet").write_bytes(b"")
    (tmp_path / "part-bbb.parquet").write_bytes(good[:middle])
    (tmp_path / "part-ccc.parquet").write_bytes(good[middle:])
    write_parquet(pd.DataFrame({"benchmark": ["b"]}), tmp_path / "part-ddd.parquet")
    (tmp_path / ".part-eee.parquet.x1.tmp").write_bytes(good[:middle])  # what a kill leaves behind
    with pytest.warns(UserWarning, match="set aside") as caught:
        assert store.read()["index"].tolist() == [0]
    assert len(caught) == 4
    assert len(store.parts()) == 1
    assert sorted(p.name for p in tmp_path.glob("*.damaged")) == [f"part-{c * 3}.parquet.damaged" for c in "abcd"]
    assert len(store.read()) == 1  # and no more warnings


def test_a_flipped_byte_is_never_read_as_data(tmp_path):
    store = SampleStore(tmp_path)
    texts = [f"answer {i} is \\boxed{{{i * 7919 % 1000}}}" for i in range(50)]
    part = store.append(_frame(indices=range(50), text=texts))
    good, whole = part.read_bytes(), store.read()
    rng = np.random.default_rng(0)
    noticed = 0
    for position in rng.choice(len(good), 120, replace=False):
        part.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found, frame = store.existing(), store.read()
        if caught:
            assert len(found) == len(frame) == 0
            noticed += 1
        else:  # a byte without meaning: padding, or a statistic
            pd.testing.assert_frame_equal(frame, whole)
        part.write_bytes(good)
    assert noticed > 60


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "pyarrow.parquet.write_table"])
def test_a_kill_during_a_write(tmp_path, call, moment):
    SampleStore(tmp_path).append(_frame(indices=[0]))
    module, name = call.rsplit(".", 1)
    code = f"""
import os, signal, {module} as module
import pandas as pd
from quagmire_utils.store import SampleStore
real = module.{name}
def killed(*args, **kwargs):
    if {moment!r} == "after": real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
module.{name} = killed
frame = pd.DataFrame(dict(benchmark="b", problem="p", index=[1, 2], text="t", tokens=1, finish_reason="stop"))
SampleStore({str(tmp_path)!r}).append(frame)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = SampleStore(tmp_path)
    replaced = (call, moment) == ("os.replace", "after")
    assert store.existing()["index"].tolist() == ([0, 1, 2] if replaced else [0])
    store.append(pd.DataFrame({**_frame(indices=[1, 2]), "text": "t", "tokens": 1}))
    assert store.read()["index"].tolist() == [0, 1, 2]


def test_origins_never_mix(tmp_path):
    store = SampleStore(tmp_path)
    origin = {"model_digest": "aa", "engine": "vllm", "temperature": 1.0}
    store.bind(origin, notes={"model": "m"})
    store.bind(dict(reversed(origin.items())), notes={"model": "elsewhere"})
    assert SampleStore(tmp_path).origin == origin
    other = {**origin, "temperature": 0.7, "engine": "transformers"}
    with pytest.raises(ParameterError) as refused:
        store.bind(other)
    message = str(refused.value)
    assert "engine is 'vllm' there and 'transformers' here; temperature is 1.0 there and 0.7 here" in message
    assert "model_digest" not in message
    assert "\n" not in message
    with pytest.raises(ParameterError, match="seed is None there and 3 here"):
        store.bind({**origin, "seed": 3})
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(ParameterError, match="does not say what its samples were drawn with"):
        store.bind(origin)
    (tmp_path / "store.json").unlink()
    store.append(_frame())
    with pytest.raises(ParameterError, match=r"holds samples but no store\.json"):
        store.bind(origin)
    (tmp_path / "file").write_text("")
    with pytest.raises(ParameterError, match="is a file"):
        SampleStore(tmp_path / "file")


def test_prompts_are_kept_and_never_change(tmp_path):
    store = SampleStore(tmp_path)
    first = pd.DataFrame({"benchmark": "b", "problem": ["p", "q"], "prompt_tokens": 3})
    first["prompt"] = pd.Series(["1+1", "bad \ud800"], dtype=object)
    store.add_prompts(first)
    store.add_prompts(first.iloc[::-1])
    store.add_prompts(first.assign(problem=["p", "r"]).iloc[:1])
    store.add_prompts(first.assign(benchmark="c"))
    held = store.prompts()
    assert list(zip(held["benchmark"], held["problem"], strict=True)) == [
        ("b", "p"),
        ("b", "q"),
        ("c", "p"),
        ("c", "q"),
    ]
    assert held["prompt"].tolist() == ["1+1", "bad \ud800"] * 2
    assert held["digest"].nunique() == 2
    with pytest.raises(ParameterError, match="samples of b problem p drawn with another prompt"):
        store.add_prompts(first.iloc[:1].assign(prompt="1+2"))


def test_counts(tmp_path):
    store = SampleStore(tmp_path)
    verdicts = ["correct", "correct", "wrong", "no_answer", "timeout", "error", "no_answer", None]
    reasons = ["stop", "length", "stop", "length", "stop", "stop", "length", "length"]
    tokens = [1, 2, 3, 4, 5, 6, 7, 1000]
    store.append(_frame("p", range(8), verdict=verdicts, finish_reason=reasons, tokens=tokens, extracted="1"))
    store.append(_frame("q", range(2)))
    counts = store.counts().set_index("problem")
    assert counts.loc["p"].to_dict() == {
        **{"benchmark": "b", "n": 7, "correct": 2, "wrong": 1, "no_answer": 2, "truncated": 3},
        **{"timeout": 1, "error": 1, "mean_tokens": 4.0},
    }
    # nobody has judged them, so they count neither as wrong nor as samples
    assert counts.loc["q", ["n", "correct", "wrong", "no_answer", "truncated", "timeout", "error"]].tolist() == [0] * 7
    assert np.isnan(counts.loc["q", "mean_tokens"])


def test_importing_the_store_is_cheap():
    code = "import sys, quagmire_utils.store; print({'torch', 'transformers', 'vllm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
