"""Calibration rows: which rows the calibration scores are of, and which models score them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.model_selection import KFold, train_test_split

from vae_anomaly.core import parallel
from vae_anomaly.core.types import Array, Floats, Matrix, Splitter

__all__ = ["CalibrationRows", "out_of_fold_scores", "resolve"]

# A fifth of so many are a hundred: enough for a rate of 1 %, guaranteed. Others promise it only nearly.
_ROWS_ENOUGH_TO_SPLIT = 500
_FRACTION, _ROWS_AT_MOST, _FOLDS = 0.2, 10_000, 5


@dataclass(frozen=True)
class CalibrationRows:
    """Which rows the calibration scores are of: at most one of three ways, or no rows.

    Attributes
    ----------
    fraction : float or None
        Of the rows: these are held out of training.
    splitter : splitter or None
        Models of folds score all rows, each by one that has not seen it.
    out_of_bag : bool
        Members judge all rows as ones that they were not trained on, see `ensemble.averaging.out_of_bag`.
    """

    fraction: float | None = None
    splitter: Splitter | None = None
    out_of_bag: bool = False

    @property
    def are_any(self) -> bool:
        """Whether there are to be calibration scores."""
        return self != CalibrationRows()

    def count_scores(self, n_rows: int) -> int:
        """How many calibration scores there will be."""
        if self.fraction is not None:
            return round(self.fraction * n_rows)
        return n_rows if self.are_any else 0

    def set_aside(self, X: Matrix, seed: int) -> tuple[Matrix, Matrix]:
        """The rows to train on, and those that are held out."""
        if self.fraction is None:
            return X, X[:0]
        n_rows = X.shape[0]
        kept, held_out = train_test_split(
            np.arange(n_rows), test_size=self.count_scores(n_rows), random_state=seed
        )
        return X[kept], X[held_out]

    def groups(self, labels: Array | None, seed: int) -> Array | None:
        """The groups of the rows that calibration scores are of, in their order, if all rows have these."""
        if labels is None or self.fraction is None:
            return labels
        held_out: Array = self.set_aside(labels, seed)[1]
        return held_out

    def check_groups(self, labels: Array | None) -> None:
        """Refuse groups if no calibration rows tell them apart, before anything is trained."""
        if labels is not None and not self.are_any:
            raise ValueError(
                "groups are told apart by calibration rows, and nothing asks for any: set "
                "threshold='conformal', or calibration to a fraction such as 0.2 or to 'folds'."
            )

    def check_no_folds(self, n_rows: int) -> None:
        """Refuse folds where all of many rows are trained on: models of folds would see far fewer."""
        if self.splitter is not None:
            raise ValueError(
                f"calibration in folds needs its rows in memory, and all {n_rows:,} rows are to be trained "
                "on: set calibration to 'out_of_bag' or to a fraction such as 0.1, or max_samples to a "
                "number of rows to draw."
            )


def resolve(
    calibration: str | float | Splitter | None, wanted: bool, n_rows: int, *, leaves_rows_out: bool
) -> CalibrationRows:
    """What ``calibration`` means for so many rows.

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
        return CalibrationRows()
    if isinstance(calibration, str) and calibration == "out_of_bag":
        if not leaves_rows_out:
            raise ValueError(
                "calibration='out_of_bag' needs members that leave rows out of their training: set "
                "validation_fraction, for example to 0.2, or calibration to 'folds'."
            )
        return CalibrationRows(out_of_bag=True)
    if isinstance(calibration, str):
        folds: Splitter = KFold(_FOLDS, shuffle=True)
        calibration = folds
    if isinstance(calibration, Integral):
        raise ValueError(
            f"calibration={calibration!r} may mean folds or rows: set a splitter such as "
            f"KFold({max(2, calibration)}, shuffle=True) for folds, or a fraction such as {calibration}/n to "
            f"hold out {calibration} of n rows."
        )
    if not isinstance(calibration, (float, Real)):
        n_folds = getattr(calibration, "n_splits", 0)
        if n_folds > n_rows:
            raise ValueError(
                f"calibration in {n_folds} folds needs at least as many rows; received {n_rows}."
            )
        _folds_of(calibration, n_rows, seed=0)  # what it cannot do is known before a training
        return CalibrationRows(splitter=calibration)
    if not 1 <= round(float(calibration) * n_rows) <= n_rows - 2:
        raise ValueError(
            f"calibration={calibration:g} must hold out at least 1 of the {n_rows} rows and leave at least "
            "2; change it, or set 'folds'."
        )
    return CalibrationRows(fraction=float(calibration))


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
    folds = _folds_of(splitter, n_rows, seed)
    scores = np.empty(n_rows)
    if parallel.find_place().elsewhere:
        by_fold = parallel.map_elsewhere(_score_fold, (score_fold, X), folds)
    else:  # whose members are trained at once
        by_fold = [_score_fold(score_fold, X, fold) for fold in folds]
    for (_, held_out), of_fold in zip(folds, by_fold, strict=True):
        scores[held_out] = of_fold
    return scores


def _folds_of(splitter: Splitter, n_rows: int, seed: int) -> list[tuple[Array, Array]]:
    """Positions of the rows to train on and of the held-out ones, of each fold."""
    seeded: Any = copy.copy(splitter)
    if getattr(seeded, "shuffle", False) and getattr(seeded, "random_state", 0) is None:
        seeded.random_state = seed
    try:
        folds = list(seeded.split(np.zeros((n_rows, 1))))
    except (TypeError, ValueError) as error:  # of those that need labels or groups
        raise ValueError(
            f"calibration={splitter!r} must split rows that have neither labels nor groups, as KFold does: "
            f"{error}"
        ) from error
    times = np.bincount(np.concatenate([held_out for _, held_out in folds]), minlength=n_rows)
    if (times != 1).any():
        row = int(np.argmax(times != 1))
        raise ValueError(
            f"calibration must hold out each row exactly once, as KFold does; {splitter!r} holds out row "
            f"{row} {times[row]} times."
        )
    return folds


def _score_fold(
    score_fold: Callable[[Matrix, Matrix], Floats], X: Matrix, fold: tuple[Array, Array]
) -> Floats:
    trained_on, held_out = fold
    return score_fold(X[trained_on], X[held_out])
