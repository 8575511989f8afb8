r"""The planar transform."""

from __future__ import annotations

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Tensor
from vae_anomaly.core.weights import Weight, Weights
from vae_anomaly.flows.base import Transform

__all__ = ["Planar"]

# exp(±10) bounds the slope along w: outside, float32 loses the inverse.
_SLOPE_BOUND = 10.0
_TINY = 1e-30
# Halves an interval of 2 exp(10) to the last bit of a float64.
_BISECTIONS = 70


class Planar(Transform):
    r"""z + û tanh(w · z + b): stretches or squeezes space along a plane (Rezende & Mohamed 2015).

    The vectors u and w and the number b depend on the row, linearly in the context. The transform is
    invertible because the part of u along w is bent so that w · û > -1:

    .. math:: w \cdot \hat u = e^{10 \tanh(w \cdot u / 10)} - 1, \qquad
        \log |\det| = \log\bigl(1 + w \cdot \hat u \, (1 - \tanh^2(w \cdot z + b))\bigr)

    It is the identity at u = 0, where all rows begin. The inverse is found by bisection along w.

    References
    ----------
    Rezende & Mohamed 2015, "Variational inference with normalizing flows".

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.flows import Planar
    >>> from vae_anomaly.posteriors import Flow
    >>> detector = VAEDetector(posterior=Flow([Planar()] * 8))  # as posterior="planar"
    """

    name = "planar"

    def weights(self, latent_dim: int, n_context: int) -> dict[str, Weight]:
        weights = {"u": Weight((latent_dim,)), "w": Weight((latent_dim,), "normal"), "b": Weight((1,))}
        if n_context:
            weights["context_kernel"] = Weight((n_context, 2 * latent_dim + 1))
        return weights

    def forward(self, z: Tensor, weights: Weights, context: Tensor | None) -> tuple[Tensor, Tensor]:
        bent, w, b, along = self._parameters(weights, context)
        curve = keras.ops.tanh(keras.ops.sum(w * z, axis=-1, keepdims=True) + b)
        return z + bent * curve, keras.ops.log1p(along * (1 - keras.ops.square(curve)))[..., 0]

    def inverse(self, image: Tensor, weights: Weights, context: Tensor | None) -> Tensor:
        bent, w, b, along = self._parameters(weights, context)
        target = keras.ops.sum(w * image, axis=-1, keepdims=True)
        low, high = target - keras.ops.abs(along), target + keras.ops.abs(along)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            is_low = middle + along * keras.ops.tanh(middle + b) < target
            low, high = keras.ops.where(is_low, middle, low), keras.ops.where(is_low, high, middle)
        return image - bent * keras.ops.tanh(0.5 * (low + high) + b)

    def _parameters(self, weights: Weights, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """û, w, b and w · û, the latter two with an axis of length 1."""
        u, w, b = weights["u"], weights["w"], weights["b"]
        if context is not None:
            size = u.shape[0]
            moved = keras.ops.tensordot(context, weights["context_kernel"], 1)
            u, w, b = u + moved[:, :size], w + moved[:, size:-1], b + moved[:, -1:]
        raw = keras.ops.sum(w * u, axis=-1, keepdims=True)
        along = keras.ops.expm1(_SLOPE_BOUND * keras.ops.tanh(raw / _SLOPE_BOUND))
        square = keras.ops.maximum(keras.ops.sum(keras.ops.square(w), axis=-1, keepdims=True), _TINY)
        return u + (along - raw) / square * w, w, b, along
