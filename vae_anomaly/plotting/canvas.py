"""What pictures are made of: the detector and rows that come in, axes, tiles of images, colors.

matplotlib is imported by the first picture. Figures are made as scikit-learn's displays make them, by pyplot,
so that notebooks and ``plt.show()`` find them.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vae_anomaly.core.rows import with_channels
from vae_anomaly.core.types import Array, Estimator, MatrixLike, Shape
from vae_anomaly.scoring import is_estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

__all__ = [
    "BLUE",
    "COLOURS",
    "GREEN",
    "GREY",
    "HEAT",
    "MARKERS",
    "ORANGE",
    "RED",
    "as_images",
    "check_count",
    "find_limits",
    "find_open_ends",
    "find_usual_limits",
    "format_count",
    "grid_of",
    "image_shape_of",
    "legend_beside",
    "made_shape_of",
    "new_axes",
    "show",
    "tile_images",
    "unit_of",
    "unwrap",
]

BLUE, RED, GREEN, ORANGE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#999999"
#: Okabe & Ito 2008, "Color universal design", which the color-blind tell apart; without its yellow, which
#: nobody sees on white.
COLOURS = (BLUE, RED, GREEN, "#CC79A7", ORANGE, "#56B4E9", "#000000")
# Seven colors and eight markers have no common divisor: no two of 56 labels look alike.
MARKERS = "os^DvPX*"
HEAT = "viridis"
_REACH = 5
# Scores that are not log-probabilities.
_WITHOUT_UNIT = {"reconstruction_error", "unexplained_variance"}


# -- what comes in --------------------------------------------------------------------------------------
def unwrap(detector: Estimator, X: MatrixLike | None = None) -> tuple[Estimator, Any]:
    """The detector at the end of a pipeline, and rows as it receives them."""
    if not hasattr(detector, "steps"):
        return detector, X
    return detector[-1], X if X is None or len(detector) == 1 else detector[:-1].transform(X)


def unit_of(detector: Estimator) -> str:
    """What to write behind "anomaly score" on an axis."""
    in_nats = isinstance(detector.score_, str) and detector.score_ not in _WITHOUT_UNIT
    if not in_nats:
        return ""
    estimated = is_estimate(detector.score_, detector.members_[0].specification.posterior)
    return " (nats, an estimate)" if estimated else " (nats)"


def format_count(number: int, noun: str) -> str:
    """The number with its noun: 1 row, 1,000 rows."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def check_count(name: str, count: object) -> None:
    """Refuse anything but a positive whole number."""
    if not isinstance(count, Integral) or count < 1:
        raise ValueError(f"{name} must be a positive integer; received {count!r}.")


def image_shape_of(detector: Estimator, given: Shape | None) -> Shape:
    """The shape of the images that a detector's rows are: the one given, or what the detector knows.

    Raises
    ------
    ValueError
        If neither is known, or the shape does not hold as many numbers as a row.
    """
    shape: Shape | None = given or detector._shape_of_images
    if shape is None:
        raise ValueError(
            "this is a picture of images, and the detector was fitted on rows of a table; if its rows are "
            "flat images, pass image_shape=(height, width) or (height, width, channels)."
        )
    if math.prod(shape) != detector.n_features_in_:
        raise ValueError(
            f"image_shape must hold the {detector.n_features_in_} numbers of a row; received {shape!r}."
        )
    return shape


# -- what it is drawn on --------------------------------------------------------------------------------
def new_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The axes given, or those of a new figure of this size in inches."""
    if ax is not None:
        return ax
    new: Axes = _pyplot().subplots(figsize=size, layout="constrained")[1]
    return new


def grid_of(axes: Any, n: int, n_columns: int, tile: float) -> Array:
    """The axes given, or n panels of ``tile`` inches in new rows of ``n_columns``, as a flat array.

    Raises
    ------
    ValueError
        If other than n axes are given.
    """
    if axes is None:
        n_rows = math.ceil(n / n_columns)
        size = (tile * n_columns + 1, tile * n_rows + 0.5)
        _, axes = _pyplot().subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
        for unused in axes.flat[n:]:
            unused.set_axis_off()
        axes = axes.flat[:n]
    panels = np.asarray(axes, dtype=object).ravel()
    if len(panels) != n:
        raise ValueError(f"this picture has {n} panels; received {len(panels)} axes.")
    return panels


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'vae-anomaly[plot]'.") from error
    return matplotlib.pyplot


def legend_beside(ax: Axes, **options: Any) -> None:
    """A legend to the right of the axes, where no data are."""
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, **options)


def made_shape_of(detector: Estimator, given: Shape | None) -> Shape:
    """The shape of the images that a detector's model makes: `image_shape_of`, or that of its patches."""
    patches = detector._fitted.preparation.patches
    if patches is None:
        return image_shape_of(detector, given)
    return (patches.side, patches.side, patches.image_shape[2])


def as_images(rows: npt.ArrayLike, image_shape: Shape) -> Array:
    """Images that can be shown, (n, height, width) or (n, height, width, 3), from rows or images.

    Other numbers of channels than 1 and 3 are not colors: their mean is shown.
    """
    images = np.reshape(rows, (-1, *with_channels(image_shape)))
    return images if images.shape[-1] == 3 else images.mean(axis=-1)


def tile_images(images: Array, n_columns: int) -> Array:
    """All images in one, row by row, with a pixel of NaN between them."""
    n, height, width, *channels = images.shape
    n_rows = math.ceil(n / n_columns)
    size = (n_rows * (height + 1) - 1, n_columns * (width + 1) - 1)
    canvas = np.full((*size, *channels), np.nan)
    for position, image in enumerate(images):
        row, column = divmod(position, n_columns)
        top, left = row * (height + 1), column * (width + 1)
        canvas[top : top + height, left : left + width] = image
    return canvas


def show(ax: Axes, image: Array, limits: tuple[float, float], cmap: str = "gray") -> AxesImage:
    """Draw an image, gray or of a color map unless it has colors of its own, without ticks."""
    low, high = limits
    if np.ndim(image) == 3:
        image = np.nan_to_num(np.clip((image - low) / (high - low), 0, 1), nan=1.0)
    drawn = ax.imshow(image, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    return drawn


def find_limits(images: Array) -> tuple[float, float]:
    """What is black and what is white: 0 and 1 if all values lie there, else the smallest and largest."""
    low, high = float(np.nanmin(images)), float(np.nanmax(images))
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1


def find_usual_limits(values: Array) -> tuple[float, float]:
    """The smallest and largest of the values within five interquartile ranges of the quartiles.

    For scores, which a few anomalies would squeeze into one color or one bar. If the middle half of the
    values is the same, all of them count.
    """
    lower, upper = np.quantile(values, [0.25, 0.75])
    reach = _REACH * (upper - lower) or np.inf
    usual = values[(values >= lower - reach) & (values <= upper + reach)]
    return float(usual.min()), float(usual.max())


def find_open_ends(values: Array, low: float, high: float) -> str:
    """Which ends of a color bar to point, because values lie beyond."""
    ends = {(True, True): "both", (True, False): "min", (False, True): "max"}
    return ends.get((bool(np.min(values) < low), bool(np.max(values) > high)), "neither")
