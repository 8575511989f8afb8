"""`ConvNetwork`: convolutions, for images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar

from sklearn.utils._param_validation import Interval

from vae_anomaly.backend import keras
from vae_anomaly.networks.base import Network, after, check_activation, check_sizes, glorot, posterior

__all__ = ["ConvNetwork"]


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

    def takes_images(self, image_shape: tuple[int, ...] | None) -> bool:
        return True

    def marks_missing(self) -> bool:
        """No: an image has no place for marks."""
        return False

    def fewest_weights(self, n_features: int, latent_dim: int, n_params: int) -> int:
        check_sizes("filters", self.filters)
        check_sizes("dense_units", self.dense_units)
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
        check_sizes("filters", self.filters)
        check_sizes("dense_units", self.dense_units)
        check_activation(self.activation)
        height, width, channels = self._image_shape(n_features)
        strides = self._strides()

        rows = keras.Input((n_features,), name="x")
        hidden = keras.layers.Reshape((height, width, channels), name="image")(rows)
        sides = self._sides(n_features)
        for position, (filters, stride) in enumerate(zip(self.filters, strides, strict=True)):
            name = f"encoder_conv_{position}"
            layer = self._convolution(keras.layers.Conv2D, filters, stride, name)
            hidden = after(self, layer(hidden), name)
        hidden = keras.layers.Flatten(data_format="channels_last", name="flat")(hidden)
        for position, units in enumerate(self.dense_units):
            hidden = self._dense(hidden, units, f"encoder_dense_{position}")
        encoder = keras.Model(rows, posterior(hidden, latent_dim), name="encoder")

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
            hidden = after(self, layer(hidden), name)
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
            kernel_initializer=glorot(),
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
        check_sizes("strides", self.strides)
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
            kernel_initializer=glorot(),
            name=name,
        )

    def _dense(self, x: Any, units: int, name: str) -> Any:
        use_bias = not self.batch_normalization
        layer = keras.layers.Dense(int(units), use_bias=use_bias, kernel_initializer=glorot(), name=name)
        return after(self, layer(x), name)
