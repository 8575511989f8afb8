"""The objective against exact integrals, Monte Carlo and a linear Gaussian model solved by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import special, stats

from vae_anomaly import objectives
from vae_anomaly.core.backend import tf
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.objectives import LossTerms, loss_terms
from vae_anomaly.objectives.renyi import importance_weighted_bound
from vae_anomaly.posteriors import Gaussian as GaussianPosterior
from vae_anomaly.posteriors.gaussian import kl_divergence, reparameterize

Z_MEANS, Z_LOG_VARS = (
    values.ravel()
    for values in np.meshgrid([-30.0, -1.0, -1e-3, 0.0, 0.5, 4.0], [-10.0, -1.0, -1e-3, 0.0, 0.7, 10.0])
)


def tensor(values: Any, dtype: Any = np.float64) -> Any:
    return tf.constant(np.asarray(values, dtype=dtype))


def log_density(z: Any, mean: Any = 0.0, log_var: Any = 0.0) -> Any:
    return stats.norm.logpdf(z, mean, np.exp(0.5 * np.asarray(log_var)))


def exact_kl(z_mean: Any, z_log_var: Any) -> Any:
    """E_q(log q - log p) by Gauss-Hermite quadrature, exact because the log-ratio is quadratic in z."""
    points, weights = np.polynomial.hermite_e.hermegauss(3)
    z = z_mean + np.exp(0.5 * z_log_var) * points.reshape(-1, *np.ones(np.ndim(z_mean), dtype=int))
    return np.tensordot(weights / weights.sum(), log_density(z, z_mean, z_log_var) - log_density(z), 1)


# -- the posterior -------------------------------------------------------------------------------------
def test_kl_is_the_exact_integral_of_the_log_ratio() -> None:
    kl = kl_divergence(tensor(Z_MEANS), tensor(Z_LOG_VARS)).numpy()
    np.testing.assert_allclose(kl, exact_kl(Z_MEANS, Z_LOG_VARS), rtol=1e-13, atol=1e-14)


def test_kl_is_the_monte_carlo_mean_of_the_log_ratio() -> None:
    noise = np.random.RandomState(0).standard_normal((50_000, 1))
    z = Z_MEANS + np.exp(0.5 * Z_LOG_VARS) * noise
    log_ratio = log_density(z, Z_MEANS, Z_LOG_VARS) - log_density(z)
    kl = kl_divergence(tensor(Z_MEANS), tensor(Z_LOG_VARS)).numpy()
    standard_error = log_ratio.std(axis=0) / math.sqrt(len(noise))
    assert (np.abs(log_ratio.mean(axis=0) - kl) <= 4 * standard_error).all()


def test_kl_is_zero_at_the_prior_and_nowhere_else() -> None:
    kl = kl_divergence(tensor(Z_MEANS), tensor(Z_LOG_VARS)).numpy()
    prior = (Z_MEANS == 0) & (Z_LOG_VARS == 0)
    assert (kl[prior] == 0).all()
    assert (kl[~prior] > 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_kl_is_not_negative(dtype: Any) -> None:
    """Up to a rounding of 1, the size of the terms that cancel around the prior."""
    sizes = np.concatenate([[0.0], np.logspace(-12, 1, 131)])
    z_mean, z_log_var = np.meshgrid(sizes, np.concatenate([-sizes, sizes]))
    kl = kl_divergence(tensor(z_mean, dtype), tensor(z_log_var, dtype)).numpy()
    assert kl.min() >= -np.finfo(dtype).eps


@pytest.mark.parametrize(("z_mean", "z_log_var"), [(-2.0, -4.0), (0.0, 0.0), (5.0, 2.0)])
def test_reparameterized_noise_has_the_posteriors_mean_and_variance(z_mean: float, z_log_var: float) -> None:
    noise = np.random.RandomState(0).standard_normal(20_000)
    z = reparameterize(tensor(z_mean), tensor(z_log_var), tensor(noise)).numpy()
    assert stats.kstest(z, stats.norm(z_mean, math.exp(z_log_var / 2)).cdf).pvalue > 1e-3
    # The sample has its own mean and variance, and reparameterization carries them over exactly.
    assert z.mean() == pytest.approx(z_mean + math.exp(z_log_var / 2) * noise.mean(), rel=1e-12)
    assert z.var() == pytest.approx(math.exp(z_log_var) * noise.var(), rel=1e-12)


def test_reparameterize_without_noise_is_the_mean() -> None:
    z = reparameterize(tensor(Z_MEANS), tensor(Z_LOG_VARS), tensor(np.zeros_like(Z_MEANS)))
    np.testing.assert_array_equal(z.numpy(), Z_MEANS)


def test_reparameterize_is_differentiable_in_mean_and_log_variance() -> None:
    noise = np.linspace(-3, 3, len(Z_MEANS))
    z_mean, z_log_var = tensor(Z_MEANS), tensor(Z_LOG_VARS)
    with tf.GradientTape() as tape:
        tape.watch([z_mean, z_log_var])
        z = reparameterize(z_mean, z_log_var, tensor(noise))
    by_mean, by_log_var = tape.gradient(z, [z_mean, z_log_var])
    np.testing.assert_array_equal(by_mean.numpy(), 1.0)
    np.testing.assert_allclose(by_log_var.numpy(), 0.5 * np.exp(0.5 * Z_LOG_VARS) * noise, rtol=1e-14)


# -- draws ---------------------------------------------------------------------------------------------
class Draws:
    """Four draws from arbitrary posteriors of three rows with two latents, and an arbitrary log p(x|z)."""

    def __init__(self, n_draws: int = 4) -> None:
        rng = np.random.RandomState(0)
        self.z_mean, self.z_log_var = rng.normal(0, 2, (3, 2)), rng.uniform(-6, 2, (3, 2))
        self.noise = rng.standard_normal((4, 3, 2))[:n_draws]
        self.log_prob = rng.normal(-5, 3, (4, 3))[:n_draws]
        self.z = self.z_mean + np.exp(0.5 * self.z_log_var) * self.noise

    @property
    def kl(self) -> Any:
        return exact_kl(self.z_mean, self.z_log_var).sum(axis=-1)

    @property
    def reconstruction(self) -> Any:
        return -self.log_prob.mean(axis=0)

    def log_ratio(self) -> Any:
        """The explicit log p(z) - log q(z|x)."""
        return (log_density(self.z) - log_density(self.z, self.z_mean, self.z_log_var)).sum(axis=-1)

    def loss_terms(self, objective: str = "elbo", **options: Any) -> LossTerms:
        kl = kl_divergence(tensor(self.z_mean), tensor(self.z_log_var))
        chosen = objectives.resolve(objective)
        terms = loss_terms(tensor(self.log_prob), tensor(self.log_ratio()), kl, objective=chosen, **options)
        return LossTerms(*(term.numpy() for term in terms))


def log_ratio_of(z_mean: Any, z_log_var: Any, noise: Any) -> tuple[Any, Any]:
    """z and log p(z) - log q(z|x), by the package's own parts."""
    z, log_q = GaussianPosterior().sample((z_mean, z_log_var), noise, {})
    return z, GaussianPosterior().standard_log_prob(z) - log_q


