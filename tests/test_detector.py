"""VAEDetector: parameters, results, and what it says about input that cannot work."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import wide
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    PolynomialFeatures,
    QuantileTransformer,
    StandardScaler,
)

from vae_anomaly import ConvNetwork, DenseNetwork, KerasNetwork, VAEDetector
from vae_anomaly.core.backend import keras, tf
from vae_anomaly.ensemble.recipe import DEFAULT_MEMBERS
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.scoring import SCORES
from vae_anomaly.scoring.score import Score


@pytest.fixture(scope="module")
def fitted(table):
    return VAEDetector(random_state=0, epochs=30).fit(table[0])


# -- results ------------------------------------------------------------------------------------------
def test_anomalies_score_lower_than_normal_rows(table, default_detector):
    X, y = table
    assert roc_auc_score(y, -default_detector.score_samples(X)) > 0.9


def test_training_changes_the_scores(table):
    X, y = table
    untrained = VAEDetector(epochs=1, learning_rate=1e-12, random_state=0).fit(X)
    trained = VAEDetector(epochs=250, random_state=0).fit(X)
    assert trained.score(X) > untrained.score(X) + 1
    assert roc_auc_score(y, -trained.score_samples(X)) > roc_auc_score(y, -untrained.score_samples(X)) + 0.1


@pytest.fixture(
    scope="module", params=["auto", wide("laplace"), "student_t", wide(Gaussian(scale="per_row"))], ids=repr
)
def of_a_likelihood(request, table):
    return VAEDetector(likelihood=request.param, epochs=20, random_state=0).fit(table[0])


@pytest.mark.parametrize("distance", [1e3, 1e9, 1e30])
def test_a_far_row_is_always_flagged(table, of_a_likelihood, distance):
    X, detector = table[0], of_a_likelihood
    for feature in range(X.shape[1]):
        for sign in (-1, 1):
            row = X[:1].copy()
            row[0, feature] += sign * distance * X[:, feature].std()
            assert np.isfinite(detector.score_samples(row)).all()
            assert detector.predict(row) == -1


@pytest.mark.parametrize("score", SCORES)
def test_farther_is_more_anomalous(table, score):
    X, _ = table
    detector = VAEDetector(score=score, epochs=20, random_state=0).fit(X)
    distances = np.array([10.0, 100, 1e3, 1e4, 1e6])
    rows = np.repeat(X.mean(axis=0)[None], len(distances), axis=0)
    rows[:, 0] += distances * X[:, 0].std()
    assert (np.diff(detector.score_samples(rows)) < 0).all()


def test_decision_and_prediction_follow_from_the_scores(fitted, table):
    X, _ = table
    scores = fitted.score_samples(X)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(fitted.decision_function(X), scores - fitted.offset_)
    np.testing.assert_array_equal(fitted.predict(X), np.where(scores - fitted.offset_ < 0, -1, 1))


def test_parameters_set_after_a_fit_wait_for_the_next_one(table):
    X, _ = table
    detector = VAEDetector(network=DenseNetwork((16,)), epochs=2, random_state=0).fit(X)
    before = detector.score_samples(X), detector.predict(X), detector.sample(3, random_state=0)
    changes = {"score": "reconstruction_error", "n_draws": 3, "contamination": 0.4, "scaler": None}
    detector.set_params(likelihood="laplace", latent_dim=1, beta=7, network__hidden_units=(3,), **changes)
    after = detector.score_samples(X), detector.predict(X), detector.sample(3, random_state=0)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_score_is_the_mean_elbo_whatever_score_and_beta_are(table):
    X, _ = table
    common = {"epochs": 5, "random_state": 0}
    elbo = VAEDetector(**common).fit(X)
    assert elbo.score(X) == pytest.approx(elbo.score_samples(X).mean(), rel=1e-6)
    error = VAEDetector(score="reconstruction_error", **common).fit(X)
    assert error.score(X) == elbo.score(X)
    assert type(elbo.score(X)) is float
    weighted = VAEDetector(beta=0.2, **common).fit(X)
    assert weighted.score(X) == pytest.approx(weighted.score_samples(X).mean(), rel=1e-6)


def test_beta_presses_the_posterior_towards_the_prior(table):
    kl = [
        VAEDetector(beta=b, epochs=40, random_state=0).fit(table[0]).history_["kl"][-1] for b in (0.1, 1, 10)
    ]
    assert kl[0] > 1.3 * kl[1] > 1.3 * kl[2]


def test_encode_gives_posterior_means_that_the_model_has(fitted, table):
    X, _ = table
    codes = fitted.encode(X)
    assert codes.shape == (500, fitted.latent_dim_)
    z_mean, _ = fitted.model_.encode(fitted.scaler_.transform(X).astype("f4"))
    np.testing.assert_allclose(codes, z_mean, atol=1e-4)


@pytest.mark.parametrize("n_draws", [3, wide(100)])
def test_reconstructions_are_expected_rows_in_the_units_of_x(table, n_draws):
    X = table[0] * [1, 10, 100, 1000, 1, 1] + [0, 5, 0, 0, -50, 1e4]
    detector = VAEDetector(n_draws=n_draws, epochs=250, random_state=0).fit(X)
    reconstructed = detector.reconstruct(X)
    assert reconstructed.shape == X.shape
    explained = 1 - ((X - reconstructed) ** 2).mean(axis=0) / X.var(axis=0)
    assert (explained > 0.3).all()
    # The mean over the shared draws, as the model computes it.
    model, rows = detector.model_, detector.scaler_.transform(X[:5]).astype("f4")
    location = model.infer(rows, detector.draws_[:, None]).parameters[0]
    expected = detector.scaler_.inverse_transform(np.mean(location, axis=0))
    np.testing.assert_allclose(reconstructed[:5], expected, rtol=1e-4, atol=1e-3)


def test_samples_look_like_the_training_rows(table):
    X, y = table
    X = X[y == 0] * [1, 10, 100, 1, 1, 1] + [0, 5, 0, 0, 0, 1e3]
    detector = VAEDetector(epochs=250, random_state=0).fit(X)
    drawn = detector.sample(4000, random_state=0)
    assert drawn.shape == (4000, 6)
    assert (np.abs(drawn.mean(axis=0) - X.mean(axis=0)) < 0.5 * X.std(axis=0)).all()
    np.testing.assert_allclose(drawn.std(axis=0), X.std(axis=0), rtol=0.4)
    np.testing.assert_array_equal(drawn, detector.sample(4000, random_state=0))
    assert not np.array_equal(drawn, detector.sample(4000, random_state=1))


def test_history_holds_the_parts_of_the_loss_epoch_by_epoch(table):
    detector = VAEDetector(epochs=7, beta=0.5, validation_fraction=0.2, random_state=0).fit(table[0])
    history = detector.history_
    assert {len(values) for values in history.values()} == {7}
    np.testing.assert_allclose(
        history["loss"], np.add(history["reconstruction"], 0.5 * np.array(history["kl"])), rtol=1e-5
    )
    np.testing.assert_allclose(
        history["val_loss"],
        np.add(history["val_reconstruction"], 0.5 * np.array(history["val_kl"])),
        rtol=1e-5,
    )
    assert history["loss"][-1] < history["loss"][0]


def test_the_model_is_a_keras_model_that_can_be_exported(fitted, table, tmp_path):
    fitted.model_.export(tmp_path / "exported", verbose=False)
    rows = fitted.scaler_.transform(table[0][:5]).astype("f4")
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    # Both draw z anew, by generators that begin alike.
    np.testing.assert_allclose(exported.serve(rows), fitted.model_(rows), rtol=1e-5)


def test_the_model_is_a_keras_model_that_can_be_saved(fitted, table, tmp_path):
    model = fitted.model_
    assert isinstance(model, keras.Model)
    model.save(tmp_path / "vae.keras")
    loaded = keras.models.load_model(tmp_path / "vae.keras")
    rows = table[0][:4].astype("f4")
    np.testing.assert_array_equal(model.encode(rows)[0], loaded.encode(rows)[0])


def test_automatic_settings(fitted, table):
    assert fitted.latent_dim_ == 6
    assert isinstance(fitted.scaler_, StandardScaler)
    wide = VAEDetector(epochs=1, random_state=0).fit(np.random.RandomState(0).normal(size=(50, 20)))
    assert wide.latent_dim_ == 8
    binary = VAEDetector(likelihood="bernoulli", epochs=1).fit(np.eye(5))
    assert binary.scaler_ is None


@pytest.mark.wide
def test_automatic_epochs_make_about_a_thousand_steps_or_two_thousand_that_may_stop(table, default_detector):
    one = {"network": DenseNetwork((8,)), "n_draws": 1, "members": 1, "random_state": 0}
    assert len(VAEDetector(early_stopping=False, **one).fit(table[0]).history_["loss"]) == 250
    never = VAEDetector(patience=10_000, **one).fit(table[0])
    assert len(never.history_["loss"]) == 500  # of 400 rows, in 4 batches
    assert len(default_detector.history_["loss"]) < 500


# -- scalers ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "scaler",
    [StandardScaler(), MinMaxScaler(), QuantileTransformer(n_quantiles=50), PCA(3), None],
    ids=lambda scaler: type(scaler).__name__,
)
def test_any_transformer_can_scale(table, scaler):
    X, _ = table
    detector = VAEDetector(scaler=scaler, epochs=3, random_state=0).fit(X)
    assert detector.scaler is scaler
    assert scaler is None or not hasattr(scaler, "n_features_in_")
    assert detector.score_samples(X).shape == (500,)
    assert detector.reconstruct(X).shape == X.shape


def test_a_scaler_that_works_in_place_leaves_the_callers_rows_alone(table):
    X = table[0].copy()
    detector = VAEDetector(scaler=StandardScaler(copy=False), contamination=0.1, epochs=2, random_state=0)
    assert (detector.fit_predict(X) == -1).sum() == 50
    np.testing.assert_array_equal(X, table[0])


def test_a_divergence_in_the_last_step_is_noticed(table):
    with pytest.raises(FloatingPointError, match="diverged"):
        VAEDetector(epochs=1, learning_rate=1e20, batch_size=512, random_state=0).fit(table[0])


def test_a_scaler_without_inverse_says_so_when_one_is_needed(table):
    class OneWay(FunctionTransformer):
        inverse_transform = property()

    detector = VAEDetector(scaler=OneWay(), epochs=1, random_state=0).fit(table[0])
    with pytest.raises(TypeError, match="OneWay has none"):
        detector.reconstruct(table[0])


def test_a_scaler_that_makes_infinities_is_named_with_the_column():
    X = pd.DataFrame({"a": [1.0, 2, 3, 4], "b": [1.0, 0, 3, 4]})
    detector = VAEDetector(scaler=FunctionTransformer(lambda X: 1 / X), epochs=1)
    with (
        np.errstate(divide="ignore"),
        pytest.raises(ValueError, match=r"FunctionTransformer turns column 'b' \(row 1 holds 0\) into inf"),
    ):
        detector.fit(X)


# -- images -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return bunch.images[bunch.target == 3] / 16


@pytest.fixture(scope="module")
def of_digits(digits):
    """Trained for as long as it takes to be of some use, on the first 120."""
    return VAEDetector(epochs=60, random_state=0).fit(digits[:120])


@pytest.fixture(scope="module")
def quick_of_digits(digits):
    return VAEDetector(epochs=3, random_state=0).fit(digits)


@pytest.mark.wide
def test_images_and_flat_rows_give_the_identical_model(digits):
    settings = {"epochs": 3, "members": 1, "random_state": 0}
    images = VAEDetector("conv", **settings).fit(digits)
    with_channel = VAEDetector("conv", **settings).fit(digits[..., None])
    flat = VAEDetector(network=ConvNetwork(image_shape=(8, 8, 1)), **settings)
    flat.fit(digits.reshape(-1, 64))
    expected = images.score_samples(digits)
    np.testing.assert_array_equal(with_channel.score_samples(digits[..., None]), expected)
    np.testing.assert_array_equal(flat.score_samples(digits.reshape(-1, 64)), expected)


@pytest.mark.wide
def test_images_come_back_in_the_form_they_had(digits, quick_of_digits):
    detector = quick_of_digits
    gray, with_channel, flat = digits[:5], digits[:5, ..., None], digits[:5].reshape(5, 64)
    for images in (gray, with_channel, flat):
        assert detector.reconstruct(images).shape == images.shape
    assert detector.sample(2, random_state=0).shape == (2, 8, 8)
    assert detector.encode(digits).shape == (len(digits), 16)
    of_channels = clone(detector).fit(digits[..., None])
    assert of_channels.sample(2, random_state=0).shape == (2, 8, 8, 1)


def test_images_have_a_likelihood_a_score_and_a_scaler_of_their_own_flat_or_not(digits):
    flat = VAEDetector(network=ConvNetwork(image_shape=(8, 8, 1)), epochs=1, members=1).fit(
        digits.reshape(-1, 64)
    )
    for detector in (flat, VAEDetector(epochs=1).fit(digits), VAEDetector("dense", epochs=1).fit(digits)):
        assert repr(detector.members_[0].specification.likelihood) == "PixelGaussian()"
        assert detector.score_ == "unexplained_variance"
        assert repr(detector.scaler_) == "PixelScaler()"
    table = VAEDetector("dense", epochs=1).fit(digits.reshape(-1, 64))
    assert repr(table.members_[0].specification.likelihood) == "Gaussian()"
    assert table.score_ == "elbo"
    assert isinstance(table.scaler_, StandardScaler)


def test_an_image_that_is_in_part_missing_is_scored_by_the_rest(digits, of_digits):
    detector = of_digits
    gaps = digits[120:].copy()
    gaps[:, :2] = np.nan
    complete, incomplete = detector.score_samples(digits[120:]), detector.score_samples(gaps)
    assert np.corrcoef(complete, incomplete)[0, 1] > 0.8
    assert abs(np.median(complete) - np.median(incomplete)) < np.ptp(complete) / 4


def test_samples_of_images_have_no_noise_unless_it_is_asked_for(quick_of_digits, fitted):
    detector = quick_of_digits
    rows, means = (detector.sample(500, random_state=0, noise=noise) for noise in (True, False))
    noise = (rows - means)[(means > 0) & (means < 1)]
    assert noise.std() == pytest.approx(detector.scaler_.scale_[0] * np.sqrt(64 / 784), rel=0.1)
    np.testing.assert_array_equal(detector.sample(500, random_state=0), means)
    np.testing.assert_array_equal(fitted.sample(9, 0), fitted.sample(9, 0, noise=True))
    with pytest.raises(ValueError, match="noise must be 'auto', True or False; received 'some'"):
        detector.sample(noise="some")


def test_samples_without_noise_are_expectations(digits):
    detector = VAEDetector(epochs=3, members=1, random_state=0).fit(digits)
    means = detector.sample(500, random_state=0)
    vae = detector.model_
    prior = np.random.RandomState(0).normal(size=(2000, 16)).astype("f4")
    decoded = np.asarray(vae.likelihood.mean(vae.decode(prior)))
    assert means.mean() == pytest.approx(detector.scaler_.inverse_transform(decoded).mean(), rel=0.05)


def test_other_digits_score_lower(digits, of_digits):
    bunch = load_digits()
    others = bunch.images[bunch.target != 3] / 16
    detector = of_digits
    scores = np.r_[detector.score_samples(digits[120:]), detector.score_samples(others)]
    assert roc_auc_score(np.arange(len(scores)) >= len(digits) - 120, -scores) > 0.9


def test_images_of_another_shape_are_refused(digits):
    detector = VAEDetector(epochs=1).fit(digits)
    with pytest.raises(ValueError, match=r"fitted on images of shape \(8, 8\); received .*\(4, 16\)"):
        detector.predict(digits.reshape(-1, 4, 16))


# -- DataFrames ---------------------------------------------------------------------------------------
def test_a_data_frame_is_scored_like_its_array(table):
    X, _ = table
    frame = pd.DataFrame(X, columns=list("abcdef"))
    detector = VAEDetector(epochs=2, random_state=0).fit(frame)
    assert list(detector.feature_names_in_) == list("abcdef")
    assert detector.n_features_in_ == 6
    same = VAEDetector(epochs=2, random_state=0).fit(X)
    np.testing.assert_array_equal(detector.score_samples(frame), same.score_samples(X))


def test_other_column_names_are_refused(table):
    frame = pd.DataFrame(table[0], columns=list("abcdef"))
    detector = VAEDetector(epochs=1, random_state=0).fit(frame)
    with pytest.raises(ValueError, match="(?s)feature names should match.*- g"):
        detector.predict(frame.rename(columns={"f": "g"}))
    with pytest.raises(ValueError, match="same order"):
        detector.predict(frame[list("bacdef")])


@pytest.mark.parametrize(
    "dtype", [np.int64, np.int8, np.uint8, bool, np.float16, "Float64", "Int32", "boolean"]
)
def test_integers_and_booleans_are_numbers(dtype):
    values = np.random.RandomState(0).randint(0, 2, size=(40, 3))
    X = pd.DataFrame(values).astype(dtype) if isinstance(dtype, str) else values.astype(dtype)
    detector = VAEDetector(epochs=1, random_state=0).fit(X)
    assert np.isfinite(detector.score_samples(X)).all()


# -- the repr -----------------------------------------------------------------------------------------
def test_the_repr_names_what_differs_from_the_defaults():
    detector = VAEDetector(network=DenseNetwork(hidden_units=(8,)), score="iwae", beta=0.5)
    assert repr(detector) == "VAEDetector(beta=0.5, network=DenseNetwork(hidden_units=(8,)), score='iwae')"


def test_the_score_parameter_and_the_score_method_live_side_by_side(fitted, table):
    assert fitted.get_params()["score"] == "auto"
    changed = VAEDetector().set_params(score="iwae")
    assert changed.get_params()["score"] == "iwae"
    assert callable(changed.score)
    assert callable(VAEDetector.score)
    assert isinstance(fitted.score(table[0]), float)


# -- bad input ----------------------------------------------------------------------------------------
def frame_with(value):
    frame = pd.DataFrame(np.random.RandomState(0).normal(size=(20, 3)), columns=["a", "b", "c"])
    frame = frame.astype(object) if isinstance(value, str) else frame
    frame.loc[3, "b"] = value
    return frame


BAD_INPUT = {
    "a column of NaN": (frame_with(np.nan).assign(b=np.nan), ValueError, "column 'b' holds no value"),
    "infinity": (frame_with(np.inf), ValueError, "infinity"),
    "minus infinity": (frame_with(-np.inf), ValueError, "infinity"),
    "complex": (
        np.ones((20, 3)) * 1j,
        ValueError,
        "column 0 holds 1j in row 0, .*Complex data not supported",
    ),
    "strings": (
        np.array([["red"], ["blue"]]),
        ValueError,
        "column 0 holds 'red' in row 0, which is not a number",
    ),
    "a list in a list": (
        [[1.0, [2.0]]] * 3,
        ValueError,
        r"column 1 holds \[2.0\] in row 0, which is not a number",
    ),
    "rows of two lengths": ([[1.0, 2.0], [1.0]], ValueError, "row 0 has 2 values and row 1 has 1"),
    "numbers and strings": (
        frame_with("red"),
        ValueError,
        "column 'b' holds values of several types, .*'red'",
    ),
    "sparse infinity": (sparse.csr_array(np.diag([1, np.inf])), ValueError, "infinity"),
    "no rows": (np.empty((0, 3)), ValueError, r"0 sample\(s\)"),
    "no columns": (np.empty((5, 0)), ValueError, r"0 feature\(s\)"),
    "one dimension": (np.arange(10.0), ValueError, "Expected 2D array, got 1D array"),
    "no images": (np.empty((0, 8, 8)), ValueError, r"0 sample\(s\)"),
    "one row": (np.ones((1, 3)), ValueError, r"1 sample\(s\)"),
    "overflowing": (np.array([[1e300], [-1e300], [0.0]]), ValueError, "column 0 holds 1e[+]300 in row 0"),
}


@pytest.mark.parametrize(("X", "error", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_rows_are_refused_and_an_earlier_fit_stays_usable(table, X, error, message):
    detector = VAEDetector(epochs=2, random_state=0).fit(table[0])
    before, attributes = detector.score_samples(table[0]), set(vars(detector))
    with pytest.raises(error, match=message):
        detector.fit(X)
    assert set(vars(detector)) == attributes
    np.testing.assert_array_equal(detector.score_samples(table[0]), before)


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (np.ones((3, 5)), ValueError, "X has 5 features, but VAEDetector is expecting 6"),
        (np.ones(6), ValueError, "Expected 2D array"),
        (np.empty((0, 6)), ValueError, r"0 sample\(s\)"),
        (sparse.csr_array(np.eye(5)), ValueError, "X has 5 features"),
    ],
)
def test_bad_rows_are_refused_at_scoring(fitted, X, error, message):
    for method in ("score_samples", "predict", "decision_function", "score", "encode", "reconstruct"):
        with pytest.raises(error, match=message):
            getattr(fitted, method)(X)


@pytest.mark.parametrize(
    "method", ["score_samples", "predict", "decision_function", "score", "encode", "reconstruct"]
)
def test_an_unfitted_detector_says_so(method):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(VAEDetector(), method)(np.ones((3, 2)))


def test_an_unfitted_detector_has_neither_samples_nor_a_model():
    with pytest.raises(NotFittedError):
        VAEDetector().sample(3)
    with pytest.raises(NotFittedError):
        VAEDetector().model_  # noqa: B018


@pytest.mark.parametrize("likelihood", ["bernoulli", wide("continuous_bernoulli"), wide("unit_gaussian")])
def test_values_outside_the_support_are_named_with_their_column(likelihood):
    X = pd.DataFrame({"a": [0.0, 1, 1], "b": [0.5, 0.5, 1.5]})
    with pytest.raises(ValueError, match=r"MinMaxScaler\(clip=True\).*column 'b' holds 1.5 in row 2"):
        VAEDetector(likelihood=likelihood).fit(X)
    detector = VAEDetector(likelihood=likelihood, epochs=1, invalid="raise").fit(X / 2)
    with pytest.raises(ValueError, match="column 'a' holds -0.2 in row 1"):
        detector.predict(pd.DataFrame({"a": [0.1, -0.2], "b": [0.1, 0.1]}))


def test_values_outside_the_support_are_named_as_the_scaler_names_its_columns():
    X = pd.DataFrame({"a": [0.0, 0.5, 1], "b": [0.0, 2, 0]})
    swap = ColumnTransformer([("second", "passthrough", [1]), ("first", "passthrough", [0])])
    with pytest.raises(ValueError, match="column 'second__b' holds 2 in row 1"):
        VAEDetector(likelihood="bernoulli", scaler=swap).fit(X)
    powers = PolynomialFeatures(2, include_bias=False)
    with pytest.raises(ValueError, match=r"column 'b' holds 2 in row 1"):
        VAEDetector(likelihood="bernoulli", scaler=powers).fit(X)
    unnamed = FunctionTransformer(lambda X: np.c_[X, -X])
    with pytest.raises(ValueError, match="column 1 holds 2 in row 1"):
        VAEDetector(likelihood="bernoulli", scaler=unnamed).fit(X)


def test_a_scaler_that_returns_a_sparse_matrix_is_as_good_as_its_dense_twin():
    X = np.random.RandomState(0).randint(3, size=(40, 2))
    sparse_codes, dense_codes = (
        VAEDetector(scaler=OneHotEncoder(sparse_output=s), epochs=1, random_state=0).fit(X)
        for s in (True, False)
    )
    np.testing.assert_array_equal(sparse_codes.score_samples(X), dense_codes.score_samples(X))


def test_a_fitted_model_shares_nothing_with_the_users_parameters(table):
    network = DenseNetwork(hidden_units=[11])  # of no other test here: its architecture is not there yet
    detector = VAEDetector(network=network, epochs=1, random_state=0).fit(table[0])
    before = detector.score_samples(table[0])
    network.hidden_units.append(4)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(detector)).score_samples(table[0]), before)
    assert detector.members_[0].specification.network.hidden_units == [11]


QUICK_AS_DEFAULT = {"network": DenseNetwork((16,)), "members": DEFAULT_MEMBERS[:2], "epochs": 60}


@pytest.mark.parametrize(
    ("score", "settings", "seed"),
    [
        ("elbo", QUICK_AS_DEFAULT, 0),
        wide("iwae", QUICK_AS_DEFAULT, 0),
        wide("reconstruction_probability", QUICK_AS_DEFAULT, 0),
        wide("beta_elbo", QUICK_AS_DEFAULT, 0),
        ("reconstruction_error", QUICK_AS_DEFAULT, 0),
    ]
    + [wide(score, {}, seed) for score in SCORES for seed in range(3)],
)
def test_a_far_row_among_the_training_rows_is_flagged(score, settings, seed):
    X = np.random.RandomState(seed).normal(size=(300, 5))
    X[0] = [0, 0, -1000, 0, 0]
    detector = VAEDetector(score=score, random_state=seed, **settings).fit(X)
    assert detector.score_samples(X).argmin() == 0
    assert detector.predict(X[:1]) == -1


WRONG = {
    "network": ("densee", r"network must be one of \['auto', 'dense', 'conv'\].*'densee'"),
    "likelihood": ("normal", "likelihood must be one of .*'gaussian'.*'student_t'.*'normal'"),
    "score": ("entropy", "score must be one of .*'elbo', 'iwae', 'reconstruction_probability'.*'entropy'"),
    "latent_dim": (0, "latent_dim.*Got 0"),
    "patches": (0, "patches.*Got 0"),
    "n_draws": (0, r"n_draws.*\[1, inf\).*Got 0"),
    "posterior": ("normal", "posterior must be one of .*'gaussian'.*received 'normal'"),
    "prior": ("normal", "prior must be one of .*'standard'.*received 'normal'"),
    "objective": ("mse", r"objective must be one of \['elbo', 'iwae'\].*received 'mse'"),
    "n_training_draws": (0, "n_training_draws"),
    "beta": (-1, "beta"),
    "kl_warm_up": (1.5, "kl_warm_up"),
    "free_bits": (-0.1, "free_bits"),
    "epochs": (0, "epochs"),
    "batch_size": (0, "batch_size"),
    "learning_rate": (0.0, "learning_rate"),
    "learning_rate_schedule": ("step", "learning_rate_schedule.*(?=.*'cosine')(?=.*'linear')"),
    "gradient_clip_norm": (0, "gradient_clip_norm"),
    "masked_fraction": (1, "masked_fraction"),
    "members": (0, "members"),
    "validation_fraction": (1.0, "validation_fraction"),
    "early_stopping": ("yes", "early_stopping"),
    "patience": (0, "patience"),
    "contamination": (0.6, r"contamination.*\(0.0, 0.5\].*Got 0.6"),
    "threshold": ("tail", "threshold must be one of .*'conformal'.* received 'tail'"),
    "calibration": (1, "calibration"),
    "calibrate_intervals": ("yes", "calibrate_intervals"),
    "scaler": ("minmax", "scaler"),
    "invalid": ("ignore", "invalid"),
    "warm_start": ("no", "warm_start"),
    "max_samples": (1, "max_samples"),
    "callbacks": (print, "callbacks"),
    "checkpoint": (3, "checkpoint"),
    "jit_compile": ("always", "jit_compile"),
    "device": (0, "device"),
    "random_state": ("seed", "random_state"),
    "verbose": ("loud", "verbose"),
}


@pytest.mark.parametrize(("parameter", "value", "message"), [(k, *v) for k, v in WRONG.items()], ids=WRONG)
def test_a_wrong_parameter_is_named_with_what_is_possible(table, parameter, value, message):
    with pytest.raises(ValueError, match=message):
        VAEDetector(**{parameter: value}).fit(table[0])


def test_every_parameter_is_checked():
    assert set(WRONG) == set(VAEDetector().get_params())


@pytest.mark.parametrize("n_samples", [0, -1, 2.5, "many"])
def test_a_number_of_samples_that_is_none_is_refused(fitted, n_samples):
    with pytest.raises(ValueError, match=f"n_samples must be a positive integer; received {n_samples!r}"):
        fitted.sample(n_samples)


def test_a_split_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(ValueError, match="validation_fraction=0.9 leaves none of the 2 rows"):
        VAEDetector(validation_fraction=0.9).fit([[0.0, 1.0], [1.0, 0.0]])


def test_contamination_zero_is_refused(table):
    with pytest.raises(ValueError, match="contamination"):
        VAEDetector(contamination=0.0).fit(table[0])


def test_early_stopping_without_held_out_rows_is_refused(table):
    with pytest.raises(ValueError, match="set validation_fraction"):
        VAEDetector(early_stopping=True, validation_fraction=0.0).fit(table[0])


def test_free_bits_with_importance_weights_are_refused(table):
    with pytest.raises(ValueError, match="objective='elbo'"):
        VAEDetector(objective="iwae", free_bits=0.1).fit(table[0])


def test_a_keras_model_whose_shapes_do_not_fit_is_refused(table):
    encoder, decoder = DenseNetwork((8,)).build(5, 2, 1)
    with pytest.raises(ValueError, match=r"encoder must have input shape \(None, 6\).*received \(None, 5\)"):
        VAEDetector(network=KerasNetwork(encoder, decoder)).fit(table[0])


def test_an_image_shape_that_does_not_fit_is_refused(table):
    with pytest.raises(ValueError, match="product of 6"):
        VAEDetector(network=ConvNetwork(image_shape=(2, 2, 1)), likelihood="gaussian").fit(table[0])


# -- hard but legitimate input ------------------------------------------------------------------------
def rng():
    return np.random.RandomState(0)


HARD = {
    "two rows": np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]),
    "fewer rows than a batch": rng().normal(size=(20, 3)),
    "one more row than a batch": rng().normal(size=(129, 3)),
    "one feature": rng().normal(size=(50, 1)),
    "more features than rows": rng().normal(size=(10, 200)),
    "constant columns": np.c_[rng().normal(size=(50, 1)), np.full((50, 2), 7.0)],
    "only constant columns": np.full((50, 3), 7.0),
    "duplicate columns": np.repeat(rng().normal(size=(50, 1)), 3, axis=1),
    "duplicate rows": np.repeat(rng().normal(size=(2, 3)), 50, axis=0),
    "values of 1e30": rng().normal(size=(50, 3)) * 1e30,
    "one value of 1e30": np.r_[rng().normal(size=(50, 3)), [[1e30, 0, 0]]],
    "tiny values": rng().normal(size=(50, 3)) * 1e-30,
    "heavy tails": rng().standard_cauchy(size=(200, 3)) ** 3,
}


@pytest.mark.parametrize("X", HARD.values(), ids=HARD)
def test_hard_input_is_scored_finitely(X):
    detector = VAEDetector(epochs=5, random_state=0).fit(X)
    assert np.isfinite(detector.score_samples(X)).all()
    assert np.isfinite(detector.history_["loss"]).all()
    assert np.isfinite(detector.reconstruct(X)).all()


def test_a_training_that_diverges_says_why_and_leaves_the_earlier_fit(table):
    detector = VAEDetector(epochs=3, random_state=0).fit(table[0])
    before = detector.score_samples(table[0])
    with pytest.raises(FloatingPointError, match=r"diverged.*Lower learning_rate.*column 2 .* up to 1e\+14"):
        detector.set_params(scaler=None).fit(table[0] * [1, 1, 1e30, 1, 1, 1])
    np.testing.assert_array_equal(detector.score_samples(table[0]), before)


def test_a_constant_column_that_changes_is_an_anomaly():
    X = np.c_[rng().normal(size=(200, 2)), np.full(200, 7.0)]
    detector = VAEDetector(epochs=250, random_state=0).fit(X)
    changed = X[:20] + [0, 0, 1]
    assert (detector.predict(changed) == -1).all()


# -- a score, a network, a likelihood of one's own -----------------------------------------------------
def test_a_score_of_ones_own(table):
    latent_size = Score(
        lambda vae, x, inferred: inferred.z[..., 0] * 0, lambda values, kl: keras.ops.sqrt(kl)
    )
    detector = VAEDetector(score=latent_size, epochs=5, random_state=0).fit(table[0])
    scores = detector.score_samples(table[0])
    assert (scores < 0).all()
    assert scores.std() > 0


def test_a_users_keras_models_train_and_stay_as_they_are(table):
    x = keras.Input((6,))
    hidden = keras.layers.Dense(16, activation="gelu")(x)
    encoder = keras.Model(x, [keras.layers.Dense(2)(hidden), keras.layers.Dense(2)(hidden)])
    decoder = keras.Sequential([keras.Input((2,)), keras.layers.Dense(16, "gelu"), keras.layers.Dense(6)])
    given = [w.copy() for w in encoder.get_weights()]
    detector = VAEDetector(network=KerasNetwork(encoder, decoder), epochs=50, random_state=0).fit(table[0])
    assert detector.latent_dim_ == 2
    assert detector.history_["loss"][-1] < detector.history_["loss"][0] - 0.5
    for before, after in zip(given, encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_pretrained_keras_models_start_from_their_weights(table):
    encoder, decoder = DenseNetwork((8,)).build(6, 2, 1)
    settings = {"epochs": 1, "learning_rate": 1e-12, "random_state": 0}
    pretrained = VAEDetector(network=KerasNetwork(encoder, decoder, pretrained=True), **settings)
    trained = pretrained.fit(table[0]).model_.encoder.get_weights()
    for before, after in zip(encoder.get_weights(), trained, strict=True):
        np.testing.assert_allclose(before, after, atol=1e-9)


# -- columns that do not vary ---------------------------------------------------------------------------
@pytest.mark.parametrize("value", [1e-30, *map(wide, (1e-6, 1.0, -5.0, 1e6)), 1e20, wide(1e30), wide(1e140)])
@pytest.mark.parametrize("alone", [True, False])
def test_half_off_a_constant_is_an_anomaly_in_any_unit_and_a_millionth_is_none(value, alone):
    rng = np.random.RandomState(0)
    X = np.full((200, 2), value) if alone else np.c_[rng.normal(size=(200, 3)), np.full(200, value)]
    detector = VAEDetector(DenseNetwork((16,)), members=2, epochs=30, random_state=0).fit(X)
    expected = detector.score_samples(X)
    assert np.abs(expected).max() < 100
    off, nearly = X[:50].copy(), X[:50].copy()
    off[:, -1] *= 1.5
    nearly[:, -1] *= 1 + 1e-6
    assert (detector.predict(off) == -1).all()
    np.testing.assert_allclose(detector.score_samples(nearly), expected[:50], atol=0.01)


def test_the_unit_of_a_constant_changes_no_score():
    rows = np.random.RandomState(0).normal(size=(100, 2))
    found = []
    for unit in (1.0, 1024.0):
        X = np.c_[rows, np.full(100, 3.0 * unit)]
        detector = VAEDetector(DenseNetwork((8,)), epochs=3, random_state=0).fit(X)
        found.append(detector.score_samples(X + [0, 0, 0.5 * unit]))
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.wide
def test_training_stops_where_nothing_is_left_to_learn():
    detector = VAEDetector(DenseNetwork((8,)), members=2, random_state=0).fit(np.full((100, 3), 5.0))
    assert len(detector.history_["loss"]) < 1500  # of at most 2,000


@pytest.mark.parametrize(
    "call",
    [
        lambda detector, X: detector.set_params(validation_fraction=0.2, threshold="out_of_bag").fit(X[:15]),
        lambda detector, X: detector.fit(X).partial_fit(X[:10] * 50),
        lambda detector, X: detector.set_params(device="gpu:7").fit(X),
        lambda detector, X: detector.fit(
            pd.DataFrame(X, columns=[*"abc"]).assign(name=[f"row {i}" for i in range(len(X))])
        ),
        lambda detector, X: make_pipeline(detector.set_params(device="gpu:7")).fit(X),
    ],
    ids=["a threshold", "a stream", "a device", "a column", "a pipeline"],
)
def test_a_warning_names_the_line_outside_that_called(call):
    detector = VAEDetector(DenseNetwork((4,)), epochs=1, random_state=0)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        call(detector, np.random.RandomState(0).normal(size=(60, 3)))
    of_ours = [each for each in warned if issubclass(each.category, UserWarning)]
    assert of_ours
    assert not any("vae_anomaly" in Path(each.filename).parts for each in of_ours)
