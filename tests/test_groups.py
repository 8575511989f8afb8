"""Groups: rates that hold in every site, product or sensor."""

import copy

import numpy as np
import pandas as pd
import pytest
from conftest import wide
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vae_anomaly import DenseNetwork, VAEDetector, load
from vae_anomaly.calibration import discoveries, group_p_values, p_values
from vae_anomaly.calibration.groups import group_rows
from vae_anomaly.core.backend import keras
from vae_anomaly.ensemble.calibration_rows import CalibrationRows
from vae_anomaly.thresholds import Conformal

QUICK = {"network": DenseNetwork((8,)), "epochs": 2, "members": 1, "random_state": 0}


# -- the mathematics --------------------------------------------------------------------------------------
def test_each_row_is_compared_with_the_calibration_rows_of_its_group():
    rng = np.random.RandomState(0)
    known, new = rng.normal(size=90), rng.normal(size=40)
    of_known, of_new = rng.choice(list("abc"), size=90), rng.choice(list("abc"), size=40)
    found = group_p_values(new, of_new, known, of_known, fewest_rows=1)
    for label in "abc":
        expected = p_values(new[of_new == label], known[of_known == label])
        np.testing.assert_array_equal(found[of_new == label], expected)


def test_one_group_is_no_group():
    rng = np.random.RandomState(0)
    known, new = rng.poisson(3, size=50), rng.poisson(3, size=20)
    found = group_p_values(new, np.zeros(20), known, np.zeros(50))
    np.testing.assert_array_equal(found, p_values(new, known))


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("n_calibration", [60, wide(300)])
def test_the_rate_holds_in_every_group_where_one_cut_for_all_does_not_keep_it(n_calibration, alpha):
    """Sites whose scores differ in scale: 2,000 calibrations, one new row of each site."""
    rng, scales = np.random.RandomState(0), np.array([1.0, 2.0, 5.0])
    alarms = {"groups": [], "one cut": []}
    for _ in range(2_000):
        sites = np.arange(n_calibration) % 3
        known, new = rng.normal(size=n_calibration) * scales[sites], rng.normal(size=3) * scales
        alarms["groups"].append(group_p_values(new, np.arange(3), known, sites) <= alpha)
        alarms["one cut"].append(p_values(new, known) <= alpha)
    for site in range(3):
        assert np.sum(alarms["groups"], axis=0)[site] <= stats.binom.ppf(0.999, 2_000, alpha)
    assert np.mean(alarms["one cut"], axis=0)[2] > 1.3 * alpha
    assert np.mean(alarms["one cut"], axis=0)[0] < 0.6 * alpha


def test_ties_make_p_values_larger_in_every_group():
    rng = np.random.RandomState(0)
    drawn = [
        group_p_values(rng.poisson(2, size=2), [0, 1], rng.poisson(2, size=60), np.arange(60) % 2)
        for _ in range(2_000)
    ]
    for alpha in (0.05, 0.1, 0.5):
        assert (np.sum(np.array(drawn) <= alpha, axis=0) <= stats.binom.ppf(0.999, 2_000, alpha)).all()


def test_small_groups_share_their_calibration_rows():
    grouping = group_rows(np.repeat(["large", "b", "c", "d"], [20, 4, 5, 9]), 10)
    assert grouping.pooled == ("b", "c", "d")
    np.testing.assert_array_equal(grouping.positions["large"], np.arange(20))
    for label in "bcd":
        np.testing.assert_array_equal(grouping.positions[label], np.arange(20, 38))


def test_small_groups_that_are_too_few_together_are_refused_by_name_and_others_are_not():
    grouping = group_rows(np.repeat(["large", "b", "c"], [20, 4, 5]), 10)
    assert list(grouping.split(["large", "large"])) == ["large"]
    message = r"at least 10 calibration rows.*, and 'b' does not.*'b' \(4\), 'c' \(5\)"
    with pytest.raises(ValueError, match=message):
        grouping.split(["large", "b"])


