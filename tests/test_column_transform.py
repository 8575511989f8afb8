"""Columns transformed inside a model: exact powers, the way back, densities of x, what members make of it."""

import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import wide
from scipy import integrate, optimize, sparse, stats
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import PowerTransformer

from vae_anomaly import DenseNetwork, Member, VAEDetector
from vae_anomaly.core.backend import tf
from vae_anomaly.engine import programs
from vae_anomaly.ensemble.recipe import DEFAULT_MEMBERS
from vae_anomaly.likelihoods import Categorical, Gaussian, Mixed, StudentT
from vae_anomaly.model import VAE
from vae_anomaly.model.column_transform import (
    fit_column_transform,
    inverse_transform,
    log_derivative,
    no_transform,
    transform,
)
from vae_anomaly.model.states import Specification
from vae_anomaly.scoring import SCORES, passes

RNG = np.random.default_rng(0)
TRANSFORMED = Member(column_transform="yeo-johnson")
SMALL = {"network": DenseNetwork((16,)), "latent_dim": 2, "epochs": 20, "random_state": 0}


def numbers_of(power, a=0.0, b=1.0, c=0.0, s=1.0):
    return np.array([[1.0], [power], [a], [b], [c], [s]], dtype=np.float32)


def amounts(n_rows, seed=0):
    """Two columns that are skewed, one that is not."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(n_rows, 3))
    return np.column_stack([np.exp(3 + normal[:, 0]), np.exp(2 * normal[:, 1]), normal[:, 2]])


# -- the transform ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("power", [-1.0, -0.3, 0.0, 0.5, 1.0, 1.7, 2.0, 3.0])
def test_powers_are_those_of_scikit_learn(power):
    x = np.r_[-np.geomspace(1e-3, 20, 40), 0.0, np.geomspace(1e-3, 50, 40)][:, None]
    reference = PowerTransformer(standardize=False).fit(x)
    reference.lambdas_ = np.array([power])
    expected = reference.transform(x)
    np.testing.assert_allclose(transform(x.astype("f4"), numbers_of(power)), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("power", [wide(-1.0), 0.0, 0.5, wide(1.0), 2.0, wide(3.0)])
def test_the_way_back_ends_where_it_began(power):
    numbers = numbers_of(power, a=-0.5, b=0.3, c=2.0, s=1.5)
    x = np.linspace(-3, 3, 61, dtype="f4")[:, None]
    np.testing.assert_allclose(inverse_transform(transform(x, numbers), numbers), x, atol=2e-3)


@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0, 2.0, 3.0])
def test_the_log_derivative_is_that_of_the_transform(power):
    numbers = numbers_of(power, a=0.2, b=0.7, c=1.0, s=0.4)
    x = tf.constant(np.linspace(-4, 4, 41, dtype="f4")[:, None])
    with tf.GradientTape() as tape:
        tape.watch(x)
        seen = transform(x, numbers)
    slope = tape.gradient(seen, x)
    np.testing.assert_allclose(log_derivative(x, numbers), np.log(slope), atol=1e-4)


@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0, 3.0])
def test_the_farthest_values_stay_finite_and_in_order(power):
    far = np.r_[-np.geomspace(1e14, 1, 50), np.geomspace(1, 1e14, 50)].astype("f4")[:, None]
    numbers = numbers_of(power, b=0.01)
    seen = np.asarray(transform(far, numbers))
    assert np.isfinite(seen).all()
    assert np.isfinite(seen**2).all()
    assert (np.diff(seen[:, 0]) >= -1e-6).all()
    back = np.asarray(inverse_transform(np.array([[-1e15], [1e15]], dtype="f4"), numbers))
    assert np.isfinite(back).all()


def test_a_missing_value_stays_one():
    x = np.array([[np.nan], [1.0]], dtype="f4")
    assert np.isnan(transform(x, numbers_of(0.5))).tolist() == [[True], [False]]


def test_columns_that_are_not_transformed_keep_their_bits():
    x = RNG.normal(size=(100, 3)).astype("f4") * 1e3
    for function in (transform, inverse_transform):
        np.testing.assert_array_equal(function(x, no_transform(3)), x)
    np.testing.assert_array_equal(log_derivative(x, no_transform(3)), 0)


# -- how it is found --------------------------------------------------------------------------------------
def test_skewed_columns_become_normal():
    x = amounts(5000).astype("f4")
    seen = np.asarray(transform(x, fit_column_transform(x, range(3), np.zeros(3))))
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(seen.std(axis=0), 1, atol=0.1)
    assert (np.abs(stats.skew(seen)) < 0.3).all()
    assert stats.skew(x[:, 1]) > 10


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_unit_of_a_column_does_not_matter(unit):
    x = amounts(1000)[:, :2]
    seen = [
        np.asarray(transform(rows, fit_column_transform(rows, range(2), np.zeros(2))))
        for rows in (x.astype("f4"), (unit * x).astype("f4"))
    ]
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-3)


@pytest.mark.parametrize("draw", [RNG.exponential, RNG.lognormal, RNG.pareto])
def test_no_power_is_more_likely_than_the_one_that_is_found(draw):
    """Powers are judged by scipy's log-likelihood."""
    column = draw(2.0, size=1_000)
    _, power, a, b, c, s = fit_column_transform(column.astype("f4")[:, None], [0], np.zeros(1))[:, 0]
    assert a == 0
    units = column / b
    best = optimize.minimize_scalar(
        lambda power: -stats.yeojohnson_llf(power, units), bounds=(0, 2), method="bounded"
    )
    assert power == pytest.approx(best.x, abs=0.02)
    transformed = stats.yeojohnson(units, float(power))
    np.testing.assert_allclose([c, s], [transformed.mean(), transformed.std()], rtol=1e-5)


