"""Likelihoods of categories and of counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.utils._param_validation import Interval, StrOptions

from vae_anomaly.core.backend import keras
from vae_anomaly.core.rows import Rows, usual_range
from vae_anomaly.core.types import Array, Constraints, Tensor
from vae_anomaly.likelihoods.base import Likelihood, Parameters, check_all_inside

__all__ = ["Categorical", "Count"]

_N_QUANTILES = 16


class Categorical(Likelihood):
    r"""Categorical likelihood, for features that are one of several categories.

    .. math::
        p(x = k|z) = (1 - \varepsilon)\,\mathrm{softmax}(\ell(z))_k + \frac{\varepsilon}{K + 1}

    for x in 0, ..., K - 1, and :math:`\varepsilon / (K + 1)` for a category that was not among the training
    rows, coded as K: no category can be more surprising, whatever the decoder says. The encoder sees K
    indicators of each feature, none of which is 1 for an unseen category.

    Parameters
    ----------
    n_categories : int, default=2
        K. The table's own number, if the detector is told only "categorical".
    unseen_probability : float, default=1e-4
        :math:`\varepsilon`, in (0, 1).
    unseen : {"score", "raise"}, default="score"
        Whether an unseen category is scored or is an error.

    Examples
    --------
    >>> from vae_anomaly.likelihoods import Categorical
    >>> Categorical(3).n_params
    3
    """

    name = "categorical"
    whole_numbers = True
    _parameter_constraints: ClassVar[Constraints] = {
        "n_categories": [Interval(Integral, 1, None, closed="left")],
        "unseen_probability": [Interval(Real, 0, 1, closed="neither")],
        "unseen": [StrOptions({"score", "raise"})],
    }

    def __init__(
        self, n_categories: int = 2, unseen_probability: float = 1e-4, unseen: str = "score"
    ) -> None:
        self.n_categories = n_categories
        self.unseen_probability = unseen_probability
        self.unseen = unseen

    @property
    def n_params(self) -> int:
        return self.n_categories

    def parameters(self, outputs: Tensor, shared: Sequence[Tensor] = ()) -> Parameters:
        """One tensor of logits of shape (..., n_features, n_categories)."""
        n_features = outputs.shape[-1] // self.n_categories
        leading = keras.ops.shape(outputs)[:-1]
        return (keras.ops.reshape(outputs, (*leading, n_features, self.n_categories)),)

    def n_inputs(self, n_features: int) -> int:
        return n_features * self.n_categories

    def origins(self, n_features: int) -> list[int]:
        return [feature for feature in range(n_features) for _ in range(self.n_categories)]

    def inputs(self, x: Tensor, shared: Sequence[Tensor] = ()) -> Tensor:
        return _concatenate(self._indicators(x))

    def expected_inputs(self, parameters: Parameters) -> Tensor:
        return self.expectations(parameters)

    def expectations(self, parameters: Parameters) -> Tensor:
        return _concatenate(self._probabilities(parameters))

    def values(self, expectations: Array) -> Array:
        by_category = expectations.reshape(*expectations.shape[:-1], -1, self.n_categories)
        return np.asarray(by_category.argmax(axis=-1), dtype=expectations.dtype)

    def input_range(self, rows: Rows) -> Rows:
        n_inputs = rows.shape[1] * self.n_categories
        return np.stack([np.zeros(n_inputs), np.ones(n_inputs)]).astype(np.float32)

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        chosen = keras.ops.sum(self._indicators(x) * self._probabilities(parameters), axis=-1)
        return keras.ops.log(keras.ops.maximum(chosen, self._least))

    def mean(self, parameters: Parameters) -> Tensor:
        """The most probable category."""
        return keras.ops.cast(keras.ops.argmax(parameters[0], axis=-1), parameters[0].dtype)

    def sample(self, parameters: Parameters, seed: int) -> Tensor:
        logits = parameters[0]
        drawn = keras.random.categorical(keras.ops.reshape(logits, (-1, self.n_categories)), 1, seed=seed)
        return keras.ops.cast(keras.ops.reshape(drawn, logits.shape[:-1]), logits.dtype)

    def error(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Reconstruction error of each feature: the cross-entropy, in nats."""
        return -self.log_prob(x, parameters)

    def expected_log_prob(self, parameters: Parameters) -> Tensor:
        probabilities = self._probabilities(parameters)
        return keras.ops.sum(probabilities * keras.ops.log(probabilities), axis=-1)

    def expected_error(self, parameters: Parameters) -> Tensor:
        return -self.expected_log_prob(parameters)

    def quantile(self, probability: Tensor, parameters: Parameters) -> Tensor:
        return keras.ops.full_like(parameters[0][..., 0], math.nan)

    def check_support(self, X: npt.NDArray[np.floating], names: npt.ArrayLike | None = None) -> None:
        expected = f"likelihood 'categorical' needs codes from 0 to {self.n_categories - 1}"
        check_all_inside(self.outside_support(X), X, names, expected)

    def outside_support(self, X: Tensor) -> Tensor:
        greatest = self.n_categories - (self.unseen == "raise")
        return (X % 1 > 0) | (X < 0) | (greatest < X)

    @property
    def _least(self) -> float:
        return self.unseen_probability / (self.n_categories + 1)

    def _indicators(self, x: Tensor) -> Tensor:
        categories = np.arange(self.n_categories, dtype=np.float32)
        return keras.ops.cast(x[..., None] == categories, x.dtype)

    def _probabilities(self, parameters: Parameters) -> Tensor:
        """Of the known categories, of shape (..., n_features, n_categories)."""
        logits = parameters[0]
        # Keras' softmax warns of an axis of one: a column that holds one category.
        softmax = keras.ops.exp(logits - keras.ops.logsumexp(logits, axis=-1, keepdims=True))
        return (1 - self.unseen_probability) * softmax + self._least


