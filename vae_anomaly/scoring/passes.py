"""Passes through the VAE: (models, rows, draws) -> what is asked for, for each model and row.

Draws are processed in chunks, rows in tiles, so memory is bounded whatever their product. Where z has few
values (`VAE.every_z`), averages over draws are sums over all values, each with its probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vae_anomaly.core.backend import keras, tf
from vae_anomaly.core.rows import Rows
from vae_anomaly.core.shapes import check_shape
from vae_anomaly.core.types import Floats, KerasModel, Tensor
from vae_anomaly.engine.programs import architecture_of
from vae_anomaly.engine.tiles import map_rows
from vae_anomaly.model.incomplete import DOUBTED_FROM
from vae_anomaly.model.states import ModelState
from vae_anomaly.posteriors import Context
from vae_anomaly.scoring.score import Score, log_likelihood, transformed_feature_log_likelihood

__all__ = [
    "draw_errors",
    "elbo_terms",
    "encode",
    "reconstruct",
    "reconstruct_with_values",
    "score_rows",
    "score_tile",
    "shares",
]

#: What models say of rows of shape (n_rows, n_features): an array of shape (n_states, n_rows, ...).
OfRows = Callable[[Rows], Floats]


def score_rows(
    states: Sequence[ModelState],
    rows: Rows,
    draws: Rows,
    score: Score,
    device: str | None,
    *,
    warm_up: bool = False,
) -> Floats:
    """The score of each row by each model: shape (n_states, n_rows), larger = more anomalous."""
    tile_scores = partial(score_tile, score)
    return map_rows(tile_scores, ("score", score), states, rows, draws, device, warm_up=warm_up)


def score_tile(score: Score, vae: KerasModel, x: Tensor, draws: Tensor) -> Tensor:
    """What a program computes of rows x, (n_rows, n_features), with draws of (n_draws, 1, noise_width)."""
    is_average = score.slope is not None

    def per_draw(vae: KerasModel, x: Tensor, inferred: Any) -> Tensor:
        values = score.per_draw(vae, x, inferred)
        shape = (inferred.z.shape[0], x.shape[0])
        return check_shape(values, "per_draw of the score", "(n_draws, n_rows)", shape)

    combined = score.combine(*_of_all(_in_float64(_over_draws(vae, x, draws, per_draw, is_average))))
    return check_shape(combined, "combine of the score", "(n_rows,)", (x.shape[0],))


def draw_errors(
    states: Sequence[ModelState], rows: Rows, draws: Rows, score: Score, device: str | None
) -> Floats:
    """Standard error of each row's score that comes from the draws: shape (n_states, n_rows).

    Jackknife: sqrt(n_draws - 1) standard deviations of the scores that leave one draw out (Efron & Stein
    1981). Zero for a single draw, which says nothing of it, and for a sum over all z.
    """
    n_draws = len(draws)
    is_sum = score.slope is not None and architecture_of(states[0]).n_values > 0

    def tile_errors(vae: KerasModel, x: Tensor, draws: Tensor) -> Tensor:
        found = _in_float64(_over_draws(vae, x, draws, score.per_draw))
        without_one = tf.map_fn(
            lambda draw: score.combine(*_of_all(_without(found, draw))),
            tf.range(n_draws),
            fn_output_signature=tf.float64,
        )
        return math.sqrt(n_draws - 1) * tf.math.reduce_std(without_one, axis=0)

    if n_draws == 1 or is_sum:
        return np.zeros((len(states), len(rows)))
    return map_rows(tile_errors, ("draw_errors", score), states, rows, draws, device)


def shares(states: Sequence[ModelState], rows: Rows, draws: Rows, score: Score, device: str | None) -> Floats:
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

    def tile_shares(vae: KerasModel, x: Tensor, draws: Tensor) -> Tensor:
        context = vae.encode(x)
        if score.slope is None:
            over = _draws_of(vae, context, draws)
            values, kl = _of_all(_in_float64(_over_draws(vae, x, draws, score.per_draw)))
            with tf.GradientTape() as tape:
                tape.watch(values)
                total = score.combine(values, kl)
            slopes = tf.cast(tape.gradient(total, values), tf.float32)
        else:
            over = _averaged(vae, context, draws)
            slopes = np.float32(score.slope / over.total) * over.weights

        def weighted_sum(chunk: Tensor, slopes: Tensor) -> Tensor:
            terms = per_feature(vae, x, over.infer(chunk))
            return tf.reduce_sum(slopes[..., None] * terms, axis=0)

        return tf.reduce_sum(_map_chunks(vae, weighted_sum, over.points, slopes), axis=0)

    return map_rows(tile_shares, ("shares", score), states, rows, draws, device)


def elbo_terms(states: Sequence[ModelState], rows: Rows, draws: Rows, device: str | None) -> Floats:
    """-E_q log p(x|z) and KL of each row by each model: shape (n_states, n_rows, 2).

    Their sum is the negative ELBO; of rows with missing values, that of the values that are there.
    """

    def tile_terms(vae: KerasModel, x: Tensor, draws: Tensor) -> Tensor:
        values, kl = _of_all(_over_draws(vae, x, draws, log_likelihood, is_average=True))
        return keras.ops.stack([-keras.ops.mean(values, axis=0), kl], axis=-1)

    return map_rows(tile_terms, "elbo_terms", states, rows, draws, device, missing_counts=False)


def encode(states: Sequence[ModelState], rows: Rows, draws: Rows, device: str | None) -> Floats:
    """Where each model's posteriors lie, see `Posterior.center`: shape (n_states, n_rows, latent_dim)."""

    def tile_centers(vae: KerasModel, x: Tensor, _: Tensor) -> Tensor:
        return vae.center(vae.encode(x))

    return map_rows(tile_centers, "encode", states, rows, draws, device)


