"""Model files: what is saved and loaded is the same detector, and a file is never more than data."""

import copy
import functools
import json
import os
import pickle
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import stars, wide
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    PolynomialFeatures,
    QuantileTransformer,
)

import vae_anomaly
from vae_anomaly import ConvNetwork, DenseNetwork, KerasNetwork, ModelFileError, VAEDetector, load
from vae_anomaly.ensemble.recipe import Member
from vae_anomaly.files import allow_list as vocabulary
from vae_anomaly.files import archive
from vae_anomaly.likelihoods import LIKELIHOODS, Categorical, Gaussian
from vae_anomaly.networks import NETWORKS
from vae_anomaly.scoring import SCORES
from vae_anomaly.thresholds import THRESHOLDS, Conformal, ParetoTail

QUICK = {"epochs": 1, "members": 1, "jit_compile": False, "random_state": 0}


@pytest.fixture(scope="module")
def X():
    return np.random.RandomState(0).normal(size=(120, 6))


@pytest.fixture(scope="module")
def detector(X):
    """Fitted, and shared: tests copy it before they change it."""
    return VAEDetector(network=DenseNetwork((8,)), latent_dim=2, **QUICK).fit(X)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.vae"


def reloaded(detector, path):
    detector.save(path)
    return load(path)


def assert_same(found, expected, X):
    """The same parameters, attributes and figures, to the last bit."""
    assert type(found) is VAEDetector
    assert vars(found).keys() == vars(expected).keys()
    assert repr(found) == repr(expected)
    for method in ("score_samples", "decision_function", "predict", "encode", "confidence"):
        np.testing.assert_array_equal(getattr(found, method)(X), getattr(expected, method)(X))
    np.testing.assert_array_equal(found.sample(3, random_state=0), expected.sample(3, random_state=0))
    assert found.score(X) == expected.score(X)
    assert found.offset_ == expected.offset_
    assert found.history_ == expected.history_
    np.testing.assert_array_equal(found.draws_, expected.draws_)


@functools.cache
def keras_models(n_params, n_features):
    layers = keras.layers
    x = keras.Input((n_features,))
    centered = layers.Normalization(mean=[0.1] * n_features, variance=[2.0] * n_features)(x)
    hidden = keras.ops.relu(layers.Dense(5, activation="gelu")(centered))
    encoder = keras.Model(x, [layers.Dense(2)(hidden), layers.Dense(2)(hidden)])
    decoder = keras.Sequential(
        [keras.Input((2,)), layers.Dense(5), layers.BatchNormalization(), layers.Dropout(0.1)]
        + [layers.Dense(n_features * n_params)]
    )
    return encoder, decoder


def a_keras_network(n_params=1, n_features=6):
    return KerasNetwork(*keras_models(n_params, n_features))


# -- the same detector ----------------------------------------------------------------------------------
SCALERS = {
    "bernoulli": MinMaxScaler(),
    "continuous_bernoulli": MinMaxScaler(clip=True),
    "unit_gaussian": MinMaxScaler(),
}
ALL_NETWORKS = {
    "dense": lambda: DenseNetwork((5,), batch_normalization=True, dropout=0.1),
    "conv": lambda: ConvNetwork((3, 2, 1), filters=(3,), dense_units=(4,)),
    "keras": a_keras_network,
}


def test_every_network_with_a_name_has_a_row():
    assert {*NETWORKS, "keras"} == set(ALL_NETWORKS)


LIKELIHOODS_BY_DEFAULT = {
    "student_t",
    "count",
}  # with parameters, scalers and columns of their own
OF_TABLES = {"categorical", "count"}  # of whole numbers, and networks that are built for their categories


@pytest.mark.parametrize(
    ("network", "likelihood"),
    # By default, one row and one column of the product.
    [
        pytest.param(network, likelihood)
        if likelihood == "gaussian" or (network == "dense" and likelihood in LIKELIHOODS_BY_DEFAULT)
        else wide(network, likelihood)
        for network in ALL_NETWORKS
        for likelihood in LIKELIHOODS
        if network == "dense" or likelihood not in OF_TABLES
    ],
)
def test_a_loaded_detector_scores_to_the_same_bits(network, likelihood, X, path):
    scaler = SCALERS.get(likelihood, "auto")
    X = np.round(np.abs(X)) if likelihood in OF_TABLES else X
    detector = VAEDetector(network=ALL_NETWORKS[network](), likelihood=likelihood, scaler=scaler, **QUICK)
    detector.fit(X)
    detector.save(path)
    found = load(path)
    for method in ("score_samples", "predict", "reconstruct"):
        np.testing.assert_array_equal(getattr(found, method)(X), getattr(detector, method)(X))


def _table(**columns):
    rng = np.random.RandomState(0)
    X = pd.DataFrame(
        {"size": rng.normal(size=90), "kind": rng.choice(list("xyz"), 90), "is_new": rng.rand(90) < 0.3}
    )
    return X.assign(count=rng.poisson(2, 90), **columns)


