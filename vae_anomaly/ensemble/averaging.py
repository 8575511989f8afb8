r"""Averaging: what several members say of the same rows, as one.

Scores are averaged with weights that give each member the same say. A weighted mean of ELBOs is itself a
bound: by Jensen's inequality, of the log-density of the members' mixture :math:`\sum_m w_m p_m(x)`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
from scipy import stats

from vae_anomaly.core.rows import evenly_spaced
from vae_anomaly.core.types import Array, Flags, Floats
from vae_anomaly.engine import programs
from vae_anomaly.model.states import ModelState

__all__ = ["average", "confidence", "out_of_bag", "sample", "weights_by_row", "weights_for"]

# Rows that tell how much members agree, and how many pairs of scores it takes at least.
_ROWS_TO_CORRELATE, _FEWEST_PAIRS = 5_000, 10
# A log-likelihood in the place of one that is beyond float32.
_NEVER = -1e30


def weights_for(scores: Floats) -> Floats:
    """Weights that sum to 1 and make the members' scores spread alike: shape (n_members,).

    They are inverse to the interquartile range of each member's training scores, an array of shape
    (n_members, n_rows): a member with small scales, whose scores are large, does not drown the others.
    Equal weights if some range is 0.
    """
    spread = np.subtract(*np.percentile(scores, [75, 25], axis=1))
    weights = 1 / spread if (spread > 0).all() else np.ones(len(scores))
    return np.asarray(weights / weights.sum())


def weights_by_row(weights: Floats, log_likelihood: Floats) -> Floats:
    r"""Weights of what the members expect in each row, which sum to 1 over them: shape (n_members, n_rows).

    Of d features, by how well each member m explains the row:

    .. math:: w_m(x) \propto w_m \, \exp\Bigl(\tfrac2d \, \mathrm E_q \log p_m(x|z)\Bigr)

    The geometric mean of the cells' densities is inverse to the size of the errors; squared, it weighs the
    members as independent guesses are weighed, by the inverse of their variance. So a member that has learned
    little of such rows, which a detector needs to be robust, has little to say of their cells.

    Parameters
    ----------
    weights : array of shape (n_members,)
    log_likelihood : array of shape (n_members, n_rows)
        Mean over the features, in nats; see `scoring.passes.reconstruct`.
    """
    explained = np.nan_to_num(log_likelihood, nan=_NEVER, neginf=_NEVER)
    by_row = weights[:, None] * np.exp(2 * (explained - explained.max(axis=0)))
    return np.asarray(by_row / _sum_members(by_row))


def average(values: Floats, weights: Floats) -> Floats:
    """Weighted mean over the members, the first axis: bit by bit the same whatever the number of rows.

    ``weights`` are of shape (n_members,), or (n_members, n_rows) if each row has its own.
    """
    return _sum_members(values * weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim)))


def _sum_members(values: Floats) -> Floats:
    """The sum over the first axis, one after the other.

    numpy's own groups the members of a single row otherwise than those of several: other last bits.
    """
    return functools.reduce(np.add, values)


def out_of_bag(scores: Floats, weights: Floats, left_out: Flags, groups: Array | None = None) -> Floats:
    r"""Averaged scores of training rows as if no member had been trained on them: shape (n_rows,).

    A member's scores of rows that it was trained on are lower than those of new rows, the more the fewer it
    has seen. Where a member m was trained on row i, its score takes the place that it has among those rows,

    .. math:: \tilde s_m(x_i) = a_m + b_m\, G^{-1}\bigl(F_m(s_m(x_i))\bigr),

    with the distribution function :math:`F_m` of m's scores of rows that it was trained on, their median
    :math:`a_m` and interquartile range :math:`b_m`, and the quantile function :math:`G^{-1}` of
    :math:`(s_m(x_j) - a_m) / b_m` over all members of m's group and the rows that they were not trained on.
    Their left-out rows together reach further into the tail than those of one member, where new rows lie
    alike far beyond those that a member knows.

    Members agree more on rows that none of them knows, so that the mean of M members would spread too
    little. Its distance from the median is made longer by the factor

    .. math:: \sqrt{\frac{1 + (M - 1)\,\rho}{1 + (M - 1)(q_i \rho + (1 - q_i)\,\tilde\rho)}}

    with the fraction :math:`q_i` of pairs of members that have both left row i out, and the correlations of
    normal scores (van der Waerden) :math:`\rho` among such pairs and :math:`\tilde\rho` among all others, if
    :math:`\rho` is the larger one.

    Parameters
    ----------
    scores : array of shape (n_members, n_rows)
    weights : array of shape (n_members,)
    left_out : bool array of shape (n_members, n_rows)
        Rows that a member was not trained on.
    groups : array of shape (n_members,) or None, default=None
        Which group each member is of; None if all are of one. A group that has left no row out takes G of all
        members.
    """
    trained_on = [of_member[~out] for of_member, out in zip(scores, left_out, strict=True)]
    centers = np.array([np.median(known) for known in trained_on])[:, None]
    ranges = np.array([np.subtract(*np.percentile(known, [75, 25])) for known in trained_on])[:, None]
    ranges[ranges == 0] = 1.0
    standardized = (scores - centers) / ranges
    groups = np.zeros(len(scores)) if groups is None else groups
    unseen_by_group = {}
    for group in set(groups.tolist()):
        of_group = left_out & (groups == group)[:, None]
        unseen_by_group[group] = np.sort(standardized[of_group if of_group.any() else left_out])
    for of_member, out, group in zip(standardized, left_out, groups.tolist(), strict=True):
        unseen = unseen_by_group[group]
        known = np.sort(of_member[~out])
        place = (np.searchsorted(known, of_member[~out], side="right") - 0.5) / len(known)
        # As np.quantile, which takes minutes for a million places among as many scores.
        of_member[~out] = np.interp(place * (len(unseen) - 1), np.arange(len(unseen)), unseen)
    averaged = average(standardized * ranges + centers, weights)
    center = np.median(averaged)
    return np.asarray(center + _lost_spread(standardized, left_out) * (averaged - center))


def _lost_spread(scores: Floats, left_out: Flags) -> Floats:
    """How many times as far each row's mean would lie from the center if no member had seen it: (n_rows,)."""
    n_members, n_rows = scores.shape
    some = evenly_spaced(n_rows, _ROWS_TO_CORRELATE)
    scores, among = scores[:, some], left_out[:, some]
    unseen, seen = [], []
    for pair in map(list, itertools.combinations(range(n_members), 2)):
        of_pair, both = scores[pair], among[pair].all(axis=0)
        unseen.append(of_pair[:, both])
        seen.append(of_pair[:, ~both])
    n_unseen, n_seen = (sum(part.shape[1] for part in parts) for parts in (unseen, seen))
    if min(n_unseen, n_seen) < _FEWEST_PAIRS:
        return np.ones(n_rows)
    known = _correlation(np.concatenate(seen, axis=1))
    new = max(known, _correlation(np.concatenate(unseen, axis=1)))
    n_out = left_out.sum(axis=0)
    fraction = n_out * (n_out - 1) / (n_members * (n_members - 1))
    variance = 1 + (n_members - 1) * (fraction * new + (1 - fraction) * known)
    return np.asarray(np.sqrt((1 + (n_members - 1) * new) / variance))


