"""Training: epochs, annealing, early stopping and history, over a compiled program."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

from vae_anomaly.core.backend import tf
from vae_anomaly.core.conventions import warn_user
from vae_anomaly.core.rows import Rows
from vae_anomaly.core.types import Callback, Flags, Matrix
from vae_anomaly.data.lazy import has_gaps, representative
from vae_anomaly.engine.held_out import HELD_OUT_ROWS, Best, best_of, held_out_tiles
from vae_anomaly.engine.programs import Architecture, architecture_of, on_device
from vae_anomaly.engine.steps import (
    BlockFigures,
    BlockOptions,
    Limits,
    TrainingState,
    block_steps,
    model_state,
    train_block,
    training_state,
)
from vae_anomaly.model.states import ModelState
from vae_anomaly.training.batches import Block, batches_of
from vae_anomaly.training.interruption import Interruption
from vae_anomaly.training.observers import Observers
from vae_anomaly.training.plan import Plan

__all__ = ["Progress", "TrainingResult", "Validation", "append_history", "train"]


# Trainings that end well stay far below: far rows begin with a great loss.
_EXPLODES_FROM = 1e4
_LOWER_RATE = 0.1
# Nats of a row, in as many epochs as the patience is. Columns that do not vary are learned ever better by
# ever less: without it, a constant table is trained to the last epoch.
_LEAST_IMPROVEMENT = 1e-3
_EPOCHS_AT_ONCE = 64
# Steps that tell how long a training takes.
_STEPS_TO_TIME = 5


class Validation(NamedTuple):
    """Rows that are not trained on, and the draws to average their ELBO over; of many, some are used."""

    rows: Rows
    draws: Rows


class TrainingResult(NamedTuple):
    """The trained model and what happened, epoch by epoch.

    ``collapsed`` says that its reconstructions are all alike, of those that somebody looked at.
    """

    state: ModelState
    history: dict[str, list[float]]
    collapsed: bool = False


class Progress(NamedTuple):
    """Where a training stands between two epochs: all it takes to go on to the same bits.

    Attributes
    ----------
    n_epochs : int
        Finished epochs.
    training : TrainingState
    history : dict of list of float
        Of its lists, the first ``n_epochs`` numbers count: others may follow while the training goes on.
    best : (val_loss, ModelState) or None
    largest : float
        The greatest size that the loss has had.
    rate_factor : float
        Multiplies the learning rate: below 1 once an epoch had to be repeated.
    """

    n_epochs: int
    training: TrainingState
    history: dict[str, list[float]]
    best: tuple[float, ModelState] | None = None
    largest: float = 0.0
    rate_factor: float = 1.0

    def is_last(self, plan: Plan, n_epochs: int) -> bool:
        """Whether no epoch follows."""
        losses = self.history.get("val_loss", [])[: self.n_epochs]
        return self.n_epochs >= n_epochs or _stops(plan, losses)


def train(
    state: ModelState,
    rows: Matrix,
    plan: Plan,
    *,
    shuffle_seed: int,
    noise_seed: int,
    validation: Validation | None = None,
    callbacks: Sequence[Callback] = (),
    verbose: int = 0,
    progress: Progress | None = None,
    keep: Callable[[Progress], None] | None = None,
    interruption: Interruption | None = None,
    tell_duration: Callable[[float], None] | None = None,
) -> TrainingResult:
    """Train from ``state`` on ``rows`` and return the new state with its history.

    An epoch diverges if its loss, or a weight after it, is not a finite number, or if its loss explodes: is
    greater than 10,000 times the largest of n_features nats and ``abs(loss) + beta * kl`` of every epoch
    before and, for the first one, of the model that it starts from. It is then repeated from its beginning,
    and all that follow are trained, at a tenth of the learning rate; once.

    Parameters
    ----------
    state, rows, plan, shuffle_seed, noise_seed, validation, callbacks, verbose
        What decides the result.
    progress : Progress of an equal training to go on from, or None
    keep : called with the `Progress` after each epoch, or None
    interruption : Interruption, or None for one of this training's own
    tell_duration : called with the seconds that the training takes at most, before its first epoch, or None

    Raises
    ------
    FloatingPointError
        If the training diverges, also at a tenth of the learning rate.
    """
    architecture = architecture_of(state)
    n_epochs = plan.n_epochs(len(rows))
    interruption = interruption or Interruption()
    observers = Observers(architecture, plan, len(rows), callbacks, verbose)
    with on_device(plan.device), contextlib.closing(observers):
        epochs = _Epochs(
            architecture, rows, plan, shuffle_seed, noise_seed, validation, interruption, observers
        )
        if progress is None:
            progress = Progress(0, training_state(state), {})
        else:
            tensors = tf.nest.map_structure(tf.convert_to_tensor, progress.training)
            progress = progress._replace(training=tensors)
            epochs.skip(progress.n_epochs)
            interruption.finish_epoch()
        # Who watches epochs, or keeps them, gets each of them.
        n_at_once = 1 if observers.watch_epochs or keep is not None else _EPOCHS_AT_ONCE
        last = progress.is_last(plan, n_epochs)
        if tell_duration is not None and not last:
            tell_duration(epochs.seconds(progress))
        observers.begin()
        while not last and not interruption.stop_requested:
            try:
                observers.begin_epoch(progress.n_epochs)
                progress, figures = epochs.next(progress, n_at_once)
                interruption.finish_epoch()
                if keep is not None:
                    keep(progress)
                last = progress.is_last(plan, n_epochs)
                ends = last or interruption.stop_requested
                last = observers.end_epoch(progress.n_epochs - 1, figures, progress.training, ends)
            except KeyboardInterrupt:
                interruption.request_stop()
        history = {name: values[: progress.n_epochs] for name, values in progress.history.items()}
        if plan.early_stopping and progress.best is not None:
            return TrainingResult(observers.end(progress.best[1]), history)
        return TrainingResult(observers.end(model_state(architecture, progress.training)), history)


class _Epochs:
    """The epochs of one training: a `Progress` in, a later one out."""

    def __init__(
        self,
        architecture: Architecture,
        rows: Matrix,
        plan: Plan,
        shuffle_seed: int,
        noise_seed: int,
        validation: Validation | None,
        interruption: Interruption,
        observers: Observers,
    ) -> None:
        self._architecture, self._rows, self._plan = architecture, rows, plan
        self._noise_seed = noise_seed
        self._interruption, self._observers = interruption, observers
        self._steps_per_epoch = plan.steps_per_epoch(len(rows))
        self._n_epochs = plan.n_epochs(len(rows))
        self._n_steps = self._steps_per_epoch * self._n_epochs
        fraction_to_mask = plan.fraction_to_mask(rows)
        jit_compile = plan.uses_xla(len(rows), architecture.n_weights, architecture.has_convolutions)
        self._held_out = None
        if validation is not None:
            some = validation.rows[:HELD_OUT_ROWS]
            self._held_out = held_out_tiles(architecture, some, validation.draws, plan.beta, jit_compile)
        self._options = BlockOptions(
            plan.batch_size,
            plan.objective,
            plan.n_training_draws,
            plan.free_bits > 0,
            plan.gradient_clip_norm is not None,
            architecture.specification.marks_missing or fraction_to_mask > 0 or has_gaps(rows),
            0 if self._held_out is None else self._held_out.draws.shape[0],
            jit_compile,
            plan.device,
        )
        self._limits = Limits(
            tf.constant(plan.free_bits, tf.float32),
            tf.constant(plan.gradient_clip_norm or 0.0, tf.float32),
            tf.constant(plan.n_kept()),
            tf.constant(fraction_to_mask, tf.float32),
        )
        self._block_steps = block_steps(architecture, plan.batch_size)
        self._batches = batches_of(rows, plan.batch_size, shuffle_seed, interruption)

    def skip(self, n_epochs: int) -> None:
        """Go on to what comes after these epochs."""
        self._batches.drop(n_epochs)

    def seconds(self, progress: Progress) -> float:
        """How long the epochs that are left take at most, by some steps and a measurement of held-out rows.

        What these make of the model is not kept.
        """
        best = self._best(progress)
        rows, order = next(self._batches.blocks(1, self._block_steps))

        def seconds_of(n_steps: int, ends_epoch: bool) -> float:
            start, ends = time.perf_counter(), np.full(n_steps, ends_epoch)
            some = Block(rows, order[:n_steps])
            self._take_steps(progress.training, best, some, ends, 0, np.float32(0.0))
            return time.perf_counter() - start

        seconds_of(1, ends_epoch=True)  # compiles
        n_steps = min(_STEPS_TO_TIME, len(order))
        of_step = seconds_of(n_steps, ends_epoch=False) / n_steps
        of_held_out = 0.0 if best is None else max(0.0, seconds_of(1, ends_epoch=True) - of_step)
        return (self._n_epochs - progress.n_epochs) * (self._steps_per_epoch * of_step + of_held_out)

    def next(self, progress: Progress, n_at_most: int) -> tuple[Progress, dict[str, float]]:
        """What one call can hold of the next epochs, and the figures of the last one.

        An epoch is repeated at a lower rate if it diverges and none has been repeated. What an epoch leaves
        does not depend on how many are taken at once.
        """
        n_left = self._n_epochs - progress.n_epochs
        n_taken = max(1, min(n_at_most, self._block_steps // self._steps_per_epoch, n_left))
        following = None
        if n_taken > 1:
            following = self._several(progress, n_taken)
        return following or self._one(progress)

    def _several(self, progress: Progress, n_taken: int) -> tuple[Progress, dict[str, float]] | None:
        """These epochs, up to one that diverges or is the last; None if the first one diverges."""
        rate_factor = np.float32(progress.rate_factor)
        training, best, figures = self._attempt(progress, n_taken, rate_factor)
        n_good = self._n_good(progress, figures)
        if 0 < n_good < n_taken:  # what later epochs made of the model and the best one is not wanted
            training, best, figures = self._attempt(progress, n_good, rate_factor)
        if not n_good or not _is_finite(training):
            return None
        self._batches.drop(n_good)
        return self._following(progress, training, best, figures, progress.rate_factor), figures[-1]

    def _n_good(self, progress: Progress, figures: list[dict[str, float]]) -> int:
        """How many of the epochs come before one that diverges, or end with the last one."""
        largest = progress.largest
        losses = [*progress.history.get("val_loss", [])[: progress.n_epochs]]
        for n_before, of_epoch in enumerate(figures):
            usual = max(largest, self._architecture.n_features)
            # Whether the first epoch explodes takes a measurement of its own.
            if not np.isfinite(of_epoch["loss"]) or _explodes(of_epoch["loss"], usual):
                return n_before
            largest = max(largest, self._size(of_epoch))
            losses.append(of_epoch.get("val_loss", math.nan))
            if _stops(self._plan, losses):
                return n_before + 1
        return len(figures)

    def _one(self, progress: Progress) -> tuple[Progress, dict[str, float]]:
        lowered = progress.rate_factor
        training, best, (figures,) = self._attempt(progress, 1, np.float32(lowered))
        reason = self._divergence(progress, training, figures)
        if reason and lowered == 1:
            diverged, lowered = reason, _LOWER_RATE
            training, best, (figures,) = self._attempt(progress, 1, np.float32(lowered))
            reason = self._divergence(progress, training, figures)
            if not reason:
                warn_user(
                    f"training diverged: {diverged}. It was repeated from the beginning of this epoch, and "
                    f"goes on, at a tenth of the learning rate (now {self._plan.learning_rate:g}); lower "
                    "learning_rate yourself for a better model.",
                    ConvergenceWarning,
                )
        if reason:
            raise self._error(reason)
        self._batches.drop(1)
        return self._following(progress, training, best, [figures], lowered), figures

    def _following(
        self,
        progress: Progress,
        training: TrainingState,
        best: Best | None,
        figures: list[dict[str, float]],
        rate_factor: float,
    ) -> Progress:
        kept = progress.best
        if best is not None and (kept is None or float(best.loss) != kept[0]):
            state = training._replace(trainable=best.trainable, non_trainable=best.non_trainable)
            kept = float(best.loss), model_state(self._architecture, state)
        for of_epoch in figures:
            for name, value in of_epoch.items():
                progress.history.setdefault(name, []).append(value)
        largest = max(progress.largest, *map(self._size, figures))
        return Progress(
            progress.n_epochs + len(figures), training, progress.history, kept, largest, rate_factor
        )

    def _attempt(
        self, progress: Progress, n_epochs: int, rate_factor: np.float32
    ) -> tuple[TrainingState, Best | None, list[dict[str, float]]]:
        """The state after the next epochs, the best one, and each epoch's figures."""
        training, best = progress.training, self._best(progress)
        # At a rate of 0 it only measures.
        watched = self._observers.watch_batches and rate_factor > 0
        terms: list[npt.NDArray[np.float64]] = []
        held_out_terms: list[npt.NDArray[np.float64]] = []
        first_step = progress.n_epochs * self._steps_per_epoch
        for block in self._batches.blocks(n_epochs, self._block_steps):
            n_steps = len(block.order)
            ends = (first_step + np.arange(1, n_steps + 1)) % self._steps_per_epoch == 0
            for only in range(n_steps) if watched else (None,):
                if watched:
                    self._observers.begin_batch(progress.n_epochs, len(terms))  # of one step each
                training, its_figures, best = self._take_steps(
                    training, best, block, ends, first_step, rate_factor, only
                )
                terms.append(its_figures.terms)
                held_out_terms.append(its_figures.held_out[ends if only is None else ends[[only]]])
                if watched:
                    self._observers.end_batch(len(terms) - 1, _figures(np.concatenate(terms)), training)
            first_step += n_steps
        figures = [_figures(of_epoch) for of_epoch in np.split(np.concatenate(terms), n_epochs)]
        if self._held_out is not None:
            for of_epoch, (reconstruction, kl) in zip(figures, np.concatenate(held_out_terms), strict=True):
                loss = reconstruction + self._plan.beta * kl
                of_epoch |= {
                    "val_loss": float(loss),
                    "val_reconstruction": float(reconstruction),
                    "val_kl": float(kl),
                }
        return training, best, figures

    def _best(self, progress: Progress) -> Best | None:
        """The best model so far where held-out rows tell which it is."""
        if self._held_out is None:
            return None
        return best_of(progress.training.trainable, progress.training.non_trainable, progress.best)

    def _take_steps(
        self,
        training: TrainingState,
        best: Best | None,
        block: Block,
        ends: Flags,
        first_step: int,
        rate_factor: np.float32,
        only: int | None = None,
    ) -> tuple[TrainingState, BlockFigures, Best | None]:
        """What `train_block` makes of these batches, or of ``only`` one, at their place in the plan."""
        elapsed = (first_step + np.arange(len(block.order))) / self._n_steps
        return self._interruption.complete(
            train_block,
            self._architecture,
            training,
            block.rows,
            block.order,
            self._plan.rates(elapsed) * (self._observers.rate_factor * rate_factor),
            self._plan.betas(elapsed),
            self._options,
            self._limits,
            noise_seed=self._noise_seed,
            first_step=first_step,
            only=only,
            ends=ends,
            progress=elapsed.astype(np.float32),
            held_out=self._held_out,
            best=best,
        )

    def _size(self, figures: dict[str, float]) -> float:
        """How large the loss is; with the whole KL, which a warm-up may not count yet."""
        return float(abs(figures["loss"]) + self._plan.beta * figures["kl"])

    def _divergence(
        self,
        before: Progress,
        after: TrainingState,
        figures: dict[str, float],
    ) -> str:
        """What says that the epoch diverged, or nothing."""
        loss, number = figures["loss"], f"epoch {before.n_epochs + 1}"
        if not np.isfinite(loss):
            return f"the loss of {number} is {loss}"
        if not _is_finite(after):
            return f"weights after {number} are not finite"
        usual = max(before.largest, self._architecture.n_features)
        if _explodes(loss, usual) and not before.n_epochs:
            # Far rows or an explosion? Only now it is worth an epoch to know what nothing learned would lose.
            _, _, (untrained,) = self._attempt(before, 1, np.float32(0.0))
            usual = max(usual, self._size(untrained))
        if _explodes(loss, usual):
            return f"the loss of {number} is {loss:g}, more than {_EXPLODES_FROM:g} times any before"
        return ""

    def _error(self, reason: str) -> FloatingPointError:
        largest = np.nan_to_num(np.abs(representative(self._rows))).max(axis=0)
        return FloatingPointError(
            f"training diverged, also at a tenth of the learning rate: {reason}. Lower learning_rate (now "
            f"{self._plan.learning_rate:g}), set gradient_clip_norm (now {self._plan.gradient_clip_norm}), "
            f"or bring the data nearer to 1: column {largest.argmax()} of the scaled rows holds values up to "
            f"{largest.max():g}."
        )


