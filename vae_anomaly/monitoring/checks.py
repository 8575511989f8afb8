"""What monitoring needs of a detector and of a rate."""

from __future__ import annotations

from numbers import Real

import numpy as np
from sklearn.utils.validation import check_is_fitted

from vae_anomaly.core.types import Detector, Floats

__all__ = ["check_rate", "held_out_scores"]


def held_out_scores(detector: Detector) -> Floats:
    """The fitted detector's scores of rows that were held out of training; a ValueError if it has none."""
    check_is_fitted(detector)
    scores = detector.calibration_scores_
    if scores is None or len(scores) == getattr(detector, "n_samples_fit_", None):
        by_folds = "" if scores is None else " (folds are scored by other models)"
        raise ValueError(
            "drift is measured against scores of rows that were held out of training: fit with a fraction "
            f"such as calibration=0.2; now calibration={detector.calibration!r}{by_folds} and "
            f"threshold={detector.threshold!r}."
        )
    return np.asarray(scores, dtype=float)


def check_rate(rate: object) -> None:
    """Refuse what is not a probability between 0 and 1."""
    if not isinstance(rate, Real) or not 0 < float(rate) < 1:
        raise ValueError(f"false_alarm_rate must lie in (0, 1); received {rate!r}.")
