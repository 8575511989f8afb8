"""Training: the schedule around a compiled step."""

import copy
import itertools
import types
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import wide
from sklearn.base import clone
from sklearn.decomposition import PCA

from vae_anomaly import DenseNetwork, Member, VAEDetector
from vae_anomaly.core.backend import keras
from vae_anomaly.core.rows import usual_range
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.training import epochs, observers
from vae_anomaly.training.plan import Plan


@pytest.fixture(scope="module")
def X(table):
    return table[0]


def fit(X, **settings):
    settings = {"network": DenseNetwork((16,)), "latent_dim": 2, "epochs": 6, "random_state": 0, **settings}
    return VAEDetector(**settings).fit(X)


# -- the plan -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("n_rows", "steps", "epochs"),
    [(1, 1, 1000), (128, 1, 1000), (129, 2, 500), (12_800, 100, 10), (1_000_000, 7813, 5)],
)
def test_a_step_for_every_batch_and_about_a_thousand_steps(n_rows, steps, epochs):
    plan = Plan("auto", 128, 1e-3)
    assert plan.steps_per_epoch(n_rows) == steps
    assert plan.n_epochs(n_rows) == epochs


def test_learning_rate_schedules_fall_from_the_rate_to_nothing():
    progress = np.linspace(0, 1, 101)
    for name in ("cosine", "linear"):
        rates = Plan(1, 1, 0.5, name).rates(progress)
        assert rates[0] == pytest.approx(0.5)
        assert rates[50] == pytest.approx(0.25)
        assert rates[-1] == pytest.approx(0, abs=1e-7)
        assert (np.diff(rates) <= 0).all()
    np.testing.assert_allclose(Plan(1, 1, 0.5).rates(progress), 0.5)
    np.testing.assert_allclose(Plan(1, 1, 0.5, lambda p: p**2).rates(progress), 0.5 * progress**2, rtol=1e-6)
    np.testing.assert_allclose(Plan(1, 1, 0.5, lambda _: 0.1).rates(progress), 0.05, rtol=1e-6)


def test_kl_warm_up_rises_linearly_to_beta():
    progress = np.linspace(0, 1, 11)
    betas = Plan(1, 1, 0.1, beta=2.0, kl_warm_up=0.5).betas(progress)
    np.testing.assert_allclose(betas, 2 * np.minimum(1, progress / 0.5), rtol=1e-6)
    np.testing.assert_allclose(Plan(1, 1, 0.1, beta=2.0).betas(progress), 2.0)


@pytest.mark.parametrize(
    ("settings", "n_weights", "expected"),
    [
        ({"epochs": 7_000}, 5_000, False),
        ({"epochs": 8_000}, 5_000, True),
        ({"epochs": 1_000, "n_trainings": 8}, 5_000, True),
        ({"epochs": 8_000}, 50_000, False),
        # Early stopping ends them long before.
        ({"epochs": 8_000, "early_stopping": True}, 5_000, False),
        ({"epochs": 1, "jit_compile": True}, 10**9, True),
        ({"epochs": 10**9, "jit_compile": False}, 1, False),
    ],
)
def test_xla_is_used_where_it_pays_or_where_it_is_asked_for(settings, n_weights, expected):
    plan = Plan(batch_size=100, learning_rate=0.1, **settings)
    assert plan.uses_xla(n_rows=100, n_weights=n_weights) is expected


def test_xla_is_not_used_for_convolutions_unless_it_is_asked_for():
    plan = Plan(batch_size=100, learning_rate=0.1, epochs=8_000)
    assert not plan.uses_xla(n_rows=100, n_weights=5_000, has_convolutions=True)
    plan = Plan(batch_size=100, learning_rate=0.1, epochs=1, jit_compile=True)
    assert plan.uses_xla(n_rows=100, n_weights=5_000, has_convolutions=True)


