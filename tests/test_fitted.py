"""What a fit leaves: rows with gaps, expected cells, intervals, reports. (Scores: test_scoring.py.)"""

import numpy as np
import pandas as pd
import pytest
from conftest import stars, wide
from scipy import sparse
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.impute import KNNImputer
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from vae_anomaly import ConvNetwork, DenseNetwork, VAEDetector
from vae_anomaly.datasets import make_anomalies
from vae_anomaly.ensemble.cells import _quantiles
from vae_anomaly.scoring import SCORES

N_FEATURES = 6


def with_gaps(X, share, seed=0):
    return np.where(np.random.RandomState(seed).uniform(size=X.shape) < share, np.nan, X)


def detector(**settings):
    return VAEDetector(**{"epochs": 60, "members": 2, "random_state": 0, **settings})


@pytest.fixture(scope="module")
def normal():
    return make_anomalies(600, N_FEATURES, contamination=0.0, kind="dependency", random_state=0)[0]


@pytest.fixture(scope="module")
def on_complete(normal):
    return detector().fit(normal)


@pytest.fixture(scope="module")
def on_gaps(normal):
    return detector().fit(with_gaps(normal, 0.2))


@pytest.fixture(params=["on_complete", wide("on_gaps")])
def fitted(request):
    return request.getfixturevalue(request.param)


of_both = pytest.mark.parametrize("fitted", ["on_complete", "on_gaps"], indirect=True)


# -- missing values --------------------------------------------------------------------------------------
@of_both
def test_rows_with_gaps_have_finite_scores_whatever_is_missing(fitted, normal):
    for share in (0.1, 0.5, 1.0):
        assert np.isfinite(fitted.score_samples(with_gaps(normal, share))).all()


@of_both
def test_a_row_without_any_value_is_a_median_row(fitted, normal):
    nothing = np.full((1, N_FEATURES), np.nan)
    levels = -(fitted.member_weights_ * fitted._member_levels).sum()
    assert fitted.score_samples(nothing)[0] == pytest.approx(levels, abs=1e-9)
    assert fitted.predict(nothing)[0] == 1


def test_a_gap_changes_no_other_rows_score(fitted, normal):
    before = fitted.score_samples(normal[:50])
    rows = normal[:50].copy()
    rows[7, 2] = rows[30] = np.nan
    after = fitted.score_samples(rows)
    kept = np.setdiff1d(np.arange(50), [7, 30])
    np.testing.assert_array_equal(after[kept], before[kept])


@pytest.mark.narrow_tiles
@of_both
def test_scores_of_rows_with_gaps_do_not_depend_on_how_rows_are_batched(fitted, normal):
    rows = with_gaps(normal, 0.2, seed=1)
    together = fitted.score_samples(rows)
    order = np.random.RandomState(0).permutation(len(rows))
    np.testing.assert_array_equal(fitted.score_samples(rows[order]), together[order])
    alone = [fitted.score_samples(rows[position : position + 1])[0] for position in range(20)]
    np.testing.assert_array_equal(alone, together[:20])


@of_both
def test_an_anomaly_is_found_by_the_cells_that_are_left(fitted, normal):
    torn_apart = np.random.default_rng(0).permuted(normal, axis=0)
    y = np.repeat([0, 1], len(normal))
    assert roc_auc_score(y, -fitted.score_samples(with_gaps(np.r_[normal, torn_apart], 0.1))) > 0.75


def test_gaps_are_marked_to_the_encoder_only_if_training_rows_have_them(on_complete, on_gaps):
    assert on_complete.model_.encoder.input_shape == (None, N_FEATURES)
    assert on_gaps.model_.encoder.input_shape == (None, 2 * N_FEATURES)


@of_both
def test_reconstruct_fills_the_gaps_nearer_than_the_mean(fitted, normal):
    rows = with_gaps(normal, 0.1, seed=5)
    gaps = np.isnan(rows)
    filled = fitted.reconstruct(rows)
    assert not np.isnan(filled).any()
    error = np.square(filled - normal)[gaps].mean()
    assert error < 0.6 * np.square(normal.mean(axis=0) - normal)[gaps].mean()


def test_shares_sum_to_the_score_of_a_row_with_gaps(fitted, normal):
    rows = with_gaps(normal[:100], 0.3)
    np.testing.assert_allclose(fitted.explain(rows).sum(axis=1), -fitted.score_samples(rows), rtol=1e-9)


@pytest.mark.parametrize("score", stars({score: score for score in SCORES}, {"elbo", "reconstruction_error"}))
def test_every_score_takes_gaps_in_training_and_new_rows(normal, score):
    fitted = detector(score=score, epochs=5, members=1).fit(with_gaps(normal, 0.1))
    rows = with_gaps(normal, 0.3)
    assert np.isfinite(fitted.score_samples(rows)).all()
    assert np.isfinite(fitted.confidence(rows)).all()


