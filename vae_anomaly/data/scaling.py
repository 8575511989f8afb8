"""Scaling: numbers -> the float32 rows that a model sees, and back into the users' units.

A scaler is any scikit-learn transformer, or None.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.preprocessing import StandardScaler

from vae_anomaly.core.rows import RowError, Rows, block_size, column_label, dense, evenly_spaced
from vae_anomaly.core.types import Array, Estimator, Flags, Floats, Matrix, Shape, Transformer
from vae_anomaly.data.pixels import PixelScaler, as_numbers
from vae_anomaly.data.wide import LEAST_WEIGHT, is_wide, weigh_columns
from vae_anomaly.likelihoods import Likelihood

__all__ = [
    "FARTHEST",
    "ROUNDING",
    "FitInBlocks",
    "ScalerOfColumns",
    "any_infinite",
    "check_finite",
    "check_magnitude",
    "clip_gross_errors",
    "column_names",
    "count_missing",
    "fit_channel_scaler",
    "fit_scaler",
    "missing_fractions",
    "repeat_channels",
    "scale",
    "scaled_zero",
    "scaler_for",
    "scales_channels",
    "units_of_columns",
    "unscale",
]

#: Where scaled rows are clipped: far enough to be any anomaly, near enough for its square to be a float32.
FARTHEST = 1e14
#: Of the largest value: what sums and means of equal numbers may be off by.
ROUNDING = 32 * np.finfo(np.float64).eps

_LARGEST = 1e150
# Beyond, nearly all rows are a fiftieth of a unit.
_GROSS = 50
_FARTHEST_TRAINED = 1e6
_ROWS_FOR_QUANTILES = 10_000
# Standard deviations of a normal distribution between its 2.5th and its 97.5th percentile.
_CENTRAL_DEVIATIONS = 3.92
# A third of a smaller one may be no normal number any more.
_SMALLEST_CONSTANT = 1e-300


class ScalerOfColumns(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A scaler for some columns; the others stay as they are.

    Parameters
    ----------
    scaler : transformer that makes one column of each
    columns : list of int
        Positions of the columns that it scales.
    """

    def __init__(self, scaler: Transformer, columns: Sequence[int]) -> None:
        self.scaler = scaler
        self.columns = columns

    def fit(self, X: Array, y: object = None) -> ScalerOfColumns:
        """Fit a clone of the scaler on its columns."""
        self.scaler_ = fit_scaler(self.scaler, X[:, self.columns])
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X: Array) -> Floats:
        """Scale the columns."""
        return self._with(self.scaler_.transform(X[:, self.columns]), X)

    def inverse_transform(self, X: Array) -> Floats:
        """The columns in their own units again."""
        return self._with(self.scaler_.inverse_transform(X[:, self.columns]), X)

    def get_feature_names_out(self, input_features: Array | None = None) -> Array | None:
        """The names as they are."""
        return input_features

    def _with(self, columns: npt.ArrayLike, X: Array) -> Floats:
        if np.shape(columns) != (len(X), len(self.columns)):
            raise ValueError(
                f"the scaler of a mixed table must keep its {len(self.columns)} numeric columns; "
                f"{type(self.scaler).__name__} makes {np.shape(columns)[1]} of them."
            )
        result = np.array(X, dtype=np.float64)
        result[:, self.columns] = columns
        return result


def scaler_for(
    likelihood: Likelihood, scaler: str | Transformer | None, of_images: Shape | None = None
) -> Transformer | None:
    """The unfitted transformer that a detector's ``scaler`` means for rows of this likelihood, or None.

    "auto" is a `StandardScaler` where the likelihood is one of real values, and a `PixelScaler` for images
    of this (height, width, channels). Of a mixed table, a scaler acts on the columns of real values.
    """
    if isinstance(scaler, str):
        scaler = None
        if likelihood.standardized:
            scaler = StandardScaler() if of_images is None else PixelScaler(of_images[-1])
    columns = likelihood.columns_to_scale()
    if columns is None or scaler is None:
        return scaler
    return ScalerOfColumns(scaler, columns) if columns else None


def any_infinite(X: Matrix) -> bool:
    """Whether a value is infinite."""
    if X.dtype.kind != "f":
        return False
    return bool(np.isinf(X.data if sparse.issparse(X) else X).any())


