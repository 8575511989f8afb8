"""Images: what users hand in -> flat rows of numbers; their own shape comes back on the way out."""

from __future__ import annotations

import math

import numpy as np

from vae_anomaly.core.conventions import warn_user
from vae_anomaly.core.rows import with_channels
from vae_anomaly.core.types import Matrix, Shape, Unchecked

__all__ = ["check_image_shape", "flatten", "warn_of_channels_first"]

_MOST_CHANNELS = 4


def flatten(X: Unchecked) -> tuple[Matrix, Shape | None]:
    """X with one row for each image, and the shape of an image; anything but images comes back as it is.

    Images are arrays of shape (n, height, width) or (n, height, width, channels), or lists of images.

    Raises
    ------
    ValueError
        If the images differ in size, or have more than three axes.
    """
    X = _stack(X)
    n_axes = getattr(X, "ndim", 2)
    if n_axes > 4:
        raise ValueError(
            "images are arrays of shape (n, height, width) or (n, height, width, channels); received an "
            f"array of shape {tuple(X.shape)}."
        )
    if n_axes < 3:
        return X, None
    X = np.asarray(X)
    image_shape = X.shape[1:]
    return X.reshape(len(X), math.prod(image_shape)), image_shape


def _stack(X: Unchecked) -> Unchecked:
    """A list of images as one array; anything else comes back as it is."""
    listed = isinstance(X, (list, tuple)) or (isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1)
    try:
        if not listed or len(X) == 0 or np.ndim(X[0]) not in (2, 3):
            return X
    except ValueError:  # a ragged list
        return X
    shapes = [np.shape(image) for image in X]
    for position, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"images must have one size: image 0 has the shape {shapes[0]}, image {position} {shape}. "
                "Resize, crop or pad them."
            )
    return np.stack([np.asarray(image) for image in X])


def warn_of_channels_first(image_shape: Shape | None) -> None:
    """Warn of images whose first axis looks like their channels."""
    if image_shape is None or len(image_shape) != 3:
        return
    first, height, width = image_shape
    if min(height, width) > _MOST_CHANNELS and (first == 3 or (first == 1 and height == width)):
        warn_user(
            f"X holds images of height {first}, width {height} and {width} channels, by its shape "
            f"{('n', *image_shape)}. If the channels come first, hand in np.moveaxis(X, 1, -1).".replace(
                "'", ""
            ),
            UserWarning,
        )


def check_image_shape(received: Shape | None, image_shape: Shape | None, expected: Shape | None) -> None:
    """Refuse images of another shape than those of `fit`, and one image in the place of several.

    Parameters
    ----------
    received : shape of what was handed in, if it was an array
    image_shape : that of its images, or None if it holds flat rows
    expected : that of the images in `fit`, or None if it was fitted on rows of a table
    """
    if expected is None:
        if image_shape is not None:
            raise ValueError(
                f"the detector was fitted on rows of a table; received images of shape {image_shape}. Hand "
                "them in as the training rows were: flat and in their units."
            )
        return
    if image_shape is None:
        right = not received or received[-1] == math.prod(expected)
    else:
        right = with_channels(image_shape) == with_channels(expected)
    of_one = with_channels(expected)
    if not right and received in (of_one, of_one[:2] if of_one[2] == 1 else of_one):
        raise ValueError(
            f"received an array of shape {received}, which is the shape of one image: hand in an array of "
            "images, X[np.newaxis] for one."
        )
    if not right and image_shape is not None:
        raise ValueError(
            f"the detector was fitted on images of shape {expected}; received images of shape {image_shape}."
        )
