"""Long fits survive: checkpoints to go on from, Ctrl-C, and epochs that diverge."""

import copy
import errno
import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
import types
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import stars, wide
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from vae_anomaly import DenseNetwork, KerasNetwork, ModelFileError, VAEDetector, checkpoints, load
from vae_anomaly.checkpoints import Checkpoint, CheckpointFile
from vae_anomaly.core.backend import keras
from vae_anomaly.engine.steps import train_block
from vae_anomaly.ensemble.recipe import Member
from vae_anomaly.files import archive
from vae_anomaly.training import epochs

SMALL = {
    "network": DenseNetwork((16,)),
    "latent_dim": 2,
    "epochs": 12,
    "batch_size": 64,
    "n_draws": 2,
    "random_state": 0,
}


class KilledError(Exception):
    """What ends a fit in the place of a signal."""


@pytest.fixture(scope="module")
def X(table):
    return table[0]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit.checkpoint"


def detector(path=None, **settings):
    checkpoint = None if path is None else Checkpoint(path, every=1)
    return VAEDetector(**{**SMALL, "checkpoint": checkpoint, **settings})


def killed(fitting, X, n_epochs):
    """Fit until so many epochs, of all members together, have been finished and kept."""
    kept = []

    def keep(self, position, standing):
        original(self, position, standing)
        kept.append(standing)
        if len(kept) >= n_epochs:
            raise KilledError

    original = CheckpointFile.keep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointFile, "keep", keep)
        with pytest.raises(KilledError):
            fitting.fit(X)
    return fitting


def assert_same(first, second, X):
    for one, other in zip(first.members_, second.members_, strict=True):
        np.testing.assert_array_equal(one.trainable, other.trainable)
        for values, others in zip(one.non_trainable, other.non_trainable, strict=True):
            np.testing.assert_array_equal(values, others)
    assert first.history_ == second.history_
    assert first.offset_ == second.offset_
    np.testing.assert_array_equal(first.member_weights_, second.member_weights_)
    np.testing.assert_array_equal(first.draws_, second.draws_)
    np.testing.assert_array_equal(first.score_samples(X), second.score_samples(X))


