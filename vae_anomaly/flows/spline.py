"""Spline coupling: some latent dimensions are bent by what the others are."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import ClassVar, NamedTuple

from sklearn.utils._param_validation import Interval

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Constraints, Tensor
from vae_anomaly.core.weights import Weight, Weights
from vae_anomaly.flows.conditioner import Conditioned, condition, conditioner_weights, halves

__all__ = ["Spline"]

# Of the box's sides, and of 1: narrower bins or flatter knots lose the inverse in float32.
_NARROWEST, _FLATTEST = 1e-3, 1e-3
# softplus of this is 1.
_SOFTPLUS_OF_ONE = math.log(math.expm1(1.0))


class Spline(Conditioned):
    """Keeps the first half of the latent dimensions, and bends the others by what those are.

    By monotone splines of quadratic fractions (Durkan et al. 2019) on [-bound, bound], whose knots come from
    a hidden layer that sees the kept half and the context; outside, they are left as they are. Forward and
    inverse take one pass.

    Parameters
    ----------
    n_bins : int, default=8
        Bins between the knots.
    bound : float, default=4.0
        Half the side of the box.
    n_units : int, default=32
        Width of the hidden layer.

    References
    ----------
    Durkan et al. 2019, "Neural spline flows".

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.flows import Spline
    >>> from vae_anomaly.posteriors import Flow
    >>> detector = VAEDetector(posterior=Flow([Spline(n_bins=4)] * 2))
    """

    name = "spline"
    _parameter_constraints: ClassVar[Constraints] = {
        **Conditioned._parameter_constraints,
        "n_bins": [Interval(Integral, 2, 500, closed="both")],
        "bound": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, n_bins: int = 8, bound: float = 4.0, n_units: int = 32) -> None:
        super().__init__(n_units)
        self.n_bins = n_bins
        self.bound = bound

    def weights(self, latent_dim: int, n_context: int) -> dict[str, Weight]:
        n_kept = latent_dim // 2
        n_out = (latent_dim - n_kept) * (3 * self.n_bins - 1)
        return conditioner_weights(n_kept, n_out, self.n_units, n_context)

    def forward(self, z: Tensor, weights: Weights, context: Tensor | None) -> tuple[Tensor, Tensor]:
        kept, others, raw = self._parts(z, weights, context)
        bent, log_slope = self.bend(others, raw)
        return keras.ops.concatenate([kept, bent], axis=-1), keras.ops.sum(log_slope, axis=-1)

    def inverse(self, image: Tensor, weights: Weights, context: Tensor | None) -> Tensor:
        kept, bent, raw = self._parts(image, weights, context)
        return keras.ops.concatenate([kept, self.straighten(bent, raw)], axis=-1)

    def bend(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The spline of x, (...), with the numbers ``raw``, (..., 3 n_bins - 1), and the log of its slope."""
        inside = keras.ops.abs(x) < self.bound
        at = keras.ops.where(inside, x, 0.0)
        knot = self._knot(at, raw, "x")
        place = (at - knot.x) / knot.width
        rest, slope = place * (1 - place), knot.height / knot.width
        bottom = slope + (knot.right + knot.left - 2 * slope) * rest
        bent = knot.y + knot.height * (slope * place * place + knot.left * rest) / bottom
        top = knot.right * place * place + 2 * slope * rest + knot.left * (1 - place) * (1 - place)
        log_slope = 2 * keras.ops.log(slope) + keras.ops.log(top) - 2 * keras.ops.log(bottom)
        return keras.ops.where(inside, bent, x), keras.ops.where(inside, log_slope, 0.0)

    def straighten(self, y: Tensor, raw: Tensor) -> Tensor:
        """The x whose spline is y."""
        inside = keras.ops.abs(y) < self.bound
        at = keras.ops.where(inside, y, 0.0)
        knot = self._knot(at, raw, "y")
        slope, above = knot.height / knot.width, at - knot.y
        bend = above * (knot.right + knot.left - 2 * slope)
        a, b, c = knot.height * (slope - knot.left) + bend, knot.height * knot.left - bend, -slope * above
        # Of the two solutions, the one in [0, 1], without a difference of nearly equal numbers.
        root = keras.ops.sqrt(keras.ops.maximum(b * b - 4 * a * c, 0.0))
        return keras.ops.where(inside, knot.x + knot.width * 2 * c / (-b - root), y)

    def _parts(self, z: Tensor, weights: Weights, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The kept half, the others, and the numbers that make the others' splines."""
        kept, others = halves(z)
        raw = condition(kept, weights, context)
        leading = keras.ops.shape(raw)[:-1]
        return kept, others, keras.ops.reshape(raw, (*leading, others.shape[-1], 3 * self.n_bins - 1))

    def _knot(self, at: Tensor, raw: Tensor, axis: str) -> _Knot:
        """The bin that a place on this axis lies in."""
        n_bins, side = self.n_bins, 2.0 * self.bound
        widths, heights = (
            side * (_NARROWEST + (1 - _NARROWEST * n_bins) * keras.ops.softmax(part, axis=-1))
            for part in (raw[..., :n_bins], raw[..., n_bins : 2 * n_bins])
        )
        inner = _FLATTEST + (1 - _FLATTEST) * keras.ops.softplus(raw[..., 2 * n_bins :] + _SOFTPLUS_OF_ONE)
        one = keras.ops.ones_like(inner[..., :1])
        slopes = keras.ops.concatenate([one, inner, one], axis=-1)
        xs, ys = (keras.ops.cumsum(sizes, axis=-1) - sizes - self.bound for sizes in (widths, heights))
        starts = xs if axis == "x" else ys
        position = keras.ops.sum(keras.ops.cast(at[..., None] >= starts[..., 1:], "int32"), axis=-1)
        chosen = keras.ops.one_hot(position, n_bins, dtype=raw.dtype)
        parts = (xs, ys, widths, heights, slopes[..., :-1], slopes[..., 1:])
        return _Knot(*(keras.ops.sum(chosen * part, axis=-1) for part in parts))


class _Knot(NamedTuple):
    """A bin of a spline: its left end, its sizes, and the slopes at both ends."""

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    left: Tensor
    right: Tensor
