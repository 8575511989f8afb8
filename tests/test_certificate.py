"""Certificates: bounds on the false-alarm rate that hold with the stated confidence."""

import copy
import re

import numpy as np
import pytest
from conftest import wide
from scipy import stats

from vae_anomaly import VAEDetector, load
from vae_anomaly.calibration import certified_cut, certify
from vae_anomaly.calibration.certificate import fewest_rows, most_above
from vae_anomaly.thresholds import Conformal, OutOfBag, Quantile

RUNS = 2_000


@pytest.fixture(scope="module")
def rows():
    return np.random.RandomState(0).normal(size=(400, 3))


@pytest.fixture(scope="module")
def conformal(rows):
    return VAEDetector(epochs=2, threshold="conformal", calibration=0.5, random_state=0).fit(rows)


def assert_holds(held, confidence):
    """As often as stated at least: the lower 0.1 % of binomial counts is beyond."""
    assert np.sum(held) >= stats.binom.ppf(0.001, len(held), confidence)


# -- the mathematics --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("n_rows", "rate"), [(60, 0.05), (1000, 0.05), (1000, 0.01), wide(5000, 0.001)])
@pytest.mark.parametrize("confidence", [0.95, wide(0.5), wide(0.99)])
def test_the_confidence_of_a_cut_by_rank_is_exact(n_rows, rate, confidence):
    """Of independent uniform scores, the rate above the k-th smallest is 1 minus it."""
    rng = np.random.RandomState(0)
    calibrations = rng.uniform(size=(RUNS, n_rows))
    rank = n_rows - int(rate * n_rows)
    cuts = np.sort(calibrations, axis=1)[:, rank - 1]
    # Without ties it is one bound for all.
    (bound,) = {certify(calibrations[run], cuts[run], confidence).rate for run in range(20)}
    held = 1 - cuts <= bound
    assert_holds(held, confidence)
    assert_holds(~held, 1 - confidence)  # nor more often: nothing is given away


@pytest.mark.parametrize("rate", [0.2, 0.05, 0.01])
@pytest.mark.parametrize("confidence", [0.95, wide(0.5)])
def test_the_certified_cut_has_the_rate_in_the_stated_share_of_calibrations(rate, confidence):
    n_rows = fewest_rows(rate, confidence) + 200
    calibrations = np.random.RandomState(1).uniform(size=(RUNS, n_rows))
    cuts = np.array([certified_cut(scores, rate, confidence) for scores in calibrations])
    held = 1 - cuts <= rate
    assert_holds(held, confidence)
    # One more row above it, and the confidence would be too low.
    n_above = most_above(n_rows, rate, confidence)
    assert stats.beta.cdf(rate, n_above + 1, n_rows - n_above) >= confidence
    assert stats.beta.cdf(rate, n_above + 2, n_rows - n_above - 1) < confidence


@pytest.mark.parametrize("true_rate", [0.001, 0.02, 0.3, 0.9])
def test_a_fixed_cut_is_covered_whatever_its_rate(true_rate):
    """Summed over all counts that can be: no simulation."""
    n_rows, confidence = 150, 0.9
    scores = np.arange(float(n_rows))
    bounds = np.array([certify(scores, n_rows - 1.5 - m, confidence).rate for m in range(n_rows + 1)])
    probabilities = stats.binom.pmf(np.arange(n_rows + 1), n_rows, true_rate)
    assert probabilities[bounds >= true_rate].sum() >= confidence


def test_the_limit_for_a_fixed_cut_is_that_of_clopper_and_pearson():
    scores = np.arange(80.0)
    expected = stats.binomtest(7, 80, alternative="less").proportion_ci(0.95, method="exact").high
    assert certify(scores, 72.5).rate == pytest.approx(expected, rel=1e-12)


