"""Thresholds: an array of anomaly scores -> the cut above which a row is called an anomaly.

A rule is any object with ``cut(scores) -> float``, where larger scores are more anomalous. It knows
nothing of where the scores came from, but may say what it needs: ``held_out = True`` asks for scores of
rows that were not trained on (see `vae_anomaly.calibration`), ``out_of_bag = True`` for scores of training
rows as if no member had been trained on them, ``n_scores`` says that so many training rows, drawn at random,
settle the cut. ``false_alarm_rate`` is what the cut promises for new rows. To add a rule, write a class with
that method; with a row in `THRESHOLDS` it has a name. Rules of other libraries that label scores, such as
pythresh's, work as they are.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.base import BaseEstimator, clone
from sklearn.utils._param_validation import Interval, StrOptions

from vae_anomaly.calibration.certificate import fewest_rows, most_above
from vae_anomaly.calibration.conformal import fewest_scores, rank_of, smallest
from vae_anomaly.core.conventions import warn_user
from vae_anomaly.core.types import Constraints, Estimator, ThresholdRule

__all__ = ["THRESHOLDS", "Conformal", "MedianDeviation", "OutOfBag", "ParetoTail", "Quantile", "TukeyFence"]

#: Rows whose scores tell how scores spread.
ROWS_TO_SEE_THE_SPREAD = 2_000


class Quantile(BaseEstimator):  # type: ignore[misc]
    """Call a fixed fraction of the training rows anomalies, as scikit-learn's detectors do.

    The cut is the (1 - contamination) quantile of the training scores with linear interpolation, so
    that, without ties, that fraction of the training rows lies above it.

    Parameters
    ----------
    contamination : float, default=0.1
        The fraction, in (0, 0.5].

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.thresholds import Quantile
    >>> Quantile(0.25).cut(np.array([1.0, 2.0, 3.0, 9.0]))
    4.5
    """

    _parameter_constraints: ClassVar[Constraints] = {
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
    }

    def __init__(self, contamination: float = 0.1) -> None:
        self.contamination = contamination

    def cut(self, scores: npt.NDArray[np.floating]) -> float:
        """The cut for these training scores, an array of shape (n_rows,)."""
        self._validate_params()
        # Through the negated scores, so that the offset is scikit-learn's to the last bit.
        return -float(np.percentile(-scores, 100.0 * self.contamination))


class _Ranked(BaseEstimator):  # type: ignore[misc]
    """A cut by the rank of a score: the ⌈(n + 1)(1 - rate)⌉-th smallest of n."""

    _parameter_constraints: ClassVar[Constraints] = {
        "false_alarm_rate": [Interval(Real, 0, 1, closed="neither")],
    }

    def __init__(self, false_alarm_rate: float = 0.05) -> None:
        self.false_alarm_rate = false_alarm_rate

    def _rank(self, n_scores: int) -> int:
        return rank_of(n_scores, self.false_alarm_rate)

    @property
    def fewest_scores(self) -> int:
        """So many scores the rule needs: of fewer, the rank lies beyond the largest."""
        return fewest_scores(self.false_alarm_rate)


class OutOfBag(_Ranked):
    r"""Call about a fixed fraction of new normal rows anomalies, by training rows judged as new ones.

    Each member of a `VAEDetector` leaves rows out of its training (``validation_fraction``), and judges them
    as it judges new ones. So every training row gets the score that the ensemble would give it if no member
    had been trained on it (`ensemble.averaging.out_of_bag`), and the cut is the
    :math:`\lceil (n+1)(1-\alpha) \rceil`-th smallest of n such scores, or the largest. This is what
    ``contamination="auto"`` means where members leave rows out. It costs no further training and holds on
    average over fits, nearly: `Conformal` holds whatever the model, and costs rows or trainings. Anomalies
    among the training rows make the cut larger. Of more than 2,000 training rows, a random 2,000 are scored.
    On generated tables of 4 and 10 columns of five kinds, means over three fits were 0.9 to 1.2 times the
    rate with 3,000 rows, 0.2 to 1.3 times with 300 and 1,000, and 0.4 to 1.8 times with 100 (the least of
    uniform columns, the most of lognormal ones): take `Conformal` where rows are few.

    Parameters
    ----------
    false_alarm_rate : float, default=0.05
        :math:`\alpha`, in (0, 1). Of fewer than :math:`1 / \alpha - 1` rows, nothing is known of such a rate.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.thresholds import OutOfBag
    >>> OutOfBag(0.05).cut(np.arange(99.0))
    94.0
    """

    out_of_bag: ClassVar[bool] = True
    n_scores: ClassVar[int] = ROWS_TO_SEE_THE_SPREAD

    def cut(self, scores: npt.NDArray[np.floating]) -> float:
        """The cut for these scores of training rows that are judged as new ones, of shape (n_rows,)."""
        self._validate_params()
        rank = self._rank(len(scores))
        if rank > len(scores):
            warn_user(
                f"{len(scores)} training rows cannot tell where a threshold with a false-alarm rate of "
                f"{self.false_alarm_rate:g} lies: it takes {self.fewest_scores}. It is set to the "
                "largest score; more of the new normal rows may raise an alarm.",
                UserWarning,
            )
        return float(np.sort(scores)[min(rank, len(scores)) - 1])


class TukeyFence(BaseEstimator):  # type: ignore[misc]
    r"""Call rows anomalies whose scores stand apart from the bulk, at least a small fraction of them.

    .. math:: \min\left(Q_3 + k\,(Q_3 - Q_1),\ Q_{1 - m}\right)

    with the quartiles Q of the training scores: Tukey's upper fence, lowered if necessary so that at
    least the fraction m of the training rows lies above it. Because quartiles hardly move while fewer than
    a quarter of the rows are anomalies, the rule follows the data: a training set with many
    anomalies gets many alarms. This is what ``contamination="auto"`` means where no rows are left out of the
    training, as for images. Of more than 2,000 training
    rows, a random 2,000 are scored: the fraction above their upper 1 % quantile has a standard error of
    0.22 %.

    Parameters
    ----------
    n_ranges : float, default=1.5
        k, in interquartile ranges (Tukey 1977, "Exploratory data analysis").
    minimum_fraction : float, default=0.01
        m, in (0, 0.5].

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.thresholds import TukeyFence
    >>> TukeyFence().cut(np.r_[np.linspace(0, 1, 97), 5.0, 6.0, 7.0]) < 5
    True
    """

    n_scores: ClassVar[int] = ROWS_TO_SEE_THE_SPREAD

    _parameter_constraints: ClassVar[Constraints] = {
        "n_ranges": [Interval(Real, 0, None, closed="left")],
        "minimum_fraction": [Interval(Real, 0, 0.5, closed="right")],
    }

    def __init__(self, n_ranges: float = 1.5, minimum_fraction: float = 0.01) -> None:
        self.n_ranges = n_ranges
        self.minimum_fraction = minimum_fraction

    def cut(self, scores: npt.NDArray[np.floating]) -> float:
        """The cut for these training scores, an array of shape (n_rows,)."""
        self._validate_params()
        lower, upper, top = np.quantile(scores, [0.25, 0.75, 1 - self.minimum_fraction])
        return float(min(upper + self.n_ranges * (upper - lower), top))


class MedianDeviation(BaseEstimator):  # type: ignore[misc]
    r"""Call rows anomalies whose scores lie many median deviations above the median.

    .. math:: m + 1.4826\, k \cdot \mathrm{median}\,|s - m|, \quad m = \mathrm{median}(s)

    of the training scores s. The factor makes the deviation a standard deviation if scores are normal;
    up to half of the training rows may be anomalies without moving the cut much.

    Parameters
    ----------
    n_deviations : float, default=3.5
        k (Iglewicz & Hoaglin 1993, "How to detect and handle outliers").

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.thresholds import MedianDeviation
    >>> MedianDeviation().cut(np.r_[np.linspace(0, 1, 97), 5.0, 6.0, 7.0]) < 5
    True
    """

    _parameter_constraints: ClassVar[Constraints] = {
        "n_deviations": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, n_deviations: float = 3.5) -> None:
        self.n_deviations = n_deviations

    def cut(self, scores: npt.NDArray[np.floating]) -> float:
        """The cut for these training scores, an array of shape (n_rows,)."""
        self._validate_params()
        return float(
            np.median(scores) + self.n_deviations * stats.median_abs_deviation(scores, scale="normal")
        )


class Conformal(_Ranked):
    r"""Call at most the fraction :math:`\alpha` of new normal rows anomalies: split-conformal prediction.

    The cut is the :math:`\lceil (n+1)(1-\alpha) \rceil`-th smallest of n scores of rows that were not
    trained on. If new rows are exchangeable with those, one of them lies above it with a probability of at
    most :math:`\alpha`, whatever the model and the distribution, and without ties of at least
    :math:`\alpha - 1 / (n + 1)`
    (Vovk, Gammerman & Shafer 2005; Bates et al. 2023, "Testing for outliers with conformal p-values"). That
    is an average over calibrations: the rate after one of them spreads with a standard error of about
    :math:`\sqrt{\alpha (1 - \alpha) / n}` around it. Anomalies among the rows make the cut larger.

    With a ``confidence``, the cut is larger: so that this probability, over the calibration rows, is one that
    the rate is at most :math:`\alpha` from now on (`calibration.certified_cut`; a tolerance limit, Wilks
    1941). The rows then have to be independent, and held out: with folds, this holds only nearly. Of 1,000,
    the cut for 5 % is the 961st, not the 951st.

    With a ``contamination`` :math:`\varepsilon`, the :math:`m = \lfloor \varepsilon n \rfloor` largest scores
    are taken for those of anomalies and left out, and the cut is the k-th smallest of all with
    :math:`k = \lceil (n - m + 1)(1 - \alpha) \rceil`. If they are, the rate is that of n - m normal rows: at
    most :math:`\alpha`. If some or all are normal rows, it is at most, and without ties exactly,

    .. math:: \frac{n + 1 - k}{n + 1} \le \alpha + (1 - \alpha) \frac{m}{n + 1},

    as long as anomalies score no lower than normal rows: 6.9 % for 5 %, 1,000 rows and a contamination of
    2 %. P-values, selections and certificates leave nothing out.

    Parameters
    ----------
    false_alarm_rate : float, default=0.05
        :math:`\alpha`, in (0, 1). Needs at least :math:`1 / \alpha - 1` rows.
    confidence : float or None, default=None
        In (0, 1). None promises the rate on average over calibrations. Otherwise at least
        :math:`\log(1 - \text{confidence}) / \log(1 - \alpha)` rows are needed.
    contamination : float, default=0.0
        :math:`\varepsilon`, in [0, 0.5]: the fraction of anomalies among the calibration rows. Say too little
        rather than too much, which adds to the rate.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.thresholds import Conformal
    >>> Conformal(0.05).cut(np.arange(99.0))
    94.0
    """

    held_out: ClassVar[bool] = True

    _parameter_constraints: ClassVar[Constraints] = {
        **_Ranked._parameter_constraints,
        "confidence": [Interval(Real, 0, 1, closed="neither"), None],
        "contamination": [Interval(Real, 0, 0.5, closed="both")],
    }

    def __init__(
        self, false_alarm_rate: float = 0.05, confidence: float | None = None, contamination: float = 0.0
    ) -> None:
        super().__init__(false_alarm_rate)
        self.confidence = confidence
        self.contamination = contamination

    def _n_normal(self, n_scores: int) -> int:
        """Of so many scores, those that are not left out."""
        # Rounded: a fraction of, say, 0.29 of 100 rows is 29.
        return n_scores - math.floor(round(self.contamination * n_scores, 9))

    def _rank(self, n_scores: int) -> int:
        n_normal = self._n_normal(n_scores)
        if self.confidence is None:
            return super()._rank(n_normal)
        return n_normal - most_above(n_normal, self.false_alarm_rate, self.confidence)

    @property
    def fewest_scores(self) -> int:
        """So many scores the rule needs."""
        if self.confidence is None:
            n_normal = super().fewest_scores
        else:
            n_normal = fewest_rows(self.false_alarm_rate, self.confidence)
        n_scores = max(n_normal, math.floor((n_normal - 1) / (1 - self.contamination)))
        while self._n_normal(n_scores) < n_normal:
            n_scores += 1
        return n_scores

    def cut(self, scores: npt.NDArray[np.floating]) -> float:
        """The cut for these scores of rows that were not trained on, an array of shape (n_rows,)."""
        self._validate_params()
        # Of a certificate without contamination its own words say what so few rows can certify.
        if len(scores) < self.fewest_scores and (self.confidence is None or self.contamination):
            raise ValueError(
                f"a false-alarm rate of {self.false_alarm_rate:g} needs at least "
                f"{self.fewest_scores} rows that were not trained on; received "
                f"{len(scores)}. Raise it, fit on more rows, or hold out more of them with the detector's "
                "calibration parameter ('folds' uses all)."
            )
        return smallest(scores, self._rank(len(scores)))

    def realized_rates(self, n_scores: int, coverage: float = 0.95) -> tuple[float, float]:
        r"""Between which rates the false alarms after one calibration lie with this probability.

        The fraction of new rows above the k-th smallest of n exchangeable scores without ties has the law
        :math:`\mathrm{Beta}(n + 1 - k, k)`; here is its central interval. Scores that are left out are taken
        for those of anomalies.
        """
        rank = self._rank(n_scores)
        n_scores = self._n_normal(n_scores)
        ends = ((1 - coverage) / 2, (1 + coverage) / 2)
        low, high = stats.beta.ppf(ends, n_scores + 1 - rank, rank)
        return float(low), float(high)


class ParetoTail(BaseEstimator):  # type: ignore[misc]
    r"""Extrapolate to rare false alarms: a generalized Pareto distribution over the highest scores.

    Of n scores of rows that were not trained on, the k highest exceed a level u; their excesses are fitted by
    a generalized Pareto distribution with shape :math:`\xi` and scale :math:`\sigma` (peaks over threshold,
    Pickands 1975; for anomaly scores Siffer et al. 2017), and the cut is

    .. math:: u + \frac{\sigma}{\xi} \left( \left( \frac{q\,n}{k} \right)^{-\xi} - 1 \right)

    It reaches rates below 1 / n, where no quantile does, at the price of an assumption about the tail. Scores
    of a few different values, as tables of categories and counts have them, have no such tail: where far more
    of them exceed this cut than the rate says, it is the least score that no more of them exceed.

    Parameters
    ----------
    false_alarm_rate : float, default=1e-3
        q, in (0, 1).
    tail_fraction : "auto" or float, default="auto"
        k / n, in (0, 1). "auto" takes :math:`k = n^{2/3}`: a fraction that shrinks as rows grow.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.thresholds import ParetoTail
    >>> scores = np.random.RandomState(0).exponential(size=100_000)
    >>> bool(abs(ParetoTail(1e-4).cut(scores) - np.log(1e4)) < 0.5)  # the exact quantile is log(10,000)
    True
    """

    held_out: ClassVar[bool] = True

    _parameter_constraints: ClassVar[Constraints] = {
        "false_alarm_rate": [Interval(Real, 0, 1, closed="neither")],
        "tail_fraction": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="neither")],
    }

    _FEWEST_EXCESSES: ClassVar[int] = 10
    # So improbable it is of a fit that is right that more of its own scores exceed the cut.
    _CHANCE: ClassVar[float] = 1e-6

    def __init__(self, false_alarm_rate: float = 1e-3, tail_fraction: str | float = "auto") -> None:
        self.false_alarm_rate = false_alarm_rate
        self.tail_fraction = tail_fraction

    def cut(self, scores: npt.NDArray[np.floating]) -> float:
        """The cut for these scores of rows that were not trained on, an array of shape (n_rows,)."""
        self._validate_params()
        n_rows = len(scores)
        fraction = n_rows ** (-1 / 3) if isinstance(self.tail_fraction, str) else self.tail_fraction
        n_excesses = math.ceil(fraction * n_rows)
        if n_excesses < self._FEWEST_EXCESSES or n_excesses >= n_rows:
            raise ValueError(
                f"a tail needs at least {self._FEWEST_EXCESSES} excesses, and rows below it; received "
                f"{n_rows} rows that were not trained on and tail_fraction={self.tail_fraction!r}, which "
                f"make {n_excesses}. Fit on more rows, or set tail_fraction."
            )
        if self.false_alarm_rate >= n_excesses / n_rows:  # inside the data, where no tail is needed
            return float(np.quantile(scores, 1 - self.false_alarm_rate))
        ordered = np.sort(scores)
        level = ordered[-n_excesses - 1]
        excesses = ordered[ordered > level] - level  # those tied with the level are none
        if len(excesses) < self._FEWEST_EXCESSES:
            return self._quantile(ordered)
        unit, rate = excesses.mean(), self.false_alarm_rate * n_rows / len(excesses)
        shape, _, scale = stats.genpareto.fit(excesses / unit, floc=0)
        cut = float(level + unit * stats.genpareto.isf(rate, shape, 0, scale))
        most = stats.binom.isf(self._CHANCE, n_rows, self.false_alarm_rate)
        return cut if (scores > cut).sum() <= most else self._quantile(ordered)

    def _quantile(self, ordered: npt.NDArray[np.floating]) -> float:
        """The least score that no more of them exceed than the rate allows."""
        n_above = int(self.false_alarm_rate * len(ordered))
        return float(ordered[-n_above - 1])


#: Every rule that has a name.
THRESHOLDS: dict[str, type[ThresholdRule]] = {
    "quantile": Quantile,
    "out_of_bag": OutOfBag,
    "tukey_fence": TukeyFence,
    "median_deviation": MedianDeviation,
    "conformal": Conformal,
    "pareto_tail": ParetoTail,
}


class _FromLabels:
    """A rule that labels scores 1 for anomalies, as pythresh's do, as one that makes a cut."""

    def __init__(self, rule: Estimator) -> None:
        self.rule = rule

    def __repr__(self) -> str:
        return repr(self.rule)

    def cut(self, scores: npt.NDArray[np.floating]) -> float:
        """The greatest score below every one that is labeled an anomaly."""
        labels = (
            self.rule.eval(scores) if hasattr(self.rule, "eval") else self.rule.fit(scores).predict(scores)
        )
        labels = np.asarray(labels).ravel()
        if labels.shape != scores.shape or not np.isin(labels, (0, 1)).all():
            raise ValueError(
                f"threshold must label each of the {len(scores)} scores 0 or 1, or have cut(scores); "
                f"{type(self.rule).__name__} returned {labels!r}."
            )
        lowest = scores[labels == 1].min(initial=np.inf)
        return float(scores[scores < lowest].max(initial=scores.min()))


