"""Fitting: the order of a fit, from rows that came through the detector's door to a cut among scores.

Everything that is "auto" has been decided, in one record (`ensemble.decisions`); seeds are drawn once; then
rows are prepared, members trained and balanced, and the threshold rule cuts. The detector is not known here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from vae_anomaly import masks, scoring, thresholds
from vae_anomaly.calibration import rows as calibration_rows
from vae_anomaly.calibration.intervals import floors_of
from vae_anomaly.core.rows import evenly_spaced, locating
from vae_anomaly.core.types import (
    Array,
    Floats,
    Matrix,
    ThresholdRule,
)
from vae_anomaly.data.cache import CachedRows
from vae_anomaly.data.lazy import concatenate, fingerprint, subset
from vae_anomaly.data.pixels import pixel_range, pixels
from vae_anomaly.data.preparation import Preparation
from vae_anomaly.data.reading import TrainingRows
from vae_anomaly.data.scaling import block_size
from vae_anomaly.data.streams import Stream
from vae_anomaly.data.tables import Table
from vae_anomaly.ensemble import averaging, cells, fit_warnings
from vae_anomaly.ensemble.decisions import Decisions
from vae_anomaly.ensemble.earlier import Earlier
from vae_anomaly.ensemble.fitted import Fitted
from vae_anomaly.ensemble.job import Job, ProgressStore, draw_seeds, left_out_by, make_job
from vae_anomaly.ensemble.members import train_members
from vae_anomaly.likelihoods import Likelihood
from vae_anomaly.training.epochs import append_history
from vae_anomaly.training.interruption import Interruption

__all__ = ["Outcome", "ScoreFold", "fit"]

# Images whose maps tell how pixels' scores spread, their pixels, and scores of those by all members.
_FEWEST_MAPS, _MOST_MAPS, _PIXELS_OF_MAPS, _SCORES_OF_MAPS = 8, 50, 2**21, 2**22
# Large images take long to score: fewer of them make the cut.
_FEWEST_IMAGES_TO_SCORE, _PIXELS_TO_SCORE = 200, 2**27
# Rows whose cells tell how intervals are stretched: each cell takes about a millisecond.
_FEWEST_ROWS_OF_CELLS, _MOST_ROWS_OF_CELLS, _CELLS = 100, 500, 20_000
#: ``(training rows, held-out rows) -> scores``: trains alike on the former and scores the latter.
ScoreFold = Callable[[Matrix, Matrix], Floats]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a fit leaves.

    Attributes
    ----------
    fitted : Fitted
    history : dict of list of float
        With that of an earlier fit, if there is one.
    interrupted : bool
    split_seeds, calibration_seed : what a warm start needs, see `Earlier`
    unseen_scores : float64 array or None
        Scores of rows that their model was not trained on.
    n_rows_seen : int
        Rows of this fit and of those that new rows went on from.
    fingerprint : str
        What the rows are known by again.
    cut : float
    false_alarm_rate : float or None
        What the rule promises for new rows, or what rows that members left out tell of it.
    pixel_quantiles : array or None
        Of images, `masks.pixel_quantiles` of scores of pixels as if they were new.
    """

    fitted: Fitted
    history: dict[str, list[float]]
    interrupted: bool
    split_seeds: list[int]
    calibration_seed: int
    unseen_scores: Floats | None
    n_rows_seen: int
    fingerprint: str
    cut: float
    false_alarm_rate: float | None
    pixel_quantiles: Floats | None


