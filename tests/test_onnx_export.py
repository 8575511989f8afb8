"""ONNX export: the graph gives the detector's scores and labels, with nothing but a runtime."""

import copy
import io
import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import wide
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    MinMaxScaler,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)

from vae_anomaly import ConvNetwork, DenseNetwork, KerasNetwork, Member, VAEDetector
from vae_anomaly.core.backend import keras, tf
from vae_anomaly.export import onnx_graph
from vae_anomaly.export import onnx_model as onnx_export
from vae_anomaly.likelihoods import Categorical, Gaussian, Laplace
from vae_anomaly.scoring import SCORES
from vae_anomaly.scoring.score import Score

try:
    onnxruntime, onnx, *_ = map(onnx_graph.library, ("onnxruntime", "onnx", "skl2onnx", "tf2onnx"))
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

TOLERANCE = 1e-4  # of 1 + |score|, as the documentation says
OUTPUTS = ["score_samples", "decision_function", "label"]


def small(**settings):
    return VAEDetector(
        **{
            "network": DenseNetwork(hidden_units=(5,)),
            "latent_dim": 2,
            "epochs": 3,
            "n_draws": 3,
            "members": 2,
            "random_state": 0,
            **settings,
        }
    )


def session(detector, tmp_path):
    path = tmp_path / "detector.onnx"
    detector.to_onnx(path)
    return onnxruntime.InferenceSession(path)


def assert_same(graph, detector, X, feed=None, sizes=()):
    """Also of the first rows alone, in batches of other sizes."""
    expected, labels = detector.score_samples(X), detector.predict(X)
    decision = detector.decision_function(X)
    clear = (decision >= 0) | (decision < -2 * TOLERANCE * (1 + abs(detector.offset_)))
    assert clear.mean() > 0.98
    for size in (*sizes, len(X)):
        given = {"X": X} if feed is None else feed
        found = graph.run(OUTPUTS, {name: values[:size] for name, values in given.items()})
        assert [values.dtype for values in found] == [np.float64, np.float64, np.int64]
        assert [values.shape for values in found] == [(size,)] * 3
        assert (np.abs(found[0] - expected[:size]) <= TOLERANCE * (1 + np.abs(expected[:size]))).all()
        np.testing.assert_array_equal(found[1], found[0] - detector.offset_)
        np.testing.assert_array_equal(found[2][clear[:size]], labels[:size][clear[:size]])


RNG = np.random.RandomState(0)
REAL = RNG.normal(size=(1000, 4)) @ RNG.normal(size=(4, 4))
UNIT = RNG.random_sample((1000, 4))
BINARY = np.round(UNIT)
COUNTS = RNG.poisson(4.0, size=(1000, 4)).astype(float)


def with_gaps(X, share=0.2):
    return np.where(np.random.RandomState(1).random_sample(X.shape) < share, np.nan, X)


CASES = {
    **{
        f"gaussian, {score}": (small(likelihood="gaussian", score=score), REAL, [1e3, 1e6, 1e13])
        for score in SCORES
    },
    "laplace, elbo": (small(likelihood=Laplace(scale="per_row"), score="elbo"), REAL, [1e3, 1e13]),
    "a scale per row in one member": (
        small(likelihood="gaussian", members=[Member(), Member(scale="per_row")], score="elbo"),
        REAL,
        [1e3, 1e13],
    ),
    "student_t, iwae": (small(likelihood="student_t", score="iwae"), REAL, [1e3, 1e13]),
    "bernoulli, error": (small(likelihood="bernoulli", score="reconstruction_error"), BINARY, []),
    "unit_gaussian, elbo": (small(likelihood="unit_gaussian", score="elbo"), UNIT, []),
    "continuous_bernoulli, iwae": (small(likelihood="continuous_bernoulli", score="iwae"), UNIT, []),
    "count, elbo": (small(likelihood="count", score="elbo"), COUNTS, [1e3, 1e6, 1e12]),
    "more draws than are taken at once": (small(n_draws=70), REAL, [1e3, 1e13]),
    "trained on rows with gaps": (small(members=1), with_gaps(REAL, 0.05), [1e3, 1e13]),
    "normalized and dropped out": (
        small(network=DenseNetwork((6,), activation="gelu", batch_normalization=True, dropout=0.1)),
        REAL,
        [1e3],
    ),
    "a score of one's own": (
        small(
            score=Score(
                lambda vae, x, inferred: -keras.ops.min(vae.likelihood.log_prob(x, inferred.parameters), -1),
                lambda values, kl: kl + keras.ops.max(values, axis=0),
            )
        ),
        REAL,
        [1e3],
    ),
}


