"""Interruption: Ctrl-C during a training. The first ends it with the present epoch, the second at once.

No signal handler is installed. Python raises `KeyboardInterrupt` in the main thread; it is caught where a
training can go on, and trainings in other threads look at a flag.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import ParamSpec, TypeVar

__all__ = ["Interruption"]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Interruption:
    """What the trainings of one fit know of Ctrl-C.

    Attributes
    ----------
    stop_requested : bool
        Whether trainings are to end with the epoch that they are in.
    """

    def __init__(self) -> None:
        self.stop_requested = False
        self._at_once = False
        self._has_epoch = False

    def finish_epoch(self) -> None:
        """From now on there is something to keep."""
        self._has_epoch = True

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
