"""Columns of tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from vae_anomaly.core.backend import tf
from vae_anomaly.core.types import Tensor

__all__ = ["take_columns"]


def take_columns(x: Tensor, columns: npt.ArrayLike) -> Tensor:
    """The last axis at these positions, each of which is given once.

    As `keras.ops.take`, whose gradient and whose care for negative positions are thirty operations to trace.
    """
    columns = np.asarray(columns)

    def take(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        n_columns = x.shape[-1]
        # Columns that were not taken get the zeros behind the others.
        back = np.full(n_columns, len(columns))
        back[columns] = np.arange(len(columns))

        def gradient(of_taken: Tensor) -> Tensor:
            if len(columns) < n_columns:
                of_taken = tf.concat([of_taken, tf.zeros_like(of_taken[..., :1])], axis=-1)
            return tf.gather(of_taken, back, axis=-1)

        return tf.gather(x, columns, axis=-1), gradient

    return tf.custom_gradient(take)(x)
