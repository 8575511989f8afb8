"""What a fit warns of or refuses: decoders that cannot reach the rows, other data, too many alarms."""

from __future__ import annotations

import warnings

import numpy as np
from scipy import stats
from sklearn.exceptions import ConvergenceWarning

from vae_anomaly import thresholds
from vae_anomaly.core.conventions import warn_user
from vae_anomaly.core.rows import column_label
from vae_anomaly.core.types import Array, Matrix
from vae_anomaly.data.lazy import representative
from vae_anomaly.data.preparation import Preparation
from vae_anomaly.engine.programs import architecture, on_device
from vae_anomaly.ensemble.earlier import Continuation
from vae_anomaly.ensemble.fitted import Fitted
from vae_anomaly.ensemble.job import Job
from vae_anomaly.training.plan import Plan

__all__ = [
    "check_last_activation",
    "warn_of_collapse",
    "warn_of_few_rows",
    "warn_of_interruption",
    "warn_of_more_alarms",
    "warn_of_other_data",
    "warn_of_outside",
    "warn_of_same_rows",
]

# Of a column's range: a sigmoid comes near 0 and 1.
_NEARLY = 1e-3
_PATCHES_TO_SEE = 2_048
_COLUMNS_TO_TELL_OF = 5
# Of fewer, nothing is known of a false-alarm rate of 5 %.
_FEWEST_ROWS = 19
# A warm start tells of other data where at least so many rows are anomalies, and chance makes that so rarely.
_MANY_ALARMS, _BY_CHANCE = 0.25, 1e-4


