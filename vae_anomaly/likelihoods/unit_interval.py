"""Likelihoods of values in [0, 1]."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Array, DtypeOrNone, Tensor
from vae_anomaly.likelihoods.base import Likelihood, Parameters, check_all_inside
from vae_anomaly.likelihoods.location_scale import PixelGaussian

__all__ = ["Bernoulli", "ContinuousBernoulli", "UnitGaussian", "UnitInterval"]

# Scalers that map to [0, 1] overshoot by a rounding error.
_ROUNDING = 1e-6


class UnitInterval(Likelihood):
    """Base class of the likelihoods for values in [0, 1]."""

    def inside_support(self, low: Array, high: Array) -> tuple[Array, Array]:
        return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)

    def check_support(self, X: npt.NDArray[np.floating], names: npt.ArrayLike | None = None) -> None:
        check_all_inside(
            self.outside_support(X),
            X,
            names,
            f"likelihood {self.name!r} needs values in [0, 1] after scaling: scale the data to [0, 1], for "
            "example by MinMaxScaler(clip=True), or choose likelihood='gaussian'",
        )

    def outside_support(self, X: Tensor) -> Tensor:
        return (X < -_ROUNDING) | (X > 1 + _ROUNDING)

    def check_pixels(self, low: float, high: float, dtype: DtypeOrNone) -> None:
        if low < -_ROUNDING or high > 1 + _ROUNDING:
            received = f" of dtype {dtype}" if dtype is not None else ""
            remedy = (
                "divide by the largest value that a pixel can have (255 in 8-bit images), or hand in uint8"
            )
            if -1 - _ROUNDING <= low < -_ROUNDING and high <= 1 + _ROUNDING:
                remedy = "hand in (X + 1) / 2 if pixels lie in [-1, 1]"
            raise ValueError(
                f"likelihood {self.name!r} needs images with pixel values in [0, 1]; received values from "
                f"{low:g} to {high:g}{received}: {remedy}, or choose likelihood='gaussian'."
            )


class Bernoulli(UnitInterval):
    r"""Bernoulli likelihood, for binary features (binary cross-entropy).

    .. math:: \log p(x|z) = x \log\mu(z) + (1 - x)\log(1 - \mu(z)), \qquad \mu = \mathrm{sigmoid}

    Values between 0 and 1 are accepted and scored by the same cross-entropy, as most published VAEs
    do; that is not a density of x, and `ContinuousBernoulli` is the likelihood that is.

    Examples
    --------
    >>> from vae_anomaly.likelihoods import Bernoulli
    >>> Bernoulli().n_params
    1
    """

    name = "bernoulli"

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        logits = parameters[0]
        return x * logits - keras.ops.softplus(logits)

    def mean(self, parameters: Parameters) -> Tensor:
        return keras.ops.sigmoid(parameters[0])

    def sample(self, parameters: Parameters, seed: int) -> Tensor:
        uniform = keras.random.uniform(tuple(parameters[0].shape), dtype="float32", seed=seed)
        return keras.ops.cast(uniform < self.mean(parameters), uniform.dtype)

    def error(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Reconstruction error of each feature: the binary cross-entropy, in nats."""
        return -self.log_prob(x, parameters)

    def quantile(self, probability: Tensor, parameters: Parameters) -> Tensor:
        probability = keras.ops.convert_to_tensor(probability, parameters[0].dtype)
        return keras.ops.cast(self.mean(parameters) > 1 - probability, parameters[0].dtype)