def append_history(history: dict[str, list[float]], new: dict[str, list[float]]) -> dict[str, list[float]]:
    """Both histories in one; NaN for epochs in which a figure was not measured."""
    before, after = len(history.get("loss", ())), len(new["loss"])
    return {
        name: history.get(name, [math.nan] * before) + new.get(name, [math.nan] * after)
        for name in {**history, **new}
    }


def _figures(terms: npt.NDArray[np.float64]) -> dict[str, float]:
    """Means over the steps, by name."""
    return dict(zip(("loss", "reconstruction", "kl"), map(float, terms.mean(axis=0)), strict=True))


def _explodes(loss: float, usual: float) -> bool:
    return loss > _EXPLODES_FROM * usual


def _stops(plan: Plan, losses: Sequence[float]) -> bool:
    """Whether a training ends early after epochs with these losses of held-out rows."""
    return plan.early_stopping and not _improves(losses, plan.patience)


def _improves(losses: Sequence[float], patience: int) -> bool:
    """Whether the last so many epochs have made the loss better by `_LEAST_IMPROVEMENT`."""
    known = np.nan_to_num(losses, nan=np.inf, posinf=np.inf)
    if len(known) <= patience:
        return True
    return bool(known[-patience:].min() < known[:-patience].min() - _LEAST_IMPROVEMENT)


def _is_finite(training: TrainingState) -> bool:
    return bool(np.isfinite(training.trainable.numpy().sum()))
