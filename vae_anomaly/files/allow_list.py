"""The allow list: what a model file can hold, besides numbers, texts, lists, dictionaries and arrays.

To let objects of a new class be stored, add it to `ESTIMATORS`, `REGISTRIES`, `RECORDS` or `PLAIN_VALUES`.
What an object holds must be storable in its turn, and making it must run nothing that a file could choose.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from vae_anomaly.core.spec import Spec
from vae_anomaly.core.types import Values
from vae_anomaly.files.archive import ModelFileError
from vae_anomaly.files.keras_config import check_config
from vae_anomaly.flows import TRANSFORMS
from vae_anomaly.likelihoods import LIKELIHOODS
from vae_anomaly.networks import NETWORKS
from vae_anomaly.objectives import OBJECTIVES
from vae_anomaly.posteriors import POSTERIORS
from vae_anomaly.priors import PRIORS
from vae_anomaly.thresholds import THRESHOLDS

__all__ = [
    "ARROW_DTYPES",
    "COLUMN_DTYPES",
    "DTYPES",
    "ESTIMATORS",
    "FUNCTIONS",
    "NUMBERS",
    "PLAIN_VALUES",
    "RECORDS",
    "REGISTRIES",
    "SHARED",
    "check_fields",
    "class_of",
    "describe",
    "fields_of",
    "refusal",
    "restore",
]

#: Classes that are stored by their parameters and fitted attributes, with the module that has them.
ESTIMATORS: dict[str, str] = {
    "Member": "vae_anomaly.ensemble.recipe",
    "KerasNetwork": "vae_anomaly.networks.keras_network",
    "ColumnTransformer": "sklearn.compose",
    "FunctionTransformer": "sklearn.preprocessing",
    "KBinsDiscretizer": "sklearn.preprocessing",
    "MaxAbsScaler": "sklearn.preprocessing",
    "MinMaxScaler": "sklearn.preprocessing",
    "MissingIndicator": "sklearn.impute",
    "Normalizer": "sklearn.preprocessing",
    "OneHotEncoder": "sklearn.preprocessing",
    "OrdinalEncoder": "sklearn.preprocessing",
    "PCA": "sklearn.decomposition",
    "PixelScaler": "vae_anomaly.data.pixels",
    "Pipeline": "sklearn.pipeline",
    "PowerTransformer": "sklearn.preprocessing",
    "QuantileTransformer": "sklearn.preprocessing",
    "RobustScaler": "sklearn.preprocessing",
    "ScalerOfColumns": "vae_anomaly.data.scaling",
    "SimpleImputer": "sklearn.impute",
    "StandardScaler": "sklearn.preprocessing",
    "VarianceThreshold": "sklearn.feature_selection",
}
#: The same for classes that users add to by name; who loads a file must have added them too.
REGISTRIES: dict[str, Mapping[str, type[Any]]] = {
    "likelihood": LIKELIHOODS,
    "network": NETWORKS,
    "threshold": THRESHOLDS,
    "objective": OBJECTIVES,
    "posterior": POSTERIORS,
    "prior": PRIORS,
    "transform": TRANSFORMS,
}
#: Named tuples and dataclasses, which are stored by their fields.
RECORDS: dict[str, str] = {
    "Blueprint": "vae_anomaly.networks.keras_network",
    "Column": "vae_anomaly.data.tables",
    "KFold": "sklearn.model_selection",
    "ModelState": "vae_anomaly.model.states",
    "Patches": "vae_anomaly.data.patches",
    "Specification": "vae_anomaly.model.states",
    "Table": "vae_anomaly.data.tables",
}
# Of these, one object that is met several times stays one.
SHARED = {"Specification"}
#: What a `FunctionTransformer` may call.
FUNCTIONS: dict[str, np.ufunc] = {
    name: getattr(np, name)
    for name in ("arcsinh", "cbrt", "exp", "expm1", "log", "log10", "log1p", "log2", "sinh", "sqrt", "square")
}

NUMBERS = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
DTYPES = {*NUMBERS, "object"}
#: pandas' own, by their names.
COLUMN_DTYPES = {
    *("boolean", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64"),
    *("Float32", "Float64", "string", "str"),
}
#: Those of pyarrow, by the names that it gives them.
ARROW_DTYPES = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("halffloat", "float", "double", "string", "large_string"),
}


class Plain(NamedTuple):
    """How values of a class, such as the categories of a column, are stored: by their parts, and back."""

    kind: type[Any]
    parts: Callable[[Any], list[Any]]
    make: Callable[..., Any]


def _timestamp(text: str, unit: Any, zone: str | None) -> pd.Timestamp:
    time = pd.Timestamp(text).as_unit(unit)
    return time if zone is None else time.tz_convert(zone)


PLAIN_VALUES = {
    "Timestamp": Plain(
        pd.Timestamp, lambda v: [v.isoformat(), v.unit, None if v.tz is None else str(v.tz)], _timestamp
    ),
    "Timedelta": Plain(
        pd.Timedelta,
        lambda v: [int(v.asm8.astype("int64")), v.unit],
        lambda number, unit: pd.Timedelta(np.timedelta64(number, unit)),
    ),
    "Interval": Plain(pd.Interval, lambda v: [v.left, v.right, v.closed], pd.Interval),
    "Period": Plain(
        pd.Period,
        lambda v: [v.ordinal, v.freqstr],
        lambda ordinal, frequency: pd.Period(ordinal=ordinal, freq=frequency),
    ),
    "date": Plain(datetime.date, lambda v: [v.isoformat()], datetime.date.fromisoformat),
    "Decimal": Plain(decimal.Decimal, lambda v: [str(v)], decimal.Decimal),
}
_FITTED = re.compile(r"_?[a-z][a-z0-9_]*")
# What the detector can do without once it is fitted.
_WITHOUT = {
    "calibration": "auto",
    "callbacks": None,
    "learning_rate_schedule": "cosine",
    "random_state": 0,
    "threshold": None,
}


def class_of(table: Mapping[str, str], name: object) -> type[Any] | None:
    """The class of this name in a table, or None."""
    if not isinstance(name, str) or name not in table:
        return None
    found: type[Any] = getattr(importlib.import_module(table[name]), name)
    return found


def fields_of(kind: type[Any]) -> list[str]:
    """Names of the fields of a dataclass or a named tuple; of other classes, of what makes them."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return list(getattr(kind, "_fields", inspect.signature(kind).parameters))


