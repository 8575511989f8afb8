"""Tables: DataFrames whose columns are of any kind -> one number for each cell, and back.

A table that a likelihood of its own is wanted for in some column becomes numbers here: numbers stay, texts
that write numbers are read, booleans are 0 and 1, a category is its position among those of the training
rows (their number stands for any other), and a missing value, None or NaN or NA, is NaN. A column that the
model leaves out is 0 in every row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api import types
from pandas.api.extensions import ExtensionDtype
from scipy import sparse

from vae_anomaly import likelihoods
from vae_anomaly.core.conventions import warn_user
from vae_anomaly.core.rows import array_of
from vae_anomaly.core.types import Floats, Unchecked, Values
from vae_anomaly.data.recognition import (
    IGNORED,
    is_number,
    kind_of,
    kinds_of,
    numbers_of_texts,
    recognize,
    serial_numbers,
)
from vae_anomaly.data.streams import NUMBERS_AT_ONCE, Source
from vae_anomaly.likelihoods import Bernoulli, Categorical, Count, Gaussian, Likelihood, LikelihoodLike, Mixed

__all__ = ["Column", "Table", "table_of"]


class Column(NamedTuple):
    """How one column becomes numbers.

    Attributes
    ----------
    name : hashable
    likelihood : Likelihood, or None if the model leaves the column out
    dtype : numpy or pandas dtype in the training rows
    categories : pandas.Index of the training rows' values, for a categorical column, else None
    """

    name: Hashable
    likelihood: Likelihood | None
    dtype: np.dtype[Any] | ExtensionDtype
    categories: pd.Index | None

    @property
    def taken_as(self) -> str:
        """The name of the likelihood, or "ignored"."""
        return IGNORED if self.likelihood is None else str(self.likelihood.name)

    def numbers(self, values: pd.Series) -> Floats:
        """One number for each value; NaN where it is missing."""
        if self.likelihood is None:
            return np.zeros(len(values))
        if self.categories is None:
            return _as_numbers(values, self)
        missing = values.isna().to_numpy()
        self._check_kinds(values[~missing], self.categories)
        if isinstance(values.dtype, pd.CategoricalDtype):
            known = self.categories.get_indexer(pd.Index(values.cat.categories, dtype=object))
            codes = np.append(known, -1)[values.cat.codes].astype(np.float64)
        else:
            codes = self.categories.get_indexer(pd.Index(values, dtype=object)).astype(np.float64)
        unseen = (codes < 0) & ~missing
        if unseen.any() and getattr(self.likelihood, "unseen", "score") == "raise":
            raise ValueError(
                f"column {self.name!r} holds {values[unseen].iloc[0]!r} in row "
                f"{values[unseen].index.to_list()[0]!r}, which is not among the categories of the training "
                "rows; Categorical(unseen='score') scores it."
            )
        return np.where(missing, np.nan, np.where(unseen, len(self.categories), codes))

    def values(self, numbers: Floats) -> pd.Series:
        """What the numbers stand for, in the column's own dtype where it can hold them."""
        if self.categories is not None:
            known = numbers < len(self.categories)
            chosen = np.full(len(numbers), None, dtype=object)
            chosen[known] = self.categories.to_numpy()[numbers[known].astype(int)]
            gaps = not known.all() and self.dtype.kind in "biu"
            return pd.Series(chosen) if gaps else pd.Series(chosen).astype(self.dtype)
        missing = np.isnan(numbers)
        if self.likelihood is None:
            return pd.Series(np.full(len(numbers), None, dtype=object))
        are_objects = types.is_object_dtype(self.dtype)
        if types.is_bool_dtype(self.dtype) or (are_objects and isinstance(self.likelihood, Bernoulli)):
            decided: Any = pd.array(numbers > 0.5, dtype="boolean")
        elif isinstance(self.likelihood, Count) or types.is_integer_dtype(self.dtype):
            decided = pd.array(np.nan_to_num(numbers).round().astype(np.int64), dtype="Int64")
        else:
            floats = types.is_float_dtype(self.dtype)
            return pd.Series(numbers).astype(self.dtype if floats else np.float64)
        decided[missing] = pd.NA
        if isinstance(self.dtype, pd.CategoricalDtype) or are_objects:
            return pd.Series(decided.astype(object)).astype(self.dtype)
        fits = not missing.any() and (decided.astype(self.dtype) == decided).all()
        return pd.Series(decided.astype(self.dtype) if fits else decided)

    def _check_kinds(self, values: pd.Series, categories: pd.Index) -> None:
        known = {kind_of(category) for category in categories}
        if kinds_of(values) <= known:
            return
        for row, value in values.items():
            if kind_of(value) not in known:
                raise ValueError(
                    f"column {self.name!r} was fitted on categories such as {categories[0]!r} "
                    f"({kind_of(categories[0])}); received {value!r} ({kind_of(value)}) in row {row!r}. "
                    "Convert the column to the type it had, for example with astype."
                )


