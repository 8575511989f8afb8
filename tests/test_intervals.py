"""Intervals of cells that hold what they say: by scores alone, then those of a detector."""

import copy

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.sparse import csr_array
from sklearn.base import clone

from vae_anomaly import DenseNetwork, VAEDetector, load
from vae_anomaly.calibration.intervals import (
    ROWS_OF_A_KIND,
    CellIntervals,
    Spread,
    conformity_scores,
    floors_of,
    scores_as_new,
)
from vae_anomaly.data.ranges import ColumnRanges
from vae_anomaly.likelihoods import Bernoulli, Count

FLOORS = np.array([1e-3])


# -- scores alone ------------------------------------------------------------------------------------------
def too_sure(n_rows, rng, noise=1.0):
    """A column that has this noise, and what a model thinks that is half as wide as it should be."""
    expected, width = rng.normal(size=(n_rows, 1)), rng.uniform(0.5, 2, size=(n_rows, 1))
    values = expected + noise * width * rng.standard_t(3, size=(n_rows, 1))
    return values, Spread(expected, expected - 0.5 * width, expected + 0.5 * width)


def held_share(n_rows, coverage, rng):
    values, spread = too_sure(n_rows, rng)
    intervals = CellIntervals(conformity_scores(values, spread, FLOORS), FLOORS)
    values, spread = too_sure(200, rng)
    _, low, high = intervals.stretch(spread, np.zeros((200, 1), dtype=bool), coverage)
    return ((low <= values) & (values <= high)).mean()


def check_coverage(n_rows, coverage, n_runs):
    shares = [held_share(n_rows, coverage, np.random.RandomState(seed)) for seed in range(n_runs)]
    error = 4 * np.std(shares) / np.sqrt(n_runs)
    assert coverage - error <= np.mean(shares) <= coverage + 1 / (n_rows + 1) + error


@pytest.mark.parametrize(("n_rows", "coverage"), [(19, 0.9), (99, 0.5)])
def test_intervals_hold_what_they_say_of_a_model_that_is_too_sure(n_rows, coverage):
    check_coverage(n_rows, coverage, 300)


@pytest.mark.wide
@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("n_rows", [19, 40, 200, 500])
def test_intervals_hold_what_they_say_in_two_thousand_runs(n_rows, coverage):
    check_coverage(n_rows, coverage, 2000)


def test_coverage_has_the_law_of_conformal_prediction():
    """Of one calibration on n rows it is a beta variable, whatever the model."""
    n_rows, coverage = 40, 0.9
    shares = []
    for seed in range(300):
        rng = np.random.RandomState(seed)
        values, spread = too_sure(n_rows, rng)
        scores = conformity_scores(values, spread, FLOORS)
        factor = CellIntervals(scores, FLOORS).factors(np.zeros((1, 1), dtype=bool), coverage)
        # The distance of a new value in units of its own interval is that of Student's t.
        shares.append(1 - 2 * stats.t.sf(factor[0, 0] * 0.5, 3))
    rank = int(np.ceil((n_rows + 1) * coverage))
    assert stats.kstest(shares, stats.beta(rank, n_rows + 1 - rank).cdf).pvalue > 1e-3


def with_second_column(values, spread, gaps):
    """The same beside a column that is missing in some rows, and otherwise guessed without error."""
    zeros = np.zeros_like(values)
    other = np.where(gaps[:, None], np.nan, 0.0)
    return np.hstack([values, other]), Spread(*(np.hstack([part, zeros]) for part in spread))


