"""With labels: probabilities of being an anomaly, and cuts for precision and recall."""

import numpy as np
import pytest
from conftest import Calibrated, wide
from scipy import stats
from scipy.special import expit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from sklearn.model_selection import cross_val_score

from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.calibration import AnomalyProbability, precision_cut, recall_cut
from vae_anomaly.datasets import make_anomalies

RUNS = 2_000
DETECTOR = Calibrated(None)  # its rows are their scores


def drawn(rng, n_rows, prevalence=0.2, shift=2.0):
    """Scores and labels, whose true probability is a logistic function of the score."""
    y = (rng.uniform(size=n_rows) < prevalence).astype(int)
    return rng.normal(size=n_rows) + shift * y, y


def true_probability(scores, prevalence=0.2, shift=2.0):
    return expit(shift * scores - shift**2 / 2 + np.log(prevalence / (1 - prevalence)))


def assert_holds(held, confidence):
    assert np.sum(held) >= stats.binom.ppf(0.001, len(held), confidence)


# -- probabilities ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_the_probability_is_that_of_scikit_learns_calibration_of_a_classifier(method):
    """A logistic regression on the scores has a decision function that is linear in them."""
    scores, y = drawn(np.random.RandomState(0), 500)
    classifier = LogisticRegression().fit(scores[:, None], y)
    expected = CalibratedClassifierCV(FrozenEstimator(classifier), method=method, cv=3).fit(
        scores[:, None], y
    )
    found = AnomalyProbability(DETECTOR, method).fit(scores, y)
    new = np.linspace(-4, 7, 50)
    np.testing.assert_allclose(found.predict_proba(new), expected.predict_proba(new[:, None]), atol=1e-4)


def test_isotonic_is_isotonic_regression():
    scores, y = drawn(np.random.RandomState(1), 300)
    found = AnomalyProbability(DETECTOR, "isotonic").fit(scores, y).predict_proba(scores)
    expected = IsotonicRegression(out_of_bounds="clip").fit(scores, y).predict(scores)
    np.testing.assert_allclose(found[:, 1], expected)
    np.testing.assert_allclose(found.sum(axis=1), 1)


@pytest.mark.parametrize(("method", "atol"), [("sigmoid", 0.05), ("isotonic", 0.12)])
def test_the_true_probability_is_found(method, atol):
    scores, y = drawn(np.random.RandomState(0), 20_000)
    new = np.linspace(-1, 3, 20)
    found = AnomalyProbability(DETECTOR, method).fit(scores, y).predict_proba(new)[:, 1]
    np.testing.assert_allclose(found, true_probability(new), atol=atol)


@pytest.mark.parametrize("far", [1e3, 1e6, 1e13, 1e30, np.inf])
def test_one_anomaly_that_is_far_out_hides_no_other(far):
    scores, y = drawn(np.random.RandomState(0), 2_000)
    new = np.linspace(-1, 3, 20)
    expected = AnomalyProbability(DETECTOR).fit(scores, y).predict_proba(new)[:, 1]
    scores[np.argmax(y)] = far
    found = AnomalyProbability(DETECTOR).fit(scores, y)
    np.testing.assert_allclose(found.predict_proba(new)[:, 1], expected, atol=0.05)
    assert found.predict_proba(np.array([far]))[0, 1] > 0.99


def test_a_prevalence_moves_the_odds_to_where_anomalies_are_rarer():
    rng = np.random.RandomState(0)
    scores, y = drawn(rng, 20_000, prevalence=0.5)
    rare, rare_y = drawn(rng, 20_000, prevalence=0.02)
    plain, moved = (AnomalyProbability(DETECTOR, prevalence=p).fit(scores, y) for p in (None, 0.02))
    found = moved.predict_proba(rare)
    np.testing.assert_allclose(found[:, 1], true_probability(rare, 0.02), atol=0.06)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert found[:, 1].mean() == pytest.approx(rare_y.mean(), abs=0.005)
    before = plain.predict_proba(rare)[:, 1]
    assert brier_score_loss(rare_y, found[:, 1]) < brier_score_loss(rare_y, before)
    same = AnomalyProbability(DETECTOR, prevalence=plain.prevalence_).fit(scores, y)
    np.testing.assert_allclose(same.predict_proba(rare)[:, 1], before)


@pytest.mark.parametrize("labels", [(1, -1), (0, 1), ("fine", "broken")])
def test_labels_of_any_convention_are_read(labels):
    scores, y = drawn(np.random.RandomState(0), 200)
    expected = AnomalyProbability(DETECTOR).fit(scores, y)
    anomaly_label = labels[1] if isinstance(labels[1], str) else "auto"
    found = AnomalyProbability(DETECTOR, anomaly_label=anomaly_label).fit(scores, np.array(labels)[y])
    np.testing.assert_array_equal(found.predict_proba(scores), expected.predict_proba(scores))
    np.testing.assert_array_equal(found.predict(scores), found.predict_proba(scores)[:, 1] > 0.5)
    assert found.classes_.tolist() == [0, 1]


