"""Posteriors: the density of their draws, their divergence, and what they find where the truth is known."""

import math

import numpy as np
import pytest
from conftest import stars, wide
from scipy import special, stats

from vae_anomaly import DenseNetwork, likelihoods, posteriors
from vae_anomaly.core.backend import keras, tf
from vae_anomaly.core.weights import PROGRESS
from vae_anomaly.engine.programs import architecture
from vae_anomaly.flows import Autoregressive, Coupling, Planar, Spline
from vae_anomaly.model.states import Specification
from vae_anomaly.model.vae import VAE
from vae_anomaly.posteriors import POSTERIORS, Categorical, Flow, Gaussian, Implicit, Posterior
from vae_anomaly.posteriors.categorical import gumbel_softmax, largest, straight_through
from vae_anomaly.scoring import SCORES
from vae_anomaly.scoring.passes import score_tile

LATENT_DIM, N_ROWS = 3, 5
REAL = {
    "gaussian": Gaussian(),
    "planar": Flow([Planar()] * 3, n_context=4),
    "coupling": Flow([Coupling(8)] * 2, n_context=4),
    "autoregressive": Flow([Autoregressive(8)] * 2, n_context=4),
    "spline": Flow([Spline(4, n_units=8)] * 2, n_context=4),
}
IMPLICIT = {
    "implicit": Implicit(2, 4, n_units=8),
    "implicit, contrast N(0, I)": Implicit(2, 4, n_units=8, adaptive_contrast=False),
}
TABLE = {**REAL, **IMPLICIT, "categorical": Categorical(2, 3)}
each_real = pytest.mark.parametrize("posterior", [*REAL.values(), *IMPLICIT.values()], ids=[*REAL, *IMPLICIT])
real = pytest.mark.parametrize("posterior", REAL.values(), ids=REAL)
by_default = pytest.mark.parametrize("posterior", stars(REAL, {"gaussian", "autoregressive"}))


def tensor(values, dtype="float64"):
    return tf.constant(np.asarray(values), dtype)


def drawn(posterior, latent_dim=LATENT_DIM, n_rows=N_ROWS, seed=0, scale=0.5):
    """A context of random rows, and random weights."""
    rng = np.random.RandomState(seed)
    heads = [tensor(rng.standard_normal((n_rows, width))) for width in posterior.heads(latent_dim).values()]
    weights = {
        name: tensor(scale * rng.standard_normal(weight.shape))
        for name, weight in posterior.weights(latent_dim).items()
    }
    return posterior.context(heads), weights


def noise(*shape, seed=1):
    return tensor(np.random.RandomState(seed).standard_normal(shape))


def test_the_table_has_every_posterior():
    assert {type(posterior) for posterior in TABLE.values()} == set(POSTERIORS.values())
    for name in posteriors.NAMED:
        assert isinstance(posteriors.resolve(name), tuple(POSTERIORS.values()))


# -- posteriors of real z -------------------------------------------------------------------------------
@real
def test_the_density_of_a_draw_is_that_of_its_noise_less_the_change_of_volume(posterior):
    (context, weights), given = drawn(posterior), noise(1, N_ROWS, LATENT_DIM)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(given)
        z, log_q = posterior.sample(context, given, weights)
        columns = tf.unstack(z[0], axis=-1)
    jacobian = np.stack([tape.gradient(column, given)[0] for column in columns], axis=1)
    expected = stats.norm.logpdf(given[0]).sum(axis=-1) - np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(log_q[0], expected, rtol=1e-9)


@each_real
def test_draws_that_rows_share_are_the_same_for_each_row(posterior):
    context, weights = drawn(posterior)
    given = noise(4, 1, posterior.noise_width(LATENT_DIM))
    shared = posterior.sample(context, given, weights)
    repeated = posterior.sample(context, tf.repeat(given, N_ROWS, axis=1), weights)
    for one, other in zip(shared, repeated, strict=True):
        assert one.shape[:2] == (4, N_ROWS)
        np.testing.assert_allclose(one, other, rtol=1e-12)


@real
def test_the_center_is_the_draw_without_noise(posterior):
    context, weights = drawn(posterior)
    z, _ = posterior.sample(context, tf.zeros((1, 1, LATENT_DIM), tf.float64), weights)
    np.testing.assert_allclose(posterior.center(context, weights), z[0], rtol=1e-12)


