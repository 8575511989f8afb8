"""Priors: densities that integrate to one and are drawn from, mixtures of what they say, and refusals."""

import math

import numpy as np
import pytest
from conftest import stars
from scipy import special, stats

from vae_anomaly import DenseNetwork, VAEDetector, likelihoods, priors
from vae_anomaly.core.backend import tf
from vae_anomaly.engine.programs import architecture
from vae_anomaly.flows import Autoregressive, Coupling, Spline
from vae_anomaly.model.states import Specification
from vae_anomaly.objectives import Chi, Renyi
from vae_anomaly.posteriors import Categorical
from vae_anomaly.priors import PRIORS, AggregatePosterior, Flow, Mixture, Standard, VampPrior
from vae_anomaly.scoring import SCORES, bound
from vae_anomaly.scoring.passes import draw_errors

ROWS = np.random.RandomState(0).normal(size=(30, 4)).astype("f4")
TABLE = {
    "standard": Standard(),
    "mixture": Mixture(3),
    "vamp": VampPrior(4),
    "flow": Flow([Autoregressive(6)] * 2),
    "flow of couplings": Flow([Coupling(6)] * 2),
    "flow of splines": Flow([Spline(4, n_units=6)] * 2),
    "aggregate": AggregatePosterior(5),
}
everything = pytest.mark.parametrize("prior", TABLE.values(), ids=TABLE)


def model_with(prior, seed=0, scale=0.5, **options):
    """A VAE with two latents whose prior has left its start."""
    network, likelihood = DenseNetwork((6,)), likelihoods.Gaussian()
    shared = architecture(Specification(network, likelihood, 4, 2, prior=prior, **options))
    model = shared.new_model()
    shared.load_into(model, shared.initial_state(seed, ROWS))
    rng = np.random.RandomState(seed)
    for variable in model.own_variables["prior"].values():
        variable.assign_add(scale * rng.standard_normal(variable.shape))
    return model


def points(n=7, seed=1):
    return tf.constant(np.random.RandomState(seed).normal(0, 1.5, (n, 2)), "float32")


def test_the_table_has_every_prior():
    assert {type(prior) for prior in TABLE.values()} == set(PRIORS.values())
    assert {type(priors.resolve(name)) for name in priors.NAMED} == set(PRIORS.values())


@everything
def test_the_density_integrates_to_one(prior):
    model, axis = model_with(prior, scale=0.3), np.linspace(-12, 12, 401)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype("f4")
    total = np.exp(np.asarray(model.log_prior(grid), dtype=float)).sum() * (axis[1] - axis[0]) ** 2
    assert total == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("prior", stars(TABLE, {"standard", "mixture", "vamp", "flow"}))
def test_draws_follow_the_density(prior):
    """Frequencies in a grid against the density's shares, by a chi-squared test."""
    model = model_with(prior)
    draws = np.asarray(model.prior.sample(4000, 3, model.weights_of("prior"), model))
    assert draws.shape == (4000, 2)
    again = model.prior.sample(4000, 3, model.weights_of("prior"), model)
    np.testing.assert_array_equal(again, draws)
    edges, n_within = np.linspace(-5, 5, 6), 60
    axis = np.linspace(-5, 5, 5 * n_within + 1)[:-1] + 5 / (5 * n_within)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2).astype("f4")
    density = np.exp(np.asarray(model.log_prior(grid), dtype=float)).reshape(5, n_within, 5, n_within)
    shares = (density.sum(axis=(1, 3)) * (axis[1] - axis[0]) ** 2).ravel()
    counts = np.histogram2d(*draws.T, bins=[edges, edges])[0].ravel()
    enough = shares * len(draws) > 5
    observed = np.append(counts[enough], len(draws) - counts[enough].sum())
    expected = len(draws) * np.append(shares[enough], 1 - shares[enough].sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-3


@everything
def test_draws_and_rows_may_have_any_axes_before_the_latents(prior):
    model, z = model_with(prior), points(12)
    flat = np.asarray(model.log_prior(z))
    stacked = model.log_prior(tf.reshape(z, (3, 4, 2)))
    np.testing.assert_allclose(np.reshape(stacked, -1), flat, rtol=1e-5, atol=1e-6)


@everything
def test_far_z_have_a_finite_density(prior):
    z = tf.constant([[1e4, -1e4], [-1e4, -1e4]])
    assert np.isfinite(model_with(prior).log_prior(z)).all()


@everything
def test_every_weight_of_the_prior_gets_a_gradient(prior):
    model = model_with(prior)
    trainable = [v for v in model.own_variables["prior"].values() if v.trainable]
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(model.log_prior(points()))
    gradients = tape.gradient(total, [variable.value for variable in trainable])
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)


