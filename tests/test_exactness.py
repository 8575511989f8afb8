"""The ELBO is an ELBO: held against a model whose likelihood, posterior and optimum are known.

For the linear Gaussian model x = W z + m + s e, p(x) is a Gaussian with covariance W W' + s^2 I
(probabilistic PCA, Tipping & Bishop 1999) and the posterior of z is Gaussian with covariance
s^2 (W'W + s^2 I)^-1, which is diagonal when the columns of W are orthogonal: then the model's own
posterior family contains it.
"""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.engine.programs import architecture
from vae_anomaly.ensemble.averaging import average
from vae_anomaly.ensemble.recipe import Member
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.model.states import Specification
from vae_anomaly.scoring import SCORES
from vae_anomaly.scoring.passes import elbo_terms, encode, reconstruct, score_rows

D, L, SIGMA = 5, 2, 0.7


@pytest.fixture(scope="module")
def exact():
    """A linear VAE with the exact posterior in its encoder, rows from the model, and their log p(x)."""
    rng = np.random.RandomState(0)
    directions = np.linalg.qr(rng.normal(size=(D, L)))[0]
    weights, mean = directions * [2.0, 1.2], rng.normal(size=D)
    rows = (rng.normal(size=(200, L)) @ weights.T + mean + SIGMA * rng.normal(size=(200, D))).astype("f4")
    evidence = multivariate_normal(mean, weights @ weights.T + SIGMA**2 * np.eye(D)).logpdf(rows)

    precision = weights.T @ weights + SIGMA**2 * np.eye(L)
    to_mean = np.linalg.solve(precision, weights.T)
    log_var = np.log(SIGMA**2 / np.diag(precision))
    # The encoder's log-variance passes through 10 tanh(. / 10).
    raw_log_var = 10 * np.arctanh(log_var / 10)

    linear = architecture(Specification(DenseNetwork(()), Gaussian(scale=SIGMA), D, L))
    model = linear.new_model()
    model.encoder.get_layer("z_mean").set_weights([to_mean.T, -to_mean @ mean])
    model.encoder.get_layer("z_log_var").set_weights([np.zeros((D, L)), raw_log_var])
    model.decoder.get_layer("parameters").set_weights([weights.T, mean])
    return linear.state_of(model), rows, evidence


def noise(n_draws, seed=0):
    return np.random.RandomState(seed).standard_normal((n_draws, L)).astype("f4")


def test_at_the_exact_posterior_the_elbo_is_the_evidence(exact):
    state, rows, evidence = exact
    elbo = -elbo_terms([state], rows, noise(20_000), None)[0].sum(axis=1)
    # The Monte-Carlo error of E_q log p(x|z) with 20,000 draws: its standard deviation is about 2.
    np.testing.assert_allclose(elbo, evidence, atol=5 * 2 / np.sqrt(20_000))


def test_at_the_exact_posterior_every_importance_weight_is_the_evidence(exact):
    state, rows, evidence = exact
    for n_draws in (1, 7):
        np.testing.assert_allclose(
            -score_rows([state], rows, noise(n_draws), SCORES["iwae"], None)[0], evidence, atol=2e-4
        )


def test_elbo_below_iwae_below_evidence_and_rising_with_the_draws(exact):
    state, rows, _ = exact
    wrong = state.__class__(state.specification, state.trainable + np.float32(0.15), state.non_trainable)
    # The evidence of the changed model, whose decoder moved too.
    model_evidence = _evidence(wrong, rows)
    elbo = -elbo_terms([wrong], rows, noise(4000), None)[0].sum(axis=1).mean()
    bounds = {
        k: [-score_rows([wrong], rows, noise(k, seed), SCORES["iwae"], None)[0].mean() for seed in range(100)]
        for k in (1, 5, 25, 125)
    }
    # One draw is the ELBO's own estimate: equal up to the standard error over the 100 seeds.
    assert np.mean(bounds[1]) == pytest.approx(elbo, abs=4 * np.std(bounds[1]) / np.sqrt(100))
    means = [np.mean(values) for values in bounds.values()]
    assert elbo < means[1] < means[2] < means[3] < model_evidence.mean()