@each_real
def test_a_posterior_is_moved_without_another_shape(posterior):
    (context, weights), given = drawn(posterior), noise(4, 1, posterior.noise_width(LATENT_DIM))
    moved = posterior.move(context, tf.zeros((N_ROWS, LATENT_DIM), tf.float64), weights)
    np.testing.assert_allclose(posterior.center(moved, weights), 0.0, atol=1e-12)
    (z, log_q), (moved_z, moved_log_q) = (posterior.sample(c, given, weights) for c in (context, moved))
    np.testing.assert_allclose(moved_z, z - posterior.center(context, weights), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moved_log_q, log_q, rtol=1e-12)


@by_default
def test_the_divergence_from_the_standard_prior_is_the_mean_log_ratio(posterior):
    """At the start a flow is the Gaussian posterior, whose divergence is closed."""
    context, weights = drawn(posterior, n_rows=3, scale=0.0)
    z, log_q = posterior.sample(context, noise(20_000, 1, LATENT_DIM), weights)
    log_ratio = (log_q - posterior.standard_log_prob(z)).numpy()
    closed = Gaussian().kl(context[:2]).numpy().sum(axis=-1)
    error = log_ratio.std(axis=0) / math.sqrt(len(log_ratio))
    assert (np.abs(log_ratio.mean(axis=0) - closed) < 4 * error).all()