def test_a_column_without_any_value_cannot_be_learnt(normal):
    frame = pd.DataFrame(normal, columns=list("abcdef"))
    frame["d"] = np.nan
    with pytest.raises(ValueError, match=r"column 'd' holds no value in any of the 600 training rows.*drop"):
        detector().fit(frame)


def test_a_column_may_be_missing_from_all_new_rows(fitted, normal):
    rows = normal.copy()
    rows[:, 3] = np.nan
    scores = fitted.score_samples(rows)
    assert np.isfinite(scores).all()
    # Comparable: the false-alarm rate is that of whole rows, give or take.
    assert (fitted.predict(rows) == -1).mean() < 0.15


def test_a_scaler_may_fill_the_gaps_or_refuse_them(normal):
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    rows = with_gaps(normal, 0.1)
    filling = detector(epochs=2, scaler=make_pipeline(SimpleImputer(), StandardScaler())).fit(rows)
    assert filling.model_.encoder.input_shape == (None, N_FEATURES)
    with pytest.raises(ValueError, match="NaN"):
        detector(epochs=2, scaler=PCA(2)).fit(rows)


@pytest.mark.wide
def test_a_convolutional_network_takes_missing_pixels():
    images = np.random.RandomState(0).uniform(size=(80, 4, 4))
    fitted = VAEDetector(
        network=ConvNetwork(filters=(3,), dense_units=()), epochs=2, n_draws=4, random_state=0
    ).fit(with_gaps(images, 0.2))
    assert np.isfinite(fitted.score_samples(with_gaps(images, 0.5))).all()
    assert not np.isnan(fitted.reconstruct(with_gaps(images, 0.5))).any()


def test_a_warm_start_keeps_its_marks_on_complete_rows(normal):
    fitted = detector(epochs=2, warm_start=True).fit(with_gaps(normal, 0.1))
    fitted.fit(normal)
    assert fitted.model_.encoder.input_shape == (None, 2 * N_FEATURES)


# -- expected cells --------------------------------------------------------------------------------------
def test_a_cells_expectation_does_not_depend_on_its_value(fitted, normal):
    rows = normal[:20].copy()
    expected = fitted.expected(rows)
    rows[:, 4] = 1e6
    np.testing.assert_array_equal(fitted.expected(rows)[:, 4], expected[:, 4])
    gaps = np.where(np.arange(N_FEATURES) == 4, np.nan, rows)
    np.testing.assert_array_equal(fitted.expected(gaps)[:, 4], expected[:, 4])


@pytest.mark.parametrize("far", [1e3, 1e37])
def test_one_wrong_value_hardly_changes_what_the_other_cells_are_expected_to_be(fitted, normal, far):
    expected = fitted.expected(normal[:50])[:, 1:]
    wrong = normal[:50].copy()
    wrong[:, 0] = far
    moved = np.abs(fitted.expected(wrong)[:, 1:] - expected)
    assert np.median(moved) < 0.5 * normal.std()
    assert np.isfinite(moved).all()


def test_expectations_are_nearer_than_column_means(fitted):
    new = make_anomalies(300, N_FEATURES, contamination=0.0, kind="dependency", random_state=0)[0][:200]
    error = np.square(fitted.expected(new) - new).mean()
    assert error < 0.6 * new.var(axis=0).mean()


@pytest.mark.long
def test_cells_of_real_rows_are_guessed_better_than_by_nearest_neighbors():
    X, is_benign = load_breast_cancer(return_X_y=True)
    rows = X[is_benign == 1]
    rows = rows[np.random.RandomState(0).permutation(len(rows))]
    train, new = rows[:178], rows[178:]
    scaler = StandardScaler().fit(train)
    imputer = KNNImputer().fit(scaler.transform(train))

    def by_neighbors(column):
        hidden = scaler.transform(new)
        hidden[:, column] = np.nan
        return imputer.transform(hidden)[:, column]

    guesses = {
        "ours": scaler.transform(VAEDetector(random_state=0).fit(train).expected(new)),
        "neighbors": np.column_stack([by_neighbors(column) for column in range(new.shape[1])]),
        "means": 0.0,
    }
    errors = {name: np.square(guess - scaler.transform(new)).mean() for name, guess in guesses.items()}
    assert errors["ours"] < 0.9 * errors["neighbors"] < errors["means"]


