"""Rows: float32 arrays of shape (n_rows, n_features), in which NaN is a missing value."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from scipy import sparse

from vae_anomaly.core.types import Array, Matrix, Shape, Unchecked

__all__ = [
    "RowError",
    "Rows",
    "any_missing",
    "array_of",
    "block_size",
    "column_label",
    "counting_from",
    "dense",
    "evenly_spaced",
    "locating",
    "usual_range",
    "with_channels",
]

Rows = npt.NDArray[np.float32]

_NUMBERS_AT_ONCE = 2**21


class RowError(ValueError):
    """An error in one row, whose message has a place for where the row is.

    Attributes
    ----------
    template : str
        The message, with ``{row}`` in the place of "row 3".
    row : int
        The row's position among those that were looked at.
    where : str or None
        The row's address; None until somebody knows it, who has read the rows.
    """

    def __init__(self, template: str, row: int) -> None:
        super().__init__(template, row)
        self.template, self.row = template, int(row)
        self.where: str | None = None

    def __str__(self) -> str:
        return self.template.replace("{row}", self.where or f"row {self.row}", 1)


@contextlib.contextmanager
def counting_from(start: int) -> Iterator[None]:
    """An error in a row counts from here: the rows that are looked at are later ones of many."""
    try:
        yield
    except RowError as error:
        error.row += start
        raise


@contextlib.contextmanager
def locating(locate: Callable[[int], str], positions: Array | range) -> Iterator[None]:
    """An error in a row at one of these positions names its place, unless that is known."""
    try:
        yield
    except RowError as error:
        if error.where is None:
            error.where = locate(int(positions[error.row]))
        raise


_OUTERMOST = 0.005
_TAIL_WIDTHS = 10
_COLUMNS_AT_ONCE = 64


def array_of(X: Unchecked) -> Matrix:
    """Rows or images as they were handed in, as an array or a CSR matrix, whose rows can be taken."""
    if sparse.issparse(X):
        return X.tocsr()
    if isinstance(X, (list, tuple)) and len(X) and np.ndim(X[0]) < 2:
        # numpy would turn lists of strings and numbers into strings.
        return np.asarray(X, dtype=object)
    return np.asarray(X)


def dense(X: Unchecked) -> Array:
    """X as an array, if it is sparse."""
    return np.asarray(X.toarray() if sparse.issparse(X) else X)


def evenly_spaced(n_rows: int, at_most: int) -> Array:
    """Positions of at most so many of the rows, evenly spaced from the first to the last."""
    return np.linspace(0, n_rows - 1, min(n_rows, at_most)).astype(int)


def block_size(numbers_of_row: int) -> int:
    """How many rows to work on at once: those of two million numbers, 16 MB in float64, or one.

    ``numbers_of_row`` are all that a row becomes.
    """
    return max(1, _NUMBERS_AT_ONCE // int(numbers_of_row))


def any_missing(rows: Array) -> bool:
    """Whether an array holds NaN, found without an array of answers."""
    return rows.size > 0 and bool(np.isnan(rows.min()))


def usual_range(rows: Rows) -> Rows:
    """Smallest and largest usual value of each column, shape (2, n_columns).

    The range that holds all but the outermost 0.5 % of the values at either end (and at least one value),
    ten times as much on both sides, and nothing beyond the smallest and the largest value: heavy tails lie
    within, gross errors do not. A column that is constant but for so few values keeps its whole range.
    Missing values, NaN, do not count; a column that holds nothing else has the range [0, 0].
    """
    # A few columns at a time: quantiles copy what they are taken of.
    parts = [
        _usual_range(rows[:, start : start + _COLUMNS_AT_ONCE])
        for start in range(0, rows.shape[1], _COLUMNS_AT_ONCE)
    ]
    return np.concatenate(parts, axis=1)


def _usual_range(rows: Rows) -> Rows:
    missing = np.isnan(rows)
    if missing.any():
        filled = [column[~gaps] for column, gaps in zip(rows.T, missing.T, strict=True)]
        ranges = [
            _usual_range(column[:, None] if len(column) else np.zeros((1, 1), dtype=np.float32))
            for column in filled
        ]
        return np.concatenate(ranges, axis=1)
    ends = np.stack([rows.min(axis=0), rows.max(axis=0)])
    low = np.quantile(rows, _OUTERMOST, axis=0, method="higher")
    high = np.quantile(rows, 1 - _OUTERMOST, axis=0, method="lower")
    margin = _TAIL_WIDTHS * (high - low)
    usual = np.clip(np.stack([low - margin, high + margin]), *ends)
    return np.where(low < high, usual, ends).astype(np.float32)


def column_label(column: int, names: npt.ArrayLike | None) -> str:
    """What a message calls the column at this position."""
    return f"column {column if names is None else repr(np.asarray(names, dtype=object)[column])}"


def with_channels(image_shape: Shape) -> Shape:
    """(height, width, channels): gray images may leave their one channel out."""
    return tuple(image_shape) if len(image_shape) == 3 else (*image_shape, 1)
