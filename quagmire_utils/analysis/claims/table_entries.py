"""The ledger's entries for Tables 1 to 10: one for each table and predictor."""

from __future__ import annotations

from functools import partial

from quagmire_utils.analysis.claims import predictors
from quagmire_utils.analysis.claims.evidence import Entry
from quagmire_utils.core import published as paper

RANK, R2 = "difference of rank correlations", "difference of R²"  # units
CALLED = {
    "gen_loss": "the generalization loss",
    "pass_k": "Pass@large k",
    "avg_genloss_pass_k": "the mean of both predictions",
}
_RANKS = (predictors.rank_gain, "ranks candidates better than Pass@1", RANK)
_WITHIN = (predictors.rank_gain_within_budgets, "ranks candidates of equal SFT budget better than Pass@1", RANK)
_HALF = (predictors.fit_gain, "predicts outcomes better than Pass@1", R2)
_RATIOS = (predictors.smallest_fit_gain, "predicts outcomes better than Pass@1, however many are fitted", R2)
TESTS = {
    1: _RANKS,
    3: _WITHIN,
    8: _WITHIN,
    10: _WITHIN,
    2: _HALF,
    4: _HALF,
    5: _RATIOS,
    6: _RATIOS,
    7: _RATIOS,
    9: _RATIOS,
}
DATASET_LEVEL = (
    "Both generalization loss and Pass@large k are effective predictors for post-RL performance when optimizing SFT "
    "training configurations on a single dataset"
)
INSTANCE_LEVEL = "Pass@large k turns out highly accurate and robust in instance-level predictions"


def _table_entries(number: int) -> list[Entry]:
    cells = paper.published(number)
    models = tuple(cells["family"].unique())
    test, words, unit = TESTS[number]
    return [
        Entry(
            f"table{number:02d}_{column}",
            {f"Table {number}": models},
            f"{CALLED[column]} {words}",
            INSTANCE_LEVEL if cells["scenario"].iloc[0] == "instance" else DATASET_LEVEL,
            partial(test, number=number, column=column),
            unit=unit,
            published={model: predictors.published_gain(number, model, column) for model in models},
        )
        for column in cells["column"].unique()
        if column != paper.BASELINE
    ]


TABLES = tuple(entry for number in range(1, 11) for entry in _table_entries(number))
