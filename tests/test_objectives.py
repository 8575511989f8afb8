"""Objectives against a model whose evidence is known: Rényi's family, from below log p(x) to above it."""

import numpy as np
import pytest
from conftest import wide
from test_objective import LINEAR_GAUSSIAN, WRONG_POSTERIORS, tensor

from vae_anomaly import DenseNetwork, VAEDetector, objectives, scoring
from vae_anomaly.core.backend import tf
from vae_anomaly.objectives import OBJECTIVES, Chi, Objective, Renyi
from vae_anomaly.objectives.renyi import importance_weighted_bound
from vae_anomaly.scoring import SCORES
from vae_anomaly.scoring.passes import score_rows

# Each class by its name, with settings that are tried: a completeness test walks the registry.
TABLE = {"renyi": Renyi(0.5), "chi": Chi(2)}
ALPHAS = [-2.0, -1.0, 0.0, 0.3, 0.5, 0.999, 1.0, 1.001, 2.0]
EVIDENCE = LINEAR_GAUSSIAN.log_evidence
SHIFTED = WRONG_POSTERIORS["shifted and wide"]


def bound_by(objective, log_weights):
    return np.asarray(objective.bound(tensor(log_weights)))


def exact_bound(alpha, z_mean, z_log_var):
    """log p(x) - D_alpha(q || p(z|x)) of Gaussians in closed form (Gil, Alajaji & Linder 2013), or NaN."""
    variance, true_variance = np.exp(z_log_var), np.exp(LINEAR_GAUSSIAN.z_log_var)
    mixed = alpha * true_variance + (1 - alpha) * variance
    if (mixed <= 0).any():
        return np.full(len(z_mean), np.nan)
    distance = 0.5 * alpha * (z_mean - LINEAR_GAUSSIAN.z_mean) ** 2 / mixed
    volume = (1 - alpha) * z_log_var + alpha * LINEAR_GAUSSIAN.z_log_var
    return EVIDENCE - (distance - 0.5 / (alpha - 1) * (np.log(mixed) - volume)).sum(axis=-1)


def test_the_table_has_every_objective():
    assert {name: type(objective) for name, objective in TABLE.items()} == OBJECTIVES


@pytest.mark.parametrize("alpha", ALPHAS)
def test_at_the_exact_posterior_every_bound_is_the_evidence(alpha):
    log_weights = LINEAR_GAUSSIAN.log_weights(LINEAR_GAUSSIAN.z_mean, LINEAR_GAUSSIAN.z_log_var, 20)
    np.testing.assert_allclose(bound_by(Renyi(alpha), log_weights), EVIDENCE, rtol=1e-9)
    np.testing.assert_allclose(bound_by(Chi(1 + abs(alpha)), log_weights), EVIDENCE, rtol=1e-9)


@pytest.mark.parametrize("alpha", [-0.5, 0.3, 0.5, 0.8, wide(0.99), wide(1.5), wide(-0.2)])
@pytest.mark.parametrize("name", WRONG_POSTERIORS)
def test_the_bound_is_the_evidence_less_the_divergence(alpha, name):
    """The mean power of weights against its closed form, where powers have a variance too."""
    z_mean, z_log_var = WRONG_POSTERIORS[name]
    expected = exact_bound(alpha, z_mean, z_log_var)
    if np.isnan(expected + exact_bound(2 * alpha - 1, z_mean, z_log_var)).any():
        pytest.skip("the bound, or the variance of its estimate, does not exist")
    log_weights = LINEAR_GAUSSIAN.log_weights(z_mean, z_log_var, 50_000)
    powers = np.exp((1 - alpha) * (log_weights - expected))
    error = powers.std(axis=0) / np.sqrt(len(powers))
    assert (np.abs(powers.mean(axis=0) - 1) < 4 * error).all()
    estimate = bound_by(Renyi(alpha), log_weights)
    np.testing.assert_allclose(
        estimate, expected + np.log(powers.mean(axis=0)) / (1 - alpha), rtol=1e-9, atol=1e-9
    )