@pytest.mark.parametrize("prior", [TABLE["flow"], TABLE["flow of couplings"], TABLE["flow of splines"]])
def test_a_flow_starts_as_the_standard_prior(prior):
    model, z = model_with(prior, scale=0.0), points()
    np.testing.assert_allclose(model.log_prior(z), model_with(Standard()).log_prior(z), rtol=1e-5)


# -- mixtures -------------------------------------------------------------------------------------------
def gaussian_log_prob(z, mean, log_var):
    return stats.norm.logpdf(z[:, None], mean, np.exp(0.5 * np.asarray(log_var))).sum(axis=-1)


def test_a_mixture_is_the_weighted_sum_of_its_gaussians():
    model, z = model_with(Mixture(3)), points()
    weights = {name: np.asarray(value, dtype=float) for name, value in model.weights_of("prior").items()}
    log_var = 10 * np.tanh(weights["log_var"] / 10)
    log_prob = gaussian_log_prob(z, weights["mean"], log_var) + special.log_softmax(weights["logits"])
    np.testing.assert_allclose(model.log_prior(z), special.logsumexp(log_prob, axis=1), rtol=1e-5)


@pytest.mark.parametrize("prior", [VampPrior(4), AggregatePosterior(4)])
def test_a_mixture_of_posteriors_is_the_mean_of_those_of_its_inputs(prior):
    model, z = model_with(prior), points()
    z_mean, z_log_var = model.context(model.weights_of("prior")["inputs"])
    log_prob = gaussian_log_prob(z, np.asarray(z_mean), np.asarray(z_log_var))
    expected = special.logsumexp(log_prob, axis=1) - math.log(4)
    np.testing.assert_allclose(model.log_prior(z), expected, rtol=1e-4)


@pytest.mark.parametrize("prior", [VampPrior(40), AggregatePosterior(40)])
def test_mixtures_of_posteriors_start_at_complete_training_rows(prior):
    rows = ROWS.copy()
    rows[::3, 1] = np.nan
    shared = architecture(
        Specification(DenseNetwork((6,)), likelihoods.Gaussian(), 4, 2, marks_missing=True, prior=prior)
    )
    model = shared.new_model()
    shared.load_into(model, shared.initial_state(0, rows))
    inputs = np.asarray(model.weights_of("prior")["inputs"])
    complete = rows[~np.isnan(rows).any(axis=1)]
    assert inputs.shape == (40, 8)
    assert {tuple(row) for row in inputs[:, :4]} == {tuple(row) for row in complete}
    assert (inputs[:, 4:] == 0).all()


@pytest.mark.wide
def test_the_inputs_of_a_vamp_prior_are_trained():
    model = VAEDetector(DenseNetwork((4,)), prior=VampPrior(5), epochs=2, random_state=0).fit(ROWS).model_
    rows = {tuple(row) for row in np.round((ROWS - ROWS.mean(axis=0)) / ROWS.std(axis=0), 4)}
    assert not {tuple(row) for row in np.round(model.weights_of("prior")["inputs"], 4)} & rows


def test_an_aggregate_posterior_follows_a_training_with_the_standard_prior():
    """The same weights, bit for bit; val_loss and scores are of the mixture."""
    quick = {"latent_dim": 2, "epochs": 2, "random_state": 0, "validation_fraction": 0.2, "score": "elbo"}
    usual, aggregate = (
        VAEDetector(DenseNetwork((4,)), prior=prior, **quick).fit(ROWS)
        for prior in ("standard", AggregatePosterior(12))
    )
    np.testing.assert_array_equal(usual.members_[0].trainable, aggregate.members_[0].trainable)
    assert usual.history_["loss"] == aggregate.history_["loss"]
    assert usual.history_["val_loss"] != aggregate.history_["val_loss"]
    scaled = aggregate.scaler_.transform(ROWS).astype("f4")
    model = aggregate.model_
    inferred = model.infer(scaled, aggregate.draws_[:, None])
    log_prob = np.asarray(model.likelihood.log_prob(scaled, inferred.parameters)).sum(axis=-1)
    elbo = (log_prob + inferred.log_ratio).numpy().mean(axis=0)
    np.testing.assert_allclose(aggregate.score_samples(ROWS), elbo, rtol=1e-4, atol=1e-4)


