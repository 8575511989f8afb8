"""Cache: scaled rows in a temporary file, of which any piece is read at any time."""

from __future__ import annotations

import copy
import math
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

import numpy as np

from vae_anomaly.core.rows import Rows, any_missing
from vae_anomaly.data.streams import Positions

__all__ = ["CachedRows"]

# Bytes that others may write meanwhile.
_MARGIN = 2**26


class CachedRows:
    """Float32 rows in a temporary file, which the system removes with the process at the latest.

    Attributes
    ----------
    shape : (n_rows, n_features)
        Of the rows in the file.
    has_gaps : bool
        Whether values are missing.
    some : array of shape (n_some, n_features)
        Rows that stand for all.
    """

    def __init__(self, n_rows: int, some: Rows, positions: Positions) -> None:
        """A file for so many rows, which are yet to be written.

        ``positions`` are those of ``some`` of them.

        Raises
        ------
        OSError
            If they do not fit in the temporary folder.
        """
        self.shape, self.some, self.has_gaps = (n_rows, some.shape[1]), some, False
        self._positions: Positions = positions
        self._left_out: Positions = positions[:0]
        self._functions: tuple[Callable[[Rows], Rows], ...] = ()
        self._lock, folder = threading.Lock(), tempfile.gettempdir()
        needed, free = math.prod(self.shape) * some.itemsize, shutil.disk_usage(folder).free
        if needed + _MARGIN > free:
            raise OSError(
                f"to train on all {n_rows:,} rows takes a temporary file of {needed / 1e9:.2f} GB, and the "
                f"folder {folder!r} has {free / 1e9:.2f} GB left: set the environment variable TMPDIR to a "
                "folder with more space, or max_samples to a number of rows to draw."
            )
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, closed by __exit__

    def write(self, blocks: Iterable[Rows]) -> None:
        """Write all rows, in their order."""
        for block in blocks:
            self.has_gaps = self.has_gaps or any_missing(block)
            self._file.write(np.ascontiguousarray(block, dtype=np.float32).data)

    def leave_out(self, chosen: Positions) -> CachedRows:
        """The same file without the rows at these positions among ``some``."""
        others = copy.copy(self)
        others._left_out = np.sort(self._positions[chosen])
        others.some = np.delete(self.some, chosen, axis=0)
        return others

    def followed_by(self, function: Callable[[Rows], Rows]) -> CachedRows:
        """The same file with a function of each row in its place."""
        others = copy.copy(self)
        others._functions, others.some = (*self._functions, function), function(self.some)
        return others

    def __len__(self) -> int:
        return self.shape[0] - len(self._left_out)

    def read(self, start: int, stop: int) -> Rows:
        """The rows from one position in the file to another, but for those that are left out."""
        stop, n_features = min(stop, self.shape[0]), self.shape[1]
        rows = np.empty((stop - start, n_features), dtype=np.float32)
        with self._lock:
            self._file.seek(start * n_features * rows.itemsize)
            self._file.readinto(rows.data)
        low, high = np.searchsorted(self._left_out, (start, stop))
        if low < high:
            rows = np.delete(rows, self._left_out[low:high] - start, axis=0)
        for function in self._functions:
            rows = function(rows)
        return rows

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