# -- what the settings do -------------------------------------------------------------------------------
def test_adam_is_keras_adam(X):
    """One batch that holds all rows, so that every step sees the same loss up to its noise."""
    rows = X[:64]
    common = {"batch_size": 64, "scaler": None, "learning_rate": 0.01, "n_draws": 1}
    start = fit(rows, epochs=1, **{**common, "learning_rate": 1e-30})
    one_step = fit(rows, epochs=1, **common)
    # Adam's first step moves every weight by the learning rate against the sign of its gradient.
    moved = one_step.members_[0].trainable - start.members_[0].trainable
    touched = np.abs(moved) > 1e-6
    assert touched.mean() > 0.7
    np.testing.assert_allclose(np.abs(moved[touched]), 0.01, rtol=0.02)


@pytest.mark.parametrize(
    "settings",
    [
        {"network": DenseNetwork((16,), batch_normalization=True)},
        {"likelihood": "student_t"},
        wide({"objective": "iwae", "n_training_draws": 5}),
        wide({"n_training_draws": 4}),
        {"free_bits": 0.5},
        wide({"kl_warm_up": 0.5}),
        wide({"learning_rate_schedule": "linear"}),
        wide({"gradient_clip_norm": 1.0}),
        wide({"jit_compile": True}),
        wide({"batch_size": 16}),
        {"device": "cpu"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_every_setting_trains_and_changes_the_model(X, settings):
    changed = fit(X, epochs=30, **settings)
    plain = fit(X, epochs=30)
    assert changed.score(X) > fit(X, epochs=1, learning_rate=1e-12, **settings).score(X)
    if settings not in ({"device": "cpu"},):
        assert not np.array_equal(changed.score_samples(X), plain.score_samples(X))


def test_every_weight_moves(X):
    start = fit(X, epochs=1, learning_rate=1e-12)
    moved = np.abs(fit(X, epochs=60).members_[0].trainable - start.members_[0].trainable)
    # Only the weights into a unit that no row activates can stay; with 16 units, none is dead here.
    assert (moved > 1e-6).all()


def test_free_bits_keep_latents_alive_that_the_prior_would_silence(X):
    noise = np.random.RandomState(0).normal(size=(500, 6))
    silenced = fit(noise, epochs=60).history_["kl"][-1]
    alive = fit(noise, epochs=60, free_bits=0.5).history_["kl"][-1]
    assert silenced < 0.5 < 0.9 < alive


def test_xla_trains_as_well(X):
    """XLA draws other noise from the same seed, so the models agree in quality, not in bits."""
    with_xla, without = (fit(X, jit_compile=jit, epochs=100) for jit in (True, False))
    assert with_xla.score(X) == pytest.approx(without.score(X), abs=0.1)
    assert np.corrcoef(with_xla.score_samples(X), without.score_samples(X))[0, 1] > 0.98


def test_every_row_is_used_whatever_the_batch(X):
    """A row that was left out could not be fitted: here it is the only one that is different."""
    rows = np.zeros((130, 2))
    rows[129] = 8.0
    detector = fit(rows, scaler=None, epochs=300, batch_size=128)
    assert np.abs(detector.reconstruct(rows[129:]) - 8).max() < 2


# -- held-out rows --------------------------------------------------------------------------------------
def test_early_stopping_stops_and_restores_the_best_weights():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(80, 10))  # noise: any network overfits it
    detector = fit(
        X,
        network=DenseNetwork((256,)),
        latent_dim=8,
        epochs=2000,
        batch_size=16,
        learning_rate=1e-2,
        validation_fraction=0.5,
        early_stopping=True,
        patience=5,
        n_draws=20,
        jit_compile=False,
        learning_rate_schedule=None,
    )
    val_loss = detector.history_["val_loss"]
    best = int(np.argmin(val_loss))
    assert len(val_loss) == best + 1 + 5 < 2000
    # The restored model has the best epoch's loss on the held-out rows, which are half of all.
    stopped_later = fit(
        X,
        network=DenseNetwork((256,)),
        latent_dim=8,
        epochs=best + 1,
        batch_size=16,
        learning_rate=1e-2,
        learning_rate_schedule=None,
        validation_fraction=0.5,
        n_draws=20,
        jit_compile=False,
    )
    np.testing.assert_array_equal(detector.members_[0].trainable, stopped_later.members_[0].trainable)


STOPPED = {"epochs": 300, "early_stopping": True, "patience": 5, "learning_rate": 0.05}


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 40},
        pytest.param({"epochs": 40, "jit_compile": True}, marks=pytest.mark.wide),
        {"epochs": 300, "early_stopping": True, "patience": 5, "learning_rate": 0.05},
        wide(
            {"epochs": 300, "early_stopping": True, "patience": 5, "learning_rate": 0.05, "jit_compile": True}
        ),
        wide({"epochs": 30, "network": DenseNetwork((8,), dropout=0.1, batch_normalization=True)}),
        wide({"epochs": 30, "masked_fraction": 0.2, "validation_fraction": 0.2}),
        wide({"epochs": 30, "members": [Member(0.1), Member()], "validation_fraction": 0.2}),
    ],
    ids=["plain", "XLA", "early stopping", "early stopping, XLA", "layers with a state", "masks", "members"],
)
def test_what_an_epoch_leaves_does_not_depend_on_how_many_are_taken_at_once(settings, X, monkeypatch):
    def fitted(n_at_once):
        monkeypatch.setattr(epochs, "_EPOCHS_AT_ONCE", n_at_once)
        return fit(X, **settings)

    one, some, many = map(fitted, (1, 3, 64))
    for other in (some, many):
        assert other.history_ == one.history_
        for state, expected in zip(other.members_, one.members_, strict=True):
            np.testing.assert_array_equal(state.trainable, expected.trainable)
            for array, same in zip(state.non_trainable, expected.non_trainable, strict=True):
                np.testing.assert_array_equal(array, same)


