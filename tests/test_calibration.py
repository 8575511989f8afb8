"""Calibration: scores of rows that were not trained on, and what they promise for new rows."""

import math

import numpy as np
import pandas as pd
import pytest
from conftest import wide
from scipy import stats
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, KFold, ShuffleSplit, StratifiedKFold, TimeSeriesSplit

from vae_anomaly import ConvNetwork, VAEDetector, thresholds
from vae_anomaly.calibration import discoveries, p_values
from vae_anomaly.ensemble.calibration_rows import CalibrationRows, out_of_fold_scores, resolve
from vae_anomaly.ensemble.fitted import Fitted
from vae_anomaly.thresholds import Conformal, OutOfBag, ParetoTail, Quantile


@pytest.fixture(scope="module")
def normal():
    """Rows of one kind: 300 to fit on, 2,000 new ones."""
    rows = np.random.RandomState(0).normal(size=(2300, 4))
    rows[:, 3] = rows[:, 0] * rows[:, 1]
    return rows[:300], rows[300:]


# -- where honest scores come from ----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "wanted", "n_rows", "leaves_out", "expected"),
    [
        ("auto", False, 100, True, CalibrationRows()),
        ("auto", True, 100, True, "folds"),
        ("auto", True, 499, False, "folds"),
        ("auto", True, 500, True, CalibrationRows(fraction=0.2)),
        ("auto", True, 1_000_000, False, CalibrationRows(fraction=0.01)),
        (None, False, 100, True, CalibrationRows()),
        ("folds", False, 100, True, "folds"),
        ("out_of_bag", False, 1000, True, CalibrationRows(out_of_bag=True)),
        (0.3, True, 100, True, CalibrationRows(fraction=0.3)),
    ],
)
def test_auto_calibrates_where_the_rule_asks_and_by_folds_where_rows_are_few(
    given, wanted, n_rows, leaves_out, expected
):
    resolved = resolve(given, wanted, n_rows, leaves_rows_out=leaves_out)
    if expected == "folds":
        assert (resolved.splitter.n_splits, resolved.splitter.shuffle) == (5, True)
    else:
        assert resolved == expected


def test_a_splitter_makes_the_folds():
    splitter = KFold(7)
    assert resolve(splitter, False, 100, leaves_rows_out=True) == CalibrationRows(splitter=splitter)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "set calibration='auto'"),
        (KFold(20), "20 folds needs.*received 10"),
        (200, r"may mean folds or rows: set a splitter such as KFold\(200, shuffle=True\).*200/n"),
        (0.01, "at least 1 of the 10 rows"),
        (StratifiedKFold(3), "calibration=StratifiedKFold.* neither labels nor groups"),
        (GroupKFold(3), "calibration=GroupKFold.* neither labels nor groups"),
        (TimeSeriesSplit(3), "must hold out each row exactly once.*row 0 0 times"),
        ("out_of_bag", "members that leave rows out of their training: set validation_fraction"),
    ],
)
def test_calibration_that_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        resolve(given, True, 10, leaves_rows_out=False)


QUESTIONS = {
    "p-values": ("p_values", {}, "p-values need scores"),
    "drift": ("drift", {}, "drift is measured against scores"),
    "the cut of a group": ("decision_function", {"groups": ["a"] * 5}, "cuts of groups need scores"),
    "rates of groups": ("group_rates", {"groups": ["a"] * 5}, "cuts of groups need scores"),
    "p-values in groups": ("p_values", {"groups": ["a"] * 5}, "p-values need scores"),
    "a rate of drift": ("drift", {"false_alarm_rate": 5.0}, r"false_alarm_rate must lie in \(0, 1\)"),
    "a rate of selections": (
        "select_anomalies",
        {"false_discovery_rate": 5.0},
        r"false_discovery_rate must lie in \(0, 1\)",
    ),
    "a dependence": ("select_anomalies", {"dependence": "none"}, "dependence must be one of"),
    "a confidence": ("count_anomalies", {"confidence": 2}, r"confidence must lie in \(0, 1\)"),
    "an unknown group": ("p_values", {"groups": ["c"] * 5}, "groups without calibration rows: received 'c'"),
    "rates of one": ("group_rates", {"groups": ["c"] * 5}, "groups without calibration rows: received 'c'"),
    "its cut": ("decision_function", {"groups": ["c"] * 5}, "groups without calibration rows: received 'c'"),
}


