"""Pixels: centered and scaled channel by channel."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator

from vae_anomaly import VAEDetector
from vae_anomaly.preprocessing import PixelScaler

CHECKS = [check for _, check in estimator_checks_generator(PixelScaler())]


@pytest.mark.parametrize("check", CHECKS, ids=[check.func.__name__ for check in CHECKS])
def test_it_is_a_scikit_learn_transformer(check):
    check(PixelScaler())


@pytest.fixture(scope="module")
def images():
    rng = np.random.RandomState(0)
    return (rng.normal([0.2, 5.0, -1.0], [0.1, 2.0, 0.5], size=(30, 4, 6, 3))).reshape(30, -1)


def test_each_channel_has_mean_0_and_standard_deviation_1_over_all_pixels_and_images(images):
    scaler = PixelScaler(n_channels=3)
    scaled = scaler.fit_transform(images).reshape(-1, 3)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(scaler.mean_, images.reshape(-1, 3).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(scaler.inverse_transform(scaler.transform(images)), images, rtol=1e-5)


def test_parts_of_images_come_back_too(images):
    scaler = PixelScaler(n_channels=3).fit(images)
    scaled = scaler.transform(images)
    np.testing.assert_array_equal(
        scaler.inverse_transform(scaled[:, :12]), scaler.inverse_transform(scaled)[:, :12]
    )


def test_images_learned_in_parts_are_those_learned_at_once(images, monkeypatch):
    images = images.copy()
    images[3, 5:9] = np.nan
    whole, parts = PixelScaler(n_channels=3).fit(images), PixelScaler(n_channels=3)
    for start in range(0, 30, 7):
        parts.partial_fit(images[start : start + 7])
    monkeypatch.setattr("vae_anomaly.core.rows._NUMBERS_AT_ONCE", 72 * 4)
    for other in (parts, PixelScaler(n_channels=3).fit(images)):
        np.testing.assert_allclose(other.mean_, whole.mean_, rtol=1e-12)
        np.testing.assert_allclose(other.scale_, whole.scale_, rtol=1e-12)
        np.testing.assert_array_equal(other.n_samples_seen_, whole.n_samples_seen_)


def test_a_fit_forgets_the_one_before(images):
    scaler = PixelScaler(n_channels=3).fit(100 * images)
    np.testing.assert_array_equal(scaler.fit(images).mean_, PixelScaler(n_channels=3).fit(images).mean_)


def test_bytes_and_floats_that_mean_the_same_pixels_are_the_same_numbers():
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 64)
    of_doubles, of_floats = pixels / 255, pixels.astype("f4") / np.float32(255)
    one, other = PixelScaler().fit(of_doubles), PixelScaler().fit(of_floats)
    assert (one.mean_, one.scale_) == (other.mean_, other.scale_)
    np.testing.assert_array_equal(one.transform(of_doubles), one.transform(of_floats))


def test_a_channel_that_does_not_vary_keeps_its_unit():
    assert PixelScaler().fit(np.full((3, 4), 0.7)).scale_ == 1


def test_rows_of_parts_of_pixels_are_refused():
    with pytest.raises(ValueError, match="n_channels=3.*whole pixels; received rows of 4 numbers"):
        PixelScaler(n_channels=3).fit(np.zeros((2, 4)))


@pytest.mark.parametrize("shape", [(6, 6), pytest.param((36, 36), marks=pytest.mark.wide)])
def test_neither_contrast_nor_brightness_changes_what_is_found(shape):
    """Down to the rounding of the pixels; inverted images differ in the sign that networks start from."""
    images = np.random.RandomState(0).uniform(size=(40, *shape))
    scores = [
        VAEDetector(epochs=2, members=1, random_state=0).fit(X).score_samples(X)
        for X in (images, 0.4 + 0.2 * images, 1000 * images)
    ]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-3)
    np.testing.assert_allclose(scores[2], scores[0], rtol=1e-3)


@pytest.mark.parametrize("likelihood", ["auto", "bernoulli"])
def test_an_infinite_pixel_makes_its_image_improbable_and_no_other(likelihood):
    images = np.random.RandomState(0).uniform(size=(30, 4, 4))
    detector = VAEDetector(likelihood=likelihood, epochs=1, random_state=0).fit(images)
    new = images[:2].copy()
    new[0, 1, 1] = np.inf
    scores = detector.score_samples(new)
    assert scores[0] <= -1e30
    assert scores[1] == detector.score_samples(images[1:2])[0]
    with pytest.raises(ValueError, match="pixel values"):
        detector.score_samples(200 * new)
