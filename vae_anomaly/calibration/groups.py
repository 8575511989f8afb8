"""Groups: promises that hold in every site, product or sensor, and not only on average over all of them.

A new row is compared with the calibration rows of its own group alone (Mondrian conformal prediction; Vovk,
Gammerman & Shafer 2005, section 4.5). Groups that have too few calibration rows are pooled: the promise then
holds for the pool, on average over its groups. Which groups are pooled depends on labels alone and on no
score, so that the promises stay exact.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vae_anomaly.calibration.checks import check_calibrated
from vae_anomaly.calibration.conformal import p_values
from vae_anomaly.core.conventions import warn_user
from vae_anomaly.core.types import Array, Detector, Floats

__all__ = ["Grouping", "cuts_of", "group_p_values", "group_rows", "labels_of", "p_values_of", "rates_of"]

_FEWEST_ROWS = 19
_CUTS_ASK = "cuts of groups need"
_KINDS = set("biufUO")


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which calibration rows judge the rows of which group.

    Attributes
    ----------
    positions : dict of label to int array
        Of the calibration rows that judge rows of this group.
    pooled : tuple of labels
        Of groups that share theirs.
    too_small : dict of label to int
        Groups that have too few calibration rows together, and how many each has: nothing is promised there.
    fewest_rows : int
    """

    positions: Mapping[Hashable, npt.NDArray[np.intp]]
    pooled: tuple[Hashable, ...]
    too_small: Mapping[Hashable, int]
    fewest_rows: int

    def split(self, groups: npt.ArrayLike) -> Mapping[Hashable, npt.NDArray[np.intp]]:
        """Each group among new rows, and the positions of its rows.

        Raises
        ------
        ValueError
            If a group has no calibration rows or too few: names it.
        """
        found = _positions(labels_of(groups))
        for label in found:
            if label in self.too_small:
                small = ", ".join(f"{name!r} ({count})" for name, count in [*self.too_small.items()][:5])
                raise ValueError(
                    f"a group needs at least {self.fewest_rows} calibration rows, alone or with all others "
                    f"that have fewer, and {label!r} does not have them: of such groups there are {small}. "
                    "Hold out more rows, give it the label of a larger group that it is like, or ask for a "
                    "larger rate."
                )
        unknown = [label for label in found if label not in self.positions]
        if unknown:
            raise ValueError(
                f"nothing is promised for groups without calibration rows: received {_some(unknown)}, and "
                f"there are {_some(list(self.positions))}. Fit on rows of every group, or give such rows the "
                "label of the group that they are like."
            )
        return found


def labels_of(groups: npt.ArrayLike) -> Array:
    """Groups as a one-dimensional array of numbers or text, without missing labels.

    Raises
    ------
    ValueError
    """
    labels = np.asarray(groups)
    if labels.ndim != 1:
        raise ValueError(f"groups must be one label for each row; received an array of shape {labels.shape}.")
    missing = np.flatnonzero(pd.isna(labels))
    if len(missing):
        raise ValueError(
            f"each row must have a group; {len(missing):,} have none, the first is row {missing[0]}. Give "
            "them a label of their own."
        )
    if labels.dtype.kind not in _KINDS or (
        labels.dtype.kind == "O" and not all(isinstance(label, (str, Real)) for label in labels)
    ):
        raise ValueError(f"the labels of groups must be numbers or text; received {_some(list(labels[:1]))}.")
    return labels


def group_rows(calibration_groups: npt.ArrayLike, fewest_rows: int) -> Grouping:
    """Find which calibration rows judge each group: its own, or those of all small groups together.

    Parameters
    ----------
    calibration_groups : array of shape (n_calibration,)
    fewest_rows : int
        Groups with fewer calibration rows are pooled.
    """
    own = _positions(labels_of(calibration_groups))
    small = [label for label, rows in own.items() if len(rows) < fewest_rows]
    pool = np.sort(np.concatenate([np.empty(0, dtype=np.intp), *(own[label] for label in small)]))
    if len(pool) >= fewest_rows:
        positions = {label: pool if label in small else rows for label, rows in own.items()}
        return Grouping(positions, tuple(small), {}, fewest_rows)
    positions = {label: rows for label, rows in own.items() if label not in small}
    return Grouping(positions, (), {label: len(own[label]) for label in small}, fewest_rows)


def group_p_values(
    scores: npt.ArrayLike,
    groups: npt.ArrayLike,
    calibration: npt.ArrayLike,
    calibration_groups: npt.ArrayLike,
    fewest_rows: int = _FEWEST_ROWS,
) -> Floats:
    """Conformal p-values among the calibration rows of the same group.

    In every group with calibration rows enough, a normal row has a p-value of at most alpha with a
    probability of at most alpha. For those that are pooled, this holds on average over the pool.

    Parameters
    ----------
    scores, groups : arrays of shape (n_rows,)
        Larger scores are more anomalous. Labels are numbers or text.
    calibration, calibration_groups : arrays of shape (n_calibration,)
        Of rows that were not trained on.
    fewest_rows : int, default=19
        Groups with fewer calibration rows are pooled; 19 make p-values of 5 %.

    Returns
    -------
    float64 array of shape (n_rows,)

    Raises
    ------
    ValueError
        If a group has no calibration rows, if it is small and all small ones together have too few, or for
        labels that are missing or not one for each score.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.calibration import group_p_values
    >>> calibration = np.r_[np.arange(99.0), 10 * np.arange(99.0)]
    >>> groups = np.repeat(["quiet", "loud"], 99)
    >>> group_p_values([98.0, 98.0], ["quiet", "loud"], calibration, groups)
    array([0.02, 0.9 ])
    """
    new, known = np.asarray(scores, dtype=np.float64), np.asarray(calibration, dtype=np.float64)
    _check_lengths(new, groups, "scores")
    _check_lengths(known, calibration_groups, "calibration scores")
    grouping, found = group_rows(calibration_groups, fewest_rows), np.empty(len(new))
    for label, rows in grouping.split(groups).items():
        found[rows] = p_values(new[rows], known[grouping.positions[label]])
    return found


