"""From summed losses of traces to the loss, its standard errors, and its course along a response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data import Trace

if TYPE_CHECKING:
    import pandas as pd

_FIRST = 16  # tokens in the first range of positions; each further range ends at twice the position
_RANGES = 18  # the last one holds all positions from 2^20 on
COLUMNS = 1 + _RANGES  # of summed losses: the whole response, its ranges of positions
_STARTS = np.array([0, *(_FIRST << i for i in range(_RANGES - 1))])
_LENGTH_GROUPS = 10  # most groups of traces by length
_GROUP_TRACES = 5  # fewest traces in a group


@dataclass(frozen=True, eq=False)
class GeneralizationLoss:
    """Loss over a set of traces; `per_trace` has one row per trace, in the order given: id, problem_id, tokens, nll.

    The other tables have the columns traces, tokens, nll, standard_error (over traces) after their keys: `by_position`
    (first, last: positions in the response, from 1), `by_length` (shortest, longest: tokens of the responses, in groups
    of about equal size).
    """

    nll: float  # nats per response token, mean over all response tokens
    standard_error: float  # of `nll`, over traces; NaN for a single trace
    mean_over_traces: float  # mean of the traces' nats per token: every trace weighs the same, however long
    tokens: int  # response tokens, EOS included
    traces: int
    per_trace: pd.DataFrame
    standard_error_over_problems: float  # of `nll`, if traces of one problem are alike; NaN for a single problem
    dropped: int  # traces left out, because they are longer than the model's context
    by_position: pd.DataFrame
    by_length: pd.DataFrame


def position_bin_of(position: np.ndarray) -> np.ndarray:
    """Return the number of the range that holds `position`, both from 0: 0-15, 16-31, 32-63, 64-127, ..."""
    return np.searchsorted(_STARTS, position, side="right") - 1


def summarise(traces: Sequence[Trace], sums: np.ndarray, tokens: np.ndarray, *, dropped: int = 0) -> GeneralizationLoss:
    """Return the loss from summed losses in nats (traces, COLUMNS) and response tokens (traces,).

    Raise ParameterError if a loss is not a number.
    """
    import pandas as pd

    total = sums[:, 0].copy()
    undefined = int(np.isnan(total).sum())
    if undefined:
        raise ParameterError("model", reason=f"the loss of {undefined} of {len(total)} traces is not a number")
    nll, error = _ratio(total, tokens)
    ids = {name: [getattr(trace, name) for trace in traces] for name in ("id", "problem_id")}
    frame = pd.DataFrame({**ids, "tokens": tokens, "nll": total / tokens})
    _, problem = np.unique(frame["problem_id"].to_numpy(dtype=str), return_inverse=True)
    over_problems = _ratio(np.bincount(problem, weights=total), np.bincount(problem, weights=tokens))
    starts = np.append(_STARTS, np.iinfo(np.int64).max)
    in_range = np.diff(np.minimum(starts[None, :], tokens[:, None]), axis=1)
    used = int(np.flatnonzero(in_range.sum(0))[-1]) + 1
    return GeneralizationLoss(
        nll=nll,
        standard_error=error,
        mean_over_traces=float(frame["nll"].mean()),
        tokens=int(tokens.sum()),
        traces=len(total),
        per_trace=frame,
        standard_error_over_problems=over_problems[1],
        dropped=dropped,
        by_position=_table(
            {"first": starts[:used] + 1, "last": np.minimum(starts[1 : used + 1], tokens.max())},
            sums[:, 1 : 1 + used],
            in_range[:, :used],
        ),
        by_length=_by_length(total, tokens),
    )


def _ratio(sums: np.ndarray, tokens: np.ndarray) -> tuple[float, float]:
    """Return nats per token over traces (traces,), and its standard error; NaN for what is undefined."""
    count, total = len(sums), int(tokens.sum())
    if total == 0:
        return math.nan, math.nan
    nll = float(sums.sum() / total)
    residuals = sums - nll * tokens
    error = math.sqrt(count / (count - 1) * float(residuals @ residuals)) / total if count > 1 else math.nan
    return nll, error


def _table(keys: dict[str, np.ndarray], sums: np.ndarray, tokens: np.ndarray) -> pd.DataFrame:
    """Return a row per column of `sums` and `tokens` (traces, parts), over the traces that have tokens there."""
    import pandas as pd

    ratios = [_ratio(s[n > 0], n[n > 0]) for s, n in zip(sums.T, tokens.T, strict=True)]
    sizes = {"traces": (tokens > 0).sum(0), "tokens": tokens.sum(0)}
    nll, error = zip(*ratios, strict=True)
    return pd.DataFrame({**keys, **sizes, "nll": nll, "standard_error": error})


def _by_length(sums: np.ndarray, tokens: np.ndarray) -> pd.DataFrame:
    """Return groups of about equally many traces, by length; traces of one length share a group."""
    groups = min(_LENGTH_GROUPS, max(1, len(tokens) // _GROUP_TRACES))
    ends = np.unique(np.quantile(tokens, np.arange(1, groups + 1) / groups, method="lower"))
    group = np.searchsorted(ends, tokens, side="left")
    numbers = np.unique(group)
    members = group[:, None] == numbers[None, :]
    keys = {
        "shortest": np.array([tokens[inside].min() for inside in members.T]),
        "longest": np.array([tokens[inside].max() for inside in members.T]),
    }
    return _table(keys, np.where(members, sums[:, None], 0.0), np.where(members, tokens[:, None], 0))