def _correlation(pairs: Floats) -> float:
    """The correlation of the normal scores of two variables that may change places, at least 0."""
    if (pairs == pairs[0, 0]).all():
        return 0.0
    ranks = stats.rankdata(np.concatenate([pairs, pairs[::-1]], axis=1), axis=1)
    first, second = stats.norm.ppf((ranks - 0.5) / ranks.shape[1])
    return max(0.0, float(first @ second / (first @ first)))


def confidence(
    decision: Floats,
    by_member: Floats,
    draw_errors: Floats,
    weights: Floats,
) -> Floats:
    """The probability that other members and other draws leave the sign of the decision: shape (n_rows,).

    Parameters
    ----------
    decision : array of shape (n_rows,)
        How far the score lies above the cut.
    by_member : array of shape (n_members, n_rows)
        The members' scores, each above its own usual level.
    draw_errors : array of shape (n_members, n_rows)
        Standard errors that come from the draws. The members share them: their errors add up.
    weights : array of shape (n_members,)
    """
    n_members = len(weights)
    of_members = np.zeros(len(decision))
    if n_members > 1:
        weighted = n_members * weights[:, None] * by_member
        squares = np.square(weighted - _sum_members(weighted) / n_members)
        of_members = np.sqrt(_sum_members(squares) / (n_members - 1) / n_members)
    error = np.hypot(of_members, average(draw_errors, weights))
    with np.errstate(over="ignore"):  # nothing left to chance: certain
        return np.asarray(stats.norm.cdf(np.abs(decision) / np.maximum(error, np.finfo(float).tiny)))


def sample(
    states: Sequence[ModelState],
    weights: Floats,
    n_samples: int,
    rng: np.random.RandomState,
    noise: bool = True,
) -> Floats:
    """New rows, each by a member that its weight chooses, see `VAE.sample`: shape (n_samples, n_features)."""
    seeds = rng.randint(np.iinfo(np.int32).max, size=len(states))
    members = rng.choice(len(states), size=n_samples, p=weights)
    rows = np.empty((n_samples, states[0].specification.n_features))
    for position, (state, seed) in enumerate(zip(states, seeds, strict=True)):
        if chosen := (members == position).sum():
            rows[members == position] = programs.model_of(state).sample(int(chosen), int(seed), noise)
    return rows
