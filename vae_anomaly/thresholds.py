"""Thresholds: an array of anomaly scores -> the cut above which a row is called an anomaly.

A rule is any object with ``cut(scores) -> float``, where larger scores are more anomalous. It knows
nothing of where the scores came from, but may say what it needs: ``held_out = True`` asks for scores of
rows that were not trained on (see `vae_anomaly.calibration`), ``n_scores`` says that so many training rows,
drawn at random, settle the cut. ``false_alarm_rate`` is what the cut promises for new rows. To add a rule,
write a class with that method; with a row in `THRESHOLDS` it has a name. Rules of other libraries that label
scores, such as pythresh's, work as they are.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.base import BaseEstimator, clone
from sklearn.utils._param_validation import Interval, StrOptions

__all__ = ["THRESHOLDS", "Conformal", "MedianDeviation", "ParetoTail", "Quantile", "TukeyFence"]

#: Rows whose scores tell how scores spread.
ROWS_TO_SEE_THE_SPREAD = 2_000


class Quantile(BaseEstimator):  # type: ignore[misc]
    """Call a fixed share of the training rows anomalies, as scikit-learn's detectors do.

    The cut is the (1 - contamination) quantile of the training scores with linear interpolation, so
    that, without ties, that share of the training rows lies above it.

    Parameters
    ----------
    contamination : float, default=0.1
        The share, in (0, 0.5].

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.thresholds import Quantile
    >>> Quantile(0.25).cut(np.array([1.0, 2.0, 3.0, 9.0]))
    4.5
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
    }

    def __init__(self, contamination: float = 0.1) -> None:
        self.contamination = contamination

    def cut(self, scores: npt.NDArray[np.floating]) -> float:
        """The cut for these training scores, an array of shape (n_rows,)."""
        self._validate_params()
        # Through the negated scores, so that the offset is scikit-learn's to the last bit.
        return -float(np.percentile(-scores, 100.0 * self.contamination))


class TukeyFence(BaseEstimator):  # type: ignore[misc]
    r"""Call rows anomalies whose scores stand apart from the bulk, at least a small share of them.

    .. math:: \min\left(Q_3 + k\,(Q_3 - Q_1),\ Q_{1 - m}\right)

    with the quartiles Q of the training scores: Tukey's upper fence, lowered if necessary so that at
    least the share m of the training rows lies above it. Because quartiles hardly move while fewer than
    a quarter of the rows are anomalies, the rule follows the data: a training set with many
    anomalies gets many alarms. This is what ``contamination="auto"`` means. Of more than 2,000 training
    rows, a random 2,000 are scored: the share above their upper 1 % quantile has a standard error of 0.22 %.

    Parameters
    ----------
    reach : float, default=1.5
        k, in interquartile ranges (Tukey 1977, "Exploratory data analysis").
    minimum_share : float, default=0.01
        m, in (0, 0.5].

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.thresholds import TukeyFence
    >>> TukeyFence().cut(np.r_[np.linspace(0, 1, 97), 5.0, 6.0, 7.0]) < 5
    True
    """

    n_scores: ClassVar[int] = ROWS_TO_SEE_THE_SPREAD

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "reach": [Interval(Real, 0, None, closed="left")],
        "minimum_share": [Interval(Real, 0, 0.5, closed="right")],
    }

    def __init__(self, reach: float = 1.5, minimum_share: float = 0.01) -> None:
        self.reach = reach
        self.minimum_share = minimum_share

    def cut(self, scores: npt.NDArray[np.floating]) -> float:
        """The cut for these training scores, an array of shape (n_rows,)."""
        self._validate_params()
        lower, upper, top = np.quantile(scores, [0.25, 0.75, 1 - self.minimum_share])
        return float(min(upper + self.reach * (upper - lower), top))


