"""Fits of a detector, from rows as they are handed in to its fitted attributes.

A first fit, a warm start and a `partial_fit` differ by the `Earlier` that they go on from.
"""

from __future__ import annotations

from dataclasses import replace

import numpy.typing as npt
from scipy import sparse

from vae_anomaly.core.types import Detector, MatrixLike
from vae_anomaly.data.reading import TrainingRows, open_rows, read_groups, read_training_rows
from vae_anomaly.data.wide import is_wide
from vae_anomaly.ensemble import attributes, fitting
from vae_anomaly.ensemble.decisions import decide, n_rows_in_memory, trains_on_all
from vae_anomaly.ensemble.earlier import Earlier
from vae_anomaly.ensemble.folds import score_folds_from, score_folds_like
from vae_anomaly.ensemble.job import ProgressStore, seed_of_draw
from vae_anomaly.training.interruption import Interruption

__all__ = ["fit", "read"]


def read(
    detector: Detector,
    X: MatrixLike,
    groups: npt.ArrayLike | str | None,
    earlier: Earlier | None,
    store: ProgressStore | None = None,
) -> TrainingRows:
    """The rows of a fit and their groups; of many, those that were drawn and the stream of all."""
    X = open_rows(X)
    n_at_most: int | None = n_rows_in_memory(detector.max_samples)
    if sparse.issparse(X) and trains_on_all(detector.max_samples, detector.epochs):
        n_at_most = None  # they are in memory, and would be much larger in a file
    found = read_training_rows(
        detector,
        X,
        None if earlier is None else detector._shape_of_images,
        reset=earlier is None,
        n_at_most=n_at_most,
        seed=lambda: seed_of_draw(
            detector.random_state,
            store,
            None if earlier is None else earlier.calibration_seed,
            0 if earlier is None else earlier.n_rows_seen,
        ),
        verbose=bool(detector.verbose),
    )
    if groups is None:
        return found
    labels = read_groups(X, groups)
    return replace(found, groups=labels if found.positions is None else labels[found.positions])


def fit(
    detector: Detector,
    given: TrainingRows,
    earlier: Earlier | None,
    store: ProgressStore | None,
    interruption: Interruption,
) -> None:
    """Fit the detector to these rows, and make what comes of it its attributes."""
    takes_new_rows = earlier is not None and earlier.continuation.takes_new_rows
    decisions = decide(
        detector.get_params(deep=False),
        detector.table_,
        given.image_shape if earlier is None else detector.image_shape_,
        given.X.shape[0],
        takes_new_rows,
        _is_wide(given, detector) if earlier is None else earlier.whitens_columns,
    )
    decisions.calibration.check_groups(given.groups)
    if given.stream is not None and decisions.trains_on_all:
        decisions.calibration.check_no_folds(given.n_rows)
    outcome = fitting.fit(
        given,
        decisions,
        table=detector.table_,
        names=getattr(detector, "feature_names_in_", None),
        earlier=earlier,
        store=store,
        score_fold=score_folds_from(detector, decisions) if takes_new_rows else score_folds_like(detector),
        interruption=interruption,
    )
    attributes.take_over(detector, outcome, decisions, given)


def _is_wide(given: TrainingRows, detector: Detector) -> bool:
    """Whether members may whiten columns: not of rows that are all trained on from a file."""
    is_cached = given.stream is not None and trains_on_all(detector.max_samples, detector.epochs)
    return not is_cached and is_wide(given.X)
