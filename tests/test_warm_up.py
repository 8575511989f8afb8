"""A warm-up: what scoring compiles is compiled before the first request."""

import io

import numpy as np
import pytest
from conftest import stars
from sklearn.exceptions import NotFittedError

import vae_anomaly
from vae_anomaly import ConvNetwork, DenseNetwork, VAEDetector
from vae_anomaly.engine import tiles


@pytest.fixture
def compiled(monkeypatch):
    """A list that grows with each program that is compiled."""
    programs, function = [], tiles.tf.function
    monkeypatch.setattr(
        tiles.tf, "function", lambda *given, **how: programs.append(1) or function(*given, **how)
    )
    return programs


@pytest.fixture
def soon(monkeypatch):
    """After few calls, as many programs have been compiled as otherwise after hundreds."""
    monkeypatch.setattr(tiles, "_NARROW_TILE_FROM_CALLS", 3)
    monkeypatch.setattr(tiles, "_OWN_PROGRAM_FROM_CALLS", 6)


def loaded(detector):
    """As in a new process, once the programs have been forgotten."""
    file = io.BytesIO()
    detector.save(file)
    file.seek(0)
    return vae_anomaly.load(file)


def requests_of(X, n_rows):
    """As many rows: complete, with a gap in the first, in most and in all of them."""
    X = np.resize(X, (n_rows, *X.shape[1:]))
    for n_incomplete in (0, 1, n_rows - 1, n_rows):
        rows = X.copy()
        rows.reshape(n_rows, -1)[:n_incomplete, 1] = np.nan
        yield rows


def fit(X, **settings):
    settings = {"network": DenseNetwork((21,)), "latent_dim": 2, "n_draws": 3, "epochs": 2, **settings}
    return VAEDetector(random_state=0, **settings).fit(X)


TABLE = np.random.RandomState(0).normal(size=(60, 4))
WITH_GAPS = np.where(np.random.RandomState(1).uniform(size=TABLE.shape) < 0.1, np.nan, TABLE)
IMAGES = np.random.RandomState(0).uniform(size=(30, 4, 4, 1))
CASES = {
    "one model": (TABLE, {}),
    "members": (TABLE, {"members": 2}),
    "an encoder that sees marks for missing values": (WITH_GAPS, {}),
    "a named device": (TABLE, {"device": "cpu:0"}),
    "images": (IMAGES, {"network": ConvNetwork(filters=(4,))}),
    "rows that have to be possible": (TABLE, {"invalid": "raise"}),
    "another score": (TABLE, {"score": "iwae"}),
}
SIZES = (1, 2, 4, 16, 100, 300)


@pytest.mark.parametrize(("X", "settings"), stars(CASES, {"one model"}))
def test_after_a_warm_up_no_request_of_these_sizes_compiles_anything(
    X, settings, compiled, soon, forget_programs
):
    detector = fit(X, **settings)
    requests = [rows for n_rows in SIZES for rows in requests_of(np.nan_to_num(X), n_rows)]
    expected = [detector.score_samples(rows) for rows in requests]
    forget_programs()
    warm = loaded(detector).set_params(device=settings.get("device"))
    compiled.clear()
    assert warm.warm_up(SIZES) is warm
    assert compiled
    compiled.clear()
    for rows, scores in zip(requests, expected, strict=True):
        for _ in range(8):
            np.testing.assert_array_equal(warm.score_samples(rows), scores)
        warm.predict(rows)
    assert compiled == []


@pytest.mark.wide
def test_after_a_warm_up_hundreds_of_single_rows_compile_nothing_that_they_would_compile_without_it(
    compiled, forget_programs
):
    detector = fit(TABLE)
    expected, n_compiled = detector.score_samples(TABLE), {}
    for is_warm in (False, True):
        forget_programs()
        served = loaded(detector)
        if is_warm:
            served.warm_up()
        compiled.clear()
        for call in range(tiles._NARROW_TILE_FROM_CALLS + tiles._OWN_PROGRAM_FROM_CALLS + 10):
            row = call % len(TABLE)
            assert served.score_samples(TABLE[row : row + 1]) == expected[row]
        n_compiled[is_warm] = len(compiled)
    assert n_compiled == {False: 3, True: 0}  # of wide tiles, of narrow ones, of the model's own


@pytest.mark.wide
def test_what_remains_of_a_table_that_is_scored_in_blocks_is_warm_too(
    compiled, soon, monkeypatch, forget_programs
):
    monkeypatch.setattr("vae_anomaly.core.rows._NUMBERS_AT_ONCE", 4 * 150)
    detector = fit(TABLE)
    forget_programs()
    detector.warm_up(155)
    compiled.clear()
    for _ in range(10):
        for rows in requests_of(TABLE, 155):
            detector.score_samples(rows)
    assert compiled == []


@pytest.mark.wide
def test_sizes_that_take_the_same_tiles_cost_nothing_more(compiled, soon, forget_programs):
    detector = fit(TABLE)
    n_compiled = []
    for sizes in ([1, 5, 17, 129], range(1, 100_000)):
        forget_programs()
        served = loaded(detector)
        compiled.clear()
        served.warm_up(sizes)
        n_compiled.append(len(compiled))
    assert n_compiled[0] == n_compiled[1]


def test_a_second_warm_up_compiles_nothing(compiled, forget_programs):
    detector = fit(TABLE).warm_up()
    compiled.clear()
    detector.warm_up().warm_up([1])
    assert compiled == []


@pytest.mark.parametrize("n_rows", [0, -1, 1.5, True, "1", None, [1, 0]])
def test_sizes_that_are_no_numbers_of_rows_are_refused(n_rows):
    with pytest.raises(ValueError, match=r"n_rows must be a positive integer, or several.*received"):
        fit(TABLE).warm_up(n_rows)


def test_only_a_fitted_detector_can_be_warmed_up():
    with pytest.raises(NotFittedError):
        VAEDetector().warm_up()
