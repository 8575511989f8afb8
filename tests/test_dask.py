"""Collections of dask are scored as lazily as they are made, by the same bits and with their index."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.data import partitions

dask = pytest.importorskip("dask")
dd = pytest.importorskip("dask.dataframe")
da = pytest.importorskip("dask.array")
N_ROWS = 300
METHODS = {
    "score_samples": "float64",
    "decision_function": "float64",
    "predict": "int64",
    "p_values": "float64",
}


@pytest.fixture(scope="module", autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def frame():
    rng = np.random.RandomState(0)
    frame = pd.DataFrame({"size": rng.normal(size=N_ROWS), "city": rng.choice(["Bern", "Genf"], N_ROWS)})
    frame["site"] = rng.choice(["a", "b"], N_ROWS)
    frame.loc[5, "size"] = np.nan
    return frame.set_index(pd.Index(np.arange(1000, 1000 + N_ROWS), name="key"))


@pytest.fixture(scope="module")
def detector(frame):
    settings = {"threshold": "conformal", "calibration": 0.5}
    return VAEDetector(DenseNetwork((8,)), epochs=2, random_state=0, **settings).fit(frame, groups="site")


@pytest.mark.filterwarnings("ignore:the detector was fitted with groups")
@pytest.mark.parametrize(("method", "dtype"), METHODS.items())
def test_a_frame_is_answered_by_a_series_of_its_index(method, dtype, frame, detector):
    X = dd.from_pandas(frame, npartitions=4)
    answer = getattr(detector, method)(X)
    assert isinstance(answer, dd.Series)
    assert (answer.dtype, answer.name, answer.divisions) == (dtype, method, X.divisions)
    expected = pd.Series(getattr(detector, method)(frame), index=frame.index, name=method)
    pd.testing.assert_series_equal(answer.compute(), expected)


@pytest.mark.wide
def test_an_array_is_answered_by_a_vector_of_its_chunks():
    X = np.random.RandomState(0).normal(size=(N_ROWS, 4))
    detector = VAEDetector(DenseNetwork((8,)), epochs=2, random_state=0).fit(X)
    answer = detector.score_samples(da.from_array(X, chunks=(70, 3)))
    assert (answer.chunks, answer.dtype) == (((70, 70, 70, 70, 20),), np.float64)
    np.testing.assert_array_equal(answer.compute(), detector.score_samples(X))
    of_unknown_length = dd.from_pandas(pd.DataFrame(X), npartitions=3).to_dask_array()
    np.testing.assert_array_equal(detector.score_samples(of_unknown_length).compute(), answer.compute())
    images = da.from_array(X.reshape(-1, 2, 2), chunks=(100, 1, 2))
    of_images = VAEDetector(epochs=1, members=1, random_state=0).fit(X.reshape(-1, 2, 2))
    np.testing.assert_array_equal(of_images.predict(images).compute(), of_images.predict(X.reshape(-1, 2, 2)))


def test_nothing_is_computed_before_it_is_asked_for(frame, detector):
    def fail(part):
        raise AssertionError("computed")

    X = dd.from_pandas(frame, npartitions=2).map_partitions(fail, meta=frame.iloc[:0])
    answer = detector.score_samples(X)
    with pytest.raises(AssertionError, match="computed"):
        answer.compute()


def test_a_partition_without_rows_has_no_answer(frame, detector):
    X = dd.from_pandas(frame, npartitions=4)
    later = X.map_partitions(lambda part: part[part.index >= 1250], meta=frame.iloc[:0])
    found = detector.score_samples(later).compute()
    pd.testing.assert_index_equal(found.index, frame.index[250:])


def test_groups_are_a_column(frame, detector):
    X = dd.from_pandas(frame, npartitions=3)
    found = detector.p_values(X, groups="site").compute()
    np.testing.assert_array_equal(found, detector.p_values(frame, groups="site"))
    with pytest.raises(TypeError, match="the name of one of its columns; received ndarray"):
        detector.predict(X, groups=frame["site"].to_numpy())


def test_other_columns_are_refused_at_once(frame, detector):
    with pytest.raises(ValueError, match="Feature names seen at fit time, yet now missing"):
        detector.score_samples(dd.from_pandas(frame, npartitions=2)[["size"]])


def test_one_object_answers_for_all_partitions_of_a_process(frame, detector):
    partitions._unpack.cache_clear()
    detector.score_samples(dd.from_pandas(frame, npartitions=10)).compute()
    assert partitions._unpack.cache_info().misses == 1


def test_a_mean_over_all_rows_is_a_number(frame, detector):
    assert detector.score(dd.from_pandas(frame, npartitions=3)) == detector.score(frame)


def test_what_gives_cells_back_asks_for_rows_in_memory(frame, detector):
    with pytest.raises(TypeError, match=r"not in memory: pass X\.compute\(\)"):
        detector.explain(dd.from_pandas(frame, npartitions=2))


@pytest.mark.wide
def test_a_worker_gives_tensorflow_its_threads_unless_it_has_begun():
    code = (
        "from vae_anomaly.core.backend import limit_threads, tf\n"
        "limit_threads(1)\n"
        "assert tf.config.threading.get_intra_op_parallelism_threads() == 1\n"
        "tf.constant(1) + 1\n"
        "limit_threads(2)\n"
        "assert tf.config.threading.get_intra_op_parallelism_threads() == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.long
def test_workers_of_a_cluster_give_the_same_bits_and_one_that_is_killed_is_replaced(frame, detector):
    distributed = pytest.importorskip("distributed")
    expected = detector.score_samples(frame)
    X = dd.from_pandas(frame, npartitions=30)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        np.testing.assert_array_equal(detector.score_samples(X).compute(), expected)
        future = client.compute(detector.score_samples(X))
        pids = client.run(os.getpid)
        os.kill(next(iter(pids.values())), 9)
        np.testing.assert_array_equal(future.result(timeout=120), expected)
        found = VAEDetector(DenseNetwork((8,)), epochs=2, random_state=0).fit(X)
    again = VAEDetector(DenseNetwork((8,)), epochs=2, random_state=0).fit(frame)
    np.testing.assert_array_equal(found.score_samples(frame), again.score_samples(frame))
