"""Masks: which pixels of images are anomalous, and where their regions are."""

import numpy as np
import pytest

import vae_anomaly
from vae_anomaly import ConvNetwork, VAEDetector
from vae_anomaly.ensemble.fitted import Fitted
from vae_anomaly.masks import cut_of_pixels, pixel_quantiles, regions


# -- cuts -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rate", [0.001, 0.0173, 0.5])
def test_the_cut_of_a_rate_has_this_fraction_of_normal_pixels_above(rate):
    scores = np.random.RandomState(0).standard_t(3, size=100_000)
    cut = cut_of_pixels(pixel_quantiles(scores), rate)
    assert (scores > cut).mean() == pytest.approx(rate, rel=0.02)


def test_rates_that_few_pixels_cannot_tell_are_refused():
    quantiles = pixel_quantiles(np.arange(5000.0))
    cut_of_pixels(quantiles, 0.0021)
    with pytest.raises(ValueError, match=r"one in 500 normal ones lies above; received .*=0.001: fit on"):
        cut_of_pixels(quantiles, 0.001)


@pytest.mark.parametrize("rate", [0, 1, -0.1, "few"])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match=r"false_alarm_rate must lie in \(0, 1\)"):
        cut_of_pixels(pixel_quantiles(np.arange(5000.0)), rate)


# -- regions ----------------------------------------------------------------------------------------------
def test_a_region_has_its_box_its_size_and_its_largest_score():
    masks = np.zeros((2, 6, 7), dtype=bool)
    masks[1, 1:3, 2:5] = masks[1, 3, 5] = True  # touches at a corner
    masks[1, 5, 0] = True
    scores = np.arange(84.0).reshape(2, 6, 7)
    found = regions(masks, scores)
    assert found.values.tolist() == [[1, 5, 0, 6, 1, 1, 77.0], [1, 1, 2, 4, 6, 7, 68.0]]
    assert [str(dtype) for dtype in found.dtypes] == ["int64"] * 6 + ["float64"]
    for _, line in found.iterrows():
        assert masks[1, int(line.top) : int(line.bottom), int(line.left) : int(line.right)].any()


def test_without_regions_there_are_no_lines():
    assert regions(np.zeros((3, 4, 4), dtype=bool)).shape == (0, 7)
    assert regions(np.zeros((0, 4, 4), dtype=bool)).shape == (0, 7)


def test_masks_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"received \(4, 4\) and \(4, 4\)"):
        regions(np.zeros((4, 4), dtype=bool))
    with pytest.raises(ValueError, match=r"received \(1, 4, 4\) and \(1, 4, 5\)"):
        regions(np.zeros((1, 4, 4), dtype=bool), np.zeros((1, 4, 5)))


# -- of a detector ----------------------------------------------------------------------------------------
def grain(n, seed, shape=(40, 36)):
    return np.random.RandomState(seed).normal(0.5, 0.1, size=(n, *shape))


@pytest.fixture(scope="module")
def detector():
    return VAEDetector(epochs=3, random_state=0).fit(grain(80, 0))


@pytest.mark.parametrize("rate", [0.001, 0.01])
def test_so_many_pixels_of_new_normal_images_are_marked(detector, rate):
    mask = detector.anomaly_mask(grain(80, 1), rate)
    assert mask.shape == (80, 40, 36)
    assert 0.5 * rate < mask.mean() < 1.5 * rate


@pytest.mark.wide
def test_pixels_of_small_images_are_judged_as_new_ones_although_members_know_them():
    detector = VAEDetector(epochs=60, random_state=0).fit(grain(60, 0, (8, 8)))
    rate = detector.anomaly_mask(grain(400, 1, (8, 8)), 0.02).mean()
    assert 0.5 * 0.02 < rate < 1.7 * 0.02


def test_a_defect_is_marked_and_has_a_region(detector):
    images = grain(2, 2)
    images[1, 20:28, 10:16] += 0.5
    mask, found = detector.anomaly_mask(images), detector.anomaly_regions(images)
    assert mask[1, 21:27, 11:15].all()
    worst = found.sort_values("score").iloc[-1]
    assert worst["image"] == 1
    assert abs(worst["top"] - 20) <= 5
    assert abs(worst["bottom"] - 28) <= 5
    assert abs(worst["left"] - 10) <= 5
    assert abs(worst["right"] - 16) <= 5
    assert found["n_pixels"].sum() == mask.sum()


@pytest.mark.wide
def test_colors_are_pixels_of_one_mask_and_flat_rows_are_images_too():
    images = grain(40, 0, (8, 8, 3))
    network = ConvNetwork((8, 8, 3), filters=(4,), dense_units=(8,))
    settings = {"latent_dim": 2, "epochs": 2, "members": 1, "random_state": 0}
    colored = VAEDetector(network, **settings).fit(images)
    flat = VAEDetector(network, **settings).fit(images.reshape(40, -1))
    mask = colored.anomaly_mask(images, 0.1)
    assert mask.shape == (40, 8, 8)
    np.testing.assert_array_equal(flat.anomaly_mask(images.reshape(40, -1), 0.1), mask)


def test_a_loaded_detector_marks_the_same_pixels(detector, tmp_path):
    detector.save(tmp_path / "grain.vae")
    loaded = vae_anomaly.load(tmp_path / "grain.vae")
    images = grain(3, 3)
    np.testing.assert_array_equal(loaded.anomaly_mask(images, 0.01), detector.anomaly_mask(images, 0.01))


@pytest.mark.parametrize("method", ["anomaly_mask", "anomaly_regions"])
def test_a_rate_is_refused_before_images_are_scored(method, detector, monkeypatch):
    monkeypatch.setattr(Fitted, "pixel_maps", lambda *_: pytest.fail("images are scored"))
    with pytest.raises(ValueError, match=r"false_alarm_rate must lie in \(0, 1\)"):
        getattr(detector, method)(grain(1, 1), false_alarm_rate=5.0)


def test_rows_of_a_table_have_no_masks():
    detector = VAEDetector(epochs=1).fit(grain(40, 0)[:, 0])
    with pytest.raises(ValueError, match="masks are of images, and the detector was fitted on rows"):
        detector.anomaly_mask(grain(40, 0)[:, 0])
