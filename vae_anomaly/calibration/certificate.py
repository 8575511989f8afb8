"""Certificates: an upper bound on the false-alarm rate of a cut, with a stated confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from vae_anomaly.calibration.checks import check_probability
from vae_anomaly.calibration.conformal import smallest

__all__ = ["Certificate", "certified_cut", "certify", "fewest_rows", "most_above"]


@dataclass(frozen=True)
class Certificate:
    """What calibration rows prove of a cut: ``str`` is the sentence to sign.

    `certify` and `VAEDetector.false_alarm_certificate` make it.

    Attributes
    ----------
    rate : float
        With ``confidence``, at most this fraction of new normal rows lies above ``cut``.
    confidence : float
    cut : float
        The anomaly score above which rows are flagged.
    n_above : int
        Calibration rows above the cut; those that are tied with it count, but for one.
    n_calibration : int
    lowest_rate : float
        What so many rows certify at best, whatever the cut: the rate of the cut that no row is above.
    all_cuts : bool
        Whether the confidence is one for all cuts at once, so that the scores may have decided the cut.
    """

    rate: float
    confidence: float
    cut: float
    n_above: int
    n_calibration: int
    lowest_rate: float
    all_cuts: bool

    def __str__(self) -> str:
        return (
            f"With {100 * self.confidence:g} % confidence, at most {_percent_rounded_up(self.rate)} % of new "
            f"normal rows are flagged: {self.n_above:,} of {self.n_calibration:,} calibration rows lie above "
            "the cut."
        )


def certify(
    calibration: npt.ArrayLike, cut: float, confidence: float = 0.95, *, all_cuts: bool = False
) -> Certificate:
    r"""Bound the fraction of new normal rows above a cut: exact, whatever the distribution of scores.

    If m of n independent scores of normal rows lie above the cut, the bound is the ``confidence`` quantile of

    .. math:: \mathrm{Beta}(m + 1,\ n - m)

    For a cut that was fixed before the scores were seen, this is the upper limit of Clopper & Pearson (1934).
    For a cut that is the k-th smallest of the scores, with k fixed before and m = n - k, it is the tolerance
    limit of Wilks (1941): without ties the rate has this law, and the confidence is exact. For a cut that was
    chosen in any other way after the scores were seen, set ``all_cuts``.

    The confidence is the probability, over calibration rows, that the bound holds for all new rows to come.
    It takes independent rows of one distribution: shuffled rows of a machine that changes are not.

    Parameters
    ----------
    calibration : array of shape (n_calibration,)
        Scores of normal rows that were not trained on; larger = more anomalous. Anomalies among them make
        the bound larger.
    cut : float
    confidence : float, default=0.95
        In (0, 1).
    all_cuts : bool, default=False
        Whether the bound is to hold for all cuts at once, which costs precision: each has the confidence
        :math:`1 - (1 - \text{confidence}) / n` (Bonferroni).

    Returns
    -------
    Certificate

    Raises
    ------
    ValueError
        If there are no scores, one is NaN, or for a confidence outside (0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.calibration import certify
    >>> certificate = certify(np.arange(1000.0), cut=949.0)
    >>> certificate.n_above, round(certificate.rate, 4)
    (50, 0.0629)
    >>> str(certificate)[:80]
    'With 95 % confidence, at most 6.29 % of new normal rows are flagged: 50 of 1,000'
    """
    scores = _check_scores(calibration)
    check_probability(confidence, "confidence")
    if math.isnan(cut):
        raise ValueError("the cut must be a number; received NaN.")
    n_rows = len(scores)
    # Of ties with a cut that is one of the scores, all but one may have been above it.
    n_above = max(int((scores > cut).sum()), int((scores >= cut).sum()) - 1)
    level = 1 - (1 - confidence) / n_rows if all_cuts else confidence
    return Certificate(
        rate=_upper_limit(n_above, n_rows, level),
        confidence=float(confidence),
        cut=float(cut),
        n_above=n_above,
        n_calibration=n_rows,
        lowest_rate=_upper_limit(0, n_rows, level),
        all_cuts=all_cuts,
    )


def certified_cut(calibration: npt.ArrayLike, rate: float, confidence: float = 0.95) -> float:
    """The smallest cut that these scores certify to have at most this false-alarm rate.

    It is the k-th smallest score, with the smallest k whose bound (see `certify`) is at most ``rate``. k
    depends on the number of scores alone, so the confidence holds for the cut that it leads to.

    Parameters
    ----------
    calibration : array of shape (n_calibration,)
        As in `certify`. At least log(1 - confidence) / log(1 - rate) scores: 59 for 5 % with 95 % confidence,
        299 for 1 %.
    rate, confidence : float
        In (0, 1).

    Raises
    ------
    ValueError
        If there are too few scores: says how many it takes, and which rate so many can certify.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.calibration import certified_cut
    >>> certified_cut(np.arange(1000.0), rate=0.05)
    961.0
    """
    scores = _check_scores(calibration)
    return smallest(scores, len(scores) - most_above(len(scores), rate, confidence))


def most_above(n_rows: int, rate: float, confidence: float) -> int:
    """Above a cut that certifies this rate, at most so many of the calibration rows lie."""
    check_probability(rate, "rate")
    check_probability(confidence, "confidence")
    doubt = round(1 - confidence, 12)
    n_above = int(stats.binom.ppf(doubt, n_rows, rate))
    while n_above >= 0 and stats.binom.cdf(n_above, n_rows, rate) > doubt:
        n_above -= 1
    if n_above < 0:
        raise ValueError(
            f"to certify a rate of {rate:g} with a confidence of {confidence:g} takes at least "
            f"{fewest_rows(rate, confidence):,} rows that were not trained on; received {n_rows:,}, which "
            f"can certify {_upper_limit(0, n_rows, confidence):.4g} at best. Hold out more rows with the "
            "detector's calibration parameter, or ask for less."
        )
    return n_above


def fewest_rows(rate: float, confidence: float) -> int:
    """So many calibration rows it takes to certify this rate: all of them lie below the cut."""
    return math.ceil(round(math.log(round(1 - confidence, 12)) / math.log1p(-rate), 9))


def _upper_limit(n_above: int, n_rows: int, confidence: float) -> float:
    if n_above >= n_rows:
        return 1.0
    return float(stats.beta.ppf(confidence, n_above + 1, n_rows - n_above))


def _percent_rounded_up(rate: float) -> str:
    """In percent, with three digits: what is signed must not be less than what is certified."""
    step = 10.0 ** (math.floor(math.log10(100 * rate)) - 2)
    return f"{min(100.0, math.ceil(round(100 * rate / step, 6)) * step):.3g}"


def _check_scores(calibration: npt.ArrayLike) -> npt.NDArray[np.float64]:
    scores = np.asarray(calibration, dtype=np.float64)
    if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
        raise ValueError(f"calibration must be one score for each of some rows; received {scores!r}.")
    return scores
