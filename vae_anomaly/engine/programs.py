r"""Compiled TensorFlow programs, one set for each architecture, shared by every detector in the process.

A program is a pure function: weights, optimizer moments and seeds go in as tensors, new ones come out.
Nothing lives in a `tf.Variable`, so a program can serve any number of fits, one after another or in
several threads at once, without being traced or compiled again. All trainable weights travel as one
flat vector: the optimizer's update is then a handful of operations whatever the number of layers.

Here are the architectures, which own the programs; `steps` compiles training, `tiles` whatever is computed
row by row. Compiled shapes never depend on the number of rows.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from vae_anomaly.core.backend import in_float32, keras, tf
from vae_anomaly.core.rows import Rows
from vae_anomaly.core.types import Array, KerasModel, Tensor
from vae_anomaly.core.weights import PROGRESS
from vae_anomaly.model.column_transform import N_NUMBERS
from vae_anomaly.model.cost import multiply_adds
from vae_anomaly.model.states import ModelState, Specification
from vae_anomaly.networks.base import check_models, usual_heads

__all__ = [
    "Architecture",
    "architecture",
    "architecture_of",
    "model_of",
    "on_device",
    "with_column_transform",
    "without_column_transform",
]

_CACHED_ARCHITECTURES, _CACHED_PROGRAMS, _COUNTED_KEYS = 16, 24, 96

#: A compiled function of TensorFlow, of tensors in tuples and lists.
Program: TypeAlias = Callable[..., Any]
_Value = TypeVar("_Value")


class _Recent(Generic[_Value]):
    """The most recently used values by key, made when they are missing."""

    def __init__(self, n_kept: int) -> None:
        self._n_kept = n_kept
        self._values: OrderedDict[Hashable, _Value] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        with self._lock:
            if key not in self._values:
                self._values[key] = make()
                if len(self._values) > self._n_kept:
                    self._values.popitem(last=False)
            self._values.move_to_end(key)
            return self._values[key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

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
        self.n_features, self.noise_width = specification.n_features, specification.noise_width
        self.template = self.new_model()
        self._shapes = [tuple(v.shape) for v in self.template.trainable_variables]
        self._sizes = [int(np.prod(shape)) for shape in self._shapes]
        self._programs: _Recent[Program | None] = _Recent(_CACHED_PROGRAMS)
        self._calls: _Recent[Iterator[int]] = _Recent(_COUNTED_KEYS)
        #: Multiplications and additions for a row by the encoder, and for a draw of it by the decoder.
        self.encoder_size = multiply_adds(self.template.encoder)
        # What posterior and prior have of their own is met by each draw too.
        own = [variable for part in self.template.own_variables.values() for variable in part.values()]
        self.decoder_size = multiply_adds(self.template.decoder) + sum(int(np.prod(v.shape)) for v in own)
        every_z = self.template.every_z()
        #: How many values z has, if averages are sums over them; else 0.
        self.n_values = 0 if every_z is None else len(every_z)
        if not self._sizes:
            raise ValueError(
                "there is nothing to train: the network has no trainable weights. Set "
                "`trainable = True` on some of its layers."
            )

    def program(self, key: Hashable, make: Callable[[], Program | None]) -> Any:
        """The program of this key; ``make`` compiles it when it is not among the recent ones."""
        return self._programs.get(key, make)

    def count_call(self, key: Hashable) -> int:
        """How often this has been called with this key before."""
        return next(self._calls.get(key, itertools.count))

    @property
    def n_weights(self) -> int:
        """Number of trainable weights."""
        return sum(self._sizes)

    @property
    def has_convolutions(self) -> bool:
        """Whether a weight has more than two axes, as the kernels of convolutions do."""
        return any(len(weight.shape) > 2 for weight in self.template.weights)

    # -- states ---------------------------------------------------------------------------------------
    def new_model(self) -> KerasModel:
        """A new `VAE` of this architecture."""
        from vae_anomaly.model.vae import VAE

        network, likelihood, n_features, latent_dim, *_ = self.specification
        n_inputs = self.specification.n_inputs
        n_outputs = likelihood.n_outputs(n_features)
        heads = self.specification.posterior.heads(latent_dim)
        others = {} if heads == usual_heads(latent_dim) else {"heads": heads}
        with in_float32():
            if (n_inputs, n_outputs) == (n_features, n_features * likelihood.n_params):
                models = network.build(n_features, latent_dim, likelihood.n_params, **others)
            else:
                models = network.build_apart(n_inputs, n_outputs, latent_dim, **others)
            check_models(network, models, n_inputs, n_outputs, latent_dim, heads)
            return VAE(*models, **self.specification.of_model(), name="vae")

    def initial_state(self, seed: int, rows: Rows, scale_per_row: bool = False) -> ModelState:
        """New weights drawn from ``seed``, for a model that is to be trained on these rows.

        Where members may have a scale for each row or not, see `Likelihood.per_member`, this one has it if
        ``scale_per_row`` says so.
        """
        values = dict(
            zip(
                map(id, self.template.variables),
                self.template.initial_values(seed, self.specification.network.starts_from_new_weights),
                strict=True,
            )
        )
        likelihood = self.specification.likelihood
        values[id(self.template.input_range)] = likelihood.input_range(rows)
        if likelihood.n_shared:
            values[id(self.template.shared)] = self.template.initial_shared(rows, scale_per_row)
        values |= self.template.initial_own_values(seed, rows)
        trainable = [values[id(v)].ravel() for v in self.template.trainable_variables]
        return ModelState(
            self.specification,
            np.concatenate(trainable).astype(np.float32),
            tuple(values[id(v)] for v in self.template.non_trainable_variables),
        )

    def on_new_rows(self, state: ModelState, rows: Rows) -> ModelState:
        """The same weights, for a model that is to be trained on these rows as well."""
        input_range = self.specification.likelihood.input_range(rows)
        non_trainable = list(state.non_trainable)
        position = self._position(self.template.input_range)
        low, high = non_trainable[position]
        non_trainable[position] = np.stack(
            [np.minimum(low, input_range[0]), np.maximum(high, input_range[1])]
        )
        return replace(state, non_trainable=tuple(non_trainable))

    @property
    def follows_progress(self) -> bool:
        """Whether the posterior asks how far the training is."""
        return PROGRESS in self.template.own_variables["posterior"]

    def at_progress(self, non_trainable: Sequence[Tensor], progress: Tensor) -> list[Tensor]:
        """What is not trained, when the training has come so far."""
        position = self._position(self.template.own_variables["posterior"][PROGRESS])
        return [*non_trainable[:position], progress, *non_trainable[position + 1 :]]

    def _position(self, wanted: Any) -> int:
        """The place of a variable among those that are not trained."""
        variables = self.template.non_trainable_variables
        return next(position for position, variable in enumerate(variables) if variable is wanted)

    def load_into(self, model: KerasModel, state: ModelState) -> None:
        """Assign a state's arrays to a model's variables."""
        variables = [*model.trainable_variables, *model.non_trainable_variables]
        for variable, value in zip(variables, self.arrays(state), strict=True):
            variable.assign(value)

    def arrays(self, state: ModelState) -> list[Array]:
        """The values of a state's variables: of the trainable ones, then of the others."""
        pieces = np.split(np.asarray(state.trainable), np.cumsum(self._sizes)[:-1])
        trainable = [piece.reshape(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]
        return [*trainable, *state.non_trainable]

    def state_of(self, model: KerasModel) -> ModelState:
        """A model's variables as arrays."""
        trainable = [variable.numpy().ravel() for variable in model.trainable_variables]
        non_trainable = tuple(np.asarray(variable.numpy()) for variable in model.non_trainable_variables)
        return ModelState(self.specification, np.concatenate(trainable), non_trainable)

    def pieces(self, trainable: Tensor) -> list[Tensor]:
        """The trainable variables' values, from the flat vector that holds them."""
        pieces = tf.split(trainable, self._sizes)
        return [tf.reshape(piece, shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    @contextlib.contextmanager
    def holding(self, trainable: Tensor, non_trainable: Sequence[Tensor]) -> Iterator[Any]:
        """The template, computing with these tensors in the place of its variables.

        ``trainable`` is the flat vector, or a list of its `pieces`.
        """
        values = trainable if isinstance(trainable, list) else self.pieces(trainable)
        mapping = [
            *zip(self.template.trainable_variables, values, strict=True),
            *zip(self.template.non_trainable_variables, non_trainable, strict=True),
        ]
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            yield scope


def architecture(specification: Specification) -> Architecture:
    """The process-wide `Architecture` for this specification; the least recently used are dropped.

    Raises
    ------
    RuntimeError
        Where TensorFlow does not execute eagerly.
    """
    _check_eager()
    return _cache.get(specification.key, lambda: Architecture(specification))


def architecture_of(state: ModelState) -> Architecture:
    """The `Architecture` of a trained model, which keeps it for as long as it lives; see `architecture`."""
    _check_eager()
    found = _architectures.get(state)
    if found is None:
        found = _architectures.setdefault(state, architecture(state.specification))
    return found


def with_column_transform(state: ModelState, numbers: Rows) -> ModelState:
    """A model that was trained on transformed columns as one of columns as they were before."""
    whitens = len(numbers) > N_NUMBERS
    specification = state.specification._replace(transforms_columns=True, whitens_columns=whitens)
    its_architecture = architecture(specification)
    non_trainable = list(state.non_trainable)
    non_trainable.insert(its_architecture._position(its_architecture.template.column_transform), numbers)
    return ModelState(specification, state.trainable, tuple(non_trainable))


def without_column_transform(state: ModelState) -> tuple[ModelState, Rows | None]:
    """The model of transformed columns, and their transform, if they are."""
    if not state.specification.transforms_columns:
        return state, None
    its_architecture = architecture_of(state)
    non_trainable = list(state.non_trainable)
    numbers = non_trainable.pop(its_architecture._position(its_architecture.template.column_transform))
    specification = state.specification.of_columns_as_they_are()
    return ModelState(specification, state.trainable, tuple(non_trainable)), numbers


def _check_eager() -> None:
    if not tf.executing_eagerly():
        raise RuntimeError(
            "vae_anomaly needs TensorFlow's eager execution, which is off here: within a tf.function, a "
            "tf.Graph or a Session, or because of tf.compat.v1.disable_eager_execution(). Call it outside, "
            "and hand in arrays."
        )


def model_of(state: ModelState) -> KerasModel:
    """A trained model as a new `VAE`, a `keras.Model`."""
    its_architecture = architecture_of(state)
    model = its_architecture.new_model()
    its_architecture.load_into(model, state)
    # Keras exports no model that has not been called.
    model(keras.Input((its_architecture.n_features,), dtype="float32"))
    return model


_cache: _Recent[Architecture] = _Recent(_CACHED_ARCHITECTURES)
# A process that serves more models than the cache holds must not trace one anew for each row.
_architectures: weakref.WeakKeyDictionary[ModelState, Architecture] = weakref.WeakKeyDictionary()


def on_device(device: str | None) -> contextlib.AbstractContextManager[object]:
    """Put TensorFlow's operations on this device; None leaves the choice to TensorFlow."""
    return contextlib.nullcontext() if device is None else tf.device(device)
