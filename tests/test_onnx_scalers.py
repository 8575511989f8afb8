"""Scalers in an ONNX graph: every one that a model file can hold does there what scikit-learn does."""

import io
import warnings

import numpy as np
import pytest
from conftest import stars, wide
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)

from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.data.scaling import ScalerOfColumns
from vae_anomaly.export import onnx_graph, scalers
from vae_anomaly.files.allow_list import ESTIMATORS, FUNCTIONS
from vae_anomaly.preprocessing import PixelScaler

try:
    onnxruntime, *_ = map(onnx_graph.library, ("onnxruntime", "onnx", "skl2onnx", "tf2onnx"))
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

RNG = np.random.RandomState(0)
POSITIVE = np.abs(RNG.normal(size=(60, 3)) @ RNG.normal(size=(3, 3))) + 0.1
GAPS = np.where(RNG.random_sample(POSITIVE.shape) < 0.2, np.nan, POSITIVE)
GAPS[:, 2] = POSITIVE[:, 2]
CODES = RNG.randint(0, 4, size=POSITIVE.shape).astype(float)
CODES[:, 2] = 7.0  # one category alone
CODES_WITH_GAPS = np.where(np.arange(180).reshape(60, 3) % 11 == 0, np.nan, CODES)
TIES = np.round(POSITIVE, 0)
OF_COUNTS = {"quantile_method": "averaged_inverted_cdf"}

# (transformer, training rows)
CASES = {
    **{f"numpy.{name}": (FunctionTransformer(FUNCTIONS[name]), POSITIVE) for name in FUNCTIONS},
    "no function": (FunctionTransformer(), POSITIVE),
    "function that validates": (FunctionTransformer(np.log1p, validate=True), POSITIVE),
    **{
        f"bins, {encode}, {strategy}": (KBinsDiscretizer(4, encode=encode, strategy=strategy), POSITIVE)
        for encode, strategy in [("onehot", "uniform"), ("onehot-dense", "kmeans"), ("ordinal", "uniform")]
    },
    "two bins": (KBinsDiscretizer([2, 3, 2], encode="ordinal", strategy="uniform"), POSITIVE),
    "pixels": (PixelScaler(), GAPS),
    "pixels of three channels": (PixelScaler(n_channels=3), GAPS),
    "largest size": (MaxAbsScaler(), POSITIVE),
    "range": (MinMaxScaler(), POSITIVE),
    "clipped range": (MinMaxScaler(clip=True), POSITIVE),
    "indicators": (MissingIndicator(features="all"), GAPS),
    "indicators of some": (MissingIndicator(), GAPS),
    "indicators of sevens": (MissingIndicator(missing_values=7.0), CODES),
    **{f"norm {norm}": (Normalizer(norm), POSITIVE) for norm in ("l1", "l2", "max")},
    "categories": (OneHotEncoder(), CODES),
    "categories and gaps": (OneHotEncoder(sparse_output=False), CODES_WITH_GAPS),
    "categories, others ignored": (OneHotEncoder(handle_unknown="ignore"), CODES),
    "categories without the first": (OneHotEncoder(drop="first"), CODES),
    "rare categories": (OneHotEncoder(min_frequency=16, handle_unknown="infrequent_if_exist"), CODES),
    "codes": (OrdinalEncoder(), CODES),
    "codes and gaps": (OrdinalEncoder(encoded_missing_value=-2), CODES_WITH_GAPS),
    "codes, others -1": (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), CODES),
    "components": (PCA(2), POSITIVE),
    "white components": (PCA(whiten=True), POSITIVE),
    "Yeo-Johnson": (PowerTransformer(), POSITIVE - 1),
    "Box-Cox": (PowerTransformer("box-cox", standardize=False), POSITIVE),
    "uniform quantiles": (QuantileTransformer(n_quantiles=20), POSITIVE),
    "normal quantiles": (QuantileTransformer(n_quantiles=33, output_distribution="normal"), POSITIVE),
    "quantiles of ties": (QuantileTransformer(n_quantiles=20), TIES),
    "one quantile": (QuantileTransformer(n_quantiles=1), POSITIVE),
    "robust": (RobustScaler(), POSITIVE),
    **{
        f"imputed {strategy}": (SimpleImputer(strategy=strategy), GAPS)
        for strategy in ("mean", "median", "most_frequent", "constant")
    },
    "imputed sevens": (SimpleImputer(missing_values=7.0, keep_empty_features=True), CODES),
    "imputed, with indicators": (SimpleImputer(add_indicator=True), GAPS),
    "standard": (StandardScaler(), GAPS),
    "columns that vary": (VarianceThreshold(0.5), POSITIVE),
    "imputed and standard": (make_pipeline(SimpleImputer(), StandardScaler()), GAPS),
    "standard and components": (make_pipeline(StandardScaler(), PCA(2)), POSITIVE),
    "norm and clipped range": (make_pipeline(Normalizer(), MinMaxScaler(clip=True)), POSITIVE),
    "a step left out": (Pipeline([("a", "passthrough"), ("b", StandardScaler())]), POSITIVE),
    "column by column": (
        ColumnTransformer(
            [
                ("log", make_pipeline(FunctionTransformer(np.log1p), PowerTransformer()), [2, 0]),
                ("none", StandardScaler(), []),
                ("out", "drop", [1]),
                ("again", SimpleImputer(), slice(0, 2)),
                ("masked", KBinsDiscretizer(3, strategy="uniform"), np.array([False, False, True])),
            ],
            remainder="passthrough",
            transformer_weights={"again": 3.0},
        ),
        GAPS,
    ),
    "the rest": (ColumnTransformer([("a", RobustScaler(), [1])], remainder="passthrough"), GAPS),
    "real columns": (ScalerOfColumns(QuantileTransformer(n_quantiles=9), [2, 0]), POSITIVE),
}