@pytest.mark.parametrize("posterior", stars(REAL, {"autoregressive"}))
def test_a_model_with_a_flow_starts_as_the_one_without(posterior):
    """The same log-weights and losses as with the Gaussian posterior, if the networks are the same."""
    rows = np.random.RandomState(0).normal(size=(8, 4)).astype("f4")
    given = noise(3, 1, LATENT_DIM).numpy().astype("f4")
    found = []
    for each in (Gaussian(), posterior):
        specification = Specification(
            DenseNetwork((6,)), likelihoods.Gaussian(), 4, LATENT_DIM, posterior=each
        )
        shared = architecture(specification)
        model = shared.new_model()
        shared.load_into(model, shared.initial_state(0, rows))
        found.append(model)
    plain, with_flow = found
    for name in ("encoder_0", "z_mean", "z_log_var"):
        with_flow.encoder.get_layer(name).set_weights(plain.encoder.get_layer(name).get_weights())
    with_flow.decoder.set_weights(plain.decoder.get_weights())
    one, other = (model.infer(rows, given) for model in found)
    np.testing.assert_allclose(other.z, one.z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(other.log_ratio, one.log_ratio, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(other.parameters[0], one.parameters[0], rtol=1e-5, atol=1e-5)


# -- what a flow can say and a Gaussian cannot ----------------------------------------------------------
def banana(z):
    """log p(x, z) of a bent posterior: z_2 lies near z_1 squared."""
    return -0.5 * (z[..., 0] ** 2 + ((z[..., 1] - z[..., 0] ** 2 + 1) / 0.3) ** 2)


def two_modes(z):
    """log p(x, z) of x = z_1^2 + noise at x = 2: the sign of z_1 is not known."""
    return -0.5 * (z[..., 0] ** 2 + z[..., 1] ** 2 + ((2 - z[..., 0] ** 2) / 0.6) ** 2)


def log_evidence(log_joint):
    axis = np.linspace(-7, 14, 1501)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    return special.logsumexp(log_joint(grid)) + 2 * math.log(axis[1] - axis[0])


def best_elbo(posterior, log_joint, n_steps):
    """The ELBO of one row after fitting its posterior by Adam, and the standard error, by 40,000 draws."""
    rng = np.random.RandomState(0)
    no_inputs = np.zeros((1, 1))
    heads = [tf.Variable(np.full((1, width), 0.1), dtype="float32") for width in posterior.heads(2).values()]
    own = {
        name: tf.Variable(weight.draw(rng, no_inputs), dtype="float32")
        for name, weight in posterior.weights(2).items()
    }
    variables = [*heads, *own.values()]

    def log_weights(given):
        z, log_q = posterior.sample(posterior.context(heads), given, own)
        return log_joint(z) - log_q

    moments = [[tf.Variable(tf.zeros_like(variable)) for variable in variables] for _ in range(2)]

    @tf.function
    def train():
        for count in tf.range(1.0, n_steps + 1.0):
            with tf.GradientTape() as tape:
                loss = -tf.reduce_mean(log_weights(tf.random.stateless_normal((128, 1, 2), [7, int(count)])))
            rate = 0.03 * (1 - count / n_steps)
            for variable, first, second, gradient in zip(
                variables, *moments, tape.gradient(loss, variables), strict=True
            ):
                first.assign(0.9 * first + 0.1 * gradient)
                second.assign(0.99 * second + 0.01 * gradient**2)
                unbiased = first / (1 - 0.9**count) / (tf.sqrt(second / (1 - 0.99**count)) + 1e-8)
                variable.assign_sub(rate * unbiased)

    train()
    found = log_weights(noise(40_000, 1, 2, seed=9).numpy().astype("f4")).numpy()
    return found.mean(), found.std() / math.sqrt(len(found))


@pytest.mark.parametrize(
    ("log_joint", "posterior", "gained"),
    [
        pytest.param(banana, Flow([Coupling(16)] * 2, 1), 0.5, id="banana"),
        wide(two_modes, Flow([Planar()] * 4, 1), 0.3, name="two modes"),
        wide(banana, Flow("autoregressive", 1), 0.5, name="banana, autoregressive"),
        wide(banana, Flow("spline", 1), 0.5, name="banana, spline"),
        wide(two_modes, Flow("planar", 1), 0.3, name="two modes, eight planes"),
    ],
)
def test_a_flow_comes_nearer_to_the_evidence_than_a_gaussian(log_joint, posterior, gained):
    gaussian, _ = best_elbo(Gaussian(), log_joint, 150)
    flow, error = best_elbo(posterior, log_joint, 200)
    assert gaussian + gained < flow < log_evidence(log_joint) + 4 * error


# -- categories -----------------------------------------------------------------------------------------
CATEGORICAL = Categorical(2, 3)


@pytest.fixture(scope="module")
def many_draws():
    """A million numbers' worth of categories of four rows, and their probabilities."""
    context, weights = drawn(CATEGORICAL, 6, 4)
    z, log_q = CATEGORICAL.sample(context, noise(40_000, 4, 12), weights)
    return context, z.numpy(), log_q.numpy()


def test_categories_are_drawn_with_their_probabilities(many_draws):
    (log_probs,), z, _ = many_draws
    counts = z.reshape(len(z), 4, 2, 3).sum(axis=0)
    expected = len(z) * np.exp(log_probs)
    assert stats.chisquare(counts.reshape(-1, 3), expected.reshape(-1, 3), axis=1).pvalue.min() > 1e-4


def test_draws_of_categories_are_one_hot_and_know_their_probability(many_draws):
    (log_probs,), z, log_q = many_draws
    assert set(np.unique(z)) == {0.0, 1.0}
    assert (z.reshape(-1, 4, 2, 3).sum(axis=-1) == 1).all()
    np.testing.assert_allclose(
        log_q, (z.reshape(-1, 4, 2, 3) * log_probs.numpy()).sum(axis=(-2, -1)), rtol=1e-12
    )


def test_the_divergence_of_categories_is_closed_and_the_mean_log_ratio(many_draws):
    context, z, log_q = many_draws
    closed = CATEGORICAL.kl(context).numpy()
    assert closed.shape == (4, 2)
    assert ((closed >= 0) & (closed <= math.log(3))).all()
    log_ratio = log_q - CATEGORICAL.standard_log_prob(tensor(z)).numpy()
    error = log_ratio.std(axis=0) / math.sqrt(len(log_ratio))
    assert (np.abs(log_ratio.mean(axis=0) - closed.sum(axis=-1)) < 4 * error).all()


@pytest.mark.parametrize(("logits", "expected"), [([0.0, 0, 0], 0.0), ([1e3, 0, -1e3], math.log(3))])
def test_the_divergence_of_categories_reaches_from_0_to_log_k(logits, expected):
    context = Categorical(1, 3).context([tensor([logits])])
    np.testing.assert_allclose(Categorical(1, 3).kl(context), [[expected]], atol=1e-12)


def test_the_center_of_categories_is_the_mean_of_z(many_draws):
    context, z, _ = many_draws
    np.testing.assert_allclose(CATEGORICAL.center(context, {}), z.mean(axis=0), atol=0.02)


def test_the_noise_of_categories_is_gumbels():
    """Of two standard normal numbers, half the squared length is exponential."""
    flat = Categorical(1, 2, temperature=1.0)
    context = flat.context([tensor(np.zeros((1, 2)))])
    z, _ = flat.sample(context, noise(20_000, 1, 4), {PROGRESS: tensor(0.0)}, training=True)
    # At temperature 1, log z_1 / z_2 is the difference of two Gumbel variates, which is logistic.
    difference = np.log(z[:, 0, 0] / z[:, 0, 1])
    assert stats.kstest(difference, stats.logistic.cdf).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_the_largest_of_relaxed_values_has_the_probability_of_its_category(temperature):
    posterior = Categorical(2, 3, temperature)
    context, _ = drawn(posterior, 6, 4)
    z, _ = posterior.sample(context, noise(5_000, 4, 12), {PROGRESS: tensor(0.0)}, training=True)
    assert 0 < np.min(z) < np.max(z) <= 1
    counts = largest(tf.reshape(z, (-1, 4, 2, 3))).numpy().sum(axis=0)
    expected = 5_000 * np.exp(context[0])
    assert stats.chisquare(counts.reshape(-1, 3), expected.reshape(-1, 3), axis=1).pvalue.min() > 1e-4


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1e-3, [0.0, 1.0, 0.0]), (1e6, [1 / 3, 1 / 3, 1 / 3])], ids=["cold", "hot"]
)
def test_relaxed_draws_are_categories_when_cold_and_equal_shares_when_hot(temperature, expected):
    z = gumbel_softmax(tensor([0.5, 1.0, 0.0], "float32"), tensor([0.1, 0.2, -0.4], "float32"), temperature)
    np.testing.assert_allclose(z, expected, atol=1e-5)