def test_the_log_ratio_of_a_draw_is_that_of_the_explicit_densities() -> None:
    draws = Draws()
    z, log_ratio = log_ratio_of(tensor(draws.z_mean), tensor(draws.z_log_var), tensor(draws.noise))
    np.testing.assert_allclose(z.numpy(), draws.z, rtol=1e-15)
    np.testing.assert_allclose(log_ratio.numpy(), draws.log_ratio(), rtol=1e-12)


def test_the_density_of_a_draw_is_that_of_the_point() -> None:
    draws = Draws()
    context = (tensor(draws.z_mean), tensor(draws.z_log_var))
    z, log_q = GaussianPosterior().sample(context, tensor(draws.noise), {})
    np.testing.assert_allclose(GaussianPosterior().log_prob(z, context, {}), log_q, rtol=1e-12)


def test_importance_weighted_bound_is_the_log_of_the_mean_weight() -> None:
    log_weights = np.random.RandomState(0).normal(-20, 5, (7, 100))
    bound = importance_weighted_bound(tensor(log_weights)).numpy()
    np.testing.assert_allclose(bound, np.log(np.exp(log_weights).mean(axis=0)), rtol=1e-13)


@pytest.mark.parametrize("size", [-1e5, 1e5])
def test_importance_weighted_bound_neither_over_nor_underflows(size: float) -> None:
    bound = importance_weighted_bound(tensor([[size], [size], [size - 1e4]], np.float32)).numpy()
    np.testing.assert_allclose(bound, size + math.log(2 / 3), rtol=2 * np.finfo(np.float32).eps)


