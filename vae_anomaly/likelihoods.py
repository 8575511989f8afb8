r"""Likelihoods p(x|z): what the decoder's outputs mean.

A likelihood turns *parameters* into log-densities. Parameters are a tuple of arrays that broadcast
against ``x`` of shape ``(n_rows, n_features)``: first ``n_params`` arrays that the decoder computes
for each row, then ``n_shared`` arrays of shape ``(n_features,)`` that are learned with the model and
shared by all rows. Each likelihood owns the link from these unbounded numbers to its own parameters.

To add one: subclass `Likelihood`, give it a ``name``, write ``log_prob``, ``mean`` and ``sample``.
It can then be passed as ``likelihood=`` by that name or as an instance.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import Interval, StrOptions

from vae_anomaly.backend import keras
from vae_anomaly.spec import Spec

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "ContinuousBernoulli",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "LocationScale",
    "StudentT",
]

#: Every likelihood that has a name: ``{"gaussian": Gaussian, ...}``.
LIKELIHOODS: dict[str, type[Likelihood]] = {}

Parameters = tuple[Any, ...]


class Likelihood(Spec):
    """Base class of the likelihoods p(x|z).

    Attributes
    ----------
    name : str
        What ``VAEDetector(likelihood=...)`` calls it. A subclass with a name registers itself.
    n_params : int
        How many numbers the decoder computes for each row and feature.
    n_shared : int
        How many numbers for each feature are learned with the model and shared by all rows.
    """

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("name"):
            LIKELIHOODS[cls.name] = cls

    @property
    def n_params(self) -> int:
        return 1

    @property
    def n_shared(self) -> int:
        return 0

    def log_prob(self, x: Any, parameters: Parameters) -> Any:
        """Log-density log p(x|z) of each feature, in nats.

        Parameters
        ----------
        x : float tensor of shape (n_rows, n_features)
        parameters : tuple of ``n_params + n_shared`` tensors that broadcast against ``x``

        Returns
        -------
        float tensor of shape (n_rows, n_features)
        """
        raise NotImplementedError

    def mean(self, parameters: Parameters) -> Any:
        """Expected x given z, of shape (n_rows, n_features)."""
        raise NotImplementedError

    def sample(self, parameters: Parameters, seed: int) -> Any:
        """One draw of x given z for each row, of shape (n_rows, n_features)."""
        raise NotImplementedError

    def error(self, x: Any, parameters: Parameters) -> Any:
        """Reconstruction error of each feature: the squared distance to the expected x."""
        return keras.ops.square(x - self.mean(parameters))

    def check_support(self, X: npt.NDArray[np.floating], names: npt.ArrayLike | None = None) -> None:
        """Raise a ValueError that names the column and the value if X lies outside the support."""

    def default_scaler(self) -> Any:
        """The scikit-learn transformer that ``scaler="auto"`` puts before the model, or None."""
        return None


class LocationScale(Likelihood):
    r"""A density :math:`\frac{1}{s} f\!\left(\frac{x - m}{s}\right)` with location m and scale s.

    The decoder computes the location. The scale is bounded from below by a softplus on its logarithm,
    :math:`\log s = \log s_{min} + \mathrm{softplus}(r - \log s_{min})`, so that a constant feature has
    a finite density and the gradient never vanishes at the bound.

    Parameters
    ----------
    scale : {"per_feature", "per_row"} or float, default="per_feature"
        "per_feature" learns one scale for each feature together with the model; "per_row" lets the
        decoder compute one for each row and feature (a heteroscedastic model: flexible, but it can
        hide anomalies in rows whose scale it makes large); a float fixes it, in the units of the
        scaled data.
    minimum_scale : float, default=0.1
        The smallest scale s_min that can be learned, in the units of the scaled data. With a much
        smaller one, a feature that is constant in most training rows makes any other value drown all
        other features. Lower it for features that the others determine to better than a tenth of
        their spread.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "scale": [StrOptions({"per_feature", "per_row"}), Interval(Real, 0, None, closed="neither")],
        "minimum_scale": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, scale: str | float = "per_feature", minimum_scale: float = 0.1) -> None:
        self.scale = scale
        self.minimum_scale = minimum_scale

    @property
    def n_params(self) -> int:
        return 2 if self.scale == "per_row" else 1

    @property
    def n_shared(self) -> int:
        return 1 if self.scale == "per_feature" else 0

    def log_scale(self, parameters: Parameters) -> Any:
        """Log s, broadcastable to (n_rows, n_features)."""
        if not isinstance(self.scale, str):
            return keras.ops.convert_to_tensor(math.log(self.scale), dtype=parameters[0].dtype)
        log_minimum = math.log(self.minimum_scale)
        return log_minimum + keras.ops.softplus(parameters[1] - log_minimum)

    def standard_log_prob(self, residual: Any) -> Any:
        """Log f(residual), the log-density at location 0 and scale 1."""
        raise NotImplementedError

    def standard_sample(self, shape: tuple[int, ...], seed: int) -> Any:
        """Draws from f."""
        raise NotImplementedError

    def log_prob(self, x: Any, parameters: Parameters) -> Any:
        log_scale = self.log_scale(parameters)
        residual = (x - parameters[0]) * keras.ops.exp(-log_scale)
        return self.standard_log_prob(residual) - log_scale

    def mean(self, parameters: Parameters) -> Any:
        return parameters[0]

    def sample(self, parameters: Parameters, seed: int) -> Any:
        noise = self.standard_sample(tuple(parameters[0].shape), seed)
        return parameters[0] + keras.ops.exp(self.log_scale(parameters)) * noise

    def default_scaler(self) -> Any:
        return StandardScaler()


