"""VAEDetector where scikit-learn's users use outlier detectors."""

import pickle
import subprocess
import sys
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from joblib import parallel_backend
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import BaggingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

from vae_anomaly import ConvNetwork, DenseNetwork, KerasNetwork, VAEDetector, scorers
from vae_anomaly.data.tables import table_of
from vae_anomaly.datasets import load_tumors
from vae_anomaly.ensemble.members import Member
from vae_anomaly.model.states import ModelState
from vae_anomaly.persistence import SKOPS_TRUSTED
from vae_anomaly.thresholds import Conformal


@pytest.fixture(scope="module")
def mixed():
    """String and numeric columns; an anomaly has the color of one kind and the size of another."""
    rng = np.random.RandomState(0)
    color = rng.choice(["red", "green", "blue"], size=600)
    size = pd.Series(color).map({"red": 1.0, "green": 5.0, "blue": 9.0}) + 0.3 * rng.normal(size=600)
    y = (np.arange(600) < 30).astype(int)
    color[y == 1] = np.roll(color[y == 1], 1)
    y = y * (size.round() != pd.Series(color).map({"red": 1, "green": 5, "blue": 9}).to_numpy()).to_numpy()
    weight = 2 * size + 0.2 * rng.normal(size=600)
    return pd.DataFrame({"color": color, "size": size, "weight": weight}), y


def pipeline(**settings):
    columns = ColumnTransformer(
        [
            ("category", OneHotEncoder(sparse_output=False, handle_unknown="ignore"), ["color"]),
            ("number", StandardScaler(), ["size", "weight"]),
        ]
    )
    return Pipeline([("columns", columns), ("detector", VAEDetector(random_state=0, **settings))])


def test_a_pipeline_on_a_data_frame_with_strings_and_numbers(mixed):
    X, y = mixed
    fitted = pipeline().fit(X)
    assert roc_auc_score(y, -fitted.score_samples(X)) > 0.9
    assert set(fitted.predict(X)) == {-1, 1}
    assert fitted.score(X) == fitted[-1].score(fitted[:-1].transform(X))


def test_a_pipeline_with_pandas_output_keeps_column_names(mixed):
    X, _ = mixed
    fitted = pipeline(epochs=2).set_output(transform="pandas").fit(X)
    assert "number__size" in fitted[-1].feature_names_in_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.predict(X)


GRID = {
    "network": [DenseNetwork((16,)), DenseNetwork((8, 8))],
    "latent_dim": [1, 3],
    "beta": [0.5, 1.0],
    "learning_rate": [1e-3, 1e-2],
}


