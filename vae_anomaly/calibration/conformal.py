"""Conformal p-values: the rank of a new score among scores of rows that were not trained on."""

from __future__ import annotations

import numpy as np

from vae_anomaly.core.types import Detector, Floats

__all__ = ["check_calibrated", "p_values"]


def p_values(scores: Floats, calibration: Floats) -> Floats:
    """Conformal p-values: (1 + how many of the n ``calibration`` scores are not smaller) / (n + 1)."""
    n_smaller = np.searchsorted(np.sort(calibration), scores, side="left")
    return np.asarray((1 + len(calibration) - n_smaller) / (1 + len(calibration)))


def check_calibrated(detector: Detector) -> Floats:
    """The fitted detector's scores of rows that were not trained on; a ValueError if it has none."""
    if detector.calibration_scores_ is None:
        raise ValueError(
            "p-values need scores of rows that were not trained on: fit with calibration='folds', "
            f"with a fraction such as calibration=0.2, or with threshold='conformal'; now calibration="
            f"{detector.calibration!r} and threshold={detector.threshold!r}."
        )
    return np.asarray(detector.calibration_scores_)