def test_intervals_hold_among_rows_with_the_same_gaps_where_those_are_enough():
    """Guesses are four times worse where the other column is missing."""
    floors, shares = np.repeat(FLOORS, 2), {False: [], True: []}
    for seed in range(100):
        rng = np.random.RandomState(seed)
        gaps = np.arange(300) < 80
        values, spread = too_sure(300, rng, noise=np.where(gaps, 4.0, 1.0)[:, None])
        values, spread = with_second_column(values, spread, gaps)
        intervals = CellIntervals(conformity_scores(values, spread, floors), floors)
        for missing in shares:
            values, spread = too_sure(200, rng, noise=4.0 if missing else 1.0)
            values, spread = with_second_column(values, spread, np.repeat(missing, 200))
            _, low, high = intervals.stretch(spread, np.isnan(values), 0.9)
            shares[missing].append(((low <= values) & (values <= high))[:, 0].mean())
    for found in shares.values():
        error = 4 * np.std(found) / 10
        assert 0.9 - error <= np.mean(found) <= 0.9 + 1 / 81 + error


def test_rows_with_rare_gaps_are_judged_by_those_with_as_many_and_else_by_what_is_left():
    n, gaps = ROWS_OF_A_KIND, {(): 100, (1,): 50, (2,): 30, (3,): 25, (1, 2): 10, (1, 3): 15}
    scores = np.concatenate([np.full((size, 4), 1.0 + kind) for kind, size in enumerate(gaps.values())])
    of_kind = np.repeat(np.arange(len(gaps)), [*gaps.values()])
    for kind, missing in enumerate(gaps):
        scores[np.ix_(of_kind == kind, missing)] = np.nan
    intervals = CellIntervals(scores, np.ones(4))
    asked = {
        (): 1.0,
        (1,): 2.0,  # as many rows as are asked
        (0, 1): 2.0,  # the cell itself plays no part
        (2,): 4.0,  # too few, but with the next kind enough: the larger of both
        (3,): 4.0,
        (1, 2): 6.0,  # too few, also with the next kind: what is left
        (1, 2, 3): 6.0,  # no such rows
    }
    missing = np.array([[column in pattern for column in range(4)] for pattern in asked])
    assert n == gaps[1,]
    np.testing.assert_array_equal(intervals.factors(missing, 0.9)[:, 0], [*asked.values()])
    # A coverage that 25 rows cannot tell of: all rows do.
    np.testing.assert_array_equal(intervals.factors(missing, 0.97)[-1, 0], 6.0)
    np.testing.assert_array_equal(intervals.factors(missing, 0.965)[-2:, 0], np.sort(scores[:, 0])[222])


def test_intervals_hold_on_average_over_all_gaps_where_many_are_rare():
    """Guesses are the worse, the more of four columns are missing, of which there are 16 patterns."""
    floors, shares = np.repeat(FLOORS, 5), []
    for seed in range(100):
        rng = np.random.RandomState(seed)
        drawn = []
        for n_rows in (150, 150):
            gaps = rng.uniform(size=(n_rows, 4)) < 0.3
            noise = 1.0 + gaps.sum(axis=1, keepdims=True)
            values, spread = too_sure(n_rows, rng, noise)
            values = np.hstack([values, np.where(gaps, np.nan, 0.0)])
            spread = Spread(*(np.hstack([part, np.zeros((n_rows, 4))]) for part in spread))
            drawn.append((values, spread))
        intervals = CellIntervals(conformity_scores(*drawn[0], floors), floors)
        values, spread = drawn[1]
        _, low, high = intervals.stretch(spread, np.isnan(values), 0.9)
        inside = ((low <= values) & (values <= high))[:, 0]
        shares.append(inside.mean())
    error = 4 * np.std(shares) / np.sqrt(len(shares))
    assert 0.9 - error <= np.mean(shares) <= 0.9 + 1 / 50 + error


@pytest.mark.parametrize(("coverage", "n_rows"), [(0.9, 9), (0.95, 19), (0.5, 1)])
def test_so_many_rows_a_coverage_needs_and_of_fewer_nothing_is_said(coverage, n_rows):
    no_gaps = np.zeros((1, 1), dtype=bool)
    enough, too_few = (CellIntervals(np.ones((n, 1)), FLOORS) for n in (n_rows, n_rows - 1))
    assert (enough.fewest_rows(coverage), enough.factors(no_gaps, coverage)) == (n_rows, [[1.0]])
    assert np.isnan(too_few.factors(no_gaps, coverage)).all()


