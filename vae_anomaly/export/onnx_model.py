"""The detector as an ONNX graph: rows in, scores and labels out.

Converters do the work, piece by piece: tf2onnx makes ONNX functions of the functions below, which call the
detector's own scoring functions, and skl2onnx makes one of the scaler. What a member computes becomes one
function of rows and weights, whatever the number of members. Here the pieces are put together.
"""

from __future__ import annotations

import json
import threading
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from vae_anomaly.core.backend import tf
from vae_anomaly.core.types import Array, Detector, Floats, Json, PathOrFile, Tensor
from vae_anomaly.core.versions import versions
from vae_anomaly.data.patches import Patches
from vae_anomaly.data.scaling import FARTHEST
from vae_anomaly.data.tables import Column
from vae_anomaly.engine.programs import Architecture, architecture_of
from vae_anomaly.ensemble.fitted import Fitted
from vae_anomaly.export import scalers
from vae_anomaly.export.onnx_graph import OPERATORS, Graph, Onnx, library, session_of, with_operators
from vae_anomaly.files import archive
from vae_anomaly.likelihoods import Likelihood
from vae_anomaly.scoring import passes
from vae_anomaly.scoring.patches import ScalePasses, pool_tensor
from vae_anomaly.scoring.score import IMPOSSIBLE

__all__ = ["convert", "kind_of", "write"]

# Of 1 + |score|.
_TOLERANCE = 1e-4
_WEIGHT_BYTES = 2 * 10**9
_ROWS_TO_CHECK = 256
# tf2onnx keeps what belongs to one conversion in globals, and the environment is changed meanwhile.
_exporting = threading.Lock()


def write(path: PathOrFile, detector: Detector) -> None:
    """Write a fitted detector as an ONNX graph; see `VAEDetector.to_onnx`."""
    data = convert(detector).SerializeToString()
    archive.replace_file(path, lambda file: file.write(data))


def convert(detector: Detector, operators: int = OPERATORS) -> Onnx:
    """A fitted detector as an ONNX model whose scores have been compared with its own.

    Parameters
    ----------
    detector : fitted VAEDetector
    operators : int
        The version of ONNX's operators, at least `onnx_graph.OPERATORS`.
    """
    for needed in ("onnx", "onnxruntime", "skl2onnx", "tf2onnx"):
        library(needed)
    with _exporting:
        model = with_operators(_model_of(detector), operators)
        _check(detector, model.SerializeToString())
    return model


def _model_of(detector: Detector) -> Onnx:
    """The detector as an ONNX model."""
    fitted: Fitted = detector._fitted
    n_bytes = sum(state.trainable.nbytes for state in fitted.members)
    if n_bytes > _WEIGHT_BYTES:
        raise ValueError(
            f"an ONNX file holds at most 2 GB; the weights of this detector take {n_bytes / 1e9:.3g} GB. "
            "Save it with `save`, or fit fewer members or a smaller network."
        )
    results = dict(zip(_output_names(detector), (np.float64, np.float64, np.int64), strict=True))
    graph, n_features = Graph(results), detector.n_features_in_
    X = _cells(graph, detector, n_features)
    finite = graph.computed("finite values", _without_infinity, [(X, n_features)])
    rows = scalers.scaled(graph, finite, detector.scaler_, n_features)
    patches = fitted.preparation.patches
    n_columns = n_features if patches is not None else fitted.members[0].specification.n_features
    prepared = ["x", "n_impossible", "missing_fraction", "any_missing"]
    graph.define(
        "prepared",
        partial(_prepare, fitted.likelihood, fitted.invalid == "score"),
        [((None, n_features), np.float64), ((None, n_columns), np.float64)],
        prepared,
    )
    x, n_impossible, missing_fraction, any_missing = graph.call("prepared", [X, rows])
    if patches is None:
        by_member = _member_scores(graph, fitted, [x] * len(fitted.members), any_missing)
        nothing = np.full((_ROWS_TO_CHECK, n_columns), np.nan, dtype=np.float32)
        excess = fitted.raw_scores(nothing)[:, 0] - fitted.levels
    else:
        by_member = _scores_of_patches(graph, fitted, patches, x, any_missing)
        excess = np.zeros(len(by_member))
    graph.define(
        "outcome",
        partial(_outcome, fitted.weights, excess, detector.offset_),
        [((None,), np.float64)] * (2 + len(by_member)),
        ["score_samples", "decision_function", "label"],
    )
    graph.call("outcome", [missing_fraction, n_impossible, *by_member], list(results))
    return graph.model(_about(detector))