class Gaussian(LocationScale):
    r"""Normal likelihood, the default for tables.

    .. math:: \log p(x|z) = -\tfrac12\left(\frac{x - m(z)}{s}\right)^2 - \log s - \tfrac12\log 2\pi

    With ``scale="per_feature"`` the variance is learned, which removes the hand-tuned weight between
    reconstruction and KL (Rybkin et al. 2021, "Simple and effective VAE training with calibrated
    decoders").

    Parameters
    ----------
    scale : {"per_feature", "per_row"} or float, default="per_feature"
        The standard deviation: learned for each feature, computed by the decoder for each row, or
        fixed, in the units of the scaled data.
    minimum_scale : float, default=0.1
        The smallest standard deviation that can be learned, in the units of the scaled data.

    Examples
    --------
    >>> from vae_anomaly.likelihoods import Gaussian
    >>> Gaussian(scale="per_row").n_params
    2
    """

    name = "gaussian"

    def standard_log_prob(self, residual: Any) -> Any:
        return -0.5 * (keras.ops.square(residual) + math.log(2 * math.pi))

    def standard_sample(self, shape: tuple[int, ...], seed: int) -> Any:
        return keras.random.normal(shape, seed=seed)


class Laplace(LocationScale):
    r"""Laplace likelihood: absolute instead of squared residuals, less bent by outliers.

    .. math:: \log p(x|z) = -\frac{|x - m(z)|}{s} - \log 2s

    Parameters
    ----------
    scale : {"per_feature", "per_row"} or float, default="per_feature"
        The scale s (the mean absolute deviation): learned for each feature, computed by the decoder
        for each row, or fixed, in the units of the scaled data.
    minimum_scale : float, default=0.1
        The smallest scale that can be learned, in the units of the scaled data.

    Examples
    --------
    >>> from vae_anomaly.likelihoods import Laplace
    >>> Laplace(scale=0.5)
    Laplace(scale=0.5)
    """

    name = "laplace"

    def standard_log_prob(self, residual: Any) -> Any:
        return -keras.ops.abs(residual) - math.log(2)

    def standard_sample(self, shape: tuple[int, ...], seed: int) -> Any:
        uniform = keras.random.uniform(shape, minval=-1.0, maxval=1.0, seed=seed)
        # The lower end itself can be drawn; its logarithm is infinite.
        size = keras.ops.minimum(keras.ops.abs(uniform), 1.0 - 2.0**-24)
        return -keras.ops.sign(uniform) * keras.ops.log1p(-size)