@pytest.mark.parametrize(
    ("rate", "first", "repeated"),
    [(0.5, 1.0, 0), (3.0, 1.0, 1), (30.0, 1.0, None), (3.0, 1e-3, 1)],
    ids=["nowhere", "in the first epoch", "twice", "in the middle"],
)
def test_an_epoch_diverges_alike_among_others(rate, first, repeated, X, monkeypatch):
    def outcome(n_at_once):
        monkeypatch.setattr(epochs, "_EPOCHS_AT_ONCE", n_at_once)
        schedule = partial(at_last, first)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                fitted = fit(X, epochs=30, learning_rate=rate, learning_rate_schedule=schedule)
            except FloatingPointError as error:
                return str(error), {}
        return [str(warning.message) for warning in caught], fitted.history_

    told, history = outcome(64)
    assert (told, history) == outcome(1)
    assert (len(told) if history else None) == repeated
    assert first == 1 or "epoch 16" in told[0]


def at_last(first, progress):
    return np.where(progress < 0.5, first, 1.0)


def test_held_out_rows_are_not_trained_on(X):
    held_out = fit(X, validation_fraction=0.5)
    assert set(held_out.history_) == {
        "loss",
        "reconstruction",
        "kl",
        "val_loss",
        "val_reconstruction",
        "val_kl",
    }
    assert set(fit(X).history_) == {"loss", "reconstruction", "kl"}


# -- going on -------------------------------------------------------------------------------------------
def test_warm_start_goes_on_where_the_earlier_fit_stopped(X):
    detector = fit(X, warm_start=True, epochs=20)
    before, noise = detector.score(X), detector.draws_
    detector.fit(X)
    assert len(detector.history_["loss"]) == 40
    assert detector.history_["loss"][20] < detector.history_["loss"][0] - 0.5
    assert detector.score(X) > before
    assert detector.draws_ is noise


def test_a_cold_start_forgets_the_earlier_fit(X):
    detector = fit(X, epochs=20)
    first = detector.score_samples(X)
    np.testing.assert_array_equal(detector.fit(X).score_samples(X), first)
    assert len(detector.history_["loss"]) == 20


