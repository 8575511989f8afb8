"""The posterior that a network makes of noise, whose density nobody knows."""

from __future__ import annotations

from numbers import Integral
from typing import ClassVar

from sklearn.utils._param_validation import Interval

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Constraints, Tensor
from vae_anomaly.core.weights import Weight, Weights
from vae_anomaly.flows.conditioner import condition, conditioner_weights
from vae_anomaly.posteriors.base import Context
from vae_anomaly.posteriors.gaussian import GaussianBased

__all__ = ["Implicit"]

_GENERATOR, _CURVE, _RATIO = "generator_", "curve_", "ratio_"
# The ratio has to follow draws that move to where it is blind: its weights, which Adam moves by about the
# learning rate in a step, get a longer stride. With strides of 1, 10 and 30, it saw 0.4, 0.5 and 0.75 of the
# divergence that it sees once the draws stand still (a table of 250 rows, eight latent dimensions).
_STRIDE = 30.0
# Of the contrast's variance: that of the Gaussian part is at least exp(-10), which the other part may undo.
_LEAST_VARIANCE = 1e-6


class Implicit(GaussianBased):
    r"""q(z|x) is whatever a network makes of noise (Mescheder et al. 2017, adversarial variational Bayes).

    .. math:: z = z_{mean} + e^{z_{log\,var}/2} \epsilon_0 + g(\epsilon, h), \qquad \epsilon \sim N(0, I)

    with the encoder's answer (z_mean, z_log_var, h) to the row, the first ``latent_dim`` numbers
    :math:`\epsilon_0` of the noise, and a network g of one hidden layer, which starts at 0: there q is the
    Gaussian posterior. Nobody knows the density of q. A second network learns, by logistic regression in
    every step of the training, to tell draws of q from draws of a contrast r(z|x) whose density is known.
    Its answer T is the logarithm of the ratio of the densities, and

    .. math:: \log q(z|x) \approx T(x, z) + \log r(z|x), \qquad
        \mathrm{KL}(q \,\|\, p) \approx \mathrm{E}_q[T(x, z) + \log r(z|x) - \log p(z)].

    **Everything made of it is an estimate, no bound.** Where T has not learned all that tells q from r, the
    KL is estimated too low and the ELBO too high; by how much is not known. So ``objective="elbo"`` alone
    trains it, scores that weigh draws by their density ("iwae", `scoring.bound`) refuse it, and "elbo",
    ``loss`` and ``val_loss`` are estimates that cannot be compared with bounds. Reconstruction scores do
    not rest on the density.

    Parameters
    ----------
    noise_dim : int, default=8
        Numbers of noise that a draw takes besides one for each latent dimension.
    n_context : int, default=16
        Numbers h that the encoder returns for g.
    adaptive_contrast : bool, default=True
        Whether r is the Gaussian with the mean and the variance of q for each row. T then has to learn only
        what is not Gaussian in q: of a Gaussian q, the ratio is 0. Otherwise r = N(0, I), and T has to learn
        the whole KL, which takes longer and is less exact.
    n_contrast_draws : int, default=16
        Draws of each row that its mean and variance are found by, at least 2. They are made of noise that is
        drawn once in `fit` and kept with the model.
    n_units : int, default=64
        Width of the hidden layers of both networks.

    References
    ----------
    Mescheder, Nowozin & Geiger 2017, "Adversarial variational Bayes: unifying variational autoencoders and
    generative adversarial networks".

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.posteriors import Implicit
    >>> detector = VAEDetector(posterior=Implicit(noise_dim=8))  # as posterior="implicit"
    """

    name = "implicit"
    center_name = "mean of z"
    has_density = False
    _parameter_constraints: ClassVar[Constraints] = {
        "noise_dim": [Interval(Integral, 1, None, closed="left")],
        "n_context": [Interval(Integral, 1, None, closed="left")],
        "adaptive_contrast": ["boolean"],
        "n_contrast_draws": [Interval(Integral, 2, None, closed="left")],
        "n_units": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        noise_dim: int = 8,
        n_context: int = 16,
        adaptive_contrast: bool = True,
        n_contrast_draws: int = 16,
        n_units: int = 64,
    ) -> None:
        self.noise_dim = noise_dim
        self.n_context = n_context
        self.adaptive_contrast = adaptive_contrast
        self.n_contrast_draws = n_contrast_draws
        self.n_units = n_units

    # -- sizes ----------------------------------------------------------------------------------------
    def noise_width(self, latent_dim: int) -> int:
        return latent_dim + int(self.noise_dim)

    def weights(self, latent_dim: int) -> dict[str, Weight]:
        n_context, n_units, n_noise = int(self.n_context), int(self.n_units), self.noise_width(latent_dim)
        n_seen = 2 * latent_dim + n_context
        networks = {
            _GENERATOR: (1.0, conditioner_weights(n_noise, latent_dim, n_units, n_context)),
            _CURVE: (_STRIDE, conditioner_weights(n_seen, 2 * latent_dim + 1, n_units, 0)),
            _RATIO: (_STRIDE, conditioner_weights(2 * latent_dim, 1, n_units, n_seen)),
        }
        weights = {
            start + name: weight._replace(scale=1 / stride)
            for start, (stride, own) in networks.items()
            for name, weight in own.items()
        }
        shape = (int(self.n_contrast_draws), n_noise)
        return {**weights, "contrast_noise": Weight(shape, "normal", trainable=False)}

    # -- the distribution -----------------------------------------------------------------------------
    def sample(
        self, context: Context, noise: Tensor, weights: Weights, training: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Draw z, differentiably, and estimate its log-density.

        The gradient of the estimate is that along z alone: the density's own, at a fixed z, is 0 on average
        (Mescheder et al. 2017, proposition 2).
        """
        z = self._generate(context, noise, weights)
        ratio, log_contrast = self._log_densities(z, context, weights)
        return z + context[-1], ratio + log_contrast

    def center(self, context: Context, weights: Weights) -> Tensor:
        """The mean of z, by the noise of the contrast."""
        return self._moments(context, weights)[0] + context[-1]

    def auxiliary_loss(self, z: Tensor, context: Context, noise: Tensor, weights: Weights) -> Tensor:
        r"""The cross-entropy by which T learns to tell draws of q from draws of the contrast.

        .. math:: \mathrm{E}_q \log(1 + e^{-T}) + \mathrm{E}_r \log(1 + e^T)

        A draw of the contrast takes the noise of the row before: of a row's own noise, it would be the draw
        of a Gaussian q, and all that T learns of the difference would be rounding.
        """
        stopped, latent_dim = keras.ops.stop_gradient, context[0].shape[-1]
        place, scale = self._contrast(context, weights)
        of_posterior = stopped((z - context[-1] - place) / scale)
        of_contrast = keras.ops.roll(noise, 1, axis=1)[..., :latent_dim]
        seen = self._seen_by_ratio(context)
        losses = keras.ops.softplus(-self.log_ratio(of_posterior, seen, weights))
        losses += keras.ops.softplus(self.log_ratio(of_contrast, seen, weights))
        return keras.ops.mean(losses, axis=0)

    def log_ratio(self, z: Tensor, context: Tensor, weights: Weights) -> Tensor:
        """T: log q(z|x) - log r(z|x) of standardized z, (..., latent_dim) -> (...)."""
        inputs = keras.ops.concatenate([z, keras.ops.square(z)], axis=-1)
        curve = condition(context, self._own(weights, _CURVE, _STRIDE), None)
        quadratic = keras.ops.sum(inputs * curve[..., 1:], axis=-1) + curve[..., 0]
        return quadratic + condition(inputs, self._own(weights, _RATIO, _STRIDE), context)[..., 0]

    # -- its parts ------------------------------------------------------------------------------------
    def _generate(self, context: Context, noise: Tensor, weights: Weights) -> Tensor:
        """Draws of z from the posterior where it was before it was moved."""
        z_mean, z_log_var, seen, _ = context
        z, _ = self.base.sample((z_mean, z_log_var), noise[..., : z_mean.shape[-1]], {})
        return z + condition(noise, self._own(weights, _GENERATOR), seen)

    def _log_densities(self, z: Tensor, context: Context, weights: Weights) -> tuple[Tensor, Tensor]:
        """T and log r(z|x) of draws, as functions of z alone."""
        stopped = keras.ops.stop_gradient
        place, scale = self._contrast(context, weights)
        own = {name: stopped(value) for name, value in weights.items()}
        standardized = (z - place) / scale
        log_contrast = self.standard_log_prob(standardized) - keras.ops.sum(keras.ops.log(scale), axis=-1)
        return self.log_ratio(standardized, self._seen_by_ratio(context), own), log_contrast

    def _contrast(self, context: Context, weights: Weights) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the contrast of each row, which no gradient changes."""
        if not self.adaptive_contrast:
            return keras.ops.zeros_like(context[0]), keras.ops.ones_like(context[0])
        mean, variance = map(keras.ops.stop_gradient, self._moments(context, weights))
        return mean, keras.ops.sqrt(keras.ops.maximum(variance, _LEAST_VARIANCE))

    def _moments(self, context: Context, weights: Weights) -> tuple[Tensor, Tensor]:
        """Mean and variance of z for each row, by noise of mean 0 and variance 1."""
        noise = weights["contrast_noise"]
        noise = noise - keras.ops.mean(noise, axis=0)
        noise = noise / keras.ops.sqrt(keras.ops.mean(keras.ops.square(noise), axis=0))
        z = self._generate(context, noise[:, None], weights)
        mean = keras.ops.mean(z, axis=0)
        return mean, keras.ops.mean(keras.ops.square(z - mean), axis=0)

    def _seen_by_ratio(self, context: Context) -> Tensor:
        return keras.ops.stop_gradient(keras.ops.concatenate(context[:-1], axis=-1))

    @staticmethod
    def _own(weights: Weights, start: str, stride: float = 1.0) -> Weights:
        return {n.removeprefix(start): stride * value for n, value in weights.items() if n.startswith(start)}
