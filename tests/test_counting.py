"""Counting anomalies: closed testing with Simes' tests, by the shortcut and by force."""

from itertools import combinations

import numpy as np
import pytest
from conftest import wide
from matplotlib import pyplot
from scipy import stats

from vae_anomaly import VAEDetector, plotting
from vae_anomaly.calibration import anomaly_count_curve, count_anomalies, discoveries, p_values


def rejects(p, alpha):
    """Simes' test of "all are normal"."""
    return bool((len(p) * np.sort(p) <= np.arange(1, len(p) + 1) * alpha).any())


def by_force(p, selected, alpha):
    """Closed testing as it is defined: over all sets that contain a set, and all subsets of the selected."""
    m = len(p)
    sets = [frozenset(rows) for size in range(1, m + 1) for rows in combinations(range(m), size)]
    local = {rows: rejects(p[list(rows)], alpha) for rows in sets}
    closed = {rows: all(local[other] for other in sets if rows <= other) for rows in sets}
    largest = max((len(rows) for rows in sets if rows <= set(selected) and not closed[rows]), default=0)
    return len(selected) - largest


@pytest.mark.parametrize("n_rows", [1, 2, 4, 6, wide(8)])
@pytest.mark.parametrize("grid", [None, 20])
def test_the_shortcut_is_closed_testing(n_rows, grid):
    """Also where p-values lie on the grid of few calibration rows, exactly at the borders."""
    rng = np.random.RandomState(n_rows)
    for _ in range(12):
        p = rng.uniform(size=n_rows) ** 3
        if grid is not None:
            p = np.ceil(p * grid) / grid
        for size in range(1, n_rows + 1):
            for selected in combinations(range(n_rows), size):
                assert count_anomalies(p, selected, 0.7) == by_force(p, selected, 0.3)


def direct(p, selected, alpha):
    """The formula of the paper, over all u and all sizes."""
    m, ordered, h = len(p), np.sort(p), 0
    for size in range(1, m + 1):
        if all(size * ordered[m - size + j - 1] > j * alpha for j in range(1, size + 1)):
            h = size
    counted = [1 - u + sum(h * p[k] <= u * alpha for k in selected) for u in range(1, len(selected) + 1)]
    return max(0, *counted)


@pytest.mark.parametrize("seed", range(4))
def test_the_curve_is_the_formula_of_the_paper_for_the_smallest_p_values(seed):
    rng = np.random.RandomState(seed)
    scores = np.r_[rng.normal(size=30), rng.normal(2.5, 1, size=20)]
    p = p_values(scores, rng.normal(size=199))
    order = np.argsort(p, kind="stable")
    expected = [direct(p, order[:k], 0.1) for k in range(1, 51)]
    np.testing.assert_array_equal(anomaly_count_curve(p, 0.9), expected)
    assert [count_anomalies(p, order[:k], 0.9) for k in range(1, 51)] == expected


def test_all_rows_count_those_beyond_the_largest_set_that_is_not_rejected():
    p = np.r_[np.full(7, 1e-6), np.linspace(0.2, 1, 13)]
    assert count_anomalies(p) == 7
    assert count_anomalies(np.full(5, 1e-6)) == 5
    assert count_anomalies(np.full(5, 0.5)) == 0


@pytest.mark.parametrize("n_anomalies", [0, 20])
def test_no_selection_has_fewer_anomalies_than_counted_with_the_stated_confidence(n_anomalies):
    """With p-values that share a calibration, for all tops at once and for one chosen afterwards."""
    rng, held = np.random.RandomState(0), []
    for _ in range(2_000):
        is_anomaly = np.arange(100) < n_anomalies
        p = p_values(rng.normal(size=100) + 3 * is_anomaly, rng.normal(size=150))
        order = np.argsort(p, kind="stable")
        true = np.cumsum(is_anomaly[order])
        # Of ties, the rows that come first may be normal: the bound is one of each selection.
        tops = bool((anomaly_count_curve(p, 0.9) <= true).all())
        normal = np.flatnonzero(~is_anomaly)
        held.append(tops and count_anomalies(p, normal, 0.9) == 0)
    assert np.sum(held) >= stats.binom.ppf(0.001, 2_000, 0.9)


