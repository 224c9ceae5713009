"""What public papers report of real models before and after RL, and the checkpoints among them that can be compared.

    rows = load_rows()                       # results/public/pre_post_rl.csv, every row checked
    groups = comparable(rows)                # checkpoints of one RL run, benchmark and stage, as a candidate frame
    pooled([draws_of_one, draws_of_other])   # the mean over groups, from the draws of `predictors.bootstrap_scores`
    tries_worth(ks, pass_k, after)           # how many tries of the base model equal one after RL

results/public/README.md is the data card. None of these numbers was measured by this project.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quagmire_utils.analysis.fits import Array
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.validation import parameter_error

FOLDER = ROOT / "results" / "public"
GRADES = ("A", "A-", "B", "C")  # of trust, best first
EXACT = ("A", "A-")  # printed, counted, or read from a vector figure
SMALLEST = 4  # checkpoints of a group that takes part in a pooled answer
KINDS = ("SFT checkpoints", "base checkpoints", "different models")
COMPARED = ["group", "rl_run", "benchmark"]  # what the checkpoints of a group share, besides their stage
CURVE = ["base_model", "rl_run", "benchmark"]  # identifies a pair of Pass@k curves

Text = Annotated[str, Field(min_length=1)]
Score = Annotated[float, Field(ge=0, le=100)]  # per cent
Link = Annotated[str, Field(pattern=r"^https://\S+$")]


class Row(BaseModel):
    """One measurement before RL and the score after it, as a public source gives them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: Annotated[int, Field(ge=1)]
    source_id: Text
    group: Text
    base_model: Text
    candidate: Text
    pre_stage: Literal["base", "SFT", "SFT/distilled", "SFT/instruct", "instruct", "base/instruct"]
    rl_run: Text
    benchmark: Text
    pass1_pre: Score
    k: Annotated[int, Field(ge=2)] | None = None
    pass_k_pre: Score | None = None
    k_mid: Annotated[int, Field(ge=2)] | None = None
    pass_k_mid_pre: Score | None = None
    val_loss_pre: Annotated[float, Field(gt=0, lt=20)] | None = None  # nats per token
    entropy_pre: Annotated[float, Field(gt=0, lt=20)] | None = None  # nats per token
    pass1_post: Score | None = None
    pass1_post_equal: Score | None = None  # after as much RL as the others of the group
    pass_k_post: Score | None = None
    outcome_kind: Text
    how_read: Text
    grade: Literal["A", "A-", "B", "C"]
    caveat: str | None = None
    url: Link
    place: str | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Row:
        if (self.k is None) != (self.pass_k_pre is None) or (self.k_mid is None) != (self.pass_k_mid_pre is None):
            raise ValueError("a Pass@k needs its k, and a k its Pass@k")
        if self.pass1_post is None and self.pass_k_post is None:
            raise ValueError("a score after RL is needed")
        return self


class Point(BaseModel):
    """One point of a Pass@k curve before RL (stage base) or after it (stage rl)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_model: Text
    rl_run: Text
    benchmark: Text
    stage: Literal["base", "rl"]
    k: Annotated[int, Field(ge=1)]
    pass_k: Score
    url: Link


def load_rows() -> pd.DataFrame:
    """Read pre_post_rl.csv: one row per checkpoint, scores in per cent. Raises ParameterError for a bad row."""
    return _read("pre_post_rl", Row, ["group", "candidate", "rl_run", "benchmark"])


def load_curves() -> pd.DataFrame:
    """Read limit_of_rlvr_curves.csv: one row per point of a curve, in per cent. Raises ParameterError for a bad row."""
    return _read("limit_of_rlvr_curves", Point, [*CURVE, "stage", "k"])


def _read(name: str, model: type[BaseModel], keys: list[str]) -> pd.DataFrame:
    frame = pd.read_csv(FOLDER / f"{name}.csv")
    for line, values in enumerate(frame.astype(object).where(frame.notna(), None).to_dict("records"), start=2):
        try:
            model.model_validate(values)
        except ValidationError as error:
            wrong = parameter_error(error, values, "row")
            raise ParameterError(f"{name}.csv", reason=f"line {line}: {wrong}") from None
    if frame.duplicated(keys).any():
        raise ParameterError(f"{name}.csv", reason=f"line {int(frame.duplicated(keys).argmax()) + 2} repeats another")
    return frame


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that compare candidates: two or more of one source, RL run, benchmark and stage.

    As a candidate frame (family is the group; scores are shares), so that rankings, forecasts and claims read it.
    kind: SFT checkpoints, base checkpoints (of one pretraining run), or different models, which answer another
    question: which model to start from.
    """
    rows = rows.dropna(subset=["pass1_post"]).assign(trained=lambda table: table["pre_stage"] != "base")
    groups = rows.groupby([*COMPARED, "trained"], sort=False)
    several = groups["base_model"].transform("nunique") > 1
    kind = np.where(several, KINDS[2], np.where(rows["trained"], KINDS[0], KINDS[1]))
    shares = {name: rows[column] / 100 for name, column in _SCORES.items()}
    fixed = {"selection": "published", "scenario": "dataset", "n_runs": 1, "budget": ""}
    frame = rows.assign(kind=kind, family=rows["group"], stands_for=rows["base_model"], **fixed, **shares)
    whole = frame["k"].fillna(0).astype(int)
    frame = frame.assign(k=whole, gen_loss=frame["val_loss_pre"], gain=frame["outcome"] - frame["pass1"])
    return frame[groups["candidate"].transform("nunique") > 1].reset_index(drop=True)


_SCORES = {
    **{"pass1": "pass1_pre", "pass_k": "pass_k_pre", "pass_k_mid": "pass_k_mid_pre"},
    **{"outcome": "pass1_post", "outcome_equal": "pass1_post_equal"},
}


def pooled(groups: Sequence[ArrayLike], seed: int = 0) -> Array:
    """Return the mean over groups, (1 + n_resamples,): the estimate, then resamples that draw the groups too.

    groups: a column of `bootstrap_scores` each, estimate first. A group that is undefined in a resample is left out.
    """
    table = np.array(groups)
    times = np.random.default_rng(seed).multinomial(len(table), np.full(len(table), 1 / len(table)), table.shape[1]).T
    times[:, 0] = 1
    known = times * ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        return (known * np.nan_to_num(table)).sum(axis=0) / known.sum(axis=0)


def tries_worth(ks: ArrayLike, pass_k: ArrayLike, after: float) -> float:
    """Return the k at which a rising Pass@k curve reaches `after`, between its points on the scale of log k.

    0 if the curve begins above `after`, infinite if it ends below.
    """
    return float(np.exp(np.interp(after, pass_k, np.log(ks), left=-np.inf, right=np.inf)))
