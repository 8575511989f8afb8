"""Compiled programs: shared, bounded in number, independent of the rows."""

import gc
import os
import time

import numpy as np
import psutil
import pytest
from conftest import CACHED_ARCHITECTURES

from vae_anomaly import DenseNetwork, KerasNetwork, VAEDetector
from vae_anomaly.core.backend import tf
from vae_anomaly.engine import programs
from vae_anomaly.engine.programs import architecture, architecture_of
from vae_anomaly.likelihoods import Bernoulli, Gaussian
from vae_anomaly.model.states import Specification


def specification(units=(8,), likelihood=None, n_features=3, latent_dim=2):
    return Specification(DenseNetwork(units), likelihood or Gaussian(), n_features, latent_dim)


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        (specification(), True),
        (specification(units=(9,)), False),
        (specification(likelihood=Bernoulli()), False),
        (specification(likelihood=Gaussian(minimum_scale=0.2)), False),
        (specification(n_features=4), False),
        (specification(latent_dim=1), False),
    ],
)
def test_equal_specifications_share_an_architecture(other, shared):
    assert (architecture(specification()) is architecture(other)) is shared


def test_a_redefined_class_is_another_architecture():
    def define():
        class Mine(Gaussian):
            name = ""

        return Mine()

    first, second = define(), define()
    assert architecture(specification(likelihood=first)) is not architecture(specification(likelihood=second))


@pytest.fixture
def few_kept(monkeypatch):
    """A process that keeps four architectures, each with three programs: full without a minute's work."""
    assert CACHED_ARCHITECTURES == programs._CACHED_ARCHITECTURES
    assert architecture(specification())._programs._n_kept == programs._CACHED_PROGRAMS
    monkeypatch.setattr(programs, "_CACHED_ARCHITECTURES", 4)
    monkeypatch.setattr(programs, "_CACHED_PROGRAMS", 3)
    monkeypatch.setattr(programs, "_cache", programs._Recent(4))


def test_the_least_recently_used_architecture_is_dropped(few_kept):
    first = architecture(specification(units=(101,)))
    for units in range(102, 102 + programs._CACHED_ARCHITECTURES - 1):
        architecture(specification(units=(units,)))
    assert architecture(specification(units=(101,))) is first
    for units in range(202, 202 + programs._CACHED_ARCHITECTURES):
        architecture(specification(units=(units,)))
    assert len(programs._cache) == programs._CACHED_ARCHITECTURES
    assert architecture(specification(units=(101,))) is not first


@pytest.mark.wide
def test_a_detector_whose_architecture_was_dropped_still_scores(table, forget_programs):
    X, _ = table
    detector = VAEDetector(network=DenseNetwork((17,)), epochs=2, random_state=0).fit(X)
    before = detector.score_samples(X)
    forget_programs()
    gc.collect()
    np.testing.assert_array_equal(detector.score_samples(X), before)


def test_states_survive_the_way_through_a_model():
    shared = architecture(specification())
    state = shared.initial_state(3, np.array([[-1, -2, -3], [1, 2, 3]], dtype=np.float32))
    model = shared.new_model()
    shared.load_into(model, state)
    np.testing.assert_array_equal(model.input_range.numpy(), [[-1, -2, -3], [1, 2, 3]])
    again = shared.state_of(model)
    np.testing.assert_array_equal(again.trainable, state.trainable)
    for one, other in zip(again.non_trainable, state.non_trainable, strict=True):
        np.testing.assert_array_equal(one, other)


def test_limits_go_in_as_numbers(table):
    """A search over them compiles nothing anew."""
    X, _ = table
    settings = {"network": DenseNetwork((17,)), "epochs": 3, "random_state": 0}
    first = VAEDetector(gradient_clip_norm=0.5, free_bits=0.1, **settings).fit(X)
    traced = set(architecture(first.members_[0].specification)._programs)
    for clip_norm, free_bits in ((0.01, 0.1), (0.5, 0.3), (1e9, 1e-9)):
        other = VAEDetector(gradient_clip_norm=clip_norm, free_bits=free_bits, **settings).fit(X)
        assert not np.array_equal(other.score_samples(X), first.score_samples(X))
    assert set(architecture(first.members_[0].specification)._programs) == traced


