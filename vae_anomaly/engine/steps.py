"""Training steps, compiled in blocks: noise, gradient, Adam.

A block is one call: up to ``block_steps`` batches, gathered from the rows at once, and a loop over them
inside TensorFlow. What a step is does not depend on how many a block holds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vae_anomaly.core.adam import Adam
from vae_anomaly.core.backend import tf
from vae_anomaly.core.objective import loss_terms
from vae_anomaly.core.rows import Rows
from vae_anomaly.core.types import Tensor
from vae_anomaly.engine.programs import Architecture, Program, on_device
from vae_anomaly.model.states import ModelState

__all__ = [
    "BlockOptions",
    "Limits",
    "TrainingState",
    "block_steps",
    "model_state",
    "train_block",
    "training_state",
]

_ADAM = Adam()
_PHILOX = 1
# Where the second stream of random numbers begins, for the same seed and step.
_SECOND_STREAM = 2**63
# Large enough to hide the call, small enough for the cache.
_BLOCK_NUMBERS = 2**20
_BLOCK_STEPS = 64


class TrainingState(NamedTuple):
    """A model and its optimizer in the middle of training, as tensors."""

    trainable: Tensor
    first_moment: Tensor
    second_moment: Tensor
    non_trainable: list[Tensor]


class BlockOptions(NamedTuple):
    """What a training program is compiled for, besides its architecture.

    Whether something is limited is compiled; the limit itself goes in as a number, see `Limits`.
    """

    batch_size: int
    objective: str = "elbo"
    n_training_draws: int = 1
    has_free_bits: bool = False
    clips_gradient: bool = False
    is_trimmed: bool = False
    is_incomplete: bool = False
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
) -> tuple[TrainingState, Tensor]:
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
        With ``first_step``, decides the noise.
    first_step : int
        How many steps have been taken before this block.
    only : int or None, default=None
        The position of a batch: the one step of the block to take.

    Returns
    -------
    state : TrainingState
    sums : tensor of shape (3,)
        Mean loss, reconstruction and KL of each batch, summed over the steps.
    """
    n_steps = len(order)
    # One operation; tf.random.stateless_normal is thirty, which mix the seed that Philox takes as it is.
    noise = tf.raw_ops.StatelessRandomNormalV2(
        shape=(n_steps, options.n_training_draws, options.batch_size, architecture.latent_dim),
        key=np.array([noise_seed], dtype=np.uint64),
        counter=np.array([0, first_step], dtype=np.uint64),
        alg=_PHILOX,
    )
    uniform = None
    if options.is_incomplete:
        uniform = tf.raw_ops.StatelessRandomUniformV2(
            shape=(n_steps, options.batch_size, architecture.n_features),
            key=np.array([noise_seed], dtype=np.uint64),
            counter=np.array([_SECOND_STREAM, first_step], dtype=np.uint64),
            alg=_PHILOX,
        )
    rates = _ADAM.rates(rates, first_step)
    if only is not None:
        chosen, n_steps = slice(only, only + 1), 1
        order, rates, betas, noise = order[chosen], rates[chosen], betas[chosen], noise[chosen]
        uniform = None if uniform is None else uniform[chosen]
    if options.jit_compile:  # XLA compiles for one shape
        n_filled = block_steps(architecture, options.batch_size)
        noise = tf.pad(noise, [[0, n_filled - n_steps], [0, 0], [0, 0], [0, 0]])
        uniform = None if uniform is None else tf.pad(uniform, [[0, n_filled - n_steps], [0, 0], [0, 0]])
        order = np.resize(order, (n_filled, options.batch_size))
        rates, betas = np.resize(rates, n_filled), np.resize(betas, n_filled)
    program = architecture.program(options, lambda: _compile(architecture, options))
    taken: tuple[TrainingState, Tensor] = program(
        state,
        tf.convert_to_tensor(rows[order]),
        uniform,
        noise,
        tf.constant(n_steps),
        tf.constant(rates),
        tf.constant(betas),
        limits,
    )
    return taken


def _compile(architecture: Architecture, options: BlockOptions) -> Program:
    """``(state, batches, uniform, noise, n_steps, rates, betas, limits) -> (state, sums)``."""
    n_blocked = block_steps(architecture, options.batch_size) if options.jit_compile else None
    vector = tf.TensorSpec((architecture.n_weights,), tf.float32)
    number, count = tf.TensorSpec((), tf.float32), tf.TensorSpec((), tf.int32)
    by_step = tf.TensorSpec((n_blocked,), tf.float32)
    non_trainable = [tf.TensorSpec(v.shape, v.dtype) for v in architecture.template.non_trainable_variables]
    batch = (n_blocked, options.batch_size, architecture.n_features)
    noise = (n_blocked, options.n_training_draws, options.batch_size, architecture.latent_dim)
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
    ) -> tuple[TrainingState, Tensor]:
        def step(
            position: Tensor, state: TrainingState, sums: Tensor
        ) -> tuple[Tensor, TrainingState, Tensor]:
            x, step_noise, rate, beta = (values[position] for values in (batches, noise, rates, betas))
            # The objective keeps the masked values: the bound holds for any encoder.
            seen = x if uniform is None else tf.where(uniform[position] < limits.masked_fraction, math.nan, x)
            gradient, non_trainable, terms = _gradient(
                architecture, state, x, seen, step_noise, beta, limits, options
            )
            if options.clips_gradient:
                gradient = _clip(gradient, limits.gradient_clip_norm)
            moved = _ADAM.step(state.trainable, state.first_moment, state.second_moment, gradient, rate)
            return position + 1, TrainingState(*moved, non_trainable), sums + terms

        loop = (tf.constant(0), state, tf.zeros(3))
        _, state, sums = tf.while_loop(
            lambda position, *_: position < n_steps, step, loop, parallel_iterations=1
        )
        return state, sums

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
            log_prob = vae.likelihood.log_prob(x, inferred.parameters)
            terms = loss_terms(
                tf.reduce_sum(log_prob, axis=-1),
                inferred.z,
                noise,
                inferred.z_mean,
                inferred.z_log_var,
                objective=options.objective,
                beta=beta,
                free_bits=limits.free_bits if options.has_free_bits else None,
            )
            non_trainable = [scope.get_current_value(v) for v in template.non_trainable_variables]
            # What layers of a user's own add: weight penalties and the like.
            added = sum(template.losses, tf.zeros(()))
        means = [tf.reduce_mean(term) for term in terms]
        if options.is_trimmed:
            means[0] = _trimmed_mean(terms.loss, limits.n_kept)
        means[0] += added
    return tape.gradient(means[0], state.trainable), non_trainable, tf.stack(means)


def _trimmed_mean(losses: Tensor, n_kept: Tensor) -> Tensor:
    """Mean of the ``n_kept`` smallest losses."""
    counts = tf.range(losses.shape[0]) < n_kept
    return tf.reduce_sum(tf.where(counts, tf.sort(losses), 0.0)) / tf.cast(n_kept, tf.float32)


def _clip(gradient: Tensor, norm: Tensor) -> Tensor:
    """The gradient, shortened to this norm if it is longer."""
    return gradient * norm / tf.maximum(tf.norm(gradient), norm)
