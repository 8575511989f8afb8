r"""Passes of images through models of their patches: what `passes` does with rows, for images.

A model of patches judges each square of an image (`data.patches`). A square in which a texture is missing is
more probable than one with it, and as unusual as an improbable one (Nalisnick et al. 2019, "Detecting
out-of-distribution inputs to deep generative models using typicality"). So a square's score s is mirrored at
the median m of the training squares' scores where it is lower,

.. math:: m + \max\left(s - m,\ r\,(m - s)\right),

with the ratio r of the scores' upper tail to the lower one. The image's score is the mean of its six
largest: a small defect is in a few squares, and in the sum over all of them it would drown.

What is large and smooth, such as a stain, is nothing unusual in any small square. So some members see images
at a lower resolution (`Member.pooling`), in squares of as many, larger pixels. Their scores of an image are
averaged with those of the others, and so are their maps, interpolated. What is expected, sampled and measured
by ELBOs is told by the members that see every pixel.

The ELBO of an image is the mean ELBO of its squares times the number of squares that fill it: for a way to
tile the image with squares, the sum of their ELBOs bounds its log-density under the model that takes squares
for independent, and this is about the mean over the ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from vae_anomaly.core.backend import tf
from vae_anomaly.core.rows import Rows
from vae_anomaly.core.types import Floats, Matrix, Tensor
from vae_anomaly.data.patches import Patches
from vae_anomaly.model.states import ModelState
from vae_anomaly.scoring import passes
from vae_anomaly.scoring.score import Score

__all__ = ["PatchPasses", "ScalePasses", "largest_mean", "mirror", "pool_tensor", "usual_scores"]

#: Squares of an image that make its score.
N_LARGEST = 6
# Of the smoothing of a map, as a fraction of a square's side: found the best of 0 to 1/4 on three surfaces.
_SMOOTHING = 0.25
# Where the tails of the squares' scores are compared.
_TAIL = 0.001
# Training squares that say what is usual: of so many, the thousandth at either end is known well.
_SQUARES_TO_SEE = 20_000


def largest_mean(values: Floats) -> Floats:
    """The mean of the `N_LARGEST` largest along the last axis, or of all if they are fewer."""
    n_largest = min(N_LARGEST, values.shape[-1])
    return np.asarray(np.sort(values, axis=-1)[..., -n_largest:].mean(axis=-1))


def usual_scores(scores: Floats) -> Floats:
    """What scores of squares are usual: of each model the median, and how much longer the upper tail is.

    Parameters
    ----------
    scores : array of shape (n_states, n_squares)

    Returns
    -------
    array of shape (n_states, 2)
    """
    low, median, high = np.quantile(scores, [_TAIL, 0.5, 1 - _TAIL], axis=1)
    below = median - low
    ratio = np.divide(high - median, below, out=np.ones_like(below), where=below > 0)
    return np.stack([median, ratio], axis=1)


def mirror(scores: Floats, usual: Floats) -> Floats:
    """Scores of squares, in which what is too probable is as unusual as what is too improbable.

    ``scores`` are of shape (n_states, ...), ``usual`` are `usual_scores`.
    """
    median, ratio = (numbers.reshape(-1, *[1] * (scores.ndim - 1)) for numbers in usual.T)
    return np.asarray(median + np.maximum(scores - median, ratio * (median - scores)))


def pool_tensor(scores: Tensor, usual: Floats) -> Tensor:
    """The image's score, `largest_mean` of what `mirror` returns, of one model: (n_rows, n_squares)."""
    median, ratio = map(float, usual)
    mirrored = median + tf.maximum(scores - median, ratio * (median - scores))
    return tf.reduce_mean(tf.math.top_k(mirrored, min(N_LARGEST, scores.shape[-1])).values, axis=-1)


