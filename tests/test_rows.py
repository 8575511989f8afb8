"""Rows: from users' tables to what a model sees, and back."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler

from vae_anomaly import VAEDetector
from vae_anomaly.core.rows import usual_range
from vae_anomaly.data.scaling import (
    ScalerOfColumns,
    check_magnitude,
    clip_gross_errors,
    column_names,
    fit_scaler,
    scale,
    unscale,
)


def test_a_value_whose_square_overflows_is_named():
    X = np.array([[1.0, 2], [3, -1e200]])
    with pytest.raises(ValueError, match="column 'b' holds -1e[+]200 in row 1.*Rescale"):
        check_magnitude(X, np.array(["a", "b"], dtype=object))
    check_magnitude(X / 1e60, None)


@pytest.mark.parametrize("scaler", [StandardScaler(), StandardScaler(with_mean=False), MinMaxScaler()])
def test_fitting_a_scaler_changes_neither_it_nor_the_rows(scaler):
    X = np.random.RandomState(0).normal(3, 2, size=(50, 3))
    before = X.copy()
    result = fit_scaler(scaler, X)
    np.testing.assert_array_equal(X, before)
    assert not hasattr(scaler, "n_features_in_")
    np.testing.assert_array_equal(result.transform(X), scaler.fit_transform(X))
    assert fit_scaler(None, X) is None


def test_a_standard_scaler_is_fitted_and_applied_in_blocks(monkeypatch):
    X = np.random.RandomState(0).normal(1e6, 2, size=(100, 3))
    monkeypatch.setattr("vae_anomaly.core.rows._NUMBERS_AT_ONCE", 3 * 7)
    scaler, whole = fit_scaler(StandardScaler(), X), StandardScaler().fit(X)
    np.testing.assert_allclose(scaler.mean_, whole.mean_, rtol=1e-14)
    np.testing.assert_allclose(scaler.scale_, whole.scale_, rtol=1e-9)
    np.testing.assert_allclose(scale(X, scaler), whole.transform(X), rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"with_mean": False}, {"with_std": False}])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_scaled_rows_are_those_of_the_scaler(settings, dtype):
    X = np.random.RandomState(0).normal(3, 2, size=(50, 3)).astype(dtype)
    X[:, 2] = 7.0
    scaler = StandardScaler(**settings).fit(X)
    np.testing.assert_allclose(scale(X, scaler), scaler.transform(X), rtol=1e-5, atol=1e-6)


def test_scaled_rows_are_float32_and_their_squares_are_finite():
    X = np.array([[1.0, 1e30], [2, -1e30], [3, 0]])
    rows = scale(X, None)
    assert rows.dtype == np.float32
    assert np.isfinite(np.square(rows)).all()
    np.testing.assert_array_equal(rows[:, 0], [1, 2, 3])


def test_a_scaler_cannot_write_into_the_callers_rows():
    X = np.random.RandomState(0).normal(5, 3, size=(20, 2))
    before = X.copy()
    scaler = StandardScaler(copy=False).fit(X.copy())
    np.testing.assert_allclose(scale(X, scaler), StandardScaler().fit_transform(X), rtol=1e-5)
    np.testing.assert_array_equal(X, before)


def test_scaling_and_back_is_the_identity():
    X = np.random.RandomState(0).normal(5, 3, size=(20, 2))
    for scaler in (None, StandardScaler().fit(X), MinMaxScaler().fit(X)):
        np.testing.assert_allclose(unscale(scale(X, scaler).astype(float), scaler), X, rtol=1e-5)


def test_columns_have_the_names_that_the_scaler_gives_them():
    X, names = np.eye(2), np.array(["a", "b"], dtype=object)
    assert column_names(StandardScaler().fit(X), None, 2) is None
    assert column_names(None, names, 2) is names
    assert list(column_names(StandardScaler().fit(X), names, 2)) == ["a", "b"]
    assert list(column_names(PCA(1).fit(X), names, 1)) == ["pca0"]


def test_a_scaler_without_names_is_trusted_to_keep_its_columns_only_if_it_keeps_their_number():
    names = np.array(["a", "b"], dtype=object)
    assert column_names(FunctionTransformer(), names, 2) is names
    assert column_names(FunctionTransformer(), names, 3) is None


@pytest.mark.parametrize("n_rows", [30, 60, 300, 5000])
def test_one_far_value_does_not_widen_the_usual_range(n_rows):
    rows = np.random.RandomState(0).normal(size=(n_rows, 1)).astype("f4")
    rows[0] = 1e6
    low, high = usual_range(rows)
    assert high < 70
    assert low >= rows.min()


def test_the_usual_range_of_bounded_values_is_their_whole_range():
    rows = np.random.RandomState(0).uniform(size=(500, 3)).astype("f4")
    np.testing.assert_array_equal(usual_range(rows), [rows.min(axis=0), rows.max(axis=0)])


def test_a_rare_flag_and_a_constant_keep_their_whole_range():
    rows = np.zeros((1000, 2), dtype="f4")
    rows[3, 0] = 1
    np.testing.assert_array_equal(usual_range(rows), [[0, 0], [1, 0]])


def test_blocks_of_rows_are_scaled_as_the_whole(monkeypatch):
    X = np.random.RandomState(0).normal(size=(50, 3)) * 100
    scaler = StandardScaler().fit(X)
    whole = scale(X, scaler)
    monkeypatch.setattr("vae_anomaly.core.rows._NUMBERS_AT_ONCE", 3 * 7)
    np.testing.assert_array_equal(scale(X, scaler), whole)
    X[40, 1] = 1e308
    with pytest.raises(ValueError, match=r"column 1 \(row 40 holds 1e\+308\)"):
        scale(X, FunctionTransformer(lambda block: np.where(block > 1e300, np.inf, block)))


def test_a_new_column_that_is_not_finite_is_refused_by_its_place():
    widening = FunctionTransformer(lambda X: np.c_[X, np.full(len(X), np.nan)])
    with pytest.raises(ValueError, match="turns column 2 in row 0 into nan"):
        scale(np.ones((3, 2)), widening)


# -- gross errors -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("errors", [[1e9], [-1e6], [1e4] * 5], ids=["one", "one below", "five"])
def test_gross_errors_leave_the_other_values_their_spread(errors):
    X = np.random.RandomState(0).normal(10, 2, size=(400, 2))
    X[: len(errors), 0] = errors
    scaler = fit_scaler(StandardScaler(), X)
    scaled = scale(X, scaler)
    np.testing.assert_allclose(np.median(scaled, axis=0), 0, atol=0.1)
    np.testing.assert_allclose(scaled[len(errors) :].std(axis=0), 1, atol=0.15)
    np.testing.assert_allclose(unscale(scaled.astype(float), scaler)[10:], X[10:], rtol=1e-5)
    np.testing.assert_allclose(scaler.mean_[1], StandardScaler().fit(X).mean_[1])


@pytest.mark.parametrize(
    "column",
    [
        np.random.RandomState(0).lognormal(0, 2, 2000),
        np.random.RandomState(0).standard_t(2, 2000),
        np.r_[np.zeros(1960), np.full(40, 1e6)],  # rare, but all that varies
        np.r_[np.zeros(900), np.full(100, 1e3)],
    ],
    ids=["skewed", "heavy tails", "rare values", "two values"],
)
def test_what_is_merely_skewed_or_rare_is_no_gross_error(column):
    X = column[:, None]
    scaler, plain = fit_scaler(StandardScaler(), X), StandardScaler().fit(X)
    np.testing.assert_allclose(scaler.scale_, plain.scale_)
    np.testing.assert_allclose(scaler.mean_, plain.mean_)


def test_the_scaler_of_some_columns_treats_them_alike():
    X = np.random.RandomState(0).normal(10, 2, size=(400, 3))
    X[0, 2] = 1e9
    X[:, 1] = 7.0
    some, alone = fit_scaler(ScalerOfColumns(StandardScaler(), [1, 2]), X), fit_scaler(StandardScaler(), X)
    np.testing.assert_allclose(scale(X, some)[:, 1:], scale(X, alone)[:, 1:])


def test_of_some_columns_only_those_are_trained_on_as_if_they_were_nearer():
    X = np.full((4, 2), 5e7)
    X[:, 1] = [0.0, 1.0, 2.0, 1e9]
    scaler = fit_scaler(
        ScalerOfColumns(StandardScaler(), [1]), np.r_[X, np.random.RandomState(0).rand(400, 2)]
    )
    rows = clip_gross_errors(scale(X, scaler), scaler)
    np.testing.assert_array_equal(rows[:, 0], np.float32(5e7))
    assert rows[3, 1] == 1e6


def test_an_anomaly_of_usual_size_is_found_beside_a_gross_error():
    rng = np.random.RandomState(0)
    X, new = rng.normal(size=(500, 4)), rng.normal(size=(300, 4))
    X[0, 0] = 1e9
    new[150:, 0] = 8.0
    scores = -VAEDetector(random_state=0).fit(X).score_samples(new)
    assert scores[150:].min() > np.quantile(scores[:150], 0.95)
