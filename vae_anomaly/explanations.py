r"""Explanations: which features make a row's score, in the columns that its owner knows.

A likelihood score is a sum over features, plus what belongs to none of them, such as the KL. A feature's
share is its own term and an equal part of the rest,

.. math:: e_f = t_f + \frac{1}{d} \left( s - \sum_g t_g \right)

with the score s and the terms t of d features: shares sum to the score, and differences between them are
differences between terms. Terms less what is usual for a feature (by the model's entropy, or by the median,
mean or high quantiles of the training rows) were tried and found planted errors no better.
"""

from __future__ import annotations

from collections import UserList
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder

from vae_anomaly.core.rows import array_of, dense
from vae_anomaly.core.types import Array, Detector, Estimator, Floats, MatrixLike, Unchecked
from vae_anomaly.data.frames import to_pandas
from vae_anomaly.data.preparation import in_form_of

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer

__all__ = ["explain"]


def spread_rest(terms: Floats, scores: Floats, ignored: Sequence[int] = ()) -> Floats:
    """Shares of the features, (n_rows, n_features), that sum to the scores of the rows.

    Parameters
    ----------
    terms : array of shape (n_rows, n_features)
        What each feature adds to each score.
    scores : array of shape (n_rows,)
    ignored : positions of features that the model does not see, whose share is 0
    """
    seen = np.ones(terms.shape[1], dtype=bool)
    seen[list(ignored)] = False
    rest = (scores - terms.sum(axis=1)) / seen.sum()
    return np.where(seen, terms + rest[:, None], 0.0)


def shift_to_maximum(maps: Floats, scores: Floats, n_channels: int) -> Floats:
    """Maps of local scores, (n_images, n_pixels), whose largest pixel is the score of the image.

    A pixel is the sum of its channels. Every pixel of an image moves by the same number.
    """
    largest = maps.reshape(len(maps), -1, n_channels).sum(axis=-1).max(axis=-1)
    return np.asarray(maps + ((scores - largest) / n_channels)[:, None])


def explain(pipeline: Pipeline, X: MatrixLike) -> Any:
    """Shares of the columns that a fitted pipeline receives in the scores of its last step, a detector.

    Parameters
    ----------
    pipeline : Pipeline
        Transformers, then a `VAEDetector`. What several transformed columns of one column add is summed. A
        search, such as `GridSearchCV`, stands for its best estimator, and a detector alone is taken, too.
    X : array or DataFrame of shape (n_rows, n_columns)
        Images only if there are no transformers.

    Returns
    -------
    float64 array of shape (n_rows, n_columns), or a DataFrame if X is one
        Each row sums to the negative of ``pipeline.score_samples``; see `VAEDetector.explain`.

    Raises
    ------
    TypeError
        If the last step is no detector.
    ValueError
        If a transformer mixes columns, as PCA does, or does not say which it makes of which, or if X holds
        images and there are transformers.

    Examples
    --------
    >>> import pandas as pd
    >>> from sklearn.compose import make_column_transformer
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import OneHotEncoder
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.explanations import explain
    >>> X = pd.DataFrame({"size": range(20), "color": ["red", "blue"] * 10})
    >>> columns = make_column_transformer((OneHotEncoder(), ["color"]), remainder="passthrough")
    >>> pipeline = make_pipeline(columns, VAEDetector(epochs=2, random_state=0)).fit(X)
    >>> list(explain(pipeline, X).columns)
    ['size', 'color']
    """
    fitted = getattr(pipeline, "best_estimator_", pipeline)
    detector, transformers = fitted, None
    if isinstance(fitted, Pipeline):
        detector, transformers = fitted[-1], fitted[:-1] if len(fitted) > 1 else None
    if not hasattr(detector, "explain"):
        raise TypeError(
            "explain takes a fitted pipeline whose last step is a VAEDetector, a search for one, or a "
            f"detector; received {pipeline!r}."
        )
    if transformers is None:
        return detector.explain(X)
    table = to_pandas(X)
    if np.ndim(table) > 2:
        raise ValueError(
            f"explain traces columns, and X holds images of shape {np.shape(table)[1:]}, of which "
            "transformers may make anything: call the detector's explain with what they make of X."
        )
    names = np.asarray(
        table.columns if hasattr(table, "columns") else [f"x{i}" for i in range(np.shape(table)[1])]
    )
    shares = np.asarray(detector.explain(transformers.transform(X)))
    return in_form_of(X, by_column(shares, transformers, names))


