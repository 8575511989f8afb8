"""Covariate shift: p-values and selections by weights."""

import numpy as np
import pytest
from conftest import wide
from scipy import stats
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression

from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.calibration import (
    CovariateShift,
    discoveries,
    effective_rows,
    p_values,
    weighted_discoveries,
    weighted_p_values,
)

SHIFT = 1.0


def drawn(rng, n_rows, shift=0.0):
    """A covariate and scores that spread more where it is large; and the true ratio of densities."""
    x = rng.normal(size=n_rows) + shift
    return x, np.exp(0.5 * x) * rng.normal(size=n_rows) ** 2, np.exp(SHIFT * x - SHIFT**2 / 2)


# -- p-values ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("discrete", [False, True])
def test_equal_weights_are_no_weights_to_the_last_bit(weight, discrete):
    rng = np.random.RandomState(0)
    draw = rng.poisson if discrete else rng.gumbel
    for n_calibration in (1, 7, 1000):
        new, known = draw(2, size=300).astype(float), draw(2, size=n_calibration).astype(float)
        found = weighted_p_values(new, np.full(300, weight), known, np.full(n_calibration, weight))
        np.testing.assert_array_equal(found, p_values(new, known))


def test_weighted_p_values_by_hand():
    found = weighted_p_values([2.0, 9.0, 0.0], [1.0, 2.0, 4.0], [3.0, 1.0, 2.0], [5.0, 7.0, 11.0])
    np.testing.assert_allclose(found, [(5 + 11 + 1) / 24, 2 / 25, (23 + 4) / 27])


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_true_weights_keep_the_rate_after_a_shift_and_none_do_not(alpha):
    rng, with_weights, without = np.random.RandomState(0), [], []
    for _ in range(2_000):
        _, known, known_weights = drawn(rng, 100)
        _, new, new_weights = drawn(rng, 1, SHIFT)
        with_weights.append(weighted_p_values(new, new_weights, known, known_weights)[0] <= alpha)
        without.append(p_values(new, known)[0] <= alpha)
    assert np.sum(with_weights) <= stats.binom.ppf(0.999, 2_000, alpha)
    assert np.mean(with_weights) > 0.2 * alpha
    assert np.mean(without) > 1.3 * alpha


# -- selections -------------------------------------------------------------------------------------------
def by_definition(scores, weights, known, known_weights, alpha, xi):
    """Jin & Candès 2023, algorithm 1, with the homogeneous pruning."""
    m, total = len(scores), known_weights.sum()
    sizes, first = np.zeros(m, dtype=int), np.zeros(m, dtype=bool)
    for j in range(m):
        bar = np.zeros(m)
        for other in set(range(m)) - {j}:
            weight = known_weights[known >= scores[other]].sum()
            bar[other] = (weight + weights[j] * (scores[j] >= scores[other])) / (total + weights[j])
        sizes[j] = max(k for k in range(1, m + 1) if np.sort(bar)[k - 1] <= alpha * k / m + 1e-12)
        own = (known_weights[known >= scores[j]].sum() + weights[j]) / (total + weights[j])
        first[j] = own <= alpha * sizes[j] / m + 1e-12
    r = max((r for r in range(1, m + 1) if (first & (xi * sizes <= r)).sum() >= r), default=0)
    return first & (xi * sizes <= r)


@pytest.mark.parametrize("discrete", [False, True])
def test_selections_are_those_of_the_papers_algorithm(discrete):
    n_selected = []
    for seed in range(8):
        rng = np.random.RandomState(seed)
        known, new = rng.normal(size=60), np.r_[rng.normal(size=12), rng.normal(3, 1, size=8)]
        if discrete:
            known, new = np.round(known), np.round(new)
        known_weights, new_weights = rng.exponential(size=60), rng.exponential(size=20) + 0.01
        for alpha in (0.1, 0.3, 0.6):
            xi = np.random.RandomState(seed).random_sample()
            expected = by_definition(new, new_weights, known, known_weights, alpha, xi)
            found = weighted_discoveries(new, new_weights, known, known_weights, alpha, seed)
            np.testing.assert_array_equal(found, expected)
            n_selected.append(expected.sum())
    assert len({*n_selected}) > 5


