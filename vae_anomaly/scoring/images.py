"""Scores of images: functions from (height, width, channels) to a `Score`."""

from __future__ import annotations

import functools
import math
from numbers import Integral, Real

import numpy as np

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import KerasModel, Shape, Tensor
from vae_anomaly.scoring.score import Score

__all__ = ["ImageShape", "unexplained_variance"]

# Contrast, as a standard deviation of pixels, below which an image counts as empty: of scaled pixels (that
# of all training images is 1), and of pixels in [0, 1].
_FAINTEST_SCALED, _FAINTEST = 0.3, 0.1

ImageShape = tuple[int, int, int]


def unexplained_variance(image_shape: Shape, smoothing: float = 1.0) -> Score:
    r"""The share of an image's variance that the model does not reproduce: a score of images.

    .. math:: \mathrm{E}_q \frac{\|G * (x - \hat x(z))\|^2}{c^2 d + \|G * (x - \bar x)\|^2}

    with the d pixels x, the image's mean :math:`\bar x` in each channel, a Gaussian filter G, and the
    contrast c of an image that counts as empty: 0.3 standard deviations of the training pixels where those
    are scaled, 0.1 of pixels in [0, 1]. A likelihood calls simple images probable whatever they show
    (Nalisnick et al. 2019, "Do deep generative models know what they don't know?"), because there is little
    in them to get wrong. The denominator corrects for that, as the length of the compressed image does in
    Serrà et al. 2020, "Input complexity and out-of-distribution detection with likelihood-based generative
    models". The filter forgives strokes and edges that lie a pixel off. A pixel's share is that of its
    surroundings: what it adds to the sum goes through the filter once more, which keeps the sum and finds
    planted defects better.

    Parameters
    ----------
    image_shape : tuple (height, width, channels)
    smoothing : float, default=1.0
        Standard deviation of the filter, in pixels; 0 for none.

    Raises
    ------
    ValueError
        For a shape that is none of an image, or a negative width; when used, for rows of another size.

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.scoring import unexplained_variance
    >>> detector = VAEDetector(score=unexplained_variance((64, 64, 3), smoothing=2.0))
    """
    shape = tuple(image_shape)
    if len(shape) != 3 or not all(isinstance(side, Integral) and side > 0 for side in shape):
        raise ValueError(
            f"unexplained_variance needs image_shape=(height, width, channels); received {image_shape!r}."
        )
    if not isinstance(smoothing, Real) or not 0 <= smoothing < math.inf:
        raise ValueError(f"smoothing must be a number of pixels, at least 0; received {smoothing!r}.")
    return _unexplained_variance(shape, float(smoothing))


@functools.cache  # programs are compiled for a score: equal ones are to be one
def _unexplained_variance(image_shape: ImageShape, smoothing: float) -> Score:
    height, width, _ = image_shape
    n_features = math.prod(image_shape)
    taps = _filter(smoothing)
    mirrored = [np.pad(np.arange(side), len(taps) // 2, mode="symmetric") for side in (height, width)]

    def smoothed(images: Tensor) -> Tensor:
        for axis, positions in enumerate(mirrored, start=1):
            wide = keras.ops.take(images, positions, axis=axis)
            side = image_shape[axis - 1]
            slices = [
                tap * (wide[:, place : place + side] if axis == 1 else wide[:, :, place : place + side])
                for place, tap in enumerate(taps)
            ]
            images = sum(slices[1:], slices[0])
        return images

    def of_pixels(vae: KerasModel, x: Tensor, inferred: Tensor) -> Tensor:
        """The share of each pixel in each draw and image: (n_draws * n_rows, height, width, channels)."""
        if x.shape[-1] != n_features:
            raise ValueError(
                f"the score unexplained_variance is of images of shape {image_shape}, which have "
                f"{n_features} numbers; received rows of {x.shape[-1]}."
            )
        expected = vae.likelihood.mean(inferred.parameters)
        x = keras.ops.where(keras.ops.isnan(x), expected, x)  # a missing pixel is as expected
        # In float64, and rounded in the end: how sums are grouped depends on the images beside it, and is not
        # to be seen in an image's score.
        x, expected = (keras.ops.cast(v, "float64") for v in (x, expected))
        own, missed = (keras.ops.reshape(v, (-1, *image_shape)) for v in (x, x - expected))
        own = keras.ops.square(smoothed(own - keras.ops.mean(own, axis=(1, 2), keepdims=True)))
        variance = keras.ops.sum(own, axis=(1, 2, 3), keepdims=True)
        faintest = _FAINTEST_SCALED if vae.likelihood.standardized else _FAINTEST
        return keras.ops.square(smoothed(missed)) / (n_features * faintest**2 + variance)

    def per_draw(vae: KerasModel, x: Tensor, inferred: Tensor) -> Tensor:
        total = keras.ops.sum(of_pixels(vae, x, inferred), axis=(1, 2, 3))
        return keras.ops.cast(keras.ops.reshape(total, (-1, keras.ops.shape(x)[0])), "float32")

    def per_feature(vae: KerasModel, x: Tensor, inferred: Tensor) -> Tensor:
        around = smoothed(of_pixels(vae, x, inferred))
        return keras.ops.cast(keras.ops.reshape(around, (-1, keras.ops.shape(x)[0], n_features)), "float32")

    return Score(per_draw, lambda values, _: keras.ops.mean(values, axis=0), per_feature, slope=1.0)


def _filter(smoothing: float) -> list[float]:
    """A Gaussian filter's weights, out to four standard deviations."""
    places = np.arange(-round(4 * smoothing), round(4 * smoothing) + 1)
    weights = np.exp(-0.5 * (places / smoothing) ** 2) if smoothing else np.ones(1)
    return [float(weight) for weight in weights / weights.sum()]