@pytest.mark.wide
def test_intervals_hold_their_share_of_a_model_that_is_right():
    """Independent columns: every cell's distribution given the others is its own."""
    X = np.random.RandomState(0).normal([5.0, -2.0], [2.0, 0.1], size=(2000, 2))
    fitted = detector(network=DenseNetwork(()), latent_dim=1, epochs=40).fit(X)
    expected, low, high = fitted.expected(X[:500], coverage=0.8)
    inside = ((low <= X[:500]) & (X[:500] <= high)).mean(axis=0)
    # Five standard errors of a share of 500 rows, and what a fitted scale is off.
    np.testing.assert_allclose(inside, 0.8, atol=5 * np.sqrt(0.16 / 500) + 0.02)
    np.testing.assert_allclose(expected.mean(axis=0), [5, -2], atol=0.2)


def test_wider_coverage_gives_wider_intervals_around_the_same_expectation(fitted, normal):
    narrow, wide = (fitted.expected(normal[:5], coverage=coverage) for coverage in (0.5, 0.95))
    np.testing.assert_array_equal(narrow[0], wide[0])
    assert (wide[1] < narrow[1]).all()
    assert (narrow[1] < narrow[2]).all()
    assert (narrow[2] < wide[2]).all()


@pytest.mark.parametrize("coverage", [0, 1])
def test_a_coverage_outside_its_range_is_refused(fitted, normal, coverage):
    with pytest.raises(ValueError, match="coverage must lie in"):
        fitted.expected(normal[:2], coverage=coverage)


def test_expected_keeps_a_frames_columns_and_index(normal):
    frame = pd.DataFrame(normal, columns=list("abcdef"), index=np.arange(600) + 1000)
    fitted = detector(epochs=2).fit(frame)
    expected, low, high = fitted.expected(frame[:3], coverage=0.9)
    for table in (expected, low, high):
        assert list(table.columns) == list("abcdef")
        assert list(table.index) == [1000, 1001, 1002]


def test_a_scaler_that_mixes_columns_has_no_cells_to_mask(normal):
    from sklearn.pipeline import make_pipeline

    class Summing(StandardScaler):
        def transform(self, X):
            return super().transform(X)[:, :2]

    fitted = detector(epochs=2, scaler=make_pipeline(Summing())).fit(normal)
    with pytest.raises(ValueError, match="must keep the 6 columns; Pipeline makes 2"):
        fitted.expected(normal[:2])


def test_quantiles_weigh_the_members():
    values = np.array([[[0.0, 0.0], [10.0, 10.0]]])
    (mostly_first,) = _quantiles(values, np.array([0.9, 0.1]), [0.5])
    (mostly_second,) = _quantiles(values, np.array([0.1, 0.9]), [0.5])
    assert mostly_first[0] < 1
    assert mostly_second[0] > 9


def test_masked_training_changes_the_network_but_not_the_rows_it_takes(normal):
    fitted = detector(masked_fraction=0.3, epochs=5).fit(normal)
    assert fitted.model_.encoder.input_shape == (None, 2 * N_FEATURES)
    assert np.isfinite(fitted.score_samples(normal)).all()


# -- report ----------------------------------------------------------------------------------------------
def test_a_report_names_the_planted_cells(fitted, normal):
    frame = normal.copy()
    frame[11, 2], frame[40, 5] = 30.0, -25.0
    report = fitted.report(frame, n_rows=2, n_columns=1)
    assert sorted(zip(report["row"], report["column"], report["value"], strict=True)) == [
        (11, 2, 30.0),
        (40, 5, -25.0),
    ]
    assert report["anomaly"].all()
    assert ((report["low"] < report["expected"]) & (report["expected"] < report["high"])).all()
    for line in report.itertuples():
        assert not line.low < line.value < line.high
        assert line.contribution == fitted.explain(frame[[line.row]])[0, line.column]
        assert line.score == pytest.approx(-fitted.score_samples(frame[[line.row]])[0])


def test_a_report_takes_lists_and_sparse_rows(fitted, normal):
    report = fitted.report(normal[:8], n_rows=2, n_columns=2)
    for rows in (normal[:8].tolist(), sparse.csr_array(normal[:8])):
        pd.testing.assert_frame_equal(fitted.report(rows, n_rows=2, n_columns=2), report)


def test_a_report_is_sorted_by_score_and_then_by_contribution(fitted, normal):
    report = fitted.report(normal, n_rows=4, n_columns=3)
    assert len(report) == 12
    assert report["score"].is_monotonic_decreasing
    for _, lines in report.groupby("row"):
        assert lines["contribution"].is_monotonic_decreasing


def test_a_report_of_a_frame_speaks_in_its_labels(normal):
    frame = pd.DataFrame(normal, columns=list("abcdef"), index=[f"row {i}" for i in range(600)])
    fitted = detector(epochs=5).fit(frame)
    report = fitted.report(frame, n_rows=2)
    assert set(report["row"]) <= set(frame.index)
    assert set(report["column"]) <= set(frame.columns)
