r"""Counting: how many anomalies there are at least among some rows, by their p-values.

Closed testing (Marcus, Peritz & Gabriel 1976): "all rows of S are normal" is rejected if Simes' test rejects
it of every set that contains S. With the p-values :math:`p_{(1)} \le \dots \le p_{(m)}`, Simes' test rejects
a set of i rows if :math:`i\,p_{(j:i)} \le j\,\alpha` for some j. Goeman, Meijer, Krebs & Solari 2019
("Simultaneous control of all false discovery proportions in large-scale multiple hypothesis testing",
Biometrika 106) have the shortcut: with the size h of the largest set that is not rejected,

.. math:: h = \max \left\{ i : i\,p_{(m - i + j)} > j\,\alpha \text{ for } j = 1, \dots, i \right\}, \qquad
    d(S) = \max_{u = 1, \dots, |S|} \left( 1 - u + \#\{ k \in S : h\,p_k \le u\,\alpha \} \right)

and 0 if that is negative. It is exact: no bound by closed testing with Simes' tests is larger.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vae_anomaly.calibration.checks import check_p_values, check_probability
from vae_anomaly.core.types import Floats

__all__ = ["anomaly_count_curve", "count_anomalies"]


def count_anomalies(
    p_values: npt.ArrayLike, selected: npt.ArrayLike | None = None, confidence: float = 0.95
) -> int:
    r"""At least so many of the selected rows are anomalies, with a stated confidence.

    The confidence is one for all selections together: they may be made after looking at the p-values, as
    often as one likes. It holds if Simes' test does, so for independent p-values and for conformal ones,
    which depend positively (Bates et al. 2023; Magnani et al. 2023, "Collective outlier detection and
    enumeration with conformalized closed testing"). The formula is in `calibration.counting`.

    Parameters
    ----------
    p_values : array of shape (n_rows,)
        Of all rows of the batch, in [0, 1].
    selected : bool array of shape (n_rows,), int array of positions, or None, default=None
        None is all rows.
    confidence : float, default=0.95
        :math:`1 - \alpha`, in (0, 1).

    Returns
    -------
    int
        0 if nothing can be said.

    Raises
    ------
    ValueError
        For p-values that are not in [0, 1], a confidence outside (0, 1), or positions that occur twice.
    IndexError
        For positions that there are not, or flags that are not one for each row.

    Examples
    --------
    >>> from vae_anomaly.calibration import count_anomalies
    >>> p_values = [0.001, 0.002, 0.01, 0.04, 0.6, 0.9]
    >>> count_anomalies(p_values), count_anomalies(p_values, [0, 1])
    (3, 2)
    """
    values, alpha = _check(p_values, confidence)
    chosen = values if selected is None else values[_check_selected(selected, len(values))]
    curve = _curve(np.sort(chosen), _largest_not_rejected(np.sort(values), alpha), alpha)
    return int(curve[-1]) if len(curve) else 0


def anomaly_count_curve(p_values: npt.ArrayLike, confidence: float = 0.95) -> npt.NDArray[np.int64]:
    """`count_anomalies` of the 1, 2, ... rows with the smallest p-values, with one confidence for all.

    Parameters
    ----------
    p_values, confidence : as in `count_anomalies`

    Returns
    -------
    int64 array of shape (n_rows,)
        It never falls; the last is that of all rows.

    Examples
    --------
    >>> from vae_anomaly.calibration import anomaly_count_curve
    >>> anomaly_count_curve([0.9, 0.001, 0.01, 0.6, 0.002, 0.04])
    array([1, 2, 3, 3, 3, 3])
    """
    values, alpha = _check(p_values, confidence)
    values = np.sort(values)
    return _curve(values, _largest_not_rejected(values, alpha), alpha)


def _largest_not_rejected(ordered: Floats, alpha: float) -> int:
    """h: if i rows are not rejected, the i - 1 largest of them are not either, so halving finds it."""
    low, high = 0, len(ordered)
    while low < high:
        size = (low + high + 1) // 2
        if (size * ordered[len(ordered) - size :] > np.arange(1, size + 1) * alpha).all():
            low = size
        else:
            high = size - 1
    return low


def _curve(ordered: Floats, h: int, alpha: float) -> npt.NDArray[np.int64]:
    """D of the first k for each k: of k rows, the best u is one that a row begins to count at."""
    position = np.arange(1, len(ordered) + 1)
    # The smallest u of each row, by the comparison itself: a quotient may round to the other side.
    u = np.clip(np.ceil(h * ordered / alpha), 1, None)
    u = np.where((u > 1) & (h * ordered <= (u - 1) * alpha), u - 1, u)
    u = np.where(h * ordered > u * alpha, u + 1, u)
    counts = np.maximum.accumulate(np.maximum(position - u + 1, 0))
    return np.asarray(counts, dtype=np.int64)


def _check(p_values: npt.ArrayLike, confidence: float) -> tuple[Floats, float]:
    check_probability(confidence, "confidence")
    return check_p_values(p_values), round(1 - confidence, 12)


def _check_selected(selected: npt.ArrayLike, n_rows: int) -> npt.NDArray[np.intp]:
    """Positions of the selected rows."""
    chosen = np.asarray(selected)
    if not chosen.size:
        chosen = chosen.astype(np.intp)
    positions: npt.NDArray[np.intp] = np.arange(n_rows)[chosen]
    if positions.ndim != 1 or len(np.unique(positions)) < len(positions):
        raise ValueError(f"selected must name each row at most once; received {selected!r}.")
    return positions
