"""Online selections: LORD++, SAFFRON and ADDIS as their papers have them, and inside a monitor."""

import io
import pickle

import numpy as np
import pytest
from conftest import Calibrated, wide
from scipy import stats
from scipy.special import zeta
from sklearn.base import clone

from vae_anomaly import ModelFileError
from vae_anomaly.calibration import ADDIS, LORD, SAFFRON, p_values
from vae_anomaly.calibration.online import ONLINE
from vae_anomaly.files import state_file
from vae_anomaly.files.kinds import MONITOR
from vae_anomaly.monitoring import Monitor

KINDS = [LORD, SAFFRON, ADDIS]
ALPHA, W0, LAMBDA, TAU = 0.1, 0.05, 0.25, 0.5


def drawn(seed, n_rows=400, share=0.2):
    """P-values of a stream with many anomalies, some of them 0, 1 and exactly at the levels."""
    rng = np.random.RandomState(seed)
    p = rng.uniform(size=n_rows)
    anomalies = rng.uniform(size=n_rows) < share
    p[anomalies] **= 6
    p[rng.randint(n_rows, size=12)] = np.tile([0.0, 1.0, LAMBDA, TAU], 3)
    return p


# -- as the papers have them ------------------------------------------------------------------------------
def gamma_of_lord(j):
    return 0.07720838 * np.log(max(j, 2)) / (j * np.exp(np.sqrt(np.log(j))))


def gamma_of_saffron(j):
    return j**-1.6 / zeta(1.6)


def lord(p):
    """Ramdas et al. 2017, equation 6; times count from 1."""
    times, levels = [], []
    for t in range(1, len(p) + 1):
        level = W0 * gamma_of_lord(t)
        if times:
            level += (ALPHA - W0) * gamma_of_lord(t - times[0])
        level += ALPHA * sum(gamma_of_lord(t - time) for time in times[1:])
        levels.append(level)
        if p[t - 1] <= level:
            times.append(t)
    return levels, times


def saffron(p, lam=0.5):
    """Ramdas et al. 2018, algorithm 1 and section 2.3."""
    times, levels = [], []
    for t in range(1, len(p) + 1):
        candidate = [value <= lam for value in p[: t - 1]]
        level = W0 * gamma_of_saffron(t - sum(candidate))
        for j, time in enumerate(times):
            after = sum(candidate[time:])
            level += (ALPHA if j else ALPHA - W0) * gamma_of_saffron(t - time - after)
        levels.append(min(lam, (1 - lam) * level))
        if p[t - 1] <= levels[-1]:
            times.append(t)
    return levels, times


def addis(p):
    """Tian & Ramdas 2019, algorithm 1; their sequence begins at 0."""
    times, levels = [], []
    for t in range(1, len(p) + 1):
        kept = [value <= TAU for value in p[: t - 1]]
        candidate = [value <= LAMBDA for value in p[: t - 1]]
        level = W0 * gamma_of_saffron(1 + sum(kept) - sum(candidate))
        for j, time in enumerate(times):
            after = sum(candidate[time:])
            level += (ALPHA if j else ALPHA - W0) * gamma_of_saffron(1 + sum(kept) - sum(kept[:time]) - after)
        levels.append(min(LAMBDA, (TAU - LAMBDA) * level))
        if p[t - 1] <= levels[-1]:
            times.append(t)
    return levels, times


@pytest.mark.parametrize("seed", [0, wide(1), wide(2)])
@pytest.mark.parametrize(("kind", "paper"), [(LORD, lord), (SAFFRON, saffron), (ADDIS, addis)])
def test_levels_and_selections_are_those_of_the_paper(kind, paper, seed):
    p = drawn(seed)
    procedure, found = kind(ALPHA), []
    for value in p:
        found.append(procedure.level_)
        procedure.update([value])
    levels, times = paper(p)
    np.testing.assert_allclose(found, levels, rtol=1e-12)
    np.testing.assert_array_equal(np.flatnonzero(kind(ALPHA).update(p)) + 1, times)
    assert len(times) > 10
    assert (procedure.n_tested_, procedure.n_selected_) == (len(p), len(times))


