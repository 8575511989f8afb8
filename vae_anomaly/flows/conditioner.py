"""The small network by which a transform's parameters depend on z and on the context."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Tensor
from vae_anomaly.core.weights import Weight, Weights

__all__ = ["autoregressive_masks", "condition", "conditioner_weights"]

Mask = npt.NDArray[np.float32]


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


def autoregressive_masks(latent_dim: int, n_units: int, n_params: int) -> tuple[Mask, Mask]:
    """Masks of the two kernels by which parameters of a latent depend on those before it alone.

    (Germain et al. 2015, "MADE".) Hidden unit k sees the first k modulo ``latent_dim`` latents; the
    ``n_params`` parameters of latent i are outputs i, latent_dim + i, ... and see units of at most i.
    """
    latents, units = np.arange(latent_dim), np.arange(n_units) % latent_dim
    sees = (latents[:, None] < units).astype(np.float32)
    is_seen = (units[:, None] <= latents).astype(np.float32)
    return sees, np.tile(is_seen, n_params)