def check_last_activation(job: Job, names: Array | None) -> None:
    """Refuse a decoder that applies the likelihood's link too; warn of one that cannot reach the rows.

    Raises
    ------
    ValueError
        Before any training.
    """
    with on_device(job.plan.device):
        reach = architecture(job.specification).template.reach()
    if reach is None:
        return
    activation, (low, high), repeats_link = reach
    rows = representative(job.rows)
    if job.patches is not None:
        rows = job.patches.draw(rows, _PATCHES_TO_SEE, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # columns without a value
        least, most = np.nanmin(rows, axis=0), np.nanmax(rows, axis=0)
    slack = _NEARLY * (most - least)
    # Where both ends are expected alike, what is expected is not a number that grows with the outputs.
    beyond = (low < high) & ((least < low - slack) | (most > high + slack))
    if not beyond.any():
        return
    column = int(np.argmax(beyond))
    name = column_label(column, names)
    message = (
        f"the decoder ends in the activation {activation!r}, so that with likelihood "
        f"{job.specification.likelihood!r} it expects values from {low[column]:.3g} to "
        f"{high[column]:.3g}, and the scaled training rows hold values from {least[column]:.3g} to "
        f"{most[column]:.3g} ({name}). End the decoder without an activation: the likelihood has the link."
    )
    if repeats_link:
        raise ValueError(message)
    warn_user(message, UserWarning)


def warn_of_interruption(n_trained: int, n_members: int, n_epochs: int, cause: str, resumable: bool) -> None:
    """Say what is left of a training that was ended before its time."""
    of_members = "" if n_members == 1 else f" of {n_trained} of {n_members} members"
    warn_user(
        f"{cause} has ended the training{of_members} after {n_epochs} epochs: the detector works, but was "
        "trained for less than its parameters say. Its attribute interrupted_ is True."
        f"{' fit(X, resume=True) goes on with the training.' if resumable else ''}",
        ConvergenceWarning,
    )


def warn_of_collapse(n_collapsed: int, n_members: int, plan: Plan, likelihood: object) -> None:
    """Warn of members that have learned nothing of what makes images or signals differ."""
    who = "the model has" if n_members == 1 else f"{n_collapsed} of {n_members} members have"
    remedies = [
        "more epochs",
        "beta=1 or less" if plan.beta > 1 else "",
        "" if plan.kl_warm_up else "kl_warm_up=0.5 with early_stopping=False",
        "" if likelihood == "auto" else "likelihood='auto', whose scale is learned",
    ]
    warn_user(
        f"{who} collapsed: what is expected of images or signals that were not trained on is the same for "
        "all of them, and scores only tell how far each is from the mean one. If they hold nothing but "
        "noise, there is no more to learn. Otherwise try "
        f"{', or '.join(filter(None, remedies))}.",
        ConvergenceWarning,
    )


def warn_of_other_data(
    X: Matrix, earlier: Fitted, cut: float, rate: float, seed: int, continuation: Continuation
) -> None:
    """Warn of rows that the earlier fit calls anomalies, far more often than rows like its own."""
    some = np.random.RandomState(seed).permutation(X.shape[0])[: thresholds.ROWS_TO_SEE_THE_SPREAD]
    rows = X[some]
    alarms = earlier.scores(rows) > cut
    by_chance = stats.binom.sf(alarms.sum() - 1, len(some), min(2 * rate, 1.0))
    if by_chance > _BY_CHANCE or alarms.mean() < _MANY_ALARMS:
        return
    where = _column_to_blame(earlier, rows[np.flatnonzero(alarms)])
    warn_user(
        f"{continuation.name} goes on with other data: the earlier fit calls {alarms.mean():.2g} of the rows "
        f"anomalies, where {rate:.2g} would be expected{where}. Scaler, categories and likelihood stay those "
        f"of the earlier fit: {continuation.otherwise} to fit them to these rows.",
        UserWarning,
    )


def warn_of_outside(X: Matrix, earlier: Fitted) -> None:
    """Warn of columns whose new values lie outside what they have held, naming each and what is new in it."""
    preparation, n_rows = earlier.preparation, X.shape[0]
    if preparation.ranges is None:
        return
    ranges, outside = preparation.ranges, preparation.ranges.outside(X, preparation.n_channels)
    unseen = np.zeros(len(outside.columns), dtype=int)
    for position, of_table in enumerate(preparation.table.columns if preparation.table is not None else ()):
        if of_table.categories is not None:  # whose codes have no range
            unseen[position] = (X[:, position] == len(of_table.categories)).sum()
            outside.n_below[position] = outside.n_above[position] = 0
    found = []
    for column in np.flatnonzero(outside.columns | (unseen > 0)):
        facts = []
        for count, side, end, farthest in (
            (outside.n_below, "below", ranges.least, outside.new.least),
            (outside.n_above, "above", ranges.greatest, outside.new.greatest),
        ):
            if count[column]:
                facts.append(
                    f"{count[column]} of {n_rows} rows lie {side} {end[column]:g}, as far as "
                    f"{farthest[column]:g}"
                )
        if unseen[column]:
            facts.append(f"{unseen[column]} of {n_rows} rows hold categories that it did not have")
        if outside.n_missing[column]:
            facts.append(f"{outside.n_missing[column]} of {n_rows} rows are the first that miss a value")
        found.append((_name(int(column), preparation), " and ".join(facts)))
    if not found:
        return
    told = "; ".join(f"{name}: {facts}" for name, facts in found[:_COLUMNS_TO_TELL_OF])
    rest = ", ".join(name for name, _ in found[_COLUMNS_TO_TELL_OF:])
    warn_user(
        f"new rows lie outside what the {int(ranges.n_rows):,} earlier ones held in {told}"
        f"{f'; and so in {rest}' if rest else ''}. Scaler and categories stay those of the first fit: call "
        "fit on rows like these if the change is to stay.",
        UserWarning,
    )


def _name(column: int, preparation: Preparation) -> str:
    if preparation.n_channels is not None:
        return f"channel {column}"
    return column_label(column, preparation.names)


def warn_of_other_calibration_rows(n_rows: int, n_rows_before: int) -> None:
    """Warn that a warm start cannot hold out what the earlier fit held out."""
    if n_rows != n_rows_before:
        warn_user(
            f"warm_start=True goes on with {n_rows} rows from a fit of {n_rows_before}: rows that the "
            "earlier fit was trained on may be held out now, so that rates and p-values promise too much. "
            "Fit with the same rows, or with warm_start=False.",
            UserWarning,
        )


def warn_of_few_rows(n_rows: int) -> None:
    """Warn of so few new rows that they cannot tell how scores of others spread."""
    if n_rows < _FEWEST_ROWS:
        warn_user(
            f"partial_fit sets the threshold by the scores of its {n_rows} rows, which are few to tell it "
            "by: collect some hundreds, and hand them in together.",
            UserWarning,
        )


def warn_of_same_rows() -> None:
    """Warn of the rows of the last call, which are not new."""
    warn_user(
        "partial_fit was given the rows of the last call again: rows that were trained on set the threshold "
        "now, so that rates and p-values promise too much. Hand in each row once; for more passes over the "
        "same rows raise epochs, or fit with warm_start=True.",
        UserWarning,
    )


def _column_to_blame(fitted: Fitted, X: Matrix) -> str:
    if fitted.preparation.image_shape is not None:
        return ""
    try:
        shares = fitted.column_shares(X)
    except ValueError:  # of a score or a scaler that has no shares of columns
        return ""
    column = int(np.bincount(shares.argmax(axis=1)).argmax())
    return f", most often by {column_label(column, fitted.preparation.names)}"


def warn_of_more_alarms(of_training_rows: float, of_new_rows: float) -> None:
    """Warn of a threshold that calls far more of new rows anomalies than of the training rows."""
    if of_new_rows > max(2 * of_training_rows, of_training_rows + 0.05):
        warn_user(
            f"the threshold calls {of_training_rows:.2g} of the training rows anomalies, and about "
            f"{of_new_rows:.2g} of new rows like them, by rows that members left out of their training: the "
            "model knows the training rows too well. Fit on more rows; or set threshold='out_of_bag' or "
            "'conformal', which hold for new rows.",
            UserWarning,
        )