def test_a_value_as_far_off_as_the_one_that_makes_the_end_is_inside():
    values, spread = np.array([[3.0]] * 9 + [[7.0]]), Spread(*np.full((3, 10, 1), 1.0))
    intervals = CellIntervals(conformity_scores(values, spread, FLOORS), FLOORS)
    _, low, high = intervals.stretch(spread, np.zeros((10, 1), dtype=bool), 0.8)
    assert (high >= 3).all()
    assert (high < 3.001).all()
    assert (low <= -1).all()


def test_columns_without_order_have_no_ends_and_are_no_gaps():
    nothing = np.full((20, 1), np.nan)
    scores = conformity_scores(np.ones((20, 1)), Spread(np.ones((20, 1)), nothing, nothing), FLOORS)
    np.testing.assert_array_equal(scores, 0.0)
    spread = Spread(np.ones((1, 1)), nothing[:1], nothing[:1])
    stretched = CellIntervals(scores, FLOORS).stretch(spread, np.zeros((1, 1), dtype=bool), 0.9)
    assert np.isnan(stretched[1:]).all()


def test_scores_of_rows_that_members_know_are_lengthened_to_those_of_rows_that_they_left_out():
    """Members are twice as far off in rows that they have not seen."""
    rng = np.random.RandomState(0)
    distances = rng.exponential(size=(4, 5000, 1))
    left_out = rng.uniform(size=(4, 5000)) < 0.2
    by_member = np.where(left_out[..., None], 2 * distances, distances)
    scores = rng.exponential(size=(5000, 1))
    scores[:7] = np.nan
    as_new = scores_as_new(scores, by_member, left_out)
    np.testing.assert_array_equal(np.isnan(as_new), np.isnan(scores))
    usual = (scores > 0.1) & (scores < 3)
    np.testing.assert_allclose(as_new[usual] / scores[usual], 2.0, rtol=0.15)


def test_scores_stay_where_left_out_rows_tell_nothing():
    scores = np.arange(6.0).reshape(3, 2)
    none = np.zeros((2, 3), dtype=bool)
    np.testing.assert_array_equal(scores_as_new(scores, np.ones((2, 3, 2)), none), scores)


def test_a_column_that_does_not_vary_has_a_unit_too():
    rows = np.array([[5.0, np.nan, 1.0], [5.0, np.nan, 5.0], [5.0, np.nan, np.nan]])
    floors = floors_of(rows)
    assert (floors > 0).all()
    assert floors[2] == pytest.approx(0.05 * 2)


def test_ends_lie_among_the_values_that_a_likelihood_knows():
    low, high = Count().inside_support(np.array([-2.0, 0.4, 1.0]), np.array([0.9, 3.6, 2.0]))
    np.testing.assert_array_equal([low, high], [[0, 1, 1], [0, 3, 2]])
    low, high = Bernoulli().inside_support(np.array([-0.3]), np.array([1.2]))
    np.testing.assert_array_equal([low, high], [[0], [1]])


# -- of a detector -----------------------------------------------------------------------------------------
SETTINGS = {"calibrate_intervals": True, "random_state": 0, "network": DenseNetwork((8,))}


def correlated(n_rows, seed=0):
    rng = np.random.RandomState(seed)
    hidden = rng.normal(size=(n_rows, 1))
    return 5 * hidden + rng.normal(size=(n_rows, 3)) * [1.0, 2.0, 0.5] + [10, 0, -10]


@pytest.fixture(scope="module")
def held_out():
    return VAEDetector(members=2, epochs=5, calibration=0.5, **SETTINGS).fit(correlated(400))


def inside(detector, X, coverage):
    _, low, high = detector.expected(X, coverage=coverage)
    return ((low <= X) & (high >= X)).mean(axis=0)


