"""`ConvNetwork`: convolutions, for images and signals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import ClassVar

from sklearn.utils._param_validation import Interval, Options, StrOptions

from vae_anomaly.core.backend import keras
from vae_anomaly.core.conventions import warn_user
from vae_anomaly.core.rows import with_channels
from vae_anomaly.core.types import Constraints, KerasClass, KerasModel, Shape, Tensor
from vae_anomaly.networks.base import (
    Heads,
    Network,
    check_activation,
    check_sizes,
    check_unambiguous,
    finish_layer,
    glorot,
    hidden_initializer,
    is_ambiguous,
    with_heads,
)
from vae_anomaly.networks.conv_sizes import (
    Convolution,
    Pair,
    decide_dimensions,
    decide_kernels,
    plan_decoder,
    plan_encoder,
    read_image_shape,
    with_all_axes,
)

__all__ = ["ConvNetwork"]


class ConvNetwork(Network):
    """Convolutional encoder and transposed-convolution decoder, for images and signals.

    Rows are flat images of ``image_shape``, so the network works behind any scikit-learn step. Each
    strided convolution with "same" padding maps a side s to ceil(s / stride); the decoder undoes it
    and crops to the exact side, so that odd sizes and any stride come back in their own shape. A
    transposed convolution without a stride makes the likelihood's parameters in the end.

    With ``dimensions=1`` rows are signals, arrays of shape (length, channels) such as measurements of a few
    sensors over time, and the convolutions run along their length only. Then the default likelihood is a
    Gaussian of values in any unit, scaled channel by channel, and the default score is that of tables:
    nothing is blurred, neither over time nor across channels.

    Parameters
    ----------
    image_shape : tuple (height, width, channels) or None, default=None
        Of signals (length, channels). None takes the shape of the images or signals that the detector is
        fitted on; flat rows are then signals of one channel, with ``dimensions=1``.
    filters : "auto" or tuple of int, default="auto"
        Channels of the encoder's convolutions. "auto" is 16, 32 and so on to 128, for two convolutions, or
        as many as bring the longer side to at most 8 by the automatic strides; or as many as
        ``kernel_sizes`` or ``strides`` lists.
    kernel_sizes : "auto", int or tuple, default="auto"
        Side of the kernels: one for all convolutions, or one for each, where a pair is (height, width). The
        decoder's last layer has the first one. Kernels reach no further than a side. "auto" is 3 for images
        and 7 for signals.
    strides : "auto", int or tuple, default="auto"
        One for all convolutions, or one for each, where a pair is (vertical, horizontal). "auto" halves every
        side of at least 4, and makes signals of at least 4 steps four times shorter.
    dense_units : tuple of int, default=(128,)
        Widths of the dense layers between the convolutions and the latents.
    activation : str or callable, default="relu"
        Any Keras activation. "selu" brings what makes it normalize itself (Klambauer et al. 2017,
        "Self-normalizing neural networks"): LeCun's normal initialization, and `AlphaDropout` for dropout.
    batch_normalization : bool, default=False
        Normalize before each activation.
    dropout : float, default=0.0
        Share of units dropped after each layer in each training step, in [0, 1).
    decoder_filters : "auto" or tuple of int, default="auto"
        Channels of the decoder's transposed convolutions, which undo those of the encoder from the last to
        the first with their kernels and strides; one more makes the likelihood's parameters. "auto" is
        ``filters`` in reverse. With one entry fewer than there are convolutions, the one that undoes the
        first makes the parameters itself: ``filters=(32, 64, 128), decoder_filters=(64, 32)`` is a decoder
        of 64, 32 and, for gray images, 1 channels.
    dimensions : {"auto", 1, 2}, default="auto"
        Along how many axes the convolutions run: 1 for signals, 2 for images. "auto" is 2, and 1 for images
        of width 1. It refuses arrays of shape (n, length, channels) that may be gray images as well as
        signals: of a length of at least 8, with at most 4 channels or at least 8 steps for each.

    Raises
    ------
    ValueError
        When used, for an image shape that doesn't fit the rows, lists of different lengths, or an activation
        that Keras does not know; for arrays that may be signals or images, if ``dimensions="auto"``.

    Examples
    --------
    >>> from vae_anomaly import ConvNetwork
    >>> ConvNetwork(image_shape=(28, 28, 1), filters=(16, 32)).default_latent_dim(784)
    16
    >>> network = ConvNetwork().for_images((64, 48, 3))
    >>> network.filters, network.strides
    ((16, 32, 64), (2, 2, 2))

    Signals of 300 measurements of two sensors:

    >>> network = ConvNetwork(dimensions=1).for_images((300, 2))
    >>> network.filters, network.strides
    ((16, 32, 64), (4, 4, 4))
    """

    _parameter_constraints: ClassVar[Constraints] = {
        "image_shape": [tuple, list, None],
        "filters": [StrOptions({"auto"}), tuple, list],
        "kernel_sizes": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left"), tuple, list],
        "strides": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left"), tuple, list],
        "dense_units": [tuple, list],
        "activation": [str, callable],
        "batch_normalization": ["boolean"],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "decoder_filters": [StrOptions({"auto"}), tuple, list],
        "dimensions": [StrOptions({"auto"}), Options(Integral, {1, 2})],
    }

    def __init__(
        self,
        image_shape: tuple[int, ...] | None = None,
        filters: str | tuple[int, ...] = "auto",
        kernel_sizes: str | int | tuple[int | Pair, ...] = "auto",
        strides: str | int | tuple[int | Pair, ...] = "auto",
        dense_units: tuple[int, ...] = (128,),
        activation: str | Callable[[Tensor], Tensor] = "relu",
        batch_normalization: bool = False,
        dropout: float = 0.0,
        decoder_filters: str | tuple[int, ...] = "auto",
        dimensions: str | int = "auto",
    ) -> None:
        self.image_shape = image_shape
        self.filters = filters
        self.kernel_sizes = kernel_sizes
        self.strides = strides
        self.dense_units = dense_units
        self.activation = activation
        self.batch_normalization = batch_normalization
        self.dropout = dropout
        self.decoder_filters = decoder_filters
        self.dimensions = dimensions

    def for_images(self, image_shape: Shape | None) -> ConvNetwork:
        """The network for images or signals of this shape, or of its own one, with every "auto" decided.

        Raises
        ------
        ValueError
            If it has another shape of its own, or one that is none of an image or a signal; if the shape may
            be that of either.
        """
        own = None if self.image_shape is None else tuple(self.image_shape)
        shape = image_shape if own is None else own
        if shape is None:
            return self
        if own is None and self.dimensions == "auto":
            check_unambiguous(image_shape)
        dimensions = decide_dimensions(self.dimensions, shape)
        if own is None and dimensions == 2:
            shape = with_channels(shape)
        network = type(self)(
            **{**self.get_params(deep=False), "image_shape": shape, "dimensions": dimensions}
        )
        shape = network._image_shape(None)
        if image_shape is not None and shape != with_all_axes(image_shape, dimensions):
            raise ValueError(
                f"ConvNetwork has image_shape={self.image_shape!r}, but X holds "
                f"{'signals' if dimensions == 1 else 'images'} of shape {image_shape} "
                f"{'(length, channels)' if dimensions == 1 else '(height, width, channels)'}: leave "
                "image_shape out, or give it this shape."
            )
        if dimensions == 1:
            _warn_of_channels_first(image_shape)
        network.image_shape = shape[::2] if dimensions == 1 else shape
        convolutions = network._convolutions(None)
        if self.filters == "auto":
            network.filters = tuple(convolution.filters for convolution in convolutions)
        if self.kernel_sizes == "auto":
            network.kernel_sizes = decide_kernels(self.kernel_sizes, dimensions)
        if self.strides == "auto":
            pairs = [convolution.strides for convolution in convolutions]
            network.strides = tuple(
                pair[0] if dimensions == 1 or pair[0] == pair[1] else pair for pair in pairs
            )
        return network

    def default_latent_dim(self, n_features: int, of_pixels: bool = True) -> int:
        """What ``latent_dim="auto"`` means: as many latents as pixels, at most 16."""
        return super().default_latent_dim(n_features, of_pixels=True)

    def shape_of_images(self, image_shape: Shape | None) -> Shape | None:
        return None if self._n_dimensions == 1 else self.image_shape

    def signal_channels(self) -> int | None:
        if self._n_dimensions != 1:
            return None
        return 1 if self.image_shape is None else self._image_shape(None)[2]

    def default_likelihood(self, image_shape: Shape | None) -> str:
        """What ``likelihood="auto"`` means: Gaussian, with one scale for all pixels of an image."""
        return "gaussian" if self._n_dimensions == 1 else super().default_likelihood(image_shape)

    def marks_missing(self) -> bool:
        """No: an image has no place for marks."""
        return False

    def fewest_weights(self, n_features: int, latent_dim: int, n_params: int) -> int:
        check_sizes("dense_units", self.dense_units)
        convolutions, transposed = self._convolutions(n_features), self._transposed(n_features, n_params)
        channels = self._image_shape(n_features)[2]
        sides = convolutions[-1].made if convolutions else transposed[-1].sides
        depth = convolutions[-1].filters if convolutions else channels
        pixels, dense_units = math.prod(sides) * depth, [int(units) for units in self.dense_units]
        chains = [(pixels, *dense_units, 2 * latent_dim), (latent_dim, *reversed(dense_units), pixels)]
        n_weights = sum(a * b for chain in chains for a, b in itertools.pairwise(chain))
        for layers, n_in in ((convolutions, channels), (transposed, depth)):
            for layer in layers:
                n_weights += math.prod(layer.kernel) * n_in * layer.filters
                n_in = layer.filters
        return n_weights

    def build(
        self, n_features: int, latent_dim: int, n_params: int, heads: Heads | None = None
    ) -> tuple[KerasModel, KerasModel]:
        check_sizes("dense_units", self.dense_units)
        check_activation(self.activation)
        convolutions, transposed = self._convolutions(n_features), self._transposed(n_features, n_params)
        image_shape = self._image_shape(n_features)

        rows = keras.Input((n_features,), name="x")
        hidden = keras.layers.Reshape(image_shape, name="image")(rows)
        for position, convolution in enumerate(convolutions):
            hidden = self._convolved(keras.layers.Conv2D, hidden, convolution, f"encoder_conv_{position}")
        flat_shape = hidden.shape[1:]
        hidden = keras.layers.Flatten(data_format="channels_last", name="flat")(hidden)
        for position, units in enumerate(self.dense_units):
            hidden = self._dense(hidden, units, f"encoder_dense_{position}")
        encoder = keras.Model(rows, with_heads(hidden, latent_dim, heads), name="encoder")

        latents = hidden = keras.Input((latent_dim,), name="z")
        for position, units in enumerate(reversed(self.dense_units)):
            hidden = self._dense(hidden, units, f"decoder_dense_{position}")
        hidden = self._dense(hidden, math.prod(flat_shape), "decoder_map")
        hidden = keras.layers.Reshape(flat_shape, name="decoder_image")(hidden)
        *inner, last = transposed
        for position, convolution in zip(reversed(range(len(convolutions))), inner, strict=False):
            name = f"decoder_conv_{position}"
            hidden = self._convolved(keras.layers.Conv2DTranspose, hidden, convolution, name)
            hidden = _cropped(hidden, convolution, f"decoder_crop_{position}")
        layer = _to_parameters(last)(
            last.filters,
            last.kernel,
            strides=last.strides,
            padding="same",
            data_format="channels_last",
            kernel_initializer=glorot(),
            name="parameters",
        )
        images = _cropped(layer(hidden), last, "parameters_crop")
        outputs = keras.layers.Reshape((n_features * n_params,), name="rows")(images)
        return encoder, keras.Model(latents, outputs, name="decoder")

    @property
    def _n_dimensions(self) -> int:
        return decide_dimensions(self.dimensions, self.image_shape)

    def _image_shape(self, n_features: int | None) -> tuple[int, int, int]:
        return read_image_shape(self.image_shape, n_features, self._n_dimensions)

    def _convolutions(self, n_features: int | None) -> list[Convolution]:
        """The encoder's."""
        shape = self._image_shape(n_features)
        return plan_encoder(shape, self.filters, self.kernel_sizes, self.strides, self._n_dimensions)

    def _transposed(self, n_features: int, n_params: int) -> list[Convolution]:
        """The decoder's, of which the last makes the likelihood's parameters."""
        return plan_decoder(
            self._convolutions(n_features),
            self._image_shape(n_features),
            self.decoder_filters,
            self.kernel_sizes,
            self._n_dimensions,
            n_params,
        )

    def _convolved(self, kind: KerasClass, x: Tensor, convolution: Convolution, name: str) -> Tensor:
        layer = kind(
            convolution.filters,
            convolution.kernel,
            strides=convolution.strides,
            padding="same",
            data_format="channels_last",
            use_bias=not self.batch_normalization,
            kernel_initializer=hidden_initializer(self.activation),
            name=name,
        )
        return finish_layer(self, layer(x), name)

    def _dense(self, x: Tensor, units: int, name: str) -> Tensor:
        use_bias, initializer = not self.batch_normalization, hidden_initializer(self.activation)
        layer = keras.layers.Dense(int(units), use_bias=use_bias, kernel_initializer=initializer, name=name)
        return finish_layer(self, layer(x), name)


def _cropped(x: Tensor, convolution: Convolution, name: str) -> Tensor:
    """What a transposed convolution has made, without what is too much."""
    if not any(convolution.excess):
        return x
    crop = tuple((0, excess) for excess in convolution.excess)
    return keras.layers.Cropping2D(crop, data_format="channels_last", name=name)(x)


def _to_parameters(last: Convolution) -> KerasClass:
    """The kind of the decoder's last layer."""
    # A Keras class: importing it loads TensorFlow.
    from vae_anomaly.networks.shifted_conv import MOST_OUTPUTS, ShiftedConv2DTranspose

    # Transposed although it has no stride: of the two forms of one map, its gradient is the cheaper one
    # where a layer has few outputs.
    few = last.filters <= MOST_OUTPUTS and last.strides == (1, 1)
    return ShiftedConv2DTranspose if few else keras.layers.Conv2DTranspose


def _warn_of_channels_first(image_shape: Shape | None) -> None:
    if image_shape is not None and is_ambiguous(image_shape[::-1]):
        length, channels = image_shape
        warn_user(
            f"X holds signals of length {length} with {channels} channels, by its shape "
            f"(n, {length}, {channels}). If the channels come first, hand in np.moveaxis(X, 1, -1).",
            UserWarning,
        )
