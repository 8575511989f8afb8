"""Where trainings run: in threads, in other processes or on a cluster, with the same bits everywhere."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import CancelledError

import joblib
import keras
import numpy as np
import pytest
from conftest import stars
from joblib import Parallel, delayed, parallel_config, register_parallel_backend
from joblib._parallel_backends import ThreadingBackend
from joblib.externals.loky.process_executor import TerminatedWorkerError
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, KFold

from vae_anomaly import DenseNetwork, Member, VAEDetector
from vae_anomaly.core import parallel
from vae_anomaly.core.parallel import Place, find_place, map_elsewhere

SETTINGS = {
    "network": DenseNetwork((8,)),
    "latent_dim": 2,
    "epochs": 2,
    "members": [Member(), Member(column_transform="yeo-johnson"), Member(trimmed_fraction=0.1)],
    "validation_fraction": 0.2,
    "random_state": 0,
}


class Elsewhere(ThreadingBackend):
    """Another process as far as can be seen: what is to be called, and what it returns, is pickled."""

    supports_sharedmem = False
    uses_threads = False
    sizes: list[int] = []  # noqa: RUF012

    def submit(self, func, callback=None):
        return super().submit(self._elsewhere(func), callback)

    def apply_async(self, func, callback=None):  # what joblib 1.3 calls it
        return super().apply_async(self._elsewhere(func), callback)

    def _elsewhere(self, func):
        def call():
            sent = pickle.dumps(func)
            self.sizes.append(len(sent))
            return pickle.loads(pickle.dumps(pickle.loads(sent)()))

        return call


register_parallel_backend("elsewhere", Elsewhere)


@pytest.fixture
def elsewhere():
    """A configuration of two workers elsewhere; its ``sizes`` are those of the calls that it has got."""
    Elsewhere.sizes.clear()
    with parallel_config(backend="elsewhere", n_jobs=2):
        yield Elsewhere


@pytest.fixture(scope="module")
def X():
    return np.random.RandomState(0).lognormal(size=(120, 4))


def assert_same(found, expected, X):
    np.testing.assert_array_equal(found.score_samples(X), expected.score_samples(X))
    assert found.offset_ == expected.offset_
    assert found.history_ == expected.history_
    if expected.calibration_scores_ is not None:
        np.testing.assert_array_equal(found.calibration_scores_, expected.calibration_scores_)


# -- places ---------------------------------------------------------------------------------------------
def test_a_fit_has_a_thread_for_each_processor_where_nobody_says_anything():
    assert find_place() == Place(joblib.cpu_count(), elsewhere=False)
    with parallel_config(verbose=0):
        assert find_place() == Place(joblib.cpu_count(), elsewhere=False)


CONFIGURATIONS = {
    "one job": ({"n_jobs": 1}, Place(1, False)),
    "threads": ({"backend": "threading", "n_jobs": 3}, Place(3, False)),
    "sequential": ({"backend": "sequential"}, Place(1, False)),
    "processes": ({"backend": "loky", "n_jobs": 3}, Place(3, True)),
    "by default processes": ({"n_jobs": 2}, Place(2, True)),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_joblibs_configuration_says_where_and_how_many(name):
    configuration, place = CONFIGURATIONS[name]
    with parallel_config(**configuration):
        assert find_place() == place


def test_a_task_of_a_search_has_one_thread():
    assert (
        Parallel(n_jobs=2, backend="threading")(delayed(find_place)() for _ in range(2))
        == [Place(1, elsewhere=False)] * 2
    )


@pytest.mark.parametrize(("told", "n_threads"), [("4", 4), ("", 1)])
def test_a_task_in_a_process_of_its_own_has_as_many_threads_as_it_is_told(told, n_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    with parallel_config(backend=ThreadingBackend(nesting_level=1)):  # what a worker of loky finds
        assert find_place() == Place(n_threads, elsewhere=False)


def test_a_search_without_jobs_leaves_the_processors_to_its_fits():
    (place,) = Parallel()(delayed(find_place)() for _ in range(1))
    assert place == find_place()


# -- elsewhere ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n_jobs", [1, 2, 3])
def test_threads_give_the_same_bits(n_jobs, X):
    expected = VAEDetector(**SETTINGS).fit(X)
    with parallel_config(backend="threading", n_jobs=n_jobs):
        assert_same(VAEDetector(**SETTINGS).fit(X), expected, X)


ROWS = {
    "a table": (lambda X: X, {}),
    "gaps": (lambda X: np.where(X < 0.4, np.nan, X), {}),
    "sparse": (lambda X: sparse.csr_matrix(np.where(X < 1, 0, X)), {"members": 2}),
    "patches": (lambda X: np.tile(X, (12, 1)).reshape(-1, 12, 8), {"patches": 4, "members": 2}),
    "early stopping": (lambda X: X, {"early_stopping": True, "epochs": 4, "patience": 1}),
    "a schedule": (lambda X: X, {"learning_rate_schedule": np.sqrt}),
}


@pytest.mark.parametrize("kind", stars(dict(zip(ROWS, ROWS, strict=True)), {"a table", "gaps", "sparse"}))
def test_members_trained_elsewhere_have_the_same_bits(kind, X):
    make, settings = ROWS[kind]
    rows, settings = make(X), {**SETTINGS, **settings}
    expected = VAEDetector(**settings).fit(rows)
    Elsewhere.sizes.clear()
    with parallel_config(backend="elsewhere", n_jobs=2):
        assert_same(VAEDetector(**settings).fit(rows), expected, rows)
    assert len(Elsewhere.sizes) == len(expected.members_)


@pytest.mark.parametrize("goes_on", [False, True], ids=["fit", "partial_fit"])
def test_folds_scored_elsewhere_have_the_same_scores(goes_on, X):
    def fit():
        detector = VAEDetector(calibration=KFold(3), **{**SETTINGS, "members": 1}).fit(X[:60])
        return detector.partial_fit(X[60:]) if goes_on else detector

    expected = fit()
    Elsewhere.sizes.clear()
    with parallel_config(backend="elsewhere", n_jobs=2):
        assert_same(fit(), expected, X)
    assert len(Elsewhere.sizes) == (6 if goes_on else 3)


def test_rows_travel_once_for_all_and_states_small(elsewhere):
    X = np.random.RandomState(0).normal(size=(20_000, 4))
    detector = VAEDetector(**{**SETTINGS, "epochs": 1, "members": 2}).fit(X)
    assert max(elsewhere.sizes) < X.nbytes / 2 + 20_000  # scaled rows are float32, and nothing else is large
    weights = sum(state.trainable.nbytes for state in detector.members_)
    assert len(pickle.dumps(detector)) < weights + 20_000


def warn_and_wait(n_tasks, task):
    warnings.warn(f"task {task} diverged", ConvergenceWarning, stacklevel=1)
    time.sleep((n_tasks - task) / 100)
    return task


def test_results_and_warnings_of_workers_come_here_in_the_order_of_the_tasks(elsewhere):
    with parallel_config(backend="elsewhere", n_jobs=1), pytest.warns(ConvergenceWarning) as record:
        assert map_elsewhere(warn_and_wait, (5,), range(5)) == list(range(5))
    assert [str(each.message) for each in record] == [f"task {task} diverged" for task in range(5)]


def test_results_stand_in_the_order_of_the_tasks_whichever_ends_first(elsewhere):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert map_elsewhere(warn_and_wait, (6,), range(6)) == list(range(6))
    assert len(elsewhere.sizes) == 6


class Loses(Elsewhere):
    """A cluster that has lost rows with a worker, so many times."""

    left: list[None] = []  # noqa: RUF012

    def submit(self, func, callback=None):
        if self.left:
            self.left.pop()
            raise CancelledError
        return super().submit(func, callback)


register_parallel_backend("loses", Loses)


@pytest.mark.parametrize("n_times", [2, 3])
def test_what_a_cluster_has_lost_is_sent_again_twice(n_times, X):
    detector = VAEDetector(**SETTINGS).fit(X)
    before = detector.score_samples(X)
    Loses.left[:] = [None] * n_times
    expected = contextlib.nullcontext() if n_times == 2 else pytest.raises(CancelledError)
    with parallel_config(backend="loses", n_jobs=2), expected:
        detector.fit(X)
    np.testing.assert_array_equal(detector.score_samples(X), before)


class Dies(Elsewhere):
    """Processes of which one is killed."""

    def submit(self, func, callback=None):
        raise TerminatedWorkerError("A worker process was terminated.")

    apply_async = submit


register_parallel_backend("dies", Dies)


def test_a_process_that_is_killed_is_an_error_that_says_what_to_do_and_leaves_the_earlier_fit(X):
    detector = VAEDetector(**SETTINGS).fit(X)
    before = detector.score_samples(X)
    with parallel_config(backend="dies", n_jobs=2), pytest.raises(TerminatedWorkerError) as raised:
        detector.fit(X * 2)
    assert "Lower n_jobs" in raised.value.__notes__[0]
    np.testing.assert_array_equal(detector.score_samples(X), before)


WATCHES = {
    "callbacks": lambda path: {"callbacks": [keras.callbacks.Callback()]},
    "verbose": lambda path: {"verbose": 1},
    "checkpoint": lambda path: {"checkpoint": path},
}


@pytest.mark.parametrize("name", WATCHES)
def test_what_watches_epochs_has_its_members_here(name, elsewhere, X, tmp_path):
    watching = VAEDetector(**SETTINGS, **WATCHES[name](tmp_path / "fit.checkpoint")).fit(X)
    assert elsewhere.sizes == []
    np.testing.assert_array_equal(VAEDetector(**SETTINGS).fit(X).score_samples(X), watching.score_samples(X))
    assert len(elsewhere.sizes) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_fit_that_ends_elsewhere_leaves_the_earlier_one(error, elsewhere, X, monkeypatch):
    detector = VAEDetector(**SETTINGS).fit(X)
    before = detector.score_samples(X)

    def fail(*_):
        raise error

    monkeypatch.setattr(parallel, "map_elsewhere", fail)
    with pytest.raises(error):
        detector.fit(X * 2)
    np.testing.assert_array_equal(detector.score_samples(X), before)


# -- processes and clusters -----------------------------------------------------------------------------
@pytest.mark.long
def test_loky_trains_members_folds_and_candidates_to_the_same_bits(X):
    expected = VAEDetector(calibration=KFold(2), **SETTINGS).fit(X)
    search = GridSearchCV(VAEDetector(**SETTINGS), {"latent_dim": [1, 2]}, cv=2)
    by_one = search.fit(X).cv_results_["mean_test_score"]
    with parallel_config(backend="loky", n_jobs=2):
        assert_same(VAEDetector(calibration=KFold(2), **SETTINGS).fit(X), expected, X)
        np.testing.assert_array_equal(search.fit(X).cv_results_["mean_test_score"], by_one)
        places = Parallel()(delayed(find_place)() for _ in range(2))
    n_threads = int(os.environ.get("OMP_NUM_THREADS", max(1, joblib.cpu_count() // 2)))
    assert places == [Place(n_threads, elsewhere=False)] * 2


@contextlib.contextmanager
def cluster(processes):
    distributed = pytest.importorskip("distributed")
    n_workers = 2 if processes else 1
    with (
        distributed.LocalCluster(
            n_workers=n_workers,
            threads_per_worker=2 // n_workers,
            processes=processes,
            dashboard_address=None,
        ) as workers,
        distributed.Client(workers) as client,
    ):
        yield client


@pytest.mark.filterwarnings("ignore")  # of dask's own
@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_dask_cluster_trains_members_folds_and_candidates_to_the_same_bits(processes, X):
    settings = {**SETTINGS, "members": 2}
    expected = VAEDetector(calibration=KFold(2), **settings).fit(X)
    search = GridSearchCV(VAEDetector(**settings), {"beta": [0.5, 1.0]}, cv=2)
    by_one = search.fit(X).cv_results_["mean_test_score"]
    with cluster(processes) as client:
        assert client.submit(find_place).result() == Place(1, elsewhere=False)
        with parallel_config(backend="dask"):
            assert find_place() == Place(2, elsewhere=True)
            assert_same(VAEDetector(calibration=KFold(2), **settings).fit(X), expected, X)
            np.testing.assert_array_equal(search.fit(X).cv_results_["mean_test_score"], by_one)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_changes_no_bit(X):
    settings = {**SETTINGS, "epochs": 2000, "members": 4}
    expected = VAEDetector(**settings).fit(X)
    with cluster(processes=True) as client:
        first, *_ = client.run(os.getpid).values()
        killer = threading.Timer(3, os.kill, (first, signal.SIGKILL))
        with parallel_config(backend="dask"):
            killer.start()
            assert_same(VAEDetector(**settings).fit(X), expected, X)
        killer.join()


KILL = """
import os, signal, threading
import numpy as np
from joblib import parallel_config
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError
from vae_anomaly import DenseNetwork, VAEDetector

