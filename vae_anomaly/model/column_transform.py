r"""Columns transformed inside a model: skewed ones near normal, or correlated ones uncorrelated.

A model whose columns are transformed by Yeo & Johnson (2000) sees, and explains, in the place of a cell x

.. math:: t(x) = \frac{y_\lambda\left(\frac{x - a}{b}\right) - c}{s}, \qquad
    y_\lambda(u) = \begin{cases}
        ((1 + u)^\lambda - 1) / \lambda & u \ge 0 \\ -((1 - u)^{2 - \lambda} - 1) / (2 - \lambda) & u < 0
    \end{cases}

(logarithms where an exponent is 0) and answers in the units of x. The numbers are found once, before the
training. I.-K. Yeo & R. A. Johnson, "A new family of power transformations to improve normality or symmetry",
Biometrika 87.

A model whose columns are whitened sees, in the place of a row t,

.. math:: y = \Sigma^{-1/2} t

with the covariance matrix of its training rows, shrunk as by Ledoit & Wolf (2004), so that it has an inverse
where there are more columns than rows. The symmetric root leaves each column as near to itself as whitening
can, so that what y_j adds to a squared distance is column j's share of it.
O. Ledoit & M. Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of
Multivariate Analysis 88; P. H. Garthwaite & I. Koch (2016), "Evaluating the contributions of individual
variables to a quadratic form", Australian & New Zealand Journal of Statistics 58.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from vae_anomaly.core.backend import keras
from vae_anomaly.core.rows import Rows, evenly_spaced
from vae_anomaly.core.types import Floats, Tensor
from vae_anomaly.likelihoods import Likelihood, Parameters

__all__ = [
    "N_NUMBERS",
    "TransformedColumns",
    "fit_column_transform",
    "fit_whitening",
    "inverse_transform",
    "is_whitening",
    "log_derivative",
    "n_numbers",
    "no_transform",
    "transform",
]

#: Numbers of a column: whether it is transformed, lambda, a, b, c, s. Where columns are whitened, its
#: share of the log-determinant follows, then the matrix and its inverse.
N_NUMBERS = 6
# Beyond, one side has a limit, and the farthest value is as near as others.
_POWERS = (0.0, 2.0)
# Of the median: a small unit makes a power a logarithm, but for values near zero.
_UNITS = (1.0, 0.1, 0.01)
# Nats a row.
_WORTH_A_TRANSFORM, _WORTH_ANOTHER_UNIT = 0.1, 0.01
# A power is as good of some rows as of many.
_NUMBERS_TO_FIT, _ROWS_TO_FIT = 400_000, (500, 2_000)
_NUMBERS_TO_WHITEN = 8_000_000
# So far a transformed value may lie out: squares stay finite.
_FARTHEST = 1e15
# Of the largest: a matrix of float32 and its inverse know no smaller ones.
_LEAST_VARIANCE = 1e-8
_ONE_DEVIATION = stats.norm.cdf(1.0)
# Below, a power and a logarithm are the same in float32.
_NO_POWER = 1e-4
# e to it is a float32, and so is its product with the units of far columns.
_LARGEST_EXPONENT = 40.0
_LEAST_FACTOR = 1e-6


def n_numbers(n_features: int, whitens: bool) -> int:
    """How many numbers a transform has for each of so many columns."""
    return N_NUMBERS + (1 + 2 * n_features if whitens else 0)


def no_transform(n_features: int, whitens: bool = False) -> npt.NDArray[np.float32]:
    """The transform that leaves all columns as they are: shape (n_numbers, n_features)."""
    by_column = np.array([[0.0], [1.0], [0.0], [1.0], [0.0], [1.0]], dtype=np.float32)
    numbers = np.repeat(by_column, n_features, axis=1)
    if not whitens:
        return numbers
    nothing, identity = np.zeros((1, n_features), np.float32), np.eye(n_features, dtype=np.float32)
    return np.concatenate([numbers, nothing, identity, identity])


def is_whitening(numbers: Rows) -> bool:
    """Whether a transform whitens columns; one that holds the identity does not."""
    return len(numbers) > N_NUMBERS and bool(numbers[N_NUMBERS].any())  # its log-determinant is 0


def fit_whitening(rows: Rows) -> npt.NDArray[np.float32]:
    """The transform that whitens the columns of these rows: shape (7 + 2 n_features, n_features).

    The covariance matrix is that of at most eight million of their numbers, in which a missing value is 0, as
    it is to `transform`. A column of one value is divided by the median of the standard deviations that the
    others have in the directions of that matrix.

    Parameters
    ----------
    rows : float32 array of shape (n_rows, n_features)
    """
    n_features = rows.shape[1]
    some = rows[evenly_spaced(len(rows), max(2, _NUMBERS_TO_WHITEN // n_features))]
    some = np.nan_to_num(some.astype(float))
    varies = some.std(axis=0) > 0
    numbers = no_transform(n_features, whitens=True)
    if varies.sum() < 2:
        return numbers
    # It loads scikit-learn's linear models.
    from sklearn.covariance import ledoit_wolf

    variances, directions = np.linalg.eigh(ledoit_wolf(some[:, varies])[0])
    scales = np.sqrt(np.maximum(variances, _LEAST_VARIANCE * variances[-1]))
    usual = np.median(scales)
    matrix, inverse = np.eye(n_features) / usual, np.eye(n_features) * usual
    matrix[np.ix_(varies, varies)] = (directions / scales) @ directions.T
    inverse[np.ix_(varies, varies)] = (directions * scales) @ directions.T
    total = np.log(scales).sum() + (~varies).sum() * np.log(usual)
    log_determinant = np.full((1, n_features), -total / n_features)
    numbers[N_NUMBERS:] = np.concatenate([log_determinant, matrix, inverse])
    return numbers


def fit_column_transform(
    rows: Rows, columns: npt.ArrayLike, zero: npt.ArrayLike | None = None
) -> npt.NDArray[np.float32]:
    """The transform that makes skewed columns most like a normal distribution: shape (6, n_features).

    Power and unit b are by maximum likelihood, of at most 2,000 rows: the power in [0, 2], so that no side is
    more than a logarithm and what is far stays far; b the median above a, or a tenth or a hundredth of it if
    that is better by a hundredth of a nat a row. A column is measured from its zero if no value is below, as
    of amounts and durations, else from its smallest value a. Then c and s are mean and standard deviation. So
    the outcome does not depend on the column's unit. A column that the best power makes less than a tenth of
    a nat a row more like a normal one stays as it is.

    Parameters
    ----------
    rows : float32 array of shape (n_rows, n_features)
        NaN is a missing value.
    columns : array of int
        Those to transform, if it is worth it; columns with fewer than three values stay as they are.
    zero : array of shape (n_features,) or None, default=None
        Where the zero of each column lies among the scaled values; NaN if that is not known.
    """
    found = no_transform(rows.shape[1])
    n_rows = int(np.clip(_NUMBERS_TO_FIT // max(1, rows.shape[1]), *_ROWS_TO_FIT))
    some = rows[evenly_spaced(len(rows), n_rows)].astype(float)
    for column in np.asarray(columns, dtype=int):
        values = some[np.isfinite(some[:, column]), column]
        if len(np.unique(values)) > 2:
            of_column = _fit_column(values, np.nan if zero is None else float(np.asarray(zero)[column]))
            if of_column is not None:
                found[:, column] = of_column
    return found


def _fit_column(values: Floats, zero: float) -> Floats | None:
    """The numbers of a column's transform, None if it has none that can be computed with."""
    least = values.min()
    a = zero if zero <= least else least
    largest_unit = np.median(values) - a
    if not largest_unit > 0:
        largest_unit = values.std()
    best, greatest = None, _WORTH_A_TRANSFORM - np.log(values.std())
    with np.errstate(all="ignore"):  # of numbers far apart, a likelihood need not be finite
        for b in largest_unit * np.array(_UNITS):
            logarithms = np.log1p((values - a) / b)
            power = optimize.minimize_scalar(
                _negative_log_likelihood,
                bounds=_POWERS,
                args=(logarithms, logarithms.mean()),
                method="bounded",
                options={"xatol": 0.01},
            ).x
            transformed = _power_of(logarithms, power)
            numbers = np.array([1.0, power, a, b, transformed.mean(), transformed.std()])
            log_likelihood = -_negative_log_likelihood(power, logarithms, logarithms.mean()) - np.log(b)
            if np.isfinite(numbers).all() and numbers[-1] > 0 and log_likelihood > greatest:
                best, greatest = numbers, log_likelihood + _WORTH_ANOTHER_UNIT
    return best


