r"""Online selections: anomalies of a stream, judged row by row, at one false-discovery rate for all of it.

The three procedures are one formula. Row t is selected if its p-value is at most

.. math:: \alpha_t = \min\left(\lambda,\ (\tau - \lambda) \left[ w_0\,\gamma(c_t)
    + (\alpha - w_0)\,\gamma(c_t - c_{(1)}) + \alpha \sum_{j \ge 2} \gamma(c_t - c_{(j)}) \right]\right)

where :math:`c_t - 1` counts the earlier rows whose p-values lie in :math:`(\lambda, \tau]`, :math:`c_{(j)}`
counts those up to the j-th selected row, and :math:`\gamma(1), \gamma(2), \dots` are not negative and sum to
at most 1. ADDIS has :math:`0 < \lambda < \tau < 1`, SAFFRON :math:`\tau = 1`, and LORD++ also
:math:`\lambda = 0` and no upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy.special import zeta
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval

from vae_anomaly.calibration.checks import check_p_values
from vae_anomaly.core.types import Constraints, Flags, Floats, Values

__all__ = ["ADDIS", "LORD", "ONLINE", "SAFFRON", "OnlineSelection"]

_INSIDE = Interval(Real, 0, 1, closed="neither")
_FIRST_TABLE = 1024


class OnlineSelection(BaseEstimator):  # type: ignore[misc]
    """What `LORD`, `SAFFRON` and `ADDIS` have in common: how rows are tested one after the other.

    Attributes
    ----------
    level_ : float
        The next row is selected if its p-value is at most this.
    n_tested_, n_selected_ : int
        Rows so far.
    """

    false_discovery_rate: float
    initial_fraction: float
    horizon: int | None
    n_tested_: int
    _clock: int
    _clocks: npt.NDArray[np.int64]
    _table: Floats
    _level: float

    _parameter_constraints: ClassVar[Constraints] = {
        "false_discovery_rate": [_INSIDE],
        "initial_fraction": [_INSIDE],
        "horizon": [Interval(Integral, 1, None, closed="left"), None],
        "candidate_level": [_INSIDE],
        "discard_level": [_INSIDE],
    }

    def update(self, p_values: npt.ArrayLike) -> Flags:
        """Test further rows, in the order in which they came.

        Parameters
        ----------
        p_values : array of shape (n_rows,)
            Any number of them, in [0, 1]; how they are batched changes nothing.

        Returns
        -------
        bool array of shape (n_rows,)
            The selected ones. A later row changes nothing of it.

        Raises
        ------
        ValueError
            For values outside [0, 1]; none of them is tested then.
        """
        self._start()
        values = check_p_values(p_values)
        low, high = self._limits()
        selected = np.zeros(len(values), dtype=bool)
        for position, value in enumerate(values.tolist()):
            selected[position] = value <= self._level
            ticks = low < value <= high or (low == 0 and value == 0)
            self._clock += ticks
            if selected[position]:
                self._clocks = np.append(self._clocks, self._clock - 1)
            if ticks or selected[position]:
                self._level = self._next_level()
        self.n_tested_ += len(values)
        return selected

    @property
    def level_(self) -> float:
        self._start()
        return self._level

    @property
    def n_selected_(self) -> int:
        self._start()
        return len(self._clocks)

    @classmethod
    def restore(cls, parameters: Values, n_tested: int, clock: int, clocks: npt.NDArray[np.int64]) -> Self:
        """The procedure of a `state`.

        Raises
        ------
        ValueError
            If no procedure can be in such a state.
        """
        procedure = cls(**parameters)
        procedure._start()
        if not (
            type(n_tested) is int
            and type(clock) is int
            and 1 <= clock <= n_tested + 1
            and isinstance(clocks, np.ndarray)
            and clocks.dtype == np.int64
            and clocks.ndim == 1
            and len(clocks) <= n_tested
            and (np.diff(clocks, prepend=0, append=clock - 1) >= 0).all()
        ):
            raise ValueError("an online selection cannot be in this state.")
        procedure.n_tested_, procedure._clock, procedure._clocks = n_tested, clock, clocks
        procedure._level = procedure._next_level()
        return procedure

    def state(self) -> Values:
        """What the procedure goes on from: numbers and an array."""
        self._start()
        return {
            "parameters": self.get_params(),
            "n_tested": self.n_tested_,
            "clock": self._clock,
            "clocks": self._clocks,
        }

    def horizon_for(self, smallest_p_value: float) -> int:
        """The longest ``horizon`` that selects so small a p-value at the beginning; 1 if none does.

        Parameters
        ----------
        smallest_p_value : float
            1 / (n + 1) for conformal p-values with n calibration rows.

        Returns
        -------
        int

        Examples
        --------
        >>> from vae_anomaly.calibration import SAFFRON
        >>> SAFFRON(0.1).horizon_for(1 / 1001)
        25
        """
        self._validate_params()
        low, high = self._limits()
        largest = (high - low) * self.initial_fraction * self.false_discovery_rate
        return max(1, math.ceil(round(largest / smallest_p_value, 9)) - 1)

    def _start(self) -> None:
        """Begin, if nothing has been tested yet."""
        if hasattr(self, "n_tested_"):
            return
        self._validate_params()
        low, high = self._limits()
        if low >= high:
            raise ValueError(
                f"candidate_level must be less than discard_level; received {low:g} and {high:g}."
            )
        self._clock, self._clocks = 1, np.empty(0, dtype=np.int64)
        self._table = self._gamma(np.arange(1.0, _FIRST_TABLE + 1))
        self.n_tested_ = 0
        self._level = self._next_level()

    def _next_level(self) -> float:
        if self._clock > len(self._table):
            # Of a length that the clock alone decides: a restored procedure has the same bits.
            self._table = self._gamma(np.arange(1.0, (1 << (self._clock - 1).bit_length()) + 1))
        low, high = self._limits()
        alpha, first = self.false_discovery_rate, self.initial_fraction * self.false_discovery_rate
        won = self._table[self._clock - self._clocks - 1]
        wealth = first * self._table[self._clock - 1] + alpha * won.sum() - first * won[:1].sum()
        level = float((high - low) * wealth)
        return min(low, level) if low else level

    def _gamma(self, position: Floats) -> Floats:
        if self.horizon is None:
            return self._falling(position)
        return np.asarray((position <= self.horizon) / self.horizon)

    def _falling(self, position: Floats) -> Floats:
        """The sequence of Ramdas et al. 2018."""
        return np.asarray(position**-1.6 / zeta(1.6))

    def _limits(self) -> tuple[float, float]:
        """λ and τ."""
        raise NotImplementedError


class LORD(OnlineSelection):
    r"""LORD++: levels that depend on the times of earlier discoveries.

    .. math:: \alpha_t = w_0\,\gamma_t + (\alpha - w_0)\,\gamma_{t - \tau_1}
        + \alpha \sum_{j \ge 2} \gamma_{t - \tau_j}, \quad
        \gamma_j = 0.0772\,\frac{\log \max(j, 2)}{j\,e^{\sqrt{\log j}}}

    with the times :math:`\tau_j` of the selected rows before t (Ramdas, Yang, Wainwright & Jordan 2017,
    "Online control of the false discovery rate with decaying memory"; the sequence is that of Javanmard &
    Montanari 2018).

    With independent p-values, the expected share of normal rows among the selected ones is at most
    ``false_discovery_rate`` at any time.

    Parameters
    ----------
    false_discovery_rate : float, default=0.1
        :math:`\alpha`, in (0, 1).
    initial_fraction : float, default=0.5
        :math:`w_0 / \alpha`, in (0, 1): how much of it may be spent before the first discovery.
    horizon : int or None, default=None
        None is the paper's sequence, which falls for ever. An int spends evenly over so many rows after the
        beginning and after each discovery: :math:`\gamma_j = 1 / \text{horizon}` as far as it goes, then 0.
        That is better for p-values that cannot be small, as conformal ones, which are never below 1 / (n +
        1): levels below are spent for nothing. Without a discovery within the horizon, there is none later.

    Examples
    --------
    >>> from vae_anomaly.calibration import LORD
    >>> procedure = LORD(0.1)
    >>> procedure.update([0.001, 0.7, 0.0005, 0.6])
    array([ True, False,  True, False])
    """

    def __init__(
        self, false_discovery_rate: float = 0.1, *, initial_fraction: float = 0.5, horizon: int | None = None
    ) -> None:
        self.false_discovery_rate = false_discovery_rate
        self.initial_fraction = initial_fraction
        self.horizon = horizon

    def _limits(self) -> tuple[float, float]:
        return 0.0, 1.0

    def _falling(self, position: Floats) -> Floats:
        logarithm = np.log(position)
        return np.asarray(
            0.07720838 * np.log(np.maximum(position, 2)) / (position * np.exp(np.sqrt(logarithm)))
        )


class SAFFRON(OnlineSelection):
    r"""SAFFRON: nothing is spent on rows whose p-values are small enough to be candidates.

    .. math:: \alpha_t = \min\left(\lambda,\ (1 - \lambda) \left[ w_0\,\gamma_{t - C_{0+}}
        + (\alpha - w_0)\,\gamma_{t - \tau_1 - C_{1+}}
        + \alpha \sum_{j \ge 2} \gamma_{t - \tau_j - C_{j+}} \right]\right), \quad \gamma_j \propto j^{-1.6}

    with the number :math:`C_{j+}` of candidates, :math:`p \le \lambda`, between the j-th selected row and t
    (Ramdas, Zrnic, Wainwright & Jordan 2018, "SAFFRON: an adaptive algorithm for online control of the false
    discovery rate"). Where many rows are anomalies, it finds more of them than `LORD`.

    With independent p-values, the expected share of normal rows among the selected ones is at most
    ``false_discovery_rate`` at any time.

    Parameters
    ----------
    false_discovery_rate : float, default=0.1
        :math:`\alpha`, in (0, 1).
    initial_fraction : float, default=0.5
        :math:`w_0 / \alpha`, in (0, 1).
    candidate_level : float, default=0.5
        :math:`\lambda`, in (0, 1).
    horizon : int or None, default=None
        As of `LORD`, in rows that are not candidates.

    Examples
    --------
    >>> from vae_anomaly.calibration import SAFFRON
    >>> procedure = SAFFRON(0.1)
    >>> procedure.update([0.001, 0.7, 0.005, 0.6])
    array([ True, False,  True, False])
    >>> round(procedure.level_, 5)
    0.01099
    """

    def __init__(
        self,
        false_discovery_rate: float = 0.1,
        *,
        initial_fraction: float = 0.5,
        candidate_level: float = 0.5,
        horizon: int | None = None,
    ) -> None:
        self.false_discovery_rate = false_discovery_rate
        self.initial_fraction = initial_fraction
        self.candidate_level = candidate_level
        self.horizon = horizon

    def _limits(self) -> tuple[float, float]:
        return self.candidate_level, 1.0


class ADDIS(OnlineSelection):
    r"""ADDIS: like `SAFFRON`, and nothing is spent on rows whose p-values are large either.

    .. math:: \alpha_t = \min\left(\lambda,\ (\tau - \lambda) \left[ w_0\,\gamma_{S^t - C_{0+}}
        + (\alpha - w_0)\,\gamma_{S^t - \kappa_1^* - C_{1+}}
        + \alpha \sum_{j \ge 2} \gamma_{S^t - \kappa_j^* - C_{j+}} \right]\right), \quad
        \gamma_j \propto (j + 1)^{-1.6}

    with the number :math:`S^t` of rows before t that are not discarded, :math:`p \le \tau`, of which
    :math:`\kappa_j^*` came up to the j-th selected row and :math:`C_{j+}` are later candidates, :math:`p \le
    \lambda` (Tian & Ramdas 2019, "ADDIS: an adaptive discarding algorithm for online FDR control with
    conservative nulls"). It gains where the p-values of normal rows are too large, as after a drift towards
    lower scores.

    With independent p-values, whose density does not fall for normal rows, the expected share of normal rows
    among the selected ones is at most ``false_discovery_rate`` at any time.

    Parameters
    ----------
    false_discovery_rate : float, default=0.1
        :math:`\alpha`, in (0, 1).
    initial_fraction : float, default=0.5
        :math:`w_0 / \alpha`, in (0, 1).
    candidate_level : float, default=0.25
        :math:`\lambda`, in (0, 1), less than ``discard_level``.
    discard_level : float, default=0.5
        :math:`\tau`, in (0, 1).
    horizon : int or None, default=None
        As of `LORD`, in rows with :math:`\lambda < p \le \tau`.

    Examples
    --------
    >>> from vae_anomaly.calibration import ADDIS
    >>> procedure = ADDIS(0.1)
    >>> procedure.update([0.001, 0.7, 0.005, 0.4])
    array([ True, False,  True, False])
    """

    def __init__(
        self,
        false_discovery_rate: float = 0.1,
        *,
        initial_fraction: float = 0.5,
        candidate_level: float = 0.25,
        discard_level: float = 0.5,
        horizon: int | None = None,
    ) -> None:
        self.false_discovery_rate = false_discovery_rate
        self.initial_fraction = initial_fraction
        self.candidate_level = candidate_level
        self.discard_level = discard_level
        self.horizon = horizon

    def _limits(self) -> tuple[float, float]:
        return self.candidate_level, self.discard_level


#: Every online selection by name.
ONLINE: Mapping[str, type[OnlineSelection]] = {"lord": LORD, "saffron": SAFFRON, "addis": ADDIS}