@dataclass(frozen=True, eq=False)
class Table:
    """How the columns of a table become numbers; made by `table_of`.

    Attributes
    ----------
    columns : tuple of Column
    named : bool
        Whether the training rows had names; those of an array's columns are their positions.
    """

    columns: tuple[Column, ...]
    named: bool

    # Copies and pickles hold no objects of pandas, which skops cannot store and other releases may not read.
    def __getstate__(self) -> Values:
        columns = [
            (name, likelihood, _plain(dtype), None if categories is None else list(categories))
            for name, likelihood, dtype, categories in self.columns
        ]
        return {"columns": columns, "named": self.named}

    def __setstate__(self, state: Values) -> None:
        columns = tuple(
            Column(
                name,
                likelihood,
                _dtype(dtype),
                None if categories is None else pd.Index(categories, dtype=object),
            )
            for name, likelihood, dtype, categories in state["columns"]
        )
        vars(self).update(columns=columns, named=state["named"])

    @property
    def likelihood(self) -> Mixed:
        """Each column's own, equal ones together; none of columns that are left out."""
        parts: dict[Hashable, tuple[Likelihood, list[int]]] = {}
        for position, column in enumerate(self.columns):
            if column.likelihood is not None:
                key = column.likelihood.architecture_key()
                parts.setdefault(key, (column.likelihood, []))[1].append(position)
        ignored = tuple(i for i, column in enumerate(self.columns) if column.likelihood is None)
        return Mixed([(likelihood, tuple(positions)) for likelihood, positions in parts.values()], ignored)

    @property
    def ignored(self) -> list[Hashable]:
        """Names of the columns that the model leaves out."""
        return [column.name for column in self.columns if column.likelihood is None]

    def numbers(self, X: Unchecked) -> Unchecked:
        """The cells as float64, a DataFrame if X is one; zeros if X has other columns."""
        names = [column.name for column in self.columns]
        if sparse.issparse(X):
            raise TypeError(
                "the detector was fitted on a table with columns of several kinds; received a sparse matrix. "
                "Pass a DataFrame or an array."
            )
        if isinstance(X, pd.Series):
            raise ValueError(
                "received one row as a Series; pass a table with this row, X.iloc[[position]] of the table."
            )
        if not hasattr(X, "columns"):
            X = array_of(X)
            if X.ndim != 2 or X.shape[1] != len(names):
                return np.zeros(X.shape)
            return self.numbers(pd.DataFrame(X, columns=names).infer_objects()).to_numpy()
        if not self.named and X.shape[1] == len(names):
            X = X.set_axis(names, axis=1)
        if list(X.columns) != names:
            if not all(isinstance(name, str) for name in names):  # which scikit-learn does not compare
                raise ValueError(
                    f"the detector was fitted on the columns {names}; received the columns "
                    f"{list(X.columns)}. Give X the columns of the training rows, in their order."
                )
            return pd.DataFrame(np.zeros(X.shape), columns=X.columns)  # scikit-learn says what is wrong
        numbers = {column.name: column.numbers(X[column.name]) for column in self.columns}
        return pd.DataFrame(numbers, index=X.index)

    def frame(self, numbers: Floats, index: pd.Index | None = None) -> pd.DataFrame:
        """The table that numbers stand for."""
        by_column = {
            column.name: column.values(values) for column, values in zip(self.columns, numbers.T, strict=True)
        }
        frame = pd.DataFrame(by_column)
        return frame if index is None else frame.set_index(index)


