"""Implicit posteriors: estimates by a learned ratio of densities, where the truth is known."""

import numpy as np
import pytest
from test_posteriors import drawn, noise, tensor

from vae_anomaly import DenseNetwork, VAEDetector, plotting
from vae_anomaly.core.adam import Adam
from vae_anomaly.core.backend import keras, tf
from vae_anomaly.posteriors import Gaussian, Implicit

LATENT_DIM, N_ROWS = 2, 5
LEARNED = ("curve_", "ratio_")
# Two draws whose mean and variance are those of the standard normal distribution.
PLUS_AND_MINUS = tensor(np.ones((2, 1, LATENT_DIM + 1)) * [[[1.0]], [[-1.0]]])


class Known(Implicit):
    """The Gaussian posterior, which it is before the training, with the ratio to N(0, I) that it has."""

    def __init__(self):
        super().__init__(1, 2, adaptive_contrast=False, n_units=2)

    def log_ratio(self, z, context, weights):
        z_mean, z_log_var = context[:, :LATENT_DIM], context[:, LATENT_DIM : 2 * LATENT_DIM]
        distance = keras.ops.square(z - z_mean) * keras.ops.exp(-z_log_var)
        return 0.5 * keras.ops.sum(keras.ops.square(z) - distance - z_log_var, axis=-1)


def start_of(posterior, seed=0):
    """A context of random rows, and the weights that a training starts with."""
    rng, no_inputs = np.random.RandomState(seed), np.zeros((1, 1))
    own = posterior.weights(LATENT_DIM).items()
    context, _ = drawn(posterior, LATENT_DIM, N_ROWS, seed)
    return context, {name: tensor(weight.draw(rng, no_inputs)) for name, weight in own}


def learn_ratio(posterior, context, weights, n_steps, rate=3e-4, n_draws=64):
    """The weights after the ratio has been learned by Adam, for a posterior that stays as it is."""
    variables = {name: tf.Variable(value) for name, value in weights.items()}
    learned = [value for name, value in variables.items() if name.startswith(LEARNED)]
    moments = [[tf.Variable(tf.zeros_like(value)) for value in learned] for _ in range(2)]
    shape = (n_draws, context[0].shape[0], posterior.noise_width(LATENT_DIM))
    adam = Adam()

    @tf.function
    def train(rates):
        for step in tf.range(n_steps):
            given = tf.random.stateless_normal(shape, [7, step], dtype=tf.float64)
            with tf.GradientTape() as tape:
                z, _ = posterior.sample(context, given, variables, training=True)
                loss = tf.reduce_mean(posterior.auxiliary_loss(z, context, given, variables))
            gradients = tape.gradient(loss, learned)
            for value, first, second, gradient in zip(learned, *moments, gradients, strict=True):
                moved = adam.step(value.value(), first.value(), second.value(), gradient, rates[step])
                for variable, new in zip((value, first, second), moved, strict=True):
                    variable.assign(new)

    rates = adam.rates(rate * (1 - np.arange(n_steps) / n_steps))
    train(tensor(rates))
    return {name: value.value() for name, value in variables.items()}


def test_with_the_optimal_ratio_the_estimate_is_the_exact_divergence_with_its_gradient():
    posterior = Known()
    context, weights = start_of(posterior)
    heads = [*context[:3]]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(heads)
        context = posterior.context(heads)
        z, log_q = posterior.sample(context, PLUS_AND_MINUS, weights, training=True)
        estimate = tf.reduce_mean(log_q - posterior.standard_log_prob(z), axis=0)
        closed = tf.reduce_sum(Gaussian().kl(context[:2]), axis=-1)
    np.testing.assert_allclose(estimate, closed, rtol=1e-12)
    found, expected = (np.stack(tape.gradient(kl, heads[:2])) for kl in (estimate, closed))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.wide
@pytest.mark.parametrize("seed", [0, 1])
def test_a_learned_ratio_tells_the_divergence_of_a_gaussian(seed):
    posterior = Implicit(1, 3, adaptive_contrast=False, n_units=32)
    context, weights = start_of(posterior, seed)
    weights = learn_ratio(posterior, context, weights, 1500)
    z, log_q = posterior.sample(context, noise(4000, 1, LATENT_DIM + 1), weights)
    estimate = tf.reduce_mean(log_q - posterior.standard_log_prob(z))
    closed = tf.reduce_mean(tf.reduce_sum(Gaussian().kl(context[:2]), axis=-1))
    np.testing.assert_allclose(estimate, closed, rtol=0.1)


