r"""Passes of images through models of their patches: what `passes` does with rows, for images.

A model of patches judges each square of an image (`data.patches`). The image's score is the mean of its six
largest: a small defect is in a few squares, and in the sum over all of them it would drown. Its ELBO is the
mean ELBO of its squares times the number of squares that fill it: for a way to tile the image with squares,
the sum of their ELBOs bounds its log-density under the model that takes squares for independent, and this is
about the mean over the ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from vae_anomaly.core.backend import tf
from vae_anomaly.core.rows import Rows
from vae_anomaly.core.types import Floats, Tensor
from vae_anomaly.data.patches import Patches
from vae_anomaly.model.states import ModelState
from vae_anomaly.scoring import passes
from vae_anomaly.scoring.score import Score

__all__ = ["PatchPasses", "largest_mean", "largest_mean_of_tensor"]

#: Squares of an image that make its score.
N_LARGEST = 6
# Of the smoothing of a map, as a fraction of a square's side: found the best of 0 to 1/4 on three surfaces.
_SMOOTHING = 0.25


def largest_mean(values: Floats) -> Floats:
    """The mean of the `N_LARGEST` largest along the last axis, or of all if they are fewer."""
    n_largest = min(N_LARGEST, values.shape[-1])
    return np.asarray(np.sort(values, axis=-1)[..., -n_largest:].mean(axis=-1))


def largest_mean_of_tensor(values: Tensor) -> Tensor:
    """The same of a tensor of shape (n_rows, n_values)."""
    return tf.reduce_mean(tf.math.top_k(values, min(N_LARGEST, values.shape[-1])).values, axis=-1)


@dataclass(frozen=True)
class PatchPasses:
    """The functions of `passes` for images whose models see patches.

    Attributes
    ----------
    patches : Patches
    """

    patches: Patches

    def score_rows(
        self,
        states: Sequence[ModelState],
        rows: Rows,
        draws: Rows,
        score: Score,
        device: str | None,
        *,
        warm_up: bool = False,
    ) -> Floats:
        """The score of each image by each model: shape (n_states, n_images)."""
        return largest_mean(self._of_squares(states, rows, draws, score, device, warm_up=warm_up))

    def draw_errors(
        self, states: Sequence[ModelState], rows: Rows, draws: Rows, score: Score, device: str | None
    ) -> Floats:
        """Standard error of each image's score that comes from the draws, which the squares share.

        That of its largest squares: draws that are shared err in one direction.
        """
        scores = self._of_squares(states, rows, draws, score, device)
        errors = self._map(lambda squares: passes.draw_errors(states, squares, draws, score, device), rows)
        n_largest = min(N_LARGEST, scores.shape[-1])
        largest = np.argsort(scores, axis=-1)[..., -n_largest:]
        return np.asarray(np.take_along_axis(errors, largest, axis=-1).mean(axis=-1))

    def elbo_terms(self, states: Sequence[ModelState], rows: Rows, draws: Rows, device: str | None) -> Floats:
        """The terms of `passes.elbo_terms` for each image: shape (n_states, n_images, 2)."""
        terms = self._map(lambda squares: passes.elbo_terms(states, squares, draws, device), rows)
        height, width, _ = self.patches.image_shape
        return np.asarray(terms.mean(axis=2) * (height * width / self.patches.side**2))

    def encode(self, states: Sequence[ModelState], rows: Rows, draws: Rows, device: str | None) -> Floats:
        """Posterior means of all squares, one after another: (n_states, n_images, n_patches * latent_dim)."""
        means = self._map(lambda squares: passes.encode(states, squares, draws, device), rows)
        return means.reshape(*means.shape[:2], -1)

    def shares(
        self, states: Sequence[ModelState], rows: Rows, draws: Rows, score: Score, device: str | None
    ) -> Floats:
        """Maps of local scores by each model, (n_states, n_images, n_pixels), in nats.

        A pixel's value, the sum of its channels, is what a square would score that is everywhere as
        surprising as the pixel is in the squares around it, smoothed over a quarter of a square's side.
        """
        scores = self._of_squares(states, rows, draws, score, device)
        terms = self._map(lambda squares: passes.shares(states, squares, draws, score, device), rows)
        rest = (scores - terms.sum(axis=-1)) / self.patches.n_features
        local = (terms + rest[..., None]) * self.patches.side**2
        return np.stack([self._smooth(self.patches.overlay(of_model)) for of_model in local])

    def reconstruct(
        self, states: Sequence[ModelState], rows: Rows, draws: Rows, device: str | None
    ) -> tuple[Floats, Floats]:
        """What `passes.reconstruct` returns, of images: what overlapping squares expect is averaged."""
        parts = [passes.reconstruct(states, squares, draws, device) for squares in self.patches.blocks(rows)]
        expectations, log_likelihood = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        images = np.stack([self.patches.overlay(of_model) for of_model in expectations])
        return images, log_likelihood.reshape(len(states), len(rows), -1).mean(axis=-1)

    def _of_squares(
        self,
        states: Sequence[ModelState],
        rows: Rows,
        draws: Rows,
        score: Score,
        device: str | None,
        *,
        warm_up: bool = False,
    ) -> Floats:
        """The score of each square: (n_states, n_images, n_patches)."""
        return self._map(
            lambda squares: passes.score_rows(states, squares, draws, score, device, warm_up=warm_up), rows
        )

    def _map(self, function: passes.OfRows, rows: Rows) -> Floats:
        """What a function says of squares, (n_states, n_squares, ...), by image."""
        found = np.concatenate([function(squares) for squares in self.patches.blocks(rows)], axis=1)
        return found.reshape(len(found), len(rows), -1, *found.shape[2:])

    def _smooth(self, maps: Floats) -> Floats:
        """Smoothed within each image and channel, which keeps a constant map as it is."""
        images = maps.reshape(-1, *self.patches.image_shape)
        width = _SMOOTHING * self.patches.side
        return np.asarray(gaussian_filter(images, (0, width, width, 0)).reshape(maps.shape))