# The others take ten seconds each, most of them for the conversion; `written`, below, is "gaussian, elbo".
ALWAYS = {"trained on rows with gaps"}


def assert_all_rows_have_the_same(graph, detector, X, factors):
    """Of rows like those of the training, of far ones and of such with gaps."""
    far = [factor * X[:50] for factor in factors]
    rows = np.concatenate([X, *far, with_gaps(X[:200]), np.full((2, X.shape[1]), np.nan)])
    assert_same(graph, detector, rows, sizes=(1, 7, 1000))


@pytest.mark.parametrize(
    ("detector", "X", "factors"),
    [
        pytest.param(*case, id=name, marks=() if name in ALWAYS else pytest.mark.long)
        for name, case in CASES.items()
        if name != "gaussian, elbo"
    ],
)
def test_scores_and_labels_are_the_detectors(detector, X, factors, tmp_path):
    detector.fit(X[:200])
    assert_all_rows_have_the_same(session(detector, tmp_path), detector, X, factors)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_scores_and_labels_of_a_written_file_are_the_detectors(written):
    detector, _, path = written
    _, X, factors = CASES["gaussian, elbo"]
    assert_all_rows_have_the_same(onnxruntime.InferenceSession(path), detector, X, factors)


@pytest.mark.wide
def test_whitened_members_are_in_the_graph(tmp_path):
    detector = small(members=[Member(), Member(column_transform="whiten")]).fit(REAL[:200])
    rows = np.concatenate([with_gaps(REAL[:50]), 1e6 * REAL[:10]])
    assert_same(session(detector, tmp_path), detector, rows, sizes=(1,))


@pytest.mark.long
def test_the_default_detector_is_its_graph(table, tmp_path):
    X, _ = table
    detector = VAEDetector(random_state=0).fit(X)
    assert_same(session(detector, tmp_path), detector, np.concatenate([X, 1e9 * X]), sizes=(1, 7, 500))


def keras_network(n_features, latent_dim):
    x = keras.Input((n_features,))
    hidden = keras.layers.Dense(6, activation="swish")(keras.layers.LayerNormalization()(x))
    encoder = keras.Model(x, keras.layers.Dense(2 * latent_dim)(hidden))
    layers = [keras.layers.Dense(6, activation="elu"), keras.layers.Dense(n_features)]
    return KerasNetwork(encoder, keras.Sequential([keras.Input((latent_dim,)), *layers]))


@pytest.mark.wide
def test_keras_models_of_ones_own(tmp_path):
    detector = small(network=keras_network(4, 2), members=1, likelihood=Gaussian(0.5)).fit(REAL[:200])
    rows = np.concatenate([REAL, 1e6 * REAL, with_gaps(REAL)])
    assert_same(session(detector, tmp_path), detector, rows, sizes=(1, 7, 1000))


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory):
    """A detector of images with two channels, and its graph."""
    images = np.random.RandomState(0).randint(256, size=(40, 4, 5, 2)).astype(np.uint8)
    network = ConvNetwork(filters=(2,), dense_units=())
    detector = small(network=network, members=1, n_draws=1).fit(images)
    path = tmp_path_factory.mktemp("of_bytes") / "detector.onnx"
    detector.to_onnx(path)
    return detector, images, path


