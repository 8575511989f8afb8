"""Monitoring: drift of most scores apart from anomalies, at the stated rate of false alarms."""

import copy
import pickle

import numpy as np
import pytest
from conftest import Calibrated, wide
from scipy import stats
from sklearn.exceptions import NotFittedError

from vae_anomaly import VAEDetector
from vae_anomaly.calibration import p_values
from vae_anomaly.monitoring import Monitor, drift


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.RandomState(0)
    detector = VAEDetector(epochs=20, calibration=0.5, random_state=0).fit(rng.normal(size=(800, 3)))
    return detector, rng.normal(size=(1000, 3))


def assert_at_most(alarms, rate):
    """As many alarms as chance makes of a rate, at most: the upper 0.1 % of binomial counts is beyond."""
    assert np.sum(alarms) <= stats.binom.ppf(0.999, len(alarms), rate)


# -- one batch ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("n_calibration", "n_rows"), [wide(30, 90), (90, 30), (19, 4), wide(1, 1)])
@pytest.mark.parametrize("discrete", [False, True])
def test_batches_without_drift_raise_no_more_alarms_than_the_rate(n_calibration, n_rows, discrete):
    rng = np.random.RandomState(0)

    def draw(size):
        return rng.poisson(2, size=size) if discrete else rng.gumbel(size=size)

    found = [drift(draw(n_rows), draw(n_calibration)) for _ in range(300)]
    for rate in (0.05, 0.01):
        assert_at_most([each.p_value <= rate for each in found], rate)
        assert_at_most([each.anomalies_p_value <= rate for each in found], rate)


def test_the_rate_is_used():
    """The p-values are not so careful that they say nothing."""
    rng = np.random.RandomState(0)
    found = [drift(rng.gumbel(size=200), rng.gumbel(size=200)) for _ in range(300)]
    assert np.mean([each.p_value <= 0.2 for each in found]) > 0.08
    assert np.mean([each.anomalies_p_value <= 0.2 for each in found]) > 0.1


@pytest.mark.parametrize("shift", [-0.6, 0.6, 5.0, 1e9])
def test_scores_that_move_up_or_down_are_drift(shift):
    rng = np.random.RandomState(0)
    found = [drift(rng.gumbel(size=200) + shift, rng.gumbel(size=400)) for _ in range(40)]
    assert np.mean([each.drifted for each in found]) > 0.9


@pytest.mark.parametrize("share", [0.01, 0.03, 0.05])
def test_a_few_anomalies_are_no_drift_but_are_seen(share):
    rng = np.random.RandomState(0)
    n_anomalies = int(share * 1000)
    batches = [np.r_[rng.gumbel(size=1000 - n_anomalies), np.full(n_anomalies, 50.0)] for _ in range(100)]
    found = [drift(batch, rng.gumbel(size=1000), 0.05) for batch in batches]
    assert_at_most([each.drifted for each in found], 0.05)
    assert np.mean([each.more_anomalies for each in found]) > (0.4 if share == 0.01 else 0.95)


def test_a_batch_that_is_all_anomalies_is_drift():
    assert drift(np.full(20, 50.0), np.random.RandomState(0).gumbel(size=300)).drifted


def test_the_figures_are_those_of_the_ranks():
    calibration = np.arange(999.0)
    found = drift(np.r_[np.full(30, 249.5), 2000.0, 3000.0], calibration, 0.05)
    assert (found.n_rows, found.n_calibration, found.false_alarm_rate) == (32, 999, 0.05)
    assert found.median_rank == pytest.approx(0.25, abs=0.001)
    assert found.anomalous_fraction == 2 / 32
    # Of 32 rows, those above the 990th of 999 scores.
    assert found.anomalies_p_value == pytest.approx(stats.betabinom(32, 10, 990).sf(1))


def test_the_number_of_far_rows_has_the_stated_law():
    rng = np.random.RandomState(0)
    shares = [drift(rng.gumbel(size=50), rng.gumbel(size=99)).anomalous_fraction for _ in range(400)]
    counts = np.bincount(np.round(50 * np.array(shares)).astype(int), minlength=51)[:3]
    for count, probability in zip(counts, stats.betabinom(50, 1, 99).pmf(range(3)), strict=True):
        assert stats.binomtest(int(count), 400, probability).pvalue > 0.001


