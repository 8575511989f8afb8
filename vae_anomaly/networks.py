"""Networks: specifications that build an encoder and a decoder (a user's own models: `keras_network`).

A network is a scikit-learn style parameter object: it holds hyperparameters, can be cloned, printed
and grid-searched (``network__hidden_units``), and builds its Keras models only when asked. It knows
layers and shapes; it does not know what its raw outputs mean (the likelihood does).

Rows in, rows out: an encoder takes ``(n_rows, n_features)`` and returns ``[z_mean, z_log_var]``, both
``(n_rows, latent_dim)``; a decoder takes ``(n_rows, latent_dim)`` and returns
``(n_rows, n_features * n_params)``, the parameters of a feature next to each other.

To add one: subclass `Network`, write ``build``, and pass an instance as ``network=``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar

from sklearn.utils._param_validation import Interval

from vae_anomaly.backend import keras
from vae_anomaly.likelihoods import Gaussian, Likelihood
from vae_anomaly.rows import with_channels
from vae_anomaly.spec import Spec

__all__ = ["ConvNetwork", "DenseNetwork", "Network"]

# The standard deviation of a pixel in [0, 1]. With a scale for each pixel, or a logit, pixels that are nearly
# always black decide over an image (`benchmarks/results/images.md`).
_SCALE_OF_PIXELS = 0.3


class Network(Spec):
    """Base class of the networks."""

    @property
    def starts_from_new_weights(self) -> bool:
        """Whether a fit draws new weights, or starts from those that `build` returns."""
        return True

    def for_images(self, image_shape: tuple[int, ...] | None) -> Network:
        """The network to use for images of this shape, or for rows of a table (None)."""
        return self

    def default_latent_dim(self, n_features: int) -> int:
        """What ``latent_dim="auto"`` means: as many latents as features, at most 8."""
        return min(n_features, 8)

    def shape_of_images(self, image_shape: tuple[int, ...] | None) -> Any:
        """(height, width, channels) of the images that its rows are, or None for rows of a table.

        ``image_shape`` is the shape of the images that X held, or None.
        """
        return None if image_shape is None else with_channels(image_shape)

    def default_likelihood(self, image_shape: tuple[int, ...] | None) -> str | Likelihood:
        """What ``likelihood="auto"`` means: Gaussian, for images of a scale that all pixels share."""
        return Gaussian(scale=_SCALE_OF_PIXELS) if self.shape_of_images(image_shape) else "gaussian"

    def fewest_weights(self, n_features: int, latent_dim: int, n_params: int) -> int:
        """A bound from below for the number of weights in what `build` returns, known without building it."""
        return 0

    def build(self, n_features: int, latent_dim: int, n_params: int) -> tuple[Any, Any]:
        """Return a new Keras encoder and decoder.

        Parameters
        ----------
        n_features : int
            The width of a row.
        latent_dim : int
            The number of latent dimensions.
        n_params : int
            How many numbers the likelihood wants for each feature.

        Returns
        -------
        encoder : keras.Model, (n_rows, n_features) -> [z_mean, z_log_var]
        decoder : keras.Model, (n_rows, latent_dim) -> (n_rows, n_features * n_params)
        """
        raise NotImplementedError

    def build_apart(self, n_inputs: int, n_outputs: int, latent_dim: int) -> tuple[Any, Any]:
        """A new encoder and decoder whose widths differ: of mixed tables, or with marks for missing values.

        Returns
        -------
        encoder : keras.Model, (n_rows, n_inputs) -> [z_mean, z_log_var]
        decoder : keras.Model, (n_rows, latent_dim) -> (n_rows, n_outputs)
        """
        return self.build(n_inputs, latent_dim, 1)[0], self.build(n_outputs, latent_dim, 1)[1]

    def marks_missing(self) -> bool:
        """Whether the encoder is to be told which values are missing, by one more input for each feature."""
        return True


class DenseNetwork(Network):
    """Fully connected encoder and mirrored decoder.

    Parameters
    ----------
    hidden_units : tuple of int, default=(64, 32)
        Widths of the encoder's hidden layers; the decoder has the same in reverse. ``()`` is the
        linear model: probabilistic PCA with a Gaussian likelihood of one fixed scale, factor analysis
        with a scale for each feature, logistic factor analysis with a Bernoulli likelihood.
    activation : str or callable, default="relu"
        Any Keras activation.
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

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "hidden_units": [tuple, list],
        "activation": [str, callable],
        "batch_normalization": ["boolean"],
        "dropout": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        hidden_units: tuple[int, ...] = (64, 32),
        activation: str | Callable[[Any], Any] = "relu",
        batch_normalization: bool = False,
        dropout: float = 0.0,
    ) -> None:
        self.hidden_units = hidden_units
        self.activation = activation
        self.batch_normalization = batch_normalization
        self.dropout = dropout

    def fewest_weights(self, n_features: int, latent_dim: int, n_params: int) -> int:
        _check_sizes("hidden_units", self.hidden_units)
        encoder = (n_features, *self.hidden_units, 2 * latent_dim)
        decoder = (latent_dim, *reversed(self.hidden_units), n_features * n_params)
        return sum(a * b for widths in (encoder, decoder) for a, b in itertools.pairwise(widths))

    def build(self, n_features: int, latent_dim: int, n_params: int) -> tuple[Any, Any]:
        _check_sizes("hidden_units", self.hidden_units)
        _check_activation(self.activation)
        rows = hidden = keras.Input((n_features,), name="x")
        for position, units in enumerate(self.hidden_units):
            hidden = self._hidden(hidden, units, f"encoder_{position}")
        encoder = keras.Model(rows, _posterior(hidden, latent_dim), name="encoder")

        latents = hidden = keras.Input((latent_dim,), name="z")
        for position, units in enumerate(reversed(self.hidden_units)):
            hidden = self._hidden(hidden, units, f"decoder_{position}")
        outputs = keras.layers.Dense(n_features * n_params, kernel_initializer=_glorot(), name="parameters")
        return encoder, keras.Model(latents, outputs(hidden), name="decoder")

    def _hidden(self, x: Any, units: int, name: str) -> Any:
        x = keras.layers.Dense(
            int(units), use_bias=not self.batch_normalization, kernel_initializer=_glorot(), name=name
        )(x)
        return _after(self, x, name)