@pytest.mark.wide
def test_images_go_in_as_images_and_in_the_units_that_the_graph_of_bytes_names(of_bytes):
    detector, images, path = of_bytes
    graph = onnxruntime.InferenceSession(path)
    assert graph.get_inputs()[0].shape == ["n_rows", 4, 5, 2]
    low, high = json.loads(graph.get_modelmeta().custom_metadata_map["pixel_range"])
    assert (low, high) == (0, 1)
    assert_same(graph, detector, images, {"X": images / 255}, sizes=(1, 7))
    in_units = images / 255
    rows = np.concatenate([in_units, np.round(in_units), with_gaps(in_units)])
    assert_same(graph, detector, rows, sizes=(1, 7, 80))


@pytest.mark.wide
@pytest.mark.parametrize("shape", [(5, 7), (6, 6, 2)])
def test_images_go_in_as_images(shape, tmp_path):
    images = np.random.RandomState(0).random_sample((40, *shape))
    network = ConvNetwork(filters=(3, 4), dense_units=(5,), batch_normalization=True)
    detector = small(network=network, members=1).fit(images)
    graph = session(detector, tmp_path)
    assert graph.get_inputs()[0].shape == ["n_rows", *shape]
    rows = np.concatenate([images, np.round(images), with_gaps(images)])
    assert_same(graph, detector, rows, sizes=(1, 7, 80))


@pytest.mark.parametrize(
    "scaler",
    [
        wide(None),
        wide(MinMaxScaler()),
        wide(QuantileTransformer(n_quantiles=20)),
        wide(RobustScaler()),
        make_pipeline(StandardScaler(), PCA(2)),
    ],
    ids=repr,
)
def test_the_scaler_is_in_the_graph(scaler, tmp_path):
    detector = small(scaler=scaler, members=1, network=DenseNetwork(())).fit(REAL[:200])
    rows = np.concatenate([REAL, 30 * REAL])
    assert_same(session(detector, tmp_path), detector, rows, sizes=(1,))


# -- tables of mixed columns -----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def homes():
    rng = np.random.RandomState(0)
    frame = pd.DataFrame({"kind": rng.choice(["studio", "flat", "house"], 300)})
    frame["note"] = rng.choice(["", "late"], 300)
    frame["x"] = rng.normal(80.0, 20.0, 300)
    frame["rooms"] = rng.poisson(3.0, 300)
    frame["floor"] = pd.Categorical(rng.choice([1, 2, 5], 300))
    frame["garden"] = rng.random_sample(300) < 0.3
    return frame


@pytest.fixture(scope="module")
def of_homes(homes, tmp_path_factory):
    """A detector of homes to which kinds that it has not seen are an error, and its graph."""
    detector = small(likelihood={"kind": Categorical(unseen="raise")}, members=1, n_draws=1).fit(homes)
    path = tmp_path_factory.mktemp("of_homes") / "detector.onnx"
    detector.to_onnx(path)
    return detector, onnxruntime.InferenceSession(path)


TEXTS = ("kind", "note")


def columns(frame):
    texts = {name: frame[name].fillna("").to_numpy(object) for name in TEXTS}
    return texts | {name: frame[name].to_numpy(float) for name in frame if name not in TEXTS}


def new_homes(homes):
    """With categories that no training row has and far values; and the same with gaps."""
    new = homes[:50].copy()
    new.loc[:10, "note"] = "castle"
    new["floor"] = new["floor"].astype(float)
    new.loc[20:30, "floor"] = 7.0
    new.loc[25:40, "x"] = 1e12
    incomplete = new.copy()
    incomplete.loc[5:15, ["kind", "x"]] = [None, np.nan]
    return new, incomplete


