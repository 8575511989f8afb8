"""Training on all of many rows: memory does not grow with them, and bits do not depend on where they are."""

import os
import subprocess
import sys
import tempfile

import joblib
import numpy as np
import pandas as pd
import pytest
from conftest import wide, write_many_rows
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold
from sklearn.preprocessing import FunctionTransformer

from vae_anomaly import DenseNetwork, Member, VAEDetector, checkpoints
from vae_anomaly.data.cache import CachedRows
from vae_anomaly.ensemble import decisions
from vae_anomaly.training import batches, epochs
from vae_anomaly.training.interruption import Interruption

N_ROWS, N_DRAWN, N_COLUMNS = 600, 150, 4


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch):
    """So that 600 rows are more than a fit has in memory, in pieces of 20 rows, 8 of which are shuffled."""
    monkeypatch.setattr(decisions, "_ROWS_IN_MEMORY", N_DRAWN)
    monkeypatch.setattr(batches, "_NUMBERS_IN_PIECE", 20 * N_COLUMNS)
    monkeypatch.setattr(batches, "_NUMBERS_SHUFFLED", 8 * 20 * N_COLUMNS)


def make_rows(n_rows=N_ROWS):
    """Rows whose first column says which they are."""
    X = np.random.RandomState(0).normal(size=(n_rows, N_COLUMNS))
    X[:, 0] = np.arange(n_rows)
    return X


def make_frame():
    frame = pd.DataFrame(make_rows(), columns=list("abcd"))
    frame["city"] = pd.Categorical(np.random.RandomState(1).choice(["Bern", "Genf"], N_ROWS))
    frame.loc[5, "b"] = None
    frame.loc[N_ROWS - 1, "city"] = None
    return frame


def quick(**settings):
    return VAEDetector(DenseNetwork((8,)), **{"epochs": 2, "random_state": 0, **settings})


def fitted_arrays(detector):
    return [
        *(state.trainable for state in detector.members_),
        detector.member_weights_,
        np.array(detector.history_["loss"]),
        np.array([detector.offset_, detector.n_samples_fit_, detector.n_samples_drawn_]),
    ]


def assert_same_fit(found, expected):
    for ours, theirs in zip(fitted_arrays(found), fitted_arrays(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def write_files(frame, folder, n_files, row_group_size):
    pytest.importorskip("pyarrow")
    folder.mkdir()
    cuts = np.sort(np.random.RandomState(n_files).randint(0, N_ROWS + 1, n_files - 1)).tolist()
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, N_ROWS], strict=True)):
        frame[start:stop].to_parquet(folder / f"{number:03}.parquet", row_group_size=row_group_size)
    return folder


def to_memmap(X, folder):
    folder.mkdir()
    np.save(folder / "rows.npy", X)
    return np.load(folder / "rows.npy", mmap_mode="r")


# -- epochs -----------------------------------------------------------------------------------------------
@pytest.fixture
def cached():
    X = make_rows().astype(np.float32)
    drawn = np.sort(np.random.RandomState(2).permutation(N_ROWS)[:N_DRAWN])
    with CachedRows(N_ROWS, X[drawn], drawn) as rows:
        rows.write([X[:100], X[100:101], X[101:]])
        yield rows


def batches_of(rows, batch_size, seed):
    return batches.batches_of(rows, batch_size, seed, Interruption())


def numbers_of(blocks):
    """Which rows each batch holds."""
    return np.concatenate([rows[order][:, :, 0] for rows, order in blocks]).astype(int)