def test_importance_weighted_bound_of_equal_weights_is_that_weight() -> None:
    np.testing.assert_allclose(importance_weighted_bound(tensor(np.full((5, 2), -3.25))).numpy(), -3.25)


# -- the loss ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_reconstruction_is_averaged_over_draws_and_kl_is_unweighted(objective: str) -> None:
    draws = Draws()
    terms = draws.loss_terms(objective=objective, beta=7.0)
    np.testing.assert_allclose(terms.reconstruction, draws.reconstruction, rtol=1e-13)
    np.testing.assert_allclose(terms.kl, draws.kl, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0, 4.0])
def test_elbo_loss_is_reconstruction_plus_beta_kl_of_each_row(beta: float) -> None:
    draws = Draws()
    loss = draws.loss_terms(beta=beta).loss
    assert loss.shape == (3,)
    np.testing.assert_allclose(loss, draws.reconstruction + beta * draws.kl, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0, 4.0])
def test_iwae_loss_is_the_negative_bound_of_each_row(beta: float) -> None:
    draws = Draws()
    loss = draws.loss_terms(objective="iwae", beta=beta).loss
    expected = special.logsumexp(draws.log_prob + beta * draws.log_ratio(), axis=0) - math.log(4)
    assert loss.shape == (3,)
    np.testing.assert_allclose(-loss, expected, rtol=1e-12)


def test_iwae_with_one_draw_is_the_single_sample_estimate_of_the_elbo() -> None:
    draws = Draws(n_draws=1)
    loss = draws.loss_terms(objective="iwae").loss
    np.testing.assert_allclose(-loss, draws.log_prob[0] + draws.log_ratio()[0], rtol=1e-12)


def test_a_loss_has_a_beta_of_1_and_no_free_bits_by_default() -> None:
    draws = Draws()
    np.testing.assert_array_equal(draws.loss_terms().loss, draws.loss_terms(beta=1.0, free_bits=0.0).loss)


def mean_kl_per_latent(draws: Draws) -> Any:
    return exact_kl(draws.z_mean, draws.z_log_var).mean(axis=0)


def free_bits_cases() -> dict[str, float]:
    """An allowance that no latent, one of the two, and both of them stay below."""
    low, high = sorted(mean_kl_per_latent(Draws()))
    return {"none below": 0.5 * low, "one below": 0.5 * (low + high), "both below": 2 * high}


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("free_bits", free_bits_cases().values(), ids=free_bits_cases())
def test_mean_loss_charges_each_latent_its_allowance_or_its_mean_kl(free_bits: float, beta: float) -> None:
    draws = Draws()
    loss = draws.loss_terms(free_bits=free_bits, beta=beta).loss
    penalty = np.maximum(free_bits, mean_kl_per_latent(draws)).sum()
    assert loss.shape == (3,)
    assert loss.mean() == pytest.approx(draws.reconstruction.mean() + beta * penalty, rel=1e-12)


