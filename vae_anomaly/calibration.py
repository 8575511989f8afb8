r"""Calibration: scores of rows that the model has not been trained on, and what they say of a new row.

A flexible model gives its own training rows lower scores than new rows of the same kind, so a cut among
training scores makes more false alarms than it says. Rows held out of training have honest scores. Either a
fraction of the rows is set aside, or, where rows are few, every row is scored by a model that was trained
without it (cross-fitting): this uses all rows, and costs one more fit for each fold.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.model_selection import KFold, train_test_split

from vae_anomaly.core.types import Detector, Flags, Floats, Matrix, Splitter

__all__ = ["discoveries", "p_values"]

# A fifth of so many are a hundred: enough for a rate of 1 %, guaranteed. Folds promise it only nearly.
_ROWS_ENOUGH_TO_SPLIT = 500
_FRACTION, _ROWS_AT_MOST, _FOLDS = 0.2, 10_000, 5

_METHODS = {"positive": "bh", "any": "by"}


def resolve(calibration: str | float | Splitter | None, wanted: bool, n_rows: int) -> float | Splitter | None:
    """What the detector's ``calibration`` means for so many rows: a fraction, a splitter, or None.

    Parameters
    ----------
    calibration : "auto", "folds", float, splitter or None
    wanted : bool
        Whether the threshold rule needs scores of rows that were not trained on.
    n_rows : int

    Raises
    ------
    ValueError
        If the rule needs such scores and ``calibration`` is None, if there are too few rows, or for an int.
    """
    if isinstance(calibration, str) and calibration == "auto":
        fraction = min(_FRACTION, _ROWS_AT_MOST / n_rows)
        calibration = ("folds" if n_rows < _ROWS_ENOUGH_TO_SPLIT else fraction) if wanted else None
    if calibration is None:
        if wanted:
            raise ValueError(
                "this threshold needs scores of rows that were not trained on, but calibration is None; set "
                "calibration='auto', a fraction such as 0.2, or 'folds'."
            )
        return None
    if isinstance(calibration, str):
        folds: Splitter = KFold(_FOLDS, shuffle=True)
        calibration = folds
    if isinstance(calibration, Integral):
        raise ValueError(
            f"calibration={calibration!r} may mean folds or rows: set a splitter such as "
            f"KFold({max(2, calibration)}, shuffle=True) for folds, or a fraction such as {calibration}/n to "
            f"hold out {calibration} of n rows."
        )
    if not isinstance(calibration, Real):
        n_folds = getattr(calibration, "n_splits", 0)
        if n_folds > n_rows:
            raise ValueError(
                f"calibration in {n_folds} folds needs at least as many rows; received {n_rows}."
            )
        return calibration
    if not 1 <= round(float(calibration) * n_rows) <= n_rows - 2:
        raise ValueError(
            f"calibration={calibration:g} must hold out at least 1 of the {n_rows} rows and leave at least "
            "2; change it, or set 'folds'."
        )
    return float(calibration)


def set_aside(X: Matrix, calibration: float | Splitter | None, seed: int) -> tuple[Matrix, Matrix]:
    """The rows to train on, and those to hold out if ``calibration`` is a fraction."""
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
    score_fold: Callable[[Matrix, Matrix], Floats], X: Matrix, splitter: Splitter, seed: int
) -> Floats:
    """Each row's anomaly score by a model that was trained without the row's fold.

    Parameters
    ----------
    score_fold : function
        ``(training rows, held-out rows) -> scores`` of the held-out rows.
    X : array of shape (n_rows, ...) or CSR table
    splitter : object with ``split``, such as `sklearn.model_selection.KFold`
    seed : int
        Of a splitter that shuffles and has no ``random_state`` of its own.

    Raises
    ------
    ValueError
        If the splitter does not hold out each row exactly once.
    """
    n_rows = X.shape[0]
    seeded: Any = copy.copy(splitter)
    if getattr(seeded, "shuffle", False) and getattr(seeded, "random_state", 0) is None:
        seeded.random_state = seed
    folds = list(seeded.split(np.zeros((n_rows, 1))))
    times = np.bincount(np.concatenate([held_out for _, held_out in folds]), minlength=n_rows)
    if (times != 1).any():
        row = int(np.argmax(times != 1))
        raise ValueError(
            f"calibration must hold out each row exactly once, as KFold does; {seeded!r} holds out row "
            f"{row} {times[row]} times."
        )
    scores = np.empty(n_rows)
    for trained_on, held_out in folds:
        scores[held_out] = score_fold(X[trained_on], X[held_out])
    return scores


def p_values(scores: Floats, calibration: Floats) -> Floats:
    """Conformal p-values: (1 + how many of the n ``calibration`` scores are not smaller) / (n + 1)."""
    n_smaller = np.searchsorted(np.sort(calibration), scores, side="left")
    return np.asarray((1 + len(calibration) - n_smaller) / (1 + len(calibration)))


def discoveries(
    p_values: npt.ArrayLike, false_discovery_rate: float = 0.1, dependence: str = "positive"
) -> Flags:
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


def check_calibrated(detector: Detector) -> Floats:
    """The fitted detector's scores of rows that were not trained on; a ValueError if it has none."""
    if detector.calibration_scores_ is None:
        raise ValueError(
            "p-values need scores of rows that were not trained on: fit with calibration='folds', "
            f"with a fraction such as calibration=0.2, or with threshold='conformal'; now calibration="
            f"{detector.calibration!r} and threshold={detector.threshold!r}."
        )
    return np.asarray(detector.calibration_scores_)
