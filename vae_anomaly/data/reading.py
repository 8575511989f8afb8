"""Reading: whatever holds rows -> a checked array or CSR table of numbers, by scikit-learn's rules."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import validate_data

from vae_anomaly.calibration.groups import labels_of
from vae_anomaly.core.types import Array, DtypeOrNone, Estimator, Matrix, MatrixLike, Shape
from vae_anomaly.data import frames
from vae_anomaly.data.images import check_image_shape, flatten, warn_of_channels_first
from vae_anomaly.data.pixels import dtype_of
from vae_anomaly.data.scaling import check_finite
from vae_anomaly.data.tables import table_of

__all__ = ["read", "read_groups"]


def read(detector: Estimator, X: MatrixLike, reset: bool) -> tuple[Matrix, Shape | None, DtypeOrNone]:
    """X as a 2-D array, the shape of an image if it held images, and the dtype that it had.

    The array is of floating-point numbers; images of bytes stay such.

    Parameters
    ----------
    detector : VAEDetector
        Knows what rows must be like, or with ``reset`` learns it from X: their number of columns, names and
        types (``n_features_in_``, ``feature_names_in_``, ``table_``).
    X : array, DataFrame, CSR table or images
    reset : bool

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
        detector.table_ = table_of(X, detector.likelihood) if image_shape is None else None
    if detector.table_ is not None:
        X = detector.table_.numbers(X)
    if not reset:
        check_image_shape(received, image_shape, detector._shape_of_images)
    bytes_stay = [] if image_shape is None else [np.uint8]  # a copy in float64 is eight times as large
    X = validate_data(
        detector,
        X,
        accept_sparse="csr",
        reset=reset,
        dtype=[np.float64, np.float32, *bytes_stay],
        ensure_all_finite=False,  # NaN is a missing value, and an infinite one is named by its column
        ensure_min_samples=2 if reset else 1,
    )
    if reset:
        check_finite(X, getattr(detector, "feature_names_in_", None))
    return X, image_shape, dtype


def read_groups(X: MatrixLike, groups: npt.ArrayLike | str | None) -> Array:
    """The group of each row: an array of labels, or the column of a DataFrame that holds them.

    Raises
    ------
    ValueError
        If there is no such column, if labels are missing, or if they are not one for each row.
    """
    table = frames.to_pandas(X)
    if groups is None:
        raise ValueError("groups must be one label for each row of X; received None.")
    if isinstance(groups, str):
        if groups not in getattr(table, "columns", []):
            raise ValueError(
                f"groups={groups!r} names a column, and X has none of this name: pass the name of a column "
                "of a DataFrame, or an array with a label for each row."
            )
        groups = table[groups]
    labels, n_rows = labels_of(groups), table.shape[0] if hasattr(table, "shape") else len(table)
    if len(labels) != n_rows:
        raise ValueError(
            f"groups must be one label for each of the {n_rows:,} rows; received {len(labels):,}."
        )
    return labels
