"""Training steps, compiled in blocks: noise, gradient, Adam; after an epoch, `held_out` measures.

A block is one call: up to ``block_steps`` batches, gathered from the rows at once, and a loop over them
inside TensorFlow. It holds a part of an epoch, or several. What a step is does not depend on how many a
block holds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vae_anomaly.core.adam import Adam
from vae_anomaly.core.backend import tf
from vae_anomaly.core.rows import Rows
from vae_anomaly.core.shapes import check_shape
from vae_anomaly.core.types import Flags, Tensor
from vae_anomaly.engine.held_out import HELD_OUT_ROWS, HELD_OUT_TILE, Best, HeldOut, measure
from vae_anomaly.engine.programs import Architecture, Program, on_device
from vae_anomaly.model.states import ModelState
from vae_anomaly.objectives import ELBO, Objective, loss_terms

__all__ = [
    "BlockFigures",
    "BlockOptions",
    "Limits",
    "TrainingState",
    "block_steps",
    "model_state",
    "train_block",
    "training_state",
]

_ADAM = Adam()
# Philox makes four numbers of each count.
_PHILOX, _PHILOX_NUMBERS = 1, 4
# Where the second stream of random numbers begins, for the same seed.
_SECOND_STREAM = 2**63
# After eight calls, Python 3.11 replaces a function's instructions by ones for what it has met.
_CALLS_UNTIL_SPECIALIZED = 16
# Large enough to hide the call, small enough for the cache.
_BLOCK_NUMBERS = 2**20
_BLOCK_STEPS = 64
# More rows to a batch are sorted: to compare each loss with each takes longer then.
_RANKED_ROWS = 512


class TrainingState(NamedTuple):
    """A model and its optimizer in the middle of training, as tensors."""

    trainable: Tensor
    first_moment: Tensor
    second_moment: Tensor
    non_trainable: list[Tensor]


class BlockFigures(NamedTuple):
    """What happened in a block.

    Attributes
    ----------
    terms : float64 array of shape (n_steps, 3)
        Mean loss, reconstruction and KL of each batch.
    held_out : float64 array of shape (n_steps, 2)
        Mean reconstruction and KL of the held-out rows after steps that end an epoch; 0 elsewhere.
    """

    terms: npt.NDArray[np.float64]
    held_out: npt.NDArray[np.float64]


class BlockOptions(NamedTuple):
    """What a training program is compiled for, besides its architecture.

    Whether something is limited is compiled; the limit itself goes in as a number, see `Limits`.
    """

    batch_size: int
    objective: Objective = ELBO
    n_training_draws: int = 1
    has_free_bits: bool = False
    clips_gradient: bool = False
    is_incomplete: bool = False
    n_held_out_draws: int = 0
    jit_compile: bool = False
    device: str | None = None


class Limits(NamedTuple):
    """Numbers that a training program takes at each call."""

    free_bits: Tensor
    gradient_clip_norm: Tensor
    n_kept: Tensor
    masked_fraction: Tensor


def block_steps(architecture: Architecture, batch_size: int) -> int:
    """How many training steps one block can take."""
    return int(np.clip(_BLOCK_NUMBERS // (batch_size * architecture.n_features), 1, _BLOCK_STEPS))


def training_state(state: ModelState) -> TrainingState:
    """A model as tensors, with an optimizer that has not seen a step."""
    trainable = tf.convert_to_tensor(np.asarray(state.trainable))
    non_trainable = [tf.convert_to_tensor(np.asarray(value)) for value in state.non_trainable]
    nothing = tf.zeros_like(trainable)
    return TrainingState(trainable, nothing, nothing, non_trainable)


def model_state(architecture: Architecture, training: TrainingState) -> ModelState:
    """The model of a training state as arrays."""
    non_trainable = tuple(value.numpy() for value in training.non_trainable)
    return ModelState(architecture.specification, training.trainable.numpy(), non_trainable)


def train_block(
    architecture: Architecture,
    state: TrainingState,
    rows: Rows,
    order: npt.NDArray[np.integer],
    rates: npt.NDArray[np.float32],
    betas: npt.NDArray[np.float32],
    options: BlockOptions,
    limits: Limits,
    *,
    noise_seed: int,
    first_step: int,
    only: int | None = None,
    ends: Flags | None = None,
    progress: npt.NDArray[np.float32] | None = None,
    held_out: HeldOut | None = None,
    best: Best | None = None,
) -> tuple[TrainingState, BlockFigures, Best | None]:
    """Take a step with each batch of rows, by a program that is compiled once for these options.

    Parameters
    ----------
    architecture : Architecture
    state : TrainingState
    rows : array of shape (n_rows, n_features)
    order : array of shape (n_steps, batch_size), at most `block_steps` batches
        Positions of the rows of each batch.
    rates, betas : arrays of shape (n_steps,)
        Learning rate and weight of the KL at each step.
    options : BlockOptions
    limits : Limits
    noise_seed : int
        With the number of a step, decides its noise.
    first_step : int
        How many steps have been taken before this block.
    only : int or None, default=None
        The position of a batch: the one step of the block to take.
    ends : bool array of shape (n_steps,) or None, default=None
        Which steps end an epoch: the loss of the held-out rows is measured after them.
    progress : array of shape (n_steps,) or None, default=None
        How far the training is at each step, from 0 to 1, where the posterior asks for it; None is 0.
    held_out : HeldOut or None, default=None
    best : Best or None, default=None
        Of the epochs before, where there are held-out rows.

    Returns
    -------
    state : TrainingState
    figures : BlockFigures
    best : Best or None
        Where there are held-out rows.
    """
    if only is not None:
        chosen = slice(only, only + 1)
        order, rates, betas, first_step = order[chosen], rates[chosen], betas[chosen], first_step + only
        ends = None if ends is None else ends[chosen]
        progress = None if progress is None else progress[chosen]
    n_steps = len(order)
    shape = (options.n_training_draws, options.batch_size, architecture.noise_width)
    # One operation; tf.random.stateless_normal is thirty, which mix the seed that Philox takes as it is.
    noise = _numbers_of_steps(tf.raw_ops.StatelessRandomNormalV2, noise_seed, 0, first_step, n_steps, shape)
    uniform = None
    if options.is_incomplete:
        of_batch = (options.batch_size, architecture.n_features)
        uniform = _numbers_of_steps(
            tf.raw_ops.StatelessRandomUniformV2, noise_seed, _SECOND_STREAM, first_step, n_steps, of_batch
        )
    rates = _ADAM.rates(rates, first_step)
    if ends is None:
        ends = np.zeros(n_steps, dtype=bool)
    if progress is None:
        progress = np.zeros(n_steps, dtype=np.float32)
    if options.jit_compile:
        n_filled = block_steps(architecture, options.batch_size)
        noise = tf.pad(noise, [[0, n_filled - n_steps], [0, 0], [0, 0], [0, 0]])
        uniform = None if uniform is None else tf.pad(uniform, [[0, n_filled - n_steps], [0, 0], [0, 0]])
        order = np.resize(order, (n_filled, options.batch_size))
        rates, betas, progress = (np.resize(v, n_filled) for v in (rates, betas, progress))
        ends = np.resize(ends, n_filled)
    program = architecture.program(options, lambda: _compile(architecture, options))
    state, terms, held_out_terms, best = program(
        state,
        tf.convert_to_tensor(rows[order]),
        uniform,
        noise,
        tf.constant(n_steps),
        tf.constant(rates),
        tf.constant(betas),
        limits,
        tf.constant(ends),
        tf.constant(progress) if architecture.follows_progress else None,
        held_out,
        best,
    )
    figures = BlockFigures(*(values.numpy()[:n_steps].astype(float) for values in (terms, held_out_terms)))
    return state, figures, best


@functools.cache
def call_once() -> None:
    """Call the operations that `train_block` prepares a block by, before several threads do so at once.

    Once in a process. On Python 3.11 and a busy machine, the first calls of these operations have ended the
    process while another thread traced a program (SIGSEGV in `typing`'s instance checks, which TensorFlow's
    dispatch asks): 6 of 62 first fits, and none of the 46 that began so.
    """
    for _ in range(_CALLS_UNTIL_SPECIALIZED):
        noise = _numbers_of_steps(tf.raw_ops.StatelessRandomNormalV2, 0, 0, 0, 1, (1, 3))
        uniform = _numbers_of_steps(tf.raw_ops.StatelessRandomUniformV2, 0, _SECOND_STREAM, 0, 1, (1, 3))
        tf.convert_to_tensor(np.zeros((1, 3), dtype=np.float32))
        tf.constant(1)
        for numbers in (noise, uniform):
            tf.pad(numbers, [[0, 1], [0, 0], [0, 0]])


def _numbers_of_steps(
    draw: Callable[..., Tensor], seed: int, stream: int, first_step: int, n_steps: int, shape: tuple[int, ...]
) -> Tensor:
    """Random numbers of so many steps, (n_steps, *shape): a step's own, in whatever block it stands."""
    n_numbers = math.prod(shape)
    n_counted = -(-n_numbers // _PHILOX_NUMBERS)
    numbers = draw(
        shape=(n_steps, n_counted * _PHILOX_NUMBERS),
        key=np.array([seed], dtype=np.uint64),
        counter=np.array([first_step * n_counted, stream], dtype=np.uint64),
        alg=_PHILOX,
    )
    if n_numbers % _PHILOX_NUMBERS:  # to slice a tensor costs more than to draw it
        numbers = numbers[:, :n_numbers]
    return tf.reshape(numbers, (n_steps, *shape))


def _compile(architecture: Architecture, options: BlockOptions) -> Program:
    """``(state, batches, ..., held_out, best) -> (state, terms, held_out_terms, best)``."""
    n_blocked = block_steps(architecture, options.batch_size) if options.jit_compile else None
    vector = tf.TensorSpec((architecture.n_weights,), tf.float32)
    number, count = tf.TensorSpec((), tf.float32), tf.TensorSpec((), tf.int32)
    precise = tf.TensorSpec((), tf.float64)
    by_step = tf.TensorSpec((n_blocked,), tf.float32)
    non_trainable = [tf.TensorSpec(v.shape, v.dtype) for v in architecture.template.non_trainable_variables]
    batch = (n_blocked, options.batch_size, architecture.n_features)
    noise = (n_blocked, options.n_training_draws, options.batch_size, architecture.noise_width)
    held_out = best = None
    if options.n_held_out_draws:
        tiles: tuple[int | None, ...] = (None, None, architecture.n_features)
        if options.jit_compile:
            tiles = (HELD_OUT_ROWS // HELD_OUT_TILE, HELD_OUT_TILE, architecture.n_features)
        draws = (options.n_held_out_draws, architecture.noise_width)
        held_out = HeldOut(tf.TensorSpec(tiles, tf.float32), count, tf.TensorSpec(draws, tf.float32), precise)
        best = Best(precise, vector, non_trainable)
    function = tf.function(_block(architecture, options), autograph=False, jit_compile=options.jit_compile)
    with on_device(options.device):
        compiled: Program = function.get_concrete_function(
            TrainingState(vector, vector, vector, non_trainable),
            tf.TensorSpec(batch, tf.float32),
            tf.TensorSpec(batch, tf.float32) if options.is_incomplete else None,
            tf.TensorSpec(noise, tf.float32),
            count,
            by_step,
            by_step,
            Limits(number, number, count, number),
            tf.TensorSpec((n_blocked,), tf.bool),
            by_step if architecture.follows_progress else None,
            held_out,
            best,
        )
    return compiled


def _block(architecture: Architecture, options: BlockOptions) -> Program:
    def block(
        state: TrainingState,
        batches: Tensor,
        uniform: Tensor,
        noise: Tensor,
        n_steps: Tensor,
        rates: Tensor,
        betas: Tensor,
        limits: Limits,
        ends: Tensor,
        progress: Tensor | None,
        held_out: HeldOut | None,
        best: Best | None,
    ) -> tuple[TrainingState, Tensor, Tensor, Best | None]:
        def step(
            position: Tensor, state: TrainingState, terms: Any, held_out_terms: Any, best: Any
        ) -> tuple[Any, ...]:
            if progress is not None:
                others = architecture.at_progress(state.non_trainable, progress[position])
                state = state._replace(non_trainable=others)
            x, step_noise, rate, beta = (values[position] for values in (batches, noise, rates, betas))
            # The objective keeps the masked values: the bound holds for any encoder.
            seen = x if uniform is None else tf.where(uniform[position] < limits.masked_fraction, math.nan, x)
            gradient, non_trainable, of_batch = _gradient(
                architecture, state, x, seen, step_noise, beta, limits, options
            )
            if options.clips_gradient:
                gradient = _clip(gradient, limits.gradient_clip_norm)
            moved = _ADAM.step(state.trainable, state.first_moment, state.second_moment, gradient, rate)
            state = TrainingState(*moved, non_trainable)
            terms = terms.write(position, of_batch)
            if held_out is not None:
                of_held_out, best = tf.cond(
                    ends[position],
                    lambda: measure(
                        architecture,
                        state.trainable,
                        state.non_trainable,
                        held_out,
                        best,
                        options.is_incomplete,
                    ),
                    lambda: (tf.zeros(2, tf.float64), best),
                )
                held_out_terms = held_out_terms.write(position, of_held_out)
            return position + 1, state, terms, held_out_terms, best

        size = tf.shape(rates)[0] if rates.shape[0] is None else rates.shape[0]
        nothing = (
            tf.TensorArray(tf.float32, size, element_shape=(3,)),
            tf.TensorArray(tf.float64, size, element_shape=(2,)),
        )
        _, state, terms, held_out_terms, best = tf.while_loop(
            lambda position, *_: position < n_steps,
            step,
            (tf.constant(0), state, *nothing, () if best is None else best),
            parallel_iterations=1,
        )
        return state, terms.stack(), held_out_terms.stack(), best or None

    return block


def _gradient(
    architecture: Architecture,
    state: TrainingState,
    x: Tensor,
    seen: Tensor,
    noise: Tensor,
    beta: Tensor,
    limits: Limits,
    options: BlockOptions,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Gradient of the batch's loss, new values of what is not trained, and the means of the loss's terms.

    ``seen`` is what the encoder sees of the rows x.
    """
    template = architecture.template
    vae = template.incomplete(missing_counts=False) if options.is_incomplete else template
    with tf.GradientTape() as tape:
        tape.watch(state.trainable)
        with architecture.holding(state.trainable, state.non_trainable) as scope:
            inferred = vae.infer(seen, noise, training=True)
            log_prob = check_shape(
                vae.likelihood.log_prob(x, inferred.parameters),
                "log_prob of the likelihood",
                "(n_draws, n_rows, n_features)",
                (noise.shape[0], *x.shape),
            )
            terms = loss_terms(
                tf.reduce_sum(log_prob, axis=-1),
                inferred.log_ratio,
                vae.kl_per_latent(inferred.context, training=True),
                objective=options.objective,
                beta=beta,
                free_bits=limits.free_bits if options.has_free_bits else None,
            )
            non_trainable = [scope.get_current_value(v) for v in template.non_trainable_variables]
            auxiliary = vae.auxiliary_loss(inferred, noise)
            # What layers of a user's own add: weight penalties and the like.
            added = sum(template.losses, tf.zeros(()))
        means = [tf.reduce_mean(term) for term in terms]
        means[0] = _trimmed_mean(terms.loss, limits.n_kept) + added
        minimized = means[0] if auxiliary is None else means[0] + tf.reduce_mean(auxiliary)
    return tape.gradient(minimized, state.trainable), non_trainable, tf.stack(means)


def _trimmed_mean(losses: Tensor, n_kept: Tensor) -> Tensor:
    """Mean of the ``n_kept`` smallest losses."""
    positions = tf.range(losses.shape[0])
    if losses.shape[0] <= _RANKED_ROWS:
        smaller = losses[None] < losses[:, None]
        before = (losses[None] == losses[:, None]) & (positions[None] < positions[:, None])
        counts = tf.reduce_sum(tf.cast(smaller | before, tf.int32), axis=1) < n_kept
    else:
        losses, counts = tf.sort(losses), positions < n_kept
    return tf.reduce_sum(tf.where(counts, losses, 0.0)) / tf.cast(n_kept, tf.float32)


def _clip(gradient: Tensor, norm: Tensor) -> Tensor:
    """The gradient, shortened to this norm if it is longer."""
    return gradient * norm / tf.maximum(tf.norm(gradient), norm)