def test_columns_of_a_mixed_table_go_in_by_name(homes, of_homes):
    detector, graph = of_homes
    types = {value.name: value.type for value in graph.get_inputs()}
    assert types == {name: "tensor(string)" if name in TEXTS else "tensor(double)" for name in homes}
    for frame in (homes, *new_homes(homes)):
        assert_same(graph, detector, frame, columns(frame), sizes=(1,))


def test_an_empty_text_can_be_a_category(homes, of_homes):
    detector, graph = of_homes
    empty = homes[:20].assign(note="")
    late = homes[:20].assign(note="late")
    scores = [graph.run(OUTPUTS, columns(frame))[0] for frame in (empty, late)]
    assert (scores[0] != scores[1]).all()
    assert_same(graph, detector, empty, columns(empty))


def test_unseen_categories_that_are_an_error_are_impossible_in_a_graph(homes, of_homes):
    new = homes[:2].assign(kind=["flat", "castle"])
    scores, _, labels = of_homes[1].run(OUTPUTS, columns(new))
    assert np.round(scores / -1e30).tolist() == [0, 1]
    assert labels[1] == -1


@pytest.mark.wide
@pytest.mark.parametrize("gaps", [False, True])
def test_columns_of_a_mixed_table_go_in_by_name_to_several_members(homes, gaps, tmp_path):
    new = new_homes(homes)
    if gaps:
        homes = homes.copy()
        homes.loc[:40, "x"] = np.nan
    detector = small().fit(homes)
    graph = session(detector, tmp_path)
    for frame in (homes, *new, new[0].assign(kind="castle")):
        assert_same(graph, detector, frame, columns(frame), sizes=(1,))


def test_categories_that_are_neither_texts_nor_numbers_are_refused(tmp_path):
    X = pd.DataFrame({"day": pd.to_datetime(["2020-01-01", "2020-01-02"] * 20), "x": range(40)})
    detector = small(likelihood={"day": "categorical"}, members=1).fit(X)
    with pytest.raises(NotImplementedError, match="column 'day' holds categories.*Timestamp.*astype"):
        detector.to_onnx(tmp_path / "detector.onnx")


@pytest.mark.wide
def test_columns_that_are_left_out_go_in_and_change_nothing_and_numbers_as_text_go_in_as_numbers(tmp_path):
    X = pd.DataFrame({"size": REAL[:100, 0], "price": [f"{value:.3f}" for value in REAL[:100, 1]]})
    X["customer"], X["row"] = [f"C{i}" for i in range(100)], range(100)
    X["city"] = np.where(REAL[:100, 2] > 0, "Bern", "Genf")
    chosen = {"price": "gaussian", "customer": "ignored", "row": "ignored"}
    detector = small(likelihood=chosen, members=1, n_draws=1).fit(X)
    graph = session(detector, tmp_path)
    feed = {name: X[name].to_numpy(object if name in ("customer", "city") else float) for name in X}
    assert_same(graph, detector, X, feed, sizes=(1, 100))
    others = feed | {"customer": np.full(100, "", dtype=object), "row": np.full(100, np.nan)}
    np.testing.assert_array_equal(graph.run(None, others)[0], graph.run(None, feed)[0])


@pytest.mark.wide
def test_an_output_with_the_name_of_a_column_gets_an_underscore(tmp_path):
    X = pd.DataFrame({"label": ["a", "b"] * 20, "score_samples": REAL[:40, 0], "label_": REAL[:40, 1]})
    detector = small(members=1).fit(X)
    graph = session(detector, tmp_path)
    assert [value.name for value in graph.get_inputs()] == list(X)
    assert [value.name for value in graph.get_outputs()] == ["score_samples_", "decision_function", "label__"]
    feed = {name: X[name].to_numpy(object if name == "label" else float) for name in X}
    scores, _, labels = graph.run(None, feed)
    np.testing.assert_allclose(scores, detector.score_samples(X), rtol=TOLERANCE)
    np.testing.assert_array_equal(labels, detector.predict(X))


class Named:
    """A name that is no text, and looks like others."""

    def __repr__(self):
        return "size"