def test_pools_do_not_depend_on_scores_so_the_rate_holds_on_average_over_them():
    rng, alarms = np.random.RandomState(0), []
    for _ in range(2_000):
        sites = np.r_[np.zeros(40), rng.randint(1, 6, size=40)]  # five small sites: a pool of forty rows
        known, site = rng.normal(size=80) * (1 + sites), rng.randint(1, 6)
        if site in sites:
            alarms.append(group_p_values(rng.normal(size=1) * (1 + site), [site], known, sites)[0] <= 0.1)
    assert np.sum(alarms) <= stats.binom.ppf(0.999, len(alarms), 0.1)


REFUSED = {
    "a group that is not known": (["z"], ["a"] * 20, r"without calibration rows: received 'z', and .*'a'"),
    "the same label as text": (["1"], [1] * 20, "received '1', and there are 1"),
    "a missing label": ([None], ["a"] * 20, "1 have none, the first is row 0"),
    "a missing number": ([1.0], [np.nan] * 20, "20 have none, the first is row 0"),
    "a table": ([["a"]], ["a"] * 20, "one label for each of the 1 scores"),
    "too many": (["a", "a"], ["a"] * 20, "one label for each of the 1 scores"),
    "too few": (["a"], ["a"] * 19, "one label for each of the 20 calibration scores"),
    "dates": (np.array(["2026-01-01"], "M8[D]"), ["a"] * 20, "must be numbers or text"),
    "objects": ([object()], ["a"] * 20, "must be numbers or text"),
}


@pytest.mark.parametrize(("groups", "of_known", "message"), REFUSED.values(), ids=REFUSED)
def test_labels_that_cannot_be_are_refused(groups, of_known, message):
    with pytest.raises(ValueError, match=message):
        group_p_values([1.0], groups, np.arange(20.0), of_known)


# -- the detector -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def frame():
    """Sites b and c vary more than a."""
    rng = np.random.RandomState(0)
    site = rng.choice(["a", "b", "c"], size=900)
    values = rng.normal(size=(900, 3)) * np.select([site == "a", site == "b"], [1.0, 2.0], 4.0)[:, None]
    return pd.DataFrame(values, columns=["x", "y", "z"]).assign(site=site)


@pytest.fixture(scope="module")
def X(frame):
    return frame[["x", "y", "z"]]


@pytest.fixture(scope="module")
def detector(X, frame):
    rule = Conformal(0.1)
    return VAEDetector(threshold=rule, calibration=0.5, **QUICK).fit(X[:600], groups=frame["site"][:600])


def test_groups_change_nothing_of_the_model(detector, X):
    plain = VAEDetector(threshold=Conformal(0.1), calibration=0.5, **QUICK).fit(X[:600])
    np.testing.assert_array_equal(plain.decision_function(X), detector.decision_function(X))
    assert plain.calibration_groups_ is None


def test_the_groups_of_the_calibration_rows_are_kept(detector, frame):
    labels = frame["site"].to_numpy()[:600]
    expected = CalibrationRows(fraction=0.5).groups(labels, detector._calibration_seed)
    np.testing.assert_array_equal(detector.calibration_groups_, expected)


def test_a_group_has_the_cut_of_its_own_calibration_rows(detector, X, frame):
    site = frame["site"][600:]
    decisions = detector.decision_function(X[600:], groups=site)
    for label in "abc":
        own = (site == label).to_numpy()
        cut = Conformal(0.1).cut(detector.calibration_scores_[detector.calibration_groups_ == label])
        np.testing.assert_array_equal(decisions[own], detector.score_samples(X[600:][own]) + cut)
    predicted = detector.predict(X[600:], groups=site)
    np.testing.assert_array_equal(predicted == -1, decisions < 0)
    np.testing.assert_array_equal(predicted == -1, detector.p_values(X[600:], groups=site) <= 0.1)


def test_p_values_and_selections_are_those_of_the_groups(detector, X, frame):
    site = frame["site"][600:].to_numpy()
    expected = group_p_values(
        -detector.score_samples(X[600:]), site, detector.calibration_scores_, detector.calibration_groups_
    )
    np.testing.assert_array_equal(detector.p_values(X[600:], site), expected)
    selected = detector.select_anomalies(X[600:], 0.5, groups=site)
    np.testing.assert_array_equal(selected, discoveries(expected, 0.5))


