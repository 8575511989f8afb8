"""Attributes: what a fit leaves as the fitted attributes of a detector, which files hold and users read."""

from __future__ import annotations

from vae_anomaly import scoring
from vae_anomaly.calibration import rows as calibration_rows
from vae_anomaly.core.types import Array, Detector
from vae_anomaly.data.preparation import Preparation
from vae_anomaly.ensemble.decisions import Decisions
from vae_anomaly.ensemble.fitted import Fitted
from vae_anomaly.ensemble.fitting import Earlier, Outcome

__all__ = ["earlier_of", "fitted_of", "take_over"]


def take_over(
    detector: Detector, outcome: Outcome, decisions: Decisions, n_rows: int, groups: Array | None
) -> None:
    """Make what a fit leaves the detector's attributes; ``groups`` are those of its rows."""
    fitted = outcome.fitted
    preparation = fitted.preparation
    detector.n_samples_fit_, detector.do_early_stopping_ = n_rows, decisions.recipe.early_stopping
    detector.image_shape_, detector.patches_ = preparation.image_shape, preparation.patches
    detector.pixel_range_ = preparation.pixel_range
    detector.scaler_ = preparation.scaler
    detector.missing_fraction_ = preparation.missing_fractions
    detector.members_, detector.draws_ = tuple(fitted.members), fitted.draws
    detector.latent_dim_ = fitted.members[0].specification.latent_dim
    detector.member_weights_, detector._member_levels = fitted.weights, fitted.levels
    detector._usual_scores = fitted.usual_scores
    detector.score_, detector.threshold_ = decisions.score, decisions.rule
    detector.objective_ = decisions.plan.objective
    detector.history_, detector.interrupted_ = outcome.history, outcome.interrupted
    detector._split_seeds, detector._calibration_seed = outcome.split_seeds, outcome.calibration_seed
    detector.calibration_scores_ = outcome.unseen_scores
    detector.calibration_groups_ = calibration_rows.groups_of_calibration(
        None if outcome.unseen_scores is None else groups, decisions.calibration, outcome.calibration_seed
    )
    detector.false_alarm_rate_ = outcome.false_alarm_rate
    detector.offset_, detector._pixel_quantiles = -outcome.cut, outcome.pixel_quantiles


def fitted_of(detector: Detector) -> Fitted:
    """What the fit has left, as functions of rows."""
    network = detector.members_[0].specification.network
    patches = getattr(detector, "patches_", None)  # files of earlier versions hold none
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
        ),
        members=detector.members_,
        draws=detector.draws_,
        score=scoring.resolve(detector.score_, of_whole_images),
        device=detector.device,
        weights=detector.member_weights_,
        levels=detector._member_levels,
        usual_scores=getattr(detector, "_usual_scores", None),
        invalid=detector.invalid,
    )


def earlier_of(detector: Detector) -> Earlier:
    """What a warm start goes on from."""
    return Earlier(
        fitted=fitted_of(detector),
        cut=-detector.offset_,
        false_alarm_rate=getattr(detector, "false_alarm_rate_", None),
        history=detector.history_,
        split_seeds=detector._split_seeds,
        calibration_seed=detector._calibration_seed,
        n_rows=getattr(detector, "n_samples_fit_", 0),
    )