def restore(kind: type[Any], given: Values, defaults: Values, fitted: Values) -> Any:
    """An estimator of these parameters and fitted attributes."""
    # One that is not known here and had its default changed nothing.
    known = set(kind._get_param_names())
    parameters = {name: value for name, value in defaults.items() if name in known} | given
    if unknown := parameters.keys() - known:
        raise ModelFileError(
            f"has parameters that {kind.__name__} does not have here: {sorted(unknown)}. Install the "
            "versions that its manifest.json names, or newer ones."
        )
    estimator, taken = kind(**parameters), {*dir(kind), *parameters}
    for name in fitted:
        if not _FITTED.fullmatch(name) or name in taken:
            raise ModelFileError(
                f"is refused: {name!r} is not a name of a fitted attribute of {kind.__name__}."
            )
    vars(estimator).update(fitted)
    return estimator


def check_fields(name: str, values: Values, where: str) -> Values:
    """An object's parameters or fields, if they are such as a file may hold."""
    if name == "Blueprint":
        try:
            return {**values, "config": check_config(values["config"]), "trusted": False}
        except ModelFileError as error:
            raise ModelFileError(f"{where}{error}") from None
    if name == "Pipeline" and values.get("memory") is not None:
        # joblib reads its cache by pickle, from wherever a file says.
        raise ModelFileError(
            f"{where}cannot hold a Pipeline with memory={values['memory']!r}; set memory=None."
        )
    return values


def refusal(where: str, what: str, value: object = None) -> ModelFileError:
    """The error for a value that a model file cannot hold, with what to do about it."""
    parameter = re.split(r"[.\[]", where.removeprefix("parameter "))[0]
    if parameter in _WITHOUT:
        advice = (
            f"Only fit uses it: set_params({parameter}={_WITHOUT[parameter]!r}) before saving, or save with "
            "joblib.dump"
        )
    elif isinstance(value, Spec):
        advice = (
            "Give its class a name in LIKELIHOODS or NETWORKS, or a class attribute `name` if it is a "
            "posterior, a prior, a transform or an objective; or save with joblib.dump"
        )
    elif where.endswith(".activation"):
        advice = "Name an activation of Keras, such as activation='relu', or save with joblib.dump"
    elif where.endswith("func"):
        advice = f"Of functions it can hold numpy's {', '.join(FUNCTIONS)}; save others with joblib.dump"
    elif where.endswith("random_state"):
        advice = "Of generators it can hold RandomState(seed); save others with joblib.dump"
    elif hasattr(value, "transform"):
        names = ", ".join(name for name, module in ESTIMATORS.items() if module.startswith("sklearn"))
        advice = f"Of transformers it can hold {names}; save others with joblib.dump or skops.io.dump"
    else:
        advice = "Save with joblib.dump or skops.io.dump"
    return ModelFileError(f"{where} is {what}, and a model file holds data, never code. {advice}.")


def describe(value: object) -> str:
    """What a value is, in a few words."""
    kind = type(value)
    if hasattr(value, "__name__"):
        return f"the {'class' if isinstance(value, type) else 'function'} {value.__name__}"
    return f"an object of {kind.__module__}.{kind.__qualname__}"
