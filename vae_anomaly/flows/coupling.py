"""Coupling: some latent dimensions are moved and scaled by what the others are."""

from __future__ import annotations

from numbers import Integral
from typing import ClassVar

from sklearn.utils._param_validation import Interval

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Constraints, Tensor
from vae_anomaly.core.weights import Weight, Weights
from vae_anomaly.flows.base import Transform
from vae_anomaly.flows.conditioner import condition, conditioner_weights

__all__ = ["Coupling", "bounded_log_scale"]

# exp(±3) bounds the scale of one transform.
_LOG_SCALE_BOUND = 3.0


def bounded_log_scale(raw: Tensor) -> Tensor:
    """The logarithm of a scale, from any number: in (-3, 3), and 0 for 0."""
    return _LOG_SCALE_BOUND * keras.ops.tanh(raw / _LOG_SCALE_BOUND)


class Coupling(Transform):
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
    fewest_latents = 2
    _parameter_constraints: ClassVar[Constraints] = {"n_units": [Interval(Integral, 1, None, closed="left")]}

    def __init__(self, n_units: int = 32) -> None:
        self.n_units = n_units

    def weights(self, latent_dim: int, n_context: int) -> dict[str, Weight]:
        n_kept = latent_dim // 2
        return conditioner_weights(n_kept, 2 * (latent_dim - n_kept), self.n_units, n_context)

    def forward(self, z: Tensor, weights: Weights, context: Tensor | None) -> tuple[Tensor, Tensor]:
        kept, others = _halves(z)
        shift, log_scale = self._parameters(kept, weights, context)
        others = others * keras.ops.exp(log_scale) + shift
        return keras.ops.concatenate([kept, others], axis=-1), keras.ops.sum(log_scale, axis=-1)

    def inverse(self, image: Tensor, weights: Weights, context: Tensor | None) -> Tensor:
        kept, others = _halves(image)
        shift, log_scale = self._parameters(kept, weights, context)
        others = (others - shift) * keras.ops.exp(-log_scale)
        return keras.ops.concatenate([kept, others], axis=-1)

    def _parameters(self, kept: Tensor, weights: Weights, context: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, raw = keras.ops.split(condition(kept, weights, context), 2, axis=-1)
        return shift, bounded_log_scale(raw)


def _halves(z: Tensor) -> tuple[Tensor, Tensor]:
    n_kept = z.shape[-1] // 2
    return z[..., :n_kept], z[..., n_kept:]
