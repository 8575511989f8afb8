"""Going on with new rows of a stream: what is learned, what stays, and what the threshold then promises."""

import copy
import io
import warnings

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import wide
from scipy import sparse, stats
from sklearn.model_selection import KFold

from vae_anomaly import ConvNetwork, DenseNetwork, Member, VAEDetector, load
from vae_anomaly.data.ranges import FALSE_ALARM_RATE, ColumnRanges
from vae_anomaly.ensemble.decisions import decide
from vae_anomaly.monitoring import Monitor
from vae_anomaly.thresholds import Conformal

SETTINGS = {
    "network": DenseNetwork((8,)),
    "latent_dim": 2,
    "epochs": 2,
    "members": 2,
    "validation_fraction": 0.2,
    "random_state": 0,
}


@pytest.fixture(scope="module")
def stream():
    """Rows of one kind, in batches of 100."""
    return np.split(np.random.RandomState(0).normal(size=(500, 3)), 5)


@pytest.fixture(scope="module")
def fitted(stream):
    """Fitted on the first batch; tests copy it."""
    return VAEDetector(calibration=0.3, **SETTINGS).fit(stream[0])


def assert_same(detector, other, X):
    np.testing.assert_array_equal(detector.score_samples(X), other.score_samples(X))
    np.testing.assert_array_equal(detector.calibration_scores_, other.calibration_scores_)
    assert detector.offset_ == other.offset_
    assert detector.history_ == other.history_


def weights(detector):
    return np.stack([state.trainable for state in detector.members_])


# -- what is learned ------------------------------------------------------------------------------------
def test_the_first_call_is_fit(stream, fitted):
    first = VAEDetector(calibration=0.3, **SETTINGS).partial_fit(stream[0])
    assert_same(first, fitted, stream[1])
    assert first.n_samples_seen_ == first.n_samples_fit_ == 100


def test_later_calls_train_from_where_the_members_stand(stream, fitted):
    before, goes_on = copy.deepcopy(fitted), copy.deepcopy(fitted)
    goes_on.set_params(learning_rate=1e-12).partial_fit(stream[1])
    np.testing.assert_allclose(weights(goes_on), weights(before), atol=1e-9)
    goes_on.set_params(learning_rate=3e-3).partial_fit(stream[2])
    assert (weights(goes_on) != weights(before)).mean() > 0.9
    assert (goes_on.n_samples_seen_, goes_on.n_samples_fit_) == (300, 100)
    assert len(goes_on.history_["loss"]) == 6


def test_new_rows_are_learned():
    rng = np.random.RandomState(0)
    detector = VAEDetector(**{**SETTINGS, "epochs": 40}).fit(rng.normal(size=(400, 3)))
    moved = 0.5 * rng.normal(size=(400, 3)) + [1, -1, 0]
    before = detector.score(moved[200:])
    assert detector.partial_fit(moved[:200]).score(moved[200:]) > before + 0.3


def test_scaler_table_and_draws_stay(fitted, stream):
    goes_on = copy.deepcopy(fitted)
    kept = {name: getattr(goes_on, name) for name in ("scaler_", "draws_", "table_", "latent_dim_")}
    goes_on.partial_fit(stream[1] * 1.1)
    assert all(getattr(goes_on, name) is value for name, value in kept.items())


@pytest.mark.parametrize(("epochs", "passes"), [("auto", 5), (3, 3)])
def test_auto_takes_five_passes_and_an_int_as_many_as_it_says(epochs, passes):
    decisions = decide(VAEDetector(epochs=epochs).get_params(), None, None, 1000, takes_new_rows=True)
    assert decisions.plan.n_epochs(1000) == passes
    assert not decisions.recipe.early_stopping
    of_fit = decide(VAEDetector(epochs=epochs).get_params(), None, None, 1000)
    assert len(decisions.recipe.members) == len(of_fit.recipe.members)
    assert decisions.rule.__class__ is of_fit.rule.__class__


def test_early_stopping_that_is_asked_for_restores_the_best_pass(stream, fitted):
    goes_on = copy.deepcopy(fitted).set_params(
        early_stopping=True, patience=1, epochs=50, learning_rate=1e-12
    )
    goes_on.partial_fit(stream[1])
    assert len(goes_on.history_["loss"]) == 2 + 2