def _of_pyarrow(table):
    pytest.importorskip("pyarrow", exc_type=ImportError)  # not the one for another release of numpy
    return table.convert_dtypes(dtype_backend="pyarrow")


@pytest.mark.parametrize(
    "make",
    [
        lambda: _of_pyarrow(_table()),
        lambda: _table().convert_dtypes(),
        lambda: _table(is_new=pd.arrays.SparseArray(np.arange(90) % 3 == 0)),
        lambda: _table(kind=pd.Categorical(pd.to_datetime(["2024-01-01", "2024-02-01", None] * 30))),
        lambda: _table(kind=pd.cut(np.arange(90), 3)),
        lambda: _table(kind=pd.Categorical(pd.period_range("2024-01", periods=3, freq="M").repeat(30))),
        lambda: _table(kind=pd.Categorical([("a", 1), ("b", 2), ("c", 3)] * 30)),
    ],
    ids=["pyarrow", "nullable", "sparse", "dates", "intervals", "months", "tuples"],
)
def test_tables_of_every_kind_of_columns_are_saved(make, tmp_path):
    X = make()
    detector = VAEDetector(DenseNetwork((4,)), epochs=2, random_state=0).fit(X)
    detector.save(tmp_path / "table.vae")
    loaded = load(tmp_path / "table.vae")
    np.testing.assert_array_equal(loaded.score_samples(X), detector.score_samples(X))
    pd.testing.assert_frame_equal(loaded.reconstruct(X), detector.reconstruct(X))


SETTINGS = {
    "the defaults": {"epochs": "auto", "patience": 2},
    "members": {"members": [Member(), Member(0.2, 0.3, "yeo-johnson")]},
    "scales": {"members": [Member(scale="per_row"), Member()], "likelihood": "laplace"},
    "a number of members": {"members": 3, "score": "iwae"},
    "per row": {"likelihood": Gaussian(scale="per_row", minimum_scale=0.2)},
    "one number": {"score": "reconstruction_error", "n_draws": 3, "contamination": 0.1},
    "early stopping": {"epochs": 30, "early_stopping": True, "patience": 2, "kl_warm_up": 0.5},
    "folds": {"threshold": "conformal", "calibration": KFold(2, shuffle=True)},
    "held out": {"threshold": Conformal(0.1), "calibration": 0.3},
    "a tail": {"threshold": ParetoTail(0.01, tail_fraction=0.3), "calibration": 0.5},
    "no scaler": {"scaler": None},
    "quantiles": {"scaler": QuantileTransformer(n_quantiles=20, output_distribution="normal")},
    "fewer columns": {"scaler": PCA(3, svd_solver="randomized", random_state=0)},
    "a pipeline": {"scaler": make_pipeline(MinMaxScaler(), KBinsDiscretizer(3, strategy="uniform"))},
    "columns": {"scaler": ColumnTransformer([("a", MinMaxScaler(), [0, 3])], remainder="passthrough")},
    "an iwae": {"objective": "iwae", "n_training_draws": 2, "gradient_clip_norm": 1.0, "free_bits": 0.0},
}


# The others are kept as one of these is.
SETTINGS_BY_DEFAULT = {
    "early stopping",
    "members",
    "folds",
    "a tail",
    "no scaler",
    "quantiles",
    "a pipeline",
    "columns",
}


@pytest.mark.parametrize("settings", stars(SETTINGS, SETTINGS_BY_DEFAULT))
def test_every_setting_comes_back(settings, X, path):
    detector = VAEDetector(network=DenseNetwork((5,)), **{**QUICK, **settings}).fit(X)
    found = reloaded(detector, path)
    np.testing.assert_array_equal(found.score_samples(X), detector.score_samples(X))
    np.testing.assert_array_equal(found.predict(X), detector.predict(X))
    assert (found.offset_, found.get_params().keys()) == (detector.offset_, detector.get_params().keys())
    if detector.calibration_scores_ is not None:
        np.testing.assert_array_equal(found.p_values(X), detector.p_values(X))


@pytest.mark.parametrize("rule", list(THRESHOLDS))
def test_every_threshold_rule_comes_back(rule, X, path):
    calibration = 0.5 if rule in ("conformal", "pareto_tail") else None
    settings = {"calibration": calibration, "validation_fraction": 0.2, **QUICK}
    detector = VAEDetector(threshold=THRESHOLDS[rule](), **settings).fit(X)
    found = reloaded(detector, path)
    assert found.threshold.get_params() == detector.threshold.get_params()
    assert found.offset_ == detector.offset_


def test_everything_of_a_detector_comes_back(detector, X, path):
    assert_same(reloaded(detector, path), detector, X)


def test_a_data_frames_columns_are_known_again(X, path):
    frame = pd.DataFrame(X, columns=["a", "b", "größe", "d e", "", "f"])
    detector = VAEDetector(**QUICK).fit(frame)
    found = reloaded(detector, path)
    assert list(found.feature_names_in_) == list(frame.columns)
    pd.testing.assert_frame_equal(found.explain(frame), detector.explain(frame))
    with pytest.raises(ValueError, match="feature names"):
        found.score_samples(frame.rename(columns={"a": "z"}))


