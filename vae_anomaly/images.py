"""Images: what users hand in -> flat rows of numbers; their own shape comes back on the way out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["check_image_shape", "flattened", "with_channels"]


def flattened(X: Any) -> tuple[Any, tuple[int, ...] | None]:
    """X with one row for each image, and the shape of an image; anything but images comes back as it is.

    Images are arrays of shape (n, height, width) or (n, height, width, channels).
    """
    if getattr(X, "ndim", 2) not in (3, 4):
        return X, None
    X = np.asarray(X)
    image_shape = X.shape[1:]
    return X.reshape(len(X), math.prod(image_shape)), image_shape


def with_channels(image_shape: tuple[int, ...]) -> tuple[int, ...]:
    """(height, width, channels): grey images may leave their one channel out."""
    return tuple(image_shape) if len(image_shape) == 3 else (*image_shape, 1)


def check_image_shape(image_shape: tuple[int, ...] | None, expected: tuple[int, ...] | None) -> None:
    """Refuse images of another shape than those of `fit`; rows that are no images have None."""
    if image_shape is None or expected is None:
        return
    if with_channels(expected) != with_channels(image_shape):
        raise ValueError(
            f"the detector was fitted on images of shape {expected}; received images of shape {image_shape}."
        )
