"""Folds: rows scored by a detector that is trained on the others.

How a fold is scored travels to other processes: it is a function of this module with its first arguments.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from sklearn.base import clone

from vae_anomaly.core.types import Detector, Estimator, Floats, Matrix
from vae_anomaly.data.reading import TrainingRows
from vae_anomaly.ensemble import attributes, fitting
from vae_anomaly.ensemble.calibration_rows import CalibrationRows
from vae_anomaly.ensemble.decisions import Decisions
from vae_anomaly.ensemble.earlier import PARTIAL_FIT
from vae_anomaly.ensemble.fitting import ScoreFold
from vae_anomaly.likelihoods import Likelihood
from vae_anomaly.thresholds import OutOfBag

# Nobody asks for the cut of a fold's models: by this rule it warns of nothing.
_NO_RULE = OutOfBag(0.5)
# What a fold has no use for, and callbacks may not travel.
_ALONE = {"callbacks": None, "verbose": 0, "calibrate_intervals": False}

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
            checkpoint=None,
            random_state=seed,
            **_ALONE,
        )
        return partial(_fit_and_score, unfitted)

    return of_seed


def _fit_and_score(unfitted: Estimator, trained_on: Matrix, held_out: Matrix) -> Floats:
    of_fold = clone(unfitted).fit(trained_on)
    if of_fold.interrupted_:  # its rows would be scored by another kind of detector
        raise KeyboardInterrupt
    return np.asarray(-of_fold.score_samples(held_out))


def score_folds_from(detector: Detector, decisions: Decisions) -> Callable[[Likelihood, int], ScoreFold]:
    """The same by models that go on from the detector's, as it is now, which have seen none of the rows."""
    before: Detector = copy.copy(detector)
    before.callbacks = None  # which may not travel

    def of_seed(_: Likelihood, seed: int) -> ScoreFold:
        parameters = {**decisions.parameters, **_ALONE, "random_state": seed}
        of_fold = replace(decisions, rule=_NO_RULE, calibration=CalibrationRows(), parameters=parameters)
        return partial(_go_on_and_score, before, of_fold)

    return of_seed


def _go_on_and_score(
    detector: Detector, decisions: Decisions, trained_on: Matrix, held_out: Matrix
) -> Floats:
    earlier = replace(attributes.earlier_of(detector, PARTIAL_FIT), warns=False)
    outcome = fitting.fit(
        TrainingRows(_flat(trained_on), None, trained_on.dtype, trained_on.shape[0]),
        decisions,
        table=detector.table_,
        names=getattr(detector, "feature_names_in_", None),
        earlier=earlier,
        store=None,
        score_fold=score_folds_from(detector, decisions),
    )
    return outcome.fitted.scores(_flat(held_out))


def _flat(X: Matrix) -> Matrix:
    """Images as rows."""
    return X if X.ndim == 2 else X.reshape(len(X), -1)
