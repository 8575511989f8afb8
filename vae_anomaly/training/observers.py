"""Observers: whoever watches a training, Keras callbacks and a progress bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Callback
from vae_anomaly.engine.programs import Architecture
from vae_anomaly.engine.steps import TrainingState, model_state
from vae_anomaly.model.states import ModelState

__all__ = ["Observers"]


class Observers:
    """Whoever watches the training: Keras callbacks and a progress bar."""

    def __init__(
        self,
        architecture: Architecture,
        learning_rate: float,
        n_epochs: int,
        callbacks: Sequence[Callback],
        verbose: int,
    ) -> None:
        self._architecture, self._learning_rate = architecture, learning_rate
        for callback in callbacks:
            if not isinstance(callback, keras.callbacks.Callback):
                raise TypeError(f"callbacks must be keras.callbacks.Callback objects; received {callback!r}.")
        self._given = callbacks
        self._model = architecture.new_model() if callbacks else None
        if self._model is not None:
            # Callbacks that steer the learning rate read and set it here.
            self._model.compile(optimizer=keras.optimizers.Adam(learning_rate))
            self._model.stop_training = False
            self._callbacks = keras.callbacks.CallbackList(
                list(callbacks), model=self._model, epochs=n_epochs
            )
        self._bar = keras.utils.Progbar(n_epochs, unit_name="epoch") if verbose else None

    def close(self) -> None:
        """Take the model from the callbacks: they outlive the training, are pickled and cloned."""
        for callback in self._given:
            callback._model = None

    def rate_factor(self) -> np.float32:
        """What callbacks have made of the learning rate."""
        if self._model is None:
            return np.float32(1.0)
        # Keras keeps the rate in float32: what nobody has changed is to be exactly 1.
        return np.float32(float(self._model.optimizer.learning_rate) / float(np.float32(self._learning_rate)))

    def begin(self) -> None:
        """Tell everyone that the training begins."""
        if self._model is not None:
            self._callbacks.on_train_begin()

    def begin_epoch(self, epoch: int) -> None:
        """Tell everyone that an epoch begins."""
        if self._model is not None:
            self._callbacks.on_epoch_begin(epoch)

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
