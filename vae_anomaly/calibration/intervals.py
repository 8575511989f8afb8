r"""Intervals of cells that hold what they say: normalized conformal prediction, column by column.

A model says in which cells it is less sure; held-out rows say how much too sure it is in all. The conformity
score of a known value y in a cell where :math:`\hat y` is expected is its distance in units of the model's
own interval,

.. math:: t = \frac{\hat y - y}{\hat y - l + f} \text{ below},\qquad \frac{y - \hat y}{u - \hat y + f}
    \text{ above}

with the ends l and u of the central 90 % of what the model thinks possible, no unit less than a quarter of
u - l, and a small f of the column that keeps units above 0. Of n scores of a column, the
:math:`\lceil (n+1) c \rceil`-th smallest is the factor by which units are stretched for a coverage c. If the
row is exchangeable with the n, the interval then holds the value with a probability of at least c, whatever
the model (Vovk, Gammerman & Shafer 2005; Lei et al. 2018, "Distribution-free predictive inference for
regression"; Romano, Patterson & Candès 2019, "Conformalized quantile regression").

Rows with other gaps are other tasks, so scores are compared among rows of a kind (Mondrian conformal
prediction): those with the same other cells missing, if they are at least `ROWS_OF_A_KIND`. The rows with
rarer gaps are pooled with those that have as many cells missing, if they are so many together, and else with
all that are left. As kinds do not depend on scores, the coverage holds in each. Only where fewer are left
than a coverage needs, all rows tell of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from vae_anomaly.calibration.conformal import fewest_scores, rank_of, smallest
from vae_anomaly.core.types import Flags, Floats

__all__ = [
    "MODEL_LEVELS",
    "ROWS_OF_A_KIND",
    "CellIntervals",
    "Spread",
    "conformity_scores",
    "floors_of",
    "scores_as_new",
]

#: Of what the model thinks possible: where the ends lie that are stretched.
MODEL_LEVELS = (0.05, 0.95)
#: Fewer calibration rows with the same cells missing, or with as many, are not asked apart from others.
ROWS_OF_A_KIND = 50
# The expectation may lie at one end of what is possible, or beyond: no unit is a smaller part of the width.
_LEAST_PART = 0.25
# A part of a column's standard deviation in training.
_FLOOR = 0.05
# Rows are float32: a value at the end of its interval is inside.
_ROUNDING = 1e-5


class Spread(NamedTuple):
    """What a model thinks of cells: arrays of shape (n_rows, n_columns).

    Attributes
    ----------
    expected : array
    low, high : arrays
        The ends of its own intervals; NaN in columns without order.
    """

    expected: Floats
    low: Floats
    high: Floats


def floors_of(rows: Floats) -> Floats:
    """What is added to the units of each column of these training rows, which may have gaps."""
    known = ~np.isnan(rows)
    n_known = np.maximum(known.sum(axis=0), 1)
    means = np.where(known, rows, 0.0).sum(axis=0) / n_known
    variances = np.where(known, np.square(rows - means), 0.0).sum(axis=0) / n_known
    return np.asarray(np.maximum(_FLOOR * np.sqrt(variances), np.finfo(np.float32).eps))


def conformity_scores(values: Floats, spread: Spread, floors: Floats) -> Floats:
    """The scores of values, (n_rows, n_columns): 0 in columns without order, NaN for missing values."""
    below, above = _units(spread, floors)
    scores = np.abs(values - spread.expected) / np.where(values < spread.expected, below, above)
    return np.where(np.isnan(values), np.nan, np.nan_to_num(scores, nan=0.0, posinf=np.inf))


def _units(spread: Spread, floors: Floats) -> tuple[Floats, Floats]:
    expected, low, high = spread
    least = _LEAST_PART * (high - low)
    return np.maximum(expected - low, least) + floors, np.maximum(high - expected, least) + floors


def scores_as_new(scores: Floats, by_member: Floats, left_out: Flags) -> Floats:
    r"""The scores of training rows as if no member had been trained on them: shape (n_rows, n_columns).

    A member guesses cells of rows that it was trained on better than those of new rows. Of each column, a
    score s at the place p among all is lengthened as members' own scores are,

    .. math:: \tilde s = s \, \frac{B^{-1}(p)}{A^{-1}(p)},

    with the quantile functions :math:`A^{-1}` of the scores that members give rows that they were trained on
    and :math:`B^{-1}` of those that they give rows that they left out. To judge a row by the members alone
    that left it out was tried: so few of them guess worse than all, and of intervals for 90 %, 96 to 99 %
    held.

    Parameters
    ----------
    scores : array of shape (n_rows, n_columns)
        By all members together; NaN for missing cells.
    by_member : array of shape (n_members, n_rows, n_columns)
    left_out : bool array of shape (n_members, n_rows)
        Rows that a member was not trained on.
    """
    as_new = scores.copy()
    for column in range(scores.shape[1]):
        known = ~np.isnan(scores[:, column])
        own, left = by_member[:, known, column], left_out[:, known]
        if not left.any() or left.all():
            continue
        given = scores[known, column]
        place = (stats.rankdata(given) - 0.5) / len(given)
        seen, unseen = np.quantile(own[~left], place), np.quantile(own[left], place)
        longer = given * unseen / np.where(seen > 0, seen, 1.0)
        as_new[known, column] = np.where(seen > 0, longer, np.maximum(given, unseen))
    return as_new


@dataclass(frozen=True, eq=False)
class CellIntervals:
    """How far the intervals of cells are to be stretched, by rows that were not trained on.

    Attributes
    ----------
    scores : float64 array of shape (n_rows, n_columns)
        Conformity scores; NaN where a cell is missing.
    floors : float64 array of shape (n_columns,)
        What is added to each column's units.
    """

    scores: Floats
    floors: Floats

    def fewest_rows(self, coverage: float) -> int:
        """So many known values of a column a coverage needs: of fewer, no stretch is long enough."""
        return fewest_scores(1 - coverage)

    def unknown_columns(self, coverage: float) -> Flags:
        """The columns with fewer known values than that: shape (n_columns,)."""
        return np.asarray((~np.isnan(self.scores)).sum(axis=0) < self.fewest_rows(coverage))

    def factors(self, missing: Flags, coverage: float) -> Floats:
        """By how much the units of each cell are stretched; NaN in columns that too few rows tell of.

        Parameters
        ----------
        missing : bool array of shape (n_rows, n_columns)
            The cells of the rows at hand that are missing. That of the cell itself plays no part.
        coverage : float
            In (0, 1).
        """
        factors = np.full(missing.shape, np.nan)
        patterns, kind_of = np.unique(missing, axis=0, return_inverse=True)
        for column in np.flatnonzero(~self.unknown_columns(coverage)):
            others = np.delete(np.arange(missing.shape[1]), column)
            known = self.scores[~np.isnan(self.scores[:, column])]
            kinds = _Kinds(np.isnan(known[:, others]), self.fewest_rows(coverage))
            by_pattern = [
                self._factor(known[kinds.like(pattern), column], coverage) for pattern in patterns[:, others]
            ]
            factors[:, column] = np.array(by_pattern)[kind_of.reshape(-1)]
        return factors

    @staticmethod
    def _factor(scores: Floats, coverage: float) -> float:
        return smallest(scores, rank_of(len(scores), 1 - coverage))

    def stretch(self, spread: Spread, missing: Flags, coverage: float) -> Spread:
        """The same with the ends of intervals of this coverage; for ``missing`` see `factors`."""
        below, above = _units(spread, self.floors)
        factors = self.factors(missing, coverage) + _ROUNDING
        expected = spread.expected
        return Spread(expected, expected - factors * below, expected + factors * above)


class _Kinds:
    """Which rows tell of a row with certain gaps, by the gaps that they have, (n_rows, n_columns)."""

    def __init__(self, gaps: Flags, fewest_rows: int) -> None:
        self.gaps, self.fewest_rows = gaps, fewest_rows
        self.least = max(ROWS_OF_A_KIND, fewest_rows)
        _, kind_of, sizes = np.unique(gaps, axis=0, return_inverse=True, return_counts=True)
        self.is_rare = sizes[kind_of.reshape(-1)] < self.least
        self.n_gaps = gaps.sum(axis=1)
        n_rare = np.bincount(self.n_gaps[self.is_rare], minlength=gaps.shape[1] + 1)
        self.is_left = self.is_rare & (n_rare[self.n_gaps] < self.least)

    def like(self, pattern: Flags) -> Flags:
        same = (self.gaps == pattern).all(axis=1)
        if same.sum() >= self.least:
            return np.asarray(same)
        as_many = self.is_rare & (self.n_gaps == pattern.sum())
        if as_many.sum() >= self.least:
            return np.asarray(as_many)
        return self.is_left if self.is_left.sum() >= self.fewest_rows else np.ones(len(same), dtype=bool)
