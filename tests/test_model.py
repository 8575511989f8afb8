"""The VAE as a Keras model: encoding, decoding, sampling, initial values, gradients, saving, training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from vae_anomaly import ConvNetwork, DenseNetwork
from vae_anomaly.core.backend import keras, tf
from vae_anomaly.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian, Laplace, Likelihood, StudentT
from vae_anomaly.model.vae import VAE
from vae_anomaly.networks import Network

FLOAT32_EPS = float(np.finfo(np.float32).eps)


def make(
    network: Network | None = None,
    likelihood: Likelihood | None = None,
    n_features: int = 3,
    latent_dim: int = 2,
    seed: int = 0,
) -> Any:
    """A VAE with initial values drawn from a seed."""
    network, likelihood = network or DenseNetwork((8,)), likelihood or Gaussian()
    encoder, decoder = network.build(n_features, latent_dim, likelihood.n_params)
    vae = VAE(encoder, decoder, likelihood, n_features, latent_dim)
    for variable, value in zip(vae.variables, vae.initial_values(seed), strict=True):
        variable.assign(value)
    return vae


def rows(n: int = 5, n_features: int = 3, seed: int = 0) -> Any:
    return np.random.RandomState(seed).normal(size=(n, n_features)).astype(np.float32)


def linear_vae(loadings: Any, offset: Any, likelihood: Likelihood) -> Any:
    """A VAE whose decoder is z @ loadings + offset."""
    latent_dim, n_outputs = np.shape(loadings)
    vae = make(DenseNetwork(()), likelihood, n_outputs // likelihood.n_params, latent_dim)
    vae.decoder.set_weights([np.asarray(loadings, "float32"), np.asarray(offset, "float32")])
    return vae


def assert_all_equal(first: Any, second: Any) -> None:
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


# -- encode --------------------------------------------------------------------------------------------
@pytest.fixture
def constant_encoder() -> Any:
    """A VAE of one latent whose encoder's raw log-variance is its input."""
    vae = make(DenseNetwork(()), n_features=1, latent_dim=1)
    vae.encoder.get_layer("z_log_var").set_weights([np.ones((1, 1)), np.zeros(1)])
    return vae


def test_log_variance_is_bounded_by_ten_whatever_the_encoder_says(constant_encoder: Any) -> None:
    raw = np.array([[-1e30], [-1e3], [-20.0], [20.0], [1e3], [1e30]], dtype=np.float32)
    z_log_var = np.asarray(constant_encoder.encode(raw)[1])
    assert (np.abs(z_log_var) <= 10).all()
    assert (np.sign(z_log_var) == np.sign(raw)).all()


def test_log_variance_is_ten_tanh_of_a_tenth(constant_encoder: Any) -> None:
    raw = np.linspace(-30, 30, 61, dtype=np.float32)[:, None]
    expected = 10 * np.tanh(raw.astype(np.float64) / 10)
    np.testing.assert_allclose(constant_encoder.encode(raw)[1], expected, rtol=8 * FLOAT32_EPS)


def test_inputs_are_clipped_to_the_input_range() -> None:
    vae = make()
    low, high = np.array([[-1.0, -2.0, 0.0], [1.0, 0.5, 3.0]], dtype=np.float32)
    vae.input_range.assign([low, high])
    x = rows(50) * 10
    assert_all_equal(vae.encode(x), vae.encode(np.clip(x, low, high)))
    assert (np.asarray(vae.encode(x)[0]) != np.asarray(vae.encoder(x)[0])).any()


def test_a_new_model_clips_nothing() -> None:
    vae = make()
    x = rows(20) * 1e20
    np.testing.assert_array_equal(vae.encode(x)[0], vae.encoder(x)[0])


def test_the_likelihood_sees_rows_that_the_encoder_sees_clipped() -> None:
    """With the same noise and a clipped x, only log p(x|z) can differ: (200 - 100) (200 + 100) / 2."""
    vae = linear_vae(np.zeros((2, 1)), [0.0], Gaussian(scale=1.0))
    vae.input_range.assign([[-1.0], [1.0]])
    near, far = (float(vae.compute_loss(x=np.full((4, 1), value, "float32"))) for value in (100.0, 200.0))
    assert far - near == pytest.approx(15_000.0, rel=4 * FLOAT32_EPS)


def test_both_forms_of_encoder_output_agree() -> None:
    pair = make()
    z_mean, z_log_var = pair.encoder.output
    joined = keras.Model(pair.encoder.input, keras.layers.Concatenate()([z_mean, z_log_var]))
    single = VAE(joined, pair.decoder, pair.likelihood, 3, 2)
    assert_all_equal(single.encode(rows()), pair.encode(rows()))


