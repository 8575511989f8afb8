r"""Ranges: what each column has held in the rows that were trained on, and which new rows lie outside.

A few new values beyond the largest so far are no news: of n earlier rows and m new ones of the same kind, the
k largest are all new ones with the probability

.. math:: \prod_{i=0}^{k-1} \frac{m - i}{n + m - i},

whatever their distribution, without ties. Where that is improbable, or a value lies beyond the range by more
than its width, the column has left its range.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Self

import numpy as np
from scipy.special import gammaln

from vae_anomaly.core.rows import block_size, dense
from vae_anomaly.core.types import Array, Flags, Floats, Matrix
from vae_anomaly.data.pixels import as_numbers
from vae_anomaly.data.scaling import ROUNDING

__all__ = ["FALSE_ALARM_RATE", "ColumnRanges", "Outside"]

#: With this probability at most, rows of the earlier ones' kind are said to lie outside, over all columns.
FALSE_ALARM_RATE = 1e-3


@dataclass(frozen=True, eq=False)
class Outside:
    """How new rows lie outside what their columns have held, by column.

    Attributes
    ----------
    n_below, n_above : int arrays of shape (n_columns,)
        Rows below the least earlier value and above the greatest one; 0 unless there are too many of them for
        chance, or one of them is too far out.
    n_missing : int array of shape (n_columns,)
        Rows without a value in columns that had one in every earlier row; 0 in the others.
    new : ColumnRanges
        Those of the new rows.
    """

    n_below: Array
    n_above: Array
    n_missing: Array
    new: ColumnRanges

    @property
    def columns(self) -> Flags:
        """Which columns have left what they held."""
        return (self.n_below > 0) | (self.n_above > 0) | (self.n_missing > 0)


@dataclass(frozen=True, eq=False)
class ColumnRanges:
    """What values each column has held; of images and signals, each channel.

    Attributes
    ----------
    least, greatest : float64 arrays of shape (n_columns,)
        Infinite, the least above the greatest, where there was no value.
    n_present, n_missing : float64 arrays of shape (n_columns,)
        Rows with a value, and rows with a gap: those of channels may have both.
    n_rows : float
    """

    least: Floats
    greatest: Floats
    n_present: Floats
    n_missing: Floats
    n_rows: float

    @classmethod
    def of(cls, X: Matrix, n_channels: int | None = None) -> Self:
        """Those of the rows of X; with ``n_channels``, of the channels that alternate in them."""
        n_columns = X.shape[1] if n_channels is None else n_channels
        least, greatest = np.full(n_columns, np.inf), np.full(n_columns, -np.inf)
        n_present, n_missing = np.zeros(n_columns), np.zeros(n_columns)
        for low, high, gaps in _by_row(X, n_channels):
            least, greatest = np.fmin(least, np.fmin.reduce(low)), np.fmax(greatest, np.fmax.reduce(high))
            n_present += (~np.isnan(low)).sum(axis=0)
            n_missing += gaps.sum(axis=0)
        return cls(least, greatest, n_present, n_missing, float(X.shape[0]))

    @classmethod
    def restore(cls, numbers: Floats) -> Self:
        """What `numbers` has made an array of."""
        least, greatest, n_present, n_missing, n_rows = numbers
        return cls(least, greatest, n_present, n_missing, float(n_rows[0]))

    @property
    def numbers(self) -> Floats:
        """All in one array of shape (5, n_columns)."""
        return np.stack(np.broadcast_arrays(*astuple(self)))

    def clip(self, rows: Floats) -> Floats:
        """Rows of the same columns, of shape (n_rows, n_features), with each value inside of the ranges."""
        known = self.least <= self.greatest
        ends = np.where(known, self.least, -np.inf), np.where(known, self.greatest, np.inf)
        least, greatest = (np.resize(end, rows.shape[1]) for end in ends)  # channels alternate
        return np.clip(rows, least, greatest)

    def merge(self, other: ColumnRanges) -> ColumnRanges:
        """Those of both parts of the rows together."""
        return ColumnRanges(
            np.minimum(self.least, other.least),
            np.maximum(self.greatest, other.greatest),
            self.n_present + other.n_present,
            self.n_missing + other.n_missing,
            self.n_rows + other.n_rows,
        )

    def outside(self, X: Matrix, n_channels: int | None = None) -> Outside:
        """How the rows of X lie outside of these ranges."""
        new, n_columns = ColumnRanges.of(X, n_channels), len(self.least)
        n_below, n_above = np.zeros(n_columns, dtype=int), np.zeros(n_columns, dtype=int)
        for low, high, _ in _by_row(X, n_channels):
            n_below += (low < self.least).sum(axis=0)
            n_above += (high > self.greatest).sum(axis=0)
        known = self.n_present > 0
        size = np.maximum(np.abs(self.least), np.abs(self.greatest), where=known, out=np.zeros(n_columns))
        width = np.subtract(self.greatest, self.least, where=known, out=np.zeros(n_columns))
        far = np.maximum(width, ROUNDING * size)
        rate = np.log(FALSE_ALARM_RATE / (2 * n_columns))
        for n_beyond, distance in (
            (n_below, self.least - new.least),
            (n_above, new.greatest - self.greatest),
        ):
            by_chance = _log_probability(n_beyond, new.n_present, self.n_present) > rate
            n_beyond[~known | (by_chance & (distance <= far))] = 0
        first_missing = np.where(known & (self.n_missing == 0), new.n_missing, 0).astype(int)
        return Outside(n_below, n_above, first_missing, new)


def _by_row(X: Matrix, n_channels: int | None) -> Iterator[tuple[Floats, Floats, Flags]]:
    """Of blocks of rows, each column's least and greatest value, NaN if there is none, and its gaps."""
    size = block_size(X.shape[1])
    for start in range(0, X.shape[0], size):
        values = dense(as_numbers(X[start : start + size]))
        if n_channels is None:
            yield values, values, np.asarray(np.isnan(values))
        else:
            values = values.reshape(len(values), -1, n_channels)
            gaps = np.asarray(np.isnan(values).any(axis=1))
            yield np.fmin.reduce(values, axis=1), np.fmax.reduce(values, axis=1), gaps


def _log_probability(n_beyond: Array, n_new: Floats, n_earlier: Floats) -> Floats:
    """Of so many of the new values, or more, beyond all earlier ones, if all are of one kind."""
    k = np.minimum(n_beyond, n_new)
    return np.asarray(
        gammaln(n_new + 1)
        - gammaln(n_new - k + 1)
        + gammaln(n_earlier + n_new - k + 1)
        - gammaln(n_earlier + n_new + 1)
    )