def fit(
    given: TrainingRows,
    decisions: Decisions,
    *,
    table: Table | None,
    names: Array | None,
    earlier: Earlier | None,
    store: ProgressStore | None,
    score_fold: Callable[[Likelihood, int], ScoreFold],
    interruption: Interruption | None = None,
) -> Outcome:
    """Prepare the rows, train and balance the members, and cut.

    Parameters
    ----------
    given : TrainingRows
    decisions : Decisions
    table, names : how columns became numbers, and their names
    earlier : Earlier or None
    store : ProgressStore or None
    score_fold : function
        Of the likelihood and a seed: how a fold is trained and scored.
    interruption : Interruption or None

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C ends what a threshold cannot do without.
    """
    likelihood, parameters = decisions.likelihood, decisions.parameters
    X, stream = _in_units(given, decisions, earlier)
    takes_new_rows = earlier is not None and earlier.continuation.takes_new_rows
    n_rows_seen = 0 if earlier is None else earlier.n_rows_seen
    n_members = len(decisions.recipe.members)
    draws_seed, seeds = draw_seeds(parameters["random_state"], n_members, store, n_rows_seen)
    calibration_seed = draws_seed
    if earlier is not None and earlier.calibration_seed is not None:
        calibration_seed = earlier.calibration_seed
        if decisions.calibration is not None:
            calibration_rows.warn_of_other_rows(given.n_rows, earlier.n_rows)
    kept, held_out = calibration_rows.set_aside(X, decisions.calibration, calibration_seed)
    all_positions = np.arange(X.shape[0]) if given.positions is None else given.positions
    if earlier is not None:
        with locating(given.locate, all_positions):
            earlier.fitted.preparation.check_finite(X)
    positions, unseen_positions = calibration_rows.set_aside(
        all_positions, decisions.calibration, calibration_seed
    )
    if stream is not None:
        stream = stream.without(unseen_positions)
    with locating(given.locate, positions):
        if earlier is not None:
            preparation = earlier.fitted.preparation
            if takes_new_rows:
                preparation = preparation.after(kept if stream is None else stream)
        else:
            preparation = Preparation.fit(
                kept,
                stream,
                table=table,
                names=names,
                image_shape=decisions.image_shape,
                of_images=decisions.of_images,
                patches=decisions.patches,
                likelihood=likelihood,
                scaler=parameters["scaler"],
                n_channels=decisions.network.signal_channels(),
            )
        rows = preparation.training_rows(kept, likelihood)
    with contextlib.ExitStack() as stack:
        cached = None
        if stream is not None and decisions.trains_on_all:
            among_cached = positions - np.searchsorted(np.sort(unseen_positions), positions)
            cached = stack.enter_context(CachedRows(stream.shape[0], rows, among_cached))
            cached.write(
                stream.map(partial(preparation.training_rows, likelihood=likelihood), block_size(X.shape[1]))
            )
        job = make_job(decisions, rows, cached, preparation, draws_seed, seeds, earlier)
        if earlier is None:
            fit_warnings.check_last_activation(job, names)
        elif earlier.warns:
            _warn_of_rows(X, earlier, draws_seed)
        interruption = interruption or Interruption()
        states, history, interrupted, n_collapsed = train_members(
            job,
            callbacks=parameters["callbacks"] or (),
            verbose=int(parameters["verbose"]),
            store=store,
            interruption=interruption,
        )
    if interrupted and takes_new_rows:  # rows of a stream are learned whole or not at all
        raise KeyboardInterrupt
    if n_collapsed and 2 * n_collapsed >= len(states):
        fit_warnings.warn_of_collapse(n_collapsed, len(states), job.plan)
    if interrupted:
        fit_warnings.warn_of_interruption(
            len(states), n_members, len(history["loss"]), interruption.cause, bool(store) and not earlier
        )
    takes_unseen = thresholds.takes_held_out(decisions.rule)
    if held_out.shape[0] and not takes_unseen:  # a fraction of anomalies means all of X
        with locating(given.locate, unseen_positions):
            rows = concatenate(rows, preparation.training_rows(held_out, likelihood))
    chosen = _rows_to_score(decisions, rows, draws_seed)
    fitted, by_member = Fitted.balance(
        preparation,
        states,
        job.draws,
        scoring.resolve(decisions.score, decisions.of_images if decisions.patches is None else None),
        decisions.plan.device,
        tuple(member.pooling for member in decisions.recipe.members[: len(states)]),
        rows if chosen is None else subset(rows, chosen),
    )
    if parameters["calibrate_intervals"]:
        fitted = _with_intervals(fitted, decisions, job, kept, held_out, draws_seed)
    as_new = None
    if decisions.recipe.validation_fraction:
        left_out = left_out_by(job, len(states), len(rows))
        left_out = left_out if chosen is None else left_out[:, chosen]
        # New rows lie farther beyond known ones where these have made the covariance, too.
        as_new = averaging.out_of_bag(by_member, fitted.weights, left_out, fitted.kinds)
    unseen = None
    if isinstance(decisions.calibration, float):
        unseen = fitted.scores(held_out)
    elif isinstance(decisions.calibration, str):  # out of bag
        unseen = as_new
    elif decisions.calibration is not None and not interrupted:
        images = kept if decisions.image_shape is None else kept.reshape(-1, *decisions.image_shape)
        of_fold = score_fold(likelihood, draws_seed)
        unseen = calibration_rows.out_of_fold_scores(of_fold, images, decisions.calibration, draws_seed)
    elif takes_unseen:
        raise KeyboardInterrupt("the threshold needs more trainings: calibration in folds")
    cut, rate = _cut(
        decisions.rule,
        averaging.average(by_member, fitted.weights),
        as_new,
        unseen,
        warns=earlier is None or earlier.warns,
    )
    return Outcome(
        fitted=fitted,
        history=append_history({} if earlier is None else earlier.history, history),
        interrupted=interrupted,
        split_seeds=[own.split for own in job.seeds[: len(states)]],
        calibration_seed=calibration_seed,
        unseen_scores=unseen,
        n_rows_seen=n_rows_seen + given.n_rows,
        fingerprint=fingerprint(X),
        cut=cut,
        false_alarm_rate=rate,
        pixel_quantiles=_pixel_quantiles(fitted, decisions, job, rows),
    )


