"""The Gaussian posterior, and its two formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Tensor
from vae_anomaly.core.weights import Weights
from vae_anomaly.posteriors.base import LOG_TWO_PI, Context, Posterior

__all__ = ["Gaussian", "GaussianBased", "kl_divergence", "reparameterize"]

# exp(±10) bounds the posterior's variance: outside, float32 loses the KL or the draw.
_LOG_VAR_BOUND = 10.0


def reparameterize(z_mean: Tensor, z_log_var: Tensor, noise: Tensor) -> Tensor:
    """Z = z_mean + exp(z_log_var / 2) * noise: a draw from the posterior, differentiable in both."""
    return z_mean + keras.ops.exp(0.5 * z_log_var) * noise


def kl_divergence(z_mean: Tensor, z_log_var: Tensor) -> Tensor:
    """Closed-form KL(q(z|x) || N(0, I)) of each latent dimension, shaped as ``z_mean``, in nats."""
    return 0.5 * (keras.ops.square(z_mean) + keras.ops.exp(z_log_var) - 1.0 - z_log_var)


class Gaussian(Posterior):
    r"""q(z|x) = N(z_mean, diag(exp(z_log_var))), both the encoder's (Kingma & Welling 2014).

    The log-variance is bounded to (-10, 10) by :math:`10\tanh(\cdot/10)`.

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.posteriors import Gaussian
    >>> detector = VAEDetector(posterior=Gaussian())  # as posterior="gaussian", the default
    """

    name = "gaussian"
    has_kl = True
    has_log_prob = True

    def context(self, outputs: Sequence[Tensor]) -> Context:
        """(z_mean, z_log_var)."""
        z_mean, z_log_var = outputs
        return z_mean, _LOG_VAR_BOUND * keras.ops.tanh(z_log_var / _LOG_VAR_BOUND)

    def sample(
        self, context: Context, noise: Tensor, weights: Weights, training: bool = False
    ) -> tuple[Tensor, Tensor]:
        z_mean, z_log_var = context
        # log q is written with the noise that made z: (z - z_mean) / sigma would lose its digits.
        log_q = -0.5 * keras.ops.sum(keras.ops.square(noise) + (z_log_var + LOG_TWO_PI), axis=-1)
        return reparameterize(z_mean, z_log_var, noise), log_q

    def log_prob(self, z: Tensor, context: Context, weights: Weights) -> Tensor:
        z_mean, z_log_var = context
        distance = keras.ops.square(z - z_mean) * keras.ops.exp(-z_log_var)
        return -0.5 * keras.ops.sum(distance + (z_log_var + LOG_TWO_PI), axis=-1)

    def kl(self, context: Context) -> Tensor:
        return kl_divergence(*context)


class GaussianBased(Posterior):
    """Base class of posteriors that start from a Gaussian draw, and see more of the row.

    The encoder returns ``n_context`` numbers besides the base's mean and log-variance. The context is
    (z_mean, z_log_var, those numbers, how far the posterior is moved).
    """

    base: ClassVar[Gaussian] = Gaussian()
    n_context: int

    def heads(self, latent_dim: int) -> dict[str, int]:
        return {**super().heads(latent_dim), "context": int(self.n_context)}

    def context(self, outputs: Sequence[Tensor]) -> Context:
        z_mean, z_log_var = self.base.context(outputs[:2])
        return z_mean, z_log_var, outputs[2], keras.ops.zeros_like(z_mean)

    def move(self, context: Context, center: Tensor, weights: Weights) -> Context:
        *others, shift = context
        return (*others, shift + center - self.center(context, weights))