def test_two_columns_whose_names_are_one_text_are_refused(tmp_path):
    X = pd.DataFrame({Named(): REAL[:40, 0], Named(): ["a", "b"] * 20})
    with pytest.raises(ValueError, match="'size' is the name of a column, and of something else.*rename"):
        small(members=1).fit(X).to_onnx(tmp_path / "detector.onnx")


# -- no rows ---------------------------------------------------------------------------------------------
def assert_empty(graph, feed):
    scores, decision, labels = graph.run(None, {name: values[:0] for name, values in feed.items()})
    assert [values.shape for values in (scores, decision, labels)] == [(0,)] * 3


@pytest.mark.wide
def test_no_rows_give_no_scores(homes, written, of_bytes, of_homes, of_few_values):
    _, images, path = of_bytes
    assert_empty(onnxruntime.InferenceSession(written[2]), {"X": REAL})
    assert_empty(onnxruntime.InferenceSession(path), {"X": images / 255})
    assert_empty(of_homes[1], columns(homes))
    assert_empty(of_few_values[2], {"X": of_few_values[1]})


# -- what a detector refuses -----------------------------------------------------------------------------
def test_infinite_values_are_impossible_as_in_the_detector(written):
    rows = REAL[:3].copy()
    rows[1, 2] = np.inf
    assert_impossible(onnxruntime.InferenceSession(written[2]), written[0], rows, [0, 1, 0])


def assert_impossible(graph, detector, rows, n_impossible):
    """Each row scores so many times 1e30 nats, in the graph and in the detector; 0 is a row like others."""
    scores, _, labels = graph.run(OUTPUTS, {"X": rows})
    detector = copy.copy(detector)
    vars(detector).pop("feature_names_in_", None)
    for found in (scores, detector.score_samples(rows)):
        assert np.round(found / -1e30).tolist() == n_impossible
    assert (labels[np.array(n_impossible) > 0] == -1).all()


@pytest.fixture(scope="module")
def of_few_values(tmp_path_factory):
    """Few different rows: the threshold is the score of many of them."""
    X = BINARY[:200, :2]
    detector = small(likelihood="bernoulli", contamination=0.3, members=1).fit(X)
    path = tmp_path_factory.mktemp("of_few_values") / "detector.onnx"
    detector.to_onnx(path)
    return detector, X, onnxruntime.InferenceSession(path)


def test_values_outside_the_support_are_impossible_as_in_the_detector(of_few_values):
    detector, X, graph = of_few_values
    rows = X[:4].copy()
    rows[1:, 0] = [-0.1, 1.1, 1e9]
    rows[3, 1] = -1.0
    assert_impossible(graph, detector, rows, [0, 1, 1, 2])


@pytest.mark.wide
def test_a_detector_that_raises_for_such_values_has_a_graph_that_scores_nan(tmp_path):
    detector = small(likelihood="bernoulli", invalid="raise").fit(BINARY[:200, :2])
    rows = BINARY[:2, :2].copy()
    rows[1, 0] = 1.1
    scores, _, labels = session(detector, tmp_path).run(OUTPUTS, {"X": rows})
    assert np.isnan(scores).tolist() == [False, True]
    assert labels[1] == -1
    with pytest.raises(ValueError, match="needs values in"):
        detector.score_samples(rows)


@pytest.mark.wide
def test_values_that_are_not_counts_are_impossible(tmp_path):
    detector = small(likelihood="count", members=1).fit(COUNTS[:200])
    rows = COUNTS[:4].copy()
    rows[1:, 0] = [-1.0, 2.5, -1e9]
    assert_impossible(session(detector, tmp_path), detector, rows, [0, 1, 1, 1])


def test_rows_on_the_threshold_are_normal(of_few_values):
    detector, X, graph = of_few_values
    assert (np.abs(detector.decision_function(X)) < 1e-12).any()
    np.testing.assert_array_equal(graph.run(OUTPUTS, {"X": X})[2], detector.predict(X))


