r"""Compiled TensorFlow programs, one set for each architecture, shared by every detector in the process.

A program is a pure function: weights, optimizer moments and seeds go in as tensors, new ones come out.
Nothing lives in a `tf.Variable`, so a program can serve any number of fits, one after another or in
several threads at once, without being traced or compiled again. All trainable weights travel as one
flat vector: the optimizer's update is then a handful of operations whatever the number of layers.

Shapes never depend on the number of rows. Training takes blocks of ``block_steps`` batches, of which it
uses the first ``n_steps``; scoring takes tiles of a fixed number of rows. A fixed tile is also what
makes scores independent of how rows are batched: float32 matrix products of one shape treat every row
alike, those of different shapes do not.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vae_anomaly.backend import keras, tf
from vae_anomaly.objective import loss_terms
from vae_anomaly.rows import Rows
from vae_anomaly.states import ModelState, Specification

__all__ = [
    "Architecture",
    "BlockOptions",
    "Limits",
    "TrainingState",
    "architecture",
    "architecture_of",
    "model_of",
    "placed",
]

# Adam's constants: Kingma & Ba 2015, with Keras' epsilon.
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7
_CACHED_ARCHITECTURES = _CACHED_PROGRAMS = 16
# A block of batches is gathered at once: large enough to hide the call, small enough for the cache.
_BLOCK_NUMBERS = 2**20
_BLOCK_STEPS = 64
_BLOCK_OF_TILES_NUMBERS = 2**22
# About 0.1 ms of arithmetic on one core: a smaller tile pays more for its calls, a larger one makes a
# single row dear.
_TILE_FLOPS = 8e6
_TILE_ROWS = (16, 256)


class TrainingState(NamedTuple):
    """A model and its optimizer in the middle of training, as tensors."""

    trainable: Any
    first_moment: Any
    second_moment: Any
    step: Any
    non_trainable: list[Any]


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
    jit_compile: bool = False
    device: str | None = None


class Limits(NamedTuple):
    """Numbers that a training program takes at each call."""

    free_bits: Any
    gradient_clip_norm: Any
    n_kept: Any


class _Recent:
    """The most recently used values by key, made when they are missing."""

    def __init__(self, n_kept: int) -> None:
        self._n_kept = n_kept
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._values:
                self._values[key] = make()
                if len(self._values) > self._n_kept:
                    self._values.popitem(last=False)
            self._values.move_to_end(key)
            return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(list(self._values))


class Architecture:
    """A template VAE and the programs compiled over it.

    The template's own variables are never trained: they say how many there are, of which shape, and
    how to draw new values.
    """

    def __init__(self, specification: Specification) -> None:
        self.specification = specification
        self.n_features, self.latent_dim = specification.n_features, specification.latent_dim
        self.template = self.new_model()
        self._shapes = [tuple(v.shape) for v in self.template.trainable_variables]
        self._sizes = [int(np.prod(shape)) for shape in self._shapes]
        self._programs = _Recent(_CACHED_PROGRAMS)
        if not self._sizes:
            raise ValueError(
                "there is nothing to train: the network has no trainable weights. Set "
                "`trainable = True` on some of its layers."
            )

    @property
    def n_weights(self) -> int:
        """Number of trainable weights."""
        return sum(self._sizes)

    def block_steps(self, batch_size: int) -> int:
        """How many training steps one call of a training program can take."""
        return int(np.clip(_BLOCK_NUMBERS // (batch_size * self.n_features), 1, _BLOCK_STEPS))

    def tile_rows(self, n_draws: int) -> int:
        """How many rows one scoring step takes: a power of two that depends on the model alone."""
        encoder = 2 * self.template.encoder.count_params()
        decoder = 2 * self.template.decoder.count_params()
        rows = _TILE_FLOPS / max(1, encoder + n_draws * decoder)
        return int(np.clip(2 ** int(np.log2(max(rows, 1))), *_TILE_ROWS))

    # -- states ---------------------------------------------------------------------------------------
    def new_model(self) -> Any:
        """A new `VAE` of this architecture."""
        from vae_anomaly.model import VAE  # a Keras class: importing it loads TensorFlow

        if {keras.config.floatx(), keras.config.dtype_policy().name} != {"float32"}:
            raise ValueError(
                "vae_anomaly computes in float32, but Keras is set to dtype policy "
                f"{keras.config.dtype_policy().name!r} and floatx {keras.config.floatx()!r}; call "
                "keras.config.set_floatx('float32') and keras.config.set_dtype_policy('float32') first."
            )
        network, likelihood, n_features, latent_dim = self.specification
        encoder, decoder = network.build(n_features, latent_dim, likelihood.n_params)
        return VAE(encoder, decoder, likelihood, n_features, latent_dim, name="vae")

    def initial_state(self, seed: int, input_range: Rows) -> ModelState:
        """New weights drawn from ``seed``, for an encoder that is to see values in ``input_range``."""
        values = dict(
            zip(
                map(id, self.template.variables),
                self.template.initial_values(seed, self.specification.network.starts_from_new_weights),
                strict=True,
            )
        )
        values[id(self.template.input_range)] = input_range
        trainable = [values[id(v)].ravel() for v in self.template.trainable_variables]
        return ModelState(
            self.specification,
            np.concatenate(trainable).astype(np.float32),
            tuple(values[id(v)] for v in self.template.non_trainable_variables),
        )

    def with_input_range(self, state: ModelState, input_range: Rows) -> ModelState:
        """The same weights, for an encoder that is to see values in ``input_range`` as well."""
        non_trainable = list(state.non_trainable)
        (position,) = (
            position
            for position, variable in enumerate(self.template.non_trainable_variables)
            if variable is self.template.input_range
        )
        low, high = non_trainable[position]
        non_trainable[position] = np.stack(
            [np.minimum(low, input_range[0]), np.maximum(high, input_range[1])]
        )
        return replace(state, non_trainable=tuple(non_trainable))

    def load_into(self, model: Any, state: ModelState) -> None:
        """Assign a state's arrays to a model's variables."""
        pieces = np.split(np.asarray(state.trainable), np.cumsum(self._sizes)[:-1])
        for variable, piece, shape in zip(model.trainable_variables, pieces, self._shapes, strict=True):
            variable.assign(piece.reshape(shape))
        for variable, value in zip(model.non_trainable_variables, state.non_trainable, strict=True):
            variable.assign(value)

    def state_of(self, model: Any) -> ModelState:
        """A model's variables as arrays."""
        trainable = [variable.numpy().ravel() for variable in model.trainable_variables]
        non_trainable = tuple(np.asarray(variable.numpy()) for variable in model.non_trainable_variables)
        return ModelState(self.specification, np.concatenate(trainable), non_trainable)

    def training_state(self, state: ModelState) -> TrainingState:
        """A model as tensors, with an optimizer that has not seen a step."""
        trainable = tf.convert_to_tensor(np.asarray(state.trainable))
        non_trainable = [tf.convert_to_tensor(np.asarray(value)) for value in state.non_trainable]
        nothing = tf.zeros_like(trainable)
        return TrainingState(trainable, nothing, nothing, tf.constant(0), non_trainable)

    def model_state(self, training: TrainingState) -> ModelState:
        """The model of a training state as arrays."""
        non_trainable = tuple(value.numpy() for value in training.non_trainable)
        return ModelState(self.specification, training.trainable.numpy(), non_trainable)

    @contextlib.contextmanager
    def _holding(self, trainable: Any, non_trainable: Sequence[Any]) -> Iterator[Any]:
        """The template, computing with these tensors in the place of its variables."""
        pieces = tf.split(trainable, self._sizes)
        values = [tf.reshape(piece, shape) for piece, shape in zip(pieces, self._shapes, strict=True)]
        mapping = [
            *zip(self.template.trainable_variables, values, strict=True),
            *zip(self.template.non_trainable_variables, non_trainable, strict=True),
        ]
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            yield scope

    # -- training -------------------------------------------------------------------------------------
    def training_program(self, options: BlockOptions) -> Callable[..., Any]:
        """The compiled ``(state, batches, n_steps, rates, betas, limits, seed) -> (state, loss sums)``.

        ``batches`` has shape (block_steps, batch_size, n_features); the first ``n_steps`` are used,
        each with its learning rate and its beta. The sums are over the steps' mean loss,
        reconstruction and KL.
        """
        return self._programs.get(options, lambda: self._compile_training(options))  # type: ignore[no-any-return]

    def _compile_training(self, options: BlockOptions) -> Callable[..., Any]:
        steps = self.block_steps(options.batch_size)
        float32, int32 = tf.float32, tf.int32
        vector = tf.TensorSpec((self.n_weights,), float32)
        non_trainable = [tf.TensorSpec(v.shape, v.dtype) for v in self.template.non_trainable_variables]
        function = tf.function(
            self._training_block(options), autograph=False, jit_compile=options.jit_compile
        )
        with placed(options.device):
            return function.get_concrete_function(  # type: ignore[no-any-return]
                TrainingState(vector, vector, vector, tf.TensorSpec((), int32), non_trainable),
                tf.TensorSpec((steps, options.batch_size, self.n_features), float32),
                tf.TensorSpec((), int32),
                tf.TensorSpec((steps,), float32),
                tf.TensorSpec((steps,), float32),
                Limits(tf.TensorSpec((), float32), tf.TensorSpec((), float32), tf.TensorSpec((), int32)),
                tf.TensorSpec((), int32),
            )

    def _training_block(self, options: BlockOptions) -> Callable[..., Any]:
        def block(
            state: TrainingState,
            batches: Any,
            n_steps: Any,
            rates: Any,
            betas: Any,
            limits: Limits,
            seed: Any,
        ) -> tuple[TrainingState, Any]:
            def step(position: Any, state: TrainingState, sums: Any) -> tuple[Any, TrainingState, Any]:
                gradient, non_trainable, terms = self._gradient(
                    state, batches[position], betas[position], limits, seed, options
                )
                if options.clips_gradient:
                    gradient = _clipped(gradient, limits.gradient_clip_norm)
                state = _adam(state, gradient, rates[position])
                return position + 1, state._replace(non_trainable=non_trainable), sums + terms

            loop = (tf.constant(0), state, tf.zeros(3))
            _, state, sums = tf.while_loop(
                lambda position, *_: position < n_steps, step, loop, parallel_iterations=1
            )
            return state, sums

        return block

    def _gradient(
        self, state: TrainingState, x: Any, beta: Any, limits: Limits, seed: Any, options: BlockOptions
    ) -> tuple[Any, list[Any], Any]:
        noise = tf.random.stateless_normal(
            (options.n_training_draws, options.batch_size, self.latent_dim),
            seed=tf.stack([seed, state.step]),
            alg="philox",
        )
        with tf.GradientTape() as tape:
            tape.watch(state.trainable)
            with self._holding(state.trainable, state.non_trainable) as scope:
                inferred = self.template.infer(x, noise, training=True)
                log_prob = self.template.likelihood.log_prob(x, inferred.parameters)
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
                non_trainable = [scope.get_current_value(v) for v in self.template.non_trainable_variables]
                # What layers of a user's own add: weight penalties and the like.
                added = sum(self.template.losses, tf.zeros(()))
            means = [tf.reduce_mean(term) for term in terms]
            if options.is_trimmed:
                means[0] = _trimmed_mean(terms.loss, limits.n_kept)
            means[0] += added
        return tape.gradient(means[0], state.trainable), non_trainable, tf.stack(means)

    # -- row by row -----------------------------------------------------------------------------------
    def map_rows(
        self,
        function: Callable[[Any, Any, Any], Any],
        key: Hashable,
        states: Sequence[ModelState],
        rows: Rows,
        noise: Rows,
        device: str | None = None,
    ) -> npt.NDArray[Any]:
        """Apply ``function(vae, x, noise)`` to all rows in tiles of a fixed size, with each model.

        Parameters
        ----------
        function : callable
            Takes the VAE, rows of shape (tile, n_features) and noise of shape (n_draws, 1, latent_dim);
            returns one tensor whose first axis is the tile's.
        key : hashable
            Names what ``function`` computes; it is traced once for each key.
        states : models of this architecture
        rows : array of shape (n_rows, n_features)
        noise : array of shape (n_draws, latent_dim), shared by all rows
        device : str or None

        Returns
        -------
        float64 array of shape (n_states, n_rows, ...)
        """
        n_draws = len(noise)
        tile = self.tile_rows(n_draws)
        program = self._row_program(function, key, len(states), n_draws, device)
        models = [_on_device(state, device) for state in states]
        block = max(1, _BLOCK_OF_TILES_NUMBERS // (tile * self.n_features)) * tile
        results = []
        with placed(device):
            noise_tensor = tf.convert_to_tensor(np.asarray(noise, dtype=np.float32))
            for start in range(0, max(len(rows), 1), block):
                part = rows[start : start + block]
                tiles = np.zeros((-(-len(part) // tile), tile, self.n_features), dtype=np.float32)
                tiles.reshape(-1, self.n_features)[: len(part)] = part
                result = program(models, tf.convert_to_tensor(tiles), noise_tensor).numpy()
                by_model = np.moveaxis(result, 1, 0)
                results.append(by_model.reshape(len(states), -1, *result.shape[3:])[:, : len(part)])
        return results[0] if len(results) == 1 else np.concatenate(results, axis=1)

    def _row_program(
        self, function: Callable[..., Any], key: Hashable, n_states: int, n_draws: int, device: str | None
    ) -> Callable[..., Any]:
        """The compiled ``(models, tiles, noise) -> (n_tiles, n_states, tile, ...)``."""

        def run(models: Any, tiles: Any, noise: Any) -> Any:
            def of_tile(x: Any) -> Any:
                results = []
                for trainable, non_trainable in models:
                    with self._holding(trainable, non_trainable):
                        results.append(tf.cast(function(self.template, x, noise[:, None]), tf.float64))
                return tf.stack(results)

            return tf.map_fn(of_tile, tiles, fn_output_signature=tf.float64)

        def trace() -> Any:
            vector = tf.TensorSpec((self.n_weights,), tf.float32)
            non_trainable = [tf.TensorSpec(v.shape, v.dtype) for v in self.template.non_trainable_variables]
            with placed(device):
                return tf.function(run, autograph=False).get_concrete_function(
                    [(vector, non_trainable)] * n_states,
                    tf.TensorSpec((None, self.tile_rows(n_draws), self.n_features), tf.float32),
                    tf.TensorSpec((n_draws, self.latent_dim), tf.float32),
                )

        return self._programs.get((key, n_states, n_draws, device), trace)  # type: ignore[no-any-return]


def architecture(specification: Specification) -> Architecture:
    """The process-wide `Architecture` for this specification; the least recently used are dropped."""
    return _cache.get(specification.key, lambda: Architecture(specification))  # type: ignore[no-any-return]


def architecture_of(state: ModelState) -> Architecture:
    """The `Architecture` of a trained model, which keeps it for as long as it lives."""
    found = _architectures.get(state)
    if found is None:
        found = _architectures.setdefault(state, architecture(state.specification))
    return found


def model_of(state: ModelState) -> Any:
    """A trained model as a new `VAE`, a `keras.Model`."""
    its_architecture = architecture_of(state)
    model = its_architecture.new_model()
    its_architecture.load_into(model, state)
    return model


_cache = _Recent(_CACHED_ARCHITECTURES)
# A process that serves more models than the cache holds must not trace one anew for each row.
_architectures: weakref.WeakKeyDictionary[ModelState, Architecture] = weakref.WeakKeyDictionary()

# A state's arrays as tensors, for as long as somebody holds the state: copying them at every call would
# cost more than scoring a row.
_tensors: weakref.WeakKeyDictionary[ModelState, dict[str | None, Any]] = weakref.WeakKeyDictionary()
_tensors_lock = threading.Lock()


def _on_device(state: ModelState, device: str | None) -> tuple[Any, list[Any]]:
    with _tensors_lock:
        tensors = _tensors.setdefault(state, {})
    if device not in tensors:
        with placed(device):
            non_trainable = [tf.convert_to_tensor(value) for value in state.non_trainable]
            tensors[device] = (tf.convert_to_tensor(state.trainable), non_trainable)
    return tensors[device]  # type: ignore[no-any-return]


def placed(device: str | None) -> contextlib.AbstractContextManager[Any]:
    """Put TensorFlow's operations on this device; None leaves the choice to TensorFlow."""
    return contextlib.nullcontext() if device is None else tf.device(device)


def _trimmed_mean(losses: Any, n_kept: Any) -> Any:
    """Mean of the ``n_kept`` smallest losses."""
    counts = tf.range(losses.shape[0]) < n_kept
    return tf.reduce_sum(tf.where(counts, tf.sort(losses), 0.0)) / tf.cast(n_kept, tf.float32)


def _clipped(gradient: Any, norm: Any) -> Any:
    """The gradient, shortened to this norm if it is longer."""
    return gradient * norm / tf.maximum(tf.norm(gradient), norm)


def _adam(state: TrainingState, gradient: Any, rate: Any) -> TrainingState:
    """One step of Adam on the flat weight vector."""
    step = state.step + 1
    count = tf.cast(step, tf.float32)
    first = state.first_moment + (1 - _BETA_1) * (gradient - state.first_moment)
    second = state.second_moment + (1 - _BETA_2) * (tf.square(gradient) - state.second_moment)
    rate = rate * tf.sqrt(1 - _BETA_2**count) / (1 - _BETA_1**count)
    trainable = state.trainable - rate * first / (tf.sqrt(second) + _EPSILON)
    return TrainingState(trainable, first, second, step, state.non_trainable)
