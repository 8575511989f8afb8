"""Encodings: an estimator as JSON and arrays (and back: `decoding`).

A value becomes a *node*: None, booleans, integers, finite floats and strings are themselves, a list is a list
of nodes, and everything else is an object with one name that says what it is, such as ``{"tuple": [...]}``. A
name is only ever looked up, here or in the tables of `allow_list`: a file chooses among them and cannot name
anything else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.extensions import ExtensionDtype

from vae_anomaly.core.spec import Spec, state_of
from vae_anomaly.core.types import Array, Estimator, Json, Values
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
    SHARED,
    check_fields,
    class_of,
    describe,
    fields_of,
    refusal,
)

__all__ = ["ARRAY_DTYPE", "MERSENNE_TWISTER", "TREE", "Encoded", "encode_estimator", "encode_values"]

ARRAY_DTYPE = re.compile(r"\|b1|\|[iu]1|<[iu][248]|<f[248]|<U[1-9][0-9]{0,8}")
# Longer lists of one kind are arrays: a history of 100,000 epochs is not JSON.
_SHORT = 16
_WASTE = 16
TREE = {"class", "parameters", "defaults", "fitted", "shared"}
MERSENNE_TWISTER = "MT19937"


class Encoded(NamedTuple):
    """An estimator as a tree that is JSON, and the bytes of arrays that it refers to by their positions."""

    tree: dict[str, Json]
    arrays: list[npt.NDArray[np.uint8]]


def encode_estimator(estimator: Estimator) -> Encoded:
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


def encode_values(values: Mapping[str, Any]) -> Encoded:
    """Numbers, texts, arrays, and lists, tuples and dictionaries of them.

    Raises
    ------
    ModelFileError
        If one of them is something else; names it.
    """
    encoder = _Encoder()
    return Encoded(encoder.mapping(values, "state "), encoder.arrays)


class _Encoder:
    def __init__(self) -> None:
        self.arrays: list[npt.NDArray[np.uint8]] = []
        self.shared: list[Json] = []
        # The objects are kept, so that no other one gets their identity.
        self._positions: dict[int, tuple[int, object]] = {}

    def mapping(self, values: Mapping[str, Any], where: str) -> dict[str, Json]:
        separator = "" if where.endswith(" ") else "."
        return {name: self.node(value, f"{where}{separator}{name}") for name, value in values.items()}

    def node(self, value: Any, where: str) -> Json:
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
        if kind in (np.ndarray, np.memmap):
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
        if isinstance(value, pd.ArrowDtype) and str(value.pyarrow_dtype) in ARROW_DTYPES:
            return {"arrow_dtype": str(value.pyarrow_dtype)}
        if isinstance(value, pd.SparseDtype) and value.subtype.name in NUMBERS:
            return {"sparse_dtype": [value.subtype.name, self.node(value.fill_value, where)]}
        if isinstance(value, np.dtype) and value.name in DTYPES:
            return {"dtype": value.name}
        if isinstance(value, type) and issubclass(value, np.generic) and np.dtype(value).name in NUMBERS:
            return {"number_type": np.dtype(value).name}
        if kind is np.random.RandomState:
            return self._random_state(value, where)
        if found := next((name for name, function in FUNCTIONS.items() if function is value), None):
            return {"function": found}
        for name, plain in PLAIN_VALUES.items():
            if plain.kind is kind:
                return {"plain": [name, self._list(plain.parts(value), where)]}
        return self._object(value, where)

    def _list(self, values: list[Any], where: str) -> Json:
        if len(values) > _SHORT and all(type(value) is float for value in values):
            return {"floats": self._array(np.array(values), where)}
        if len(values) > _SHORT and all(type(value) is str for value in values):
            texts = [value.encode("utf-8", "surrogatepass") for value in values]
            lengths = np.array([len(text) for text in texts], dtype=np.int64)
            joined = np.frombuffer(b"".join(texts), dtype=np.uint8)
            return {"texts": [self._array(lengths, where), self._array(joined, where)]}
        return [self.node(value, f"{where}[{position}]") for position, value in enumerate(values)]

    def _array(self, array: Array, where: str) -> Json:
        if array.dtype == object:
            return {"objects": [list(array.shape), self._list(array.ravel().tolist(), where)]}
        stored = array.astype(array.dtype.newbyteorder("<"), copy=False)
        if not ARRAY_DTYPE.fullmatch(stored.dtype.str):
            raise refusal(where, f"an array of {array.dtype}")
        # The order of the bytes in memory decides which matrix product runs, and so the last bits of a score.
        contiguous = array.flags.c_contiguous or array.flags.f_contiguous
        if not contiguous and array.ndim == 2 and (whole := _find_whole(array)) is not None:
            axis = int(array.strides[0] > array.strides[1])
            return {"start": [axis, array.shape[axis], self._array(whole, where)]}
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        self.arrays.append(
            np.ascontiguousarray(stored.T if order == "F" else stored).reshape(-1).view(np.uint8)
        )
        return {"array": [stored.dtype.str, list(array.shape), order, len(self.arrays) - 1]}

    def _random_state(self, value: np.random.RandomState, where: str) -> Json:
        state: Values = value.get_state(legacy=False)
        if state["bit_generator"] != MERSENNE_TWISTER:
            raise refusal(where, f"a RandomState over {state['bit_generator']}")
        keys, position = self._array(state["state"]["key"], where), int(state["state"]["pos"])
        return {"RandomState": [keys, position, int(state["has_gauss"]), float(state["gauss"])]}

    def _object(self, value: Any, where: str) -> Json:
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
            raise refusal(where, describe(value), value)
        if name not in SHARED:
            return self._record(value, name, where)
        if id(value) not in self._positions:
            node = self._record(value, name, where)
            self._positions[id(value)] = len(self.shared), value
            self.shared.append(node)
        return {"shared": self._positions[id(value)][0]}

    def _estimator(self, value: Any, name: str, where: str) -> list[Json]:
        given, defaults, fitted = state_of(value)
        check_fields(name, given, f"{where} ")
        return [self.mapping(values, where) for values in (given, defaults, fitted)]

    def _record(self, value: object, name: str, where: str) -> Json:
        fields = {field: getattr(value, field) for field in fields_of(type(value))}
        return {"record": [name, self.mapping(check_fields(name, fields, f"{where} "), where)]}


def _find_whole(array: Array) -> Array | None:
    """An array whose first rows or columns are this one's, at the same distances; zero elsewhere.

    A matrix product reads a part of a matrix in other steps than a whole one, with other last bits. None if
    there is no such array, or only one that is far larger.
    """
    if array.strides[0] < array.strides[1]:
        whole = _find_whole(array.T)
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
