"""Functions of rows, compiled for tiles of a fixed number of rows.

Scores must not depend on how rows are batched, and float32 matrix products of different shapes need not
give a row the same last bits. So all rows go through tiles of one shape, the wide one. Narrower tiles
serve calls with few rows, where most of a wide one would be padding, once there have been some; they are
used only if they give the wide tile's results to the last bit, which is tried once for each program.

A small model that is asked for few rows again and again gets a program of its own, with its weights as
constants: to hand them over at each call costs a quarter of it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial

import numpy as np

from vae_anomaly.core.backend import tf
from vae_anomaly.core.rows import Rows, any_missing
from vae_anomaly.core.types import Array, KerasModel, Tensor
from vae_anomaly.engine.programs import Architecture, Program, architecture_of, on_device
from vae_anomaly.model.cost import MOST_DRAWS_AT_ONCE
from vae_anomaly.model.states import ModelState

__all__ = ["NARROW_TILES", "map_rows", "wide_tile"]

# A millisecond of arithmetic on one core: a smaller tile pays more for its calls, a larger one does not
# fit into the cache.
_TILE_FLOPS = 1.2e8
_WIDE_TILES = (16, 512)
# A product of few rows with a matrix of weights waits for the weights; those of a convolution are few.
_FEWEST_IMAGES = 2
# Of what all draws expect in a tile: scores of images hold several copies of it, in float64, and a large
# image is to be scored without others that only fill its tile.
_TILE_NUMBERS = 2**21
#: Rows that the smaller tiles take.
NARROW_TILES = (4, 16, 128)
_WIDE = "wide"
# To compile a narrow tile's program and to try its bits takes as long as a hundred calls by a wide tile, or
# more: whoever scores some rows one by one is not made to wait for it.
_NARROW_TILE_FROM_CALLS = 32
# To compile a model's own program takes as long as a few hundred calls.
_OWN_PROGRAM_FROM_CALLS = 256
_OWN_PROGRAM_TO_WEIGHTS = 1_000_000
_BLOCK_OF_TILES_NUMBERS = 2**22

TileFunction = Callable[[KerasModel, Tensor, Tensor], Tensor]
# Weights as tensors: the flat trainable ones, and the others.
_Weights = tuple[Tensor, list[Tensor]]


def wide_tile(architecture: Architecture, n_draws: int) -> int:
    """How many rows a tile takes: a power of two that depends on the model and the draws alone."""
    flops_of_row = 2 * max(1, architecture.encoder_size + n_draws * architecture.decoder_size)
    smallest, largest = _WIDE_TILES
    if architecture.has_convolutions:
        smallest = _FEWEST_IMAGES
    numbers_of_row = max(n_draws, min(architecture.n_values, MOST_DRAWS_AT_ONCE)) * architecture.n_features
    while smallest > 1 and smallest * numbers_of_row > _TILE_NUMBERS:
        smallest //= 2
    largest = max(smallest, min(largest, _TILE_NUMBERS // numbers_of_row))
    rows = smallest
    while rows < largest and 2 * rows * flops_of_row <= _TILE_FLOPS:
        rows *= 2
    return rows


def map_rows(
    function: TileFunction,
    key: Hashable,
    states: Sequence[ModelState],
    rows: Rows,
    draws: Rows,
    device: str | None = None,
    *,
    warm_up: bool = False,
    **incomplete: bool,
) -> Array:
    """Apply ``function(vae, x, draws)`` to all rows, with each model.

    Rows with missing values, NaN, are given to `VAE.incomplete`, which costs more; all rows are, if the
    encoder sees marks for missing values.

    Parameters
    ----------
    function : callable
        Takes the VAE, rows of shape (tile, n_features) and draws of shape (n_draws, 1, noise_width);
        returns one tensor whose first axis is the tile's.
    key : hashable
        Names what ``function`` computes; it is traced once for each key.
    states : models of one architecture
    rows : array of shape (n_rows, n_features)
    draws : array of shape (n_draws, noise_width), shared by all rows
    device : str or None
    warm_up : bool
        Whether to compile now whatever any number of such calls would compile.
    **incomplete : bool
        Passed to `VAE.incomplete`.

    Returns
    -------
    float64 array of shape (n_states, n_rows, ...)
    """

    def of_incomplete(vae: KerasModel, x: Tensor, draws: Tensor) -> Tensor:
        return function(vae.incomplete(**incomplete), x, draws)

    on_complete = partial(_map_rows, function, key)
    on_incomplete = partial(_map_rows, of_incomplete, ("incomplete", *incomplete.items(), key))
    if states[0].specification.marks_missing:
        return on_incomplete(states, rows, draws, device, warm_up)
    if not any_missing(rows):
        return on_complete(states, rows, draws, device, warm_up)
    has_gaps = np.isnan(rows).any(axis=1)
    if has_gaps.all():
        return on_incomplete(states, rows, draws, device, warm_up)
    results = on_complete(states, rows, draws, device, warm_up)
    results[:, has_gaps] = on_incomplete(states, rows[has_gaps], draws, device, warm_up)
    return results


def _map_rows(
    function: TileFunction,
    key: Hashable,
    states: Sequence[ModelState],
    rows: Rows,
    draws: Rows,
    device: str | None,
    warm_up: bool,
) -> Array:
    architecture = architecture_of(states[0])
    models = [_copy_to_device(state, device) for state in states]
    key = (key, len(states), len(draws), device)
    with on_device(device):
        draws_tensor = tf.convert_to_tensor(np.asarray(draws, dtype=np.float32))

        def wide(rows: Rows) -> Array:
            return _through_wide_tiles(architecture, function, key, models, rows, draws_tensor)

        fitting = [tile for tile in NARROW_TILES if len(rows) <= tile < wide_tile(architecture, len(draws))]
        # Convolutions of few rows were seen to round one row in a hundred otherwise: too rarely to be tried.
        if architecture.has_convolutions:
            fitting = []
        if fitting:
            for _ in range(_NARROW_TILE_FROM_CALLS if warm_up else 0):
                architecture.count_call((fitting[0], key))
            if architecture.count_call((fitting[0], key)) < _NARROW_TILE_FROM_CALLS:
                fitting = []
        for tile in fitting:
            narrow = architecture.program(
                (tile, key),
                partial(_narrow_program, architecture, function, tile, wide, models, draws_tensor),
            )
            if narrow is not None:
                program = partial(narrow, models, draws=draws_tensor)
                own = _own_program(architecture, function, tile, key, states, draws, program, warm_up)
                return _through_narrow_tile(own or program, tile, rows)
        return wide(rows)


def _through_wide_tiles(
    architecture: Architecture,
    function: TileFunction,
    key: Hashable,
    models: Sequence[_Weights],
    rows: Rows,
    draws: Tensor,
) -> Array:
    n_features, tile = architecture.n_features, wide_tile(architecture, draws.shape[0])
    program = architecture.program(
        (_WIDE, key), lambda: _compile(architecture, function, (None, tile), models, draws)
    )
    block = max(1, _BLOCK_OF_TILES_NUMBERS // (tile * n_features)) * tile
    results = []
    for start in range(0, max(len(rows), 1), block):
        part = rows[start : start + block]
        tiles = np.zeros((-(-len(part) // tile), tile, n_features), dtype=np.float32)
        tiles.reshape(-1, n_features)[: len(part)] = part
        by_model = program(models, tf.convert_to_tensor(tiles), draws).numpy()
        results.append(by_model.reshape(len(models), -1, *by_model.shape[3:])[:, : len(part)])
    return results[0] if len(results) == 1 else np.concatenate(results, axis=1)


def _through_narrow_tile(program: Program, tile: int, rows: Rows) -> Array:
    x = np.zeros((tile, rows.shape[1]), dtype=np.float32)
    x[: len(rows)] = rows
    return np.asarray(program(tf.convert_to_tensor(x)).numpy()[:, : len(rows)])


def _narrow_program(
    architecture: Architecture,
    function: TileFunction,
    tile: int,
    wide: Callable[[Rows], Array],
    models: Sequence[_Weights],
    draws: Tensor,
) -> Program | None:
    """The program for narrow tiles, or None if a result of theirs differs from the wide tile's in any bit."""
    program = _compile(architecture, function, (tile,), models, draws)
    n_rows = wide_tile(architecture, draws.shape[0])
    by_tile = partial(_by_narrow_tiles, partial(program, models, draws=draws), tile)
    return program if _same_bits(by_tile, wide, architecture, n_rows) else None


