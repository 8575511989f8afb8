"""VAEDetector where scikit-learn's users use outlier detectors."""

import contextlib
import io
import pickle
import subprocess
import sys
import textwrap
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from conftest import wide
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
from vae_anomaly.ensemble.recipe import Member
from vae_anomaly.model.states import ModelState
from vae_anomaly.monitoring import Monitor
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
    fitted = pipeline(epochs=150).fit(X)
    assert roc_auc_score(y, -fitted.score_samples(X)) > 0.9
    assert set(fitted.predict(X)) == {-1, 1}
    assert fitted.score(X) == fitted[-1].score(fitted[:-1].transform(X))


def test_a_pipeline_with_pandas_output_keeps_column_names(mixed):
    X, _ = mixed
    fitted = pipeline(network=DenseNetwork((8,)), epochs=2).set_output(transform="pandas").fit(X)
    assert "number__size" in fitted[-1].feature_names_in_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.predict(X)


BASE = {"network": DenseNetwork((8,)), "epochs": 3, "random_state": 0}
STAR = [
    {},
    {"network": [DenseNetwork((16, 8))]},
    {"beta": [0.5], "learning_rate": [1e-2]},
]
PRODUCT = {
    "network": [DenseNetwork((16,)), DenseNetwork((8, 8))],
    "latent_dim": [1, 3],
    "beta": [0.5, 1.0],
    "learning_rate": [1e-3, 1e-2],
}


