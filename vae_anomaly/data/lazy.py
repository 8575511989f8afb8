"""Lazy rows: scaled rows of sparse tables and of bytes, of which one block at a time becomes numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import sparse

from vae_anomaly.core.rows import Rows, any_missing, block_size, dense, evenly_spaced
from vae_anomaly.core.types import Array, Estimator, Matrix
from vae_anomaly.data import scaling
from vae_anomaly.data.cache import CachedRows
from vae_anomaly.data.pixels import as_numbers

__all__ = [
    "LazyRows",
    "blocks",
    "concatenate",
    "fingerprint",
    "has_gaps",
    "representative",
    "rows_of",
    "subset",
]

_ROWS_TO_KNOW = 1_000


class LazyRows:
    """The scaled rows of a CSR table or of images of bytes; an index gives some of them as a float32 array.

    Attributes
    ----------
    X : CSR array or matrix, or uint8 array, of shape (n_rows, n_columns)
    scaler : fitted transformer or None
    names : array of str or None, the columns' names
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(self, X: Matrix, scaler: Estimator, names: Array | None) -> None:
        self.X, self.scaler, self.names = X, scaler, names
        self.shape = (X.shape[0], scaling.scale(X[:1], scaler, names).shape[1])

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, positions: slice | npt.ArrayLike) -> Rows:
        if isinstance(positions, slice):
            return scaling.scale(self.X[positions], self.scaler, self.names)
        positions = np.asarray(positions)
        chosen = scaling.scale(self.X[positions.ravel()], self.scaler, self.names)
        return chosen.reshape(*positions.shape, self.shape[1])


def rows_of(X: Matrix, scaler: Estimator, names: Array | None, lazy: bool = False) -> Rows | LazyRows:
    """The scaled rows of a table or of images: a float32 array, or `LazyRows`.

    Those of a sparse table are always lazy, those of bytes if it is asked for.
    """
    if X.shape[0] and (sparse.issparse(X) or (lazy and X.dtype == np.uint8)):
        return LazyRows(X, scaler, names)
    return scaling.scale(X, scaler, names)


def subset(rows: Matrix, positions: npt.NDArray[np.integer]) -> Matrix:
    """Some rows, as they are: lazy ones stay lazy."""
    if isinstance(rows, LazyRows):
        return LazyRows(rows.X[positions], rows.scaler, rows.names)
    return rows[positions]


def concatenate(rows: Matrix, more: Matrix) -> Matrix:
    """Rows and more rows of the same table."""
    if isinstance(rows, LazyRows):
        parts = [rows.X, more.X]
        joined = sparse.vstack(parts, format="csr") if sparse.issparse(rows.X) else np.concatenate(parts)
        return LazyRows(joined, rows.scaler, rows.names)
    return np.concatenate([rows, more])


def blocks(rows: Rows | LazyRows | CachedRows) -> Iterator[Rows]:
    """The rows as arrays: an array as it is, others in blocks."""
    if isinstance(rows, np.ndarray):
        yield rows
        return
    size = block_size(rows.shape[1])
    for start in range(0, rows.shape[0], size):
        yield rows[start : start + size] if isinstance(rows, LazyRows) else rows.read(start, start + size)


def has_gaps(rows: Rows | LazyRows | CachedRows) -> bool:
    """Whether values are missing."""
    if isinstance(rows, CachedRows):
        return rows.has_gaps
    return any(any_missing(block) for block in blocks(rows))


def fingerprint(X: Matrix) -> str:
    """What rows are known by again: a checksum of how many there are, and of a thousand of them at most."""
    some = evenly_spaced(X.shape[0], _ROWS_TO_KNOW)
    digest, size = hashlib.sha256(repr(X.shape).encode()), block_size(X.shape[1])
    for start in range(0, len(some), size):
        numbers = as_numbers(X[some[start : start + size]])
        digest.update(np.ascontiguousarray(dense(numbers), dtype=np.float64).data)
    return digest.hexdigest()


def representative(rows: Rows | LazyRows | CachedRows) -> Rows:
    """Rows that say what values the columns hold: all of an array, evenly spaced ones of lazy rows."""
    if isinstance(rows, CachedRows):
        rows = rows.some
    if not isinstance(rows, LazyRows):
        return rows
    return rows[evenly_spaced(len(rows), block_size(rows.shape[1]))]