def _by_narrow_tiles(program: Program, tile: int, rows: Rows) -> Array:
    starts = range(0, len(rows), tile)
    parts = [_through_narrow_tile(program, tile, rows[start : start + tile]) for start in starts]
    return np.concatenate(parts, axis=1)


def _same_bits(
    one: Callable[[Rows], Array], other: Callable[[Rows], Array], architecture: Architecture, n_rows: int
) -> bool:
    """Whether two functions of rows agree to the last bit on random ones."""
    rows = np.random.RandomState(0).standard_normal((n_rows, architecture.n_features)).astype(np.float32)
    return np.array_equal(one(rows), other(rows), equal_nan=True)


def _compile(
    architecture: Architecture,
    function: TileFunction,
    shape: tuple[int | None, ...],
    models: Sequence[_Weights],
    draws: Tensor,
) -> Program:
    """``(models, x, draws) -> results``: one tile, (n_models, tile, ...), or many, (n_models, n_tiles, ...).

    One tile, which is wanted soon, has the operations of all models side by side. Many are worth a loop over
    the models: whatever their number, the function is traced once.
    """

    def run(models: Sequence[_Weights], x: Tensor, draws: Tensor) -> Tensor:
        if len(shape) == 1:
            return _results_of_tile(architecture, function, models, draws)(x)

        def of_model(weights: _Weights) -> Tensor:
            trainable, others = weights
            pieces = architecture.pieces(trainable)  # before the loop over tiles, not in it

            def of_tile(tile: Tensor) -> Tensor:
                with architecture.holding(pieces, others):
                    return tf.cast(function(architecture.template, tile, draws[:, None]), tf.float64)

            return tf.map_fn(of_tile, x, fn_output_signature=tf.float64)

        if len(models) == 1:
            return of_model(models[0])[None]
        trainable, others = zip(*models, strict=True)
        stacked = tf.stack(trainable), [tf.stack(values) for values in zip(*others, strict=True)]
        return tf.map_fn(of_model, stacked, fn_output_signature=tf.float64)

    def spec(value: Tensor) -> Tensor:
        return tf.TensorSpec(value.shape, value.dtype)

    program: Program = tf.function(run, autograph=False).get_concrete_function(
        [(spec(trainable), [spec(other) for other in others]) for trainable, others in models],
        tf.TensorSpec((*shape, architecture.n_features), tf.float32),
        spec(draws),
    )
    return program


