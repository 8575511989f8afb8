"""Scores: one number for a row, whatever the chunks it was computed in. (Formulas: test_exactness.py.)"""

import keras
import numpy as np
import pytest
from conftest import wide
from scipy.ndimage import gaussian_filter

from vae_anomaly import DenseNetwork, VAEDetector, scoring
from vae_anomaly.engine.programs import architecture_of, model_of
from vae_anomaly.scoring import SCORES, passes
from vae_anomaly.scoring.score import Score


@pytest.fixture(scope="module")
def state(table):
    return (
        VAEDetector(network=DenseNetwork((16,)), latent_dim=3, epochs=20, random_state=0)
        .fit(table[0])
        .members_[0]
    )


@pytest.fixture(scope="module")
def rows(table):
    return table[0][:100].astype("f4")


def noise(n_draws):
    return np.random.RandomState(0).standard_normal((n_draws, 3)).astype("f4")


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("n_draws", [65, wide(128), wide(200)])
def test_chunks_of_draws_change_nothing(monkeypatch, state, rows, name, n_draws):
    draws = noise(n_draws)
    chunked = passes.score_rows([state], rows, draws, SCORES[name], None)[0]
    monkeypatch.setattr(architecture_of(state).template, "draws_at_once", 1000)
    at_once = Score(lambda *a: SCORES[name].per_draw(*a), SCORES[name].combine)  # a key of its own
    np.testing.assert_allclose(passes.score_rows([state], rows, draws, at_once, None)[0], chunked, rtol=1e-5)


@pytest.mark.parametrize("n_draws", [10, wide(130)])
@pytest.mark.parametrize("name", [name for name, score in SCORES.items() if score.slope is not None])
def test_a_known_slope_gives_the_shares_that_the_derivative_gives(state, rows, name, n_draws):
    shares, by_derivative = (
        passes.shares([state], rows, noise(n_draws), score, None)
        for score in (SCORES[name], SCORES[name]._replace(slope=None))
    )
    np.testing.assert_array_equal(shares, by_derivative)


def test_the_bound_by_importance_has_no_slope_of_its_own():
    assert SCORES["iwae"].slope is None


def test_chunks_of_draws_change_no_reconstruction(state, rows):
    draws = noise(130)
    parts = [
        passes.reconstruct([state], rows, draws[start : start + 13], None) for start in range(0, 130, 13)
    ]
    whole = passes.reconstruct([state], rows, draws, None)
    for found, of_parts in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_allclose(found, np.mean(of_parts, axis=0), rtol=1e-4, atol=1e-5)


def test_a_reconstruction_comes_with_how_well_it_explains_the_row(state, rows):
    draws = noise(10)
    rows = 0.1 * rows
    _, log_likelihood = passes.reconstruct([state], rows, draws, None)
    score = passes.score_rows([state], rows, draws, SCORES["reconstruction_probability"], None)
    np.testing.assert_allclose(log_likelihood, -score / rows.shape[1], rtol=1e-5)


@pytest.mark.parametrize("value", [1e6, 1e37])
def test_no_value_is_taken_to_be_more_than_ten_nats_less_probable_than_expected(state, rows, value):
    _, log_likelihood = passes.reconstruct([state], np.full_like(rows, value), noise(10), None)
    model = model_of(state)
    # Of a Gaussian with a learned scale, what is expected is the same whatever z is.
    expected = np.mean(model.likelihood.expected_log_prob(model.decode(np.zeros((1, 3), "f4"))))
    np.testing.assert_allclose(log_likelihood, expected - 10, rtol=1e-5)


def test_the_elbo_is_the_sum_of_its_terms(state, rows):
    terms = passes.elbo_terms([state], rows, noise(10), None)[0]
    elbo = passes.score_rows([state], rows, noise(10), SCORES["elbo"], None)[0]
    probability = passes.score_rows([state], rows, noise(10), SCORES["reconstruction_probability"], None)[0]
    np.testing.assert_allclose(terms.sum(axis=1), elbo, rtol=1e-6)
    np.testing.assert_allclose(terms[:, 0], probability, rtol=1e-6)
    assert (terms[:, 1] > 0).all()


def test_more_draws_settle_the_score(state, rows):
    def spread(n_draws):
        draws = np.random.RandomState(1).standard_normal((20, n_draws, 3)).astype("f4")
        return np.std(
            [passes.score_rows([state], rows, d, SCORES["elbo"], None)[0] for d in draws], axis=0
        ).mean()

    assert spread(64) == pytest.approx(spread(4) / 4, rel=0.35)


def test_names_are_looked_up_and_unknown_ones_refused():
    assert scoring.resolve_name("auto", 1, None) == "elbo"
    assert scoring.resolve_name("auto", 2, None) == "beta_elbo"
    assert scoring.resolve_name("auto", 2, (8, 8, 1)) == "unexplained_variance"
    assert scoring.resolve("iwae", None) is SCORES["iwae"]
    own = Score(SCORES["elbo"].per_draw, SCORES["elbo"].combine)
    assert scoring.resolve(own, None) is own
    with pytest.raises(ValueError, match="score must be one of .*'auto'.*received 'energy'"):
        scoring.resolve_name("energy", 1, None)
    with pytest.raises(ValueError, match="'unexplained_variance' is one of images"):
        scoring.resolve_name("unexplained_variance", 1, None)


# -- of images ------------------------------------------------------------------------------------------
class Copying:
    """What a score sees of a VAE, one that expects ``expected`` whatever it is shown."""

    def __init__(self, expected, standardized=False):
        self.likelihood = self
        self.standardized = standardized
        self._expected = expected

    def mean(self, parameters):
        return self._expected


