"""What a network costs: the multiplications and additions of a row, and the numbers that its layers make."""

from __future__ import annotations

import math
from typing import Any

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import KerasModel

__all__ = ["MOST_DRAWS_AT_ONCE", "draws_at_once", "multiply_adds", "numbers_made", "rows_at_once"]

#: Draws, or values of z, that are decoded at once, at most.
MOST_DRAWS_AT_ONCE = 64
# What layers make at once, at most, unless it is a single row: 256 MB in float32. A training step, with its
# gradients, was seen to take three times as much.
_NUMBERS_AT_ONCE = 2**26


def multiply_adds(model: KerasModel) -> int:
    """Of a row: as many as there are weights, but those of a convolution count at each of its places."""
    counts = [
        multiply_adds(layer) if isinstance(layer, keras.Model) else _n_weights(layer) * _places(layer)
        for layer in model.layers
    ]
    return sum(counts) + _n_weights(model) - sum(map(_n_weights, model.layers))


def numbers_made(model: KerasModel) -> int:
    """How many numbers all layers make of a row, which are kept for its gradient.

    Layers that do not say the shape of what they make, those of models that are no graph of layers, are left
    out.
    """
    return sum(
        numbers_made(layer) if isinstance(layer, keras.Model) else sum(map(math.prod, _made(layer)))
        for layer in model.layers
    )


def draws_at_once(decoder: KerasModel) -> int:
    """How many draws of a row are decoded at once: 64, or fewer where the decoder makes very much of each."""
    return min(MOST_DRAWS_AT_ONCE, max(1, _NUMBERS_AT_ONCE // max(1, numbers_made(decoder))))


def rows_at_once(encoder: KerasModel, decoder: KerasModel, n_draws: int, at_most: int) -> int:
    """How many rows a training step takes: ``at_most``, halved until about a gigabyte is enough."""
    numbers_of_row = max(1, numbers_made(encoder) + n_draws * numbers_made(decoder))
    n_rows = at_most
    while n_rows > 1 and n_rows * numbers_of_row > _NUMBERS_AT_ONCE:
        n_rows //= 2
    return n_rows


def _made(layer: Any) -> list[list[int]]:
    """The shapes of a layer's outputs, without their first axes."""
    try:
        outputs = keras.tree.flatten(layer.output)
    except (AttributeError, ValueError):  # of a model that is no graph of layers
        return []
    return [[size or 1 for size in output.shape[1:]] for output in outputs]


def _n_weights(layer: Any) -> int:
    # A layer's own count_params refuses one that was never called.
    return sum(math.prod(weight.shape) for weight in layer.weights)


def _places(layer: Any) -> int:
    """How often a row meets the kernel of a layer."""
    if not any(len(weight.shape) > 2 for weight in layer.weights):
        return 1
    try:
        images = layer.input.shape[1:-1], layer.output.shape[1:-1]
    except (AttributeError, ValueError):  # of a model that is no graph of layers
        return 1
    # A transposed convolution's are those of the image that goes in.
    return int(min(math.prod(size or 1 for size in image) for image in images))