# -- the file --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def before_export():
    """A fitted detector, its training rows, and their scores."""
    frame = pd.DataFrame(REAL[:200], columns=["a", "b", "c", "d"])
    detector = small().fit(frame)
    return detector, frame, detector.score_samples(frame)


@pytest.fixture(scope="module")
def written(before_export, tmp_path_factory):
    """The detector, its training rows, and the file of its graph."""
    detector, frame, _ = before_export
    path = tmp_path_factory.mktemp("written") / "detector.onnx"
    detector.to_onnx(path)
    return detector, frame, path


@pytest.fixture
def converted(written, monkeypatch):
    """From here on, a detector is "converted" to the graph in the file."""
    monkeypatch.setattr(onnx_export, "_model_of", lambda detector: onnx.load(written[2]))


def test_it_runs_where_nothing_but_a_runtime_can_be_imported(written, tmp_path):
    detector, frame, path = written
    np.save(tmp_path / "rows.npy", frame.to_numpy())
    code = f"""
import sys
for name in ("tensorflow", "keras", "sklearn", "vae_anomaly", "tf2onnx", "skl2onnx", "onnx"):
    sys.modules[name] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession({str(path)!r})
scores, labels = session.run(["score_samples", "label"], {{"X": numpy.load("rows.npy")}})
numpy.savez("results.npz", scores=scores, labels=labels)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    with np.load(tmp_path / "results.npz") as results:
        np.testing.assert_allclose(results["scores"], detector.score_samples(frame), rtol=TOLERANCE)
        np.testing.assert_array_equal(results["labels"], detector.predict(frame))


def test_the_metadata_say_what_it_is(written):
    detector, frame, path = written
    about = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(about["offset"]) == detector.offset_
    assert json.loads(about["feature_names"]) == list(frame.columns)
    assert {"vae-anomaly", "tensorflow", "tf2onnx"} <= json.loads(about["versions"]).keys()


def test_exporting_changes_no_score(before_export, written):
    detector, frame, before = before_export
    np.testing.assert_array_equal(detector.score_samples(frame), before)


@pytest.mark.wide  # by default, test_package.py has it
@pytest.mark.parametrize("source", ["fitted", "loaded"])
def test_a_first_export_prints_nothing_and_leaves_the_environment_as_it_was(source, written, tmp_path):
    """Also of a detector that was loaded: tf2onnx would import TensorFlow in another way."""
    written[0].save(tmp_path / "detector.vae")
    code = f"""
import os
import numpy as np
import vae_anomaly
from vae_anomaly import DenseNetwork, VAEDetector
if {source == "loaded"}:
    detector = vae_anomaly.load("detector.vae")
else:
    X = np.random.RandomState(0).normal(size=(50, 3))
    detector = VAEDetector(DenseNetwork(()), epochs=2, n_draws=1).fit(X)
from vae_anomaly.core import backend
opened, open_it = [], backend._open
backend._open = lambda: opened.append(open_it())
changes = {{"TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"}}
before = {{name: os.environ.get(name) for name in changes}}
detector.to_onnx("detector.onnx")
assert {{name: os.environ.get(name) for name in changes}} == before
assert len(opened) == {int(source == "loaded")}
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.wide
def test_threads_can_export_at_once(written, of_few_values):
    given = [(written[0], written[1].to_numpy()), of_few_values[:2]] * 2
    files, before = [io.BytesIO() for _ in given], os.environ.copy()
    with ThreadPoolExecutor(len(given)) as pool:
        list(pool.map(lambda detector, file: detector.to_onnx(file), next(zip(*given, strict=True)), files))
    for (detector, rows), file in zip(given, files, strict=True):
        (scores,) = onnxruntime.InferenceSession(file.getvalue()).run(["score_samples"], {"X": rows})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rows without names
            np.testing.assert_allclose(scores, detector.score_samples(rows), rtol=TOLERANCE)
    assert os.environ == before