def reconstruct(
    states: Sequence[ModelState], rows: Rows, draws: Rows, device: str | None
) -> tuple[Floats, Floats]:
    """What each model expects in each row's cells, and how well it explains those that are there.

    Returns
    -------
    expectations : array of shape (n_states, n_rows, n_inputs)
    log_likelihood : array of shape (n_states, n_rows)
        Log p(x|z) in nats, averaged over the features; of each, at most `DOUBTED_FROM` below what would be
        expected, which is what a missing cell counts. Both are means over the draws.
    """
    results = map_rows(_tile_expectations, "reconstruct", states, rows, draws, device, refined=True)
    return results[..., :-1], results[..., -1]


def reconstruct_with_values(
    states: Sequence[ModelState], rows: Rows, draws: Rows, n_values: int, device: str | None
) -> tuple[Floats, Floats, Floats]:
    """What `reconstruct` returns, and values of x that the models hold for equally probable.

    Those, an array of shape (n_states, n_rows, n_values, n_features), are of each draw's p(x|z) as many
    quantiles, at levels that together fill (0, 1) evenly. ``n_values`` is a multiple of the number of draws.
    """
    n_draws, n_levels = len(draws), n_values // len(draws)

    def tile_values(vae: KerasModel, x: Tensor, draws: Tensor) -> Tensor:
        context = vae.encode(x)
        parameters = vae.draw(context, draws).parameters
        of_draws = (np.arange(n_draws)[:, None, None] + 0.5) / n_draws
        levels = [(level + of_draws) / n_levels for level in range(n_levels)]
        values = [vae.likelihood.quantile(level, parameters) for level in levels]
        flat = tf.reshape(tf.transpose(tf.concat(values, axis=0), (1, 0, 2)), (x.shape[0], -1))
        return tf.concat([_tile_expectations(vae, x, draws, context), flat], axis=-1)

    key = ("reconstruct_with_values", n_values)
    results = map_rows(tile_values, key, states, rows, draws, device, refined=True)
    first = results.shape[-1] - n_values * rows.shape[1]
    values = results[..., first:].reshape(*results.shape[:-1], n_values, rows.shape[1])
    return results[..., : first - 1], results[..., first - 1], values


def _tile_expectations(vae: KerasModel, x: Tensor, draws: Tensor, context: Context | None = None) -> Tensor:
    """What `reconstruct` returns of rows x, side by side: the log-likelihood comes last."""
    context = vae.encode(x) if context is None else context
    over = _averaged(vae, context, draws)

    def weighted_sum(chunk: Tensor, weights: Tensor) -> Tensor:
        inferred = over.infer(chunk)
        expectations = vae.likelihood.expectations(inferred.parameters)
        least = vae.likelihood.expected_log_prob(inferred.parameters) - DOUBTED_FROM
        log_prob = tf.maximum(transformed_feature_log_likelihood(vae, x, inferred), least)
        log_prob = tf.reduce_mean(log_prob + vae.log_derivative(x), axis=-1, keepdims=True)
        expectations = tf.broadcast_to(
            expectations, (*tf.unstack(tf.shape(log_prob))[:-1], expectations.shape[-1])
        )
        terms = tf.concat([expectations, log_prob], axis=-1)
        if weights.shape[1] == 1:
            return tf.tensordot(weights[:, 0], terms, 1)
        return tf.reduce_sum(weights[..., None] * terms, axis=0)

    return tf.reduce_sum(_map_chunks(vae, weighted_sum, over.points, over.weights), axis=0) / over.total


class _Averaged(NamedTuple):
    """What an average over the posteriors of rows is taken over.

    Attributes
    ----------
    points : tensor of shape (n_points, 1, ...)
        The draws, or all values of z.
    weights : tensor of shape (n_points, 1) or (n_points, n_rows)
    total : int
        The sum of the weights.
    infer : callable
        Makes an `Inference` of some of the points.
    """

    points: Tensor
    weights: Tensor
    total: int
    infer: Callable[[Tensor], Any]


