"""Patches: images as many small squares, and what is told of the squares as images again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, zoom

from vae_anomaly.core.rows import Rows, any_missing, block_size, with_channels
from vae_anomaly.core.types import Array, Floats, Matrix, Shape

__all__ = ["Patches"]

# Squares that overlap by a half see every small defect whole, or nearly.
_STRIDES_PER_SIDE = 2


class Patches(NamedTuple):
    """The squares that cover an image, a half of their side apart; at the far edges, nearer.

    Attributes
    ----------
    image_shape : (height, width, channels)
    side : int
        Of a square, in the pixels that are seen.
    pooling : int, default=1
        So many pixels, down and across, are seen as one, which is their mean.
    """

    image_shape: tuple[int, int, int]
    side: int
    pooling: int = 1

    @classmethod
    def of(cls, image_shape: Shape, side: int) -> Patches:
        """The squares of this side in images of this shape.

        Raises
        ------
        ValueError
            If an image is smaller than a square.
        """
        height, width, channels = with_channels(image_shape)
        if side > min(height, width):
            raise ValueError(
                f"patches={side} is the side of squares within the images, which are {height} pixels high "
                f"and {width} wide: set a smaller one, or None for whole images."
            )
        return cls((height, width, channels), int(side))

    def pooled(self, pooling: int) -> Patches:
        """The squares of the same side in images that are seen at a lower resolution.

        Raises
        ------
        ValueError
            If a pooled image is smaller than a square.
        """
        patches = self._replace(pooling=pooling)
        height, width, _ = patches.seen_shape
        if self.side > min(height, width):
            raise ValueError(
                f"a member with pooling={pooling} sees images of {height} x {width} pixels, smaller ones "
                f"than patches={self.side}: set a smaller pooling, or smaller patches."
            )
        return patches

    @property
    def seen_shape(self) -> tuple[int, int, int]:
        """The shape of the pooled images."""
        height, width, channels = self.image_shape
        return height // self.pooling, width // self.pooling, channels

    @property
    def n_features(self) -> int:
        """Numbers in a patch."""
        return self.side**2 * self.image_shape[2]

    @property
    def grid(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """The upper rows and the left columns of the squares."""
        step = max(1, self.side // _STRIDES_PER_SIDE)
        upper, left = (
            np.unique(np.append(np.arange(0, extent - self.side + 1, step), extent - self.side))
            for extent in self.seen_shape[:2]
        )
        return upper, left

    @property
    def n_patches(self) -> int:
        """Squares in an image."""
        upper, left = self.grid
        return len(upper) * len(left)

    def blocks(self, images: Matrix) -> Iterator[Rows]:
        """All squares of flat images, image by image, as rows in blocks: (n_squares, n_features)."""
        size, of_images = block_size(self.n_features), block_size(int(np.prod(self.image_shape)))
        n_images = max(1, min(size // self.n_patches, of_images))
        for start in range(0, len(images), n_images):
            windows = self._windows(self.pool(images[start : start + n_images]))
            places = self._places(len(windows))
            for first in range(0, len(places), size):
                yield self._at(windows, places[first : first + size])

    def draw(self, images: Matrix, n_patches: int, seed: int) -> Rows:
        """Squares at random places of random images: (n_patches, n_features)."""
        rng = np.random.RandomState(seed)
        height, width, _ = self.seen_shape
        chosen = np.sort(rng.randint(len(images), size=n_patches))
        upper = rng.randint(height - self.side + 1, size=n_patches)
        left = rng.randint(width - self.side + 1, size=n_patches)
        rows = np.empty((n_patches, self.n_features), dtype=np.float32)
        n_images = block_size(int(np.prod(self.image_shape)))
        for start in range(0, len(images), n_images):
            mine = slice(*np.searchsorted(chosen, [start, start + n_images]))
            if mine.start < mine.stop:
                windows = self._windows(self.pool(images[start : start + n_images]))
                places = np.stack([chosen[mine] - start, upper[mine], left[mine]], axis=-1)
                rows[mine] = self._at(windows, places)
        return rows

    def pool(self, images: Array) -> Array:
        """Flat images as they are seen: the means of blocks of pixels, without those that are missing.

        Where the pooling does not divide a side, some blocks are a pixel longer.
        """
        if self.pooling == 1:
            return images
        images = images.reshape(len(images), *self.image_shape)
        known = ~np.isnan(images) if any_missing(images) else np.ones((1, *self.image_shape), dtype=bool)
        total, n_known = (self._sum_blocks(values) for values in (np.where(known, images, 0), known))
        means = np.divide(total, n_known, out=np.full_like(total, np.nan), where=n_known > 0)
        return means.reshape(len(images), -1).astype(np.float32)

    def _sum_blocks(self, values: Array) -> Floats:
        """The sums over the blocks of pixels that are seen as one."""
        for axis, starts in enumerate(self._starts(), start=1):
            values = np.add.reduceat(values, starts, axis=axis, dtype=np.float64)
        return values

    def pooling_matrices(self) -> tuple[Floats, Floats]:
        """Matrices A and B of zeros and ones: A X B are the sums over the blocks of one channel X."""
        down, across = (
            np.add.reduceat(np.eye(extent), starts, axis=0)
            for extent, starts in zip(self.image_shape, self._starts(), strict=False)
        )
        return down, across.T

    def _starts(self) -> list[npt.NDArray[np.intp]]:
        """Where the blocks of pixels that are seen as one begin, down and across."""
        return [
            np.arange(seen) * extent // seen
            for extent, seen in zip(self.image_shape[:2], self.seen_shape[:2], strict=True)
        ]

    def _places(self, n_images: int) -> npt.NDArray[np.intp]:
        """Image, upper row and left column of every square of so many images: (n_squares, 3)."""
        every = np.meshgrid(np.arange(n_images), *self.grid, indexing="ij")
        return np.stack(every, axis=-1).reshape(-1, 3)

    def _windows(self, images: Array) -> Array:
        """A view of every square of pooled images: (n_images, height, width, channels, side, side)."""
        stacked = images.reshape(len(images), *self.seen_shape)
        return np.lib.stride_tricks.sliding_window_view(stacked, (self.side, self.side), axis=(1, 2))

    def _at(self, windows: Array, places: npt.NDArray[np.intp]) -> Array:
        squares = windows[places[:, 0], places[:, 1], places[:, 2]]
        return np.ascontiguousarray(np.moveaxis(squares, 1, -1)).reshape(len(places), self.n_features)

    def positions(self) -> npt.NDArray[np.int64]:
        """Where each number of each square stands in a pooled image: shape (n_patches, n_features)."""
        flat = np.arange(int(np.prod(self.seen_shape)), dtype=np.int64)[None]
        return self._at(self._windows(flat), self._places(1))

    def tile(self, squares: Array) -> Array:
        """Flat images that are filled by one square each, again and again: (n_squares, n_pixels)."""
        height, width, channels = self.image_shape
        across = squares.reshape(-1, self.side, self.side, channels)
        tiled = np.tile(across, (1, -(-height // self.side), -(-width // self.side), 1))
        return tiled[:, :height, :width].reshape(len(tiled), -1)

    # -- back -------------------------------------------------------------------------------------
    def overlay(self, values: Floats, smoothing: float = 0.0) -> Floats:
        """Numbers of the squares' pixels, (n_squares, n_features), averaged where squares overlap.

        They are smoothed by a Gaussian of this standard deviation, in the pixels that are seen, and then
        interpolated between those, if they are pooled. A constant stays one.

        Returns
        -------
        float64 array of shape (n_images, n_pixels)
        """
        upper, left = self.grid
        height, width, channels = self.seen_shape
        side = self.side
        squares = values.reshape(-1, len(upper), len(left), side, side, channels)
        total = np.zeros((len(squares), height, width, channels))
        times = np.zeros((height, width, 1))
        for down in range(side):
            for across in range(side):
                rows, columns = np.ix_(upper + down, left + across)
                total[:, rows, columns] += squares[:, :, :, down, across]
                times[rows, columns] += 1
        means = total / times
        if smoothing:
            means = gaussian_filter(means, (0, smoothing, smoothing, 0))
        if self.pooling > 1:
            factors = (1, self.image_shape[0] / height, self.image_shape[1] / width, 1)
            means = zoom(means, factors, order=1, mode="nearest", grid_mode=True)
        return np.asarray(means.reshape(len(squares), -1))
