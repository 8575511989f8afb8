"""What every likelihood has, and how one is found by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from vae_anomaly.core.backend import keras
from vae_anomaly.core.rows import RowError, Rows, column_label, usual_range
from vae_anomaly.core.spec import Spec, register
from vae_anomaly.core.types import Array, DtypeOrNone, Flags, Tensor, Values

__all__ = [
    "LIKELIHOODS",
    "Likelihood",
    "LikelihoodLike",
    "Parameters",
    "check_all_inside",
    "from_config",
    "resolve",
]

#: Every likelihood that has a name: ``{"gaussian": Gaussian, ...}``.
LIKELIHOODS: dict[str, type[Likelihood]] = {}

Parameters = tuple[Tensor, ...]
#: What a detector's ``likelihood`` may be: a name, a `Likelihood`, or those of a table's columns.
LikelihoodLike: TypeAlias = "str | Likelihood | Mapping[Any, Any] | Sequence[Any]"


class Likelihood(Spec):
    """Base class of the likelihoods p(x|z).

    Attributes
    ----------
    name : str
        What ``VAEDetector(likelihood=...)`` calls it. A subclass with a name registers itself.
    whole_numbers : bool
        Whether x is 0, 1, 2, ...; otherwise images of dtype uint8 are taken for shares of 255.
    standardized : bool
        Whether ``scaler="auto"`` standardizes x, because any unit of it is as good as another.
    ignored : sequence of int
        Positions of the columns that the model does not see.
    n_params : int
        How many numbers the decoder computes for each row and feature.
    n_shared : int
        How many numbers for each feature are learned with the model and shared by all rows.
    """

    name: ClassVar[str] = ""
    whole_numbers: ClassVar[bool] = False
    standardized: ClassVar[bool] = False
    ignored: Sequence[int] = ()

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("name"):
            register(cls, LIKELIHOODS)

    @property
    def n_params(self) -> int:
        return 1

    @property
    def n_shared(self) -> int:
        return 0

    # -- sizes: what the networks handle ------------------------------------------------------------
    def n_outputs(self, n_features: int) -> int:
        """How many numbers the decoder computes for a row."""
        return n_features * self.n_params

    def parameters(self, outputs: Tensor, shared: Sequence[Tensor] = ()) -> Parameters:
        """The parameters, from the decoder's outputs and what is shared by all rows.

        Parameters
        ----------
        outputs : tensor of shape (..., n_outputs), the parameters of a feature next to each other
        shared : ``n_shared`` tensors of shape (n_features,)
        """
        if self.n_params == 1:
            return (outputs, *shared)
        leading = keras.ops.shape(outputs)[:-1]
        n_features = outputs.shape[-1] // self.n_params
        outputs = keras.ops.reshape(outputs, (*leading, n_features, self.n_params))
        # Several slices have several gradients, each of the size of the outputs.
        return (*keras.ops.unstack(outputs, axis=-1), *shared)

    def n_inputs(self, n_features: int) -> int:
        """How many numbers the encoder sees of a row."""
        return n_features

    def origins(self, n_features: int) -> list[int]:
        """For each number that the encoder sees of a row, the feature it comes from."""
        return list(range(n_features))

    def inputs(self, x: Tensor, shared: Sequence[Tensor] = ()) -> Tensor:
        """What the encoder sees of x: (..., n_features) -> (..., n_inputs)."""
        return x

    def expected_inputs(self, parameters: Parameters) -> Tensor:
        """Expected inputs given z, of shape (..., n_inputs)."""
        return self.mean(parameters)

    def expectations(self, parameters: Parameters) -> Tensor:
        """What may be averaged over z to tell x, of shape (..., n_inputs): the mean, or probabilities."""
        return self.mean(parameters)

    def values(self, expectations: Array) -> Array:
        """The x that averaged `expectations` stand for: (..., n_inputs) -> (..., n_features)."""
        return expectations

    def input_range(self, rows: Rows) -> Rows:
        """Smallest and largest input that the encoder is to see, shape (2, n_inputs): `usual_range`."""
        return usual_range(rows)

    def initial_shared(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Where the parameters shared by all rows start, shape (n_shared, n_features)."""
        return np.zeros((self.n_shared, rows.shape[1]), dtype=np.float32)

    def per_member(self) -> Likelihood | None:
        """The same, with a scale for each row where a member of an ensemble asks for it.

        None if no scale is learned.
        """
        return None

    def initial_shared_per_row(self, rows: Rows) -> npt.NDArray[np.float32]:
        """`initial_shared` of a member that has a scale for each row."""
        return self.initial_shared(rows)

    def has_scale_per_row(self, shared: npt.NDArray[np.floating]) -> bool:
        """Whether the decoder of a model with these shared parameters computes a scale for each row.

        They may be multiples of what they are in the model.
        """
        return False

    # -- the distribution ---------------------------------------------------------------------------
    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Log-density log p(x|z) of each feature, in nats.

        Parameters
        ----------
        x : float tensor of shape (n_rows, n_features)
        parameters : tuple of ``n_params + n_shared`` tensors that broadcast against ``x``

        Returns
        -------
        float tensor of shape (n_rows, n_features)
        """
        raise self._lacks("log_prob")

    def mean(self, parameters: Parameters) -> Tensor:
        """Expected x given z, of shape (n_rows, n_features)."""
        raise self._lacks("mean")

    def sample(self, parameters: Parameters, seed: int) -> Tensor:
        """One draw of x given z for each row, of shape (n_rows, n_features)."""
        raise self._lacks("sample")

    def error(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Reconstruction error of each feature: the squared distance to the expected x."""
        return keras.ops.square(x - self.mean(parameters))

    def expected_log_prob(self, parameters: Parameters) -> Tensor:
        """E log p(x|z) over x from p(x|z), minus the entropy: what a missing cell counts in a score.

        By default the log-density at the mean, which is the same thing if it is linear in x.
        """
        return self.log_prob(self.mean(parameters), parameters)

    def expected_error(self, parameters: Parameters) -> Tensor:
        """E of `error` over x from p(x|z): what a missing cell counts in a reconstruction error.

        By default the error at the mean, which is the same thing if it is linear in x.
        """
        return self.error(self.mean(parameters), parameters)

    def quantile(self, probability: Tensor, parameters: Parameters) -> Tensor:
        """The x above this share of p(x|z), of shape (n_rows, n_features); NaN if x has no order.

        ``probability`` is a number, or an array that broadcasts against the parameters.
        """
        raise NotImplementedError(
            f"intervals need the quantiles of the likelihood: give {type(self).__name__} a method "
            "quantile(probability, parameters)."
        )

    def inside_support(self, low: Array, high: Array) -> tuple[Array, Array]:
        """The ends of the intervals of values that x can have between these ends, (..., n_features) each."""
        return low, high

    def check_support(self, X: npt.NDArray[np.floating], names: npt.ArrayLike | None = None) -> None:
        """Raise a ValueError that names the column and the value if X lies outside the support."""

    def check_pixels(self, low: float, high: float, dtype: DtypeOrNone) -> None:
        """Raise a ValueError that names the range if pixels from ``low`` to ``high`` leave the support."""

    def outside_support(self, X: Tensor) -> Tensor:
        """Where X lies outside the support: booleans of its shape; False for a missing value.

        By operators alone, which arrays and tensors share. A likelihood of your own that says this has its
        support checked by exported graphs too.
        """
        return (X < 0) & (X > 0)

    def check_columns(self, n_columns: int) -> None:
        """Raise a ValueError if the likelihood is not one of so many columns."""

    def columns_to_scale(self) -> list[int] | None:
        """Positions of the columns that a scaler acts on; None for all of them."""
        return None

    def config(self) -> Values:
        """Name and parameters as plain data, from which `from_config` makes an equal likelihood."""
        if LIKELIHOODS.get(self.name) is not type(self):
            raise TypeError(
                "only a likelihood with a name of its own can be saved and found again; give "
                f"{type(self).__name__} a class attribute `name`."
            )
        return {"name": self.name, **self.get_params(deep=False)}

    @classmethod
    def of_config(cls, **parameters: Any) -> Likelihood:
        """The likelihood with these parameters, as `config` gives them."""
        return cls(**parameters)


def from_config(config: Values) -> Likelihood:
    """The likelihood that `Likelihood.config` describes."""
    parameters = dict(config)
    return LIKELIHOODS[parameters.pop("name")].of_config(**parameters)


def resolve(likelihood: str | Likelihood) -> Likelihood:
    """The likelihood with this name, or the instance itself."""
    if not isinstance(likelihood, str):
        return likelihood
    if likelihood not in LIKELIHOODS:
        raise ValueError(
            f"likelihood must be one of {['auto', *LIKELIHOODS]} or a Likelihood; received {likelihood!r}."
        )
    return LIKELIHOODS[likelihood]()


def check_all_inside(wrong: Flags, X: Array, names: npt.ArrayLike | None, expected: str) -> None:
    """Raise a ValueError that says what was expected and names the first wrong value, if there is one."""
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        label = column_label(column, names)
        raise RowError(f"{expected}; {label} holds {X[row, column]:g} in {{row}}.", row)