def test_a_frozen_detector_stays_fitted_in_a_cross_validation():
    X, y = make_anomalies(600, 4, kind="global", random_state=0)
    detector = VAEDetector(DenseNetwork((8,)), epochs=2, members=1, random_state=0).fit(X[:300])
    probability = AnomalyProbability(FrozenEstimator(detector))
    losses = cross_val_score(probability, X[300:], y[300:], scoring="neg_brier_score", cv=3)
    assert (losses > -0.1).all()


def test_a_few_labels_are_enough_to_begin_with():
    probability = AnomalyProbability(DETECTOR).fit([0.0, 1.0, 0.5, 5.0, 6.0], [0, 0, 0, 1, 1])
    low, high = probability.predict_proba([0.0, 6.0])[:, 1]
    assert 0 < low < 0.5 < high < 1


def test_a_detector_stays_as_it_is():
    X, y = make_anomalies(600, 4, kind="global", random_state=0)
    detector = VAEDetector(DenseNetwork((8,)), epochs=2, members=1, random_state=0).fit(X[:300])
    before = detector.decision_function(X)
    probability = AnomalyProbability(detector).fit(X[300:], y[300:])
    np.testing.assert_array_equal(detector.decision_function(X), before)
    order = np.argsort(detector.score_samples(X))
    assert (np.diff(probability.predict_proba(X)[order, 1]) <= 0).all()


@pytest.mark.parametrize(
    ("settings", "y", "message"),
    [
        ({}, [0, 0, 0, 1], "at least 2 rows of each class; received 1 of one"),
        ({}, [0, 0, 0, 0], "labels of two classes"),
        ({}, [0, 1], r"one label and one score for each row; received .*\(2,\) and \(4,\)"),
        ({"prevalence": 1.0}, [0, 0, 1, 1], "prevalence"),
        ({"method": "platt"}, [0, 0, 1, 1], "method"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(settings, y, message):
    with pytest.raises(ValueError, match=message):
        AnomalyProbability(DETECTOR, **settings).fit([1.0, 2.0, 3.0, 4.0], y)


# -- cuts -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("recall", [wide(0.5), 0.9])
@pytest.mark.parametrize("confidence", [0.95, wide(0.6)])
def test_the_recall_is_reached_with_the_confidence_and_not_more_often_than_ranks_allow(recall, confidence):
    anomalies = np.random.RandomState(0).uniform(size=(RUNS, 150))
    cuts = np.array([recall_cut(scores, recall, confidence) for scores in anomalies])
    held = 1 - cuts >= recall
    assert_holds(held, confidence)
    assert held.mean() < confidence + 0.1


def test_rows_with_the_score_of_the_last_anomaly_that_counts_are_found():
    scores = np.repeat([1.0, 2.0], [10, 190])
    cut = recall_cut(scores, 0.9)
    assert 1.0 < cut < 2.0
    assert (scores > cut).mean() == 0.95


def test_too_few_anomalies_are_told():
    assert recall_cut(np.arange(29.0), 0.9) < 0
    with pytest.raises(ValueError, match="takes at least 29 known anomalies; received 28"):
        recall_cut(np.arange(28.0), 0.9)


@pytest.mark.parametrize(("precision", "prevalence"), [(0.8, 0.2), wide(0.5, 0.2), wide(0.9, 0.5)])
def test_the_precision_is_reached_with_the_confidence(precision, prevalence):
    rng, held, n_cuts = np.random.RandomState(0), [], 0
    for _ in range(600):
        scores, y = drawn(rng, 400, prevalence, shift=3.0)
        try:
            cut = precision_cut(scores, y, precision, 0.8)
        except ValueError:
            held.append(True)  # nothing is promised
            continue
        n_cuts += 1
        found, false = prevalence * stats.norm.sf(cut - 3.0), (1 - prevalence) * stats.norm.sf(cut)
        held.append(found / (found + false) >= precision)
    assert_holds(held, 0.8)
    assert n_cuts > 500


def test_ties_and_chance_do_not_make_a_precision():
    rng, held = np.random.RandomState(0), []
    for _ in range(600):  # a score of three values that tells nothing
        scores, y = rng.randint(3, size=200), (rng.uniform(size=200) < 0.5).astype(int)
        try:
            precision_cut(scores, y, 0.55, 0.9)
        except ValueError:
            held.append(True)
        else:
            held.append(False)
    assert_holds(held, 0.9)


def test_more_labels_find_more_anomalies_at_the_same_precision():
    rng = np.random.RandomState(0)
    cuts = [precision_cut(*drawn(rng, n_rows, shift=3.0), 0.8) for n_rows in (300, 3000, 30_000)]
    assert cuts == sorted(cuts, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.arange(50.0), np.arange(50) % 2, 0.9), r"no cut has a precision of 0.9.*the best of \d+ has 0"),
        ((np.arange(50.0), np.arange(50) % 2, 1.0), "precision must lie in"),
        ((np.arange(50.0), np.arange(49) % 2, 0.5), "one label and one score"),
        (([np.nan, 1.0], [0, 1], 0.5), "with NaN"),
        ((np.arange(50.0), np.zeros(50), 0.5), "labels of two classes"),
    ],
)
def test_cuts_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        precision_cut(*arguments)
