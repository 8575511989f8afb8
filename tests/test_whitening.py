"""Whitened columns: the root of a shrunken covariance, exact densities; and wide tables."""

import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import wide
from scipy import sparse, stats
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

import vae_anomaly
from vae_anomaly import DenseNetwork, Member, VAEDetector
from vae_anomaly.data.scaling import fit_scaler
from vae_anomaly.data.wide import is_wide
from vae_anomaly.engine import programs
from vae_anomaly.ensemble.recipe import DEFAULT_MEMBERS, WIDE_MEMBERS
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.model import VAE
from vae_anomaly.model.column_transform import (
    fit_whitening,
    inverse_transform,
    log_derivative,
    no_transform,
    transform,
)

WHITENED = Member(column_transform="whiten")
SMALL = {"network": DenseNetwork((8,)), "latent_dim": 2, "epochs": 5, "random_state": 0}


def factors(n_rows, n_columns, seed=0, n_factors=3):
    """Standardized rows of a few factors and some noise, always of the same kind."""
    rng, loadings = np.random.default_rng(seed), np.random.default_rng(7).normal(size=(n_factors, n_columns))
    rows = rng.normal(size=(n_rows, n_factors)) @ loadings + 0.5 * rng.normal(size=(n_rows, n_columns))
    return (rows / np.sqrt((loadings**2).sum(axis=0) + 0.25)).astype("f4")


# -- the transform ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(300, 6), (10, 30)], ids=["more rows", "more columns"])
def test_squared_lengths_are_mahalanobis_distances_by_the_covariance_of_ledoit_and_wolf(shape):
    rows, new = factors(*shape), factors(20, shape[1], seed=1)
    seen = np.asarray(transform(new, fit_whitening(rows)), dtype=float)
    distances = LedoitWolf().fit(rows)
    distances.location_ = np.zeros(shape[1])
    np.testing.assert_allclose((seen**2).sum(axis=1), distances.mahalanobis(new), rtol=1e-3)


def test_each_column_is_nearest_to_itself():
    """By the symmetric root: what a whitened column adds to a distance is that column's share."""
    rows = factors(2_000, 6)
    seen = np.asarray(transform(rows, fit_whitening(rows)))
    correlations = np.corrcoef(rows.T, seen.T)[:6, 6:]
    np.testing.assert_allclose(correlations, correlations.T, atol=0.02)
    assert (correlations.argmax(axis=1) == np.arange(6)).all()
    np.testing.assert_allclose(np.corrcoef(seen.T), np.eye(6), atol=0.05)


def test_the_way_back_ends_where_it_began():
    rows = factors(200, 40)
    numbers = fit_whitening(rows)
    np.testing.assert_allclose(inverse_transform(transform(rows, numbers), numbers), rows, atol=1e-3)


def test_a_missing_value_stays_one_and_is_a_zero_to_the_others():
    rows = factors(200, 5)
    numbers = fit_whitening(rows)
    gaps, filled = rows[:2].copy(), rows[:2].copy()
    gaps[0, 3], filled[0, 3] = np.nan, 0.0
    seen, expected = np.asarray(transform(gaps, numbers)), np.array(transform(filled, numbers))
    assert np.isnan(seen[0, 3])
    expected[0, 3] = np.nan
    np.testing.assert_array_equal(seen, expected)


