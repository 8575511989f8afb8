"""The prior without parameters."""

from __future__ import annotations

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import KerasModel, Tensor
from vae_anomaly.core.weights import Weights
from vae_anomaly.posteriors import Posterior
from vae_anomaly.posteriors.gaussian import LOG_TWO_PI
from vae_anomaly.priors.base import Prior

__all__ = ["Standard"]


class Standard(Prior):
    """p(z) = N(0, I).

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.priors import Standard
    >>> detector = VAEDetector(prior=Standard())  # as prior="standard", the default
    """

    name = "standard"

    def check(self, posterior: Posterior, latent_dim: int) -> None:
        """It is one for every posterior."""

    def has_closed_kl(self, posterior: Posterior) -> bool:
        return posterior.has_kl

    def log_prob(self, z: Tensor, weights: Weights, vae: KerasModel) -> Tensor:
        return -0.5 * keras.ops.sum(keras.ops.square(z) + LOG_TWO_PI, axis=-1)

    def sample(self, n_samples: int, seed: int, weights: Weights, vae: KerasModel) -> Tensor:
        return keras.random.normal((n_samples, vae.latent_dim), dtype="float32", seed=seed)