def test_training_reaches_the_maximum_likelihood_of_probabilistic_pca():
    rng = np.random.RandomState(1)
    X = rng.normal(size=(3000, L)) @ rng.normal(size=(L, D)) + 0.5 * rng.normal(size=(3000, D))
    detector = VAEDetector(
        network=DenseNetwork(()),
        likelihood=Gaussian(scale=0.5),
        latent_dim=L,
        scaler=None,
        epochs=500,
        n_training_draws=2,
        learning_rate=1e-2,
        learning_rate_schedule="cosine",
        random_state=0,
    ).fit(X)
    # The optimum for a known noise: the L largest eigenvalues beyond it, in closed form.
    covariance = np.cov(X.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    top = vectors[:, -L:] * np.sqrt(values[-L:] - 0.25)
    best = multivariate_normal(X.mean(axis=0), top @ top.T + 0.25 * np.eye(D)).logpdf(X).mean()
    # Stated tolerance: 0.01 nats a row.
    assert best - 0.01 < _evidence(detector.members_[0], X, sigma=0.5).mean() <= best
    assert best - 0.01 < _closed_form_elbo(detector.members_[0], X, sigma=0.5).mean() <= best


@pytest.mark.wide
def test_an_ensembles_elbo_is_a_bound_of_its_mixtures_evidence():
    rng = np.random.RandomState(1)
    X = (rng.normal(size=(500, L)) @ rng.normal(size=(L, D)) + 0.5 * rng.normal(size=(500, D))).astype("f4")
    detector = VAEDetector(
        network=DenseNetwork(()),
        likelihood=Gaussian(scale=0.5),
        latent_dim=L,
        scaler=None,
        members=[Member(), Member(trimmed_fraction=0.3), Member(beta_factor=0.2)],
        epochs=100,
        n_draws=500,
        random_state=0,
    ).fit(X)
    evidence = np.stack([_evidence(state, X, sigma=0.5) for state in detector.members_])
    mixture = logsumexp(evidence, axis=0, b=detector.member_weights_[:, None])
    elbo = -average(elbo_terms(detector.members_, X, detector.draws_, None), detector.member_weights_).sum(
        axis=1
    )
    # Row by row, up to the error of 500 draws.
    assert (elbo < mixture + 0.2).all()
    assert detector.score(X) < mixture.mean()


def test_every_score_is_its_formula_in_numpy(exact):
    state, rows, _ = exact
    model = _numpy_parts(state)
    draws = noise(6)
    z_mean = rows @ model["to_mean"] + model["offset"]
    z = z_mean + np.exp(model["log_var"] / 2) * draws[:, None]
    location = z @ model["weights"] + model["mean"]
    square = ((rows - location) ** 2).sum(axis=-1)
    log_prob = -0.5 * square / SIGMA**2 - D * np.log(SIGMA) - 0.5 * D * np.log(2 * np.pi)
    kl = 0.5 * (z_mean**2 + np.exp(model["log_var"]) - 1 - model["log_var"]).sum(axis=1)
    log_ratio = 0.5 * (draws[:, None] ** 2 + model["log_var"] - z**2).sum(axis=-1)
    expected = {
        "elbo": kl - log_prob.mean(axis=0),
        "reconstruction_probability": -log_prob.mean(axis=0),
        "beta_elbo": 0.1 * kl - log_prob.mean(axis=0),
        "reconstruction_error": square.mean(axis=0),
        "iwae": -np.log(np.exp(log_prob + log_ratio).mean(axis=0)),
    }
    assert set(expected) == set(SCORES)
    for name, value in expected.items():
        np.testing.assert_allclose(
            score_rows([state], rows, draws, SCORES[name], None)[0], value, rtol=2e-5, atol=2e-5, err_msg=name
        )


@pytest.fixture(scope="module")
def gaps(exact):
    """The rows with up to three of five cells missing, each row's own."""
    _, rows, _ = exact
    rows = rows.copy()
    rng = np.random.RandomState(3)
    for row in rows:
        row[rng.choice(D, rng.randint(1, 4), replace=False)] = np.nan
    return rows


@pytest.mark.wide
def test_the_elbo_of_the_values_that_are_there_is_below_their_evidence(exact, gaps):
    state, *_ = exact
    elbo = -elbo_terms([state], gaps, noise(1250), None)[0].sum(axis=1)
    evidence = np.array([_marginal(state, row).logpdf(row[~np.isnan(row)]) for row in gaps])
    assert (elbo < evidence + 5 * 2 / np.sqrt(1250)).all()
    # The encoder knows the posterior of complete rows, which is too narrow: some nats are lost, not many.
    assert evidence.mean() - 1.5 < elbo.mean() < evidence.mean()


def test_missing_values_are_expected_to_be_the_conditional_mean(exact, gaps):
    state, *_ = exact
    nothing = np.zeros((1, L), dtype="f4")
    (expected,), _ = reconstruct([state], gaps, nothing, None)
    left, at_first = _distances(state, gaps, expected)
    assert left.max() < 0.01
    assert left.mean() < 0.01 * at_first.mean()


def test_each_inference_of_missing_values_leaves_a_part_of_the_distance_to_the_conditional_mean(exact, gaps):
    state, *_ = exact
    parts = _numpy_parts(state)
    z_mean = encode([state], gaps, noise(1), None)[0]
    left, at_first = _distances(state, gaps, z_mean @ parts["weights"] + parts["mean"])
    # Ten leave little.
    assert left.mean() < 0.1 * at_first.mean()
    # Of one missing cell, each leaves the same part: what the cell itself says of its reconstruction.
    (one_missing,) = (np.isnan(gaps).sum(axis=1) == 1).nonzero()
    itself = np.einsum("lj,lj->j", parts["weights"], parts["to_mean"].T)
    part = itself[np.isnan(gaps[one_missing]).argmax(axis=1)]
    np.testing.assert_allclose(left[one_missing], part**10 * at_first[one_missing], rtol=1e-2, atol=1e-5)


def _distances(state, gaps, expected):
    """Of each row, how far expectations and column means are at most from the missing cells' exact means."""
    parts = _numpy_parts(state)
    covariance = parts["weights"].T @ parts["weights"] + SIGMA**2 * np.eye(D)
    distances = []
    for row, found in zip(gaps, expected, strict=True):
        missing = np.isnan(row)
        to_missing = np.linalg.solve(
            covariance[np.ix_(~missing, ~missing)], covariance[np.ix_(~missing, missing)]
        )
        exact_mean = parts["mean"][missing] + (row - parts["mean"])[~missing] @ to_missing
        distances.append([np.abs(guess[missing] - exact_mean).max() for guess in (found, parts["mean"])])
    return np.transpose(distances)


def test_a_missing_cell_counts_minus_the_entropy_of_the_likelihood(exact, gaps):
    state, *_ = exact
    draws = noise(4)
    score = score_rows([state], gaps, draws, SCORES["reconstruction_probability"], None)[0]
    observed = elbo_terms([state], gaps, draws, None)[0][:, 0]
    entropy = 0.5 * np.log(2 * np.pi * np.e * SIGMA**2)
    np.testing.assert_allclose(score, observed + entropy * np.isnan(gaps).sum(axis=1), rtol=1e-5, atol=1e-4)


def _marginal(state, row):
    """The exact distribution of the values that a row has."""
    parts = _numpy_parts(state)
    covariance = parts["weights"].T @ parts["weights"] + SIGMA**2 * np.eye(D)
    there = ~np.isnan(row)
    return multivariate_normal(parts["mean"][there], covariance[np.ix_(there, there)])


def _numpy_parts(state):
    linear = architecture(state.specification)
    model = linear.new_model()
    linear.load_into(model, state)
    to_mean, offset = model.encoder.get_layer("z_mean").get_weights()
    to_log_var, raw_log_var = model.encoder.get_layer("z_log_var").get_weights()
    weights, mean = model.decoder.get_layer("parameters").get_weights()
    return {
        "to_mean": to_mean.astype(float),
        "offset": offset.astype(float),
        "to_log_var": to_log_var.astype(float),
        "raw_log_var": raw_log_var.astype(float),
        "log_var": 10 * np.tanh(raw_log_var.astype(float) / 10),
        "weights": weights.astype(float),
        "mean": mean.astype(float),
    }


def _evidence(state, rows, sigma=SIGMA):
    parts = _numpy_parts(state)
    covariance = parts["weights"].T @ parts["weights"] + sigma**2 * np.eye(D)
    return multivariate_normal(parts["mean"], covariance).logpdf(rows)


def _closed_form_elbo(state, rows, sigma):
    parts = _numpy_parts(state)
    variance = np.exp(10 * np.tanh((rows @ parts["to_log_var"] + parts["raw_log_var"]) / 10))
    z_mean = rows @ parts["to_mean"] + parts["offset"]
    square = ((rows - z_mean @ parts["weights"] - parts["mean"]) ** 2).sum(axis=1)
    square += variance @ (parts["weights"] ** 2).sum(axis=1)
    log_prob = -0.5 * square / sigma**2 - D * np.log(sigma) - 0.5 * D * np.log(2 * np.pi)
    return log_prob - 0.5 * (z_mean**2 + variance - 1 - np.log(variance)).sum(axis=1)
