"""What fitted transformers do, in an ONNX graph.

A `Pipeline` or a `ColumnTransformer` is taken apart. What is left is computed by the functions below, of
those transformers that skl2onnx does not know, or makes graphs of for which no runtime has float64 operators;
the others are left to skl2onnx. Rows that scikit-learn refuses get infinite values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.utils import get_tags

from vae_anomaly.core.backend import tf
from vae_anomaly.core.rows import dense
from vae_anomaly.core.types import Array, Estimator, Flags, Floats, Tensor
from vae_anomaly.data.scaling import ScalerOfColumns
from vae_anomaly.export.onnx_graph import Graph
from vae_anomaly.files.allow_list import ESTIMATORS, FUNCTIONS, class_of

__all__ = ["accepted_rows", "scaled"]

_Function: TypeAlias = Callable[[Tensor], Tensor]
# Where `QuantileTransformer` cuts off the tails of its normal distribution.
_TAIL = 1e-7
_LOG_2, _LOG_10 = np.log(2.0), np.log(10.0)


def scaled(graph: Graph, X: str, scaler: Estimator, n_columns: int, *, checked: bool = True) -> str:
    """The name of what a fitted transformer makes of float64 columns.

    Parameters
    ----------
    graph : Graph
    X : str
    scaler : fitted transformer, "passthrough" or None
    n_columns : int
        How many columns X has.
    checked : bool
        Whether X holds no infinite values.

    Raises
    ------
    NotImplementedError
        If neither skl2onnx nor this module knows the transformer; names it.
    """
    if scaler is None or isinstance(scaler, str):
        return X
    if isinstance(scaler, ScalerOfColumns):
        others = [column for column in range(n_columns) if column not in set(scaler.columns)]
        joined = _side_by_side(graph, X, [(scaler.scaler_, scaler.columns, 1), (None, others, 1)], checked)
        return _columns(graph, joined, np.argsort([*scaler.columns, *others]))
    kind = type(scaler)
    if kind is class_of(ESTIMATORS, "Pipeline"):
        for _, step in scaler.steps:
            X = scaled(graph, X, step, getattr(step, "n_features_in_", n_columns), checked=checked)
            checked = False
        return X
    if kind is class_of(ESTIMATORS, "ColumnTransformer"):
        weights = scaler.transformer_weights or {}
        parts = [
            (part, np.atleast_1d(np.arange(n_columns)[columns]), float(weights.get(name, 1.0)))
            for name, part, columns in scaler.transformers_
            if not (isinstance(part, str) and part == "drop")
        ]
        return _side_by_side(graph, X, parts, checked)
    return _checked(graph, X, scaler, n_columns, checked)


def _side_by_side(
    graph: Graph, X: str, parts: Sequence[tuple[Estimator, npt.ArrayLike, float]], checked: bool
) -> str:
    """What transformers make of their columns, times weights, in one table."""
    results = []
    for scaler, columns, weight in parts:
        positions = np.asarray(columns, dtype=np.int64)
        if not len(positions):
            continue
        result = scaled(graph, _columns(graph, X, positions), scaler, len(positions), checked=checked)
        if weight != 1:
            result = graph.node("Mul", [result, graph.constant(np.array(weight))])
        results.append(result)
    return graph.node("Concat", results, axis=1)


def _columns(graph: Graph, X: str, positions: npt.NDArray[np.int64]) -> str:
    return graph.node("Gather", [X, graph.constant(positions)], axis=1)


def _checked(graph: Graph, X: str, scaler: Estimator, n_columns: int, checked: bool) -> str:
    """What one transformer makes of rows, with infinite values where it refuses a row."""
    name = type(scaler).__name__
    compute = _FUNCTIONS.get(name) if class_of(ESTIMATORS, name) is type(scaler) else None
    if compute is None:
        rows = graph.transformed(X, scaler, n_columns)
    else:
        function = compute(scaler)
        rows = graph.computed(name, lambda x: (function(x),), [(X, n_columns)])
    tags = get_tags(scaler)
    # One that another number marks refuses NaN, whatever the tags of `MissingIndicator` say.
    marks_gaps = np.isnan(getattr(scaler, "missing_values", np.nan))
    takes_gaps = tags.no_validation or (tags.input_tags.allow_nan and marks_gaps)
    if tags.no_validation or (takes_gaps and checked):
        return rows

    def refuse(x: Tensor, rows: Tensor) -> tuple[Tensor]:
        refused = tf.math.is_inf(x) if takes_gaps else ~tf.math.is_finite(x)
        return (tf.where(tf.reduce_any(refused, axis=1, keepdims=True), np.float64(np.inf), rows),)

    return graph.computed(f"rows for {name}", refuse, [(X, n_columns), (rows, None)])


def accepted_rows(scaler: Estimator, n_columns: int, n_rows: int, rng: np.random.RandomState) -> Floats:
    """Rows that a fitted scaler takes: positive numbers, and known categories where it encodes them."""
    rows = np.exp(rng.standard_normal((n_rows, n_columns)))
    kind = type(scaler)
    if kind is class_of(ESTIMATORS, "Pipeline"):
        return accepted_rows(scaler.steps[0][1], n_columns, n_rows, rng)
    if kind is class_of(ESTIMATORS, "ColumnTransformer"):
        for _, part, columns in scaler.transformers_:
            positions = np.atleast_1d(np.arange(n_columns)[columns])
            rows[:, positions] = accepted_rows(part, len(positions), n_rows, rng)
    for column, categories in zip(rows.T, getattr(scaler, "categories_", ()), strict=False):
        column[:] = rng.choice(categories, n_rows)
    return rows


# -- transformers, each as a function of float64 rows -------------------------------------------------------
def _numpy_function(transformer: Estimator) -> _Function:
    if transformer.func is None:
        return lambda x: x
    name = next((name for name, function in FUNCTIONS.items() if function is transformer.func), None)
    if name is None or transformer.kw_args:
        what = getattr(transformer.func, "__name__", repr(transformer.func))
        what += " with kw_args" if transformer.kw_args else ""
        raise NotImplementedError(
            f"the detector's scaler is a FunctionTransformer of {what}. "
            f"Of functions, an ONNX graph can have numpy's {', '.join(FUNCTIONS)}: take one of them, or "
            "transform the rows before the detector."
        )
    return _OF_NUMPY[name]


def _power(transformer: Estimator) -> _Function:
    lambdas = np.asarray(transformer.lambdas_, dtype=np.float64)

    def function(x: Tensor) -> Tensor:
        if transformer.method == "box-cox":
            rows = _power_of_logarithm(tf.math.log(tf.where(x > 0, x, np.float64(np.nan))), lambdas)
            # Zero and less are refused, not unknown.
            rows = tf.where(tf.reduce_any(x <= 0, axis=1, keepdims=True), np.float64(np.inf), rows)
        else:
            positive = _power_of_logarithm(tf.math.log1p(tf.maximum(x, np.float64(0))), lambdas)
            negative = -_power_of_logarithm(tf.math.log1p(tf.maximum(-x, np.float64(0))), 2 - lambdas)
            rows = tf.where(x >= 0, positive, negative)
        if transformer.standardize:
            rows = (rows - transformer._scaler.mean_) / transformer._scaler.scale_
        return tf.where(tf.math.is_nan(x), x, rows)

    return function


def _power_of_logarithm(logarithm: Tensor, exponents: Floats) -> Tensor:
    """(v^c - 1) / c for each column's c, of v's logarithm; the logarithm itself if c is zero."""
    vanishes = np.abs(exponents) < np.spacing(1.0)
    c = np.where(vanishes, 1.0, exponents)
    return tf.where(vanishes, logarithm, tf.math.expm1(c * logarithm) / c)


def _quantile(transformer: Estimator) -> _Function:
    quantiles = np.ascontiguousarray(transformer.quantiles_.T)
    references = np.asarray(transformer.references_, dtype=np.float64)
    n_columns, n_quantiles = quantiles.shape
    first = n_quantiles * np.arange(n_columns)

    def value(x: Tensor, position: Tensor, neighbor: Tensor) -> Tensor:
        """On the line through a quantile and its neighbor."""
        position, neighbor = (tf.clip_by_value(p, 0, n_quantiles - 1) for p in (position, neighbor))
        own, other = (tf.gather(quantiles.ravel(), first + p) for p in (position, neighbor))
        goal, end = (tf.gather(references, p) for p in (position, neighbor))
        level = own == other
        slope = (end - goal) / tf.where(level, np.float64(1), other - own)
        return goal + tf.where(level, np.float64(0), slope * (x - own))

    def function(x: Tensor) -> Tensor:
        within = tf.clip_by_value(tf.where(tf.math.is_nan(x), quantiles[:, 0], x), *quantiles[:, [0, -1]].T)
        # Of equal quantiles, the last and the first one: the mean of both is where values on them go.
        last, earlier = _n_below(within, quantiles, True) - 1, _n_below(within, quantiles, False)
        rows = (value(within, last, last + 1) + value(within, earlier, earlier - 1)) / 2
        margin = _TAIL if transformer.output_distribution == "normal" else 0.0
        rows = tf.where(x < quantiles[:, 0], references[0], rows)
        rows = tf.where(x > quantiles[:, -1], references[-1], rows)
        above = x + margin > quantiles[:, -1] if margin else x == quantiles[:, -1]
        below = x - margin < quantiles[:, 0] if margin else x == quantiles[:, 0]
        rows = tf.where(below, np.float64(0), tf.where(above, np.float64(1), rows))
        if margin:
            rows = _normal_quantile(rows)
        return tf.where(tf.math.is_nan(x), x, rows)

    return function


def _normal_quantile(p: Tensor) -> Tensor:
    """The standard normal distribution's quantiles, cut off as `QuantileTransformer` does.

    By the rational functions of Wichura (1988, "Algorithm AS 241", PPND16), exact to 16 digits.
    """
    tail = _TAIL - np.spacing(1.0)
    q = p - 0.5
    r = 0.180625 - q * q
    central = q * _ratio(_CENTRAL, r)
    distance = tf.sqrt(-tf.math.log(tf.maximum(tf.minimum(p, 1 - p), np.float64(tail)))) - 1.6
    rows = tf.where(abs(q) <= 0.425, central, tf.sign(q) * _ratio(_OUTER, distance))
    return tf.clip_by_value(rows, stats.norm.ppf(tail), stats.norm.ppf(1 - tail))


def _ratio(coefficients: tuple[Sequence[float], Sequence[float]], x: Tensor) -> Tensor:
    """A ratio of two polynomials, the highest power first."""
    numerator, denominator = (tf.math.polyval([np.float64(c) for c in part], x) for part in coefficients)
    return numerator / denominator


def _impute(imputer: Estimator) -> _Function:
    values = np.asarray(imputer.statistics_, dtype=np.float64)
    kept = np.arange(len(values)) if imputer.keep_empty_features else np.flatnonzero(~np.isnan(values))

    def function(x: Tensor) -> Tensor:
        missing = _is_missing(x, imputer.missing_values)
        rows = tf.gather(tf.where(missing, values, x), kept, axis=1)
        if imputer.indicator_ is None:
            return rows
        return tf.concat([rows, _indicators(x, imputer.indicator_)], axis=1)

    return function


def _indicators(x: Tensor, indicator: Estimator) -> Tensor:
    missing = _is_missing(x, indicator.missing_values)
    rows = tf.cast(tf.gather(missing, np.asarray(indicator.features_), axis=1), tf.float64)
    unseen = np.setdiff1d(np.arange(x.shape[1]), indicator.features_)
    if not indicator.error_on_new or not len(unseen):
        return rows
    refused = tf.reduce_any(tf.gather(missing, unseen, axis=1), axis=1, keepdims=True)
    return tf.where(refused, np.float64(np.inf), rows)


def _is_missing(x: Tensor, missing_value: float) -> Tensor:
    return tf.math.is_nan(x) if np.isnan(missing_value) else x == np.float64(missing_value)


def _normalize(normalizer: Estimator) -> _Function:
    def function(x: Tensor) -> Tensor:
        if normalizer.norm == "l2":
            norm = tf.sqrt(tf.reduce_sum(x * x, axis=1, keepdims=True))
        else:
            reduce = tf.reduce_sum if normalizer.norm == "l1" else tf.reduce_max
            norm = reduce(abs(x), axis=1, keepdims=True)
        return x / tf.where(norm < 10 * np.finfo(np.float64).eps, np.float64(1), norm)

    return function


def _scale_pixels(scaler: Estimator) -> _Function:
    n_pixels = scaler.n_features_in_ // scaler.n_channels
    mean, scale = (np.tile(channels, n_pixels) for channels in (scaler.mean_, scaler.scale_))
    # Not of x in float32, as the scaler's: tf2onnx takes such a rounding out again.
    return lambda x: (x - mean) / scale


def _bin(discretizer: Estimator) -> _Function:
    borders = [np.asarray(edges[1:-1], dtype=np.float64) for edges in discretizer.bin_edges_]
    values = [np.array([*(inner[:1] - 1), *inner]) if len(inner) else np.zeros(1) for inner in borders]
    return _of_each_value(discretizer, values, borders)


def _encode(encoder: Estimator) -> _Function:
    categories = [np.asarray(values, dtype=np.float64) for values in encoder.categories_]
    return _of_each_value(encoder, [values[~np.isnan(values)] for values in categories])


def _of_each_value(
    transformer: Estimator, values: Sequence[Floats], borders: Sequence[Floats] | None = None
) -> _Function:
    """A transformer that makes columns of each column alone, by looking up what it makes of every value.

    Parameters
    ----------
    transformer : fitted transformer
    values : for each column, its values in order
        If there are no borders, other values are unknown.
    borders : for each column, where each value but the first begins to stand for all
    """
    usual = np.array([known[0] if len(known) else np.nan for known in values])
    (result,) = dense(transformer.transform(usual[None]))
    tables, owners, refusals = [], [], []
    for position, known in enumerate(values):
        table, refused = _looked_up(transformer, usual, position, known, len(result))
        with np.errstate(invalid="ignore"):
            (own,) = np.nonzero((table[~refused] != result).any(axis=0))
        tables.append(table[:, own])
        owners.append(own)
        refusals.append(refused)
    constant = np.setdiff1d(np.arange(len(result)), np.concatenate(owners))
    order = np.argsort(np.concatenate([*owners, constant]))
    steps = _padded(values if borders is None else borders)

    def function(x: Tensor) -> Tensor:
        n_below = _n_below(x, steps, True)
        gaps, columns, refused = tf.math.is_nan(x), [], tf.zeros_like(x[:, 0], dtype=tf.bool)
        for position, known in enumerate(values):
            n_known, row = len(known), n_below[:, position]
            if borders is None:
                row = tf.maximum(row - 1, 0)
                same = tf.gather(np.append(known, np.nan), row) == x[:, position]
                row = tf.where(same, row, np.int64(n_known))
            row = tf.where(gaps[:, position], np.int64(n_known + 1), row)
            columns.append(tf.gather(tables[position], row))
            refused |= tf.gather(refusals[position].astype(np.int32), row) > 0
        columns.append(tf.ones_like(x[:, :1]) * result[constant])
        rows = tf.gather(tf.concat(columns, axis=1), order, axis=1)
        return tf.where(refused[:, None], np.float64(np.inf), rows)

    return function


def _looked_up(
    transformer: Estimator, usual: Floats, position: int, known: Floats, n_results: int
) -> tuple[Floats, Flags]:
    """What a transformer makes of a column's values, an unknown one and NaN; and whether it refuses each."""
    unknown = (known.max() if len(known) else 0.0) + 1
    table, refused = np.zeros((len(known) + 2, n_results)), np.zeros(len(known) + 2, dtype=bool)
    for row, value in enumerate([*known, unknown, np.nan]):
        given = usual.copy()
        given[position] = value
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of unknown categories
                table[row] = dense(transformer.transform(given[None]))
        except ValueError:
            refused[row] = True
    return table, refused


