"""Same seed, same scores, bit for bit; and nothing global is touched."""

import contextlib
import copy
import io
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import stars, wide
from sklearn.base import clone
from sklearn.preprocessing import MinMaxScaler

from vae_anomaly import ConvNetwork, DenseNetwork, VAEDetector
from vae_anomaly.engine import tiles
from vae_anomaly.ensemble.recipe import Member
from vae_anomaly.likelihoods import LIKELIHOODS, Gaussian, UnitInterval

TO_UNIT_INTERVAL = MinMaxScaler(clip=True)
SETTINGS = {
    **{
        name: {"likelihood": name, "scaler": TO_UNIT_INTERVAL if issubclass(kind, UnitInterval) else "auto"}
        for name, kind in LIKELIHOODS.items()
        if name not in ("categorical", "count")  # of whole numbers: see test_tables.py
    },
    "per_row": {"likelihood": Gaussian(scale="per_row")},
    "wide": {"network": DenseNetwork((300, 100))},
    "odd widths": {"network": DenseNetwork((13, 7)), "latent_dim": 3, "n_draws": 7},
    "linear": {"network": DenseNetwork(())},
    "batch_normalization": {"network": DenseNetwork(batch_normalization=True)},
    "dropout": {"network": DenseNetwork(dropout=0.2)},
    "tanh": {"network": DenseNetwork((33,), activation="tanh"), "latent_dim": 5},
    "conv": {
        "network": ConvNetwork(image_shape=(2, 3, 1), filters=(3,), dense_units=(4,)),
        "likelihood": "gaussian",
    },
    "conv of lists": {
        "network": ConvNetwork((2, 3, 1), (8, 4), (2, 3), (1, 2), dense_units=(), activation="leaky_relu"),
        "likelihood": "gaussian",
    },
    "selu": {"network": DenseNetwork(activation="selu", dropout=0.2)},
    "one draw": {"n_draws": 1},
    "100 draws": {"n_draws": 100},
    "iwae": {"score": "iwae", "objective": "iwae", "n_training_draws": 3},
    "reconstruction_error": {"score": "reconstruction_error"},
    "xla": {"jit_compile": True},
    "ensemble": {"members": [Member(), Member(trimmed_fraction=0.2), Member(0.0, 0.3, "yeo-johnson")]},
}
# Those whose compiled programs differ in kind.
BY_DEFAULT = {
    "gaussian",
    "mixed",
    "batch_normalization",
    "iwae",
    "xla",
}


def detector(**settings):
    return VAEDetector(**{"epochs": 4, "random_state": 0, **settings})


@pytest.fixture(scope="module")
def rows(table):
    """Enough rows for several tiles of every size."""
    X, _ = table
    return np.r_[X, X + 0.1]


@pytest.fixture(scope="module", params=stars(SETTINGS, BY_DEFAULT))
def fitted_with(request, rows):
    """A fitted detector, and the settings that it has."""
    return detector(**request.param).fit(rows), request.param


@pytest.mark.narrow_tiles
def test_scores_do_not_depend_on_how_rows_are_batched(rows, fitted_with, monkeypatch):
    fitted, _ = fitted_with
    monkeypatch.setattr(tiles, "_OWN_PROGRAM_FROM_CALLS", 30)
    together = fitted.score_samples(rows)
    order = np.random.RandomState(1).permutation(len(rows))
    np.testing.assert_array_equal(fitted.score_samples(rows[order]), together[order])
    for size in (1, 7, 64, 333):
        starts = range(0, min(400, 60 * size), size)
        parts = [fitted.score_samples(rows[start : start + size]) for start in starts]
        np.testing.assert_array_equal(np.concatenate(parts), together[: len(np.concatenate(parts))])


@pytest.mark.narrow_tiles
@pytest.mark.parametrize("n_members", [1, wide(2), wide(3), wide(7), 8, wide(16)])
def test_a_row_scores_alike_alone_and_in_any_batch_by_any_number_of_members(rows, n_members):
    fitted = detector(network=DenseNetwork((8,)), members=n_members, epochs=1).fit(rows)
    together = fitted.score_samples(rows)
    for size in (1, 2, 3, 7, 8, 16):
        for start in range(0, 48, 16):
            found = fitted.score_samples(rows[start : start + size])
            np.testing.assert_array_equal(found, together[start : start + size])


