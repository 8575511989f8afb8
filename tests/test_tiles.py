"""Tiles: whatever the number of rows, the same bits, in bounded memory, traced once."""

import copy
import gc
import warnings
import weakref

import numpy as np
import pytest
from conftest import wide

from vae_anomaly import ConvNetwork, DenseNetwork, KerasNetwork, VAEDetector
from vae_anomaly.core.backend import keras
from vae_anomaly.engine import tiles
from vae_anomaly.engine.programs import architecture, architecture_of
from vae_anomaly.likelihoods import Gaussian, UnitGaussian
from vae_anomaly.model.states import Specification

pytestmark = pytest.mark.narrow_tiles


@pytest.mark.parametrize("n_draws", [1, 10, 1000])
@pytest.mark.parametrize("units", [(4,), (64, 32), (512, 256)])
def test_tiles_are_powers_of_two_that_shrink_as_the_model_grows(units, n_draws):
    def rows(units):
        return tiles.wide_tile(architecture(Specification(DenseNetwork(units), Gaussian(), 30, 2)), n_draws)

    assert rows(units) in (16, 32, 64, 128, 256, 512)
    assert rows(tuple(4 * width for width in units)) <= rows(units)


def test_large_images_are_scored_by_two():
    network = ConvNetwork((64, 64, 3), filters=(16, 32), dense_units=())
    found = architecture(Specification(network, UnitGaussian(), 64 * 64 * 3, 2))
    assert tiles.wide_tile(found, n_draws=10) == 2


