"""`ShiftedConv2DTranspose`: the layer that makes images of one or two channels out of many.

The same map as Keras' transposed convolution without strides. TensorFlow's kernels compute sixteen outputs
where a layer has one; here a matrix product makes what every pixel gives to every pixel in reach, and the
shifted images are added up.
"""

from __future__ import annotations

from collections.abc import Callable

from vae_anomaly.core.backend import keras, tf
from vae_anomaly.core.types import Tensor

__all__ = ["MOST_OUTPUTS", "ShiftedConv2DTranspose"]

#: From three outputs on, TensorFlow's own kernel is the faster one.
MOST_OUTPUTS = 2


@keras.saving.register_keras_serializable(package="vae_anomaly")
class ShiftedConv2DTranspose(keras.layers.Conv2DTranspose):  # type: ignore[misc]
    r"""A transposed convolution without strides, of sides that stay as they are, for few outputs.

    .. math:: y_{i,j,o} = b_o + \sum_{k,l,c} w_{k,l,o,c} \, x_{i-k+p,\, j-l+q,\, c}

    with :math:`p` and :math:`q` half of what the kernel's sides exceed 1 by, rounded down.

    Its parameters are those of `keras.layers.Conv2DTranspose`, of which it takes ``strides=1``,
    ``padding="same"``, ``data_format="channels_last"``, a bias and no activation.
    """

    def call(self, inputs: Tensor) -> Tensor:
        """Images of shape (n, height, width, channels) -> (n, height, width, filters)."""
        kernel, bias = map(tf.convert_to_tensor, (self.kernel, self.bias))
        return tf.custom_gradient(_convolve)(inputs, kernel) + bias


def _convolve(images: Tensor, kernel: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    def gradients(upstream: Tensor) -> tuple[Tensor, Tensor]:
        of_kernel = tf.raw_ops.Conv2DBackpropFilter(
            input=upstream,
            filter_sizes=kernel.shape,
            out_backprop=images,
            strides=[1, 1, 1, 1],
            padding="SAME",
        )
        return tf.nn.conv2d(upstream, kernel, 1, "SAME"), of_kernel

    (*reach, n_outputs, n_channels), (height, width) = kernel.shape, images.shape[1:3]
    pixels, weights = tf.reshape(images, (-1, n_channels)), tf.reshape(kernel, (-1, n_channels))
    # Pixels last: what is shifted lies together in memory.
    given = tf.reshape(tf.matmul(weights, pixels, transpose_b=True), (*reach, n_outputs, -1, height, width))
    vertical, horizontal = ((size - 1) // 2 for size in reach)
    given = tf.add_n([_shift(given[:, column], column - horizontal, 4) for column in range(reach[1])])
    given = tf.add_n([_shift(given[row], row - vertical, 2) for row in range(reach[0])])
    return tf.transpose(given, (1, 2, 3, 0)), gradients


def _shift(values: Tensor, distance: int, axis: int) -> Tensor:
    """Values moved along an axis; zeros follow."""
    padding = [(0, 0)] * len(values.shape)
    padding[axis] = (max(distance, 0), max(-distance, 0))
    start, size = [0] * len(values.shape), [-1] * len(values.shape)
    start[axis] = max(-distance, 0)
    size[axis] = values.shape[axis] - abs(distance)
    return tf.pad(tf.slice(values, start, size), padding)