def _results_of_tile(
    architecture: Architecture, function: TileFunction, models: Sequence[_Weights], draws: Tensor
) -> Program:
    unpacked = [(architecture.pieces(trainable), others) for trainable, others in models]

    def of_tile(x: Tensor) -> Tensor:
        results = []
        for trainable, non_trainable in unpacked:
            with architecture.holding(trainable, non_trainable):
                results.append(tf.cast(function(architecture.template, x, draws[:, None]), tf.float64))
        return tf.stack(results)

    return of_tile


class _OwnProgram:
    """A program for one set of models and draws alone, once they have been asked for often enough."""

    def __init__(self, draws: Rows) -> None:
        self.draws = weakref.ref(draws)
        self.n_calls = 0
        self.was_tried = False
        self.program: Program | None = None


# For as long as somebody holds the first model of a set.
_own_programs: weakref.WeakKeyDictionary[ModelState, dict[Hashable, _OwnProgram]] = (
    weakref.WeakKeyDictionary()
)


def _own_program(
    architecture: Architecture,
    function: TileFunction,
    tile: int,
    key: Hashable,
    states: Sequence[ModelState],
    draws: Rows,
    shared: Program,
    warm_up: bool,
) -> Program | None:
    """The models' own program for such tiles, ``x -> results``, if they have one."""
    key = (tile, key, tuple(map(weakref.ref, states[1:])))
    with _lock:
        entries = _own_programs.setdefault(states[0], {})
        entry = entries.get(key)
        if entry is None or entry.draws() is not draws:
            entry = entries[key] = _OwnProgram(draws)
        entry.n_calls += 1
        is_time = not entry.was_tried and (warm_up or entry.n_calls >= _OWN_PROGRAM_FROM_CALLS)
        entry.was_tried |= is_time
    if is_time and len(states) * architecture.n_weights <= _OWN_PROGRAM_TO_WEIGHTS:
        program = _compile_own(architecture, function, tile, states, draws)
        by_own, by_shared = (partial(_by_narrow_tiles, run, tile) for run in (program, shared))
        if _same_bits(by_own, by_shared, architecture, 4 * tile):
            entry.program = program
    return entry.program


def _compile_own(
    architecture: Architecture, function: TileFunction, tile: int, states: Sequence[ModelState], draws: Rows
) -> Program:
    # The arrays, not the states: who holds a state keeps its programs.
    arrays = [(state.trainable, state.non_trainable) for state in states]

    def run(x: Tensor) -> Tensor:
        models = [(tf.constant(trainable), [*map(tf.constant, others)]) for trainable, others in arrays]
        return _results_of_tile(architecture, function, models, tf.constant(draws, tf.float32))(x)

    x = tf.TensorSpec((tile, architecture.n_features), tf.float32)
    program: Program = tf.function(run, autograph=False).get_concrete_function(x)
    return program


# A state's arrays as tensors, for as long as somebody holds the state: copying them at every call would
# cost more than scoring a row.
_tensors: weakref.WeakKeyDictionary[ModelState, dict[str | None, _Weights]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _copy_to_device(state: ModelState, device: str | None) -> _Weights:
    with _lock:
        tensors = _tensors.setdefault(state, {})
    if device not in tensors:
        with on_device(device):
            non_trainable = [tf.convert_to_tensor(value) for value in state.non_trainable]
            tensors[device] = (tf.convert_to_tensor(state.trainable), non_trainable)
    return tensors[device]
