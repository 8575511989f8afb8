"""Specifications: the parameter objects that decide what is built (likelihoods, networks)."""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Hashable
from typing import Any, ClassVar, Self, TypeVar

import joblib
import numpy as np
from sklearn.base import BaseEstimator

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Constraints, Estimator, Values

__all__ = ["Spec", "config_json", "state_of"]

_Value = TypeVar("_Value")


class Spec(BaseEstimator):  # type: ignore[misc]
    """A scikit-learn parameter object that is part of a model's architecture."""

    _parameter_constraints: ClassVar[Constraints] = {}

    def architecture_key(self) -> Hashable:
        """Equal for specifications that can share compiled programs: same class, same parameters.

        The class itself is part of it, not its name: a class that a notebook defines anew is another.
        """
        return type(self), tuple(
            (name, _key(value)) for name, value in sorted(self.get_params(deep=False).items())
        )

    def snapshot(self) -> Self:
        """A copy that no later change of this object reaches: what a fitted model keeps."""
        parameters = self.get_params(deep=False)
        return type(self)(**{name: _copy_containers(value) for name, value in parameters.items()})


def config_json(keras_object: object) -> str:
    """A Keras object's configuration as a string: equal strings, equal architectures."""
    return json.dumps(keras.saving.serialize_keras_object(keras_object), sort_keys=True)


def _copy_containers(value: _Value) -> _Value:
    return copy.deepcopy(value) if isinstance(value, (list, tuple, dict, set, np.ndarray)) else value


def _key(value: Any) -> Hashable:
    """A hashable stand-in that is equal for equal parameter values, and for them only."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return type(value), value
    if isinstance(value, (tuple, list)):
        return tuple, tuple(map(_key, value))
    if isinstance(value, Spec):
        return value.architecture_key()
    if isinstance(value, functools.partial):
        return _key((value.func, value.args, sorted(value.keywords.items())))
    if hasattr(value, "get_config"):  # a Keras layer or initializer: clones have equal configurations
        return type(value), config_json(value)
    if callable(value):
        return callable, value
    return type(value), joblib.hash(value)


def state_of(estimator: Estimator) -> tuple[Values, Values, Values]:
    """Parameters, those that have their default values, and everything else that an estimator holds."""
    parameters = estimator.get_params(deep=False)
    fitted = {name: value for name, value in vars(estimator).items() if name not in parameters}
    signature = inspect.signature(type(estimator)).parameters
    own = {name for name, value in parameters.items() if not _equal(value, signature[name].default)}
    given = {name: value for name, value in parameters.items() if name in own}
    return given, {name: value for name, value in parameters.items() if name not in own}, fitted


def _equal(value: object, default: object) -> bool:
    simple = default is None or type(default) in (bool, int, float, str, tuple, type)
    return simple and type(value) is type(default) and repr(value) == repr(default)
