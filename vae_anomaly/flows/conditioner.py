"""Transforms whose parameters depend on z and on the context, and the small network by which they do."""

from __future__ import annotations

from numbers import Integral
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.utils._param_validation import Interval

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Constraints, Tensor
from vae_anomaly.core.weights import Weight, Weights
from vae_anomaly.flows.base import Transform

__all__ = [
    "Conditioned",
    "autoregressive_masks",
    "condition",
    "conditioner_weights",
    "halves",
    "shift_and_log_scale",
]

Mask = npt.NDArray[np.float32]
# exp(±3) bounds the scale of one transform.
_LOG_SCALE_BOUND = 3.0


class Conditioned(Transform):
    """Base class of transforms that change some latents by what others are: it takes two of them.

    Parameters
    ----------
    n_units : int, default=32
        Width of the hidden layer.
    """

    fewest_latents = 2
    _parameter_constraints: ClassVar[Constraints] = {"n_units": [Interval(Integral, 1, None, closed="left")]}

    def __init__(self, n_units: int = 32) -> None:
        self.n_units = n_units


def conditioner_weights(n_in: int, n_out: int, n_units: int, n_context: int) -> dict[str, Weight]:
    """Weights of one hidden layer, whose outputs start at zero."""
    weights = {
        "kernel": Weight((n_in, n_units), "glorot"),
        "bias": Weight((n_units,)),
        "out_kernel": Weight((n_units, n_out)),
        "out_bias": Weight((n_out,)),
    }
    if n_context:
        weights["context_kernel"] = Weight((n_context, n_units), "glorot")
    return weights


def condition(
    z: Tensor, weights: Weights, context: Tensor | None, masks: tuple[Mask, Mask] | None = None
) -> Tensor:
    """The parameters, (..., n_out), of z, (..., n_in), and the context: one hidden layer of tanh.

    ``masks`` multiply the two kernels: an output depends on those inputs that they leave.
    """
    kernel, out_kernel = weights["kernel"], weights["out_kernel"]
    if masks is not None:
        kernel, out_kernel = (
            value * keras.ops.cast(mask, value.dtype)
            for value, mask in zip((kernel, out_kernel), masks, strict=True)
        )
    hidden = keras.ops.tensordot(z, kernel, 1) + weights["bias"]
    if context is not None:
        hidden = hidden + keras.ops.tensordot(context, weights["context_kernel"], 1)
    return keras.ops.tensordot(keras.ops.tanh(hidden), out_kernel, 1) + weights["out_bias"]


def shift_and_log_scale(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """A shift and the logarithm of a scale, in (-3, 3): the halves of the last axis; both 0 for zeros."""
    shift, raw = keras.ops.split(parameters, 2, axis=-1)
    return shift, _LOG_SCALE_BOUND * keras.ops.tanh(raw / _LOG_SCALE_BOUND)


def halves(z: Tensor) -> tuple[Tensor, Tensor]:
    """The latents that a coupling keeps, and the others."""
    n_kept = z.shape[-1] // 2
    return z[..., :n_kept], z[..., n_kept:]


def autoregressive_masks(latent_dim: int, n_units: int, n_params: int) -> tuple[Mask, Mask]:
    """Masks of the two kernels by which parameters of a latent depend on those before it alone.

    (Germain et al. 2015, "MADE".) Hidden unit k sees the first k modulo ``latent_dim`` latents; the
    ``n_params`` parameters of latent i are outputs i, latent_dim + i, ... and see units of at most i.
    """
    latents, units = np.arange(latent_dim), np.arange(n_units) % latent_dim
    sees = (latents[:, None] < units).astype(np.float32)
    is_seen = (units[:, None] <= latents).astype(np.float32)
    return sees, np.tile(is_seen, n_params)