def test_intervals_of_a_detector_that_has_learned_little_hold_what_they_say(held_out):
    n_new = 600
    law = stats.betabinom(n_new, 181, 20)  # of 200 held-out rows, the 181st makes the cut
    low, high = law.ppf([1e-4, 1 - 1e-4]) / n_new
    shares = inside(held_out, correlated(n_new, seed=1), 0.9)
    assert (low <= shares).all()
    assert (shares <= high).all()


def test_scores_of_held_out_rows_are_distances_in_units_of_the_models_own_intervals(held_out):
    assert held_out.interval_scores_.shape == (200, 3)
    plain = clone(held_out).set_params(calibrate_intervals=False).fit(correlated(400))
    assert plain.interval_scores_ is None
    np.testing.assert_array_equal(plain.score_samples(correlated(9)), held_out.score_samples(correlated(9)))
    X = correlated(1)
    expected, low, high = plain.expected(X, coverage=0.9)
    held = held_out.expected(X, coverage=0.9)
    np.testing.assert_array_equal(held[0], expected)
    factors = np.sort(held_out.interval_scores_, axis=0)[180]
    deviations = plain.scaler_.scale_ * 0.05
    np.testing.assert_allclose(
        held[2], expected + factors * (np.maximum(high - expected, (high - low) / 4) + deviations), rtol=1e-2
    )


def test_wider_coverage_gives_wider_intervals_that_hold_what_is_expected(held_out):
    X = correlated(20, seed=2)
    (expected, low, high), wide = (held_out.expected(X, coverage=coverage) for coverage in (0.5, 0.95))
    np.testing.assert_array_equal(wide[0], expected)
    assert ((wide[1] < low) & (low < expected) & (expected < high) & (high < wide[2])).all()


def test_nothing_is_expected_outside_of_what_a_column_has_held(held_out):
    """Here of a detector that believes its columns to have held less."""
    X = correlated(20, seed=2)
    believing = copy.copy(held_out)
    believing._column_ranges = held_out._column_ranges.copy()
    least, greatest = believing._column_ranges[:2] = np.array([[9.0, -5.0, -np.inf], [11.0, 0.0, np.inf]])
    free, found = (detector.expected(X, coverage=0.5) for detector in (held_out, believing))
    moved = free[0] != found[0]
    assert moved[:, :2].any(axis=0).all()
    np.testing.assert_array_equal(found[0], np.clip(free[0], least, greatest))
    np.testing.assert_array_equal(believing.expected(X), found[0])
    for held, widened in zip(free[1:], found[1:], strict=True):
        np.testing.assert_array_equal(widened[~moved], held[~moved])
    assert ((found[1] <= found[0]) & (found[0] <= found[2])).all()
    rebuilt = held_out.reconstruct(X)
    clipped = np.clip(rebuilt, least, greatest)
    assert (clipped != rebuilt).any()
    np.testing.assert_array_equal(believing.reconstruct(X), clipped)


def test_of_a_column_without_values_no_range_is_known():
    ranges = ColumnRanges.of(np.array([[1.0, np.nan], [2.0, np.nan]]))
    np.testing.assert_array_equal(ranges.clip(np.array([[3.0, 3.0], [0.0, -3.0]])), [[2.0, 3.0], [1.0, -3.0]])


def test_channels_have_a_range_for_all_steps():
    ranges = ColumnRanges.of(np.array([[0.0, 10.0, 1.0, 12.0]]), n_channels=2)
    np.testing.assert_array_equal(ranges.clip(np.array([[-1.0, 11.0, 2.0, 13.0]])), [[0.0, 11.0, 1.0, 12.0]])


def test_intervals_are_the_same_bits_again_alone_in_another_order_and_from_a_file(held_out, tmp_path):
    X = correlated(40, seed=3)
    X[::3, 1] = np.nan
    results = held_out.expected(X, coverage=0.8)
    held_out.save(tmp_path / "detector.vae")
    found = load(tmp_path / "detector.vae")
    np.testing.assert_array_equal(found.interval_scores_, held_out.interval_scores_)
    again = clone(held_out).fit(correlated(400))
    for other in (found, again):
        np.testing.assert_array_equal(other.expected(X, coverage=0.8), results)
    backwards = np.array(held_out.expected(X[::-1], coverage=0.8))[:, ::-1]
    np.testing.assert_array_equal(backwards, results)
    alone = [np.array(held_out.expected(X[[row]], coverage=0.8))[:, 0] for row in (0, 1, 39)]
    np.testing.assert_array_equal(np.swapaxes(alone, 0, 1), np.array(results)[:, [0, 1, 39]])


