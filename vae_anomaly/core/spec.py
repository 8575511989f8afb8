"""Specifications: the parameter objects that decide what is built (likelihoods, networks)."""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, Self, TypeVar

import joblib
import numpy as np
from sklearn.base import BaseEstimator

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Constraints, Estimator, Values

__all__ = ["Part", "Spec", "config_json", "register", "state_of"]

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

    def _lacks(self, method: str) -> NotImplementedError:
        """The error of a method that each class of its kind needs and this one does not have."""
        base = next(cls for cls in type(self).__mro__ if method in vars(cls))
        return NotImplementedError(
            f"{type(self).__name__} has no method {method}, which this needs: write it, as the base class "
            f"{base.__qualname__} describes it."
        )


def register(cls: Any, named: dict[str, Any]) -> None:
    """Add a class to those of its kind by its ``name``; one's own may be defined anew.

    Raises
    ------
    TypeError
        If the package has a class of this name: files that hold that one would be read as the other.
    """
    there = named.get(cls.name)
    if there is not None and _is_of_package(there) and not _is_of_package(cls):
        raise TypeError(
            f"{cls.__qualname__} has the name {cls.name!r}, which is that of {there.__module__}."
            f"{there.__qualname__}: choose another name."
        )
    named[cls.name] = cls


def _is_of_package(cls: Any) -> bool:
    return str(cls.__module__).partition(".")[0] == __name__.partition(".")[0]


class Part(Spec):
    """A specification whose class has a name among those of its family: a posterior, a prior, an objective.

    A base class opens a family, ``class Prior(Part, family="prior")``; a subclass of it that has a ``name``
    registers itself. Equal parameters make equal parts.

    Attributes
    ----------
    name : str
        What files, and where it says so the detector's parameters, call the class.
    """

    name: ClassVar[str] = ""
    #: Every class that has a name, by family.
    families: ClassVar[dict[str, dict[str, type[Part]]]] = {}
    _family: ClassVar[str] = ""

    def __init_subclass__(cls, family: str | None = None, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if family is not None:
            cls._family, Part.families[family] = family, {}
        elif cls.__dict__.get("name"):
            register(cls, Part.families[cls._family])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and self.architecture_key() == other.architecture_key()

    def __hash__(self) -> int:
        return hash(self.architecture_key())

    @classmethod
    def resolve(cls, part: str | Self, named: Mapping[str, Callable[[], Self]]) -> Self:
        """The part with this name, or the instance itself; asked of the family's base class."""
        if isinstance(part, cls):
            return part
        if part not in named:
            raise ValueError(
                f"{cls._family} must be one of {[*named]} or an instance of {cls.__name__}; "
                f"received {part!r}."
            )
        return named[part]()

    def config(self) -> Values:
        """Family, name and parameters as plain data, from which `from_config` makes an equal part."""
        if Part.families[self._family].get(self.name) is not type(self):
            raise TypeError(
                f"only a {self._family} with a name of its own can be saved and found again; give "
                f"{type(self).__name__} a class attribute `name`."
            )
        parameters = self.get_params(deep=False)
        return {
            "family": self._family,
            "name": self.name,
            **{key: _plain(value) for key, value in parameters.items()},
        }

    @staticmethod
    def from_config(config: Values) -> Any:
        """The part that `config` describes."""
        parameters = dict(config)
        kind = Part.families[parameters.pop("family")][parameters.pop("name")]
        return kind(**{key: _part(value) for key, value in parameters.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.config()
    return [*map(_plain, value)] if isinstance(value, (list, tuple)) else value


def _part(value: Any) -> Any:
    if isinstance(value, dict):
        return Part.from_config(value)
    return [*map(_part, value)] if isinstance(value, list) else value


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
