"""Fits of a detector: its rows are read, everything is decided, it is fitted, and its attributes are set."""

from __future__ import annotations

import numpy.typing as npt

from vae_anomaly.calibration import rows as calibration_rows
from vae_anomaly.core.types import Array, Detector, MatrixLike, Shape
from vae_anomaly.data.reading import TrainingRows, open_rows, read_groups, read_training_rows
from vae_anomaly.ensemble import attributes, fitting
from vae_anomaly.ensemble.decisions import decide
from vae_anomaly.ensemble.folds import score_folds_from, score_folds_like
from vae_anomaly.ensemble.members import PARTIAL_FIT, WARM_START, ProgressStore
from vae_anomaly.training.interruption import Interruption

__all__ = ["fit", "go_on", "read"]


def read(
    detector: Detector,
    X: MatrixLike,
    groups: npt.ArrayLike | str | None,
    *,
    shape_of_images: Shape | None,
    n_at_most: int | None = None,
    store: ProgressStore | None = None,
    is_known: bool = True,
) -> tuple[TrainingRows, Array | None]:
    """The rows of a fit, and the groups of those that were drawn.

    Parameters
    ----------
    detector : VAEDetector
    X, groups : as in `VAEDetector.fit`
    shape_of_images, n_at_most : as in `read_training_rows`
    store : ProgressStore or None
        Knows what was drawn if the fit goes on with an interrupted one.
    is_known : bool
        Whether the detector knows what rows are like; else it learns it from these.
    """
    X = open_rows(X)
    given = read_training_rows(
        detector,
        X,
        shape_of_images,
        reset=not is_known,
        n_at_most=n_at_most,
        seed=lambda: fitting.seed_of_draw(
            detector.random_state, store, detector._calibration_seed if is_known else None
        ),
    )
    labels = None if groups is None else read_groups(X, groups)
    if labels is not None and given.positions is not None:
        labels = labels[given.positions]
    return given, labels


def fit(
    detector: Detector,
    given: TrainingRows,
    labels: Array | None,
    *,
    continues: bool,
    store: ProgressStore | None,
    interruption: Interruption,
) -> None:
    """Fit a detector to rows; if it ``continues``, from the weights of its earlier fit."""
    decisions = decide(
        detector.get_params(deep=False),
        detector.table_,
        detector.image_shape_ if continues else given.image_shape,
        given.X.shape[0],
    )
    calibration_rows.check_groups(labels, decisions.calibration)
    outcome = fitting.fit(
        given,
        decisions,
        table=detector.table_,
        names=getattr(detector, "feature_names_in_", None),
        earlier=attributes.earlier_of(detector, WARM_START) if continues else None,
        store=store,
        score_fold=score_folds_like(detector),
        interruption=interruption,
    )
    attributes.take_over(detector, outcome, decisions, given, labels)


def go_on(
    detector: Detector, given: TrainingRows, labels: Array | None, *, interruption: Interruption
) -> None:
    """Have a fitted detector go on with new rows."""
    decisions = decide(
        detector.get_params(deep=False),
        detector.table_,
        detector.image_shape_,
        given.n_rows,
        takes_new_rows=True,
    )
    calibration_rows.check_groups(labels, decisions.calibration)
    outcome = fitting.fit(
        given,
        decisions,
        table=detector.table_,
        names=getattr(detector, "feature_names_in_", None),
        earlier=attributes.earlier_of(detector, PARTIAL_FIT),
        store=None,
        score_fold=score_folds_from(detector, decisions),
        interruption=interruption,
    )
    attributes.take_over(detector, outcome, decisions, given, labels)
