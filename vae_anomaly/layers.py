"""Public Keras layers: the two steps that turn an encoder and a decoder into a VAE.

Both are serializable, work in any Keras model, and are thin over `vae_anomaly.posteriors`.
"""

from __future__ import annotations

import math
from numbers import Real

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Layer, LayerShape, Tensor, Values
from vae_anomaly.posteriors.gaussian import kl_divergence, reparameterize

__all__ = ["KLDivergence", "Sampling"]


@keras.saving.register_keras_serializable(package="vae_anomaly")
class Sampling(keras.layers.Layer):  # type: ignore[misc]
    r"""Draw z from the posterior by the reparameterization trick.

    .. math:: z = z_{mean} + e^{z_{log\,var} / 2} \, \varepsilon, \qquad \varepsilon \sim N(0, I)

    (Kingma & Welling 2014, "Auto-encoding variational Bayes".)

    Parameters
    ----------
    seed : int or None, default=None
        Seeds the layer's own noise; None draws a seed from Keras' global generator.
    **kwargs
        Passed to `keras.layers.Layer`.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.layers import Sampling
    >>> z_mean, z_log_var = np.zeros((5, 2)), np.zeros((5, 2))
    >>> tuple(Sampling(seed=0)([z_mean, z_log_var]).shape)
    (5, 2)
    """

    def __init__(self, seed: int | None = None, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: LayerShape) -> None:
        """Check that ``z_mean`` and ``z_log_var`` have one shape; there are no weights."""
        _check_pair(self, input_shape)
        self.built = True

    def call(self, inputs: Tensor, noise: Tensor = None) -> Tensor:
        """Return z, shaped as ``z_mean``.

        Parameters
        ----------
        inputs : pair (z_mean, z_log_var) of tensors of one shape (..., latent_dim)
        noise : tensor that broadcasts against them, or None
            The standard normal draws to use; None makes fresh ones at each call.
        """
        z_mean, z_log_var = inputs
        if noise is None:
            noise = keras.random.normal(keras.ops.shape(z_mean), dtype=z_mean.dtype, seed=self.seed_generator)
        return reparameterize(z_mean, z_log_var, noise)

    def compute_output_shape(self, input_shape: LayerShape) -> LayerShape:
        """The shape of z: the shape of ``z_mean``."""
        return input_shape[0]

    def get_config(self) -> Values:
        """The layer's settings, from which `from_config` makes an equal layer."""
        return {**super().get_config(), "seed": self.seed}


@keras.saving.register_keras_serializable(package="vae_anomaly")
class KLDivergence(keras.layers.Layer):  # type: ignore[misc]
    r"""Add KL(q(z|x) || N(0, I)) to the model's loss and pass the inputs through.

    The closed form, summed over latent dimensions (all axes but the first) and averaged over rows, in nats:

    .. math:: \tfrac12 \sum_j \left(z_{mean,j}^2 + e^{z_{log\,var,j}} - 1 - z_{log\,var,j}\right)

    It is computed in float32 under any dtype policy, and in float64 if that is ``keras.config.floatx()``.
    Its mean over an epoch, before the weight, is a metric of the model, "kl".

    Train the model it stands in with a reconstruction loss that is *summed* over features, or the two
    terms are not on the same scale.

    Parameters
    ----------
    weight : float, default=1.0
        Multiplies the divergence (the beta of a beta-VAE), at least 0. Assigning to the attribute acts at
        once, also on a model that is compiled: a callback can anneal it.
    **kwargs
        Passed to `keras.layers.Layer`.

    Raises
    ------
    TypeError, ValueError
        If ``weight`` is not a number of at least 0.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.layers import KLDivergence
    >>> layer = KLDivergence()
    >>> z_mean, z_log_var = layer([np.ones((5, 2)), np.zeros((5, 2))])
    >>> float(layer.losses[0])
    1.0
    """

    def __init__(self, weight: float = 1.0, **kwargs: object) -> None:
        super().__init__(**kwargs)
        # A number would be compiled into the program that trains.
        self._weight = keras.Variable(
            _check_weight(weight), dtype="float32", trainable=False, autocast=False, name="weight"
        )
        self._kl = keras.metrics.Mean(name="kl", dtype="float32")

    @property
    def weight(self) -> float:
        """What multiplies the divergence."""
        return float(self._weight.numpy())

    @weight.setter
    def weight(self, weight: float) -> None:
        self._weight.assign(_check_weight(weight))

    def build(self, input_shape: LayerShape) -> None:
        """Check that ``z_mean`` and ``z_log_var`` have one shape; there are no weights."""
        _check_pair(self, input_shape)
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        """Return ``inputs``, the pair (z_mean, z_log_var), unchanged."""
        # Keras adds losses up in its floatx and refuses others; mixed policies leave that float32.
        floatx = keras.config.floatx()
        dtype = "float64" if floatx == "float64" else "float32"
        divergence = kl_divergence(*(keras.ops.cast(value, dtype) for value in inputs))
        kl = keras.ops.sum(divergence, axis=tuple(range(1, len(divergence.shape))))
        self._kl.update_state(kl)
        self.add_loss(keras.ops.cast(self._weight * keras.ops.mean(kl), floatx))
        return inputs

    def compute_output_shape(self, input_shape: LayerShape) -> LayerShape:
        """The shapes of the inputs."""
        return input_shape

    def get_config(self) -> Values:
        """The layer's settings, from which `from_config` makes an equal layer."""
        return {**super().get_config(), "weight": self.weight}


def _check_weight(weight: float) -> float:
    if not isinstance(weight, Real):
        raise TypeError(
            f"KLDivergence needs a number as weight, which can be assigned to anew at any time; received "
            f"{weight!r}."
        )
    if not 0 <= weight < math.inf:
        raise ValueError(f"KLDivergence needs a finite weight of at least 0; received {weight!r}.")
    return float(weight)


def _check_pair(layer: Layer, input_shape: LayerShape) -> None:
    pair = isinstance(input_shape, (list, tuple)) and len(input_shape) == 2
    if not pair or isinstance(input_shape[0], (int, type(None))) or input_shape[0] != input_shape[1]:
        raise ValueError(
            f"{type(layer).__name__} takes the pair [z_mean, z_log_var], two tensors of one shape; "
            f"received shape(s) {input_shape}."
        )