@pytest.mark.wide
def test_one_architecture_keeps_a_bounded_number_of_programs(table, few_kept):
    X, _ = table
    detector = VAEDetector(network=DenseNetwork((18,)), epochs=1, random_state=0)
    for batch_size in range(20, 23 + programs._CACHED_PROGRAMS):
        detector.set_params(batch_size=batch_size).fit(X[:40])
    assert len(architecture(detector.members_[0].specification)._programs) == programs._CACHED_PROGRAMS


def test_a_model_in_use_keeps_its_programs_whatever_else_is_fitted(table, few_kept):
    """A process that serves more models than the cache holds traces none of them twice."""
    X, _ = table
    network = DenseNetwork((103,))
    served = VAEDetector(network=network, epochs=1, random_state=0).fit(X)
    its_own = architecture_of(served.members_[0])
    for units in range(301, 302 + programs._CACHED_ARCHITECTURES):
        architecture(specification(units=(units,)))
    assert architecture(served.members_[0].specification) is not its_own
    assert architecture_of(served.members_[0]) is its_own


def test_a_network_without_trainable_weights_is_refused(table):
    encoder, decoder = DenseNetwork((4,)).build(6, 2, 1)
    encoder.trainable = decoder.trainable = False
    frozen = VAEDetector(network=KerasNetwork(encoder, decoder), likelihood=Gaussian(scale=1.0), epochs=1)
    with pytest.raises(ValueError, match=r"nothing to train.*trainable = True"):
        frozen.fit(table[0])


def test_a_model_is_tied_to_no_device(table):
    X, _ = table
    on_cpu = VAEDetector(epochs=2, device="cpu:0", random_state=0).fit(X)
    anywhere = VAEDetector(epochs=2, random_state=0).fit(X)
    np.testing.assert_array_equal(on_cpu.score_samples(X), anywhere.score_samples(X))
    np.testing.assert_array_equal(on_cpu.set_params(device=None).score_samples(X), anywhere.score_samples(X))


def _megabytes():
    gc.collect()
    return psutil.Process(os.getpid()).memory_info().rss / 1e6


@pytest.mark.long
def test_a_hundred_refits_cost_neither_memory_nor_speed():
    rng = np.random.RandomState(0)
    seconds, memory = [], []
    for seed in range(100):
        X = rng.normal(size=(400 + 7 * (seed % 13), 10))
        start = time.process_time()
        VAEDetector(epochs=4, batch_size=32, random_state=seed).fit(X).score_samples(X)
        seconds.append(time.process_time() - start)
        memory.append(_megabytes())
    assert memory[-1] - memory[4] < 50
    assert np.median(seconds[-20:]) < 1.5 * np.median(seconds[5:25])


@pytest.mark.long
def test_thirty_architectures_fit_into_bounded_memory(forget_programs):
    forget_programs()
    X = np.random.RandomState(0).normal(size=(200, 10))
    memory = []
    for width in range(30):
        VAEDetector(network=DenseNetwork((40 + width, 16)), epochs=2, random_state=0).fit(X)
        memory.append(_megabytes())
    # After the cache is full, an architecture that comes in drives one out.
    full = programs._CACHED_ARCHITECTURES
    assert len(programs._cache) == full
    assert memory[-1] - memory[full] < 5 * (30 - full)


def test_graphs_that_do_not_execute_eagerly_are_refused(table):
    X = table[0]
    detector = VAEDetector(epochs=1, members=1).fit(X)
    with tf.Graph().as_default():
        for use in (detector.score_samples, VAEDetector(epochs=1).fit):
            with pytest.raises(RuntimeError, match=r"needs TensorFlow's eager execution.*Call it outside"):
                use(X)
    assert np.isfinite(detector.score_samples(X)).all()