def warn_of_one_cut(detector: Detector, groups: object) -> None:
    """Warn that a detector with groups is asked for labels without them."""
    if groups is None and getattr(detector, "calibration_groups_", None) is not None:
        warn_user(
            "the detector was fitted with groups, and predict received none: all rows have the cut of all "
            "groups together. Pass groups= to keep the false-alarm rate in each.",
            UserWarning,
        )


# -- of a detector ------------------------------------------------------------------------------------------
def p_values_of(detector: Detector, score: Callable[[], Floats], labels: Array) -> Floats:
    """Of new rows with these groups; ``score`` scores them, once their groups are known to have p-values."""
    known, groups = _calibration_of(detector, "p-values need")
    group_rows(groups, _FEWEST_ROWS).split(labels)
    return group_p_values(score(), labels, known, groups)


def cuts_of(detector: Detector, labels: Array) -> Floats:
    """For each of new rows, the cut of its group."""
    cuts, grouping = _cuts(detector)
    found = np.empty(len(labels))
    for label, rows in grouping.split(labels).items():
        found[rows] = cuts[label]
    return found


def rates_of(
    detector: Detector, score: Callable[[], Floats] | None = None, labels: Array | None = None
) -> pd.DataFrame:
    """See `VAEDetector.group_rates`; ``score`` scores new rows, once their groups are known to have cuts."""
    known, groups = _calibration_of(detector, _CUTS_ASK)
    cuts, grouping = _cuts(detector)
    new = {} if labels is None else grouping.split(labels)
    scores = None if score is None else score()
    rule, one_cut = detector.threshold_, -detector.offset_
    lines = []
    positions_of = _positions(groups)
    for label in sorted(positions_of, key=lambda label: (isinstance(label, str), label)):
        own, low, high = known[positions_of[label]], np.nan, np.nan
        if label in cuts:
            low, high = rule.realized_rates(len(grouping.positions[label]))
        lines.append(
            {
                "group": label,
                "calibration_rows": len(own),
                "pooled": label in grouping.pooled,
                "cut": cuts.get(label, np.nan),
                "promised_rate": rule.false_alarm_rate if label in cuts else np.nan,
                "low": low,
                "high": high,
                "rate_of_one_cut": float((own > one_cut).mean()),
            }
        )
    table = pd.DataFrame(lines).set_index("group")
    if scores is not None:
        for label, rows in new.items():
            table.loc[label, "rows"] = len(rows)
            table.loc[label, "realized_rate"] = float((scores[rows] > cuts[label]).mean())
            table.loc[label, "realized_rate_of_one_cut"] = float((scores[rows] > one_cut).mean())
        table = table.astype({"rows": "Int64"})
    return table


def _cuts(detector: Detector) -> tuple[dict[Hashable, float], Grouping]:
    known, groups = _calibration_of(detector, _CUTS_ASK)
    rule: Any = getattr(detector, "threshold_", None)
    if not hasattr(rule, "fewest_scores") or not getattr(rule, "held_out", False):
        raise ValueError(
            "cuts of groups are conformal: fit with groups and threshold='conformal', or with "
            f"Conformal(false_alarm_rate); the detector has the rule {rule!r}."
        )
    grouping = group_rows(groups, rule.fewest_scores)
    return {label: rule.cut(known[rows]) for label, rows in grouping.positions.items()}, grouping


def _calibration_of(detector: Detector, asks: str) -> tuple[Floats, Array]:
    known, groups = check_calibrated(detector, asks), getattr(detector, "calibration_groups_", None)
    if groups is None:
        raise ValueError(
            "the detector does not know the groups of its calibration rows: fit it with groups=, one label "
            "for each row or the name of a column."
        )
    return known, groups


def _positions(labels: Array) -> dict[Hashable, npt.NDArray[np.intp]]:
    """Where each label stands, in the order in which they come first."""
    codes, found = pd.factorize(labels)
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(found)))
    return dict(zip(found.tolist(), np.split(order, ends[:-1]), strict=True)) if len(found) else {}


def _check_lengths(values: Array, groups: npt.ArrayLike, name: str) -> None:
    if values.shape != np.shape(groups):
        raise ValueError(
            f"groups must be one label for each of the {len(values):,} {name}; received an array of shape "
            f"{np.shape(groups)}."
        )


def _some(labels: Sequence[Any]) -> str:
    return ", ".join(map(repr, labels[:5])) + (" and others" if len(labels) > 5 else "")
