"""Images: from what users hand in to flat rows of pixels, and back."""

import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import stars, wide
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler

import vae_anomaly
from vae_anomaly import ConvNetwork, VAEDetector
from vae_anomaly.data.images import flatten
from vae_anomaly.data.lazy import LazyRows
from vae_anomaly.data.pixels import pixel_range
from vae_anomaly.likelihoods import Count, Gaussian, PixelGaussian

NETWORK = ConvNetwork((8, 8, 1), filters=(4,), dense_units=(8,))
QUICK = {"latent_dim": 2, "epochs": 2, "members": 1, "random_state": 0}


@pytest.fixture(scope="module")
def digits():
    """Gray images of 8 x 8 pixels from 0 to 255, in uint8."""
    bunch = load_digits()
    return (bunch.images[bunch.target == 3] * (255 / 16)).round().astype(np.uint8)


@pytest.fixture(scope="module")
def of_bytes(digits):
    return VAEDetector(NETWORK, **QUICK).fit(digits)


@pytest.fixture(scope="module")
def in_unit_interval(digits):
    return VAEDetector(NETWORK, likelihood="unit_gaussian", **QUICK).fit(digits)


# -- shapes -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("image_shape", [(2, 3), (2, 3, 4)])
def test_images_become_one_row_each(image_shape):
    images = np.arange(5 * np.prod(image_shape)).reshape(5, *image_shape)
    objects = np.empty(5, dtype=object)
    objects[:] = list(images)
    for given in (images, list(images), tuple(images), images.tolist(), objects):
        rows, shape = flatten(given)
        assert shape == image_shape
        np.testing.assert_array_equal(rows, [image.ravel() for image in images])


@pytest.mark.parametrize(
    "X",
    [
        *([[1, 2]], [[1], [1, 2]], [], ["a", "b"], np.ones((3, 2)), np.ones(3), "text"),
        *(pd.DataFrame({"a": [1]}), sparse.csr_array(np.eye(2)), np.array(["a", None], dtype=object)),
    ],
    ids=repr,
)
def test_anything_but_images_passes_as_it_is(X):
    rows, shape = flatten(X)
    assert rows is X
    assert shape is None


def test_images_of_several_sizes_are_refused_by_the_first_that_differs(digits):
    images = [digits[0], digits[1], digits[2, :7], digits[3, :6]]
    with pytest.raises(ValueError, match=r"image 0 has the shape \(8, 8\), image 2 \(7, 8\).*Resize"):
        VAEDetector().fit(images)


def test_arrays_of_five_axes_are_refused():
    with pytest.raises(ValueError, match=r"\(n, height, width, channels\).*received.*\(2, 3, 4, 1, 2\)"):
        VAEDetector().fit(np.zeros((2, 3, 4, 1, 2)))


@pytest.mark.parametrize("image_shape", [(1, 1), *map(wide, [(5, 7), (9, 4, 2), (3, 3, 4)])])
def test_images_of_any_shape_are_fitted_and_come_back(image_shape):
    images = np.random.RandomState(0).uniform(size=(20, *image_shape))
    detector = VAEDetector(ConvNetwork(filters=(3, 2), dense_units=(4,)), **QUICK).fit(images)
    assert np.isfinite(detector.score_samples(images)).all()
    assert detector.reconstruct(images).shape == images.shape
    assert detector.sample(3, random_state=0).shape == (3, *image_shape)


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 7), (4, 16), (64, 1)])
def test_images_of_another_shape_or_number_of_channels_are_refused_with_both(of_bytes, shape):
    with pytest.raises(ValueError) as raised:
        of_bytes.score_samples(np.zeros((5, *shape)))
    assert "fitted on images of shape (8, 8)" in str(raised.value)
    assert f"received images of shape {shape}" in str(raised.value)


def test_flat_rows_of_another_width_are_refused(of_bytes):
    with pytest.raises(ValueError, match="63 features, but VAEDetector is expecting 64"):
        of_bytes.score_samples(np.zeros((5, 63)))


@pytest.mark.parametrize("X", [np.float64(5), np.zeros(64), "pixels", None], ids=repr)
def test_what_is_no_array_of_images_is_refused(of_bytes, X):
    with pytest.raises((TypeError, ValueError)):
        of_bytes.score_samples(X)