@pytest.mark.parametrize("kind", KINDS)
def test_what_may_be_spent_sums_to_one_at_most(kind):
    sequence = kind()._falling(np.arange(1.0, 1e6))
    assert (sequence > 0).all()
    assert (np.diff(sequence) < 0).all()
    if kind is LORD:  # its tail is an integral, by u = sqrt(log j)
        u = np.sqrt(np.log(1e6))
        tail = 0.07720838 * 2 * np.exp(-u) * (u**3 + 3 * u**2 + 6 * u + 6)
    else:
        tail = 1e6**-0.6 / 0.6 / zeta(1.6)
    assert 0.97 < sequence.sum() + tail <= 1.0001
    assert kind(horizon=7)._gamma(np.arange(1.0, 100)).sum() == pytest.approx(1)


@pytest.mark.parametrize("horizon", [None, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_how_p_values_are_batched_changes_nothing(kind, horizon):
    p = drawn(5, 3000)
    whole, parts = kind(horizon=horizon), kind(horizon=horizon)
    expected = whole.update(p)
    ends = np.sort(np.random.RandomState(0).randint(3000, size=40))
    found = np.concatenate([parts.update(part) for part in np.split(p, ends)])
    np.testing.assert_array_equal(found, expected)
    assert parts.level_ == whole.level_


@pytest.mark.parametrize("kind", KINDS)
def test_a_horizon_spends_evenly_and_then_nothing(kind):
    procedure = kind(0.1, horizon=5)
    low, high = procedure._limits()
    ticking = (low + high) / 2
    levels = []
    for _ in range(7):
        levels.append(procedure.level_)
        procedure.update([ticking])
    np.testing.assert_allclose(levels, [(high - low) * 0.05 / 5] * 5 + [0, 0])


# -- what they promise ------------------------------------------------------------------------------------
def false_and_found(selected, anomalies):
    return selected[~anomalies].sum() / max(1, selected.sum()), selected[anomalies].sum() / max(
        1, anomalies.sum()
    )


def assert_at_most(shares, rate):
    """The mean share of false discoveries is at most the rate, up to three standard errors."""
    assert np.mean(shares) <= rate + 3 * np.std(shares) / np.sqrt(len(shares))


SHARES = [wide(0.0), 0.05, wide(0.3)]
RUNS = [200, wide(2000)]


@pytest.mark.parametrize("n_runs", RUNS)
@pytest.mark.parametrize("horizon", [None, 25])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_share_of_false_discoveries_is_at_most_the_rate(n_runs, kind, share, horizon):
    shares = []
    for seed in range(n_runs):
        rng = np.random.RandomState(seed)
        anomalies = rng.uniform(size=200) < share
        p = stats.norm.sf(rng.normal(size=200) + 3.5 * anomalies)
        shares.append(false_and_found(kind(0.2, horizon=horizon).update(p), anomalies)[0])
    assert_at_most(shares, 0.2)


@pytest.mark.parametrize("n_runs", RUNS)
@pytest.mark.parametrize("n_calibration", [60, wide(400)])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", KINDS)
def test_p_values_that_share_a_calibration_hold_the_rate_too(n_runs, kind, share, n_calibration):
    shares = []
    horizon = kind(0.3).horizon_for(1 / (n_calibration + 1))
    for seed in range(n_runs):
        rng = np.random.RandomState(seed)
        anomalies = rng.uniform(size=200) < share
        p = p_values(rng.normal(size=200) + 3.5 * anomalies, rng.normal(size=n_calibration))
        shares.append(false_and_found(kind(0.3, horizon=horizon).update(p), anomalies)[0])
    assert_at_most(shares, 0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_horizon_finds_far_more_where_p_values_cannot_be_small(kind):
    found = {}
    for horizon in (None, kind().horizon_for(1 / 2001)):
        rng, shares = np.random.RandomState(0), []
        for _ in range(10):
            anomalies = rng.uniform(size=1000) < 0.05
            p = p_values(rng.normal(size=1000) + 6 * anomalies, rng.normal(size=2000))
            shares.append(false_and_found(kind(horizon=horizon).update(p), anomalies)[1])
        found[horizon] = np.mean(shares)
    falling, even = found.values()
    assert even > 0.5
    assert falling < 0.3


# -- parameters and state ---------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_a_procedure_goes_on_from_its_state_and_a_clone_begins_anew(kind):
    p = drawn(0)
    procedure = kind(0.2, horizon=40)
    procedure.update(p[:200])
    restored, copied = kind.restore(**procedure.state()), pickle.loads(pickle.dumps(procedure))
    anew = clone(procedure)
    expected = procedure.update(p[200:])
    np.testing.assert_array_equal(restored.update(p[200:]), expected)
    np.testing.assert_array_equal(copied.update(p[200:]), expected)
    assert restored.level_ == procedure.level_
    np.testing.assert_array_equal(anew.update(p[:200]), kind(0.2, horizon=40).update(p[:200]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_procedure_has_the_same_levels_to_the_last_bit_however_long_the_stream(kind):
    procedure, p = kind(), np.full(5_000, sum(kind()._limits()) / 2)
    p[::997] = 0.0
    for part in np.split(p, [1023, 1024, 1025, 2047, 2050, 4096, 4100]):
        procedure.update(part)
        restored = kind.restore(**procedure.state())
        assert restored.level_ == procedure.level_
        np.testing.assert_array_equal(restored._table, procedure._table)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: LORD(0).level_, "false_discovery_rate"),
        (lambda: SAFFRON(initial_fraction=1.0).level_, "initial_fraction"),
        (lambda: SAFFRON(horizon=0).level_, "horizon"),
        (lambda: ADDIS(candidate_level=0.5).level_, r"candidate_level must be less than .* 0\.5 and 0\.5"),
        (lambda: LORD().update([0.5, 1.1]), r"one number in \[0, 1\]"),
        (lambda: LORD().update([np.nan]), r"one number in \[0, 1\]"),
        (lambda: LORD().update(0.5), "for each row"),
    ],
)
def test_what_cannot_be_is_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


def test_refused_p_values_change_nothing():
    procedure = LORD()
    with pytest.raises(ValueError, match="p-values must be"):
        procedure.update([0.0, 2.0])
    assert (procedure.n_tested_, procedure.n_selected_) == (0, 0)


# -- in a monitor -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def calibrated():
    return Calibrated(np.random.RandomState(0).gumbel(size=500))


@pytest.fixture(scope="module")
def batches():
    rng = np.random.RandomState(1)
    return [np.where(rng.uniform(size=n) < 0.2, 20.0, rng.gumbel(size=n)) for n in (30, 0, 1, 90, 40)]


def saved(monitor):
    file = io.BytesIO()
    monitor.save(file)
    file.seek(0)
    return file


@pytest.mark.parametrize("name", ONLINE)
def test_a_monitor_selects_by_the_p_values_of_the_detector(name, calibrated, batches):
    monitor = Monitor(calibrated, selection=name, random_state=0)
    assert len(monitor.selected) == 0
    procedure = ONLINE[name](horizon=ONLINE[name]().horizon_for(1 / 501))
    for batch in batches:
        monitor.update(batch)
        expected = procedure.update(p_values(batch, calibrated.calibration_scores_))
        np.testing.assert_array_equal(monitor.selected, expected)
    assert monitor.selection.n_selected_ > 10
    assert monitor.selection.n_tested_ == monitor.evidence.n_rows == 161


@pytest.mark.parametrize("n_calibration", [100, 400, 999, 1599, 5000])
@pytest.mark.parametrize("name", ONLINE)
def test_the_horizon_of_a_name_is_the_longest_that_selects_the_smallest_p_value(name, n_calibration):
    monitor = Monitor(Calibrated(np.arange(float(n_calibration))), selection=name)
    smallest = 1 / (n_calibration + 1)
    assert monitor.selection.level_ >= smallest
    longer = clone(monitor.selection).set_params(horizon=monitor.selection.horizon + 1)
    assert longer.level_ <= smallest * (1 + 1e-9)


def test_selecting_changes_nothing_of_the_evidence(calibrated, batches):
    plain, selecting = (Monitor(calibrated, selection=which, random_state=0) for which in (None, "lord"))
    for batch in batches:
        assert plain.update(batch) == selecting.update(batch)
    assert len(plain.selected) == 0


@pytest.mark.parametrize("n_before", range(5))
@pytest.mark.parametrize("selection", ["lord", SAFFRON(0.2, candidate_level=0.3), "addis"])
def test_a_loaded_monitor_selects_as_the_one_that_was_saved(selection, n_before, calibrated, batches):
    monitor = Monitor(calibrated, selection=selection, random_state=0)
    for batch in batches[:n_before]:
        monitor.update(batch)
    loaded = Monitor.load(saved(monitor), calibrated)
    assert len(loaded.selected) == 0
    assert repr(loaded.selection) == repr(monitor.selection)
    for batch in batches[n_before:]:
        assert loaded.update(batch) == monitor.update(batch)
        np.testing.assert_array_equal(loaded.selected, monitor.selected)
    assert loaded.selection.level_ == monitor.selection.level_


def test_a_procedure_that_is_handed_over_is_copied_and_begins_anew(calibrated, batches):
    procedure = SAFFRON(0.2)
    procedure.update([0.0, 0.9])
    monitor = Monitor(calibrated, selection=procedure)
    monitor.update(batches[0])
    assert (procedure.n_tested_, monitor.selection.n_tested_) == (2, 30)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("bh", r"one of \['lord', 'saffron', 'addis'\].*received 'bh'"),
        (0.1, "received 0.1"),
        (
            SAFFRON(0.01),
            r"SAFFRON\(false_discovery_rate=0.01\) begins at a level of 0.00109.*nothing would be",
        ),
    ],
)
def test_a_selection_that_cannot_be_is_refused(selection, message, calibrated):
    with pytest.raises(ValueError, match=message):
        Monitor(calibrated, selection=selection)


