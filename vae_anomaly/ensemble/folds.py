"""Folds: rows scored by a detector that is trained on the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from sklearn.base import clone

from vae_anomaly.core.types import Estimator, Floats, Matrix
from vae_anomaly.ensemble import fitting
from vae_anomaly.ensemble.decisions import Decisions
from vae_anomaly.ensemble.fitting import Earlier, ScoreFold
from vae_anomaly.likelihoods import Likelihood
from vae_anomaly.thresholds import TukeyFence

__all__ = ["score_folds_from", "score_folds_like"]


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


def score_folds_from(earlier: Earlier, decisions: Decisions) -> Callable[[Likelihood, int], ScoreFold]:
    """The same by models that go on from those of an earlier fit, which has seen none of the rows."""

    def of_seed(_: Likelihood, seed: int) -> ScoreFold:
        of_fold = replace(
            decisions,
            rule=TukeyFence(),
            calibration=None,
            parameters={**decisions.parameters, "callbacks": None, "verbose": 0, "random_state": seed},
        )

        def score_fold(trained_on: Matrix, held_out: Matrix) -> Floats:
            outcome = fitting.fit(
                _flat(trained_on),
                trained_on.dtype,
                of_fold,
                table=earlier.fitted.preparation.table,
                names=earlier.fitted.preparation.names,
                earlier=replace(earlier, warns=False),
                store=None,
                score_fold=of_seed,
            )
            return outcome.fitted.scores(_flat(held_out))

        return score_fold

    return of_seed


def _flat(X: Matrix) -> Matrix:
    """Images as rows."""
    return X if X.ndim == 2 else X.reshape(len(X), -1)