def test_the_networks_shape_is_compared_if_training_rows_were_flat(digits):
    detector = VAEDetector(NETWORK, **QUICK).fit(digits.reshape(-1, 64))
    with pytest.raises(ValueError, match=r"images of shape \(8, 8, 1\); received .*\(4, 16\)"):
        detector.score_samples(digits.reshape(-1, 4, 16))


def test_one_image_is_scored_as_among_others_and_too_few_to_learn_from(of_bytes, digits):
    assert of_bytes.score_samples(digits[4:5])[0] == of_bytes.score_samples(digits)[4]
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        VAEDetector(**QUICK).fit(digits[:1])


@pytest.mark.parametrize("image_shape", [(8, 8), (8, 8, 1), wide((8, 8, 3))])
def test_one_image_without_an_axis_for_images_gets_a_hint(image_shape):
    images = np.random.RandomState(0).uniform(size=(6, *image_shape))
    detector = VAEDetector(ConvNetwork(filters=(2,), dense_units=()), **QUICK).fit(images)
    with pytest.raises(ValueError) as raised:
        detector.score_samples(images[0])
    assert str(raised.value).startswith(f"received an array of shape {image_shape}")
    assert "X[np.newaxis]" in str(raised.value)
    np.testing.assert_array_equal(detector.score_samples(images[0][np.newaxis]).shape, 1)


# -- the same model, however images come in -------------------------------------------------------------
FORMS = {
    "float64": lambda digits: digits / 255,
    "float32": lambda digits: digits.astype(np.float32) / np.float32(255),
    "with a channel": lambda digits: digits[..., np.newaxis],
    "a list": list,
    "a list of floats": lambda digits: list(digits / 255),
    "flat rows": lambda digits: digits.reshape(len(digits), -1),
    "flat rows of floats": lambda digits: digits.reshape(len(digits), -1) / 255,
    "sparse": lambda digits: sparse.csr_matrix(digits.reshape(len(digits), -1)),
    "a DataFrame": lambda digits: pd.DataFrame(digits.reshape(len(digits), -1)).rename(columns=str),
}


def test_all_values_of_a_byte_are_the_same_pixels_in_every_form(digits):
    every = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    detector = VAEDetector(NETWORK, **QUICK).fit(every)
    expected = detector.score_samples(every)
    for name in ("float64", "float32", "flat rows", "sparse"):
        np.testing.assert_array_equal(detector.score_samples(FORMS[name](every)), expected, err_msg=name)


@pytest.mark.parametrize("form", stars(FORMS, {"float64", "a list", "flat rows", "a DataFrame"}))
def test_every_form_gives_the_same_scores_in_fit_and_afterwards(of_bytes, digits, form):
    given, expected = form(digits), of_bytes.score_samples(digits)
    detector = VAEDetector(NETWORK, **QUICK).fit(given)
    np.testing.assert_array_equal(detector.score_samples(given), expected)
    if not hasattr(given, "columns"):  # scikit-learn warns of names that are there at one time only
        np.testing.assert_array_equal(detector.score_samples(digits), expected)
        np.testing.assert_array_equal(of_bytes.score_samples(given), expected)
    assert detector.offset_ == of_bytes.offset_


@pytest.mark.wide
def test_behind_scikit_learns_steps_flat_rows_give_the_identical_model(digits):
    images = digits[..., np.newaxis] / 255
    direct = VAEDetector("conv", **QUICK).fit(images)
    rows = digits.reshape(-1, 64)
    to_unit_interval = FunctionTransformer(lambda X: X / 255)
    flat = make_pipeline(to_unit_interval, VAEDetector(ConvNetwork((8, 8, 1)), **QUICK)).fit(rows)
    np.testing.assert_array_equal(flat.score_samples(rows), direct.score_samples(images))
    np.testing.assert_array_equal(flat[-1].members_[0].trainable, direct.members_[0].trainable)
    assert flat[-1].offset_ == direct.offset_


def test_small_images_take_a_dense_network_and_a_likelihood_of_pixels(digits):
    detector = VAEDetector(epochs=1).fit(digits)
    network, likelihood, *_ = detector.members_[0].specification
    assert repr(network) == "DenseNetwork(hidden_units=(128, 64))"
    assert isinstance(likelihood, PixelGaussian)
    assert (detector.patches_, detector.latent_dim_, len(detector.members_)) == (None, 16, 4)


