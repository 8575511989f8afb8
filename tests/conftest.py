"""Data and detectors that several test files share."""

import random

import numpy as np
import pytest

from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.datasets import make_anomalies


@pytest.fixture(scope="session")
def table():
    """500 rows, 6 features, 5 % of them anomalies that break the features' dependence."""
    return make_anomalies(500, 6, kind="dependency", random_state=0)


@pytest.fixture
def small_detector():
    """A detector that fits in milliseconds once its architecture has been compiled."""
    return VAEDetector(
        network=DenseNetwork(hidden_units=(16,)), latent_dim=2, epochs=5, batch_size=64, random_state=0
    )


@pytest.fixture
def untouched_global_random_state():
    """Fails the test if it leaves numpy's, Python's or Keras' global random state changed."""
    from keras.src.backend.common import global_state

    def states():
        generator = global_state.get_global_attribute("global_seed_generator")
        return (
            random.getstate(),
            [np.asarray(part).tolist() for part in np.random.get_state()[1:]],
            None if generator is None else generator.state.numpy().tolist(),
        )

    before = states()
    yield
    assert states() == before