ONE_OF_EACH = {
    *(
        "numpy.log",
        "bins, onehot, uniform",
        "largest size",
        "pixels of three channels",
        "clipped range",
        "indicators of some",
        "norm max",
    ),
    *("categories", "codes", "white components", "Yeo-Johnson", "Box-Cox", "normal quantiles", "robust"),
    *("imputed, with indicators", "standard", "columns that vary", "norm and clipped range", "the rest"),
}


def new_rows(X):
    """The training rows and others: with gaps, far away, negative, on borders, unknown."""
    complete = np.nan_to_num(X, nan=1.0)
    others = [np.where(np.eye(3, dtype=bool), value, complete[:3]) for value in (np.nan, -1.0, 0.0, 2.5, 7.0)]
    far = [complete[:5] * factor for factor in (-30.0, 1e-9, 40.0)]
    return np.concatenate([X, *others, *far, np.zeros((1, 3))])


def expected(transformer, rows):
    """By scikit-learn, row by row; infinite where it refuses one."""
    results = []
    for row in rows:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                result = transformer.transform(row[None].copy())
            except ValueError:
                results.append(None)
                continue
        results.append(np.asarray(result.todense() if sparse.issparse(result) else result, dtype=float)[0])
    width = max(len(result) for result in results if result is not None)
    return np.array([np.full(width, np.inf) if result is None else result for result in results])


def graph_of(transformer):
    graph = onnx_graph.Graph({})
    X = graph.input("X", np.float64, ("n_rows", 3))
    rows = scalers.scaled(graph, X, transformer, 3)
    graph._outputs.append(graph._value_info(rows, np.float64, ("n_rows", None)))
    return onnxruntime.InferenceSession(graph.model({}).SerializeToString())


