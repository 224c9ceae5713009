"""The store: any text survives, nothing half-written is ever read, and samples of two origins never mix."""

import json
import os
import platform
import shutil
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quagmire_utils.core import files, provenance
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import digest, read_json, read_parquet, write_json, write_parquet
from quagmire_utils.core.provenance import manifest
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.evaluation.store_files import COLUMNS, COUNTS, ORIGIN, verdict_file

TEXTS = st.text(st.characters())  # every code point, NUL and lone surrogates included
HOSTILE = ["", "\0", "a\0b", "\ud800", "\udfff\ud800x", "\U0010ffff", "\U0010ffff\ud812\U0010ffff", "é\r\n\u2028"]


def _frame(problem="p", indices=range(3), benchmark="b", text="\\boxed{1}", **columns):
    texts = [text] * len(indices) if isinstance(text, str) else text
    frame = pd.DataFrame({"benchmark": benchmark, "problem": problem, "index": list(indices)})
    frame["text"] = pd.Series(texts, dtype=object)
    return frame.assign(**{"tokens": 5, "finish_reason": "stop", **columns})


def _bound(path, indices, text="t", *, prompt="1+1", **columns):
    store = SampleStore(path)
    store.bind({"model_digest": "aa", "template": "chat", "engine": "vllm", "temperature": 1.0})
    store.add_prompts(pd.DataFrame({"benchmark": "b", "problem": ["p"], "prompt": prompt, "prompt_tokens": 3}))
    if len(indices):
        store.append(_frame(indices=indices, text=[f"{text} {i}" for i in indices], **columns))
    return store


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
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_digest():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": (1, 2), "a": np.int64(1)}) == "8baa73198470c7bb"
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_manifest_holds_no_name_or_path_of_this_machine():
    made = manifest({"n": 3}, seeds={"sampling": 7}, wall_seconds=1.234, tokens=5)
    assert made["configuration_digest"] == digest({"n": 3})
    assert (made["seeds"], made["wall_seconds"], made["tokens"]) == ({"sampling": 7}, 1.2, 5)
    assert made["packages"]["numpy"] == np.__version__
    for secret in (platform.node(), str(Path.home()), str(Path(provenance.__file__).parent)):
        assert secret not in json.dumps(made)


@pytest.fixture
def store(tmp_path):
    return SampleStore(tmp_path)


def test_samples_come_back_in_order(tmp_path, refused):
    store = SampleStore(tmp_path / "s")
    assert (store.read().columns.tolist(), store.counts().columns.tolist()) == (COLUMNS, COUNTS)
    assert len(store.existing()) == 0
    store.append(_frame("q", range(8), text=HOSTILE))
    store.append(_frame("p", [2, 1, 0]))
    store.append(_frame("p", [3], benchmark="a", text="x\ud800"))
    frame = store.read()
    keys = [("a", "p", 3), *(("b", "p", i) for i in range(3)), *(("b", "q", i) for i in range(8))]
    assert list(zip(frame["benchmark"], frame["problem"], frame["index"], strict=True)) == keys
    assert frame["text"].tolist() == ["x\ud800", *["\\boxed{1}"] * 3, *HOSTILE]
    assert frame["verdict"].isna().all()
    assert store.read(["tokens", "benchmark"]).columns.tolist() == ["tokens", "benchmark"]
    assert len(store.existing()) == 12
    assert store.read(["index", "text"], benchmark="b").equals(frame[1:][["index", "text"]].reset_index(drop=True))
    assert store.read(["text"], benchmark="c").empty
    with refused("columns"):
        store.read(["length"])


def test_no_sample_is_there_twice(store, refused):
    for frame in (_frame(indices=[1, 2, 1]), _frame().drop(columns=["text", "tokens"])):
        with refused("samples"):
            store.append(frame)
    assert not store.parts()
    store.append(_frame(indices=[0, 1]))
    store.append(_frame(indices=[1, 0]))  # the same samples are the same file
    assert len(store.parts()) == 1
    store.append(_frame(indices=[1, 2]))
    with pytest.warns(UserWarning, match="1 samples are there twice"):
        assert store.read()["index"].tolist() == [0, 1, 2]
    assert store.existing()["index"].tolist() == [0, 1, 2]


def test_unreadable_parts_are_set_aside(store, tmp_path):
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


def test_a_flipped_byte_is_never_read_as_data(store):
    texts = [f"answer {i} is \\boxed{{{i * 7919 % 1000}}}" for i in range(50)]
    part = store.append(_frame(indices=range(50), text=texts))
    good, whole = part.read_bytes(), store.read()
    rng, noticed = np.random.default_rng(0), 0
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