def test_too_few_calibration_rows_are_told():
    with pytest.raises(ValueError, match="with 38 calibration rows: nothing would be selected. Hold out 39"):
        Monitor(Calibrated(np.arange(38.0)), selection="saffron")
    assert Monitor(Calibrated(np.arange(39.0)), selection="saffron").selection.horizon == 1


def test_a_procedure_of_a_class_of_ones_own_is_not_saved(calibrated):
    class Own(LORD):
        pass

    with pytest.raises(ModelFileError, match=r"names no classes of your own.*Own.*joblib\.dump"):
        saved(Monitor(calibrated, selection=Own()))


FORGED = {
    "a name": ("name", "bh"),
    "a name that is none": ("name", None),
    "parameters": ("parameters", {"false_discovery_rate": 2.0}),
    "other parameters": ("parameters", {"alpha": 0.1}),
    "rows": ("n_tested", 3),
    "a clock": ("clock", 400),
    "a clock that is none": ("clock", "late"),
    "clocks": ("clocks", np.array([5, 3])),
    "clocks after the present": ("clocks", np.array([150])),
    "clocks of another kind": ("clocks", np.array([0.5])),
    "a list": ("clocks", [1]),
}


@pytest.mark.parametrize(("key", "value"), FORGED.values(), ids=FORGED)
def test_a_forged_selection_is_refused(key, value, calibrated, batches):
    monitor = Monitor(calibrated, selection="saffron", random_state=0)
    for batch in batches:
        monitor.update(batch)
    with state_file.open_state(saved(monitor), MONITOR) as state:
        state["selection"][key] = value
    file = io.BytesIO()
    state_file.write(file, MONITOR, state, what="monitor", otherwise="")
    file.seek(0)
    with pytest.raises(ModelFileError, match="is refused: its state"):
        Monitor.load(file, calibrated)
