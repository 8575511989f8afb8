"""Conformal p-values: the rank of a new score among scores of rows that were not trained on."""

from __future__ import annotations

import numpy as np

from vae_anomaly.core.types import Floats

__all__ = ["p_values"]


def p_values(scores: Floats, calibration: Floats) -> Floats:
    """Conformal p-values: (1 + how many of the n ``calibration`` scores are not smaller) / (n + 1)."""
    n_smaller = np.searchsorted(np.sort(calibration), scores, side="left")
    return np.asarray((1 + len(calibration) - n_smaller) / (1 + len(calibration)))