@pytest.mark.parametrize("case", stars(dict(zip(CASES, CASES, strict=True)), ONE_OF_EACH))
def test_a_graph_transforms_as_scikit_learn_and_marks_rows_that_it_refuses(case):
    transformer, X = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty columns, of bins
        transformer = transformer.fit(X.copy())
    rows = new_rows(X)
    graph = graph_of(transformer)
    (found,), wanted = graph.run(None, {"X": rows}), expected(transformer, rows)
    for results in (found, wanted):  # one infinite value is enough for a detector
        results[np.isinf(results).any(axis=1)] = np.inf
    of_floats = isinstance(transformer, PixelScaler)  # which rounds the pixels
    np.testing.assert_allclose(
        found, wanted, rtol=1e-6 if of_floats else 1e-9, atol=1e-6 if of_floats else 1e-12
    )
    assert np.isfinite(wanted).any(axis=1).mean() > 0.5
    assert graph.run(None, {"X": rows[:0]})[0].shape == (0, wanted.shape[1])


def test_every_scaler_that_a_model_file_can_hold_is_tested():
    tested = {type(transformer).__name__ for transformer, _ in CASES.values()}
    assert tested == set(ESTIMATORS) - {"Member", "KerasNetwork"}


def assert_exported(scaler, X):
    detector = VAEDetector(
        DenseNetwork(()), latent_dim=1, epochs=2, n_draws=1, members=1, scaler=scaler, random_state=0
    ).fit(X)
    detector.to_onnx(file := io.BytesIO())
    rows = new_rows(X)
    rows[5, 1] = np.inf
    (scores,) = onnxruntime.InferenceSession(file.getvalue()).run(["score_samples"], {"X": rows})
    for row, score in zip(rows, scores, strict=True):
        try:
            wanted = detector.score_samples(row[None])
        except ValueError:
            wanted = np.nan
        np.testing.assert_allclose(score, wanted, rtol=1e-4, atol=1e-4)
    return np.isfinite(scores).mean()


# Each takes seconds, most of them for the conversion of the network.
@pytest.mark.parametrize("case", ["column by column", *map(wide, sorted(ONE_OF_EACH))])
@pytest.mark.wide
def test_a_detector_with_the_scaler_scores_in_a_graph_as_it_does(case):
    scaler, X = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        share = assert_exported(scaler, X)
    assert share > 0.5


def test_each_kind_of_scaler_is_exported():
    exported = {type(CASES[case][0]) for case in {*ONE_OF_EACH, "column by column"}}
    assert exported == {type(scaler) for scaler, _ in CASES.values()} - {ScalerOfColumns}


def test_a_function_of_ones_own_is_named_with_those_that_a_graph_can_have():
    with pytest.raises(NotImplementedError, match="a FunctionTransformer of tanh.*numpy's arcsinh, cbrt"):
        graph_of(FunctionTransformer(np.tanh).fit(POSITIVE))


def test_a_function_with_arguments_is_refused():
    scaler = FunctionTransformer(np.log, kw_args={"where": True}).fit(POSITIVE)
    with pytest.raises(NotImplementedError, match="a FunctionTransformer of log with kw_args"):
        graph_of(scaler)


def test_a_step_that_no_converter_knows_is_named():
    class Own(StandardScaler):
        """Of the user's."""

    with pytest.raises(NotImplementedError, match="the detector's scaler, an? Own.*before the detector"):
        graph_of(make_pipeline(SimpleImputer(), Own()).fit(GAPS))


def test_a_step_that_a_file_cannot_hold_is_converted_if_skl2onnx_knows_it():
    scaler = make_pipeline(FunctionTransformer(np.log1p), TruncatedSVD(2, random_state=0)).fit(POSITIVE)
    (found,) = graph_of(scaler).run(None, {"X": POSITIVE})
    np.testing.assert_allclose(found, scaler.transform(POSITIVE), rtol=1e-9)


def test_a_scaler_whose_converted_graph_no_runtime_takes_is_named():
    with pytest.raises(NotImplementedError, match="the detector's scaler, a PolynomialFeatures"):
        graph_of(PolynomialFeatures(2).fit(POSITIVE))