def test_a_column_of_one_value_is_divided_by_the_median_deviation_of_directions():
    rows = factors(100, 5)
    rows[:, 2] = 0.0
    new = factors(10, 5, seed=1)
    numbers = fit_whitening(rows)
    seen = np.asarray(transform(new, numbers))
    variances = np.linalg.eigvalsh(LedoitWolf().fit(np.delete(rows, 2, axis=1)).covariance_)
    usual = np.median(np.sqrt(variances))
    np.testing.assert_allclose(seen[:, 2], new[:, 2] / usual, rtol=1e-5)
    log_determinant = -0.5 * np.log(variances).sum() - np.log(usual)
    np.testing.assert_allclose(numbers[6], log_determinant / 5, rtol=1e-5)
    np.testing.assert_allclose(inverse_transform(seen, numbers), new, rtol=1e-4, atol=1e-5)
    others = np.delete(new, 2, axis=1)
    expected = np.asarray(transform(others, fit_whitening(np.delete(rows, 2, axis=1))))
    np.testing.assert_allclose(np.delete(seen, 2, axis=1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [np.zeros((5, 3)), np.zeros((1, 3)), np.eye(3)[:, :1]])
def test_fewer_than_two_columns_that_vary_are_left_as_they_are(rows):
    rows = rows.astype("f4")
    numbers = fit_whitening(rows)
    np.testing.assert_array_equal(numbers, no_transform(rows.shape[1], whitens=True))
    np.testing.assert_array_equal(transform(rows, numbers), rows)


def test_columns_that_are_the_same_are_no_division_by_zero():
    rows = np.repeat(factors(100, 3), 2, axis=1)
    seen = np.asarray(transform(rows, fit_whitening(rows)))
    assert np.isfinite(seen).all()
    assert (np.abs(seen) < 10).all()


# -- the model ----------------------------------------------------------------------------------------------
def whitened_vae(rows, likelihood=None):
    n_features, likelihood = rows.shape[1], likelihood or Gaussian()
    encoder, decoder = DenseNetwork((4,)).build(n_features, 2, likelihood.n_params)
    vae = VAE(encoder, decoder, likelihood, n_features, 2, transforms_columns=True, whitens_columns=True)
    vae.column_transform.assign(fit_whitening(rows))
    return vae


def test_the_density_of_x_given_z_is_a_normal_one_with_the_covariance_back_in_its_units():
    rows = factors(300, 4)
    vae = whitened_vae(rows, Gaussian(0.7))
    parameters = vae.decode(np.zeros((1, 2), "f4"))
    new = factors(50, 4, seed=1)
    found = np.asarray(vae.likelihood.log_prob(new, parameters) + vae.log_derivative(new)).sum(axis=1)

    back = vae.column_transform.numpy()[-4:].astype(float)
    mean = np.asarray(vae.likelihood.mean(parameters), dtype=float)[0]
    expected = stats.multivariate_normal(mean, 0.49 * back @ back).logpdf(new)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("likelihood", [Gaussian(0.7), Gaussian("per_row")], ids=["fixed", "per row"])
def test_draws_have_the_mean_and_the_quantiles_that_are_told(likelihood):
    vae = whitened_vae(factors(300, 4), likelihood)
    parameters = vae.decode(np.zeros((40_000, 2), "f4"))
    drawn = np.asarray(vae.likelihood.sample(parameters, 0))
    np.testing.assert_allclose(drawn.mean(axis=0), vae.likelihood.mean(parameters)[0], atol=0.03)
    for probability in (0.05, 0.5, 0.9):
        below = drawn < np.asarray(vae.likelihood.quantile(np.array(probability), parameters))
        np.testing.assert_allclose(below.mean(axis=0), probability, atol=0.01)


def test_log_derivatives_sum_to_the_log_determinant():
    rows = factors(300, 4)
    numbers = fit_whitening(rows)
    _, expected = np.linalg.slogdet(numbers[7:11].astype(float))
    np.testing.assert_allclose(np.asarray(log_derivative(rows[:3], numbers)).sum(axis=1), expected, rtol=1e-4)


def test_a_model_of_whitened_columns_has_a_configuration():
    vae = whitened_vae(factors(50, 4))
    again = VAE.from_config(vae.get_config())
    assert again.whitens_columns
    assert again.column_transform.shape == vae.column_transform.shape


# -- members ------------------------------------------------------------------------------------------------
def fit(X, **settings):
    return VAEDetector(**{"members": [Member(), WHITENED], **SMALL, **settings}).fit(X)


def test_a_small_deviation_in_a_direction_that_hardly_varies_is_found():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 1)) @ np.ones((1, 4)) + 0.01 * rng.normal(size=(300, 4))
    new = np.r_[X[:100], X[:100] + 0.2 * np.array([1.0, -1.0, 1.0, -1.0])]
    labels = np.repeat([0, 1], 100)
    detector = fit(X, members=[WHITENED], epochs=50)
    assert roc_auc_score(labels, -detector.score_samples(new)) > 0.99


