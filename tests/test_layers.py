"""Sampling and KLDivergence as Keras layers: alone, and in a user's own functional model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import wide
from scipy import stats

from vae_anomaly.core.backend import keras, tf
from vae_anomaly.layers import KLDivergence, Sampling

Z_MEAN = np.array([[0.0, -1.0], [2.0, 0.5], [-3.0, 0.0]], dtype=np.float32)
Z_LOG_VAR = np.array([[0.0, -2.0], [1.0, 0.0], [-0.5, 3.0]], dtype=np.float32)


def closed_form_kl(z_mean: Any, z_log_var: Any) -> float:
    """Summed over latents, averaged over rows, in float64."""
    z_mean, z_log_var = np.asarray(z_mean, dtype=np.float64), np.asarray(z_log_var, dtype=np.float64)
    return float((0.5 * (z_mean**2 + np.exp(z_log_var) - 1 - z_log_var)).sum(axis=-1).mean())


# -- Sampling ------------------------------------------------------------------------------------------
def test_explicit_noise_is_used_exactly() -> None:
    noise = np.random.RandomState(0).standard_normal(Z_MEAN.shape).astype(np.float32)
    z = Sampling()([Z_MEAN, Z_LOG_VAR], noise=noise)
    expected = Z_MEAN + np.exp(Z_LOG_VAR / 2) * noise
    np.testing.assert_allclose(z, expected, rtol=4 * np.finfo(np.float32).eps)


def test_zero_noise_returns_the_mean() -> None:
    z = Sampling()([Z_MEAN, Z_LOG_VAR], noise=np.zeros_like(Z_MEAN))
    np.testing.assert_array_equal(z, Z_MEAN)


def test_explicit_noise_broadcasts_over_a_leading_axis_of_draws() -> None:
    noise = np.random.RandomState(0).standard_normal((5, 1, 2)).astype(np.float32)
    layer = Sampling()
    z = layer([Z_MEAN, Z_LOG_VAR], noise=noise)
    assert z.shape == (5, 3, 2)
    for draw, one_noise in zip(z, noise, strict=True):
        np.testing.assert_array_equal(draw, layer([Z_MEAN, Z_LOG_VAR], noise=np.repeat(one_noise, 3, axis=0)))


def test_explicit_noise_leaves_the_layers_own_generator_alone() -> None:
    layer, untouched = Sampling(seed=0), Sampling(seed=0)
    layer([Z_MEAN, Z_LOG_VAR], noise=np.zeros_like(Z_MEAN))
    np.testing.assert_array_equal(layer([Z_MEAN, Z_LOG_VAR]), untouched([Z_MEAN, Z_LOG_VAR]))


@pytest.mark.parametrize(("mean", "log_var"), [(0.0, 0.0), (-3.0, 2.0), (10.0, -6.0)])
def test_fresh_draws_follow_the_posterior(mean: float, log_var: float) -> None:
    rows = np.ones((20_000, 1), dtype=np.float32)
    z = np.asarray(Sampling(seed=0)([mean * rows, log_var * rows]), dtype=np.float64)
    assert stats.kstest(z[:, 0], stats.norm(mean, np.exp(log_var / 2)).cdf).pvalue > 1e-3


def test_a_seed_makes_the_sequence_of_draws_reproducible() -> None:
    first, again, other = (Sampling(seed=seed) for seed in (3, 3, 4))
    sequences = [
        [np.asarray(layer([Z_MEAN, Z_LOG_VAR])) for _ in range(2)] for layer in (first, again, other)
    ]
    np.testing.assert_array_equal(sequences[0], sequences[1])
    assert (sequences[0][0] != sequences[2][0]).all()


def test_every_call_draws_anew() -> None:
    layer = Sampling(seed=0)
    assert (np.asarray(layer([Z_MEAN, Z_LOG_VAR])) != np.asarray(layer([Z_MEAN, Z_LOG_VAR]))).all()


def test_a_seeded_layer_leaves_global_random_state_alone(draws_after: Any) -> None:
    assert draws_after(lambda: Sampling(seed=0)([Z_MEAN, Z_LOG_VAR])) == draws_after(lambda: None)


def test_without_a_seed_keras_set_random_seed_decides() -> None:
    def draw(seed: int) -> Any:
        keras.utils.set_random_seed(seed)
        return np.asarray(Sampling()([Z_MEAN, Z_LOG_VAR]))

    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).all()


def test_sampling_is_differentiable_in_both_inputs() -> None:
    z_mean, z_log_var = tf.constant(Z_MEAN), tf.constant(Z_LOG_VAR)
    with tf.GradientTape() as tape:
        tape.watch([z_mean, z_log_var])
        z = Sampling()([z_mean, z_log_var], noise=np.full_like(Z_MEAN, 2.0))
    by_mean, by_log_var = tape.gradient(z, [z_mean, z_log_var])
    np.testing.assert_array_equal(by_mean, 1.0)
    # d/dv (m + 2 exp(v / 2)) = exp(v / 2)
    np.testing.assert_allclose(by_log_var, np.exp(Z_LOG_VAR / 2), rtol=4 * np.finfo(np.float32).eps)


# -- KLDivergence --------------------------------------------------------------------------------------
def test_inputs_pass_through_unchanged() -> None:
    z_mean, z_log_var = KLDivergence()([Z_MEAN, Z_LOG_VAR])
    np.testing.assert_array_equal(z_mean, Z_MEAN)
    np.testing.assert_array_equal(z_log_var, Z_LOG_VAR)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 4.0])
def test_the_loss_is_the_weighted_closed_form(weight: float) -> None:
    layer = KLDivergence(weight=weight)
    layer([Z_MEAN, Z_LOG_VAR])
    (loss,) = layer.losses
    assert float(loss) == pytest.approx(weight * closed_form_kl(Z_MEAN, Z_LOG_VAR), rel=1e-6)


def test_the_loss_is_zero_at_the_prior() -> None:
    layer = KLDivergence()
    layer([np.zeros((4, 2)), np.zeros((4, 2))])
    assert float(layer.losses[0]) == 0.0


def test_the_loss_is_a_mean_over_rows_and_a_sum_over_latents() -> None:
    def loss(z_mean: Any) -> float:
        layer = KLDivergence()
        layer([z_mean, np.zeros_like(z_mean)])
        return float(layer.losses[0])

    assert loss(np.ones((1, 1), dtype="float32")) == 0.5
    assert loss(np.ones((7, 1), dtype="float32")) == 0.5
    assert loss(np.ones((1, 6), dtype="float32")) == 3.0


# -- shapes --------------------------------------------------------------------------------------------
def test_output_shapes_are_those_of_the_inputs() -> None:
    pair = [(None, 2), (None, 2)]
    assert Sampling().compute_output_shape(pair) == (None, 2)
    assert KLDivergence().compute_output_shape(pair) == pair


def test_symbolic_outputs_have_the_computed_shapes() -> None:
    pair = [keras.Input((2,)), keras.Input((2,))]
    z_mean, z_log_var = KLDivergence()(pair)
    assert z_mean.shape == z_log_var.shape == (None, 2)
    assert Sampling()(pair).shape == (None, 2)


WRONG_INPUTS = {
    "one tensor": (np.zeros((5, 2)), "(5, 2)"),
    "one tensor with a first axis of two": (np.zeros((2, 5, 2)), "(2, 5, 2)"),
    "a list of one": ([np.zeros((5, 2))], "[(5, 2)]"),
    "a list of three": ([np.zeros((5, 2))] * 3, "[(5, 2), (5, 2), (5, 2)]"),
    "two shapes": ([np.zeros((5, 2)), np.zeros((5, 3))], "[(5, 2), (5, 3)]"),
    "two ranks": ([np.zeros((5, 2)), np.zeros((5,))], "[(5, 2), (5,)]"),
}


@pytest.mark.parametrize(("inputs", "received"), WRONG_INPUTS.values(), ids=WRONG_INPUTS)
@pytest.mark.parametrize("layer", [Sampling, KLDivergence])
def test_wrong_inputs_are_named(layer: Any, inputs: Any, received: str) -> None:
    with pytest.raises(ValueError, match=f"{layer.__name__} takes the pair") as raised:
        layer()(inputs)
    assert received in str(raised.value)


# -- serialization -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("layer", "setting"),
    [
        (lambda: Sampling(seed=3, name="draw"), {"seed": 3}),
        (lambda: Sampling(), {"seed": None}),
        (lambda: KLDivergence(weight=0.25, name="beta"), {"weight": 0.25}),
    ],
    ids=["seeded Sampling", "Sampling", "KLDivergence"],
)
def test_config_makes_an_equal_layer(layer: Callable[[], Any], setting: dict[str, Any]) -> None:
    original = layer()
    copy = type(original).from_config(original.get_config())
    assert copy.get_config() == original.get_config()
    assert setting.items() <= copy.get_config().items()


def test_a_layer_from_a_config_draws_the_same_sequence() -> None:
    original = Sampling(seed=3)
    copy = Sampling.from_config(original.get_config())
    np.testing.assert_array_equal(original([Z_MEAN, Z_LOG_VAR]), copy([Z_MEAN, Z_LOG_VAR]))


def test_a_saved_model_needs_no_custom_objects_and_predicts_the_same(tmp_path: Path) -> None:
    x, noise = keras.Input((3,)), keras.Input((2,))
    pair = KLDivergence(weight=0.5)([keras.layers.Dense(2)(x), keras.layers.Dense(2)(x)])
    z = Sampling(seed=1)(pair, noise=noise)
    model = keras.Model([x, noise], keras.layers.Dense(3)(z))
    model.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")

    rng = np.random.RandomState(0)
    inputs = [rng.normal(size=(4, width)).astype(np.float32) for width in (3, 2)]
    np.testing.assert_array_equal(loaded(inputs), model(inputs))
    assert float(loaded.losses[0]) == float(model.losses[0]) > 0


# -- training ------------------------------------------------------------------------------------------
def squared_error(x: Any, reconstruction: Any) -> Any:
    return keras.ops.sum(keras.ops.square(x - reconstruction), axis=-1)


def rows_around_a_line(n: int = 256) -> Any:
    rng = np.random.RandomState(0)
    return (
        rng.normal(size=(n, 1)) * [2.0, -1.0, 0.5] + 0.1 * rng.normal(size=(n, 3)) + [1.0, 0.0, -2.0]
    ).astype(np.float32)


class Trained:
    """A user's functional VAE, trained with a KL of this weight."""

    def __init__(self, weight: float) -> None:
        keras.utils.set_random_seed(0)
        self.X = rows_around_a_line()
        x = keras.Input((3,))
        pair = [keras.layers.Dense(1)(x), keras.layers.Dense(1)(x)]
        z = Sampling(seed=0)(KLDivergence(weight=weight)(pair))
        self.encoder = keras.Model(x, pair)
        self.model = keras.Model(x, keras.layers.Dense(3)(z))
        self.model.compile(keras.optimizers.Adam(0.03), loss=squared_error, metrics=[squared_error])
        self.history = self.model.fit(self.X, self.X, batch_size=64, epochs=40, verbose=0).history

    @property
    def kl(self) -> float:
        return closed_form_kl(*self.encoder(self.X))