@pytest.mark.parametrize(("method", "settings", "message"), QUESTIONS.values(), ids=QUESTIONS)
def test_what_cannot_be_answered_is_refused_before_rows_are_scored(
    method, settings, message, normal, monkeypatch
):
    X, detector = normal[0], VAEDetector(epochs=1, random_state=0)
    if "need" in message or "measured" in message:
        detector.fit(X)
    else:
        detector.set_params(calibration=0.5, threshold="conformal")
        detector.fit(X, groups=np.repeat(["a", "b"], len(X) // 2))
    monkeypatch.setattr(Fitted, "scores", lambda *_: pytest.fail("rows are scored"))
    with pytest.raises(ValueError, match=message):
        getattr(detector, method)(X[:5], **settings)


def test_a_share_is_held_out_of_training_and_scaling(normal):
    X = normal[0]
    detector = VAEDetector(epochs=2, calibration=0.25, random_state=0).fit(X)
    seed = detector._calibration_seed
    kept, held_out = CalibrationRows(fraction=0.25).set_aside(np.arange(len(X)), seed)
    assert len(held_out) == 75
    assert sorted([*kept, *held_out]) == list(range(300))
    np.testing.assert_allclose(detector.scaler_.mean_, X[kept].mean(axis=0))
    np.testing.assert_array_equal(detector.calibration_scores_, -detector.score_samples(X[held_out]))


def test_held_out_rows_do_not_reach_the_model(normal):
    X = normal[0]
    detector = VAEDetector(epochs=2, calibration=0.25, random_state=0)
    first = clone(detector).fit(X)
    _, held_out = CalibrationRows(fraction=0.25).set_aside(np.arange(len(X)), first._calibration_seed)
    changed = X.copy()
    changed[held_out] += 100
    second = clone(detector).fit(changed)
    np.testing.assert_array_equal(first.score_samples(X), second.score_samples(X))
    assert (second.calibration_scores_ > first.calibration_scores_.max()).all()


def test_each_fold_is_scored_by_what_was_trained_without_it(normal):
    X = normal[0][:60]

    def score_fold(trained_on, held_out):
        assert not {tuple(row) for row in trained_on} & {tuple(row) for row in held_out}
        return held_out[:, 0] + len(trained_on)

    np.testing.assert_array_equal(out_of_fold_scores(score_fold, X, KFold(5), 0), X[:, 0] + 48)


def test_folds_are_shuffled_by_the_seed_unless_they_have_their_own(normal):
    def first_fold(splitter, seed):
        folds = []
        out_of_fold_scores(lambda _, held_out: folds.append(held_out) or np.zeros(4), rows, splitter, seed)
        return folds[0].tolist()

    rows, splitter = np.arange(20), KFold(5, shuffle=True)
    assert first_fold(splitter, 0) == first_fold(splitter, 0) != first_fold(splitter, 1)
    own = KFold(5, shuffle=True, random_state=3)
    assert first_fold(own, 0) == first_fold(own, 1)
    assert splitter.random_state is None


@pytest.mark.parametrize("splitter", [ShuffleSplit(3, random_state=0), TimeSeriesSplit(3)])
def test_a_splitter_that_does_not_hold_out_each_row_once_is_refused(splitter, normal):
    with pytest.raises(ValueError, match=r"each row exactly once.* holds out row \d+ [02] times"):
        VAEDetector(epochs=1, calibration=splitter, random_state=0).fit(normal[0][:60])


def test_out_of_bag_a_row_has_one_score_for_p_values_and_the_default_threshold(normal):
    settings = {"members": 4, "validation_fraction": 0.25, "epochs": 2, "random_state": 0}
    judged = VAEDetector(calibration="out_of_bag", threshold=Conformal(0.1), **settings).fit(normal[0])
    default = VAEDetector(threshold=OutOfBag(0.1), **settings).fit(normal[0])
    assert judged.offset_ == default.offset_
    np.testing.assert_array_equal(judged.score_samples(normal[1]), default.score_samples(normal[1]))


@pytest.mark.long
def test_out_of_bag_alarms_are_about_as_many_as_promised(normal):
    """Means over fits of the default to 300 rows; each calibration spreads by more."""
    X, new = normal
    rates = []
    for seed in range(10):
        rows = np.random.RandomState(seed).permutation(X)
        detector = VAEDetector(threshold=Conformal(0.1), calibration="out_of_bag", random_state=seed)
        detector.fit(rows)
        rates.append((detector.predict(new) == -1).mean())
    assert 0.07 < np.mean(rates) < 0.13


def test_folds_leave_the_model_as_it_is_without_them(normal):
    X = normal[0]
    plain = VAEDetector(epochs=2, random_state=0).fit(X)
    with_folds = VAEDetector(epochs=2, calibration=KFold(3), random_state=0).fit(X)
    np.testing.assert_array_equal(plain.score_samples(X), with_folds.score_samples(X))
    assert plain.offset_ == with_folds.offset_
    assert plain.calibration_scores_ is None
    assert len(with_folds.calibration_scores_) == len(X)


@pytest.mark.parametrize("given", [wide(KFold(3)), 0.3])
def test_images_and_data_frames_are_calibrated_too(given):
    images = np.random.RandomState(0).uniform(size=(40, 4, 4))
    network = ConvNetwork(filters=(2,), dense_units=(4,))
    detector = VAEDetector(network, epochs=1, members=1, calibration=given, random_state=0).fit(images)
    assert ((detector.p_values(images) > 0) & (detector.p_values(images) <= 1)).all()
    frame = pd.DataFrame(images.reshape(40, 16)).add_prefix("pixel_")
    assert VAEDetector(epochs=1, calibration=given, random_state=0).fit(frame).p_values(frame).shape == (40,)


def test_a_warm_start_with_other_rows_warns_that_held_out_rows_may_be_known(normal):
    X = normal[0]
    detector = VAEDetector(epochs=1, calibration=0.25, warm_start=True).fit(X[:200])
    with pytest.warns(UserWarning, match="with 210 rows from a fit of 200.*promise too much"):
        detector.fit(X[:210])


def test_a_warm_start_keeps_the_held_out_rows(normal):
    X = normal[0]
    detector = VAEDetector(epochs=2, calibration=0.25, warm_start=True).fit(X)
    _, held_out = CalibrationRows(fraction=0.25).set_aside(np.arange(len(X)), detector._calibration_seed)
    detector.fit(X)
    np.testing.assert_array_equal(detector.calibration_scores_, -detector.score_samples(X[held_out]))


# -- what they promise ----------------------------------------------------------------------------------
@pytest.mark.parametrize("rule", [Conformal(0.1), ParetoTail(0.01)])
@pytest.mark.parametrize("given", [0.3, KFold(3)])
def test_a_rule_for_unseen_rows_gets_their_scores(rule, given, normal):
    detector = VAEDetector(epochs=2, threshold=rule, calibration=given, random_state=0).fit(normal[0])
    assert detector.offset_ == -rule.cut(detector.calibration_scores_)


@pytest.mark.parametrize("given", [0.3, KFold(3)])
def test_a_fraction_of_the_rows_means_all_of_them_whatever_the_calibration(given, normal):
    X = normal[0]
    detector = VAEDetector(epochs=2, threshold=Quantile(0.1), calibration=given, random_state=0).fit(X)
    assert (detector.predict(X) == -1).sum() == 30


@pytest.mark.parametrize("seed", [0, wide(1), wide(2)])
def test_the_false_alarm_rate_of_new_rows_is_the_promised_one(normal, seed):
    X, new = normal
    detector = VAEDetector(epochs=300, threshold=Conformal(0.1), calibration=0.5, random_state=seed).fit(X)
    low, high = stats.beta.ppf([0.0005, 0.9995], 15, 136)  # 150 calibration rows
    assert low - 0.02 < (detector.predict(new) == -1).mean() < high + 0.02


@pytest.mark.wide
def test_a_model_that_knows_its_rows_by_heart_promises_too_much_from_their_own_scores(normal):
    X, new = normal
    trained = VAEDetector(epochs=1500, contamination=0.1, random_state=0).fit(X[:60])
    assert (trained.predict(new) == -1).mean() > 0.2


def test_p_values_count_the_rows_that_are_not_less_anomalous():
    np.testing.assert_array_equal(p_values(np.array([5.0, 2.0, 0.0]), np.array([3.0, 1, 2])), [0.25, 0.75, 1])


@pytest.mark.parametrize("n_calibration", [9, 60])
def test_ties_make_p_values_larger_never_too_small(n_calibration):
    rng = np.random.RandomState(0)
    drawn = [p_values(rng.poisson(1, size=1), rng.poisson(1, size=n_calibration))[0] for _ in range(2000)]
    for alpha in (0.05, 0.1, 0.3, 0.6):
        assert np.sum(np.array(drawn) <= alpha) <= stats.binom.ppf(0.999, 2000, alpha)


def test_p_values_of_new_normal_rows_are_uniform():
    rng = np.random.RandomState(0)
    drawn = np.concatenate([p_values(rng.gumbel(size=5), rng.gumbel(size=99)) for _ in range(2000)])
    for alpha in (0.01, 0.1, 0.5):
        assert (drawn <= alpha).mean() == pytest.approx(alpha, abs=0.015)


@pytest.mark.parametrize("fraction", [0.01, 0.03, wide(0.08)])
def test_far_anomalies_among_the_calibration_rows_make_fewer_alarms_by_a_known_factor(fraction):
    rng, n_rows, rates = np.random.RandomState(0), 400, []
    for _ in range(500):
        scores = rng.uniform(size=n_rows)
        scores[: round(fraction * n_rows)] = 50.0
        rates.append(max(0, 1 - Conformal(0.05).cut(scores)))  # of normal rows, which are uniform
    expected = max(0.0, (0.05 - fraction) / (1 - fraction))
    assert np.mean(rates) == pytest.approx(expected, abs=0.003)


def rates_of_uniform_rows(rule, n_rows, n_anomalies, n_runs, level=50.0):
    """False-alarm rates after calibrations on so many rows, among which these anomalies have this score."""
    scores = np.random.RandomState(0).uniform(size=(n_runs, n_rows))
    scores[:, :n_anomalies] = level
    return np.array([max(0.0, 1 - rule.cut(row)) for row in scores])


@pytest.mark.parametrize("contamination", [0.02, wide(0.1)])
@pytest.mark.parametrize("n_runs", [500, pytest.param(2000, marks=pytest.mark.wide)])
def test_trimming_as_many_as_there_are_far_anomalies_gives_the_rate_of_the_normal_rows(contamination, n_runs):
    n_anomalies = round(400 * contamination)
    rule = Conformal(0.05, contamination=contamination)
    rates = rates_of_uniform_rows(rule, 400, n_anomalies, n_runs)
    low, high = rule.realized_rates(400, coverage=0.9)
    assert ((low <= rates) & (rates <= high)).mean() == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / n_runs))
    error = 4 * rates.std() / np.sqrt(n_runs)
    assert 0.05 - 1 / (401 - n_anomalies) - error <= rates.mean() <= 0.05 + error


