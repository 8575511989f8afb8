"""Bulk scoring: the scores of tables of any size, as Parquet files that are written one by one.

Memory does not grow with the number of rows, and a process that is killed loses one file at most: called
again, it goes on where the files end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from vae_anomaly.core.progress import ProgressLine
from vae_anomaly.core.types import Json, Unchecked
from vae_anomaly.data import parquet
from vae_anomaly.data.sources import memory_source, source_of
from vae_anomaly.data.streams import Source, reading
from vae_anomaly.files.archive import SAVING, replace_file

__all__ = ["score_dataset"]

_METHODS = ("score_samples", "decision_function", "predict", "p_values")
_MANIFEST = "_scores.json"
# Whose scores tell whether the detector and the rows are those of the files that are there.
_ROWS_TO_COMPARE = 20


def score_dataset(
    detector: Any,
    source: Unchecked,
    destination: str | os.PathLike[str],
    columns: Sequence[str] = (),
    *,
    methods: Sequence[str] = ("score_samples",),
    rows_per_file: int = 500_000,
    verbose: int = 1,
) -> None:
    """Score rows of any number, and write what is said of them to a folder of Parquet files.

    Rows are read, scored and written in blocks. Each file appears complete or not at all, and is flushed to
    the disk; called again with the same arguments, after whatever has ended the process, the function scores
    what is missing. The files then hold each row once, in the order of ``source``, with the same bits.

    Parameters
    ----------
    detector : fitted VAEDetector, or a pipeline that ends with one
    source : path, glob or folder of Parquet files, or whatever else `VAEDetector.fit` takes rows from
        It may have more columns than the detector knows.
    destination : str or path
        A folder, which is made if there is none. Read it with ``pandas.read_parquet(destination)``.
    columns : sequence of str, default=()
        The columns of ``source`` that are written beside the scores, by which rows are known. Without any,
        the files have a column ``row``, the number of the row.
    methods : sequence of str, default=("score_samples",)
        What is asked of the detector, each in a column of its name: "score_samples", "decision_function",
        "predict", "p_values".
    rows_per_file : int, default=500_000
        How many rows are in memory at a time.
    verbose : int, default=1
        0 is silent; 1 shows a line with how many rows have been scored and the time left.

    Raises
    ------
    TypeError
        If ``source`` is none of what it may be.
    ValueError
        For methods, columns or a number of rows that cannot be, or if ``destination`` holds other files, or
        scores of another detector, of other rows or in other blocks: nothing is written. Other rows are
        known by their number and by the scores of the first 20: empty the folder if later ones have changed.
    ImportError
        Without the extra: ``pip install 'vae-anomaly[parquet]'``.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np, pandas as pd
    >>> from vae_anomaly import VAEDetector, score_dataset
    >>> X = pd.DataFrame(np.random.RandomState(0).normal(size=(200, 3)), columns=["a", "b", "c"])
    >>> detector = VAEDetector(epochs=5, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     X.assign(key=range(1000, 1200)).to_parquet(os.path.join(folder, "rows.parquet"))
    ...     score_dataset(detector, os.path.join(folder, "*.parquet"), os.path.join(folder, "scores"),
    ...                   columns=["key"], verbose=0)
    ...     scores = pd.read_parquet(os.path.join(folder, "scores"))
    >>> scores.columns.tolist(), scores["key"].tolist() == [*range(1000, 1200)]
    (['key', 'score_samples'], True)
    >>> bool((scores["score_samples"] == detector.score_samples(X)).all())
    True
    """
    rows = source_of(source) or memory_source(source)
    if rows is None:
        raise TypeError(
            f"rows come from Parquet files, tables or arrays; received a {type(source).__name__}: {source!r}."
        )
    names = rows.names if rows.names is not None else getattr(next(rows.blocks(1)), "columns", ())
    for name, given in (("columns", columns), ("methods", methods)):
        if isinstance(given, str):
            raise TypeError(f"{name} must be a list of names; received the text {given!r}: set [{given!r}].")
    scoring = _Scoring(detector, rows, tuple(columns), tuple(methods), rows_per_file, tuple(names))
    _Folder(os.path.expanduser(os.fspath(destination)), scoring).fill(verbose)


@dataclass(frozen=True)
class _Scoring:
    """What is asked of which rows, and how many of them a file holds.

    Attributes
    ----------
    detector : estimator
    rows : Source
    keys : names of the columns that are written, too
    methods : names of the detector's methods
    size : int
    names : the columns' names; empty, if they have none
    """

    detector: Any
    rows: Source
    keys: tuple[str, ...]
    methods: tuple[str, ...]
    size: int
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.size, Integral) or isinstance(self.size, bool) or self.size < 1:
            raise ValueError(f"rows_per_file must be a positive integer; received {self.size!r}.")
        for method in self.methods:
            if method not in _METHODS:
                raise ValueError(f"methods must be some of {list(_METHODS)}; received {method!r}.")
        for name in self.keys:
            if name in self.methods:
                raise ValueError(
                    f"columns names {name!r}, and so is the column called that the method {name!r} makes: "
                    "rename the column."
                )
            if name not in self.names:
                raise ValueError(f"columns names {name!r}, but the rows have the columns {list(self.names)}.")

    @property
    def features(self) -> list[str]:
        """The columns that the detector knows; all but the keys, if it was fitted on rows without names."""
        known = getattr(self.detector, "feature_names_in_", None)
        return [name for name in self.names if name not in self.keys] if known is None else [*known]

    @property
    def n_files(self) -> int:
        """How many files it takes."""
        return -(-self.rows.n_rows // self.size)

    def blocks(self, first: int) -> Iterator[Unchecked]:
        """The rows of the files from this one on."""
        wanted = {*self.features, *self.keys}
        columns = [name for name in self.names if name in wanted]
        return self.rows.blocks(self.size, start=first * self.size, columns=columns or None)

    def table(self, block: Unchecked, start: int) -> pd.DataFrame:
        """What is said of a block of rows."""
        features = self.features
        # Without one of its columns, the detector says what is wrong.
        X = block[features] if self.names and {*features} <= {*self.names} else block
        with reading(self.rows, range(start, start + len(block))):
            said = {method: np.asarray(getattr(self.detector, method)(X)) for method in self.methods}
        if not self.keys:
            return pd.DataFrame({"row": np.arange(start, start + len(block)), **said})
        keys: pd.DataFrame = block[list(self.keys)].reset_index(drop=True)
        return keys.assign(**said)

    def about(self) -> dict[str, Json]:
        """What files of the same scores have in common."""
        first = next(self.rows.blocks(min(_ROWS_TO_COMPARE, max(1, self.rows.n_rows))))
        scores = self.table(first, 0)[list(self.methods)]
        return {
            "rows": self.rows.n_rows,
            "rows_per_file": self.size,
            "columns": list(self.keys),
            "methods": list(self.methods),
            "features": list(map(str, self.features)),
            "first_scores": [[repr(value) for value in column.tolist()] for _, column in scores.items()],
        }


class _Folder:
    """The files of one scoring, some of which may be there."""

    def __init__(self, path: str, scoring: _Scoring) -> None:
        self._path, self._scoring = path, scoring

    def fill(self, verbose: int) -> None:
        """Write what is missing."""
        self._begin()
        n_rows, size = self._scoring.rows.n_rows, self._scoring.size
        missing = [n for n in range(self._scoring.n_files) if not os.path.exists(self._file(n))]
        progress = ProgressLine(n_rows, "scored", bool(verbose))
        progress.show(max(0, n_rows - len(missing) * size))
        if missing:
            for number, block in enumerate(self._scoring.blocks(missing[0]), start=missing[0]):
                if not os.path.exists(self._file(number)):
                    self._write(number, self._scoring.table(block, number * size))
                progress.show(min(n_rows, (number + 1) * size))

    def _begin(self) -> None:
        about, manifest = self._scoring.about(), os.path.join(self._path, _MANIFEST)
        os.makedirs(self._path, exist_ok=True)
        if not os.path.exists(manifest):
            there = sorted(name for name in os.listdir(self._path) if not name.startswith(SAVING))
            if there:
                raise ValueError(
                    f"the folder {self._path!r} holds other files, such as {there[0]!r}: choose an empty one."
                )
            replace_file(manifest, lambda file: file.write(json.dumps(about, indent=1).encode()), "scores")
        with open(manifest, encoding="utf-8") as file:
            found = json.load(file)
        differing = [name for name in about if found.get(name) != about[name]]
        if differing:
            raise ValueError(
                f"the folder {self._path!r} holds other scores: what differs is "
                f"{', '.join(name.replace('_', ' ') for name in differing)}. Choose an empty folder, or "
                "remove this one."
            )
        for name in os.listdir(self._path):
            if name.startswith(SAVING):  # of a process that was killed
                os.unlink(os.path.join(self._path, name))

    def _file(self, number: int) -> str:
        return os.path.join(self._path, f"part-{number:06}.parquet")

    def _write(self, number: int, table: pd.DataFrame) -> None:
        def write_to(file: BinaryIO) -> None:
            parquet.write(table, file)

        replace_file(self._file(number), write_to, "scores")
