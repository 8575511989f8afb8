"""Patches: large images as many small squares."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from conftest import wide
from scipy.ndimage import gaussian_filter
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold

import vae_anomaly
from vae_anomaly import Member, VAEDetector
from vae_anomaly.data.patches import Patches
from vae_anomaly.ensemble.decisions import decide
from vae_anomaly.ensemble.recipe import PATCH_MEMBERS, patch_members
from vae_anomaly.scoring import passes
from vae_anomaly.scoring.patches import PatchPasses, largest_mean, mirror, pool_tensor, usual_scores

QUICK = {"epochs": 1, "random_state": 0}


def numbered(image_shape, n_images=3):
    """Flat images in which every number is another one."""
    return np.arange(n_images * np.prod(image_shape), dtype=np.float32).reshape(n_images, -1)


# -- squares --------------------------------------------------------------------------------------------
SHAPES = [(13, 11, 2), (8, 8, 1), wide((8, 9, 3)), wide((31, 16, 1))]


def squares_of(images, patches):
    return np.concatenate(list(patches.blocks(images)))


@pytest.mark.parametrize("image_shape", SHAPES)
@pytest.mark.parametrize("side", [1, 4, wide(7), 8])
def test_squares_stand_half_a_side_apart_up_to_the_edges(image_shape, side):
    patches, images = Patches.of(image_shape, side), numbered(image_shape)
    squares = squares_of(images, patches).reshape(3, patches.n_patches, side, side, image_shape[2])
    expected = set()
    for extent in image_shape[:2]:
        steps = {*range(0, extent - side + 1, max(1, side // 2)), extent - side}
        expected = {(*e, s) for e in expected for s in sorted(steps)} if expected else {(s,) for s in steps}
    for image, of_image in zip(images.reshape(3, *image_shape), squares, strict=True):
        found = {
            tuple(int(i) for i in np.argwhere(image[..., 0] == square[0, 0, 0])[0]): square
            for square in of_image
        }
        assert set(found) == expected
        for (top, left), square in found.items():
            np.testing.assert_array_equal(square, image[top : top + side, left : left + side])


@pytest.mark.parametrize("image_shape", SHAPES)
def test_squares_laid_over_each_other_are_the_image_again(image_shape):
    patches, images = Patches.of(image_shape, 4), numbered(image_shape)
    np.testing.assert_allclose(patches.overlay(squares_of(images, patches)), images, rtol=1e-12)


def test_squares_come_in_blocks_whatever_their_number(monkeypatch):
    patches, images = Patches.of((13, 11, 2), 4), numbered((13, 11, 2))
    whole = squares_of(images, patches)
    for numbers in (1, 200, 32 * patches.n_patches):
        monkeypatch.setattr("vae_anomaly.core.rows._NUMBERS_AT_ONCE", numbers)
        blocks = list(patches.blocks(images))
        assert max(map(len, blocks)) <= max(1, numbers // patches.n_features)
        np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_positions_say_where_the_numbers_of_squares_stand():
    patches, images = Patches.of((13, 11, 2), 4), numbered((13, 11, 2))
    np.testing.assert_array_equal(images[:, patches.positions()].reshape(-1, 32), squares_of(images, patches))


def test_training_squares_lie_anywhere_in_any_image(monkeypatch):
    patches, images = Patches.of((6, 5, 1), 4), numbered((6, 5, 1))
    drawn = patches.draw(images, 500, seed=0)
    corners = {(i, top, left) for i in range(3) for top in range(3) for left in range(2)}
    found = set()
    for square in drawn.reshape(-1, 4, 4):
        image, top, left = np.argwhere(images.reshape(3, 6, 5) == square[0, 0])[0]
        np.testing.assert_array_equal(square, images.reshape(3, 6, 5)[image, top : top + 4, left : left + 4])
        found.add((image, top, left))
    assert found == corners
    monkeypatch.setattr("vae_anomaly.core.rows._NUMBERS_AT_ONCE", 1)  # image by image
    np.testing.assert_array_equal(patches.draw(images, 500, seed=0), drawn)


@pytest.mark.parametrize("pooling", [2, 3, wide(5)])
def test_pooled_pixels_are_means_of_the_known_pixels_of_blocks_that_fill_the_image(pooling):
    images = numbered((13, 11, 2))
    images[1, :40] = np.nan
    patches = Patches.of((13, 11, 2), 2).pooled(pooling)
    height, width, _ = patches.seen_shape
    assert (height, width) == (13 // pooling, 11 // pooling)
    pooled = patches.pool(images).reshape(3, height, width, 2)
    rows, columns = (np.arange(n + 1) * extent // n for n, extent in ((height, 13), (width, 11)))
    for i in range(height):
        for j in range(width):
            block = images.reshape(3, 13, 11, 2)[:, rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # blocks without a known pixel
                expected = np.nanmean(block, axis=(1, 2))
            np.testing.assert_allclose(pooled[:, i, j], expected, rtol=1e-6)
    down, across = patches.pooling_matrices()
    sums = down @ images.reshape(3, 13, 11, 2)[0, ..., 1] @ across
    n_pixels = down.sum(axis=1, keepdims=True) * across.sum(axis=0)
    np.testing.assert_allclose(pooled[0, ..., 1], sums / n_pixels, rtol=1e-6)


def test_squares_of_pooled_images_are_those_of_images_of_the_lower_resolution():
    images, patches = numbered((24, 21, 2)), Patches.of((24, 21, 2), 4).pooled(3)
    seen, lower = patches.pool(images), Patches.of((8, 7, 2), 4)
    np.testing.assert_array_equal(squares_of(images, patches), squares_of(seen, lower))
    np.testing.assert_array_equal(patches.draw(images, 50, seed=0), lower.draw(seen, 50, seed=0))
    np.testing.assert_array_equal(seen[:, patches.positions()].reshape(-1, 32), squares_of(images, patches))


def test_overlaid_numbers_of_pooled_squares_are_interpolated_between_the_pixels_that_are_seen():
    uneven = Patches.of((25, 20, 1), 4).pooled(3)
    for smoothing in (0.0, 2.0):
        constant = uneven.overlay(np.full((2 * uneven.n_patches, 16), 0.7), smoothing)
        np.testing.assert_allclose(constant, np.full((2, 25 * 20), 0.7))
    patches = Patches.of((24, 21, 1), 4).pooled(3)
    ramp = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None], (24, 21))
    again = patches.overlay(squares_of(ramp.reshape(1, -1), patches)).reshape(24, 21)
    np.testing.assert_allclose(again[1:-1], ramp[1:-1], rtol=1e-6)  # outside lie no pixels to go between


def test_images_smaller_than_a_square_are_refused():
    images = np.random.RandomState(0).uniform(size=(20, 40, 7))
    with pytest.raises(ValueError, match="patches=8 is the side .* 40 pixels high and 7 wide: set a smaller"):
        VAEDetector(patches=8, **QUICK).fit(images)
    pooled = VAEDetector(patches=4, members=[Member(pooling=2)], **QUICK)
    with pytest.raises(
        ValueError, match="pooling=2 sees images of 20 x 3 pixels, smaller ones than patches=4"
    ):
        pooled.fit(images)


# -- scores -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def grain():
    """Noise of 40 x 36 pixels."""
    return np.random.RandomState(0).normal(0.5, 0.1, size=(60, 40, 36))


@pytest.fixture(scope="module")
def detector(grain):
    return VAEDetector(epochs=2, random_state=0).fit(grain)


@pytest.fixture(scope="module")
def colored(grain):
    images = np.stack([grain, 1 - grain, grain[::-1]], axis=-1)[:30]
    return VAEDetector(patches=6, members=2, **QUICK).fit(images), images


def test_larger_images_are_seen_in_patches_and_small_ones_or_those_of_a_chosen_network_whole():
    def patches_of(image_shape, **settings):
        parameters = VAEDetector(**settings).get_params(deep=False)
        return decide(parameters, None, image_shape, n_rows=60).patches

    assert patches_of((40, 36)) == patches_of((40, 36, 1)) == Patches((40, 36, 1), 8)
    assert patches_of((33, 200, 3)) == Patches((33, 200, 3), 8)
    assert patches_of((33, 200, 3), patches=16, network="conv") == Patches((33, 200, 3), 16)
    for image_shape in ((40, 32, 3), (32, 40, 3), (8, 8), None):
        assert patches_of(image_shape) is None
    assert patches_of((40, 36), network="dense") is patches_of((40, 36), patches=None) is None


def test_a_model_of_patches_is_one_of_a_tables_rows(detector):
    network, likelihood, n_features, latent_dim, *_ = detector.members_[0].specification
    assert (repr(network), repr(likelihood)) == ("DenseNetwork()", "Gaussian()")
    assert (n_features, latent_dim, detector.score_) == (64, 16, "beta_elbo")
    assert [member.specification for member in detector.members_] == [detector.members_[0].specification] * 4


def of_squares(detector, images, ask=passes.score_rows):
    """What all members say of all squares of images, (n_members, n_images, n_squares), and what is usual."""
    fitted = detector._fitted
    squares = squares_of(fitted.rows(images.reshape(len(images), -1)), detector.patches_)
    said = ask(detector.members_, squares, detector.draws_, fitted.score, None)
    return said.reshape(len(said), len(images), -1, *said.shape[2:]), fitted.usual_scores


def test_the_score_is_the_mean_of_the_six_most_unusual_squares(detector, grain):
    scores, usual = of_squares(detector, grain[:5])
    by_member = []
    for of_member, (median, ratio) in zip(scores, usual, strict=True):
        unusual = np.where(of_member > median, of_member, median + ratio * (median - of_member))
        by_member.append(np.sort(unusual)[:, -6:].mean(axis=1))
    expected = -np.average(by_member, axis=0, weights=detector.member_weights_)
    np.testing.assert_allclose(detector.score_samples(grain[:5]), expected, rtol=1e-12)


def test_the_largest_mean_is_of_all_values_if_they_are_few():
    values = np.random.RandomState(0).normal(size=(4, 9))
    np.testing.assert_allclose(largest_mean(values), np.sort(values)[:, 3:].mean(axis=1))
    np.testing.assert_allclose(largest_mean(values[:, :2]), values[:, :2].mean(axis=1))
    usual = np.array([[0.3, 1.7]])
    for some in (values, values[:, :2]):
        np.testing.assert_allclose(pool_tensor(some, usual[0]), largest_mean(mirror(some[None], usual)[0]))


def test_too_probable_a_square_is_as_unusual_as_one_as_far_out_on_the_other_side():
    scores = np.concatenate([np.linspace(-4, 0, 5001), np.linspace(0, 2, 5001)])[None]
    ((median, ratio),) = usual = usual_scores(scores)
    np.testing.assert_allclose((median, ratio), (0, 0.5), atol=2e-3)
    mirrored = mirror(np.array([[-4.0, -2.0, 0.0, 1.0, 2.0]]), usual)
    np.testing.assert_allclose(mirrored, [[2, 1, 0, 1, 2]], atol=0.02)
    assert usual_scores(np.ones((1, 9))).tolist() == [[1, 1]]  # alike: either side counts
    np.testing.assert_allclose(mirror(2 - scores, usual_scores(2 - scores)).max(), 6, atol=0.02)


def test_images_score_the_same_bits_alone_and_together_and_in_blocks(detector, grain, monkeypatch):
    together = detector.score_samples(grain)
    np.testing.assert_array_equal(detector.score_samples(grain[7:8]), together[7:8])
    monkeypatch.setattr("vae_anomaly.core.rows._NUMBERS_AT_ONCE", 12 * 40 * 36)  # three images
    np.testing.assert_array_equal(detector.score_samples(grain[::-1]), together[::-1])


def test_the_same_seed_gives_the_same_scores(detector, grain):
    again = clone(detector).fit(grain)
    np.testing.assert_array_equal(again.score_samples(grain), detector.score_samples(grain))


def test_bytes_score_as_the_same_images_in_the_unit_interval(grain):
    of_bytes = (grain * 255).round().astype(np.uint8)
    one, other = (VAEDetector(members=1, **QUICK).fit(X) for X in (of_bytes, of_bytes / 255))
    np.testing.assert_array_equal(one.score_samples(of_bytes), other.score_samples(of_bytes / 255))
    np.testing.assert_array_equal(one.score_samples(of_bytes / 255), other.score_samples(of_bytes))


@pytest.mark.parametrize("of_colors", [False, wide(True)])
def test_the_largest_pixel_of_the_map_is_the_score(detector, colored, grain, of_colors):
    detector, images = colored if of_colors else (detector, grain)
    maps = detector.explain(images[:9])
    assert maps.shape == images[:9].shape
    largest = maps.reshape(9, 40 * 36, -1).sum(axis=-1).max(axis=-1)
    np.testing.assert_allclose(largest, -detector.score_samples(images[:9]), rtol=1e-12)


def test_maps_are_overlaid_shares_of_squares_smoothed_and_shifted_as_a_whole(detector, grain):
    patches = detector.patches_
    shares, usual = of_squares(detector, grain[:2], passes.shares)
    scores, _ = of_squares(detector, grain[:2])
    local = []
    for terms, of_member, (median, ratio) in zip(shares, scores, usual, strict=True):
        terms = np.where(of_member >= median, 1, -ratio)[..., np.newaxis] * terms
        unusual = np.where(of_member >= median, of_member, median + ratio * (median - of_member))
        terms += ((unusual - terms.sum(axis=-1)) / 64)[..., np.newaxis]
        local.append(gaussian_filter(64 * patches.overlay(terms).reshape(2, 40, 36), (0, 2, 2)))
    shift = detector.explain(grain[:2]) - np.average(local, axis=0, weights=detector.member_weights_)
    np.testing.assert_allclose(shift, shift[:, :1, :1] * np.ones((1, 40, 36)), atol=1e-8)


def test_the_bound_of_an_image_is_that_of_the_squares_that_fill_it(detector, grain):
    fitted = detector._fitted
    squares = squares_of(fitted.rows(grain[:4].reshape(4, -1)), detector.patches_)
    terms = passes.elbo_terms(detector.members_, squares, detector.draws_, None).sum(axis=-1)
    of_squares = np.average(terms, axis=0, weights=detector.member_weights_)
    assert detector.score(grain[:4]) == pytest.approx(-of_squares.mean() * 40 * 36 / 64)


def test_reconstructions_are_images_and_samples_are_patches(detector, colored, grain):
    assert detector.reconstruct(grain[:3]).shape == (3, 40, 36)
    assert detector.sample(2, random_state=0).shape == (2, 8, 8)
    assert detector.encode(grain[:3]).shape == (3, 16 * detector.patches_.n_patches)
    colored, images = colored
    assert colored.reconstruct(images[:3]).shape == (3, 40, 36, 3)
    assert colored.sample(2, random_state=0).shape == (2, 6, 6, 3)
    with pytest.raises(ValueError, match="is of rows of a table, and the members see patches"):
        detector.expected(grain[:1])


def test_confidence_is_that_of_the_most_unusual_squares(detector, grain):
    confidence = detector.confidence(grain[:9])
    assert ((confidence >= 0.5) & (confidence <= 1)).all()
    fitted = detector._fitted
    rows, asking = fitted.rows(grain[:3].reshape(3, -1)), PatchPasses(detector.patches_, fitted.usual_scores)
    found = asking.draw_errors(detector.members_, rows, detector.draws_, fitted.score, None)
    errors, usual = of_squares(detector, grain[:3], passes.draw_errors)
    scores, _ = of_squares(detector, grain[:3])
    errors *= np.where(scores < usual[:, :1, None], usual[:, 1:, None], 1)
    largest = np.argsort(mirror(scores, usual))[..., -6:]
    np.testing.assert_allclose(found, np.take_along_axis(errors, largest, axis=-1).mean(axis=-1))


def test_a_missing_pixel_is_left_out_of_the_squares_around_it(detector, grain):
    images = grain[:6].copy()
    images[:, 4:7, 10:13] = np.nan
    images[3] = np.nan
    assert np.isfinite(detector.score_samples(images)).all()
    filled = detector.reconstruct(images)
    assert np.isfinite(filled).all()


# -- scales -----------------------------------------------------------------------------------------------
SCALES = [Member(beta_factor=0.3), Member(pooling=3), Member(beta_factor=0.1)]


@pytest.fixture(scope="module")
def scales(colored):
    _, images = colored
    return VAEDetector(patches=6, members=SCALES, **QUICK).fit(images)


def test_larger_images_are_seen_at_lower_resolutions_too():
    def poolings(shorter_side, side=8):
        return [member.pooling for member in patch_members(shorter_side, side)]

    assert poolings(63) == [1] * 4
    assert poolings(64) == poolings(255) == [1] * 4 + [4] * 2
    assert poolings(256) == poolings(1023) == [1] * 4 + [4] * 2 + [16] * 2
    assert poolings(64, side=16) == [1] * 4
    parameters = VAEDetector().get_params(deep=False)
    members = decide(parameters, None, (90, 64, 3), n_rows=60).recipe.members
    assert [member.get_params() for member in members] == [m.get_params() for m in patch_members(64, 8)]


def test_members_of_each_resolution_score_squares_as_they_see_them(scales, colored):
    _, images = colored
    fitted, patches = scales._fitted, scales.patches_
    rows, by_member = fitted.rows(images[:4].reshape(4, -1)), []
    for position, pooling in enumerate([1, 3, 1]):
        squares = squares_of(rows, patches.pooled(pooling))
        scores = passes.score_rows(
            scales.members_[position : position + 1], squares, scales.draws_, fitted.score, None
        )
        usual = fitted.usual_scores[position : position + 1]
        by_member.append(largest_mean(mirror(scores.reshape(1, 4, -1), usual))[0])
    expected = -np.average(by_member, axis=0, weights=scales.member_weights_)
    np.testing.assert_allclose(scales.score_samples(images[:4]), expected, rtol=1e-12)
    assert (scales.member_weights_ > 0).all()


def test_maps_of_all_resolutions_have_the_score_as_their_largest_pixel(scales, colored):
    _, images = colored
    maps = scales.explain(images[:3])
    assert maps.shape == (3, 40, 36, 3)
    np.testing.assert_allclose(
        maps.sum(axis=-1).max(axis=(1, 2)), -scales.score_samples(images[:3]), rtol=1e-12
    )
    assert ((scales.confidence(images[:3]) >= 0.5) & (scales.confidence(images[:3]) <= 1)).all()


@pytest.mark.wide
def test_what_is_expected_sampled_and_bounded_is_told_by_those_that_see_every_pixel(scales, colored):
    _, images = colored
    sharp = VAEDetector(patches=6, members=SCALES, **QUICK).fit(images)
    weights = sharp.member_weights_ * [1, 0, 1]
    sharp.member_weights_ = weights / weights.sum()
    np.testing.assert_allclose(scales.reconstruct(images[:3]), sharp.reconstruct(images[:3]), rtol=1e-12)
    np.testing.assert_array_equal(scales.sample(5, random_state=0), sharp.sample(5, random_state=0))
    assert scales.score(images[:3]) == pytest.approx(sharp.score(images[:3]), rel=1e-12)


def test_a_detector_of_pooled_images_alone_tells_what_it_can(colored):
    _, images = colored
    detector = VAEDetector(patches=6, members=[Member(pooling=3)], **QUICK).fit(images)
    assert detector.reconstruct(images[:2]).shape == (2, 40, 36, 3)
    assert detector.sample(2, random_state=0).shape == (2, 6, 6, 3)
    assert np.isfinite(detector.score(images[:2]))


def test_scales_survive_files_and_refits(scales, colored, tmp_path):
    _, images = colored
    scales.save(tmp_path / "scales.vae")
    loaded = vae_anomaly.load(tmp_path / "scales.vae")
    np.testing.assert_array_equal(loaded.score_samples(images), scales.score_samples(images))
    assert loaded.member_poolings_ == (1, 3, 1)
    assert loaded.model_card()["model"]["members_that_pool_pixels"] == 1
    again = clone(scales).fit(images)
    np.testing.assert_array_equal(again.score_samples(images), scales.score_samples(images))
    again.set_params(warm_start=True).fit(images)
    assert np.isfinite(again.score_samples(images)).all()


@pytest.mark.wide
def test_stains_that_no_small_square_shows_are_found_at_a_lower_resolution():
    rng = np.random.RandomState(0)
    down, across = np.mgrid[:64, :64]

    def surfaces(n):
        slopes = rng.normal(0, 0.08, size=(2, n, 1, 1))
        light = (
            rng.normal(0, 0.05, size=(n, 1, 1)) + slopes[0] * (across / 32 - 1) + slopes[1] * (down / 32 - 1)
        )
        noise = gaussian_filter(rng.normal(size=(n, 64, 64)), (0, 1, 1))
        return 0.5 + light + 0.06 * noise / noise.std()

    normal = surfaces(80)
    stain = 0.15 * np.exp(-((across - 30) ** 2 + (down - 26) ** 2) / (2 * 5**2))
    images, anomaly = np.concatenate([normal, normal + stain]), np.repeat([0, 1], 80)
    every = VAEDetector(random_state=0).fit(surfaces(200))
    only_fine = VAEDetector(members=PATCH_MEMBERS, random_state=0).fit(surfaces(200))
    found, missed = (roc_auc_score(anomaly, -d.score_samples(images)) for d in (every, only_fine))
    assert found > missed + 0.1


# -- around it -----------------------------------------------------------------------------------------
def test_a_loaded_detector_sees_the_same_patches(colored, tmp_path):
    detector, images = colored
    detector.save(tmp_path / "patches.vae")
    loaded = vae_anomaly.load(tmp_path / "patches.vae")
    assert loaded.patches_ == Patches((40, 36, 3), 6)
    np.testing.assert_array_equal(loaded.score_samples(images), detector.score_samples(images))
    np.testing.assert_array_equal(loaded.explain(images[:2]), detector.explain(images[:2]))


@pytest.mark.wide
def test_an_exported_graph_scores_images_as_the_detector_does(colored, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    _, images = colored
    detector = VAEDetector(patches=6, members=SCALES, **QUICK).fit(images)
    images = images.copy()
    images[0, 3:5, 4] = np.nan
    images[1, :6, :6] = np.nan
    detector.to_onnx(tmp_path / "patches.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "patches.onnx")
    scores, labels = session.run(["score_samples", "label"], {"X": images})
    expected = detector.score_samples(images)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    apart = np.abs(expected - detector.offset_) > 1e-3 * (1 + np.abs(detector.offset_))
    np.testing.assert_array_equal(labels[apart], detector.predict(images)[apart])
    assert session.run(["label"], {"X": images[:0]})[0].shape == (0,)


def test_the_model_card_says_what_the_members_see(detector):
    assert detector.model_card()["model"]["patches"] == "8 x 8 pixels"


@pytest.mark.wide
def test_folds_see_the_same_bytes_and_patches(grain):
    of_bytes = (grain * 255).round().astype(np.uint8)
    settings = {**QUICK, "members": 1, "calibration": KFold(2)}
    one, other = (VAEDetector(**settings).fit(X) for X in (of_bytes, of_bytes / 255))
    np.testing.assert_array_equal(one.calibration_scores_, other.calibration_scores_)


@pytest.mark.wide
def test_large_images_cost_a_bounded_amount_of_memory_beyond_twice_themselves():
    """Of 3 to 48 MB of bytes, in a process of its own."""
    script = """