def test_a_third_output_of_the_encoder_is_ignored() -> None:
    pair = make()
    z_mean, z_log_var = pair.encoder.output
    longer = keras.Model(pair.encoder.input, [z_mean, z_log_var, keras.layers.Add()([z_mean, z_log_var])])
    assert_all_equal(VAE(longer, pair.decoder, pair.likelihood, 3, 2).encode(rows()), pair.encode(rows()))


def test_encode_takes_rows_of_numpys_default_dtype() -> None:
    vae = make()
    assert_all_equal(vae.encode(rows().astype(np.float64)), vae.encode(rows()))


# -- decode --------------------------------------------------------------------------------------------
def test_the_parameters_of_a_feature_lie_next_to_each_other() -> None:
    vae = linear_vae(np.zeros((2, 6)), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], Gaussian(scale="per_row"))
    location, raw_scale = vae.decode(np.zeros((1, 2), "float32"))
    np.testing.assert_array_equal(location, [[0.0, 2.0, 4.0]])
    np.testing.assert_array_equal(raw_scale, [[1.0, 3.0, 5.0]])


def test_shared_parameters_follow_the_decoded_ones() -> None:
    vae = make(likelihood=Gaussian(scale="per_feature"))
    vae.shared.assign([[0.1, 0.2, 0.3]])
    location, raw_scale = vae.decode(np.zeros((4, 2), "float32"))
    assert location.shape == (4, 3)
    assert raw_scale.shape == (3,)
    assert (np.diff(raw_scale) > 0).all()


def test_decode_keeps_leading_axes() -> None:
    vae = make(likelihood=Gaussian(scale="per_row"))
    z = np.random.RandomState(0).normal(size=(4, 5, 2)).astype(np.float32)
    location, raw_scale = vae.decode(z)
    assert location.shape == raw_scale.shape == (4, 5, 3)
    for draw in range(4):
        for decoded, of_one_draw in zip((location, raw_scale), vae.decode(z[draw]), strict=True):
            np.testing.assert_allclose(
                decoded[draw], of_one_draw, rtol=32 * FLOAT32_EPS, atol=32 * FLOAT32_EPS
            )


# -- infer, call, sample -------------------------------------------------------------------------------
def test_infer_draws_z_with_exactly_the_given_noise() -> None:
    vae, x = make(), rows()
    noise = np.random.RandomState(1).normal(size=(4, 5, 2)).astype(np.float32)
    inferred = vae.infer(x, noise)
    z_mean, z_log_var = vae.encode(x)
    assert_all_equal(inferred.context, (z_mean, z_log_var))
    expected = np.asarray(z_mean) + np.exp(0.5 * np.asarray(z_log_var)) * noise
    np.testing.assert_allclose(inferred.z, expected, rtol=8 * FLOAT32_EPS, atol=8 * FLOAT32_EPS)
    assert_all_equal(inferred.parameters, vae.decode(inferred.z))


def test_shared_noise_is_the_same_noise_for_every_row() -> None:
    vae, x = make(), rows()
    shared = np.random.RandomState(1).normal(size=(4, 1, 2)).astype(np.float32)
    of_shared = vae.infer(x, shared)
    of_repeated = vae.infer(x, np.repeat(shared, 5, axis=1))
    assert of_shared.z.shape == (4, 5, 2)
    np.testing.assert_array_equal(of_shared.z, of_repeated.z)
    assert_all_equal(of_shared.parameters, of_repeated.parameters)


def test_call_returns_the_expected_row() -> None:
    x = rows()
    assert make()(x).shape == x.shape
    offset = [1.0, -2.0, 0.5]
    without_z = linear_vae(np.zeros((2, 3)), offset, Gaussian())
    np.testing.assert_array_equal(without_z(x), np.broadcast_to(np.float32(offset), x.shape))


def test_call_draws_z_from_the_posterior() -> None:
    vae = linear_vae([[1.0]], [0.0], Gaussian())  # the expected x is z
    x = np.zeros((20_000, 1), "float32")
    z_mean, z_log_var = (float(output[0, 0]) for output in vae.encode(x))
    posterior = stats.norm(z_mean, math.exp(z_log_var / 2))
    assert stats.kstest(np.asarray(vae(x), dtype=np.float64)[:, 0], posterior.cdf).pvalue > 1e-3


@pytest.mark.parametrize("likelihood", [Gaussian(), Gaussian("per_row"), StudentT(), Bernoulli()], ids=str)
def test_samples_are_float32_rows(likelihood: Likelihood) -> None:
    drawn = make(likelihood=likelihood).sample(7, seed=0)
    assert isinstance(drawn, np.ndarray)
    assert (drawn.shape, drawn.dtype) == ((7, 3), np.float32)