if __name__ == "__main__":
    X = np.random.RandomState(0).normal(size=(120, 4))
    detector = VAEDetector(DenseNetwork((8,)), epochs=2, members=4, random_state=0).fit(X)
    before = detector.score_samples(X)
    def end():
        children = get_reusable_executor(max_workers=2, reuse=True)._processes
        os.kill(next(iter(children)) if NUMBER == signal.SIGKILL else os.getpid(), NUMBER)

    threading.Timer(15, end).start()
    try:
        with parallel_config(backend="loky", n_jobs=2):
            detector.set_params(epochs=1_000_000).fit(X)
    except (TerminatedWorkerError, KeyboardInterrupt) as error:
        print(type(error).__name__)
    assert (detector.score_samples(X) == before).all()
    with parallel_config(backend="loky", n_jobs=2):
        detector.set_params(epochs=2).fit(X)
    assert (detector.score_samples(X) == before).all()
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "error"), [(9, "TerminatedWorkerError"), (2, "KeyboardInterrupt")], ids=["kill", "Ctrl-C"]
)
def test_after_a_killed_process_or_ctrl_c_the_earlier_fit_is_there_and_another_one_begins(
    number, error, tmp_path
):
    script = tmp_path / "fit.py"
    script.write_text(KILL.replace("NUMBER", str(number)))
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240, check=False)
    assert (ran.returncode, ran.stdout.split()) == (0, [error]), ran.stderr


@pytest.mark.wide
@pytest.mark.parametrize(("told", "n_threads"), [({}, 1), ({"TF_NUM_INTRAOP_THREADS": "3"}, 0)])
def test_tensorflow_has_as_many_threads_as_workers_are_told(told, n_threads):
    environment = {name: value for name, value in os.environ.items() if name != "TF_NUM_INTRAOP_THREADS"}
    code = (
        "from vae_anomaly.core.backend import tf\n"
        "print(tf.config.threading.get_intra_op_parallelism_threads())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "OMP_NUM_THREADS": "1", **told},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ran.stdout) == n_threads