def test_relaxed_draws_stay_finite_with_their_gradient():
    logits = tensor([[1e3, -1e3, 0.0], [0.0, 0.0, 0.0]], "float32")
    with tf.GradientTape() as tape:
        tape.watch(logits)
        z = gumbel_softmax(logits, tensor([0.1, -0.2, 0.3], "float32"), 1e-3)
        total = tf.reduce_sum(z * tensor([1.0, 2.0, 3.0], "float32"))
    assert np.isfinite(z).all()
    assert np.isfinite(tape.gradient(total, logits)).all()


def test_straight_through_draws_are_one_hot_with_the_gradient_of_the_relaxed_ones():
    logits, weights = tensor([[0.3, 0.1, -2.0]], "float32"), tensor([1.0, 2.0, 3.0], "float32")
    slopes = []
    for through in (straight_through, lambda z: z):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            z = through(tf.nn.softmax(logits))
            total = tf.reduce_sum(z * weights)
        slopes.append(tape.gradient(total, logits).numpy())
    np.testing.assert_array_equal(straight_through(tf.nn.softmax(logits)), [[1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(*slopes)


def test_of_equal_values_the_first_is_the_largest():
    np.testing.assert_array_equal(largest(tensor([[2.0, 2.0, 1.0], [0.0, 3.0, 3.0]])), [[1, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize(("temperature", "expected"), [((2.0, 0.5), [2.0, 1.0, 0.5]), (0.7, [0.7, 0.7, 0.7])])
def test_the_temperature_falls_geometrically(temperature, expected):
    posterior = Categorical(temperature=temperature)
    found = [float(posterior._temperature({PROGRESS: tensor(p)})) for p in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("temperature", [(1.0,), (1.0, 0.0), (1.0, -1.0), ("hot", 1.0)])
def test_temperatures_that_are_none_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be a positive number or two"):
        Categorical(temperature=temperature).check(32)


def test_a_mixture_whose_responsibilities_are_known_has_the_evidence_as_its_elbo():
    """p(x) = mean of K Gaussians; with q(z|x) the responsibilities, each log-weight is log p(x)."""
    centers, x = np.array([-2.0, 0.5, 3.0]), np.array([-1.0, 0.0, 2.0, 9.0])
    log_prob = stats.norm.logpdf(x[:, None], centers)
    evidence = special.logsumexp(log_prob, axis=1) - math.log(3)
    posterior = Categorical(1, 3)
    context = posterior.context([tensor(log_prob)])
    responsibilities = np.exp(context[0][:, 0])
    elbo = (responsibilities * log_prob).sum(axis=1) - posterior.kl(context).numpy().sum(axis=1)
    np.testing.assert_allclose(elbo, evidence, rtol=1e-12)
    z, log_q = posterior.sample(context, noise(7, 1, 6), {})
    log_weights = (z.numpy() * log_prob).sum(axis=-1) + posterior.standard_log_prob(z) - log_q
    np.testing.assert_allclose(log_weights, np.broadcast_to(evidence, (7, 4)), rtol=1e-12)


def test_a_score_of_few_categories_is_the_exact_evidence_where_responsibilities_are_known():
    """Of a mixture of Gaussians with one scale, the responsibilities are a linear softmax of x."""
    centers, scale = np.array([-2.0, 0.5, 3.0]), 0.7
    likelihood = likelihoods.Gaussian(scale)
    encoder = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    encoder.set_weights([centers[None] / scale**2, -(centers**2) / (2 * scale**2)])
    decoder = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    decoder.set_weights([centers[:, None]])
    x = np.array([[-1.0], [0.0], [2.0], [9.0]])
    evidence = special.logsumexp(stats.norm.logpdf(x, centers, scale), axis=1) - math.log(3)
    by_draws = []
    for max_enumerated in (3, 0):
        vae = VAE(
            encoder, decoder, likelihood, 1, 3, posterior=Categorical(1, 3, max_enumerated=max_enumerated)
        )
        given = noise(5, 1, 6).numpy().astype("f4")
        by_draws.append(-score_tile(SCORES["elbo"], vae, tensor(x, "float32"), given).numpy())
    np.testing.assert_allclose(by_draws[0], evidence, rtol=1e-5)
    assert np.abs(by_draws[1] - evidence).max() > 0.01


def test_few_combinations_of_values_are_enumerated():
    values = Categorical(2, 3).support(6)
    assert len(np.unique(values, axis=0)) == 9
    assert (values.reshape(9, 2, 3).sum(axis=2) == 1).all()
    assert len(Categorical(8, 2).support(16)) == 256
    assert Categorical(9, 2).support(18) is None
    assert len(Categorical(12, 2, max_enumerated=4096).support(24)) == 4096
    assert Categorical(10**9, 10**9).support(10**18) is None
    context, weights = drawn(Categorical(2, 3), 6, 4)
    log_prob = Categorical(2, 3).log_prob(tensor(values[:, None]), context, weights)
    np.testing.assert_allclose(np.exp(log_prob).sum(axis=0), 1.0, rtol=1e-12)


# -- one's own ------------------------------------------------------------------------------------------
class Laplace(Posterior):
    """Double exponential draws; without a name, by which it would be registered."""

    def sample(self, context, noise, weights, training=False):
        location, log_scale = context
        uniform = 0.5 * keras.ops.erf(noise / math.sqrt(2))  # in (-1/2, 1/2)
        size = -keras.ops.log1p(-2 * keras.ops.abs(uniform))
        z = location + keras.ops.exp(log_scale) * keras.ops.sign(noise) * size
        return z, -keras.ops.sum(size + log_scale + math.log(2), axis=-1)


def test_a_posterior_of_ones_own_is_a_class_with_a_method():
    context, given = (tensor([[1.0]]), tensor([[-0.5]])), noise(20_000, 1, 1)
    z, log_q = Laplace().sample(context, given, {})
    truth = stats.laplace(1.0, math.exp(-0.5))
    assert stats.kstest(z[:, 0, 0], truth.cdf).pvalue > 1e-3
    np.testing.assert_allclose(log_q[:, 0], truth.logpdf(z[:, 0, 0]), rtol=1e-9)
    np.testing.assert_array_equal(Laplace().center(context, {}), [[1.0]])