@pytest.mark.parametrize("n_jobs", [2, -1])
@pytest.mark.parametrize("scoring", [None, scorers.roc_auc], ids=["elbo", "auroc"])
def test_grid_searches_in_workers_run_again_and_again(table, n_jobs, scoring):
    X, y = table
    detector = VAEDetector(epochs=3, random_state=0)
    results = []
    for _ in range(2):
        search = GridSearchCV(detector, GRID, scoring=scoring, cv=3, n_jobs=n_jobs).fit(X, y)
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()
        results.append(search.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(*results)
    assert search.best_estimator_.predict(X).shape == (500,)


def test_nested_parameters_of_the_network_can_be_searched(table):
    detector = VAEDetector(network=DenseNetwork(), epochs=3, random_state=0)
    grid = {"network__hidden_units": [(8,), (16, 8)], "network__activation": ["relu", "tanh"]}
    search = GridSearchCV(detector, grid, cv=2).fit(table[0])
    assert len(search.cv_results_["params"]) == 4


def test_workers_and_the_parent_score_alike(table):
    X, _ = table
    here = cross_val_score(VAEDetector(epochs=3, random_state=0), X, cv=2)
    for backend in ("loky", "threading"):
        with parallel_backend(backend):
            there = cross_val_score(VAEDetector(epochs=3, random_state=0), X, cv=2, n_jobs=2)
        np.testing.assert_array_equal(here, there)


def test_a_dumped_detector_scores_alike_in_a_fresh_process(tmp_path, table):
    X, _ = table
    detector = VAEDetector(epochs=3, random_state=0).fit(X)
    joblib.dump(make_pipeline(MinMaxScaler(), clone(detector)).fit(X), tmp_path / "pipeline.joblib")
    joblib.dump(detector, tmp_path / "detector.joblib")
    np.save(tmp_path / "X.npy", X)
    code = (
        "import joblib, numpy as np, sys\n"
        "X = np.load('X.npy')\n"
        "for name in ('pipeline', 'detector'):\n"
        "    np.save(name + '.npy', joblib.load(name + '.joblib').score_samples(X))\n"
        "mapped = joblib.load('detector.joblib', mmap_mode='r')\n"
        "np.save('mapped.npy', mapped.score_samples(X))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    expected = detector.score_samples(X)
    np.testing.assert_array_equal(np.load(tmp_path / "detector.npy"), expected)
    np.testing.assert_array_equal(np.load(tmp_path / "mapped.npy"), expected)
    in_pipeline = joblib.load(tmp_path / "pipeline.joblib").score_samples(X)
    np.testing.assert_array_equal(np.load(tmp_path / "pipeline.npy"), in_pipeline)


def every_kind(n_rows=80):
    """A table with every kind of column, and gaps."""
    rng = np.random.RandomState(0)
    X = pd.DataFrame({"area": rng.normal(size=n_rows), "kind": rng.choice(["flat", "house"], n_rows)})
    X["size"] = pd.Categorical(rng.choice(["s", "m"], n_rows), ["s", "m"], ordered=True)
    X["garden"], X["rooms"] = rng.random_sample(n_rows) < 0.5, rng.poisson(3, n_rows)
    X["floor"] = pd.array(rng.poisson(2, n_rows), dtype="Int64")
    X.loc[:9, "area"], X.loc[5:7, "kind"] = np.nan, None
    return X


def scaled_detector(**settings):
    quick = {"network": DenseNetwork((8,)), "epochs": 2, "random_state": 0}
    return make_pipeline(MinMaxScaler(), VAEDetector(**{**quick, **settings}))


STORED = {
    "numbers": lambda table, mixed: (scaled_detector(), table),
    "members and a rule": lambda table, mixed: (
        scaled_detector(members=[Member(), Member(0.1)], threshold=Conformal(0.1), calibration=0.3),
        table,
    ),
    "a generator": lambda table, mixed: (scaled_detector(random_state=np.random.RandomState(3)), table),
    "strings behind a column transformer": lambda table, mixed: (pipeline(epochs=2), mixed),
    "every kind of column": lambda table, mixed: (
        Pipeline([("detector", scaled_detector()[-1])]),
        every_kind(),
    ),
    "images": lambda table, mixed: (
        scaled_detector(network=ConvNetwork((2, 3, 1), filters=(3,), dense_units=(4,))),
        table,
    ),
}


@pytest.fixture(scope="module")
def stored(table, mixed):
    """Fitted pipelines with their rows."""
    made = {name: make(table[0], mixed[0]) for name, make in STORED.items()}
    return {name: (unfitted.fit(X), X) for name, (unfitted, X) in made.items()}


def assert_same_scores_elsewhere(stored, load, folder):
    """``load`` is code that makes ``pipeline`` of the file ``name``, in a new process in its folder."""
    for name, (_, X) in stored.items():
        pd.to_pickle(X, folder / f"{name}.rows")
    code = (
        "import sys, numpy as np, pandas as pd\n"
        "for name in sys.argv[1:]:\n"
        f"    {load}\n"
        "    X = pd.read_pickle(name + '.rows')\n"
        "    np.save(name + '.npy', [pipeline.score_samples(X), pipeline.predict(X)])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, *stored], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for name, (fitted, X) in stored.items():
        found = np.load(folder / f"{name}.npy")
        np.testing.assert_array_equal(found, [fitted.score_samples(X), fitted.predict(X)])


def test_skops_stores_whole_pipelines_with_nothing_to_trust_but_this_librarys_classes(stored, tmp_path):
    for name, (fitted, _) in stored.items():
        skops.io.dump(fitted, tmp_path / name)
        assert set(skops.io.get_untrusted_types(file=tmp_path / name)) <= set(SKOPS_TRUSTED)
    load = (
        "import skops.io; from vae_anomaly.persistence import SKOPS_TRUSTED; "
        "pipeline = skops.io.load(name, trusted=SKOPS_TRUSTED)"
    )
    assert_same_scores_elsewhere(stored, load, tmp_path)


def test_joblib_stores_whole_pipelines_that_score_from_mapped_memory(stored, tmp_path):
    for name, (fitted, _) in stored.items():
        joblib.dump(fitted, tmp_path / name)
    load = (
        "import joblib; pipeline = joblib.load(name, mmap_mode='r'); "
        "assert isinstance(pipeline[-1].members_[0].trainable, np.memmap)"
    )
    assert_same_scores_elsewhere(stored, load, tmp_path)


def test_what_skops_has_loaded_can_be_used_as_before(mixed, tmp_path):
    fitted = Pipeline([("detector", scaled_detector()[-1])]).fit(X := every_kind())
    loaded = skops.io.loads(skops.io.dumps(fitted), trusted=SKOPS_TRUSTED)
    pd.testing.assert_frame_equal(loaded[-1].reconstruct(X), fitted[-1].reconstruct(X))
    np.testing.assert_array_equal(clone(loaded).fit(X).score_samples(X), fitted.score_samples(X))


def test_skops_is_not_told_to_trust_what_can_run_code(table):
    encoder, decoder = DenseNetwork((4,)).build(6, 2, 1)
    fitted = VAEDetector(network=KerasNetwork(encoder, decoder), epochs=1, random_state=0).fit(table[0])
    data = skops.io.dumps(fitted)
    beyond = set(skops.io.get_untrusted_types(data=data)) - set(SKOPS_TRUSTED)
    assert beyond == {
        f"vae_anomaly.networks.keras_network.{name}" for name in ("Blueprint", "KerasNetwork", "_Pickled")
    }
    loaded = skops.io.loads(data, trusted=[*SKOPS_TRUSTED, *beyond])
    np.testing.assert_array_equal(loaded.score_samples(table[0]), fitted.score_samples(table[0]))


def test_every_class_of_a_table_comes_back_from_a_pickle():
    table = table_of(every_kind(), "auto")
    again = pickle.loads(pickle.dumps(table))
    for column, copied in zip(table.columns, again.columns, strict=True):
        assert (column.name, column.dtype, repr(column.likelihood)) == (
            copied.name,
            copied.dtype,
            repr(copied.likelihood),
        )
        assert (column.categories is None) is (copied.categories is None)
        if column.categories is not None:
            pd.testing.assert_index_equal(column.categories, copied.categories)


def test_the_state_is_arrays_and_plain_configuration(table):
    """Loading a dump does not even need TensorFlow, let alone hold anything of it."""
    detector = VAEDetector(epochs=1, random_state=0).fit(table[0])
    dumped = pickle.dumps(detector)
    code = (
        "import pickle, sys\n"
        "detector = pickle.loads(sys.stdin.buffer.read())\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
        "print(detector)"
    )
    ran = subprocess.run([sys.executable, "-c", code], input=dumped, capture_output=True, check=True)
    assert b"VAEDetector(epochs=1" in ran.stdout
    assert isinstance(detector.members_[0], ModelState)
    assert all(
        isinstance(value, np.ndarray)
        for value in (detector.members_[0].trainable, *detector.members_[0].non_trainable)
    )
    assert len(dumped) < 3 * detector.members_[0].trainable.nbytes


def test_a_users_keras_models_go_through_clones_pickles_and_workers(table):
    X, _ = table
    encoder, decoder = DenseNetwork((8,)).build(6, 2, 1)
    detector = VAEDetector(network=KerasNetwork(encoder, decoder), epochs=2, random_state=0)
    expected = detector.fit(X).score_samples(X)
    np.testing.assert_array_equal(clone(detector).fit(X).score_samples(X), expected)
    here = cross_val_score(detector, X, cv=2)
    np.testing.assert_array_equal(cross_val_score(detector, X, cv=2, n_jobs=2), here)


def test_a_likelihood_defined_in_a_script_reaches_the_workers():
    code = (
        "import numpy as np\n"
        "from sklearn.model_selection import cross_val_score\n"
        "from vae_anomaly import VAEDetector\n"
        "from vae_anomaly.core.backend import keras\n"
        "from vae_anomaly.likelihoods import LocationScale\n"
        "class Logistic(LocationScale):\n"
        "    name = 'logistic'\n"
        "    def standard_log_prob(self, residual):\n"
        "        return -residual - 2 * keras.ops.softplus(-residual)\n"
        "X = np.random.RandomState(0).normal(size=(100, 3))\n"
        "detector = VAEDetector(likelihood=Logistic(), epochs=2, random_state=0)\n"
        "here, there = (cross_val_score(detector, X, cv=2, n_jobs=n_jobs) for n_jobs in (1, 2))\n"
        "assert np.isfinite(here).all() and np.array_equal(here, there), (here, there)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_labels_are_accepted_and_ignored(table):
    X, y = table
    with_labels = VAEDetector(epochs=2, random_state=0).fit(X, y)
    without = VAEDetector(epochs=2, random_state=0).fit(X)
    np.testing.assert_array_equal(with_labels.score_samples(X), without.score_samples(X))
    assert with_labels.score(X, y) == without.score(X)


def test_the_html_repr_shows_the_parameters(table):
    html = VAEDetector(network=DenseNetwork((8,)), score="iwae")._repr_html_()
    assert "iwae" in html
    assert "hidden_units" in html


def test_no_metadata_is_promised_that_is_not_used():
    from sklearn import config_context

    with config_context(enable_metadata_routing=True):
        routing = VAEDetector().get_metadata_routing()
    assert not routing.fit.requests
    assert not routing.score.requests


def test_real_tumors_are_told_apart():
    X, y = load_tumors(contamination=0.05)
    fitted = make_pipeline(StandardScaler(), VAEDetector(random_state=0)).fit(X)
    assert scorers.roc_auc(fitted, X, y) > 0.85


def test_scikit_learns_meta_estimators_can_hold_it(table):
    """Cloning inside a meta-estimator keeps the parameter `score` apart from the method."""
    holder = BaggingClassifier(VAEDetector(score="iwae"))
    assert holder.get_params()["estimator__score"] == "iwae"
    assert clone(holder).estimator.get_params()["score"] == "iwae"