@pytest.mark.parametrize("share", [0.0, 0.2, wide(0.5)])
def test_the_share_of_false_discoveries_after_a_shift_is_at_most_the_rate(share):
    rng, false, found, without = np.random.RandomState(0), [], [], []
    for _ in range(300):
        _, known, known_weights = drawn(rng, 400)
        _, new, new_weights = drawn(rng, 50, SHIFT)
        anomalies = np.arange(50) < 50 * share
        new = np.where(anomalies, new + 60, new)
        selected = weighted_discoveries(new, new_weights, known, known_weights, 0.2, rng)
        false.append(selected[~anomalies].sum() / max(1, selected.sum()))
        found.append(selected[anomalies].mean() if share else 0)
        unweighted = discoveries(p_values(new, known), 0.2)
        without.append(unweighted[~anomalies].sum() / max(1, unweighted.sum()))
    assert np.mean(false) <= 0.2 + 3 * np.std(false) / np.sqrt(300)
    if share == 0.2:
        assert np.mean(found) > 0.6
        assert np.mean(without) > 0.2 + 3 * np.std(without) / np.sqrt(300)


@pytest.mark.parametrize("seed", range(6))
def test_equal_weights_select_as_benjamini_and_hochberg(seed):
    rng = np.random.RandomState(seed)
    known, new = rng.normal(size=500), np.r_[rng.normal(size=80), rng.normal(5, 1, size=20)]
    selected = weighted_discoveries(new, np.ones(100), known, np.ones(500), random_state=seed)
    plain = discoveries(p_values(new, known))
    assert plain.any()
    np.testing.assert_array_equal(selected, plain)


def test_nothing_is_selected_of_nothing():
    assert weighted_discoveries([], [], [1.0], [1.0]).shape == (0,)
    assert weighted_p_values([], [], [1.0], [1.0]).shape == (0,)


# -- effective rows ---------------------------------------------------------------------------------------
def test_effective_rows_are_between_one_and_all():
    assert effective_rows(np.full(7, 1e300)) == 7
    assert effective_rows([1.0, 1e-300]) == 1
    weights = np.random.RandomState(0).exponential(size=100_000)
    assert effective_rows(weights) == pytest.approx(50_000, rel=0.02)  # E[w]² / E[w²] = 1 / 2


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [np.inf], [np.nan], [[1.0]]])
def test_weights_without_effective_rows_are_refused(weights):
    with pytest.raises(ValueError, match="finite and not negative, and not all 0"):
        effective_rows(weights)