def test_warm_start_lets_the_encoder_see_the_new_range(X):
    detector = fit(X, warm_start=True).fit(X * 2)
    expected = usual_range(detector.scaler_.transform(X * 2).astype("f4"))
    np.testing.assert_allclose(detector.model_.input_range.numpy(), expected, rtol=1e-5)


def test_warm_start_holds_out_the_same_rows_again_even_without_a_seed(X):
    settings = {"validation_fraction": 0.5, "random_state": None, "warm_start": True}
    detector = fit(X, **settings, epochs=30)
    detector.set_params(learning_rate=1e-12, epochs=1).fit(X)
    # Other rows would be partly trained on and have another loss; these have the loss they had.
    assert detector.history_["val_loss"][-1] == pytest.approx(detector.history_["val_loss"][-2], rel=1e-5)


OTHER_DATA = {
    "far away": lambda rows: rows.assign(size=rows["size"] + 100.0),
    "unknown categories": lambda rows: rows.assign(
        city=np.where(np.arange(len(rows)) % 3, rows["city"], "Chur")
    ),
}


@pytest.fixture(scope="module")
def goes_on():
    rng = np.random.RandomState(0)
    rows = pd.DataFrame({"age": rng.normal(size=400), "size": rng.normal(size=400)})
    rows["city"] = rng.choice(["Bern", "Genf"], 400)
    return rows[:200], rows[200:], fit(rows[:200], warm_start=True, validation_fraction=0.2, epochs=3)


@pytest.mark.parametrize("column", OTHER_DATA)
def test_a_warm_start_with_other_data_is_warned_of(goes_on, column):
    _, rows, detector = goes_on
    other, name = OTHER_DATA[column](rows), {"far away": "size", "unknown categories": "city"}[column]
    with pytest.warns(UserWarning, match=f"goes on with other data.*of the rows anomalies.*column '{name}'"):
        copy.deepcopy(detector).fit(other)


def test_a_warm_start_with_other_data_is_warned_of_where_no_column_can_be_named(X):
    detector = fit(X, warm_start=True, validation_fraction=0.2, scaler=PCA(2))
    with pytest.warns(UserWarning, match="goes on with other data.*where 0.05 would be expected[.] Scaler"):
        detector.fit(X + 100)


def test_a_warm_start_with_data_like_the_earlier_is_not_warned_of(goes_on):
    for rows in (*goes_on[:2], goes_on[1][:20]):
        copy.deepcopy(goes_on[2]).fit(rows)


def test_histories_of_a_warm_start_stay_aligned(X):
    detector = fit(X, epochs=2, warm_start=True)
    detector.set_params(validation_fraction=0.2).fit(X)
    detector.set_params(validation_fraction=0.0).fit(X)
    assert {len(values) for values in detector.history_.values()} == {6}
    np.testing.assert_array_equal(
        np.isnan(detector.history_["val_loss"]), [True] * 2 + [False] * 2 + [True] * 2
    )


def test_warm_start_refuses_another_number_of_draws(X):
    detector = fit(X, warm_start=True, n_draws=3)
    with pytest.raises(ValueError, match="keeps the 3 draws of the earlier fit, but n_draws is 4"):
        detector.set_params(n_draws=4).fit(X)


@pytest.mark.parametrize(
    "changed", [{"latent_dim": 3}, {"network": DenseNetwork((8,))}, {"likelihood": "laplace"}]
)
def test_warm_start_refuses_another_model(X, changed):
    detector = fit(X, warm_start=True)
    before = detector.score_samples(X)
    with pytest.raises(ValueError, match="set warm_start=False"):
        detector.set_params(**changed).fit(X)
    np.testing.assert_array_equal(detector.score_samples(X), before)


# -- watching -------------------------------------------------------------------------------------------
class Nameless(Gaussian):
    """A likelihood that Keras could not save."""

    name = ""


