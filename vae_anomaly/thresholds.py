"""Thresholds: an array of anomaly scores -> the cut above which a row is called an anomaly.

A rule is any object with ``cut(scores) -> float``, where larger scores are more anomalous. It knows
nothing of where the scores came from. To add one: write a class with that method. A rule whose cut a large
sample settles may say how large in an attribute ``n_scores``; it then gets the scores of so many training
rows, drawn at random, where there are more.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval

from vae_anomaly.rows import Rows

__all__ = ["Quantile", "TukeyFence"]


class Quantile(BaseEstimator):  # type: ignore[misc]
    """Call a fixed share of the training rows anomalies, as scikit-learn's detectors do.

    The cut is the (1 - contamination) quantile of the training scores with linear interpolation, so
    that, without ties, that share of the training rows lies above it.

    Parameters
    ----------
    contamination : float, default=0.1
        The share, in (0, 0.5].

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.thresholds import Quantile
    >>> Quantile(0.25).cut(np.array([1.0, 2.0, 3.0, 9.0]))
    4.5
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
    }

    def __init__(self, contamination: float = 0.1) -> None:
        self.contamination = contamination

    def cut(self, scores: npt.NDArray[np.floating]) -> float:
        """The cut for these training scores, an array of shape (n_rows,)."""
        self._validate_params()
        # Through the negated scores, so that the offset is scikit-learn's to the last bit.
        return -float(np.percentile(-scores, 100.0 * self.contamination))


class TukeyFence(BaseEstimator):  # type: ignore[misc]
    r"""Call rows anomalies whose scores stand apart from the bulk, at least a small share of them.

    .. math:: \min\left(Q_3 + k\,(Q_3 - Q_1),\ Q_{1 - m}\right)

    with the quartiles Q of the training scores: Tukey's upper fence, lowered if necessary so that at
    least the share m of the training rows lies above it. Because quartiles hardly move while fewer than
    a quarter of the rows are anomalies, the rule follows the data: a training set with many
    anomalies gets many alarms. This is what ``contamination="auto"`` means. Of more than 2,000 training
    rows, a random 2,000 are scored: the share above their upper 1 % quantile has a standard error of 0.22 %.

    Parameters
    ----------
    reach : float, default=1.5
        k, in interquartile ranges (Tukey 1977, "Exploratory data analysis").
    minimum_share : float, default=0.01
        m, in (0, 0.5].

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.thresholds import TukeyFence
    >>> TukeyFence().cut(np.r_[np.linspace(0, 1, 97), 5.0, 6.0, 7.0]) < 5
    True
    """

    n_scores: ClassVar[int] = 2_000

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "reach": [Interval(Real, 0, None, closed="left")],
        "minimum_share": [Interval(Real, 0, 0.5, closed="right")],
    }

    def __init__(self, reach: float = 1.5, minimum_share: float = 0.01) -> None:
        self.reach = reach
        self.minimum_share = minimum_share

    def cut(self, scores: npt.NDArray[np.floating]) -> float:
        """The cut for these training scores, an array of shape (n_rows,)."""
        self._validate_params()
        lower, upper, top = np.quantile(scores, [0.25, 0.75, 1 - self.minimum_share])
        return float(min(upper + self.reach * (upper - lower), top))


def rows_to_score(rule: Any, rows: Rows, seed: int) -> Rows:
    """The training rows whose scores the rule needs."""
    n_scores = getattr(rule, "n_scores", None)
    if n_scores is None or n_scores >= len(rows):
        return rows
    chosen: Rows = rows[np.random.RandomState(seed).permutation(len(rows))[:n_scores]]
    return chosen


def resolve(threshold: Any, contamination: str | float) -> Any:
    """The rule that a detector's ``threshold`` and ``contamination`` ask for."""
    if threshold is not None:
        return threshold
    return TukeyFence() if isinstance(contamination, str) else Quantile(contamination)
