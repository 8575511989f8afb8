"""Plans: how to train, and how a plan's "auto" is decided for so many rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vae_anomaly.core.types import Floats, Matrix
from vae_anomaly.data.lazy import has_gaps
from vae_anomaly.objectives import ELBO, Objective

__all__ = ["AUTO_BATCH_SIZE", "PARAMETERS", "SCHEDULES", "Plan"]

#: What ``batch_size="auto"`` means for networks of any usual size.
AUTO_BATCH_SIZE = 128

# XLA compiles the training loop in .8 to 1.3 s and then saves about 0.1 ms a step, which is most of a small
# network's step and little of a large one's (measured on one x86 core, 6,000 to 550,000 weights): one
# training of 8,700 to 13,000 steps pays that back, or the third of 3,000, and it takes 130 MB.
_XLA_PAYS_FROM_STEPS = 8_000
# About as many until early stopping ends most trainings on small tables.
_EPOCHS_TO_EXPECT = 200

_XLA_PAYS_TO_WEIGHTS = 20_000

# So that an encoder meets gaps in every column. To hide a fifth costs AUROC: .849 for .857 with 10 % of the
# cells missing, .813 for .820 with 30 % (mean of twenty tables).
_MASKED_FRACTION = 0.05

_AUTO_STEPS, _AUTO_STEPS_AT_MOST, _AUTO_EPOCHS = 1000, 2000, 5

Schedule = str | Callable[[Floats], npt.ArrayLike] | None


@dataclass(frozen=True)
class Plan:
    """How to train: the detector's parameters of the same names, and what a member has of its own.

    ``n_trainings`` is how many trainings the compiled program serves.
    """

    epochs: int | str
    batch_size: int
    learning_rate: float
    learning_rate_schedule: Schedule = None
    gradient_clip_norm: float | None = None
    objective: Objective = ELBO
    n_training_draws: int = 1
    beta: float = 1.0
    kl_warm_up: float = 0.0
    free_bits: float = 0.0
    patience: int = 30
    jit_compile: bool | str = "auto"
    device: str | None = None
    masked_fraction: float | str = "auto"
    early_stopping: bool = False
    trimmed_fraction: float = 0.0
    n_trainings: int = 1

    def steps_per_epoch(self, n_rows: int) -> int:
        """Batches it takes to use every row at least once."""
        return -(-n_rows // self.batch_size)

    def n_epochs(self, n_rows: int) -> int:
        """Passes over the rows; "auto" makes about 1,000 steps of them (2,000 that may stop), at least 5."""
        if self.epochs != "auto":
            return int(self.epochs)
        steps = _AUTO_STEPS_AT_MOST if self.early_stopping else _AUTO_STEPS
        return max(_AUTO_EPOCHS, -(-steps // self.steps_per_epoch(n_rows)))

    def fraction_to_mask(self, rows: Matrix) -> float:
        """Share of these rows' values to hide from the encoder; "auto" does if some are missing anyway."""
        if isinstance(self.masked_fraction, str):
            return _MASKED_FRACTION if has_gaps(rows) else 0.0
        return self.masked_fraction

    def n_kept(self) -> int:
        """Rows of a batch that count, at least one."""
        return max(1, self.batch_size - round(self.trimmed_fraction * self.batch_size))

    def rates(self, progress: Floats) -> npt.NDArray[np.float32]:
        """Learning rate at each point of the training, where progress runs from 0 to 1."""
        schedule = self.learning_rate_schedule
        if schedule is None:
            factor = np.ones_like(progress)
        elif callable(schedule):
            factor = self._called(schedule, progress)
        else:
            factor = SCHEDULES[schedule](progress)
        return np.asarray(self.learning_rate * factor, dtype=np.float32)

    @staticmethod
    def _called(schedule: Callable[[Floats], npt.ArrayLike], progress: Floats) -> Floats:
        received = schedule(progress)
        try:
            factor = np.broadcast_to(np.asarray(received, dtype=float), progress.shape)
        except (TypeError, ValueError):
            factor = np.array([np.nan])
        if not (np.isfinite(factor).all() and (factor >= 0).all()):
            raise ValueError(
                "learning_rate_schedule must return a number >= 0 for each of the "
                f"{len(progress)} points of progress it is called with; received {received!r}."
            )
        return factor

    def betas(self, progress: Floats) -> npt.NDArray[np.float32]:
        """Weight of the KL at each point of the training: a linear rise, then ``beta``."""
        rise = np.minimum(1.0, progress / self.kl_warm_up) if self.kl_warm_up else np.ones_like(progress)
        return np.asarray(self.beta * rise, dtype=np.float32)

    def uses_xla(self, n_rows: int, n_weights: int, has_convolutions: bool = False) -> bool:
        """Whether compiling with XLA is expected to save more time than it costs."""
        if self.jit_compile != "auto":
            return bool(self.jit_compile)
        n_epochs = self.n_epochs(n_rows)
        if self.early_stopping:
            n_epochs = min(n_epochs, _EPOCHS_TO_EXPECT)
        n_steps = self.n_trainings * n_epochs * self.steps_per_epoch(n_rows)
        # XLA's convolutions took 2 to 14 times as long (one x86 core, images of 8 x 8, signals of 24 to 128).
        return n_steps >= _XLA_PAYS_FROM_STEPS and n_weights <= _XLA_PAYS_TO_WEIGHTS and not has_convolutions


_DECIDED_ELSEWHERE = {"early_stopping", "trimmed_fraction", "n_trainings"}

#: The detector's parameters that go into a plan as they are.
PARAMETERS = tuple(name for name in Plan.__dataclass_fields__ if name not in _DECIDED_ELSEWHERE)

#: Learning-rate schedules by name: progress in [0, 1] -> factor.
SCHEDULES: dict[str, Callable[[Floats], Floats]] = {
    "cosine": lambda progress: 0.5 * (1 + np.cos(np.pi * progress)),
    "linear": lambda progress: 1 - progress,
}