def test_origins_never_mix(store, tmp_path, refused):
    origin = {"model_digest": "aa", "engine": "vllm", "temperature": 1.0}
    store.bind(origin, notes={"model": "m"})
    store.bind(dict(reversed(origin.items())), notes={"model": "elsewhere"})
    assert SampleStore(tmp_path).origin == origin
    with refused("store") as caught:
        store.bind({**origin, "temperature": 0.7, "engine": "transformers", "seed": 3})
    message = str(caught.value)
    assert "engine is 'vllm' there and 'transformers' here; seed is None there and 3 here; temperature is" in message
    assert "model_digest" not in message
    (tmp_path / "store.json").unlink()
    store.append(_frame())
    with refused("store"):  # samples without a store.json
        store.bind(origin)
    (tmp_path / "file").write_text("")
    with refused("store"):
        SampleStore(tmp_path / "file")


def test_prompts_are_kept_and_never_change(store, refused):
    first = pd.DataFrame({"benchmark": "b", "problem": ["p", "q"], "prompt_tokens": 3})
    first["prompt"] = pd.Series(["1+1", "bad \ud800"], dtype=object)
    for frame in (first, first.iloc[::-1], first.iloc[:1], first.assign(benchmark="c")):
        store.add_prompts(frame)
    held = store.prompts()
    assert (held["benchmark"] + held["problem"]).tolist() == ["bp", "bq", "cp", "cq"]
    assert held["prompt"].tolist() == ["1+1", "bad \ud800"] * 2
    assert held["digest"].nunique() == 2
    with refused("store") as caught:
        store.add_prompts(first.iloc[:1].assign(prompt="1+2"))
    assert "1 problems drawn with another prompt (such as b p)" in str(caught.value)


def _judge(store, part, verdict="correct", golds=None):
    frame = store.read_part(part).assign(verdict=verdict, extracted="1", grader="g 1")
    store.write_verdicts(part, frame, golds or {("b", "p"): ["1", None]})


def test_grading_never_touches_the_file_that_holds_the_texts(store, tmp_path):
    part = store.append(_frame("p", range(8), text=HOSTILE))
    before, stamp = part.read_bytes(), part.stat().st_mtime_ns
    for verdict in ("correct", "wrong"):
        _judge(store, part, verdict)
        assert (part.read_bytes(), part.stat().st_mtime_ns) == (before, stamp)
        frame = SampleStore(tmp_path).read()
        assert frame["text"].tolist() == HOSTILE
        assert frame[["extracted", "verdict", "grader"]].to_numpy().tolist() == [["1", verdict, "g 1"]] * 8
        assert store.counts()[["n", verdict]].to_numpy().tolist() == [[8, 8]]
    assert store.golds() == {("b", "p"): ["1", None]}
    assert sorted(file.name for file in tmp_path.glob("*.parquet")) == [part.name, verdict_file(part).name]


def test_verdicts_on_other_texts_do_not_count(tmp_path):
    """A part was lost and drawn again with other texts, or another part was copied over it: its verdicts lapse."""
    store = SampleStore(tmp_path / "one")
    part = store.append(_frame())
    _judge(store, part)
    part.unlink()
    assert store.counts().empty
    assert store.append(_frame(text="another")) == part
    assert store.counts()[["n", "correct"]].to_numpy().tolist() == [[0, 0]]
    assert store.read()["verdict"].isna().all()
    assert store.golds() == {}
    _judge(store, part, "wrong")
    assert store.counts()["wrong"].tolist() == [3]
    other = SampleStore(tmp_path / "two").append(_frame("q", range(5)))
    shutil.copy(other, part)
    assert store.counts()[["problem", "n"]].to_numpy().tolist() == [["q", 0]]


def test_damaged_verdicts_are_set_aside_and_the_samples_stay(store):
    part = store.append(_frame())
    _judge(store, part)
    file = verdict_file(part)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="set aside"):
        assert store.counts()["n"].tolist() == [0]
    assert store.read()["text"].tolist() == ["\\boxed{1}"] * 3
    _judge(store, part)
    assert store.counts()["correct"].tolist() == [3]


def test_a_part_that_was_copied_from_another_store_is_refused(tmp_path, refused):
    for name, temperature in (("one", 1.0), ("two", 0.7)):
        SampleStore(tmp_path / name).bind({"temperature": temperature})
        SampleStore(tmp_path / name).append(_frame(indices=[0] if name == "one" else [1]))
    foreign = SampleStore(tmp_path / "two").parts()[0]
    shutil.copy(foreign, tmp_path / "one")
    store = SampleStore(tmp_path / "one")
    for use in (store.read, store.counts, store.existing, store.always_the_same):
        with refused("store") as caught:
            use()
        assert f"{foreign.name} was drawn with another model, template, engine" in str(caught.value)
    (tmp_path / "one" / foreign.name).unlink()
    _judge(store, store.parts()[0])  # verdicts name the origin too
    shutil.copy(verdict_file(store.parts()[0]), verdict_file(tmp_path / "two" / foreign.name))
    with refused("store"):
        SampleStore(tmp_path / "two").counts()


