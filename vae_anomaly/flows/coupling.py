"""Coupling: some latent dimensions are moved and scaled by what the others are."""

from __future__ import annotations

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Tensor
from vae_anomaly.core.weights import Weight, Weights
from vae_anomaly.flows.conditioner import (
    Conditioned,
    condition,
    conditioner_weights,
    halves,
    shift_and_log_scale,
)

__all__ = ["Coupling"]


class Coupling(Conditioned):
    """Keeps the first half of the latent dimensions, and moves and scales the others by what those are.

    The affine coupling of RealNVP (Dinh et al. 2017): scale and shift come from a hidden layer that sees the
    kept half and the context. Forward and inverse take one pass. Scales lie in (exp(-3), exp(3)).

    Parameters
    ----------
    n_units : int, default=32
        Width of the hidden layer.

    References
    ----------
    Dinh, Sohl-Dickstein & Bengio 2017, "Density estimation using Real NVP".

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.flows import Coupling
    >>> from vae_anomaly.posteriors import Flow
    >>> detector = VAEDetector(posterior=Flow([Coupling(64)] * 4))
    """

    name = "coupling"

    def weights(self, latent_dim: int, n_context: int) -> dict[str, Weight]:
        n_kept = latent_dim // 2
        return conditioner_weights(n_kept, 2 * (latent_dim - n_kept), self.n_units, n_context)

    def forward(self, z: Tensor, weights: Weights, context: Tensor | None) -> tuple[Tensor, Tensor]:
        kept, others = halves(z)
        shift, log_scale = shift_and_log_scale(condition(kept, weights, context))
        others = others * keras.ops.exp(log_scale) + shift
        return keras.ops.concatenate([kept, others], axis=-1), keras.ops.sum(log_scale, axis=-1)

    def inverse(self, image: Tensor, weights: Weights, context: Tensor | None) -> Tensor:
        kept, others = halves(image)
        shift, log_scale = shift_and_log_scale(condition(kept, weights, context))
        others = (others - shift) * keras.ops.exp(-log_scale)
        return keras.ops.concatenate([kept, others], axis=-1)
