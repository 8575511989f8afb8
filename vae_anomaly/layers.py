"""Public Keras layers: the steps that turn an encoder and a decoder into a VAE.

`Sampling` and `KLDivergence` are those of the Gaussian posterior. `FlowSampling` does both for a flow, and
`GumbelSoftmax` draws categories. All are serializable, work in any Keras model, and are thin over
`vae_anomaly.posteriors`.
"""

from __future__ import annotations

import math
from numbers import Real

from vae_anomaly.core.backend import keras
from vae_anomaly.core.spec import Part
from vae_anomaly.core.types import Initializer, Layer, LayerShape, Tensor, Values
from vae_anomaly.core.weights import Weight
from vae_anomaly.flows import Transforms
from vae_anomaly.posteriors import Flow
from vae_anomaly.posteriors.categorical import gumbel_softmax, straight_through
from vae_anomaly.posteriors.gaussian import kl_divergence, reparameterize

__all__ = ["FlowSampling", "GumbelSoftmax", "KLDivergence", "Sampling"]


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


class _WeightedDivergence(keras.layers.Layer):  # type: ignore[misc]
    """Base class of the layers that add a divergence to the model's loss, with a weight that can change."""

    def __init__(self, weight: float = 1.0, **kwargs: object) -> None:
        super().__init__(**kwargs)
        # A number would be compiled into the program that trains.
        self._weight = keras.Variable(
            _check_weight(type(self).__name__, weight),
            dtype="float32",
            trainable=False,
            autocast=False,
            name="weight",
        )
        self._kl = keras.metrics.Mean(name="kl", dtype="float32")

    @property
    def weight(self) -> float:
        """What multiplies the divergence."""
        return float(self._weight.numpy())

    @weight.setter
    def weight(self, weight: float) -> None:
        self._weight.assign(_check_weight(type(self).__name__, weight))

    def add_divergence(self, kl: Tensor) -> None:
        """Add the mean of a divergence of each row to the loss, and show it as a metric."""
        self._kl.update_state(kl)
        self.add_loss(keras.ops.cast(self._weight * keras.ops.mean(kl), keras.config.floatx()))

    def get_config(self) -> Values:
        """The layer's settings, from which `from_config` makes an equal layer."""
        return {**super().get_config(), "weight": self.weight}


@keras.saving.register_keras_serializable(package="vae_anomaly")
class KLDivergence(_WeightedDivergence):
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

    def build(self, input_shape: LayerShape) -> None:
        """Check that ``z_mean`` and ``z_log_var`` have one shape; there are no weights."""
        _check_pair(self, input_shape)
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        """Return ``inputs``, the pair (z_mean, z_log_var), unchanged."""
        dtype = _precise_dtype()
        divergence = kl_divergence(*(keras.ops.cast(value, dtype) for value in inputs))
        self.add_divergence(keras.ops.sum(divergence, axis=tuple(range(1, len(divergence.shape)))))
        return inputs

    def compute_output_shape(self, input_shape: LayerShape) -> LayerShape:
        """The shapes of the inputs."""
        return input_shape


