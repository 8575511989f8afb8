"""Threshold rules: an array of scores in, a cut out."""

import numpy as np
import pytest
from scipy import stats
from sklearn.ensemble import IsolationForest

from vae_anomaly import VAEDetector, thresholds
from vae_anomaly.thresholds import (
    THRESHOLDS,
    Conformal,
    MedianDeviation,
    ParetoTail,
    Quantile,
    TukeyFence,
)

SCORES = np.random.RandomState(0).exponential(size=1000)


@pytest.mark.parametrize("contamination", [0.001, 0.03, 0.1, 0.5])
def test_quantile_leaves_the_share_above_the_cut(contamination):
    assert (Quantile(contamination).cut(SCORES) < SCORES).sum() == 1000 * contamination


def test_quantile_is_the_rule_of_scikit_learns_detectors():
    X = SCORES.reshape(-1, 2)
    forest = IsolationForest(contamination=0.07, random_state=0).fit(X)
    assert -Quantile(0.07).cut(-forest.score_samples(X)) == forest.offset_


def test_tukeys_fence_is_the_upper_quartile_and_its_reach():
    lower, upper = np.quantile(SCORES, [0.25, 0.75])
    assert TukeyFence(n_ranges=1.5).cut(SCORES) == pytest.approx(upper + 1.5 * (upper - lower))


def test_tukeys_fence_leaves_a_minimum_share_above_it():
    uniform = np.linspace(0, 1, 1000)
    assert (TukeyFence(minimum_fraction=0.01).cut(uniform) < uniform).sum() == 10


def test_tukeys_fence_follows_the_share_of_anomalies():
    normal, anomalies = np.random.RandomState(0).normal(size=900), np.full(100, 50.0)
    alarms = TukeyFence().cut(np.r_[normal, anomalies]) < np.r_[normal, anomalies]
    assert alarms[900:].all()
    assert alarms[:900].mean() < 0.02


def test_median_deviation_is_a_multiple_of_the_standard_deviation_for_normal_scores():
    normal = stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    assert MedianDeviation(2.5).cut(3 + 2 * normal) == pytest.approx(3 + 2 * 2.5, abs=1e-3)


def test_median_deviation_withstands_many_anomalies():
    normal = np.random.RandomState(0).normal(size=700)
    clean, contaminated = (MedianDeviation().cut(np.r_[normal, np.full(n, 1e6)]) for n in (0, 300))
    assert contaminated < 2.5 * clean


@pytest.mark.parametrize(("n_rows", "alpha"), [(9, 0.1), (19, 0.1), (99, 0.01), (250, 0.05), (3, 0.5)])
def test_the_conformal_cut_lets_just_the_guaranteed_rank_pass(n_rows, alpha):
    # Of n + 1 exchangeable scores without ties the new one has each rank alike: it lies above the k-th
    # smallest of the others with probability 1 - k / (n + 1).
    scores = np.random.RandomState(0).permutation(n_rows).astype(float)
    rank = (scores <= Conformal(alpha).cut(scores)).sum()
    assert 1 - rank / (n_rows + 1) <= alpha + 1e-12
    assert 1 - (rank - 1) / (n_rows + 1) > alpha


def test_the_conformal_rate_holds_over_calibrations():
    rng = np.random.RandomState(0)
    rates = [(rng.gumbel(size=200) > Conformal(0.1).cut(rng.gumbel(size=49))).mean() for _ in range(2000)]
    assert np.mean(rates) == pytest.approx(0.1, abs=0.004)  # four standard errors


def test_a_conformal_cut_without_enough_rows_says_how_many_it_takes():
    with pytest.raises(ValueError, match="0.01 needs at least 99 rows.*received 98.*calibration"):
        Conformal(0.01).cut(np.arange(98.0))


@pytest.mark.parametrize(
    "distribution",
    [
        pytest.param(stats.expon(), id="exponential"),
        pytest.param(stats.genpareto(0.2), id="heavy tail"),
        pytest.param(stats.norm(), id="normal"),
        pytest.param(stats.chi2(6), id="chi-square"),
    ],
)
def test_the_tail_reaches_beyond_the_rows(distribution):
    scores = distribution.rvs(size=100_000, random_state=0)
    for risk, factor in ((1e-3, 1.3), (1e-4, 2), (1e-5, 4)):
        rate = distribution.sf(ParetoTail(risk).cut(scores))
        assert risk / factor < rate < risk * factor


def test_a_risk_inside_the_rows_is_their_quantile():
    assert ParetoTail(0.2).cut(SCORES) == np.quantile(SCORES, 0.8)


def test_a_tail_of_equal_scores_is_flat():
    assert ParetoTail(1e-4).cut(np.r_[np.zeros(500), np.ones(500)]) == 1