def test_samples_are_bound_to_their_prompts(tmp_path):
    """Other questions under the same ids are refused: where prompts.parquet is gone, and where a part is copied in."""
    one, two = (_bound(tmp_path / name, [i], prompt=f"{i}+1") for i, name in enumerate(("one", "two")))
    shutil.copy(two.parts()[0], one.path)
    for use in (one.read, one.counts, one.existing):
        with pytest.raises(ParameterError, match="another prompt of b p than the other samples") as refused:
            use()
        assert two.parts()[0].name in str(refused.value)
    (one.path / two.parts()[0].name).unlink()

    (one.path / "prompts.parquet").unlink()
    held = SampleStore(one.path).read()
    with pytest.raises(ParameterError, match="another prompt of b p than the other samples"):
        _bound(one.path, [], prompt="1+1")
    pd.testing.assert_frame_equal(SampleStore(one.path).read(), held)
    _bound(one.path, [1], prompt="0+1")  # the right ones are taken back
    assert len(SampleStore(one.path).prompts()) == 1
    assert len(SampleStore(one.path).read()) == 2


def test_parts_of_earlier_versions_are_read(tmp_path):
    """They hold their verdicts themselves, and say nothing of their prompts: their texts count, to be graded again."""
    store = _bound(tmp_path, range(3))
    part = store.parts()[0]
    frame, metadata = store.read(), pq.read_metadata(part).metadata
    write_parquet(frame.assign(verdict="correct", extracted="1"), part, metadata={ORIGIN: metadata[ORIGIN]})
    pd.testing.assert_frame_equal(SampleStore(tmp_path).read(), frame)
    assert SampleStore(tmp_path).counts()["n"].tolist() == [0]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("store.json", b'{"origin": 5}', "restore it"),
        ("store.json", b'{"origin"', "restore it"),
        ("prompts.parquet", b"PAR1xx", "delete it, and sampling writes it again"),
    ],
)
def test_damaged_side_files_are_one_sentence(tmp_path, refused, name, content, sentence):
    store = _bound(tmp_path, range(2))
    (tmp_path / name).write_bytes(content)
    for use in (lambda: _bound(tmp_path, []), SampleStore(tmp_path).read):
        with refused("store") as caught:
            use()
        assert sentence in str(caught.value)
    assert len(store.parts()) == 1


def _plain_counts(frame):
    """The counts of a frame of samples, by a loop that anyone can check."""
    rows = []
    for (benchmark, problem), group in frame.groupby(["benchmark", "problem"], sort=True):
        graded = group[group["verdict"].notna()]
        row = {"benchmark": benchmark, "problem": problem, "n": len(graded)}
        row |= {name: int((graded["verdict"] == name).sum()) for name in COUNTS[3:6] + COUNTS[7:9]}
        row |= {"truncated": int((graded["finish_reason"] == "length").sum()), "mean_tokens": graded["tokens"].mean()}
        rows.append(row)
    return pd.DataFrame(rows)[COUNTS]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.sampled_from(["p", "q/1", "\u00e9", ""]),
            st.integers(0, 5),
            st.integers(0, 2**31 - 1),
            st.sampled_from(["stop", "length"]),
            st.sampled_from([None, "correct", "wrong", "no_answer", "timeout", "error"]),
        ),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 4),
)
def test_counts_are_those_of_a_plain_loop(tmp_path_factory, rows, parts):
    """Whatever the parts look like, and with samples that are there twice, which count once."""
    names = ["benchmark", "problem", "index", "tokens", "finish_reason", "verdict"]
    frame = pd.DataFrame(rows, columns=names).assign(text="x", extracted=None)
    store = SampleStore(tmp_path_factory.mktemp("counts"))
    for i in range(parts):
        store.append(frame[i::parts].drop_duplicates(["benchmark", "problem", "index"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read, counted = store.read(), store.counts()
    pd.testing.assert_frame_equal(counted, _plain_counts(read), check_dtype=False)
    assert counted.dtypes[COUNTS[2:-1]].eq("int64").all()


def _drawn(path, texts, tokens=50, temperature=1.0):
    """A store of samples; texts: problem -> the texts of its samples."""
    store = SampleStore(path)
    store.bind({"temperature": temperature})
    frames = [_frame(problem, range(len(some)), text=list(some), tokens=tokens) for problem, some in texts.items()]
    store.append(pd.concat(frames, ignore_index=True))
    return store


def test_an_engine_that_ignores_seeds_is_found(tmp_path):
    """A server that draws every sample with one seed: all samples of a problem are one long text."""
    same = {f"p{p}": [f"{p}" * 100] * 16 for p in range(5)}
    some = same | {f"q{p}": [f"{i}" for i in range(16)] for p in range(6)}
    assert _drawn(tmp_path / "one", same).always_the_same() == ["b"]
    assert not _drawn(tmp_path / "two", some).always_the_same()
    assert not _drawn(tmp_path / "greedy", same, temperature=0).always_the_same()
    assert not _drawn(tmp_path / "short", same, tokens=3).always_the_same()  # a model that is sure of a short answer