@pytest.mark.parametrize("batch_size", [1, 32, wide(7), wide(600), wide(601), wide(1500)])
def test_an_epoch_holds_every_row_once_and_fills_its_last_batch_from_its_beginning(batch_size, cached):
    found = numbers_of(batches_of(cached, batch_size, 0).blocks(1, n_steps=3))
    assert found.shape == (-(-N_ROWS // batch_size), batch_size)
    np.testing.assert_array_equal(np.sort(found.ravel()[:N_ROWS]), np.arange(N_ROWS))
    np.testing.assert_array_equal(found.ravel(), np.resize(found.ravel()[:N_ROWS], found.shape).ravel())


def test_epochs_have_orders_of_their_own_which_do_not_depend_on_how_they_are_asked_for(cached):
    shuffled = batches_of(cached, 32, 0)
    two = numbers_of(shuffled.blocks(2, n_steps=64))
    first, second = np.split(two, 2)
    assert (first != second).mean() > 0.9
    np.testing.assert_array_equal(numbers_of(shuffled.blocks(1, n_steps=5)), first)
    shuffled.drop(1)
    np.testing.assert_array_equal(numbers_of(shuffled.blocks(1, n_steps=1)), second)
    skipped = batches_of(cached, 32, 0)
    skipped.drop(1)
    np.testing.assert_array_equal(numbers_of(skipped.blocks(1, n_steps=64)), second)
    assert (numbers_of(batches_of(cached, 32, 1).blocks(1, 64)) != first).mean() > 0.9


def test_a_batch_mixes_rows_from_all_over(cached):
    spread = numbers_of(batches_of(cached, 32, 0).blocks(1, 64)).std(axis=1)
    assert spread.min() > 0.5 * np.arange(N_ROWS).std()


def test_what_is_left_out_is_in_no_epoch(cached):
    left_out = cached.leave_out(np.arange(0, N_DRAWN, 3))
    found = numbers_of(batches_of(left_out, 1, 0).blocks(1, 64))
    expected = np.setdiff1d(np.arange(N_ROWS), cached.some[::3, 0])
    assert len(left_out) == len(expected)
    np.testing.assert_array_equal(np.sort(found.ravel()), expected)


# -- fits -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("max_samples", "n_epochs", "in_memory", "all_of_them"),
    [
        ("auto", "auto", N_DRAWN, False),
        ("auto", 5, N_DRAWN, True),
        (None, "auto", N_DRAWN, True),
        (None, 5, N_DRAWN, True),
        (1000, 5, 1000, False),
    ],
)
def test_passes_that_are_counted_are_over_all_rows_unless_max_samples_is_a_number(
    max_samples, n_epochs, in_memory, all_of_them
):
    assert decisions.n_rows_in_memory(max_samples) == in_memory
    assert decisions.trains_on_all(max_samples, n_epochs) == all_of_them


LAYOUTS = {
    "a file": lambda frame, folder: write_files(frame, folder, 1, 100),
    "fifty files": lambda frame, folder: write_files(frame, folder, 50, 7),
    "a frame of dask": lambda frame, _: pytest.importorskip("dask.dataframe").from_pandas(
        frame, npartitions=7
    ),
    "a table of pyarrow": lambda frame, _: pytest.importorskip("pyarrow").Table.from_pandas(frame),
}


@pytest.fixture(scope="module")
def frame():
    return make_frame()


@pytest.mark.parametrize(
    "kind", ["fifty files", "a frame of dask", *map(wide, ["a file", "a table of pyarrow"])]
)
@pytest.mark.parametrize(
    "settings",
    [
        {"members": 2, "validation_fraction": 0.2, "threshold": "conformal", "calibration": 0.4},
        wide({"epochs": "auto", "max_samples": None, "members": [Member(column_transform="yeo-johnson")]}),
    ],
    ids=["held out", "auto"],
)
def test_the_same_rows_are_the_same_fit_wherever_they_are(kind, settings, frame, tmp_path):
    expected = quick(**settings).fit(frame)
    found = quick(**settings).fit(LAYOUTS[kind](frame, tmp_path / "rows"))
    assert (found.n_samples_fit_, found.n_samples_drawn_) == (N_ROWS, N_DRAWN)
    assert_same_fit(found, expected)


@pytest.mark.parametrize("dtype", [np.float64, wide(np.uint8)])
def test_images_are_the_same_fit_wherever_they_are(dtype, tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (N_ROWS, 6, 6)).astype(dtype)
    settings = {"members": 1, "epochs": 1}
    assert_same_fit(quick(**settings).fit(to_memmap(images, tmp_path / "x")), quick(**settings).fit(images))


@pytest.fixture
def trained_on(monkeypatch):
    """The first scaled column of all rows that are trained on."""
    found, train_block = [], epochs.train_block

    def watched(architecture, state, rows, order, *others, **keywords):
        found.append(np.asarray(rows[order])[:, :, 0])
        return train_block(architecture, state, rows, order, *others, **keywords)

    monkeypatch.setattr(epochs, "train_block", watched)
    return lambda: np.unique(np.round(np.concatenate(found).ravel()))


def test_all_rows_are_trained_on_but_those_held_out(trained_on):
    X = make_rows()
    detector = quick(scaler=None, calibration=0.4, threshold="conformal", epochs=1).fit(X)
    assert len(trained_on()) == N_ROWS - len(detector.calibration_scores_)
    # They are the scores of just the rows that no step has seen.
    unseen = np.setdiff1d(np.arange(N_ROWS), trained_on())
    np.testing.assert_array_equal(
        np.sort(detector.calibration_scores_), np.sort(-detector.score_samples(X[unseen]))
    )


def test_a_member_s_held_out_rows_are_of_those_that_were_drawn(trained_on):
    quick(scaler=None, members=1, validation_fraction=0.2, epochs=1).fit(make_rows())
    assert len(trained_on()) == N_ROWS - N_DRAWN // 5


def test_gaps_in_rows_that_are_not_drawn_are_trained_on():
    X = make_rows()
    with_gap = np.where(np.arange(N_ROWS)[:, None] == 3, np.nan, X)
    with_gap[3, 1] = 0.0
    detector = quick(random_state=1).fit(with_gap)
    assert np.isfinite(detector.history_["loss"]).all()
    assert detector.members_[0].specification.marks_missing


def test_new_rows_of_a_stream_are_all_trained_on(trained_on):
    X = make_rows()
    detector = quick(scaler=None, epochs=1, members=1, max_samples=N_DRAWN).fit(X)
    n_before = len(trained_on())
    with pytest.warns(UserWarning, match="new rows lie outside"):
        detector.set_params(max_samples="auto").partial_fit(X + [N_ROWS, 0, 0, 0])
    assert len(trained_on()) - n_before == N_ROWS


def test_a_resumed_fit_is_the_fit_that_was_never_interrupted(tmp_path):
    X, path = make_rows(), str(tmp_path / "fit.ckpt")
    settings = {"epochs": 3, "members": 2, "validation_fraction": 0.2}
    keep, expected = checkpoints.CheckpointFile.keep, quick(**settings).fit(X)

    def dies(self, position, progress):
        keep(self, position, progress)
        if (position, progress.n_epochs) == (1, 2):
            raise ZeroDivisionError

    checkpoint = checkpoints.Checkpoint(path, every=1)
    with pytest.MonkeyPatch.context() as patch, joblib.parallel_config(n_jobs=1):
        patch.setattr(checkpoints.CheckpointFile, "keep", dies)
        with pytest.raises(ZeroDivisionError):
            quick(**settings, checkpoint=checkpoint).fit(X)
    other = X.copy()
    other[3, 1] += 1.0
    with pytest.raises(ValueError, match="scaled training rows"):
        quick(**settings, checkpoint=checkpoint).fit(other, resume=True)
    assert_same_fit(quick(**settings, checkpoint=checkpoint).fit(X, resume=True), expected)


def test_ctrl_c_while_rows_are_read_ends_the_training_with_its_epoch(monkeypatch):
    X, settings = make_rows(), {"members": 1, "learning_rate_schedule": None}
    expected = quick(**settings).fit(X)
    read, calls = CachedRows.read, []

    def interrupted(self, start, stop):
        calls.append(start)
        if len(calls) == 45:  # an epoch has 30 pieces
            raise KeyboardInterrupt
        return read(self, start, stop)

    monkeypatch.setattr(CachedRows, "read", interrupted)
    monkeypatch.setattr(epochs, "_EPOCHS_AT_ONCE", 1)
    with pytest.warns(ConvergenceWarning, match="Ctrl-C has ended the training"):
        found = quick(**settings, epochs=9).fit(X)
    assert found.interrupted_
    assert_same_fit(found, expected)


def test_members_are_trained_in_this_process_to_the_same_bits():
    X, settings = make_rows(), {"members": 2, "epochs": 1}
    expected = quick(**settings).fit(X)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert_same_fit(quick(**settings).fit(X), expected)


def test_sparse_rows_stay_in_memory():
    X = sparse.csr_array(sparse.random(N_ROWS, 5, density=0.4, random_state=0))
    assert quick(epochs=1).fit(X).n_samples_drawn_ == N_ROWS


@pytest.mark.skipif(os.name == "nt", reason="Windows removes the file when the process ends")
def test_a_process_that_is_killed_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    X = make_rows().astype(np.float32)
    with CachedRows(N_ROWS, X[:2], np.arange(2)) as rows:
        rows.write([X])
        np.testing.assert_array_equal(rows.read(10, 30), X[10:30])
        assert list(tmp_path.iterdir()) == []  # it has no name


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    quick(epochs=1).fit(make_rows())
    with pytest.raises(FloatingPointError):
        quick(learning_rate=1e30).fit(make_rows())
    assert list(tmp_path.iterdir()) == []


# -- errors -----------------------------------------------------------------------------------------------
def test_a_full_disk_is_told_before_anything_is_written(monkeypatch):
    monkeypatch.setattr("vae_anomaly.data.cache.shutil.disk_usage", lambda _: type("", (), {"free": 2**26}))
    with pytest.raises(OSError, match=r"all 600 rows takes a temporary file .* TMPDIR .* or max_samples"):
        quick().fit(make_rows())


def test_folds_are_refused_with_what_to_do_instead():
    with pytest.raises(
        ValueError, match=r"all 600 rows are to be trained on: set calibration to 'out_of_bag'"
    ):
        quick(calibration=KFold(2)).fit(make_rows())
    assert quick(calibration=KFold(2), epochs=1, max_samples=N_DRAWN).fit(make_rows()).n_samples_drawn_ == 150


def test_a_value_that_the_likelihood_does_not_allow_is_named_wherever_it_is(tmp_path):
    frame = pd.DataFrame(make_rows()[:, 1:].round() ** 2, columns=list("abc"))
    frame.loc[3, "b"] = -1.0
    folder = write_files(frame, tmp_path / "rows", 1, 100)
    for scaler in (None, FunctionTransformer()):  # what a scaler lets through is known once it is fitted
        with pytest.raises(ValueError, match=r"column 'b'.*-1.* row 3 of the file '.*000\.parquet'"):
            quick(likelihood="count", scaler=scaler).fit(folder)


PEAK = """
import resource, sys
from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.ensemble import decisions
decisions._ROWS_IN_MEMORY = 20_000
VAEDetector(DenseNetwork((8,)), epochs=1, batch_size=1024, random_state=0).fit(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.long
def test_ten_times_as_many_rows_take_no_more_memory(tmp_path):
    pytest.importorskip("pyarrow")
    peaks = []
    for n_files in (3, 30):
        folder = write_many_rows(tmp_path / str(n_files), n_files)
        command = [sys.executable, "-c", PEAK, str(folder)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] <= 1.1 * peaks[0]
