"""Tables as people and spreadsheets write them, folders of answers, and records as measurements."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from quagmire_utils.analysis.forecasting import forecast_rl, known_runs
from quagmire_utils.analysis.measurements import load_measurements, read_csv
from quagmire_utils.analysis.ranking import rank_with_noise
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT
from quagmire_utils.data import Trace
from quagmire_utils.evaluation import store
from quagmire_utils.evaluation.generalization_loss import GeneralizationLoss, write_losses
from quagmire_utils.evaluation.pass_at_k import pass_at_k

COMMAS = "candidate,pass1,gen_loss,pass_k,outcome\na,0.523,1.25,0.9,\nb,0.4,,0.8,0.61\n"
WITH_ERROR = COMMAS.replace("outcome", "pass1_se")


def refusal(*args, **options) -> ParameterError:
    with pytest.raises(ParameterError) as caught:
        load_measurements(*args, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def test_tables_as_people_and_spreadsheets_write_them(tmp_path):
    for text in (
        COMMAS,
        COMMAS.replace(",", "\t"),
        COMMAS.replace(",", ";").replace("0.", "0,").replace("1.25", "1,25"),
        COMMAS.replace(",", ";").replace("0.523", "52,3%").replace("0.9", "90 %"),
        "\ufeff# my runs, of May\n" + COMMAS + "\n,,,,\n",
        COMMAS.replace("pass1", "Pass@1").replace("pass_k", "pass64").replace("gen_loss", "Generalization loss"),
        COMMAS.replace(",,", ",n/a,").replace("0.9,\n", "0.9,-\n").replace("\na", '\n"a"'),
        COMMAS.replace("pass_k", "Pass@64 (%)").replace(",0.9,", ",90,").replace(",0.8,", ",80,"),
        '# not measured: "c, and ,"d\n' + COMMAS,
        COMMAS.replace("outcome", "outcome,note").replace("0.9,\n", '0.9,,"two\nlines"\n'),
    ):
        (tmp_path / "mine.csv").write_bytes(text.encode())
        measured = read_csv(tmp_path / "mine.csv")
        assert measured.table["candidate"].tolist() == ["a", "b"]
        np.testing.assert_allclose(measured.table[["pass1", "pass_k"]], [[0.523, 0.9], [0.4, 0.8]])
        np.testing.assert_array_equal(measured.table["gen_loss"], [1.25, np.nan])
        np.testing.assert_array_equal(measured.table["outcome"], [np.nan, 0.61])
        assert (measured.k, measured.counts, measured.manifest) == (64, None, {})


def test_another_large_k_and_errors_are_read_from_the_headings(tmp_path):
    text = "candidate,pass@1,Pass@256,pass@256 se,gen_loss,gen_loss_se\na,50%,90%,2%,1,0.1\n"
    (tmp_path / "mine.csv").write_text(text)
    measured = load_measurements(tmp_path / "mine.csv", scenario="instance")
    assert measured.k == 256
    row = measured.table.iloc[0]
    assert (row["pass_k"], row["pass_k_se"], row["gen_loss_se"], row["scenario"]) == (0.9, 0.02, 0.1, "instance")


def test_a_bad_table_is_one_sentence_with_its_place(tmp_path):
    for text, place, said in (
        ("", "", "a line of headings"),
        (COMMAS.replace("outcome", "pass@128").replace("pass_k", "pass@256"), "", "column pass_k twice"),
        (COMMAS.replace("pass_k", "Pass@0"), ", column Pass@0", "at least 1"),
        (COMMAS.replace("pass_k", "pass@01"), "", "column pass1 twice"),
        (COMMAS.replace("0.523", "good"), ", line 2, column pass1", "a number, not 'good'"),
        (COMMAS.replace("1.25", "5%"), ", line 2, column gen_loss", "nats"),
        (COMMAS.replace("0.4,,", "0,4,1.2,"), ", line 3", "decimal commas"),
        (COMMAS.replace("\nb", "\n"), ", line 3, column candidate", "a name"),
        (COMMAS.replace("pass_k", "Pass@64 (%)"), ", line 2", "Pass@1 (0.523) is above Pass@k (0.009)"),
        (COMMAS.replace("0.8", "0.3"), ", line 3", "swapped columns"),
        (COMMAS + "a,0.5,1.2,0.7,\n", ", line 4", "in line 2 already"),
        (WITH_ERROR.replace("0.61", "0.9"), ", line 3, column pass1_se", "at most 0.5"),
        (COMMAS.replace("outcome", "scenario").replace("0.61", "Instance"), ", line 3, column scenario", "one of"),
    ):
        (tmp_path / "mine.csv").write_text(text)
        error = refusal(tmp_path / "mine.csv")
        assert error.parameter == f"mine.csv{place}"
        assert said in str(error)
        assert len(str(error)) < 400


def test_selections_and_sources_that_do_not_exist(tmp_path, first_world):
    rows = "candidate,family,pass1,gen_loss,pass_k\na,f,0.5,1,0.9\nb,{},0.4,1,0.8\n"
    two = tmp_path / "two.csv"
    two.write_text(rows.format("g"))
    assert load_measurements(two, family="f").table["candidate"].tolist() == ["a"]
    for options in ({"family": ""}, {"family": "qwen"}, {"k": 0}, {"k": "64"}, {"scenario": "instnce"}):
        assert refusal(two, **options).parameter == next(iter(options))
    two.write_text(rows.format(""))
    assert refusal(two).parameter == "family"
    assert refusal(tmp_path / "none.csv").parameter == "measurements"
    (tmp_path / "latin.csv").write_bytes(COMMAS.replace("b", "\u00fc").encode("latin-1"))
    assert "UTF-8" in refusal(tmp_path / "latin.csv").reason
    assert refusal(first_world).allowed == "one of micro-llama, micro-mistral, micro-qwen"
    for options in ({"outcome": "gain"}, {"k": 4096}):
        assert refusal(first_world, **{"family": "micro-llama", **options}).parameter == next(iter(options))


def test_the_shipped_table_is_what_was_measured(first_world):
    """Eight candidates of the first micro world, rounded; outcomes of the runs that were advised there, no others."""
    shipped = load_measurements(ROOT / "notebooks" / "candidates.csv")
    frame = load_measurements(first_world, family="micro-llama").table.set_index("candidate")
    table = shipped.table.set_index("candidate")
    assert set(table.index[table["outcome"].notna()]) == set(known_runs(frame.reset_index(), 5))
    assert len(table) == 8
    for column in table:
        known = table[column].dropna()
        np.testing.assert_allclose(known, frame.loc[known.index, column], atol=0.5001e-4)
    assert rank_with_noise(shipped).leader == "random-512x4"
    assert forecast_rl(shipped.table).next_run is not None


def make_store(folder: Path, correct: list[int], n: int = 8, golds: dict | None = None, **origin: object) -> None:
    rows = [
        {"benchmark": "one", "problem": f"p{p}", "index": i, "text": "", "tokens": 1, "finish_reason": "stop"}
        | {"extracted": "", "verdict": "correct" if i < c else "wrong"}
        for p, c in enumerate(correct)
        for i in range(n)
    ]
    samples = store.SampleStore(folder)
    samples.bind({"model_digest": folder.name, "temperature": 1.0, **origin})
    samples.append(pd.DataFrame(rows), golds=golds)


def test_scores_are_counted_from_folders_of_answers(tmp_path):
    make_store(tmp_path / "one", [0, 3, 8, 1])
    make_store(tmp_path / "two", [2, 2, 5, 0])
    (tmp_path / "mine.csv").write_text("candidate,samples,gen_loss,gen_loss_se\na,one,1.2,0.1\nb,two,1.1,0.1\n")
    measured = load_measurements(tmp_path / "mine.csv", k=4)
    expected = [pass_at_k(8, c, 4).mean() for c in (np.array([0, 3, 8, 1]), np.array([2, 2, 5, 0]))]
    assert measured.table["pass_k"].tolist() == pytest.approx(expected)
    assert measured.table["pass1"].tolist() == pytest.approx([12 / 32, 9 / 32])
    assert rank_with_noise(measured).samples == 8
    (tmp_path / "part.csv").write_text("candidate,samples,pass1,gen_loss,pass_k\na,one,,1.2,\nb,,0.3,1.1,0.5\n")
    assert load_measurements(tmp_path / "part.csv", k=4).counts is None


def test_a_folder_of_evaluations_is_a_table_without_losses(tmp_path):
    make_store(tmp_path / "runs" / "one", [0, 3, 8, 1])
    make_store(tmp_path / "runs" / "two", [2, 2, 5, 0])
    (tmp_path / "mine.csv").write_text("candidate,samples\none,runs/one\ntwo,runs/two\n")
    measured, table = (load_measurements(tmp_path / name, k=4) for name in ("runs", "mine.csv"))
    pd.testing.assert_frame_equal(measured.table, table.table, check_like=True)
    pd.testing.assert_frame_equal(measured.counts, table.counts)
    assert len(rank_with_noise(measured).without_loss) == 2
    assert "name the folder above it" in refusal(tmp_path / "runs" / "one", k=4).reason
    assert refusal(tmp_path / "runs").parameter == "k"
    make_store(tmp_path / "runs" / "few", [1, 1, 0, 0], n=2)
    measured = load_measurements(tmp_path / "runs", k=4)
    assert measured.table["candidate"].tolist() == ["one", "two"]
    assert "few" in measured.source


def test_losses_of_evaluations_count_where_all_are_of_the_same_traces(tmp_path):
    traces = {name: [Trace(name, name, "1+1", response)] for name, response in (("easy", "2"), ("hard", "two"))}
    for folder, other, nll in (("one", "2", 0.5), ("two", "3", 0.25)):
        make_store(tmp_path / "runs" / folder, [0, 3, 8, 1])
        losses = {name: GeneralizationLoss(nll, 0.125, nll, 9, 1, pd.DataFrame(), 0) for name in traces}
        given = traces | {"easy": [Trace("easy", "easy", "1+1", other)]}
        write_losses({"easy": losses["easy"]}, given, tmp_path / "runs" / folder)
        write_losses({"hard": losses["hard"]}, given, tmp_path / "runs" / folder)  # of a later run: both are kept
    measured = load_measurements(tmp_path / "runs", k=4)
    assert measured.table["gen_loss"].tolist() == [0.5, 0.25]
    assert measured.table["gen_loss_se"].tolist() == [0.125, 0.125]
    assert measured.source.endswith("loss on hard")
    make_store(tmp_path / "runs" / "without", [1, 1, 0, 0])
    measured = load_measurements(tmp_path / "runs", k=4)
    assert measured.table["gen_loss"].isna().all()
    assert measured.source.endswith("losses not used: without has none")
    (tmp_path / "runs/without/losses.json").write_text('{"easy": ')
    assert refusal(tmp_path / "runs", k=4).parameter == "losses.json"


def test_answers_that_do_not_compare_are_refused(tmp_path):
    make_store(tmp_path / "one", [0, 3, 8, 1], golds={("one", "p0"): ["7", None]})
    make_store(tmp_path / "gold", [2, 2, 5, 0], golds={("one", "p0"): ["8", None]})
    make_store(tmp_path / "cold", [1, 1, 1, 1], temperature=0.5)
    make_store(tmp_path / "few", [1, 1])
    (tmp_path / "empty").mkdir()
    for folder, k, said in (
        ("gold", 4, "the gold of one/p0 is '8' for b and '7' for a"),
        ("empty", 4, "holds no graded answers"),
        ("./one", 4, "are those of a"),
        ("cold", 4, "sampled with temperature 0.5, a with 1.0"),
        ("few", 4, "different problems (2 and 4)"),
        ("gone", 4, "no folder of samples gone"),
        ("cold", 9, "at most 8, the graded answers to a problem"),
    ):
        (tmp_path / "bad.csv").write_text(f"candidate,samples,gen_loss\na,one,1.2\nb,{folder},1.1\n")
        assert said in str(refusal(tmp_path / "bad.csv", k=k))