def _draws_of(vae: KerasModel, context: Context, draws: Tensor) -> _Averaged:
    n_draws = draws.shape[0]
    return _Averaged(draws, tf.ones((n_draws, 1)), n_draws, partial(vae.draw, context))


def _averaged(vae: KerasModel, context: Context, draws: Tensor) -> _Averaged:
    """All values of z, if they are few, and else the draws."""
    every_z = vae.every_z()
    if every_z is None:
        return _draws_of(vae, context, draws)
    z = tf.constant(every_z[:, None])
    return _Averaged(z, vae.probability(z, context), 1, lambda some: vae.at(some, context))


class _OverDraws(NamedTuple):
    """What was found of all draws.

    Attributes
    ----------
    values : tensor of shape (n_draws, n_rows); of a sum over all z that replaces them, (1, n_rows)
    kl : tensor of shape (n_rows,), the closed form, or (n_draws, n_rows), log q(z|x) - log p(z)
    """

    values: Tensor
    kl: Tensor


def _over_draws(
    vae: KerasModel,
    x: Tensor,
    draws: Tensor,
    per_draw: Callable[[Tensor, Tensor, Tensor], Tensor],
    is_average: bool = False,
) -> _OverDraws:
    """``per_draw`` of all draws, and what their KL is made of.

    If only their average is wanted, its exact value stands for them where z has few values.
    """
    context = vae.encode(x)
    kl_per_latent = vae.kl_per_latent(context)
    n_draws, n_rows = draws.shape[0], keras.ops.shape(x)[0]

    if is_average and vae.every_z() is not None:
        z, probabilities, _, infer = _averaged(vae, context, draws)
        values = tf.reshape(_map_chunks(vae, lambda some, _: per_draw(vae, x, infer(some)), z), (-1, n_rows))
        values, probabilities = (tf.cast(v, tf.float64) for v in (values[: z.shape[0]], probabilities))
        return _OverDraws(
            tf.reduce_sum(probabilities * values, axis=0, keepdims=True),
            keras.ops.sum(kl_per_latent, axis=-1),
        )
    if kl_per_latent is not None:
        kl = keras.ops.sum(kl_per_latent, axis=-1)
        values = _map_chunks(vae, lambda chunk, _: per_draw(vae, x, vae.draw(context, chunk)), draws)
        return _OverDraws(tf.reshape(values, (-1, n_rows))[:n_draws], kl)

    def with_log_ratio(chunk: Tensor, _: Tensor) -> Tensor:
        inferred = vae.draw(context, chunk)
        return tf.stack([per_draw(vae, x, inferred), -inferred.log_ratio], axis=-1)

    found = tf.reshape(_map_chunks(vae, with_log_ratio, draws), (-1, n_rows, 2))[:n_draws]
    return _OverDraws(found[..., 0], found[..., 1])


def _in_float64(found: _OverDraws) -> _OverDraws:
    return _OverDraws(*(keras.ops.cast(value, "float64") for value in found))


def _without(found: _OverDraws, draw: Tensor) -> _OverDraws:
    """What was found, but for one draw."""

    def others(values: Tensor) -> Tensor:
        return tf.concat([values[:draw], values[draw + 1 :]], axis=0)

    return _OverDraws(others(found.values), found.kl if len(found.kl.shape) == 1 else others(found.kl))


def _of_all(found: _OverDraws) -> tuple[Tensor, Tensor]:
    """The values of all draws, (n_draws, n_rows), and the KL of each row, (n_rows,)."""
    kl = found.kl
    return found.values, kl if len(kl.shape) == 1 else keras.ops.mean(kl, axis=0)


def _map_chunks(
    vae: KerasModel,
    function: Callable[[Tensor, Tensor], Tensor],
    draws: Tensor,
    weights: Tensor = None,
) -> Tensor:
    """``function(chunk, weights)`` of each chunk of draws, stacked; draws that only pad have weight 0.

    ``weights`` belong to the draws, the first axis; they are 1 if not given.
    """
    n_draws, _, width = draws.shape
    weights = tf.ones(n_draws) if weights is None else weights
    if n_draws <= vae.draws_at_once:
        return function(draws, weights)[None]
    n_chunks = -(-n_draws // vae.draws_at_once)
    n_padding = -n_draws % n_chunks
    chunks = tf.reshape(tf.pad(draws, [[0, n_padding], [0, 0], [0, 0]]), (n_chunks, -1, 1, width))
    padding = [[0, n_padding]] + [[0, 0]] * (len(weights.shape) - 1)
    weights = tf.reshape(tf.pad(weights, padding), (n_chunks, -1, *weights.shape[1:]))
    return tf.map_fn(
        lambda pair: function(*pair), (chunks, weights), fn_output_signature=tf.float32, parallel_iterations=1
    )
