"""Ensembles: several models of one architecture, trained on the same rows in different ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from vae_anomaly.core import parallel
from vae_anomaly.core.progress import DurationNotice
from vae_anomaly.core.rows import Rows
from vae_anomaly.core.types import Callback, Floats, Matrix
from vae_anomaly.data.lazy import representative, subset
from vae_anomaly.data.patches import Patches
from vae_anomaly.engine import programs, steps
from vae_anomaly.engine.devices import device_of
from vae_anomaly.ensemble.job import Job, ProgressStore, split_positions
from vae_anomaly.model.column_transform import (
    N_NUMBERS,
    fit_whitening,
    is_whitening,
    no_transform,
    transform,
)
from vae_anomaly.model.states import ModelState
from vae_anomaly.training.collapse import has_collapsed
from vae_anomaly.training.epochs import Progress, TrainingResult, Validation, train
from vae_anomaly.training.interruption import Interruption
from vae_anomaly.training.observers import files_of_member
from vae_anomaly.training.plan import Plan

__all__ = ["Trained", "train_members"]

# Twice as many found no more on five surfaces.
_N_TRAINING_PATCHES, _N_HELD_OUT_PATCHES = 20_000, 2_048
# Shorter trainings have learned nothing yet, and are known for that.
_EPOCHS_TO_LEARN, _STEPS_TO_LEARN = 5, 50
_WARM_UP = 0.5


class Trained(NamedTuple):
    """What a training of all members leaves.

    Attributes
    ----------
    states : tuple of ModelState
        After an interruption, of the members that were trained for an epoch: the first ones.
    history : dict of list of float, means over the members that still trained
    interrupted : bool
    n_collapsed : int
        Members whose reconstructions are all alike.
    """

    states: tuple[ModelState, ...]
    history: dict[str, list[float]]
    interrupted: bool
    n_collapsed: int


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
    a progress bar or a store, has it in this process; so have cached rows, whose file is this one's.

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
    stays = callbacks or verbose or store is not None or job.cached is not None
    if elsewhere and n_at_once > 1 and not stays:
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
    n_collapsed = sum(result.collapsed for result in results)
    return Trained(
        tuple(result.state for result in results), history, interruption.stop_requested, n_collapsed
    )


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
    notice = DurationNotice()

    def train_one(position: int) -> TrainingResult | None:
        if interruption.stop_requested and begun[position] is None:
            return None
        if verbose and n_members > 1:
            print(f"Member {position + 1} of {n_members}")
        tell_duration = None
        if verbose and not notice.is_given:
            tell_duration = partial(notice.tell, n_trainings=n_members - position)
        with files_of_member(callbacks, position, n_members):
            return _train_member(
                job,
                position,
                callbacks=callbacks,
                verbose=verbose,
                progress=begun[position],
                keep=None if store is None else partial(store.keep, position),
                interruption=interruption,
                tell_duration=tell_duration,
            )

    try:
        if n_threads == 1:
            return _one_by_one(train_one, n_members, interruption)
        # Built before the threads start: Keras' settings and custom objects are the calling thread's.
        programs.architecture(job.specification)
        steps.call_once()
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
    tell_duration: Callable[[float], None] | None = None,
) -> TrainingResult:
    """Train the member at this position; see `train`."""
    member, seed = job.recipe.members[position], job.seeds[position]
    before, numbers = None, None
    if job.earlier is not None:
        before, numbers = programs.without_column_transform(job.earlier[position])
    elif job.column_transform is not None or job.whitens_columns:
        numbers = no_transform(job.rows.shape[1], job.whitens_columns)
        if member.column_transform == "yeo-johnson" and job.column_transform is not None:
            numbers[:N_NUMBERS] = job.column_transform
    kept, validation = _split(job, numbers, seed.split)
    if before is None and job.whitens_columns and member.column_transform == "whiten":
        # Of the rows that it is trained on: the others are to be as new to it as new rows are.
        numbers = fit_whitening(kept)
        kept = _transform(kept, numbers)
        if validation is not None:
            validation = validation._replace(rows=_transform(validation.rows, numbers))
    if job.patches is not None:
        kept, validation = _cut(kept, validation, job.patches.pooled(member.pooling), seed.split)
    device = device_of(job.devices, position)
    with programs.on_device(device):
        if before is None:
            architecture = programs.architecture(job.specification)
            start = architecture.initial_state(seed.initial, representative(kept), member.scale == "per_row")
        else:
            start = programs.architecture_of(before).on_new_rows(before, representative(kept))
    plan = replace(
        job.plan,
        beta=job.plan.beta * member.beta_factor,
        trimmed_fraction=member.trimmed_fraction,
        early_stopping=job.recipe.early_stopping,
        n_trainings=job.n_members,
        device=device,
    )
    run = partial(
        train,
        start,
        kept,
        shuffle_seed=seed.shuffle,
        noise_seed=seed.noise,
        validation=validation,
        callbacks=callbacks,
        verbose=verbose,
        interruption=interruption,
    )
    result = run(plan, progress=progress, keep=keep, tell_duration=tell_duration)
    if job.avoids_collapse:
        seen = kept if validation is None else validation.rows
        if _has_learned_nothing(result, plan, len(kept), seen):
            if verbose and not plan.kl_warm_up:
                print("What it expects is the same for all: trained again with a KL warm-up")
            result = _train_again(result, run, plan, seen, interruption)
    if numbers is None:
        return result
    return result._replace(state=programs.with_column_transform(result.state, numbers))


def _has_learned_nothing(result: TrainingResult, plan: Plan, n_rows: int, seen: Rows) -> bool:
    """Whether a training that was long enough to learn something has collapsed."""
    n_epochs = len(result.history.get("loss", ()))
    if n_epochs < _EPOCHS_TO_LEARN or n_epochs * plan.steps_per_epoch(n_rows) < _STEPS_TO_LEARN:
        return False
    with programs.on_device(plan.device):
        return has_collapsed(result.state, seen)


def _train_again(
    result: TrainingResult,
    run: Callable[[Plan], TrainingResult],
    plan: Plan,
    seen: Rows,
    interruption: Interruption | None,
) -> TrainingResult:
    """A training that has collapsed, or another one with a KL warm-up that has not, if it is better.

    A loss that counts the whole KL from the beginning may lead into a collapse where a better model is to be
    had (Sonderby et al. 2016, "Ladder variational autoencoders"). What ``run`` trains by another plan does
    not stop early: the loss of held-out rows counts the whole KL, and rises while the warm-up lasts.
    """
    collapsed = result._replace(collapsed=True)
    if plan.kl_warm_up or (interruption is not None and interruption.stop_requested):
        return collapsed
    try:
        again = run(replace(plan, kl_warm_up=_WARM_UP, early_stopping=False))
    except FloatingPointError:
        return collapsed
    with programs.on_device(plan.device):
        if not again.history or has_collapsed(again.state, seen):
            return collapsed
    name = "val_loss" if "val_loss" in result.history else "loss"
    least = min(result.history[name]) if plan.early_stopping else result.history[name][-1]
    return again if again.history[name][-1] <= least else collapsed


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


def _split(job: Job, numbers: Rows | None, seed: int) -> tuple[Matrix, Validation | None]:
    """The rows that a member with this seed is trained on, and those that it leaves out.

    ``numbers`` are those by which it transforms columns.
    """
    rows, cached, fraction = job.rows, job.cached, job.recipe.validation_fraction
    if numbers is not None and (numbers[0].any() or is_whitening(numbers)):
        of_columns = partial(_transform, numbers=numbers)
        rows = of_columns(rows[:])
        cached = None if cached is None else cached.followed_by(of_columns)
    if not fraction:
        return (rows, None) if cached is None else (cached, None)
    kept, held_out = split_positions(len(rows), fraction, seed)
    validation = Validation(subset(rows, held_out), job.draws)
    if cached is not None:
        return cached.leave_out(held_out), validation
    return subset(rows, kept), validation


def _transform(rows: Rows, numbers: Rows) -> Rows:
    return np.asarray(transform(rows, numbers))


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
