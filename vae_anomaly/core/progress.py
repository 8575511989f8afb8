"""Progress: how many rows have been done, how long the others will take, and how long a fit will."""

from __future__ import annotations

import sys
import time

__all__ = ["DurationNotice", "ProgressLine"]

_WIDTH = 70
# Who waits for less need not be told.
_SECONDS_TO_TELL_OF = 60.0


class ProgressLine:
    """A line on standard error, such as ``60 of 500 rows scored (12 %), 0:03 left``.

    Parameters
    ----------
    n_rows : int
    done : str
        What is done with the rows.
    shows : bool
        False is silent.
    """

    def __init__(self, n_rows: int, done: str, shows: bool) -> None:
        self._n_rows, self._done, self._shows = n_rows, done, shows
        self._start, self._n_before = time.monotonic(), -1

    def show(self, n_done: int) -> None:
        """Say how many rows have been done; the first call, how many were done before. All end the line."""
        if self._n_before < 0:
            self._n_before = n_done
        if not self._shows:
            return
        left = ""
        if self._n_before < n_done < self._n_rows:
            seconds = time.monotonic() - self._start
            seconds *= (self._n_rows - n_done) / (n_done - self._n_before)
            left = f", {int(seconds) // 60}:{int(seconds) % 60:02} left"
        percent = 100 * n_done // max(1, self._n_rows)
        line = f"{n_done:,} of {self._n_rows:,} rows {self._done} ({percent} %){left}"
        end = "\n" if n_done >= self._n_rows else ""
        print(f"\r{line:<{_WIDTH}}", end=end, file=sys.stderr, flush=True)


class DurationNotice:
    """Says once, on standard output, how long trainings that follow one another take; of a minute and more.

    Attributes
    ----------
    is_given : bool
        Whether `tell` has been called.
    """

    def __init__(self) -> None:
        self.is_given = False

    def tell(self, seconds: float, n_trainings: int) -> None:
        """Say how long so many trainings take at most, each of them so many seconds."""
        self.is_given = True
        if n_trainings * seconds >= _SECONDS_TO_TELL_OF:
            who = "Training" if n_trainings == 1 else f"Training {n_trainings} members"
            print(f"{who} will take at most about {_in_words(n_trainings * seconds)}.", flush=True)


def _in_words(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} minute{'' if minutes == 1 else 's'}"
    return f"{minutes / 60:.1f} hours"
