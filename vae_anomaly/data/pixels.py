"""Pixels: numbers of images in the units that a model works in, and how they are scaled.

Pixels of dtype uint8 are shares of 255. All other numbers are taken as they are, and a likelihood of values
in [0, 1] refuses what lies outside. That holds for flat rows too, if the network takes them for images.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted, validate_data

from vae_anomaly.core.rows import block_size
from vae_anomaly.core.types import Constraints, DtypeOrNone, Floats, Matrix, Unchecked
from vae_anomaly.likelihoods import Likelihood

__all__ = ["PixelScaler", "as_numbers", "dtype_of", "pixel_range", "pixels", "widen_bytes"]

# A scaler or a resize may leave [0, 1] by a rounding error.
_ROUNDING = 1e-6
# Of images in [0, 1]: what filters and resizes overshoot by.
_OVERSHOOT = 1.0
# What a StandardScaler goes on from.
_LEARNED = ("mean_", "var_", "scale_", "n_samples_seen_")


class PixelScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    r"""Center and scale the pixels of images, each channel by one mean and one standard deviation.

    .. math:: x' = \frac{x - m_c}{s_c}

    with the mean :math:`m_c` and the standard deviation :math:`s_c` of all pixels of channel c in all
    training images. So neither brightness nor contrast changes what a detector sees, and no pixel counts
    more than another one: a scale for each pixel would let those decide that are nearly always black.

    Parameters
    ----------
    n_channels : int, default=1
        The last axis of the images, which come as flat rows.

    Attributes
    ----------
    mean_ : float64 array of shape (n_channels,)
    var_, scale_ : float64 arrays of shape (n_channels,)
        The variance and its root. A channel that does not vary keeps its unit: its scale is 1.
    n_samples_seen_ : int, or int array of shape (n_channels,) if pixels are missing
        Pixels that the figures are of.
    n_features_in_ : int
    feature_names_in_ : array of str

    Raises
    ------
    ValueError
        In `fit`, if rows do not hold whole pixels of so many channels.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.preprocessing import PixelScaler
    >>> images = np.random.RandomState(0).normal(0.4, 0.05, size=(10, 8 * 8 * 3))
    >>> PixelScaler(n_channels=3).fit(images).mean_.round(1)
    array([0.4, 0.4, 0.4])
    """

    _parameter_constraints: ClassVar[Constraints] = {
        "n_channels": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, n_channels: int = 1) -> None:
        self.n_channels = n_channels

    def fit(self, X: npt.ArrayLike, y: object = None) -> Self:
        """Learn each channel's mean and standard deviation; NaN does not count.

        Parameters
        ----------
        X : array of shape (n_images, n_pixels * n_channels)
        y : ignored
        """
        if hasattr(self, "n_samples_seen_"):
            del self.n_samples_seen_
        return self.partial_fit(X)

    def partial_fit(self, X: npt.ArrayLike, y: object = None) -> Self:
        """Learn from more images, as from all of them at once; see `fit`."""
        self._validate_params()
        scaler = StandardScaler()
        begins = not hasattr(self, "n_samples_seen_")
        if not begins:
            for name in _LEARNED:
                setattr(scaler, name, getattr(self, name))
            scaler.n_features_in_ = self.n_channels
        X = self._checked(X, reset=begins)
        if X.shape[1] % self.n_channels:
            raise ValueError(
                f"PixelScaler(n_channels={self.n_channels}) needs rows of whole pixels; received rows of "
                f"{X.shape[1]} numbers."
            )
        n_images = block_size(X.shape[1])
        for start in range(0, len(X), n_images):  # a variance makes copies of what it gets at once
            scaler.partial_fit(X[start : start + n_images].reshape(-1, self.n_channels))
        for name in _LEARNED:
            setattr(self, name, getattr(scaler, name))
        return self

    def transform(self, X: npt.ArrayLike) -> Floats:
        """Centered and scaled pixels, of the shape of X."""
        check_is_fitted(self)
        X = self._checked(X, reset=False)
        pixels = X.reshape(-1, self.n_channels)
        return np.asarray(((pixels - self.mean_) / self.scale_).reshape(X.shape))

    def inverse_transform(self, X: npt.ArrayLike) -> Floats:
        """The pixels in their own units again; X may hold parts of images, as rows of whole pixels."""
        check_is_fitted(self)
        X = np.asarray(X)
        pixels = X.reshape(-1, self.n_channels)
        return np.asarray((pixels * self.scale_ + self.mean_).reshape(X.shape))

    def __sklearn_tags__(self) -> Unchecked:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _checked(self, X: npt.ArrayLike, reset: bool) -> Floats:
        # In float32, where bytes, float32 and float64 that mean the same pixels are the same numbers.
        X = validate_data(self, X, reset=reset, dtype=np.float32, ensure_all_finite="allow-nan")
        return np.asarray(X, dtype=np.float64)


def dtype_of(X: Unchecked) -> DtypeOrNone:
    """The dtype of an array, or the one that all columns or all rows of a list have; otherwise None."""
    if isinstance(X, (list, tuple)):
        found = [getattr(row, "dtype", None) for row in X]
    else:
        found = list(getattr(X, "dtypes", ())) if hasattr(X, "columns") else [getattr(X, "dtype", None)]
    dtypes = {getattr(dtype, "numpy_dtype", dtype) for dtype in found}  # of pandas' nullable ones too
    return dtypes.pop() if len(dtypes) == 1 else None


def pixel_range(X: Matrix) -> tuple[float, float]:
    """Lowest and highest of the finite pixels; NaN if there is none."""
    values = X.data if sparse.issparse(X) else X
    if values.dtype == np.uint8 and values.size:
        return float(values.min()) / 255, float(values.max()) / 255
    low, high = (float(end.reduce(values, axis=None, initial=np.nan)) for end in (np.fmin, np.fmax))
    if math.isinf(low) or math.isinf(high):
        values = values[np.isfinite(values)]
        low, high = (float(end.reduce(values, axis=None, initial=np.nan)) for end in (np.fmin, np.fmax))
    if sparse.issparse(X) and values.size < math.prod(X.shape):
        low, high = min(0.0, low), max(0.0, high)
    return low, high


def pixels(
    X: Matrix,
    dtype: DtypeOrNone,
    likelihood: Likelihood,
    scaled: bool,
    fitted_range: tuple[float, float] | None = None,
) -> Matrix:
    """Rows of pixels in the units that the model works in: shares of 255 if they were of dtype uint8.

    Bytes may stay bytes, which `as_numbers` divides when a block of them is wanted.

    Parameters
    ----------
    X : float or uint8 array of shape (n_rows, n_pixels), or a CSR matrix
        Numbers that were of dtype uint8 are written into.
    dtype : what X was handed in as
    likelihood : Likelihood
        One of whole numbers takes uint8 for the numbers that it holds.
    scaled : bool
        Whether a scaler will change the pixels, so that any range is right.
    fitted_range : `pixel_range` of the training images, or None if these are they

    Raises
    ------
    ValueError
        If uint8 cannot mean shares of 255, or if pixels lie outside the likelihood's range.
    """
    if dtype == np.uint8 and not likelihood.whole_numbers:
        if fitted_range is None:
            _check_not_binary(X)
        elif not _in_unit_interval(fitted_range):
            low, high = fitted_range
            raise ValueError(
                f"the detector was fitted on images with pixel values from {low:g} to {high:g}; received "
                "uint8, which stands for values in [0, 1]: convert the images as those of the training were."
            )
        if X.dtype != np.uint8:
            X /= 255
    elif X.dtype == np.uint8:
        X = X.astype(np.float64)
    if not scaled:
        likelihood.check_pixels(*pixel_range(X), dtype)
    if fitted_range is not None and _in_unit_interval(fitted_range):
        _check_not_in_other_units(*pixel_range(X), fitted_range)
    return X


def as_numbers(X: Matrix) -> Matrix:
    """X as floating-point numbers: bytes, which are pixels, as shares of 255."""
    return X / 255 if X.dtype == np.uint8 else X


def widen_bytes(X: Matrix) -> Matrix:
    """Rows of signals or of a table as numbers: their bytes are in units of their own, as all others are."""
    return X.astype(np.float64) if X.dtype == np.uint8 else X


def _check_not_in_other_units(low: float, high: float, fitted_range: tuple[float, float]) -> None:
    """Refuse pixels that can't be in the units of training images in [0, 1]; a few may overshoot."""
    if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
        raise ValueError(
            f"the detector was fitted on images with pixel values from {fitted_range[0]:g} to "
            f"{fitted_range[1]:g}; received values from {low:g} to {high:g}: convert the images as those of "
            "the training were, for example divide by 255, or hand in uint8."
        )


def _check_not_binary(X: Matrix) -> None:
    if pixel_range(X)[1] == (1 / 255 if X.dtype == np.uint8 else 1):
        raise ValueError(
            "uint8 images are divided by 255, and these hold only 0 and 1: hand in booleans, X.astype(bool)."
        )


def _in_unit_interval(pixel_range: tuple[float, float]) -> bool:
    low, high = pixel_range
    return not (low < -_ROUNDING or high > 1 + _ROUNDING)