class Count(Likelihood):
    r"""Discrete log-logistic likelihood, for counts (whole numbers from 0) of any size and spread.

    .. math::
        P(x \le k|z) = \mathrm{sigmoid}\left(\frac{u(k + 1) - m(z)}{s}\right),
        \qquad u(k) = \frac{\log k - c}{w}

    with a location m from the decoder and a scale s >= 0.1 that is learned for each feature. The level c and
    the spread w are those of log(x + 1/2) among the training rows; the encoder sees u(x + 1/2).

    Examples
    --------
    >>> from vae_anomaly.likelihoods import Count
    >>> Count().n_params
    1
    """

    name = "count"
    whole_numbers = True
    _minimum_scale: ClassVar[float] = 0.1

    @property
    def n_shared(self) -> int:
        return 3

    def initial_shared(self, rows: Rows) -> npt.NDArray[np.float32]:
        logarithms = np.log(np.maximum(rows.astype(np.float64), 0) + 0.5)
        # A column may be missing in all the rows that a member trains on.
        logarithms[:, np.isnan(logarithms).all(axis=0)] = 0.0
        spread = np.nanstd(logarithms, axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        level = np.nanmean(logarithms, axis=0)
        return np.stack([np.zeros(len(level)), level, np.log(spread)]).astype(np.float32)

    def inputs(self, x: Tensor, shared: Sequence[Tensor] = ()) -> Tensor:
        _, level, log_spread = (keras.ops.stop_gradient(values) for values in shared)
        return (keras.ops.log(keras.ops.maximum(x, 0.0) + 0.5) - level) * keras.ops.exp(-log_spread)

    def expected_inputs(self, parameters: Parameters) -> Tensor:
        return parameters[0]

    def input_range(self, rows: Rows) -> Rows:
        _, level, log_spread = self.initial_shared(rows)
        standardized = (np.log(np.maximum(rows, 0) + 0.5) - level) * np.exp(-log_spread)
        return usual_range(standardized.astype(np.float32))

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        location, scale, level, spread = self._unpacked(parameters)
        ops = keras.ops
        upper = ((ops.log1p(x) - level) / spread - location) / scale
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), which keeps its digits.
        safe = ops.maximum(x, 1.0)
        width = ops.log1p(1 / safe) / (spread * scale)
        log_difference = -ops.softplus(-upper) - ops.softplus(upper - width) + ops.log(-ops.expm1(-width))
        return ops.where(x < 1, -ops.softplus(-upper), log_difference)

    def mean(self, parameters: Parameters) -> Tensor:
        """The median: the mean is infinite for large scales."""
        return self.quantile(0.5, parameters)

    def sample(self, parameters: Parameters, seed: int) -> Tensor:
        shape = tuple(parameters[0].shape)
        return self.quantile(
            keras.random.uniform(shape, 1e-6, 1 - 1e-6, dtype="float32", seed=seed), parameters
        )

    def quantile(self, probability: Tensor, parameters: Parameters) -> Tensor:
        location, scale, level, spread = self._unpacked(parameters)
        probability = keras.ops.convert_to_tensor(probability, dtype=location.dtype)
        logit = keras.ops.log(probability) - keras.ops.log1p(-probability)
        logarithm = level + spread * (location + scale * logit)
        # Counts of 1e14 are as far as rows reach.
        return keras.ops.maximum(keras.ops.ceil(keras.ops.exp(keras.ops.minimum(logarithm, 32.0))) - 1, 0.0)

    def inside_support(self, low: Array, high: Array) -> tuple[Array, Array]:
        return np.maximum(np.ceil(low), 0.0), np.floor(high)

    def error(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Reconstruction error of each feature: the squared distance of u(x + 1/2) from the location."""
        return keras.ops.square(self.inputs(x, parameters[1:]) - parameters[0])

    def expected_log_prob(self, parameters: Parameters) -> Tensor:
        """Nearly: the mean over so many equally probable counts."""
        levels = (np.arange(_N_QUANTILES) + 0.5) / _N_QUANTILES
        levels = levels.reshape(-1, *[1] * len(parameters[0].shape))
        return keras.ops.mean(self.log_prob(self.quantile(levels, parameters), parameters), axis=0)

    def expected_error(self, parameters: Parameters) -> Tensor:
        """Nearly: the variance of a logistic variable, which counts of a few are not."""
        _, scale, _, _ = self._unpacked(parameters)
        return keras.ops.zeros_like(parameters[0]) + math.pi**2 / 3 * keras.ops.square(scale)

    def check_support(self, X: npt.NDArray[np.floating], names: npt.ArrayLike | None = None) -> None:
        expected = "likelihood 'count' needs whole numbers from 0 on; choose 'gaussian' for others"
        check_all_inside(self.outside_support(X), X, names, expected)

    def outside_support(self, X: Tensor) -> Tensor:
        return (X % 1 > 0) | (X < 0)

    def _unpacked(self, parameters: Parameters) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        location, raw, *constants = parameters
        log_minimum = math.log(self._minimum_scale)
        scale = keras.ops.exp(log_minimum + keras.ops.softplus(raw - log_minimum))
        level, log_spread = (keras.ops.stop_gradient(values) for values in constants)
        return location, scale, level, keras.ops.exp(log_spread)


def _concatenate(by_category: Tensor) -> Tensor:
    """(..., n_features, n_categories) -> (..., n_features * n_categories)."""
    *leading, n_features, n_categories = keras.ops.shape(by_category)
    return keras.ops.reshape(by_category, (*leading, n_features * n_categories))
