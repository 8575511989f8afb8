"""Likelihoods of real values: a location from the decoder, and a scale."""

from __future__ import annotations

import math
from numbers import Real
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.base import clone
from sklearn.utils._param_validation import Interval, StrOptions

from vae_anomaly.core.backend import keras
from vae_anomaly.core.rows import Rows, evenly_spaced
from vae_anomaly.core.types import Constraints, Tensor
from vae_anomaly.likelihoods.base import Likelihood, Parameters

__all__ = ["Gaussian", "Laplace", "LocationScale", "PixelGaussian", "StudentT"]

# Pixels of the images in which a scale of one standard deviation was found best.
_PIXELS = 784

# What softplus takes for no more than a hundredth.
_BELOW_MINIMUM = 5.0
# Such a column has levels and no noise: a scale of each row says how sure a model is of one, and what is
# rare is probable where it is unsure.
_FEW_VALUES, _ROWS_TO_COUNT_VALUES = 10, 2_000
# In the units of the scaled data. The encoder sees it no farther out than usual values are, so the scale that
# it needs is that of rows next to it, in which it is too large for all others: trainings diverge.
_GROSS_ERROR = 100.0
# Quadrature over a standard density: wide enough for its mass, fine enough for a kink.
_FARTHEST_RESIDUAL, _N_GRID = 60.0, 12_001


