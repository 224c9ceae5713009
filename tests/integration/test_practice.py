"""The notebooks rank_candidates and forecast_rl, their pictures, and their shipped copies."""

from __future__ import annotations

import html
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import papermill
import pytest
from example_candidates import linear_world

from quagmire_utils.analysis.advice import advise
from quagmire_utils.analysis.forecasting import forecast_rl, known_runs
from quagmire_utils.analysis.measurements import Measurements, load_measurements
from quagmire_utils.analysis.ranking import rank_with_noise
from quagmire_utils.report.plots import forest

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "results" / "mini"


def test_pictures_and_words_of_every_case(mini):
    """Every family and scenario, a table filled in by hand and one without errors: no missing number is printed."""
    cases = (("micro-llama", "dataset"), ("micro-mistral", "instance"), ("micro-qwen", "dataset"))
    sources = [load_measurements(mini, family=family, scenario=scenario) for family, scenario in cases]
    sources.append(load_measurements(ROOT / "notebooks" / "candidates.csv"))
    bare = sources[-1].table.drop(columns=["pass1_se", "pass_k_se", "gen_loss_se"])
    sources.append(replace(sources[-1], table=bare))
    for measured in sources:
        found = rank_with_noise(measured, n_draws=500)
        assert found.leader in found.advice
        fig, axes = forest.practice_figure(found.table, columns=3)
        for draw, ax in zip((forest.plot_ranking, forest.plot_chances, forest.plot_settling), axes, strict=True):
            draw(found, ax)
        fig.draw_without_rendering()
        runs = known_runs(measured.table, 5)
        forecasts = forecast_rl(measured.table, runs, n_draws=500)
        fig, axes = forest.practice_figure(forecasts.table, columns=2)
        outcomes = measured.table.set_index("candidate")["outcome"]
        forest.plot_forecast(forecasts, axes[0], outcomes.drop(runs).dropna().to_dict())
        forest.plot_left_out(forecasts, axes[1])
        fig.draw_without_rendering()
        texts = [found.advice, *found.notes, *forecasts.warnings, advise(measured, runs).text]
        assert "nan" not in " ".join(texts).lower().split()


@pytest.mark.parametrize("count", [2, 40])
def test_no_text_of_the_pictures_overlaps(count):
    """Long names, few and many candidates: no two texts of a figure overlap, and none is cut off."""
    random = np.random.default_rng(count)
    table = linear_world(max(count, 4), 0).head(max(count, 4))
    names = [f"qwen3-4b-base-openr1-math-220k-lr1e-5-epochs{i}-seed{i}" for i in range(len(table))]
    table = table.assign(candidate=names, pass1_se=0.01, pass_k_se=0.02, gen_loss_se=0.01)
    table["pass1"] = random.uniform(0, 0.5, len(table))
    measured = Measurements(table.head(count), None, table, 64, "mine.csv")
    found = rank_with_noise(measured, n_draws=200)
    forecasts = forecast_rl(table.assign(outcome=table["outcome"].where(table.index < max(3, count // 4))), n_draws=200)
    figures = []
    for shown, draws in (
        (found, (forest.plot_ranking, forest.plot_chances)),
        (forecasts, (forest.plot_forecast, forest.plot_left_out)),
    ):
        fig, axes = forest.practice_figure(shown.table, columns=2)
        for draw, ax in zip(draws, axes, strict=True):
            draw(shown, ax)
        figures.append(fig)
    for fig in figures:
        fig.canvas.draw()
        page = fig.bbox
        ticks = [t for ax in fig.axes for axis in (ax.xaxis, ax.yaxis) for t in axis._update_ticks()]  # those drawn
        texts = [t.label1 for t in ticks] + [t for ax in fig.axes for t in (ax.xaxis.label, ax._left_title)]
        boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text() and t.get_visible()]
        for text, box in boxes:
            assert box.x0 >= page.x0 - 1, text
            assert box.x1 <= page.x1 + 1, text
        for (one, a), (other, b) in itertools.combinations(boxes, 2):
            assert not a.padded(-1).overlaps(b.padded(-1)), (one, other)


def test_notebooks_execute_on_records_and_on_a_table(mini, tmp_path):
    """Both, on a copy of the shipped records and on the shipped table, through papermill."""
    folder = tmp_path / "mini"
    folder.mkdir()
    for file in (*MINI.glob("*.parquet"), MINI / "manifest.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    shown = {}
    for name, given in (("rank_candidates", {}), ("forecast_rl", {"measurements": "notebooks/candidates.csv"})):
        book = papermill.execute_notebook(
            ROOT / "notebooks" / f"{name}.ipynb",
            None,
            {"profile": str(folder), **given},
            kernel_name="python3",
            progress_bar=False,
            cwd=tmp_path,
        )
        outputs = [o.get("data", {}) for c in book.cells if c.cell_type == "code" for o in c.outputs]
        shown[name] = [o["text/markdown"] for o in outputs if "text/markdown" in o]
        assert sum("image/png" in o for o in outputs) == {"rank_candidates": 2, "forecast_rl": 1}[name]
    measured = load_measurements(mini, family="Llama3-8B-Instruct")
    said = f"**{measured.source}.** {advise(measured).text}"
    assert html.escape(said, quote=False) in shown["rank_candidates"]
    assert "profile mini, measured" in shown["rank_candidates"][-1]
    said = advise(load_measurements(ROOT / "notebooks" / "candidates.csv", scenario="dataset")).text
    assert any(html.escape(said, quote=False) in text for text in shown["forecast_rl"])
    assert "candidates.csv (8 candidates, as given)" in shown["forecast_rl"][-1]