# -- refusals -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prior": "vamp", "posterior": "iaf"}, "asks for the density of any z.*set posterior='gaussian'"),
        ({"prior": "aggregate", "posterior": "planar"}, "asks for the density of any z"),
        ({"prior": Mixture(2), "posterior": Categorical()}, "are categories: set prior='standard'"),
        ({"prior": Flow(), "posterior": Categorical()}, "are categories: set prior='standard'"),
        ({"posterior": Categorical(), "objective": "iwae"}, "draws relaxed z .*set objective='elbo'"),
        ({"posterior": Categorical(2, 3), "latent_dim": 4}, "has 6 latent dimensions; received latent_dim=4"),
        ({"posterior": "realnvp", "latent_dim": 1}, "needs at least 2 of them; received latent_dim=1"),
        ({"prior": "flow", "latent_dim": 1}, "needs at least 2 of them; received latent_dim=1"),
        ({"posterior": "implicit", "objective": "iwae"}, "estimates its density, and objective=.*weighs"),
        ({"posterior": "implicit", "objective": Chi(2)}, "estimates its density, and objective=.*weighs"),
        ({"posterior": "implicit", "score": "iwae"}, "score='iwae' weighs draws by it.*score='elbo', which"),
        ({"posterior": "implicit", "score": bound(Renyi(0.5))}, "estimates its density, and score=.*weighs"),
        ({"posterior": "implicit", "prior": "vamp"}, "asks for the density of any z"),
        ({"posterior": "implicit", "free_bits": 0.1}, "free_bits limits the closed-form KL"),
        ({"prior": "mixture", "free_bits": 0.1}, "free_bits limits the closed-form KL"),
        ({"posterior": "iaf", "free_bits": 0.1}, "free_bits limits the closed-form KL"),
        ({"prior": Mixture(0)}, "n_components.*Got 0"),
        ({"prior": Flow("glow")}, "transforms must be one of"),
        ({"posterior": "flow"}, "posterior must be one of .*'realnvp'.*received 'flow'"),
    ],
)
def test_pairs_that_make_no_sense_are_refused_with_the_reason(options, reason):
    with pytest.raises(ValueError, match=reason):
        VAEDetector(DenseNetwork((4,)), epochs=1, **options).fit(ROWS)


def test_a_prior_of_training_rows_needs_some_that_are_complete():
    rows = ROWS.copy()
    rows[np.arange(30), np.arange(30) % 4] = np.nan
    with pytest.raises(ValueError, match="complete training rows, and a value is missing in each"):
        VAEDetector(DenseNetwork((4,)), prior="vamp", epochs=1).fit(rows)


def test_automatic_latents_are_as_many_as_a_flow_needs():
    detector = VAEDetector(DenseNetwork((4,)), prior=Flow([Coupling(4)]), epochs=1, random_state=0)
    assert detector.fit(ROWS[:, :1]).latent_dim_ == 2


class WithoutClosedKl(Standard):
    """The standard prior, whose KL is to be averaged over draws."""

    def has_closed_kl(self, posterior):
        return False


def test_where_the_kl_is_averaged_over_draws_so_is_what_could_be_summed_over_categories():
    """Only a sum has no error that comes from the draws."""
    X = np.random.RandomState(0).normal(size=(80, 3))
    for prior, is_sum in ((Standard(), True), (WithoutClosedKl(), False)):
        settings = {"posterior": Categorical(2, 3), "prior": prior, "score": "elbo", "epochs": 2}
        detector = VAEDetector(DenseNetwork((8,)), random_state=0, **settings).fit(X)
        rows = detector.scaler_.transform(X).astype(np.float32)
        errors = draw_errors(detector.members_, rows, detector.draws_, SCORES["elbo"], None)
        assert ((errors == 0) == is_sum).all()