def _padded(values: Sequence[Array]) -> Floats:
    """Lists of numbers in order as rows of one array, with infinity behind them."""
    padded = np.full((len(values), max(1, *map(len, values))), np.inf)
    for row, numbers in zip(padded, values, strict=True):
        row[: len(numbers)] = numbers
    return padded


def _n_below(x: Tensor, steps: Floats, or_equal: bool) -> Tensor:
    """How many of a column's steps, a row of numbers in order, are less than each value: a binary search."""
    n_columns, n_steps = steps.shape
    first, flat = n_steps * np.arange(n_columns), steps.ravel()
    count = tf.zeros_like(x, dtype=tf.int64)
    for power in reversed(range(n_steps.bit_length())):
        probed = count + (2**power - 1)
        step = tf.gather(flat, first + tf.minimum(probed, n_steps - 1))
        below = (step <= x if or_equal else step < x) & (probed < n_steps)
        count = tf.where(below, count + 2**power, count)
    return count


def _sinh(x: Tensor) -> Tensor:
    e = tf.math.expm1(abs(x))
    return tf.sign(x) * tf.where(tf.math.is_inf(e), e, (e + e / (e + 1)) / 2)


def _arcsinh(x: Tensor) -> Tensor:
    size = abs(x)
    near = tf.minimum(size, np.float64(1e9))
    near = tf.math.log1p(near + near * near / (1 + tf.sqrt(near * near + 1)))
    far = tf.math.log(tf.maximum(size, np.float64(1))) + _LOG_2
    return tf.sign(x) * tf.where(size < 1e9, near, far)


