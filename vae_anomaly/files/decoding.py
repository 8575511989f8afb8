"""Decodings: an estimator out of the JSON and the arrays that `encoding` makes of it.

A name in a file is only ever looked up, here or in the tables of `allow_list`: a file chooses among them and
cannot name anything else.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.extensions import ExtensionDtype

from vae_anomaly.core.types import Array, Json, Values
from vae_anomaly.files.allow_list import (
    ARROW_DTYPES,
    COLUMN_DTYPES,
    DTYPES,
    ESTIMATORS,
    FUNCTIONS,
    NUMBERS,
    PLAIN_VALUES,
    RECORDS,
    REGISTRIES,
    check_fields,
    class_of,
    restore,
)
from vae_anomaly.files.archive import Archive, ModelFileError
from vae_anomaly.files.encoding import ARRAY_DTYPE, MERSENNE_TWISTER, TREE
from vae_anomaly.files.kinds import MODEL

__all__ = ["decode_estimator", "decode_values"]

_LARGEST_CODE_POINT = 0x10FFFF
_STATE_WORDS = 624


def decode_estimator(tree: Json, kind: type[Any], archive: Archive) -> Any:
    """The estimator of this class that `encoded` was given, its arrays read from ``arrays/0`` and so on.

    Raises
    ------
    ModelFileError
        If the tree is not one of `encoded`, or its arrays are not those of the archive.
    """
    if not isinstance(tree, dict) or tree.keys() != TREE:
        raise ModelFileError("is damaged: it describes no detector.")
    if tree["class"] != kind.__name__:
        raise ModelFileError(f"holds a {tree['class']!r}, which this release does not know.")
    decoder = _Decoder(archive)
    for node in tree["shared"]:
        decoder.shared.append(decoder.value(node))
    state = [decoder.mapping(tree[name]) for name in ("parameters", "defaults", "fitted")]
    if unused := archive.names - decoder.taken - {MODEL.part}:
        raise ModelFileError(f"is refused: it has parts without a use, such as {min(unused)!r}.")
    return restore(kind, *state)


def decode_values(tree: Json, archive: Archive) -> Values:
    """The values that `encoded_values` was given, their arrays read from ``arrays/0`` and so on.

    Raises
    ------
    ModelFileError
        If the tree is not one of `encoded_values`, or its arrays are not those of the archive.
    """
    if not isinstance(tree, dict):
        raise ModelFileError("is damaged: it describes no values.")
    return _Decoder(archive).mapping(tree)


class _Decoder:
    def __init__(self, archive: Archive) -> None:
        self.taken: set[str] = set()
        self.shared: list[Any] = []
        self._archive = archive

    def value(self, node: Json) -> Any:
        if isinstance(node, list):
            return [self.value(item) for item in node]
        if not isinstance(node, dict):
            return node
        if len(node) != 1:
            raise ModelFileError(f"is damaged: it describes a value by {sorted(node)[:5]}.")
        ((name, content),) = node.items()
        if name in REGISTRIES:
            return self._registered(name, *content)
        if name not in self._makers:
            raise ModelFileError(f"holds a {name!r}, which this release does not know.")
        return self._makers[name](self, content)

    def mapping(self, nodes: dict[str, Json]) -> Values:
        return {name: self.value(node) for name, node in nodes.items()}

    def _float(self, content: str) -> float:
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content]

    def _tuple(self, content: Json) -> tuple[Any, ...]:
        return tuple(self.value(content))

    def _items(self, content: list[Json]) -> dict[Any, Any]:
        return {self.value(key): self.value(value) for key, value in content}

    def _slice(self, content: list[Json]) -> slice:
        start, stop, step = map(self.value, content)
        return slice(start, stop, step)

    def _number(self, content: list[Json]) -> Any:
        name, value = content
        return self._number_type(name)(self.value(value))

    def _number_type(self, name: str) -> type[np.generic]:
        if name not in NUMBERS:
            raise ModelFileError(f"is refused: {name!r} is not a type of numbers.")
        return np.dtype(name).type

    def _dtype(self, name: str) -> npt.DTypeLike:
        if name not in DTYPES:
            raise ModelFileError(f"is refused: {name!r} is not a type of an array.")
        return np.dtype(name)

    def _index(self, content: Json) -> pd.Index:
        values = self.value(content)
        if not isinstance(values, np.ndarray) or values.ndim != 1:
            raise ModelFileError("is damaged: it has categories that are not a list.")
        return pd.Index(values, dtype=object)

    def _category(self, content: list[Json]) -> pd.CategoricalDtype:
        node, ordered = content
        categories = self.value(node)
        if not isinstance(categories, pd.Index) or not categories.is_unique:
            raise ModelFileError("is damaged: it has a category whose values are not of its own.")
        return pd.CategoricalDtype(categories.infer_objects(), bool(ordered))

    def _column_dtype(self, name: str) -> np.dtype[Any] | ExtensionDtype:
        if name not in COLUMN_DTYPES:
            raise ModelFileError(f"is refused: {name!r} is not a type of a column.")
        return pd.api.types.pandas_dtype(name)

    def _arrow_dtype(self, name: str) -> ExtensionDtype:
        if name not in ARROW_DTYPES:
            raise ModelFileError(f"is refused: {name!r} is not a type of a column of pyarrow.")
        try:
            pa = importlib.import_module("pyarrow")
        except ImportError:
            raise ModelFileError(
                "holds a table whose columns are pyarrow's: install it with pip install pyarrow."
            ) from None
        return pd.ArrowDtype(pa.type_for_alias(name))

    def _sparse_dtype(self, content: list[Json]) -> ExtensionDtype:
        name, fill_value = content
        return pd.SparseDtype(np.dtype(self._number_type(name)), self.value(fill_value))

    def _plain_value(self, content: list[Json]) -> Any:
        name, parts = content
        if name not in PLAIN_VALUES:
            raise ModelFileError(f"holds a {name!r}, which this release does not know.")
        return PLAIN_VALUES[name].make(*self.value(parts))

    def _array(self, content: list[Json]) -> Array:
        code, shape, order, position = content
        if not isinstance(code, str) or not ARRAY_DTYPE.fullmatch(code):
            raise ModelFileError(f"is refused: it has an array of type {code!r}.")
        dtype, n_values = np.dtype(code), _n_values(shape)
        name = f"arrays/{position}"
        if n_values * dtype.itemsize != self._archive.size(name):
            raise ModelFileError(
                f"is refused: {name!r} has {self._archive.size(name)} bytes, and is to be an array of shape "
                f"{shape} and type {code!r}."
            )
        if name in self.taken:
            raise ModelFileError(f"is refused: {name!r} is used twice.")
        self.taken.add(name)
        array = np.empty(tuple(shape if order == "C" else reversed(shape)), dtype)
        self._archive.read_into(name, array.reshape(-1).view(np.uint8).data)
        if dtype.kind == "U" and (array.reshape(-1).view("<u4") > _LARGEST_CODE_POINT).any():
            raise ModelFileError(f"is damaged: {name!r} is not a text.")
        return array if order == "C" else array.T

    def _start(self, content: list[Json]) -> Array:
        axis, n_kept, node = content
        whole: Array = self.value(node)
        return whole[:, :n_kept] if axis else whole[:n_kept]

    def _objects(self, content: list[Json]) -> Array:
        shape, node = content
        values = self.value(node)
        if _n_values(shape) != len(values):
            raise ModelFileError(f"is damaged: it has {len(values)} objects for an array of shape {shape}.")
        array = np.empty(len(values), dtype=object)
        for position, value in enumerate(values):
            array[position] = value
        return array.reshape(shape)

    def _plain(self, node: Json, dtype: type) -> Array:
        """A one-dimensional array of this type: of a smaller one, a list would take far more memory."""
        array = self.value(node)
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
            raise ModelFileError(f"is refused: it has a list that is not an array of {dtype.__name__}.")
        return array

    def _floats(self, content: Json) -> list[float]:
        return list(self._plain(content, np.float64).tolist())

    def _texts(self, content: list[Json]) -> list[str]:
        lengths, joined = map(self._plain, content, (np.int64, np.uint8))
        ends = np.cumsum(lengths)
        if (lengths < 0).any() or ends[-1] != len(joined):
            raise ModelFileError("is damaged: texts are shorter or longer than it says.")
        data = joined.tobytes()
        return [
            data[end - length : end].decode("utf-8", "surrogatepass")
            for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)
        ]

    def _random_state(self, content: list[Json]) -> np.random.RandomState:
        keys, position, has_gauss, gauss = map(self.value, content)
        # numpy reads beyond its buffer for a position that lies there.
        if keys.shape != (_STATE_WORDS,) or position not in range(_STATE_WORDS + 1):
            raise ModelFileError("is refused: it has an impossible state of a random generator.")
        random_state = np.random.RandomState()
        random_state.set_state((MERSENNE_TWISTER, keys, position, int(has_gauss), float(gauss)))
        return random_state

    def _function(self, name: str) -> np.ufunc:
        if name not in FUNCTIONS:
            raise ModelFileError(f"is refused: {name!r} is not a function that a transformer may call.")
        return FUNCTIONS[name]

    def _class(self, content: list[Json]) -> Any:
        name, *state = content
        kind = class_of(ESTIMATORS, name)
        if kind is None:
            raise ModelFileError(f"holds a {name!r}, which this release does not know.")
        return self._restored(kind, name, *state)

    def _registered(self, family: str, name: str, *state: Values) -> Any:
        if name not in REGISTRIES[family]:
            raise ModelFileError(
                f"holds the {family} {name!r}, which is not known here: import the module that defines it, "
                "then load again."
            )
        return self._restored(REGISTRIES[family][name], name, *state)

    def _restored(self, kind: type[Any], name: str, given: Values, defaults: Values, fitted: Values) -> Any:
        check_fields(name, {**given, **defaults}, "")
        return restore(kind, *map(self.mapping, (given, defaults, fitted)))

    def _record(self, content: list[Json]) -> Any:
        name, nodes = content
        kind = class_of(RECORDS, name)
        if kind is None:
            raise ModelFileError(f"holds a {name!r}, which this release does not know.")
        return kind(**check_fields(name, self.mapping(nodes), ""))

    def _shared(self, position: int) -> Any:
        if position not in range(len(self.shared)):
            raise ModelFileError(f"is damaged: it refers to object {position} before describing it.")
        return self.shared[position]

    _makers: Mapping[str, Callable[..., Any]] = {
        "float": _float,
        "tuple": _tuple,
        "dict": mapping,
        "items": _items,
        "slice": _slice,
        "number": _number,
        "number_type": _number_type,
        "text": lambda _, content: np.str_(content),
        "dtype": _dtype,
        "index": _index,
        "category": _category,
        "column_dtype": _column_dtype,
        "arrow_dtype": _arrow_dtype,
        "sparse_dtype": _sparse_dtype,
        "plain": _plain_value,
        "array": _array,
        "start": _start,
        "objects": _objects,
        "floats": _floats,
        "texts": _texts,
        "RandomState": _random_state,
        "function": _function,
        "estimator": _class,
        "record": _record,
        "shared": _shared,
    }


def _n_values(shape: Sequence[Json]) -> int:
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ModelFileError(f"is refused: {shape} is not a shape of an array.")
    return math.prod(shape)