def test_a_detector_that_is_not_fitted_is_refused(tmp_path):
    with pytest.raises(NotFittedError):
        VAEDetector().to_onnx(tmp_path / "detector.onnx")


@pytest.mark.parametrize("library", ["onnx", "onnxruntime", "skl2onnx", "tf2onnx"])
def test_without_the_extra_it_says_what_to_install(library, written, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"needs {library}.*pip install 'vae-anomaly\[onnx\]'"):
        written[0].to_onnx(tmp_path / "detector.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.wide
def test_an_operation_that_no_converter_knows_is_named(tmp_path):
    def odd(vae, x, inferred):
        return keras.ops.sum(keras.ops.erfinv(keras.ops.tanh(x - inferred.parameters[0]) / 2), axis=-1)

    score = Score(odd, lambda values, kl: keras.ops.mean(values, axis=0))
    detector = small(score=score, members=1).fit(REAL[:100])
    with pytest.raises(NotImplementedError, match="no ONNX operator is known for Erfinv"):
        detector.to_onnx(tmp_path / "detector.onnx")


def with_other_weights(detector):
    other = copy.deepcopy(detector)
    other.members_ = tuple(replace(state, trainable=1.1 * state.trainable) for state in other.members_)
    return other


def test_a_graph_that_scores_otherwise_is_not_written(written, converted, tmp_path):
    path = tmp_path / "detector.onnx"
    path.write_bytes(b"earlier")
    with pytest.raises(RuntimeError, match="scores a row.*nothing was written"):
        with_other_weights(written[0]).to_onnx(path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"earlier"]


@pytest.mark.wide
def test_a_graph_that_leaves_the_clipping_of_far_rows_out_is_not_written(written, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "FARTHEST", 1.0)
    with pytest.raises(RuntimeError, match="scores a row.*nothing was written"):
        written[0].to_onnx(tmp_path / "detector.onnx")


@pytest.mark.wide
def test_a_graph_of_images_is_compared_too(of_bytes, tmp_path, monkeypatch):
    detector, _, path = of_bytes
    monkeypatch.setattr(onnx_export, "_model_of", lambda detector: onnx.load(path))
    detector.to_onnx(tmp_path / "detector.onnx")
    with pytest.raises(RuntimeError, match="scores a row.*nothing was written"):
        with_other_weights(detector).to_onnx(tmp_path / "other.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["detector.onnx"]


def test_a_file_that_cannot_be_written_says_why(written, converted, tmp_path):
    with pytest.raises(FileNotFoundError, match="Make the folder first"):
        written[0].to_onnx(tmp_path / "no folder" / "detector.onnx")


def test_weights_beyond_what_a_file_holds_are_refused(written, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "_WEIGHT_BYTES", 100)
    with pytest.raises(ValueError, match="at most 2 GB"):
        written[0].to_onnx(tmp_path / "detector.onnx")


# -- operators of our own --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("operation", "reference", "values"),
    [
        (lambda x: tf.math.log1p(x), np.log1p, [-0.999, -1e-6, 0, 1e-30, 1e-14, 1e-6, 0.3, 5, 1e14, np.inf]),
        (lambda x: tf.math.expm1(x), np.expm1, [-500, -20, -1, -1e-6, 0, 1e-30, 1e-6, 0.3, 5, 80, np.inf]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_arguments_keep_their_digits(operation, reference, values, dtype):
    values = np.array(values, dtype=dtype)
    graph = onnx_graph.Graph({"y": dtype})
    graph.define("f", lambda x: (operation(x),), [((None,), dtype)], ["y"])
    graph.call("f", [graph.input("x", dtype, ("n_rows",))], ["y"])
    found = onnxruntime.InferenceSession(graph.model({}).SerializeToString()).run(None, {"x": values})[0]
    np.testing.assert_allclose(found, reference(values), rtol=8 * np.finfo(dtype).eps)