def test_no_row_count_traces_a_program_again(table):
    X, _ = table
    detector = VAEDetector(network=DenseNetwork((19,)), epochs=2, random_state=0).fit(X)
    for n_rows in (1, 10, 100, 400):
        detector.score_samples(X[:n_rows])
    traced = set(architecture(detector.members_[0].specification)._programs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n_rows in (2, 3, 31, 128, 129, 300, 499):
            VAEDetector(network=DenseNetwork((19,)), epochs=1, random_state=0).fit(X[:n_rows])
            detector.score_samples(X[:n_rows])
    assert set(architecture(detector.members_[0].specification)._programs) == traced


def test_memory_does_not_grow_with_the_number_of_rows(monkeypatch, table):
    X, _ = table
    detector = VAEDetector(epochs=1, random_state=0).fit(X)
    expected = detector.score_samples(X)
    monkeypatch.setattr("vae_anomaly.core.rows._NUMBERS_AT_ONCE", 6 * 150)
    monkeypatch.setattr("vae_anomaly.engine.tiles._BLOCK_OF_TILES_NUMBERS", 6 * 70)
    np.testing.assert_array_equal(detector.score_samples(X), expected)


@pytest.fixture
def scored_before(table):
    X, _ = table
    detector = VAEDetector(network=DenseNetwork((23,)), epochs=2, random_state=0).fit(X)
    programs = architecture_of(detector.members_[0])._programs
    for key in [key for key in programs if key[0] in tiles.NARROW_TILES]:
        del programs._values[key]
    return detector, detector.score_samples(X), programs


def test_few_rows_get_a_narrow_tile_once_there_have_been_some_calls(table, scored_before, monkeypatch):
    X, _ = table
    detector, expected, programs = scored_before
    monkeypatch.setattr(tiles, "_NARROW_TILE_FROM_CALLS", 3)
    for n_calls in range(5):
        assert (4 in {key[0] for key in programs}) == (n_calls > 3)
        np.testing.assert_array_equal(detector.score_samples(X[:2]), expected[:2])


def a_convolution(x):
    images = keras.layers.Reshape((6, 1))(x)
    return keras.layers.Flatten()(keras.layers.Conv1D(2, 3)(images))


@pytest.mark.parametrize(
    ("network", "has_convolutions"),
    [
        (lambda: DenseNetwork((5,)), False),
        wide(lambda: ConvNetwork((3, 2, 1), (2,)), True),
        wide(lambda: ConvNetwork(dimensions=1, filters=(2,)), True),
        wide(lambda: KerasNetwork(*models_of(lambda x: x)), False),
        wide(lambda: KerasNetwork(*models_of(a_convolution)), True),
    ],
)
def test_convolutions_get_no_narrow_tile_in_any_network(network, has_convolutions):
    X = np.random.RandomState(0).normal(size=(40, 6))
    options = {"latent_dim": 2, "epochs": 1, "batch_size": 40, "likelihood": "gaussian", "random_state": 0}
    detector = VAEDetector(network(), **options).fit(X)
    model = architecture_of(detector.members_[0])
    assert model.has_convolutions is has_convolutions
    alone = [detector.score_samples(X[i : i + 1])[0] for i in range(30)]
    np.testing.assert_array_equal(alone, detector.score_samples(X)[:30])
    assert any(key[0] in tiles.NARROW_TILES for key in model._programs) is not has_convolutions


def models_of(begin):
    x = keras.Input((6,))
    encoder = keras.Model(x, keras.layers.Dense(4)(begin(x)))
    return encoder, keras.Sequential([keras.Input((2,)), keras.layers.Dense(6)])


def test_few_rows_get_the_narrowest_tile_that_holds_them(table, scored_before):
    X, _ = table
    detector, expected, programs = scored_before
    for n_rows, tile in ((1, 4), (4, 4), (5, 16), (100, 128)):
        np.testing.assert_array_equal(detector.score_samples(X[:n_rows]), expected[:n_rows])
        assert tile in {key[0] for key in programs}


@pytest.fixture
def often_asked(monkeypatch, table, scored_before):
    """A detector whose next call for few rows gets it a program of its own."""
    X, _ = table
    detector, _, _ = scored_before
    monkeypatch.setattr(tiles, "_OWN_PROGRAM_FROM_CALLS", 3)
    for _ in range(2):
        detector.score_samples(X[:1])
    assert own_programs(detector) == [None]
    return detector


def own_programs(detector):
    return [entry.program for entry in tiles._own_programs[detector.members_[0]].values()]


def test_a_model_that_is_asked_often_gets_a_program_of_its_own_with_the_same_bits(
    table, often_asked, monkeypatch
):
    X, _ = table
    expected = often_asked.score_samples(X)
    verdicts, compare = [], tiles._same_bits
    monkeypatch.setattr(tiles, "_same_bits", lambda *given: verdicts.append(compare(*given)) or verdicts[0])
    for n_rows in (1, 4, 2):
        np.testing.assert_array_equal(often_asked.score_samples(X[:n_rows]), expected[:n_rows])
    (it_agrees,) = verdicts
    assert (own_programs(often_asked)[0] is not None) == it_agrees


def test_a_program_of_ones_own_serves_no_other_draws_and_members(table, often_asked, monkeypatch):
    X, _ = table
    monkeypatch.setattr(tiles, "_same_bits", lambda *_: True)
    often_asked.score_samples(X[:1])
    program = own_programs(often_asked)[0]
    other = copy.copy(often_asked)
    other.draws_ = often_asked.draws_[:5] - 1
    assert other.score_samples(X[:1]) == other.score_samples(X)[:1]
    both = copy.copy(often_asked)
    both.members_ += VAEDetector(DenseNetwork((23,)), epochs=1, random_state=1).fit(X).members_
    both.member_weights_ = np.array([0.5, 0.5])
    assert both.score_samples(X[:1]) == both.score_samples(X)[:1]
    assert program is not None


def test_a_program_of_ones_own_that_differs_in_a_bit_is_never_used(table, often_asked, monkeypatch):
    X, _ = table
    monkeypatch.setattr(tiles, "_same_bits", lambda *_: False)
    expected = often_asked.score_samples(X)
    for _ in range(3):
        assert often_asked.score_samples(X[:1]) == expected[0]
    assert own_programs(often_asked) == [None]


def test_a_large_model_gets_no_program_of_its_own(table, often_asked, monkeypatch):
    X, _ = table
    monkeypatch.setattr(tiles, "_OWN_PROGRAM_TO_WEIGHTS", 100)
    often_asked.score_samples(X[:1])
    assert own_programs(often_asked) == [None]


@pytest.mark.wide
def test_programs_of_ones_own_go_with_their_model(table, often_asked, monkeypatch):
    X, _ = table
    monkeypatch.setattr(tiles, "_same_bits", lambda *_: True)
    often_asked.score_samples(X[:1])
    program = weakref.ref(own_programs(often_asked)[0])
    n_before = len(tiles._own_programs)
    often_asked.fit(X)
    gc.collect()
    assert program() is None
    assert len(tiles._own_programs) <= n_before


def test_a_narrow_tile_that_differs_in_a_bit_is_never_used(table, scored_before, monkeypatch):
    X, _ = table
    detector, expected, programs = scored_before
    exact = tiles._through_narrow_tile

    def one_bit_off(program, *arguments):
        assert program is not None
        return np.nextafter(exact(program, *arguments), np.inf)

    monkeypatch.setattr(tiles, "_through_narrow_tile", one_bit_off)
    np.testing.assert_array_equal(detector.score_samples(X[:1]), expected[:1])
    narrow = [key for key in programs if key[0] in tiles.NARROW_TILES]
    assert len(narrow) == len(tiles.NARROW_TILES)
    assert all(programs._values[key] is None for key in narrow)
