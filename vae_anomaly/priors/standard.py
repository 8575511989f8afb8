"""The prior without parameters."""

from __future__ import annotations

from vae_anomaly.core.types import KerasModel, Tensor
from vae_anomaly.core.weights import Weights
from vae_anomaly.posteriors import Posterior
from vae_anomaly.priors.base import Prior

__all__ = ["Standard"]


class Standard(Prior):
    """p(z) = N(0, I); of latents that are categories, all are equally probable.

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
        return vae.posterior.standard_log_prob(z)

    def sample(self, n_samples: int, seed: int, weights: Weights, vae: KerasModel) -> Tensor:
        return vae.posterior.standard_sample(n_samples, vae.latent_dim, seed)