@keras.saving.register_keras_serializable(package="vae_anomaly")
class FlowSampling(_WeightedDivergence):
    r"""Draw z from a flow posterior, and add KL(q(z|x) || N(0, I)) to the model's loss.

    It takes the place of both `Sampling` and `KLDivergence`. The divergence has no closed form: it is the
    mean over the rows of log q(z|x) - log p(z) at the z that are drawn, in nats, in float32 under any dtype
    policy. Its mean over an epoch, before the weight, is a metric of the model, "kl". The log-variance is
    bounded to (-10, 10), as that of `posteriors.Gaussian`.

    Parameters
    ----------
    transforms : name or list of Transform, default="realnvp"
        As of `posteriors.Flow`.
    weight : float, default=1.0
        Multiplies the divergence, at least 0; can be assigned to anew as that of `KLDivergence`.
    seed : int or None, default=None
        Seeds the layer's own noise; None draws a seed from Keras' global generator.
    **kwargs
        Passed to `keras.layers.Layer`.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.layers import FlowSampling
    >>> layer = FlowSampling("planar", seed=0)
    >>> z = layer([np.zeros((5, 2)), np.zeros((5, 2)), np.ones((5, 8))])
    >>> tuple(z.shape), len(layer.losses)
    ((5, 2), 1)
    """

    def __init__(
        self,
        transforms: str | Transforms = "realnvp",
        weight: float = 1.0,
        seed: int | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(weight, **kwargs)
        self.transforms, self.seed = transforms, seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        Flow(transforms)._chain  # noqa: B018, says what is wrong

    def build(self, input_shape: LayerShape) -> None:
        """Make the weights of the transforms, for latents and a context of this width."""
        if not isinstance(input_shape, (list, tuple)) or len(input_shape) != 3:
            raise ValueError(
                "FlowSampling takes [z_mean, z_log_var, context], two tensors of one shape and one more; "
                f"received shape(s) {input_shape}."
            )
        _check_pair(self, list(input_shape[:2]))
        latent_dim, n_context = int(input_shape[0][-1]), int(input_shape[2][-1])
        self._posterior = Flow(self.transforms, n_context)
        self._posterior.check(latent_dim)
        self._own = {
            name: self.add_weight(
                shape=weight.shape,
                initializer=_initializer_of(weight),
                dtype="float32",
                autocast=False,
                name=name,
            )
            for name, weight in self._posterior.weights(latent_dim).items()
        }
        self.built = True

    def call(self, inputs: Tensor, noise: Tensor = None) -> Tensor:
        """Return z, shaped as ``z_mean``.

        Parameters
        ----------
        inputs : [z_mean, z_log_var, context], of shapes (n_rows, latent_dim) and (n_rows, n_context)
        noise : tensor of shape (n_rows, latent_dim) or None
            The standard normal draws to use; None makes fresh ones at each call.
        """
        if noise is None:
            noise = keras.random.normal(keras.ops.shape(inputs[0]), seed=self.seed_generator)
        dtype = _precise_dtype()
        weights = {name: keras.ops.cast(value, dtype) for name, value in self._own.items()}
        context = self._posterior.context([keras.ops.cast(value, dtype) for value in inputs])
        z, log_q = self._posterior.sample(context, keras.ops.cast(noise, dtype), weights)
        self.add_divergence(log_q - self._posterior.standard_log_prob(z))
        return keras.ops.cast(z, self.compute_dtype)

    def compute_output_shape(self, input_shape: LayerShape) -> LayerShape:
        """The shape of z: the shape of ``z_mean``."""
        return input_shape[0]

    def get_config(self) -> Values:
        """The layer's settings, from which `from_config` makes an equal layer."""
        own: Values = {"transforms": self.transforms, "seed": self.seed}
        if not isinstance(self.transforms, str):
            own["transforms"] = [transform.config() for transform in self.transforms]
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: Values) -> FlowSampling:
        """The layer that `get_config` describes."""
        transforms = config["transforms"]
        if not isinstance(transforms, str):
            transforms = [Part.from_config(transform) for transform in transforms]
        return cls(**{**config, "transforms": transforms})


