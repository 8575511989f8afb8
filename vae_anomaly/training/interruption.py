"""Interruption: Ctrl-C during a training, or a word from another thread.

The first Ctrl-C ends a training with the present epoch, the second at once. No signal handler is installed:
Python raises `KeyboardInterrupt` in the main thread, it is caught where a training can go on, and trainings
in other threads look at a flag.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import ParamSpec, TypeVar

__all__ = ["Interruption", "interruptible", "stop"]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Interruption:
    """What the trainings of one fit know of Ctrl-C.

    Attributes
    ----------
    stop_requested : bool
        Whether trainings are to end with the epoch that they are in.
    cause : str
        What has requested it.
    """

    def __init__(self) -> None:
        self.stop_requested = False
        self.cause = "Ctrl-C"
        self._at_once = False
        self._has_epoch = False
        self._stop_awaited = False

    def finish_epoch(self) -> None:
        """From now on there is something to keep."""
        self._has_epoch = True
        if self._stop_awaited:
            self.stop_requested = True

    def stop(self) -> None:
        """Let trainings end with their epoch, at the earliest the first one; for any other thread."""
        if not self.stop_requested:
            self.cause = "stop_fit"
        self._stop_awaited = True
        if self._has_epoch:
            self.stop_requested = True

    def request_stop(self) -> None:
        """Let trainings end with their epoch, while a `KeyboardInterrupt` is handled.

        It is raised again if it is the second, or if no epoch has been finished.
        """
        if self.stop_requested or not self._has_epoch:
            self._at_once = True
            raise
        self.stop_requested = True

    def abandon(self) -> None:
        """Let trainings in other threads end at once, with an error that nobody sees."""
        self._at_once = True

    def complete(
        self,
        function: Callable[_Arguments, _Result],
        *arguments: _Arguments.args,
        **keywords: _Arguments.kwargs,
    ) -> _Result:
        """A pure function's result, in spite of one Ctrl-C: it is then called once more.

        Raises
        ------
        CancelledError
            If all is to end at once.
        """
        if self._at_once:
            raise CancelledError
        try:
            return function(*arguments, **keywords)
        except KeyboardInterrupt:
            self.request_stop()
            return function(*arguments, **keywords)


_running: weakref.WeakKeyDictionary[object, Interruption] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def interruptible(owner: object) -> Iterator[Interruption]:
    """The interruption of a fit that its owner can `stop` meanwhile.

    It is not the owner's attribute, which would be pickled and copied with it.
    """
    interruption = _running[owner] = Interruption()
    try:
        yield interruption
    finally:
        _running.pop(owner, None)


def stop(owner: object) -> None:
    """Let the trainings of the owner's fit end with their epoch, if it is fitted now."""
    interruption = _running.get(owner)
    if interruption is not None:
        interruption.stop()