def test_convolutions_follow_the_size_of_the_images(digits):
    network, likelihood, *_ = VAEDetector("conv", epochs=1, members=1).fit(digits).members_[0].specification
    assert (network.image_shape, network.filters, network.strides) == ((8, 8, 1), (16, 32), (2, 2))
    assert isinstance(likelihood, PixelGaussian)


@pytest.mark.parametrize(
    "settings", [{"likelihood": "gaussian"}, wide({"scaler": MinMaxScaler(clip=True)})], ids=str
)
def test_bytes_are_divided_before_a_scaler_too(digits, settings):
    bytes_, floats = (VAEDetector(NETWORK, **QUICK, **settings).fit(X) for X in (digits, digits / 255))
    np.testing.assert_array_equal(bytes_.score_samples(digits), floats.score_samples(digits / 255))
    assert bytes_.pixel_range_ == floats.pixel_range_ == (0, 1)


def test_what_comes_out_is_floats_from_0_to_1(of_bytes, digits):
    made = (of_bytes.reconstruct(digits), of_bytes.sample(5, 0, noise=False), of_bytes.expected(digits[:1]))
    for images, n_images in zip(made, (len(digits), 5, 1), strict=True):
        assert images.shape == (n_images, 8, 8)
        assert images.min() >= 0
        assert images.max() <= 1
        assert np.ptp(images) > 0
    np.testing.assert_array_equal(of_bytes.reconstruct(digits), of_bytes.reconstruct(digits / 255))


def test_the_callers_images_stay_as_they_are(of_bytes, digits):
    for images in (digits, digits / 255):
        before = images.copy()
        VAEDetector(NETWORK, **QUICK).fit(images).score_samples(images)
        np.testing.assert_array_equal(images, before)


@pytest.mark.wide
def test_folds_and_warm_starts_see_the_same_pixels(digits):
    settings = {**QUICK, "calibration": KFold(2), "warm_start": True}
    bytes_, floats = (VAEDetector(NETWORK, **settings) for _ in range(2))
    for _ in range(2):
        bytes_.fit(digits)
        floats.fit(digits / 255)
    np.testing.assert_array_equal(bytes_.calibration_scores_, floats.calibration_scores_)
    np.testing.assert_array_equal(bytes_.score_samples(digits), floats.score_samples(digits / 255))


def test_a_loaded_detector_divides_too(of_bytes, digits, tmp_path):
    of_bytes.save(tmp_path / "digits.vae")
    found = vae_anomaly.load(tmp_path / "digits.vae")
    np.testing.assert_array_equal(found.score_samples(digits), of_bytes.score_samples(digits))
    assert found.pixel_range_ == (0, 1)


# -- values -------------------------------------------------------------------------------------------
TOO_LARGE = {
    "float64": (lambda digits: digits * 1.0, "from 0 to 255 of dtype float64"),
    "float32": (lambda digits: digits.astype("f4"), "from 0 to 255 of dtype float32"),
    "integers": (lambda digits: digits.astype(int), "from 0 to 255 of dtype int64"),
    "256": (lambda digits: digits + np.uint16(1), "from 1 to 256 of dtype uint16"),
    "flat": (lambda digits: digits.reshape(-1, 64) * 1.0, "from 0 to 255 of dtype float64"),
    "sparse": (
        lambda digits: sparse.csr_array(digits.reshape(-1, 64) * 1.0),
        "from 0 to 255 of dtype float64",
    ),
    "around zero": (lambda digits: digits / 127.5 - 1, "from -1 to 1 of dtype float64"),
    "with gaps": (lambda digits: np.where(digits < 9, np.nan, digits), "from [0-9]+ to 255 of dtype float64"),
}


