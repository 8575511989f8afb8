"""Masks: which pixels of images are anomalous at a stated false-alarm rate, and the regions they make."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage

from vae_anomaly.calibration.checks import check_probability
from vae_anomaly.core.types import Array, Flags, Floats

__all__ = ["regions"]

# Fractions of the pixels of normal images at which their scores are kept.
_LOWEST_RATE, _N_RATES = 1e-5, 101
# Of so few pixels, not even the order of the rate is known: those of one image go together.
_FEWEST_ABOVE = 10


def pixel_quantiles(scores: Floats) -> Floats:
    """What is kept of the scores of normal pixels: rates, and the scores that such fractions lie above.

    Parameters
    ----------
    scores : array of shape (n_pixels,)

    Returns
    -------
    array of shape (2, n_rates)
        Of the rates that so many pixels can tell.
    """
    lowest = min(1.0, max(_LOWEST_RATE, _FEWEST_ABOVE / len(scores)))
    rates = np.geomspace(lowest, 1, _N_RATES)
    return np.stack([rates, np.quantile(scores, 1 - rates)])


def cut_of_pixels(quantiles: Floats | None, false_alarm_rate: float) -> float:
    """The score that this fraction of the pixels of new normal images lies above.

    Raises
    ------
    ValueError
        If nothing is known of pixels, or nothing of such a rate.
    """
    check_probability(false_alarm_rate, "false_alarm_rate")
    if quantiles is None:
        raise ValueError(
            "masks need scores of pixels: fit the detector on images, with a score that says how it divides "
            "among pixels."
        )
    rates, scores = quantiles
    if false_alarm_rate < rates[0] * (1 - 1e-9):
        raise ValueError(
            f"the training images can tell which pixels one in {1 / rates[0]:,.0f} normal ones lies above; "
            f"received false_alarm_rate={false_alarm_rate:g}: fit on more images, or raise it."
        )
    return float(np.interp(math.log(false_alarm_rate), np.log(rates), scores))


def regions(masks: npt.ArrayLike, scores: npt.ArrayLike | None = None) -> pd.DataFrame:
    """The connected regions of masks, with their boxes.

    Pixels are connected to those beside them and at their corners.

    Parameters
    ----------
    masks : bool array of shape (n_images, height, width)
        Such as `VAEDetector.anomaly_mask` makes.
    scores : array of the shape of the masks, or None, default=None
        Of each pixel.

    Returns
    -------
    DataFrame with a line for each region, image by image, those with the largest scores first, and

    - ``image`` : its position
    - ``top``, ``left``, ``bottom``, ``right`` : the box; ``image[top:bottom, left:right]`` holds the region
    - ``n_pixels`` : in the region
    - ``score`` : the largest of a pixel in it; NaN without scores

    Raises
    ------
    ValueError
        For arrays of other shapes.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.masks import regions
    >>> mask = np.zeros((1, 6, 6), dtype=bool)
    >>> mask[0, 1:3, 2:5] = True
    >>> regions(mask)[["image", "top", "left", "bottom", "right", "n_pixels"]].values.tolist()
    [[0, 1, 2, 3, 5, 6]]
    """
    masks = np.asarray(masks, dtype=bool)
    values = np.full(masks.shape, np.nan) if scores is None else np.asarray(scores, dtype=np.float64)
    if masks.ndim != 3 or values.shape != masks.shape:
        raise ValueError(
            "masks must be of shape (n_images, height, width), and scores of the same; received "
            f"{masks.shape} and {values.shape}."
        )
    columns = ["image", "top", "left", "bottom", "right", "n_pixels", "score"]
    lines = []
    for image, (mask, own) in enumerate(zip(masks, values, strict=True)):
        of_image = [
            (image, box[0].start, box[1].start, box[0].stop, box[1].stop, n_pixels, score)
            for box, n_pixels, score in _boxes(mask, own)
        ]
        lines += sorted(of_image, key=lambda line: -np.nan_to_num(line[-1]))
    table = pd.DataFrame(lines, columns=columns)
    return table.astype(dict.fromkeys(columns[:-1], np.int64) | {"score": np.float64})


def _boxes(mask: Flags, scores: Floats) -> list[tuple[tuple[slice, slice], int, float]]:
    labels, n_regions = ndimage.label(mask, np.ones((3, 3)))
    numbers = np.arange(1, n_regions + 1)
    if not n_regions:
        return []
    sizes: Array = np.bincount(labels.ravel(), minlength=n_regions + 1)[1:]
    largest = ndimage.maximum(scores, labels, numbers)
    return list(zip(ndimage.find_objects(labels), sizes.tolist(), np.asarray(largest).tolist(), strict=True))
