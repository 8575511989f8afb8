"""Pipelines that end in a detector, exported by skl2onnx: the graph gives their scores and labels."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
from conftest import wide
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from vae_anomaly import ConvNetwork, DenseNetwork, VAEDetector
from vae_anomaly.export import onnx_graph
from vae_anomaly.export import onnx_model as onnx_export

try:
    onnxruntime, onnx, skl2onnx, _ = map(onnx_graph.library, ("onnxruntime", "onnx", "skl2onnx", "tf2onnx"))
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

from skl2onnx.common.data_types import (
    DictionaryType,
    DoubleTensorType,
    FloatTensorType,
    Int64TensorType,
    StringTensorType,
)

TOLERANCE = 1e-4  # of 1 + |score|, as the documentation says
RNG = np.random.RandomState(0)
REAL = RNG.normal(size=(400, 4)) @ RNG.normal(size=(4, 4)) + 3.0
NEAR_AND_FAR = np.concatenate([REAL, 1e3 * REAL[:50]])


def small(**settings):
    return VAEDetector(
        **{
            "network": DenseNetwork(()),
            "latent_dim": 2,
            "epochs": 3,
            "n_draws": 1,
            "members": 1,
            "random_state": 0,
            **settings,
        }
    )


def with_gaps(X):
    return np.where(np.random.RandomState(1).random_sample(X.shape) < 0.2, np.nan, X)


@pytest.fixture(scope="module", autouse=True)
def each_detector_is_converted_once():
    """To the graph, checked, that all pipelines take it over from; what they do with it is done anew."""
    convert, check, known, checked = onnx_export._model_of, onnx_export._check, {}, set()

    def model_of(detector):
        if id(detector) not in known:
            known[id(detector)] = detector, convert(detector)
        return copy.deepcopy(known[id(detector)][1])

    def check_once(detector, data):
        if (id(detector), data) not in checked:
            check(detector, data)
            checked.add((id(detector), data))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "_model_of", model_of)
        patch.setattr(onnx_export, "_check", check_once)
        yield


@pytest.fixture(scope="module")
def standardized():
    return make_pipeline(StandardScaler(), small(scaler=None, members=2, n_draws=3)).fit(REAL[:200])


@pytest.fixture(scope="module")
def imputed():
    return make_pipeline(SimpleImputer(), PCA(2), small()).fit(with_gaps(REAL[:200]))


def session(model):
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString())


def assert_same(model, pipeline, X, feed, dtype=np.float64):
    """Scores and labels, of the first rows alone and of none too; returns the labels."""
    graph, offset = session(model), pipeline[-1].offset_
    expected, labels = pipeline.decision_function(X), pipeline.predict(X)
    clear = (expected >= 0) | (expected < -2 * TOLERANCE * (1 + abs(offset)))
    assert clear.mean() > 0.98
    for size in (0, 1, 7, len(X)):
        label, scores = graph.run(["label", "scores"], {name: v[:size] for name, v in feed.items()})
        assert (label.dtype, scores.dtype) == (np.int64, dtype)
        assert label.shape == scores.shape == (size, 1)
        difference = np.abs(scores[:, 0] - expected[:size])
        assert (difference <= TOLERANCE * (1 + np.abs(expected[:size] + offset))).all()
        np.testing.assert_array_equal(label[clear[:size], 0], labels[:size][clear[:size]])
    return label


# -- scores and labels -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("dtype", "gaps"),
    [(np.float32, True), wide(np.float64, False), wide(np.float64, True), wide(np.float32, False)],
)
def test_a_standardized_detector_is_its_graph(standardized, dtype, gaps):
    """Missing values reach the detector; the labels are those of the decision function's sign."""
    X = (with_gaps(NEAR_AND_FAR) if gaps else NEAR_AND_FAR).astype(dtype)
    labels = assert_same(skl2onnx.to_onnx(standardized, X[:1]), standardized, X, {"X": X}, dtype)
    assert set(labels.ravel()) == {-1, 1}


def test_steps_before_the_detector_are_in_the_graph(imputed):
    """In float32: onnxruntime has no float64 imputer, which is what skl2onnx makes of one."""
    X = with_gaps(NEAR_AND_FAR).astype(np.float32)
    assert_same(skl2onnx.to_onnx(imputed, X[:1]), imputed, X, {"X": X}, np.float32)


def test_a_projection_before_the_detector_is_in_a_graph_of_float64(imputed):
    pipeline = imputed[1:]
    assert_same(skl2onnx.to_onnx(pipeline, REAL[:1]), pipeline, NEAR_AND_FAR, {"X": NEAR_AND_FAR})


