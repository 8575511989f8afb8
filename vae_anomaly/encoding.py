"""Encodings: an estimator as JSON and arrays, and back.

A value becomes a *node*: None, booleans, integers, finite floats and strings are themselves, a list is a list
of nodes, and everything else is an object with one name that says what it is, such as ``{"tuple": [...]}``. A
name is only ever looked up, here or in the tables of `vocabulary`: a file chooses among them and cannot name
anything else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.extensions import ExtensionDtype

from vae_anomaly.archive import Archive, ModelFileError
from vae_anomaly.spec import Spec
from vae_anomaly.vocabulary import (
    COLUMN_DTYPES,
    DTYPES,
    ESTIMATORS,
    FUNCTIONS,
    NUMBERS,
    RECORDS,
    REGISTRIES,
    SHARED,
    checked,
    class_of,
    described,
    fields_of,
    refusal,
    restored,
    state_of,
)

__all__ = ["Encoded", "decoded", "encoded"]

_DTYPE = re.compile(r"\|b1|\|[iu]1|<[iu][248]|<f[248]|<U[1-9][0-9]{0,8}")
_LARGEST_CODE_POINT = 0x10FFFF
# Longer lists of one kind are arrays: a history of 100,000 epochs is no JSON.
_SHORT = 16
_WASTE = 16
_TREE = {"class", "parameters", "defaults", "fitted", "shared"}
_MERSENNE_TWISTER, _STATE_WORDS = "MT19937", 624


class Encoded(NamedTuple):
    """An estimator as a tree that is JSON, and the bytes of arrays that it refers to by their positions."""

    tree: dict[str, Any]
    arrays: list[npt.NDArray[np.uint8]]


# -- to nodes -----------------------------------------------------------------------------------------------
def encoded(estimator: Any) -> Encoded:
    """An estimator's parameters and fitted attributes.

    Raises
    ------
    ModelFileError
        If one of them is on no list; names it.
    """
    encoder = _Encoder()
    parameters, defaults, fitted = state_of(estimator)
    tree = {
        "class": type(estimator).__name__,
        "parameters": encoder.mapping(parameters, "parameter "),
        "defaults": encoder.mapping(defaults, "parameter "),
        "fitted": encoder.mapping(fitted, "attribute "),
        "shared": encoder.shared,
    }
    return Encoded(tree, encoder.arrays)


class _Encoder:
    def __init__(self) -> None:
        self.arrays: list[npt.NDArray[np.uint8]] = []
        self.shared: list[Any] = []
        # The objects are kept, so that no other one gets their identity.
        self._positions: dict[int, tuple[int, Any]] = {}

    def mapping(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        separator = "" if where.endswith(" ") else "."
        return {name: self.node(value, f"{where}{separator}{name}") for name, value in values.items()}

    def node(self, value: Any, where: str) -> Any:
        kind = type(value)
        # Some releases of scikit-learn have it in the place of a list.
        if kind.__name__ == "_RemainderColsList":
            value, kind = value.data, list
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if kind is list:
            return self._list(value, where)
        if kind is tuple:
            return {"tuple": self._list(list(value), where)}
        if kind is dict:
            if all(type(key) is str for key in value):
                return {"dict": self.mapping(value, where)}
            return {"items": [self._list(list(pair), where) for pair in value.items()]}
        if kind is slice:
            return {"slice": [self.node(part, where) for part in (value.start, value.stop, value.step)]}
        if kind is np.ndarray:
            return self._array(value, where)
        if isinstance(value, np.generic) and kind.__name__.rstrip("_") in NUMBERS:
            return {"number": [value.dtype.name, self.node(value.item(), where)]}
        if kind is np.str_:
            return {"text": str(value)}
        if isinstance(value, pd.Index):
            return {"index": self._array(value.to_numpy(dtype=object), where)}
        if isinstance(value, pd.CategoricalDtype):
            return {"category": [self.node(value.categories, where), bool(value.ordered)]}
        if isinstance(value, ExtensionDtype) and str(value) in COLUMN_DTYPES:
            return {"column_dtype": str(value)}
        if isinstance(value, np.dtype) and value.name in DTYPES:
            return {"dtype": value.name}
        if isinstance(value, type) and issubclass(value, np.generic) and np.dtype(value).name in NUMBERS:
            return {"number_type": np.dtype(value).name}
        if kind is np.random.RandomState:
            return self._random_state(value, where)
        if found := next((name for name, function in FUNCTIONS.items() if function is value), None):
            return {"function": found}
        return self._object(value, where)

    def _list(self, values: list[Any], where: str) -> Any:
        if len(values) > _SHORT and all(type(value) is float for value in values):
            return {"floats": self._array(np.array(values), where)}
        if len(values) > _SHORT and all(type(value) is str for value in values):
            texts = [value.encode("utf-8", "surrogatepass") for value in values]
            lengths = np.array([len(text) for text in texts], dtype=np.int64)
            joined = np.frombuffer(b"".join(texts), dtype=np.uint8)
            return {"texts": [self._array(lengths, where), self._array(joined, where)]}
        return [self.node(value, f"{where}[{position}]") for position, value in enumerate(values)]

    def _array(self, array: npt.NDArray[Any], where: str) -> Any:
        if array.dtype == object:
            return {"objects": [list(array.shape), self._list(array.ravel().tolist(), where)]}
        stored = array.astype(array.dtype.newbyteorder("<"), copy=False)
        if not _DTYPE.fullmatch(stored.dtype.str):
            raise refusal(where, f"an array of {array.dtype}")
        # The order of the bytes in memory decides which matrix product runs, and so the last bits of a score.
        contiguous = array.flags.c_contiguous or array.flags.f_contiguous
        if not contiguous and array.ndim == 2 and (whole := _whole_of(array)) is not None:
            axis = int(array.strides[0] > array.strides[1])
            return {"start": [axis, array.shape[axis], self._array(whole, where)]}
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        self.arrays.append(
            np.ascontiguousarray(stored.T if order == "F" else stored).reshape(-1).view(np.uint8)
        )
        return {"array": [stored.dtype.str, list(array.shape), order, len(self.arrays) - 1]}

    def _random_state(self, value: np.random.RandomState, where: str) -> Any:
        state: dict[str, Any] = value.get_state(legacy=False)
        if state["bit_generator"] != _MERSENNE_TWISTER:
            raise refusal(where, f"a RandomState over {state['bit_generator']}")
        keys, position = self._array(state["state"]["key"], where), int(state["state"]["pos"])
        return {"RandomState": [keys, position, int(state["has_gauss"]), float(state["gauss"])]}

    def _object(self, value: Any, where: str) -> Any:
        kind = type(value)
        if isinstance(value, Spec):
            value = value.snapshot()
        for family, registry in REGISTRIES.items():
            name = next((name for name, known in registry.items() if known is kind), None)
            if name is not None and hasattr(value, "get_params"):
                return {family: [name, *self._estimator(value, name, where)]}
        name = kind.__name__
        if class_of(ESTIMATORS, name) is kind:
            return {"estimator": [name, *self._estimator(value, name, where)]}
        if class_of(RECORDS, name) is not kind:
            raise refusal(where, described(value), value)
        if name not in SHARED:
            return self._record(value, name, where)
        if id(value) not in self._positions:
            node = self._record(value, name, where)
            self._positions[id(value)] = len(self.shared), value
            self.shared.append(node)
        return {"shared": self._positions[id(value)][0]}

    def _estimator(self, value: Any, name: str, where: str) -> list[Any]:
        given, defaults, fitted = state_of(value)
        checked(name, given, f"{where} ")
        return [self.mapping(values, where) for values in (given, defaults, fitted)]

    def _record(self, value: Any, name: str, where: str) -> Any:
        fields = {field: getattr(value, field) for field in fields_of(type(value))}
        return {"record": [name, self.mapping(checked(name, fields, f"{where} "), where)]}


# -- from nodes ---------------------------------------------------------------------------------------------
def decoded(tree: Any, kind: type[Any], archive: Archive) -> Any:
    """The estimator of this class that `encoded` was given, its arrays read from ``arrays/0`` and so on.

    Raises
    ------
    ModelFileError
        If the tree is not one of `encoded`, or its arrays are not those of the archive.
    """
    if not isinstance(tree, dict) or tree.keys() != _TREE:
        raise ModelFileError("is damaged: it describes no detector.")
    if tree["class"] != kind.__name__:
        raise ModelFileError(f"holds a {tree['class']!r}, which this release does not know.")
    decoder = _Decoder(archive)
    for node in tree["shared"]:
        decoder.shared.append(decoder.value(node))
    state = [decoder.mapping(tree[name]) for name in ("parameters", "defaults", "fitted")]
    if unused := archive.names - decoder.taken - {"detector.json"}:
        raise ModelFileError(f"is refused: it has parts without a use, such as {min(unused)!r}.")
    return restored(kind, *state)


class _Decoder:
    def __init__(self, archive: Archive) -> None:
        self.taken: set[str] = set()
        self.shared: list[Any] = []
        self._archive = archive

    def value(self, node: Any) -> Any:
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

    def mapping(self, nodes: dict[str, Any]) -> dict[str, Any]:
        return {name: self.value(node) for name, node in nodes.items()}

    def _float(self, content: str) -> float:
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content]

    def _tuple(self, content: Any) -> tuple[Any, ...]:
        return tuple(self.value(content))

    def _items(self, content: list[Any]) -> dict[Any, Any]:
        return {self.value(key): self.value(value) for key, value in content}

    def _slice(self, content: list[Any]) -> slice:
        start, stop, step = map(self.value, content)
        return slice(start, stop, step)

    def _number(self, content: list[Any]) -> Any:
        name, value = content
        return self._number_type(name)(self.value(value))

    def _number_type(self, name: str) -> Any:
        if name not in NUMBERS:
            raise ModelFileError(f"is refused: {name!r} is no type of numbers.")
        return np.dtype(name).type

    def _dtype(self, name: str) -> npt.DTypeLike:
        if name not in DTYPES:
            raise ModelFileError(f"is refused: {name!r} is no type of an array.")
        return np.dtype(name)

    def _index(self, content: Any) -> pd.Index:
        values = self.value(content)
        if not isinstance(values, np.ndarray) or values.ndim != 1:
            raise ModelFileError("is damaged: it has categories that are no list.")
        return pd.Index(values, dtype=object)

    def _category(self, content: list[Any]) -> pd.CategoricalDtype:
        node, ordered = content
        categories = self.value(node)
        if not isinstance(categories, pd.Index) or not categories.is_unique:
            raise ModelFileError("is damaged: it has a category whose values are not of its own.")
        return pd.CategoricalDtype(categories.infer_objects(), bool(ordered))

    def _column_dtype(self, name: str) -> Any:
        if name not in COLUMN_DTYPES:
            raise ModelFileError(f"is refused: {name!r} is no type of a column.")
        return pd.api.types.pandas_dtype(name)

    def _array(self, content: list[Any]) -> npt.NDArray[Any]:
        code, shape, order, position = content
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
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
            raise ModelFileError(f"is damaged: {name!r} is no text.")
        return array if order == "C" else array.T

    def _start(self, content: list[Any]) -> npt.NDArray[Any]:
        axis, n_kept, node = content
        whole: npt.NDArray[Any] = self.value(node)
        return whole[:, :n_kept] if axis else whole[:n_kept]

    def _objects(self, content: list[Any]) -> npt.NDArray[Any]:
        shape, node = content
        values = self.value(node)
        if _n_values(shape) != len(values):
            raise ModelFileError(f"is damaged: it has {len(values)} objects for an array of shape {shape}.")
        array = np.empty(len(values), dtype=object)
        for position, value in enumerate(values):
            array[position] = value
        return array.reshape(shape)

    def _plain(self, node: Any, dtype: type) -> npt.NDArray[Any]:
        """A one-dimensional array of this type: of a smaller one, a list would take far more memory."""
        array = self.value(node)
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
            raise ModelFileError(f"is refused: it has a list that is no array of {dtype.__name__}.")
        return array

    def _floats(self, content: Any) -> list[float]:
        return list(self._plain(content, np.float64).tolist())

    def _texts(self, content: list[Any]) -> list[str]:
        lengths, joined = map(self._plain, content, (np.int64, np.uint8))
        ends = np.cumsum(lengths)
        if (lengths < 0).any() or ends[-1] != len(joined):
            raise ModelFileError("is damaged: texts are shorter or longer than it says.")
        data = joined.tobytes()
        return [
            data[end - length : end].decode("utf-8", "surrogatepass")
            for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)
        ]

    def _random_state(self, content: list[Any]) -> np.random.RandomState:
        keys, position, has_gauss, gauss = map(self.value, content)
        # numpy reads beyond its buffer for a position that lies there.
        if keys.shape != (_STATE_WORDS,) or position not in range(_STATE_WORDS + 1):
            raise ModelFileError("is refused: it has an impossible state of a random generator.")
        random_state = np.random.RandomState()
        random_state.set_state((_MERSENNE_TWISTER, keys, position, int(has_gauss), float(gauss)))
        return random_state

    def _function(self, name: str) -> Callable[..., Any]:
        if name not in FUNCTIONS:
            raise ModelFileError(f"is refused: {name!r} is no function that a transformer may call.")
        return FUNCTIONS[name]

    def _class(self, content: list[Any]) -> Any:
        name, *state = content
        kind = class_of(ESTIMATORS, name)
        if kind is None:
            raise ModelFileError(f"holds a {name!r}, which this release does not know.")
        return self._restored(kind, name, *state)

    def _registered(self, family: str, name: str, *state: Any) -> Any:
        if name not in REGISTRIES[family]:
            raise ModelFileError(
                f"holds the {family} {name!r}, which is not known here: import the module that defines it, "
                "then load again."
            )
        return self._restored(REGISTRIES[family][name], name, *state)

    def _restored(self, kind: type[Any], name: str, given: Any, defaults: Any, fitted: Any) -> Any:
        checked(name, {**given, **defaults}, "")
        return restored(kind, *map(self.mapping, (given, defaults, fitted)))

    def _record(self, content: list[Any]) -> Any:
        name, nodes = content
        kind = class_of(RECORDS, name)
        if kind is None:
            raise ModelFileError(f"holds a {name!r}, which this release does not know.")
        return kind(**checked(name, self.mapping(nodes), ""))

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


def _whole_of(array: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """An array whose first rows or columns are this one's, at the same distances; zero elsewhere.

    A matrix product reads a part of a matrix in other steps than a whole one, with other last bits. None if
    there is no such array, or only one that is far larger.
    """
    if array.strides[0] < array.strides[1]:
        whole = _whole_of(array.T)
        return None if whole is None else whole.T
    n_columns, rest = divmod(array.strides[0], array.itemsize)
    if (
        array.strides[1] != array.itemsize
        or rest
        or not array.shape[1] < n_columns <= _WASTE * array.shape[1]
    ):
        return None
    whole = np.zeros((len(array), n_columns), dtype=array.dtype)
    whole[:, : array.shape[1]] = array
    return whole


def _n_values(shape: Sequence[Any]) -> int:
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ModelFileError(f"is refused: {shape} is no shape of an array.")
    return math.prod(shape)