# -- same sequence, same bits ---------------------------------------------------------------------------
def test_the_same_sequence_gives_the_same_bits_saved_in_between_or_not(stream, fitted):
    in_memory, through_files = copy.deepcopy(fitted), copy.deepcopy(fitted)
    for batch in stream[1:3]:
        in_memory.partial_fit(batch)
        file = io.BytesIO()
        through_files.partial_fit(batch).save(file)
        file.seek(0)
        through_files = load(file)
    assert_same(in_memory, through_files, stream[4])
    np.testing.assert_array_equal(in_memory.missing_fraction_, through_files.missing_fraction_)


def test_each_call_splits_anew_although_the_seed_is_one(stream, fitted):
    goes_on = copy.deepcopy(fitted)
    seeds = [goes_on._split_seeds, *(goes_on.partial_fit(batch)._split_seeds for batch in stream[1:3])]
    assert len({tuple(each) for each in seeds}) == 3
    assert copy.deepcopy(fitted).partial_fit(stream[1])._split_seeds == seeds[1]


# -- calibration ----------------------------------------------------------------------------------------
def test_calibration_rows_are_new_rows_that_nothing_was_trained_on(stream, fitted):
    goes_on, other = copy.deepcopy(fitted), copy.deepcopy(fitted)
    X = stream[1].copy()
    held_out = np.isin(-goes_on.partial_fit(X).score_samples(X), goes_on.calibration_scores_)
    assert held_out.sum() == len(goes_on.calibration_scores_) == 30
    X[held_out] *= 0.5
    other.partial_fit(X)
    np.testing.assert_array_equal(weights(other), weights(goes_on))
    np.testing.assert_array_equal(
        np.sort(-other.score_samples(X[held_out])), np.sort(other.calibration_scores_)
    )


def test_folds_are_scored_by_models_that_went_on_without_them(stream):
    before = VAEDetector(calibration=KFold(2), **SETTINGS).fit(stream[0])
    goes_on = copy.deepcopy(before).partial_fit(stream[1])
    for trained_on, held_out in KFold(2).split(stream[1]):
        of_fold = copy.deepcopy(before)
        of_fold.set_params(calibration=None, random_state=goes_on._calibration_seed)
        of_fold.partial_fit(stream[1][trained_on])
        expected = -of_fold.score_samples(stream[1][held_out])
        np.testing.assert_array_equal(goes_on.calibration_scores_[held_out], expected)


