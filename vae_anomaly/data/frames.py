"""Frames: tables of polars, pyarrow and others -> DataFrames of pandas, and back.

They are read by narwhals, as in scikit-learn, column by column and without a library in between: what pandas
and the other library call a missing value, a category or a whole number stays one.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from vae_anomaly.core.types import Array, Floats, Unchecked

__all__ = [
    "check_names",
    "find_no_number",
    "is_foreign",
    "like",
    "names_of",
    "rows_at",
    "to_pandas",
    "with_values",
]


def to_pandas(X: Unchecked) -> Unchecked:
    """A table of another library as a DataFrame, a masked array with NaN for what is masked, else X as it is.

    Raises
    ------
    TypeError
        If X is no rows at all but a way to them, rows and labels, a dictionary, an array of records, a table
        that is not in memory, or one that nothing can read.
    """
    if sparse.issparse(X):  # some of which are dictionaries
        return X
    _check_holds_rows(X)
    if isinstance(X, np.ndarray):
        if X.dtype.names is not None:
            raise TypeError(
                f"tables are DataFrames or arrays of numbers; received an array of records with the fields "
                f"{list(X.dtype.names)}. Pass pd.DataFrame(X)."
            )
        if isinstance(X, np.ma.MaskedArray):
            return np.ma.filled(X.astype(np.result_type(X.dtype, np.float32)), np.nan)
        return X
    if not is_foreign(X):
        return X
    nw = _narwhals(X)
    frame = nw.from_native(X, pass_through=True)
    if not isinstance(frame, nw.DataFrame | nw.LazyFrame):
        raise TypeError(
            f"tables are DataFrames of pandas, polars or pyarrow; received {_described(X)}. Pass "
            "X.to_pandas(), or X.to_numpy() for columns of numbers."
        )
    if isinstance(frame, nw.LazyFrame):
        raise TypeError(f"received {_described(X)}, which is not in memory: pass X.collect().")
    columns = {name: _column(frame[name]) for name in frame.columns}
    return pd.DataFrame(columns, index=range(len(frame)))


def _check_holds_rows(X: Unchecked) -> None:
    """Refuse what is given to Keras, or read by others, in the place of rows; say how it becomes rows."""
    kinds = {kind.__name__ for kind in type(X).__mro__}
    if isinstance(X, dict):
        raise TypeError("tables are DataFrames or arrays; received a dict. Pass pd.DataFrame(X).")
    if isinstance(X, (str, bytes, os.PathLike)):
        raise TypeError(
            f"rows are a DataFrame, an array or Parquet files; received the text or path {X!r}. Pass what is "
            "in the file, such as pd.read_csv(path) or pd.read_parquet(path)."
        )
    if isinstance(X, Iterator):
        raise TypeError(
            f"rows are a DataFrame or an array; received an iterator ({type(X).__name__}). Pass "
            "np.concatenate(list(X)) if it gives batches of rows, np.stack(list(X)) if it gives rows."
        )
    if hasattr(X, "__dask_graph__") and hasattr(type(X), "columns"):
        raise TypeError(f"received {_described(X)}, which is not in memory: pass X.compute().")
    if hasattr(X, "get_fragments"):
        raise TypeError(f"received {_described(X)}, which is not in memory: pass X.to_table().")
    if hasattr(X, "as_numpy_iterator"):
        raise TypeError(
            "rows are a DataFrame or an array; received a dataset of TensorFlow. Pass "
            "np.concatenate(list(X.as_numpy_iterator())) if it gives batches of rows, without labels."
        )
    if "PyDataset" in kinds:
        raise TypeError(
            f"rows are a DataFrame or an array; received a dataset of Keras, {type(X).__name__}. Pass "
            "np.concatenate([X[i][0] for i in range(len(X))]) if it gives pairs of rows and labels."
        )
    if _holds_labels(X):
        raise TypeError(
            "rows are a DataFrame or an array; received a tuple of rows and labels, as Keras' load_data "
            "returns. Pass the rows alone."
        )
    if isinstance(X, pd.Series) or (isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1):
        first = X.iloc[0] if isinstance(X, pd.Series) and len(X) else X[0] if len(X) else None
        if isinstance(first, np.ndarray) and (isinstance(X, pd.Series) or first.ndim == 1):
            raise TypeError(
                f"rows are a DataFrame or an array; received a {type(X).__name__} of {len(X)} arrays. Pass "
                "np.stack(X)."
            )


def _holds_labels(X: Unchecked) -> bool:
    """Whether X is a pair of rows and labels, or a pair of such pairs."""
    if not isinstance(X, tuple) or len(X) != 2:
        return False
    first, second = X
    if isinstance(first, tuple) and len(first) == 2 and isinstance(second, tuple):
        return isinstance(first[0], np.ndarray) and first[0].ndim > 1
    is_table = hasattr(first, "iloc") or (isinstance(first, np.ndarray) and first.ndim > 1)
    return is_table and (second is None or getattr(second, "ndim", 2) == 1)


def rows_at(X: Unchecked, positions: Array | slice) -> Unchecked:
    """Some rows of an array or a table, as a DataFrame if it is a table."""
    if isinstance(X, pd.DataFrame):
        return X.iloc[positions]
    if not is_foreign(X):
        return X[positions]
    frame = to_pandas(_narwhals(X).from_native(X)[positions].to_native())
    return frame.set_axis(pd.RangeIndex(X.shape[0])[positions])


def like(given: Unchecked, frame: pd.DataFrame) -> Any:
    """A DataFrame as a table of the library that X is of; X may be a DataFrame itself."""
    if not is_foreign(given):
        return frame
    nw = _narwhals(given)
    backend = nw.get_native_namespace(given)
    columns = {}
    for name, values in frame.items():
        numeric = isinstance(values.dtype, np.dtype) and values.dtype.kind in "biuf"
        columns[name] = values.to_numpy() if numeric else [None if pd.isna(v) else v for v in values]
    return nw.from_dict(columns, backend=backend).to_native()


def with_values(given: Unchecked, values: Floats) -> Any:
    """Numbers of cells as a table like the one given: its library, names and index."""
    if not is_foreign(given):
        return pd.DataFrame(values, columns=given.columns, index=given.index)
    names = _narwhals(given).from_native(given).columns
    return like(given, pd.DataFrame(values, columns=names))


def names_of(X: Unchecked) -> list[str] | None:
    """How columns are known whose names are not all texts, which scikit-learn does not compare; else None.

    Raises
    ------
    ValueError
        If a name appears twice.
    """
    if not isinstance(X, pd.DataFrame):
        return None
    if not X.columns.is_unique:
        raise ValueError(
            f"columns need names of their own; {X.columns[X.columns.duplicated()][0]!r} appears twice."
        )
    return None if all(isinstance(name, str) for name in X.columns) else [repr(name) for name in X.columns]


def check_names(X: Unchecked, expected: list[str] | None) -> None:
    """Refuse a DataFrame whose names, which are not all texts, are not those of `fit` in their order."""
    if expected is None or not isinstance(X, pd.DataFrame):
        return
    received = [repr(name) for name in X.columns]
    if received != expected:
        raise ValueError(
            f"the detector was fitted on the columns {', '.join(expected)}; received the columns "
            f"{', '.join(received)}. Give X the columns of the training rows, in their order."
        )


def find_no_number(X: Unchecked) -> str | None:
    """What a table holds where numbers are wanted: the first such value, with its column and row; else None.

    Or which rows differ in length.
    """
    if not isinstance(X, pd.DataFrame):
        try:
            array = np.array(X, dtype=object)
        except ValueError:  # arrays of different lengths
            return None
        if array.ndim == 1 and len(array) and all(isinstance(row, list | tuple) for row in array):
            lengths = np.array([len(row) for row in array])
            other = int(np.argmax(lengths != lengths[0]))
            return f"row 0 has {lengths[0]} values and row {other} has {lengths[other]}"
        if array.ndim != 2:
            return None
        X = pd.DataFrame(array)
    for position, name in enumerate(X.columns):
        column = X.iloc[:, position]
        if pd.api.types.is_bool_dtype(column) or (
            pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column)
        ):
            continue
        for row, value in enumerate(column):
            if not _is_number(value):
                return f"column {name!r} holds {reprlib.repr(value)} in row {row}, which is not a number"
    return None


def _is_number(value: object) -> bool:
    if value is None or value is pd.NA:
        return True
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return not isinstance(value, np.ndarray | pd.Timestamp | np.datetime64 | np.timedelta64)


def is_foreign(X: Unchecked) -> bool:
    """Whether X is a table of columns of another library than pandas."""
    # Of the class: a table that is not in memory would have to find out its columns.
    return hasattr(type(X), "columns") and not hasattr(X, "iloc")


def _narwhals(X: Unchecked) -> Any:
    try:
        import narwhals
    except ImportError:
        raise TypeError(
            f"received {_described(X)}, which narwhals reads: pip install narwhals (scikit-learn 1.9 brings "
            "it), or pass X.to_pandas()."
        ) from None
    return narwhals


def _column(values: Any) -> Any:
    """A column of narwhals as one of pandas."""
    import narwhals as nw

    dtype, n_missing = values.dtype, values.null_count()
    if isinstance(dtype, nw.Decimal):
        return pd.Series(values.to_list(), dtype=object)
    if dtype.is_integer() and n_missing:
        return pd.array(values.to_list(), dtype="UInt64" if dtype.is_unsigned_integer() else "Int64")
    if dtype.is_numeric():
        return values.to_numpy()
    if dtype == nw.Boolean:
        return pd.array(values.to_list(), dtype="boolean") if n_missing else values.to_numpy()
    if dtype == nw.String:
        return pd.Series(values.to_list(), dtype=object)
    if dtype in (nw.Categorical, nw.Enum):
        return pd.Categorical(values.to_list())
    return pd.Series(values.to_list())


def _described(X: object) -> str:
    return f"a {type(X).__module__.split('.')[0]} {type(X).__name__}"