def test_a_member_whitens_by_the_rows_that_it_is_trained_on():
    """So the others are as new to it as new rows, and calibrate a threshold."""
    X = StandardScaler().fit_transform(factors(100, 5))
    detector = fit(X, members=[WHITENED] * 2, scaler=None, validation_fraction=0.2)
    one, other = (state.column_transform for state in detector.members_)
    assert not np.array_equal(one, other)
    whole = fit(X, members=[WHITENED], scaler=None, validation_fraction=0.0)
    np.testing.assert_array_equal(whole.members_[0].column_transform, fit_whitening(X.astype("f4")))


def test_members_that_do_not_whiten_are_as_without_those_that_do():
    X = factors(100, 5)
    detector, alone = fit(X), fit(X, members=[Member()])
    np.testing.assert_array_equal(detector.members_[0].trainable, alone.members_[0].trainable)
    assert [state.is_whitened for state in detector.members_] == [False, True]
    assert [state.is_whitened for state in alone.members_] == [False]


def test_powers_of_one_member_are_undone_beside_another_that_whitens():
    """Both have their numbers in one weight: the ends of intervals are in the units of x all the same."""
    X = np.exp(factors(200, 5))
    powers = Member(column_transform="yeo-johnson")
    mixed, alone = (fit(X, members=members, epochs=20) for members in ([powers, WHITENED], [powers]))
    np.testing.assert_array_equal(mixed.members_[0].trainable, alone.members_[0].trainable)
    z = np.zeros((1, 2), "f4")
    of_mixed, of_alone = (programs.model_of(detector.members_[0]) for detector in (mixed, alone))
    for probability in (0.05, 0.5, 0.99):
        found, expected = (
            vae.likelihood.quantile(np.array(probability), vae.decode(z)) for vae in (of_mixed, of_alone)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.wide
def test_what_is_expected_is_told_by_members_that_are_not_whitened():
    X = factors(200, 5)
    detector = fit(X, members=[Member(), WHITENED, WHITENED], epochs=50)
    alone = fit(X, members=[Member()], epochs=50)
    np.testing.assert_allclose(detector.reconstruct(X), alone.reconstruct(X), rtol=1e-5)
    np.testing.assert_allclose(detector.expected(X[:3]), alone.expected(X[:3]), rtol=1e-4, atol=1e-4)
    only = fit(X, members=[WHITENED])
    low, high = only.expected(X[:3], coverage=0.9)[1:]
    assert (low < high).all()


def test_shares_of_columns_sum_to_the_score():
    X = factors(100, 5)
    detector = fit(X)
    np.testing.assert_allclose(detector.explain(X).sum(axis=1), -detector.score_samples(X), rtol=1e-5)
    X[0, 2] += 8
    assert detector.explain(X[:1])[0].argmax() == 2


def test_a_detector_with_whitened_members_comes_back_from_a_file_and_goes_on(tmp_path):
    X = factors(100, 5)
    detector = fit(X, warm_start=True)
    detector.save(tmp_path / "model.vae")
    loaded = vae_anomaly.load(tmp_path / "model.vae")
    np.testing.assert_array_equal(loaded.score_samples(X), detector.score_samples(X))
    before = [state.column_transform for state in detector.members_]
    for fitted in (detector.fit(X), loaded.fit(X)):
        for state, numbers in zip(fitted.members_, before, strict=True):
            np.testing.assert_array_equal(state.column_transform, numbers)
    np.testing.assert_array_equal(loaded.score_samples(X), detector.score_samples(X))


@pytest.mark.parametrize("likelihood", ["student_t", "bernoulli", wide("laplace")])
def test_only_normal_columns_can_be_whitened(likelihood):
    X = np.random.default_rng(0).integers(0, 2, size=(50, 3)).astype(float)
    with pytest.raises(ValueError, match="column_transform='whiten'.*likelihood 'gaussian'"):
        fit(X, likelihood=likelihood)


# -- wide tables --------------------------------------------------------------------------------------------
def test_only_hundreds_of_columns_of_numbers_are_wide():
    rows = factors(60, 220)
    assert is_wide(rows)
    assert is_wide(np.round(rows * 3).astype(int))
    assert not is_wide(rows[:, :199])
    flags = (rows > 0).astype(float)
    assert is_wide(np.c_[rows[:, :100], flags])
    assert not is_wide(np.c_[rows[:, :99], flags])
    assert not is_wide(flags)
    assert not is_wide(sparse.csr_matrix(rows))
    assert not is_wide(np.ones((10, 3_000)))
    gaps = rows.copy()
    gaps[::2] = np.nan
    assert is_wide(gaps)
    assert not is_wide(np.full((10, 300), np.nan))


WIDE = {"network": DenseNetwork((4,)), "latent_dim": 2, "random_state": 0, "n_draws": 2}


@pytest.fixture(scope="module")
def wide_detector():
    return VAEDetector(**WIDE).fit(factors(150, 220, n_factors=5))


def mostly_zero(n_rows, n_columns, fractions, seed=0):
    """Columns that are zero but in these fractions of the rows."""
    rng = np.random.default_rng(seed)
    return rng.exponential(size=(n_rows, n_columns)) * (rng.uniform(size=(n_rows, n_columns)) < fractions)


def test_columns_of_a_wide_table_that_seldom_vary_count_less():
    """By the square of the fraction of rows without the most common value, a hundredth at least."""
    fractions = np.repeat([1.0, 0.5, 0.2, 0.05], 55)
    X = mostly_zero(1_000, 220, fractions) + 3
    X[:, 0] = np.arange(1_000)
    scaled = fit_scaler(StandardScaler(), X).transform(X)
    expected = np.maximum(((X != 3).sum(axis=0) / 999) ** 2, 0.01)
    expected[0] = 1.0
    np.testing.assert_allclose(scaled.std(axis=0), expected, rtol=0.01)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-12)
    narrower = fit_scaler(StandardScaler(), X[:, 30:]).transform(X[:, 30:])
    np.testing.assert_allclose(narrower.std(axis=0), 1.0)


