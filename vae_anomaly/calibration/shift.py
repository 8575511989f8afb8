r"""Covariate shift: p-values of rows that come from elsewhere than the reference rows, by weights.

New normal rows may be of the same kind as the reference rows, but in other proportions: more of the winter,
fewer of the small machines. If :math:`w(x)` is the ratio of the density of new normal rows to that of the
reference rows, weighted conformal p-values hold for the new ones (Tibshirani, Barber, Candès & Ramdas 2019,
"Conformal prediction under covariate shift"):

.. math:: p(x) = \frac{\sum_i w(x_i)\,1[s_i \ge s(x)] + w(x)}{\sum_i w(x_i) + w(x)}

What a weight cannot repair is new rows where there are no reference rows.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import check_is_fitted

from vae_anomaly.calibration.checks import check_probability
from vae_anomaly.core.types import Constraints, Estimator, Flags, Floats, MatrixLike, RandomStateLike

__all__ = ["CovariateShift", "effective_rows", "weighted_discoveries", "weighted_p_values"]


def weighted_p_values(
    scores: npt.ArrayLike,
    weights: npt.ArrayLike,
    calibration: npt.ArrayLike,
    calibration_weights: npt.ArrayLike,
) -> Floats:
    """Conformal p-values of rows from another distribution than the calibration rows.

    The formula stands in `calibration.shift`. With weights that are all 1 it is that of `p_values`, to the
    last bit.

    Parameters
    ----------
    scores, weights : arrays of shape (n_rows,)
        Larger scores are more anomalous. Weights are the ratio of the density of new normal rows to that of
        calibration rows, up to a factor: positive for new rows, not negative for calibration rows.
    calibration, calibration_weights : arrays of shape (n_calibration,)

    Returns
    -------
    float64 array of shape (n_rows,)

    Raises
    ------
    ValueError
        For weights that are not finite, negative, or not one for each score.

    Examples
    --------
    >>> from vae_anomaly.calibration import weighted_p_values
    >>> weighted_p_values([2.5], [1.0], [1.0, 2.0, 3.0], [1.0, 1.0, 6.0])
    array([0.77777778])
    """
    new, new_weights = _check(scores, weights, "scores")
    known, known_weights = _check(calibration, calibration_weights, "calibration scores")
    above, total = _weight_above(new, known, known_weights)
    return np.asarray((above + new_weights) / (total + new_weights))


def weighted_discoveries(
    scores: npt.ArrayLike,
    weights: npt.ArrayLike,
    calibration: npt.ArrayLike,
    calibration_weights: npt.ArrayLike,
    false_discovery_rate: float = 0.1,
    random_state: RandomStateLike = None,
) -> Flags:
    r"""Anomalies among rows from another distribution, of which on average at most a given share is false.

    Weighted p-values do not depend positively on each other, so that Benjamini & Hochberg's procedure alone
    promises nothing. Weighted conformal selection (Jin & Candès 2023, "Model-free selective inference under
    covariate shift via weighted conformal p-values", with homogeneous pruning) asks for each row j how many
    rows :math:`R_j` that procedure would select if j was the most anomalous of all and the others had the
    p-values

    .. math:: \bar p_l^{(j)} = \frac{\sum_i w_i\,1[s_i \ge s_l] + w_j\,1[s_j \ge s_l]}{\sum_i w_i + w_j}

    keeps the rows with :math:`p_j \le \alpha R_j / m`, draws one :math:`\xi` uniformly from (0, 1), and
    selects the kept rows with :math:`\xi R_j \le r`, for the largest r that at least r of them reach. It
    takes a time that grows with the square of the number of rows.

    Parameters
    ----------
    scores, weights, calibration, calibration_weights : as in `weighted_p_values`
    false_discovery_rate : float, default=0.1
        alpha, in (0, 1).
    random_state : int, RandomState instance or None, default=None
        For :math:`\xi`, which mostly changes nothing. Draw once: the best of several draws promises nothing.

    Returns
    -------
    bool array of shape (n_rows,)

    Raises
    ------
    ValueError
        For a rate outside (0, 1), and for weights as in `weighted_p_values`.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.calibration import weighted_discoveries
    >>> weighted_discoveries([500.0, 3.0], [1.0, 1.0], np.arange(99.0), np.ones(99), random_state=0)
    array([ True, False])
    """
    check_probability(false_discovery_rate, "false_discovery_rate")
    new, new_weights = _check(scores, weights, "scores")
    known, known_weights = _check(calibration, calibration_weights, "calibration scores")
    n_rows = len(new)
    above, total = _weight_above(new, known, known_weights)
    own = (above + new_weights) / (total + new_weights)
    order = np.argsort(-new, kind="stable")
    ordered, above = new[order], above[order]  # so that every row of p-values below ascends
    n_selected = np.empty(n_rows)
    rank = np.arange(1, n_rows + 1)
    for place, j in enumerate(order):
        others = (above + new_weights[j] * (new[j] >= ordered)) / (total + new_weights[j])
        # Row j comes first, with a p-value of 0: those before it move on by one.
        ranks = rank + (rank <= place)
        reached = np.round(others * n_rows - false_discovery_rate * ranks, 12) <= 0
        reached[place] = False
        n_selected[j] = max(1, ranks[reached].max(initial=1))
    first = np.round(own * n_rows - false_discovery_rate * n_selected, 12) <= 0
    pruned = check_random_state(random_state).random_sample() * n_selected
    # The largest r that at least r of the kept rows reach.
    enough = np.flatnonzero(np.searchsorted(np.sort(pruned[first]), rank, side="right") >= rank)
    largest = rank[enough[-1]] if len(enough) else 0
    return np.asarray(first & (pruned <= largest))


def effective_rows(weights: npt.ArrayLike) -> float:
    r"""So many rows of equal weights would tell as much: :math:`(\sum w)^2 / \sum w^2` (Kish 1965).

    Parameters
    ----------
    weights : array of shape (n_rows,)
        Not negative, at least one of them positive.

    Raises
    ------
    ValueError
        For other weights.

    Examples
    --------
    >>> from vae_anomaly.calibration import effective_rows
    >>> effective_rows([1.0, 1.0, 1.0, 1.0]), effective_rows([1.0, 0.0, 0.0, 0.0])
    (4.0, 1.0)
    """
    values = np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise ValueError(f"weights must be finite and not negative, and not all 0; received {values!r}.")
    values = values / values.max()  # their squares stay finite
    return float(values.sum() ** 2 / (values**2).sum())


class CovariateShift(BaseEstimator):  # type: ignore[misc]
    """P-values and selections of a detector for rows that come in other proportions than its own.

    A classifier learns to tell new rows from reference rows by their posterior means in the detector's latent
    space; its odds are the weights of `weighted_p_values`. So they are estimates, and the promises are as
    good as they are: only shifts that the classifier sees are repaired, and anomalies among the new rows are
    taken for a part of the shift, which costs power. A shift in what is normal (the same x, other scores) is
    not a covariate shift; see `monitoring` for finding one.

    Parameters
    ----------
    detector : VAEDetector
        Fitted; calibration is not needed.
    classifier : classifier with ``predict_proba``, or None, default=None
        It is cloned. None is scikit-learn's `LogisticRegression` of standardized posterior means.
    fewest_effective_rows : float, default=50
        With fewer, `fit` refuses: a handful of reference rows would decide everything.

    Attributes
    ----------
    effective_rows_ : float
        So many reference rows without weights would tell as much; `effective_rows`.
    weights_ : float64 array of shape (n_reference,)
        Of the reference rows, with a mean of 1.
    scores_ : float64 array of shape (n_reference,)
        Anomaly scores of the reference rows.
    classifier_ : classifier
        Fitted; its class 1 is new rows.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.calibration import CovariateShift
    >>> rng = np.random.RandomState(0)
    >>> detector = VAEDetector(epochs=5, random_state=0).fit(rng.normal(size=(500, 3)))
    >>> reference, new = rng.normal(size=(500, 3)), rng.normal(size=(200, 3)) + [0.5, 0.0, 0.0]
    >>> shift = CovariateShift(detector).fit(reference, new)
    >>> 50 < shift.effective_rows_ < 500
    True
    >>> shift.p_values(new).shape
    (200,)
    """

    _parameter_constraints: ClassVar[Constraints] = {
        "detector": [HasMethods(["score_samples", "encode"])],
        "classifier": [HasMethods(["fit", "predict_proba"]), None],
        "fewest_effective_rows": [Interval(Real, 1, None, closed="left")],
    }

    def __init__(
        self, detector: Estimator, classifier: Estimator = None, fewest_effective_rows: float = 50
    ) -> None:
        self.detector = detector
        self.classifier = classifier
        self.fewest_effective_rows = fewest_effective_rows

    def fit(self, reference: MatrixLike, X: MatrixLike) -> Self:
        """Estimate the weights.

        Parameters
        ----------
        reference : rows as the detector's
            Normal rows that the detector was not trained on. Training rows have scores that are too low.
        X : rows as the detector's
            The new ones, or others that were drawn as they were.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the weights leave fewer than ``fewest_effective_rows``: says how many.
        """
        self._validate_params()
        scores, known, new = (
            -self.detector.score_samples(reference),
            self.detector.encode(reference),
            self.detector.encode(X),
        )
        if self.classifier is not None:
            classifier: Any = clone(self.classifier)
        else:
            # It loads all linear models of scikit-learn, which nothing else here needs.
            from sklearn.linear_model import LogisticRegression

            classifier = make_pipeline(StandardScaler(), LogisticRegression())
        classifier.fit(np.concatenate([known, new]), np.repeat([0, 1], [len(known), len(new)]))
        weights = _odds(classifier, known)
        scale, effective = float(weights.mean()), effective_rows(weights)
        if effective < self.fewest_effective_rows:
            raise ValueError(
                f"the new rows are too far from the reference rows: of {len(known):,}, the weights leave "
                f"{effective:.1f} effective ones, and fewest_effective_rows is "
                f"{self.fewest_effective_rows:g}. Take reference rows that are more like the new ones, or "
                "more of them; or fit the detector anew."
            )
        self.classifier_, self._scale = classifier, scale
        self.weights_, self.scores_, self.effective_rows_ = weights / scale, scores, effective
        return self

    def p_values(self, X: MatrixLike) -> Floats:
        """`weighted_p_values` of rows that come from where those of `fit` came.

        Parameters
        ----------
        X : rows as the detector's

        Returns
        -------
        float64 array of shape (n_rows,)
        """
        return weighted_p_values(*self._judge(X), self.scores_, self.weights_)

    def select_anomalies(
        self, X: MatrixLike, false_discovery_rate: float = 0.1, random_state: RandomStateLike = None
    ) -> Flags:
        """`weighted_discoveries`: rows to call anomalies, of which on average at most a share is normal.

        Parameters
        ----------
        X : rows as the detector's
        false_discovery_rate : float, default=0.1
        random_state : int, RandomState instance or None, default=None
            Draw once; see `weighted_discoveries`.

        Returns
        -------
        bool array of shape (n_rows,)
        """
        return weighted_discoveries(
            *self._judge(X), self.scores_, self.weights_, false_discovery_rate, random_state
        )

    def _judge(self, X: MatrixLike) -> tuple[Floats, Floats]:
        """Scores and weights of new rows."""
        check_is_fitted(self)
        weights = _odds(self.classifier_, self.detector.encode(X)) / self._scale
        return -self.detector.score_samples(X), weights


def _odds(classifier: Estimator, rows: Floats) -> Floats:
    """Of being new; a probability of 1 is the largest below it, so that odds stay finite."""
    chance = np.clip(classifier.predict_proba(rows)[:, 1], np.finfo(float).tiny, 1 - 2**-53)
    return np.asarray(chance / (1 - chance))


def _weight_above(scores: Floats, calibration: Floats, weights: Floats) -> tuple[Floats, float]:
    """Sums of the weights of calibration rows whose scores are not smaller, and the sum of all of them."""
    order = np.argsort(calibration, kind="stable")
    sums = np.append(np.cumsum(weights[order][::-1])[::-1], 0.0)
    return np.asarray(sums[np.searchsorted(calibration[order], scores, side="left")]), float(sums[0])


def _check(scores: npt.ArrayLike, weights: npt.ArrayLike, name: str) -> tuple[Floats, Floats]:
    values, checked = np.asarray(scores, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or values.shape != checked.shape:
        raise ValueError(
            f"weights must be one number for each of the {name}; received arrays of shapes {values.shape} "
            f"and {checked.shape}."
        )
    if np.isnan(values).any():
        raise ValueError(f"{name} must be numbers; {int(np.isnan(values).sum()):,} are NaN.")
    least = 0 if name.startswith("calibration") else np.nextafter(0, 1)
    if not (np.isfinite(checked) & (checked >= least)).all():
        sign = "positive" if least else "not negative"
        raise ValueError(f"weights of {name} must be finite and {sign}; received {checked!r}.")
    return values, checked
