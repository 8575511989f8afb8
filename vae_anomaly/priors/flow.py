"""The prior that a flow sends to the standard normal one."""

from __future__ import annotations

from typing import ClassVar

from vae_anomaly import flows
from vae_anomaly.core.types import Constraints, KerasModel, Tensor
from vae_anomaly.core.weights import Weight, Weights
from vae_anomaly.flows import Chain, Transforms
from vae_anomaly.posteriors import Gaussian, Posterior
from vae_anomaly.priors.base import Prior

__all__ = ["Flow"]

_BASE = Gaussian()


class Flow(Prior):
    r"""The density of z whose image under a flow is standard normal.

    .. math:: \log p(z) = \log N(f(z); 0, I) + \log |\det f'(z)|

    The flow is learned with the model, starts as the identity, and measures in one pass; to draw z, its
    inverse is taken. With autoregressive transforms it is a masked autoregressive flow.

    Parameters
    ----------
    transforms : name or list of Transform, default="autoregressive"
        As of `posteriors.Flow`.

    References
    ----------
    Chen et al. 2017, "Variational lossy autoencoder".
    Papamakarios, Pavlakou & Murray 2017, "Masked autoregressive flow for density estimation".

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.flows import Coupling
    >>> from vae_anomaly.priors import Flow
    >>> detector = VAEDetector(prior=Flow([Coupling()] * 4))
    """

    name = "flow"
    _parameter_constraints: ClassVar[Constraints] = {"transforms": [str, list, tuple]}

    def __init__(self, transforms: str | Transforms = "autoregressive") -> None:
        self.transforms = transforms

    @property
    def _chain(self) -> Chain:
        return flows.resolve(self.transforms)

    def fewest_latents(self) -> int:
        return self._chain.fewest_latents

    def check(self, posterior: Posterior, latent_dim: int) -> None:
        super().check(posterior, latent_dim)
        self._chain.check(latent_dim)

    def weights(self, latent_dim: int, n_inputs: int) -> dict[str, Weight]:
        return self._chain.weights(latent_dim, 0)

    def log_prob(self, z: Tensor, weights: Weights, vae: KerasModel) -> Tensor:
        image, log_det = self._chain.forward(z, weights)
        return _BASE.standard_log_prob(image) + log_det

    def sample(self, n_samples: int, seed: int, weights: Weights, vae: KerasModel) -> Tensor:
        return self._chain.inverse(_BASE.standard_sample(n_samples, vae.latent_dim, seed), weights)
