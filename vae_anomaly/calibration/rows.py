"""Which rows are held out of training, and how rows are scored by models that have not seen them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.model_selection import KFold, train_test_split

from vae_anomaly.core import parallel
from vae_anomaly.core.conventions import warn_user
from vae_anomaly.core.types import Array, Floats, Matrix, Splitter

__all__ = [
    "OUT_OF_BAG",
    "check_groups",
    "check_no_folds",
    "groups_of_calibration",
    "out_of_fold_scores",
    "resolve",
    "set_aside",
    "warn_of_other_rows",
]

#: Every row is judged as one that no member was trained on, see `ensemble.averaging.out_of_bag`.
OUT_OF_BAG = "out_of_bag"

# A fifth of so many are a hundred: enough for a rate of 1 %, guaranteed. Others promise it only nearly.
_ROWS_ENOUGH_TO_SPLIT = 500
_FRACTION, _ROWS_AT_MOST, _FOLDS = 0.2, 10_000, 5


def resolve(
    calibration: str | float | Splitter | None, wanted: bool, n_rows: int, *, leaves_rows_out: bool
) -> float | str | Splitter | None:
    """What ``calibration`` means for so many rows: a fraction, a splitter, `OUT_OF_BAG` or None.

    Parameters
    ----------
    calibration : "auto", "out_of_bag", "folds", float, splitter or None
    wanted : bool
        Whether the threshold rule needs scores of rows that were not trained on.
    n_rows : int
    leaves_rows_out : bool
        Whether members leave rows out of their training.

    Raises
    ------
    ValueError
        If the rule needs such scores and ``calibration`` is None, if there are too few rows, if members are
        to judge rows and leave none out, or for an int.
    """
    if isinstance(calibration, str) and calibration == "auto":
        calibration = None
        if wanted and n_rows >= _ROWS_ENOUGH_TO_SPLIT:
            calibration = min(_FRACTION, _ROWS_AT_MOST / n_rows)
        elif wanted:
            calibration = "folds"
    if calibration is None:
        if wanted:
            raise ValueError(
                "this threshold needs scores of rows that were not trained on, but calibration is None; set "
                "calibration='auto', a fraction such as 0.2, or 'folds'."
            )
        return None
    if isinstance(calibration, str) and calibration == OUT_OF_BAG:
        if not leaves_rows_out:
            raise ValueError(
                "calibration='out_of_bag' needs members that leave rows out of their training: set "
                "validation_fraction, for example to 0.2, or calibration to 'folds'."
            )
        return OUT_OF_BAG
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


def set_aside(X: Matrix, calibration: float | str | Splitter | None, seed: int) -> tuple[Matrix, Matrix]:
    """The rows to train on, and those to hold out if ``calibration`` is a fraction."""
    if not isinstance(calibration, float):
        return X, X[:0]
    n_rows = X.shape[0]
    kept, held_out = train_test_split(
        np.arange(n_rows), test_size=round(calibration * n_rows), random_state=seed
    )
    return X[kept], X[held_out]


def check_groups(labels: Array | None, calibration: float | str | Splitter | None) -> None:
    """Refuse groups where there are no calibration rows to tell them apart by, before anything is trained."""
    if labels is not None and calibration is None:
        raise ValueError(
            "groups are told apart by calibration rows, and nothing asks for any: set threshold='conformal', "
            "or calibration to a fraction such as 0.2 or to 'folds'."
        )


def check_no_folds(calibration: float | str | Splitter | None, n_rows: int) -> None:
    """Refuse folds where all of many rows are trained on: models of folds would see far fewer."""
    if not (calibration is None or isinstance(calibration, (float, str))):
        raise ValueError(
            f"calibration in folds needs its rows in memory, and all {n_rows:,} rows are to be trained on: "
            "set calibration to 'out_of_bag' or to a fraction such as 0.1, or max_samples to a number of "
            "rows to draw."
        )


def groups_of_calibration(
    labels: Array | None, calibration: float | str | Splitter | None, seed: int
) -> Array | None:
    """The groups of the rows that calibration scores are of, in their order."""
    if labels is None:
        return None
    held_out: Array = set_aside(labels, calibration, seed)[1] if isinstance(calibration, float) else labels
    return held_out


def warn_of_other_rows(n_rows: int, n_rows_before: int) -> None:
    """Warn that a warm start cannot hold out what the earlier fit held out."""
    if n_rows != n_rows_before:
        warn_user(
            f"warm_start=True goes on with {n_rows} rows from a fit of {n_rows_before}: rows that the "
            "earlier fit was trained on may be held out now, so that rates and p-values promise too much. "
            "Fit with the same rows, or with warm_start=False.",
            UserWarning,
        )


def out_of_fold_scores(
    score_fold: Callable[[Matrix, Matrix], Floats], X: Matrix, splitter: Splitter, seed: int
) -> Floats:
    """Each row's anomaly score by a model that was trained without the row's fold.

    Folds are scored one after another, or by other processes as `core.parallel.find_place` says.

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
    if parallel.find_place().elsewhere:
        by_fold = parallel.map_elsewhere(_score_fold, (score_fold, X), folds)
    else:  # whose members are trained at once
        by_fold = [_score_fold(score_fold, X, fold) for fold in folds]
    for (_, held_out), of_fold in zip(folds, by_fold, strict=True):
        scores[held_out] = of_fold
    return scores


def _score_fold(
    score_fold: Callable[[Matrix, Matrix], Floats], X: Matrix, fold: tuple[Array, Array]
) -> Floats:
    trained_on, held_out = fold
    return score_fold(X[trained_on], X[held_out])
