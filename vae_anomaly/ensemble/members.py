r"""Ensembles: several models of one architecture, trained on the same rows in different ways.

The members' scores are averaged, with weights that give each the same say. A weighted mean of ELBOs is itself
a bound: by Jensen's inequality, of the log-density of the members' mixture :math:`\sum_m w_m p_m(x)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions

from vae_anomaly.core import parallel
from vae_anomaly.core.rows import Rows
from vae_anomaly.core.types import Array, Callback, Constraints, Floats, RandomStateLike
from vae_anomaly.data.lazy import representative, subset
from vae_anomaly.data.patches import Patches
from vae_anomaly.engine import programs
from vae_anomaly.engine.devices import Devices, device_of
from vae_anomaly.model.column_transform import no_transform, transform
from vae_anomaly.model.states import ModelState, Specification
from vae_anomaly.training.epochs import Progress, TrainingResult, Validation, train
from vae_anomaly.training.interruption import Interruption
from vae_anomaly.training.observers import files_of_member
from vae_anomaly.training.plan import Plan

__all__ = [
    "PARTIAL_FIT",
    "WARM_START",
    "Continuation",
    "Job",
    "Member",
    "ProgressStore",
    "Recipe",
    "Seeds",
    "Trained",
    "check_continues",
    "resolve_recipe",
    "split_positions",
    "train_members",
]

_FEWEST_ROWS_TO_SPLIT = 10
# Twice as many found no more on five surfaces.
_N_TRAINING_PATCHES, _N_HELD_OUT_PATCHES = 20_000, 2_048
_HELD_OUT = 0.2


class Member(BaseEstimator):  # type: ignore[misc]
    r"""How one model of an ensemble is trained, where it differs from the others.

    Parameters
    ----------
    trimmed_fraction : float, default=0.0
        Fraction of each training batch, in [0, 1), that has the greatest loss and is left out of the step.
        A model trained so does not learn rows that it finds improbable, such as anomalies among the
        training rows (least trimmed squares, Rousseeuw 1984, for the objective of a VAE). Raise it
        above the fraction of anomalies that you expect; on clean rows it costs a little.
    beta_factor : float, default=1.0
        Multiplies the detector's ``beta``. Below 1 the latent variables carry more of a row, and its
        reconstruction is sharper.
    column_transform : {"yeo-johnson"} or None, default=None
        How the columns of real values are transformed inside this model. "yeo-johnson" makes skewed ones near
        normal, each by a power of its own (Yeo & Johnson 2000, "A new family of power transformations to
        improve normality or symmetry"); the others stay as they are. To a model of standardized columns, what
        is too small in a column with a long right tail lies in the middle; to this one, far out. What is too
        large looks nearer: one half of the default members have it.

    Examples
    --------
    >>> from vae_anomaly import Member, VAEDetector
    >>> robust = VAEDetector(members=[Member(trimmed_fraction=0.2)] * 3)
    """

    _parameter_constraints: ClassVar[Constraints] = {
        "trimmed_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_factor": [Interval(Real, 0, None, closed="left")],
        "column_transform": [StrOptions({"yeo-johnson"}), None],
    }

    def __init__(
        self,
        trimmed_fraction: float = 0.0,
        beta_factor: float = 1.0,
        column_transform: str | None = None,
    ) -> None:
        self.trimmed_fraction = trimmed_fraction
        self.beta_factor = beta_factor
        self.column_transform = column_transform


#: What ``members="auto"`` means for tables. On clean training rows the members with a small beta are better,
#: on contaminated ones the trimmed; skewed columns want a transform, others none. Their mean is good on all
#: (`benchmarks/results/ablation.md`).
DEFAULT_MEMBERS = tuple(
    Member(trimmed_fraction, beta_factor, column_transform)
    for column_transform in (None, "yeo-johnson")
    for trimmed_fraction, beta_factor in ((0.0, 0.3), (0.1, 1.0), (0.0, 0.1), (0.2, 1.0))
)

#: The same for signals: convolutions take longer than dense members, and one found nearly all that two found.
#: The second doubles the rows that a member was not trained on, among which the threshold is set.
SIGNAL_MEMBERS = (Member(),) * 2

#: The same for whole images.
IMAGE_MEMBERS = (Member(),) * 4

#: The same for patches of images. Their latents have to carry a texture's grain and not its defects: with a
#: beta of 1 a patch without any texture is more probable than one with it (`benchmarks/results/trials.md`).
PATCH_MEMBERS = (Member(beta_factor=0.3), Member(beta_factor=0.1)) * 2


class Recipe(NamedTuple):
    """How a detector is to be trained, with every "auto" decided."""

    members: tuple[Member, ...]
    validation_fraction: float
    early_stopping: bool


def resolve_recipe(
    members: str | int | Sequence[Member],
    validation_fraction: str | float,
    early_stopping: str | bool,
    *,
    default_members: Sequence[Member],
    decide: bool,
    of_images: bool,
    n_rows: int,
) -> Recipe:
    """The recipe that the detector's parameters ask for.

    Parameters
    ----------
    members, validation_fraction, early_stopping
        The detector's parameters.
    default_members : sequence of Member
        What ``members="auto"`` means.
    decide : bool
        Whether the fit decides how long to train: "auto" then stops early.
    of_images : bool
        Of images, "auto" holds some out whether it stops early or not: models of images score those that they
        were trained on far lower than new ones, and a threshold has to be for new ones.
    n_rows : int
        Of fewer than 10 rows, "auto" holds out none.

    Raises
    ------
    TypeError, ValueError
        If ``members`` holds anything but `Member` objects, or nothing, or if early stopping has no rows to
        watch.
    """
    if isinstance(members, str):
        members = default_members
    members = (Member(),) * int(members) if isinstance(members, (int, np.integer)) else tuple(members)
    if not members:
        raise ValueError("members must hold at least one Member; received none.")
    for member in members:
        if not isinstance(member, Member):
            raise TypeError(f"members must be a number or a list of Member objects; received {member!r}.")
        member._validate_params()
    if early_stopping not in ("auto", False) and validation_fraction == 0:
        raise ValueError(
            "early_stopping=True watches rows that are held out of training: set validation_fraction, for "
            "example to 0.1; received validation_fraction=0."
        )
    enough = n_rows >= _FEWEST_ROWS_TO_SPLIT
    if isinstance(early_stopping, str):
        early_stopping = decide and validation_fraction != 0 and enough
    if isinstance(validation_fraction, str):
        holds_out = early_stopping or (of_images and enough)
        validation_fraction = _HELD_OUT if holds_out else 0.0
    return Recipe(members, validation_fraction, bool(early_stopping))


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
    plan : Plan
        How to train; each member's own settings are put into it.
    recipe : Recipe
    seeds : one `Seeds` for each member
    draws : float32 array of shape (n_draws, latent_dim), for the loss of held-out rows
    earlier : the members' states to go on from, or None
    column_transform : float32 array or None
        How members that transform columns do; see `model.column_transform`. None if none does.
    patches : Patches or None
        The squares that members see of rows that are images; None if they see whole rows.
    devices : str, sequence of str or None
        Where members are trained, in turn.
    """

    specification: Specification
    rows: Rows
    plan: Plan
    recipe: Recipe
    seeds: Sequence[Seeds]
    draws: Rows
    earlier: Sequence[ModelState] | None = None
    column_transform: Rows | None = None
    patches: Patches | None = None
    devices: Devices = None

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


class Trained(NamedTuple):
    """What a training of all members leaves.

    Attributes
    ----------
    states : tuple of ModelState
        After an interruption, of the members that were trained for an epoch: the first ones.
    history : dict of list of float, means over the members that still trained
    interrupted : bool
    """

    states: tuple[ModelState, ...]
    history: dict[str, list[float]]
    interrupted: bool


def train_members(
    job: Job,
    *,
    callbacks: Sequence[Callback] = (),
    verbose: int = 0,
    store: ProgressStore | None = None,
    interruption: Interruption | None = None,
) -> Trained:
    """Train every member on its own split of the rows, several at once, and average their histories.

    Members are trained where `core.parallel.find_place` says. The result does not depend on it. In threads of
    this process, Ctrl-C ends all trainings with the epochs that they are in, and members that have not begun
    are left out; in other processes, it ends them at once. What watches a training epoch by epoch, callbacks,
    a progress bar or a store, has it in this process.

    Parameters
    ----------
    job : Job
    callbacks, verbose : as in `train`
    store : ProgressStore or None
    interruption : Interruption, or None for one of these trainings' own

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C comes before an epoch has been finished, or twice, or while others train.
    """
    n_members = job.n_members
    n_at_once, elsewhere = parallel.find_place()
    n_at_once = min(n_at_once, n_members)
    interruption = interruption or Interruption()
    if elsewhere and n_at_once > 1 and not (callbacks or verbose or store is not None):
        without_rows = replace(job, rows=job.rows[:0])  # they are sent once, on their own
        found = parallel.map_elsewhere(_train_elsewhere, (without_rows, job.rows), range(n_members))
    else:
        # A terminal and callbacks take one training at a time.
        n_threads = 1 if callbacks or verbose else n_at_once
        found = _train_here(job, callbacks, verbose, store, interruption, n_threads)
    results = []
    for result in found:
        if result is None or not result.history:  # it had not begun, or finished no epoch
            break
        results.append(result)
    if not results:
        raise KeyboardInterrupt
    history = _mean_history([result.history for result in results])
    return Trained(tuple(result.state for result in results), history, interruption.stop_requested)


def _train_elsewhere(job: Job, rows: Rows, position: int) -> TrainingResult:
    return _train_member(replace(job, rows=rows), position)


def _train_here(
    job: Job,
    callbacks: Sequence[Callback],
    verbose: int,
    store: ProgressStore | None,
    interruption: Interruption,
    n_threads: int,
) -> list[TrainingResult | None]:
    n_members = job.n_members
    begun = [None] * n_members if store is None else store.begin(job)

    def train_one(position: int) -> TrainingResult | None:
        if interruption.stop_requested and begun[position] is None:
            return None
        if verbose and n_members > 1:
            print(f"Member {position + 1} of {n_members}")
        with files_of_member(callbacks, position, n_members):
            return _train_member(
                job,
                position,
                callbacks=callbacks,
                verbose=verbose,
                progress=begun[position],
                keep=None if store is None else partial(store.keep, position),
                interruption=interruption,
            )

    try:
        if n_threads == 1:
            return _one_by_one(train_one, n_members, interruption)
        # Built before the threads start: Keras' settings and custom objects are the calling thread's.
        programs.architecture(job.specification)
        return _in_threads(train_one, n_members, n_threads, interruption)
    finally:
        if store is not None:
            store.flush()


def _train_member(
    job: Job,
    position: int,
    *,
    callbacks: Sequence[Callback] = (),
    verbose: int = 0,
    progress: Progress | None = None,
    keep: Callable[[Progress], None] | None = None,
    interruption: Interruption | None = None,
) -> TrainingResult:
    """Train the member at this position; see `train`."""
    member, seed = job.recipe.members[position], job.seeds[position]
    before, numbers = None, None
    if job.earlier is not None:
        before, numbers = programs.without_column_transform(job.earlier[position])
    elif job.column_transform is not None:
        numbers = no_transform(job.rows.shape[1])
        if member.column_transform is not None:
            numbers = job.column_transform
    rows = job.rows
    if numbers is not None and numbers[0].any():
        rows = np.asarray(transform(rows[:], numbers))
    kept, validation = _split(rows, job, position)
    if job.patches is not None:
        kept, validation = _cut(kept, validation, job.patches, seed.split)
    device = device_of(job.devices, position)
    with programs.on_device(device):
        if before is None:
            architecture = programs.architecture(job.specification)
            start = architecture.initial_state(seed.initial, representative(kept))
        else:
            start = programs.architecture_of(before).on_new_rows(before, representative(kept))
    result = train(
        start,
        kept,
        replace(
            job.plan,
            beta=job.plan.beta * member.beta_factor,
            trimmed_fraction=member.trimmed_fraction,
            early_stopping=job.recipe.early_stopping,
            n_trainings=job.n_members,
            device=device,
        ),
        shuffle_seed=seed.shuffle,
        noise_seed=seed.noise,
        validation=validation,
        callbacks=callbacks,
        verbose=verbose,
        progress=progress,
        keep=keep,
        interruption=interruption,
    )
    if numbers is None:
        return result
    return result._replace(state=programs.with_column_transform(result.state, numbers))


def _one_by_one(
    train_one: Callable[[int], TrainingResult | None], n_members: int, interruption: Interruption
) -> list[TrainingResult | None]:
    results = []
    for position in range(n_members):
        try:
            results.append(train_one(position))
        except KeyboardInterrupt:
            interruption.request_stop()
            results.append(None)
    return results


def _in_threads(
    train_one: Callable[[int], TrainingResult | None],
    n_members: int,
    n_threads: int,
    interruption: Interruption,
) -> list[TrainingResult | None]:
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            futures = [pool.submit(train_one, position) for position in range(n_members)]
            try:
                return [_result(future) for future in futures]
            except KeyboardInterrupt:
                interruption.request_stop()
                return [_result(future) for future in futures]
        except BaseException:
            # The pool waits for its threads.
            interruption.abandon()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _result(future: Future[TrainingResult | None]) -> TrainingResult | None:
    while not future.done():
        wait([future], timeout=1)  # on Windows, Ctrl-C does not end a wait without end
    return future.result()


class Continuation(NamedTuple):
    """A way to go on from an earlier fit.

    Attributes
    ----------
    name, otherwise : str
        What errors and warnings call it, and how they tell to start anew instead.
    takes_new_rows : bool
        Whether its rows are other ones than the earlier fit's: others are held out, and what is known of the
        columns grows.
    """

    name: str
    otherwise: str
    takes_new_rows: bool


WARM_START = Continuation("warm_start=True", "set warm_start=False", takes_new_rows=False)
PARTIAL_FIT = Continuation("partial_fit", "call fit", takes_new_rows=True)


def check_continues(
    earlier: Sequence[ModelState],
    specification: Specification,
    n_members: int,
    n_kept: int,
    n_draws: int,
    continuation: Continuation,
) -> None:
    """Refuse to go on from the ``earlier`` models and their ``n_kept`` draws where that cannot be."""
    name, otherwise, _ = continuation
    if n_draws != n_kept:
        raise ValueError(
            f"{name} keeps the {n_kept} draws of the earlier fit, but n_draws is {n_draws} now; {otherwise} "
            "to start anew."
        )
    if n_members != len(earlier):
        raise ValueError(
            f"{name} goes on with the {len(earlier)} members of the earlier fit, but now there are to be "
            f"{n_members}; {otherwise} to start anew."
        )
    if specification.key != earlier[0].specification._replace(transforms_columns=False).key:
        raise ValueError(
            f"{name} goes on with the model of the earlier fit, but network, likelihood, posterior, prior, "
            f"latent_dim or the width of X have changed since; {otherwise} to start anew."
        )


def split_positions(n_rows: int, fraction: float, seed: int, member: int) -> tuple[Array, Array]:
    """Positions of the rows that a member is trained on, and of those that it leaves out.

    All members have the same seed. It shuffles the rows and puts them in a circle; each member leaves out the
    next part of it, so that every row is left out as often as every other, or once more.
    """
    n_held_out = math.ceil(fraction * n_rows)
    if n_held_out >= n_rows:
        raise ValueError(
            f"validation_fraction={fraction:g} leaves none of the {n_rows} rows to train on; lower it, or "
            "fit on more rows."
        )
    circle = np.roll(np.random.RandomState(seed).permutation(n_rows), -member * n_held_out)
    return circle[n_held_out:], circle[:n_held_out]


def _split(rows: Rows, job: Job, member: int) -> tuple[Rows, Validation | None]:
    if not job.recipe.validation_fraction:
        return rows, None
    kept, held_out = split_positions(
        len(rows), job.recipe.validation_fraction, job.seeds[member].split, member
    )
    return subset(rows, kept), Validation(subset(rows, held_out), job.draws)


def _cut(
    images: Rows, validation: Validation | None, patches: Patches, seed: int
) -> tuple[Rows, Validation | None]:
    """Squares at random places of images to train on, and of those that are held out."""
    if validation is not None:
        squares = patches.draw(validation.rows, _N_HELD_OUT_PATCHES, seed)
        validation = validation._replace(rows=squares)
    return patches.draw(images, _N_TRAINING_PATCHES, seed), validation


def _mean_history(histories: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Mean over the members that still trained, epoch by epoch."""
    lengths = np.array([len(history["loss"]) for history in histories])
    trained = np.arange(lengths.max()) < lengths[:, None]

    def mean(name: str) -> Floats:
        values = np.zeros(trained.shape)
        values[trained] = np.concatenate([history[name] for history in histories])
        return np.asarray(values.mean(axis=0, where=trained))

    return {name: mean(name).tolist() for name in histories[0]}