class Recorder:
    """Builds a Keras callback that writes down what it is told."""

    def __new__(cls, log):
        class Callback(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                log.append("train begins")

            def on_epoch_begin(self, epoch, logs=None):
                log.append(f"epoch {epoch} begins")

            def on_epoch_end(self, epoch, logs=None):
                log.append((epoch, sorted(logs), self.model.get_weights()[-2].sum()))

            def on_train_end(self, logs=None):
                log.append("train ends")

        return Callback()


def test_callbacks_hear_of_every_epoch_with_the_present_weights(X):
    log = []
    watched = fit(X, epochs=2, validation_fraction=0.1, callbacks=[Recorder(log)])
    names = sorted(watched.history_)
    assert [entry if isinstance(entry, str) else entry[:2] for entry in log] == [
        "train begins",
        "epoch 0 begins",
        (0, names),
        "epoch 1 begins",
        (1, names),
        "train ends",
    ]
    assert log[2][2] != log[4][2]
    unwatched = fit(X, epochs=2, validation_fraction=0.1)
    np.testing.assert_array_equal(watched.score_samples(X), unwatched.score_samples(X))


def test_a_callback_can_stop_the_training(X):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 2

    assert len(fit(X, epochs=9, callbacks=[Stop()]).history_["loss"]) == 3


def test_keras_early_stopping_restores_its_best_weights():
    X = np.random.RandomState(0).normal(size=(80, 10))
    settings = {"validation_fraction": 0.5, "learning_rate": 1e-2, "batch_size": 16, "n_draws": 20}
    settings["learning_rate_schedule"] = None  # a schedule is laid over all epochs that are planned
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=3, restore_best_weights=True)
    detector = fit(X, epochs=500, callbacks=[stopping], **settings)
    best = int(np.argmin(detector.history_["val_loss"]))
    assert len(detector.history_["loss"]) == best + 1 + 3
    best_epoch = fit(X, epochs=best + 1, **settings)
    np.testing.assert_array_equal(detector.members_[0].trainable, best_epoch.members_[0].trainable)


def test_a_callback_can_steer_the_learning_rate(X):
    frozen_after_one = keras.callbacks.LearningRateScheduler(lambda epoch: 0.003 if epoch == 0 else 0.0)
    detector = fit(X, epochs=5, callbacks=[frozen_after_one], learning_rate_schedule=None)
    once = fit(X, epochs=1, learning_rate_schedule=None)
    np.testing.assert_array_equal(detector.members_[0].trainable, once.members_[0].trainable)


