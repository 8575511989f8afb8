"""Training: epochs, batches, annealing, early stopping and history, over a compiled program.

A batch always has ``batch_size`` rows: the last one of an epoch is filled up from the beginning of the
epoch's shuffled order, and fewer rows than a batch are repeated. So every row is used in every epoch,
and no shape depends on how many there are.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

from vae_anomaly.core.backend import tf
from vae_anomaly.core.rows import Rows
from vae_anomaly.core.types import Callback
from vae_anomaly.data.sparse import blocks, has_gaps, representative
from vae_anomaly.engine.programs import Architecture, architecture_of, on_device
from vae_anomaly.engine.steps import (
    BlockOptions,
    Limits,
    TrainingState,
    block_steps,
    model_state,
    train_block,
    training_state,
)
from vae_anomaly.model.states import ModelState
from vae_anomaly.scoring.passes import elbo_terms
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


class Validation(NamedTuple):
    """Rows that are not trained on, and the draws their ELBO is averaged over."""

    rows: Rows
    draws: Rows


class TrainingResult(NamedTuple):
    """The trained model and what happened, epoch by epoch."""

    state: ModelState
    history: dict[str, list[float]]


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
        return self.n_epochs >= n_epochs or (plan.early_stopping and not self._improves(plan.patience))

    def _improves(self, patience: int) -> bool:
        """Whether the last so many epochs have made ``val_loss`` better by `_LEAST_IMPROVEMENT`."""
        losses = np.nan_to_num(self.history.get("val_loss", [])[: self.n_epochs], nan=np.inf, posinf=np.inf)
        if len(losses) <= patience:
            return True
        return bool(losses[-patience:].min() < losses[:-patience].min() - _LEAST_IMPROVEMENT)


def train(
    state: ModelState,
    rows: Rows,
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
        observers.begin()
        last = progress.is_last(plan, n_epochs)
        while not last and not interruption.stop_requested:
            try:
                observers.begin_epoch(progress.n_epochs)
                progress, figures = epochs.next(progress)
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
    """The epochs of one training: a `Progress` in, the next one out."""

    def __init__(
        self,
        architecture: Architecture,
        rows: Rows,
        plan: Plan,
        shuffle_seed: int,
        noise_seed: int,
        validation: Validation | None,
        interruption: Interruption,
        observers: Observers,
    ) -> None:
        self._architecture, self._rows, self._plan = architecture, rows, plan
        self._noise_seed, self._validation = noise_seed, validation
        self._interruption, self._observers = interruption, observers
        self._steps_per_epoch = plan.steps_per_epoch(len(rows))
        self._n_steps = self._steps_per_epoch * plan.n_epochs(len(rows))
        fraction_to_mask = plan.fraction_to_mask(rows)
        self._options = BlockOptions(
            plan.batch_size,
            plan.objective,
            plan.n_training_draws,
            plan.free_bits > 0,
            plan.gradient_clip_norm is not None,
            plan.trimmed_fraction > 0,
            architecture.specification.marks_missing or fraction_to_mask > 0 or has_gaps(rows),
            plan.uses_xla(self._n_steps, architecture.n_weights),
            plan.device,
        )
        self._limits = Limits(
            tf.constant(plan.free_bits, tf.float32),
            tf.constant(plan.gradient_clip_norm or 0.0, tf.float32),
            tf.constant(plan.n_kept()),
            tf.constant(fraction_to_mask, tf.float32),
        )
        self._shuffler = _Shuffler(len(rows), plan, block_steps(architecture, plan.batch_size), shuffle_seed)

    def skip(self, n_epochs: int) -> None:
        """Draw what epochs that are finished have drawn: the generator's state need not be kept."""
        for _ in range(n_epochs):
            self._shuffler.order()

    def next(self, progress: Progress) -> tuple[Progress, dict[str, float]]:
        """One epoch, repeated at a lower rate if it diverges and none has been repeated."""
        order, lowered = self._shuffler.order(), progress.rate_factor
        training, figures = self._attempt(progress, order, np.float32(lowered))
        reason = self._divergence(progress, order, training, figures)
        if reason and lowered == 1:
            diverged, lowered = reason, _LOWER_RATE
            training, figures = self._attempt(progress, order, np.float32(lowered))
            reason = self._divergence(progress, order, training, figures)
            if not reason:
                warnings.warn(
                    f"training diverged: {diverged}. It was repeated from the beginning of this epoch, and "
                    f"goes on, at a tenth of the learning rate (now {self._plan.learning_rate:g}); lower "
                    "learning_rate yourself for a better model.",
                    ConvergenceWarning,
                    stacklevel=2,
                )
        if reason:
            raise self._error(reason)
        best = progress.best
        if self._validation is not None:
            present = model_state(self._architecture, training)
            figures |= self._interruption.complete(_validate, present, self._validation, self._plan)
            loss = float(figures["val_loss"])
            if best is None or loss < best[0] or np.isnan(best[0]):
                best = (loss, present)
        for name, value in figures.items():
            progress.history.setdefault(name, []).append(float(value))
        largest = max(progress.largest, self._size(figures))
        following = Progress(
            progress.n_epochs + 1, training, progress.history, best, largest, rate_factor=lowered
        )
        return following, figures

    def _attempt(
        self, progress: Progress, order: npt.NDArray[np.integer], rate_factor: np.float32
    ) -> tuple[TrainingState, dict[str, float]]:
        """The state after the epoch and its mean loss, reconstruction and KL."""
        training, sums, n_taken = progress.training, np.zeros(3), 0
        # At a rate of 0 it only measures.
        watched = self._observers.watch_batches and rate_factor > 0
        figures: dict[str, float] = {}
        for block, first_step in self._shuffler.blocks(order, progress.n_epochs):
            elapsed = (first_step + np.arange(len(block))) / self._n_steps
            rates, betas = self._plan.rates(elapsed), self._plan.betas(elapsed)
            for only in range(len(block)) if watched else (None,):
                if watched:
                    self._observers.begin_batch(progress.n_epochs, n_taken)
                training, its_sums = self._interruption.complete(
                    train_block,
                    self._architecture,
                    training,
                    self._rows,
                    block,
                    rates * (self._observers.rate_factor * rate_factor),
                    betas,
                    self._options,
                    self._limits,
                    noise_seed=self._noise_seed,
                    first_step=first_step,
                    only=only,
                )
                sums += its_sums.numpy()
                n_taken += len(block) if only is None else 1
                figures = dict(zip(("loss", "reconstruction", "kl"), sums / n_taken, strict=True))
                if watched:
                    self._observers.end_batch(n_taken - 1, figures, training)
        return training, figures

    def _size(self, figures: dict[str, float]) -> float:
        """How large the loss is; with the whole KL, which a warm-up may not count yet."""
        return float(abs(figures["loss"]) + self._plan.beta * figures["kl"])

    def _divergence(
        self,
        before: Progress,
        order: npt.NDArray[np.integer],
        after: TrainingState,
        figures: dict[str, float],
    ) -> str:
        """What says that the epoch diverged, or nothing."""
        loss, number = figures["loss"], f"epoch {before.n_epochs + 1}"
        if not np.isfinite(loss):
            return f"the loss of {number} is {loss}"
        if not np.isfinite(after.trainable.numpy().sum()):
            return f"weights after {number} are not finite"
        usual = max(before.largest, self._architecture.n_features)
        if loss > _EXPLODES_FROM * usual and not before.n_epochs:
            # Far rows or an explosion? Only now it is worth an epoch to know what nothing learned would lose.
            _, untrained = self._attempt(before, order, np.float32(0.0))
            usual = max(usual, self._size(untrained))
        if loss > _EXPLODES_FROM * usual:
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