def test_amounts_are_measured_from_zero_and_other_columns_from_their_least_value():
    x = amounts(1000).astype("f4")
    x[:, 0] += 1.0
    x[:, 2] = np.exp(x[:, 2]) - 5
    a = fit_column_transform(x, range(3), np.zeros(3))[2]
    np.testing.assert_allclose(a, [0, 0, x[:, 2].min()])
    unknown = fit_column_transform(x, range(3), np.full(3, np.nan))[2]
    np.testing.assert_allclose(unknown, x.min(axis=0))


@pytest.mark.parametrize(
    "draw",
    [RNG.standard_normal, partial(RNG.standard_t, 4), RNG.uniform, partial(RNG.binomial, 20, 0.5)],
    ids=["normal", "heavy tails", "uniform", "whole numbers"],
)
def test_columns_that_are_not_skewed_stay_as_they_are(draw):
    x = np.asarray(draw(size=(1500, 1))).astype("f4")
    np.testing.assert_array_equal(fit_column_transform(x, [0]), no_transform(1))


def test_powers_leave_what_is_far_far():
    x = np.random.default_rng(0).exponential(size=(1000, 1)).astype("f4") ** 6
    numbers = fit_column_transform(x, [0], np.zeros(1))
    assert 0 <= numbers[1, 0] <= 2
    near, far = np.asarray(transform(np.array([[1e8], [1e12]], dtype="f4"), numbers))[:, 0]
    assert far - near > 0.5


def test_columns_with_few_values_and_those_that_are_not_chosen_stay_as_they_are():
    x = np.column_stack([np.ones(100), RNG.integers(0, 2, 100), np.full(100, np.nan), amounts(100)[:, :2]])
    numbers = fit_column_transform(x.astype("f4"), [0, 1, 2, 3])
    np.testing.assert_array_equal(numbers[0], [0, 0, 0, 1, 0])
    np.testing.assert_array_equal(numbers[:, [0, 1, 2, 4]], no_transform(4))


def test_gaps_and_values_far_apart_do_not_hinder():
    x = amounts(1000).astype("f4")
    x[::3, 0] = np.nan
    x[5, 1] = 1e14
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers = fit_column_transform(x, range(3), np.zeros(3))
    assert np.isfinite(numbers).all()
    assert np.isfinite(np.asarray(transform(x, numbers))[:, 1:]).all()


# -- the model --------------------------------------------------------------------------------------------
def vae_of(likelihood, n_features, numbers):
    n_inputs, n_outputs = likelihood.n_inputs(n_features), likelihood.n_outputs(n_features)
    encoder, decoder = DenseNetwork((4,)).build_apart(n_inputs, n_outputs, 2)
    vae = VAE(encoder, decoder, likelihood, n_features, 2, transforms_columns=True)
    vae.column_transform.assign(numbers)
    return vae