def test_a_column_is_named_and_stays_one_of_the_model(frame):
    settings = {"threshold": "conformal", "calibration": 0.5, **QUICK}
    named = VAEDetector(**settings).fit(frame, groups="site")
    given = VAEDetector(**settings).fit(frame, groups=frame["site"])
    assert named.n_features_in_ == 4
    np.testing.assert_array_equal(named.calibration_groups_, given.calibration_groups_)
    found = named.predict(frame, groups="site")
    np.testing.assert_array_equal(found, given.predict(frame, groups=list(frame["site"])))


def test_folds_calibrate_every_row_of_every_group(X, frame):
    detector = VAEDetector(threshold="conformal", calibration="folds", **QUICK)
    detector.fit(X[:120], groups=frame["site"][:120])
    np.testing.assert_array_equal(detector.calibration_groups_, frame["site"][:120])
    assert set(detector.group_rates().index) == {"a", "b", "c"}


def test_the_table_holds_what_is_promised_and_what_came(detector, X, frame):
    site = frame["site"][600:].to_numpy()
    table = detector.group_rates(X[600:], site)
    assert table.index.name == "group"
    predicted = detector.predict(X[600:], groups=site)
    with pytest.warns(UserWarning, match="fitted with groups, and predict received none"):
        with_one_cut = detector.predict(X[600:])
    for label, line in table.iterrows():
        own, new = detector.calibration_groups_ == label, site == label
        assert line["calibration_rows"] == own.sum()
        assert not line["pooled"]
        assert line["promised_rate"] == 0.1
        assert (line["low"], line["high"]) == Conformal(0.1).realized_rates(own.sum())
        assert line["rate_of_one_cut"] == (detector.calibration_scores_[own] > -detector.offset_).mean()
        assert line["rows"] == new.sum()
        assert line["realized_rate"] == (predicted[new] == -1).mean()
        assert line["realized_rate_of_one_cut"] == (with_one_cut[new] == -1).mean()
    assert table["realized_rate_of_one_cut"]["c"] > 0.2 > table["realized_rate"]["c"]
    assert list(detector.group_rates().columns) == list(table.columns)[:7]


def test_groups_that_are_too_small_for_the_rate_are_pooled_and_the_table_says_so(X, frame):
    site = np.where(np.arange(600) < 60, ["d", "e"] * 300, frame["site"][:600])
    rule = Conformal(0.04)  # asks for 24 rows
    detector = VAEDetector(threshold=rule, calibration=0.7, **QUICK).fit(X[:600], groups=site)
    table = detector.group_rates()
    assert set(table.index[table["pooled"]]) == {"d", "e"}
    assert table["cut"]["d"] == table["cut"]["e"]
    pool = detector.calibration_scores_[np.isin(detector.calibration_groups_, ["d", "e"])]
    assert table["cut"]["d"] == rule.cut(pool)


def test_groups_that_are_too_small_together_are_promised_nothing_and_the_others_what_they_were(X, frame):
    site = np.where(np.arange(600) < 20, "d", frame["site"][:600])
    detector = VAEDetector(threshold=Conformal(0.04), calibration=0.7, **QUICK).fit(X[:600], groups=site)
    table = detector.group_rates()
    assert np.isnan(table.loc["d", ["cut", "promised_rate", "low", "high"]].astype(float)).all()
    detector.predict(X[600:], groups=frame["site"][600:])
    with pytest.raises(ValueError, match=r"at least 24 calibration rows.*and 'd' does not"):
        detector.predict(X[:600], groups=site)


def test_a_rule_with_a_confidence_certifies_its_rate_in_every_group(X, frame):
    rule = Conformal(0.2, confidence=0.9)
    detector = VAEDetector(threshold=rule, calibration=0.5, **QUICK).fit(X, groups=frame["site"])
    for label, cut in detector.group_rates()["cut"].items():
        assert cut == rule.cut(detector.calibration_scores_[detector.calibration_groups_ == label])
    assert rule.fewest_scores == 11