def test_many_columns_and_epochs_come_back(path):
    X = pd.DataFrame(np.random.RandomState(0).normal(size=(20, 300))).add_prefix("sensor ")
    detector = VAEDetector(network=DenseNetwork(()), **{**QUICK, "epochs": 40}).fit(X)
    found = reloaded(detector, path)
    assert list(found.feature_names_in_) == list(X.columns)
    assert found.history_ == detector.history_


@pytest.mark.wide
def test_images_are_images_again(path):
    images = np.random.RandomState(0).uniform(size=(40, 6, 5))
    detector = VAEDetector(ConvNetwork(filters=(3,), dense_units=(4,)), **QUICK).fit(images)
    found = reloaded(detector, path)
    assert found.image_shape_ == (6, 5)
    for method in ("score_samples", "reconstruct", "explain"):
        np.testing.assert_array_equal(getattr(found, method)(images), getattr(detector, method)(images))
    with pytest.raises(ValueError, match=r"images of shape \(6, 5\)"):
        found.predict(images[:, :5])


def test_a_loaded_detector_can_be_cloned_and_fitted_again(detector, X, path):
    found = reloaded(detector, path)
    expected = detector.score_samples(X)
    np.testing.assert_array_equal(clone(found).fit(X).score_samples(X), expected)
    np.testing.assert_array_equal(found.fit(X).score_samples(X), expected)


@pytest.mark.parametrize("network", ["dense", wide("conv"), "keras"])
def test_a_loaded_detector_goes_on_where_it_stopped(network, X, path):
    settings = {"validation_fraction": 0.2, "calibration": 0.2, "warm_start": True}
    detector = VAEDetector(
        network=ALL_NETWORKS[network](), likelihood="gaussian", **{**QUICK, **settings}
    ).fit(X)
    found = reloaded(detector, path)
    np.testing.assert_array_equal(found.fit(X).score_samples(X), detector.fit(X).score_samples(X))
    assert found.history_ == detector.history_


def test_a_loaded_detector_can_be_pickled_and_saved_again(detector, X, path, tmp_path):
    found = pickle.loads(pickle.dumps(reloaded(detector, path)))
    assert_same(found, detector, X)
    found.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_random_generator_goes_on_in_a_loaded_detector(X, path):
    detector = VAEDetector(**{**QUICK, "random_state": np.random.RandomState(5)}).fit(X)
    found = reloaded(detector, path)
    assert found.random_state is not detector.random_state
    np.testing.assert_array_equal(found.fit(X).score_samples(X), detector.fit(X).score_samples(X))


