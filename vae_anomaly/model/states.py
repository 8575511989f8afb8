"""States: a VAE as plain configuration and arrays, before and after its training."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vae_anomaly.core.rows import Rows
from vae_anomaly.core.types import Array, Values
from vae_anomaly.likelihoods import Likelihood
from vae_anomaly.model.column_transform import is_whitening, n_numbers
from vae_anomaly.networks import Network
from vae_anomaly.posteriors import Gaussian, Posterior
from vae_anomaly.priors import Prior, Standard

__all__ = ["ModelState", "Specification"]


class Specification(NamedTuple):
    """Everything that decides a VAE's architecture."""

    network: Network
    likelihood: Likelihood
    n_features: int
    latent_dim: int
    marks_missing: bool = False
    transforms_columns: bool = False
    whitens_columns: bool = False
    posterior: Posterior = Gaussian()
    prior: Prior = Standard()

    @property
    def key(self) -> Hashable:
        """Equal for specifications that can share compiled programs."""
        network, likelihood, *others = self
        return network.architecture_key(), likelihood.architecture_key(), *others

    def of_columns_as_they_are(self) -> Specification:
        """The same without a transform of the columns: what is trained."""
        return self._replace(transforms_columns=False, whitens_columns=False)

    @property
    def n_inputs(self) -> int:
        """How many numbers the encoder sees of a row: with marks, whether each value is missing."""
        marks = self.n_features if self.marks_missing else 0
        return self.likelihood.n_inputs(self.n_features) + marks

    @property
    def noise_width(self) -> int:
        """How many standard normal numbers make a draw of z."""
        return self.posterior.noise_width(self.latent_dim)

    def of_model(self) -> Values:
        """What a `VAE` is made of besides its two networks."""
        return {name: value for name, value in self._asdict().items() if name != "network"}


@dataclass(frozen=True, eq=False)
class ModelState:
    """A trained VAE as plain configuration and arrays: what is pickled and copied.

    Attributes
    ----------
    specification : Specification
    trainable : float32 array, all trainable weights flattened in the model's order
    non_trainable : the model's other variables, in its order
    """

    specification: Specification
    trainable: Rows
    non_trainable: tuple[Array, ...]

    @property
    def column_transform(self) -> Rows | None:
        """The numbers by which columns are transformed, see `column_transform`; None if they are not."""
        if not self.specification.transforms_columns:
            return None
        n_features = self.specification.n_features
        shape = (n_numbers(n_features, self.specification.whitens_columns), n_features)
        return next(array for array in self.non_trainable if np.shape(array) == shape)

    @property
    def is_whitened(self) -> bool:
        """Whether it sees columns that have been made uncorrelated."""
        numbers = self.column_transform
        return numbers is not None and is_whitening(numbers)

    @property
    def has_scale_per_row(self) -> bool:
        """Whether the decoder computes a scale for each row."""
        likelihood, n_features = self.specification.likelihood, self.specification.n_features
        # The weights that belong to no layer come first.
        shared = self.trainable[: likelihood.n_shared * n_features].reshape(likelihood.n_shared, n_features)
        return likelihood.has_scale_per_row(shared)

    def __repr__(self) -> str:
        return f"ModelState({self.specification}, {self.trainable.size} weights)"
