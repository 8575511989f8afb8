"""The job of a fit: everything that decides what its training leaves."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state

from vae_anomaly.core.rows import Rows
from vae_anomaly.core.types import Array, Flags, Matrix, RandomStateLike
from vae_anomaly.data.cache import CachedRows
from vae_anomaly.data.lazy import LazyRows, has_gaps, representative
from vae_anomaly.data.patches import Patches
from vae_anomaly.data.preparation import Preparation
from vae_anomaly.data.scaling import scaled_zero
from vae_anomaly.engine.devices import Devices
from vae_anomaly.engine.programs import architecture
from vae_anomaly.ensemble.decisions import Decisions
from vae_anomaly.ensemble.earlier import Earlier, check_continues
from vae_anomaly.ensemble.recipe import Recipe
from vae_anomaly.likelihoods import Likelihood
from vae_anomaly.model.column_transform import fit_column_transform
from vae_anomaly.model.cost import rows_at_once
from vae_anomaly.model.states import ModelState, Specification
from vae_anomaly.training.epochs import Progress
from vae_anomaly.training.plan import Plan

__all__ = [
    "Job",
    "ProgressStore",
    "Seeds",
    "draw_seeds",
    "left_out_by",
    "make_job",
    "seed_of_draw",
    "split_positions",
]


class Seeds(NamedTuple):
    """What makes one member's training its own."""

    initial: int
    split: int
    shuffle: int
    noise: int


@dataclass(frozen=True)
class Job:
    """Everything that decides what a training of all members leaves.

    Attributes
    ----------
    specification : Specification, shared by the members
    rows : float32 array of shape (n_rows, n_features)
        Those to train on, or such as stand for them.
    plan : Plan
        How to train; each member's own settings are put into it.
    recipe : Recipe
    seeds : one `Seeds` for each member
    draws : float32 array of shape (n_draws, noise_width), for the loss of held-out rows
    earlier : the members' states to go on from, or None
    column_transform : float32 array or None
        How members that transform skewed columns do; see `model.column_transform`. None if none does.
    whitens_columns : bool
        Whether some members whiten the columns of the rows that they are trained on.
    patches : Patches or None
        The squares that members see of rows that are images; None if they see whole rows.
    devices : str, sequence of str or None
        Where members are trained, in turn.
    cached : CachedRows or None
        All rows to train on, if ``rows`` is some of them.
    avoids_collapse : bool, default=False
        Whether a member whose reconstructions are all alike is trained once more.
    """

    specification: Specification
    rows: Rows
    plan: Plan
    recipe: Recipe
    seeds: Sequence[Seeds]
    draws: Rows
    earlier: Sequence[ModelState] | None = None
    column_transform: Rows | None = None
    whitens_columns: bool = False
    patches: Patches | None = None
    devices: Devices = None
    cached: CachedRows | None = None
    avoids_collapse: bool = False

    @property
    def everything(self) -> Rows | CachedRows:
        """All rows to train on."""
        return self.rows if self.cached is None else self.cached

    @property
    def n_members(self) -> int:
        """How many models to train."""
        return len(self.recipe.members)


class ProgressStore(Protocol):
    """Who keeps the progress of the members' trainings, and knows where an earlier process left them."""

    def seeds(self, drawn: Sequence[int], random_state: RandomStateLike) -> list[int]:
        """The seeds of the fit to go on with, where only chance decided them; else those ``drawn`` now."""

    def first_seed(self, drawn: int, random_state: RandomStateLike) -> int:
        """The first seed of that fit; else the one ``drawn`` now."""

    def begin(self, job: Job) -> list[Progress | None]:
        """Where each member's training is to go on; None is its beginning."""

    def keep(self, position: int, progress: Progress) -> None:
        """Take note of a member's progress; called after each epoch, by any thread."""

    def flush(self) -> None:
        """Lose nothing of what was noted."""


def seed_of_draw(
    random_state: RandomStateLike, store: ProgressStore | None, earlier: int | None, n_rows_seen: int = 0
) -> int:
    """What decides which rows are drawn: the first of the fit's seeds, which is drawn only later.

    A warm start draws the rows that the ``earlier`` fit has drawn, by its calibration seed.
    """
    if earlier is not None:
        return earlier
    drawn = copy.deepcopy(check_random_state(random_state)).randint(np.iinfo(np.int32).max, size=1)
    drawn = int(_at_place_in_stream(drawn, n_rows_seen)[0])
    return drawn if store is None else store.first_seed(drawn, random_state)


def _at_place_in_stream(seeds: Array, n_rows_seen: int) -> Array:
    """Other seeds after rows that were seen: one ``random_state`` is to make other splits and other noise."""
    if not n_rows_seen:
        return seeds
    sequence = np.random.SeedSequence((n_rows_seen, *map(int, seeds)))
    rng = np.random.RandomState(sequence.generate_state(4))
    return rng.randint(np.iinfo(np.int32).max, size=len(seeds))


def draw_seeds(
    random_state: RandomStateLike, n_members: int, store: ProgressStore | None, n_rows_seen: int = 0
) -> tuple[int, list[Seeds]]:
    """What decides the draws, and what decides each member's training; others after rows that were seen."""
    rng = check_random_state(random_state)
    drawn = rng.randint(np.iinfo(np.int32).max, size=1 + 4 * n_members)
    drawn = _at_place_in_stream(drawn, n_rows_seen).tolist()
    if store is not None:
        drawn = store.seeds(drawn, random_state)
    draws_seed, *seeds = map(int, drawn)
    return draws_seed, [Seeds(*four) for four in np.reshape(seeds, (-1, 4)).tolist()]