@pytest.mark.parametrize("as_type", ["<U1", object, int, float, bool])
def test_groups_come_back_from_a_file(as_type, X, frame, tmp_path):
    site = pd.factorize(frame["site"])[0] if as_type in (int, float) else frame["site"].to_numpy()
    site = site == "a" if as_type is bool else site.astype(as_type)
    detector = VAEDetector(threshold="conformal", calibration=0.5, **QUICK).fit(X, groups=site)
    detector.save(tmp_path / "model.vae")
    loaded = load(tmp_path / "model.vae")
    assert loaded.calibration_groups_.dtype == detector.calibration_groups_.dtype
    np.testing.assert_array_equal(loaded.predict(X, groups=site), detector.predict(X, groups=site))
    pd.testing.assert_frame_equal(loaded.group_rates(X, site), detector.group_rates(X, site))


def test_groups_go_through_a_pipeline(X, frame):
    detector = VAEDetector(threshold="conformal", calibration=0.5, **QUICK)
    pipeline = make_pipeline(StandardScaler(), detector)
    pipeline.fit(X, vaedetector__groups=frame["site"])
    alone = clone(detector).fit(StandardScaler().fit_transform(X), groups=frame["site"])
    np.testing.assert_array_equal(
        pipeline.predict(X, groups=frame["site"]),
        alone.predict(StandardScaler().fit_transform(X), frame["site"]),
    )


def test_a_fit_without_groups_forgets_them(detector, X, frame):
    again = copy.deepcopy(detector).fit(X)
    assert again.calibration_groups_ is None
    with pytest.raises(ValueError, match=r"does not know the groups.*fit it with groups="):
        again.predict(X, groups=frame["site"])


NOT_FITTED = {
    "no calibration": ({}, "site", "nothing asks for any: set threshold='conformal'"),
    "no column": ({"calibration": 0.5}, "plant", "groups='plant' names a column, and X has none"),
    "too few": ({"calibration": 0.5}, ["a"] * 3, "each of the 900 rows; received 3"),
    "missing": ({"calibration": 0.5}, [None] * 900, "900 have none"),
}


@pytest.mark.parametrize(("settings", "groups", "message"), NOT_FITTED.values(), ids=NOT_FITTED)
def test_groups_that_cannot_be_kept_are_refused_before_training(
    settings, groups, message, frame, monkeypatch
):
    monkeypatch.setattr("vae_anomaly.ensemble.fitting.fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match=message):
        VAEDetector(**settings, **QUICK).fit(frame, groups=groups)


def test_what_needs_a_conformal_cut_says_so_and_p_values_do_not(X, frame):
    detector = VAEDetector(calibration=0.5, **QUICK).fit(X, groups=frame["site"])
    with pytest.raises(ValueError, match="cuts of groups are conformal: .*TukeyFence"):
        detector.predict(X, groups=frame["site"])
    assert (detector.p_values(X, groups=frame["site"]) > 0).all()
    with pytest.raises(ValueError, match="one label for each row of X; received None"):
        detector.group_rates(X)


def test_the_model_card_says_how_many_groups_there_are(detector, X):
    assert detector.model_card()["threshold"]["groups"] == 3
    assert copy.deepcopy(detector).fit(X).model_card()["threshold"]["groups"] is None


def test_an_interrupted_fit_without_calibration_scores_has_no_groups_and_can_be_saved(X, frame, tmp_path):
    detector = VAEDetector(calibration="folds", **QUICK)
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: detector.stop_fit())
    detector.set_params(callbacks=[callback], epochs=50)
    with pytest.warns(ConvergenceWarning):
        detector.fit(X, groups=frame["site"])
    assert detector.calibration_scores_ is detector.calibration_groups_ is None
    detector.set_params(callbacks=None).save(tmp_path / "model.vae")
    load(tmp_path / "model.vae")
