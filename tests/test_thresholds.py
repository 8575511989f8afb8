"""Threshold rules: an array of scores in, a cut out."""

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

from vae_anomaly import VAEDetector, thresholds
from vae_anomaly.thresholds import Quantile, TukeyFence

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
    assert TukeyFence(reach=1.5).cut(SCORES) == pytest.approx(upper + 1.5 * (upper - lower))


def test_tukeys_fence_leaves_a_minimum_share_above_it():
    uniform = np.linspace(0, 1, 1000)
    assert (TukeyFence(minimum_share=0.01).cut(uniform) < uniform).sum() == 10


def test_tukeys_fence_follows_the_share_of_anomalies():
    normal, anomalies = np.random.RandomState(0).normal(size=900), np.full(100, 50.0)
    alarms = TukeyFence().cut(np.r_[normal, anomalies]) < np.r_[normal, anomalies]
    assert alarms[900:].all()
    assert alarms[:900].mean() < 0.02


@pytest.mark.parametrize("rule", [Quantile(0.1), TukeyFence()])
def test_equal_scores_are_all_normal(rule):
    assert not (rule.cut(np.full(50, 3.25)) < 3.25)


@pytest.mark.parametrize(
    "rule", [Quantile(0.0), Quantile(0.6), TukeyFence(reach=-1), TukeyFence(minimum_share=0)]
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


def test_automatic_contamination_holds_for_rows_beyond_the_sample():
    X = np.random.RandomState(0).uniform(size=(30_000, 2))
    detector = VAEDetector(epochs=1, n_draws=1, random_state=0).fit(X)
    assert TukeyFence.n_scores < len(X)
    assert (detector.predict(X) == -1).mean() > 0.01 - 4 * 0.001