class StudentT(LocationScale):
    r"""Student's t likelihood, for features with heavy tails.

    .. math::
        \log p(x|z) = \log\Gamma\tfrac{\nu+1}{2} - \log\Gamma\tfrac{\nu}{2} - \tfrac12\log\nu\pi - \log s
        - \tfrac{\nu+1}{2}\log\left(1 + \tfrac1\nu\left(\tfrac{x - m(z)}{s}\right)^2\right)

    A far value costs only the logarithm of its distance, so a few of them in the training rows bend
    the model less; for the same reason far values stand out less in the scores.

    Parameters
    ----------
    scale : {"per_feature", "per_row"} or float, default="per_feature"
        The scale s: learned for each feature, computed by the decoder for each row, or fixed, in the
        units of the scaled data.
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
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
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

    def standard_log_prob(self, residual: Any) -> Any:
        nu = self.degrees_of_freedom
        constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu * math.pi)
        return constant - 0.5 * (nu + 1) * keras.ops.log1p(keras.ops.square(residual) / nu)

    def standard_sample(self, shape: tuple[int, ...], seed: int) -> Any:
        normal_seed, gamma_seed = _split(seed)
        normal = keras.random.normal(shape, seed=normal_seed)
        half = 0.5 * self.degrees_of_freedom
        return normal * keras.ops.rsqrt(keras.random.gamma(shape, alpha=half, seed=gamma_seed) / half)


class UnitInterval(Likelihood):
    """Base class of the likelihoods for values in [0, 1], with a logit from the decoder."""

    def check_support(self, X: npt.NDArray[np.floating], names: npt.ArrayLike | None = None) -> None:
        # Scalers that map to [0, 1] overshoot by a rounding error.
        outside = (X < -1e-6) | (X > 1 + 1e-6)
        if not outside.any():
            return
        row, column = np.argwhere(outside)[0]
        label = f"column {column}" if names is None else f"column {np.asarray(names, dtype=object)[column]!r}"
        raise ValueError(
            f"likelihood {self.name!r} needs values in [0, 1], but {label} holds {X[row, column]:g} in row "
            f"{row} (after scaling). Scale the data to [0, 1], for example with "
            "scaler=MinMaxScaler(clip=True), or choose likelihood='gaussian'."
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

    def log_prob(self, x: Any, parameters: Parameters) -> Any:
        logits = parameters[0]
        return x * logits - keras.ops.softplus(logits)

    def mean(self, parameters: Parameters) -> Any:
        return keras.ops.sigmoid(parameters[0])

    def sample(self, parameters: Parameters, seed: int) -> Any:
        uniform = keras.random.uniform(tuple(parameters[0].shape), seed=seed)
        return keras.ops.cast(uniform < self.mean(parameters), uniform.dtype)

    def error(self, x: Any, parameters: Parameters) -> Any:
        """Reconstruction error of each feature: the binary cross-entropy, in nats."""
        return -self.log_prob(x, parameters)


class ContinuousBernoulli(UnitInterval):
    r"""Continuous Bernoulli likelihood, for values in [0, 1] such as grey pixels.

    With the decoder's logit :math:`\ell`,

    .. math:: \log p(x|z) = x\ell - \log\frac{e^\ell - 1}{\ell}

    which is the Bernoulli cross-entropy plus the normaliser that makes it a density on [0, 1]
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

    def log_prob(self, x: Any, parameters: Parameters) -> Any:
        logits = parameters[0]
        return x * logits - keras.ops.softplus(logits) + self._log_normalizer(logits)

    def mean(self, parameters: Parameters) -> Any:
        logits = parameters[0]
        near, safe = self._near_and_safe(logits)
        square = keras.ops.square(logits)
        # 1 / (1 - exp(-l)) - 1 / l, and its series around 0.
        series = 0.5 + logits * (1 / 12 - square * (1 / 720 - square / 30240))
        return keras.ops.where(near, series, keras.ops.sigmoid(safe) + self._excess(safe))

    def sample(self, parameters: Parameters, seed: int) -> Any:
        logits = parameters[0]
        uniform = keras.random.uniform(tuple(logits.shape), seed=seed)
        near, safe = self._near_and_safe(logits)
        # The inverse distribution function log(1 + u (exp(l) - 1)) / l. Negative logits are mirrored,
        # x -> 1 - x, so that the exponential never overflows.
        size = keras.ops.abs(safe)
        grown = 1 + keras.ops.log(uniform + (1 - uniform) * keras.ops.exp(-size)) / size
        drawn = keras.ops.where(safe > 0, grown, 1 - grown)
        return keras.ops.clip(
            keras.ops.where(near, uniform + 0.5 * logits * uniform * (1 - uniform), drawn), 0.0, 1.0
        )

    def error(self, x: Any, parameters: Parameters) -> Any:
        """Reconstruction error of each feature: the binary cross-entropy, in nats."""
        logits = parameters[0]
        return keras.ops.softplus(logits) - x * logits

    def _near_and_safe(self, logits: Any) -> tuple[Any, Any]:
        near = keras.ops.abs(logits) < self._near_zero
        # The branch that is not taken must stay finite, or its gradient turns into NaN.
        return near, keras.ops.where(near, keras.ops.ones_like(logits), logits)

    def _log_normalizer(self, logits: Any) -> Any:
        """log(l / tanh(l / 2)) = log 2 + l^2 / 12 - 7 l^4 / 1440 + 31 l^6 / 90720 - ..."""
        near, safe = self._near_and_safe(logits)
        square = keras.ops.square(logits)
        series = math.log(2) + square * (1 / 12 - square * (7 / 1440 - 31 * square / 90720))
        exact = keras.ops.log(keras.ops.abs(safe)) - keras.ops.log(keras.ops.tanh(0.5 * keras.ops.abs(safe)))
        return keras.ops.where(near, series, exact)

    @staticmethod
    def _excess(logits: Any) -> Any:
        """1 / (1 - exp(-l)) - 1 / l - sigmoid(l) = 1 / sinh(l) - 1 / l, without overflow."""
        size = keras.ops.abs(logits)
        inverse_sinh = 2 * keras.ops.exp(-size) / (1 - keras.ops.exp(-2 * size))
        return keras.ops.sign(logits) * (inverse_sinh - 1 / size)


def resolve(likelihood: str | Likelihood) -> Likelihood:
    """The likelihood with this name, or the instance itself."""
    if not isinstance(likelihood, str):
        return likelihood
    if likelihood not in LIKELIHOODS:
        raise ValueError(
            f"likelihood must be one of {['auto', *LIKELIHOODS]} or a Likelihood; received {likelihood!r}."
        )
    return LIKELIHOODS[likelihood]()


def _split(seed: int) -> tuple[int, int]:
    first, second = np.random.SeedSequence(seed).generate_state(2)
    return int(first) // 2, int(second) // 2
