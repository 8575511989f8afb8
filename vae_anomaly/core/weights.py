"""Weights that posteriors and priors have of their own: their shapes, and how they start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from vae_anomaly.core.rows import Rows
from vae_anomaly.core.types import Array, Shape, Tensor

__all__ = ["PROGRESS", "Weight", "Weights"]

#: The name of a weight that holds how far the training is, from 0 to 1: the engine sets it.
PROGRESS = "progress"

#: Values of weights by their names.
Weights: TypeAlias = Mapping[str, Tensor]


class Weight(NamedTuple):
    """An array that a posterior or a prior learns, or keeps.

    Attributes
    ----------
    shape : tuple of int
    initial : {"zeros", "glorot", "normal", "training_rows"}, default="zeros"
        Where it starts: at zeros; at uniform numbers whose variance keeps that of what a layer is given
        (Glorot & Bengio 2010); at standard normal numbers; at what the encoder sees of random training rows,
        some of them twice if there are fewer than the first axis is long.
    trainable : bool, default=True
    scale : float, default=1.0
        Multiplies where it starts.
    """

    shape: Shape
    initial: str = "zeros"
    trainable: bool = True
    scale: float = 1.0

    def draw(self, rng: np.random.RandomState, inputs: Rows) -> Array:
        """Where it starts; ``inputs`` are what the encoder sees of complete training rows.

        Raises
        ------
        ValueError
            If it starts at training rows, and there are none.
        """
        return np.asarray(self.scale * self._draw(rng, inputs), dtype=np.float32)

    def _draw(self, rng: np.random.RandomState, inputs: Rows) -> Array:
        if self.initial == "training_rows":
            if not len(inputs):
                raise ValueError(
                    "the prior is one of complete training rows, and a value is missing in each: choose "
                    "another prior, such as Mixture(8)."
                )
            return inputs[np.resize(rng.permutation(len(inputs)), self.shape[0])]
        if self.initial == "normal":
            return rng.standard_normal(self.shape).astype(np.float32)
        if self.initial == "glorot":
            limit = np.sqrt(6 / (self.shape[-2] + self.shape[-1]))
            return rng.uniform(-limit, limit, self.shape).astype(np.float32)
        return np.zeros(self.shape, dtype=np.float32)