def test_all_cuts_are_covered_at_once():
    """Also by the cut that looks best after the scores have been seen."""
    rng, n_rows = np.random.RandomState(2), 40
    n_above = n_rows - np.arange(1, n_rows + 1)
    bounds = np.array([certify(np.arange(40.0), 39.0 - m, all_cuts=True).rate for m in n_above])
    cuts = np.sort(rng.uniform(size=(RUNS, n_rows)), axis=1)
    held = (1 - cuts <= bounds).all(axis=1)
    assert_holds(held, 0.95)
    of_one = np.array([certify(np.arange(40.0), 39.0 - m).rate for m in n_above])
    assert (1 - cuts <= of_one).all(axis=1).mean() < 0.9  # what one cut certifies, the best of all does not


@pytest.mark.parametrize("n_values", [wide(2), 5, wide(30)])
def test_ties_make_the_bound_larger_never_too_small(n_values):
    rng, n_rows, rank = np.random.RandomState(3), 100, 90
    held = []
    for _ in range(RUNS):
        scores = rng.randint(n_values, size=n_rows).astype(float)
        cut = np.sort(scores)[rank - 1]
        held.append(1 - (cut + 1) / n_values <= certify(scores, cut).rate)
    assert_holds(held, 0.95)


def test_ties_with_the_cut_count_but_for_one():
    certificate = certify([1.0, 2.0, 2.0, 2.0, 3.0], cut=2.0)
    assert certificate.n_above == 3
    assert certify([1.0, 2.0, 2.0, 2.0, 3.0], cut=2.5).n_above == 1


@pytest.mark.parametrize(
    ("rate", "confidence", "n_rows"), [(0.05, 0.95, 59), (0.01, 0.95, 299), (0.1, 0.9, 22)]
)
def test_the_fewest_rows_are_those_of_wilks(rate, confidence, n_rows):
    scores = np.arange(float(n_rows))
    assert fewest_rows(rate, confidence) == n_rows
    assert certified_cut(scores, rate, confidence) == n_rows - 1
    assert certify(scores, n_rows - 1, confidence).lowest_rate <= rate
    message = f"takes at least {n_rows} rows.*received {n_rows - 1}, which can certify 0[.][0-9]+ at best"
    with pytest.raises(ValueError, match=message):
        certified_cut(scores[1:], rate, confidence)


def test_the_lowest_rate_is_the_bound_of_a_cut_that_no_row_is_above():
    certificate = certify(np.arange(1000.0), cut=500.0)
    assert certificate.lowest_rate == certify(np.arange(1000.0), cut=1e9).rate
    assert certificate.lowest_rate == pytest.approx(1 - 0.05 ** (1 / 1000))


def test_the_sentence_states_no_less_than_the_bound():
    for n_above in range(0, 1000, 7):
        certificate = certify(np.arange(1000.0), 999.5 - n_above)
        stated = float(re.search(r"at most ([0-9.]+) %", str(certificate))[1])
        assert certificate.rate <= stated / 100 + 1e-9 <= 1.01 * certificate.rate + 1e-9
    assert "at most 100 %" in str(certify([1.0], 0.0))


def test_a_cut_below_all_rows_certifies_nothing():
    assert certify([1.0, 2.0], cut=0.0).rate == 1


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: certify([1.0], 0.0, confidence=1), "confidence must lie in .*received 1"),
        (lambda: certify([1.0], np.nan), "the cut must be a number; received NaN"),
        (lambda: certify([], 0.0), "one score for each of some rows"),
        (lambda: certify([np.nan], 0.0), "one score for each of some rows"),
        (lambda: certified_cut([1.0], 0.0), "rate must lie in"),
        (lambda: certified_cut([1.0], 0.5, 0), "confidence must lie in"),
    ],
)
def test_what_cannot_be_is_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


# -- the rule ---------------------------------------------------------------------------------------------
def test_the_conformal_rule_with_a_confidence_cuts_where_its_rate_is_certified():
    scores = np.random.RandomState(0).gumbel(size=700)
    rule = Conformal(0.05, confidence=0.95)
    assert rule.cut(scores) == certified_cut(scores, 0.05, 0.95) > Conformal(0.05).cut(scores)
    low, high = rule.realized_rates(700, 0.9)  # the upper 5 % of rates lie above its end
    assert low < high <= 0.05


