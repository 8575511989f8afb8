"""Reading: whatever holds rows -> a checked array or CSR table of numbers, by scikit-learn's rules.

Rows that are not in memory become a `Stream` of such tables.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.utils.random import sample_without_replacement
from sklearn.utils.validation import validate_data

from vae_anomaly.calibration.groups import labels_of
from vae_anomaly.core.progress import ProgressLine
from vae_anomaly.core.types import Array, DtypeOrNone, Estimator, Matrix, MatrixLike, Shape, Unchecked
from vae_anomaly.data import frames
from vae_anomaly.data.images import check_image_shape, flatten, warn_of_channels_first
from vae_anomaly.data.pixels import dtype_of
from vae_anomaly.data.scaling import check_finite
from vae_anomaly.data.sources import memory_source, source_of
from vae_anomaly.data.streams import NUMBERS_AT_ONCE, Positions, Source, Stream, reading
from vae_anomaly.data.tables import table_of

__all__ = ["TrainingRows", "open_rows", "read", "read_groups", "read_stream", "read_training_rows"]


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """What a fit is given.

    Attributes
    ----------
    X : array or CSR table
        The rows that are trained on, held out and judged: all of them, or so many that were drawn by chance.
    image_shape : tuple or None
        The shape of an image if they are images.
    dtype : dtype that they were handed in with, or None
    n_rows : int
        How many rows there are.
    positions : int array or None
        Those of the drawn rows among all, ascending; None if X is all of them.
    stream : Stream or None
        All rows, if X is some of them.
    groups : array of shape (len(X),) or None
        The groups of the rows of X.
    locate : function
        Of the position of a row among all: where it is, for a message.
    """

    X: Matrix
    image_shape: Shape | None
    dtype: DtypeOrNone
    n_rows: int
    positions: Positions | None = None
    stream: Stream | None = None
    groups: Array | None = None
    locate: Callable[[int], str] = "row {}".format


def open_rows(X: Unchecked) -> Unchecked:
    """X itself if its rows are in memory, otherwise a `Source`."""
    source = source_of(X)
    return X if source is None else source


def read_training_rows(
    detector: Estimator,
    X: Unchecked,
    shape_of_images: Shape | None,
    *,
    reset: bool,
    n_at_most: int | None,
    seed: Callable[[], int],
    verbose: bool = False,
) -> TrainingRows:
    """The rows to train on, of which no more than ``n_at_most`` are ever in memory if they are a `Source`.

    Of more rows, so many are drawn without replacement, each with the same probability.

    Parameters
    ----------
    detector, reset, shape_of_images : as in `read`
    X : rows as in `read`, or a `Source`
    n_at_most : int or None
        None is all.
    seed : function that gives the seed of the draw
        It is asked only if there is one.
    verbose : bool, default=False
        Whether a line shows how many of the stream's rows have been read.

    Raises
    ------
    ValueError, TypeError
        As by `read`.
    """
    source = X if isinstance(X, Source) else memory_source(X)
    if source is None or n_at_most is None or source.n_rows <= n_at_most:
        locate = X.locate if isinstance(X, Source) else TrainingRows.locate
        with contextlib.ExitStack() as stack:
            if isinstance(X, Source):
                stack.enter_context(reading(X, range(X.n_rows)))
                X = X.read()
            rows, image_shape, dtype = read(detector, X, reset, shape_of_images=shape_of_images)
        return TrainingRows(rows, image_shape, dtype, rows.shape[0], locate=locate)
    positions = np.sort(sample_without_replacement(source.n_rows, n_at_most, random_state=seed()))
    with reading(source, positions):
        drawn, image_shape, dtype = read(detector, source.take(positions), reset, source, shape_of_images)
    names = getattr(detector, "feature_names_in_", None)
    n_read, progress = 0, ProgressLine(source.n_rows, "read", verbose)

    def numbers(rows: Unchecked) -> Matrix:
        nonlocal n_read, progress
        if n_read in (0, source.n_rows):  # a pass begins
            n_read, progress = 0, ProgressLine(source.n_rows, "read", verbose)
            progress.show(0)
        block, _, _ = read(detector, rows, reset=False, shape_of_images=image_shape)
        check_finite(block, names)
        n_read += block.shape[0]
        progress.show(n_read)
        return block

    stream = Stream(source, numbers, drawn.shape[1])
    return TrainingRows(drawn, image_shape, dtype, source.n_rows, positions, stream, locate=source.locate)


def read_stream(X: Unchecked, numbers: Callable[[Unchecked], Matrix], n_features: int) -> Matrix | Stream:
    """What a function makes of X, or of the blocks of X if its rows are not in memory."""
    source = source_of(X)
    return numbers(X) if source is None else Stream(source, numbers, n_features)


def read(
    detector: Estimator,
    X: MatrixLike,
    reset: bool,
    source: Source | None = None,
    shape_of_images: Shape | None = None,
) -> tuple[Matrix, Shape | None, DtypeOrNone]:
    """X as a 2-D array, the shape of an image if it held images, and the dtype that it had.

    The array is of floating-point numbers; images of bytes stay such.

    Parameters
    ----------
    detector : VAEDetector
        Knows what rows must be like, or with ``reset`` learns it from X: their number of columns, names and
        types (``n_features_in_``, ``feature_names_in_``, ``table_``).
    X : array, DataFrame, CSR table or images
    reset : bool
    source : Source or None
        All rows, if X is some of them and the detector learns from it.
    shape_of_images : tuple or None
        The shape of the images that the detector knows, if it learns nothing.

    Raises
    ------
    ValueError, TypeError
        For rows that cannot be read, or that are not like the detector's.
    """
    X = frames.to_pandas(X)
    received = getattr(X, "shape", None)
    if reset:
        detector._column_names = frames.names_of(X)
    else:
        frames.check_names(X, getattr(detector, "_column_names", None))
    X, image_shape = flatten(X)
    dtype = dtype_of(X)
    if reset:
        warn_of_channels_first(image_shape)
        detector.table_ = table_of(X, detector.likelihood, source) if image_shape is None else None
    if detector.table_ is not None:
        X = detector.table_.numbers(X)
    if not reset:
        check_image_shape(received, image_shape, shape_of_images)
    try:
        numbers = validate_data(
            detector,
            X,
            accept_sparse="csr",
            reset=reset,
            # A copy of bytes in float64 is eight times as large.
            dtype=[np.float64, np.float32, *([] if image_shape is None else [np.uint8])],
            ensure_all_finite=False,  # NaN is a missing value, and an infinite one is named by its column
            ensure_min_samples=2 if reset else 1,
        )
    except (TypeError, ValueError) as error:
        _name_no_number(X, None if reset else getattr(detector, "feature_names_in_", None), error)
        raise
    if reset:
        check_finite(numbers, getattr(detector, "feature_names_in_", None))
    return numbers, image_shape, dtype


def _name_no_number(X: Matrix, expected: Array | None, error: TypeError | ValueError) -> None:
    """Raise the error again with what X holds that is not a number, if its columns are those expected."""
    if isinstance(X, pd.DataFrame) and expected is not None and [*X.columns] != [*expected]:
        return
    found = frames.find_no_number(X)
    if found is not None:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        reason = str(error).partition("\n")[0].rstrip(".")
        raise kind(f"{found}: {reason}.") from error


def read_groups(X: MatrixLike, groups: npt.ArrayLike | str | None) -> Array:
    """The group of each row: an array of labels, or the column of a DataFrame that holds them.

    Raises
    ------
    ValueError
        If there is no such column, if labels are missing, or if they are not one for each row.
    """
    if groups is None:
        raise ValueError("groups must be one label for each row of X; received None.")
    source = source_of(X)
    rows = frames.to_pandas(X) if source is None else source
    if isinstance(groups, str):
        groups = _column_of_groups(rows, groups)
    labels = labels_of(groups)
    n_rows = _count(rows)
    if len(labels) != n_rows:
        raise ValueError(
            f"groups must be one label for each of the {n_rows:,} rows; received {len(labels):,}."
        )
    return labels


def _count(rows: Unchecked) -> int:
    if isinstance(rows, Source):
        return rows.n_rows
    return int(rows.shape[0]) if hasattr(rows, "shape") else len(rows)


def _column_of_groups(rows: Unchecked, name: str) -> pd.Series:
    is_source = isinstance(rows, Source)
    if name not in ((rows.names or ()) if is_source else getattr(rows, "columns", ())):
        raise ValueError(
            f"groups={name!r} names a column, and X has none of this name: pass the name of a column "
            "of a DataFrame, or an array with a label for each row."
        )
    blocks = rows.blocks(NUMBERS_AT_ONCE, columns=[name]) if is_source else [rows]
    column: pd.Series = pd.concat([block[name] for block in blocks])
    return column