class ContinuousBernoulli(UnitInterval):
    r"""Continuous Bernoulli likelihood, for values in [0, 1] such as gray pixels.

    With the decoder's logit :math:`\ell`,

    .. math:: \log p(x|z) = x\ell - \log\frac{e^\ell - 1}{\ell}

    which is the Bernoulli cross-entropy plus the normalizer that makes it a density on [0, 1]
    (Loaiza-Ganem & Cunningham 2019, "The continuous Bernoulli: fixing a pervasive error in
    variational autoencoders").

    Examples
    --------
    >>> from vae_anomaly.likelihoods import ContinuousBernoulli
    >>> ContinuousBernoulli().name
    'continuous_bernoulli'
    """

    name = "continuous_bernoulli"
    # Below this |logit| the closed forms lose their digits, and three terms of the series are exact.
    _near_zero: ClassVar[float] = 0.1

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        logits = parameters[0]
        return x * logits - keras.ops.softplus(logits) + self._log_normalizer(logits)

    def mean(self, parameters: Parameters) -> Tensor:
        logits = parameters[0]
        near, safe = self._near_and_safe(logits)
        square = keras.ops.square(logits)
        # 1 / (1 - exp(-l)) - 1 / l, and its series around 0.
        series = 0.5 + logits * (1 / 12 - square * (1 / 720 - square / 30240))
        return keras.ops.where(near, series, keras.ops.sigmoid(safe) + self._excess(safe))

    def sample(self, parameters: Parameters, seed: int) -> Tensor:
        return self.quantile(
            keras.random.uniform(tuple(parameters[0].shape), dtype="float32", seed=seed), parameters
        )

    def quantile(self, probability: Tensor, parameters: Parameters) -> Tensor:
        logits = parameters[0]
        uniform = keras.ops.convert_to_tensor(probability, dtype=logits.dtype)
        near, safe = self._near_and_safe(logits)
        # The inverse distribution function log(1 + u (exp(l) - 1)) / l. Negative logits are mirrored,
        # x -> 1 - x, so that the exponential never overflows.
        size = keras.ops.abs(safe)
        mirrored = keras.ops.where(safe > 0, uniform, 1 - uniform)
        grown = 1 + keras.ops.log(mirrored + (1 - mirrored) * keras.ops.exp(-size)) / size
        drawn = keras.ops.where(safe > 0, grown, 1 - grown)
        return keras.ops.clip(
            keras.ops.where(near, uniform + 0.5 * logits * uniform * (1 - uniform), drawn), 0.0, 1.0
        )

    def error(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Reconstruction error of each feature: the binary cross-entropy, in nats."""
        logits = parameters[0]
        return keras.ops.softplus(logits) - x * logits

    def _near_and_safe(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        near = keras.ops.abs(logits) < self._near_zero
        # The branch that is not taken must stay finite, or its gradient turns into NaN.
        return near, keras.ops.where(near, keras.ops.ones_like(logits), logits)

    def _log_normalizer(self, logits: Tensor) -> Tensor:
        """log(l / tanh(l / 2)) = log 2 + l^2 / 12 - 7 l^4 / 1440 + 31 l^6 / 90720 - ..."""
        near, safe = self._near_and_safe(logits)
        square = keras.ops.square(logits)
        series = math.log(2) + square * (1 / 12 - square * (7 / 1440 - 31 * square / 90720))
        exact = keras.ops.log(keras.ops.abs(safe)) - keras.ops.log(keras.ops.tanh(0.5 * keras.ops.abs(safe)))
        return keras.ops.where(near, series, exact)

    @staticmethod
    def _excess(logits: Tensor) -> Tensor:
        """1 / (1 - exp(-l)) - 1 / l - sigmoid(l) = 1 / sinh(l) - 1 / l, without overflow."""
        size = keras.ops.abs(logits)
        inverse_sinh = 2 * keras.ops.exp(-size) / (1 - keras.ops.exp(-2 * size))
        return keras.ops.sign(logits) * (inverse_sinh - 1 / size)


class UnitGaussian(UnitInterval, PixelGaussian):
    r"""Normal likelihood for pixels in [0, 1] that no scaler has changed.

    .. math:: \log p(x|z) = -\tfrac12\left(\frac{x - m(z)}{s}\right)^2 - \log s - \tfrac12\log 2\pi

    `PixelGaussian` in the units of the pixels: by default :math:`s = 0.3 \sqrt{d / 784}` for d pixels, which
    was found on images of bright strokes on black. The likelihoods above, or a scale for each pixel, let
    those that are nearly always black or nearly always gray decide over an image. It is a density on the
    real line, of which nothing is cut off: samples may lie outside of [0, 1]. Expected values are brought
    back into it.

    Parameters
    ----------
    scale : {"auto", "per_feature", "per_row"} or float, default="auto"
        The standard deviation; see `Gaussian`. A larger one lets the model keep less of an image.
    minimum_scale : float, default=0.1
        The smallest standard deviation that can be learned.

    Examples
    --------
    >>> from vae_anomaly.likelihoods import UnitGaussian
    >>> UnitGaussian(scale=0.1).n_params
    1
    """

    name = "unit_gaussian"
    standardized = False
    scale_of_784: ClassVar[float] = 0.3

    def values(self, expectations: Array) -> Array:
        return np.asarray(np.clip(expectations, 0.0, 1.0))