def a_keras_network():
    encoder = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, "tanh"), keras.layers.GaussianNoise(0.1)]
        + [keras.layers.Dense(4)]
    )
    decoder = keras.Sequential([keras.Input((2,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(6)])
    return KerasNetwork(encoder, decoder)


# -- going on -------------------------------------------------------------------------------------------
STOPPING = {"epochs": 60, "early_stopping": True, "patience": 3, "learning_rate": 0.05}
FITS = {
    "one model": {},
    "an ensemble": {"members": [Member(), Member(trimmed_fraction=0.2), Member(0.0, 0.3, "yeo-johnson")]},
    "early stopping": {"members": 3, **STOPPING},
    "validation rows": {"validation_fraction": 0.2},
    "dropout and batch normalization": {
        "network": DenseNetwork((16,), dropout=0.2, batch_normalization=True)
    },
    "XLA": {"jit_compile": True},
    "a network of Keras": {"network": a_keras_network()},
    "masked values": {"masked_fraction": 0.3},
    "IWAE": {"objective": "iwae", "n_training_draws": 3},
    "warm-up and a schedule": {"kl_warm_up": 0.5, "learning_rate_schedule": lambda progress: 1 - progress**2},
    "a conformal threshold": {"threshold": "conformal", "calibration": 0.3},
    "a conformal threshold across folds": {"threshold": "conformal", "calibration": KFold(2), "epochs": 4},
}


# The others act on the training as one of these does.
BY_DEFAULT = {
    "an ensemble",
    "dropout and batch normalization",
    "a conformal threshold",
}


@pytest.mark.parametrize("settings", stars(FITS, BY_DEFAULT))
def test_a_resumed_fit_ends_with_the_bits_of_one_that_was_never_interrupted(settings, X, path):
    killed(detector(path, **settings), X, 3)
    resumed = detector(path, **settings).fit(X, resume=True)
    assert_same(resumed, detector(**settings).fit(X), X)
    assert os.listdir(path.parent) == []


def test_a_fit_can_go_on_from_any_epoch(X, path):
    expected = detector().fit(X)
    for n_epochs in range(1, 13):
        killed(detector(path), X, n_epochs)
        assert_same(detector(path).fit(X, resume=True), expected, X)


def test_a_fit_can_be_killed_and_resumed_many_times(X, path):
    class Resuming:
        def fit(self, X):
            detector(path, validation_fraction=0.2).fit(X, resume=True)

    for _ in range(5):
        killed(Resuming(), X, 2)
    resumed = detector(path, validation_fraction=0.2).fit(X, resume=True)
    assert_same(resumed, detector(validation_fraction=0.2).fit(X), X)


def test_a_resumed_fit_tells_the_time_of_what_is_left(X, path, capsys, monkeypatch):
    monkeypatch.setattr(epochs, "time", types.SimpleNamespace(perf_counter=itertools.count(0, 10).__next__))
    settings = {"members": 2, "epochs": 12, "verbose": 1}  # 2 s a step
    rows = X[:320]
    killed(detector(path, **settings), rows, 18)
    assert "Training 2 members will take at most about 4 minutes." in capsys.readouterr().out
    detector(path, **settings).fit(rows, resume=True)
    assert "Training will take at most about 1 minute." in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["sparse", "mixed", "with gaps"])
def test_every_kind_of_table_can_be_resumed(kind, X, path):
    if kind == "sparse":
        X = sparse.csr_matrix(np.where(X > 0, X, 0))
    elif kind == "mixed":
        X = pd.DataFrame({"size": X[:, 0], "city": np.where(X[:, 1] > 0, "Bern", "Genf"), "own": X[:, 2] > 0})
    else:
        X = np.where(X > 1, np.nan, X)
    killed(detector(path), X, 5)
    assert_same(detector(path).fit(X, resume=True), detector().fit(X), X)


def test_what_chance_decided_is_kept(X, path):
    killed(detector(path, random_state=np.random.RandomState(3)), X, 5)
    resumed = detector(path, random_state=np.random.RandomState(4)).fit(X, resume=True)
    assert_same(resumed, detector(random_state=np.random.RandomState(3)).fit(X), X)


def test_without_a_seed_each_resumption_ends_alike(X, path):
    killed(detector(path, random_state=None), X, 5)
    before = path.read_bytes()
    first = detector(path, random_state=None).fit(X, resume=True)
    path.write_bytes(before)
    assert_same(detector(path, random_state=None).fit(X, resume=True), first, X)


def test_a_warm_start_can_be_resumed_on_its_earlier_fit_only(X, path):
    earlier = detector(warm_start=True).fit(X)
    expected = pickle.loads(pickle.dumps(earlier)).fit(X[:300])
    killed(pickle.loads(pickle.dumps(earlier)).set_params(checkpoint=Checkpoint(path, 1)), X[:300], 5)
    with pytest.raises(ValueError, match="what differs is .*the earlier fit that warm_start goes on from"):
        detector(path, warm_start=True).fit(X[:300], resume=True)
    resumed = earlier.set_params(checkpoint=Checkpoint(path, 1)).fit(X[:300], resume=True)
    assert len(resumed.history_["loss"]) == 24
    assert_same(resumed, expected, X)


def test_trained_members_are_kept_while_folds_are_calibrated(X, path, monkeypatch):
    settings = {"members": 2, "calibration": KFold(2), "epochs": 4}

    def fails(*arguments):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("vae_anomaly.ensemble.calibration_rows.out_of_fold_scores", fails)
        with pytest.raises(KilledError):
            detector(path, **settings).fit(X)
    steps = []
    one_epoch_at_a_time(monkeypatch)
    monkeypatch.setattr(epochs, "train_block", counted(epochs.train_block, steps))
    resumed = detector(path, **settings).fit(X, resume=True)
    assert len(steps) == 2 * 2 * 4  # of the folds alone
    assert_same(resumed, detector(**settings).fit(X), X)


def counted(function, calls):
    def call(*arguments, **keywords):
        calls.append(arguments)
        return function(*arguments, **keywords)

    return call


def test_a_fit_without_a_file_starts_anew_even_to_resume(X, path):
    assert_same(detector(path).fit(X, resume=True), detector().fit(X), X)


def test_without_resume_a_fit_starts_anew(X, path):
    killed(detector(path, random_state=1), X, 5)
    assert_same(detector(path).fit(X), detector().fit(X), X)
    assert not path.exists()


def test_resume_passes_through_a_pipeline(X, path):
    pipeline = make_pipeline(FunctionTransformer(), detector(path))
    killed(pipeline, X, 5)
    pipeline.fit(X, vaedetector__resume=True)
    assert_same(pipeline[-1], detector().fit(X), X)


def test_a_path_alone_is_a_checkpoint(X, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    for name in (path, str(path), path.name):
        killed(detector(checkpoint=name), X, 5)
        assert_same(detector(checkpoint=name).fit(X, resume=True), detector().fit(X), X)


def test_a_checkpointed_fit_is_the_fit_without(X, path):
    for settings in ({}, {"members": 3}):
        assert_same(detector(path, **settings).fit(X), detector(**settings).fit(X), X)


def test_an_estimator_with_a_checkpoint_can_be_cloned_and_cross_validated(X, path):
    fitted = detector(path).fit(X)
    assert clone(fitted).checkpoint.get_params() == {"path": path, "every": 1}
    assert clone(fitted).set_params(checkpoint__every=5).checkpoint.every == 5
    np.testing.assert_array_equal(cross_val_score(fitted, X), cross_val_score(detector(), X))


# -- what a fit cannot go on from -----------------------------------------------------------------------
OTHERS = {
    "learning_rate": ({"learning_rate": 1e-4}, r"learning_rate \(0.003 there, 0.0001 here\)\. Restore"),
    "epochs": ({"epochs": 13}, r"epochs \(12 there, 13 here\)"),
    "batch_size": ({"batch_size": 32}, "batch_size"),
    "schedule": ({"learning_rate_schedule": lambda p: 1 - p**3}, r"is learning_rate_schedule\. Restore"),
    "beta": ({"beta": 0.5}, r"beta \(1.0 there, 0.5 here\)"),
    "network": ({"network": DenseNetwork((17,))}, r"is network\. Restore"),
    "likelihood": ({"likelihood": "laplace"}, r"is likelihood\. Restore"),
    "latent_dim": ({"latent_dim": 3}, r"latent_dim \(2 there, 3 here\)"),
    "members": ({"members": 2}, r"members \(.*\)\. Restore"),
    "validation_fraction": ({"validation_fraction": 0.2}, r"validation_fraction \(0.0 there, 0.2 here\)"),
    "early_stopping": ({"early_stopping": True}, "early_stopping"),
    "n_draws": ({"n_draws": 3}, r"n_draws \(2 there, 3 here\)"),
    "random_state": ({"random_state": 1}, r"is random_state\. Restore"),
    "jit_compile": ({"jit_compile": True}, r"jit_compile"),
    "scaler": ({"scaler": StandardScaler(with_std=False)}, r"is the scaled training rows\. Restore"),
}


@pytest.fixture(scope="module")
def earlier(X):
    """Fitted, and shared: tests copy it before they change it."""
    return detector().fit(X)


@pytest.fixture(scope="module")
def unfinished(X, tmp_path_factory):
    """The bytes of a checkpoint."""
    path = tmp_path_factory.mktemp("unfinished") / "fit.checkpoint"
    killed(detector(path), X, 5)
    return path.read_bytes()


@pytest.mark.parametrize(("changed", "message"), OTHERS.values(), ids=OTHERS)
def test_the_checkpoint_of_another_fit_is_refused_with_what_differs(
    changed, message, unfinished, earlier, X, path
):
    path.write_bytes(unfinished)
    earlier, scores = copy.copy(earlier), earlier.score_samples(X)
    with pytest.raises(ValueError, match=f"is of another fit: what differs .*{message}"):
        earlier.set_params(checkpoint=path, **changed).fit(X, resume=True)
    assert path.read_bytes() == unfinished
    np.testing.assert_array_equal(earlier.score_samples(X), scores)


@pytest.mark.wide
def test_a_fit_of_patches_goes_on_with_the_same_patches_only(path):
    images = (255 * np.random.RandomState(0).uniform(size=(24, 34, 36))).astype(np.uint8)
    settings = {"epochs": 3, "members": 1, "random_state": 0}
    of_patches = VAEDetector(checkpoint=Checkpoint(path, every=1), **settings)
    killed(of_patches, images, 2)
    with pytest.raises(ValueError, match=r"what differs .*patches \(8 there, 6 here\)"):
        clone(of_patches).set_params(patches=6).fit(images, resume=True)
    resumed, whole = of_patches.fit(images, resume=True), VAEDetector(**settings).fit(images)
    np.testing.assert_array_equal(resumed.score_samples(images), whole.score_samples(images))


@pytest.mark.parametrize(
    "change", [lambda X: X[::-1], lambda X: X[1:], lambda X: np.r_[X[:-1], X[-1:] + 1e-3], lambda X: X[:, 1:]]
)
def test_the_checkpoint_of_other_rows_is_refused(change, unfinished, X, path):
    path.write_bytes(unfinished)
    with pytest.raises(ValueError, match="what differs .*the scaled training rows"):
        detector(path).fit(change(X), resume=True)


def test_the_checkpoint_of_another_release_is_refused(X, path, monkeypatch):
    killed(detector(path), X, 5)
    releases = {**checkpoints.versions(), "tensorflow": "1.0"}
    monkeypatch.setattr(checkpoints, "versions", lambda: releases)
    with pytest.raises(ValueError, match=r"is the release of tensorflow \(.* there, 1.0 here\)"):
        detector(path).fit(X, resume=True)


def test_what_does_not_act_on_the_training_may_differ(X, path):
    killed(detector(path), X, 5)
    others = {"threshold": "median_deviation", "score": "iwae"}
    resumed = detector(path, **others).fit(X, resume=True)
    assert_same(resumed, detector(**others).fit(X), X)


def test_a_fit_needs_a_checkpoint_to_resume_from(X):
    with pytest.raises(ValueError, match="resume=True goes on from a checkpoint, and checkpoint is None"):
        detector().fit(X, resume=True)


def test_callbacks_which_no_checkpoint_can_hold_are_refused(X, path):
    with pytest.raises(ValueError, match="cannot hold what callbacks remember.*set callbacks=None"):
        detector(path, callbacks=[keras.callbacks.Callback()]).fit(X)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("content", ["a model", "a text", "half a checkpoint", "a spoiled checkpoint"])
def test_a_file_that_is_no_whole_checkpoint_is_neither_used_nor_replaced(
    content, resume, unfinished, earlier, X, path
):
    if content == "a model":
        earlier.save(path)
    else:
        data = bytearray(unfinished)
        data[len(data) // 2] ^= 1
        whole = {"a text": b"my thesis", "half a checkpoint": data[: len(data) // 2]}
        path.write_bytes(whole.get(content, data))
    before = path.read_bytes()
    with pytest.raises(ModelFileError, match="left as it is; choose another path, or remove it"):
        detector(path).fit(X, resume=resume)
    assert path.read_bytes() == before


def test_impossible_parameters_are_refused(X, path):
    for impossible in (Checkpoint(path, every=0), Checkpoint(path, every="often"), Checkpoint(3), 3):
        with pytest.raises(ValueError, match="parameter of"):
            detector(checkpoint=impossible).fit(X)


def test_a_checkpoint_is_no_model_and_says_so(X, path):
    killed(detector(path), X, 5)
    with pytest.raises(ModelFileError, match="is the checkpoint of an unfinished fit, not a model"):
        load(path)


def test_a_model_file_names_no_place_to_write_to(X, path, tmp_path):
    fitted = detector(path).fit(X)
    fitted.save(tmp_path / "model.vae")
    assert fitted.checkpoint.path == path
    loaded = load(tmp_path / "model.vae")
    assert loaded.checkpoint is None
    assert not loaded.interrupted_
    np.testing.assert_array_equal(loaded.score_samples(X), fitted.score_samples(X))


def test_a_forged_model_file_cannot_choose_where_a_fit_writes(X, tmp_path):
    fitted = detector().fit(X)
    fitted.save(tmp_path / "model.vae")
    with archive.open_archive(tmp_path / "model.vae") as opened:
        tree, parts = opened.json("detector.json"), {}
        for name in sorted(opened.names - {"detector.json"}):
            buffer = bytearray(opened.size(name))
            opened.read_into(name, memoryview(buffer))
            parts[name] = bytes(buffer)
        about = {"versions": opened.manifest["versions"]}
    del tree["defaults"]["checkpoint"]
    tree["parameters"]["checkpoint"] = str(tmp_path / "elsewhere")
    parts["detector.json"] = archive.to_json(tree, "its description")
    archive.write(tmp_path / "forged.vae", about, parts)
    assert load(tmp_path / "forged.vae").checkpoint is None


# -- the file -------------------------------------------------------------------------------------------
def test_the_file_holds_weights_and_moments_and_none_of_the_rows(X, path):
    killed(detector(path), X, 7)
    with archive.open_archive(path) as opened:
        (member,) = opened.json("checkpoint.json")["members"]
        n_bytes = sum(opened.size(name) for name in opened.names)
    assert member["dict"]["n_epochs"] == 7
    n_weights = detector().fit(X).members_[0].trainable.size
    assert 3 * 4 * n_weights < n_bytes < 3 * 4 * n_weights + 6_000 < X.nbytes


def fails(number, reason):
    def failing(*arguments, **keywords):
        raise OSError(number, reason)

    return failing


@pytest.mark.parametrize(
    ("number", "reason", "advice"),
    [
        (errno.ENOSPC, "No space left on device", "Make room, or choose another disk"),
        wide(errno.EROFS, "Read-only file system", "Choose a folder that you may write to"),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"members": 3}], ids=["one model", "an ensemble"])
def test_a_disk_that_fills_up_is_told_and_loses_nothing(
    settings, number, reason, advice, X, path, monkeypatch
):
    killed(detector(path, **settings), X, 5)
    before, earlier = path.read_bytes(), detector(**settings).fit(X[:300])
    scores = earlier.score_samples(X)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails(number, reason))
        with pytest.raises(
            OSError,
            match=f"{reason}; the checkpoint was not saved, and an earlier file is as it was. {advice}",
        ) as raised:
            earlier.set_params(checkpoint=Checkpoint(path, every=1)).fit(X, resume=True)
    assert (raised.value.errno, raised.value.filename) == (number, str(path))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    np.testing.assert_array_equal(earlier.score_samples(X), scores)
    assert_same(detector(path, **settings).fit(X, resume=True), detector(**settings).fit(X), X)


@pytest.mark.parametrize(
    "make", [lambda folder: None, lambda folder: folder.touch()], ids=["no", "a file as"]
)
def test_a_folder_that_cannot_be_written_to_is_told_before_the_training(make, X, tmp_path, monkeypatch):
    make(tmp_path / "folder")
    steps = []
    monkeypatch.setattr(epochs, "train_block", counted(epochs.train_block, steps))
    with pytest.raises(OSError, match="Make the folder first|Not a directory"):
        detector(tmp_path / "folder" / "fit.checkpoint").fit(X)
    assert steps == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder")
def test_a_real_read_only_folder_is_told(X, path):
    killed(detector(path), X, 5)
    before = path.read_bytes()
    path.parent.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match="checkpoint was not saved.*Choose a folder that you may"):
            detector(path).fit(X, resume=True)
    finally:
        path.parent.chmod(0o755)
    assert path.read_bytes() == before


def written(monkeypatch):
    calls = []
    monkeypatch.setattr(archive, "write", counted(archive.write, calls))
    return calls


@pytest.mark.parametrize("every", [1, 5])
def test_the_state_is_written_every_so_many_epochs_and_at_the_end_of_the_training(
    every, X, path, monkeypatch
):
    writes = written(monkeypatch)
    detector(checkpoint=Checkpoint(path, every)).fit(X)
    assert len(writes) == 1 + 12 // every + (12 % every > 0)


def test_left_to_itself_a_checkpoint_takes_two_percent_of_the_time(X, path, monkeypatch):
    """On a clock that only writing and the end of an epoch move, by a second each."""
    seconds = iter(range(10**6))
    monkeypatch.setattr(checkpoints, "time", types.SimpleNamespace(monotonic=lambda: next(seconds)))
    writes = written(monkeypatch)
    detector(checkpoint=path, epochs=200).fit(X)
    assert len(writes) == 1 + 200 // 50


# -- Ctrl-C ---------------------------------------------------------------------------------------------
class Interrupting:
    """Ctrl-C in the place of some calls of a function, counted from 1."""

    def __init__(self, function, calls):
        self.function, self.calls, self.n = function, calls, 0

    def __call__(self, *arguments, **keywords):
        self.n += 1
        if self.n in self.calls:
            raise KeyboardInterrupt
        return self.function(*arguments, **keywords)


def one_epoch_at_a_time(monkeypatch):
    """So that calls of `train_block` can be counted: an epoch is one block here."""
    monkeypatch.setattr(epochs, "_EPOCHS_AT_ONCE", 1)


def interrupted(monkeypatch, fitting, X, calls, name="train_block", **keywords):
    with monkeypatch.context() as patch:
        one_epoch_at_a_time(patch)
        patch.setattr(epochs, name, Interrupting(getattr(epochs, name), calls))
        with pytest.warns(ConvergenceWarning, match="Ctrl-C has ended the training"):
            return fitting.fit(X, **keywords)


def test_ctrl_c_ends_with_the_epoch_and_leaves_a_marked_detector(X, monkeypatch):
    settings = {"learning_rate_schedule": None, "contamination": 0.1}
    stopped = interrupted(monkeypatch, detector(**settings), X, calls={5})
    whole = detector(**settings, epochs=5).fit(X)
    assert stopped.interrupted_
    assert not whole.interrupted_
    assert_same(stopped, whole, X)
    assert (stopped.predict(X) == -1).sum() == 50


class Stopping:
    """`stop_fit` in another thread, before some call of a function, counted from 1."""

    def __init__(self, function, fitted, call):
        self.function, self.fitted, self.call, self.n = function, fitted, call, 0

    def __call__(self, *arguments, **keywords):
        self.n += 1
        if self.n == self.call:
            thread = threading.Thread(target=self.fitted.stop_fit)
            thread.start()
            thread.join()
        return self.function(*arguments, **keywords)


def stopped_from_another_thread(monkeypatch, fitted, X, call):
    with monkeypatch.context() as patch:
        one_epoch_at_a_time(patch)
        patch.setattr(epochs, "train_block", Stopping(epochs.train_block, fitted, call))
        with pytest.warns(ConvergenceWarning, match="stop_fit has ended the training"):
            return fitted.fit(X)


@pytest.mark.parametrize(("call", "n_epochs"), [(5, 5), (1, 1)])
def test_another_thread_ends_a_fit_with_its_epoch(X, monkeypatch, call, n_epochs):
    settings = {"learning_rate_schedule": None}
    stopped = stopped_from_another_thread(monkeypatch, detector(**settings), X, call)
    assert stopped.interrupted_
    assert_same(stopped, detector(**settings, epochs=n_epochs).fit(X), X)
    assert not stopped.fit(X).interrupted_


def test_another_thread_ends_the_fit_of_all_members(X, monkeypatch):
    fitted = detector(members=3, epochs=100_000, jit_compile=False)
    stopped = stopped_from_another_thread(monkeypatch, fitted, X, 9)
    assert stopped.interrupted_
    # Others go on while one member's thread asks for the end: on a busy machine for some epochs.
    assert len(stopped.history_["loss"]) < 1_000


def test_a_fit_that_was_stopped_goes_on_from_its_checkpoint(X, path, monkeypatch):
    fitted = detector(checkpoint=path)
    stopped_from_another_thread(monkeypatch, fitted, X, 3)
    assert_same(fitted.fit(X, resume=True), detector().fit(X), X)


def test_without_a_fit_there_is_nothing_to_stop(X):
    fitted = detector()
    fitted.stop_fit()
    assert not fitted.fit(X).interrupted_
    fitted.stop_fit()
    assert not fitted.fit(X).interrupted_


def test_a_detector_that_is_being_fitted_can_be_pickled_and_cloned(X, monkeypatch):
    fitted, copies = detector(callbacks=None), []
    with monkeypatch.context() as patch:
        whole = epochs.train_block

        def copying(*arguments, **keywords):
            copies.append(pickle.dumps(clone(pickle.loads(pickle.dumps(fitted)))))
            return whole(*arguments, **keywords)

        patch.setattr(epochs, "train_block", copying)
        fitted.fit(X)
    assert pickle.loads(copies[0]).get_params().keys() == fitted.get_params().keys()


def test_ctrl_c_between_two_epochs_ends_with_the_last(X, monkeypatch):
    end_epoch = Interrupting(epochs.Observers.end_epoch, {5})
    one_epoch_at_a_time(monkeypatch)
    monkeypatch.setattr(epochs.Observers, "end_epoch", lambda self, *given: end_epoch(self, *given))
    with pytest.warns(ConvergenceWarning, match="ended the training after 5 epochs"):
        stopped = detector(learning_rate_schedule=None).fit(X)
    assert_same(stopped, detector(learning_rate_schedule=None, epochs=5).fit(X), X)


def test_after_ctrl_c_early_stopping_restores_the_best_weights(X, monkeypatch):
    settings = {**STOPPING, "patience": 100, "validation_fraction": 0.3, "learning_rate_schedule": None}
    stopped = interrupted(monkeypatch, detector(**settings), X, calls={30})
    assert_same(stopped, detector(**{**settings, "epochs": 30}).fit(X), X)


def test_a_second_ctrl_c_leaves_the_earlier_fit(X, monkeypatch):
    earlier = detector(random_state=1).fit(X)
    before = earlier.score_samples(X)
    one_epoch_at_a_time(monkeypatch)
    monkeypatch.setattr(epochs, "train_block", Interrupting(epochs.train_block, {5, 6}))
    with pytest.raises(KeyboardInterrupt):
        earlier.set_params(random_state=0).fit(X)
    assert not earlier.interrupted_
    np.testing.assert_array_equal(earlier.score_samples(X), before)


def test_ctrl_c_before_the_end_of_the_first_epoch_leaves_the_earlier_fit(X, monkeypatch):
    earlier = detector(random_state=1).fit(X)
    before = earlier.score_samples(X)
    one_epoch_at_a_time(monkeypatch)
    monkeypatch.setattr(epochs, "train_block", Interrupting(epochs.train_block, {1}))
    with pytest.raises(KeyboardInterrupt):
        earlier.set_params(random_state=0).fit(X)
    np.testing.assert_array_equal(earlier.score_samples(X), before)


def test_members_that_had_not_begun_are_left_out(X, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    settings = {"members": 4, "learning_rate_schedule": None}
    stopped = interrupted(monkeypatch, detector(**settings), X, calls={12 + 3})
    whole = detector(**settings).fit(X)
    assert len(stopped.members_) == len(stopped.member_weights_) == 2
    np.testing.assert_array_equal(stopped.members_[0].trainable, whole.members_[0].trainable)
    of_three = detector(**{**settings, "epochs": 3}).fit(X)
    np.testing.assert_array_equal(stopped.members_[1].trainable, of_three.members_[1].trainable)
    assert np.isfinite(stopped.score_samples(X)).all()
    # A warm start goes on with those that there are.
    warm = stopped.set_params(warm_start=True, members=2).fit(X)
    assert len(warm.members_) == 2
    assert not warm.interrupted_


def test_a_member_that_has_finished_no_epoch_is_left_out(X, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    divergence = Interrupting(epochs._Epochs._divergence, {12 + 1})
    one_epoch_at_a_time(monkeypatch)
    monkeypatch.setattr(epochs._Epochs, "_divergence", lambda self, *given: divergence(self, *given))
    with pytest.warns(ConvergenceWarning, match="ended the training of 1 of 2 members after 12 epochs"):
        stopped = detector(members=2).fit(X)
    assert len(stopped.members_) == 1
    assert np.isfinite(stopped.score_samples(X)).all()


def test_a_write_that_ctrl_c_breaks_off_is_made_up_for(X, path, monkeypatch):
    write = Interrupting(archive.write, {2})
    monkeypatch.setattr(archive, "write", write)
    with pytest.warns(ConvergenceWarning, match="after 4 epochs"):
        detector(checkpoint=Checkpoint(path, every=4)).fit(X)
    (standing,) = checkpoints._read(str(path))["members"]
    assert standing["n_epochs"] == 4


def test_a_first_fit_is_resumed_where_later_ones_would_be_warm_starts(X, path, monkeypatch):
    fitting = detector(checkpoint=path, warm_start=True)
    interrupted(monkeypatch, fitting, X, calls={5})
    assert_same(fitting.fit(X, resume=True), detector().fit(X), X)


def test_a_link_to_a_checkpoint_stays_and_the_file_goes(X, path, tmp_path):
    (tmp_path / "link").symlink_to(path)
    killed(detector(tmp_path / "link"), X, 3)
    assert path.exists()
    detector(tmp_path / "link").fit(X, resume=True)
    assert (tmp_path / "link").is_symlink()
    assert not path.exists()


@pytest.mark.parametrize("learning_rate", [7e-4, 1e-3, 9e-3])  # the first and the last are rounded in float32
def test_a_callback_that_does_nothing_changes_nothing(learning_rate, X):
    settings = {"learning_rate": learning_rate, "epochs": 3}
    watched = detector(callbacks=[keras.callbacks.Callback()], **settings).fit(X)
    assert_same(watched, detector(**settings).fit(X), X)


@pytest.mark.parametrize("settings", [{}, {"members": 3}, {"members": 3, **STOPPING}], ids=str)
def test_after_ctrl_c_a_fit_can_be_resumed_to_the_bits_of_a_whole_one(settings, X, path, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    fitting = detector(checkpoint=path, **settings)
    interrupted(monkeypatch, fitting, X, calls={15 if "members" in settings else 5})
    assert path.exists()
    fitting.fit(X, resume=True)
    assert not fitting.interrupted_
    assert not path.exists()
    assert_same(fitting, detector(**settings).fit(X), X)


def test_the_mark_of_an_interruption_is_saved(X, path, monkeypatch):
    interrupted(monkeypatch, detector(), X, calls={5}).save(path)
    assert load(path).interrupted_


def test_ctrl_c_where_folds_would_have_to_be_trained(X, monkeypatch):
    stopped = interrupted(monkeypatch, detector(calibration=KFold(3)), X, calls={5})
    assert stopped.calibration_scores_ is None
    with pytest.raises(ValueError, match="fit with calibration"):
        stopped.p_values(X)
    conformal = detector(calibration=KFold(3), threshold="conformal")
    with pytest.raises(KeyboardInterrupt, match="calibration in folds"):
        interrupted(monkeypatch, conformal, X, calls={5})
    one_epoch_at_a_time(monkeypatch)
    monkeypatch.setattr(epochs, "train_block", Interrupting(epochs.train_block, {12 + 5}))
    with pytest.warns(ConvergenceWarning), pytest.raises(KeyboardInterrupt):
        conformal.fit(X)


def test_ctrl_c_in_a_callback_ends_the_training(X):
    class Impatient(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.warns(ConvergenceWarning, match="after 3 epochs"):
        stopped = detector(callbacks=[Impatient()]).fit(X)
    assert stopped.interrupted_
    assert len(stopped.history_["loss"]) == 3


SIGNALS = """
import faulthandler, json, os, signal, threading, time, warnings
import numpy as np
from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.training.interruption import Interruption

faulthandler.dump_traceback_later(280, exit=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
small, large = (np.random.RandomState(0).normal(size=(n_rows, 6)) for n_rows in (500, 20_000))
handler, original = signal.getsignal(signal.SIGINT), Interruption.finish_epoch


def interrupted(X, members, twice):
    settings = dict(network=DenseNetwork((16,)), latent_dim=2, n_draws=2, members=members, jit_compile=False)
    settings |= dict(learning_rate_schedule=None, batch_size=16)
    detector = VAEDetector(epochs=2, random_state=1, **settings).fit(X)
    before, finished, caught = detector.score_samples(X), [], []
    stop = threading.Event()

    def press():
        os.kill(os.getpid(), signal.SIGINT)
        while twice and not stop.wait(0.05):
            os.kill(os.getpid(), signal.SIGINT)

    def finish_epoch(self):
        original(self)
        finished.append(time.monotonic())
        if len(finished) == 4:
            presser.start()

    presser, outcome = threading.Thread(target=press), {}
    Interruption.finish_epoch = finish_epoch
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            detector.set_params(epochs=1_000_000, random_state=0).fit(X)
    except KeyboardInterrupt:
        outcome["raised"] = True
    while presser.is_alive():
        try:
            stop.set()
            presser.join()
        except KeyboardInterrupt:
            pass
    Interruption.finish_epoch = original
    outcome["seconds"] = time.monotonic() - finished[3]
    outcome["warnings"] = [str(warning.message) for warning in caught]
    outcome["interrupted"] = detector.interrupted_
    outcome["same handler"] = signal.getsignal(signal.SIGINT) is handler
    outcome["as before"] = bool((detector.score_samples(X) == before).all())
    outcome["members"], outcome["epochs"] = len(detector.members_), len(detector.history_["loss"])
    if members == 1:
        equal = VAEDetector(epochs=outcome["epochs"], random_state=0, **settings).fit(X)
        outcome["same bits"] = bool((equal.score_samples(X) == detector.score_samples(X)).all())
    return outcome


# An epoch of many steps, so that the second Ctrl-C comes before its end.
print(json.dumps([interrupted(small, 1, False), interrupted(small, 8, False), interrupted(large, 8, True)]))
"""


# Signals come when they come: on a machine with other work this waits for minutes.
@pytest.mark.long
def test_a_real_ctrl_c_ends_every_training_with_its_epoch_and_a_second_at_once():
    ran = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    one, several, twice = json.loads(ran.stdout.splitlines()[-1])
    assert one["same bits"]
    for outcome in (one, several):
        assert outcome["interrupted"]
        assert "raised" not in outcome
        assert len(outcome["warnings"]) == 1
        assert outcome["epochs"] < 100_000
    assert 1 <= several["members"] < 8  # the others had not begun
    assert twice["raised"]
    assert twice["as before"]
    assert not twice["interrupted"]
    for outcome in (one, several, twice):
        assert outcome["same handler"]
        assert outcome["seconds"] < 60


# -- divergence -----------------------------------------------------------------------------------------
def test_an_epoch_that_explodes_is_repeated_at_a_tenth_of_the_rate(X):
    """In the first epoch, so that the whole training is one at that rate."""
    settings = {"learning_rate_schedule": None, "epochs": 5}
    with pytest.warns(ConvergenceWarning, match="training diverged: the loss of epoch 1 is .*e.* tenth"):
        saved = detector(learning_rate=1.0, **settings).fit(X)
    assert_same(saved, detector(learning_rate=0.1, **settings).fit(X), X)


class Spoiling:
    """Makes the loss, or a weight, of some epochs something else; keeps what it was called with."""

    def __init__(self, monkeypatch, epochs, loss=np.nan, weight=None):
        self.original, self.epochs, self.loss, self.weight = train_block, epochs, loss, weight
        self.calls = []
        one_epoch_at_a_time(monkeypatch)
        monkeypatch.setattr("vae_anomaly.training.epochs.train_block", self)

    def __call__(self, architecture, state, rows, order, rates, *others, first_step, **keywords):
        self.calls.append((first_step // 8, rates, state))
        after, figures, best = self.original(
            architecture, state, rows, order, rates, *others, first_step=first_step, **keywords
        )
        if len(self.calls) in self.epochs and self.weight is not None:
            after = after._replace(trainable=after.trainable * self.weight)
        elif len(self.calls) in self.epochs:
            figures = figures._replace(terms=figures.terms * 0 + self.loss)
        return after, figures, best


@pytest.mark.parametrize(
    "spoiled",
    [{"loss": np.nan}, {"loss": np.inf}, {"loss": 1e9}, {"weight": np.nan}],
    ids=["NaN", "infinity", "explosion", "weight"],
)
def test_a_diverged_epoch_is_repeated_from_its_beginning_and_the_rest_goes_on_so(spoiled, X, monkeypatch):
    plain = Spoiling(monkeypatch, ())
    detector().fit(X)
    spoiling = Spoiling(monkeypatch, {4}, **spoiled)
    with pytest.warns(ConvergenceWarning, match="epoch 4"):
        fitted = detector().fit(X)
    assert len(fitted.history_["loss"]) == 12
    assert np.isfinite(fitted.history_["loss"]).all()
    assert [epoch for epoch, *_ in spoiling.calls] == [0, 1, 2, 3, *range(3, 12)]
    factors = [rates[0] / plain.calls[epoch][1][0] for epoch, rates, _ in spoiling.calls]
    np.testing.assert_allclose(factors, [1] * 4 + [0.1] * 9, rtol=1e-6)
    for first, second in zip(spoiling.calls[3][2][:3], spoiling.calls[4][2][:3], strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_second_divergence_is_an_error_that_names_the_column(X, monkeypatch):
    earlier = detector(random_state=1).fit(X)
    before = earlier.score_samples(X)
    Spoiling(monkeypatch, {4, 9})
    far = X.copy()
    far[3, 2] = 1e3
    message = "also at a tenth of the learning rate: the loss of epoch 8 is nan. Lower.*column 2 "
    with pytest.warns(ConvergenceWarning), pytest.raises(FloatingPointError, match=message):
        earlier.set_params(random_state=0).fit(far)
    np.testing.assert_array_equal(earlier.score_samples(X), before)


def test_no_warning_promises_what_then_fails(X):
    with pytest.raises(FloatingPointError, match="also at a tenth.*the loss of epoch 1 is nan"):
        detector(learning_rate=1e3).fit(X)


@pytest.mark.parametrize("members", [1, 2])
def test_a_training_that_was_saved_can_be_resumed_to_the_same_bits(members, X, path):
    settings = {"learning_rate": 1.0, "members": members}
    with pytest.warns(ConvergenceWarning):
        expected = detector(**settings).fit(X)
    with pytest.warns(ConvergenceWarning):
        killed(detector(path, **settings), X, 2 * members + 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed = detector(path, **settings).fit(X, resume=True)
    assert members > 1 or not caught
    assert_same(resumed, expected, X)


@pytest.mark.parametrize("far", [1e6, 1e14])
def test_rows_far_away_are_no_explosion(far, X):
    rows = np.r_[X, [[far, 0, 0, 0, 0, 0]]]
    fitted = detector(scaler=None if far < 1e7 else "auto", epochs=30).fit(rows)
    assert len(fitted.history_["loss"]) == 30
    assert np.isfinite(fitted.history_["loss"]).all()


# -- kill -9 --------------------------------------------------------------------------------------------
KILLS = """
import hashlib, json, multiprocessing, os, random, signal, sys, time
from pathlib import Path
import numpy as np
# A process that has not computed yet can be forked.
import tensorflow, keras
from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.checkpoints import Checkpoint
from vae_anomaly.files import archive

folder = Path(sys.argv[1])
path, copied = folder / "fit.checkpoint", folder / "copied" / "fit.checkpoint"
copied.parent.mkdir()
X = np.random.RandomState(0).normal(size=(500, 6))


def fit(path):
    detector = VAEDetector(
        DenseNetwork((16,), dropout=0.1), latent_dim=2, n_draws=2, members=3, epochs=300, batch_size=128,
        learning_rate=0.01, early_stopping=True, patience=300, random_state=0, jit_compile=False,
        checkpoint=path and Checkpoint(path, every=10),
    ).fit(X, resume=path is not None)
    checksum = hashlib.sha256(detector.score_samples(X).tobytes() + repr(detector.history_).encode())
    checksum.update(repr(detector.offset_).encode())
    for state in detector.members_:
        for array in (state.trainable, *state.non_trainable):
            checksum.update(array.tobytes())
    return checksum.hexdigest()


def finish(connection):
    # Another process than any that is killed: it fits what it is asked to, to the end.
    while True:
        connection.send(fit(connection.recv()))


forking = multiprocessing.get_context("fork")
asked, answers = forking.Pipe()
forking.Process(target=finish, args=(answers,), daemon=True).start()
answers.close()
asked.send(None)
expected = asked.recv()
start = time.monotonic()
asked.send(folder / "timed")
assert asked.recv() == expected
seconds = time.monotonic() - start

rng = random.Random(0)
outcomes = {"killed": 0, "resumed": 0, "killed again": 0, "left over": 0}
is_asked = False


def receive():
    global is_asked
    if is_asked:
        assert asked.recv() == expected, outcomes
        outcomes["resumed"] += 1
    is_asked = False


while outcomes["killed"] < int(sys.argv[2]):
    again = path.exists()
    before = again and path.stat().st_ino
    child = forking.Process(target=fit, args=(path,))
    child.start()
    if rng.random() < 0.9:  # most moments are to be after the first writing
        while child.exitcode is None and (not path.exists() or path.stat().st_ino == before):
            time.sleep(0.001)
    time.sleep(rng.uniform(0, seconds))
    child.kill()  # nothing, if it has ended by itself
    child.join()
    if child.exitcode != -signal.SIGKILL:
        assert child.exitcode == 0, (child.exitcode, outcomes)  # it was faster
        continue
    outcomes["killed"] += 1
    outcomes["killed again"] += again
    for left_over in folder.glob(".saving-*"):
        left_over.unlink()
        outcomes["left over"] += 1
    if not path.exists():
        continue
    with archive.open_archive(path) as opened:  # every part has its checksum
        for name in opened.names:
            opened.read_into(name, memoryview(bytearray(opened.size(name))))
    receive()
    copied.write_bytes(path.read_bytes())
    asked.send(copied)  # ended while the next is killed
    is_asked = True
    if rng.random() < 0.5:  # else the next process goes on from this file, and is killed in its turn
        path.unlink()
    print(outcomes, file=sys.stderr, flush=True)
receive()
print(json.dumps(outcomes))
"""


def survive(n_kills, folder):
    ran = subprocess.run(
        [sys.executable, "-c", KILLS, str(folder), str(n_kills)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.long
def test_a_fit_that_is_killed_a_hundred_times_can_be_resumed_each_time_to_the_same_bits(tmp_path):
    outcomes = survive(100, tmp_path)
    assert outcomes["resumed"] > 80
    assert outcomes["killed again"] > 20
    assert outcomes["left over"] > 0  # some were killed in the middle of a file