@pytest.mark.parametrize("contamination", [0.02, wide(0.1)])
@pytest.mark.parametrize("n_runs", [500, pytest.param(2000, marks=pytest.mark.wide)])
def test_trimming_clean_rows_costs_what_is_said_and_no_more(contamination, n_runs):
    n_rows, rate, trimmed = 400, 0.05, round(400 * contamination)
    rates = rates_of_uniform_rows(Conformal(rate, contamination=contamination), n_rows, 0, n_runs)
    rank = math.ceil((n_rows - trimmed + 1) * (1 - rate))
    exact = (n_rows + 1 - rank) / (n_rows + 1)
    assert exact <= rate + (1 - rate) * trimmed / (n_rows + 1)
    assert rates.mean() == pytest.approx(exact, abs=4 * rates.std() / np.sqrt(n_runs))


def test_trimming_less_than_there_is_keeps_the_promise():
    rates = rates_of_uniform_rows(Conformal(0.05, contamination=0.01), 400, 12, 500)
    assert rates.mean() < 0.05


def test_a_certified_cut_among_trimmed_rows_holds_with_its_confidence():
    rule = Conformal(0.05, confidence=0.9, contamination=0.05)
    rates = rates_of_uniform_rows(rule, 400, 20, 1000)
    assert (rates <= 0.05).mean() > 0.9 - 4 * np.sqrt(0.09 / 1000)


