"""What a fit leaves, as functions of rows: scale, ask every member, average."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Self

import numpy as np
from sklearn.utils import check_random_state

from vae_anomaly import explanations
from vae_anomaly.calibration.intervals import CellIntervals
from vae_anomaly.core.rows import Rows, any_missing, block_size, evenly_spaced
from vae_anomaly.core.types import Array, Flags, Floats, KerasModel, Matrix, RandomStateLike, Shape
from vae_anomaly.data.lazy import LazyRows, blocks, has_gaps
from vae_anomaly.data.preparation import Preparation
from vae_anomaly.data.streams import Stream, map_blocks
from vae_anomaly.engine import programs
from vae_anomaly.engine.tiles import NARROW_TILES
from vae_anomaly.ensemble import averaging
from vae_anomaly.likelihoods import Likelihood
from vae_anomaly.model.states import ModelState
from vae_anomaly.scoring import passes
from vae_anomaly.scoring.patches import ScalePasses
from vae_anomaly.scoring.score import IMPOSSIBLE, Score

__all__ = ["Fitted"]


@dataclass(frozen=True, eq=False)
class Fitted:
    """Members, how they are averaged, and what stands before them.

    Methods take numbers as they come through the detector's door, X of shape (n_rows, n_features), and work
    in blocks, so that memory does not grow with the number of rows. Those that say something of each row take
    a `Stream`, too.

    Attributes
    ----------
    preparation : Preparation
    members : models of one architecture
    draws : float32 array of shape (n_draws, noise_width)
    score : Score
    device : str or None
    weights : array of shape (n_members,)
    levels : array of shape (n_members,)
        Median training score of each member.
    poolings : tuple of int
        Of each member, `Member.pooling`.
    usual_scores : array of shape (n_members, 2), or None
        Of models of patches, `scoring.patches.usual_scores` of training squares.
    invalid : {"score", "raise"}
        What becomes of a row with a value that none can have: infinite, or outside the likelihood's support.
    intervals : CellIntervals or None
        How far intervals of cells are stretched; None for those that the members think possible.
    """

    preparation: Preparation
    members: Sequence[ModelState]
    draws: Rows
    score: Score
    device: str | None
    weights: Floats
    levels: Floats
    poolings: tuple[int, ...]
    usual_scores: Floats | None = None
    invalid: str = "raise"
    intervals: CellIntervals | None = None

    @classmethod
    def balance(
        cls,
        preparation: Preparation,
        members: Sequence[ModelState],
        draws: Rows,
        score: Score,
        device: str | None,
        poolings: tuple[int, ...],
        rows: Matrix,
    ) -> tuple[Self, Floats]:
        """The members with the weights and levels that training rows give them, and their scores of those.

        Raises
        ------
        FloatingPointError
            If scores are not finite: the last step's weights have not been through a loss.
        """
        n_members = len(members)
        equal, levels = np.full(n_members, 1 / n_members), np.zeros(n_members)
        unbalanced = cls(preparation, members, draws, score, device, equal, levels, poolings)
        if preparation.patches is not None:
            of_patches = ScalePasses.fit(preparation.patches, poolings, members, rows, draws, score, device)
            unbalanced = replace(unbalanced, usual_scores=of_patches.usual)
        by_member = unbalanced.raw_scores(rows)
        if not np.isfinite(by_member).all():
            raise FloatingPointError(
                "training diverged in its last step: training rows have no finite score. Lower learning_rate "
                "or set gradient_clip_norm."
            )
        fitted = replace(unbalanced, levels=np.median(by_member, axis=1))
        if has_gaps(rows):
            by_member = fitted.member_scores(rows)
        weights = averaging.weights_for(by_member)
        return replace(fitted, weights=weights), by_member

    @property
    def likelihood(self) -> Likelihood:
        """The members' likelihood."""
        return self.members[0].specification.likelihood

    @property
    def is_whitened(self) -> Flags:
        """Which members see columns that have been made uncorrelated: shape (n_members,)."""
        return np.array([state.is_whitened for state in self.members])

    @property
    def is_pooled(self) -> Flags:
        """Which members see images at a lower resolution: shape (n_members,)."""
        return np.asarray(self.poolings) > 1

    @property
    def kinds(self) -> Array:
        """Numbers that are alike for members to which new rows are alike new: shape (n_members,)."""
        return np.where(self.is_whitened, 0, self.poolings)

    @property
    def expecting_weights(self) -> Floats:
        """The members' weights where they tell what they expect: shape (n_members,).

        Whitened members, to which columns are as good as noise, and those that do not see every pixel expect
        little: they have none beside others.
        """
        return self._weights_without(self.is_whitened | self.is_pooled)

    @property
    def bound_weights(self) -> Floats:
        """The members' weights where they are models of the rows as they are: shape (n_members,).

        Those that see images at a lower resolution are none, and have no weight beside others.
        """
        return self._weights_without(self.is_pooled)

    def _weights_without(self, left_out: Flags) -> Floats:
        if left_out.all() or not left_out.any():
            return self.weights
        weights = np.where(left_out, 0.0, self.weights)
        return np.asarray(weights / weights.sum())

    def rows(self, X: Matrix) -> Rows:
        """What the members see of X."""
        return self.preparation.rows(X)

    def possible_rows(self, X: Matrix) -> tuple[Rows, Flags]:
        """What the members see of X, impossible values as missing ones, and where those were."""
        if self.invalid == "score":
            return self.preparation.possible_rows(X, self.likelihood)
        self.preparation.check_finite(X)
        rows = self.rows(X)
        self.preparation.check_support(rows, self.likelihood)
        return rows, np.zeros(rows.shape, dtype=bool)

    def raw_scores(self, rows: Matrix) -> Floats:
        """Scores by each member, in which a missing cell counts what the model expects there."""
        if isinstance(rows, LazyRows):
            return np.concatenate([self.raw_scores(block) for block in blocks(rows)], axis=1)
        self.preparation.check_support(rows, self.likelihood)
        return np.asarray(self._passes.score_rows(self.members, rows, self.draws, self.score, self.device))

    def member_scores(self, rows: Matrix) -> Floats:
        r"""Scores by each member, larger = more anomalous: shape (n_members, n_rows).

        A missing cell counts what the model expects there, see `VAE.incomplete`, less an equal part of what a
        row without any value would score above the median training row: with k of d cells missing,
        :math:`\tfrac kd (s_{nothing} - s_{median})`. So a row that says nothing is a median row.
        """
        if isinstance(rows, LazyRows):
            return np.concatenate([self.member_scores(block) for block in blocks(rows)], axis=1)
        if self.preparation.patches is not None or not any_missing(rows):
            return self.raw_scores(rows)
        n_missing = np.isnan(rows).sum(axis=1)
        nothing = np.full((1, rows.shape[1]), np.nan, dtype=np.float32)
        by_member = self.raw_scores(np.concatenate([rows, nothing]))
        excess = by_member[:, -1] - self.levels
        return np.asarray(by_member[:, :-1] - excess[:, None] * (n_missing / rows.shape[1]))

    def scores(self, X: Matrix | Stream) -> Floats:
        """The score of each row, larger = more anomalous: shape (n_rows,).

        A row with k values that none can have scores k times `IMPOSSIBLE`.
        """
        return self._map_blocks(X, self._scores)

    def _scores(self, rows: Rows, impossible: Flags) -> Floats:
        surprise = IMPOSSIBLE * impossible.sum(axis=1)
        return np.asarray(np.where(surprise > 0, surprise, self._average(self.member_scores(rows))))

    def warm_up(self, n_rows: int | Iterable[int], n_features: int) -> None:
        """Compile whatever `scores` of tables of so many rows needs, now and after any number of calls.

        Parameters
        ----------
        n_rows : int or iterable of int
            Each number of rows, at least 1.
        n_features : int
            Columns of those tables.

        Raises
        ------
        ValueError
        """
        numbers = list(n_rows) if isinstance(n_rows, Iterable) and not isinstance(n_rows, str) else [n_rows]
        for number in numbers:
            if not isinstance(number, Integral) or isinstance(number, bool) or number < 1:
                raise ValueError(
                    f"n_rows must be a positive integer, or several, as range(1, 65); received {number!r}."
                )
        block, widest = self._rows_at_once(n_features), max(NARROW_TILES) + 1
        parts = {int(part) for number in numbers for part in (min(number, block), number % block) if part}
        # Tables of more rows than narrow tiles take are treated alike.
        for size in sorted({min(part, widest) for part in parts}):
            complete = np.zeros((size, self.members[0].specification.n_features), dtype=np.float32)
            self._compile_for(complete)
            # As in `member_scores`, whose rows with gaps are one more: as many as each tile does not take.
            for n_incomplete in (1, *NARROW_TILES):
                if n_incomplete <= size:
                    rows = np.pad(complete, ((0, 1), (0, 0)))
                    rows[:n_incomplete], rows[-1] = np.nan, np.nan
                    self._compile_for(rows)

    def _compile_for(self, rows: Rows) -> None:
        self._passes.score_rows(self.members, rows, self.draws, self.score, self.device, warm_up=True)

    def evidence_lower_bound(self, X: Matrix | Stream) -> float:
        """Mean over the rows, in nats."""

        def of_block(rows: Rows, impossible: Flags) -> Floats:
            by_member = self._passes.elbo_terms(self.members, rows, self.draws, self.device)
            terms = averaging.average(by_member, self.bound_weights)
            return np.asarray(terms.sum(axis=1) + IMPOSSIBLE * impossible.sum(axis=1))

        return -float(self._map_blocks(X, of_block).mean())

    def expectations(self, rows: Rows) -> Floats:
        """What may be averaged to tell x, see `Likelihood.expectations`: shape (n_rows, n_inputs)."""
        return self.average_by_row(*self._passes.reconstruct(self.members, rows, self.draws, self.device))

    def average_by_row(self, by_member: Floats, log_likelihood: Floats) -> Floats:
        """The members' mean, more of those that explain a row better."""
        weights = averaging.weights_by_row(self.expecting_weights, log_likelihood)
        return averaging.average(by_member, weights)

    def posterior_means(self, X: Matrix | Stream) -> Floats:
        """Of the first member: shape (n_rows, latent_dim), or those of all patches one after another."""
        first, encode = self.members[:1], self._passes.encode
        return self._map_blocks(X, lambda rows, _: encode(first, rows, self.draws, self.device)[0])

    def model(self) -> KerasModel:
        """The first member as a new `VAE`."""
        return programs.model_of(self.members[0])

    def sample(self, n_samples: int, random_state: RandomStateLike, noise: str | bool) -> Floats:
        """New rows in the units of X, see `averaging.sample`: shape (n_samples, n_features)."""
        if noise == "auto":
            noise = self.preparation.pixel_range is None
        if not isinstance(noise, (bool, np.bool_)):
            raise ValueError(f"noise must be 'auto', True or False; received {noise!r}.")
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples must be a positive integer; received {n_samples!r}.")
        with programs.on_device(self.device):
            rng = check_random_state(random_state)
            rows = averaging.sample(self.members, self.bound_weights, int(n_samples), rng, bool(noise))
        return self.preparation.back(rows) if noise else self.preparation.expected_back(rows)

    def column_shares(self, X: Matrix) -> Floats:
        """Each column's share of the score: shape (n_rows, n_features)."""
        names = (
            [f"x{i}" for i in range(X.shape[1])] if self.preparation.names is None else self.preparation.names
        )
        return explanations.by_column(self.shares(X), self.preparation.scaler, np.asarray(names))

    def shares(self, X: Matrix) -> Floats:
        """Each scaled column's share of the score: shape (n_rows, n_scaled_columns)."""

        def of_block(rows: Rows, impossible: Flags) -> Floats:
            by_member = self._passes.shares(self.members, rows, self.draws, self.score, self.device)
            terms, scores = self._average(by_member), self._average(self.member_scores(rows))
            if self.preparation.patches is None:
                shares = explanations.spread_rest(terms, scores, self.likelihood.ignored)
            else:
                shares = explanations.shift_to_maximum(terms, scores, self.preparation.patches.image_shape[2])
            return np.where(impossible, IMPOSSIBLE, shares)

        return self._map_blocks(X, of_block)

    def pixel_scores(self, rows: Rows, image_shape: Shape, most_pixels: int | None = None) -> Floats:
        """What each pixel adds to scores, by each member, the sum of its channels.

        Of members that see patches, its local score; see `PatchPasses.shares`.

        Returns
        -------
        array of shape (n_members, n_images, height * width)
            Of ``most_pixels`` at most, evenly spaced.
        """
        n_pixels, found = math.prod(image_shape[:2]), []
        pixels = evenly_spaced(n_pixels, most_pixels or n_pixels)
        size = self._rows_at_once(rows.shape[1])
        for start in range(0, len(rows), size):
            block = rows[start : start + size]
            by_member = self._passes.shares(self.members, block, self.draws, self.score, self.device)
            by_member = by_member.reshape(*by_member.shape[:2], n_pixels, image_shape[-1])
            found.append(by_member[:, :, pixels].sum(axis=-1))
        return np.concatenate(found, axis=1)

    def pixel_maps(self, X: Matrix, image_shape: Shape) -> Floats:
        """The members' mean of `pixel_scores`: shape (n_images, height, width)."""
        maps = self._map_blocks(X, lambda rows, _: self._average(self.pixel_scores(rows, image_shape)))
        return maps.reshape(len(maps), *image_shape[:2])

    def confidence(self, X: Matrix | Stream, offset: float) -> Floats:
        """See `averaging.confidence`; the decision function is minus the score, less ``offset``."""
        if len(self.members) == 1 and len(self.draws) == 1:
            raise ValueError("confidence needs several draws or members; fit with n_draws=10 or members=4.")

        def of_block(rows: Rows, impossible: Flags) -> Floats:
            by_member = self.member_scores(rows)
            return averaging.confidence(
                self._average(by_member) + IMPOSSIBLE * impossible.sum(axis=1) + offset,
                by_member - self.levels[:, None],
                self._passes.draw_errors(self.members, rows, self.draws, self.score, self.device),
                self.weights,
            )

        return self._map_blocks(X, of_block)

    def reconstructions(self, X: Matrix) -> Floats:
        """Expected x given z, averaged, in the units of X."""
        return self.preparation.expected_back(
            self.likelihood.values(self._map_blocks(X, lambda rows, _: self.expectations(rows)))
        )

    @property
    def _passes(self) -> Any:
        """What asks the members: of rows that they see as they are, or of images whose patches they see."""
        if self.preparation.patches is None or self.usual_scores is None:
            return passes
        return ScalePasses(self.preparation.patches, self.poolings, self.usual_scores)

    def _average(self, by_member: Floats) -> Floats:
        return averaging.average(by_member, self.weights)

    def _rows_at_once(self, n_features: int) -> int:
        # Squares that overlap hold each pixel four times.
        return block_size(n_features if self.preparation.patches is None else 4 * n_features)

    def _map_blocks(self, X: Matrix | Stream, function: Callable[[Rows, Flags], Floats]) -> Floats:
        """Scale and process X in blocks."""
        size = self._rows_at_once(X.shape[1])
        parts = list(map_blocks(X, lambda block: function(*self.possible_rows(block)), size))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