@pytest.mark.parametrize("free_bits", free_bits_cases().values(), ids=free_bits_cases())
def test_free_bits_stop_the_gradient_below_the_allowance_and_leave_it_above(free_bits: float) -> None:
    draws = Draws()
    below = mean_kl_per_latent(draws) < free_bits

    def gradients(free_bits: float) -> list[Any]:
        z_mean, z_log_var = tensor(draws.z_mean), tensor(draws.z_log_var)
        with tf.GradientTape() as tape:
            tape.watch([z_mean, z_log_var])
            terms = loss_terms(
                tensor(draws.log_prob),
                tensor(draws.log_ratio()),
                kl_divergence(z_mean, z_log_var),
                objective=objectives.resolve("elbo"),
                free_bits=free_bits,
            )
            loss = tf.reduce_mean(terms.loss)
        return [gradient.numpy() for gradient in tape.gradient(loss, [z_mean, z_log_var])]

    for limited, unlimited in zip(gradients(free_bits), gradients(0.0), strict=True):
        assert (unlimited != 0).all()
        np.testing.assert_array_equal(limited, np.where(below, 0.0, unlimited))


def test_free_bits_do_not_change_the_reported_kl() -> None:
    draws = Draws()
    np.testing.assert_allclose(draws.loss_terms(free_bits=100.0).kl, draws.kl, rtol=1e-12)


# -- a model with a known evidence ---------------------------------------------------------------------
class LinearGaussian:
    """x = W z + b + s e with orthogonal columns of W: posterior and evidence are known, and diagonal."""

    def __init__(self) -> None:
        self.loadings = np.array([[1.0, 0.5], [2.0, -0.5], [-1.0, -0.5]])
        self.offset, self.scale = np.array([0.3, -1.0, 2.0]), 0.7
        assert self.loadings[:, 0] @ self.loadings[:, 1] == 0
        self.x = np.array([[1.0, 0.0, 0.0], [-2.0, 1.0, 5.0], [0.3, -1.0, 2.0]])
        covariance = self.loadings @ self.loadings.T + self.scale**2 * np.eye(3)
        self.log_evidence = stats.multivariate_normal(self.offset, covariance).logpdf(self.x)
        variance = 1 / (1 + (self.loadings**2).sum(axis=0) / self.scale**2)
        self.z_mean = variance * ((self.x - self.offset) @ self.loadings) / self.scale**2
        self.z_log_var = np.broadcast_to(np.log(variance), self.z_mean.shape)

    def log_weights(self, z_mean: Any, z_log_var: Any, n_draws: int, seed: int = 0) -> Any:
        """By the package's own parts, from the noise to the weight."""
        noise = tensor(np.random.RandomState(seed).standard_normal((n_draws, *z_mean.shape)))
        z, log_ratio = log_ratio_of(tensor(z_mean), tensor(z_log_var), noise)
        location = z @ self.loadings.T + self.offset
        likelihood = Gaussian(scale="per_feature", minimum_scale=self.scale / 2)
        raw_scale = tensor(np.full(3, math.log(self.scale / 2)))
        log_prob = tf.reduce_sum(likelihood.log_prob(tensor(self.x), (location, raw_scale)), axis=-1)
        return (log_prob + log_ratio).numpy()

    def elbo(self, z_mean: Any, z_log_var: Any) -> Any:
        """The exact E_q log p(x|z) - KL."""
        residual = self.x - self.offset - z_mean @ self.loadings.T
        spread = np.exp(z_log_var) @ (self.loadings**2).sum(axis=0)
        fit = stats.norm.logpdf(residual, scale=self.scale).sum(axis=-1) - spread / (2 * self.scale**2)
        return fit - exact_kl(z_mean, z_log_var).sum(axis=-1)


LINEAR_GAUSSIAN = LinearGaussian()

# Posteriors q(z|x) that are wrong, but wide enough for the weights to have a variance.
WRONG_POSTERIORS = {
    "shifted": (LINEAR_GAUSSIAN.z_mean + 0.3, LINEAR_GAUSSIAN.z_log_var),
    "too wide": (LINEAR_GAUSSIAN.z_mean, LINEAR_GAUSSIAN.z_log_var + 1.0),
    "shifted and wide": (LINEAR_GAUSSIAN.z_mean - 0.3, LINEAR_GAUSSIAN.z_log_var + 0.5),
    "too narrow": (LINEAR_GAUSSIAN.z_mean, LINEAR_GAUSSIAN.z_log_var - 0.5),
}
wrong_posteriors = pytest.mark.parametrize(
    ("z_mean", "z_log_var"), WRONG_POSTERIORS.values(), ids=WRONG_POSTERIORS
)