def test_the_rule_with_a_confidence_says_how_many_rows_it_takes():
    with pytest.raises(ValueError, match="0.95 takes at least 299 rows.*received 298"):
        Conformal(0.01, confidence=0.95).cut(np.arange(298.0))


# -- the detector -----------------------------------------------------------------------------------------
def test_the_detector_certifies_the_cut_that_it_has(conformal):
    scores, cut = conformal.calibration_scores_, -conformal.offset_
    assert conformal.false_alarm_certificate() == certify(scores, cut)
    assert conformal.false_alarm_certificate(0.99) == certify(scores, cut, 0.99)
    assert conformal.false_alarm_certificate().n_above == 9  # the 191st of 200, by a rate of 5 %


def test_the_detector_certifies_a_rate_by_the_cut_that_it_takes(conformal):
    certificate = conformal.false_alarm_certificate(rate=0.1)
    assert certificate.rate <= 0.1
    assert certificate.cut == certified_cut(conformal.calibration_scores_, 0.1)
    with pytest.raises(ValueError, match="takes at least 2,995 rows.*received 200"):
        conformal.false_alarm_certificate(rate=0.001)


@pytest.mark.parametrize("rule", [OutOfBag(0.1), Quantile(0.1)])
def test_cuts_that_the_calibration_rows_may_have_moved_are_certified_for_all_cuts_at_once(rule, rows):
    settings = {"validation_fraction": 0.2, "calibration": 0.5, "epochs": 2, "random_state": 0}
    detector = VAEDetector(threshold=rule, **settings).fit(rows)
    expected = certify(detector.calibration_scores_, -detector.offset_, all_cuts=True)
    assert detector.false_alarm_certificate() == expected


@pytest.mark.parametrize("max_samples", [None, 200])
@pytest.mark.parametrize("calibration", [None, "folds", "out_of_bag"])
def test_without_rows_held_out_nothing_is_certified(calibration, max_samples, small_detector, rows):
    leave_rows_out = {"members": 3, "validation_fraction": 0.5} if calibration == "out_of_bag" else {}
    settings = {"calibration": calibration, "max_samples": max_samples, **leave_rows_out}
    detector = small_detector.set_params(**settings).fit(rows)
    with pytest.raises(ValueError, match=r"a certificate counts scores of rows that were held out.*=0\.2"):
        detector.false_alarm_certificate()
    assert detector.model_card()["threshold"]["certified_rate"] is None


def test_the_model_card_shows_the_certificate_and_so_does_that_of_a_loaded_detector(conformal, tmp_path):
    conformal.save(tmp_path / "model.vae")
    for detector in (conformal, load(tmp_path / "model.vae")):
        card = detector.model_card()
        certificate = detector.false_alarm_certificate()
        assert card["threshold"]["certified_rate"] == certificate.rate
        assert any(note.startswith(str(certificate)) for note in card["notes"])
        assert f"- certified rate: {100 * certificate.rate:.3g} %" in str(card)


def test_a_cut_that_is_no_number_certifies_nothing_and_is_saved_all_the_same(conformal, tmp_path):
    broken = copy.copy(conformal)
    broken.offset_ = float("nan")
    assert broken.model_card()["threshold"]["certified_rate"] is None
    broken.save(tmp_path / "model.vae")


def test_a_rule_with_a_confidence_comes_back_from_a_file(rows, tmp_path):
    rule = Conformal(0.1, confidence=0.9)
    detector = VAEDetector(epochs=2, threshold=rule, calibration=0.5, random_state=0).fit(rows)
    assert detector.false_alarm_certificate(0.9).rate <= 0.1
    detector.save(tmp_path / "model.vae")
    loaded = load(tmp_path / "model.vae")
    assert loaded.threshold_.get_params() == rule.get_params()
    assert loaded.false_alarm_certificate(0.9) == detector.false_alarm_certificate(0.9)