class Batches(keras.callbacks.Callback):
    """Writes down what it hears of batches."""

    def __init__(self):
        super().__init__()
        self.begun, self.ended, self.rates, self.first_weights = [], [], [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.begun.append(batch)
        self.rates.append(float(self.model.optimizer.learning_rate))

    def on_train_batch_end(self, batch, logs=None):
        self.ended.append((batch, logs["loss"]))
        self.first_weights.append(float(self.model.trainable_variables[0].numpy().ravel()[0]))


@pytest.mark.parametrize("jit_compile", [False, wide(True)])
def test_callbacks_hear_of_every_batch_and_change_nothing_by_listening(X, jit_compile):
    batches, settings = Batches(), {"epochs": 2, "batch_size": 32, "jit_compile": jit_compile}
    heard = fit(X, callbacks=[batches], **settings)
    n_steps = -(-len(X) // 32)
    assert batches.begun == [batch for batch, _ in batches.ended] == 2 * list(range(n_steps))
    assert len(set(batches.first_weights)) == 2 * n_steps
    # An epoch's figures are means so far: the last ones are the epoch's.
    assert [batches.ended[n_steps - 1][1], batches.ended[-1][1]] == heard.history_["loss"]
    np.testing.assert_array_equal(heard.score_samples(X), fit(X, **settings).score_samples(X))


def test_callbacks_of_keras_that_wait_for_the_end_of_an_epoch_leave_batches_in_blocks(tmp_path):
    checkpoint = keras.callbacks.ModelCheckpoint
    kinds = {
        checkpoint(tmp_path / "a.keras"): False,
        checkpoint(tmp_path / "b.keras", save_freq=2): True,
        keras.callbacks.TerminateOnNaN(): False,
        keras.callbacks.EarlyStopping("loss"): False,
        keras.callbacks.LambdaCallback(on_train_batch_end=print): True,
        keras.callbacks.LambdaCallback(on_epoch_end=print): False,
        keras.callbacks.ProgbarLogger(): True,
        Batches(): True,
    }
    assert {callback: observers._watches_batches(callback) for callback in kinds} == kinds


def test_callbacks_see_the_learning_rate_of_the_schedule(X):
    batches = Batches()
    fit(X, epochs=2, batch_size=32, learning_rate=0.01, callbacks=[batches])
    progress = np.arange(len(batches.rates)) / len(batches.rates)
    np.testing.assert_allclose(batches.rates, 0.01 * 0.5 * (1 + np.cos(np.pi * progress)), rtol=1e-6)


def test_a_rate_that_a_callback_sets_is_the_rate_of_the_epoch_whatever_the_schedule(X):
    always = keras.callbacks.LearningRateScheduler(lambda epoch: 0.002)
    settings = {"epochs": 3, "batch_size": len(X)}  # one step an epoch
    steered = fit(X, callbacks=[always], learning_rate=0.01, learning_rate_schedule="linear", **settings)
    plain = fit(X, learning_rate=0.002, learning_rate_schedule=None, **settings)
    np.testing.assert_allclose(steered.members_[0].trainable, plain.members_[0].trainable, rtol=1e-5)


def test_what_a_callback_takes_off_the_rate_stays_off(X):
    class Halve(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                self.model.optimizer.learning_rate = self.model.optimizer.learning_rate / 2

    batches = Batches()
    fit(X, epochs=3, batch_size=len(X), learning_rate_schedule="linear", callbacks=[batches, Halve()])
    np.testing.assert_allclose(batches.rates, 0.003 * np.array([1, 0.5 * 2 / 3, 0.5 / 3]), rtol=1e-6)


def test_each_member_writes_to_a_file_of_its_own(X, tmp_path):
    log = keras.callbacks.CSVLogger(tmp_path / "log {member}.csv")
    best = keras.callbacks.ModelCheckpoint(tmp_path / "{member} {epoch}.weights.h5", save_weights_only=True)
    fit(X, epochs=2, members=3, callbacks=[log, best])
    logs = [(tmp_path / f"log {member}.csv").read_text().splitlines() for member in range(3)]
    assert [len(lines) for lines in logs] == [3, 3, 3]  # a header and two epochs
    assert len(set(map(str, logs))) == 3
    written = {path.name for path in tmp_path.glob("*.h5")}
    assert written == {f"{member} {epoch}.weights.h5" for member in range(3) for epoch in (1, 2)}
    assert log.filename == str(tmp_path / "log {member}.csv")


@pytest.mark.parametrize("members", [1, 2])
def test_one_file_for_several_members_is_warned_of(X, tmp_path, members, recwarn):
    appending = keras.callbacks.CSVLogger(tmp_path / "all.csv", append=True)
    fit(X, epochs=1, members=members, callbacks=[keras.callbacks.CSVLogger(tmp_path / "log.csv"), appending])
    found = [str(warning.message) for warning in recwarn if "{member}" in str(warning.message)]
    assert len(found) == members - 1
    assert all("each of the 2 members" in text and "log.csv" in text for text in found)


def test_the_progress_bar_of_keras_knows_how_many_steps_there_are(X, capsys):
    fit(X, epochs=2, batch_size=32, callbacks=[keras.callbacks.ProgbarLogger()], verbose=1)
    assert f"{-(-len(X) // 32)}/{-(-len(X) // 32)}" in capsys.readouterr().out


def test_callbacks_keep_no_model_after_the_training(X):
    quiet, broken = (
        keras.callbacks.EarlyStopping("loss"),
        keras.callbacks.LearningRateScheduler(lambda _: "a"),
    )
    detector = fit(X, epochs=1, callbacks=[quiet], likelihood=Nameless())
    assert quiet.model is None
    clone(detector)
    with pytest.raises(ValueError, match="should be a float"):
        fit(X, epochs=1, callbacks=[broken])
    assert broken.model is None


def test_something_that_is_no_callback_is_named(X):
    with pytest.raises(
        TypeError, match=r"callbacks must be keras\.callbacks\.Callback objects; received 'a'"
    ):
        fit(X, callbacks=["a"])


BAD_SCHEDULES = {
    "nothing": lambda progress: None,
    "another length": lambda progress: np.ones(3),
    "NaN": lambda progress: progress * np.nan,
    "negative": lambda progress: progress - 1,
    "text": lambda progress: "fast",
}


@pytest.mark.parametrize("schedule", BAD_SCHEDULES.values(), ids=BAD_SCHEDULES)
def test_a_schedule_that_returns_no_factors_is_refused(X, schedule):
    with pytest.raises(ValueError, match="learning_rate_schedule must return a number >= 0 for each"):
        fit(X, learning_rate_schedule=schedule)


def test_a_schedule_may_return_one_factor_for_all(X):
    twice = fit(X, learning_rate_schedule=lambda progress: 2.0)
    constant = fit(X, learning_rate=6e-3, learning_rate_schedule=None)
    np.testing.assert_array_equal(twice.score_samples(X), constant.score_samples(X))


def test_silence_by_default_and_a_bar_with_the_loss_parts_on_request(X, capsys):
    fit(X)
    assert capsys.readouterr() == ("", "")
    fit(X, verbose=1, validation_fraction=0.1)
    printed = capsys.readouterr().out
    for part in ("6/6", "loss:", "reconstruction:", "kl:", "val_loss:"):
        assert part in printed


def slow_clock(seconds):
    """In the place of `time`: each look at it takes so many seconds."""
    return types.SimpleNamespace(perf_counter=itertools.count(0, seconds).__next__)


# 5 steps take 10 s, and a step with its held-out rows too.
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        # 3 epochs of 5 steps of 2 s.
        ({"epochs": 3}, ""),
        ({"epochs": 6}, "Training will take at most about 1 minute.\n"),
        ({"epochs": 6, "members": 3}, "Training 3 members will take at most about 3 minutes.\n"),
        ({"epochs": 2000, "early_stopping": True}, "Training will take at most about 9.7 hours.\n"),
        # 4 steps of 2.5 s and 7.5 s for the held-out rows.
        ({"epochs": 12, "validation_fraction": 0.2}, "Training will take at most about 4 minutes.\n"),
    ],
)
def test_a_fit_of_a_minute_or_more_says_beforehand_how_long_it_takes(X, capsys, monkeypatch, settings, said):
    monkeypatch.setattr(epochs, "time", slow_clock(10))
    if settings.get("early_stopping"):
        settings = {**settings, "validation_fraction": 0.2, "patience": 1, "learning_rate": 0.1}
    fit(X[:160], batch_size=32, verbose=1, **settings)
    printed = capsys.readouterr().out
    assert printed.count("will take") == bool(said)
    assert said in printed
    assert printed.index("will take") < printed.index("loss:") if said else True


def test_what_measures_a_training_leaves_no_trace_in_it(X, capsys):
    settings = {"members": 2, "validation_fraction": 0.2, "epochs": 3}
    watched, silent = fit(X, verbose=1, **settings), fit(X, **settings)
    np.testing.assert_array_equal(watched.score_samples(X), silent.score_samples(X))
    assert watched.history_ == silent.history_


def test_a_stopped_training_closes_its_bar(X, capsys):
    stop = {"early_stopping": True, "patience": 1, "validation_fraction": 0.3}
    detector = fit(X, epochs=3000, learning_rate=0.1, verbose=1, **stop)
    n_epochs = len(detector.history_["loss"])
    assert n_epochs < 3000
    assert f"{n_epochs}/3000" in capsys.readouterr().out
