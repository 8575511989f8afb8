"""Wide tables: hundreds of columns of numbers, such as the features that a network has found in images."""

from __future__ import annotations

from typing import Any

import numpy as np

from vae_anomaly.core.rows import dense, evenly_spaced
from vae_anomaly.core.types import Array, Flags, Floats, Matrix

__all__ = ["LEAST_WEIGHT", "is_wide", "weigh_columns"]

# Below, whitening lost (`benchmarks/results/trials.md`); beyond, its matrices take more than the model.
_COLUMNS, _FEWEST_OF_NUMBERS = (200, 2_048), 100
_ROWS_TO_SEE_VALUES = 1_000
#: Of a column with another value in a tenth of the rows, or fewer. What is hundreds of standard deviations
#: out is an anomaly there, too.
LEAST_WEIGHT = 0.01
_WEIGHT_OF_CONSTANTS = 0.1


def is_wide(X: Any) -> bool:
    """Whether a table has hundreds of columns of numbers: 200 to 2,048, at least 100 of three values or more.

    Models of small networks cannot learn how so many columns hang together. Sparse tables are not called
    wide.
    """
    least, most = _COLUMNS
    if not isinstance(X, np.ndarray) or not least <= X.shape[1] <= most or X.dtype.kind not in "fiu":
        return False
    return int((_count_values(_some(X)) > 2).sum()) >= _FEWEST_OF_NUMBERS


def weigh_columns(X: Matrix, constant: Flags) -> Floats:
    r"""How much one standard deviation of each column of a wide table is to count: shape (n_columns,).

    .. math:: w_j = \max(f_j^2, 0.01)

    if a fraction :math:`f_j` of the rows does not hold the column's most common value. Where a feature is
    zero in most rows, its standard deviation is that of a few; hundreds of such columns, standardized, bring
    more chance than all others tell (`benchmarks/results/trials.md`). A constant column counts a tenth.

    Parameters
    ----------
    X : array of shape (n_rows, n_columns)
        NaN is a missing value.
    constant : bool array of shape (n_columns,)
    """
    some = _some(X)
    weights = np.full(X.shape[1], _WEIGHT_OF_CONSTANTS)
    for column in (~constant).nonzero()[0]:
        values = some[:, column]
        counts = np.unique(values[~np.isnan(values)], return_counts=True)[1]
        # 1 if no value comes twice.
        fraction = (counts.sum() - counts.max()) / (counts.sum() - 1) if counts.sum() > 1 else 1.0
        weights[column] = max(fraction**2, LEAST_WEIGHT)
    return weights


def _some(X: Matrix) -> Array:
    return dense(X[evenly_spaced(X.shape[0], _ROWS_TO_SEE_VALUES)])


def _count_values(rows: Array) -> Array:
    """How many values each column holds."""
    ordered = np.sort(rows, axis=0)
    # NaN, which lies behind all others, is greater than nothing.
    return 1 + np.asarray((ordered[1:] > ordered[:-1]).sum(axis=0))
