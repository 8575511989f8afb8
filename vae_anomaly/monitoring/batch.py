"""One batch of rows against the calibration rows: two tests, of the bulk of the scores and of their tail."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from vae_anomaly.calibration.checks import check_probability
from vae_anomaly.core.types import Floats

__all__ = ["ASKS", "FAR", "Drift", "drift"]

# What begins the error of a detector that drift cannot be told by.
ASKS = "drift is measured against"

# The bulk lies below this quantile of the calibration scores, anomalies above the other.
_BULK, FAR = 0.9, 0.99
# As many rows in a hundred may be anomalies, and it is not a drift.
_TOLERATED = 0.05


@dataclass(frozen=True)
class Drift:
    """What one batch of rows says of drift; made by `VAEDetector.drift`.

    Attributes
    ----------
    drifted : bool
        Whether ``p_value`` is at most ``false_alarm_rate``: most rows have moved.
    more_anomalies : bool
        Whether ``anomalies_p_value`` is at most ``false_alarm_rate``: few rows or many are far out.
    p_value : float
        Of no drift, up to 5 % anomalies allowed.
    anomalies_p_value : float
        Of as many rows above the 99 % quantile of the calibration scores as without anomalies.
    median_rank : float
        Share of the calibration scores that the batch's median score exceeds; 0.5 if nothing has changed.
    anomalous_fraction : float
        Share of the rows above the 99 % quantile.
    n_rows : int
    n_calibration : int
    false_alarm_rate : float
    reason : str
        The same in words.
    """

    drifted: bool
    more_anomalies: bool
    p_value: float
    anomalies_p_value: float
    median_rank: float
    anomalous_fraction: float
    n_rows: int
    n_calibration: int
    false_alarm_rate: float
    reason: str


def drift(scores: npt.ArrayLike, calibration: npt.ArrayLike, false_alarm_rate: float = 0.01) -> Drift:
    r"""Compare a batch of scores with those of rows that were not trained on.

    Let c be the k-th smallest of n calibration scores, with k = ⌈0.9 (n + 1)⌉. Without drift and ties,

    - the scores below c are two samples of one distribution: Cramér–von Mises test (Anderson 1962), against
      shifts up and down;
    - of m rows, a number above c has the law :math:`\mathrm{BetaBinomial}(m; n + 1 - k, k)`. Too few are
      drift; too many are if 5 % of the rows, all above c, were not enough to explain them.

    ``p_value`` is Bonferroni's of the two, and so are the two sides of the second. Anomalies are counted in
    the same way above the 99 % quantile. Ties are broken at random.

    Parameters
    ----------
    scores : array of shape (n_rows,)
        Of the batch; larger = more anomalous.
    calibration : array of shape (n_calibration,)
    false_alarm_rate : float, default=0.01
        In (0, 1); see `VAEDetector.drift`.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.monitoring import drift
    >>> rng = np.random.RandomState(0)
    >>> calibration, batch = rng.gumbel(size=500), rng.gumbel(size=200)
    >>> drift(batch, calibration).drifted, drift(batch + 0.5, calibration).drifted
    (False, True)
    """
    check_probability(false_alarm_rate, "false_alarm_rate")
    scores, calibration = np.asarray(scores, dtype=float), np.asarray(calibration, dtype=float)
    n_rows, n_calibration = len(scores), len(calibration)
    if n_rows == 0 or n_calibration == 0:
        raise ValueError(f"drift needs scores; received {n_rows} of the batch and {n_calibration} held out.")
    ranks, known = _ranks(scores, calibration)
    p_value = _drift_p_value(ranks, known)
    position = min(n_calibration, math.ceil(FAR * (n_calibration + 1)))
    n_far = int((ranks > known[position - 1]).sum())
    of_chance = stats.betabinom(n_rows, n_calibration + 1 - position, position)
    anomalies_p_value = float(of_chance.sf(n_far - 1))
    median_rank = float(np.mean(known < np.median(ranks)))
    drifted, more = p_value <= false_alarm_rate, anomalies_p_value <= false_alarm_rate
    reason = _reason(drifted, more, median_rank, n_far / n_rows, 1 - position / (n_calibration + 1))
    return Drift(
        bool(drifted),
        bool(more),
        p_value,
        anomalies_p_value,
        median_rank,
        n_far / n_rows,
        n_rows,
        n_calibration,
        float(false_alarm_rate),
        reason,
    )


def _ranks(scores: Floats, calibration: Floats) -> tuple[Floats, Floats]:
    """Ranks of all scores together, ties broken at random: the batch's, and the calibration's in order."""
    together = np.concatenate([scores, calibration])
    order = np.lexsort((np.random.RandomState(0).random_sample(len(together)), together))
    ranks = np.empty(len(together))
    ranks[order] = np.arange(len(together))
    return ranks[: len(scores)], np.sort(ranks[len(scores) :])


def _drift_p_value(ranks: Floats, known: Floats) -> float:
    n_rows, n_calibration = len(ranks), len(known)
    position = min(n_calibration, math.ceil(_BULK * (n_calibration + 1)))
    bulk = ranks[ranks < known[position - 1]]
    of_bulk = 1.0
    if len(bulk) > 1 and position > 2:
        # The exact law takes a hundred times as long, and small samples are not easier to tell apart by it.
        of_bulk = stats.cramervonmises_2samp(bulk, known[: position - 1], method="asymptotic").pvalue
    n_above, n_tolerated = n_rows - len(bulk), math.floor(_TOLERATED * n_rows)
    shape = n_calibration + 1 - position, position
    too_few = stats.betabinom.cdf(n_above, n_rows, *shape)
    too_many = stats.betabinom.sf(n_above - n_tolerated - 1, n_rows - n_tolerated, *shape)
    return float(min(1, 2 * of_bulk, 4 * too_few, 4 * too_many))


def _reason(drifted: bool, more: bool, median_rank: float, far: float, expected: float) -> str:
    bulk = f"the median row scores above {100 * median_rank:.0f} % of the calibration rows"
    tail = f"{100 * far:.3g} % of the rows lie where {100 * expected:.2g} % are expected"
    if drifted:
        return f"Drift: {bulk}, and {tail}."
    if more:
        return f"More anomalies, no drift: {tail}, and {bulk}."
    return f"Nothing has changed that shows: {bulk}, and {tail}."
