"""`DenseNetwork`: fully connected layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from numbers import Real
from typing import ClassVar

from sklearn.utils._param_validation import Interval

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Constraints, KerasModel, Shape, Tensor
from vae_anomaly.networks.base import (
    Heads,
    Network,
    check_activation,
    check_sizes,
    check_unambiguous,
    finish_layer,
    glorot,
    hidden_initializer,
    with_heads,
)

__all__ = ["DenseNetwork"]


class DenseNetwork(Network):
    """Fully connected encoder and mirrored decoder.

    Parameters
    ----------
    hidden_units : tuple of int, default=(64, 32)
        Widths of the encoder's hidden layers; the decoder has the same in reverse. ``()`` is the
        linear model: probabilistic PCA with a Gaussian likelihood of one fixed scale, factor analysis
        with a scale for each feature, logistic factor analysis with a Bernoulli likelihood.
    activation : str or callable, default="relu"
        Any Keras activation. "selu" brings what makes it normalize itself (Klambauer et al. 2017,
        "Self-normalizing neural networks"): LeCun's normal initialization, and `AlphaDropout` for dropout.
    batch_normalization : bool, default=False
        Normalize before each activation.
    dropout : float, default=0.0
        Share of hidden units dropped in each training step, in [0, 1).

    Examples
    --------
    >>> from vae_anomaly import DenseNetwork
    >>> DenseNetwork(hidden_units=(128, 64), dropout=0.1)
    DenseNetwork(dropout=0.1, hidden_units=(128, 64))
    """

    _parameter_constraints: ClassVar[Constraints] = {
        "hidden_units": [tuple, list],
        "activation": [str, callable],
        "batch_normalization": ["boolean"],
        "dropout": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        hidden_units: tuple[int, ...] = (64, 32),
        activation: str | Callable[[Tensor], Tensor] = "relu",
        batch_normalization: bool = False,
        dropout: float = 0.0,
    ) -> None:
        self.hidden_units = hidden_units
        self.activation = activation
        self.batch_normalization = batch_normalization
        self.dropout = dropout

    def for_images(self, image_shape: Shape | None) -> DenseNetwork:
        """The network itself.

        Raises
        ------
        ValueError
            For arrays that may be gray images as well as signals.
        """
        check_unambiguous(image_shape)
        return self

    def fewest_weights(self, n_features: int, latent_dim: int, n_params: int) -> int:
        check_sizes("hidden_units", self.hidden_units)
        # As Python's integers: numpy's would wrap around, and a forged file pass for small.
        hidden_units = [int(units) for units in self.hidden_units]
        encoder = (n_features, *hidden_units, 2 * latent_dim)
        decoder = (latent_dim, *reversed(hidden_units), n_features * n_params)
        return sum(a * b for widths in (encoder, decoder) for a, b in itertools.pairwise(widths))

    def build(
        self, n_features: int, latent_dim: int, n_params: int, heads: Heads | None = None
    ) -> tuple[KerasModel, KerasModel]:
        check_sizes("hidden_units", self.hidden_units)
        check_activation(self.activation)
        rows = hidden = keras.Input((n_features,), name="x")
        for position, units in enumerate(self.hidden_units):
            hidden = self._hidden(hidden, units, f"encoder_{position}")
        encoder = keras.Model(rows, with_heads(hidden, latent_dim, heads), name="encoder")

        latents = hidden = keras.Input((latent_dim,), name="z")
        for position, units in enumerate(reversed(self.hidden_units)):
            hidden = self._hidden(hidden, units, f"decoder_{position}")
        outputs = keras.layers.Dense(n_features * n_params, kernel_initializer=glorot(), name="parameters")
        return encoder, keras.Model(latents, outputs(hidden), name="decoder")

    def _hidden(self, x: Tensor, units: int, name: str) -> Tensor:
        use_bias, initializer = not self.batch_normalization, hidden_initializer(self.activation)
        layer = keras.layers.Dense(int(units), use_bias=use_bias, kernel_initializer=initializer, name=name)
        return finish_layer(self, layer(x), name)
