"""What networks cost, and how much of them is computed at once: memory is bounded, whatever the image."""

import subprocess
import sys

import numpy as np
import pytest

from vae_anomaly import ConvNetwork, DenseNetwork, KerasNetwork, VAEDetector
from vae_anomaly.core.backend import keras
from vae_anomaly.engine.programs import architecture
from vae_anomaly.ensemble import job
from vae_anomaly.likelihoods import UnitGaussian
from vae_anomaly.model import cost
from vae_anomaly.model.cost import draws_at_once, multiply_adds, numbers_made, rows_at_once
from vae_anomaly.model.states import Specification

DETAILS = {"network": "conv", "patches": None, "epochs": 1, "members": 1, "n_draws": 2, "random_state": 0}


def conv_models(side, channels=3):
    shape = (side, side, channels)
    return ConvNetwork().for_images(shape).build(side * side * channels, 16, 1)


def test_a_convolution_costs_its_kernel_at_each_of_its_places():
    network = ConvNetwork((8, 8, 1), filters=(4,), dense_units=())
    found = architecture(Specification(network, UnitGaussian(), 64, 2))
    encoder = 4 * 4 * (9 * 4 + 4) + (64 * 4 + 4)  # a stride of 2, and the heads
    assert found.encoder_size == encoder
    decoder = (2 * 64 + 64) + 4 * 4 * (9 * 4 * 4 + 4) + 8 * 8 * (9 * 4 + 1)
    assert found.decoder_size == decoder


@pytest.mark.filterwarnings("ignore:.*unbuilt state")
def test_layers_that_are_never_called_and_models_within_models_are_counted():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.unused = keras.Sequential([keras.layers.Dense(2)]), keras.layers.Dense(3)
            self.shift = self.add_weight(shape=(4,))

        def call(self, x):
            return self.used(x + self.shift)

    model = Model()
    model(np.zeros((1, 4), "f4"))
    assert multiply_adds(model) == (4 * 2 + 2) + 4
    assert numbers_made(model) == 2


def test_the_numbers_that_a_network_makes_are_those_of_all_its_layers():
    encoder, decoder = DenseNetwork((8, 4)).build(6, 2, 1)
    assert numbers_made(encoder) == 6 + (8 + 8) + (4 + 4) + (2 + 2)  # the rows, hidden layers, heads
    assert numbers_made(decoder) == 2 + (4 + 4) + (8 + 8) + 6


def test_usual_networks_take_the_usual_batch_and_all_draws():
    for encoder, decoder in (DenseNetwork((512, 256)).build(2048, 32, 2), conv_models(64)):
        assert rows_at_once(encoder, decoder, n_draws=1, at_most=128) == 128
        assert draws_at_once(decoder) == 64


def test_batches_and_draws_of_large_images_are_as_many_as_memory_is_for():
    rows, draws = [], []
    for side in (128, 256, 512, 1024):
        encoder, decoder = conv_models(side)
        rows.append(rows_at_once(encoder, decoder, n_draws=1, at_most=128))
        draws.append(draws_at_once(decoder))
        assert rows[-1] == 1 or rows[-1] * (numbers_made(encoder) + numbers_made(decoder)) <= 2**26
        assert rows_at_once(encoder, decoder, n_draws=8, at_most=128) < max(rows[-1], 2)
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] == 1
    assert draws == sorted(draws, reverse=True)
    assert draws[-1] == 1


def batches_of_job(monkeypatch):
    found = []
    make = job.rows_at_once
    monkeypatch.setattr(job, "rows_at_once", lambda *args: found.append(make(*args)) or found[-1])
    return found


@pytest.mark.wide
def test_a_fit_takes_the_batch_that_memory_is_for_unless_it_is_given(monkeypatch):
    monkeypatch.setattr(cost, "_NUMBERS_AT_ONCE", 300_000)
    images = np.random.default_rng(0).random((20, 40, 40))
    found = batches_of_job(monkeypatch)
    detector = VAEDetector(**DETAILS).fit(images)
    (batch,) = found
    assert 1 < batch < 20
    same = VAEDetector(**DETAILS, batch_size=batch).fit(images)
    np.testing.assert_array_equal(same.score_samples(images), detector.score_samples(images))
    assert len(found) == 1


@pytest.mark.wide
def test_images_that_are_decoded_draw_by_draw_have_the_same_scores(monkeypatch):
    images = np.random.default_rng(0).random((8, 40, 40))
    scores, maps = [], []
    for numbers in (2**26, 1):
        monkeypatch.setattr(cost, "_NUMBERS_AT_ONCE", numbers)
        network = ConvNetwork(filters=(4, 6))
        if numbers == 1:
            network = KerasNetwork(*network.for_images((40, 40)).build(1600, 3, 1))
            assert draws_at_once(network.decoder) == 1
        details = {**DETAILS, "network": network, "n_draws": 5, "latent_dim": 3, "batch_size": 8}
        detector = VAEDetector(**details).fit(images)
        assert detector.model_.draws_at_once == (64 if numbers > 1 else 1)
        scores.append(detector.score_samples(images))
        maps.append(detector.explain(images))
    np.testing.assert_allclose(*scores, rtol=1e-5)
    np.testing.assert_allclose(*maps, rtol=1e-3, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("side", [256, 512])
def test_convolutions_of_large_images_take_at_most_a_gigabyte_and_a_half(side):
    """Beyond TensorFlow's start and the images, in a process of its own; with fifty draws, too."""
    script = f"""
import resource
import numpy as np
import tensorflow
from vae_anomaly import VAEDetector
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
images = np.random.default_rng(0).integers(0, 256, (20, {side}, {side}, 3), np.uint8)
before = peak()
detector = VAEDetector(network="conv", patches=None, epochs=1, members=1, n_draws=50, random_state=0)
detector.fit(images).score_samples(images[:2])
print(peak() - before)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(ran.stdout.split()[-1]) < 1536
