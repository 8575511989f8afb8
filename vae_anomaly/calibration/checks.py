"""What promises need: probabilities, and a detector with scores of rows that were not trained on."""

from __future__ import annotations

from numbers import Real

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from vae_anomaly.core.types import Detector, Floats

__all__ = [
    "check_calibrated",
    "check_p_values",
    "check_probability",
    "find_held_out_scores",
    "held_out_scores",
]


def check_probability(value: object, name: str) -> None:
    """Refuse what does not lie between 0 and 1."""
    if not isinstance(value, Real) or not 0 < float(value) < 1:
        raise ValueError(f"{name} must lie in (0, 1); received {value!r}.")


def check_p_values(p_values: npt.ArrayLike) -> Floats:
    """As an array of shape (n_rows,); refuse what is not a number in [0, 1] for each row."""
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p-values must be one number in [0, 1] for each row; received {values!r}.")
    return values


def check_calibrated(detector: Detector, asks: str) -> Floats:
    """The fitted detector's scores of rows that were not trained on.

    If it has none, a ValueError that begins with ``asks``: what needs such scores.
    """
    if detector.calibration_scores_ is None:
        raise ValueError(
            f"{asks} scores of rows that were not trained on: fit with calibration='folds', "
            f"with a fraction such as calibration=0.2, or with threshold='conformal'; now calibration="
            f"{detector.calibration!r} and threshold={detector.threshold!r}."
        )
    return np.asarray(detector.calibration_scores_)


def find_held_out_scores(detector: Detector) -> Floats | None:
    """The scores of rows that were held out of training; None if there are none, or other models' scores."""
    scores = detector.calibration_scores_
    # Out of bag and in folds, every row that `fit` took has a score.
    n_taken = getattr(detector, "n_samples_drawn_", getattr(detector, "n_samples_fit_", None))
    if scores is None or len(scores) == n_taken:
        return None
    return np.asarray(scores, dtype=float)


def held_out_scores(detector: Detector, asks: str) -> Floats:
    """The same of a fitted detector, or a ValueError that begins with ``asks``: what needs such scores."""
    check_is_fitted(detector)
    scores = find_held_out_scores(detector)
    if scores is None:
        by_others = "" if detector.calibration_scores_ is None else " (members or folds score)"
        raise ValueError(
            f"{asks} scores of rows that were held out of training: fit with a fraction such as "
            f"calibration=0.2; now calibration={detector.calibration!r}{by_others} and "
            f"threshold={detector.threshold!r}."
        )
    return scores