@pytest.mark.parametrize(("given", "received"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_likelihood_of_values_up_to_1_refuses_other_pixels_in_fit_and_afterwards(
    in_unit_interval, digits, given, received
):
    message = f"pixel values in \\[0, 1\\]; received values {received}: (divide by|hand in) .*, or choose "
    for refuse in (clone(in_unit_interval).fit, in_unit_interval.score_samples):
        with pytest.raises(ValueError, match=message):
            refuse(given(digits))


@pytest.mark.parametrize("kind", [name for name in TOO_LARGE if name != "around zero"])
def test_pixels_in_other_units_than_those_of_the_training_are_named(of_bytes, digits, kind):
    given, received = TOO_LARGE[kind]
    received = received.split(" of dtype")[0]
    with pytest.raises(ValueError, match=f"fitted on .* from 0 to 1; received values {received}: convert"):
        of_bytes.score_samples(given(digits))


ANY_RANGE = {
    "auto": {},
    "gaussian": {"likelihood": Gaussian()},
    "a scaler to [0, 1]": {"scaler": MinMaxScaler()},
    "another scaler": {"likelihood": "student_t", "scaler": StandardScaler()},
}


@pytest.mark.parametrize("settings", stars(ANY_RANGE, {"auto", "a scaler to [0, 1]"}))
def test_any_range_is_right_for_real_values_or_behind_a_scaler(digits, settings):
    images = digits * 1.0
    detector = VAEDetector(NETWORK, **QUICK, **settings).fit(images)
    assert np.isfinite(detector.score_samples(images)).all()
    assert detector.pixel_range_ == (0, 255)
    with pytest.raises(ValueError, match="values from 0 to 255; received uint8, which stands for"):
        detector.score_samples(digits)


def test_a_rounding_error_beyond_1_is_none(in_unit_interval, digits):
    images = digits / 255
    images[0, 0, 0] = 1 + 1e-7
    assert np.isfinite(in_unit_interval.score_samples(images)).all()
    images[0, 0, 0] = 1 + 1e-5
    with pytest.raises(ValueError, match="from 0 to 1.00001"):
        in_unit_interval.score_samples(images)


def test_booleans_and_whole_numbers_up_to_1_are_taken_as_they_are(digits):
    drawn = digits > 127
    scores = [
        VAEDetector(NETWORK, **QUICK).fit(images).score_samples(images)
        for images in (drawn, drawn.astype(int), drawn.astype(float))
    ]
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])


def test_bytes_that_hold_only_0_and_1_are_refused_in_fit_but_may_be_a_dark_image_later(of_bytes, digits):
    drawn = (digits > 127).astype(np.uint8)
    with pytest.raises(ValueError, match=r"divided by 255, and these hold only 0 and 1.*astype\(bool\)"):
        VAEDetector(NETWORK, **QUICK).fit(drawn)
    np.testing.assert_array_equal(of_bytes.score_samples(drawn), of_bytes.score_samples(drawn / 255))


@pytest.mark.wide
def test_counts_stay_counts(digits):
    detector = VAEDetector(NETWORK, likelihood=Count(), **QUICK).fit(digits)
    same = VAEDetector(NETWORK, likelihood=Count(), **QUICK).fit(digits.astype(float))
    np.testing.assert_array_equal(detector.score_samples(digits), same.score_samples(digits))
    assert detector.pixel_range_ == (0, 255)


def test_bytes_of_a_table_are_numbers(digits):
    table = digits.reshape(-1, 64)[:, :5]
    detector = VAEDetector(**QUICK).fit(table)
    np.testing.assert_array_equal(detector.score_samples(table), detector.score_samples(table.astype(float)))
    assert detector.pixel_range_ is None


@pytest.mark.parametrize("value", [0, wide(77), wide(255)])
def test_constant_images_are_learned(value):
    images = np.full((20, 5, 5), value, dtype=np.uint8)
    detector = VAEDetector(ConvNetwork(filters=(3,), dense_units=()), **QUICK).fit(images)
    assert np.isfinite(detector.score_samples(images)).all()
    assert (detector.predict(images) == 1).all()


@pytest.mark.wide
def test_missing_pixels_are_gaps_in_training_and_in_new_images(digits):
    images = digits / 255
    images[::3, 2:4, 5] = np.nan
    detector = VAEDetector(NETWORK, **{**QUICK, "epochs": 60}).fit(images)
    assert np.isfinite(detector.score_samples(images)).all()
    filled = detector.reconstruct(images)
    assert np.isfinite(filled).all()
    hidden = np.isnan(images)
    errors = [np.abs(fill - digits / 255)[hidden].mean() for fill in (filled, np.full_like(filled, 0.5))]
    assert errors[0] < errors[1]
    nothing = detector.score_samples(np.full((1, 8, 8), np.nan))
    assert 0.25 < (detector.score_samples(images) < nothing).mean() < 0.75