@pytest.fixture(scope="module")
def trained() -> dict[float, Trained]:
    return {weight: Trained(weight) for weight in (0.0, 0.5, 100.0)}


@pytest.mark.parametrize("weight", [0.0, 0.5, 100.0])
def test_training_lowers_the_loss(trained: dict[float, Trained], weight: float) -> None:
    assert trained[weight].history["loss"][-1] < trained[weight].history["loss"][0]


@pytest.mark.parametrize("weight", [0.0, 0.5, 100.0])
def test_the_loss_is_the_reconstruction_plus_the_weighted_divergence(
    trained: dict[float, Trained], weight: float
) -> None:
    X = trained[weight].X
    evaluated = trained[weight].model.evaluate(X, X, batch_size=len(X), return_dict=True, verbose=0)
    expected = evaluated["squared_error"] + weight * trained[weight].kl
    assert evaluated["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_reconstruction_makes_the_latent_carry_information(trained: dict[float, Trained]) -> None:
    """One latent explains all but the noise around the line, if the divergence lets it."""
    spread_around_the_mean = squared_error(trained[0.0].X, trained[0.0].X.mean(axis=0)).numpy().mean()
    assert trained[0.0].history["squared_error"][-1] < 0.1 * spread_around_the_mean
    assert trained[100.0].history["squared_error"][-1] > 0.9 * spread_around_the_mean


def test_the_divergence_pulls_the_posterior_to_the_prior(trained: dict[float, Trained]) -> None:
    assert trained[100.0].kl < 0.01 * trained[0.5].kl < trained[0.5].kl < trained[0.0].kl


def nothing(x: Any, reconstruction: Any) -> Any:
    return 0.0 * squared_error(x, reconstruction)


class Anneal(keras.callbacks.Callback):  # type: ignore[misc,name-defined]
    """Raises a divergence's weight by one at each epoch."""

    def __init__(self, layer: KLDivergence) -> None:
        super().__init__()
        self.layer = layer

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.layer.weight = float(epoch)


def a_vae(weight: float = 1.0) -> tuple[Any, KLDivergence]:
    keras.utils.set_random_seed(0)
    x, divergence = keras.Input((3,)), KLDivergence(weight)
    z = Sampling(seed=0)(divergence([keras.layers.Dense(1)(x), keras.layers.Dense(1)(x)]))
    return keras.Model(x, keras.layers.Dense(3, dtype="float32")(z)), divergence


def test_a_callback_anneals_the_weight_of_a_model_that_is_compiled(tmp_path: Path) -> None:
    model, divergence = a_vae(weight=0.0)
    model.compile(keras.optimizers.SGD(1e-4), loss=nothing)
    X = rows_around_a_line()
    history = model.fit(X, X, batch_size=len(X), epochs=4, verbose=0, callbacks=[Anneal(divergence)]).history
    np.testing.assert_allclose(history["loss"], [0, 1, 2, 3] * np.array(history["kl"]), rtol=1e-6)
    model.save(tmp_path / "annealed.keras")
    loaded = keras.models.load_model(tmp_path / "annealed.keras", compile=False)
    assert [layer.weight for layer in loaded.layers if isinstance(layer, KLDivergence)] == [3.0]


def test_the_divergence_is_a_metric_of_the_model_before_its_weight(trained: dict[float, Trained]) -> None:
    X = trained[0.5].X
    evaluated = trained[0.5].model.evaluate(X, X, batch_size=100, return_dict=True, verbose=0)
    assert evaluated["kl"] == pytest.approx(trained[0.5].kl, rel=1e-5)


def test_latents_of_any_rank_are_summed_over() -> None:
    z_mean, z_log_var = np.full((2, 3, 4, 5), 2.0, "float32"), np.zeros((2, 3, 4, 5), "float32")
    layer = KLDivergence()
    layer([z_mean, z_log_var])
    assert float(layer.losses[0]) == pytest.approx(3 * 4 * 5 * 0.5 * 2.0**2)


@pytest.mark.parametrize(
    ("weight", "error"),
    [(-1.0, ValueError), (np.nan, ValueError), (np.inf, ValueError), ("1", TypeError), (None, TypeError)],
)
def test_a_weight_that_is_none_is_refused(weight: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="KLDivergence needs a .*received"):
        KLDivergence(weight)
    layer = KLDivergence(2.0)
    with pytest.raises(error, match="received"):
        layer.weight = weight
    assert layer.weight == 2.0


@pytest.mark.parametrize("floatx", ["float64", wide("float16")])
def test_the_divergence_is_added_to_losses_of_any_floatx(floatx: str) -> None:
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)
    try:
        model, divergence = a_vae()
        # The squares of gradients, which Adam keeps, exceed what float16 can hold.
        model.compile(keras.optimizers.SGD(1e-4), loss=squared_error)
        X = rows_around_a_line().astype(floatx)
        assert np.isfinite(model.fit(X, X, epochs=1, verbose=0).history["loss"]).all()
        divergence([Z_MEAN, Z_LOG_VAR])
        (loss,) = divergence.losses
        precision = float(max(np.finfo(floatx).eps, np.finfo("float32").eps))
        assert float(loss) == pytest.approx(closed_form_kl(Z_MEAN, Z_LOG_VAR), rel=precision)
    finally:
        keras.config.set_floatx(before)
        keras.config.set_dtype_policy(policy)


def test_a_mixed_policy_neither_stops_training_nor_makes_the_divergence_infinite() -> None:
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, divergence = a_vae()
        model.compile(keras.optimizers.Adam(0.01), loss=squared_error)
        X = rows_around_a_line()
        history = model.fit(X, X, epochs=3, verbose=0).history
        assert np.isfinite(history["kl"]).all()
        assert history["loss"][-1] < history["loss"][0]
        # exp(12) exceeds what float16 can hold.
        divergence([np.zeros((1, 1), "float16"), np.full((1, 1), 12.0, "float16")])
        assert float(divergence.losses[0]) == pytest.approx(closed_form_kl([[0.0]], [[12.0]]), rel=1e-6)
    finally:
        keras.config.set_dtype_policy(policy)