def test_a_users_keras_models_come_back_as_blueprints(X, path):
    network = a_keras_network()
    network.decoder.compile("adam", "mse")
    detector = VAEDetector(network=network, **QUICK).fit(X)
    found = reloaded(detector, path)
    np.testing.assert_array_equal(found.score_samples(X), detector.score_samples(X))
    np.testing.assert_array_equal(clone(found).fit(X).score_samples(X), detector.score_samples(X))
    before = [np.array(weight) for weight in network.encoder.get_weights()]
    for one, other in zip(found.network.encoder.build().get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_pretrained_keras_models_train_from_their_weights_again(X, path):
    network = a_keras_network().set_params(pretrained=True)
    detector = VAEDetector(network=network, **QUICK).fit(X)
    found = reloaded(detector, path)
    np.testing.assert_array_equal(found.fit(X).score_samples(X), detector.score_samples(X))


IN_A_FRESH_PROCESS = """
import encodings.cp437, json, sys
import numpy as np, vae_anomaly, vae_anomaly.persistence
path, rows, scores = sys.argv[1:]
running = {"compile", "exec", "marshal.loads", "os.system", "pickle.find_class"}
before, seen, facts = set(sys.modules), [], {}
def audit(event, arguments):
    if "seen" in facts:
        return
    if event in running:
        seen.append(event)
    elif event == "open":
        seen.append([str(argument) for argument in arguments[:2]])
sys.addaudithook(audit)
detector = vae_anomaly.load(path)
facts["seen"] = list(seen)
facts["imported"] = sorted(set(sys.modules) - before)
facts["of tensorflow"] = sorted({"tensorflow", "keras"} & set(sys.modules))
X = np.load(rows)
np.save(scores, [detector.score_samples(X), detector.fit(X).score_samples(X)])
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def in_a_fresh_process(detector, X, tmp_path_factory):
    """The file, what a fresh process saw that loaded it, and the scores that it computed."""
    folder = tmp_path_factory.mktemp("fresh")
    path, rows, scores = (folder / name for name in ("model.vae", "rows.npy", "scores.npy"))
    detector.save(path)
    np.save(rows, X)
    command = [sys.executable, "-W", "error", "-c", IN_A_FRESH_PROCESS, *map(str, (path, rows, scores))]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return path, json.loads(ran.stdout), np.load(scores)


def test_a_fresh_process_scores_to_the_same_bits_and_loads_tensorflow_only_then(
    in_a_fresh_process, detector, X
):
    _, facts, scores = in_a_fresh_process
    assert facts["of tensorflow"] == []
    np.testing.assert_array_equal(scores[0], detector.score_samples(X))


def test_a_fit_in_a_fresh_process_gives_the_same_bits(in_a_fresh_process, detector, X):
    *_, scores = in_a_fresh_process
    np.testing.assert_array_equal(scores[1], detector.score_samples(X))


# -- a file of data -------------------------------------------------------------------------------------
def test_the_file_is_json_and_raw_arrays_without_a_pickle(detector, path):
    detector.save(path)
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        names = file.namelist()
        assert names[:2] == ["manifest.json", "detector.json"]
        assert set(names[2:]) == {f"arrays/{position}" for position in range(len(names) - 2)}
        for name in names[:2]:
            json.loads(file.read(name))
        trainable = detector.members_[0].trainable.tobytes()
        assert trainable in [file.read(name) for name in names[2:]]


def test_the_manifest_says_what_the_file_holds(detector, path):
    detector.save(path)
    with zipfile.ZipFile(path) as file:
        manifest = json.loads(file.read("manifest.json"))
    assert manifest["versions"]["vae-anomaly"] == vae_anomaly.__version__
    assert manifest["versions"]["keras"] == keras.__version__
    assert manifest["versions"]["numpy"] == np.__version__
    summary = manifest["summary"]
    card = detector.model_card()
    assert summary == {section: card[section] for section in ("data", "model", "training", "threshold")}
    assert (summary["data"]["rows"], summary["data"]["features"]) == (120, 6)
    assert summary["training"]["last_epoch"]["loss"] == detector.history_["loss"][-1]


def test_the_same_detector_makes_the_same_bytes(detector, path, tmp_path):
    detector.save(path)
    detector.save(str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_file_is_hardly_larger_than_its_weights(X, path):
    detector = VAEDetector(**{**QUICK, "members": 8}).fit(X)
    detector.save(path)
    assert path.stat().st_size < 8 * detector.members_[0].trainable.nbytes + 25_000


def test_saving_changes_nothing(detector, X, path):
    before = {name: id(value) for name, value in vars(detector).items()}
    detector.save(path)
    assert {name: id(value) for name, value in vars(detector).items()} == before


def test_loading_imports_nothing_that_the_file_names_and_unpickles_nothing(in_a_fresh_process):
    path, facts, _ = in_a_fresh_process
    assert facts["seen"] == [[str(path), "r"]]
    assert facts["imported"] == []


def test_a_failed_save_leaves_the_old_model(detector, X, path, monkeypatch):
    detector.save(path)
    other = VAEDetector(**QUICK).fit(X)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device; the model was not saved"):
        other.save(path)
    assert_same(load(path), detector, X)
    assert os.listdir(path.parent) == [path.name]


# -- what a file cannot hold ----------------------------------------------------------------------------
class OwnRule:
    def cut(self, scores):
        return float(np.max(scores))


class OwnLikelihood(Gaussian):
    name = ""


class OwnNetwork(DenseNetwork):
    pass


class Silent(keras.callbacks.Callback):
    pass


NOT_DATA = {
    "callbacks": ({"callbacks": [Silent()]}, r"callbacks\[0\] is an object of .*Silent", "callbacks=None"),
    "a schedule": (
        {"learning_rate_schedule": lambda progress: 1 - progress},
        "parameter learning_rate_schedule is the function <lambda>",
        "learning_rate_schedule='cosine'",
    ),
    "a rule": ({"threshold": OwnRule()}, "parameter threshold is an object of .*OwnRule", "threshold=None"),
    "a generator": (
        {"random_state": np.random.RandomState(np.random.PCG64(0))},
        "parameter random_state is a RandomState over PCG64",
        "random_state=0",
    ),
    "an activation": (
        {"network": DenseNetwork((5,), activation=keras.activations.gelu)},
        r"parameter network\.activation is the function gelu",
        "activation='relu'",
    ),
    "a score": ({"score": SCORES["elbo"]}, "parameter score is an object of .*Score", "joblib.dump"),
    "a scaler": (
        {"scaler": PolynomialFeatures(2)},
        "parameter scaler is an object of .*PolynomialFeatures",
        "StandardScaler.*skops.io.dump",
    ),
    "a function of a scaler": (
        {"scaler": FunctionTransformer(np.tanh)},
        r"parameter scaler\.func is the function tanh",
        "numpy's arcsinh",
    ),
    "a part of a scaler": (
        {"scaler": make_pipeline(MinMaxScaler(), PolynomialFeatures(2))},
        r"parameter scaler\.steps\[1\]\[1\] is an object of .*PolynomialFeatures",
        "joblib.dump",
    ),
    "a likelihood": (
        {"likelihood": OwnLikelihood()},
        "parameter likelihood is an object of .*OwnLikelihood",
        "a name in LIKELIHOODS",
    ),
    "a network": (
        {"network": OwnNetwork((5,))},
        "parameter network is an .*OwnNetwork",
        "a name in LIKELIHOODS or NETWORKS",
    ),
}


@pytest.mark.parametrize(("settings", "what", "advice"), NOT_DATA.values(), ids=NOT_DATA)
def test_a_parameter_that_is_no_data_is_named_and_nothing_is_written(settings, what, advice, X, path):
    detector = VAEDetector(**{**QUICK, **settings}).fit(X)
    path.write_bytes(b"old")
    with pytest.raises(
        ModelFileError, match=f"(?s){what}, and a model file holds data, never code.*{advice}"
    ):
        detector.save(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("name", ["callbacks", "learning_rate_schedule", "threshold"])
def test_what_only_fit_uses_can_be_taken_off_before_saving(name, X, path):
    settings, _, advice = {"callbacks": NOT_DATA["callbacks"], "threshold": NOT_DATA["a rule"]}.get(
        name, NOT_DATA["a schedule"]
    )
    detector = VAEDetector(**{**QUICK, **settings}).fit(X)
    before = detector.predict(X)
    eval(f"detector.set_params({advice})")
    np.testing.assert_array_equal(reloaded(detector, path).predict(X), before)


def test_the_documentation_names_every_transformer_that_can_be_stored():
    for name, module in vocabulary.ESTIMATORS.items():
        assert not module.startswith("sklearn") or name in VAEDetector.save.__doc__


def test_a_lambda_layer_is_refused_with_a_way_out(X, path):
    x = keras.Input((6,))
    z = keras.layers.Lambda(lambda x: x * 2, output_shape=(6,))(x)
    encoder = keras.Model(x, [keras.layers.Dense(2)(z), keras.layers.Dense(2)(z)])
    network = KerasNetwork(encoder, keras.Sequential([keras.Input((2,)), keras.layers.Dense(6)]))
    detector = VAEDetector(network=network, **QUICK).fit(X)
    with pytest.raises(
        ModelFileError, match=r"parameter network\.encoder needs keras\.layers\.Lambda.*register"
    ):
        detector.save(path)


def test_a_subclass_of_the_detector_is_refused(X, path):
    class Mine(VAEDetector):
        pass

    with pytest.raises(ModelFileError, match=r"no classes of your own, and .*Mine is one.*joblib\.dump"):
        Mine(**QUICK).fit(X).save(path)


def test_a_detector_is_fitted_before_it_is_saved(path):
    with pytest.raises(NotFittedError):
        VAEDetector().save(path)
    assert not path.exists()


@pytest.fixture
def logistic():
    class Logistic(Gaussian):
        name = "logistic of the tests"

    yield Logistic
    LIKELIHOODS.pop(Logistic.name, None)


def test_a_likelihood_of_ones_own_is_stored_by_its_name(logistic, X, path):
    detector = VAEDetector(likelihood=logistic(scale=0.7), **QUICK).fit(X)
    found = reloaded(detector, path)
    assert type(found.likelihood) is logistic
    np.testing.assert_array_equal(found.score_samples(X), detector.score_samples(X))
    del LIKELIHOODS[logistic.name]
    with pytest.raises(
        ModelFileError, match="likelihood 'logistic of the tests', which is not known here: import"
    ):
        load(path)


def test_a_network_and_a_rule_of_ones_own_are_stored_by_their_names(X, path, monkeypatch):
    class Median(Conformal):
        held_out = False

        def cut(self, scores):
            return float(np.median(scores))

    monkeypatch.setitem(NETWORKS, "own", OwnNetwork)
    monkeypatch.setitem(THRESHOLDS, "median", Median)
    detector = VAEDetector(network=OwnNetwork((4,)), threshold=Median(), **QUICK).fit(X)
    found = reloaded(detector, path)
    assert (type(found.network), type(found.threshold)) == (OwnNetwork, Median)
    np.testing.assert_array_equal(found.predict(X), detector.predict(X))


def test_a_rule_with_a_name_is_also_to_have_parameters_that_can_be_read(X, path, monkeypatch):
    monkeypatch.setitem(THRESHOLDS, "own", OwnRule)
    with pytest.raises(ModelFileError, match="parameter threshold is an object of .*OwnRule"):
        VAEDetector(threshold=OwnRule(), **QUICK).fit(X).save(path)


# -- forged files ---------------------------------------------------------------------------------------
def forge(path, edit, **about):
    """Edit a file's description in place and renew the checksums, as an attacker can."""
    with archive.open_archive(path) as opened:
        tree = opened.json("detector.json")
        parts = {name: bytearray(opened.size(name)) for name in opened.names - {"detector.json"}}
        for name, buffer in parts.items():
            opened.read_into(name, memoryview(buffer))
    edit(tree)
    archive.write(path, about, {"detector.json": archive.to_json(tree, "it"), **parts})


def specification(tree):
    return tree["shared"][0]["record"][1]


def member(tree, position=0):
    return tree["fitted"]["members_"]["tuple"][position]["record"][1]


def _set(container, name, value):
    return lambda tree: container(tree).__setitem__(name, value)


FORGERIES = {
    "another class": (_set(lambda t: t, "class", "Popen"), "holds a 'Popen'"),
    "a huge network": (
        lambda t: specification(t)["network"]["network"][1].update(hidden_units=[10**6, 10**6]),
        r"a network of at least 20000\d{8} weights, and holds \d{3}\.",
    ),
    "a network whose size wraps around": (
        lambda t: specification(t)["network"]["network"][1].update(
            hidden_units=[{"number": ["int64", 2**40]}, {"number": ["int64", 2**40]}]
        ),
        r"a network of at least \d{25} weights",
    ),
    "a negative network": (
        lambda t: specification(t)["network"]["network"][1].update(hidden_units=[-(10**6)]),
        "hidden_units must hold positive integers",
    ),
    "a fractional network": (
        lambda t: specification(t)["network"]["network"][1].update(hidden_units=[1e300]),
        "hidden_units must hold positive integers",
    ),
    "many columns": (lambda t: t["fitted"].update(n_features_in_=10**9), "columns"),
    "many features": (_set(specification, "n_features", 10**12), "a member's ranges"),
    "many latents": (_set(specification, "latent_dim", 10**12), "a network of at least"),
    "no latents": (_set(specification, "latent_dim", 0), "the specification of a member"),
    "a network that is none": (_set(specification, "network", "dense"), "the specification of a member"),
    "a likelihood that is none": (_set(specification, "likelihood", None), "the specification of a member"),
    "an unknown likelihood": (
        lambda t: specification(t)["likelihood"].update(likelihood=["poisson of mine", {}, {}, {}]),
        "which is not known here",
    ),
    "an impossible scale": (
        lambda t: specification(t)["likelihood"]["likelihood"][1].update(scale=-1.0),
        "InvalidParameterError",
    ),
    "no members": (_set(lambda t: t["fitted"], "members_", {"tuple": []}), "parts without a use|members"),
    "members of text": (_set(lambda t: t["fitted"], "members_", {"tuple": ["a"]}), "parts without|a member"),
    "a member's arrays twice": (
        lambda t: t["fitted"]["members_"]["tuple"].append(t["fitted"]["members_"]["tuple"][0]),
        "is used twice",
    ),
    "noise of another width": (_set(lambda t: t["fitted"], "latent_dim_", 3), "draws in it cannot be"),
    "no offset": (lambda t: t["fitted"].pop("offset_"), "AttributeError.*offset_"),
    "an offset of text": (_set(lambda t: t["fitted"], "offset_", "0"), "attributes of a fitted detector"),
    "a scaler that is none": (
        _set(lambda t: t["fitted"], "scaler_", {"estimator": ["Member", {}, {}, {}]}),
        "attributes of a fitted detector|parts without a use",
    ),
    "a range of pixels that is none": (_set(lambda t: t["fitted"], "pixel_range_", 1), "pixels in it"),
    "intervals of nothing": (_set(lambda t: t["fitted"], "interval_scores_", 1), "intervals of cells in it"),
    "a method": (_set(lambda t: t["fitted"], "predict", 1), "'predict' is not a name of a fitted attribute"),
    "a property": (_set(lambda t: t["fitted"], "model_", 1), "'model_' is not a name of a fitted attribute"),
    "a magic name": (_set(lambda t: t["fitted"], "__class__", 1), "'__class__' is not a name"),
    "a state": (_set(lambda t: t["fitted"], "__dict__", 1), "'__dict__' is not a name"),
    "a new parameter": (_set(lambda t: t["parameters"], "shell", "sh"), r"does not have here: \['shell'\]"),
    "an impossible parameter": (_set(lambda t: t["parameters"], "epochs", -1), "InvalidParameterError"),
    "a parameter of another type": (_set(lambda t: t["parameters"], "network", [1]), "InvalidParameterError"),
    "parameters of nothing": (_set(lambda t: t, "parameters", None), "not what it says it is"),
    "a shared object of nothing": (_set(lambda t: t, "shared", [7]), "the specification|a member"),
}


@pytest.mark.parametrize(("edit", "reason"), FORGERIES.values(), ids=FORGERIES)
def test_a_forged_file_with_right_checksums_is_refused_in_one_line(edit, reason, detector, path):
    detector.save(path)
    forge(path, edit)
    with pytest.raises(ModelFileError, match=reason) as raised:
        load(path)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"model file {str(path)!r} ")


