"""The overview's rungs of evidence: rank correlations and gains of predictors by set of candidates."""

from __future__ import annotations

import numpy as np
import pytest
from notebook_cells import run_cells
from scipy import stats

from quagmire_utils.analysis.candidates import measured_frame

SIGN = {"pass1": 1, "gen_loss": -1, "pass_k": 1}


def test_each_set_is_judged_on_the_candidates_that_have_the_predictor(mini, tmp_path, monkeypatch):
    monkeypatch.setenv("QUAGMIRE_OUTPUT", str(tmp_path))
    found = run_cells("overview", resamples=50)
    for rung, sets in found["sets"].items():
        gained = {column: [] for column in SIGN}
        for name, rows in sets.items():
            for column, sign in SIGN.items():
                known = rows.dropna(subset=[column])
                if len(known) < 4:
                    assert np.isnan(found["each"][rung].loc[name, column])
                    continue
                rank, base = (stats.spearmanr(known[x], known["outcome"]).statistic for x in (column, "pass1"))
                assert found["each"][rung].loc[name, column] == pytest.approx(sign * rank)
                gained[column].append(sign * rank - base)
        for column, gains in gained.items():
            text = f"{np.mean(gains) + 0.0:+.2f} [" if gains else "not measured"
            assert found["gains"][rung, column].startswith(text)
            assert not gains or found["gains"][rung, column].split("(")[1].startswith(f"{len(gains)} set")
    assert measured_frame(tmp_path) is None