def _in_units(
    given: TrainingRows, decisions: Decisions, earlier: Earlier | None
) -> tuple[Matrix, Stream | None]:
    """The rows, and the stream that they were drawn from, with pixels in the units that the model sees."""
    X, stream, scaler = given.X, given.stream, decisions.parameters["scaler"]
    if decisions.of_images is None:
        return X, stream
    scaled = scaler is not None and not isinstance(scaler, str)
    in_units = partial(pixels, dtype=given.dtype, likelihood=decisions.likelihood, scaled=scaled)
    fitted_range = None if earlier is None else earlier.fitted.preparation.pixel_range
    X = in_units(X, fitted_range=fitted_range)
    if stream is not None:
        stream = stream.followed_by(partial(in_units, fitted_range=fitted_range or pixel_range(X)))
    return X, stream


def _cut(
    rule: ThresholdRule, scores: Floats, as_new: Floats | None, unseen: Floats | None, *, warns: bool
) -> tuple[float, float | None]:
    """The rule's cut among the scores that it asks for, and the rate of new rows above it, if that is known.

    ``as_new`` are the training rows' scores as if no member had seen them, ``unseen`` those for calibration.
    """
    if thresholds.takes_held_out(rule) and unseen is not None:
        scores = unseen
    elif thresholds.takes_out_of_bag(rule) and as_new is not None:
        scores = as_new
    cut = float(rule.cut(scores))
    rate = thresholds.promised_rate(rule)
    if rate is None and as_new is not None:
        rate = float((as_new > cut).mean())
        if warns:
            fit_warnings.warn_of_more_alarms(float((scores > cut).mean()), rate)
    return cut, rate


def _warn_of_rows(X: Matrix, earlier: Earlier, seed: int) -> None:
    """What is to be said of rows that an earlier fit goes on with."""
    if earlier.continuation.takes_new_rows:
        fit_warnings.warn_of_outside(X, earlier.fitted)
        fit_warnings.warn_of_few_rows(X.shape[0])
        if fingerprint(X) == earlier.fingerprint:
            fit_warnings.warn_of_same_rows()
    if earlier.false_alarm_rate is not None:
        fit_warnings.warn_of_other_data(
            X, earlier.fitted, earlier.cut, earlier.false_alarm_rate, seed, earlier.continuation
        )


def _with_intervals(
    fitted: Fitted, decisions: Decisions, job: Job, kept: Matrix, held_out: Matrix, seed: int
) -> Fitted:
    """The members with intervals of cells, by rows that they, or some of them, have left out."""
    n_members, n_columns = len(fitted.members), kept.shape[1]
    X, left_out = held_out, np.ones((n_members, held_out.shape[0]), dtype=bool)
    if not isinstance(decisions.calibration, float):
        X, left_out = kept, left_out_by(job, n_members, kept.shape[0])
    n_rows = max(_FEWEST_ROWS_OF_CELLS, min(_MOST_ROWS_OF_CELLS, _CELLS // n_columns))
    chosen = np.sort(np.random.RandomState(seed).permutation(X.shape[0])[:n_rows])
    rows = job.rows[evenly_spaced(len(job.rows), thresholds.ROWS_TO_SEE_THE_SPREAD)]
    floors = floors_of(rows.astype(np.float64))
    return cells.calibrate_intervals(fitted, X[chosen], left_out[:, chosen], floors)


def _pixel_quantiles(fitted: Fitted, decisions: Decisions, job: Job, rows: Matrix) -> Floats | None:
    """How the scores of pixels of new normal images spread, by some of the training images."""
    if decisions.of_images is None or fitted.score.per_feature is None:
        return None
    n_images = max(_FEWEST_MAPS, min(_MOST_MAPS, _PIXELS_OF_MAPS // rows.shape[1]))
    chosen = evenly_spaced(len(rows), n_images)
    most_pixels = _SCORES_OF_MAPS // (len(fitted.members) * len(chosen))
    by_member = fitted.pixel_scores(rows[chosen], decisions.of_images, most_pixels)
    n_members, _, n_pixels = by_member.shape
    by_member = by_member.reshape(n_members, -1)
    if not decisions.recipe.validation_fraction:
        return masks.pixel_quantiles(averaging.average(by_member, fitted.weights))
    left_out = np.repeat(left_out_by(job, n_members, len(rows))[:, chosen], n_pixels, axis=1)
    if not left_out.any(axis=1).all():  # some member has none of these images left to judge
        return masks.pixel_quantiles(averaging.average(by_member, fitted.weights))
    return masks.pixel_quantiles(averaging.out_of_bag(by_member, fitted.weights, left_out))


def _rows_to_score(decisions: Decisions, rows: Matrix, seed: int) -> Array | None:
    """Positions of the rows whose scores balance the members, and make the cut unless it is among others.

    None for all of them.
    """
    rule, (n_rows, n_columns) = decisions.rule, rows.shape
    if decisions.calibration == calibration_rows.OUT_OF_BAG:
        return None
    spread = thresholds.ROWS_TO_SEE_THE_SPREAD if thresholds.takes_held_out(rule) else None
    n_scores = getattr(rule, "n_scores", spread)
    if n_scores is not None and decisions.patches is not None:
        n_scores = min(n_scores, max(_FEWEST_IMAGES_TO_SCORE, _PIXELS_TO_SCORE // n_columns))
    if n_scores is None or n_rows <= n_scores:
        return None
    return np.random.RandomState(seed).permutation(n_rows)[:n_scores]
