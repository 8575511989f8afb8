"""Scores: (models, rows, noise) -> float64 numbers for each model and row, larger = more anomalous, in nats.

A score is two steps. ``per_draw`` turns one pass through the VAE into a number for each draw and row;
``combine`` turns the numbers of all draws into one for each row. Draws are processed in chunks, rows in
tiles, so memory is bounded whatever their product.

To add one: write the two functions and add a row to `SCORES`. A score of images is a function from their
shape to a `Score`, in `IMAGE_SCORES`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vae_anomaly.backend import keras, tf
from vae_anomaly.objective import DOUBTED_FROM, importance_weighted_bound, kl_divergence, log_weight
from vae_anomaly.rows import Rows
from vae_anomaly.states import ModelState
from vae_anomaly.tiles import map_rows

__all__ = [
    "IMAGE_SCORES",
    "SCORES",
    "Score",
    "draw_errors",
    "elbo_terms",
    "encode",
    "predictive_values",
    "reconstruct",
    "score_rows",
    "score_tile",
    "shares",
    "unexplained_variance",
]

_DRAWS_AT_ONCE = 64
# Contrast, as a standard deviation of the pixels, below which an image counts as empty.
_FAINTEST_CONTRAST = 0.1

ImageShape = tuple[int, int, int]


class Score(NamedTuple):
    """How a score is computed.

    Attributes
    ----------
    per_draw : callable ``(vae, x, inferred) -> (n_draws, n_rows)``
    combine : callable ``(values, kl) -> (n_rows,)``
        Takes the values of all draws, (n_draws, n_rows), and the closed-form KL of each row.
    per_feature : callable ``(vae, x, inferred) -> (n_draws, n_rows, n_features)``, or None
        What each feature adds to the value of ``per_draw``; None if that is no sum over features. Only
        explanations ask for it.

    All are traced by TensorFlow: write them in ``keras.ops``.

    Examples
    --------
    The worst explained feature of a row, in nats, averaged over the draws:

    >>> import keras
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.scoring import Score
    >>> def worst_feature(vae, x, inferred):
    ...     return -keras.ops.min(vae.likelihood.log_prob(x, inferred.parameters), axis=-1)
    >>> detector = VAEDetector(score=Score(worst_feature, lambda values, kl: keras.ops.mean(values, axis=0)))
    """

    per_draw: Callable[[Any, Any, Any], Any]
    combine: Callable[[Any, Any], Any]
    per_feature: Callable[[Any, Any, Any], Any] | None = None


def _feature_log_likelihood(vae: Any, x: Any, inferred: Any) -> Any:
    return vae.likelihood.log_prob(x, inferred.parameters)


def _log_likelihood(vae: Any, x: Any, inferred: Any) -> Any:
    return keras.ops.sum(_feature_log_likelihood(vae, x, inferred), axis=-1)


def _log_weight(vae: Any, x: Any, inferred: Any) -> Any:
    log_prob = _log_likelihood(vae, x, inferred)
    return log_weight(log_prob, inferred.z, inferred.noise, inferred.z_log_var)


def _feature_error(vae: Any, x: Any, inferred: Any) -> Any:
    return vae.likelihood.error(x, inferred.parameters)


def _error(vae: Any, x: Any, inferred: Any) -> Any:
    return keras.ops.sum(_feature_error(vae, x, inferred), axis=-1)


def unexplained_variance(image_shape: ImageShape, smoothing: float = 1.0) -> Score:
    r"""The share of an image's variance that the model does not reproduce: a score of images.

    .. math:: \mathrm{E}_q \frac{\|G * (x - \hat x(z))\|^2}{0.01\, d + \|G * (x - \bar x)\|^2}

    with the d pixels x, the image's mean :math:`\bar x` in each channel, and a Gaussian filter G. A
    likelihood calls simple images probable whatever they show (Nalisnick et al. 2019, "Do deep generative
    models know what they don't know?"), because there is little in them to get wrong. The denominator
    corrects for that, as the length of the compressed image does in Serrà et al. 2020, "Input complexity and
    out-of-distribution detection with likelihood-based generative models". The filter forgives strokes and
    edges that lie a pixel off. A pixel's share is that of its surroundings: what it adds to the sum goes
    through the filter once more, which keeps the sum and finds planted defects better.

    Parameters
    ----------
    image_shape : tuple (height, width, channels)
    smoothing : float, default=1.0
        Standard deviation of the filter, in pixels; 0 for none.

    Raises
    ------
    ValueError
        For a shape that is none of an image, or a negative width; when used, for rows of another size.

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.scoring import unexplained_variance
    >>> detector = VAEDetector(score=unexplained_variance((64, 64, 3), smoothing=2.0))
    """
    shape = tuple(image_shape)
    if len(shape) != 3 or not all(isinstance(side, Integral) and side > 0 for side in shape):
        raise ValueError(
            f"unexplained_variance needs image_shape=(height, width, channels); received {image_shape!r}."
        )
    if not isinstance(smoothing, Real) or not 0 <= smoothing < math.inf:
        raise ValueError(f"smoothing must be a number of pixels, at least 0; received {smoothing!r}.")
    return _unexplained_variance(shape, float(smoothing))


@functools.cache  # programs are compiled for a score: equal ones are to be one
def _unexplained_variance(image_shape: ImageShape, smoothing: float) -> Score:
    height, width, _ = image_shape
    n_features = math.prod(image_shape)
    taps = _filter(smoothing)
    mirrored = [np.pad(np.arange(side), len(taps) // 2, mode="symmetric") for side in (height, width)]

    def smoothed(images: Any) -> Any:
        for axis, positions in enumerate(mirrored, start=1):
            wide = keras.ops.take(images, positions, axis=axis)
            side = image_shape[axis - 1]
            slices = [
                tap * (wide[:, place : place + side] if axis == 1 else wide[:, :, place : place + side])
                for place, tap in enumerate(taps)
            ]
            images = sum(slices[1:], slices[0])
        return images

    def of_pixels(vae: Any, x: Any, inferred: Any) -> Any:
        """The share of each pixel in each draw and image: (n_draws * n_rows, height, width, channels)."""
        if x.shape[-1] != n_features:
            raise ValueError(
                f"the score unexplained_variance is of images of shape {image_shape}, which have "
                f"{n_features} numbers; received rows of {x.shape[-1]}."
            )
        expected = vae.likelihood.mean(inferred.parameters)
        x = keras.ops.where(keras.ops.isnan(x), expected, x)  # a missing pixel is as expected
        # In float64, and rounded in the end: how sums are grouped depends on the images beside it, and is not
        # to be seen in an image's score.
        x, expected = (keras.ops.cast(v, "float64") for v in (x, expected))
        own, missed = (keras.ops.reshape(v, (-1, *image_shape)) for v in (x, x - expected))
        own = keras.ops.square(smoothed(own - keras.ops.mean(own, axis=(1, 2), keepdims=True)))
        variance = keras.ops.sum(own, axis=(1, 2, 3), keepdims=True)
        return keras.ops.square(smoothed(missed)) / (n_features * _FAINTEST_CONTRAST**2 + variance)

    def per_draw(vae: Any, x: Any, inferred: Any) -> Any:
        total = keras.ops.sum(of_pixels(vae, x, inferred), axis=(1, 2, 3))
        return keras.ops.cast(keras.ops.reshape(total, (-1, keras.ops.shape(x)[0])), "float32")

    def per_feature(vae: Any, x: Any, inferred: Any) -> Any:
        around = smoothed(of_pixels(vae, x, inferred))
        return keras.ops.cast(keras.ops.reshape(around, (-1, keras.ops.shape(x)[0], n_features)), "float32")

    return Score(per_draw, lambda values, _: keras.ops.mean(values, axis=0), per_feature)


def _filter(smoothing: float) -> list[float]:
    """A Gaussian filter's weights, out to four standard deviations."""
    places = np.arange(-round(4 * smoothing), round(4 * smoothing) + 1)
    weights = np.exp(-0.5 * (places / smoothing) ** 2) if smoothing else np.ones(1)
    return [float(weight) for weight in weights / weights.sum()]


#: Every score by name. "elbo": the negative evidence lower bound, KL - E_q log p(x|z). "iwae": the
#: negative importance-weighted bound, closer to -log p(x). "reconstruction_probability": -E_q log p(x|z)
#: (An & Cho 2015). "reconstruction_error": E_q of the squared error, or of the binary cross-entropy.
SCORES: dict[str, Score] = {
    "elbo": Score(
        _log_likelihood, lambda values, kl: kl - keras.ops.mean(values, axis=0), _feature_log_likelihood
    ),
    "iwae": Score(_log_weight, lambda values, _: -importance_weighted_bound(values), _feature_log_likelihood),
    "reconstruction_probability": Score(
        _log_likelihood, lambda values, _: -keras.ops.mean(values, axis=0), _feature_log_likelihood
    ),
    "reconstruction_error": Score(_error, lambda values, _: keras.ops.mean(values, axis=0), _feature_error),
}

#: Scores of images by name: functions from (height, width, channels) to a `Score`.
IMAGE_SCORES: dict[str, Callable[[ImageShape], Score]] = {"unexplained_variance": unexplained_variance}


def resolve_name(score: str | Score, n_members: int, image_shape: ImageShape | None) -> str | Score:
    """What "auto" means for so many models of images or tables; any other score is checked and returned."""
    if score == "auto":
        if image_shape is not None:
            return "unexplained_variance"
        return "elbo" if n_members == 1 else "reconstruction_probability"
    resolve(score, image_shape)
    return score


def resolve(score: str | Score, image_shape: ImageShape | None) -> Score:
    """The score with this name, of images of this shape or of tables (None), or the instance itself."""
    if isinstance(score, Score):
        return score
    if score in SCORES:
        return SCORES[score]
    if score not in IMAGE_SCORES:
        names = ["auto", *SCORES, *IMAGE_SCORES]
        raise ValueError(f"score must be one of {names} or a Score; received {score!r}.")
    if image_shape is None:
        raise ValueError(
            f"score={score!r} is one of images: hand in images, or flat rows with "
            "network=ConvNetwork(image_shape=...), or choose another score."
        )
    return IMAGE_SCORES[score](image_shape)


def score_rows(
    states: Sequence[ModelState], rows: Rows, noise: Rows, score: Score, device: str | None
) -> npt.NDArray[np.float64]:
    """The score of each row by each model: shape (n_states, n_rows), larger = more anomalous."""
    return map_rows(partial(score_tile, score), ("score", score), states, rows, noise, device)


def score_tile(score: Score, vae: Any, x: Any, noise: Any) -> Any:
    """What a program computes of rows x, (n_rows, n_features), with noise of (n_draws, 1, latent_dim)."""
    return score.combine(*_in_float64(_over_draws(vae, x, noise, score.per_draw)))


def draw_errors(
    states: Sequence[ModelState], rows: Rows, noise: Rows, score: Score, device: str | None
) -> npt.NDArray[np.float64]:
    """Standard error of each row's score that comes from the draws: shape (n_states, n_rows).

    Jackknife: sqrt(n_draws - 1) standard deviations of the scores that leave one draw out (Efron & Stein
    1981). Zero for a single draw, which says nothing of it.
    """
    n_draws = len(noise)

    def tile_errors(vae: Any, x: Any, noise: Any) -> Any:
        values, kl = _in_float64(_over_draws(vae, x, noise, score.per_draw))
        without_one = tf.map_fn(
            lambda draw: score.combine(tf.concat([values[:draw], values[draw + 1 :]], axis=0), kl),
            tf.range(n_draws),
            fn_output_signature=tf.float64,
        )
        return math.sqrt(n_draws - 1) * tf.math.reduce_std(without_one, axis=0)

    if n_draws == 1:
        return np.zeros((len(states), len(rows)))
    return map_rows(tile_errors, ("draw_errors", score), states, rows, noise, device)


def shares(
    states: Sequence[ModelState], rows: Rows, noise: Rows, score: Score, device: str | None
) -> npt.NDArray[np.float64]:
    """What each feature adds to the score of each row, by each model: shape (n_states, n_rows, n_features).

    The sum over the draws of a feature's term, times the derivative of the score with respect to the draw's
    value: the mean term for a mean over draws, the mean under the draws' importance weights for a bound.
    Whatever belongs to no feature, such as a KL, is left out.
    """
    per_feature = score.per_feature
    if per_feature is None:
        raise ValueError(
            "this score does not say how it divides among features: give its `scoring.Score` a per_feature."
        )

    def tile_shares(vae: Any, x: Any, noise: Any) -> Any:
        values, kl = _in_float64(_over_draws(vae, x, noise, score.per_draw))
        with tf.GradientTape() as tape:
            tape.watch(values)
            total = score.combine(values, kl)
        slopes = tf.cast(tape.gradient(total, values), tf.float32)
        posterior = vae.encode(x)

        def weighted_sum(chunk: Any, slopes: Any) -> Any:
            terms = per_feature(vae, x, vae.draw(*posterior, chunk))
            return tf.reduce_sum(slopes[..., None] * terms, axis=0)

        return tf.reduce_sum(_map_chunks(weighted_sum, noise, slopes), axis=0)

    return map_rows(tile_shares, ("shares", score), states, rows, noise, device)


def elbo_terms(
    states: Sequence[ModelState], rows: Rows, noise: Rows, device: str | None
) -> npt.NDArray[np.float64]:
    """-E_q log p(x|z) and KL of each row by each model: shape (n_states, n_rows, 2).

    Their sum is the negative ELBO; of rows with missing values, that of the values that are there.
    """

    def tile_terms(vae: Any, x: Any, noise: Any) -> Any:
        values, kl = _over_draws(vae, x, noise, _log_likelihood)
        return keras.ops.stack([-keras.ops.mean(values, axis=0), kl], axis=-1)

    return map_rows(tile_terms, "elbo_terms", states, rows, noise, device, missing_counts=False)


def encode(
    states: Sequence[ModelState], rows: Rows, noise: Rows, device: str | None
) -> npt.NDArray[np.float64]:
    """Posterior means by each model: shape (n_states, n_rows, latent_dim)."""

    def tile_means(vae: Any, x: Any, _: Any) -> Any:
        return vae.encode(x)[0]

    return map_rows(tile_means, "encode", states, rows, noise, device)


def reconstruct(
    states: Sequence[ModelState], rows: Rows, noise: Rows, device: str | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What each model expects in each row's cells, and how well it explains those that are there.

    Returns
    -------
    expectations : array of shape (n_states, n_rows, n_inputs)
    log_likelihood : array of shape (n_states, n_rows)
        Log p(x|z) in nats, averaged over the features; of each, at most `DOUBTED_FROM` below what would be
        expected, which is what a missing cell counts. Both are means over the draws.
    """

    def tile_expectations(vae: Any, x: Any, noise: Any) -> Any:
        posterior = vae.encode(x)

        def weighted_sum(chunk: Any, weights: Any) -> Any:
            inferred = vae.draw(*posterior, chunk)
            expectations = vae.likelihood.expectations(inferred.parameters)
            least = vae.likelihood.expected_log_prob(inferred.parameters) - DOUBTED_FROM
            log_prob = tf.maximum(_feature_log_likelihood(vae, x, inferred), least)
            log_prob = tf.reduce_mean(log_prob, axis=-1, keepdims=True)
            return tf.tensordot(weights, tf.concat([expectations, log_prob], axis=-1), 1)

        return tf.reduce_sum(_map_chunks(weighted_sum, noise), axis=0) / noise.shape[0]

    results = map_rows(tile_expectations, "reconstruct", states, rows, noise, device, refined=True)
    return results[..., :-1], results[..., -1]


def predictive_values(
    states: Sequence[ModelState], rows: Rows, noise: Rows, n_values: int, device: str | None
) -> npt.NDArray[np.float64]:
    """Values of x that the models hold for equally probable: (n_states, n_rows, n_values, n_features).

    Of each draw's p(x|z) as many quantiles, at levels that together fill (0, 1) evenly. ``n_values`` is a
    multiple of the number of draws.
    """
    n_draws, n_levels = len(noise), n_values // len(noise)

    def tile_values(vae: Any, x: Any, noise: Any) -> Any:
        parameters = vae.draw(*vae.encode(x), noise).parameters
        of_draws = (np.arange(n_draws)[:, None, None] + 0.5) / n_draws
        levels = [(level + of_draws) / n_levels for level in range(n_levels)]
        values = [vae.likelihood.quantile(level, parameters) for level in levels]
        return tf.transpose(tf.concat(values, axis=0), (1, 0, 2))

    key = ("predictive_values", n_values)
    return map_rows(tile_values, key, states, rows, noise, device, refined=True)


def _over_draws(vae: Any, x: Any, noise: Any, per_draw: Callable[[Any, Any, Any], Any]) -> tuple[Any, Any]:
    """``per_draw`` of all draws, (n_draws, n_rows), and the KL of each row, (n_rows,)."""
    posterior = vae.encode(x)
    kl = keras.ops.sum(kl_divergence(*posterior), axis=-1)
    values = _map_chunks(lambda chunk, _: per_draw(vae, x, vae.draw(*posterior, chunk)), noise)
    return tf.reshape(values, (-1, keras.ops.shape(x)[0]))[: noise.shape[0]], kl


def _in_float64(values_and_kl: tuple[Any, Any]) -> list[Any]:
    return [keras.ops.cast(value, "float64") for value in values_and_kl]


def _map_chunks(function: Callable[[Any, Any], Any], noise: Any, weights: Any = None) -> Any:
    """``function(chunk, weights)`` of each chunk of draws, stacked; draws that only pad have weight 0.

    ``weights`` belong to the draws, the first axis; they are 1 if not given.
    """
    n_draws, _, latent_dim = noise.shape
    weights = tf.ones(n_draws) if weights is None else weights
    if n_draws <= _DRAWS_AT_ONCE:
        return function(noise, weights)[None]
    n_chunks = -(-n_draws // _DRAWS_AT_ONCE)
    n_padding = -n_draws % n_chunks
    chunks = tf.reshape(tf.pad(noise, [[0, n_padding], [0, 0], [0, 0]]), (n_chunks, -1, 1, latent_dim))
    padding = [[0, n_padding]] + [[0, 0]] * (len(weights.shape) - 1)
    weights = tf.reshape(tf.pad(weights, padding), (n_chunks, -1, *weights.shape[1:]))
    return tf.map_fn(
        lambda pair: function(*pair), (chunks, weights), fn_output_signature=tf.float32, parallel_iterations=1
    )