def test_only_ranks_count():
    rng = np.random.RandomState(0)
    batch, calibration = rng.gumbel(size=60), rng.gumbel(size=90)
    assert drift(batch, calibration) == drift(np.exp(batch), np.exp(calibration))


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (np.random.RandomState(1).gumbel(size=300), "Nothing has changed"),
        (np.r_[np.random.RandomState(1).gumbel(size=290), np.full(10, 50.0)], "More anomalies, no drift: 4"),
        (np.random.RandomState(1).gumbel(size=300) + 2, "Drift: the median row scores above 89 %"),
    ],
)
def test_the_reason_says_which(batch, words):
    assert drift(batch, np.random.RandomState(0).gumbel(size=500)).reason.startswith(words)


@pytest.mark.parametrize("rate", [0, 1, -0.1, "low"])
def test_impossible_rates_are_refused(rate, fitted):
    for ask in (lambda: drift([1.0], [1.0], rate), lambda: Monitor(fitted[0], rate)):
        with pytest.raises(ValueError, match=f"false_alarm_rate must lie in.*received {rate!r}"):
            ask()


@pytest.mark.parametrize(("scores", "calibration"), [([], [1.0]), ([1.0], [])])
def test_nothing_cannot_be_compared(scores, calibration):
    with pytest.raises(ValueError, match="drift needs scores"):
        drift(scores, calibration)


# -- the detector ---------------------------------------------------------------------------------------
def test_the_detector_compares_its_scores_with_those_of_held_out_rows(fitted):
    detector, new = fitted
    assert detector.drift(new, 0.05) == drift(
        -detector.score_samples(new), detector.calibration_scores_, 0.05
    )
    assert not detector.drift(new).drifted
    assert detector.drift(new * [1, 1, 3]).drifted
    assert detector.drift(0.3 * new).drifted


@pytest.mark.parametrize("calibration", [None, "folds"])
def test_without_held_out_rows_the_error_says_what_to_do(calibration, small_detector, table):
    detector = small_detector.set_params(calibration=calibration).fit(table[0])
    for ask in (lambda: detector.drift(table[0]), lambda: Monitor(detector)):
        with pytest.raises(ValueError, match=rf"calibration=0\.2; now calibration={calibration!r}"):
            ask()


def test_an_unfitted_detector_knows_no_drift(small_detector, table):
    for ask in (lambda: small_detector.drift(table[0]), lambda: Monitor(small_detector)):
        with pytest.raises(NotFittedError):
            ask()


# -- a stream -------------------------------------------------------------------------------------------
def streams(n_streams, n_calibration, change=lambda scores: scores, n_rows=200, rate=0.05):
    rng = np.random.RandomState(0)
    found = []
    for seed in range(n_streams):
        monitor = Monitor(Calibrated(rng.gumbel(size=n_calibration)), rate, random_state=seed)
        found.append(monitor.update(change(rng.gumbel(size=n_rows))))
    return found


def test_p_values_of_a_stream_are_uniform_and_independent():
    rng = np.random.RandomState(0)
    drawn = []
    for seed in range(400):
        monitor = Monitor(Calibrated(rng.poisson(3, size=20)), random_state=seed)
        drawn.append(monitor._p_values(rng.poisson(3, size=30)))
    drawn = np.array(drawn)
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > 0.001
    assert abs(stats.spearmanr(drawn[:, :-1].ravel(), drawn[:, 1:].ravel()).statistic) < 3.3 / np.sqrt(
        400 * 29
    )


def test_p_values_are_those_of_the_calibration_and_of_all_earlier_rows():
    rng = np.random.RandomState(0)
    known, scores = list(rng.poisson(3, size=9)), rng.poisson(3, size=12)
    monitor, uniform = Monitor(Calibrated(np.array(known)), random_state=0), np.random.RandomState(0)
    expected = []
    for score in scores:
        n_larger, n_equal = np.greater(known, score).sum(), np.equal(known, score).sum()
        expected.append((n_larger + uniform.random_sample() * (1 + n_equal)) / (len(known) + 1))
        known.append(score)
    np.testing.assert_allclose(monitor._p_values(scores), expected)
    np.testing.assert_array_equal(monitor._known, np.sort(known))
    # The first is a smoothed form of the detector's own p-value.
    assert expected[0] <= p_values(scores[:1], np.array(known[:9]))[0]


def test_streams_without_drift_raise_no_more_alarms_than_the_rate_however_long_they_are_watched():
    for rate in (0.05, 0.3):
        found = streams(300, 50, rate=rate)
        assert_at_most([each.drifted for each in found], rate)
        assert_at_most([each.more_anomalies for each in found], rate)