def test_by_adaptive_contrast_a_gaussian_leaves_no_ratio():
    """At the start there is none, and a training unlearns one that is wrong."""
    posterior = Implicit(1, 3, n_units=16)
    context, weights = start_of(posterior)
    given = noise(50, 1, LATENT_DIM + 1)
    z, expected = Gaussian().sample(context[:2], given[..., :LATENT_DIM], {})
    for one, other in zip(posterior.sample(context, given, weights), (z, expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
    rng = np.random.RandomState(2)
    wrong = {
        name: value + 0.01 * rng.standard_normal(value.shape) if name.startswith(LEARNED) else value
        for name, value in weights.items()
    }
    before, after = (
        np.abs(posterior.sample(context, given, own)[1] - expected).mean()
        for own in (wrong, learn_ratio(posterior, context, wrong, 300))
    )
    assert after < 0.05 < 0.3 < before


def test_each_network_learns_by_its_own_loss():
    posterior = Implicit(2, 3, n_units=4)
    (*heads, _), weights = drawn(posterior, LATENT_DIM)
    ratio = {name: value for name, value in weights.items() if name.startswith(LEARNED)}
    others = {name: value for name, value in weights.items() if name.startswith("generator")}
    given = noise(3, N_ROWS, LATENT_DIM + 2)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([heads, weights])
        context = posterior.context(heads)
        z, log_q = posterior.sample(context, given, weights, training=True)
        objective = tf.reduce_sum(log_q) + tf.reduce_sum(z)
        auxiliary = tf.reduce_sum(posterior.auxiliary_loss(z, context, given, weights))
    assert not any(tf.nest.flatten(tape.gradient(objective, ratio)))
    assert not any(tf.nest.flatten(tape.gradient(auxiliary, [heads, others])))
    for loss, learned in ((objective, [heads, others]), (auxiliary, ratio)):
        for gradient in tf.nest.flatten(tape.gradient(loss, learned)):
            assert np.abs(gradient).max() > 0


def test_the_center_is_the_mean_by_the_noise_of_the_contrast():
    posterior = Implicit(2, 3, n_contrast_draws=5000)
    context, weights = drawn(posterior, LATENT_DIM)
    z, _ = posterior.sample(context, noise(20_000, 1, LATENT_DIM + 2), weights)
    np.testing.assert_allclose(posterior.center(context, weights), tf.reduce_mean(z, axis=0), atol=0.1)


# -- in the detector ------------------------------------------------------------------------------------
rng = np.random.RandomState(0)
hidden = rng.normal(size=300)
# The sign of what is hidden is not known: its posterior has two modes.
X = np.stack([hidden**2, np.abs(hidden)], axis=1) + 0.15 * rng.normal(size=(300, 2))


def detector_of(**options):
    settings = {"posterior": "implicit", "latent_dim": 1, "epochs": 2, "batch_size": 64, "random_state": 0}
    return VAEDetector(DenseNetwork((32,)), **{**settings, **options})


@pytest.mark.parametrize("score", ["elbo", "reconstruction_probability"])
def test_what_rests_on_the_estimate_is_called_one(score):
    detector = detector_of(score=score).fit(X)
    card = detector.model_card()
    assert card["training"]["objective"] == "elbo, an estimate and no bound"
    (note,) = [note for note in card["notes"] if "density of the posterior is estimated" in note]
    assert "loss, val_loss and the ELBO, are estimates, no bounds" in note
    assert note.endswith("So are the score and the threshold.") == (score == "elbo")
    assert plotting.training_curves(detector).get_ylabel() == "nats per row, an estimate"
    unit = "(nats, an estimate)" if score == "elbo" else "(nats)"
    assert plotting.latent_scatter(detector, X).get_ylabel() == f"anomaly score {unit}"


def kernel_log_density(z, bandwidth=0.25):
    """Log-density of draws, (n_draws,), by kernels: none of them knows the posterior."""
    width = bandwidth * z.std() * len(z) ** -0.2
    edges = np.linspace(z.min() - 5 * width, z.max() + 5 * width, 4001)
    middles, step = 0.5 * (edges[1:] + edges[:-1]), edges[1] - edges[0]
    kernel = np.exp(-0.5 * ((middles - middles.mean()) / width) ** 2)
    shares = np.convolve(np.histogram(z, edges)[0] / len(z), kernel / kernel.sum(), "same")
    return np.log(np.interp(z, middles, shares / step))


@pytest.mark.wide
def test_a_trained_detector_estimates_the_divergence_that_kernels_find():
    detector = detector_of(epochs=400, learning_rate=0.002, random_state=1).fit(X)
    rows, model = detector.scaler_.transform(X[:60]).astype("f4"), detector.model_
    given = np.random.RandomState(1).standard_normal((4000, 1, model.posterior.noise_width(1)))
    inferred = model.infer(rows, given.astype("f4"))
    z = inferred.z.numpy()[..., 0].astype(float)
    log_q = np.stack([kernel_log_density(of_row) for of_row in z.T], axis=1)
    truth = (log_q + 0.5 * z**2 + 0.5 * np.log(2 * np.pi)).mean()
    assert truth > 1
    np.testing.assert_allclose(-np.mean(inferred.log_ratio), truth, rtol=0.1)