def _negative_log_likelihood(power: float, logarithms: Floats, mean: float) -> float:
    """Of a normal distribution of transformed units, in nats a row, but for a constant.

    `scipy.stats.yeojohnson_llf` says the same of a vector in ten times the time, for which every fit waits.
    """
    return float(np.log(_power_of(logarithms, power).std())) - (power - 1.0) * mean


def _power_of(logarithms: Floats, power: float) -> Floats:
    """Units u >= 0, transformed, from log(1 + u)."""
    return logarithms if power == 0.0 else np.expm1(power * logarithms) / power


def transform(x: Any, numbers: Any) -> Any:
    """What a model sees of rows: any array or tensor of shape (..., n_features), NaN stays NaN."""
    is_transformed, power, a, b, c, s = (numbers[position] for position in range(N_NUMBERS))
    ops = keras.ops
    u = (x - a) / b
    above, below = _power(ops.maximum(u, 0.0), power), _power(ops.maximum(-u, 0.0), 2.0 - power)
    seen = ops.clip((ops.where(u < 0, -below, above) - c) / s, -_FARTHEST, _FARTHEST)
    seen = ops.where(is_transformed > 0, ops.where(ops.isnan(x), x, seen), x)
    matrices = _whitening(numbers)
    if matrices is None:
        return seen
    missing = ops.isnan(seen)
    return ops.where(missing, seen, ops.matmul(ops.where(missing, 0.0, seen), matrices[0]))


