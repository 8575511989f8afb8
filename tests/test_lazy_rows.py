"""Sparse tables: the scores of the dense table, and no more than a block of it dense at a time."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse
from sklearn.model_selection import KFold
from sklearn.preprocessing import MaxAbsScaler

from vae_anomaly import VAEDetector
from vae_anomaly.data.lazy import LazyRows, blocks, concatenate, has_gaps, representative, rows_of, subset


@pytest.fixture(scope="module")
def X():
    return sparse.csr_array(sparse.random(400, 12, density=0.3, random_state=0))


@pytest.fixture(scope="module")
def rows(X):
    return LazyRows(X, None, None)


def test_an_index_of_any_shape_gives_rows_as_an_array(X, rows):
    order = np.random.RandomState(0).randint(400, size=(3, 5))
    np.testing.assert_array_equal(rows[order], X.toarray().astype("f4")[order])
    np.testing.assert_array_equal(rows[10:20], X.toarray().astype("f4")[10:20])
    assert rows[order].dtype == rows.dtype == np.float32
    assert (len(rows), rows.shape) == (400, (400, 12))


def test_blocks_subsets_and_joined_rows_are_those_of_the_dense_table(X, rows, monkeypatch):
    dense = X.toarray().astype("f4")
    monkeypatch.setattr("vae_anomaly.core.rows._NUMBERS_AT_ONCE", 12 * 150)
    assert [len(block) for block in blocks(rows)] == [150, 150, 100]
    np.testing.assert_array_equal(np.concatenate(list(blocks(rows))), dense)
    some = np.array([5, 3, 399])
    np.testing.assert_array_equal(subset(rows, some)[:], dense[some])
    np.testing.assert_array_equal(concatenate(rows, subset(rows, some))[:], np.r_[dense, dense[some]])
    assert len(representative(rows)) == 150
    assert representative(dense) is dense


def test_a_gap_anywhere_is_found(X):
    assert not has_gaps(LazyRows(X, None, None))
    gappy = X.copy()
    gappy.data[-1] = np.nan
    assert has_gaps(LazyRows(gappy, None, None))
    assert isinstance(rows_of(X.toarray(), None, None), np.ndarray)


@pytest.mark.parametrize(
    "settings",
    [{}, {"scaler": MaxAbsScaler()}, {"contamination": 0.1}, {"calibration": 0.3}, {"calibration": KFold(2)}],
    ids=["default", "a scaler that stays sparse", "every row scored", "held out", "folds"],
)
def test_a_sparse_table_gives_the_dense_tables_scores_bit_by_bit(X, settings):
    settings = {"epochs": 3, "early_stopping": True, "random_state": 0, **settings}
    of_sparse, of_dense = (VAEDetector(**settings).fit(table) for table in (X, X.toarray()))
    np.testing.assert_array_equal(of_sparse.score_samples(X), of_dense.score_samples(X.toarray()))
    assert of_sparse.offset_ == of_dense.offset_
    np.testing.assert_array_equal(of_sparse.calibration_scores_, of_dense.calibration_scores_)


@pytest.mark.parametrize("form", ["csc", "coo"])
def test_other_sparse_forms_are_converted(X, form):
    detector = VAEDetector(epochs=2, random_state=0).fit(X.asformat(form))
    np.testing.assert_array_equal(detector.predict(X.asformat(form)), detector.predict(X))


@pytest.mark.long
def test_the_table_is_never_dense_as_a_whole():
    """20,000 x 8,000 cells would be 640 MB in float32."""
    code = (
        "import resource\n"
        "import numpy as np\n"
        "from scipy import sparse\n"
        "from vae_anomaly import DenseNetwork, VAEDetector\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "detector = VAEDetector(network=DenseNetwork((8,)), epochs=1, n_draws=1, random_state=0)\n"
        "small = sparse.csr_array(sparse.random(300, 8000, density=0.001, random_state=0))\n"
        "detector.fit(small).score_samples(small)\n"
        "before = peak()\n"
        "columns = np.random.RandomState(0).randint(8000, size=80_000)\n"
        "X = sparse.csr_array((np.ones(80_000), columns, np.arange(0, 80_001, 4)), shape=(20_000, 8000))\n"
        "detector.fit(X).predict(X[:2000])\n"
        "print(peak() - before)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) < 400


def test_cells_of_sparse_rows_are_expected_and_explained_as_of_dense_ones(X):
    detector = VAEDetector(epochs=2, random_state=0).fit(X)
    rows = X[:6]
    for method in ("expected", "explain", "reconstruct", "encode"):
        np.testing.assert_array_equal(
            getattr(detector, method)(rows), getattr(detector, method)(rows.toarray())
        )
