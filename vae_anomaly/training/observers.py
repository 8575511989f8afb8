"""Observers: whoever watches a training, Keras callbacks and a progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vae_anomaly.core.backend import keras
from vae_anomaly.core.conventions import warn_user
from vae_anomaly.core.types import Callback
from vae_anomaly.engine.programs import Architecture
from vae_anomaly.engine.steps import TrainingState, model_state
from vae_anomaly.model.states import ModelState
from vae_anomaly.training.plan import Plan

__all__ = ["Observers", "files_of_member"]

_MEMBER = "{member}"
_BATCH_HOOKS = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")
# Where Keras' own callbacks keep what they write to.
_FILES = {
    "BackupAndRestore": "backup_dir",
    "CSVLogger": "filename",
    "ModelCheckpoint": "filepath",
    "TensorBoard": "log_dir",
}


class Observers:
    """Whoever watches the training: Keras callbacks and a progress bar.

    Attributes
    ----------
    watch_batches : bool
        Whether callbacks want to be called at each batch.
    watch_epochs : bool
        Whether anybody wants to be told of each epoch.
    rate_factor : np.float32
        What callbacks have made of the learning rate: multiplies the one that is planned.
    """

    def __init__(
        self,
        architecture: Architecture,
        plan: Plan,
        n_rows: int,
        callbacks: Sequence[Callback],
        verbose: int,
    ) -> None:
        self._architecture, self._plan = architecture, plan
        self._given = callbacks
        self.watch_batches = any(map(_watches_batches, callbacks))
        self.watch_epochs = bool(callbacks or verbose)
        self.rate_factor = np.float32(1.0)
        n_epochs, self._steps_per_epoch = plan.n_epochs(n_rows), plan.steps_per_epoch(n_rows)
        self._n_steps = n_epochs * self._steps_per_epoch
        self._model = architecture.new_model() if callbacks else None
        if self._model is not None:
            # Callbacks that steer the learning rate read and set it here.
            self._model.compile(optimizer=keras.optimizers.Adam(plan.learning_rate))
            self._model.stop_training = False
            self._show_rate(0)
            self._callbacks = keras.callbacks.CallbackList(
                list(callbacks),
                model=self._model,
                epochs=n_epochs,
                steps=self._steps_per_epoch,
                verbose=verbose,
            )
        self._bar = keras.utils.Progbar(n_epochs, unit_name="epoch") if verbose else None

    def close(self) -> None:
        """Take the model from the callbacks: they outlive the training, are pickled and cloned."""
        for callback in self._given:
            callback._model = None

    def begin(self) -> None:
        """Tell everyone that the training begins."""
        if self._model is not None:
            self._callbacks.on_train_begin()

    def begin_epoch(self, epoch: int) -> None:
        """Tell everyone that an epoch begins."""
        if self._model is not None:
            self._read_rate()
            self._show_rate(epoch * self._steps_per_epoch)
            self._callbacks.on_epoch_begin(epoch)
            self._read_rate()

    def begin_batch(self, epoch: int, batch: int) -> None:
        """Tell everyone that a batch of the epoch begins."""
        if self._model is not None:
            self._show_rate(epoch * self._steps_per_epoch + batch)
            self._callbacks.on_train_batch_begin(batch)
            self._read_rate()

    def end_batch(
        self, batch: int, figures: Mapping[str, float | np.floating], training: TrainingState
    ) -> None:
        """Tell everyone of the epoch's means so far, with the present weights."""
        if self._model is not None:
            self._architecture.load_into(self._model, model_state(self._architecture, training))
            self._callbacks.on_train_batch_end(batch, {name: float(value) for name, value in figures.items()})
            self._read_rate()

    def _planned_rate(self, step: int) -> np.float32:
        (rate,) = self._plan.rates(np.array([step / self._n_steps]))
        return np.float32(rate)

    def _show_rate(self, step: int) -> None:
        """Let callbacks see the learning rate that this step is to be taken with."""
        assert self._model is not None
        self._shown_at = step
        self._model.optimizer.learning_rate = self._planned_rate(step) * self.rate_factor
        self._shown = float(self._model.optimizer.learning_rate)

    def _read_rate(self) -> None:
        """Take over what callbacks have made of the rate that they were shown."""
        assert self._model is not None
        rate, planned = float(self._model.optimizer.learning_rate), self._planned_rate(self._shown_at)
        if rate != self._shown and planned > 0:
            self.rate_factor, self._shown = np.float32(rate / float(planned)), rate

    def end_epoch(
        self, epoch: int, figures: Mapping[str, float | np.floating], training: TrainingState, last: bool
    ) -> bool:
        """Tell everyone; return whether this was the last epoch, by the schedule or by a callback."""
        figures = {name: float(value) for name, value in figures.items()}
        if self._model is not None:
            self._architecture.load_into(self._model, model_state(self._architecture, training))
            self._callbacks.on_epoch_end(epoch, figures)
            last = last or bool(self._model.stop_training)
        if self._bar is not None:
            # Each figure is already an epoch's mean; the bar would average it over epochs again.
            self._bar.stateful_metrics = set(figures)
            self._bar.update(epoch + 1, list(figures.items()), finalize=last)
        return last

    def end(self, final: ModelState) -> ModelState:
        """Let callbacks have the last word on the weights, as when one restores its best epoch."""
        if self._model is None:
            return final
        self._architecture.load_into(self._model, final)
        self._callbacks.on_train_end()
        return self._architecture.state_of(self._model)


@contextlib.contextmanager
def files_of_member(callbacks: Sequence[Callback], member: int, n_members: int) -> Iterator[None]:
    """Let callbacks write where their paths, with ``{member}`` replaced by the member's number, point to.

    Every text among a callback's attributes counts as a path. Those of Keras that would write what belongs to
    several members to one place are warned of.

    Raises
    ------
    TypeError
        If one is not a `keras.callbacks.Callback`.
    """
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            raise TypeError(f"callbacks must be keras.callbacks.Callback objects; received {callback!r}.")
        if member == 0 and n_members > 1:
            _warn_of_one_file(callback, n_members)
    changed = [
        (callback, name, value)
        for callback in callbacks
        for name, value in vars(callback).items()
        if isinstance(value, str) and _MEMBER in value
    ]
    for callback, name, value in changed:
        setattr(callback, name, value.replace(_MEMBER, str(member)))
    try:
        yield
    finally:
        for callback, name, value in changed:
            setattr(callback, name, value)


def _warn_of_one_file(callback: Callback, n_members: int) -> None:
    for kind, attribute in _FILES.items():
        if not isinstance(callback, getattr(keras.callbacks, kind)) or getattr(callback, "append", False):
            continue
        path = str(getattr(callback, attribute))
        if _MEMBER not in path:
            warn_user(
                f"callbacks are called for each of the {n_members} members, one after another, and {kind} "
                f"would write all of them to {path!r}: put {{member}} into the path, which becomes the "
                "member's number, or fit with members=1.",
                UserWarning,
            )


def _watches_batches(callback: Callback) -> bool:
    """Whether a callback does anything at each batch.

    Many of Keras' own have the methods, and do nothing there unless a frequency is set.
    """
    if type(callback).__module__.startswith("keras."):
        frequencies = [getattr(callback, name, "epoch") for name in ("save_freq", "update_freq")]
        if all(frequency == "epoch" for frequency in frequencies) and not isinstance(
            callback, (keras.callbacks.LambdaCallback, keras.callbacks.ProgbarLogger)
        ):
            return False
    return any(not hasattr(getattr(callback, hook), "_is_default") for hook in _BATCH_HOOKS)
