"""Training steps: noise, gradient, Adam; a step does not depend on the block it stands in."""

import keras
import numpy as np
import pytest
from conftest import wide

from vae_anomaly import DenseNetwork
from vae_anomaly.core.adam import Adam
from vae_anomaly.core.backend import tf
from vae_anomaly.engine.held_out import HELD_OUT_ROWS, best_of, held_out_tiles
from vae_anomaly.engine.programs import architecture
from vae_anomaly.engine.steps import (
    BlockOptions,
    Limits,
    _clip,
    _gradient,
    _trimmed_mean,
    block_steps,
    model_state,
    train_block,
    training_state,
)
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.model.states import Specification
from vae_anomaly.scoring.passes import elbo_terms


@pytest.fixture
def small():
    return architecture(Specification(DenseNetwork((8,)), Gaussian(), 3, 2))


TABLE = np.random.RandomState(0).normal(size=(40, 3)).astype("f4")
ORDER = np.random.RandomState(1).permutation(40).reshape(10, 4).astype(np.int32)
NO_LIMITS = Limits(tf.constant(0.0), tf.constant(0.0), tf.constant(4), tf.constant(0.0))
ALL = NO_LIMITS._replace(n_kept=tf.constant(256))


def trained(shared, n_steps, first_step=0, state=None, table=TABLE, noise_seed=1, jit_compile=False):
    """The state after some of the steps, and the sums of their terms."""
    if state is None:
        state = training_state(shared.initial_state(0, np.array([[-9.0] * 3, [9.0] * 3], dtype="f4")))
    after, figures, _ = train_block(
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
    return after, figures.terms.sum(axis=0)


@pytest.mark.parametrize("jit_compile", [False, wide(True)])
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


@pytest.mark.parametrize("n_rows_of_batch", [4, 5])  # five times two numbers: Philox makes four at a time
def test_a_step_has_the_same_noise_in_whatever_block_it_stands(small, n_rows_of_batch):
    order = np.arange(8 * n_rows_of_batch).reshape(8, -1) % 40
    options = BlockOptions(n_rows_of_batch, is_incomplete=True)
    limits = NO_LIMITS._replace(masked_fraction=tf.constant(0.3))
    start = training_state(small.initial_state(0, TABLE))

    def taken(state, first, last, **only):
        ones = np.ones(last - first, "f4")
        return train_block(
            small, state, TABLE, order[first:last], 0.01 * ones, ones, options, limits,
            noise_seed=1, first_step=first, **only,
        )[:2]  # fmt: skip

    whole, figures = taken(start, 0, 8)
    first, first_figures = taken(start, 0, 3)
    second, second_figures = taken(first, 3, 8)
    np.testing.assert_array_equal(second.trainable, whole.trainable)
    np.testing.assert_array_equal(np.concatenate([first_figures.terms, second_figures.terms]), figures.terms)
    third, _ = taken(first, 2, 8, only=1)
    np.testing.assert_array_equal(third.trainable, taken(first, 3, 4)[0].trainable)


def measured(shared, rows, draws, best=None, jit_compile=False, beta=0.5):
    """What a block of two epochs, of two steps each, says of held-out rows; and its models after each."""
    held_out = held_out_tiles(shared, rows, draws, beta, jit_compile)
    n_draws = held_out.draws.shape[0]
    options = BlockOptions(4, n_held_out_draws=n_draws, jit_compile=jit_compile)
    start = training_state(shared.initial_state(0, np.array([[-9.0] * 3, [9.0] * 3], dtype="f4")))

    before = best_of(start.trainable, start.non_trainable, best)

    def taken(n_steps):
        ones = np.ones(n_steps, "f4")
        return train_block(
            shared, start, TABLE, ORDER[:n_steps], 0.01 * ones, ones, options, NO_LIMITS, noise_seed=1,
            first_step=0, ends=np.arange(n_steps) % 2 == 1, held_out=held_out, best=before,
        )  # fmt: skip

    once, _, _ = taken(2)
    twice, figures, found = taken(4)
    return figures, found, [model_state(shared, state) for state in (once, twice)]


@pytest.mark.parametrize("n_rows", [1, 63, 65, 700])
@pytest.mark.parametrize("jit_compile", [False, wide(True)])
def test_the_loss_of_held_out_rows_is_their_mean_elbo(small, n_rows, jit_compile):
    rows = np.random.RandomState(2).normal(size=(n_rows, 3)).astype("f4")
    draws = np.random.RandomState(3).normal(size=(4, 2)).astype("f4")
    figures, _, states = measured(small, rows, draws, jit_compile=jit_compile)
    n_draws = min(4, -(-1000 // n_rows))
    for step, state in zip((1, 3), states, strict=True):
        expected = elbo_terms([state], rows, draws[:n_draws], None)[0].mean(axis=0)
        np.testing.assert_allclose(figures.held_out[step], expected, rtol=1e-5)
    np.testing.assert_array_equal(figures.held_out[[0, 2]], 0)


@pytest.mark.wide
def test_many_held_out_rows_fill_the_program_that_xla_compiled_for_them(small):
    rows = np.random.RandomState(2).normal(size=(HELD_OUT_ROWS, 3)).astype("f4")
    figures, _, states = measured(small, rows, np.zeros((1, 2), "f4"), jit_compile=True)
    expected = elbo_terms([states[1]], rows, np.zeros((1, 2), "f4"), None)[0].mean(axis=0)
    np.testing.assert_allclose(figures.held_out[3], expected, rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, wide(True)])
@pytest.mark.parametrize("before", [None, -1e9, 1e9, np.nan])
def test_the_best_model_is_the_one_with_the_smallest_loss_so_far(small, before, jit_compile):
    """An unknown loss is the best only until one is known."""
    rows = TABLE[:20]
    earlier = small.initial_state(9, TABLE)
    best = None if before is None else (before, earlier)
    figures, found, states = measured(small, rows, np.ones((3, 2), "f4"), best, jit_compile)
    losses = [reconstruction + 0.5 * kl for reconstruction, kl in figures.held_out[[1, 3]]]
    if before == -1e9:
        assert found.loss == before
        expected = earlier
    else:
        assert float(found.loss) == pytest.approx(min(losses))
        expected = states[int(np.argmin(losses))]
    np.testing.assert_array_equal(found.trainable, expected.trainable)


def test_a_loss_that_is_no_number_is_never_better(small):
    earlier = small.initial_state(9, TABLE)
    rows = np.full((5, 3), np.nan, dtype="f4")
    _, found, _ = measured(small, rows, np.ones((3, 2), "f4"), (7.0, earlier))
    assert found.loss == 7
    np.testing.assert_array_equal(found.trainable, earlier.trainable)


@pytest.mark.parametrize("n_losses", [128, 600])
def test_a_trimmed_mean_and_its_gradient_are_of_the_smallest_losses(n_losses):
    losses = np.random.RandomState(0).randint(0, 40, size=n_losses).astype("f4")  # many are equal
    for n_kept in (1, 17, n_losses - 1, n_losses):
        values = tf.constant(losses)
        with tf.GradientTape() as tape:
            tape.watch(values)
            mean = _trimmed_mean(values, tf.constant(n_kept))
        assert float(mean) == pytest.approx(np.sort(losses)[:n_kept].mean(), rel=1e-5)
        gradient = tape.gradient(mean, values).numpy()
        counted = gradient > 0
        assert counted.sum() == n_kept
        np.testing.assert_allclose(gradient[counted], 1 / n_kept, rtol=1e-6)
        assert losses[counted].max() <= losses[~counted].min(initial=np.inf)


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
    gradient, _, terms = _gradient(shared, state, x, x, noise, tf.constant(1.0), ALL, BlockOptions(256))
    pieces = np.split(gradient.numpy(), np.cumsum(shared._sizes)[:-1])
    for variable, piece in zip(shared.template.trainable_variables, pieces, strict=True):
        assert np.abs(piece).max() > 1e-6, variable.path
    loss, reconstruction, kl = terms.numpy()
    assert loss == pytest.approx(reconstruction + kl, rel=1e-6)
    assert min(abs(reconstruction), kl) > 0.01
    without_kl, _, _ = _gradient(shared, state, x, x, noise, tf.constant(0.0), ALL, BlockOptions(256))
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