def table_of(X: Unchecked, likelihood: LikelihoodLike, source: Source | None = None) -> Table | None:
    """How the columns of X become numbers; None for rows of numbers that share one likelihood.

    Parameters
    ----------
    X : array or DataFrame of shape (n_rows, n_columns)
    likelihood : "auto", name, Likelihood, dict or list
        "mixed" takes the columns for what they hold, see `recognition.recognize`: Bernoulli for booleans,
        Categorical for strings, categories and whole numbers with a ceiling, Count for others that are never
        negative and mostly below 10, Gaussian for other numbers; identifiers are left out. So does "auto"
        for a DataFrame with columns that are not numbers; of one of numbers alone it leaves running numbers
        out. "categorical" is for all columns. A dict gives likelihoods of columns by their names (positions,
        if X is an array), a list holds pairs of a likelihood and the columns that have it, and "ignored"
        leaves columns out; others are taken for what they hold.
    source : Source or None
        All rows, if X is some of them, drawn by chance: categories are those that any row holds.

    Warns
    -----
    UserWarning
        Of columns that are not what they look like: numbers as text, identifiers.

    Raises
    ------
    ValueError, TypeError
        If a likelihood is unknown or does not suit its column, or if a column cannot be understood; the
        message names it.
    """
    chosen: dict[Hashable, str | Likelihood] = {}
    n_rows = None if source is None else source.n_rows
    stands_for = 1.0 if source is None else source.n_rows / X.shape[0]
    if isinstance(likelihood, str) and likelihood == "auto":
        if not hasattr(X, "columns"):
            return None
        if all(is_number(values) for _, values in X.items()):
            others = [name for name, values in X.items() if not serial_numbers(values, name, stands_for)]
            if len(others) == X.shape[1]:
                return None
            chosen = dict.fromkeys(others, Gaussian.name)
    elif isinstance(likelihood, dict):
        chosen = likelihood
    elif isinstance(likelihood, (list, tuple)):
        chosen = dict(_pairs(likelihood))
    elif isinstance(likelihood, Categorical) or likelihood == Categorical.name:
        columns = X.columns if hasattr(X, "columns") else range(np.shape(X)[-1] if np.ndim(X) == 2 else 0)
        chosen = dict.fromkeys(columns, likelihood)
    elif likelihood != Mixed.name:
        return None
    if np.ndim(X) != 2:
        return None
    if sparse.issparse(X):
        raise TypeError(
            f"the columns of a sparse table have one likelihood; received likelihood={likelihood!r}. Pass a "
            "DataFrame, or the likelihood of all columns."
        )
    named = hasattr(X, "columns")
    if not named:
        X = pd.DataFrame(array_of(X)).infer_objects()
    unknown = [name for name in chosen if name not in X.columns]
    if unknown:
        raise ValueError(f"likelihood names column {unknown[0]!r}, but X has the columns {list(X.columns)}.")
    reasons: dict[str, list[Hashable]] = {}
    chosen = dict(chosen)
    for name in X.columns:
        if chosen.get(name, "auto") == "auto":
            _check_values(X[name], name)
            chosen[name], reason = recognize(X[name], name, n_rows)
            if reason is not None:
                reasons.setdefault(reason, []).append(name)
    table = Table(tuple(_column(X[name], name, chosen[name]) for name in X.columns), named)
    if len(table.ignored) == len(table.columns):
        raise ValueError(
            f"every column is left out, {table.ignored}: nothing is left to learn from. Give X other "
            f"columns, or choose what these are, for example likelihood={{{table.ignored[0]!r}: 'gaussian'}}."
        )
    for reason, names in reasons.items():
        columns = f"column{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}"
        warn_user(f"{columns}: {reason.format(first=names[0])}", UserWarning)
    return table if source is None else _with_all_categories(table, source)


