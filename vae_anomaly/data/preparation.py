"""Preparation: what a fit learns of the rows themselves, before any model, and what it makes of others."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Self

import numpy as np

from vae_anomaly.core.rows import Rows, block_size, counting_from, dense
from vae_anomaly.core.types import (
    Array,
    DtypeOrNone,
    Estimator,
    Flags,
    Floats,
    Matrix,
    Shape,
    Transformer,
    Unchecked,
)
from vae_anomaly.data import frames, scaling
from vae_anomaly.data.lazy import blocks, rows_of
from vae_anomaly.data.patches import Patches
from vae_anomaly.data.pixels import pixels, widen_bytes
from vae_anomaly.data.ranges import ColumnRanges
from vae_anomaly.data.streams import Stream, map_blocks
from vae_anomaly.data.survey import survey
from vae_anomaly.data.tables import Table
from vae_anomaly.likelihoods import Likelihood

__all__ = ["Preparation", "in_form_of"]

# Of images of bytes that become float32 at once, 256 MB. Batches that do when they are trained on take a
# third longer (MNIST, two dense layers).
_MOST_NUMBERS = 2**26


@dataclass(frozen=True, eq=False)
class Preparation:
    """How rows that came through the detector's door become those of a model, and how they come back.

    Attributes
    ----------
    table : Table or None
        How the columns of a mixed table become numbers.
    names : array of str or None, the columns' names
    image_shape : tuple or None
        The shape of an image of the training rows.
    pixel_range : (float, float) or None
        Lowest and highest pixel of the training rows, if they are images, also flat ones.
    scaler : fitted transformer or None
    missing_fractions : float64 array of shape (n_features,), or None if it is not known
    patches : Patches or None
        The squares of an image that the models see; None if they see whole rows.
    ranges : ColumnRanges or None
        What the columns have held in all rows that were trained on, in the units of X; None if it is not
        known.
    """

    table: Table | None
    names: Array | None
    image_shape: Shape | None
    pixel_range: tuple[float, float] | None
    scaler: Estimator
    missing_fractions: Floats | None
    patches: Patches | None = None
    ranges: ColumnRanges | None = None

    @classmethod
    def fit(
        cls,
        X: Matrix,
        stream: Stream | None = None,
        *,
        table: Table | None,
        names: Array | None,
        image_shape: Shape | None,
        of_images: Shape | None,
        patches: Patches | None,
        likelihood: Likelihood,
        scaler: str | Transformer | None,
        n_channels: int | None = None,
    ) -> Self:
        """Learn from the rows that are trained on, or from a stream of all those that they stand for.

        ``image_shape`` is that of images that were handed in, ``of_images`` that of what the network takes
        rows for, ``scaler`` the detector's parameter.

        ``n_channels`` is that of signals: "auto" scales each channel alike at all its positions.

        Raises
        ------
        ValueError
            If a column holds no value, or values whose squares overflow; names it.
        """
        unfitted = scaling.scaler_for(likelihood, scaler, of_images)
        channels = n_channels if of_images is None else of_images[-1]
        if channels is not None and X.shape[1] % channels:  # the network names a wrong length
            channels = None
        learned = survey(
            X,
            stream,
            unfitted,
            names=names,
            likelihood=likelihood,
            of_images=of_images is not None,
            n_channels=channels,
            scales_channels=n_channels is not None and isinstance(scaler, str),
        )
        return cls(
            table,
            names,
            image_shape,
            learned.pixel_range,
            learned.scaler,
            learned.missing_fractions,
            patches,
            learned.ranges,
        )

    def after(self, X: Matrix | Stream) -> Self:
        """The same once these rows, too, have been trained on: what is known of the columns grows."""

        def visit(block: Matrix) -> tuple[Array, ColumnRanges]:
            return scaling.count_missing(block), ColumnRanges.of(block, self.n_channels)

        counts, of_columns = zip(*map_blocks(X, visit, block_size(X.shape[1])), strict=True)
        n_missing, ranges = np.sum(counts, axis=0), reduce(ColumnRanges.merge, of_columns)
        if self.ranges is not None and self.missing_fractions is not None:
            n_missing = n_missing + self.missing_fractions * self.ranges.n_rows
            ranges = self.ranges.merge(ranges)
        return replace(self, ranges=ranges, missing_fractions=n_missing / ranges.n_rows)

    @property
    def n_channels(self) -> int | None:
        """How many channels alternate in a row, if those of pixels or steps have ranges together."""
        if self.ranges is None or self.missing_fractions is None:
            return None
        n_columns = len(self.ranges.least)
        return None if n_columns == len(self.missing_fractions) else n_columns

    def in_units(self, X: Matrix, dtype: DtypeOrNone, likelihood: Likelihood) -> Matrix:
        """New rows in the units of the training rows: bytes become shares of 255 if they were such."""
        if self.pixel_range is None:
            return widen_bytes(X)
        return pixels(X, dtype, likelihood, self.scaler is not None, self.pixel_range)

    def rows(self, X: Matrix) -> Rows:
        """What a model sees of X."""
        return scaling.scale(X, self.scaler, self.names)

    def possible_rows(self, X: Matrix, likelihood: Likelihood) -> tuple[Rows, Flags]:
        """What a model sees of X, with NaN for values that no row can have, and where those were.

        Such are infinite values, and those outside the likelihood's support.

        Raises
        ------
        ValueError
            If the scaler makes an infinite value disappear, as one that fills gaps does.
        """
        if not scaling.any_infinite(X):
            rows = self.rows(X)
            impossible = np.asarray(likelihood.outside_support(rows))
        else:
            X = dense(X)
            infinite = np.isinf(X)
            rows = self.rows(np.where(infinite, np.nan, X))
            # Where a scaler has put a column is seen by what another value changes: one that logarithms,
            # powers and logits take.
            moved = np.isnan(rows) & ~np.isnan(self.rows(np.where(infinite, 0.5, X)))
            if (infinite.any(axis=1) & ~moved.any(axis=1)).any():
                self.check_finite(X)
            impossible = np.asarray(likelihood.outside_support(rows)) | moved
        if impossible.any():
            rows = np.where(impossible, np.float32(np.nan), rows)
        return rows, impossible

    def check_finite(self, X: Matrix) -> None:
        """Raise a ValueError that names the column and the row of an infinite value."""
        scaling.check_finite(X, self.names)

    def training_rows(self, X: Matrix, likelihood: Likelihood) -> Matrix:
        """What a model is trained on, all within the likelihood's support: an array, or `LazyRows`.

        Those are a sparse table's, and those of images of bytes that are many, or of which only patches are
        wanted.
        """
        lazy = self.patches is not None or math.prod(X.shape) > _MOST_NUMBERS
        rows = rows_of(X, self.scaler, self.names, lazy=lazy)
        n_checked = 0
        for block in blocks(rows):
            with counting_from(n_checked):
                self.check_support(block, likelihood)
            n_checked += len(block)
        return scaling.clip_gross_errors(rows, self.scaler)

    def check_support(self, rows: Rows, likelihood: Likelihood) -> None:
        """Raise a ValueError that names the column and the value if scaled rows leave the support."""
        likelihood.check_support(rows, scaling.column_names(self.scaler, self.names, rows.shape[1]))

    def back(self, rows: Floats) -> Floats:
        """Scaled rows in the units of X."""
        return scaling.unscale(rows, self.scaler)

    def expected_back(self, rows: Floats) -> Floats:
        """What is expected of scaled rows, in the units of X, within what the training rows have held.

        A model is no guide beyond: where a member sees the logarithm of a column, what lies a little farther
        out for it is a thousand times as large.
        """
        expected = self.back(rows)
        if self.pixel_range is not None:
            return np.clip(expected, *self.pixel_range)
        return expected if self.ranges is None else self.ranges.clip(expected)

    def in_form_of(self, given: Unchecked, values: Floats) -> Any:
        """Values of cells, in the units of X, in the form of the rows that were given."""
        if self.table is None:
            return in_form_of(given, values)
        if not hasattr(given, "columns"):
            return self.table.frame(values).to_numpy()
        return frames.like(given, self.table.frame(values, getattr(given, "index", None)))

    def in_form_of_training(self, values: Floats) -> Any:
        """New rows, in the units of X: images or patches if models see such, or a mixed table's DataFrame."""
        if self.table is not None:
            return self.table.frame(values)
        if self.image_shape is None:
            return values
        shape = self.image_shape
        if self.patches is not None:
            shape = (self.patches.side, self.patches.side, *shape[2:])
        return values.reshape(len(values), *shape)


def in_form_of(given: Unchecked, values: Floats) -> Any:
    """Numbers of cells as a DataFrame if X is one, otherwise in the shape of X."""
    if hasattr(given, "columns"):
        return frames.with_values(given, values)
    stacked = getattr(given, "ndim", None) == 1 and len(given) > 0  # an array of images
    return values.reshape(np.shape(list(given) if stacked else given))
