"""How well a measurement of SFT candidates foretells their outcome after RL.

Sections 4.1 to 4.3 and Tables 1-10 of the paper. A line is fitted between a predictor (Pass@1, generalization loss,
Pass@large k) and the outcome on a random part of the candidates and predicts the others; R2 = 1 - SS_res / SS_tot is
taken on those others, and the random part is drawn 100 times. Spearman's rank correlation compares predicted and actual
outcomes. The paper's averaged prediction is the mean of the predictions of separately fitted lines, not one fit on two
predictors.

    from quagmire_utils.prediction import fit_predict_r2, predict, spearman
    fit_predict_r2(records["pass_k"], records["outcome"], n_fit=8)                   # 100 random splits, as the paper
    fit_predict_r2(records["pass_k"], records["outcome"], n_fit=8, n_splits="all")   # every split there is
    both = (records["gen_loss"], records["pass_k"])                                  # the averaged prediction
    spearman(predict(both, records["outcome"]), records["outcome"])

Also the two workflows of "How to use them in practice" (Sec. 4), from a table filled in by hand, records, or answers:

    measured = load_measurements("notebooks/candidates.csv")
    rank_with_noise(measured).advice        # whom to send to RL; `rank_candidates` is the rule alone
    forecast_rl(measured.table).advice      # what RL will make of each, whom to run next; `forecast`: the lines alone

Conventions. A predictor x is an array (candidates,); several predictors are a tuple or list of such arrays, or a
two-dimensional array or DataFrame with one column per predictor; y is the outcome, (candidates,). Two calls with the
same number of candidates, n_fit, n_splits and seed use the same splits, so differences between predictors are paired.
Where x does not vary among the fitted candidates the line of least norm is taken, slope 0: it predicts their mean. R2
can be far below zero: a line through three close candidates may miss the others by much more than their mean would.
"""

from quagmire_utils.analysis.prediction.fits import (
    CONSTANT,
    MAX_SPLITS,
    MEASURES,
    SPLITS_AT_ONCE,
    Array,
    Interval,
    LinearFit,
    SplitR2,
    bootstrap_interval,
    candidate_standard_error,
    fit_predict_r2,
    jackknife_standard_error,
    linear_fit,
    predict,
    r2_without_each,
    spearman,
)
from quagmire_utils.analysis.prediction.forecasting import (
    RLForecast,
    check_forecasts,
    choose_runs,
    compare_predictors,
    forecast,
    forecast_rl,
    known_runs,
    withheld_outcomes,
)
from quagmire_utils.analysis.prediction.measurements import Measurements, load_measurements, read_csv
from quagmire_utils.analysis.prediction.ranking import Ranking, check_ranking, rank_candidates, rank_with_noise, regret

__all__ = [
    "CONSTANT",
    "MAX_SPLITS",
    "MEASURES",
    "SPLITS_AT_ONCE",
    "Array",
    "Interval",
    "LinearFit",
    "Measurements",
    "RLForecast",
    "Ranking",
    "SplitR2",
    "bootstrap_interval",
    "candidate_standard_error",
    "check_forecasts",
    "check_ranking",
    "choose_runs",
    "compare_predictors",
    "fit_predict_r2",
    "forecast",
    "forecast_rl",
    "jackknife_standard_error",
    "known_runs",
    "linear_fit",
    "load_measurements",
    "predict",
    "r2_without_each",
    "rank_candidates",
    "rank_with_noise",
    "read_csv",
    "regret",
    "spearman",
    "withheld_outcomes",
]
