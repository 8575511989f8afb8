"""Partitions: rows of dask's DataFrames and arrays, and answers that are as lazy as they are.

dask is imported by whoever makes such a collection: nothing here imports it before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from vae_anomaly.core.types import Unchecked
from vae_anomaly.data.streams import Columns, Positions, Sequential, Source, choose

__all__ = ["is_partitioned", "source_of"]


def is_partitioned(X: Unchecked) -> bool:
    """Whether X is a DataFrame or an array of dask."""
    kind = type(X)
    return kind.__module__.split(".")[0] == "dask" and (hasattr(kind, "columns") or hasattr(kind, "chunks"))


def source_of(X: Unchecked) -> Source | None:
    """The source of a DataFrame or an array of dask; None for anything else."""
    if not is_partitioned(X):
        return None
    return _Frame(X) if hasattr(X, "columns") else _Array(X)


class _Frame(Sequential):
    """Rows of a DataFrame of dask, which are computed a partition at a time."""

    def __init__(self, X: Any) -> None:
        self._X, self.n_rows = X, len(X)
        self.names = list(X.columns)

    def pieces(self, start: int, columns: Columns) -> Iterator[Any]:
        X = self._X if columns is None else self._X[list(columns)]
        n_before = 0
        for position in range(X.npartitions):
            frame = X.partitions[position].compute()
            yield frame.iloc[max(0, start - n_before) :]
            n_before += len(frame)

    def rows_at(self, piece: Any, positions: Positions | slice) -> Any:
        return piece.iloc[positions]

    def rows(self, pieces: list[Any], start: int) -> pd.DataFrame:
        return concatenate_frames(pieces) if pieces else self._X._meta


class _Array(Sequential):
    """Rows of an array of dask, which are computed a chunk at a time."""

    def __init__(self, X: Any) -> None:
        if any(np.isnan(X.chunks[0])):
            X = X.compute_chunk_sizes()
        self._X, self.n_rows = X, int(X.shape[0])

    def pieces(self, start: int, columns: Columns) -> Iterator[Any]:
        n_before = 0
        for position, n_rows in enumerate(self._X.chunks[0]):
            if n_before + n_rows > start:
                chunk = np.asarray(self._X.blocks[position].compute())
                yield choose(chunk[max(0, start - n_before) :], columns)
            n_before += n_rows

    def rows_at(self, piece: Any, positions: Positions | slice) -> Any:
        return piece[positions]

    def rows(self, pieces: list[Any], start: int) -> Any:
        return np.concatenate(pieces) if pieces else np.empty(self._X.shape, dtype=self._X.dtype)


def concatenate_frames(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """DataFrames one after another; categories stay such where each has others."""
    if len(frames) == 1:
        return frames[0]
    joined = pd.concat(frames)
    for position, dtype in enumerate(frames[0].dtypes):
        if isinstance(dtype, pd.CategoricalDtype):
            parts = [frame.iloc[:, position] for frame in frames]
            joined.isetitem(position, union_categoricals(parts, ignore_order=False))
    return joined