def test_a_coverage_that_calibration_rows_cannot_tell_of_is_warned_of_and_nan(held_out):
    with pytest.warns(UserWarning, match=r"coverage of 0.996 .* columns 0, 1, 2: it takes 249"):
        expected, low, high = held_out.expected(correlated(2), coverage=0.996)
    assert np.isfinite(expected).all()
    assert np.isnan([low, high]).all()


@pytest.mark.wide
def test_without_held_out_rows_training_rows_are_judged_as_new_ones():
    detector = VAEDetector(members=4, epochs=5, validation_fraction=0.2, **SETTINGS).fit(correlated(150))
    assert detector.interval_scores_.shape == (150, 3)
    shares = inside(detector, correlated(400, seed=1), 0.9)
    assert 0.85 < shares.mean() < 0.95


def test_gaps_of_calibration_rows_are_those_of_their_scores():
    X = correlated(80)
    X[::4, 1] = np.nan
    detector = VAEDetector(members=1, epochs=2, calibration=0.5, **SETTINGS).fit(X)
    gaps = np.isnan(detector.interval_scores_)
    assert gaps[:, 1].sum() == gaps.sum() > 0


@pytest.mark.wide
def test_sparse_rows_are_calibrated_as_dense_ones():
    X = np.round(correlated(80))
    X[::4, 1] = 0
    settings = {**SETTINGS, "members": 1, "epochs": 2, "calibration": 0.5, "scaler": None}
    of_dense, of_sparse = (VAEDetector(**settings).fit(given) for given in (X, csr_array(X)))
    np.testing.assert_array_equal(of_sparse.interval_scores_, of_dense.interval_scores_)


def test_intervals_of_new_rows_of_a_stream_are_those_that_the_new_rows_tell_of():
    settings = {**SETTINGS, "members": 1, "epochs": 2, "calibration": 0.5}
    detector = VAEDetector(**settings).fit(correlated(100))
    first = detector.interval_scores_
    detector.partial_fit(correlated(300, seed=5))
    assert (first.shape, detector.interval_scores_.shape) == ((50, 3), (150, 3))


def test_counts_booleans_and_categories_have_ends_of_their_kind():
    rng = np.random.RandomState(0)
    hidden = rng.normal(size=200)
    frame = pd.DataFrame(
        {
            "visits": rng.poisson(np.exp(1 + hidden)),
            "open": hidden > 0,
            "color": np.where(hidden > 1, "red", "blue"),
        }
    )
    detector = VAEDetector(members=1, epochs=5, calibration=0.4, **SETTINGS).fit(frame)
    _, low, high = detector.expected(frame[:5], coverage=0.9)
    assert (low["visits"] >= 0).all()
    assert (high["visits"] >= low["visits"]).all()
    assert {low["open"].dtype, high["open"].dtype} == {np.dtype(bool)}
    assert low["color"].isna().all()
    assert set(detector.report(frame[:5])["low"].map(type)) <= {float, int, bool, type(None)}


REFUSED = {
    "no rows are left out": ({"validation_fraction": 0.0}, "needs rows that a member is not trained on"),
    "patches": ({"patches": 4, "network": "auto"}, "intervals are of the cells of a table"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_intervals_that_cannot_be_calibrated_are_refused_before_the_training(settings, message):
    X = np.random.RandomState(0).uniform(size=(20, 8, 8)) if "patches" in settings else correlated(20)
    with pytest.raises(ValueError, match=message):
        VAEDetector(**{**SETTINGS, "epochs": 2, **settings}).fit(X)
