"""Predictors of the outcome, against values by hand and against pandas on the shipped records."""

from __future__ import annotations

import numpy as np
import pytest

from quagmire_utils.analysis.predictors import regret


@pytest.mark.parametrize(
    ("predicted", "outcome", "lost"),
    [
        ([1, 2, 3], [50.0, 60.0, 40.0], 20.0),
        ([1, 3, 2], [50.0, 60.0, 40.0], 0.0),
        ([3, 3, 2], [50.0, 60.0, 40.0], 5.0),  # the first two share the first rank
        ([0, 0, 0], [50.0, 60.0, 40.0], 10.0),  # a random choice
        ([2, 1, 1], [60.0, 60.0, 40.0], 0.0),
        ([[1, 2, 3], [3, 2, 1]], [50.0, 60.0, 40.0], [20.0, 10.0]),
        ([7], [50.0], 0.0),
    ],
)
def test_regret_is_the_best_outcome_minus_that_of_the_choice(predicted, outcome, lost):
    np.testing.assert_allclose(regret(predicted, outcome), lost)


@pytest.mark.parametrize(
    ("predicted", "outcome", "parameter"),
    [([1, np.nan], [1, 2], "predicted"), ([1, 2], [1, np.nan], "outcome"), ([], [], "predicted")],
)
def test_regret_takes_no_missing_values(predicted, outcome, parameter, refused):
    with refused(parameter):
        regret(predicted, outcome)
