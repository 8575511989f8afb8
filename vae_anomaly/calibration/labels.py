"""Labels: with some rows of known truth, probabilities of being an anomaly, cuts for precision and recall.

Without labels nothing here can be known: p-values and false-alarm rates are statements about normal rows. The
labeled rows must not be among the training rows, and must be drawn as the rows that are judged later.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from vae_anomaly.calibration.certificate import certified_cut, fewest_rows
from vae_anomaly.calibration.checks import check_probability
from vae_anomaly.core.types import Constraints, Estimator, Flags, Floats, MatrixLike
from vae_anomaly.scorers import is_anomaly

__all__ = ["AnomalyProbability", "precision_cut", "recall_cut"]

# Each further cut that is tried flags so many times as many rows.
_STEP = 1.2
# Between the median of normal scores and their highest tenth.
_FARTHEST = 20.0


class AnomalyProbability(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    r"""The probability that a row is an anomaly, by scikit-learn's calibration of a detector's scores.

    The detector is fitted without labels, and stays as it is. `fit` gives its scores and the labels of other
    rows to scikit-learn's `CalibratedClassifierCV`: "sigmoid" is Platt's (1999), a logistic function of the
    score, for few labels; "isotonic" any function that rises with the score, for a thousand labels or more.
    To "sigmoid", scores that are farther than 20 times the distance from the median to the highest tenth of
    the normal ones lie there: one anomaly of a thousand standard deviations would set the slope for all.

    The probability is one among rows like the labeled ones. If anomalies are more frequent among these than
    in use, say how frequent they are there: with ``prevalence`` :math:`\pi`, and :math:`\pi_0` among the
    labeled rows, the odds are multiplied by

    .. math:: \frac{\pi / (1 - \pi)}{\pi_0 / (1 - \pi_0)}

    Parameters
    ----------
    detector : VAEDetector, or another fitted estimator with ``score_samples``
        `sklearn.base.clone` makes a new one of it, as of every parameter: where it has to stay fitted, as in
        a cross-validation over labeled rows, wrap it in `sklearn.frozen.FrozenEstimator`.
    method : {"sigmoid", "isotonic"}, default="sigmoid"
    prevalence : float or None, default=None
        Of anomalies among the rows to be judged, in (0, 1). None is that of the labeled rows.
    anomaly_label : scalar or "auto", default="auto"
        Which of the labels marks anomalies; see `scorers.is_anomaly`.

    Attributes
    ----------
    classes_ : array([0, 1])
        1 is anomalies, whatever the labels in `fit`.
    prevalence_ : float
        Of anomalies among the labeled rows.
    calibrated_ : CalibratedClassifierCV
        Of one column, the anomaly score.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.calibration import AnomalyProbability
    >>> from vae_anomaly.datasets import make_anomalies
    >>> X, y = make_anomalies(900, 4, kind="global", random_state=0)
    >>> detector = VAEDetector(epochs=10, random_state=0).fit(X[:600])
    >>> probability = AnomalyProbability(detector).fit(X[600:], y[600:])
    >>> probability.predict_proba(X[:5]).shape
    (5, 2)
    """

    _parameter_constraints: ClassVar[Constraints] = {
        "detector": [HasMethods("score_samples")],
        "method": [StrOptions({"sigmoid", "isotonic"})],
        "prevalence": [Interval(Real, 0, 1, closed="neither"), None],
        "anomaly_label": "no_validation",  # type: ignore[dict-item]
    }

    def __init__(
        self,
        detector: Estimator,
        method: str = "sigmoid",
        prevalence: float | None = None,
        anomaly_label: object = "auto",
    ) -> None:
        self.detector = detector
        self.method = method
        self.prevalence = prevalence
        self.anomaly_label = anomaly_label

    def fit(self, X: MatrixLike, y: npt.ArrayLike) -> Self:
        """Calibrate.

        Parameters
        ----------
        X : rows as the detector's
            None of which it was trained on.
        y : array of shape (n_rows,)
            Their labels, at least 2 of each class.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For labels that cannot be read, or fewer than 2 of a class.
        """
        self._validate_params()
        scores = -self.detector.score_samples(X)
        truth = _check_labels(scores, y, self.anomaly_label)
        rarest = int(min(truth.sum(), (~truth).sum()))
        if rarest < 2:
            raise ValueError(f"calibration needs at least 2 rows of each class; received {rarest} of one.")
        # It loads scikit-learn's linear models and support vector machines, which nothing else here needs.
        from sklearn.calibration import CalibratedClassifierCV

        # The detector's scores are no different in folds: the fewest will do.
        score = _Score(*(_ends(scores[~truth]) if self.method == "sigmoid" else (-np.inf, np.inf)))
        calibrated = CalibratedClassifierCV(FrozenEstimator(score), method=self.method, cv=2)
        calibrated.fit(scores[:, None], truth.astype(int))
        self.calibrated_, self.prevalence_ = calibrated, float(truth.mean())
        self.classes_ = np.array([0, 1])
        return self

    def predict_proba(self, X: MatrixLike) -> Floats:
        """Probabilities of being normal and of being an anomaly.

        Parameters
        ----------
        X : rows as the detector's

        Returns
        -------
        float64 array of shape (n_rows, 2)
        """
        check_is_fitted(self)
        chances: Floats = self.calibrated_.predict_proba(-self.detector.score_samples(X)[:, None])
        if self.prevalence is None:
            return chances
        known, wanted = self.prevalence_, self.prevalence
        chances = chances * [(1 - wanted) / (1 - known), wanted / known]
        return np.asarray(chances / chances.sum(axis=1, keepdims=True))

    def predict(self, X: MatrixLike) -> npt.NDArray[np.int64]:
        """1 for rows that are more probably an anomaly than not, else 0.

        Parameters
        ----------
        X : rows as the detector's

        Returns
        -------
        int array of shape (n_rows,)
        """
        return (self.predict_proba(X)[:, 1] > 0.5).astype(int)


def _ends(of_normal_rows: Floats) -> tuple[float, float]:
    """Where scores are as far as any other."""
    middle, high = np.quantile(of_normal_rows, [0.5, 0.9])
    reach = _FARTHEST * (high - middle)
    return (middle - reach, middle + reach) if 0 < reach < np.inf else (-np.inf, np.inf)


class _Score(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose decision function is its only column, between two ends."""

    classes_ = np.array([0, 1])

    def __init__(self, low: float = -np.inf, high: float = np.inf) -> None:
        self.low = low
        self.high = high

    def fit(self, X: Floats, y: object) -> Self:
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def decision_function(self, X: Floats) -> Floats:
        return np.clip(np.asarray(X)[:, 0], self.low, self.high)

    def predict(self, X: Floats) -> npt.NDArray[np.int64]:
        return (self.decision_function(X) > 0).astype(int)