def takes_held_out(rule: object) -> bool:
    """Whether the rule asks for scores of rows that were not trained on."""
    return bool(getattr(rule, "held_out", False))


def takes_out_of_bag(rule: ThresholdRule) -> bool:
    """Whether the rule asks for scores of training rows as if no member had been trained on them."""
    return bool(getattr(rule, "out_of_bag", False))


def check(rule: ThresholdRule, n_unseen: int) -> None:
    """Refuse before a training what a rule of this module cannot do, with so many calibration scores.

    Raises
    ------
    ValueError
    """
    if type(rule).__module__ == __name__ and isinstance(rule, BaseEstimator):
        rule._validate_params()
        if takes_held_out(rule):
            rule.cut(np.arange(float(n_unseen)))


def promised_rate(rule: ThresholdRule) -> float | None:
    """The rule's false-alarm rate for new rows; None if it promises none."""
    rate = getattr(rule, "false_alarm_rate", None)
    return None if rate is None else float(rate)


def resolve(threshold: object, contamination: str | float, leaves_rows_out: bool = False) -> ThresholdRule:
    """The rule that a detector's ``threshold`` and ``contamination`` ask for.

    Parameters
    ----------
    threshold, contamination : the detector's parameters
    leaves_rows_out : bool
        Whether members judge rows that they are not trained on.

    Raises
    ------
    ValueError
        If there is no rule of this name, if ``contamination`` asks for another rule than ``threshold``, or if
        the rule needs rows that are left out and there are none.
    TypeError
        If it is a class.
    """
    rule = _resolve(threshold, contamination, leaves_rows_out)
    if takes_out_of_bag(rule) and not leaves_rows_out:
        raise ValueError(
            f"threshold={threshold!r} needs members that leave rows out of their training: set "
            "validation_fraction, for example to 0.2; or choose 'conformal'."
        )
    return rule