def test_at_the_exact_posterior_every_weight_is_the_evidence() -> None:
    log_weights = LINEAR_GAUSSIAN.log_weights(LINEAR_GAUSSIAN.z_mean, LINEAR_GAUSSIAN.z_log_var, 1000)
    expected = np.broadcast_to(LINEAR_GAUSSIAN.log_evidence, log_weights.shape)
    np.testing.assert_allclose(log_weights, expected, rtol=1e-12)


def test_at_the_exact_posterior_the_elbo_is_the_evidence() -> None:
    elbo = LINEAR_GAUSSIAN.elbo(LINEAR_GAUSSIAN.z_mean, LINEAR_GAUSSIAN.z_log_var)
    np.testing.assert_allclose(elbo, LINEAR_GAUSSIAN.log_evidence, rtol=1e-12)


@wrong_posteriors
def test_weights_average_to_the_evidence(z_mean: Any, z_log_var: Any) -> None:
    weights = np.exp(LINEAR_GAUSSIAN.log_weights(z_mean, z_log_var, 50_000) - LINEAR_GAUSSIAN.log_evidence)
    standard_error = weights.std(axis=0) / math.sqrt(len(weights))
    assert (np.abs(weights.mean(axis=0) - 1) < 4 * standard_error).all()


@wrong_posteriors
def test_log_weights_average_to_the_elbo(z_mean: Any, z_log_var: Any) -> None:
    log_weights = LINEAR_GAUSSIAN.log_weights(z_mean, z_log_var, 50_000)
    standard_error = log_weights.std(axis=0) / math.sqrt(len(log_weights))
    difference = log_weights.mean(axis=0) - LINEAR_GAUSSIAN.elbo(z_mean, z_log_var)
    assert (np.abs(difference) < 4 * standard_error).all()


def bounds_of_groups(log_weights: Any, n_draws: int) -> Any:
    """The importance-weighted bound of each disjoint group of draws: (n_groups, n_rows)."""
    groups = log_weights.reshape(-1, n_draws, log_weights.shape[-1]).swapaxes(0, 1)
    bounds = importance_weighted_bound(tensor(groups.reshape(n_draws, -1))).numpy()
    return bounds.reshape(groups.shape[1:])


@wrong_posteriors
def test_elbo_is_below_iwae_which_rises_with_its_draws_below_the_evidence(
    z_mean: Any, z_log_var: Any
) -> None:
    """Each step is larger than four standard errors of the averages that it stands between."""
    log_weights = LINEAR_GAUSSIAN.log_weights(z_mean, z_log_var, 2**17)
    averages, standard_errors = [LINEAR_GAUSSIAN.elbo(z_mean, z_log_var)], [np.zeros(3)]
    for n_draws in (4, 16):
        bounds = bounds_of_groups(log_weights, n_draws)
        averages.append(bounds.mean(axis=0))
        standard_errors.append(bounds.std(axis=0) / math.sqrt(len(bounds)))
    averages.append(LINEAR_GAUSSIAN.log_evidence)
    standard_errors.append(np.zeros(3))
    assert (np.diff(averages, axis=0) > 4 * np.hypot(standard_errors[:-1], standard_errors[1:])).all()


@wrong_posteriors
def test_more_draws_never_loosen_the_bound_of_the_same_weights(z_mean: Any, z_log_var: Any) -> None:
    """By Jensen's inequality, the mean over halves cannot exceed the whole: without any tolerance."""
    log_weights = LINEAR_GAUSSIAN.log_weights(z_mean, z_log_var, 256)
    averages = [bounds_of_groups(log_weights, 2**power).mean(axis=0) for power in range(9)]
    np.testing.assert_allclose(averages[0], log_weights.mean(axis=0), rtol=1e-12)
    assert (np.diff(averages, axis=0) > 0).all()
