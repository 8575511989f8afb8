"""Partitions: rows of dask's DataFrames and arrays, and answers that are as lazy as they are.

dask is imported by whoever makes such a collection: nothing here imports it before.
"""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals
from sklearn.utils.validation import _check_feature_names, check_is_fitted

from vae_anomaly.core.backend import limit_threads
from vae_anomaly.core.types import Estimator, Unchecked, Values
from vae_anomaly.data.streams import Columns, Positions, Sequential, Source, choose

__all__ = ["is_partitioned", "on_partitions", "source_of"]

_Method = TypeVar("_Method", bound=Callable[..., Any])
# Detectors that a process keeps, with what they have compiled.
_DETECTORS_AT_ONCE = 4


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


# -- answers that are as lazy -------------------------------------------------------------------------------
def on_partitions(dtype: type) -> Callable[[_Method], _Method]:
    """Let a method that says a number of each row take collections of dask, and answer by one of them.

    Of a DataFrame of dask the answer is a Series with its index and divisions, of an array a vector with its
    chunks; nothing is computed. In each process, the detector is unpacked once for all partitions.
    """

    def decorate(method: _Method) -> _Method:
        @functools.wraps(method)
        def answer(self: Any, X: Unchecked, *args: Any, **kwargs: Any) -> Any:
            if not is_partitioned(X):
                return method(self, X, *args, **kwargs)
            check_is_fitted(self)
            _check_groups(args, kwargs)
            return _lazily(self, X, _Question(method.__name__, args, kwargs, np.dtype(dtype)))

        return cast(_Method, answer)

    return decorate


class _Question(NamedTuple):
    """What is asked of a detector about the rows of each partition."""

    method: str
    args: tuple[Any, ...]
    kwargs: Values
    dtype: np.dtype[Any]


def _check_groups(args: tuple[Any, ...], kwargs: Values) -> None:
    for groups in (*args, *kwargs.values()):
        if groups is not None and not isinstance(groups, str):
            raise TypeError(
                "groups of a collection of dask are the name of one of its columns; received "
                f"{type(groups).__name__}."
            )


def _lazily(detector: Estimator, X: Any, question: _Question) -> Any:
    import cloudpickle
    from dask.delayed import delayed

    # One task holds the detector's state, and all others refer to it.
    state = delayed(cloudpickle.dumps(detector), pure=True)
    if hasattr(X, "columns"):
        _check_feature_names(detector, X._meta, reset=False)
        meta = pd.Series([], dtype=question.dtype, name=question.method, index=X._meta.index)
        return X.map_partitions(_of_frame, state, question, meta=meta)
    columns = list(range(1, X.ndim))
    return X.rechunk(dict.fromkeys(columns, -1)).map_blocks(
        _of_array, state=state, question=question, dtype=question.dtype, drop_axis=columns
    )


def _of_frame(frame: pd.DataFrame, state: bytes, question: _Question) -> pd.Series:
    return pd.Series(_of_array(frame, state, question), index=frame.index, name=question.method)


def _of_array(rows: Any, state: bytes, question: _Question) -> Any:
    if not len(rows):  # of a partition that a filter has emptied
        return np.zeros(0, dtype=question.dtype)
    return getattr(_unpack(state), question.method)(rows, *question.args, **question.kwargs)


@functools.lru_cache(_DETECTORS_AT_ONCE)
def _unpack(state: bytes) -> Estimator:
    """A detector, once for all partitions that this process is given."""
    if "distributed" in sys.modules:
        from distributed import get_worker

        try:
            worker = get_worker()
        except ValueError:  # the process is no worker
            pass
        else:
            limit_threads(worker.state.nthreads)
    return pickle.loads(state)
