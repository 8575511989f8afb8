"""What a stream has said so far, and the fair game that says it: a martingale of bets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from vae_anomaly.core.types import Floats, Values

__all__ = ["STAKES_ON_ANOMALIES", "STAKES_ON_DRIFT", "Evidence", "Game"]

# Bets on drift gain nothing, on average, while fewer than 5 % of the rows are anomalies.
STAKES_ON_DRIFT = (-0.9, -0.3, 0.3, 0.9)
STAKES_ON_ANOMALIES = (0.01, 0.1)


@dataclass(frozen=True)
class Evidence:
    """What a stream has said so far; made by `Monitor.update`.

    Attributes
    ----------
    drifted : bool
        Whether the evidence of drift has reached 1 / ``false_alarm_rate``, now or before.
    more_anomalies : bool
        The same of anomalies.
    drift : float
        The present evidence: what a fair game would have made of 1 by bets against "nothing has changed".
    anomalies : float
        The same of bets that scores above the 99 % quantile become more frequent.
    n_rows : int
        Rows since the monitor began.
    first_drifted : int or None
        The row, counted from 1, at which drift was found.
    first_anomalies : int or None
    """

    drifted: bool
    more_anomalies: bool
    drift: float
    anomalies: float
    n_rows: int
    first_drifted: int | None
    first_anomalies: int | None


class Game:
    """Fair bets at several stakes, each begun at every time with a little of the capital."""

    def __init__(self, stakes: tuple[float, ...]) -> None:
        self._stakes = np.array(stakes)
        self._log_capital = np.full(len(stakes), -np.inf)
        self._n_played = 0

    @classmethod
    def restore(cls, stakes: Floats, log_capital: Floats, n_played: int) -> Self:
        """The game of a `state`."""
        game = cls(tuple(stakes))
        game._log_capital, game._n_played = log_capital, n_played
        return game

    def state(self) -> Values:
        """What the game goes on from."""
        return {
            "stakes": self._stakes,
            "log_capital": self._log_capital,
            "n_played": self._n_played,
        }

    def play(self, outcomes: Floats) -> Floats:
        """Logarithm of all capital after each outcome, of mean 0 and at least -1 in a fair game."""
        times = self._n_played + np.arange(len(outcomes))
        # What has not been bet yet before and after each outcome.
        before, after = 1 / np.log2(times + 2), 1 / np.log2(times + 3)
        gains = np.log1p(self._stakes[:, None] * outcomes)
        product = np.cumsum(gains, axis=1)
        begun = np.log(before - after) - math.log(len(self._stakes)) - (product - gains)
        entries = np.concatenate([self._log_capital[:, None], begun], axis=1)
        log_capital = product + np.logaddexp.accumulate(entries, axis=1)[:, 1:]
        self._log_capital = log_capital[:, -1]
        self._n_played += len(outcomes)
        return np.asarray(np.logaddexp(np.logaddexp.reduce(log_capital, axis=0), np.log(after)))
