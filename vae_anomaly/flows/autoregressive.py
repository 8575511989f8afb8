"""Autoregressive transform: each latent dimension is moved and scaled by what those before it are."""

from __future__ import annotations

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Tensor
from vae_anomaly.core.weights import Weight, Weights
from vae_anomaly.flows.conditioner import (
    Conditioned,
    autoregressive_masks,
    condition,
    conditioner_weights,
    shift_and_log_scale,
)

__all__ = ["Autoregressive"]


class Autoregressive(Conditioned):
    """Moves and scales each latent dimension by what those before it are.

    Scale and shift come from a hidden layer whose connections are masked (MADE, Germain et al. 2015), and
    which sees the context. Forward takes one pass, the inverse as many as there are latent dimensions: in a
    posterior this is the inverse autoregressive flow, in a prior the masked autoregressive one. Scales lie in
    (exp(-3), exp(3)).

    Parameters
    ----------
    n_units : int, default=32
        Width of the hidden layer.

    References
    ----------
    Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow".
    Papamakarios, Pavlakou & Murray 2017, "Masked autoregressive flow for density estimation".

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.flows import Autoregressive
    >>> from vae_anomaly.posteriors import Flow
    >>> detector = VAEDetector(posterior=Flow([Autoregressive(64)] * 2))
    """

    name = "autoregressive"

    def weights(self, latent_dim: int, n_context: int) -> dict[str, Weight]:
        return conditioner_weights(latent_dim, 2 * latent_dim, self.n_units, n_context)

    def forward(self, z: Tensor, weights: Weights, context: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._parameters(z, weights, context)
        return z * keras.ops.exp(log_scale) + shift, keras.ops.sum(log_scale, axis=-1)

    def inverse(self, image: Tensor, weights: Weights, context: Tensor | None) -> Tensor:
        z = keras.ops.zeros_like(image)
        for _ in range(image.shape[-1]):  # each pass finds one more latent, from the first one on
            shift, log_scale = self._parameters(z, weights, context)
            z = (image - shift) * keras.ops.exp(-log_scale)
        return z

    def _parameters(self, z: Tensor, weights: Weights, context: Tensor | None) -> tuple[Tensor, Tensor]:
        masks = autoregressive_masks(z.shape[-1], self.n_units, 2)
        return shift_and_log_scale(condition(z, weights, context, masks))
