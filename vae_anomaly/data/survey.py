"""Survey: what one visit of all training rows learns of their columns, a block at a time."""

from __future__ import annotations

import math
from functools import reduce
from typing import NamedTuple, Protocol

import numpy as np

from vae_anomaly.core.rows import block_size, dense
from vae_anomaly.core.types import Array, Estimator, Floats, Matrix
from vae_anomaly.data import scaling
from vae_anomaly.data.pixels import as_numbers, pixel_range
from vae_anomaly.data.ranges import ColumnRanges
from vae_anomaly.data.scaling import FitInBlocks, ScalerOfColumns
from vae_anomaly.data.streams import Stream, map_blocks
from vae_anomaly.likelihoods import Likelihood

__all__ = ["Survey", "survey"]


class Survey(NamedTuple):
    """What training rows say of their columns.

    Attributes
    ----------
    missing_fractions : float64 array of shape (n_features,)
    pixel_range : (float, float) or None
        Lowest and highest value of images.
    scaler : fitted transformer or None
    ranges : ColumnRanges
    """

    missing_fractions: Floats
    pixel_range: tuple[float, float] | None
    scaler: Estimator
    ranges: ColumnRanges


def survey(
    X: Matrix,
    stream: Stream | None,
    scaler: Estimator,
    *,
    names: Array | None,
    likelihood: Likelihood,
    of_images: bool,
    n_channels: int | None,
    scales_channels: bool,
) -> Survey:
    """Visit all rows once.

    Parameters
    ----------
    X : array or CSR table
        All rows, or those of the stream that were drawn to be trained on.
    stream : Stream or None
        All rows, if X is some of them. A scaler with ``partial_fit`` learns of them all, another one of X.
        Their values are checked as those that are trained on, unless a scaler stands between them and the
        likelihood.
    scaler : unfitted transformer or None
    names : the columns'
    likelihood : Likelihood
    of_images : bool
    n_channels : int or None
        That alternate in a row of a signal or an image; each has one range.
    scales_channels : bool
        Whether each is scaled alike at all positions.

    Raises
    ------
    ValueError
        If a column holds no value, or values whose squares overflow or that the likelihood does not allow.
    """
    scaled = n_channels if scales_channels else None
    fit = None if stream is None else _begin(scaler, X.shape[1], scaled)
    # Behind a scaler, what the likelihood allows cannot be told before it has been fitted.
    columns = scaler.columns if isinstance(scaler, ScalerOfColumns) else None

    def visit(block: Matrix) -> tuple[Array, tuple[float, float] | None, ColumnRanges]:
        scaling.check_magnitude(block, names)
        if fit is not None:
            fit.add(dense(as_numbers(block)))
            if scaler is None or columns is not None:
                rows = scaling.scale(block, None)
                rows[:, columns or []] = np.nan
                likelihood.check_support(rows, names)
        ends = pixel_range(block) if of_images else None
        return scaling.count_missing(block), ends, ColumnRanges.of(block, n_channels)

    everything = X if stream is None else stream
    n_rows = everything.shape[0]
    n_blocks = math.ceil(n_rows / block_size(X.shape[1]))
    # Of equal size: some transformers want more rows at a time than a rest would have.
    size = math.ceil(n_rows / n_blocks)
    counts, of_pixels, of_columns = zip(*map_blocks(everything, visit, size), strict=True)
    n_missing, ranges = np.sum(counts, axis=0), reduce(ColumnRanges.merge, of_columns)
    fractions = scaling.missing_fractions(n_missing, n_rows, names)
    likelihood.check_columns(X.shape[1])
    ends = None
    if of_images:
        low, high = np.transpose(of_pixels)
        ends = float(np.fmin.reduce(low)), float(np.fmax.reduce(high))
    if fit is not None:
        fitted = fit.result(X)
    elif scaled is not None:
        fitted = scaling.fit_channel_scaler(scaler, X, scaled)
    else:
        fitted = scaling.fit_scaler(scaler, X)
    return Survey(fractions, ends, fitted, ranges)


class _Fit(Protocol):
    def add(self, rows: Array, /) -> None: ...

    def result(self, X: Matrix, /) -> Estimator: ...


def _begin(scaler: Estimator, n_features: int, n_channels: int | None) -> _Fit:
    """The fit of a scaler on rows that come one block after another."""
    if isinstance(scaler, ScalerOfColumns):
        return _OfColumns(scaler, n_features)
    if n_channels is not None and scaling.scales_channels(scaler, n_features, n_channels):
        return _OfChannels(scaler, n_channels)
    return FitInBlocks(scaler, n_features) if hasattr(scaler, "partial_fit") else _OfSome(scaler)


class _OfSome:
    """The fit of a scaler that wants its rows at once: of rows that stand for all."""

    def __init__(self, scaler: Estimator) -> None:
        self._scaler = scaler

    def add(self, rows: Array) -> None:
        pass

    def result(self, X: Matrix) -> Estimator:
        return scaling.fit_scaler(self._scaler, X)


class _OfColumns:
    def __init__(self, scaler: ScalerOfColumns, n_features: int) -> None:
        self._scaler, self._n_features = ScalerOfColumns(scaler.scaler, scaler.columns), n_features
        self._fit = _begin(scaler.scaler, len(scaler.columns), None)

    def add(self, rows: Array) -> None:
        self._fit.add(rows[:, self._scaler.columns])

    def result(self, X: Matrix) -> Estimator:
        self._scaler.scaler_ = self._fit.result(X[:, self._scaler.columns])
        self._scaler.n_features_in_ = self._n_features
        return self._scaler


class _OfChannels:
    def __init__(self, scaler: Estimator, n_channels: int) -> None:
        self._fit, self._n_channels = FitInBlocks(scaler, n_channels), n_channels

    def add(self, rows: Array) -> None:
        self._fit.add(rows.reshape(-1, self._n_channels))

    def result(self, X: Matrix) -> Estimator:
        fitted = self._fit.result(X.reshape(-1, self._n_channels))
        return scaling.repeat_channels(fitted, X.shape[1])