import resource, sys
import numpy as np
from vae_anomaly import VAEDetector
rng, peaks = np.random.default_rng(0), []
for side in (256, 1024):
    images = rng.integers(90, 160, (16, side, side, 3), np.uint8)
    detector = VAEDetector(epochs=1, members=1, random_state=0).fit(images)
    detector.score_samples(images[:2])
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(peaks[1] - peaks[0])
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(ran.stdout.split()[-1]) < 2 * 48 + 400


def test_a_warm_start_goes_on_with_the_patches(grain):
    detector = VAEDetector(warm_start=True, members=2, **QUICK).fit(grain)
    before = detector.members_[0].trainable
    detector.fit(grain)
    assert detector.patches_ == Patches((40, 36, 1), 8)
    assert not np.array_equal(detector.members_[0].trainable, before)


def test_what_is_of_columns_is_refused_of_patches(grain):
    with pytest.raises(ValueError, match="column_transform is of a table's columns"):
        VAEDetector(members=[Member(column_transform="yeo-johnson")], **QUICK).fit(grain)
    with pytest.raises(
        ValueError, match="a member with pooling sees patches of images at a lower resolution"
    ):
        VAEDetector(patches=None, members=[Member(pooling=2)], **QUICK).fit(grain)
    with pytest.raises(ValueError, match="patches=4 is of images: hand them in as an array of shape"):
        VAEDetector(patches=4, **QUICK).fit(grain[:, 0])
    with pytest.raises(ValueError, match="'unexplained_variance' is one of images"):
        VAEDetector(score="unexplained_variance", **QUICK).fit(grain)


