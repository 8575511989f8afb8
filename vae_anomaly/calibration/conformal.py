"""Conformal prediction: the rank of a new score among scores of rows that were not trained on."""

from __future__ import annotations

import math

import numpy as np

from vae_anomaly.core.types import Array, Floats

__all__ = ["fewest_scores", "p_values", "rank_of", "smallest"]


def p_values(scores: Floats, calibration: Floats) -> Floats:
    """Conformal p-values: (1 + how many of the n ``calibration`` scores are not smaller) / (n + 1)."""
    n_smaller = np.searchsorted(np.sort(calibration), scores, side="left")
    return np.asarray((1 + len(calibration) - n_smaller) / (1 + len(calibration)))


def rank_of(n_scores: int, rate: float) -> int:
    r"""Which of n exchangeable scores a new one exceeds with at most this probability: the k-th smallest.

    .. math:: k = \lceil (n + 1)(1 - \alpha) \rceil
    """
    # Rounded: (n + 1)(1 - alpha) of, say, 0.1 and 9 rows is not the 9 that it means.
    return math.ceil(round((n_scores + 1) * (1 - rate), 9))


def fewest_scores(rate: float) -> int:
    """So many scores it takes for `rank_of` this rate to be the rank of one of them."""
    return math.ceil(round(1 / rate, 9)) - 1


def smallest(scores: Array, rank: int) -> float:
    """The score of this rank: 1 is the smallest."""
    return float(np.partition(scores, rank - 1)[rank - 1])