def test_an_unedited_forgery_is_still_the_detector(detector, X, path):
    detector.save(path)
    forge(path, lambda tree: None)
    assert_same(load(path), detector, X)


def test_a_forged_keras_model_is_refused(X, path):
    VAEDetector(network=a_keras_network(), **QUICK).fit(X).save(path)

    def smuggle(tree):
        blueprint = tree["parameters"]["network"]["estimator"][1]["encoder"]["record"][1]
        blueprint["config"] = blueprint["config"].replace('"class_name": "Dense"', '"class_name": "Lambda"')

    forge(path, smuggle)
    with pytest.raises(ModelFileError, match=r"needs keras\.layers\.Lambda"):
        load(path)


def test_a_forged_keras_model_cannot_call_itself_trusted(X, path):
    VAEDetector(network=a_keras_network(), **QUICK).fit(X).save(path)

    def trust(tree):
        tree["parameters"]["network"]["estimator"][1]["encoder"]["record"][1]["trusted"] = True

    forge(path, trust)
    assert not load(path).network.encoder.trusted


def test_files_of_a_future_release_with_new_attributes_can_be_read(detector, X, path):
    detector.save(path)
    forge(path, _set(lambda tree: tree["fitted"], "quality_", 0.5))
    found = load(path)
    assert found.quality_ == 0.5
    np.testing.assert_array_equal(found.score_samples(X), detector.score_samples(X))


