"""Data and detectors that several test files share."""

import gc
import os
import random
import weakref

# One of several processes of tests has its part of the cores, also where it starts another.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    n_threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(n_threads))

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator

from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.core.backend import keras, tf
from vae_anomaly.datasets import make_anomalies
from vae_anomaly.engine import programs, tiles

# Pictures are drawn without a display, whatever the machine has.
os.environ["MPLBACKEND"] = "Agg"

# Tracing makes millions of objects that live long; to look through them again and again takes a while.
gc.freeze()
gc.set_threshold(50_000, 20, 50)

# The tests use hundreds of architectures, and many of them again and again: none is compiled twice.
CACHED_ARCHITECTURES = programs._cache._n_kept  # as a process of a user's has it
programs._cache._n_kept = 150


def wide(*values, name=None):
    """One setting of a parametrized test that repeats a law which other settings test by default."""
    return pytest.param(*values, id=name, marks=pytest.mark.wide)


def stars(settings, by_default):
    """The settings of a dict as parameters named by its keys; those not in ``by_default`` are `wide`."""
    assert set(by_default) <= set(settings)
    return [
        pytest.param(
            *(values if isinstance(values, tuple) else (values,)),
            id=name,
            marks=() if name in by_default else pytest.mark.wide,
        )
        for name, values in settings.items()
    ]


def write_many_rows(folder, n_files):
    """Parquet files of 100,000 rows of 20 columns each."""
    folder.mkdir()
    for number in range(n_files):
        X = np.random.RandomState(number).normal(size=(100_000, 20))
        path = folder / f"{number:02}.parquet"
        pd.DataFrame(X).rename(columns=str).to_parquet(path, row_group_size=20_000)
    return folder


class Calibrated(BaseEstimator):
    """What a monitor needs of a detector whose rows are their scores."""

    def __init__(self, calibration_scores):
        self.calibration_scores_ = calibration_scores

    def fit(self, X):
        return self

    def score_samples(self, X):
        return -np.asarray(X)


@pytest.fixture(scope="session")
def table():
    """500 rows, 6 features, 5 % of them anomalies that break the features' dependence."""
    return make_anomalies(500, 6, kind="dependency", random_state=0)


@pytest.fixture(scope="session")
def default_detector(table):
    """The default, fitted: ten seconds, once. Whoever changes it changes a copy."""
    return VAEDetector(random_state=0).fit(table[0])


@pytest.fixture
def small_detector():
    """A detector that fits in milliseconds once its architecture has been compiled."""
    return VAEDetector(
        network=DenseNetwork(hidden_units=(16,)), latent_dim=2, epochs=5, batch_size=64, random_state=0
    )


@pytest.fixture
def forget_programs(monkeypatch):
    """Once called, there are no compiled programs until the end of the test, as in a new process."""

    def forget():
        monkeypatch.setattr(programs, "_cache", programs._Recent(CACHED_ARCHITECTURES))
        monkeypatch.setattr(programs, "_architectures", weakref.WeakKeyDictionary())

    return forget


@pytest.fixture(autouse=True)
def narrow_tiles_at_once(request, monkeypatch):
    """The mark `narrow_tiles`: the first call with few rows has a program of its own, not the 33rd."""
    if request.node.get_closest_marker("narrow_tiles") is not None:
        monkeypatch.setattr(tiles, "_NARROW_TILE_FROM_CALLS", 0)


@pytest.fixture
def draws_after():
    """What every global generator draws next, once an action has run from a known state.

    ``draws_after(action) == draws_after(lambda: None)`` says that the action touched none of them.
    """

    from keras.src.backend.common import global_state

    def draws(action):
        keras.utils.set_random_seed(7)
        # Early releases of Keras 3 go on with the generator that they have.
        global_state.set_global_attribute("global_seed_generator", None)
        action()
        return (
            random.random(),
            float(np.random.random()),
            float(keras.random.normal(())),
            float(tf.random.normal(())),
        )

    return draws