def _plan_for(specification: Specification, decisions: Decisions) -> Plan:
    """How to train such models: an automatic batch is no larger than memory is to be."""
    plan = decisions.plan
    if not isinstance(decisions.parameters["batch_size"], str):
        return plan
    template = architecture(specification).template
    n_rows = rows_at_once(template.encoder, template.decoder, plan.n_training_draws, plan.batch_size)
    return replace(plan, batch_size=n_rows)


def make_job(
    decisions: Decisions,
    rows: Matrix,
    cached: CachedRows | None,
    preparation: Preparation,
    draws_seed: int,
    seeds: Sequence[Seeds],
    earlier: Earlier | None,
) -> Job:
    """The job of a fit whose rows have been prepared.

    Raises
    ------
    ValueError
        If patches are to be cut out of rows that are no images any more, or the earlier fit cannot go on.
    """
    network, parameters, patches = decisions.network, decisions.parameters, decisions.patches
    n_features = rows.shape[1] if patches is None else patches.n_features
    if patches is not None and rows.shape[1] != math.prod(patches.image_shape):
        raise ValueError(
            f"patches are cut out of scaled images, and {type(preparation.scaler).__name__} makes rows of "
            f"{rows.shape[1]} numbers of images of shape {patches.image_shape}: leave scaler out, or set "
            "patches=None."
        )
    if earlier is not None:
        marks_missing = earlier.fitted.members[0].specification.marks_missing
    else:
        everything = rows if cached is None else cached
        marks_missing = network.marks_missing() and (
            decisions.plan.fraction_to_mask(everything) > 0 or has_gaps(everything)
        )
    specification = Specification(
        network,
        _likelihood_of_members(decisions, rows, earlier),
        n_features,
        decisions.latent_dim(n_features),
        marks_missing,
        posterior=decisions.posterior,
        prior=decisions.prior,
    )
    if earlier is None:
        rng = np.random.RandomState(draws_seed)
        draws = rng.standard_normal((parameters["n_draws"], specification.noise_width)).astype(np.float32)
    else:
        draws = earlier.fitted.draws
        check_continues(
            earlier.fitted.members,
            specification,
            len(seeds),
            len(draws),
            parameters["n_draws"],
            earlier.continuation,
        )
        if earlier.split_seeds is not None:
            seeds = [own._replace(split=split) for own, split in zip(seeds, earlier.split_seeds, strict=True)]
    members = None if earlier is None else earlier.fitted.members
    transform = None if earlier is not None else _column_transform(decisions, rows, preparation)
    return Job(
        specification,
        rows,
        _plan_for(specification, decisions),
        decisions.recipe,
        seeds,
        draws,
        members,
        transform,
        # All rows of a file would have to be transformed in pieces.
        earlier is None and cached is None and _whitens_columns(decisions, rows),
        patches,
        parameters["device"],
        cached,
        # A table's columns may well have nothing in common.
        avoids_collapse=earlier is None and _is_of_pixels(decisions),
    )


def _likelihood_of_members(decisions: Decisions, rows: Matrix, earlier: Earlier | None) -> Likelihood:
    """The likelihood that the members share, in which some have a scale for each row, if a column can."""
    likelihood, found = decisions.likelihood, decisions.likelihood.per_member()
    if found is None:
        return likelihood
    if earlier is not None:
        before = earlier.fitted.members[0].specification.likelihood
        return found if before.architecture_key() == found.architecture_key() else likelihood
    if all(member.scale is None for member in decisions.recipe.members):
        return likelihood
    shared = found.initial_shared_per_row(representative(rows))
    return found if found.has_scale_per_row(shared) else likelihood


def _is_of_pixels(decisions: Decisions) -> bool:
    """Whether rows are images or signals, whose numbers hang together."""
    return decisions.of_images is not None or decisions.network.signal_channels() is not None


def _column_transform(decisions: Decisions, rows: Matrix, preparation: Preparation) -> Rows | None:
    """How members transform columns of real values, None if none does. Those of sparse tables stay sparse."""
    asks = any(member.column_transform == "yeo-johnson" for member in decisions.recipe.members)
    likelihood, n_columns = decisions.likelihood, rows.shape[1]
    if not asks or not likelihood.standardized or isinstance(rows, LazyRows):
        return None
    columns = likelihood.columns_to_scale()
    zero = scaled_zero(preparation.scaler, n_columns)
    numbers = fit_column_transform(rows, range(n_columns) if columns is None else columns, zero)
    return numbers if (numbers[0] > 0).any() else None


def _whitens_columns(decisions: Decisions, rows: Matrix) -> bool:
    """Whether members whiten columns. Those of sparse tables stay sparse."""
    asks = any(member.column_transform == "whiten" for member in decisions.recipe.members)
    return asks and not isinstance(rows, LazyRows)


def split_positions(n_rows: int, fraction: float, seed: int) -> tuple[Array, Array]:
    """Positions of the rows that a member with this seed is trained on, and of those that it leaves out."""
    n_held_out = math.ceil(fraction * n_rows)
    if n_held_out >= n_rows:
        raise ValueError(
            f"validation_fraction={fraction:g} leaves none of the {n_rows} rows to train on; lower it, or "
            "fit on more rows."
        )
    kept, held_out = train_test_split(np.arange(n_rows), test_size=n_held_out, random_state=seed)
    return kept, held_out


def left_out_by(job: Job, n_members: int, n_rows: int) -> Flags:
    """Which rows each member was not trained on; of more rows than the job's, the others are new to all."""
    left_out = np.ones((n_members, n_rows), dtype=bool)
    for of_member, seed in zip(left_out, job.seeds, strict=False):
        kept, _ = split_positions(len(job.rows), job.recipe.validation_fraction, seed.split)
        of_member[kept] = False
    return left_out
