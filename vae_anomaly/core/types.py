"""Types of what the library handles, named once, for annotations alone.

TensorFlow, Keras, scikit-learn and scipy ship no types: to a type checker, all their objects are
`Any`. The aliases of `Any` below say what such a value is; where a type can be checked, it is a real one.
Nothing here imports those libraries.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Array",
    "Callback",
    "Constraints",
    "Detector",
    "DtypeOrNone",
    "Estimator",
    "FittedLabelingRule",
    "Flags",
    "Floats",
    "Fragmented",
    "Initializer",
    "Json",
    "KerasClass",
    "KerasModel",
    "LabelingRule",
    "Layer",
    "LayerShape",
    "Matrix",
    "MatrixLike",
    "PathOrFile",
    "RandomStateLike",
    "RowsElsewhere",
    "Shape",
    "SparseMatrix",
    "Splitter",
    "Tensor",
    "ThresholdRule",
    "Transformer",
    "Unchecked",
    "Values",
]

# -- of libraries without types -------------------------------------------------------------------------
#: A tensor of TensorFlow or Keras, symbolic or with values, and what they take for one.
Tensor: TypeAlias = Any
#: A layer of Keras.
Layer: TypeAlias = Any
#: A `keras.Model`, also a `VAE` where its own attributes are read.
KerasModel: TypeAlias = Any
#: A class of Keras layers.
KerasClass: TypeAlias = Any
#: A `keras.callbacks.Callback`.
Callback: TypeAlias = Any
#: What draws new values of a Keras variable.
Initializer: TypeAlias = Any
#: Numbers behind the detector's door: an array or a CSR table, of shape (n_rows, n_columns).
Matrix: TypeAlias = Any
#: An object of scikit-learn's kind, some of whose attributes are optional: a Pipeline, a fitted scaler.
Estimator: TypeAlias = Any
#: What the `json` module reads and writes.
Json: TypeAlias = Any

# -- arrays -----------------------------------------------------------------------------------------------
Array: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]
Shape: TypeAlias = tuple[int, ...]
#: A Keras layer's input shape: of one tensor, or a list of those of several.
LayerShape: TypeAlias = Any
#: The dtype that rows were handed in with, if they had one.
DtypeOrNone: TypeAlias = np.dtype[Any] | None

# -- what users hand in -----------------------------------------------------------------------------------
RandomStateLike: TypeAlias = int | np.random.RandomState | None


class SparseMatrix(Protocol):
    """A sparse matrix or array of scipy."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def tocsr(self) -> Any: ...

    def toarray(self) -> Any: ...


class RowsElsewhere(Protocol):
    """Rows that are not in memory, by a shape and slices: a dataset of h5py, an array of zarr or of dask."""

    @property
    def shape(self) -> tuple[Any, ...]: ...

    def __getitem__(self, key: Any, /) -> Any: ...


class Fragmented(Protocol):
    """A dataset of pyarrow."""

    def get_fragments(self, filter: Any = None) -> Any: ...  # noqa: A002


#: Rows or images as users have them, or where they are: a path or a glob of Parquet files among them.
MatrixLike: TypeAlias = (
    "npt.ArrayLike | pd.DataFrame | SparseMatrix | os.PathLike[str] | RowsElsewhere | Fragmented"
)
#: The same before anyone has looked which of them it is.
Unchecked: TypeAlias = Any


class Transformer(Protocol):
    """A transformer such as scikit-learn's; `inverse_transform` and others are optional."""

    def fit(self, X: Any, /) -> Any: ...

    def transform(self, X: Any, /) -> Any: ...


class Splitter(Protocol):
    """A splitter of rows into folds, such as `sklearn.model_selection.KFold`."""

    def split(self, X: Any, /) -> Iterator[tuple[Any, Any]]: ...

    def get_n_splits(self) -> int: ...


class ThresholdRule(Protocol):
    """Anomaly scores -> the cut above which a row is called an anomaly; see `vae_anomaly.thresholds`."""

    def cut(self, scores: Any, /) -> float: ...


class LabelingRule(Protocol):
    """A rule of another library that labels anomaly scores 0 or 1: by ``eval``, as pythresh's do."""

    def eval(self, scores: Any, /) -> Any: ...


class FittedLabelingRule(Protocol):
    """The same, by ``fit`` and ``predict``."""

    def fit(self, scores: Any, /) -> Any: ...

    def predict(self, scores: Any, /) -> Any: ...


# -- of estimators ----------------------------------------------------------------------------------------
class Detector(Protocol):
    """What others read of a fitted `VAEDetector`, whose class stands above them."""

    n_features_in_: int
    n_samples_fit_: int
    n_samples_seen_: int
    n_samples_drawn_: int
    latent_dim_: int
    offset_: float
    history_: dict[str, list[float]]
    image_shape_: Shape | None
    pixel_range_: tuple[float, float] | None
    #: A `data.patches.Patches` or None.
    patches_: Any
    member_poolings_: tuple[int, ...]
    missing_fraction_: Floats | None
    do_early_stopping_: bool
    interrupted_: bool
    false_alarm_rate_: float | None
    calibration_scores_: Floats | None
    calibration_groups_: Array | None
    interval_scores_: Floats | None
    _interval_floors: Any
    draws_: npt.NDArray[np.float32]
    member_weights_: Floats
    #: Of `model.states.ModelState`.
    members_: Sequence[Any]
    #: A `data.tables.Table` or None.
    table_: Any
    scaler_: Estimator
    score_: Any
    #: An `objectives.Objective`.
    objective_: Any
    threshold_: Any
    _member_levels: Floats
    _usual_scores: Floats | None
    _pixel_quantiles: Floats | None
    _column_ranges: Floats | None
    _rows_fingerprint: str
    _split_seeds: list[int]
    _calibration_seed: int
    #: Parameters.
    device: str | Sequence[str] | None
    invalid: str
    calibration: Any
    threshold: Any
    max_samples: int | str | None
    epochs: int | str
    random_state: Any
    verbose: Any
    callbacks: Any
    checkpoint: Any

    @property
    def _fitted(self) -> Any: ...

    @property
    def _shape_of_images(self) -> Shape | None: ...

    def _validate_params(self) -> None: ...

    def get_params(self, deep: bool = True) -> dict[str, Any]: ...

    def score_samples(self, X: Any, /) -> Floats: ...

    def decision_function(self, X: Any, /) -> Floats: ...

    def false_alarm_certificate(self) -> Any: ...

    def explain(self, X: Any, /) -> Any: ...

    def expected(self, X: Any, /, coverage: float | None = None) -> Any: ...

    def sample(
        self, n_samples: int, random_state: RandomStateLike, /, *, noise: str | bool = "auto"
    ) -> Any: ...


#: What can be saved to and loaded from: a path, or a file that is open for bytes.
PathOrFile: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes] | BinaryIO"
#: Parameters, attributes or settings by their names.
Values: TypeAlias = dict[str, Any]
#: scikit-learn's ``_parameter_constraints``: what each parameter may be.
Constraints: TypeAlias = dict[str, list[object]]
