"""The notebooks rank_candidates and forecast_rl and their pictures; test_card has their shipped copies."""

from pathlib import Path

import pandas as pd
import pytest
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
