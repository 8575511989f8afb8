"""Selections: which rows of a batch are anomalies, by their p-values."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from vae_anomaly.calibration.checks import check_p_values, check_probability
from vae_anomaly.core.types import Flags

__all__ = ["check_selection", "discoveries"]

_METHODS = {"positive": "bh", "any": "by"}


def discoveries(
    p_values: npt.ArrayLike, false_discovery_rate: float = 0.1, dependence: str = "positive"
) -> Flags:
    r"""Anomalies among rows with these p-values, of which on average at most a given share is false.

    Benjamini & Hochberg 1995: with m p-values in ascending order, the k smallest, where k is the largest
    with :math:`p_{(k)} \le k\,\alpha / m`. For p-values under any dependence, Benjamini & Yekutieli 2001
    divide alpha by :math:`\sum_{i=1}^m 1/i`.

    Parameters
    ----------
    p_values : array of shape (n_rows,)
    false_discovery_rate : float, default=0.1
        alpha, in (0, 1): the expected share of normal rows among the selected ones.
    dependence : {"positive", "any"}, default="positive"
        What is known of the p-values. Conformal ones that share a calibration depend positively (Bates et
        al. 2023, "Testing for outliers with conformal p-values"), if the rows themselves are independent;
        "any" is safe for all, and finds less.

    Returns
    -------
    bool array of shape (n_rows,)

    Raises
    ------
    ValueError
        For a rate or p-values outside their ranges, or an unknown dependence.

    Examples
    --------
    >>> from vae_anomaly.calibration import discoveries
    >>> discoveries([0.001, 0.8, 0.02, 0.5])
    array([ True, False,  True, False])
    """
    check_selection(false_discovery_rate, dependence)
    adjusted = stats.false_discovery_control(check_p_values(p_values), method=_METHODS[dependence])
    return np.asarray(adjusted <= false_discovery_rate)


def check_selection(false_discovery_rate: float, dependence: str) -> None:
    """Refuse what `discoveries` refuses before there are p-values."""
    check_probability(false_discovery_rate, "false_discovery_rate")
    if dependence not in _METHODS:
        raise ValueError(f"dependence must be one of {[*_METHODS]}; received {dependence!r}.")
