"""Adam (Kingma & Ba 2015, "Adam: a method for stochastic optimization"), of weights and of a row's z."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vae_anomaly.core.backend import tf
from vae_anomaly.core.types import Tensor

__all__ = ["Adam"]


class Adam(NamedTuple):
    """Adam with its constants; the defaults are the paper's, with Keras' epsilon."""

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def rates(self, rates: Tensor, first_step: int = 0) -> npt.NDArray[np.float32]:
        """Learning rates with the corrections for moments that started at 0."""
        count = first_step + 1.0 + np.arange(len(rates))
        return np.asarray(rates * np.sqrt(1 - self.beta_2**count) / (1 - self.beta_1**count), np.float32)

    def step(
        self, values: Tensor, first_moment: Tensor, second_moment: Tensor, gradient: Tensor, rate: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values and moments after one step downhill, at a rate from `rates`."""
        first_moment += (1 - self.beta_1) * (gradient - first_moment)
        second_moment += (1 - self.beta_2) * (tf.square(gradient) - second_moment)
        values -= rate * first_moment / (tf.sqrt(second_moment) + self.epsilon)
        return values, first_moment, second_moment