@keras.saving.register_keras_serializable(package="vae_anomaly")
class GumbelSoftmax(keras.layers.Layer):  # type: ignore[misc]
    r"""Draw relaxed categories from logits, along the last axis (Jang et al. 2017; Maddison et al. 2017).

    .. math:: z = \operatorname{softmax}\bigl((\text{logits} + g) / \tau\bigr)

    with noise g of the standard Gumbel distribution.

    Parameters
    ----------
    temperature : float, default=1.0
        Above 0. Assigning to the attribute acts at once, also on a model that is compiled: a callback can
        anneal it.
    straight_through : bool, default=False
        Whether z is one-hot and has the gradient of the relaxed draw.
    seed : int or None, default=None
        Seeds the layer's own noise; None draws a seed from Keras' global generator.
    **kwargs
        Passed to `keras.layers.Layer`.

    Raises
    ------
    TypeError, ValueError
        If ``temperature`` is not a number above 0.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.layers import GumbelSoftmax
    >>> z = GumbelSoftmax(straight_through=True, seed=0)(np.zeros((5, 3, 4)))
    >>> z.shape == (5, 3, 4), bool(np.all(np.sum(z, axis=-1) == 1))
    (True, True)
    """

    def __init__(
        self,
        temperature: float = 1.0,
        straight_through: bool = False,
        seed: int | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.straight_through, self.seed = straight_through, seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self._temperature = keras.Variable(
            _check_temperature(temperature),
            dtype="float32",
            trainable=False,
            autocast=False,
            name="temperature",
        )

    @property
    def temperature(self) -> float:
        """The temperature of the draws."""
        return float(self._temperature.numpy())

    @temperature.setter
    def temperature(self, temperature: float) -> None:
        self._temperature.assign(_check_temperature(temperature))

    def build(self, input_shape: LayerShape) -> None:
        """There are no weights to learn."""
        self.built = True

    def call(self, logits: Tensor) -> Tensor:
        """Return z, shaped as the logits."""
        dtype = _precise_dtype()
        # Never 0 nor 1, whose logarithms are no numbers.
        uniform = keras.random.uniform(
            keras.ops.shape(logits), 1e-7, 1 - 1e-7, dtype=dtype, seed=self.seed_generator
        )
        gumbel = -keras.ops.log(-keras.ops.log(uniform))
        temperature = keras.ops.cast(self._temperature, dtype)
        z = gumbel_softmax(keras.ops.cast(logits, dtype), gumbel, temperature)
        return keras.ops.cast(straight_through(z) if self.straight_through else z, self.compute_dtype)

    def compute_output_shape(self, input_shape: LayerShape) -> LayerShape:
        """The shape of the logits."""
        return input_shape

    def get_config(self) -> Values:
        """The layer's settings, from which `from_config` makes an equal layer."""
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "straight_through": self.straight_through,
            "seed": self.seed,
        }


def _precise_dtype() -> str:
    """What divergences are computed in, whatever the dtype policy."""
    # Keras adds losses up in its floatx and refuses others; mixed policies leave that float32.
    return "float64" if keras.config.floatx() == "float64" else "float32"


def _initializer_of(weight: Weight) -> str | Initializer:
    if weight.initial == "normal":
        return keras.initializers.RandomNormal(stddev=1.0)
    return "glorot_uniform" if weight.initial == "glorot" else "zeros"


def _check_temperature(temperature: float) -> float:
    if not isinstance(temperature, Real):
        raise TypeError(f"GumbelSoftmax needs a number as temperature; received {temperature!r}.")
    if not 0 < temperature < math.inf:
        raise ValueError(f"GumbelSoftmax needs a finite temperature above 0; received {temperature!r}.")
    return float(temperature)


def _check_weight(layer: str, weight: float) -> float:
    if not isinstance(weight, Real):
        raise TypeError(
            f"{layer} needs a number as weight, which can be assigned to anew at any time; received "
            f"{weight!r}."
        )
    if not 0 <= weight < math.inf:
        raise ValueError(f"{layer} needs a finite weight of at least 0; received {weight!r}.")
    return float(weight)


def _check_pair(layer: Layer, input_shape: LayerShape) -> None:
    pair = isinstance(input_shape, (list, tuple)) and len(input_shape) == 2
    if not pair or isinstance(input_shape[0], (int, type(None))) or input_shape[0] != input_shape[1]:
        raise ValueError(
            f"{type(layer).__name__} takes the pair [z_mean, z_log_var], two tensors of one shape; "
            f"received shape(s) {input_shape}."
        )
