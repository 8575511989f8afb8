"""Which convolutions a `ConvNetwork` has: filters, kernels, strides and the sides of what each one makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

from vae_anomaly.core.rows import with_channels
from vae_anomaly.core.types import Shape
from vae_anomaly.networks.base import check_sizes

__all__ = [
    "Convolution",
    "Pair",
    "decide_dimensions",
    "decide_kernels",
    "plan_decoder",
    "plan_encoder",
    "read_image_shape",
    "with_all_axes",
]

# With twice as many, one class of MNIST digits was found no better, at three times the cost.
_FIRST_FILTERS, _MOST_FILTERS = 16, 128
_FEWEST_CONVOLUTIONS = 2
# More convolutions are stacked until the longer side is no longer than this.
_LONGEST_SIDE = 8
# Shorter sides are not halved: on digits of 8x8, ending in 4x4 took half as long again and found no more.
_SHORTEST_HALVED = 4
_KERNEL, _STRIDE = 3, 2
# Of signals: on three kinds of defects, kernels of 3 with strides of 2 found fewer and took longer.
_SIGNAL_KERNEL, _SIGNAL_STRIDE = 7, 4

Pair = tuple[int, int]
ImageShape = tuple[int, int, int]
#: One size for all convolutions, or one for each.
Sizes = str | int | tuple[int | Pair, ...]


class Convolution(NamedTuple):
    """One convolution of the encoder, or the transposed one that undoes it; pairs are vertical, horizontal.

    Attributes
    ----------
    filters : int
    kernel, strides : pair of int
    sides : pair of int
        Those of the image that the convolution sees, and that its transposed one makes.
    """

    filters: int
    kernel: Pair
    strides: Pair
    sides: Pair

    @property
    def made(self) -> Pair:
        """Sides of the image that the convolution makes."""
        height, width = map(math.ceil, (s / t for s, t in zip(self.sides, self.strides, strict=True)))
        return height, width

    @property
    def excess(self) -> Pair:
        """By how much the transposed convolution makes the sides too long."""
        low, wide = (m * t - s for m, t, s in zip(self.made, self.strides, self.sides, strict=True))
        return low, wide


def plan_encoder(
    image_shape: ImageShape,
    filters: str | Sequence[int],
    kernel_sizes: Sizes,
    strides: Sizes,
    dimensions: int,
) -> list[Convolution]:
    """The encoder's convolutions, from the first to the last, with every "auto" decided.

    Raises
    ------
    ValueError
        If lists have different lengths, or hold what is no size.
    """
    *sides, _ = image_shape
    lists = {"filters": filters, "kernel_sizes": kernel_sizes, "strides": strides}
    n_convolutions = _count_convolutions(lists, max(sides), dimensions)
    if isinstance(filters, str):
        filters = [min(_FIRST_FILTERS * 2**i, _MOST_FILTERS) for i in range(n_convolutions)]
    convolutions = []
    for number, kernel, stride in zip(
        filters,
        _for_each(decide_kernels(kernel_sizes, dimensions), n_convolutions),
        _for_each(strides, n_convolutions),
        strict=True,
    ):
        if isinstance(stride, str):
            stride = [_stride(dimensions) if side >= _SHORTEST_HALVED else 1 for side in sides]
        height, width = sides
        vertical, horizontal = map(min, _pair(stride), sides)
        convolution = Convolution(
            int(number), _limit_kernel(kernel, sides), (vertical, horizontal), (height, width)
        )
        convolutions.append(convolution)
        sides = list(convolution.made)
    return convolutions


def plan_decoder(
    encoder: list[Convolution],
    image_shape: ImageShape,
    decoder_filters: str | Sequence[int],
    kernel_sizes: Sizes,
    dimensions: int,
    n_params: int,
) -> list[Convolution]:
    """The decoder's transposed convolutions, of which the last makes the likelihood's parameters.

    Raises
    ------
    ValueError
        If the list of filters has another length than the encoder has convolutions, or one fewer.
    """
    height, width, channels = image_shape
    undone = encoder[::-1]
    filters = decoder_filters
    if isinstance(filters, str):
        filters = tuple(convolution.filters for convolution in undone)
    check_sizes("decoder_filters", filters)
    if len(filters) not in {len(undone), max(len(undone) - 1, 0)}:
        raise ValueError(
            f"ConvNetwork needs one entry of decoder_filters for each of its {len(undone)} convolutions, "
            "or one fewer, so that the last transposed convolution makes the likelihood's parameters; "
            f"received decoder_filters={decoder_filters!r}."
        )
    transposed = [
        convolution._replace(filters=int(number))
        for convolution, number in zip(undone, filters, strict=False)
    ]
    if len(filters) < len(undone):
        last = undone[-1]
    else:
        kernel = next(iter(_for_each(decide_kernels(kernel_sizes, dimensions), 1)), 1)
        sides = height, width
        last = Convolution(0, _limit_kernel(kernel, sides), (1, 1), sides)
    return [*transposed, last._replace(filters=channels * n_params)]


def read_image_shape(shape: Shape | None, n_features: int | None, dimensions: int) -> ImageShape:
    """(height, width, channels), of signals (length, 1, channels).

    Raises
    ------
    ValueError
        If the shape is none of an image or a signal, or not that of rows of ``n_features``.
    """
    of_signals = dimensions == 1
    axes = () if shape is None else tuple(shape)
    if of_signals and shape is None and n_features is not None:
        axes = (n_features,)
    if of_signals and axes:
        axes = with_all_axes(axes, 1)
    if (
        len(axes) != 3
        or not all(isinstance(side, Integral) and int(side) > 0 for side in axes)
        or n_features not in (None, math.prod(axes))
    ):
        product = f" with a product of {n_features}, the number of features in a row"
        raise ValueError(
            f"ConvNetwork needs image_shape="
            f"{'(length, channels) of signals' if of_signals else '(height, width, channels)'}"
            f"{product if n_features else ''}; received image_shape={shape!r}."
        )
    height, width, channels = map(int, axes)
    return height, width, channels


def decide_dimensions(dimensions: str | int, shape: Shape | None) -> int:
    """Along how many axes convolutions run: an image of width 1 is a signal."""
    if isinstance(dimensions, str):
        return 1 if shape is not None and len(shape) == 3 and shape[1] == 1 else 2
    return int(dimensions)


def decide_kernels(kernel_sizes: Sizes, dimensions: int) -> int | tuple[int | Pair, ...]:
    """What ``kernel_sizes="auto"`` means."""
    if not isinstance(kernel_sizes, str):
        return kernel_sizes
    return _SIGNAL_KERNEL if dimensions == 1 else _KERNEL


def with_all_axes(shape: Shape, dimensions: int) -> Shape:
    """(height, width, channels), of signals (length, 1, channels); empty for what is no signal."""
    if dimensions != 1:
        return with_channels(shape)
    if len(shape) == 1:
        return (*shape, 1, 1)
    if len(shape) == 2:
        return shape[0], 1, shape[1]
    return tuple(shape) if len(shape) == 3 and shape[1] == 1 else ()


def _count_convolutions(lists: dict[str, Any], longest: int, dimensions: int) -> int:
    """As many as the lists have entries, or as bring the longest side down to `_LONGEST_SIDE`."""
    lists = {name: sizes for name, sizes in lists.items() if isinstance(sizes, (tuple, list))}
    for name, sizes in lists.items():
        check_sizes(name, sizes, pairs=name != "filters")
    lengths = {len(sizes) for sizes in lists.values()}
    if len(lengths) > 1:
        received = ", ".join(f"{name}={sizes!r}" for name, sizes in lists.items())
        raise ValueError(
            "ConvNetwork needs one entry for each convolution in filters, kernel_sizes and strides, or "
            f"one number for all kernels or strides; received {received}."
        )
    n_needed = math.ceil(math.log2(longest / _LONGEST_SIDE) / math.log2(_stride(dimensions)))
    return lengths.pop() if lengths else max(_FEWEST_CONVOLUTIONS, n_needed)


def _stride(dimensions: int) -> int:
    return _SIGNAL_STRIDE if dimensions == 1 else _STRIDE


def _for_each(sizes: Sizes, n_convolutions: int) -> Sequence[Any]:
    """A setting of each convolution, from a list or one value for all."""
    return sizes if isinstance(sizes, (tuple, list)) else [sizes] * n_convolutions


def _pair(size: int | Sequence[int]) -> Pair:
    vertical, horizontal = size if isinstance(size, (tuple, list)) else (size, size)
    return int(vertical), int(horizontal)


def _limit_kernel(kernel: int | Sequence[int], sides: Sequence[int]) -> Pair:
    """The kernel, without weights that only ever meet the padding."""
    height, width = (min(reach, 2 * side - 1) for reach, side in zip(_pair(kernel), sides, strict=True))
    return height, width