def check_finite(X: Matrix, names: Array | None) -> None:
    """Raise a ValueError that names the column and the row of an infinite value."""
    if not any_infinite(X):
        return
    rows, columns = np.isinf(dense(X)).nonzero()
    row, column = rows[0], columns[0]
    raise RowError(
        f"Input X contains infinity: {column_label(column, names)} holds {X[row, column]} in {{row}}. Put "
        "NaN in its place if the value is not known.",
        row,
    )


def check_magnitude(X: Matrix, names: Array | None) -> None:
    """Refuse values whose variance overflows: a scaler would turn their column into zeros, silently."""
    values = X.data if sparse.issparse(X) else X
    if values.dtype != np.float64:  # holds none so large
        return
    # NaN, a missing value, is neither above nor below.
    if (values > _LARGEST).any() or (values < -_LARGEST).any():
        rows, columns = (abs(X) > _LARGEST).nonzero()
        row, column = rows[0], columns[0]
        raise RowError(
            f"{column_label(column, names)} holds {X[row, column]:g} in {{row}}: its square exceeds what "
            "float64 holds. Rescale the column, or take its logarithm.",
            row,
        )


def count_missing(X: Matrix) -> Array:
    """How many values are missing in each column."""
    if sparse.issparse(X):
        return np.bincount(X.indices[np.isnan(X.data)], minlength=X.shape[1])
    return np.asarray(np.isnan(X).sum(axis=0)) if X.dtype.kind == "f" else np.zeros(X.shape[1], dtype=np.intp)


def missing_fractions(n_missing: Array, n_rows: int, names: Array | None) -> Floats:
    """Share of missing values in each column; there is nothing to learn of one without any value.

    Raises
    ------
    ValueError
        If a column holds none; ``names`` are the columns'.
    """
    (empty,) = (n_missing == n_rows).nonzero()
    if len(empty):
        raise ValueError(
            f"{column_label(empty[0], names)} holds no value in any of the {n_rows} training rows, so there "
            "is nothing to learn of it; drop the column."
        )
    return np.asarray(n_missing / n_rows)


def column_names(scaler: Estimator, names: Array | None, n_columns: int) -> Array | None:
    """Names of the ``n_columns`` scaled columns, from those of X: the scaler's own word first.

    A scaler that says nothing and keeps the number of columns is taken to keep their order.
    """
    if names is None or scaler is None:
        return names
    try:
        return np.asarray(scaler.get_feature_names_out(names), dtype=object)
    except (AttributeError, TypeError, ValueError):
        return names if len(names) == n_columns else None


def fit_scaler(scaler: Estimator, X: Matrix) -> Estimator:
    """A clone of the scaler, fitted on X; None stays None."""
    if scaler is None:
        return None
    in_blocks = type(scaler) in (PixelScaler, StandardScaler)
    if in_blocks or (sparse.issparse(X) and hasattr(scaler, "partial_fit")):
        # In blocks: a variance makes copies of what it gets at once, and a sparse table is never dense.
        fit = FitInBlocks(scaler, X.shape[1])
        for start in range(0, X.shape[0], block := block_size(X.shape[1])):
            fit.add(dense(as_numbers(X[start : start + block])))
        return fit.result(X)
    # A transformer of the user's may write into its argument.
    return clone(scaler).fit(as_numbers(X).copy())


class FitInBlocks:
    """The fit of a scaler that has ``partial_fit``, some rows after others."""

    def __init__(self, scaler: Estimator, n_columns: int) -> None:
        self._scaler = clone(scaler)
        self._least, self._greatest = np.full(n_columns, np.inf), np.full(n_columns, -np.inf)

    def add(self, rows: Array) -> None:
        """Learn of some rows."""
        self._scaler.partial_fit(rows)
        self._least = np.fmin(self._least, np.fmin.reduce(rows))
        self._greatest = np.fmax(self._greatest, np.fmax.reduce(rows))

    def result(self, X: Matrix) -> Estimator:
        """The fitted scaler; X are all rows, or such as stand for them."""
        if _standardizes(self._scaler):
            constant = _give_constants_a_unit(self._scaler, self._least, self._greatest)
            if is_wide(X):
                _let_rare_values_count_less(self._scaler, X, constant)
            elif not sparse.issparse(X):
                _give_gross_errors_no_say(self._scaler, X)
        return self._scaler