def test_a_scaler_that_leaves_no_images_is_refused(grain):
    with pytest.raises(ValueError, match=r"PCA makes rows of 5 numbers of images of shape \(40, 36, 1\)"):
        VAEDetector(scaler=PCA(5), **QUICK).fit(grain)


@pytest.mark.wide
def test_a_network_of_images_takes_patches_too(grain):
    detector = VAEDetector("conv", patches=12, members=1, **QUICK).fit(grain)
    assert detector.members_[0].specification.network.image_shape == (12, 12, 1)
    assert np.isfinite(detector.score_samples(grain)).all()


@pytest.mark.parametrize("defect", ["no texture", *map(wide, ["scratch", "spot"])])
def test_small_defects_of_a_texture_are_found_and_shown(defect):
    rng = np.random.RandomState(0)
    across = np.arange(48)
    phases = rng.uniform(0, 2 * np.pi, size=(120, 1, 1))
    stripes = 0.5 + 0.2 * np.sin(2 * np.pi * across / 8 + phases) + 0.04 * rng.normal(size=(120, 48, 48))
    changed = np.zeros((48, 48), dtype=bool)
    changed[20:22, 12:30] = True
    if defect == "spot":
        changed[:] = np.hypot(across - 30, across[:, np.newaxis] - 18) < 4
    if defect == "no texture":
        changed[14:26, 20:32] = True
    damaged = np.where(changed, 0.5 if defect == "no texture" else stripes[80:] + 0.25, stripes[80:])
    detector = VAEDetector(epochs=4, random_state=0).fit(stripes[:80])
    scores = -detector.score_samples(np.concatenate([stripes[80:], damaged]))
    assert roc_auc_score(np.repeat([0, 1], 40), scores) > 0.99
    maps = detector.explain(damaged)
    assert roc_auc_score(np.broadcast_to(changed, maps.shape).ravel(), maps.ravel()) > 0.95