REFUSED = {
    "too few": (([1.0], [], [1.0], [1.0]), r"one number for each of the scores.*\(1,\) and \(0,\)"),
    "tables": (([[1.0]], [[1.0]], [1.0], [1.0]), "one number for each of the scores"),
    "negative": (([1.0], [1.0], [1.0], [-1.0]), "calibration scores must be finite and not negative"),
    "zero of a new row": (([1.0], [0.0], [1.0], [1.0]), "weights of scores must be finite and positive"),
    "infinite": (([1.0], [1.0], [1.0], [np.inf]), "must be finite"),
    "no score": (([np.nan], [1.0], [1.0], [1.0]), "scores must be numbers; 1 are NaN"),
    "none": (([1.0], [np.nan], [1.0], [1.0]), "must be finite"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_weights_that_cannot_be_are_refused(arguments, message):
    for ask in (weighted_p_values, weighted_discoveries):
        with pytest.raises(ValueError, match=message):
            ask(*arguments)


def test_a_rate_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="false_discovery_rate must lie in"):
        weighted_discoveries([1.0], [1.0], [1.0], [1.0], 1.0)


# -- of a detector ----------------------------------------------------------------------------------------
class Known(BaseEstimator):
    """A detector whose rows are a covariate and a score."""

    def score_samples(self, X):
        return -X[:, 1]

    def encode(self, X):
        return X[:, :1]


def rows(rng, n_rows, shift=0.0):
    return np.column_stack(drawn(rng, n_rows, shift)[:2])


def test_the_odds_of_a_classifier_are_the_ratio_of_the_densities():
    rng = np.random.RandomState(0)
    reference, new = rows(rng, 20_000), rows(rng, 5_000, SHIFT)
    shift = CovariateShift(Known()).fit(reference, new)
    true = np.exp(SHIFT * reference[:, 0] - SHIFT**2 / 2)
    np.testing.assert_allclose(np.log(shift.weights_), np.log(true), atol=0.25)
    assert shift.weights_.mean() == pytest.approx(1)
    assert shift.effective_rows_ == pytest.approx(effective_rows(shift.weights_))
    assert shift.effective_rows_ == pytest.approx(20_000 * np.exp(-(SHIFT**2)), rel=0.3)


def test_estimated_weights_keep_the_rate_nearly():
    rng, with_weights, without = np.random.RandomState(0), [], []
    for _ in range(30):
        reference, new = rows(rng, 500), rows(rng, 200, SHIFT)
        shift = CovariateShift(Known()).fit(reference, new)
        with_weights.append((shift.p_values(new) <= 0.1).mean())
        without.append((p_values(new[:, 1], reference[:, 1]) <= 0.1).mean())
    assert np.mean(with_weights) < 0.12
    assert np.mean(without) > 0.15


def test_p_values_and_selections_are_those_of_the_weights():
    rng = np.random.RandomState(0)
    reference, new = rows(rng, 500), rows(rng, 50, SHIFT)
    new[:10, 1] += 100
    classifier = LogisticRegression(C=0.1)
    shift = CovariateShift(Known(), classifier).fit(reference, new)
    chance = (
        clone(classifier)
        .fit(np.r_[reference[:, :1], new[:, :1]], np.repeat([0, 1], [500, 50]))
        .predict_proba(new[:, :1])[:, 1]
    )
    weights = chance / (1 - chance)
    known = shift.classifier_.predict_proba(reference[:, :1])
    arguments = new[:, 1], weights, reference[:, 1], known[:, 1] / known[:, 0]
    np.testing.assert_allclose(shift.p_values(new), weighted_p_values(*arguments))
    selected = shift.select_anomalies(new, 0.2, random_state=0)
    np.testing.assert_array_equal(selected, weighted_discoveries(*arguments, 0.2, 0))
    assert selected[:10].all()


def test_rows_that_are_too_far_are_refused_and_the_earlier_fit_is_kept():
    rng = np.random.RandomState(0)
    reference, new = rows(rng, 200), rows(rng, 50, SHIFT)
    shift = CovariateShift(Known()).fit(reference, new)
    before = shift.p_values(new)
    with pytest.raises(ValueError, match=r"of 200, the weights leave \d+\.\d effective ones, and fewest_eff"):
        shift.fit(reference, rows(rng, 50, 6.0))
    np.testing.assert_array_equal(shift.p_values(new), before)


def test_a_detector_judges_shifted_rows_by_its_posterior_means():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(300, 3))
    detector = VAEDetector(DenseNetwork((8,)), epochs=2, members=1, random_state=0).fit(X)
    reference, new = rng.normal(size=(300, 3)), rng.normal(size=(80, 3)) + [0.5, 0, 0]
    shift = CovariateShift(detector).fit(reference, new)
    assert ((shift.p_values(new) > 0) & (shift.p_values(new) <= 1)).all()
    np.testing.assert_array_equal(shift.scores_, -detector.score_samples(reference))
    assert shift.classifier_.n_features_in_ == detector.latent_dim_
    known, unseen = (shift.classifier_.predict_proba(detector.encode(X)) for X in (reference, new))
    expected = weighted_p_values(
        -detector.score_samples(new), unseen[:, 1] / unseen[:, 0], shift.scores_, known[:, 1] / known[:, 0]
    )
    np.testing.assert_allclose(shift.p_values(new), expected)