def _with_all_categories(table: Table, source: Source) -> Table:
    """The table with the categories that any row of the source holds."""
    names = [column.name for column in table.columns if column.categories is not None]
    if not names:
        return table
    found: dict[Hashable, set[Hashable]] = {name: set() for name in names}
    for block in source.blocks(max(1, NUMBERS_AT_ONCE // len(names)), columns=names):
        frame = block if hasattr(block, "columns") else pd.DataFrame(block, columns=names).infer_objects()
        for name in names:
            found[name].update(pd.Series(frame[name].dropna().unique()).astype(object))

    def complete(column: Column) -> Column:
        if column.likelihood is None or column.categories is None:
            return column
        values = pd.Series([*found[column.name]], dtype=object)
        _, likelihood, _, categories = _column(values, column.name, column.likelihood)
        dtype = column.dtype
        assert categories is not None
        if isinstance(dtype, pd.CategoricalDtype) and not categories.isin(dtype.categories).all():
            dtype = pd.CategoricalDtype(categories.infer_objects(), dtype.ordered)
        return Column(column.name, likelihood, dtype, categories)

    return Table(tuple(map(complete, table.columns)), table.named)


def _pairs(likelihood: Sequence[Any]) -> Iterator[tuple[Hashable, str | Likelihood]]:
    for pair in likelihood:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(
                "a list of likelihoods holds pairs (likelihood, columns), such as ('categorical', ['city']); "
                f"received {pair!r}."
            )
        its_likelihood, columns = pair
        for name in columns if isinstance(columns, (list, tuple, pd.Index, np.ndarray)) else [columns]:
            yield name, its_likelihood


def _column(values: pd.Series, name: Hashable, likelihood: str | Likelihood) -> Column:
    if isinstance(likelihood, str) and likelihood == IGNORED:
        return Column(name, None, values.dtype, None)
    _check_values(values, name)
    if isinstance(likelihood, str) and likelihood not in likelihoods.LIKELIHOODS:
        raise ValueError(
            f"column {name!r}: likelihood must be one of {['auto', IGNORED, *likelihoods.LIKELIHOODS]} or a "
            f"Likelihood; received {likelihood!r}."
        )
    if not isinstance(likelihood, (str, Likelihood)):
        raise TypeError(
            f"column {name!r}: likelihood must be a name or a Likelihood; received {likelihood!r}."
        )
    likelihood = likelihoods.resolve(likelihood).snapshot()
    if isinstance(likelihood, Mixed):
        raise ValueError(f"column {name!r}: 'mixed' is for whole tables; choose a likelihood for the column.")
    likelihood._validate_params()
    if not isinstance(likelihood, Categorical):
        return Column(name, likelihood, values.dtype, None)
    values = values.dropna()
    if len(kinds_of(values)) > 1:
        kinds = {kind_of(value): value for value in values}
        examples = " and ".join(f"{value!r} ({kind})" for kind, value in sorted(kinds.items()))
        raise ValueError(
            f"column {name!r} holds values of several types, {examples}; convert it to one of them."
        )
    try:
        categories = pd.Index(sorted(set(values.astype(object))), dtype=object)
    except TypeError:
        raise TypeError(
            f"column {name!r} holds values such as {values.iloc[0]!r} ({kind_of(values.iloc[0])}), which "
            "cannot be compared and sorted; turn them into strings or numbers (arrays into columns: "
            "np.stack), or drop the column."
        ) from None
    return Column(name, likelihood.set_params(n_categories=len(categories)), values.dtype, categories)


def _check_values(values: pd.Series, name: Hashable) -> None:
    if values.isna().all():
        raise ValueError(
            f"column {name!r} holds no value in any of the {len(values)} training rows, so there is nothing "
            "to learn of it; drop the column."
        )


def _plain(dtype: np.dtype[Any] | ExtensionDtype) -> Any:
    """A dtype as its name, if that says all; categories with theirs."""
    if isinstance(dtype, pd.CategoricalDtype):
        categories = None if dtype.categories is None else list(dtype.categories)
        its_dtype = None if dtype.categories is None else _plain(dtype.categories.dtype)
        return {"categories": categories, "dtype": its_dtype, "ordered": dtype.ordered}
    with contextlib.suppress(TypeError):  # a name that nobody has registered
        if types.pandas_dtype(str(dtype)) == dtype:
            return str(dtype)
    return dtype


def _dtype(plain: Any) -> Any:
    """The dtype that `_plain` was made of."""
    if not isinstance(plain, dict):
        return types.pandas_dtype(plain)
    categories = plain["categories"]
    if categories is not None:
        categories = pd.Index(categories, dtype=_dtype(plain["dtype"]))
    return pd.CategoricalDtype(categories, plain["ordered"])


def _is_number(value: object, column: Column) -> bool:
    """Whether a column that holds texts of numbers, or none, takes this value."""
    with contextlib.suppress(TypeError, ValueError):
        float(value)  # type: ignore[arg-type]
        return True
    are_texts = types.is_object_dtype(column.dtype) or types.is_string_dtype(column.dtype)
    return are_texts and numbers_of_texts(pd.Series([value], dtype=object)) is not None


def _as_numbers(values: pd.Series, column: Column) -> Floats:
    name, likelihood = column.name, column.likelihood
    assert likelihood is not None
    dtype = values.dtype.categories.dtype if isinstance(values.dtype, pd.CategoricalDtype) else values.dtype
    if dtype.kind in "mMc":
        value = values.dropna()
        raise TypeError(
            f"column {name!r} holds {value.iloc[0]!r} in row {value.index.to_list()[0]!r}, but likelihood "
            f"{likelihood.name!r} needs numbers; convert the column, or choose likelihood='categorical' for "
            "it."
        )
    if types.is_object_dtype(column.dtype) or types.is_string_dtype(column.dtype):
        written = numbers_of_texts(values)
        if written is not None:
            return written
    try:
        return values.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        for row, value in values.dropna().items():
            if not _is_number(value, column):
                raise ValueError(
                    f"column {name!r} holds {value!r} in row {row!r}, but likelihood {likelihood.name!r} "
                    "needs numbers; convert the column, or choose likelihood='categorical' for it."
                ) from None
        raise