def test_a_conformal_rate_holds_for_rows_of_the_new_kind():
    rng = np.random.RandomState(0)
    detector = VAEDetector(threshold=Conformal(0.1), calibration=0.5, **SETTINGS).fit(
        rng.normal(size=(300, 3))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the change
        detector.partial_fit(2 * rng.normal(size=(800, 3)))
    alarms = (detector.predict(2 * rng.normal(size=(4000, 3))) == -1).mean()
    low, high = detector.threshold_.realized_rates(400, coverage=0.999)
    assert low - 0.015 < alarms < high + 0.015  # and what chance makes of 4,000 rows
    assert detector.false_alarm_rate_ == 0.1


def test_too_few_rows_for_the_promise_are_refused_and_the_earlier_fit_stays(stream):
    detector = VAEDetector(threshold="conformal", calibration=0.3, **SETTINGS).fit(stream[0])
    before = detector.score_samples(stream[1])
    with pytest.raises(ValueError, match="a false-alarm rate of 0.05 needs at least 19 rows"):
        detector.partial_fit(stream[1][:40])
    np.testing.assert_array_equal(detector.score_samples(stream[1]), before)
    assert detector.n_samples_seen_ == 100


def test_groups_are_those_of_the_new_calibration_rows(stream, fitted):
    goes_on = copy.deepcopy(fitted)
    goes_on.partial_fit(stream[1], groups=np.repeat(["a", "b"], 50))
    assert set(goes_on.calibration_groups_) == {"a", "b"}
    assert goes_on.partial_fit(stream[2]).calibration_groups_ is None


def test_few_rows_are_taken_with_a_warning(stream, fitted):
    goes_on = copy.deepcopy(fitted).set_params(calibration=None, validation_fraction="auto")
    for n_rows in (1, 18):
        with pytest.warns(UserWarning, match=f"sets the threshold by the scores of its {n_rows} rows"):
            assert np.isfinite(goes_on.partial_fit(stream[1][:n_rows]).offset_)


def test_the_rows_of_the_last_call_are_warned_of_and_no_others(stream, fitted):
    goes_on = copy.deepcopy(fitted)
    for batch in (stream[0], stream[0]):
        with pytest.warns(
            UserWarning, match="the rows of the last call again: rows that were trained on set"
        ):
            goes_on.partial_fit(batch)
    goes_on.partial_fit(stream[1]).partial_fit(stream[0][::-1])


# -- rows that are not like the earlier ones ------------------------------------------------------------
@pytest.fixture(scope="module")
def table():
    rng = np.random.RandomState(0)
    numbers = pd.DataFrame(rng.normal(size=(300, 2)), columns=["size", "age"])
    return numbers.assign(city=rng.choice(["Bern", "Genf"], 300), unit=1.0)


@pytest.fixture(scope="module")
def of_table(table):
    return VAEDetector(**SETTINGS).fit(table[:200])


OUTSIDE = {
    "size: .* above": lambda rows: rows.assign(size=rows["size"] + 10),
    "age: 2 of 100 rows lie below .*, as far as -30": lambda rows: rows.assign(
        age=np.r_[-30.0, rows["age"][1:]]
    ),
    "unit: 1 of 100 rows lie above 1, as far as 2": lambda rows: rows.assign(
        unit=np.r_[2.0, rows["unit"][1:]]
    ),
    "city: 4 of 100 rows hold categories": lambda rows: rows.assign(
        city=np.r_[["Chur"] * 4, rows["city"][4:]]
    ),
    "age: 100 of 100 rows are the first that miss": lambda rows: rows.assign(age=np.nan),
    "city: 1 of 100 rows are the first that miss": lambda rows: rows.assign(city=[None, *rows["city"][1:]]),
}


of_other_data = pytest.mark.filterwarnings("ignore:partial_fit goes on with other data")


@of_other_data
@pytest.mark.parametrize("expected", OUTSIDE)
def test_columns_that_leave_what_they_held_are_named(expected, table, of_table):
    column, what = expected.split(": ")
    goes_on = copy.deepcopy(of_table)
    with pytest.warns(
        UserWarning, match=f"outside what the 200 earlier ones held in column '{column}': {what}"
    ):
        goes_on.partial_fit(OUTSIDE[expected](table[200:]))
    assert np.isfinite(goes_on.score_samples(table)).all()


def test_rows_like_the_earlier_ones_are_not_warned_of(table, of_table):
    copy.deepcopy(of_table).partial_fit(table[200:])


@of_other_data
@pytest.mark.wide
def test_of_many_columns_five_are_told_of_and_all_named():
    rng = np.random.RandomState(0)
    detector = VAEDetector(**SETTINGS).fit(rng.normal(size=(100, 7)))
    with pytest.warns(UserWarning, match=r"column 4: .*; and so in column 5, column 6\."):
        detector.partial_fit(rng.normal(size=(100, 7)) + 100)


@of_other_data
def test_what_was_seen_grows_so_that_a_change_is_news_once(stream, fitted):
    goes_on, moved = copy.deepcopy(fitted), [batch + [0, 2, 0] for batch in stream]
    with pytest.warns(UserWarning, match=r"the 70 earlier ones held in column 1"):
        goes_on.partial_fit(moved[1])
    goes_on.partial_fit(moved[2])


def test_missing_fractions_are_those_of_all_rows(stream):
    detector = VAEDetector(**SETTINGS).fit(stream[0])
    X = stream[1].copy()
    X[:50, 2] = np.nan
    with pytest.warns(UserWarning, match="column 2: 50 of 100 rows are the first that miss a value"):
        detector.partial_fit(X)
    np.testing.assert_allclose(detector.missing_fraction_, [0, 0, 0.25])


def test_rows_that_the_earlier_fit_calls_anomalies_are_warned_of():
    rng = np.random.RandomState(0)
    line = np.linspace(-2, 2, 400)[:, None] * [[1, 1, 1]] + 0.05 * rng.normal(size=(400, 3))
    detector = VAEDetector(**{**SETTINGS, "epochs": 60, "validation_fraction": 0.2}).fit(line)
    with pytest.warns(UserWarning, match="partial_fit goes on with other data.*call fit to fit them"):
        detector.partial_fit(np.clip(rng.normal(size=(200, 3)), -1.5, 1.5))


def test_infinite_values_are_refused_by_their_column(table, of_table):
    with pytest.raises(ValueError, match="column 'age' holds inf in row 3"):
        copy.deepcopy(of_table).partial_fit(table.assign(age=np.where(np.arange(300) == 3, np.inf, 0)))


# -- ranges ---------------------------------------------------------------------------------------------
def test_the_probability_of_values_beyond_the_range_is_that_of_ranks():
    """Rows beyond the greatest of n earlier ones follow BetaBinomial(m; 1, n)."""
    n, m = 40, 25
    earlier = ColumnRanges.of(np.linspace(0, 1, n)[:, None])
    for k in range(1, m + 1):
        X = np.full((m, 1), 0.5)
        X[:k] = 1.1
        improbable = stats.betabinom.sf(k - 1, m, 1, n) <= FALSE_ALARM_RATE / 2
        assert bool(earlier.outside(X).n_above[0]) == improbable


@pytest.mark.parametrize("draw", ["normal", "uniform", "poisson"])
def test_rows_of_one_kind_are_called_outside_as_rarely_as_stated(draw):
    rng = np.random.RandomState(0)
    sample = {"normal": rng.normal, "uniform": rng.uniform, "poisson": lambda size: rng.poisson(50, size)}[
        draw
    ]
    calls = 0
    for _ in range(1500):
        earlier, new = (np.asarray(sample(size=(n, 2)), dtype=float) for n in (200, 100))
        calls += ColumnRanges.of(earlier).outside(new).columns.any()
    assert calls <= stats.binom.ppf(0.999, 1500, FALSE_ALARM_RATE)


def test_ranges_of_parts_are_those_of_all_rows(stream):
    X = np.concatenate(stream)
    X[::7, 1] = np.nan
    parts = [ColumnRanges.of(part) for part in np.split(X, [100, 101, 350])]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    for made in (merged, ColumnRanges.of(sparse.csr_matrix(X)), ColumnRanges.restore(merged.numbers)):
        np.testing.assert_array_equal(made.numbers, ColumnRanges.of(X).numbers)


# -- all or nothing -------------------------------------------------------------------------------------
CHANGED = {
    "latent_dim": 3,
    "network": DenseNetwork((4,)),
    "likelihood": "laplace",
    "posterior": "planar",
    "prior": "mixture",
    "members": 3,
    "n_draws": 3,
}


@pytest.mark.parametrize("name", CHANGED)
def test_another_model_is_refused_and_the_earlier_fit_stays(name, stream, fitted):
    goes_on = copy.deepcopy(fitted).set_params(**{name: CHANGED[name]})
    with pytest.raises(ValueError, match="partial_fit .*; call fit to start anew"):
        goes_on.partial_fit(stream[1])
    assert_same(goes_on, fitted, stream[1])


class _Interrupts(keras.callbacks.Callback):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def on_epoch_end(self, epoch, logs=None):
        self.act()


def _press_ctrl_c():
    raise KeyboardInterrupt


@pytest.mark.parametrize("way", ["Ctrl-C", "stop_fit"])
def test_an_interrupted_call_leaves_the_detector_as_it_was(way, stream, fitted):
    goes_on = copy.deepcopy(fitted)
    act = goes_on.stop_fit if way == "stop_fit" else _press_ctrl_c
    goes_on.set_params(callbacks=[_Interrupts(act)])
    with pytest.raises(KeyboardInterrupt):
        goes_on.partial_fit(stream[1])
    assert_same(goes_on, fitted, stream[1])
    assert not goes_on.interrupted_


# -- all kinds of rows ----------------------------------------------------------------------------------
SMALL_CONVOLUTIONS = ConvNetwork(filters=(4,), dimensions=1)
KINDS = {
    "sparse": lambda rng: (sparse.csr_matrix(rng.normal(size=(80, 4))), {}),
    "images": lambda rng: (rng.randint(0, 256, size=(80, 8, 8), dtype=np.uint8), {}),
    "patches": lambda rng: (rng.uniform(size=(80, 16, 16)), {"patches": 8}),
    "signals": lambda rng: (
        rng.normal(size=(80, 16, 2)),
        {"network": ConvNetwork(filters=(4,), dimensions=1)},
    ),
    "gaps": lambda rng: (np.where(rng.uniform(size=(80, 4)) < 0.2, np.nan, rng.normal(size=(80, 4))), {}),
    "transformed columns": lambda rng: (
        rng.lognormal(size=(80, 4)),
        {"members": [Member(column_transform="yeo-johnson"), Member(trimmed_fraction=0.1)]},
    ),
}


@pytest.mark.parametrize("calibration", [0.4, pytest.param(KFold(2), marks=pytest.mark.wide)])
@pytest.mark.parametrize("kind", ["gaps", *map(wide, sorted({*KINDS} - {"gaps"}))])
def test_rows_of_any_kind_go_on_to_the_same_bits(kind, calibration):
    X, settings = KINDS[kind](np.random.RandomState(0))
    settings = {**SETTINGS, "epochs": 1, "calibration": calibration, **settings}
    detector = VAEDetector(**settings).fit(X[:40])
    other = copy.deepcopy(detector).partial_fit(X[40:])
    assert_same(detector.partial_fit(X[40:]), other, X)
    assert detector.n_samples_seen_ == 80


@of_other_data
@pytest.mark.parametrize(("channel", "kind"), [(1, "images"), wide(0, "signals")])
def test_channels_have_ranges_together(channel, kind):
    rng = np.random.RandomState(0)
    shape = (40, 6, 6, 3) if kind == "images" else (40, 16, 2)
    network = ConvNetwork(filters=(4,), dimensions=2 if kind == "images" else 1)
    X = rng.normal(size=shape)
    detector = VAEDetector(**{**SETTINGS, "epochs": 1, "network": network}).fit(X)
    moved = X.copy()
    moved[..., channel] += 10
    with pytest.warns(UserWarning, match=f"earlier ones held in channel {channel}: 40 of 40 rows lie above"):
        detector.partial_fit(moved)


def test_of_more_rows_than_max_samples_so_many_are_drawn_wherever_the_rows_are(stream, fitted, tmp_path):
    X = np.concatenate(stream[1:])
    X[:100, 2] = np.nan
    on_disk = np.memmap(tmp_path / "rows", dtype=X.dtype, mode="w+", shape=X.shape)
    on_disk[:] = X
    labels = np.arange(400)
    found = []
    for rows in (X, on_disk):
        goes_on = copy.deepcopy(fitted).set_params(max_samples=60)
        with pytest.warns(UserWarning, match="column 2: .* of 60 rows are the first that miss a value"):
            found.append(goes_on.partial_fit(rows, groups=labels))
    assert_same(*found, X)
    drawn = found[0]
    assert (drawn.n_samples_seen_, len(drawn.calibration_scores_)) == (500, 18)
    np.testing.assert_array_equal(
        drawn.calibration_scores_, -drawn.score_samples(X[drawn.calibration_groups_])
    )
    # All of them, but those that were held out, are known.
    assert drawn._column_ranges[-1][0] == 70 + 400 - 18
    assert drawn.missing_fraction_[2] == pytest.approx(100 / 452, abs=0.03)


@pytest.mark.parametrize("name", ["mixed", *map(wide, ["table", "gaps", "images"])])
def test_detectors_of_files_that_know_no_ranges_go_on(name, request):
    detector = load(request.path.parent / "model_files" / "0.1.0" / f"{name}.vae")
    X = detector.sample(40, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # samples of a model of few epochs
        detector.set_params(epochs=1, threshold=None, calibration=None).partial_fit(X)
    assert detector.n_samples_seen_ > 40
    assert detector._column_ranges is not None


# -- beside others --------------------------------------------------------------------------------------
def test_a_monitor_refuses_a_detector_that_went_on(stream, fitted):
    goes_on = copy.deepcopy(fitted)
    monitor = Monitor(goes_on, random_state=0)
    monitor.update(stream[1])
    goes_on.partial_fit(stream[1])
    with pytest.raises(ValueError, match="not the one that the monitor was made with"):
        monitor.update(stream[2])
    assert Monitor(goes_on, random_state=0).update(stream[2]).n_rows == 100


def test_the_model_card_says_of_which_rows_the_promises_are(stream, fitted):
    note = "after 100 others. The threshold and what it promises are of the last 60 rows alone"
    assert note not in str(fitted.model_card())
    card = copy.deepcopy(fitted).partial_fit(stream[1][:60]).model_card()
    assert note in str(card)
    assert card["data"]["rows"] == 60


def test_a_fit_after_it_begins_anew(stream, fitted):
    goes_on = copy.deepcopy(fitted).partial_fit(stream[1])
    assert_same(goes_on.fit(stream[0]), fitted, stream[1])
    assert goes_on.n_samples_seen_ == 100