def fit_channel_scaler(scaler: Estimator, X: Matrix, n_channels: int) -> Estimator:
    """A clone of the scaler for rows of signals; a StandardScaler is the same at all positions of a channel.

    Parameters
    ----------
    scaler : transformer or None
    X : array or CSR matrix of shape (n_rows, length * n_channels)
        The channels of a position next to each other.
    n_channels : int
    """
    n_features = X.shape[1]
    if not scales_channels(scaler, n_features, n_channels):
        return fit_scaler(scaler, X)
    return repeat_channels(fit_scaler(scaler, X.reshape(-1, n_channels)), n_features)


def scales_channels(scaler: Estimator, n_features: int, n_channels: int | None) -> bool:
    """Whether a scaler of signals is the same at all positions; the network names a wrong length."""
    return n_channels is not None and type(scaler) is StandardScaler and not n_features % n_channels


def repeat_channels(fitted: Estimator, n_features: int) -> Estimator:
    """A StandardScaler of channels as one of all positions."""
    n_channels = fitted.n_features_in_
    for name in ("mean_", "scale_", "var_", "n_samples_seen_"):
        value = getattr(fitted, name)
        if np.ndim(value):
            setattr(fitted, name, np.tile(value, n_features // n_channels))
    fitted.n_features_in_ = n_features
    return fitted


def _standardizes(scaler: Estimator) -> bool:
    return type(scaler) is StandardScaler and scaler.with_mean and scaler.with_std


def _give_constants_a_unit(scaler: Estimator, least: Floats, greatest: Floats) -> Flags:
    """Let a third of its value be the unit of a column that does not vary but by rounding; tell which do not.

    `StandardScaler` leaves it the unit that it has: what deviates would depend on whether it is of meters or
    of kilometers. In a much smaller unit, whole numbers that are another one for once would drown all other
    columns; with a Gaussian of the smallest scale, a third off counts 50 nats and a tenth off 4.5.
    """
    size = np.maximum(np.abs(least), np.abs(greatest))
    # Of a column without a value, the least is infinite and the greatest is, below zero.
    constant = (least <= greatest) & (greatest - least <= ROUNDING * size)
    scaler.mean_[constant] = least[constant]
    scaler.scale_[constant] = np.where(size > _SMALLEST_CONSTANT, size / 3, 1.0)[constant]
    return constant


def _give_gross_errors_no_say(scaler: Estimator, X: Matrix, among: Flags | bool = True) -> None:
    """Scale a column by its central values if a few others are so far out that those would become one point.

    A single 1e9 among a thousand values near 1 would leave them all within 1e-7 of each other: nothing of
    that column could be told apart any more, or be an anomaly. The center of such a column is its median, the
    unit a standard deviation that its central 95 % would have in a normal distribution.
    """
    some = dense(X[evenly_spaced(X.shape[0], _ROWS_FOR_QUANTILES)])
    some[:, np.isnan(some).all(axis=0)] = 0.0  # a column without a value has no percentile
    low, middle, high = np.nanpercentile(some, [2.5, 50, 97.5], axis=0)
    spread = (high - low) / _CENTRAL_DEVIATIONS
    drowned = among & (spread > 0) & (scaler.scale_ > _GROSS * spread)
    scaler.mean_[drowned], scaler.scale_[drowned] = middle[drowned], spread[drowned]


def _let_rare_values_count_less(scaler: Estimator, X: Matrix, constant: Flags) -> None:
    """Enlarge the units of a wide table's columns that seldom vary.

    A column of zeros has no unit: it gets the median of the others.
    """
    weights = weigh_columns(X, constant)
    # What a column seldom holds is no gross error.
    _give_gross_errors_no_say(scaler, X, weights > LEAST_WEIGHT)
    scaler.scale_[constant & (scaler.mean_ == 0)] = np.median(scaler.scale_[~constant])
    scaler.scale_ /= weights


def clip_gross_errors(rows: Matrix, scaler: Estimator) -> Matrix:
    """Standardized training rows, far values nearer: gradients stay finite, and far is far all the same."""
    some = isinstance(scaler, ScalerOfColumns)  # the others, such as counts, have units of their own
    if isinstance(rows, np.ndarray) and _standardizes(scaler.scaler_ if some else scaler):
        for column in scaler.columns if some else range(rows.shape[1]):  # no second copy of the table
            np.clip(rows[:, column], -_FARTHEST_TRAINED, _FARTHEST_TRAINED, out=rows[:, column])
    return rows


def scaled_zero(scaler: Estimator, n_columns: int) -> Floats:
    """Where the zero of each column lies among the scaled values; NaN where the scaler does not tell."""
    centers, scales = units_of_columns(scaler, n_columns)
    return -centers / scales


def units_of_columns(scaler: Estimator, n_columns: int) -> tuple[Floats, Floats]:
    """What is subtracted from each column and what it is divided by; NaN where the scaler does not tell."""
    if scaler is None:
        return np.zeros(n_columns), np.ones(n_columns)
    centers, scales = np.full((2, n_columns), np.nan)
    some = isinstance(scaler, ScalerOfColumns)
    fitted, columns = (scaler.scaler_, scaler.columns) if some else (scaler, slice(None))
    if _standardizes(fitted):
        centers[columns], scales[columns] = fitted.mean_, fitted.scale_
    return centers, scales


def scale(X: Matrix, scaler: Estimator, names: Array | None = None) -> Rows:
    """What the model sees: scaled rows, within the range whose squares fit a float32.

    A sparse X becomes an array. Rows are transformed in blocks: a table needs no second copy of itself.

    Raises
    ------
    ValueError
        If the scaler turns finite values into others; ``names`` are those of X's columns.
    """
    block = block_size(X.shape[1])
    first = _scale_block(X, 0, block, scaler, names)
    if X.shape[0] <= block:
        return first
    rows = np.empty((X.shape[0], first.shape[1]), dtype=np.float32)
    rows[:block] = first
    for start in range(block, X.shape[0], block):
        rows[start : start + block] = _scale_block(X, start, block, scaler, names)
    return rows


def _scale_block(X: Matrix, start: int, size: int, scaler: Estimator, names: Array | None) -> Rows:
    given = as_numbers(X[start : start + size])
    block = dense(given)
    rows = block if scaler is None else _transform(given, block, scaler)
    wrong = ~np.isfinite(rows)
    if wrong.any():  # a missing value stays one, or the scaler fills it
        gaps, missing = np.isnan(block), np.isnan(rows)
        if gaps.shape == rows.shape:  # in whatever order the scaler has put the columns
            kept = missing.sum(axis=1, keepdims=True) <= gaps.sum(axis=1, keepdims=True)
        else:
            kept = gaps.any(axis=1, keepdims=True)
        wrong &= ~(missing & kept)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        label = column_label(column, column_names(scaler, names, rows.shape[1]))
        same = rows.shape == block.shape
        held = f" ({{row}} holds {block[row, column]:g})" if same else " in {row}"
        raise RowError(
            f"{type(scaler).__name__} turns {label}{held} into {rows[row, column]}; rescale "
            "or transform the column first, or pass another scaler.",
            start + row,
        )
    within: Rows = np.clip(rows, -FARTHEST, FARTHEST).astype(np.float32, copy=False)
    return within


def _transform(given: Matrix, block: Array, scaler: Estimator) -> Array:
    # The rows have been checked; for one row, checking them again costs a third of the whole score.
    if _standardizes(scaler):
        return np.asarray((block - scaler.mean_) / scaler.scale_)
    if hasattr(scaler, "partial_fit"):  # fitted on dense rows
        given = block
    return dense(scaler.transform(given.copy()))  # some transformers write into their argument


def unscale(rows: Floats, scaler: Estimator) -> Floats:
    """Rows in the units of X.

    Raises
    ------
    TypeError
        If the scaler has no way back.
    """
    if scaler is None:
        return rows
    own = scaler.scaler if isinstance(scaler, ScalerOfColumns) else scaler
    if not hasattr(own, "inverse_transform"):
        raise TypeError(
            f"rows in the units of X need a scaler with inverse_transform; {type(own).__name__} has none."
        )
    return np.asarray(scaler.inverse_transform(rows))