@pytest.mark.parametrize(
    ("grid", "n_jobs", "scoring"),
    [
        wide(STAR, 2, None, name="star-elbo-2"),
        wide(STAR, 2, scorers.roc_auc, name="star-auroc-2"),
        wide(PRODUCT, 2, None, name="product-elbo-2"),
        wide(PRODUCT, -1, None, name="product-elbo--1"),
        wide(PRODUCT, 2, scorers.roc_auc, name="product-auroc-2"),
        wide(PRODUCT, -1, scorers.roc_auc, name="product-auroc--1"),
    ],
)
def test_grid_searches_in_workers_run_again_and_again(table, grid, n_jobs, scoring):
    X, y = table
    detector = VAEDetector(**BASE)
    results = []
    for _ in range(2):
        search = GridSearchCV(detector, grid, scoring=scoring, cv=2, n_jobs=n_jobs).fit(X, y)
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()
        results.append(search.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(*results)
    assert len(np.unique(results[0])) == len(search.cv_results_["params"])
    assert search.best_estimator_.predict(X).shape == (500,)


@pytest.mark.parametrize(
    "grid",
    [
        [{"network__hidden_units": [(8,), (16, 8)]}, {"network__activation": ["tanh"]}],
        wide({"network__hidden_units": [(8,), (16, 8)], "network__activation": ["relu", "tanh"]}),
    ],
    ids=["star", "product"],
)
def test_nested_parameters_of_the_network_can_be_searched(table, grid):
    detector = VAEDetector(**BASE)
    search = GridSearchCV(detector, grid, cv=2).fit(table[0])
    found = search.cv_results_["mean_test_score"]
    assert np.isfinite(found).all()
    assert len(np.unique(found)) == len(found) == (3 if isinstance(grid, list) else 4)


@pytest.mark.wide
def test_workers_and_the_parent_score_alike(table):
    X, _ = table
    here = cross_val_score(VAEDetector(**BASE), X, cv=2)
    for backend in ("loky", "threading"):
        with parallel_backend(backend):
            there = cross_val_score(VAEDetector(**BASE), X, cv=2, n_jobs=2)
        np.testing.assert_array_equal(here, there)


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
    quick = {"network": DenseNetwork((8,)), "epochs": 2, "n_draws": 4, "random_state": 0}
    return make_pipeline(MinMaxScaler(), VAEDetector(**{**quick, **settings}))


# Pipelines, and one detector alone.
STORED = {
    "a detector": lambda table, mixed: (scaled_detector()[-1], table),
    "numbers": lambda table, mixed: (scaled_detector(), table),
    "members and a rule": lambda table, mixed: (
        scaled_detector(members=[Member(), Member(0.1)], threshold=Conformal(0.1), calibration=0.3),
        table,
    ),
    "a generator": lambda table, mixed: (scaled_detector(random_state=np.random.RandomState(3)), table),
    "strings behind a column transformer": lambda table, mixed: (
        pipeline(network=DenseNetwork((8,)), epochs=2),
        mixed,
    ),
    "every kind of column": lambda table, mixed: (
        Pipeline([("detector", scaled_detector()[-1])]),
        every_kind(),
    ),
    "images": lambda table, mixed: (
        scaled_detector(network=ConvNetwork((2, 3, 1), filters=(3,), dense_units=(4,))),
        table,
    ),
}


STORED_BY_DEFAULT = ["a detector", "members and a rule", "every kind of column"]


@pytest.fixture(
    scope="module",
    params=[STORED_BY_DEFAULT, wide(list(STORED), name="all")],
    ids=["some", "all"],
)
def stored(request, table, mixed):
    """Fitted pipelines with their rows."""
    made = {name: STORED[name](table[0], mixed[0]) for name in request.param}
    return {name: (unfitted.fit(X), X) for name, (unfitted, X) in made.items()}


LOADED = """
import sys
import joblib, numpy as np, pandas as pd, skops.io
from vae_anomaly.persistence import SKOPS_TRUSTED

def mapped(file):
    loaded = joblib.load(file, mmap_mode="r")
    detector = loaded[-1] if hasattr(loaded, "steps") else loaded
    assert isinstance(detector.members_[0].trainable, np.memmap)
    return loaded

WAYS = {
    "joblib": lambda name: joblib.load(name + ".joblib"),
    "mapped": lambda name: mapped(name + ".joblib"),
    "skops": lambda name: skops.io.load(name + ".skops", trusted=SKOPS_TRUSTED),
}
for name in sys.argv[1:]:
    X = pd.read_pickle(name + ".rows")
    for way, load in WAYS.items():
        loaded = load(name)
        np.save(name + "." + way + ".npy", [loaded.score_samples(X), loaded.predict(X)])
"""


@pytest.fixture(scope="module", params=["in this process", wide("in a fresh process")])
def folder(request, stored, tmp_path_factory):
    """The fitted pipelines in files, and what was made of each when it was loaded in each way."""
    folder = tmp_path_factory.mktemp("stored")
    for name, (fitted, X) in stored.items():
        pd.to_pickle(X, folder / f"{name}.rows")
        joblib.dump(fitted, folder / f"{name}.joblib")
        skops.io.dump(fitted, folder / f"{name}.skops")
    if request.param == "in this process":
        with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patched:
            patched.setattr(sys, "argv", ["", *stored])
            exec(LOADED, {})
    else:
        command = [sys.executable, "-c", LOADED, *stored]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
    return folder


def assert_same_scores(stored, folder, way):
    for name, (fitted, X) in stored.items():
        found = np.load(folder / f"{name}.{way}.npy")
        np.testing.assert_array_equal(found, [fitted.score_samples(X), fitted.predict(X)])


def test_what_joblib_has_dumped_scores_alike(stored, folder):
    assert_same_scores(stored, folder, "joblib")


def test_joblib_stores_whole_pipelines_that_score_from_mapped_memory(stored, folder):
    assert_same_scores(stored, folder, "mapped")


def test_a_detector_in_mapped_memory_is_saved_as_any_other(stored, folder):
    for name, (fitted, _) in stored.items():
        mapped = joblib.load(folder / f"{name}.joblib", mmap_mode="r")
        here, there = (getattr(each, "steps", [(None, each)])[-1][1] for each in (fitted, mapped))
        files = io.BytesIO(), io.BytesIO()
        here.save(files[0])
        there.save(files[1])
        assert files[0].getvalue() == files[1].getvalue()


def test_skops_stores_whole_pipelines_with_nothing_to_trust_but_this_librarys_classes(stored, folder):
    for name in stored:
        untrusted = skops.io.get_untrusted_types(file=folder / f"{name}.skops")
        assert set(untrusted) <= set(SKOPS_TRUSTED)
    assert_same_scores(stored, folder, "skops")


def test_what_skops_has_loaded_can_be_used_as_before(stored, folder):
    fitted, X = stored["every kind of column"]
    loaded = skops.io.load(folder / "every kind of column.skops", trusted=SKOPS_TRUSTED)
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


@pytest.fixture(scope="module")
def monitor_of(table):
    """A monitor that has seen 200 rows, with a generator of this kind."""
    detector = VAEDetector(
        DenseNetwork((4,)), epochs=1, n_draws=1, members=1, calibration=0.5, random_state=0
    )
    detector.fit(table[0][:200])

    def watched(random_state):
        monitor = Monitor(detector, random_state=random_state)
        monitor.update(table[0][200:300])
        monitor.update(2 * table[0][200:300])
        return monitor

    return watched


@pytest.mark.parametrize("random_state", [0, None], ids=repr)
def test_skops_stores_monitors_with_nothing_to_trust_but_this_librarys_classes(
    random_state, monitor_of, table, tmp_path
):
    monitor = monitor_of(random_state)
    skops.io.dump(monitor, tmp_path / "stream.skops")
    assert set(skops.io.get_untrusted_types(file=tmp_path / "stream.skops")) <= set(SKOPS_TRUSTED)
    loaded = skops.io.load(tmp_path / "stream.skops", trusted=SKOPS_TRUSTED)
    assert loaded.evidence == monitor.evidence
    assert loaded.update(table[0][300:]) == monitor.update(table[0][300:])


@pytest.mark.parametrize("mmap_mode", [None, "r"])
def test_joblib_stores_monitors_that_can_be_saved_again(mmap_mode, monitor_of, table, tmp_path):
    monitor = monitor_of(0)
    joblib.dump(monitor, tmp_path / "stream.joblib")
    loaded = joblib.load(tmp_path / "stream.joblib", mmap_mode=mmap_mode)
    loaded.save(tmp_path / "stream.monitor")
    again = Monitor.load(tmp_path / "stream.monitor", loaded.detector)
    expected = monitor.update(table[0][300:])
    assert loaded.update(table[0][300:]) == again.update(table[0][300:]) == expected


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
    detector = VAEDetector(network=KerasNetwork(encoder, decoder), epochs=2, n_draws=4, random_state=0)
    expected = detector.fit(X).score_samples(X)
    np.testing.assert_array_equal(clone(detector).fit(X).score_samples(X), expected)
    here = cross_val_score(detector, X, cv=2)
    np.testing.assert_array_equal(cross_val_score(detector, X, cv=2, n_jobs=2), here)


IN_A_SCRIPT = textwrap.dedent(
    """
    import numpy as np
    from sklearn.model_selection import cross_val_score
    from vae_anomaly import VAEDetector
    from vae_anomaly.core.backend import keras
    from vae_anomaly.likelihoods import LocationScale
    class Logistic(LocationScale):
        name = 'logistic'
        def standard_log_prob(self, residual):
            return -residual - 2 * keras.ops.softplus(-residual)
    X = np.random.RandomState(0).normal(size=(100, 3))
    detector = VAEDetector(likelihood=Logistic(), epochs=2, random_state=0)
    here, there = (cross_val_score(detector, X, cv=2, n_jobs=n_jobs) for n_jobs in (1, 2))
    assert np.isfinite(here).all() and np.array_equal(here, there), (here, there)
    """
)


@pytest.mark.wide
def test_a_likelihood_of_a_script_reaches_the_workers():
    """As in a script, the class is of `__main__`, where workers cannot import it."""
    namespace = {"__name__": "__main__"}
    exec(IN_A_SCRIPT, namespace)
    assert namespace["Logistic"].__module__ == "__main__"
    assert len(namespace["here"]) == 2


@pytest.mark.wide
def test_a_likelihood_defined_in_a_script_reaches_the_workers():
    ran = subprocess.run([sys.executable, "-c", IN_A_SCRIPT], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_labels_are_accepted_and_ignored(table):
    X, y = table
    with_labels = VAEDetector(**BASE).fit(X, y)
    without = VAEDetector(**BASE).fit(X)
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
    assert routing.fit.requests == {"groups": None}
    assert routing.predict.requests == routing.decision_function.requests == {"groups": None}
    assert not routing.score.requests


def test_real_tumors_are_told_apart():
    X, y = load_tumors(contamination=0.05)
    fitted = make_pipeline(StandardScaler(), VAEDetector(epochs=100, random_state=0)).fit(X)
    assert scorers.roc_auc(fitted, X, y) > 0.85


def test_scikit_learns_meta_estimators_can_hold_it(table):
    """Cloning inside a meta-estimator keeps the parameter `score` apart from the method."""
    holder = BaggingClassifier(VAEDetector(score="iwae"))
    assert holder.get_params()["estimator__score"] == "iwae"
    assert clone(holder).estimator.get_params()["score"] == "iwae"