def report(detector: Detector, X: Unchecked, n_rows: int, n_columns: int, coverage: float) -> pd.DataFrame:
    """See `VAEDetector.report`."""
    for name, number in (("n_rows", n_rows), ("n_columns", n_columns)):
        if not isinstance(number, Integral) or number < 1:
            raise ValueError(f"{name} must be a positive integer; received {number!r}.")
    X = to_pandas(X)
    framed = hasattr(X, "columns")
    X = X if framed else array_of(X)
    if X.ndim > 2:
        raise ValueError("a report is of rows of a table; for images see explain and plotting.top_anomalies.")
    names = list(X.columns) if framed else list(range(X.shape[1]))
    labels = list(X.index) if framed else list(range(X.shape[0]))
    decision = detector.decision_function(X)
    top = np.argsort(decision, kind="stable")[:n_rows]
    given = X.iloc[top] if framed else dense(X[top])
    shares = np.asarray(detector.explain(given))
    tables = [given, *detector.expected(given, coverage=coverage)]
    values, expected, low, high = (np.asarray(table, dtype=object) for table in tables)
    lines = [
        {
            "row": labels[row],
            "score": -detector.offset_ - decision[row],
            "anomaly": bool(decision[row] < 0),
            "column": names[column],
            "value": values[position, column],
            "expected": expected[position, column],
            "low": low[position, column],
            "high": high[position, column],
            "contribution": shares[position, column],
        }
        for position, row in enumerate(top)
        for column in np.argsort(-shares[position], kind="stable")[:n_columns]
    ]
    return pd.DataFrame(lines)


def by_column(shares: Floats, transformer: Estimator, names: Array) -> Floats:
    """Shares of a transformer's columns, summed to those of its input's columns.

    Columns that the transformer drops have no share.
    """
    origin = origins(transformer, names)
    if len(origin) != shares.shape[1]:
        raise ValueError(
            f"{type(transformer).__name__} names {len(origin)} columns but makes {shares.shape[1]}: explain "
            "the transformed columns."
        )
    summed = np.zeros((len(shares), len(names)))
    np.add.at(summed.T, origin, shares.T)
    return summed


def origins(transformer: Estimator, names: Array) -> list[int]:
    """For each column that a fitted transformer makes, the position of the input column it is made of."""
    # It loads all linear models and support vector machines of scikit-learn.
    from sklearn.compose import ColumnTransformer

    if isinstance(transformer, Pipeline):
        origin = list(range(len(names)))
        for _, step in transformer.steps:
            made_of = origins(step, np.asarray(names, dtype=object)[origin])
            origin = [origin[position] for position in made_of]
        return origin
    if transformer is None or isinstance(transformer, str):  # "passthrough"
        return list(range(len(names)))
    if hasattr(transformer, "feature_origins_"):
        return [int(position) for position in transformer.feature_origins_]
    if isinstance(transformer, ColumnTransformer):
        return _origins_of_parts(transformer, names)
    if isinstance(transformer, OneHotEncoder):
        return _origins_of_categories(transformer)
    return _origins_by_name(transformer, names)


def _origins_of_parts(transformer: ColumnTransformer, names: Array) -> list[int]:
    # What an earlier step calls its columns, if it made a DataFrame.
    names = getattr(transformer, "feature_names_in_", names)
    positions = {name: position for position, name in enumerate(names)}
    slices = transformer.output_indices_
    origin: dict[int, int] = {}
    for name, part, columns in transformer.transformers_:
        made = range(slices[name].start, slices[name].stop)
        if not made:
            continue
        if isinstance(columns, UserList):  # scikit-learn 1.6: warns when it is read as a list
            columns = columns.data
        if isinstance(columns, slice):
            columns = _positions_of(columns, names)
        columns = [columns] if np.ndim(columns) == 0 else list(columns)
        if len(columns) == len(names) and all(isinstance(c, (bool, np.bool_)) for c in columns):
            columns = list(np.flatnonzero(columns))
        taken = [positions[c] if isinstance(c, str) else int(c) for c in columns]
        for output, inner in zip(made, origins(part, np.asarray(names, dtype=object)[taken]), strict=True):
            origin[output] = taken[inner]
    return [origin[output] for output in sorted(origin)]


def _positions_of(columns: slice, names: Array) -> list[int]:
    """Positions of the columns from one to another: both included if they are names."""
    if not isinstance(columns.start, str) and not isinstance(columns.stop, str):
        return list(range(len(names))[columns])
    return pd.Series(range(len(names)), index=names).loc[columns].tolist()


def _origins_of_categories(encoder: OneHotEncoder) -> list[int]:
    infrequent = getattr(encoder, "infrequent_categories_", None) or [None] * len(encoder.categories_)
    dropped = encoder.drop_idx_
    origin = []
    for position, (categories, rare) in enumerate(zip(encoder.categories_, infrequent, strict=True)):
        n_made = len(categories) - (0 if rare is None else len(rare) - 1)
        n_made -= dropped is not None and dropped[position] is not None
        origin += [position] * n_made
    return origin


def _origins_by_name(transformer: Estimator, names: Array) -> list[int]:
    names = getattr(transformer, "feature_names_in_", np.asarray(names, dtype=object))
    positions = {name: position for position, name in enumerate(names)}
    try:
        return [positions[name] for name in transformer.get_feature_names_out(names)]
    except (AttributeError, KeyError, ValueError):
        raise ValueError(
            f"{type(transformer).__name__} does not say which column it makes of which: explain the "
            "transformed columns, or use a transformer whose columns keep their names."
        ) from None