@pytest.mark.parametrize(("n_rows", "share"), [(8, "auto"), (50, 0.1), (20, 0.99)])
def test_a_tail_of_too_few_rows_is_refused(n_rows, share):
    with pytest.raises(ValueError, match=f"at least 10 excesses.*received {n_rows} rows"):
        ParetoTail(tail_fraction=share).cut(np.arange(float(n_rows)))


@pytest.mark.parametrize(
    "rule", [Quantile(0.1), TukeyFence(), MedianDeviation(), Conformal(0.1), ParetoTail()]
)
def test_equal_scores_are_all_normal(rule):
    assert not (rule.cut(np.full(50, 3.25)) < 3.25)


@pytest.mark.parametrize(
    "rule",
    [Quantile(0.0), Quantile(0.6), TukeyFence(n_ranges=-1), TukeyFence(minimum_fraction=0)]
    + [MedianDeviation(-1), Conformal(0), Conformal(1.0), ParetoTail(0), ParetoTail(tail_fraction=1.0)],
)
def test_impossible_parameters_are_refused(rule):
    with pytest.raises(ValueError, match="parameter of"):
        rule.cut(SCORES)


def test_a_rule_of_ones_own_takes_the_place_of_contamination(table):
    class Largest:
        def cut(self, scores):
            return np.sort(scores)[-4]

    detector = VAEDetector(epochs=2, threshold=Largest(), contamination=0.4, random_state=0)
    assert (detector.fit_predict(table[0]) == -1).sum() == 3


def test_a_rule_given_to_the_detector_decides_its_offset(table, small_detector):
    detector = small_detector.set_params(threshold=Quantile(0.2)).fit(table[0])
    assert detector.offset_ == -Quantile(0.2).cut(-detector.score_samples(table[0]))


def test_resolve_prefers_the_rule_to_the_contamination():
    rule = Quantile(0.3)
    assert thresholds.resolve(rule, 0.1) is rule
    assert thresholds.resolve(None, 0.1).contamination == 0.1
    assert isinstance(thresholds.resolve(None, "auto"), TukeyFence)
    assert thresholds.resolve("quantile", 0.2).contamination == 0.2
    assert thresholds.resolve("quantile", "auto").contamination == Quantile().contamination
    for name, rule in THRESHOLDS.items():
        assert type(thresholds.resolve(name, "auto")) is rule
    with pytest.raises(ValueError, match="threshold must be one of .*'gpd'.* received 'tail'"):
        thresholds.resolve("tail", "auto")


class LabelsTheHighestThree:
    def eval(self, scores):
        return (scores >= np.sort(scores)[-3]).astype(int)


class LabelsWhenFitted:
    def fit(self, scores):
        self.lowest = np.sort(scores)[-3]
        return self

    def predict(self, scores):
        return (scores >= self.lowest).astype(int)


@pytest.mark.parametrize("rule", [LabelsTheHighestThree(), LabelsWhenFitted()])
def test_rules_that_label_scores_work_as_they_are(rule, table, small_detector):
    detector = small_detector.set_params(threshold=rule)
    assert (detector.fit_predict(table[0]) == -1).sum() == 3


def test_a_rule_that_labels_nothing_flags_nothing():
    class LabelsNone:
        def eval(self, scores):
            return np.zeros(len(scores))

    assert thresholds.resolve(LabelsNone(), "auto").cut(SCORES) == SCORES.max()


def test_labels_other_than_0_and_1_are_refused():
    class LabelsAll:
        def eval(self, scores):
            return np.full(len(scores), -1)

    with pytest.raises(ValueError, match="label each of the 1000 scores 0 or 1.*LabelsAll returned"):
        thresholds.resolve(LabelsAll(), "auto").cut(SCORES)


def test_a_rule_that_a_sample_settles_gets_no_more_scores():
    class Median:
        n_scores = 40

        def cut(self, scores):
            self.received = len(scores)
            return np.median(scores)

    X = np.random.RandomState(0).normal(size=(100, 3))
    rule = Median()
    detector = VAEDetector(epochs=2, threshold=rule, random_state=0).fit(X)
    assert rule.received == 40
    assert (detector.predict(X) == -1).mean() == pytest.approx(0.5, abs=0.15)
    rule.n_scores = 1000
    detector.fit(X)
    assert rule.received == 100
    assert (detector.predict(X) == -1).sum() == 50


def test_a_rule_for_unseen_rows_gets_few_training_rows_scored():
    X = np.random.RandomState(0).normal(size=(3000, 2)).astype("f4")
    assert len(thresholds.rows_to_score(Conformal(), X, 0)) == TukeyFence.n_scores
    assert len(thresholds.rows_to_score(Quantile(), X, 0)) == 3000


def test_automatic_contamination_holds_for_rows_beyond_the_sample():
    X = np.random.RandomState(0).uniform(size=(30_000, 2))
    detector = VAEDetector(epochs=1, n_draws=1, random_state=0).fit(X)
    assert TukeyFence.n_scores < len(X)
    assert (detector.predict(X) == -1).mean() > 0.01 - 4 * 0.001
