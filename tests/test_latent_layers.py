"""Layers that draw from flows and categories, in a user's own Keras model."""

import math

import numpy as np
import pytest
from conftest import wide
from scipy import stats

from vae_anomaly.core.backend import keras, tf
from vae_anomaly.flows import Autoregressive, Planar
from vae_anomaly.layers import FlowSampling, GumbelSoftmax
from vae_anomaly.posteriors.gaussian import kl_divergence

Z_MEAN, Z_LOG_VAR = np.full((4000, 2), 0.5, "f4"), np.full((4000, 2), -0.3, "f4")
CONTEXT = np.random.RandomState(0).standard_normal((4000, 3)).astype("f4")
INPUTS = [Z_MEAN, Z_LOG_VAR, CONTEXT]


def model_of(layer, widths=(2, 2, 3)):
    x = keras.Input((5,))
    latent = layer([keras.layers.Dense(width)(x) for width in widths])
    return keras.Model(x, keras.layers.Dense(5)(keras.layers.Flatten()(latent)))


def moved(layer):
    """The layer, with weights that have left the identity."""
    layer.build([np.shape(values) for values in INPUTS])
    rng = np.random.RandomState(1)
    for variable in layer.trainable_variables:
        variable.assign_add(0.3 * rng.standard_normal(variable.shape))
    return layer


def test_a_flow_starts_as_gaussian_draws_and_their_divergence():
    layer = FlowSampling([Planar(), Autoregressive(8)], seed=0)
    noise = np.random.RandomState(0).standard_normal((4000, 2)).astype("f4")
    z, log_var = layer(INPUTS, noise=noise), 10 * np.tanh(Z_LOG_VAR / 10)
    np.testing.assert_allclose(z, Z_MEAN + np.exp(0.5 * log_var) * noise, rtol=1e-5, atol=1e-5)
    closed = float(np.sum(kl_divergence(Z_MEAN, log_var), axis=1)[0])
    assert float(layer.losses[0]) == pytest.approx(closed, abs=4 / math.sqrt(4000))


def test_the_loss_is_the_weighted_mean_of_log_q_less_log_p():
    layer = moved(FlowSampling("planar", weight=0.5, seed=0))
    noise = tf.constant(np.random.RandomState(0).standard_normal((7, 2)), "float32")
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(noise)
        z = layer([values[:7] for values in INPUTS], noise=noise)
        columns = tf.unstack(z, axis=1)
    jacobian = np.stack([tape.gradient(column, noise) for column in columns], axis=1)
    log_q = stats.norm.logpdf(noise).sum(axis=1) - np.linalg.slogdet(jacobian)[1]
    expected = 0.5 * np.mean(log_q - stats.norm.logpdf(z).sum(axis=1))
    assert float(layer.losses[0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("transforms", [[Planar()], wide("planar"), wide("realnvp"), wide("spline")])
def test_a_model_with_a_flow_trains_shows_its_kl_and_comes_back_from_a_file(transforms, tmp_path):
    model = model_of(FlowSampling(transforms, seed=0, name="latent"))
    model.compile("adam", "mse", jit_compile=False)
    history = model.fit(CONTEXT[:64, [0, 1, 2, 0, 1]], CONTEXT[:64, [0, 1, 2, 0, 1]], epochs=2, verbose=0)
    assert set(history.history) == {"loss", "kl"}
    model.save(tmp_path / "model.keras")
    found = keras.saving.load_model(tmp_path / "model.keras")
    one, other = (each.get_layer("latent") for each in (model, found))
    assert other.get_config() == one.get_config()
    noise = np.ones((3, 2), "f4")
    np.testing.assert_array_equal(*(layer([v[:3] for v in INPUTS], noise=noise) for layer in (one, other)))


def test_transforms_of_a_list_survive_a_config():
    layer = FlowSampling([Planar(), Autoregressive(8)], weight=0.25, seed=3)
    found = FlowSampling.from_config(layer.get_config())
    assert found.transforms == layer.transforms
    assert (found.weight, found.seed) == (0.25, 3)


def test_the_weight_of_a_flows_divergence_can_be_annealed():
    layer = FlowSampling("planar", seed=0)
    layer.weight = 0.0
    layer(INPUTS)
    assert float(layer.losses[0]) == 0.0
    with pytest.raises(ValueError, match="FlowSampling needs a finite weight"):
        layer.weight = -1.0


@pytest.mark.parametrize(
    ("arguments", "inputs", "message"),
    [
        (("glow",), INPUTS, "transforms must be one of"),
        (("planar",), INPUTS[:2], r"takes \[z_mean, z_log_var, context\]"),
        (("realnvp",), [Z_MEAN[:, :1], Z_LOG_VAR[:, :1], CONTEXT], "at least 2 of them"),
    ],
)
def test_what_a_flow_layer_cannot_take_is_named(arguments, inputs, message):
    with pytest.raises(ValueError, match=message):
        FlowSampling(*arguments)(inputs)


# -- categories -----------------------------------------------------------------------------------------
LOGITS = np.tile(np.array([[0.0, 1.0, -1.0]], "f4"), (6000, 1))


def test_draws_fall_on_categories_with_their_probabilities():
    z = np.asarray(GumbelSoftmax(temperature=0.5, straight_through=True, seed=0)(LOGITS))
    assert set(np.unique(z)) == {0.0, 1.0}
    weights = np.exp(np.float64(LOGITS[0]))
    assert stats.chisquare(z.sum(axis=0), len(z) * weights / weights.sum()).pvalue > 1e-4


def test_the_temperature_is_a_number_that_can_change():
    layer = GumbelSoftmax(seed=0)
    warm = np.asarray(layer(LOGITS)).max(axis=1).mean()
    layer.temperature = 0.05
    cold = np.asarray(layer(LOGITS)).max(axis=1).mean()
    assert warm < 0.8 < 0.95 < cold
    assert GumbelSoftmax.from_config(layer.get_config()).temperature == pytest.approx(0.05)


@pytest.mark.wide
def test_a_model_with_categories_trains_and_comes_back_from_a_file(tmp_path):
    x = keras.Input((5,))
    logits = keras.layers.Reshape((2, 3))(keras.layers.Dense(6)(x))
    z = keras.layers.Flatten()(GumbelSoftmax(0.7, seed=0, name="latent")(logits))
    model = keras.Model(x, keras.layers.Dense(5)(z))
    model.compile("adam", "mse", jit_compile=False)
    model.fit(CONTEXT[:64, [0, 1, 2, 0, 1]], CONTEXT[:64, [0, 1, 2, 0, 1]], verbose=0)
    model.get_layer("latent").temperature = 0.3
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").get_layer("latent").temperature == pytest.approx(
        0.3
    )


@pytest.mark.parametrize(
    ("temperature", "error"), [(0.0, ValueError), (math.inf, ValueError), ("hot", TypeError)]
)
def test_a_temperature_that_is_none_is_refused(temperature, error):
    with pytest.raises(error, match=f"GumbelSoftmax needs a .*received {temperature!r}"):
        GumbelSoftmax(temperature)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_policies_leave_draws_and_losses_finite(policy):
    for layer, inputs in (
        (FlowSampling("planar", seed=0, dtype=policy), INPUTS),
        (GumbelSoftmax(0.01, seed=0, dtype=policy), LOGITS * 100),
    ):
        z = layer(inputs)
        assert keras.backend.standardize_dtype(z.dtype) == policy.removeprefix("mixed_")
        assert np.isfinite(np.asarray(keras.ops.cast(z, "float32"))).all()
        assert np.isfinite([float(loss) for loss in layer.losses]).all()