def test_nothing_is_trimmed_of_few_rows_or_by_default():
    scores = np.random.RandomState(0).normal(size=60)
    assert Conformal(0.1, contamination=0.01).cut(scores) == Conformal(0.1).cut(scores)
    assert Conformal(0.1, contamination=0.05).cut(scores) < Conformal(0.1).cut(scores)


@pytest.mark.parametrize("confidence", [None, 0.9])
@pytest.mark.parametrize("contamination", [0.0, 0.02, 0.29, 0.5])
def test_the_fewest_rows_of_a_trimmed_cut_are_enough_and_one_fewer_is_refused(contamination, confidence):
    rule = Conformal(0.05, confidence=confidence, contamination=contamination)
    assert np.isfinite(rule.cut(np.arange(rule.fewest_scores, dtype=float)))
    with pytest.raises(ValueError, match=f"at least {rule.fewest_scores} rows"):
        rule.cut(np.arange(rule.fewest_scores - 1, dtype=float))


def test_a_contamination_of_the_calibration_rows_is_not_that_of_the_cut():
    with pytest.raises(ValueError, match="set only one of them"):
        thresholds.resolve(Conformal(0.05, contamination=0.1), 0.1)


def test_a_p_value_below_alpha_is_an_alarm_of_the_conformal_rule(normal):
    X, new = normal
    detector = VAEDetector(epochs=2, threshold=Conformal(0.1), calibration=0.3, random_state=0).fit(X)
    np.testing.assert_array_equal(detector.p_values(new) <= 0.1, detector.predict(new) == -1)