def test_samples_are_reproducible_by_seed() -> None:
    vae = make()
    np.testing.assert_array_equal(vae.sample(10, seed=3), vae.sample(10, seed=3))
    assert (vae.sample(10, seed=3) != vae.sample(10, seed=4)).all()


def test_samples_follow_the_marginal_density() -> None:
    """x = 2 z + 1 + 0.5 e has the variance 4.25 if z and e are independent."""
    drawn = linear_vae([[2.0]], [1.0], Gaussian(scale=0.5)).sample(20_000, seed=0)
    assert stats.kstest(drawn[:, 0].astype(np.float64), stats.norm(1, math.sqrt(4.25)).cdf).pvalue > 1e-3


@pytest.mark.parametrize("use", ["construct", "sample", "call", "compute_loss", "encode"])
def test_a_model_leaves_global_random_state_alone(use: str, draws_after: Any) -> None:
    vae, x = make(DenseNetwork((8,), dropout=0.5)), rows()
    uses = {
        "construct": lambda: make(DenseNetwork((8,), dropout=0.5)),
        "sample": lambda: vae.sample(5, seed=0),
        "call": lambda: vae(x, training=True),
        "compute_loss": lambda: vae.compute_loss(x=x),
        "encode": lambda: vae.encode(x),
    }
    assert draws_after(uses[use]) == draws_after(lambda: None)


# -- initial values ------------------------------------------------------------------------------------
NETWORKS = {
    "dense": (DenseNetwork((8, 4), batch_normalization=True, dropout=0.2), 16),
    "conv": (ConvNetwork((4, 4, 1), (3,), dense_units=(5,), batch_normalization=True, dropout=0.2), 16),
    "selu": (DenseNetwork((8, 4), "selu", batch_normalization=True, dropout=0.2), 16),
}
each_network = pytest.mark.parametrize(("network", "n_features"), NETWORKS.values(), ids=NETWORKS)


@each_network
def test_initial_values_fit_the_variables(network: Network, n_features: int) -> None:
    vae = make(network, n_features=n_features)
    for variable, value in zip(vae.variables, vae.initial_values(0), strict=True):
        assert isinstance(value, np.ndarray)
        assert (value.shape, value.dtype.name) == (tuple(variable.shape), variable.dtype)


@each_network
def test_initial_values_are_reproducible_by_seed_alone(network: Network, n_features: int) -> None:
    """Neither the present values nor the model object matter."""
    first, other = make(network, n_features=n_features, seed=1), make(network, n_features=n_features, seed=2)
    assert_all_equal(first.initial_values(5), first.initial_values(5))
    assert_all_equal(first.initial_values(5), other.initial_values(5))


@each_network
def test_every_kernel_and_generator_differs_between_seeds(network: Network, n_features: int) -> None:
    vae = make(network, n_features=n_features)
    n_random = 0
    for variable, one, other in zip(vae.variables, vae.initial_values(1), vae.initial_values(2), strict=True):
        if variable.name in ("kernel", "seed_generator_state"):
            assert (one != other).any(), variable.path
            n_random += 1
        else:
            np.testing.assert_array_equal(one, other, err_msg=variable.path)
    assert n_random >= 5


@each_network
def test_no_two_kernels_of_one_shape_start_alike(network: Network, n_features: int) -> None:
    """Their initializers are built with one seed."""
    vae = make(network, n_features=n_features, latent_dim=4)
    values = zip(vae.variables, vae.initial_values(0), strict=True)
    kernels = [value for variable, value in values if variable.name == "kernel"]
    shapes = [kernel.shape for kernel in kernels]
    assert len(set(shapes)) < len(shapes)
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)


@each_network
def test_everything_but_kernels_starts_at_its_neutral_value(network: Network, n_features: int) -> None:
    neutral = {
        "bias": 0.0,
        "beta": 0.0,
        "gamma": 1.0,
        "moving_mean": 0.0,
        "moving_variance": 1.0,
        "shared": 0.0,
    }
    vae = make(network, n_features=n_features)
    seen = set()
    for variable, value in zip(vae.variables, vae.initial_values(0), strict=True):
        if variable.name in neutral:
            np.testing.assert_array_equal(value, neutral[variable.name], err_msg=variable.path)
            seen.add(variable.name)
    assert seen == set(neutral)


