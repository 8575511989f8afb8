"""States: a VAE as plain configuration and arrays, before and after its training."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vae_anomaly.core.rows import Rows
from vae_anomaly.core.types import Array, Values
from vae_anomaly.likelihoods import Likelihood
from vae_anomaly.model.column_transform import N_NUMBERS
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
    posterior: Posterior = Gaussian()
    prior: Prior = Standard()

    @property
    def key(self) -> Hashable:
        """Equal for specifications that can share compiled programs."""
        network, likelihood, *others = self
        return network.architecture_key(), likelihood.architecture_key(), *others

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
        shape = (N_NUMBERS, self.specification.n_features)
        return next(array for array in self.non_trainable if np.shape(array) == shape)

    def __repr__(self) -> str:
        return f"ModelState({self.specification}, {self.trainable.size} weights)"