class MedianDeviation(BaseEstimator):  # type: ignore[misc]
    r"""Call rows anomalies whose scores lie many median deviations above the median.

    .. math:: m + 1.4826\, k \cdot \mathrm{median}\,|s - m|, \quad m = \mathrm{median}(s)

    of the training scores s. The factor makes the deviation a standard deviation if scores are normal;
    up to half of the training rows may be anomalies without moving the cut much.

    Parameters
    ----------
    reach : float, default=3.5
        k (Iglewicz & Hoaglin 1993, "How to detect and handle outliers").

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.thresholds import MedianDeviation
    >>> MedianDeviation().cut(np.r_[np.linspace(0, 1, 97), 5.0, 6.0, 7.0]) < 5
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "reach": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, reach: float = 3.5) -> None:
        self.reach = reach

    def cut(self, scores: npt.NDArray[np.floating]) -> float:
        """The cut for these training scores, an array of shape (n_rows,)."""
        self._validate_params()
        return float(np.median(scores) + self.reach * stats.median_abs_deviation(scores, scale="normal"))


class Conformal(BaseEstimator):  # type: ignore[misc]
    r"""Call at most the share alpha of new normal rows anomalies: split-conformal prediction.

    The cut is the :math:`\lceil (n+1)(1-\alpha) \rceil`-th smallest of n scores of rows that were not
    trained on. If new rows are exchangeable with those, one of them lies above it with a probability of at
    most alpha, whatever the model and the distribution, and of at least alpha - 1 / (n + 1) without ties
    (Vovk, Gammerman & Shafer 2005; Bates et al. 2023, "Testing for outliers with conformal p-values"). That
    is an average over calibrations: the rate after one of them spreads with a standard error of about
    :math:`\sqrt{\alpha (1 - \alpha) / n}` around it. Anomalies among the rows make the cut larger.

    Parameters
    ----------
    alpha : float, default=0.05
        The false-alarm rate, in (0, 1). Needs at least 1 / alpha - 1 rows.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.thresholds import Conformal
    >>> Conformal(0.05).cut(np.arange(99.0))
    94.0
    """

    held_out: ClassVar[bool] = True

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "alpha": [Interval(Real, 0, 1, closed="neither")],
    }

    def __init__(self, alpha: float = 0.05) -> None:
        self.alpha = alpha

    def cut(self, scores: npt.NDArray[np.floating]) -> float:
        """The cut for these scores of rows that were not trained on, an array of shape (n_rows,)."""
        self._validate_params()
        position = self._position(len(scores))
        if position > len(scores):
            n_needed = math.ceil(round(1 / self.alpha, 9)) - 1
            raise ValueError(
                f"a false-alarm rate of {self.alpha:g} needs at least {n_needed} "
                f"rows that were not trained on; received {len(scores)}. Raise alpha, fit on more rows, or "
                "hold out more of them with the detector's calibration parameter (an int uses all)."
            )
        return float(np.partition(scores, position - 1)[position - 1])

    @property
    def false_alarm_rate(self) -> float:
        """What is promised for new rows."""
        return self.alpha

    def realized_rates(self, n_scores: int, coverage: float = 0.95) -> tuple[float, float]:
        r"""Between which rates the false alarms after one calibration lie with this probability.

        The share of new rows above the k-th smallest of n exchangeable scores without ties has the law
        :math:`\mathrm{Beta}(n + 1 - k, k)`; here is its central interval.
        """
        position = self._position(n_scores)
        ends = ((1 - coverage) / 2, (1 + coverage) / 2)
        low, high = stats.beta.ppf(ends, n_scores + 1 - position, position)
        return float(low), float(high)

    def _position(self, n_scores: int) -> int:
        # Rounded: (n + 1)(1 - alpha) of, say, 0.1 and 9 rows is not the 9 that it means.
        return math.ceil(round((n_scores + 1) * (1 - self.alpha), 9))


class ParetoTail(BaseEstimator):  # type: ignore[misc]
    r"""Extrapolate to rare false alarms: a generalized Pareto distribution over the highest scores.

    Of n scores of rows that were not trained on, the k highest exceed a level u; their excesses are fitted by
    a generalized Pareto distribution with shape :math:`\xi` and scale :math:`\sigma` (peaks over threshold,
    Pickands 1975; for anomaly scores Siffer et al. 2017), and the cut is

    .. math:: u + \frac{\sigma}{\xi} \left( \left( \frac{q\,n}{k} \right)^{-\xi} - 1 \right)

    It reaches risks below 1 / n, where no quantile does, at the price of an assumption about the tail.

    Parameters
    ----------
    risk : float, default=1e-3
        q, the false-alarm rate, in (0, 1).
    tail_share : "auto" or float, default="auto"
        k / n, in (0, 1). "auto" takes :math:`k = n^{2/3}`: a share that shrinks as rows grow.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.thresholds import ParetoTail
    >>> scores = np.random.RandomState(0).exponential(size=100_000)
    >>> bool(abs(ParetoTail(1e-4).cut(scores) - np.log(1e4)) < 0.5)  # the exact quantile is log(10,000)
    True
    """

    held_out: ClassVar[bool] = True

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "risk": [Interval(Real, 0, 1, closed="neither")],
        "tail_share": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="neither")],
    }

    _FEWEST_EXCESSES: ClassVar[int] = 10

    def __init__(self, risk: float = 1e-3, tail_share: str | float = "auto") -> None:
        self.risk = risk
        self.tail_share = tail_share

    def cut(self, scores: npt.NDArray[np.floating]) -> float:
        """The cut for these scores of rows that were not trained on, an array of shape (n_rows,)."""
        self._validate_params()
        n_rows = len(scores)
        share = n_rows ** (-1 / 3) if isinstance(self.tail_share, str) else self.tail_share
        n_excesses = math.ceil(share * n_rows)
        if n_excesses < self._FEWEST_EXCESSES or n_excesses >= n_rows:
            raise ValueError(
                f"a tail needs at least {self._FEWEST_EXCESSES} excesses, and rows below it; received "
                f"{n_rows} rows that were not trained on and tail_share={self.tail_share!r}, which "
                f"make {n_excesses}. Fit on more rows, or set tail_share."
            )
        if self.risk >= n_excesses / n_rows:  # inside the data, where no tail is needed
            return float(np.quantile(scores, 1 - self.risk))
        ordered = np.sort(scores)
        level = ordered[-n_excesses - 1]
        excesses = ordered[-n_excesses:] - level
        unit = excesses.mean()
        if unit == 0:
            return float(level)
        shape, _, scale = stats.genpareto.fit(excesses / unit, floc=0)
        return float(level + unit * stats.genpareto.isf(self.risk * n_rows / n_excesses, shape, 0, scale))

    @property
    def false_alarm_rate(self) -> float:
        """What is promised for new rows."""
        return self.risk


#: Every rule that has a name.
THRESHOLDS: dict[str, type[Any]] = {
    "quantile": Quantile,
    "iqr": TukeyFence,
    "mad": MedianDeviation,
    "conformal": Conformal,
    "gpd": ParetoTail,
}


class _FromLabels:
    """A rule that labels scores 1 for anomalies, as pythresh's do, as one that makes a cut."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule

    def __repr__(self) -> str:
        return repr(self.rule)

    def cut(self, scores: npt.NDArray[np.floating]) -> float:
        """The greatest score below every one that is labelled an anomaly."""
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


def takes_held_out(rule: Any) -> bool:
    """Whether the rule asks for scores of rows that were not trained on."""
    return bool(getattr(rule, "held_out", False))


def promised_rate(rule: Any) -> float | None:
    """The rule's false-alarm rate for new rows; None if it promises none."""
    rate = getattr(rule, "false_alarm_rate", None)
    return None if rate is None else float(rate)


def resolve(threshold: Any, contamination: str | float) -> Any:
    """The rule that a detector's ``threshold`` and ``contamination`` ask for."""
    if threshold is None:
        return TukeyFence() if isinstance(contamination, str) else Quantile(contamination)
    if isinstance(threshold, BaseEstimator) and hasattr(threshold, "cut"):
        return clone(threshold)  # out of reach of a later set_params
    if not isinstance(threshold, str):
        return threshold if hasattr(threshold, "cut") else _FromLabels(threshold)
    if threshold not in THRESHOLDS:
        raise ValueError(f"threshold must be one of {[*THRESHOLDS]} or a rule; received {threshold!r}.")
    if threshold == "quantile" and not isinstance(contamination, str):
        return Quantile(contamination)
    return THRESHOLDS[threshold]()