def _output_names(detector: Detector) -> list[str]:
    """Of the scores, the decision function and the label: unlike those of a mixed table's columns."""
    taken = set() if detector.table_ is None else {str(column.name) for column in detector.table_.columns}
    names = []
    for name in ("score_samples", "decision_function", "label"):
        while name in taken:
            name += "_"
        taken.add(name)
        names.append(name)
    return names


# -- what the graph computes, in TensorFlow -----------------------------------------------------------------
def _without_infinity(X: Tensor) -> tuple[Tensor]:
    return (tf.where(tf.math.is_inf(X), np.float64(np.nan), X),)


def _prepare(likelihood: Likelihood, scores_invalid: bool, X: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """What `scaling.scale` makes of X and its scaled rows, and how many values of a row none can have.

    NaN where a detector refuses a row. Of no rows, x has one: not all operators take none.
    """
    infinite = tf.math.is_inf(X)
    n_infinite = tf.reduce_sum(tf.cast(infinite, tf.float64), axis=1)
    gaps = tf.math.is_nan(X) | infinite
    missing = tf.math.is_nan(rows)
    kept = tf.reduce_any(gaps, axis=1)
    if X.shape[1] == rows.shape[1]:  # in whatever order the scaler has put the columns
        n_gaps, n_missing = (tf.reduce_sum(tf.cast(flags, tf.float64), axis=1) for flags in (gaps, missing))
        kept = n_missing <= n_gaps
        refused = (n_infinite > 0) & (n_missing < n_gaps)  # an infinite value that has disappeared
    else:
        refused = n_infinite > 0
    refused |= tf.reduce_any(tf.math.is_inf(rows) | (missing & ~kept[:, None]), axis=1)
    x = tf.cast(tf.clip_by_value(rows, np.float64(-FARTHEST), np.float64(FARTHEST)), tf.float32)
    x = tf.where(missing, np.float32(np.nan), x)  # whatever clipping makes of it
    outside = likelihood.outside_support(x)
    n_impossible = n_infinite + tf.reduce_sum(tf.cast(outside, tf.float64), axis=1)
    if not scores_invalid:
        refused |= n_impossible > 0
    n_impossible = tf.where(refused, np.float64(np.nan), n_impossible)
    # Such a row's score is put aside, by a multiplication with 0 in some graphs: it must be finite. 0 is
    # within every support.
    x = tf.where(outside | refused[:, None], np.float32(0.0), x)
    any_missing = tf.reduce_any(tf.math.is_nan(x))
    n_fillers = tf.cast(tf.equal(tf.shape(x)[0], 0), tf.int32)
    x = tf.concat([x, tf.zeros([n_fillers, x.shape[1]])], axis=0)
    return x, n_impossible, tf.reduce_mean(tf.cast(missing, tf.float64), axis=1), any_missing


def _member_score(
    architecture: Architecture, fitted: Fitted, complete: bool, x: Tensor, *weights: Tensor
) -> tuple[Tensor]:
    """The score of each row by the member that has these weights."""
    n_trainable = len(architecture.template.trainable_variables)
    with architecture.holding(list(weights[:n_trainable]), weights[n_trainable:]):
        vae = architecture.template if complete else architecture.template.incomplete()
        draws = tf.constant(np.asarray(fitted.draws, dtype=np.float32)[:, None])
        return (tf.cast(passes.score_tile(fitted.score, vae, x, draws), tf.float64),)


def _outcome(
    weights: Floats,
    excess: Floats,
    offset: float,
    missing_fraction: Tensor,
    n_impossible: Tensor,
    *by_member: Tensor,
) -> tuple[Tensor, ...]:
    """What `Fitted.scores` and the detector make of the members' scores."""
    scores = tf.stack(by_member)[:, : tf.shape(missing_fraction)[0]] - excess[:, None] * missing_fraction
    scores = -tf.reduce_sum(weights[:, None] * scores, axis=0)
    scores = tf.where(n_impossible == 0, scores, -IMPOSSIBLE * n_impossible)
    decision = scores - offset
    # NaN is not above the border either.
    normal = decision >= -_TOLERANCE * (1 + abs(offset))
    return scores, decision, tf.where(normal, np.int64(1), np.int64(-1))


# -- how the pieces hang together ---------------------------------------------------------------------------
def _cells(graph: Graph, detector: Detector, n_features: int) -> str:
    """The inputs, and the name of the (n_rows, n_features) numbers that they become."""
    if detector.table_ is not None:
        columns = [_column(graph, column) for column in detector.table_.columns]
        return graph.node("Concat", columns, axis=1)
    if detector.image_shape_ is None:
        return graph.input("X", np.float64, ("n_rows", n_features))
    images = graph.input("X", np.float64, ("n_rows", *detector.image_shape_))
    return graph.node("Reshape", [images, graph.constant(np.array([-1, n_features]))])


def _column(graph: Graph, column: Column) -> str:
    """The numbers, (n_rows, 1), of a mixed table's column, as `Column.numbers` makes them."""
    name = str(column.name)
    kind = kind_of(column)
    values = graph.input(name, np.str_ if kind is str else np.float64, ("n_rows",))
    if column.likelihood is None:
        zero = graph.constant(np.array([0.0]))
        values = graph.node("Expand", [zero, graph.node("Shape", [values])])
    if column.categories is not None:
        codes = dict(zip(map(kind, column.categories), range(len(column.categories)), strict=True))
        if kind is str:
            codes.setdefault("", np.nan)
            values = graph.node(
                "LabelEncoder",
                [values],
                domain="ai.onnx.ml",
                keys_strings=list(codes),
                values_floats=[float(code) for code in codes.values()],
                default_float=float(len(column.categories)),
            )
            values = graph.node("Cast", [values], to=graph.type_of(np.float64))
        else:
            function = f"codes of {name}"
            categories = np.array(list(codes))
            graph.define(function, partial(_codes, categories), [((None,), np.float64)], ["codes"])
            (values,) = graph.call(function, [values])
    return graph.node("Unsqueeze", [values, graph.constant(np.array([1]))])


def _codes(categories: Floats, values: Tensor) -> tuple[Tensor]:
    same = tf.cast(values[:, None] == categories, tf.float64)
    codes = tf.reduce_sum(same * np.arange(len(categories)), axis=1)
    codes = tf.where(tf.reduce_sum(same, axis=1) > 0, codes, np.float64(len(categories)))
    return (tf.where(tf.math.is_nan(values), np.float64(np.nan), codes),)


def kind_of(column: Column) -> type[Any]:
    """What a column's values are in the graph: texts or numbers."""
    if column.likelihood is None:
        return float if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf" else str
    values = [] if column.categories is None else list(column.categories)
    if all(isinstance(value, (bool, int, float, np.bool_, np.number)) for value in values):
        return float
    if all(isinstance(value, str) for value in values):
        return str
    raise NotImplementedError(
        f"column {column.name!r} holds categories such as {values[0]!r}, of type {type(values[0]).__name__}; "
        "an ONNX graph takes texts and numbers. Turn the column into texts with astype(str) and fit again."
    )


def _member_scores(graph: Graph, fitted: Fitted, seen: list[str], any_missing: str) -> list[str]:
    """Names of the members' scores of what each of them sees."""
    specification = fitted.members[0].specification
    architecture = architecture_of(fitted.members[0])
    arrays = [architecture.arrays(state) for state in fitted.members]
    template = architecture.template
    variables = [*template.trainable_variables, *template.non_trainable_variables]
    inputs: list[tuple[tuple[int | None, ...], npt.DTypeLike]] = [
        ((None, specification.n_features), np.float32),
        *((a.shape, a.dtype) for a in arrays[0]),
    ]
    functions = {"score of rows with gaps": False, "score": True}
    if specification.marks_missing:  # they see all rows so
        functions.pop("score")
    for name, complete in functions.items():
        graph.define(name, partial(_member_score, architecture, fitted, complete), inputs, ["score"])
    used = [any(graph.uses(name, 1 + position) for name in functions) for position in range(len(variables))]
    given = [
        [
            seen[member],
            *(
                graph.constant(value, f"member {member}: {position} {variables[position].path}")
                if used[position]
                else ""
                for position, value in enumerate(values)
            ),
        ]
        for member, values in enumerate(arrays)
    ]
    if len(functions) == 1:
        return [graph.call(name, inputs)[0] for inputs in given for name in functions]
    return graph.chosen(any_missing, [[(name, inputs) for inputs in given] for name in functions])


def _scores_of_patches(graph: Graph, fitted: Fitted, patches: Patches, x: str, any_missing: str) -> list[str]:
    """Names of the members' scores of images, see `scoring.patches`."""
    usual = np.asarray(fitted.usual_scores)
    seen = [""] * len(fitted.members)
    for chosen, part in ScalePasses(patches, fitted.poolings, usual).by_scale():
        squares = _squares(graph, part.patches, x)
        for member in chosen:
            seen[member] = squares
            graph.define(
                f"score of image {member}",
                partial(_score_of_image, part.patches.n_patches, usual[member]),
                [((None,), np.float64)],
                ["score"],
            )
    of_squares = _member_scores(graph, fitted, seen, any_missing)
    return [graph.call(f"score of image {m}", [scores])[0] for m, scores in enumerate(of_squares)]


def _score_of_image(n_patches: int, usual: Floats, scores: Tensor) -> tuple[Tensor]:
    return (pool_tensor(tf.reshape(scores, (-1, n_patches)), usual),)


def _squares(graph: Graph, patches: Patches, x: str) -> str:
    """All squares of images, (n_squares, n_features)."""
    name = f"squares of images pooled by {patches.pooling}"
    if patches.pooling > 1:
        n_pixels = int(np.prod(patches.image_shape))
        graph.define(name, partial(_pooled, patches), [((None, n_pixels), np.float32)], ["pooled"])
        (x,) = graph.call(name, [x])
    squares = graph.node("Gather", [x, graph.constant(patches.positions().ravel(), name)], axis=1)
    return graph.node("Reshape", [squares, graph.constant(np.array([-1, patches.n_features]))])


def _pooled(patches: Patches, rows: Tensor) -> tuple[Tensor]:
    """What `Patches.pool` returns."""
    images = tf.reshape(tf.cast(rows, tf.float64), (-1, *patches.image_shape))
    images = tf.transpose(images, (0, 3, 1, 2))
    missing = tf.math.is_nan(images)
    down, across = patches.pooling_matrices()
    total, n_known = (
        tf.transpose(down @ values @ across, (0, 2, 3, 1))
        for values in (tf.where(missing, np.float64(0), images), 1 - tf.cast(missing, tf.float64))
    )
    means = tf.where(n_known > 0, total / tf.maximum(n_known, 1), np.float64(np.nan))
    return (tf.cast(tf.reshape(means, (-1, int(np.prod(patches.seen_shape)))), tf.float32),)


def _about(detector: Detector) -> dict[str, str]:
    about: dict[str, Json] = {"versions": versions("skl2onnx", "tf2onnx"), "offset": detector.offset_}
    if detector.pixel_range_ is not None:
        about["pixel_range"] = detector.pixel_range_
    if hasattr(detector, "feature_names_in_"):
        about["feature_names"] = list(map(str, detector.feature_names_in_))
    if detector.table_ is not None:
        about["columns"] = [
            {
                "name": str(column.name),
                "likelihood": column.taken_as,
                **({} if column.categories is None else {"categories": list(map(str, column.categories))}),
            }
            for column in detector.table_.columns
        ]
    return {name: json.dumps(value) for name, value in about.items()}


# -- the check ----------------------------------------------------------------------------------------------
def _check(detector: Detector, data: bytes) -> None:
    """Refuse a model that scores sampled rows otherwise than the detector."""
    session = session_of(data)
    rng = np.random.RandomState(0)
    rows = _sample_rows(detector, rng)
    gaps = np.where(rng.random_sample(rows.shape) < 0.2, np.nan, rows)
    for position, column in enumerate(() if detector.table_ is None else detector.table_.columns):
        is_text = column.categories is not None and "" in list(column.categories)  # then no text means a gap
        if is_text or column.likelihood is None:
            gaps[:, position] = rows[:, position]
    n_compared = 0
    for X in (rows, 1000 * rows, gaps):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = -replace(detector._fitted, invalid="raise").scores(X)
            except ValueError:  # the detector refuses such rows
                continue
        n_compared += 1
        (scores,) = session.run(_output_names(detector)[:1], _inputs(detector, X))
        wrong = ~(np.abs(scores - expected) <= _TOLERANCE * (1 + np.abs(expected)))
        # The middle of a count is a whole number, which rounding can move.
        if wrong.mean() > (0.1 if X is gaps else 0):
            row = wrong.argmax()
            raise RuntimeError(
                f"the ONNX graph scores a row {scores[row]:.8g}, and score_samples {expected[row]:.8g}; "
                "nothing was written. A converter does not do what Keras or scikit-learn does: try other "
                "versions of tf2onnx and skl2onnx, or save the detector with `save`."
            )
    if not n_compared:
        raise RuntimeError(
            "the ONNX graph cannot be checked, because the detector refuses every row that it samples; "
            "nothing was written. Save the detector with `save`."
        )


def _sample_rows(detector: Detector, rng: np.random.RandomState) -> Floats:
    """Rows as they come through the detector's door."""
    patches = detector._fitted.preparation.patches
    for noise in (True, False):  # pixels with noise may lie outside the support, expected ones do not
        try:
            rows = detector.sample(_ROWS_TO_CHECK, 0, noise=noise)
            rows = rows if detector.table_ is None else detector.table_.numbers(rows)
            rows = np.asarray(rows, dtype=np.float64).reshape(_ROWS_TO_CHECK, -1)
            rows = rows if patches is None else patches.tile(rows)
            replace(detector._fitted, invalid="raise").scores(rows)
        except (IndexError, TypeError, ValueError):  # a scaler without a way back, or that errs on it
            continue
        return np.asarray(rows)
    return scalers.accepted_rows(detector.scaler_, detector.n_features_in_, _ROWS_TO_CHECK, rng)


def _inputs(detector: Detector, X: Floats) -> dict[str, Array]:
    """What the graph is to be given for rows from the detector's door."""
    if detector.table_ is None:
        return {"X": X.reshape(-1, *(detector.image_shape_ or (detector.n_features_in_,)))}
    inputs = {}
    for column, numbers in zip(detector.table_.columns, X.T, strict=True):
        kind = kind_of(column)
        if column.categories is not None:
            known = [kind(category) for category in column.categories]
            missing, unseen = (np.nan, max(known) + 1) if kind is float else ("", "".join(known) + "?")
            numbers = np.array([missing if np.isnan(n) else [*known, unseen][int(n)] for n in numbers])
        if column.likelihood is None:
            numbers = numbers.astype(kind)
        inputs[str(column.name)] = numbers.astype(object if kind is str else np.float64)
    return inputs