@dataclass(frozen=True)
class PatchPasses:
    """The functions of `passes` for images whose models see patches.

    Attributes
    ----------
    patches : Patches
    usual : array of shape (n_states, 2)
        `usual_scores` of training squares by the models that are asked for scores.
    """

    patches: Patches
    usual: Floats

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
        scores = self.of_squares(states, rows, draws, score, device, warm_up=warm_up)
        return largest_mean(mirror(scores, self.usual))

    def draw_errors(
        self, states: Sequence[ModelState], rows: Rows, draws: Rows, score: Score, device: str | None
    ) -> Floats:
        """Standard error of each image's score that comes from the draws, which the squares share.

        That of its largest squares: draws that are shared err in one direction.
        """
        scores = self.of_squares(states, rows, draws, score, device)
        errors = self._map(lambda squares: passes.draw_errors(states, squares, draws, score, device), rows)
        errors *= self._slopes(scores)
        n_largest = min(N_LARGEST, scores.shape[-1])
        largest = np.argsort(mirror(scores, self.usual), axis=-1)[..., -n_largest:]
        return np.asarray(np.take_along_axis(np.abs(errors), largest, axis=-1).mean(axis=-1))

    def elbo_terms(self, states: Sequence[ModelState], rows: Rows, draws: Rows, device: str | None) -> Floats:
        """The terms of `passes.elbo_terms` for each image: shape (n_states, n_images, 2)."""
        terms = self._map(lambda squares: passes.elbo_terms(states, squares, draws, device), rows)
        height, width, _ = self.patches.seen_shape
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
        side = self.patches.side
        scores = self.of_squares(states, rows, draws, score, device)
        slopes, mirrored = self._slopes(scores), mirror(scores, self.usual)
        maps = np.empty((len(states), *rows.shape))
        for position, state in enumerate(states):  # one fills the memory
            of_state = partial(passes.shares, [state], draws=draws, score=score, device=device)
            (terms,) = self._map(of_state, rows)
            terms *= slopes[position, ..., None]
            terms += ((mirrored[position] - terms.sum(axis=-1)) / self.patches.n_features)[..., None]
            maps[position] = self.patches.overlay(terms, smoothing=_SMOOTHING * side) * side**2
        return maps

    def _slopes(self, scores: Floats) -> Floats:
        """By how much a mirrored score rises with the score: 1, or minus the ratio of the tails."""
        median, ratio = (numbers[:, None, None] for numbers in self.usual.T)
        return np.where(scores >= median, 1.0, -ratio)

    def reconstruct(
        self, states: Sequence[ModelState], rows: Rows, draws: Rows, device: str | None
    ) -> tuple[Floats, Floats]:
        """What `passes.reconstruct` returns, of images: what overlapping squares expect is averaged."""
        parts = [passes.reconstruct(states, squares, draws, device) for squares in self.patches.blocks(rows)]
        expectations, log_likelihood = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        images = np.stack([self.patches.overlay(of_model) for of_model in expectations])
        return images, log_likelihood.reshape(len(states), len(rows), -1).mean(axis=-1)

    def of_squares(
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


@dataclass(frozen=True)
class ScalePasses:
    """The functions of `passes` for images that members see in patches, each at a resolution of its own.

    Attributes
    ----------
    patches : Patches
    poolings : sequence of int
        Of each model, `Member.pooling`.
    usual : array of shape (n_models, 2)
        `usual_scores` of training squares by each model.

    Notes
    -----
    The states that its methods take are those of the models, or the first of them.
    """

    patches: Patches
    poolings: Sequence[int]
    usual: Floats

    @classmethod
    def fit(
        cls,
        patches: Patches,
        poolings: Sequence[int],
        states: Sequence[ModelState],
        rows: Matrix,
        draws: Rows,
        score: Score,
        device: str | None,
    ) -> Self:
        """Those of models that have been trained on squares of these images."""
        unknown = cls(patches, poolings, np.zeros((len(states), 2)))

        def usual(part: PatchPasses, own: Sequence[ModelState]) -> Floats:
            squares = part.patches.draw(rows, _SQUARES_TO_SEE, seed=0)
            return usual_scores(passes.score_rows(own, squares, draws, score, device))

        return cls(patches, poolings, unknown._ask(states, usual))

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
        return self._ask(
            states, lambda part, own: part.score_rows(own, rows, draws, score, device, warm_up=warm_up)
        )

    def draw_errors(
        self, states: Sequence[ModelState], rows: Rows, draws: Rows, score: Score, device: str | None
    ) -> Floats:
        """Standard error of each image's score that comes from the draws: shape (n_states, n_images)."""
        return self._ask(states, lambda part, own: part.draw_errors(own, rows, draws, score, device))

    def elbo_terms(self, states: Sequence[ModelState], rows: Rows, draws: Rows, device: str | None) -> Floats:
        """The terms of the ELBO of each image as it is seen: shape (n_states, n_images, 2)."""
        return self._ask(states, lambda part, own: part.elbo_terms(own, rows, draws, device))

    def encode(self, states: Sequence[ModelState], rows: Rows, draws: Rows, device: str | None) -> Floats:
        """Posterior means of all squares, by models of one resolution: see `PatchPasses.encode`."""
        return self._ask(states, lambda part, own: part.encode(own, rows, draws, device))

    def shares(
        self, states: Sequence[ModelState], rows: Rows, draws: Rows, score: Score, device: str | None
    ) -> Floats:
        """Maps of local scores by each model, (n_states, n_images, n_pixels), in nats."""
        return self._ask(states, lambda part, own: part.shares(own, rows, draws, score, device))

    def reconstruct(
        self, states: Sequence[ModelState], rows: Rows, draws: Rows, device: str | None
    ) -> tuple[Floats, Floats]:
        """What `passes.reconstruct` returns, of images."""
        images = np.empty((len(states), *rows.shape))
        log_likelihood = np.empty((len(states), len(rows)))
        for chosen, part, own in self._parts(states):
            images[chosen], log_likelihood[chosen] = part.reconstruct(own, rows, draws, device)
        return images, log_likelihood

    def by_scale(self) -> Iterator[tuple[list[int], PatchPasses]]:
        """The models of each resolution: their positions, and what asks them."""
        for pooling in sorted(set(self.poolings)):
            chosen = [position for position, own in enumerate(self.poolings) if own == pooling]
            yield chosen, PatchPasses(self.patches.pooled(pooling), self.usual[chosen])

    def _parts(
        self, states: Sequence[ModelState]
    ) -> Iterator[tuple[list[int], PatchPasses, list[ModelState]]]:
        of_states = ScalePasses(self.patches, self.poolings[: len(states)], self.usual)
        for chosen, part in of_states.by_scale():
            yield chosen, part, [states[position] for position in chosen]

    def _ask(
        self,
        states: Sequence[ModelState],
        question: Callable[[PatchPasses, Sequence[ModelState]], Floats],
    ) -> Floats:
        """What the models of each resolution answer, in the models' order: shape (n_states, ...)."""
        answers = np.empty(0)
        for chosen, part, own in self._parts(states):
            answer = question(part, own)
            if len(own) == len(states):  # maps of large images fill the memory
                return answer
            if not answers.size:
                answers = np.empty((len(states), *answer.shape[1:]))
            answers[chosen] = answer
        return answers
