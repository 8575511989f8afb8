"""What scikit-learn's conventions take beyond its base classes."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Concatenate, Generic, ParamSpec, TypeVar, overload

__all__ = ["MethodNamedAsParameter", "all_or_nothing", "warn_user"]

_Owner = TypeVar("_Owner")
_Result = TypeVar("_Result")
_Arguments = ParamSpec("_Arguments")


class MethodNamedAsParameter(Generic[_Owner, _Arguments, _Result]):
    """Lets ``score`` be both: a constructor parameter, kept in ``vars(self)``, and a public method.

    scikit-learn fixes the method's name and this library's users know the parameter by it. Attribute
    access gives the method; `get_params` gives the parameter.
    """

    def __init__(self, method: Callable[Concatenate[_Owner, _Arguments], _Result]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Callable[Concatenate[_Owner, _Arguments], _Result]: ...

    @overload
    def __get__(self, instance: _Owner, owner: type | None = None) -> Callable[_Arguments, _Result]: ...

    def __get__(self, instance: _Owner | None, owner: type | None = None) -> Callable[..., _Result]:
        if instance is None:
            return self._method
        bound: Callable[..., _Result] = self._method.__get__(instance, owner)
        return bound

    def __set__(self, instance: object, value: object) -> None:
        vars(instance)[self._name] = value


@contextlib.contextmanager
def all_or_nothing(estimator: object) -> Iterator[None]:
    """A fit that fails leaves the estimator as it was."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        estimator.__dict__ = before
        raise


def warn_user(message: str | Warning, category: type[Warning] = UserWarning) -> None:
    """Warn in the name of the line that called this package, however deep the cause lies."""
    depth, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("vae_anomaly."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=depth)
