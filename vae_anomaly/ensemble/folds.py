"""Folds: rows scored by a detector that is trained on the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.base import clone

from vae_anomaly.core.types import Estimator, Floats, Matrix
from vae_anomaly.ensemble.fitting import ScoreFold
from vae_anomaly.likelihoods import Likelihood

__all__ = ["score_folds_like"]


def score_folds_like(detector: Estimator) -> Callable[[Likelihood, int], ScoreFold]:
    """Of a likelihood and a seed: how a fold's rows are scored by a detector with the same parameters."""

    def of_seed(likelihood: Likelihood, seed: int) -> ScoreFold:
        unfitted = clone(detector).set_params(
            likelihood=likelihood,
            threshold=None,
            contamination="auto",
            calibration=None,
            warm_start=False,
            callbacks=None,
            checkpoint=None,
            verbose=0,
            random_state=seed,
        )

        def score_fold(trained_on: Matrix, held_out: Matrix) -> Floats:
            of_fold = clone(unfitted).fit(trained_on)
            if of_fold.interrupted_:  # its rows would be scored by another kind of detector
                raise KeyboardInterrupt
            return np.asarray(-of_fold.score_samples(held_out))

        return score_fold

    return of_seed
