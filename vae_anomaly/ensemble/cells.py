"""What is expected in each cell of a table, given the others of its row, and in which interval it lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from vae_anomaly.calibration.checks import check_probability
from vae_anomaly.calibration.intervals import (
    MODEL_LEVELS,
    CellIntervals,
    Spread,
    conformity_scores,
    scores_as_new,
)
from vae_anomaly.core.conventions import warn_user
from vae_anomaly.core.rows import Rows, block_size, dense
from vae_anomaly.core.types import Array, Flags, Floats, Matrix
from vae_anomaly.data.pixels import as_numbers
from vae_anomaly.ensemble.fitted import Fitted
from vae_anomaly.scoring import passes

__all__ = ["calibrate_intervals", "expect_cells"]

# Equally probable values of each cell, over all members and draws, that an interval is read off.
_VALUES_OF_CELL = 200


def expect_cells(fitted: Fitted, X: Matrix, coverage: float | None = None) -> list[Floats]:
    """Each cell's expected value given the others of its row, and the interval's ends if there is one.

    Every cell is masked in turn. Of each result, arrays of shape (n_rows, n_features), in the units of X.

    Raises
    ------
    ValueError
    """
    _check_table(fitted)
    if coverage is None:
        return _map_blocks(X, 1, lambda block: [_expected(fitted, block)])
    check_probability(coverage, "coverage")
    if fitted.intervals is not None:
        _warn_of_unknown_columns(fitted, fitted.intervals, coverage)
    return _map_blocks(X, _VALUES_OF_CELL, lambda block: _intervals(fitted, block, coverage))


def calibrate_intervals(fitted: Fitted, X: Matrix, left_out: Flags, floors: Floats) -> Fitted:
    """The same fit with `Fitted.intervals` that these rows tell of.

    Parameters
    ----------
    fitted : Fitted
    X : array of shape (n_rows, n_features)
    left_out : bool array of shape (n_members, n_rows)
        Rows that a member was not trained on.
    floors : array of shape (n_features,)
        See `calibration.intervals.floors_of`.

    Returns
    -------
    Fitted

    Raises
    ------
    ValueError
    """
    _check_table(fitted)

    def of_block(block: Array) -> list[Floats]:
        values = fitted.possible_rows(block)[0].astype(np.float64)
        together, *of_members = _spreads(fitted, block, MODEL_LEVELS)
        by_member = [conformity_scores(values, spread, floors) for spread in of_members]
        return [conformity_scores(values, together, floors), np.stack(by_member, axis=1)]

    scores, by_member = _map_blocks(X, _VALUES_OF_CELL, of_block)
    if not left_out.all():
        scores = scores_as_new(scores, by_member.swapaxes(0, 1), left_out)
    return replace(fitted, intervals=CellIntervals(scores, floors))


def _check_table(fitted: Fitted) -> None:
    if fitted.preparation.patches is not None:
        raise ValueError(
            "what is expected in each cell given the others is of rows of a table, and the members see "
            "patches of images: see reconstruct."
        )


def _warn_of_unknown_columns(fitted: Fitted, intervals: CellIntervals, coverage: float) -> None:
    unknown = np.flatnonzero(intervals.unknown_columns(coverage))
    if len(unknown):
        names = fitted.preparation.names
        columns = ", ".join(repr(int(i) if names is None else names[i]) for i in unknown)
        warn_user(
            f"no interval with a coverage of {coverage:g} is known of the columns {columns}: it takes "
            f"{intervals.fewest_rows(coverage)} calibration rows with a value in the column. Their ends "
            "are NaN. Lower coverage, or fit on more rows.",
            UserWarning,
        )


def _map_blocks(X: Matrix, n_values: int, function: Callable[[Array], list[Floats]]) -> list[Floats]:
    """What a function makes of rows of which every cell is masked in turn, a block at a time."""
    block = block_size(X.shape[1] ** 2 * n_values)
    starts = range(0, X.shape[0], block)
    parts = [function(dense(as_numbers(X[s : s + block]))) for s in starts]
    return [np.concatenate(results) for results in zip(*parts, strict=True)]


def _expected(fitted: Fitted, X: Array) -> Floats:
    rows, cells = _masked(fitted, X)
    expected = fitted.likelihood.values(fitted.expectations(rows))[cells]
    return fitted.preparation.expected_back(expected.reshape(X.shape))


def _intervals(fitted: Fitted, X: Array, coverage: float) -> list[Floats]:
    if fitted.intervals is None:
        levels = ((1 - coverage) / 2, (1 + coverage) / 2)
        (found,) = _spreads(fitted, X, levels, of_members=False)
    else:
        (spread,) = _spreads(fitted, X, MODEL_LEVELS, of_members=False)
        missing = np.isnan(fitted.possible_rows(X)[0])
        stretched = fitted.intervals.stretch(spread, missing, coverage)
        found = Spread(stretched.expected, *fitted.likelihood.inside_support(*stretched[1:]))
    expected = fitted.preparation.expected_back(found.expected)
    free, low, high = (fitted.preparation.back(values) for values in found)
    # What was moved into the range of its column stays inside of its interval.
    low = np.where(expected < free, np.minimum(low, expected), low)
    high = np.where(expected > free, np.maximum(high, expected), high)
    return [expected, low, high]


def _masked(fitted: Fitted, X: Array) -> tuple[Rows, tuple[Array, Array]]:
    """What the members see of the rows, each as often as it has cells with another one masked."""
    n_rows, n_features = X.shape
    masked = np.repeat(X, n_features, axis=0)
    cells = np.arange(len(masked)), np.tile(np.arange(n_features), n_rows)
    masked[cells] = np.nan
    rows, _ = fitted.possible_rows(masked)
    if rows.shape != masked.shape:
        raise ValueError(
            f"a cell is masked behind the scaler too, which must keep the {n_features} columns; "
            f"{type(fitted.preparation.scaler).__name__} makes {rows.shape[1]}."
        )
    return rows, cells


def _spreads(fitted: Fitted, X: Array, levels: tuple[float, float], of_members: bool = True) -> list[Spread]:
    """Of each cell what is expected and quantiles of what is possible, in the units of the members.

    By all members together, and then by each of them.
    """
    rows, cells = _masked(fitted, X)
    n_draws = len(fitted.draws)
    n_values = n_draws * math.ceil(_VALUES_OF_CELL / (n_draws * len(fitted.members)))
    expected, log_likelihood, by_value = passes.reconstruct_with_values(
        fitted.members, rows, fitted.draws, n_values, fitted.device
    )
    of_cells = by_value[:, cells[0], :, cells[1]]  # (n_cells, n_members, n_values)

    def spread(expectations: Floats, possible: Floats, weights: Floats) -> Spread:
        values = fitted.likelihood.values(expectations)[cells]
        low, high = _quantiles(possible, weights, levels)
        return Spread(*(found.reshape(X.shape) for found in (values, low, high)))

    # Not by weights of the row: members that explain it best are too sure of its cells.
    weights = fitted.expecting_weights
    found = [spread(fitted.average_by_row(expected, log_likelihood), of_cells, weights)]
    if of_members:
        found += [spread(own, of_cells[:, [m]], np.ones(1)) for m, own in enumerate(expected)]
    return found


def _quantiles(values: Floats, weights: Floats, probabilities: Sequence[float]) -> list[Floats]:
    """Weighted quantiles of each cell's values, of shape (n_cells, n_members, n_values); NaN if any is."""
    n_cells, _, n_values = values.shape
    shares = np.repeat(weights / n_values, n_values)
    values = values.reshape(n_cells, -1)
    order = values.argsort(axis=1)
    above = np.cumsum(shares[order], axis=1) - shares[order] / 2
    ordered = np.take_along_axis(values, order, axis=1)
    return [
        np.array([np.interp(probability, *cell) for cell in zip(above, ordered, strict=True)])
        for probability in probabilities
    ]
