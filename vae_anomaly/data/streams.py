"""Streams: what a source of rows is, and its rows as checked numbers, a block at a time.

A source has a number of rows, blocks of a fixed number of rows in their order, and rows by position. What it
hands out is what a user would hand in for those rows: a DataFrame or an array.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from vae_anomaly.core.rows import RowError, counting_from, locating
from vae_anomaly.core.types import Matrix, Shape, Unchecked

__all__ = [
    "NUMBERS_AT_ONCE",
    "Columns",
    "Positions",
    "Sequential",
    "Source",
    "Stream",
    "choose",
    "map_blocks",
    "reading",
    "starts_of",
]

_Result = TypeVar("_Result")
Positions = npt.NDArray[np.integer]
Columns = Sequence[Hashable] | None
#: Numbers that a piece of rows holds where nothing else decides its size.
NUMBERS_AT_ONCE = 2**21


class Source(ABC):
    """Rows that are read a block at a time.

    Attributes
    ----------
    n_rows : int
    names : list of str or None
        The columns' names, where they are known before any row is read.
    origin : str or None
        What the rows are read from, for a message.
    """

    n_rows: int
    names: list[str] | None = None
    origin: str | None = None

    @abstractmethod
    def blocks(self, size: int, *, start: int = 0, columns: Columns = None) -> Iterator[Unchecked]:
        """All rows from ``start`` on, ``size`` at a time (the last block may be shorter).

        ``columns`` are names, or positions of columns without names; None is all of them. A source without
        rows has one block without rows, which says what its columns are.
        """

    @abstractmethod
    def take(self, positions: Positions) -> Unchecked:
        """The rows at these positions, which ascend."""

    def read(self) -> Unchecked:
        """All rows at once."""
        return next(self.blocks(max(1, self.n_rows)))

    def locate(self, row: int) -> str:
        """Where a row is, for a message."""
        return f"row {row}"


class Sequential(Source):
    """Rows that come in pieces of any size: in files, row groups or partitions."""

    def blocks(self, size: int, *, start: int = 0, columns: Columns = None) -> Iterator[Unchecked]:
        waiting: list[Any] = []
        n_waiting, n_given = 0, 0
        for piece in self.pieces(start, columns):
            while piece.shape[0] and n_waiting + piece.shape[0] >= size:
                n_wanted = size - n_waiting
                yield self.rows([*waiting, self.rows_at(piece, slice(n_wanted))], start + n_given)
                piece = self.rows_at(piece, slice(n_wanted, None))
                n_given, waiting, n_waiting = n_given + size, [], 0
            if piece.shape[0]:
                waiting.append(piece)
                n_waiting += piece.shape[0]
        if waiting or not self.n_rows:
            yield self.rows(waiting, start + n_given)

    def take(self, positions: Positions) -> Unchecked:
        chosen, start = [], 0
        for piece in self.pieces(0, None):
            stop = start + piece.shape[0]
            low, high = np.searchsorted(positions, (start, stop))
            if low < high:
                chosen.append(self.rows_at(piece, positions[low:high] - start))
            start = stop
        return self.rows(chosen, 0)

    @abstractmethod
    def pieces(self, start: int, columns: Columns) -> Iterator[Any]:
        """All rows from ``start`` on, in pieces that have a shape."""

    @abstractmethod
    def rows_at(self, piece: Any, positions: Positions | slice) -> Any:
        """Some rows of a piece, as a piece."""

    @abstractmethod
    def rows(self, pieces: list[Any], start: int) -> Unchecked:
        """Pieces as one DataFrame or array; ``start`` is the number of its first row."""


class Stream:
    """The rows of a source as checked numbers, a block at a time: what comes through the detector's door.

    Attributes
    ----------
    shape : (n_rows, n_features)
    """

    def __init__(
        self,
        source: Source,
        numbers: Callable[[Unchecked], Matrix],
        n_features: int,
        without: Positions | None = None,
    ) -> None:
        self._source, self._numbers, self._without = source, numbers, without
        n_left_out = 0 if without is None else len(without)
        self.shape: Shape = (source.n_rows - n_left_out, n_features)

    def without(self, positions: Positions) -> Stream:
        """All rows but those at these positions; blocks begin where they began."""
        return Stream(self._source, self._numbers, self.shape[1], positions)

    def followed_by(self, function: Callable[[Matrix], Matrix]) -> Stream:
        """The same rows, with a function of each block's numbers in their place."""
        numbers = self._numbers
        return Stream(self._source, lambda rows: function(numbers(rows)), self.shape[1], self._without)

    def map(self, function: Callable[[Matrix], _Result], size: int) -> Iterator[_Result]:
        """What a function makes of each block; an error in a row says where the row is."""
        start = 0
        for block in self._source.blocks(size):
            n_rows = block.shape[0] if hasattr(block, "shape") else len(block)
            positions = np.arange(start, start + n_rows)
            with reading(self._source, positions):
                numbers = self._numbers(block)
            if self._without is not None:
                left = ~np.isin(positions, self._without)
                positions, numbers = positions[left], numbers[left]
            with reading(self._source, positions):
                result = function(numbers)
            yield result
            start += n_rows


def map_blocks(X: Matrix | Stream, function: Callable[[Matrix], _Result], size: int) -> Iterator[_Result]:
    """What a function makes of each so many rows."""
    if isinstance(X, Stream):
        yield from X.map(function, size)
        return
    for start in starts_of(0, X.shape[0], size):
        with counting_from(start):
            result = function(X[start : start + size])
        yield result


def choose(rows: Unchecked, columns: Columns) -> Unchecked:
    """Some columns of a DataFrame by their names, or of an array by their positions."""
    if columns is None:
        return rows
    return rows[list(columns)] if isinstance(rows, pd.DataFrame) else rows[:, list(columns)]


def starts_of(start: int, n_rows: int, size: int) -> Sequence[int]:
    """Where blocks begin; without any row, there is one block."""
    return range(start, n_rows, size) if n_rows else [0]


@contextlib.contextmanager
def reading(source: Source, positions: Positions | range) -> Iterator[None]:
    """An error in a row at one of these positions names its place; any other one is followed by a note."""
    try:
        with locating(source.locate, positions):
            yield
    except RowError:
        raise
    except (ValueError, TypeError) as error:
        if len(positions):
            first, last = source.locate(int(positions[0])), source.locate(int(positions[-1]))
            error.add_note(f"This is of the rows from {first} to {last}.")
        elif source.origin is not None:
            error.add_note(f"This is of {source.origin}, without any row.")
        raise