class _Shuffler:
    """The shuffled order of the rows, in blocks of batches."""

    def __init__(self, n_rows: int, plan: Plan, block_steps: int, seed: int) -> None:
        self._batch_size, self._block_steps = plan.batch_size, block_steps
        self._steps_per_epoch = plan.steps_per_epoch(n_rows)
        self._n_rows = n_rows
        self._rng = np.random.RandomState(seed)

    def order(self) -> npt.NDArray[np.integer]:
        """All rows' positions in the order of the next epoch."""
        return self._rng.permutation(self._n_rows)

    def blocks(
        self, order: npt.NDArray[np.integer], epoch: int
    ) -> Iterator[tuple[npt.NDArray[np.integer], int]]:
        """Positions of the rows of each batch, and how many steps come before."""
        # np.resize repeats the order from its beginning until the last batch is full.
        order = np.resize(order, (self._steps_per_epoch, self._batch_size)).astype(np.int32)
        for start in range(0, self._steps_per_epoch, self._block_steps):
            yield order[start : start + self._block_steps], epoch * self._steps_per_epoch + start


def append_history(history: dict[str, list[float]], new: dict[str, list[float]]) -> dict[str, list[float]]:
    """Both histories in one; NaN for epochs in which a figure was not measured."""
    before, after = len(history.get("loss", ())), len(new["loss"])
    return {
        name: history.get(name, [math.nan] * before) + new.get(name, [math.nan] * after)
        for name in {**history, **new}
    }


def _validate(state: ModelState, validation: Validation, plan: Plan) -> dict[str, float]:
    terms = [
        elbo_terms([state], block, validation.draws, plan.device)[0] for block in blocks(validation.rows)
    ]
    reconstruction, kl = np.concatenate(terms).mean(axis=0)
    return {"val_loss": reconstruction + plan.beta * kl, "val_reconstruction": reconstruction, "val_kl": kl}
