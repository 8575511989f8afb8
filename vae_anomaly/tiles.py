"""Functions of rows, compiled for tiles of a fixed number of rows.

Scores must not depend on how rows are batched, and float32 matrix products of different shapes need not
give a row the same last bits. So all rows go through tiles of one shape, the wide one. Narrower tiles
serve calls with few rows, where most of a wide one would be padding; they are used only if they give the
wide tile's results to the last bit, which is tried once for each program.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from vae_anomaly.backend import tf
from vae_anomaly.programs import Architecture, architecture_of, placed
from vae_anomaly.rows import Rows
from vae_anomaly.states import ModelState

__all__ = ["map_rows", "wide_tile"]

# A millisecond of arithmetic on one core: a smaller tile pays more for its calls, a larger one does not
# fit into the cache.
_TILE_FLOPS = 1.2e8
_WIDE_TILES = (16, 512)
_NARROW_TILES = (4, 16, 128)
_WIDE = "wide"
_BLOCK_OF_TILES_NUMBERS = 2**22

TileFunction = Callable[[Any, Any, Any], Any]


def wide_tile(architecture: Architecture, n_draws: int) -> int:
    """How many rows a tile takes: a power of two that depends on the model and the draws alone."""
    flops_of_row = 2 * max(1, architecture.encoder_size + n_draws * architecture.decoder_size)
    smallest, largest = _WIDE_TILES
    rows = smallest
    while rows < largest and 2 * rows * flops_of_row <= _TILE_FLOPS:
        rows *= 2
    return rows


def map_rows(
    function: TileFunction,
    key: Hashable,
    states: Sequence[ModelState],
    rows: Rows,
    noise: Rows,
    device: str | None = None,
) -> npt.NDArray[Any]:
    """Apply ``function(vae, x, noise)`` to all rows, with each model.

    Parameters
    ----------
    function : callable
        Takes the VAE, rows of shape (tile, n_features) and noise of shape (n_draws, 1, latent_dim);
        returns one tensor whose first axis is the tile's.
    key : hashable
        Names what ``function`` computes; it is traced once for each key.
    states : models of one architecture
    rows : array of shape (n_rows, n_features)
    noise : array of shape (n_draws, latent_dim), shared by all rows
    device : str or None

    Returns
    -------
    float64 array of shape (n_states, n_rows, ...)
    """
    architecture = architecture_of(states[0])
    models = [_on_device(state, device) for state in states]
    key = (key, len(states), len(noise), device)
    used_before = architecture.has_program((_WIDE, key))
    with placed(device):
        noise_tensor = tf.convert_to_tensor(np.asarray(noise, dtype=np.float32))

        def wide(rows: Rows) -> npt.NDArray[Any]:
            return _through_wide_tiles(architecture, function, key, models, rows, noise_tensor)

        for tile in _NARROW_TILES:
            # Whoever scores once is not made to wait for a second program.
            if used_before and len(rows) <= tile < wide_tile(architecture, len(noise)):
                narrow = architecture.program(
                    (tile, key),
                    partial(_narrow_program, architecture, function, tile, wide, models, noise_tensor),
                )
                if narrow is not None:
                    return _through_narrow_tile(narrow, tile, models, rows, noise_tensor)
        return wide(rows)


def _through_wide_tiles(
    architecture: Architecture,
    function: TileFunction,
    key: Hashable,
    models: Any,
    rows: Rows,
    noise: Any,
) -> npt.NDArray[Any]:
    n_features, tile = architecture.n_features, wide_tile(architecture, noise.shape[0])
    program = architecture.program(
        (_WIDE, key), lambda: _compile(architecture, function, (None, tile), models, noise)
    )
    block = max(1, _BLOCK_OF_TILES_NUMBERS // (tile * n_features)) * tile
    results = []
    for start in range(0, max(len(rows), 1), block):
        part = rows[start : start + block]
        tiles = np.zeros((-(-len(part) // tile), tile, n_features), dtype=np.float32)
        tiles.reshape(-1, n_features)[: len(part)] = part
        by_tile = program(models, tf.convert_to_tensor(tiles), noise).numpy()
        by_model = np.moveaxis(by_tile, 1, 0)
        results.append(by_model.reshape(len(models), -1, *by_tile.shape[3:])[:, : len(part)])
    return results[0] if len(results) == 1 else np.concatenate(results, axis=1)


def _through_narrow_tile(program: Any, tile: int, models: Any, rows: Rows, noise: Any) -> npt.NDArray[Any]:
    x = np.zeros((tile, rows.shape[1]), dtype=np.float32)
    x[: len(rows)] = rows
    return np.asarray(program(models, tf.convert_to_tensor(x), noise).numpy()[:, : len(rows)])


def _narrow_program(
    architecture: Architecture,
    function: TileFunction,
    tile: int,
    wide: Callable[[Rows], npt.NDArray[Any]],
    models: Any,
    noise: Any,
) -> Any:
    """The program for narrow tiles, or None if a result of theirs differs from the wide tile's in any bit."""
    n_rows = wide_tile(architecture, noise.shape[0])
    rows = np.random.RandomState(0).standard_normal((n_rows, architecture.n_features)).astype(np.float32)
    program = _compile(architecture, function, (tile,), models, noise)
    parts = [
        _through_narrow_tile(program, tile, models, rows[start : start + tile], noise)
        for start in range(0, n_rows, tile)
    ]
    same = np.array_equal(np.concatenate(parts, axis=1), wide(rows), equal_nan=True)
    return program if same else None


def _compile(
    architecture: Architecture,
    function: TileFunction,
    shape: tuple[int | None, ...],
    models: Sequence[tuple[Any, list[Any]]],
    noise: Any,
) -> Any:
    """``(models, x, noise) -> results``: one tile, (n_models, tile, ...), or many, each so."""

    def run(models: Any, x: Any, noise: Any) -> Any:
        # Unpacked before the loop over tiles, not in it.
        unpacked = [(architecture.pieces(trainable), others) for trainable, others in models]

        def of_tile(x: Any) -> Any:
            results = []
            for trainable, non_trainable in unpacked:
                with architecture.holding(trainable, non_trainable):
                    results.append(tf.cast(function(architecture.template, x, noise[:, None]), tf.float64))
            return tf.stack(results)

        return of_tile(x) if len(shape) == 1 else tf.map_fn(of_tile, x, fn_output_signature=tf.float64)

    def spec(value: Any) -> Any:
        return tf.TensorSpec(value.shape, value.dtype)

    return tf.function(run, autograph=False).get_concrete_function(
        [(spec(trainable), [spec(other) for other in others]) for trainable, others in models],
        tf.TensorSpec((*shape, architecture.n_features), tf.float32),
        spec(noise),
    )


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