def test_the_evidence_is_a_fair_game():
    """Its mean stays 1 over all ways that a few fair outcomes can go."""
    from itertools import product

    from vae_anomaly.monitoring.evidence import STAKES_ON_DRIFT, Game

    grid = np.linspace(-0.8, 0.8, 5)  # of mean 0
    finals = [Game(STAKES_ON_DRIFT).play(np.array(path)) for path in product(grid, repeat=4)]
    np.testing.assert_allclose(np.exp(finals).mean(axis=0), 1)


def test_how_rows_are_batched_changes_nothing():
    rng = np.random.RandomState(0)
    calibration, scores = rng.gumbel(size=100), rng.gumbel(size=1500) + 0.2
    whole, parts = (Monitor(Calibrated(calibration), random_state=0) for _ in range(2))
    whole.update(scores)
    for start in range(0, 1500, 77):
        parts.update(scores[start : start + 77])
    assert whole.evidence.drift == pytest.approx(parts.evidence.drift, rel=1e-9)
    assert whole.evidence.first_drifted == parts.evidence.first_drifted
    assert whole.evidence.n_rows == parts.evidence.n_rows == 1500


@pytest.mark.parametrize("shift", [-1.0, 0.7])
@pytest.mark.parametrize("start", [0, 1000])
def test_drift_is_found_soon_whenever_it_begins(shift, start):
    def change(scores):
        return scores + shift * (np.arange(len(scores)) >= start)

    found = streams(20, 500, change, n_rows=start + 400, rate=0.01)
    delays = [each.first_drifted - start if each.drifted else np.inf for each in found]
    assert np.median(delays) < 150


def test_a_few_anomalies_in_a_stream_are_no_drift_but_are_seen():
    def change(scores):
        return np.where(np.arange(len(scores)) % 40 == 7, 50.0, scores)

    found = streams(40, 1000, change, n_rows=1500)
    assert_at_most([each.drifted for each in found], 0.05)
    assert np.mean([each.more_anomalies for each in found]) > 0.9


def test_an_alarm_stays_when_the_rows_are_as_before():
    rng = np.random.RandomState(0)
    monitor = Monitor(Calibrated(rng.gumbel(size=500)), random_state=0)
    found = monitor.update(rng.gumbel(size=100) + 3)
    later = monitor.update(rng.gumbel(size=3000))
    assert found.drifted
    assert later.drifted
    assert later.first_drifted == found.first_drifted
    assert later.drift < found.drift / 100


def test_evidence_beyond_all_floats_is_infinite():
    monitor = Monitor(Calibrated(np.arange(5.0)), random_state=0)
    assert monitor.update(np.arange(10.0, 30_000.0)).drift == np.inf
    assert np.isfinite(monitor._drift._log_capital).all()


def test_a_monitor_of_a_detector_can_be_put_away_and_go_on(fitted):
    detector, new = fitted
    monitor = Monitor(detector, random_state=0)
    monitor.update(new[:500])
    again = pickle.loads(pickle.dumps(monitor))
    assert again.update(new[500:]) == monitor.update(new[500:])
    assert not monitor.evidence.drifted
    assert monitor.evidence.n_rows == 1000
    assert monitor.update(2 * new[:200]).drifted


# -- a detector that is fitted again ----------------------------------------------------------------------
@pytest.mark.parametrize("selection", [None, "saffron"])
def test_a_detector_that_was_fitted_again_is_refused_and_the_monitor_stays(selection):
    rng = np.random.RandomState(0)
    calibration, stream = rng.gumbel(size=200), rng.gumbel(size=30)
    detector = Calibrated(calibration)
    monitor = Monitor(detector, random_state=0, selection=selection)
    before = monitor.update(stream)
    detector.calibration_scores_ = calibration + 1
    with pytest.raises(ValueError, match=r"not the one that the monitor was made with.*copy[.]deepcopy"):
        monitor.update(stream)
    assert monitor.evidence == before
    detector.calibration_scores_ = calibration.copy()  # the same fit, loaded again
    assert monitor.update(stream).n_rows == 60


def test_a_monitor_of_a_copy_goes_on_while_the_detector_is_fitted_again(fitted):
    detector, rows = fitted
    of_copy, alone = copy.deepcopy(detector), copy.deepcopy(detector)
    monitor = Monitor(copy.deepcopy(of_copy), random_state=0)
    monitor.update(rows[:100])
    of_copy.set_params(epochs=1).fit(rows[:200])
    again = Monitor(alone, random_state=0)
    again.update(rows[:100])
    assert monitor.update(rows[100:200]) == again.update(rows[100:200])
