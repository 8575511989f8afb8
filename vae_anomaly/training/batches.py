"""Batches: the rows of each training step, in an order that is shuffled anew for each epoch.

A batch always has ``batch_size`` rows: the last one of an epoch is filled up from the beginning of the
epoch's shuffled order, and fewer rows than a batch are repeated. So every row is used in every epoch,
and no shape depends on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from vae_anomaly.core.rows import Rows
from vae_anomaly.core.types import Matrix
from vae_anomaly.data.cache import CachedRows
from vae_anomaly.training.interruption import Interruption

__all__ = ["Batches", "Block", "batches_of"]

# Of cached rows: what is read at one place, and what is shuffled together.
_NUMBERS_IN_PIECE, _NUMBERS_SHUFFLED = 2**16, 2**22


class Block(NamedTuple):
    """The batches of some training steps.

    Attributes
    ----------
    rows : array or `LazyRows` of shape (n_rows, n_features)
    order : int array of shape (n_steps, batch_size)
        Positions of the rows of each batch.
    """

    rows: Matrix
    order: npt.NDArray[np.integer]


class Batches(Protocol):
    """The batches of one epoch after another."""

    def blocks(self, n_epochs: int, n_steps: int) -> Iterator[Block]:
        """Those of the next epochs, at most so many steps at a time; the same until epochs are dropped."""

    def drop(self, n_epochs: int) -> None:
        """Go on to the epochs after these."""


def batches_of(rows: Matrix, batch_size: int, seed: int, interruption: Interruption) -> Batches:
    """The batches of rows; Ctrl-C while a file is read ends the training with the epoch, too.

    Rows in memory, also lazy ones, are shuffled all together. Cached rows are divided into pieces of 65,536
    numbers. In each epoch, pieces from anywhere, in an order that is drawn anew, are read until there are
    4,194,304 numbers, whose rows are shuffled; then the next ones.
    """
    if isinstance(rows, CachedRows):
        return _ShuffledPieces(rows, batch_size, seed, interruption)
    return _Shuffled(rows, batch_size, seed)


class _Shuffled:
    def __init__(self, rows: Matrix, batch_size: int, seed: int) -> None:
        self._rows, self._batch_size = rows, batch_size
        self._rng = np.random.RandomState(seed)
        self._drawn: list[npt.NDArray[np.integer]] = []

    def blocks(self, n_epochs: int, n_steps: int) -> Iterator[Block]:
        while len(self._drawn) < n_epochs:
            self._drawn.append(self._rng.permutation(len(self._rows)))
        order = np.concatenate([self._in_batches(of_epoch) for of_epoch in self._drawn[:n_epochs]])
        for start in range(0, len(order), n_steps):
            yield Block(self._rows, order[start : start + n_steps])

    def drop(self, n_epochs: int) -> None:
        for _ in range(n_epochs - len(self._drawn)):
            self._rng.permutation(len(self._rows))
        del self._drawn[:n_epochs]

    def _in_batches(self, order: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        # np.resize repeats the order from its beginning until the last batch is full.
        return np.resize(order, (-(-len(order) // self._batch_size), self._batch_size)).astype(np.int32)


class _ShuffledPieces:
    def __init__(self, rows: CachedRows, batch_size: int, seed: int, interruption: Interruption) -> None:
        self._rows, self._batch_size, self._seed = rows, batch_size, seed
        self._interruption, self._n_dropped = interruption, 0

    def blocks(self, n_epochs: int, n_steps: int) -> Iterator[Block]:
        for number in range(self._n_dropped, self._n_dropped + n_epochs):
            yield from self._blocks_of_epoch(number, n_steps)

    def drop(self, n_epochs: int) -> None:
        self._n_dropped += n_epochs

    def _blocks_of_epoch(self, number: int, n_steps: int) -> Iterator[Block]:
        size = n_steps * self._batch_size
        waiting = first = np.zeros((0, self._rows.some.shape[1]), dtype=np.float32)
        for rows in self._shuffled(number):
            if len(first) < self._batch_size:
                first = np.concatenate([first, rows[: self._batch_size - len(first)]])
            waiting = np.concatenate([waiting, rows])
            n_given = len(waiting) // size * size
            for start in range(0, n_given, size):
                yield self._block(waiting[start : start + size])
            waiting = waiting[n_given:]
        if len(waiting):
            n_lacking = -len(waiting) % self._batch_size
            filled = np.resize(first, (n_lacking, first.shape[1]))
            yield self._block(np.concatenate([waiting, filled]))

    def _block(self, rows: Rows) -> Block:
        return Block(rows, np.arange(len(rows), dtype=np.int32).reshape(-1, self._batch_size))

    def _shuffled(self, number: int) -> Iterator[Rows]:
        """The rows of an epoch, so many as are shuffled together."""
        rng = np.random.RandomState([self._seed, number])
        n_rows, n_features = self._rows.shape
        size = max(1, _NUMBERS_IN_PIECE // n_features)
        n_together = max(1, _NUMBERS_SHUFFLED // (size * n_features))
        starts = rng.permutation(-(-n_rows // size)) * size
        for position in range(0, len(starts), n_together):
            pieces = [
                self._interruption.complete(self._rows.read, start, start + size)
                for start in starts[position : position + n_together].tolist()
            ]
            rows = np.concatenate(pieces)
            yield rows[rng.permutation(len(rows))]