def test_anomalies_that_stand_out_are_counted():
    rng, counted = np.random.RandomState(0), []
    for _ in range(50):
        p = p_values(np.r_[rng.normal(size=80), rng.normal(6, 1, size=20)], rng.normal(size=1000))
        counted.append(count_anomalies(p))
    assert np.mean(counted) > 15


def test_where_something_is_counted_something_is_selected_too():
    """Simes' test of all rows is that of Benjamini and Hochberg."""
    rng = np.random.RandomState(0)
    for _ in range(100):
        p = p_values(np.r_[rng.normal(size=30), rng.normal(2, 1, size=5)], rng.normal(size=100))
        assert (count_anomalies(p, confidence=0.8) > 0) == discoveries(p, 0.2).any()


def test_selections_are_flags_or_positions():
    p = np.array([0.9, 0.001, 0.5, 0.002])
    assert count_anomalies(p, [False, True, False, True]) == count_anomalies(p, [1, 3]) == 2
    assert count_anomalies(p, []) == count_anomalies(p, [False] * 4) == count_anomalies([]) == 0
    assert len(anomaly_count_curve([])) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.1, 1.5],), ValueError, r"one number in \[0, 1\]"),
        (([np.nan],), ValueError, r"one number in \[0, 1\]"),
        (([0.1], None, 1.0), ValueError, "confidence must lie in"),
        (([0.1, 0.2], [0, 0]), ValueError, "each row at most once"),
        (([0.1, 0.2], [2]), IndexError, "out of bounds"),
        (([0.1, 0.2], [True]), IndexError, "boolean"),
    ],
)
def test_what_cannot_be_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        count_anomalies(*arguments)


def test_large_batches_are_counted_at_once():
    p = np.random.RandomState(0).uniform(size=300_000)
    p[:1000] = 1e-9
    assert 1000 <= count_anomalies(p) < 1010


# -- the detector and the picture -------------------------------------------------------------------------
@pytest.fixture(scope="module")
def detector():
    X = np.random.RandomState(0).normal(size=(400, 3))
    return VAEDetector(epochs=2, calibration=0.5, random_state=0).fit(X)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.RandomState(1)
    return np.r_[rng.normal(size=(60, 3)), rng.normal(size=(10, 3)) + 50]


def test_the_detector_counts_by_its_p_values(detector, rows):
    assert detector.count_anomalies(rows) == count_anomalies(detector.p_values(rows))
    assert detector.count_anomalies(rows, selected=np.arange(60, 70), confidence=0.8) == count_anomalies(
        detector.p_values(rows), np.arange(60, 70), 0.8
    )


def test_the_picture_draws_the_curve_and_says_what_it_ends_at(detector, rows):
    p = detector.p_values(rows)
    try:
        for ax in (plotting.anomaly_counts(detector, rows), plotting.anomaly_counts(p)):
            drawn = ax.lines[0]
            np.testing.assert_array_equal(drawn.get_xdata(), np.arange(71))
            np.testing.assert_array_equal(drawn.get_ydata(), np.r_[0, anomaly_count_curve(p)])
            (label,) = [text.get_text() for text in ax.get_legend().get_texts()][:1]
            assert label == f"at least, with 95 % confidence ({count_anomalies(p)} of 70 rows)"
        given = pyplot.figure().add_subplot()
        assert plotting.anomaly_counts(p, confidence=0.8, ax=given) is given
        with pytest.raises(ValueError, match="X is for a detector"):
            plotting.anomaly_counts(p, rows)
    finally:
        pyplot.close("all")