def test_columns_of_a_wide_table_count_as_much_in_any_unit():
    X = mostly_zero(300, 220, 0.4)
    in_another = X * np.geomspace(1e-3, 1e5, 220) + np.linspace(-9, 9, 220)
    scaled, again = (fit_scaler(StandardScaler(), rows).transform(rows) for rows in (X, in_another))
    np.testing.assert_allclose(scaled, again, atol=1e-9)


def test_a_constant_column_of_a_wide_table_counts_a_tenth():
    X = factors(60, 220).astype(float) * 50
    X[:, 0], X[:, 1] = 0.0, -6.0
    scaler = fit_scaler(StandardScaler(), X)
    # Zero has no unit of its own; a third of another value is one.
    np.testing.assert_allclose(scaler.scale_[:2], [10 * np.median(X[:, 2:].std(axis=0)), 20.0])


def test_a_rare_large_value_of_a_wide_table_is_no_gross_error_but_one_of_a_dense_column_is():
    X = factors(200, 220).astype(float)
    X[:, 0] = np.repeat([0.0, 0.01, 50.0], [190, 6, 4])
    X[0, 1] = 1e9
    scaler = fit_scaler(StandardScaler(), X)
    assert scaler.scale_[0] == pytest.approx(100 * X[:, 0].std())
    assert scaler.scale_[1] < 2


