"""The loss of held-out rows, measured in a training program after each epoch, and the best model so far."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from vae_anomaly.core.backend import tf
from vae_anomaly.core.rows import Rows
from vae_anomaly.core.types import Tensor
from vae_anomaly.engine.programs import Architecture
from vae_anomaly.engine.tiles import wide_tile
from vae_anomaly.model.states import ModelState
from vae_anomaly.objectives.base import kl_of

__all__ = ["HELD_OUT_ROWS", "HELD_OUT_TILE", "Best", "HeldOut", "best_of", "held_out_tiles", "measure"]

#: Rows that XLA measures at once.
HELD_OUT_TILE = 64
#: Held-out rows whose loss is measured after an epoch, at most: the mean of more says little more.
HELD_OUT_ROWS = 2048
# Rows times draws that make a mean loss which tells epochs apart; every epoch takes the same draws.
_HELD_OUT_DRAWS = 1000


class Best(NamedTuple):
    """The model after the epoch whose held-out rows had the smallest loss, as tensors; NaN: there is none."""

    loss: Tensor
    trainable: Tensor
    non_trainable: list[Tensor]


class HeldOut(NamedTuple):
    """Rows that are not trained on, and the draws that their loss is averaged over.

    Attributes
    ----------
    tiles : tensor of shape (n_tiles, tile, n_features)
    n_rows : scalar tensor
        How many rows of the tiles count: the first ones.
    draws : tensor of shape (n_draws, noise_width)
    beta : scalar tensor
        Weight of the KL.
    """

    tiles: Tensor
    n_rows: Tensor
    draws: Tensor
    beta: Tensor


def best_of(trainable: Tensor, non_trainable: list[Tensor], best: tuple[float, ModelState] | None) -> Best:
    """A loss and its model as tensors; of None, the present model, which counts for nothing."""
    if best is None:
        return Best(tf.constant(math.nan, tf.float64), trainable, non_trainable)
    loss, state = best
    others = [tf.convert_to_tensor(np.asarray(value)) for value in state.non_trainable]
    return Best(tf.constant(loss, tf.float64), tf.convert_to_tensor(np.asarray(state.trainable)), others)


def held_out_tiles(
    architecture: Architecture, rows: Rows, draws: Rows, beta: float, jit_compile: bool
) -> HeldOut:
    """Held-out rows for `train_block`, with as many of the draws as are needed."""
    n_draws = min(len(draws), -(-_HELD_OUT_DRAWS // len(rows)), architecture.template.draws_at_once)
    if jit_compile:  # XLA compiles for one shape
        tile, n_filled = HELD_OUT_TILE, HELD_OUT_ROWS
    else:
        tile, n_filled = min(wide_tile(architecture, n_draws), len(rows)), len(rows)
    return HeldOut(
        tf.convert_to_tensor(np.resize(rows, (-(-n_filled // tile), tile, architecture.n_features))),
        tf.constant(len(rows)),
        tf.convert_to_tensor(np.asarray(draws[:n_draws], dtype=np.float32)),
        tf.constant(beta, tf.float64),
    )


def measure(
    architecture: Architecture,
    trainable: Tensor,
    non_trainable: list[Tensor],
    held_out: HeldOut,
    best: Best,
    is_incomplete: bool,
) -> tuple[Tensor, Best]:
    """Mean reconstruction and KL of the held-out rows, and the best model so far with this one."""
    template, tile = architecture.template, tf.shape(held_out.tiles)[1]
    vae = template.incomplete(missing_counts=False) if is_incomplete else template

    def add(position: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        x = held_out.tiles[position]
        with architecture.holding(trainable, non_trainable):
            inferred = vae.infer(x, held_out.draws[:, None])
            log_prob = tf.reduce_sum(vae.likelihood.log_prob(x, inferred.parameters), axis=-1)
            kl = kl_of(vae.kl_per_latent(inferred.context), inferred.log_ratio)
        terms = tf.cast(tf.stack([-tf.reduce_mean(log_prob, axis=0), kl]), tf.float64)
        counts = position * tile + tf.range(tile) < held_out.n_rows
        return position + 1, sums + tf.reduce_sum(tf.where(counts, terms, 0.0), axis=1)

    _, sums = tf.while_loop(
        lambda position, _: position * tile < held_out.n_rows,
        add,
        (tf.constant(0), tf.zeros(2, tf.float64)),
        parallel_iterations=1,
    )
    terms = sums / tf.cast(held_out.n_rows, tf.float64)
    present = Best(terms[0] + held_out.beta * terms[1], trainable, non_trainable)
    is_better = (present.loss < best.loss) | tf.math.is_nan(best.loss)
    return terms, tf.nest.map_structure(lambda new, old: tf.where(is_better, new, old), present, best)