def test_a_pixel_that_no_training_image_has_is_named(digits):
    images = digits / 255
    images[:, 1, 2] = np.nan
    with pytest.raises(ValueError, match="column 10 holds no value in any"):
        VAEDetector(NETWORK, **QUICK).fit(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(pixel_range(np.full((2, 3), np.nan))).all()


def test_the_pixel_range_leaves_gaps_out_and_counts_zeros_that_are_not_stored():
    X = np.array([[0.5, np.nan], [0.25, 3.0]])
    assert pixel_range(X) == (0.25, 3.0)
    assert pixel_range(sparse.csr_array(X)) == (0.25, 3.0)
    assert pixel_range(sparse.csr_array([[0.0, 2.0]])) == (0.0, 2.0)
    assert pixel_range(sparse.csr_array((2, 2))) == (0.0, 0.0)


def test_a_detector_of_a_table_refuses_images(digits):
    detector = VAEDetector(epochs=1).fit(digits[:40].reshape(40, -1))
    with pytest.raises(ValueError, match=r"fitted on rows of a table; received images of shape \(8, 8\)"):
        detector.score_samples(digits[:3])


@pytest.mark.parametrize("likelihood", [{0: "gaussian"}, [("gaussian", [0])], "mixed"])
def test_images_have_one_likelihood(likelihood, digits):
    with pytest.raises(ValueError, match="is of a table's columns, and X holds images: give them one"):
        VAEDetector(epochs=1, likelihood=likelihood).fit(digits[:40])


def test_a_warm_start_takes_images_as_flat_rows_too(digits):
    detector = VAEDetector(epochs=1, warm_start=True, random_state=0).fit(digits[:40])
    detector.fit(digits[:40].reshape(40, -1))
    assert detector.reconstruct(digits[:3]).shape == (3, 8, 8)


def test_an_array_of_arrays_comes_back_as_images(digits):
    detector = VAEDetector(epochs=1, random_state=0).fit(digits[:40])
    array = np.empty(3, dtype=object)
    array[:] = list(digits[:3])
    for method in (detector.explain, detector.reconstruct):
        np.testing.assert_array_equal(method(array), method(digits[:3]))


@pytest.mark.parametrize("form", [list, lambda rows: pd.DataFrame(rows).astype("UInt8")])
def test_flat_bytes_are_bytes_in_every_form(form, of_bytes, digits):
    rows = np.round(255 * digits[:5]).astype(np.uint8).reshape(5, -1)
    np.testing.assert_array_equal(of_bytes.score_samples(form(rows)), of_bytes.score_samples(rows))


@pytest.mark.parametrize("shape", [(3, 16, 20), *map(wide, [(3, 16, 16), (1, 16, 16)])])
def test_images_whose_channels_come_first_are_warned_of(shape):
    X = np.random.RandomState(0).random_sample((20, *shape))
    with pytest.warns(UserWarning, match=r"height \d, width 16 and \d+ channels.*np.moveaxis\(X, 1, -1\)"):
        VAEDetector(**QUICK).fit(X)


@pytest.mark.parametrize("shape", [(16, 16, 3), (4, 16, 16), *map(wide, [(3, 4, 4), (1, 30, 5), (16, 16)])])
def test_other_images_are_not_warned_of(shape):
    VAEDetector(**QUICK).fit(np.random.RandomState(0).random_sample((20, *shape)))


def test_pixels_between_minus_one_and_one_are_told_the_way_to_the_unit_interval():
    X = np.random.RandomState(0).uniform(-1, 1, (20, 4, 4))
    detector = VAEDetector(likelihood="bernoulli", **QUICK)
    with pytest.raises(ValueError, match=r"received values from -0\.99.*hand in \(X \+ 1\) / 2"):
        detector.fit(X)
    detector.fit((X + 1) / 2)


def test_many_images_of_bytes_stay_bytes_until_they_are_trained_on(digits, monkeypatch):
    at_once = VAEDetector(NETWORK, **QUICK).fit(digits)
    made = []
    original = LazyRows.__init__
    monkeypatch.setattr(LazyRows, "__init__", lambda rows, *of: made.append(rows) or original(rows, *of))
    monkeypatch.setattr("vae_anomaly.data.preparation._MOST_NUMBERS", digits.size - 1)
    by_block = VAEDetector(NETWORK, **QUICK).fit(digits)
    assert made
    np.testing.assert_array_equal(by_block.score_samples(digits), at_once.score_samples(digits))
    assert by_block.offset_ == at_once.offset_
