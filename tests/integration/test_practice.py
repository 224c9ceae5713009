"""The notebooks rank_candidates and forecast_rl and their pictures; test_card has their shipped copies."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from example_candidates import linear_world
from notebook_cells import run_cells

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def own_table(tmp_path, monkeypatch):
    """Return a function that writes a table of one's own; figures of notebooks go beside it."""
    monkeypatch.setenv("QUAGMIRE_OUTPUT", str(tmp_path))

    def write(table: pd.DataFrame) -> dict[str, str]:
        table.to_csv(tmp_path / "mine.csv", index=False)
        return {"measurements": str(tmp_path / "mine.csv")}

    return write


@pytest.mark.parametrize("case", ["dataset", "instance", "no errors"])
def test_pictures_and_words_of_every_case(first_world, own_table, case):
    """Both scenarios of records, and a table filled in by hand without errors: no missing number is printed."""
    given = {"profile": str(first_world.folder), "family": "micro-mistral", "scenario": case}
    if case == "no errors":
        table = pd.read_csv(ROOT / "notebooks" / "candidates.csv", comment="#")
        given = own_table(table.drop(columns=table.filter(like="_se")))
    ranked, forecast = run_cells("rank_candidates", n_draws=500, **given), run_cells("forecast_rl", **given)
    found = ranked["found"]
    assert found.leader in found.advice
    assert len(ranked["left"].get_yticks()) == len(found.table)
    assert (
        forecast["percent"]["truth"].notna() == forecast["percent"]["candidate"].isin(forecast["truth"].index)
    ).all()
    texts = [found.advice, *found.notes, *forecast["found"].warnings, forecast["advice"].text]
    assert "nan" not in " ".join(texts).lower().split()


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 40])
def test_no_text_of_the_pictures_overlaps(own_table, count):
    """Long names, few and many candidates: no two texts of a figure overlap, and none is cut off."""
    random = np.random.default_rng(count)
    table = linear_world(max(count, 4), 0)
    names = [f"qwen3-4b-base-openr1-math-220k-lr1e-5-epochs{i}-seed{i}" for i in range(len(table))]
    table = table.assign(candidate=names, pass1_se=0.01, pass_k_se=0.02, gen_loss_se=0.01)
    table["pass1"] = random.uniform(0, 0.5, len(table))
    ranked = run_cells("rank_candidates", n_draws=200, **own_table(table.head(count)))
    table["outcome"] = table["outcome"].where(table.index < max(3, count // 4))
    figures = [ranked["fig"], ranked["settling"], run_cells("forecast_rl", **own_table(table))["fig"]]
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
