"""Training steps: noise, gradient, Adam; a step does not depend on the block it stands in."""

import keras
import numpy as np
import pytest

from vae_anomaly import DenseNetwork
from vae_anomaly.core.adam import Adam
from vae_anomaly.core.backend import tf
from vae_anomaly.engine.programs import architecture
from vae_anomaly.engine.steps import (
    BlockOptions,
    Limits,
    _clip,
    _gradient,
    block_steps,
    train_block,
    training_state,
)
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.model.states import Specification


@pytest.fixture
def small():
    return architecture(Specification(DenseNetwork((8,)), Gaussian(), 3, 2))


TABLE = np.random.RandomState(0).normal(size=(40, 3)).astype("f4")
ORDER = np.random.RandomState(1).permutation(40).reshape(10, 4).astype(np.int32)
NO_LIMITS = Limits(tf.constant(0.0), tf.constant(0.0), tf.constant(4), tf.constant(0.0))


def trained(shared, n_steps, first_step=0, state=None, table=TABLE, noise_seed=1, jit_compile=False):
    """The state after some of the steps, and their sums."""
    if state is None:
        state = training_state(shared.initial_state(0, np.array([[-9.0] * 3, [9.0] * 3], dtype="f4")))
    return train_block(
        shared,
        state,
        table,
        ORDER[first_step : first_step + n_steps],
        np.full(n_steps, 0.01, "f4"),
        np.ones(n_steps, "f4"),
        BlockOptions(batch_size=4, jit_compile=jit_compile),
        NO_LIMITS,
        noise_seed=noise_seed,
        first_step=first_step,
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_block_uses_its_own_rows_and_steps_only(small, jit_compile):
    first, sums = trained(small, 3, jit_compile=jit_compile)
    spoiled = TABLE.copy()
    spoiled[ORDER[3:].ravel()] = np.nan
    second, same_sums = trained(small, 3, table=spoiled, jit_compile=jit_compile)
    np.testing.assert_array_equal(first.trainable, second.trainable)
    np.testing.assert_array_equal(sums, same_sums)
    longer, _ = trained(small, 4, jit_compile=jit_compile)
    assert not np.array_equal(longer.trainable, first.trainable)


def test_every_step_has_noise_of_its_own(small):
    start, _ = trained(small, 1)
    once, first_sums = trained(small, 1, state=start, first_step=1)
    again, same_sums = trained(small, 1, state=start, first_step=1)
    np.testing.assert_array_equal(once.trainable, again.trainable)
    other, sums = trained(small, 1, state=start, first_step=1, noise_seed=2)
    assert not np.array_equal(other.trainable, once.trainable)
    np.testing.assert_array_equal(first_sums, same_sums)
    assert sums[1] != first_sums[1]
    assert sums[2] == first_sums[2]  # the KL has no noise


def test_xla_takes_the_same_steps_with_the_same_noise(small):
    plain, plain_sums = trained(small, 10)
    compiled, compiled_sums = trained(small, 10, jit_compile=True)
    np.testing.assert_allclose(compiled.trainable, plain.trainable, atol=1e-4)
    np.testing.assert_allclose(compiled_sums, plain_sums, rtol=1e-4)


def test_a_block_holds_fewer_steps_of_wide_rows(small):
    wide = architecture(Specification(DenseNetwork((8,)), Gaussian(), 3000, 2))
    assert block_steps(small, 32) == 64
    assert 1 <= block_steps(wide, 512) < block_steps(wide, 32) < 64


def test_every_trainable_weight_gets_a_gradient_and_every_term_counts():
    shared = architecture(Specification(DenseNetwork((8, 8)), Gaussian(), 5, 3))
    state = training_state(shared.initial_state(0, np.array([[-9.0] * 5, [9.0] * 5], dtype="f4")))
    x = tf.constant(np.random.RandomState(0).normal(size=(256, 5)).astype("f4"))
    noise = tf.random.normal((1, 256, 3), seed=0)
    gradient, _, terms = _gradient(shared, state, x, x, noise, tf.constant(1.0), None, BlockOptions(256))
    pieces = np.split(gradient.numpy(), np.cumsum(shared._sizes)[:-1])
    for variable, piece in zip(shared.template.trainable_variables, pieces, strict=True):
        assert np.abs(piece).max() > 1e-6, variable.path
    loss, reconstruction, kl = terms.numpy()
    assert loss == pytest.approx(reconstruction + kl, rel=1e-6)
    assert min(abs(reconstruction), kl) > 0.01
    without_kl, _, _ = _gradient(shared, state, x, x, noise, tf.constant(0.0), None, BlockOptions(256))
    assert np.abs(gradient - without_kl).max() > 1e-3


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_many_steps_follow_keras_adam_on_the_same_gradients(clip_norm):
    gradients = np.random.RandomState(0).normal(size=(20, 30)).astype("f4") * 3
    weights = np.random.RandomState(1).normal(size=30).astype("f4")
    variable = keras.Variable(weights)
    adam = keras.optimizers.Adam(0.01, global_clipnorm=clip_norm)
    state = (tf.constant(weights), tf.zeros(30), tf.zeros(30))
    rates = Adam().rates(np.full(20, 0.01, "f4"), first_step=0)
    for gradient, rate in zip(gradients, rates, strict=True):
        adam.apply([tf.constant(gradient)], [variable])
        gradient = tf.constant(gradient) if clip_norm is None else _clip(tf.constant(gradient), clip_norm)
        state = Adam().step(*state, gradient, rate)
    np.testing.assert_allclose(state[0], variable.numpy(), atol=2e-6)