@pytest.mark.parametrize("likelihood", [Gaussian(), Gaussian("per_row"), StudentT()])
@pytest.mark.parametrize("power", [0.0, wide(0.7), 2.0])
def test_the_density_of_x_integrates_to_one(likelihood, power):
    vae = vae_of(likelihood, 1, numbers_of(power, a=-1.0, b=0.5, c=0.3, s=0.8))
    parameters = vae.decode(np.zeros((1, 2), "f4"))

    x = np.r_[-np.geomspace(100, 1e-4, 20_000), 0.0, np.geomspace(1e-4, 1000, 20_000)].astype("f4")[:, None]
    density = np.exp(vae.likelihood.log_prob(x, parameters) + vae.log_derivative(x))
    total = integrate.trapezoid(np.asarray(density, dtype=float)[:, 0], x[:, 0].astype(float))
    assert total == pytest.approx(1, abs=0.02 if isinstance(likelihood, StudentT) else 2e-3)


def test_a_model_with_a_transform_is_the_model_of_what_the_columns_become():
    """Its ELBO is that of the transformed rows, with their Jacobian; its score is theirs, and so is its z."""
    rows = amounts(100).astype("f4")
    numbers = fit_column_transform(rows, range(3), np.zeros(3))
    seen = np.asarray(transform(rows, numbers))
    specification = Specification(DenseNetwork((8,)), Gaussian(), 3, 2)
    plain = programs.architecture(specification).initial_state(0, seen)
    state = programs.with_column_transform(plain, numbers)
    draws = RNG.normal(size=(5, 2)).astype("f4")
    found, expected = (passes.elbo_terms([s], x, draws, None)[0] for s, x in ((state, rows), (plain, seen)))
    slopes = np.asarray(log_derivative(rows, numbers)).sum(axis=1)
    np.testing.assert_allclose(found[:, 0], expected[:, 0] - slopes, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[:, 1], expected[:, 1], rtol=1e-4, atol=1e-5)
    score = SCORES["beta_elbo"]
    found, expected = (
        passes.score_rows([s], x, draws, score, None)[0] for s, x in ((state, rows), (plain, seen))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    again, same = programs.without_column_transform(state)
    np.testing.assert_array_equal(same, numbers)
    assert again.specification == plain.specification
    assert len(again.non_trainable) == len(plain.non_trainable)


def test_answers_are_in_the_units_of_x():
    numbers = numbers_of(0.0, a=0.0, b=1.0, c=1.0, s=2.0)
    vae = vae_of(Gaussian(1.0), 1, numbers)
    z = RNG.normal(size=(50_000, 2)).astype("f4") * 0
    parameters = vae.decode(z)
    median = np.asarray(vae.likelihood.quantile(np.array(0.5), parameters))[0, 0]
    drawn = np.asarray(vae.likelihood.sample(parameters, 0))[:, 0]
    assert np.median(drawn) == pytest.approx(median, rel=0.05)
    assert drawn.mean() > 1.5 * median  # skewed
    upper = np.asarray(vae.likelihood.quantile(np.array(0.9), parameters))[0, 0]
    assert (drawn < upper).mean() == pytest.approx(0.9, abs=0.01)
    np.testing.assert_allclose(vae.likelihood.mean(parameters)[0, 0], median, rtol=1e-5)


def test_of_a_mixed_likelihood_categories_stay_categories():
    likelihood = Mixed([(Gaussian(), [0]), (Categorical(3), [1])])
    numbers = no_transform(2)
    numbers[:, 0] = numbers_of(0.0)[:, 0]
    vae = vae_of(likelihood, 2, numbers)
    parameters = vae.decode(np.zeros((1, 2), "f4"))
    expectations = np.asarray(vae.likelihood.expectations(parameters))
    assert expectations.shape == (1, 4)
    np.testing.assert_allclose(expectations[0, 1:].sum(), 1, rtol=1e-3)
    inner = np.asarray(likelihood.expectations(parameters))
    np.testing.assert_allclose(expectations[0, 0], np.expm1(inner[0, 0]), rtol=1e-4)


def test_a_model_with_transformed_columns_has_a_configuration():
    vae = vae_of(Gaussian(), 2, no_transform(2))
    again = VAE.from_config(vae.get_config())
    assert again.transforms_columns
    assert again.column_transform.shape == (6, 2)


# -- members ------------------------------------------------------------------------------------------------
def fit(X, **settings):
    return VAEDetector(**{"members": [Member(), TRANSFORMED], **SMALL, **settings}).fit(X)


def test_half_of_the_default_members_transform_columns_each_like_one_that_does_not():
    plain, transformed = DEFAULT_MEMBERS[:4], DEFAULT_MEMBERS[4:]
    for one, other in zip(plain, transformed, strict=True):
        assert one.column_transform is None
        assert other.get_params() == {**one.get_params(), "column_transform": "yeo-johnson"}


def test_what_is_too_small_in_a_skewed_column_is_found():
    train, new = amounts(800), amounts(400, seed=1)
    small = amounts(400, seed=2)
    small[:, 0] = 0.05
    rows, labels = np.r_[new, small], np.repeat([0, 1], 400)
    with_transform = VAEDetector(random_state=0).fit(train)
    plain = VAEDetector(members=DEFAULT_MEMBERS[:4], random_state=0).fit(train)
    assert roc_auc_score(labels, -with_transform.score_samples(rows)) > 0.99
    assert roc_auc_score(labels, -plain.score_samples(rows)) < 0.9


def test_a_member_is_trained_on_the_columns_as_it_transforms_them():
    X = amounts(300)
    detector = fit(X)
    for state, transforms in zip(detector.members_, (False, True), strict=True):
        assert state.specification.transforms_columns
        (numbers,) = [array for array in state.non_trainable if array.shape == (6, 3)]
        np.testing.assert_array_equal(numbers[0], [transforms, transforms, False])
    alone = fit(X, members=[Member()])
    assert not alone.members_[0].specification.transforms_columns
    np.testing.assert_array_equal(alone.members_[0].trainable, detector.members_[0].trainable)


@pytest.mark.parametrize(
    "X",
    [
        RNG.integers(0, 2, size=(200, 4)).astype(float),
        sparse.csr_matrix(np.maximum(RNG.normal(size=(200, 5)), 0)),
    ],
)
def test_where_nothing_is_to_be_transformed_models_are_plain_ones(X):
    assert not any(state.specification.transforms_columns for state in fit(X, likelihood="gaussian").members_)


def test_only_columns_of_real_values_are_transformed():
    frame = pd.DataFrame(
        {"amount": amounts(300)[:, 0], "visits": RNG.poisson(3, 300), "kind": RNG.choice(["a", "b"], 300)}
    )
    detector = fit(frame)
    (numbers,) = [array for array in detector.members_[1].non_trainable if array.shape == (6, 3)]
    np.testing.assert_array_equal(numbers[0], [1, 0, 0])
    powers = detector.describe_columns()["power"]
    assert powers.notna().tolist() == [True, False, False]
    assert -0.5 < powers["amount"] < 0.5


def test_the_elbo_is_that_of_the_scaled_columns():
    X = amounts(300)
    per_member = [
        -VAEDetector(**SMALL, members=[member], score="elbo").fit(X).score_samples(X).mean()
        for member in (Member(), TRANSFORMED)
    ]
    # By its Jacobian, the density of the transformed columns is one of the columns: far better here.
    assert per_member[1] < per_member[0] - 0.5


def test_a_gap_in_a_transformed_column_is_filled_in_its_units():
    X = amounts(600)
    X[:, 1] = X[:, 0] * np.exp(0.1 * RNG.normal(size=600))
    detector = fit(X, epochs=200)
    rows = X[:100].copy()
    rows[:, 1] = np.nan
    filled = detector.reconstruct(rows)[:, 1]
    assert np.corrcoef(np.log(filled), np.log(X[:100, 1]))[0, 1] > 0.8
    assert np.isfinite(detector.score_samples(rows)).all()


def test_a_warm_start_keeps_the_transform():
    X = amounts(300)
    detector = fit(X, warm_start=True)
    before = [state.column_transform for state in detector.members_]
    detector.fit(X[:250] * 1.1)
    for old, new in zip(before, detector.members_, strict=True):
        assert old.shape == (6, 3)
        np.testing.assert_array_equal(new.column_transform, old)
    assert before[1][0].any()


def test_an_unknown_transform_is_refused():
    with pytest.raises(ValueError, match="'column_transform' parameter of Member"):
        fit(amounts(50), members=[Member(column_transform="log")])
