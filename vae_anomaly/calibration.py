r"""Calibration: scores of rows that the model has not been trained on, and what they say of a new row.

A flexible model gives its own training rows lower scores than new rows of the same kind, so a cut among
training scores makes more false alarms than it says. Rows held out of training have honest scores. Either a
share of the rows is set aside, or, where rows are few, every row is scored by a model that was trained
without it (cross-fitting): this uses all rows, and costs one more fit for each fold.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.model_selection import KFold, train_test_split

__all__ = [
    "check_calibrated",
    "discoveries",
    "out_of_fold_scores",
    "p_values",
    "resolve",
    "set_aside",
]

# A fifth of so many are a hundred: enough for a rate of 1 %, guaranteed. Folds promise it only nearly.
_ROWS_ENOUGH_TO_SPLIT = 500
_SHARE, _ROWS_AT_MOST, _FOLDS = 0.2, 10_000, 5

_METHODS = {"positive": "bh", "any": "by"}


def resolve(calibration: str | float | None, wanted: bool, n_rows: int) -> int | float | None:
    """What the detector's ``calibration`` means for so many rows: a share, a number of folds, or None.

    Parameters
    ----------
    calibration : "auto", float, int or None
    wanted : bool
        Whether the threshold rule needs scores of rows that were not trained on.
    n_rows : int

    Raises
    ------
    ValueError
        If the rule needs such scores and ``calibration`` is None, or if there are too few rows.
    """
    if isinstance(calibration, str):
        share = min(_SHARE, _ROWS_AT_MOST / n_rows)
        calibration = (_FOLDS if n_rows < _ROWS_ENOUGH_TO_SPLIT else share) if wanted else None
    if calibration is None:
        if wanted:
            raise ValueError(
                "this threshold needs scores of rows that were not trained on, but calibration is None; set "
                "calibration='auto', a share such as 0.2, or a number of folds such as 5."
            )
        return None
    if isinstance(calibration, Integral):
        if calibration > n_rows:
            raise ValueError(
                f"calibration={calibration} folds need at least as many rows; received {n_rows}."
            )
        return int(calibration)
    if not 1 <= round(calibration * n_rows) <= n_rows - 2:
        raise ValueError(
            f"calibration={calibration:g} must hold out at least 1 of the {n_rows} rows and leave at least "
            "2; change it, or set a number of folds."
        )
    return float(calibration)


def set_aside(X: Any, calibration: int | float | None, seed: int) -> tuple[Any, Any]:
    """The rows to train on, and those to hold out if ``calibration`` is a share."""
    if not isinstance(calibration, float):
        return X, X[:0]
    n_rows = X.shape[0]
    kept, held_out = train_test_split(
        np.arange(n_rows), test_size=round(calibration * n_rows), random_state=seed
    )
    return X[kept], X[held_out]


def warn_of_other_rows(n_rows: int, n_rows_before: int) -> None:
    """Warn that a warm start cannot hold out what the earlier fit held out."""
    if n_rows != n_rows_before:
        warnings.warn(
            f"warm_start=True goes on with {n_rows} rows from a fit of {n_rows_before}: rows that the "
            "earlier fit was trained on may be held out now, so that rates and p-values promise too much. "
            "Fit with the same rows, or with warm_start=False.",
            UserWarning,
            stacklevel=3,
        )


def out_of_fold_scores(
    score_fold: Callable[[Any, Any], npt.NDArray[np.float64]], X: Any, n_folds: int, seed: int
) -> npt.NDArray[np.float64]:
    """Each row's anomaly score by a model that was trained without the row's fold.

    Parameters
    ----------
    score_fold : function
        ``(training rows, held-out rows) -> scores`` of the held-out rows.
    X : array of shape (n_rows, ...) or CSR table
    n_folds, seed : int
    """
    scores = np.empty(X.shape[0])
    for trained_on, held_out in KFold(n_folds, shuffle=True, random_state=seed).split(X):
        scores[held_out] = score_fold(X[trained_on], X[held_out])
    return scores


def p_values(
    scores: npt.NDArray[np.float64], calibration: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Conformal p-values: (1 + how many of the n ``calibration`` scores are not smaller) / (n + 1)."""
    n_smaller = np.searchsorted(np.sort(calibration), scores, side="left")
    return np.asarray((1 + len(calibration) - n_smaller) / (1 + len(calibration)))


def discoveries(
    p_values: npt.ArrayLike, false_discovery_rate: float = 0.1, dependence: str = "positive"
) -> npt.NDArray[np.bool_]:
    r"""Anomalies among rows with these p-values, of which on average at most a given share is false.

    Benjamini & Hochberg 1995: with m p-values in ascending order, the k smallest, where k is the largest
    with :math:`p_{(k)} \le k\,\alpha / m`. For p-values under any dependence, Benjamini & Yekutieli 2001
    divide alpha by :math:`\sum_{i=1}^m 1/i`.

    Parameters
    ----------
    p_values : array of shape (n_rows,)
    false_discovery_rate : float, default=0.1
        alpha, in (0, 1): the expected share of normal rows among the selected ones.
    dependence : {"positive", "any"}, default="positive"
        What is known of the p-values. Conformal ones that share a calibration depend positively (Bates et
        al. 2023, "Testing for outliers with conformal p-values"), if the rows themselves are independent;
        "any" is safe for all, and finds less.

    Returns
    -------
    bool array of shape (n_rows,)

    Raises
    ------
    ValueError
        For a rate or p-values outside their ranges, or an unknown dependence.

    Examples
    --------
    >>> from vae_anomaly.calibration import discoveries
    >>> discoveries([0.001, 0.8, 0.02, 0.5])
    array([ True, False,  True, False])
    """
    if not isinstance(false_discovery_rate, Real) or not 0 < false_discovery_rate < 1:
        raise ValueError(f"false_discovery_rate must lie in (0, 1); received {false_discovery_rate!r}.")
    if dependence not in _METHODS:
        raise ValueError(f"dependence must be one of {[*_METHODS]}; received {dependence!r}.")
    adjusted = stats.false_discovery_control(p_values, method=_METHODS[dependence])
    return np.asarray(adjusted <= false_discovery_rate)


def check_calibrated(detector: Any) -> npt.NDArray[np.float64]:
    """The fitted detector's scores of rows that were not trained on; a ValueError if it has none."""
    if detector.calibration_scores_ is None:
        raise ValueError(
            "p-values need scores of rows that were not trained on: fit with calibration=5 (folds), "
            f"with a share such as calibration=0.2, or with threshold='conformal'; now calibration="
            f"{detector.calibration!r} and threshold={detector.threshold!r}."
        )
    return np.asarray(detector.calibration_scores_)
