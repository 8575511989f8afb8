"""What a fit warns of or refuses: decoders that cannot reach the rows, other data, too many alarms."""

from __future__ import annotations

import warnings

import numpy as np
from scipy import stats

from vae_anomaly import thresholds
from vae_anomaly.core.types import Array, Matrix
from vae_anomaly.data.lazy import representative
from vae_anomaly.engine.programs import architecture, on_device
from vae_anomaly.ensemble.fitted import Fitted
from vae_anomaly.ensemble.members import Job

__all__ = ["check_last_activation", "warn_of_more_alarms", "warn_of_other_data"]

# Of a column's range: a sigmoid comes near 0 and 1.
_NEARLY = 1e-3
_PATCHES_TO_SEE = 2_048
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
    name = f"column {column}" if names is None else f"column {names[column]!r}"
    message = (
        f"the decoder ends in the activation {activation!r}, so that with likelihood "
        f"{job.specification.likelihood!r} it expects values from {low[column]:.3g} to "
        f"{high[column]:.3g}, and the scaled training rows hold values from {least[column]:.3g} to "
        f"{most[column]:.3g} ({name}). End the decoder without an activation: the likelihood has the link."
    )
    if repeats_link:
        raise ValueError(message)
    warnings.warn(message, UserWarning, stacklevel=4)


def warn_of_other_data(X: Matrix, earlier: Fitted, cut: float, rate: float, seed: int) -> None:
    """Warn of rows that a warm start's earlier fit calls anomalies, far more often than rows like its own."""
    some = np.random.RandomState(seed).permutation(X.shape[0])[: thresholds.ROWS_TO_SEE_THE_SPREAD]
    rows = X[some]
    alarms = earlier.scores(rows) > cut
    by_chance = stats.binom.sf(alarms.sum() - 1, len(some), min(2 * rate, 1.0))
    if by_chance > _BY_CHANCE or alarms.mean() < _MANY_ALARMS:
        return
    where = _column_to_blame(earlier, rows[np.flatnonzero(alarms)])
    warnings.warn(
        f"warm_start=True goes on with other data: the earlier fit calls {alarms.mean():.2g} of the rows "
        f"anomalies, where {rate:.2g} would be expected{where}. Scaler, categories and likelihood stay those "
        "of the earlier fit: set warm_start=False to fit them to these rows.",
        UserWarning,
        stacklevel=4,
    )


def _column_to_blame(fitted: Fitted, X: Matrix) -> str:
    if fitted.preparation.image_shape is not None:
        return ""
    try:
        shares = fitted.column_shares(X)
    except ValueError:  # of a score or a scaler that has no shares of columns
        return ""
    column, names = np.bincount(shares.argmax(axis=1)).argmax(), fitted.preparation.names
    return f", most often by column {column if names is None else repr(names[column])}"


def warn_of_more_alarms(of_training_rows: float, of_new_rows: float) -> None:
    """Warn of a threshold that calls far more of new rows anomalies than of the training rows."""
    if of_new_rows > max(2 * of_training_rows, of_training_rows + 0.05):
        warnings.warn(
            f"the threshold calls {of_training_rows:.2g} of the training rows anomalies, and about "
            f"{of_new_rows:.2g} of new rows like them, by rows that members left out of their training: the "
            "model knows the training rows too well. Fit on more rows; or set threshold='out_of_bag' or "
            "'conformal', which hold for new rows.",
            UserWarning,
            stacklevel=4,
        )