def test_a_column_without_values_in_some_rows_is_judged_by_the_others():
    X = mostly_zero(400, 220, 0.5)
    X[::2, 0] = np.nan
    X[1::2, 1] = np.nan
    scaled = fit_scaler(StandardScaler(), X).transform(X)
    expected = ((X[1::2, 0] > 0).sum() / 199) ** 2
    assert np.nanstd(scaled[:, 0]) == pytest.approx(expected)


@pytest.mark.parametrize("fraction", [0.3, 0.01])
def test_what_is_far_out_in_a_column_that_seldom_varies_is_an_anomaly(fraction):
    X = factors(200, 220).astype(float)
    X[:, 0] *= np.random.default_rng(0).uniform(size=200) < fraction
    detector = VAEDetector(**WIDE).fit(X)
    far = X[:1].repeat(2, axis=0)
    far[:, 0] = X[:, 0].mean() + np.array([-1_000, 1_000]) * X[:, 0].std()
    np.testing.assert_array_equal(detector.predict(far), -1)


def test_anomalies_among_columns_that_are_mostly_zero_are_found():
    """Standardized, the columns that are zero would bring as much chance each: an AUROC of .56."""
    fractions = np.repeat([1.0, 0.05], [50, 170])
    X, new = mostly_zero(300, 220, fractions), mostly_zero(400, 220, fractions, seed=1)
    new[200:, :50] += 1.0
    detector = VAEDetector(**WIDE).fit(X)
    assert roc_auc_score(np.arange(400) >= 200, -detector.score_samples(new)) > 0.75


def test_six_of_the_default_members_whiten_a_wide_table(wide_detector):
    assert [member.column_transform for member in WIDE_MEMBERS] == [None] * 2 + ["whiten"] * 6
    assert [state.is_whitened for state in wide_detector.members_] == [False] * 2 + [True] * 6
    assert wide_detector.model_card()["model"]["members_that_whiten_columns"] == 6


@pytest.mark.wide
def test_a_wide_table_of_another_likelihood_keeps_the_members_of_others():
    X = factors(60, 220)
    detector = VAEDetector(**WIDE, likelihood="student_t").fit(X)
    assert not any(state.is_whitened for state in detector.members_)


def test_new_rows_of_a_wide_table_are_flagged_about_as_often_as_it_says(wide_detector):
    """There are more columns than rows: those that made the covariance are much nearer than new ones."""
    new = factors(1_000, 220, seed=1, n_factors=5)
    rate = wide_detector.false_alarm_rate_
    assert rate / 3 < (wide_detector.predict(new) == -1).mean() < 2 * rate


@pytest.mark.wide
def test_a_wide_table_with_names_and_gaps_is_taken(wide_detector):
    X = factors(150, 220, n_factors=5).astype(float)
    X[::7, 3] = np.nan
    frame = pd.DataFrame(X, columns=[f"e{i}" for i in range(220)])
    detector = VAEDetector(**WIDE).fit(frame)
    assert any(state.is_whitened for state in detector.members_)
    shares = detector.explain(frame)
    np.testing.assert_allclose(shares.sum(axis=1), -detector.score_samples(frame), rtol=1e-4)
    assert list(shares.columns) == list(frame.columns)


@pytest.mark.wide
def test_rows_that_are_all_trained_on_from_a_file_stay_as_they_are(monkeypatch):
    monkeypatch.setattr("vae_anomaly.ensemble.decisions._ROWS_IN_MEMORY", 100)
    X = factors(150, 220)
    read_whole, read_in_pieces = (
        VAEDetector(**WIDE, members=[Member(), WHITENED], epochs=2, max_samples=n).fit(X) for n in (150, None)
    )
    assert [state.is_whitened for state in read_whole.members_] == [False, True]
    assert not any(state.is_whitened for state in read_in_pieces.members_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no convergence in so few passes
        default = VAEDetector(**WIDE, epochs="auto", max_samples=None).fit(X)
    assert not any(state.specification.whitens_columns for state in default.members_)
    assert len(default.members_) == len(DEFAULT_MEMBERS)