class ConvNetwork(Network):
    """Convolutional encoder and mirrored transposed-convolution decoder, for images.

    Rows are flat images of ``image_shape``, so the network works behind any scikit-learn step. Each
    strided convolution with "same" padding maps a side s to ceil(s / stride); the decoder undoes it
    and crops to the exact side, so that odd sizes and any stride come back in their own shape.

    Parameters
    ----------
    image_shape : tuple (height, width, channels) or None, default=None
        None takes the shape of the images that the detector is fitted on.
    filters : tuple of int, default=(32, 64)
        Channels of the encoder's convolutions; the decoder has the same in reverse.
    kernel_size : int, default=3
        Side of every convolution's kernel.
    strides : int or tuple of int, default=2
        One stride for all convolutions, or one for each.
    dense_units : tuple of int, default=(128,)
        Widths of the dense layers between the convolutions and the latents.
    activation : str or callable, default="relu"
        Any Keras activation.
    batch_normalization : bool, default=False
        Normalize before each activation.
    dropout : float, default=0.0
        Share of units dropped after each layer in each training step, in [0, 1).

    Examples
    --------
    >>> from vae_anomaly import ConvNetwork
    >>> ConvNetwork(image_shape=(28, 28, 1), filters=(16, 32)).default_latent_dim(784)
    16
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "image_shape": [tuple, list, None],
        "filters": [tuple, list],
        "kernel_size": [Interval(Integral, 1, None, closed="left")],
        "strides": [Interval(Integral, 1, None, closed="left"), tuple, list],
        "dense_units": [tuple, list],
        "activation": [str, callable],
        "batch_normalization": ["boolean"],
        "dropout": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None = None,
        filters: tuple[int, ...] = (32, 64),
        kernel_size: int = 3,
        strides: int | tuple[int, ...] = 2,
        dense_units: tuple[int, ...] = (128,),
        activation: str | Callable[[Any], Any] = "relu",
        batch_normalization: bool = False,
        dropout: float = 0.0,
    ) -> None:
        self.image_shape = image_shape
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.dense_units = dense_units
        self.activation = activation
        self.batch_normalization = batch_normalization
        self.dropout = dropout

    def for_images(self, image_shape: tuple[int, ...] | None) -> ConvNetwork:
        """The network itself, with the images' shape if it has none of its own."""
        if self.image_shape is not None or image_shape is None:
            return self
        return ConvNetwork(**{**self.get_params(deep=False), "image_shape": image_shape})

    def default_latent_dim(self, n_features: int) -> int:
        """What ``latent_dim="auto"`` means: as many latents as pixels, at most 16."""
        return min(n_features, 16)

    def shape_of_images(self, image_shape: tuple[int, ...] | None) -> Any:
        return self.image_shape

    def marks_missing(self) -> bool:
        """No: an image has no place for marks."""
        return False

    def fewest_weights(self, n_features: int, latent_dim: int, n_params: int) -> int:
        _check_sizes("filters", self.filters)
        _check_sizes("dense_units", self.dense_units)
        *_, channels = self._image_shape(n_features)
        (height, width), last = self._sides(n_features)[-1], (channels, *self.filters)[-1]
        pixels = height * width * last
        chains = [
            (pixels, *self.dense_units, 2 * latent_dim),
            (latent_dim, *reversed(self.dense_units), pixels),
        ]
        kernels = [(channels, *self.filters), (last, *reversed(self.filters), channels * n_params)]
        dense, convolutions = (
            sum(a * b for chain in kind for a, b in itertools.pairwise(chain)) for kind in (chains, kernels)
        )
        return dense + int(self.kernel_size) ** 2 * convolutions

    def build(self, n_features: int, latent_dim: int, n_params: int) -> tuple[Any, Any]:
        _check_sizes("filters", self.filters)
        _check_sizes("dense_units", self.dense_units)
        _check_activation(self.activation)
        height, width, channels = self._image_shape(n_features)
        strides = self._strides()

        rows = keras.Input((n_features,), name="x")
        hidden = keras.layers.Reshape((height, width, channels), name="image")(rows)
        sides = self._sides(n_features)
        for position, (filters, stride) in enumerate(zip(self.filters, strides, strict=True)):
            name = f"encoder_conv_{position}"
            layer = self._convolution(keras.layers.Conv2D, filters, stride, name)
            hidden = _after(self, layer(hidden), name)
        hidden = keras.layers.Flatten(data_format="channels_last", name="flat")(hidden)
        for position, units in enumerate(self.dense_units):
            hidden = self._dense(hidden, units, f"encoder_dense_{position}")
        encoder = keras.Model(rows, _posterior(hidden, latent_dim), name="encoder")

        latents = hidden = keras.Input((latent_dim,), name="z")
        for position, units in enumerate(reversed(self.dense_units)):
            hidden = self._dense(hidden, units, f"decoder_dense_{position}")
        depth = self.filters[-1] if self.filters else channels
        hidden = self._dense(hidden, sides[-1][0] * sides[-1][1] * depth, "decoder_map")
        hidden = keras.layers.Reshape((*sides[-1], depth), name="decoder_image")(hidden)
        for position in reversed(range(len(self.filters))):
            name = f"decoder_conv_{position}"
            layer = self._convolution(
                keras.layers.Conv2DTranspose, self.filters[position], strides[position], name
            )
            hidden = _after(self, layer(hidden), name)
            excess = [
                grown * strides[position] - side
                for grown, side in zip(sides[position + 1], sides[position], strict=True)
            ]
            if any(excess):
                crop = ((0, excess[0]), (0, excess[1]))
                hidden = keras.layers.Cropping2D(
                    crop, data_format="channels_last", name=f"decoder_crop_{position}"
                )(hidden)
        # Transposed although it has no stride: of the two forms of one map, its gradient is the cheaper one
        # where a layer has few outputs.
        layer = keras.layers.Conv2DTranspose(
            channels * n_params,
            int(self.kernel_size),
            padding="same",
            data_format="channels_last",
            kernel_initializer=_glorot(),
            name="parameters",
        )
        outputs = keras.layers.Reshape((n_features * n_params,), name="rows")(layer(hidden))
        return encoder, keras.Model(latents, outputs, name="decoder")

    def _image_shape(self, n_features: int) -> tuple[int, int, int]:
        shape = self.image_shape
        if shape is None or len(shape) != 3 or math.prod(shape) != n_features:
            raise ValueError(
                f"ConvNetwork needs image_shape=(height, width, channels) with a product of {n_features}, "
                f"the number of features in a row; received image_shape={shape!r}."
            )
        return shape

    def _sides(self, n_features: int) -> list[tuple[int, int]]:
        """Height and width before and after each convolution of the encoder."""
        height, width, _ = self._image_shape(n_features)
        sides = [(height, width)]
        for stride in self._strides():
            sides.append((math.ceil(sides[-1][0] / stride), math.ceil(sides[-1][1] / stride)))
        return sides

    def _strides(self) -> tuple[int, ...]:
        if not isinstance(self.strides, (tuple, list)):
            return (int(self.strides),) * len(self.filters)
        _check_sizes("strides", self.strides)
        if len(self.strides) != len(self.filters):
            raise ValueError(
                f"ConvNetwork needs one stride for each of its {len(self.filters)} filters {self.filters!r}, "
                f"or one for all; received strides={self.strides!r}."
            )
        return tuple(int(stride) for stride in self.strides)

    def _convolution(self, layer: Any, filters: int, stride: int, name: str) -> Any:
        return layer(
            int(filters),
            int(self.kernel_size),
            strides=stride,
            padding="same",
            data_format="channels_last",
            use_bias=not self.batch_normalization,
            kernel_initializer=_glorot(),
            name=name,
        )

    def _dense(self, x: Any, units: int, name: str) -> Any:
        use_bias = not self.batch_normalization
        layer = keras.layers.Dense(int(units), use_bias=use_bias, kernel_initializer=_glorot(), name=name)
        return _after(self, layer(x), name)