def test_kernels_are_drawn_by_their_own_initializers() -> None:
    x, z = keras.Input((100,)), keras.Input((2,))
    wide = keras.initializers.RandomNormal(mean=5.0, stddev=0.1)
    ones = keras.initializers.Ones()
    outputs = [keras.layers.Dense(50, kernel_initializer=init) for init in (wide, ones)]
    encoder = keras.Model(x, [layer(x) for layer in outputs])
    vae = VAE(encoder, keras.Model(z, keras.layers.Dense(100)(z)), Gaussian(), 100, 50)
    values = {id(v): value for v, value in zip(vae.variables, vae.initial_values(0), strict=True)}
    drawn = values[id(outputs[0].kernel)].ravel().astype(np.float64)
    assert stats.kstest(drawn, stats.norm(5.0, 0.1).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(values[id(outputs[1].kernel)], 1.0)


LAYERS = {
    "GRU": lambda x: keras.layers.GRU(3)(keras.layers.Reshape((4, 1))(x)),
    "LSTM": lambda x: keras.layers.LSTM(3)(keras.layers.Reshape((4, 1))(x)),
    "DepthwiseConv1D": lambda x: keras.layers.Flatten()(
        keras.layers.DepthwiseConv1D(2)(keras.layers.Reshape((4, 1))(x))
    ),
    "SeparableConv1D": lambda x: keras.layers.Flatten()(
        keras.layers.SeparableConv1D(3, 2)(keras.layers.Reshape((4, 1))(x))
    ),
    "MultiHeadAttention": lambda x: keras.layers.Flatten()(
        keras.layers.MultiHeadAttention(1, 2)(*[keras.layers.Reshape((4, 1))(x)] * 2)
    ),
    "Embedding": lambda x: keras.layers.Flatten()(keras.layers.Embedding(5, 2)(x)),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_random_weights_of_every_kind_of_layer_are_drawn_anew(layer: Callable[[Any], Any]) -> None:
    x = keras.Input((4,))
    hidden = layer(x)
    encoder = keras.Model(x, [keras.layers.Dense(2)(hidden), keras.layers.Dense(2)(hidden)])
    vae = VAE(encoder, DenseNetwork(()).build(4, 2, 1)[1], Gaussian(), 4, 2)
    for variable, one, other in zip(vae.variables, vae.initial_values(1), vae.initial_values(2), strict=True):
        if "kernel" in variable.name or "embeddings" in variable.name:
            assert (one != other).any(), variable.path


def test_variables_without_an_initializer_keep_their_values() -> None:
    vae = make()
    vae.input_range.assign([[-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]])
    vae.shared.assign([[0.1, 0.2, 0.3]])
    values = {v.name: value for v, value in zip(vae.variables, vae.initial_values(9), strict=True)}
    np.testing.assert_array_equal(values["input_range"], vae.input_range)
    np.testing.assert_array_equal(values["shared"], vae.shared)


def test_drawing_initial_values_changes_neither_the_model_nor_global_random_state(draws_after: Any) -> None:
    vae = make()
    before = [variable.numpy() for variable in vae.variables]
    assert draws_after(lambda: vae.initial_values(0)) == draws_after(lambda: None)
    assert_all_equal(before, [variable.numpy() for variable in vae.variables])


# -- loss and gradients --------------------------------------------------------------------------------
def test_the_loss_is_the_mean_negative_elbo() -> None:
    """A decoder that ignores z has an ELBO without noise: log p(x) at its offset, minus the KL."""
    offset, scale = np.array([1.0, -2.0, 0.5]), 0.7
    vae, x = linear_vae(np.zeros((2, 3)), offset, Gaussian(scale=scale)), rows(20)
    z_mean, z_log_var = (np.asarray(output, dtype=np.float64) for output in vae.encode(x))
    kl = 0.5 * (z_mean**2 + np.exp(z_log_var) - 1 - z_log_var).sum(axis=1)
    expected = (kl - stats.norm.logpdf(x, offset, scale).sum(axis=1)).mean()
    assert float(vae.compute_loss(x=x)) == pytest.approx(expected, rel=32 * FLOAT32_EPS)


def test_the_loss_draws_new_noise_at_every_call() -> None:
    vae, x = make(), rows()
    assert float(vae.compute_loss(x=x)) != float(vae.compute_loss(x=x))


MODELS = {
    "gaussian": (DenseNetwork((8, 4)), Gaussian()),
    "gaussian per row": (DenseNetwork((8, 4)), Gaussian(scale="per_row")),
    "gaussian fixed": (DenseNetwork((8, 4)), Gaussian(scale=0.5)),
    "laplace": (DenseNetwork((8, 4)), Laplace()),
    "student_t": (DenseNetwork((8, 4)), StudentT()),
    "bernoulli": (DenseNetwork((8, 4)), Bernoulli()),
    "continuous_bernoulli": (DenseNetwork((8, 4)), ContinuousBernoulli()),
    "linear": (DenseNetwork(()), Gaussian()),
    "normalized": (DenseNetwork((8, 4), batch_normalization=True), Gaussian()),
    "conv": (ConvNetwork((4, 4, 1), (3,), dense_units=(5,)), ContinuousBernoulli()),
    "conv of two parameters": (ConvNetwork((4, 4, 1), (3,)), Gaussian(scale="per_row")),
    "conv of large kernels": (ConvNetwork((4, 2, 2), (3, 2), kernel_sizes=(9, 5)), Gaussian()),
    "conv normalized": (ConvNetwork((4, 4, 1), (3,), batch_normalization=True), Gaussian()),
}
each_model = pytest.mark.parametrize(("network", "likelihood"), MODELS.values(), ids=MODELS)


@each_model
def test_every_trainable_variable_gets_a_gradient(network: Network, likelihood: Likelihood) -> None:
    """Of at least a thousand roundings of the largest one: less would be zero but for rounding."""
    vae = make(network, likelihood, n_features=16)
    x = np.random.RandomState(0).uniform(size=(64, 16)).astype(np.float32)
    with tf.GradientTape() as tape:
        loss = vae.compute_loss(x=x)
    gradients = tape.gradient(loss, vae.trainable_variables)
    sizes = {
        v.path: float(tf.reduce_max(tf.abs(g)))
        for v, g in zip(vae.trainable_variables, gradients, strict=True)
    }
    without = [path for path, size in sizes.items() if size < 1000 * FLOAT32_EPS * max(sizes.values())]
    assert without == []


# -- saving --------------------------------------------------------------------------------------------
@each_model
def test_a_saved_model_needs_no_custom_objects_and_computes_the_same(
    network: Network, likelihood: Likelihood, tmp_path: Path
) -> None:
    vae = make(network, likelihood, n_features=16)
    vae.input_range.assign(np.stack([np.full(16, -0.5), np.full(16, 0.5)]))
    if likelihood.n_shared:
        vae.shared.assign(np.full((1, 16), 0.3))
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")

    assert type(loaded) is VAE
    assert repr(loaded.likelihood) == repr(likelihood)
    assert type(loaded.likelihood) is type(likelihood)
    x = rows(5, 16)
    assert_all_equal(loaded.encode(x), vae.encode(x))
    z = vae.encode(x)[0]
    assert_all_equal(loaded.decode(z), vae.decode(z))
    np.testing.assert_array_equal(loaded.sample(3, seed=0), vae.sample(3, seed=0))


@pytest.mark.parametrize(
    "likelihood",
    [Laplace(scale=0.25), Gaussian(minimum_scale=0.5), StudentT("per_row", degrees_of_freedom=2.5)],
    ids=repr,
)
def test_a_config_keeps_the_parameters_of_the_likelihood(likelihood: Likelihood) -> None:
    vae = make(likelihood=likelihood)
    copy = VAE.from_config(vae.get_config())
    assert repr(copy.likelihood) == repr(likelihood)
    assert (copy.n_features, copy.latent_dim) == (vae.n_features, vae.latent_dim)
    assert [v.shape for v in copy.variables] == [v.shape for v in vae.variables]


def test_a_likelihood_is_never_restored_as_another() -> None:
    class Mine(Gaussian):
        """Without a name of its own."""

    with contextlib.suppress(TypeError, ValueError):  # to refuse would be right as well
        assert type(VAE.from_config(make(likelihood=Mine()).get_config()).likelihood) is Mine


# -- training with Keras' own fit ----------------------------------------------------------------------
def test_compile_and_fit_train_the_model() -> None:
    vae = make(DenseNetwork((16,)))
    X = rows(256, 1) * np.array([[2.0, -1.0, 0.5]], dtype=np.float32) + 0.1 * rows(256, seed=1)
    before = [variable.numpy() for variable in vae.trainable_variables]
    vae.compile(keras.optimizers.Adam(0.01))
    loss = vae.fit(X, batch_size=64, epochs=15, verbose=0).history["loss"]
    assert np.isfinite(loss).all()
    assert loss[-1] < loss[0]
    for variable, value in zip(vae.trainable_variables, before, strict=True):
        assert (variable.numpy() != value).any(), variable.path
    # The model has found the line: the rows are less than their own spread away from it.
    log_density_of_independent_normals = (
        stats.norm.logpdf(X, X.mean(axis=0), X.std(axis=0)).sum(axis=1).mean()
    )
    assert vae.evaluate(X, verbose=0) < -log_density_of_independent_normals
