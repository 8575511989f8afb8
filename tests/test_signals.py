"""Signals: arrays of shape (n, length, channels), from what users hand in to scores and back."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import wide
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import vae_anomaly
from vae_anomaly import ConvNetwork, DenseNetwork, KerasNetwork, VAEDetector
from vae_anomaly.core.backend import keras
from vae_anomaly.data.scaling import fit_channel_scaler, unscale
from vae_anomaly.scoring import unexplained_variance

LENGTH, UNITS, LEVELS = 32, np.array([5.0, 0.01, 300.0]), np.array([0.0, -7.0, 1e4])
NETWORK = ConvNetwork(dimensions=1, filters=(4, 6), dense_units=(8,))
QUICK: dict[str, Any] = {"latent_dim": 2, "epochs": 2, "random_state": 0}


def waves(n: int, seed: int = 0) -> Any:
    """Two oscillations and their product, with noise, in units of their own."""
    rng, t = np.random.default_rng(seed), np.arange(LENGTH)
    phase = rng.uniform(0, 2 * np.pi, (n, 1))
    one, two = np.sin(2 * np.pi * t / 16 + phase), np.cos(2 * np.pi * t / 8 + phase)
    clean = np.stack([one, 0.5 * two + 0.3 * one, one * two], axis=-1)
    return (clean + 0.05 * rng.normal(size=clean.shape)) * UNITS + LEVELS


@pytest.fixture(scope="module")
def fitted() -> VAEDetector:
    detector = VAEDetector(NETWORK, **QUICK).fit(waves(60))
    assert detector.score_ == "elbo"
    return detector


# -- what they are taken for ------------------------------------------------------------------------------
@pytest.mark.parametrize("network", ["auto", "conv", "dense", ConvNetwork(), DenseNetwork()], ids=str)
def test_an_ambiguous_shape_is_refused_before_any_training(network: Any) -> None:
    with pytest.raises(ValueError, match=r"signals of length 32 with 3 channels, or gray images"):
        VAEDetector(network, **QUICK).fit(waves(20))


@pytest.mark.parametrize("by", ["an axis", wide("a parameter")])
@pytest.mark.wide
def test_what_the_message_says_of_images_makes_images_of_them(by: str) -> None:
    pixels = np.random.default_rng(0).random((20, LENGTH, 3))
    given = pixels[..., np.newaxis] if by == "an axis" else pixels
    network = ConvNetwork(filters=(2, 2), dimensions="auto" if by == "an axis" else 2)
    assert VAEDetector(network, **QUICK).fit(given).score_ == "unexplained_variance"


def test_an_image_of_width_1_is_a_signal() -> None:
    signals = waves(20)
    expected = VAEDetector(ConvNetwork(dimensions=1), **QUICK).fit(signals)
    detector = VAEDetector(**QUICK).fit(signals[:, :, np.newaxis])
    np.testing.assert_array_equal(
        detector.score_samples(signals[:, :, np.newaxis]), expected.score_samples(signals)
    )
    assert detector.reconstruct(signals[:2, :, np.newaxis]).shape == (2, LENGTH, 1, 3)


def test_flat_rows_behind_the_network_give_the_same_scores(fitted: VAEDetector) -> None:
    signals = waves(60)
    flat = signals.reshape(60, -1)
    network = ConvNetwork((LENGTH, 3), dimensions=1, filters=(4, 6), dense_units=(8,))
    detector = VAEDetector(network, **QUICK).fit(flat)
    np.testing.assert_array_equal(detector.score_samples(flat), fitted.score_samples(signals))
    np.testing.assert_array_equal(fitted.score_samples(flat), fitted.score_samples(signals))


@pytest.mark.wide
def test_rows_of_a_table_may_be_signals_of_one_channel() -> None:
    rows = waves(40)[:, :, 0]
    detector = VAEDetector(NETWORK, **QUICK).fit(rows)
    assert np.ptp(detector.scaler_.scale_) == 0
    stacked = VAEDetector(NETWORK, **QUICK).fit(rows[..., np.newaxis])
    np.testing.assert_array_equal(stacked.score_samples(rows[..., np.newaxis]), detector.score_samples(rows))


def test_an_encoder_that_takes_signals_makes_signals_of_the_rows() -> None:
    x = keras.Input((LENGTH, 3))
    hidden = keras.layers.Flatten()(keras.layers.Conv1D(4, 7, strides=4, activation="relu")(x))
    encoder = keras.Model(x, [keras.layers.Dense(2)(hidden), keras.layers.Dense(2)(hidden)])
    decoder = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(LENGTH * 3), keras.layers.Reshape((LENGTH, 3))]
    )
    signals = waves(40)
    detector = VAEDetector(KerasNetwork(encoder, decoder), epochs=2, random_state=0).fit(signals)
    assert detector.score_ == "elbo"
    assert detector.reconstruct(signals[:2]).shape == (2, LENGTH, 3)
    np.testing.assert_allclose(detector.scaler_.mean_[:3], signals.mean(axis=(0, 1)))


# -- scaling ----------------------------------------------------------------------------------------------
def test_each_channel_is_scaled_alike_at_all_its_positions(fitted: VAEDetector) -> None:
    signals = waves(60)
    scaler = fitted.scaler_
    np.testing.assert_allclose(scaler.mean_.reshape(LENGTH, 3), np.tile(signals.mean((0, 1)), (LENGTH, 1)))
    np.testing.assert_allclose(scaler.scale_.reshape(LENGTH, 3), np.tile(signals.std((0, 1)), (LENGTH, 1)))
    flat = signals.reshape(60, -1)
    np.testing.assert_allclose(scaler.inverse_transform(scaler.transform(flat)), flat)
    reconstruction = fitted.reconstruct(signals)
    assert (np.abs(reconstruction.mean((0, 1)) - LEVELS) < UNITS).all()


def test_a_unit_of_a_channel_changes_nothing(fitted: VAEDetector) -> None:
    """Powers of two, so that nothing is rounded."""
    units = np.array([4.0, 0.5, 1024.0])
    detector = VAEDetector(NETWORK, **QUICK).fit(waves(60) * units)
    np.testing.assert_array_equal(
        detector.scaler_.transform((waves(5, 1) * units).reshape(5, -1)),
        fitted.scaler_.transform(waves(5, 1).reshape(5, -1)),
    )


def test_gaps_and_a_channel_that_does_not_vary_are_scaled_too() -> None:
    signals = waves(30)
    signals[::4, 3:6, 1] = np.nan
    signals[:, :, 2] = 9.0
    scaler = fit_channel_scaler(StandardScaler(), signals.reshape(30, -1), 3)
    np.testing.assert_allclose(scaler.mean_[:3], [*np.nanmean(signals, axis=(0, 1))[:2], 9.0])
    np.testing.assert_allclose(scaler.scale_[2::3], 3.0)
    np.testing.assert_allclose(unscale(scaler.transform(signals.reshape(30, -1)), scaler)[:, 2], 9.0)
    assert scaler.n_features_in_ == LENGTH * 3


@pytest.mark.wide
def test_signals_with_gaps_are_scored_and_filled() -> None:
    signals = waves(30)
    signals[::4, 3:6, 1] = np.nan
    detector = VAEDetector(NETWORK, **QUICK).fit(signals)
    assert np.isfinite(detector.score_samples(signals)).all()
    assert np.isfinite(detector.reconstruct(signals)).all()


@pytest.mark.parametrize("scaler", [None, wide(MinMaxScaler()), StandardScaler()], ids=str)
def test_a_scaler_of_ones_own_is_that_of_scikit_learn(scaler: Any) -> None:
    signals = (waves(30) - LEVELS) / UNITS
    detector = VAEDetector(NETWORK, scaler=scaler, **QUICK).fit(signals)
    if isinstance(scaler, StandardScaler):
        np.testing.assert_allclose(detector.scaler_.mean_, signals.reshape(30, -1).mean(axis=0))
    assert np.isfinite(detector.score_samples(signals)).all()


@pytest.mark.parametrize("dtype", ["uint8", *map(wide, ["float32", "int16"])])
def test_whole_numbers_are_numbers_in_any_dtype(dtype: str) -> None:
    """Bytes of a signal are no shares of 255."""
    signals = np.random.default_rng(0).integers(0, 200, (30, LENGTH, 2))
    expected = VAEDetector(NETWORK, **QUICK).fit(signals.astype(float)).score_samples(signals)
    given = signals.astype(dtype)
    detector = VAEDetector(NETWORK, **QUICK).fit(given)
    for of_new in (given, signals, signals.astype(float)):
        np.testing.assert_array_equal(detector.score_samples(of_new), expected)
    assert detector.scaler_.mean_.mean() == pytest.approx(signals.mean())
    assert detector.reconstruct(given).mean() == pytest.approx(signals.mean(), rel=0.2)


# -- what comes out ---------------------------------------------------------------------------------------
@pytest.mark.wide
def test_explanations_have_the_shape_of_the_signals_and_sum_to_the_scores(fitted: VAEDetector) -> None:
    signals = waves(10, 1)
    shares = fitted.explain(signals)
    assert shares.shape == signals.shape
    np.testing.assert_allclose(shares.sum(axis=(1, 2)), -fitted.score_samples(signals))
    assert fitted.sample(4, random_state=0).shape == (4, LENGTH, 3)
    assert fitted.expected(signals[:1]).shape == (1, LENGTH, 3)


def test_a_score_stays_what_it_was_in_files_and_pickles(fitted: VAEDetector, tmp_path: Path) -> None:
    signals = waves(10, 1)
    fitted.save(tmp_path / "signals.vae")
    for copy in (vae_anomaly.load(tmp_path / "signals.vae"), pickle.loads(pickle.dumps(fitted))):
        np.testing.assert_array_equal(copy.score_samples(signals), fitted.score_samples(signals))
        assert copy.members_[0].specification.network.dimensions == 1


def test_a_score_of_images_is_refused_by_name(fitted: VAEDetector) -> None:
    with pytest.raises(ValueError, match="score='unexplained_variance' is one of images"):
        VAEDetector(NETWORK, score="unexplained_variance", **QUICK).fit(waves(20))
    score = unexplained_variance((LENGTH, 1, 3))
    VAEDetector(NETWORK, score=score, **QUICK).fit(waves(20))


def test_signals_of_another_length_or_number_of_channels_are_refused(fitted: VAEDetector) -> None:
    for other in (waves(5)[:, :20], waves(5)[:, :, :2], np.moveaxis(waves(5), 1, 2)):
        with pytest.raises(ValueError, match=r"fitted on images of shape \(32, 3\); received"):
            fitted.score_samples(other)


def test_flat_rows_of_another_length_than_the_networks_are_named() -> None:
    for width in (20, 21):
        with pytest.raises(ValueError, match=rf"\(length, channels\) of signals with a product of {width}"):
            VAEDetector(ConvNetwork((8, 2), dimensions=1), **QUICK).fit(
                np.zeros((20, width)) + np.eye(20, width)
            )


def test_signals_whose_channels_come_first_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"length 3 with 32 channels.*np.moveaxis\(X, 1, -1\)"):
        VAEDetector(NETWORK, **QUICK).fit(np.moveaxis(waves(20), 1, 2))


# -- what is found ----------------------------------------------------------------------------------------
def test_the_default_trains_two_models_and_stops_early() -> None:
    network = ConvNetwork(dimensions=1, filters=(2,), dense_units=())
    detector = VAEDetector(network, patience=1, random_state=0)
    detector.fit(np.random.default_rng(0).normal(size=(60, 8)))
    assert len(detector.members_) == 2
    assert detector.do_early_stopping_
    assert detector.false_alarm_rate_ is not None


def spiked(signals: Any) -> Any:
    """One value of each signal is off by 1.5 of its channel's amplitudes."""
    signals, rng = signals.copy(), np.random.default_rng(5)
    places, channels = rng.integers(2, LENGTH - 2, len(signals)), rng.integers(0, 3, len(signals))
    signals[np.arange(len(signals)), places, channels] += 1.5 * UNITS[channels]
    return signals


@pytest.mark.wide
def test_a_spike_is_found_and_shown() -> None:
    detector = VAEDetector(ConvNetwork(dimensions=1), random_state=0, members=1, early_stopping=True)
    detector.fit(waves(300))
    normal = waves(100, 1)
    wrong = spiked(normal)
    scores = -np.concatenate([detector.score_samples(normal), detector.score_samples(wrong)])
    assert roc_auc_score(np.repeat([0, 1], 100), scores) > 0.99
    worst = detector.explain(wrong).reshape(100, -1).argmax(axis=1)
    assert (worst == np.abs((wrong - normal) / UNITS).reshape(100, -1).argmax(axis=1)).mean() > 0.95