def test_without_calibration_there_are_no_p_values_and_the_error_says_what_to_do(normal, small_detector):
    detector = small_detector.fit(normal[0])
    with pytest.raises(ValueError, match="calibration='folds'.*calibration=0.2.*threshold='conformal'"):
        detector.p_values(normal[0])


# -- how many alarms are false --------------------------------------------------------------------------
def test_benjamini_and_hochberg_by_hand():
    p = np.array([0.01, 0.04, 0.03, 0.005, 0.5])
    np.testing.assert_array_equal(discoveries(p, 0.05), [True, True, True, True, False])
    np.testing.assert_array_equal(discoveries(p, 0.03), [True, False, False, True, False])
    np.testing.assert_array_equal(discoveries(p, 0.1, "any"), [True, False, False, True, False])


@pytest.mark.parametrize("n_runs", [400, wide(2000)])
@pytest.mark.parametrize("dependence", ["positive", "any"])
def test_the_share_of_false_discoveries_is_at_most_the_rate(dependence, n_runs):
    rng = np.random.RandomState(0)
    shares, found = [], []
    for _ in range(n_runs):
        calibrated = rng.normal(size=5000)
        scores = np.r_[rng.normal(size=180), rng.normal(4, 1, size=20)]
        selected = discoveries(p_values(scores, calibrated), 0.1, dependence)
        shares.append(selected[:180].sum() / max(1, selected.sum()))
        found.append(selected[180:].mean())
    assert np.mean(shares) < 0.1 + 0.015
    assert np.mean(found) > (0.7 if dependence == "positive" else 0.2)


def test_the_rate_holds_with_p_values_that_depend_on_each_other_in_the_worst_way():
    """Of 20 normal rows, with probability α / k just so many p-values are small that k are selected."""
    rng, n_rows, alpha, n_runs = np.random.RandomState(0), 20, 0.1, 2000
    drawn, selected = [], {"positive": 0, "any": 0}
    for _ in range(n_runs):
        # Each is uniform: of all outcomes of its own, α / n_rows lies between any two multiples of that.
        p = rng.uniform(alpha, 1, size=n_rows)
        k = np.searchsorted(np.cumsum(alpha / np.arange(1, n_rows + 1)), rng.uniform(), side="right") + 1
        if k <= n_rows:
            p[rng.permutation(n_rows)[:k]] = rng.uniform((k - 1) * alpha / n_rows, k * alpha / n_rows, size=k)
        drawn.append(p)
        for dependence in selected:
            selected[dependence] += discoveries(p, alpha, dependence).any()
    assert (np.mean(drawn, axis=0) < 0.7).all()
    assert selected["any"] <= stats.binom.ppf(0.999, n_runs, alpha)
    assert selected["positive"] > 3 * alpha * n_runs  # which is why there is "any"


def test_the_detector_selects_by_its_p_values(normal):
    X, new = normal
    rows = np.r_[new[:200], new[:20] + 20]
    detector = VAEDetector(epochs=5, calibration=0.5, random_state=0).fit(X)
    selected = detector.select_anomalies(rows, 0.2)
    np.testing.assert_array_equal(selected, discoveries(detector.p_values(rows), 0.2))
    assert selected[200:].all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0.0,), "must lie in"), ((1,), "must lie in"), ((0.1, "none"), "dependence must be one of")],
)
def test_impossible_rates_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        discoveries([0.1], *arguments)