def test_columns_go_in_by_name_and_texts_are_encoded(standardized):
    X = pd.DataFrame(REAL[:, :2], columns=["x", "y"]).assign(kind=np.where(REAL[:, 2] > 3, "flat", "house"))
    encoder = ColumnTransformer([("kind", OneHotEncoder(), ["kind"]), ("rest", "passthrough", ["x", "y"])])
    pipeline = make_pipeline(encoder.fit(X), standardized[-1])
    types = {"x": FloatTensorType, "y": FloatTensorType, "kind": StringTensorType}
    initial_types = [(name, kind([None, 1])) for name, kind in types.items()]
    model = skl2onnx.convert_sklearn(pipeline, initial_types=initial_types)
    feed = {name: X[[name]].to_numpy(object if name == "kind" else np.float32) for name in X}
    assert_same(model, pipeline, X, feed, np.float32)


def test_a_pipeline_in_a_pipeline_is_its_graph(standardized):
    nested = Pipeline([("first", Pipeline([("scale", standardized[0])])), ("then", standardized[1:])])
    model = skl2onnx.to_onnx(nested, REAL[:1], target_opset=18)
    assert_same(model, standardized, NEAR_AND_FAR, {"X": NEAR_AND_FAR})


def test_a_detector_alone_is_its_graph_and_gives_score_samples_on_demand(standardized):
    detector = standardized[-1]
    options = {id(detector): {"score_samples": True}}
    graph = session(skl2onnx.to_onnx(detector, REAL[:1], options=options))
    assert [output.name for output in graph.get_outputs()] == ["label", "scores", "score_samples"]
    _, decision, scores = graph.run(None, {"X": REAL})
    np.testing.assert_allclose(scores[:, 0], detector.score_samples(REAL), rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_array_equal(decision, scores - detector.offset_)


@pytest.mark.wide
@pytest.mark.parametrize(
    "options", [{"vaedetector__score_samples": True}, {VAEDetector: {"score_samples": True}}]
)
def test_score_samples_are_asked_for_by_the_name_of_the_step_or_the_class(standardized, options):
    graph = session(skl2onnx.to_onnx(standardized, REAL[:1], options=options))
    (scores,) = graph.run(["score_samples"], {"X": REAL})
    np.testing.assert_allclose(scores[:, 0], standardized.score_samples(REAL), rtol=TOLERANCE, atol=TOLERANCE)


def test_an_unknown_option_is_named(standardized):
    with pytest.raises(NameError, match="no option 'zipmap'.*score_samples"):
        skl2onnx.to_onnx(standardized, REAL[:1], options={id(standardized[-1]): {"zipmap": False}})


@pytest.mark.wide
def test_the_best_detector_of_a_search_is_its_graph():
    search = GridSearchCV(small(), {"beta": [1.0]}, scoring=lambda detector, X, y=None: 0.0, cv=2)
    search.fit(REAL[:100])
    model = skl2onnx.to_onnx(search, REAL[:1])
    assert_same(model, make_pipeline(search.best_estimator_), REAL, {"X": REAL})


@pytest.mark.parametrize("dtype", [np.float32, wide(np.float64)])
def test_infinite_values_are_impossible_where_no_step_refuses_them(standardized, dtype):
    """scikit-learn's scaler raises an error for them, that of skl2onnx lets them through."""
    X = REAL[:4].astype(dtype)
    X[1, 0], X[2, :2], X[3, 3] = np.inf, [-np.inf, np.inf], np.nan
    pipeline = make_pipeline(FunctionTransformer(), standardized[-1])
    for exported in (pipeline, standardized):
        label, scores = session(skl2onnx.to_onnx(exported, X[:1])).run(None, {"X": X})
        assert np.round(scores[:, 0] / dtype(-1e30)).tolist() == [0, 1, 2, 0]
        assert label[1:3, 0].tolist() == [-1, -1]
    np.testing.assert_allclose(pipeline.decision_function(X)[1:3], [-1e30, -2e30], rtol=1e-6)


# -- mixed tables and images -----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def homes():
    rng = np.random.RandomState(0)
    frame = pd.DataFrame({"kind": rng.choice(["studio", "flat", "house"], 200)})
    frame["x"] = rng.normal(80.0, 20.0, 200)
    frame["rooms"] = rng.poisson(3.0, 200)
    return frame


@pytest.fixture(scope="module")
def of_homes(homes):
    return small().fit(homes)


@pytest.mark.wide
def test_a_detector_of_mixed_columns_takes_them_by_name_in_any_order_and_of_any_number_type(of_homes, homes):
    types = {"rooms": Int64TensorType, "kind": StringTensorType, "x": FloatTensorType}
    model = skl2onnx.to_onnx(
        make_pipeline(of_homes), initial_types=[(name, kind([None, 1])) for name, kind in types.items()]
    )
    homes = homes.assign(x=homes["x"].astype(np.float32))
    homes.loc[:5, "kind"] = "castle"
    feed = {name: homes[[name]].to_numpy(object if name == "kind" else None) for name in types}
    assert_same(model, make_pipeline(of_homes), homes, feed, np.float32)


@pytest.mark.wide
def test_a_dataframe_says_what_goes_in(of_homes, homes):
    model = skl2onnx.to_onnx(of_homes, homes[:1])
    assert [value.name for value in model.graph.input] == list(homes)
    feed = {name: homes[[name]].to_numpy(object if name == "kind" else None) for name in homes}
    assert_same(model, make_pipeline(of_homes), homes, feed)


@pytest.mark.wide
def test_numbers_for_a_column_of_texts_are_refused(of_homes):
    with pytest.raises(
        TypeError, match="column 'kind' of the detector takes texts.*export the detector alone"
    ):
        skl2onnx.to_onnx(of_homes, initial_types=[("X", DoubleTensorType([None, 3]))])


@pytest.mark.wide
def test_texts_for_a_column_of_numbers_are_refused(of_homes):
    with pytest.raises(
        TypeError, match="column 'x' of the detector takes numbers; the pipeline passes texts"
    ):
        skl2onnx.to_onnx(of_homes, initial_types=[("X", StringTensorType([None, 3]))])


def test_texts_for_a_detector_of_numbers_are_refused(standardized):
    with pytest.raises(TypeError, match="takes numbers only; the pipeline passes texts, as 'X'"):
        skl2onnx.to_onnx(standardized[-1], initial_types=[("X", StringTensorType([None, 4]))])


def test_what_is_no_tensor_is_refused(standardized):
    dictionary = DictionaryType(StringTensorType([1]), FloatTensorType([1]))
    with pytest.raises(TypeError, match="takes tensors; the pipeline passes DictionaryType.*as 'X'"):
        skl2onnx.to_onnx(standardized[-1], initial_types=[("X", dictionary)])


@pytest.mark.parametrize(
    "shapes", [([None, 2], [None, 2]), wide(([None], [None, 3])), wide(([None, 3], [None]))]
)
def test_several_tensors_of_numbers_are_one_table_in_their_order(standardized, shapes):
    types = [DoubleTensorType, FloatTensorType]
    initial_types = [(name, kind(shape)) for name, kind, shape in zip("ab", types, shapes, strict=True)]
    model = skl2onnx.to_onnx(standardized[-1], initial_types=initial_types)
    X = REAL.astype(np.float32)
    first = 1 if len(shapes[0]) == 1 else shapes[0][1]
    a, b = (
        table[:, 0] if len(shape) == 1 else table
        for table, shape in zip((X[:, :first], X[:, first:]), shapes, strict=True)
    )
    assert_same(model, standardized[-1:], X, {"a": a.astype(float), "b": b})


@pytest.mark.wide
def test_columns_of_numbers_go_in_by_name_in_any_order():
    frame = pd.DataFrame(REAL[:, :3], columns=["x", "y", "z"])
    detector = small().fit(frame[:200])
    model = skl2onnx.to_onnx(detector, frame[["z", "x", "y"]][:1])
    assert [value.name for value in model.graph.input] == ["z", "x", "y"]
    assert_same(model, make_pipeline(detector), frame, {name: frame[[name]].to_numpy() for name in frame})


def test_another_number_of_columns_is_refused(standardized):
    with pytest.raises(ValueError, match="fitted on 4 columns; the pipeline passes 3"):
        skl2onnx.to_onnx(standardized[-1], REAL[:1, :3])


@pytest.mark.wide
def test_images_go_in_as_bytes_or_in_units_of_255():
    images = np.random.RandomState(0).randint(256, size=(40, 4, 5, 2)).astype(np.uint8)
    detector = small(network=ConvNetwork(filters=(2,), dense_units=())).fit(images)
    for X in (images, (images / 255).astype(np.float32), images / 255):
        dtype = np.float64 if X.dtype == np.float64 else np.float32
        assert_same(skl2onnx.to_onnx(detector, X[:1]), make_pipeline(detector), images, {"X": X}, dtype)
        with pytest.raises(ValueError, match=r"images of shape \(4, 5, 2\); the pipeline passes"):
            skl2onnx.to_onnx(detector, X[:1, :3])


# -- versions and names ----------------------------------------------------------------------------------
def versions(model):
    return {opset.domain: opset.version for opset in model.opset_import}


@pytest.mark.parametrize("target", [18, *map(wide, (19, 20, 21)), 22])
def test_the_version_of_the_operators_is_the_one_asked_for(standardized, target):
    model = skl2onnx.to_onnx(standardized, REAL[:1], target_opset=target)
    assert versions(model)[""] == target
    assert {versions(function)[""] for function in model.functions} == {target}
    assert_same(model, standardized, REAL, {"X": REAL})


@pytest.mark.wide
def test_every_function_has_the_versions_of_the_whole_graph(of_homes, homes):
    model = skl2onnx.to_onnx(of_homes, homes[:1], target_opset={"": 20, "ai.onnx.ml": 3})
    assert versions(model)["ai.onnx.ml"] == 2  # of the encoder of texts
    for function in model.functions:
        assert versions(function).items() <= versions(model).items()


def test_a_version_before_the_detectors_is_refused(standardized):
    with pytest.raises(ValueError, match=r"version 18 or later; received target_opset=17\. Ask for"):
        skl2onnx.to_onnx(standardized, REAL[:1], target_opset=17)


def test_a_version_that_no_runtime_takes_is_refused(standardized):
    model = onnx_export._model_of(standardized[-1])
    with pytest.raises(NotImplementedError, match="cannot be written in version 1000.*target_opset=18"):
        onnx_graph.with_operators(model, 1000)


def test_operators_that_are_excluded_are_refused(standardized):
    with pytest.raises(RuntimeError, match="'MatMul' is black listed"):
        skl2onnx.to_onnx(standardized, REAL[:1], black_op={"MatMul"})


class Both:
    """Two pipelines for the same rows."""

    def __init__(self, *pipelines):
        self.pipelines = pipelines


def parse_both(scope, model, inputs, custom_parsers=None):
    return [
        variable
        for pipeline in model.pipelines
        for variable in skl2onnx._parse.parse_sklearn(scope, pipeline, inputs)
    ]


def test_two_detectors_can_be_in_one_graph(standardized, imputed):
    """Also one of them twice; skl2onnx numbers their outputs."""
    both = Both(standardized, imputed, standardized)
    initial_types = [("X", FloatTensorType([None, 4]))]
    model = skl2onnx.convert_sklearn(both, initial_types=initial_types, custom_parsers={Both: parse_both})
    X = REAL.astype(np.float32)
    outputs = session(model).run(None, {"X": X})
    for pipeline, scores in zip(both.pipelines, outputs[1::2], strict=True):
        np.testing.assert_allclose(
            scores[:, 0], pipeline.decision_function(X), rtol=TOLERANCE, atol=TOLERANCE
        )


def test_two_exported_pipelines_share_no_function(standardized, imputed):
    """So that their graphs can be merged."""
    models = [skl2onnx.to_onnx(pipeline, REAL[:1].astype(np.float32)) for pipeline in (standardized, imputed)]
    first, second = ({(f.domain, f.name) for f in model.functions} for model in models)
    assert first
    assert second
    assert first.isdisjoint(second)


# -- errors and what stays as it was ---------------------------------------------------------------------
def test_a_detector_that_is_not_fitted_is_refused(standardized):
    pipeline = make_pipeline(standardized[0], VAEDetector())
    with pytest.raises(NotFittedError):
        skl2onnx.to_onnx(pipeline, REAL[:1])


def test_what_to_onnx_refuses_is_refused_with_the_same_error(tmp_path):
    scaler = FunctionTransformer(np.tanh)
    pipeline = make_pipeline(StandardScaler(), small(scaler=scaler).fit(REAL[:50]))
    pipeline[0].fit(REAL[:50])
    with pytest.raises(NotImplementedError, match="FunctionTransformer of tanh") as by_pipeline:
        skl2onnx.to_onnx(pipeline, REAL[:1])
    with pytest.raises(NotImplementedError) as alone:
        pipeline[-1].to_onnx(tmp_path / "detector.onnx")
    assert str(by_pipeline.value) == str(alone.value)


def test_without_local_functions_it_says_which_skl2onnx_is_needed(standardized, monkeypatch):
    container = skl2onnx.common._container.ModelComponentContainer
    initialize = container.__init__

    def as_of_old(self, *args, **kwargs):
        initialize(self, *args, **kwargs)
        del self.local_functions

    monkeypatch.setattr(container, "__init__", as_of_old)
    with pytest.raises(ImportError, match=r"needs skl2onnx 1\.19\.1 or later"):
        skl2onnx.to_onnx(standardized, REAL[:1])


def test_exporting_registers_nothing_and_leaves_the_detector_as_it_was(standardized):
    detector = standardized[-1]
    before, attributes = pickle.dumps(detector), set(vars(detector))
    skl2onnx.to_onnx(standardized, REAL[:1])
    assert VAEDetector not in skl2onnx._supported_operators.sklearn_operator_name_map
    assert VAEDetector not in skl2onnx._parse.sklearn_parsers_map
    assert set(vars(detector)) == attributes
    assert pickle.dumps(detector) == before
    assert clone(detector).get_params().keys() == detector.get_params().keys()