@pytest.mark.narrow_tiles
@pytest.mark.parametrize("n_members", [2, wide(8)])
def test_explanations_and_confidence_are_alike_alone_and_together(rows, n_members):
    fitted = detector(network=DenseNetwork((8,)), members=n_members, n_draws=3, epochs=1).fit(rows)
    for judge in (fitted.confidence, fitted.explain):
        together = judge(rows[:40])
        for row in range(8):
            np.testing.assert_array_equal(judge(rows[row : row + 1]), together[row : row + 1])


def test_the_same_seed_gives_the_same_scores(rows, fitted_with):
    fitted, settings = fitted_with
    again = detector(**settings).fit(rows)
    np.testing.assert_array_equal(again.score_samples(rows), fitted.score_samples(rows))


def test_another_seed_gives_other_scores(rows):
    first, second = (detector(random_state=seed).fit(rows).score_samples(rows) for seed in (0, 1))
    assert np.abs(first - second).max() > 1e-3


def test_refitting_one_object_is_fitting_a_new_one(rows):
    refitted = detector().fit(rows[:300]).fit(rows)
    np.testing.assert_array_equal(refitted.score_samples(rows), detector().fit(rows).score_samples(rows))


def test_a_fit_does_not_depend_on_what_was_fitted_before(rows):
    alone = detector().fit(rows).score_samples(rows)
    detector(random_state=7).fit(rows[:40])
    detector(network=DenseNetwork((9,))).fit(rows)
    np.testing.assert_array_equal(detector().fit(rows).score_samples(rows), alone)


@pytest.mark.wide  # by default, test_persistence.py has it
def test_two_processes_give_the_same_scores():
    code = (
        "import hashlib, numpy as np\n"
        "from vae_anomaly import VAEDetector\n"
        "X = np.random.RandomState(0).normal(size=(300, 6))\n"
        "scores = VAEDetector(epochs=4, random_state=0).fit(X).score_samples(X)\n"
        "print(hashlib.sha256(scores.tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        exec(code, {})
    assert len(there.strip()) == 64
    assert here.getvalue() == there


@pytest.mark.parametrize(
    "copied",
    [lambda fitted: pickle.loads(pickle.dumps(fitted)), copy.deepcopy, copy.copy],
    ids=["pickle", "deepcopy", "copy"],
)
def test_copies_score_alike(rows, copied):
    fitted = detector().fit(rows)
    np.testing.assert_array_equal(copied(fitted).score_samples(rows), fitted.score_samples(rows))


def test_a_clone_is_unfitted_and_fits_alike(rows):
    fitted = detector().fit(rows)
    cloned = clone(fitted)
    assert not hasattr(cloned, "members_")
    np.testing.assert_array_equal(cloned.fit(rows).score_samples(rows), fitted.score_samples(rows))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_memory_layout_and_container_do_not_matter(rows, dtype):
    X = rows.astype(dtype)
    fitted = detector().fit(X)
    expected = fitted.score_samples(X)
    for same in (np.asfortranarray(X), X.tolist() if dtype is np.float64 else X[::1]):
        np.testing.assert_array_equal(fitted.score_samples(same), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        wide({"network": DenseNetwork(dropout=0.2)}),
        {"validation_fraction": 0.2},
    ],
    ids=["default", "dropout", "held out"],
)
def test_no_global_random_state_is_touched(rows, settings, draws_after):
    def use_everything():
        fitted = detector(**settings).fit(rows)
        fitted.score_samples(rows)
        fitted.predict(rows)
        fitted.sample(3, random_state=0)
        fitted.model_  # noqa: B018

    assert draws_after(use_everything) == draws_after(lambda: None)


def test_a_random_state_object_is_drawn_from_as_in_scikit_learn(rows):
    generator = np.random.RandomState(5)
    first = detector(random_state=generator).fit(rows).score_samples(rows)
    second = detector(random_state=generator).fit(rows).score_samples(rows)
    again = detector(random_state=np.random.RandomState(5)).fit(rows).score_samples(rows)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)


def test_threads_fitting_at_once_get_the_serial_results(rows):
    settings = [{"random_state": seed, "network": DenseNetwork((21 + seed % 2,))} for seed in range(6)]
    serial = [detector(**each).fit(rows).score_samples(rows) for each in settings]
    parallel = [None] * len(settings)

    def work(position):
        parallel[position] = detector(**settings[position]).fit(rows).score_samples(rows)

    threads = [threading.Thread(target=work, args=(position,)) for position in range(len(settings))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(serial, parallel, strict=True):
        np.testing.assert_array_equal(one, other)