def test_files_of_an_earlier_release_without_a_parameter_have_its_default(detector, X, path):
    detector.save(path)
    forge(path, lambda tree: tree["defaults"].pop("verbose"))
    assert load(path).verbose == 0


def test_a_scaler_that_the_scikit_learn_here_cannot_use_is_told(X, path):
    VAEDetector(scaler=QuantileTransformer(n_quantiles=20), **QUICK).fit(X).save(path)

    def forget(tree):
        *_, fitted = tree["fitted"]["scaler_"]["estimator"]
        tree["fitted"]["kept_"] = fitted.pop("references_")

    forge(path, forget, versions={"scikit-learn": "1.0.2"})
    with pytest.raises(
        ModelFileError, match=r"scaler of scikit-learn 1\.0\.2, which .* here cannot use.*references_"
    ):
        load(path)


def test_a_scaler_of_another_scikit_learn_that_works_is_taken(detector, X, path):
    detector.save(path)
    forge(path, lambda tree: None, versions={"scikit-learn": "1.0.2"})
    assert_same(load(path), detector, X)


# -- taking minutes -------------------------------------------------------------------------------------
def mutated(files, rng):
    """One of many ways to spoil a file, or to make one of the pieces of several."""
    data = bytearray(rng.choice(files))
    kind = rng.randrange(9)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        return data[rng.randrange(len(data)) :]
    if kind == 2:
        return data[: rng.randrange(len(data))] + rng.choice(files)[rng.randrange(len(data)) :]
    if kind == 3:
        return data + rng.randbytes(rng.randrange(1, 100))
    if kind == 4:  # in the list of parts, where a reader's trust is abused
        start = data.find(b"PK\x01\x02")
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(start, len(data))] = rng.randrange(256)
        return data
    if kind == 5:
        start, stop = sorted(rng.randrange(len(data)) for _ in range(2))
        del data[start:stop]
        return data
    if kind == 6:
        start, stop = sorted(rng.randrange(len(data)) for _ in range(2))
        data[start:start] = data[start:stop]
        return data
    for _ in range(rng.choice([1, 1, 2, 5, 50])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


ODD = [None, True, -1, 2**70, 1e308, "", "a" * 1000, [], {}, [[]] * 50, {"tuple": []}, {"array": []}, "dense"]
ODD += [
    {"shared": 0},
    {"estimator": ["PCA", {}, {}, {}]},
    {"record": ["ModelState", {}]},
    {"float": "nan"},
    "__class__",
]


def mutated_tree(tree, rng):
    """A description with some nodes exchanged for odd ones: forgeries with right checksums."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        node, parent, key = tree, None, None
        while isinstance(node, (dict, list)) and node and (parent is None or rng.random() < 0.85):
            parent, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            node = parent[key]
        action = rng.randrange(3)
        if action == 0 or not isinstance(parent, dict):
            parent[key] = copy.deepcopy(rng.choice(ODD))
        elif action == 1:
            parent[str(rng.choice(ODD))[:30]] = parent.pop(key)
        else:
            parent[key] = copy.deepcopy(rng.choice(list(parent.values())))
    return tree


FUZZ = """
import json, random, resource, sys, warnings
from pathlib import Path
sys.path.insert(0, {tests!r})
warnings.simplefilter("ignore")
import test_persistence
from vae_anomaly import ModelFileError, load
from vae_anomaly.files import archive
files = [Path(name).read_bytes() for name in {files!r}]
path, rng = Path({path!r}), random.Random({seed})
load({files!r}[0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused = 0
for _ in range({n_inputs}):
    if {forged}:
        path.write_bytes(rng.choice(files))
        test_persistence.forge(path, lambda tree: test_persistence.mutated_tree(tree, rng))
    else:
        path.write_bytes(test_persistence.mutated(files, rng))
    try:
        load(path)
    except ModelFileError as error:
        assert "\\n" not in str(error), error
        refused += 1
print(json.dumps([refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


@pytest.mark.long
@pytest.mark.parametrize(("forged", "least_refused"), [(False, 0.95), (True, 0.5)])
def test_of_ten_thousand_spoiled_files_each_is_refused_or_read_within_little_memory(
    forged, least_refused, detector, X, tmp_path
):
    VAEDetector(**{**QUICK, "network": a_keras_network(), "members": 2, "scaler": PCA(6)}).fit(X).save(
        tmp_path / "b"
    )
    detector.save(tmp_path / "a")
    mixed = pd.DataFrame(
        {"size": X[:, 0], "city": np.where(X[:, 1] > 0, "Bern", "Genf"), "member": X[:, 2] > 0}
    )
    VAEDetector(network=DenseNetwork((8,)), **QUICK).fit(mixed).save(tmp_path / "c")
    code = FUZZ.format(
        tests=os.path.dirname(__file__),
        files=[str(tmp_path / name) for name in "abc"],
        path=str(tmp_path / "spoiled"),
        seed=int(forged),
        n_inputs=10_000,
        forged=forged,
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    refused, kilobytes = json.loads(ran.stdout)
    assert refused > least_refused * 10_000
    assert kilobytes < 64 * 1024


KILLED = """
import json, os, random, signal, time
from pathlib import Path
from vae_anomaly import load
files, path = [Path(name) for name in {files!r}], Path({path!r})
detectors, whole = [load(file) for file in files], [file.read_bytes() for file in files]
rng, seen, n_left_over = random.Random(0), set(), 0
for _ in range(100):
    child = os.fork()
    if not child:
        while True:
            for detector in detectors:
                detector.save(path)
    time.sleep(rng.uniform(0.01, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    seen.add(whole.index(path.read_bytes()))
    for left_over in path.parent.glob(".saving-*"):
        left_over.unlink()
        n_left_over += 1
print(json.dumps([sorted(seen), n_left_over]))
"""


@pytest.mark.long
def test_a_process_killed_while_saving_leaves_a_whole_file_a_hundred_times(detector, X, tmp_path):
    other = VAEDetector(**{**QUICK, "network": DenseNetwork((64, 64)), "members": 4}).fit(X)
    files = [tmp_path / "small", tmp_path / "large"]
    for one, name in zip((detector, other), files, strict=True):
        one.save(name)
    (tmp_path / "saved").mkdir()
    path = tmp_path / "saved" / "model.vae"
    detector.save(path)
    code = KILLED.format(files=[str(name) for name in files], path=str(path))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    seen, n_left_over = json.loads(ran.stdout)
    assert seen == [0, 1]
    assert n_left_over > 0  # some were killed in the middle of a file
    load(path).predict(X)


@pytest.mark.wide
def test_a_mixed_table_comes_back_with_its_columns(tmp_path):
    rng = np.random.RandomState(0)
    X = pd.DataFrame(
        {
            "size": rng.normal(size=60),
            "city": rng.choice(["Bern", "Genf", None], 60),
            "grade": pd.Categorical(
                rng.choice(["lo", "hi"], 60), categories=["lo", "hi", "top"], ordered=True
            ),
            "member": rng.uniform(size=60) > 0.5,
            "visits": pd.array(rng.poisson(3, 60), dtype="Int64"),
            "note": pd.array(rng.choice(["a", "b"], 60), dtype="string"),
        }
    )
    X.loc[3, "size"] = np.nan
    likelihood = {"size": "student_t", "member": Categorical(unseen="raise")}
    saved = VAEDetector(DenseNetwork((4,)), likelihood=likelihood, n_draws=2, **QUICK).fit(X)
    saved.save(tmp_path / "model.vae")
    loaded = vae_anomaly.load(tmp_path / "model.vae")
    np.testing.assert_array_equal(loaded.score_samples(X), saved.score_samples(X))
    pd.testing.assert_frame_equal(loaded.reconstruct(X), saved.reconstruct(X))
    pd.testing.assert_frame_equal(loaded.sample(5, random_state=0), saved.sample(5, random_state=0))
    assert loaded.predict(X.assign(city="Zug")[:1])[0] in (-1, 1)


def test_a_file_that_promises_more_categories_than_it_has_weights_for_is_refused(tmp_path):
    X = pd.DataFrame({"size": [0.5, 1.5, 2.5], "city": ["a", "b", "a"]})
    # A copy: what compiled programs are shared by belongs to other tests, too.
    detector = copy.deepcopy(VAEDetector(DenseNetwork((4,)), n_draws=2, **QUICK).fit(X))
    parts = detector.members_[0].specification.likelihood.parts
    parts[1][0].set_params(n_categories=10**12)
    detector.save(tmp_path / "model.vae")
    with pytest.raises(vae_anomaly.ModelFileError, match="a member's ranges"):
        vae_anomaly.load(tmp_path / "model.vae")