def _resolve(threshold: object, contamination: str | float, leaves_rows_out: bool) -> ThresholdRule:
    if threshold is None:
        if not isinstance(contamination, str):
            return Quantile(contamination)
        return OutOfBag() if leaves_rows_out else TukeyFence()
    of_training = not takes_held_out(threshold)
    same = threshold == "quantile" or (
        of_training and getattr(threshold, "contamination", None) == contamination
    )
    if not isinstance(contamination, str) and not same:
        raise ValueError(
            f"contamination={contamination!r} cuts at a quantile of the training scores, and "
            f"threshold={threshold!r} elsewhere: set only one of them."
        )
    if isinstance(threshold, type):
        raise TypeError(
            f"threshold must be a rule, and {threshold.__name__} is a class: set {threshold.__name__}(...)."
        )
    if isinstance(threshold, BaseEstimator) and hasattr(threshold, "cut"):
        copied: ThresholdRule = clone(threshold)  # out of reach of a later set_params
        return copied
    if not isinstance(threshold, str):
        return threshold if hasattr(threshold, "cut") else _FromLabels(threshold)
    if threshold not in THRESHOLDS:
        raise ValueError(f"threshold must be one of {[*THRESHOLDS]} or a rule; received {threshold!r}.")
    if threshold == "quantile" and not isinstance(contamination, str):
        return Quantile(contamination)
    return THRESHOLDS[threshold]()
