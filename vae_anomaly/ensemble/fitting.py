"""Fitting: the order of a fit, from rows that came through the detector's door to a cut among scores.

Everything that is "auto" has been decided, in one record (`ensemble.decisions`); seeds are drawn once; then
rows are prepared, members trained and balanced, and the threshold rule cuts. The detector is not known here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from vae_anomaly import masks, scoring, thresholds
from vae_anomaly.calibration.intervals import floors_of
from vae_anomaly.core.rows import block_size, evenly_spaced, locating
from vae_anomaly.core.types import (
    Array,
    Floats,
    Matrix,
    ThresholdRule,
)
from vae_anomaly.data.cache import CachedRows
from vae_anomaly.data.lazy import concatenate, fingerprint, subset
from vae_anomaly.data.pixels import pixel_range, pixels, widen_bytes
from vae_anomaly.data.preparation import Preparation
from vae_anomaly.data.reading import TrainingRows
from vae_anomaly.data.streams import Stream
from vae_anomaly.data.tables import Table
from vae_anomaly.ensemble import averaging, calibration_rows, cells, fit_warnings
from vae_anomaly.ensemble.decisions import Decisions
from vae_anomaly.ensemble.earlier import Earlier
from vae_anomaly.ensemble.fitted import Fitted
from vae_anomaly.ensemble.job import Job, ProgressStore, draw_seeds, left_out_by, make_job
from vae_anomaly.ensemble.members import Trained, train_members
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
    X, stream = _in_units(given, decisions, earlier)
    n_rows_seen = 0 if earlier is None else earlier.n_rows_seen
    draws_seed, seeds = draw_seeds(
        decisions.parameters["random_state"], len(decisions.recipe.members), store, n_rows_seen
    )
    calibration_seed = _calibration_seed(draws_seed, given, decisions, earlier)
    split = _set_aside(X, stream, given, decisions, earlier, calibration_seed)
    with locating(given.locate, split.positions):
        preparation = _prepare(split, decisions, earlier, table, names)
        rows = preparation.training_rows(split.kept, decisions.likelihood)
    with contextlib.ExitStack() as stack:
        cached = _cache(split, decisions, preparation, rows, stack)
        job = make_job(decisions, rows, cached, preparation, draws_seed, seeds, earlier)
        if earlier is None:
            fit_warnings.check_last_activation(job, names)
        elif earlier.warns:
            _warn_of_rows(X, earlier, draws_seed)
        trained = _train(job, decisions, earlier, store, interruption or Interruption())
    n_members = len(trained.states)
    if split.held_out.shape[0] and not thresholds.takes_held_out(decisions.rule):
        # A fraction of anomalies means all of X.
        with locating(given.locate, split.held_out_positions):
            rows = concatenate(rows, preparation.training_rows(split.held_out, decisions.likelihood))
    chosen = _rows_to_score(decisions, rows, draws_seed)
    fitted, by_member = Fitted.balance(
        preparation,
        trained.states,
        job.draws,
        scoring.resolve(decisions.score, decisions.of_images if decisions.patches is None else None),
        decisions.plan.device,
        tuple(member.pooling for member in decisions.recipe.members[:n_members]),
        rows if chosen is None else subset(rows, chosen),
    )
    if decisions.parameters["calibrate_intervals"]:
        fitted = _with_intervals(fitted, decisions, job, split, draws_seed)
    as_new = None
    if decisions.recipe.validation_fraction:
        left_out = left_out_by(job, n_members, len(rows))
        left_out = left_out if chosen is None else left_out[:, chosen]
        # New rows lie farther beyond known ones where these have made the covariance, too.
        as_new = averaging.out_of_bag(by_member, fitted.weights, left_out, fitted.kinds)
    score_fold_of = partial(score_fold, decisions.likelihood, draws_seed)
    unseen = _unseen_scores(split, decisions, fitted, as_new, score_fold_of, trained.interrupted, draws_seed)
    cut, rate = _cut(
        decisions.rule,
        averaging.average(by_member, fitted.weights),
        as_new,
        unseen,
        warns=earlier is None or earlier.warns,
    )
    return Outcome(
        fitted=fitted,
        history=append_history({} if earlier is None else earlier.history, trained.history),
        interrupted=trained.interrupted,
        split_seeds=[own.split for own in job.seeds[:n_members]],
        calibration_seed=calibration_seed,
        unseen_scores=unseen,
        n_rows_seen=n_rows_seen + given.n_rows,
        fingerprint=fingerprint(X),
        cut=cut,
        false_alarm_rate=rate,
        pixel_quantiles=_pixel_quantiles(fitted, decisions, job, rows),
    )


class _Split(NamedTuple):
    """The rows to train on and those that calibration holds out.

    ``positions`` and ``held_out_positions`` are those among all rows that were handed in, of which these may
    be some. ``stream`` are all of them but for those held out, or None if there are no others.
    """

    kept: Matrix
    held_out: Matrix
    positions: Array
    held_out_positions: Array
    stream: Stream | None


def _calibration_seed(drawn: int, given: TrainingRows, decisions: Decisions, earlier: Earlier | None) -> int:
    """Decides which rows are held out: a warm start holds out those that the earlier fit held out."""
    if earlier is None or earlier.calibration_seed is None:
        return drawn
    if decisions.calibration.are_any:
        fit_warnings.warn_of_other_calibration_rows(given.n_rows, earlier.n_rows)
    return earlier.calibration_seed


def _set_aside(
    X: Matrix,
    stream: Stream | None,
    given: TrainingRows,
    decisions: Decisions,
    earlier: Earlier | None,
    seed: int,
) -> _Split:
    """Hold rows out for calibration."""
    all_positions = np.arange(X.shape[0]) if given.positions is None else given.positions
    if earlier is not None:
        with locating(given.locate, all_positions):
            earlier.fitted.preparation.check_finite(X)
    kept, held_out = decisions.calibration.set_aside(X, seed)
    positions, held_out_positions = decisions.calibration.set_aside(all_positions, seed)
    if stream is not None:
        stream = stream.without(held_out_positions)
    return _Split(kept, held_out, positions, held_out_positions, stream)


def _prepare(
    split: _Split, decisions: Decisions, earlier: Earlier | None, table: Table | None, names: Array | None
) -> Preparation:
    """How rows become what models see: as the earlier fit has learned it, or learned of these rows."""
    if earlier is None:
        return Preparation.fit(
            split.kept,
            split.stream,
            table=table,
            names=names,
            image_shape=decisions.image_shape,
            of_images=decisions.of_images,
            patches=decisions.patches,
            likelihood=decisions.likelihood,
            scaler=decisions.parameters["scaler"],
            n_channels=decisions.network.signal_channels(),
        )
    if earlier.continuation.takes_new_rows:
        return earlier.fitted.preparation.after(split.kept if split.stream is None else split.stream)
    return earlier.fitted.preparation


def _cache(
    split: _Split, decisions: Decisions, preparation: Preparation, rows: Matrix, stack: contextlib.ExitStack
) -> CachedRows | None:
    """All rows as models see them, in a file that goes with the stack, if all of many are trained on."""
    if split.stream is None or not decisions.trains_on_all:
        return None
    among_cached = split.positions - np.searchsorted(np.sort(split.held_out_positions), split.positions)
    cached = stack.enter_context(CachedRows(split.stream.shape[0], rows, among_cached))
    prepare = partial(preparation.training_rows, likelihood=decisions.likelihood)
    cached.write(split.stream.map(prepare, block_size(split.kept.shape[1])))
    return cached


def _train(
    job: Job,
    decisions: Decisions,
    earlier: Earlier | None,
    store: ProgressStore | None,
    interruption: Interruption,
) -> Trained:
    """Train the members, and warn of what became of them."""
    trained = train_members(
        job,
        callbacks=decisions.parameters["callbacks"] or (),
        verbose=int(decisions.parameters["verbose"]),
        store=store,
        interruption=interruption,
    )
    n_members = len(trained.states)
    if trained.interrupted and earlier is not None and earlier.continuation.takes_new_rows:
        raise KeyboardInterrupt  # rows of a stream are learned whole or not at all
    if trained.n_collapsed and 2 * trained.n_collapsed >= n_members:
        fit_warnings.warn_of_collapse(
            trained.n_collapsed, n_members, job.plan, decisions.parameters["likelihood"]
        )
    if trained.interrupted:
        fit_warnings.warn_of_interruption(
            n_members,
            len(decisions.recipe.members),
            len(trained.history["loss"]),
            interruption.cause,
            bool(store) and not earlier,
        )
    return trained


def _unseen_scores(
    split: _Split,
    decisions: Decisions,
    fitted: Fitted,
    as_new: Floats | None,
    score_fold_of: Callable[[], ScoreFold],
    interrupted: bool,
    seed: int,
) -> Floats | None:
    """The calibration scores: of rows that those models were not trained on that score them."""
    calibration = decisions.calibration
    if calibration.fraction is not None:
        return fitted.scores(split.held_out)
    if calibration.out_of_bag:
        return as_new
    if calibration.splitter is not None and not interrupted:
        kept = split.kept
        images = kept if decisions.image_shape is None else kept.reshape(-1, *decisions.image_shape)
        return calibration_rows.out_of_fold_scores(score_fold_of(), images, calibration.splitter, seed)
    if thresholds.takes_held_out(decisions.rule):
        raise KeyboardInterrupt("the threshold needs more trainings: calibration in folds")
    return None


def _in_units(
    given: TrainingRows, decisions: Decisions, earlier: Earlier | None
) -> tuple[Matrix, Stream | None]:
    """The rows, and the stream that they were drawn from, with pixels in the units that the model sees."""
    X, stream, scaler = given.X, given.stream, decisions.parameters["scaler"]
    if decisions.of_images is None:
        return widen_bytes(X), None if stream is None else stream.followed_by(widen_bytes)
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
    found = rule.cut(scores.copy())  # a rule of somebody's own may sort in place
    if np.ndim(found) or np.asarray(found).dtype.kind not in "iuf" or np.isnan(found):
        raise ValueError(f"the cut of the threshold rule {rule!r} must be a number; received {found!r}.")
    cut = float(found)
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


def _with_intervals(fitted: Fitted, decisions: Decisions, job: Job, split: _Split, seed: int) -> Fitted:
    """The members with intervals of cells, by rows that they, or some of them, have left out."""
    n_members, n_columns = len(fitted.members), split.kept.shape[1]
    if decisions.calibration.fraction is not None:
        X, left_out = split.held_out, np.ones((n_members, split.held_out.shape[0]), dtype=bool)
    else:
        X, left_out = split.kept, left_out_by(job, n_members, split.kept.shape[0])
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
    if decisions.calibration.out_of_bag:
        return None
    spread = thresholds.ROWS_TO_SEE_THE_SPREAD if thresholds.takes_held_out(rule) else None
    n_scores = getattr(rule, "n_scores", spread)
    if n_scores is not None and decisions.patches is not None:
        n_scores = min(n_scores, max(_FEWEST_IMAGES_TO_SCORE, _PIXELS_TO_SCORE // n_columns))
    if n_scores is None or n_rows <= n_scores:
        return None
    return np.random.RandomState(seed).permutation(n_rows)[:n_scores]
