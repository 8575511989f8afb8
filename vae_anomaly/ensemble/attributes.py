"""Attributes: what a fit leaves as the fitted attributes of a detector, which files hold and users read."""

from __future__ import annotations

from vae_anomaly import scoring
from vae_anomaly.calibration.intervals import CellIntervals
from vae_anomaly.core.types import Detector
from vae_anomaly.data.preparation import Preparation
from vae_anomaly.data.ranges import ColumnRanges
from vae_anomaly.data.reading import TrainingRows
from vae_anomaly.engine.devices import device_of
from vae_anomaly.ensemble.decisions import Decisions
from vae_anomaly.ensemble.earlier import Continuation, Earlier
from vae_anomaly.ensemble.fitted import Fitted
from vae_anomaly.ensemble.fitting import Outcome

__all__ = ["earlier_of", "fitted_of", "take_over"]


def take_over(detector: Detector, outcome: Outcome, decisions: Decisions, given: TrainingRows) -> None:
    """Make what a fit leaves the detector's attributes."""
    fitted = outcome.fitted
    preparation = fitted.preparation
    detector.n_samples_fit_, detector.n_samples_drawn_ = given.n_rows, given.X.shape[0]
    detector.n_samples_seen_ = outcome.n_rows_seen
    detector._rows_fingerprint = outcome.fingerprint
    detector.do_early_stopping_ = decisions.recipe.early_stopping
    detector.image_shape_, detector.patches_ = preparation.image_shape, preparation.patches
    detector.pixel_range_ = preparation.pixel_range
    detector.scaler_ = preparation.scaler
    detector.missing_fraction_ = preparation.missing_fractions
    detector._column_ranges = None if preparation.ranges is None else preparation.ranges.numbers
    detector.members_, detector.draws_ = tuple(fitted.members), fitted.draws
    detector.latent_dim_ = fitted.members[0].specification.latent_dim
    detector.member_weights_, detector._member_levels = fitted.weights, fitted.levels
    detector.member_poolings_, detector._usual_scores = fitted.poolings, fitted.usual_scores
    detector.score_, detector.threshold_ = decisions.score, decisions.rule
    detector.objective_ = decisions.plan.objective
    detector.history_, detector.interrupted_ = outcome.history, outcome.interrupted
    detector._split_seeds, detector._calibration_seed = outcome.split_seeds, outcome.calibration_seed
    detector.calibration_scores_ = outcome.unseen_scores
    intervals = fitted.intervals
    detector.interval_scores_ = None if intervals is None else intervals.scores
    detector._interval_floors = None if intervals is None else intervals.floors
    groups = None if outcome.unseen_scores is None else given.groups
    detector.calibration_groups_ = decisions.calibration.groups(groups, outcome.calibration_seed)
    detector.false_alarm_rate_ = outcome.false_alarm_rate
    detector.offset_, detector._pixel_quantiles = -outcome.cut, outcome.pixel_quantiles


def fitted_of(detector: Detector) -> Fitted:
    """What the fit has left, as functions of rows."""
    network = detector.members_[0].specification.network
    # Files of earlier versions hold none of these.
    patches, ranges = getattr(detector, "patches_", None), getattr(detector, "_column_ranges", None)
    scores = getattr(detector, "interval_scores_", None)
    of_whole_images = network.shape_of_images(detector.image_shape_) if patches is None else None
    return Fitted(
        preparation=Preparation(
            table=detector.table_,
            names=getattr(detector, "feature_names_in_", None),
            image_shape=detector.image_shape_,
            pixel_range=detector.pixel_range_,
            scaler=detector.scaler_,
            missing_fractions=getattr(detector, "missing_fraction_", None),
            patches=patches,
            ranges=None if ranges is None else ColumnRanges.restore(ranges),
        ),
        members=detector.members_,
        draws=detector.draws_,
        score=scoring.resolve(detector.score_, of_whole_images),
        device=device_of(detector.device),
        weights=detector.member_weights_,
        levels=detector._member_levels,
        poolings=getattr(detector, "member_poolings_", (1,) * len(detector.members_)),
        usual_scores=getattr(detector, "_usual_scores", None),
        invalid=detector.invalid,
        intervals=None if scores is None else CellIntervals(scores, detector._interval_floors),
    )


def earlier_of(detector: Detector, continuation: Continuation) -> Earlier:
    """What a fit of this detector goes on from."""
    n_rows, new = getattr(detector, "n_samples_fit_", 0), continuation.takes_new_rows
    return Earlier(
        continuation=continuation,
        fitted=fitted_of(detector),
        cut=-detector.offset_,
        false_alarm_rate=getattr(detector, "false_alarm_rate_", None),
        history=detector.history_,
        split_seeds=None if new else detector._split_seeds,
        calibration_seed=None if new else detector._calibration_seed,
        n_rows=n_rows,
        n_rows_seen=getattr(detector, "n_samples_seen_", n_rows) if new else 0,
        fingerprint=getattr(detector, "_rows_fingerprint", None),
    )
