"""`Mixed`: the likelihood of a table whose columns have likelihoods of their own."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vae_anomaly.core.backend import keras
from vae_anomaly.core.columns import take_columns
from vae_anomaly.core.rows import Rows
from vae_anomaly.core.types import Array, Tensor, Values
from vae_anomaly.likelihoods.base import Likelihood, Parameters, from_config

__all__ = ["Mixed"]


class Mixed(Likelihood):
    r"""Each column's own likelihood: :math:`\log p(x|z) = \sum_j \log p_j(x_j|z)`.

    `VAEDetector` makes one of the columns of a DataFrame; see `vae_anomaly.data.tables`.

    Parameters
    ----------
    parts : sequence of (Likelihood, sequence of int)
        Each likelihood with the positions of its columns; no column belongs to two.
    ignored : sequence of int, default=()
        The positions of all other columns, which the model does not see. They count 0 nats, and a missing
        value, NaN, is what is expected of them.

    Examples
    --------
    >>> from vae_anomaly.likelihoods import Categorical, Gaussian, Mixed
    >>> Mixed([(Gaussian(), [0, 2]), (Categorical(5), [1])]).n_outputs(3)
    7
    """

    name = "mixed"

    def __init__(
        self, parts: Sequence[tuple[Likelihood, Sequence[int]]] = (), ignored: Sequence[int] = ()
    ) -> None:
        self.parts = parts
        self.ignored = ignored

    def _validate_params(self) -> None:
        super()._validate_params()
        for likelihood, _ in self.parts:
            likelihood._validate_params()

    def check_columns(self, n_columns: int) -> None:
        """Raise a ValueError unless each column belongs to one part, or to none and is ignored."""
        positions = sorted(int(column) for columns in self._positions for column in columns)
        if len(positions) != n_columns or positions != list(range(n_columns)):
            raise ValueError(
                f"the parts of a Mixed must hold each of the {n_columns} columns of X once, by its position "
                f"from 0 to {n_columns - 1}; received columns {positions}."
            )

    def config(self) -> Values:
        parts = [(likelihood.config(), list(columns)) for likelihood, columns in self.parts]
        return {**super().config(), "parts": parts, "ignored": list(self.ignored)}

    @classmethod
    def of_config(cls, **parameters: Any) -> Mixed:
        """The likelihood with these parameters, as `config` gives them."""
        parts = [(from_config(config), tuple(columns)) for config, columns in parameters["parts"]]
        return cls(parts, tuple(parameters.get("ignored", ())))

    @property
    def _positions(self) -> list[Sequence[int]]:
        """Those of each part's columns, and last of those that are ignored."""
        return [*(columns for _, columns in self.parts), self.ignored]

    @property
    def n_shared(self) -> int:
        return max((likelihood.n_shared for likelihood, _ in self.parts), default=0)

    def n_outputs(self, n_features: int) -> int:
        return sum(likelihood.n_outputs(len(columns)) for likelihood, columns in self.parts)

    def parameters(self, outputs: Tensor, shared: Sequence[Tensor] = ()) -> Parameters:
        """One tuple for each part, its own parameters."""
        sizes = [likelihood.n_outputs(len(columns)) for likelihood, columns in self.parts]
        ends = np.cumsum(sizes).tolist()
        pieces = [outputs[..., end - size : end] for size, end in zip(sizes, ends, strict=True)]
        return tuple(
            likelihood.parameters(piece, _of_columns(shared[: likelihood.n_shared], columns))
            for (likelihood, columns), piece in zip(self.parts, pieces, strict=True)
        )

    def n_inputs(self, n_features: int) -> int:
        return sum(likelihood.n_inputs(len(columns)) for likelihood, columns in self.parts)

    def origins(self, n_features: int) -> list[int]:
        return [
            columns[position]
            for likelihood, columns in self.parts
            for position in likelihood.origins(len(columns))
        ]

    def inputs(self, x: Tensor, shared: Sequence[Tensor] = ()) -> Tensor:
        parts = [
            likelihood.inputs(
                take_columns(x, columns),
                _of_columns(shared[: likelihood.n_shared], columns),
            )
            for likelihood, columns in self.parts
        ]
        return keras.ops.concatenate(parts, axis=-1)

    def expected_inputs(self, parameters: Parameters) -> Tensor:
        return self._joined(lambda likelihood, own: likelihood.expected_inputs(own), parameters)

    def expectations(self, parameters: Parameters) -> Tensor:
        return self._joined(lambda likelihood, own: likelihood.expectations(own), parameters)

    def values(self, expectations: Array) -> Array:
        sizes = [likelihood.n_inputs(len(columns)) for likelihood, columns in self.parts]
        pieces = np.split(expectations, np.cumsum(sizes)[:-1], axis=-1)
        values = np.full((*expectations.shape[:-1], sum(map(len, self._positions))), np.nan)
        for (likelihood, columns), piece in zip(self.parts, pieces, strict=True):
            values[..., list(columns)] = likelihood.values(piece)
        return values

    def input_range(self, rows: Rows) -> Rows:
        parts = [likelihood.input_range(rows[:, list(columns)]) for likelihood, columns in self.parts]
        return np.concatenate(parts, axis=1)

    def initial_shared(self, rows: Rows) -> npt.NDArray[np.float32]:
        return self._of_parts(rows, lambda likelihood, own: likelihood.initial_shared(own))

    def initial_shared_per_row(self, rows: Rows) -> npt.NDArray[np.float32]:
        return self._of_parts(rows, lambda likelihood, own: likelihood.initial_shared_per_row(own))

    def per_member(self) -> Mixed | None:
        parts = [(likelihood.per_member(), likelihood, columns) for likelihood, columns in self.parts]
        if all(found is None for found, _, _ in parts):
            return None
        return Mixed([(found or likelihood, columns) for found, likelihood, columns in parts], self.ignored)

    def has_scale_per_row(self, shared: npt.NDArray[np.floating]) -> bool:
        return any(
            likelihood.has_scale_per_row(shared[np.ix_(range(likelihood.n_shared), list(columns))])
            for likelihood, columns in self.parts
        )

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        return self._in_order(lambda likelihood, own, x: likelihood.log_prob(x, own), parameters, x)

    def mean(self, parameters: Parameters) -> Tensor:
        return self._in_order(lambda likelihood, own: likelihood.mean(own), parameters, ignored=math.nan)

    def sample(self, parameters: Parameters, seed: int) -> Tensor:
        seeds = iter(np.random.SeedSequence(seed).generate_state(len(self.parts)) // 2)
        return self._in_order(
            lambda likelihood, own: likelihood.sample(own, int(next(seeds))), parameters, ignored=math.nan
        )

    def error(self, x: Tensor, parameters: Parameters) -> Tensor:
        return self._in_order(lambda likelihood, own, x: likelihood.error(x, own), parameters, x)

    def expected_log_prob(self, parameters: Parameters) -> Tensor:
        return self._in_order(lambda likelihood, own: likelihood.expected_log_prob(own), parameters)

    def expected_error(self, parameters: Parameters) -> Tensor:
        return self._in_order(lambda likelihood, own: likelihood.expected_error(own), parameters)

    def quantile(self, probability: Tensor, parameters: Parameters) -> Tensor:
        return self._in_order(
            lambda likelihood, own: likelihood.quantile(probability, own), parameters, ignored=math.nan
        )

    def inside_support(self, low: Array, high: Array) -> tuple[Array, Array]:
        low, high = low.copy(), high.copy()
        for likelihood, columns in self.parts:
            own = [*columns]
            low[..., own], high[..., own] = likelihood.inside_support(low[..., own], high[..., own])
        return low, high

    def check_support(self, X: npt.NDArray[np.floating], names: npt.ArrayLike | None = None) -> None:
        for likelihood, columns in self.parts:
            labels = columns if names is None else np.asarray(names, dtype=object)[list(columns)]
            likelihood.check_support(X[:, list(columns)], labels)

    def outside_support(self, X: Tensor) -> Tensor:
        n_columns = sum(map(len, self._positions))
        return functools.reduce(
            operator.or_,
            (
                likelihood.outside_support(X) & np.isin(np.arange(n_columns), columns)
                for likelihood, columns in self.parts
            ),
        )

    @property
    def standardized(self) -> bool:  # type: ignore[override]
        return any(likelihood.standardized for likelihood, _ in self.parts)

    def columns_to_scale(self) -> list[int]:
        """The columns of the parts that are standardized by default, in order."""
        return sorted(
            int(column) for likelihood, columns in self.parts if likelihood.standardized for column in columns
        )

    def _of_parts(
        self, rows: Rows, function: Callable[[Likelihood, Rows], npt.NDArray[np.float32]]
    ) -> npt.NDArray[np.float32]:
        """What is shared by all rows, from each part's own: shape (n_shared, n_features)."""
        shared = np.zeros((self.n_shared, rows.shape[1]), dtype=np.float32)
        for likelihood, columns in self.parts:
            shared[: likelihood.n_shared, list(columns)] = function(likelihood, rows[:, list(columns)])
        return shared

    def _joined(self, function: Callable[..., Tensor], parameters: Parameters) -> Tensor:
        parts = [
            function(likelihood, own) for (likelihood, _), own in zip(self.parts, parameters, strict=True)
        ]
        return keras.ops.concatenate(parts, axis=-1)

    def _in_order(
        self,
        function: Callable[..., Tensor],
        parameters: Parameters,
        x: Tensor = None,
        ignored: float = 0.0,
    ) -> Tensor:
        """What a function makes of each part, in the order of the columns; a number for ignored ones."""
        columns = [column for columns in self._positions for column in columns]
        parts = [
            function(likelihood, own)
            if x is None
            else function(likelihood, own, take_columns(x, its_columns))
            for (likelihood, its_columns), own in zip(self.parts, parameters, strict=True)
        ]
        if self.ignored:
            parts.append(keras.ops.full_like(parts[0][..., :1], ignored))
            parts[-1] = keras.ops.repeat(parts[-1], len(self.ignored), axis=-1)
        return take_columns(keras.ops.concatenate(parts, axis=-1), np.argsort(columns))


def _of_columns(shared: Sequence[Tensor], columns: Sequence[int]) -> list[Tensor]:
    return [take_columns(values, columns) for values in shared]