def unexplained(images, expected, **settings):
    """Scores of images of shape (n, height, width, channels) for which a model expects ``expected``."""
    score = scoring.unexplained_variance(images.shape[1:], **settings)
    rows, expected = (np.float32(v).reshape(len(v), -1) for v in (images, expected))

    class Inferred:
        parameters = None

    values = score.per_draw(Copying(expected[None]), rows, Inferred)
    np.testing.assert_allclose(
        score.per_feature(Copying(expected[None]), rows, Inferred).numpy().sum(axis=-1), values, rtol=1e-5
    )
    return score.combine(values, None).numpy()


@pytest.mark.parametrize("smoothing", [0, 1.0, 2.5])
@pytest.mark.parametrize("shape", [(7, 5, 1), (8, 8, 3)])
def test_the_unexplained_share_is_that_of_smoothed_squares(shape, smoothing):
    rng = np.random.default_rng(0)
    images, expected = rng.uniform(size=(2, 4, *shape))

    def squares(values):
        width = (0, smoothing, smoothing, 0)
        return (gaussian_filter(values, width) ** 2 if smoothing else values**2).sum(axis=(1, 2, 3))

    own = squares(images - images.mean(axis=(1, 2), keepdims=True))
    share = squares(images - expected) / (own + 0.01 * images[0].size)
    np.testing.assert_allclose(unexplained(images, expected, smoothing=smoothing), share, rtol=1e-5)


def test_nothing_is_unexplained_of_what_is_expected_and_little_less_than_all_of_the_mean_image():
    images = np.random.default_rng(0).integers(0, 2, size=(3, 16, 16, 1))
    np.testing.assert_array_equal(unexplained(images, images), 0)
    blank = np.broadcast_to(images.mean(axis=(1, 2), keepdims=True), images.shape)
    assert (unexplained(images, blank, smoothing=0) > 0.95).all()
    assert (unexplained(images, blank, smoothing=0) < 1).all()


def test_an_error_of_one_size_weighs_more_in_an_image_with_less_in_it():
    full, faint = np.random.default_rng(0).uniform(size=(1, 16, 16, 1)) * [[[[1]]], [[[0.2]]]]
    both = np.stack([full, faint])
    expected = both.copy()
    expected[:, 4:12, 4:12] += 0.1
    share_full, share_faint = unexplained(both, expected, smoothing=0)
    assert share_faint > 2 * share_full


def test_a_missing_pixel_is_as_expected():
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 1))
    expected = images + 0.1
    gaps = images.copy()
    gaps[:, :4] = np.nan
    filled = np.where(np.isnan(gaps), expected, gaps)
    np.testing.assert_allclose(unexplained(gaps, expected), unexplained(filled, expected), rtol=1e-5)


@pytest.mark.parametrize("image_shape", [(8, 8), (8, 0, 1), (8, 8, 1.5), ()])
def test_unexplained_variance_is_of_images(image_shape):
    with pytest.raises(ValueError, match=r"needs image_shape=\(height, width, channels\); received"):
        scoring.unexplained_variance(image_shape)


@pytest.mark.parametrize("smoothing", [-1, float("inf"), float("nan"), "wide"])
def test_the_width_of_a_filter_is_no_less_than_nothing(smoothing):
    with pytest.raises(ValueError, match="smoothing must be a number of pixels"):
        scoring.unexplained_variance((8, 8, 1), smoothing)


def test_equal_settings_are_one_score():
    assert scoring.unexplained_variance([8, 8, 1], 1) is scoring.unexplained_variance((8, 8, 1))


@pytest.mark.parametrize("image_shape", [(4, 8, 1), (5, 7, 1)])
def test_rows_of_another_size_than_the_scores_images_are_refused(image_shape):
    images = np.random.RandomState(0).random_sample((20, 8, 8))
    score = scoring.unexplained_variance(image_shape)
    with pytest.raises(ValueError, match="have (32|35) numbers; received rows of 64"):
        VAEDetector(network=DenseNetwork((4,)), epochs=1, members=1, score=score).fit(images)


def _sum(vae, x, inferred):
    return -keras.ops.sum(vae.likelihood.log_prob(x, inferred.parameters), axis=-1)


WRONG_SHAPES = {
    "a sum over features that is forgotten": (
        lambda vae, x, inferred: -vae.likelihood.log_prob(x, inferred.parameters),
        lambda values, kl: keras.ops.mean(values, axis=0),
        r"per_draw .* shape \(n_draws, n_rows\).*received .*, 3\)",
    ),
    "rows before draws": (
        lambda vae, x, inferred: keras.ops.transpose(_sum(vae, x, inferred)),
        lambda values, kl: keras.ops.mean(values, axis=0),
        r"per_draw .* shape \(n_draws, n_rows\)",
    ),
    "one number for all rows": (_sum, lambda values, kl: keras.ops.mean(values), r"combine .* \(n_rows,\)"),
    "one for each draw": (_sum, lambda values, kl: keras.ops.mean(values, axis=1), r"combine .* \(n_rows,\)"),
}


@pytest.mark.parametrize(("per_draw", "combine", "message"), WRONG_SHAPES.values(), ids=WRONG_SHAPES)
def test_a_score_of_ones_own_with_wrong_shapes_is_refused(per_draw, combine, message):
    X = np.random.RandomState(0).normal(size=(60, 3))
    detector = VAEDetector(DenseNetwork((8,)), score=Score(per_draw, combine), epochs=1, random_state=0)
    with pytest.raises(ValueError, match=message):
        detector.fit(X)
