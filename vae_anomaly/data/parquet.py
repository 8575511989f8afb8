"""Parquet: rows of files, of one or of thousands, and of whatever pyarrow reads as a dataset.

pyarrow is imported when the first of them is opened.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import os
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from vae_anomaly.core.types import Unchecked
from vae_anomaly.data import frames
from vae_anomaly.data.streams import Columns, Positions, Sequential, Source

__all__ = ["source_of", "write"]

_ENDINGS, _MAGIC = (".parquet", ".pq", ".parq"), b"PAR1"
# Rows that are decoded at once: enough to hide the call, few beside a block.
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 2**16, 2**20


def source_of(X: Unchecked) -> Source | None:
    """The source of a path, a glob or a folder of Parquet files, or of a dataset of pyarrow; else None.

    Raises
    ------
    ImportError
        Without pyarrow: says which extra to install.
    FileNotFoundError
        If no file is there.
    ValueError
        If a file cannot be read, or has other columns than the others.
    """
    if isinstance(X, (str, os.PathLike)):
        path = os.path.expanduser(os.fspath(X))
        return _Dataset(_open(path)) if isinstance(path, str) and _is_parquet(path) else None
    module = type(X).__module__.split(".")[0]
    return _Dataset(X) if module == "pyarrow" and hasattr(X, "get_fragments") else None


def write(frame: pd.DataFrame, file: BinaryIO) -> None:
    """Write a DataFrame as one of several files that others read together.

    Types do not depend on what happens to be in this part: categories are written as their values, and a
    column without any value is one of texts.
    """
    pa, parquet = _import_pyarrow("pyarrow"), _import_pyarrow("pyarrow.parquet")
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    texts = [pa.types.is_null, pa.types.is_large_string, pa.types.is_string_view]
    plain = _decoded(table.schema)
    fields = [
        field.with_type(pa.string()) if any(kind(field.type) for kind in texts) else field for field in plain
    ]
    parquet.write_table(table.cast(pa.schema(fields)), file)


def _is_parquet(path: str) -> bool:
    """Whether a text is a way to Parquet files, by its ending or by what is there."""
    if os.path.isdir(path) or "://" in path or path.endswith(_ENDINGS):
        return True
    if os.path.isfile(path):
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    return glob.has_magic(path) and any(map(_is_parquet, glob.iglob(path, recursive=True)))


def _open(path: str) -> Any:
    dataset = _import_pyarrow("pyarrow.dataset")
    if "://" in path or os.path.isdir(path):
        found: Any = path
    else:
        found = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else [path]
    if found == [path] and not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {path!r}.")
    if not found:
        raise FileNotFoundError(f"no file matches {path!r}.")
    with _naming(path):
        opened = dataset.dataset(found, format="parquet", partitioning="hive")
    if not opened.files:
        raise FileNotFoundError(f"there are no Parquet files in the folder {path!r}.")
    return opened


def _import_pyarrow(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(
            "Parquet files and datasets are read by pyarrow: pip install 'vae-anomaly[parquet]'."
        ) from None


class _Dataset(Sequential):
    """Rows of a dataset of pyarrow, file after file.

    A column has the type that holds what all files hold in it: whole numbers in one and fractions in another
    are fractions, as in ``pandas.concat``. Columns in which pandas has kept an index are left out.
    """

    def __init__(self, dataset: Any) -> None:
        try:
            self._parts = list(dataset.get_fragments())
        except ValueError:  # of a filtered or projected one, which has no files any more
            self._parts = [dataset]
        self._schema, self._categories, of_index = _schema_of(dataset, self._parts)
        self.names = [name for name in self._schema.names if name not in of_index]
        paths = [part.path for part in self._parts if hasattr(part, "path")]
        if paths:
            others = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
            self.origin = f"the file {paths[0]!r}{others}"
        counts = []
        for part in self._parts:
            with _naming(getattr(part, "path", None)):
                counts.append(part.count_rows())
        self._ends = np.cumsum(counts, dtype=np.int64)
        self.n_rows = int(self._ends[-1]) if counts else 0

    def locate(self, row: int) -> str:
        position = int(np.searchsorted(self._ends, row, side="right"))
        path = getattr(self._parts[position], "path", None)
        if path is None:
            return f"row {row}"
        return f"row {row - (int(self._ends[position - 1]) if position else 0)} of the file {path!r}"

    def pieces(self, start: int, columns: Columns) -> Iterator[Any]:
        names = list(self.names or ()) if columns is None else list(columns)
        pa = _import_pyarrow("pyarrow")
        schema = pa.schema([self._schema.field(name) for name in names])
        first = 0
        for part, end in zip(self._parts, self._ends.tolist(), strict=True):
            if end > start:
                with _naming(getattr(part, "path", None)):
                    for table in _tables_of(part, max(0, start - first), names):
                        yield table.select(names).cast(schema)
            first = end

    def take(self, positions: Positions) -> Unchecked:
        return super().take(positions).set_axis(positions)

    def rows_at(self, piece: Any, positions: Positions | slice) -> Any:
        return piece[positions] if isinstance(positions, slice) else piece.take(positions)

    def rows(self, pieces: list[Any], start: int) -> Unchecked:
        pa = _import_pyarrow("pyarrow")
        if not pieces:
            schema = pa.schema([self._schema.field(name) for name in self.names or ()])
            table = schema.empty_table()
        else:
            table = pa.concat_tables(pieces)
        rows = frames.to_pandas(table)
        for name in self._categories.intersection(rows.columns):
            values = pd.Categorical(rows[name])
            # The dtype of a list of them, as in tables in memory.
            categories = pd.Index(values.categories.tolist())
            rows[name] = pd.Categorical.from_codes(values.codes, categories)
        rows.index += start
        return rows


def _tables_of(part: Any, start: int, names: Sequence[Hashable]) -> Iterator[Any]:
    """The rows of a part of a dataset from ``start`` on, in tables that have at least these columns."""
    pa, dataset = _import_pyarrow("pyarrow"), _import_pyarrow("pyarrow.dataset")
    if isinstance(part, dataset.ParquetFileFragment):
        yield from _tables_of_file(part, start, names)
        return
    for batch in part.to_batches(columns=list(names), batch_size=_ROWS_AT_ONCE, batch_readahead=1):
        if start < batch.num_rows:
            yield pa.Table.from_batches([batch[start:]])
        start = max(0, start - batch.num_rows)


def _tables_of_file(part: Any, start: int, names: Sequence[Hashable]) -> Iterator[Any]:
    pa, parquet = _import_pyarrow("pyarrow"), _import_pyarrow("pyarrow.parquet")
    of_folder = _import_pyarrow("pyarrow.dataset").get_partition_keys(part.partition_expression)
    # By itself, a dataset reads several row groups ahead: a gigabyte, where this takes a tenth of it.
    file = parquet.ParquetFile(
        part.path, filesystem=part.filesystem, pre_buffer=False, buffer_size=_BYTES_AT_ONCE
    )
    with file:
        for group in range(file.num_row_groups):
            n_rows = file.metadata.row_group(group).num_rows
            if start >= n_rows:
                start -= n_rows
                continue
            # At least one column: without any, a batch would have no rows.
            in_file = [name for name in names if name not in of_folder] or file.schema_arrow.names[:1]
            for batch in file.iter_batches(_ROWS_AT_ONCE, [group], in_file, use_threads=False):
                if start < batch.num_rows:
                    table = pa.Table.from_batches([batch[start:]])
                    for name in of_folder:
                        if name in names:
                            table = table.append_column(name, pa.array([of_folder[name]] * table.num_rows))
                    yield table
                start = max(0, start - batch.num_rows)


def _schema_of(dataset: Any, parts: Sequence[Any]) -> tuple[Any, set[str], set[str]]:
    """The columns of all files with one type each, those that are categories, and those of an index."""
    pa = _import_pyarrow("pyarrow")
    schemas = []
    for part in parts:
        with _naming(getattr(part, "path", None)):
            schemas.append(getattr(part, "physical_schema", None) or part.schema)
    if not schemas:
        schemas = [dataset.schema]
    categories = {
        field.name for schema in [*schemas, dataset.schema] for field in schema if _is_dictionary(field.type)
    }
    plain = [_decoded(schema) for schema in schemas]
    of_all = plain[0]
    for part, schema in zip(parts[1:], plain[1:], strict=True):
        if schema.equals(of_all):
            continue
        here, there = getattr(part, "path", "a part"), getattr(parts[0], "path", "another")
        without = sorted({*of_all.names} - {*schema.names})
        added = sorted({*schema.names} - {*of_all.names})
        if without or added:
            differs = [f"without {without}"] * bool(without) + [f"with {added}"] * bool(added)
            raise ValueError(
                f"the file {here!r} has other columns than {there!r}: {' and '.join(differs)}. Give all "
                "files the same columns; their order does not matter."
            )
        for name in of_all.names:
            _check_one_type(of_all.field(name), schema.field(name), here, there)
        of_all = pa.unify_schemas([of_all, schema], promote_options="permissive")
    # Folders such as "year=2026" are columns, too.
    of_folders = [field for field in _decoded(dataset.schema) if field.name not in of_all.names]
    metadata = dataset.schema.pandas_metadata or schemas[0].pandas_metadata or {}
    of_index = {name for name in metadata.get("index_columns", ()) if isinstance(name, str)}
    return pa.schema([*of_all, *of_folders]).remove_metadata(), categories, of_index


def _check_one_type(one: Any, other: Any, here: str, there: str) -> None:
    pa = _import_pyarrow("pyarrow")
    kinds = [pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal]
    both_numbers = all(any(kind(field.type) for kind in kinds) for field in (one, other))
    empty = any(pa.types.is_null(field.type) for field in (one, other))
    try:
        pa.unify_schemas([pa.schema([one]), pa.schema([other])], promote_options="permissive")
    except pa.ArrowException:
        pass
    else:
        if both_numbers or empty or _kind(one.type) == _kind(other.type):
            return
    raise ValueError(
        f"column {one.name!r} is of type {other.type} in the file {here!r} and of type {one.type} in "
        f"{there!r}. Give it one type in all files."
    )


def _kind(dtype: Any) -> str:
    """A type without its size: texts are texts, whichever number of them a column may hold."""
    return str(dtype).removeprefix("large_").rstrip("0123456789_view")


def _decoded(schema: Any) -> Any:
    """A schema whose categories are of their values' type: files number them in integers of other sizes."""
    pa = _import_pyarrow("pyarrow")
    fields = [
        field.with_type(field.type.value_type) if _is_dictionary(field.type) else field for field in schema
    ]
    return pa.schema([field.with_nullable(True) for field in fields])


def _is_dictionary(dtype: Any) -> bool:
    return bool(_import_pyarrow("pyarrow").types.is_dictionary(dtype))


@contextlib.contextmanager
def _naming(path: str | None) -> Iterator[None]:
    """An error of a file names the file."""
    pa = _import_pyarrow("pyarrow")
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if path is None or isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"the file {path!r} cannot be read as Parquet: {error}") from error