def inverse_transform(seen: Any, numbers: Any) -> Any:
    """The rows of which a model sees this; what no row can be seen as becomes the farthest one."""
    matrices = _whitening(numbers)
    return _undo_powers(seen if matrices is None else keras.ops.matmul(seen, matrices[1]), numbers)


def _undo_powers(seen: Any, numbers: Any) -> Any:
    """Columns that are not whitened, or no longer, as they were before their powers."""
    is_transformed, power, a, b, c, s = (numbers[position] for position in range(N_NUMBERS))
    ops = keras.ops
    y = seen * s + c
    above = _inverse_power(ops.maximum(y, 0.0), power)
    below = _inverse_power(ops.maximum(-y, 0.0), 2.0 - power)
    return ops.where(is_transformed > 0, ops.where(y < 0, -below, above) * b + a, seen)


def log_derivative(x: Any, numbers: Any) -> Any:
    """Log dt/dx of each cell, in nats: what a log-density of t(x) lacks to be one of x.

    Of whitened columns, each has the same share of the matrix' log-determinant.
    """
    is_transformed, power, a, b, _, s = (numbers[position] for position in range(N_NUMBERS))
    ops = keras.ops
    u = (x - a) / b
    slope = ops.where(u < 0, 1.0 - power, power - 1.0) * ops.log1p(ops.abs(u)) - ops.log(b * s)
    slope = ops.where(is_transformed > 0, slope, ops.zeros_like(slope))
    return slope if _whitening(numbers) is None else slope + numbers[N_NUMBERS]


def _whitening(numbers: Any) -> tuple[Any, Any] | None:
    """The matrix that whitens columns, and its inverse; None if they are not whitened."""
    n_features = numbers.shape[1]
    if numbers.shape[0] == N_NUMBERS:
        return None
    return numbers[N_NUMBERS + 1 : -n_features], numbers[-n_features:]


def _power(u: Any, power: Any) -> Any:
    """((1 + u)^power - 1) / power for u >= 0, with its limit at 0."""
    ops = keras.ops
    safe = ops.where(ops.abs(power) < _NO_POWER, 1.0, power)
    exponent = ops.minimum(safe * ops.log1p(u), _LARGEST_EXPONENT)
    return ops.where(ops.abs(power) < _NO_POWER, ops.log1p(u), ops.expm1(exponent) / safe)


def _inverse_power(y: Any, power: Any) -> Any:
    ops = keras.ops
    safe = ops.where(ops.abs(power) < _NO_POWER, 1.0, power)
    logarithm = ops.log1p(ops.maximum(safe * y, _LEAST_FACTOR - 1.0)) / safe
    logarithm = ops.where(ops.abs(power) < _NO_POWER, y, logarithm)
    return ops.expm1(ops.minimum(logarithm, _LARGEST_EXPONENT))


class TransformedColumns:
    """A likelihood of transformed columns that takes and gives values as they were before.

    Densities are of t(x); `log_derivative` makes them densities of x.
    """

    def __init__(self, likelihood: Likelihood, n_features: int, numbers: Any) -> None:
        self._likelihood = likelihood
        self._numbers = numbers
        self._origins = np.array(likelihood.origins(n_features))

    def __getattr__(self, name: str) -> Any:
        # A copy that is being made has no attributes yet.
        if name.startswith("__") or name == "_likelihood":
            raise AttributeError(name)
        return getattr(self._likelihood, name)

    def inputs(self, x: Tensor, shared: Any = ()) -> Tensor:
        return self._likelihood.inputs(self._transform(x), shared)

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        return self._likelihood.log_prob(self._transform(x), parameters)

    def error(self, x: Tensor, parameters: Parameters) -> Tensor:
        return self._likelihood.error(self._transform(x), parameters)

    def mean(self, parameters: Parameters) -> Tensor:
        return self._back(self._likelihood.mean(parameters))

    def sample(self, parameters: Parameters, seed: int) -> Tensor:
        return self._back(self._likelihood.sample(parameters, seed))

    def quantile(self, probability: Tensor, parameters: Parameters) -> Tensor:
        matrices = _whitening(self._numbers())
        if matrices is None:
            return self._back(self._likelihood.quantile(probability, parameters))
        # A sum of normal variables is one, and powers rise: what lies above a share of it stays above.
        ops, mean = keras.ops, self._likelihood.mean(parameters)
        deviations = self._likelihood.quantile(_ONE_DEVIATION, parameters) - mean
        variances = ops.matmul(ops.square(deviations), ops.square(matrices[1]))
        level = ops.convert_to_tensor(stats.norm.ppf(probability), mean.dtype)
        return _undo_powers(ops.matmul(mean, matrices[1]) + level * ops.sqrt(variances), self._numbers())

    def expectations(self, parameters: Parameters) -> Tensor:
        numbers = keras.ops.take(self._numbers(), self._origins, axis=-1)
        return inverse_transform(self._likelihood.expectations(parameters), numbers)

    def _transform(self, x: Tensor) -> Tensor:
        return transform(x, self._numbers())

    def _back(self, seen: Tensor) -> Tensor:
        return inverse_transform(seen, self._numbers())