def test_the_bound_falls_with_alpha_through_the_elbo_and_the_evidence():
    exact = np.array([exact_bound(alpha, *SHIFTED) for alpha in (-0.2, 1e-9, 0.3, 0.6, 1 - 1e-9)])
    assert (np.diff(exact, axis=0) < 0).all()
    np.testing.assert_allclose(exact[1], EVIDENCE, atol=1e-6)
    np.testing.assert_allclose(exact[-1], LINEAR_GAUSSIAN.elbo(*SHIFTED), atol=1e-5)
    log_weights = LINEAR_GAUSSIAN.log_weights(*SHIFTED, 50)
    estimates = np.array([bound_by(Renyi(alpha), log_weights) for alpha in ALPHAS])
    assert (np.diff(estimates, axis=0) < 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_at_one_the_bound_is_continuous(dtype):
    log_weights = tf.cast(LINEAR_GAUSSIAN.log_weights(*SHIFTED, 50) - 1e3, dtype)
    mean = Renyi(1.0).bound(log_weights)
    for step in (1e-3, 1e-5, 1e-8):
        for alpha in (1 - step, 1 + step):
            np.testing.assert_allclose(Renyi(alpha).bound(log_weights), mean, atol=10 * step + 2e-4)


def test_near_one_the_two_ways_to_compute_the_bound_agree():
    log_weights = tensor(LINEAR_GAUSSIAN.log_weights(*SHIFTED, 50))
    near, far = (np.asarray(Renyi(1 - step).bound(log_weights)) for step in (0.00999999, 0.01000001))
    np.testing.assert_allclose(near, far, rtol=1e-7)
    far_apart = tensor([[0.0], [1e6], [-1e6]])
    np.testing.assert_allclose(Renyi(0.995).bound(far_apart), 1e6 - np.log(3) / 0.005, rtol=1e-9)


def test_the_bound_of_order_zero_is_the_importance_weighted_one_to_the_last_bit():
    log_weights = tf.constant(np.random.RandomState(0).normal(-20, 5, (7, 100)), "float32")
    weighted = importance_weighted_bound(log_weights)
    np.testing.assert_array_equal(Renyi(0.0).bound(log_weights), weighted)
    np.testing.assert_array_equal(objectives.resolve("iwae").bound(log_weights), weighted)


@pytest.mark.parametrize("n", [1, 1.5, 2, 4])
def test_the_chi_bound_is_renyis_of_order_one_minus_n(n):
    log_weights = np.random.RandomState(0).normal(-20, 5, (7, 100))
    expected = np.log(np.exp(n * log_weights).mean(axis=0)) / n
    np.testing.assert_allclose(bound_by(Chi(n), log_weights), expected, rtol=1e-10)
    np.testing.assert_array_equal(bound_by(Chi(n), log_weights), bound_by(Renyi(1 - n), log_weights))


def test_more_draws_raise_the_mean_estimate_up_to_the_bound_on_either_side_of_the_evidence():
    log_weights = LINEAR_GAUSSIAN.log_weights(*SHIFTED, 2**16)
    for objective, limit in ((Renyi(0.0), EVIDENCE), (Renyi(-0.2), exact_bound(-0.2, *SHIFTED))):
        means = [
            bound_by(objective, log_weights.reshape(n_draws, -1)).reshape(-1, 3).mean(axis=0)
            for n_draws in (1, 4, 16)
        ]
        assert (np.diff([*means, limit], axis=0) > 0).all()
    assert (limit > EVIDENCE).all()


def test_one_draw_has_the_same_bound_and_gradient_for_every_order():
    log_weights = tensor([[-3.0, 10.0, -400.0]])
    for objective in [*map(Renyi, ALPHAS), Chi(3)]:
        with tf.GradientTape() as tape:
            tape.watch(log_weights)
            bound = objective.bound(log_weights)
        np.testing.assert_allclose(bound, log_weights[0], rtol=1e-9)
        np.testing.assert_allclose(tape.gradient(bound, log_weights), np.ones((1, 3)), rtol=1e-9)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_gradient_weighs_draws_by_their_powers(alpha):
    """Equal to stop-gradient weights: softmax of (1 - alpha) log w."""
    log_weights = tensor(np.random.RandomState(0).normal(0, 2, (5, 8)))
    with tf.GradientTape() as tape:
        tape.watch(log_weights)
        bound = Renyi(alpha).bound(log_weights)
    expected = tf.nn.softmax((1 - alpha) * log_weights, axis=0)
    np.testing.assert_allclose(tape.gradient(bound, log_weights), expected, rtol=1e-5)


@pytest.mark.parametrize("alpha", [*ALPHAS, 0.9999])
def test_weights_that_lie_far_apart_leave_bound_and_gradient_finite(alpha):
    log_weights = tf.constant([[0.0, 1e5], [-1e5, 1e5], [3.0, -1e5]], "float32")
    with tf.GradientTape() as tape:
        tape.watch(log_weights)
        bound = Renyi(alpha).bound(log_weights)
    assert np.isfinite(bound).all()
    assert np.isfinite(tape.gradient(bound, log_weights)).all()


@pytest.mark.parametrize(
    ("objective", "side"),
    [
        (Renyi(0.5), "lower"),
        (Renyi(0.0), "lower"),
        (Renyi(2.0), "lower"),
        (Renyi(-1), "upper"),
        (Chi(), "upper"),
    ],
)
def test_an_objective_says_on_which_side_of_the_evidence_it_lies(objective, side):
    assert objective.side == side


@pytest.mark.parametrize("objective", [Renyi(float("nan")), Renyi(float("inf")), Chi(0.5)])
def test_orders_that_are_none_are_refused(objective):
    with pytest.raises(ValueError, match="must be a float in the range"):
        VAEDetector(objective=objective).fit(np.eye(4))


# -- in the detector ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def rows():
    return np.random.RandomState(0).normal(size=(60, 3))


def fitted(rows, **options):
    detector = VAEDetector(
        DenseNetwork((4,)), latent_dim=2, epochs=2, batch_size=32, random_state=0, **options
    )
    return detector.fit(rows)


@pytest.mark.parametrize(
    ("name", "objective"),
    [("iwae", Renyi(0)), wide("elbo", Renyi(1)), wide(Renyi(-1.0), Chi(2), name="chi")],
)
def test_names_are_members_of_the_family_bit_for_bit(rows, name, objective):
    one, other = (fitted(rows, objective=each, n_training_draws=3) for each in (name, objective))
    np.testing.assert_array_equal(one.score_samples(rows), other.score_samples(rows))
    assert one.history_ == other.history_


def test_a_fit_keeps_the_objective_that_it_had_and_validates_by_the_elbo(rows):
    detector = fitted(rows, objective=Chi(2), n_training_draws=4, validation_fraction=0.5)
    assert detector.objective_ == Chi(2)
    assert detector.set_params(objective="elbo").objective_ == Chi(2)
    assert detector.model_card()["training"]["objective"] == "Chi(), an upper bound"
    last = {name: values[-1] for name, values in detector.history_.items()}
    assert last["val_loss"] == pytest.approx(last["val_reconstruction"] + last["val_kl"])


def test_a_score_can_be_any_objectives_bound(rows):
    detector = fitted(rows, score=scoring.bound(Renyi(0.5)))
    draws, members = detector.draws_, detector.members_
    scaled = detector.scaler_.transform(rows).astype("f4")
    found = {
        alpha: score_rows(members, scaled, draws, scoring.bound(Renyi(alpha)), None)[0]
        for alpha in (0.0, 0.5, 1.0)
    }
    np.testing.assert_array_equal(-detector.score_samples(rows), found[0.5])
    np.testing.assert_array_equal(score_rows(members, scaled, draws, SCORES["iwae"], None)[0], found[0.0])
    assert (found[0.0] < found[0.5]).all()
    assert (found[0.5] < found[1.0]).all()
    assert scoring.bound(Renyi(0.5)) is scoring.bound(Renyi(0.5))


@pytest.mark.wide
def test_an_objective_of_ones_own_trains(rows):
    class Worst(Objective):
        """The smallest weight: a bound below all others."""

        def bound(self, log_weights):
            return tf.reduce_min(log_weights, axis=0)

    worst, usual = (fitted(rows, objective=each, n_training_draws=4) for each in (Worst(), "iwae"))
    assert worst.history_["loss"][0] > usual.history_["loss"][0]
