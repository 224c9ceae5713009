"""What predicts the outcome of RL: measures before RL, judged by rank correlation, R2 and regret (Sec. 4).

regret(frame["pass_k"], frame["outcome"])     # lost by sending the candidate with the highest Pass@k to RL
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from quagmire_utils.analysis.fits import Array
from quagmire_utils.core.errors import ParameterError


def regret(predicted: ArrayLike, outcome: ArrayLike) -> Array:
    """Return how much of the outcome is lost by choosing the candidate that the predictor ranks first.

    predicted, outcome: (..., candidates), higher is better. The result, (...), is the best outcome minus that of the
    choice, in the unit of the outcome. Candidates that share the first rank count with their mean, so a constant
    predictor has the regret of a random choice; the outcome itself has none. Raises ParameterError for missing values.
    """
    predicted, outcome = np.broadcast_arrays(np.asarray(predicted, np.float64), np.asarray(outcome, np.float64))
    for name, values in (("predicted", predicted), ("outcome", outcome)):
        if not values.size or np.isnan(values).any():
            raise ParameterError(name, reason="every candidate needs a value; leave out candidates without one")
    first = predicted == predicted.max(axis=-1, keepdims=True)
    return outcome.max(axis=-1) - outcome.mean(axis=-1, where=first)