def _glorot() -> Any:
    """An initializer with a seed of its own: Keras' default draws one from Python's global generator.

    Every fit replaces the seed by one derived from ``random_state``.
    """
    return keras.initializers.GlorotUniform(seed=0)


def initializer_of(layer: Any, name: str) -> Any:
    """The layer's initializer for its variable of this name, under any of Keras' names for it, or None."""
    stems = (name, name.removesuffix("_kernel"), *(["depthwise"] if name == "kernel" else []))
    return next(filter(None, (getattr(layer, f"{stem}_initializer", None) for stem in stems)), None)


def _posterior(hidden: Any, latent_dim: int) -> list[Any]:
    return [
        keras.layers.Dense(latent_dim, kernel_initializer=_glorot(), name=name)(hidden)
        for name in ("z_mean", "z_log_var")
    ]


def _after(spec: DenseNetwork | ConvNetwork, x: Any, name: str) -> Any:
    """What follows a layer's weights: normalization, activation, dropout."""
    if spec.batch_normalization:
        # Keras' momentum of 0.99 needs hundreds of steps to forget its start; a short fit has fewer.
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_normalization")(x)
    x = keras.layers.Activation(spec.activation, name=f"{name}_activation")(x)
    if spec.dropout:
        x = keras.layers.Dropout(spec.dropout, seed=0, name=f"{name}_dropout")(x)
    return x


def _check_sizes(name: str, sizes: Any) -> None:
    for size in sizes:
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name} must hold positive integers; received {name}={sizes!r}.")


def _check_activation(activation: Any) -> None:
    if isinstance(activation, str):
        try:
            keras.activations.get(activation)
        except ValueError:
            known = sorted(name for name in dir(keras.activations) if name.islower() and name[0] != "_")
            choices = [name for name in known if name not in {"deserialize", "get", "serialize"}]
            raise ValueError(
                f"activation must be a Keras activation, one of {choices}, or a callable; "
                f"received {activation!r}."
            ) from None


#: Every network that has a name.
NETWORKS: dict[str, type[Network]] = {"dense": DenseNetwork, "conv": ConvNetwork}


def resolve(network: str | Network) -> Network:
    """The network with this name, or the instance itself."""
    if not isinstance(network, str):
        return network
    if network not in NETWORKS:
        raise ValueError(f"network must be one of {['auto', *NETWORKS]} or a Network; received {network!r}.")
    return NETWORKS[network]()