def recall_cut(anomaly_scores: npt.ArrayLike, recall: float, confidence: float = 0.95) -> float:
    """The largest cut above which, with a stated confidence, at least this fraction of new anomalies lies.

    As `certified_cut` for normal rows: a rank among the scores, exact whatever their distribution, if known
    and new anomalies are independent and of one distribution.

    Parameters
    ----------
    anomaly_scores : array of shape (n_anomalies,)
        Scores of known anomalies that were not trained on; larger = more anomalous. At least
        log(1 - confidence) / log(recall): 29 for 90 % with 95 % confidence.
    recall, confidence : float
        In (0, 1).

    Raises
    ------
    ValueError
        If there are too few anomalies: says how many it takes.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.calibration import recall_cut
    >>> bool(recall_cut(np.arange(100.0), 0.9) < 5.0)
    True
    """
    check_probability(recall, "recall")
    check_probability(confidence, "confidence")
    scores = np.asarray(anomaly_scores, dtype=np.float64)
    missed, needed = round(1 - recall, 12), fewest_rows(round(1 - recall, 12), confidence)
    if scores.ndim == 1 and len(scores) < needed:
        raise ValueError(
            f"a recall of {recall:g} with a confidence of {confidence:g} takes at least {needed:,} known "
            f"anomalies; received {len(scores):,}. Label more, or ask for less."
        )
    # Rows with this score are found too: the cut lies just below it.
    return float(np.nextafter(-certified_cut(-scores, missed, confidence), -np.inf))


def precision_cut(
    scores: npt.ArrayLike,
    y: npt.ArrayLike,
    precision: float,
    confidence: float = 0.95,
    anomaly_label: object = "auto",
) -> float:
    r"""The smallest cut found above which, with a stated confidence, at least this fraction is anomalies.

    The cuts that are tried leave m rows above them, with numbers m that are decided beforehand, each 1.2
    times the one before. The rows above such a cut are independent draws of all rows above it, so k anomalies
    among them give a lower limit of the precision (Clopper & Pearson 1934). With G cuts, each limit has the
    confidence :math:`1 - (1 - \text{confidence}) / G` (Bonferroni), and the best cut may be chosen.

    Parameters
    ----------
    scores, y : arrays of shape (n_rows,)
        Of labeled rows that were not trained on, in which anomalies are as frequent as in use.
    precision, confidence : float
        In (0, 1).
    anomaly_label : scalar or "auto", default="auto"
        See `scorers.is_anomaly`.

    Returns
    -------
    float
        The cut that the most rows are above.

    Raises
    ------
    ValueError
        If no cut has this precision with this confidence: says what the best one has.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.calibration import precision_cut
    >>> y = np.r_[np.zeros(900), np.ones(100)]
    >>> bool(890 < precision_cut(np.arange(1000.0), y, 0.8) < 900)
    True
    """
    check_probability(precision, "precision")
    check_probability(confidence, "confidence")
    values = np.asarray(scores, dtype=np.float64)
    truth = _check_labels(values, y, anomaly_label)
    sizes, doubt = [1], 1 - confidence
    while sizes[-1] < len(values) - 1:
        sizes.append(min(len(values) - 1, max(sizes[-1] + 1, math.floor(_STEP * sizes[-1]))))
    # All of too few rows may be anomalies and yet prove nothing.
    sizes = [size for size in sizes if (doubt / len(sizes)) ** (1 / size) >= precision] or sizes[-1:]
    descending = np.sort(values)[::-1]
    best = 0.0
    for size in reversed(sizes):
        cut = descending[size]
        above = values > cut
        n_true = int(truth[above].sum())
        if n_true:
            limit = float(stats.beta.ppf(doubt / len(sizes), n_true, above.sum() - n_true + 1))
            if limit >= precision:
                return float(cut)
            best = max(best, limit)
    raise ValueError(
        f"no cut has a precision of {precision:g} with a confidence of {confidence:g}: the best of "
        f"{len(sizes)} has {best:.3g}. Label more rows, or ask for less."
    )


def _check_labels(scores: Floats, y: npt.ArrayLike, anomaly_label: object) -> Flags:
    if scores.ndim != 1 or np.shape(y) != scores.shape or np.isnan(scores).any():
        raise ValueError(
            f"there must be one label and one score for each row; received arrays of shapes {np.shape(y)} "
            f"and {scores.shape}{' with NaN' if np.isnan(scores).any() else ''}."
        )
    return is_anomaly(y, anomaly_label)