_OF_NUMPY: Mapping[str, _Function] = {
    "arcsinh": _arcsinh,
    "cbrt": lambda x: tf.sign(x) * tf.pow(abs(x), np.float64(1 / 3)),
    "exp": lambda x: tf.exp(x),
    "expm1": lambda x: tf.math.expm1(x),
    "log": lambda x: tf.math.log(x),
    "log10": lambda x: tf.math.log(x) / _LOG_10,
    "log1p": lambda x: tf.math.log1p(x),
    "log2": lambda x: tf.math.log(x) / _LOG_2,
    "sinh": _sinh,
    "sqrt": lambda x: tf.sqrt(x),
    "square": lambda x: x * x,
}
_FUNCTIONS: Mapping[str, Callable[[Estimator], _Function]] = {
    "FunctionTransformer": _numpy_function,
    "KBinsDiscretizer": _bin,
    "MissingIndicator": lambda indicator: lambda x: _indicators(x, indicator),
    "Normalizer": _normalize,
    "OneHotEncoder": _encode,
    "OrdinalEncoder": _encode,
    "PixelScaler": _scale_pixels,
    "PowerTransformer": _power,
    "QuantileTransformer": _quantile,
    "SimpleImputer": _impute,
}
_CENTRAL = (
    (
        *(2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4),
        *(1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    ),
    (
        *(5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4),
        *(5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
    ),
)
_OUTER = (
    (
        *(7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1),
        *(1.27045825245236838258e0, 3.64784832476320460504e0, 5.76949722146069140550e0),
        *(4.63033784615654529590e0, 1.42343711074968357734e0),
    ),
    (
        *(1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2),
        *(1.48103976427480074590e-1, 6.89767334985100004550e-1, 1.67638483018380384940e0),
        *(2.05319162663775882187e0, 1.0),
    ),
)