class LocationScale(Likelihood):
    r"""A density :math:`\frac{1}{s} f\!\left(\frac{x - m}{s}\right)` with location m and scale s.

    The decoder computes the location. The scale is bounded from below by a softplus on its logarithm,
    :math:`\log s = \log s_{min} + \mathrm{softplus}(r - \log s_{min})`, so that a constant feature has
    a finite density and the gradient never vanishes at the bound.

    Parameters
    ----------
    scale : {"per_feature", "per_row", "per_member"} or float, default="per_feature"
        "per_feature" learns one scale for each feature together with the model; "per_row" lets the
        decoder compute one for each row and feature (a heteroscedastic model: flexible, but it can
        hide anomalies in rows whose scale it makes large); "per_member" is one of these two in each
        member of an ensemble, as its ``Member(scale=...)`` says: "per_feature" if that says nothing, and in
        columns of at most ten values or with values beyond 100; a float fixes it, in the units of the
        scaled data.
    minimum_scale : float, default=0.1
        The smallest scale s_min that can be learned, in the units of the scaled data. With a much
        smaller one, a feature that is constant in most training rows makes any other value drown all
        other features. Lower it for features that the others determine to better than a tenth of
        their spread.
    """

    _parameter_constraints: ClassVar[Constraints] = {
        "scale": [
            StrOptions({"per_feature", "per_row", "per_member"}),
            Interval(Real, 0, None, closed="neither"),
        ],
        "minimum_scale": [Interval(Real, 0, None, closed="neither")],
    }

    standardized = True

    def __init__(self, scale: str | float = "per_feature", minimum_scale: float = 0.1) -> None:
        self.scale = scale
        self.minimum_scale = minimum_scale

    @property
    def n_params(self) -> int:
        return 2 if self.scale in ("per_row", "per_member") else 1

    @property
    def n_shared(self) -> int:
        # Of "per_member" the second says which of both scales it is.
        return {"per_feature": 1, "per_member": 2}.get(self.scale, 0) if isinstance(self.scale, str) else 0

    def per_member(self) -> Self | None:
        if self.scale in ("per_row", "per_member"):
            return self
        # A density of one's own takes the parameters apart, and knows the others alone.
        takes_apart = type(self).log_prob is not LocationScale.log_prob
        if self.scale != "per_feature" or takes_apart:
            return None
        found: Self = clone(self).set_params(scale="per_member")
        return found

    def initial_shared_per_row(self, rows: Rows) -> npt.NDArray[np.float32]:
        """The same of a member with a scale for each row, but in columns of few values or gross errors."""
        shared = self.initial_shared(rows)
        if self.scale == "per_member":
            in_order = np.sort(rows[evenly_spaced(len(rows), _ROWS_TO_COUNT_VALUES)], axis=0)
            n_values = 1 + np.count_nonzero(in_order[1:] > in_order[:-1], axis=0)
            farthest = np.fmax(np.fmax.reduce(rows, axis=0), -np.fmin.reduce(rows, axis=0))
            shared[1] = (n_values > _FEW_VALUES) & (farthest < _GROSS_ERROR)
        return shared

    def has_scale_per_row(self, shared: npt.NDArray[np.floating]) -> bool:
        return self.scale == "per_row" or (self.scale == "per_member" and bool((shared[1] > 0).any()))

    def initial_shared(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Scales start at about 1, those of constant features near the smallest, which they end at."""
        shared = super().initial_shared(rows)
        if self.n_shared:
            # Of a feature without any value, both are infinite, the other way round.
            least = np.where(np.isnan(rows), np.inf, rows).min(axis=0)
            greatest = np.where(np.isnan(rows), -np.inf, rows).max(axis=0)
            shared[0, least == greatest] = math.log(self.minimum_scale) - _BELOW_MINIMUM
        return shared

    def log_scale(self, parameters: Parameters) -> Tensor:
        """Log s, broadcastable to (n_rows, n_features)."""
        if not isinstance(self.scale, str):
            return keras.ops.convert_to_tensor(math.log(self.scale), dtype=parameters[0].dtype)
        raw, log_minimum = parameters[1], math.log(self.minimum_scale)
        if self.scale == "per_member":
            _, of_row, of_feature, is_per_row = parameters
            # The same as a choice by `where`, in a fifth of the time: one of the factors is 1, the other 0.
            factor = keras.ops.cast(is_per_row > 0.5, of_row.dtype)
            raw = factor * of_row + (1 - factor) * of_feature
        return log_minimum + keras.ops.softplus(raw - log_minimum)

    def standard_log_prob(self, residual: Tensor) -> Tensor:
        """Log f(residual), the log-density at location 0 and scale 1."""
        raise self._lacks("standard_log_prob")

    def standard_sample(self, shape: tuple[int, ...], seed: int) -> Tensor:
        """Draws from f."""
        raise self._lacks("standard_sample")

    def standard_quantile(self, probability: Tensor) -> Tensor:
        """The residual that lies above this share of f: of a number, or of each in a numpy array."""
        raise NotImplementedError(
            f"intervals need the quantiles of f: give {type(self).__name__} a method "
            "standard_quantile(probability)."
        )

    def standard_moments(self) -> tuple[Tensor, Tensor]:
        """Entropy and mean square of f; by quadrature, if a subclass does not know them."""
        grid, step = np.linspace(-_FARTHEST_RESIDUAL, _FARTHEST_RESIDUAL, _N_GRID, retstep=True)
        grid = grid.astype(np.float32)
        log_prob = self.standard_log_prob(keras.ops.convert_to_tensor(grid))
        weight = keras.ops.exp(log_prob) * float(step)
        return -keras.ops.sum(weight * log_prob), keras.ops.sum(weight * grid**2)

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        log_scale = self.log_scale(parameters)
        residual = (x - parameters[0]) * keras.ops.exp(-log_scale)
        return self.standard_log_prob(residual) - log_scale

    def mean(self, parameters: Parameters) -> Tensor:
        return parameters[0]

    def sample(self, parameters: Parameters, seed: int) -> Tensor:
        noise = self.standard_sample(tuple(parameters[0].shape), seed)
        return parameters[0] + keras.ops.exp(self.log_scale(parameters)) * noise

    def expected_log_prob(self, parameters: Parameters) -> Tensor:
        entropy, _ = self.standard_moments()
        entropy = keras.ops.convert_to_tensor(entropy, dtype=parameters[0].dtype)
        return keras.ops.zeros_like(parameters[0]) - entropy - self.log_scale(parameters)

    def expected_error(self, parameters: Parameters) -> Tensor:
        _, mean_square = self.standard_moments()
        mean_square = keras.ops.convert_to_tensor(mean_square, dtype=parameters[0].dtype)
        return keras.ops.zeros_like(parameters[0]) + mean_square * keras.ops.exp(
            2 * self.log_scale(parameters)
        )

    def quantile(self, probability: Tensor, parameters: Parameters) -> Tensor:
        residual = keras.ops.convert_to_tensor(self.standard_quantile(probability), parameters[0].dtype)
        return parameters[0] + keras.ops.exp(self.log_scale(parameters)) * residual


class Gaussian(LocationScale):
    r"""Normal likelihood, the default for tables.

    .. math:: \log p(x|z) = -\tfrac12\left(\frac{x - m(z)}{s}\right)^2 - \log s - \tfrac12\log 2\pi

    With ``scale="per_feature"`` the variance is learned, which removes the hand-tuned weight between
    reconstruction and KL (Rybkin et al. 2021, "Simple and effective VAE training with calibrated
    decoders").

    Parameters
    ----------
    scale : {"per_feature", "per_row", "per_member"} or float, default="per_feature"
        The standard deviation: learned for each feature, computed by the decoder for each row, one of
        both in each member, or fixed, in the units of the scaled data; see `LocationScale`.
    minimum_scale : float, default=0.1
        The smallest standard deviation that can be learned, in the units of the scaled data.

    Examples
    --------
    >>> from vae_anomaly.likelihoods import Gaussian
    >>> Gaussian(scale="per_row").n_params
    2
    """

    name = "gaussian"

    def standard_log_prob(self, residual: Tensor) -> Tensor:
        return -0.5 * (keras.ops.square(residual) + math.log(2 * math.pi))

    def standard_sample(self, shape: tuple[int, ...], seed: int) -> Tensor:
        return keras.random.normal(shape, dtype="float32", seed=seed)

    def standard_quantile(self, probability: Tensor) -> Tensor:
        return stats.norm.ppf(probability)

    def standard_moments(self) -> tuple[float, float]:
        return float(stats.norm.entropy()), 1.0


class PixelGaussian(Gaussian):
    r"""Normal likelihood for the pixels of whole images, centered and scaled: the default for them.

    .. math:: \log p(x|z) = -\tfrac12\left(\frac{x - m(z)}{s}\right)^2 - \log s - \tfrac12\log 2\pi

    One scale for all pixels, so that all count alike. By default it grows with their number d,
    :math:`s = \sqrt{d / 784}` standard deviations of the pixels: an image at twice the resolution is not four
    times the evidence. It is a weight of the pixels and not the size of their grain, which is mostly smaller:
    samples with noise are noisier than images.

    Parameters
    ----------
    scale : {"auto", "per_feature", "per_row", "per_member"} or float, default="auto"
        The standard deviation; see `LocationScale`. A larger one lets the model keep less of an image.
    minimum_scale : float, default=0.1
        The smallest standard deviation that can be learned.

    Examples
    --------
    >>> from vae_anomaly.likelihoods import PixelGaussian
    >>> PixelGaussian(scale=0.5).n_params
    1
    """

    name = "pixel_gaussian"
    #: What "auto" means for 784 pixels.
    scale_of_784: ClassVar[float] = 1.0

    _parameter_constraints: ClassVar[Constraints] = {
        **Gaussian._parameter_constraints,
        "scale": [
            StrOptions({"auto", "per_feature", "per_row", "per_member"}),
            Interval(Real, 0, None, closed="neither"),
        ],
    }

    def __init__(self, scale: str | float = "auto", minimum_scale: float = 0.1) -> None:
        super().__init__(scale, minimum_scale)

    def log_scale(self, parameters: Parameters) -> Tensor:
        if self.scale != "auto":
            return super().log_scale(parameters)
        log_scale = math.log(self.scale_of_784) + 0.5 * math.log(parameters[0].shape[-1] / _PIXELS)
        return keras.ops.convert_to_tensor(log_scale, dtype=parameters[0].dtype)


class Laplace(LocationScale):
    r"""Laplace likelihood: absolute instead of squared residuals, less bent by outliers.

    .. math:: \log p(x|z) = -\frac{|x - m(z)|}{s} - \log 2s

    Parameters
    ----------
    scale : {"per_feature", "per_row", "per_member"} or float, default="per_feature"
        The scale s (the mean absolute deviation): learned for each feature, computed by the decoder
        for each row, one of both in each member, or fixed, in the units of the scaled data; see
        `LocationScale`.
    minimum_scale : float, default=0.1
        The smallest scale that can be learned, in the units of the scaled data.

    Examples
    --------
    >>> from vae_anomaly.likelihoods import Laplace
    >>> Laplace(scale=0.5)
    Laplace(scale=0.5)
    """

    name = "laplace"

    def standard_log_prob(self, residual: Tensor) -> Tensor:
        return -keras.ops.abs(residual) - math.log(2)

    def standard_sample(self, shape: tuple[int, ...], seed: int) -> Tensor:
        uniform = keras.random.uniform(shape, minval=-1.0, maxval=1.0, dtype="float32", seed=seed)
        # The lower end itself can be drawn; its logarithm is infinite.
        size = keras.ops.minimum(keras.ops.abs(uniform), 1.0 - 2.0**-24)
        return -keras.ops.sign(uniform) * keras.ops.log1p(-size)

    def standard_quantile(self, probability: Tensor) -> Tensor:
        return stats.laplace.ppf(probability)

    def standard_moments(self) -> tuple[float, float]:
        return float(stats.laplace.entropy()), 2.0


class StudentT(LocationScale):
    r"""Student's t likelihood, for features with heavy tails.

    .. math::
        \log p(x|z) = \log\Gamma\tfrac{\nu+1}{2} - \log\Gamma\tfrac{\nu}{2} - \tfrac12\log\nu\pi - \log s
        - \tfrac{\nu+1}{2}\log\left(1 + \tfrac1\nu\left(\tfrac{x - m(z)}{s}\right)^2\right)

    A far value costs only the logarithm of its distance, so a few of them in the training rows bend
    the model less; for the same reason far values stand out less in the scores.

    Parameters
    ----------
    scale : {"per_feature", "per_row", "per_member"} or float, default="per_feature"
        The scale s: learned for each feature, computed by the decoder for each row, one of both in
        each member, or fixed, in the units of the scaled data; see `LocationScale`.
    minimum_scale : float, default=0.1
        The smallest scale that can be learned, in the units of the scaled data.
    degrees_of_freedom : float, default=4.0
        :math:`\nu`: the smaller, the heavier the tails; above 30 it is close to a Gaussian. The mean
        is the location, which for :math:`\nu \le 1` is only the median.

    Examples
    --------
    >>> from vae_anomaly.likelihoods import StudentT
    >>> StudentT(degrees_of_freedom=2.5).n_shared
    1
    """

    name = "student_t"
    _parameter_constraints: ClassVar[Constraints] = {
        **LocationScale._parameter_constraints,
        "degrees_of_freedom": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        scale: str | float = "per_feature",
        minimum_scale: float = 0.1,
        degrees_of_freedom: float = 4.0,
    ) -> None:
        super().__init__(scale, minimum_scale)
        self.degrees_of_freedom = degrees_of_freedom

    def standard_log_prob(self, residual: Tensor) -> Tensor:
        nu = self.degrees_of_freedom
        constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu * math.pi)
        return constant - 0.5 * (nu + 1) * keras.ops.log1p(keras.ops.square(residual) / nu)

    def standard_sample(self, shape: tuple[int, ...], seed: int) -> Tensor:
        normal_seed, gamma_seed = _split(seed)
        normal = keras.random.normal(shape, dtype="float32", seed=normal_seed)
        half = 0.5 * self.degrees_of_freedom
        return normal * keras.ops.rsqrt(
            keras.random.gamma(shape, alpha=half, dtype="float32", seed=gamma_seed) / half
        )

    def standard_quantile(self, probability: Tensor) -> Tensor:
        return stats.t.ppf(probability, self.degrees_of_freedom)

    def standard_moments(self) -> tuple[float, float]:
        """Entropy and mean square; the median square where the mean is infinite."""
        nu = self.degrees_of_freedom
        mean_square = nu / (nu - 2) if nu > 2 else self.standard_quantile(0.75) ** 2
        return float(stats.t.entropy(nu)), float(mean_square)


def _split(seed: int) -> tuple[int, int]:
    first, second = np.random.SeedSequence(seed).generate_state(2)
    return int(first) // 2, int(second) // 2
