"""Sources: whatever holds rows outside memory, as rows that are read a block at a time.

Here is decided what is one; nothing above knows where rows come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral

import numpy as np
import pandas as pd
from scipy import sparse

from vae_anomaly.core.rows import array_of
from vae_anomaly.core.types import Array, Unchecked
from vae_anomaly.data import frames, parquet, partitions
from vae_anomaly.data.streams import NUMBERS_AT_ONCE, Columns, Positions, Source, choose, starts_of

__all__ = ["memory_source", "source_of"]


def source_of(X: Unchecked) -> Source | None:
    """X as a source, if its rows are not in memory, or if it is one; else None.

    Raises
    ------
    ImportError
        If the library that reads X is not installed; says which extra to install.
    ValueError, OSError
        If X cannot be read; names the file.
    """
    if isinstance(X, Source):
        return X
    for open_source in (parquet.source_of, partitions.source_of):
        source: Source | None = open_source(X)
        if source is not None:
            return source
    is_on_disk = isinstance(X, np.memmap) or not (
        isinstance(X, (np.ndarray, np.generic, pd.DataFrame, pd.Series)) or sparse.issparse(X)
    )
    if is_on_disk and _is_array(X):
        return _OnDisk(X)
    return None


def memory_source(X: Unchecked) -> Source | None:
    """Rows in memory as a source; None for what has no rows that can be sliced, such as a list of images."""
    if sparse.issparse(X):
        return _InMemory(X.tocsr())
    if isinstance(X, list) and len(X) and _is_row(X[0]):
        return _InList(X)
    is_table = isinstance(X, pd.DataFrame) or (frames.is_foreign(X) and hasattr(X, "shape"))
    if is_table or (isinstance(X, np.ndarray) and X.ndim > 1):
        return _InMemory(X)
    return None


def _is_row(X: Unchecked) -> bool:
    """Whether an element of a list is a row, and no image."""
    if isinstance(X, (list, tuple)):
        return len(X) > 0 and np.isscalar(X[0])
    return getattr(X, "ndim", None) == 1


def _is_array(X: Unchecked) -> bool:
    """Whether X has a shape, a dtype and slices of rows, and is no table of columns."""
    if hasattr(type(X), "columns") or not hasattr(X, "dtype") or not hasattr(X, "__getitem__"):
        return False
    shape = getattr(X, "shape", None)
    return isinstance(shape, tuple) and len(shape) > 1 and all(isinstance(n, Integral) for n in shape)


class _InMemory(Source):
    """Rows of an array, a CSR table or a table of columns in memory."""

    def __init__(self, X: Unchecked) -> None:
        self._X, self.n_rows = X, X.shape[0] if hasattr(X, "shape") else len(X)

    def blocks(self, size: int, *, start: int = 0, columns: Columns = None) -> Iterator[Unchecked]:
        for first in starts_of(start, self.n_rows, size):
            yield choose(self._slice(first, min(first + size, self.n_rows)), columns)

    def take(self, positions: Positions) -> Unchecked:
        return frames.rows_at(self._X, positions)

    def _slice(self, start: int, stop: int) -> Unchecked:
        return frames.rows_at(self._X, slice(start, stop))


class _InList(_InMemory):
    """Rows that are lists or vectors themselves."""

    def take(self, positions: Positions) -> Array:
        return np.asarray(array_of([self._X[position] for position in positions]))

    def _slice(self, start: int, stop: int) -> Array:
        return np.asarray(array_of(self._X[start:stop]))


class _OnDisk(_InMemory):
    """Rows of an object with a shape whose slices are arrays: np.memmap, datasets of h5py, arrays of zarr."""

    def take(self, positions: Positions) -> Array:
        # By slices alone, which are what such objects have in common.
        size = max(1, NUMBERS_AT_ONCE // max(1, int(np.prod(self._X.shape[1:]))))
        parts = []
        for start in range(0, self.n_rows, size):
            low, high = np.searchsorted(positions, (start, start + size))
            if low < high:
                parts.append(self._slice(start, start + size)[positions[low:high] - start])
        return np.concatenate(parts)

    def _slice(self, start: int, stop: int) -> Array:
        return np.asarray(self._X[start:stop])
