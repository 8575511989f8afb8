"""Checkpoints: where an unfinished fit stands, in one file, and how a later fit goes on from there.

The file is an archive like that of a model (see `files.archive`): data without code, with checksums,
replaced whole or not at all. It holds what the trainings of all members need to go on to the same bits, the
seeds that were drawn, and a description of the fit, so that no other fit goes on with it. It holds no rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from vae_anomaly.core.rows import Rows
from vae_anomaly.core.spec import state_of
from vae_anomaly.core.types import Array, Callback, Constraints, Matrix, RandomStateLike, Values
from vae_anomaly.core.versions import versions
from vae_anomaly.data.lazy import blocks
from vae_anomaly.engine.steps import TrainingState
from vae_anomaly.ensemble.job import Job
from vae_anomaly.files import state_file
from vae_anomaly.files.archive import ModelFileError, path_of
from vae_anomaly.files.kinds import CHECKPOINT
from vae_anomaly.model.states import ModelState, Specification
from vae_anomaly.training.epochs import Progress
from vae_anomaly.training.plan import PARAMETERS

__all__ = ["Checkpoint"]

# Writing is to take at most 2 % of the time.
_WAITS = 50
_ROWS_AT_ONCE = 2**16
_SHOWN = 50
# What the learning-rate schedule is known by.
_PROGRESS = np.linspace(0, 1, 1001)


class Checkpoint(BaseEstimator):  # type: ignore[misc]
    """Where and how often a fit writes what it takes to go on with it.

    Parameters
    ----------
    path : str or path
        A file, for one fit at a time. The first state is written before the first epoch.
    every : "auto" or int, default="auto"
        Write after each so many epochs of a member. "auto" writes after an epoch once 50 times as much time
        has passed as the last writing took: a checkpoint costs about 2 % of the time.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.checkpoints import Checkpoint
    >>> X = np.random.RandomState(0).normal(size=(200, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint = Checkpoint(os.path.join(folder, "fit.checkpoint"), every=2)
    ...     detector = VAEDetector(epochs=5, checkpoint=checkpoint, random_state=0).fit(X, resume=True)
    ...     os.listdir(folder)  # the fit has been finished
    []
    """

    _parameter_constraints: ClassVar[Constraints] = {
        "path": [str, HasMethods("__fspath__")],
        "every": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, path: str | os.PathLike[str], every: str | int = "auto") -> None:
        self.path = path
        self.every = every


def open_checkpoint(
    checkpoint: str | os.PathLike[str] | Checkpoint | None,
    resume: bool,
    callbacks: Sequence[Callback] | None = None,
) -> CheckpointFile | None:
    """The file of a detector's ``checkpoint``, read if a fit is to go on with it; None if there is none.

    Raises
    ------
    ValueError
        If there is nothing to resume from, or ``callbacks``, whose state no checkpoint can hold.
    ModelFileError
        If the path holds a file that is not a checkpoint, or a damaged one. It is left as it is.
    """
    if checkpoint is None:
        if resume:
            raise ValueError(
                "resume=True goes on from a checkpoint, and checkpoint is None: set it to the path of a file "
                "and fit with resume=True from the beginning; while there is no such file, a fit starts anew."
            )
        return None
    if callbacks:
        raise ValueError(
            "a checkpoint cannot hold what callbacks remember, so a fit with them could not go on from it; "
            "set callbacks=None (early_stopping and learning_rate_schedule are kept) or checkpoint=None."
        )
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    checkpoint._validate_params()
    return CheckpointFile(os.path.realpath(path_of(checkpoint.path)), checkpoint.every, resume)


class CheckpointFile:
    """The checkpoint of one fit: a `members.ProgressStore`."""

    def __init__(self, path: str, every: str | int, resume: bool) -> None:
        self._path, self._every = path, every
        found = _read(path)
        self._found = found if resume else None
        self._progress: list[Progress | None] = []
        self._about: Values = {}
        self._has_news = False
        self._written_at = self._took = 0.0
        self._lock = threading.Lock()

    def seeds(self, drawn: Sequence[int], random_state: RandomStateLike) -> list[int]:
        """The seeds of the fit to go on with, where only chance decided them; else those ``drawn`` now."""
        kept = self._kept_seeds()
        seeds = drawn if isinstance(random_state, Integral) or len(kept) != len(drawn) else kept
        self._about["seeds"] = [int(seed) for seed in seeds]
        return list(self._about["seeds"])

    def first_seed(self, drawn: int, random_state: RandomStateLike) -> int:
        """The first seed of that fit; else the one ``drawn`` now."""
        kept = self._kept_seeds()
        return drawn if isinstance(random_state, Integral) or not kept else int(kept[0])

    def _kept_seeds(self) -> list[int]:
        return [] if self._found is None else [*self._found["seeds"]]

    def begin(self, job: Job) -> list[Progress | None]:
        """Where each member's training is to go on; None is its beginning.

        Raises
        ------
        ValueError
            If the file is that of another fit; says what differs.
        OSError
            If the file cannot be written.
        """
        self._about["fit"] = {
            name: _describe(value)
            for name, value in {
                **{name: getattr(job.plan, name) for name in PARAMETERS},
                "learning_rate_schedule": replace(job.plan, learning_rate=1.0).rates(_PROGRESS).tolist(),
                "members": tuple(tuple(state_of(member)[0].items()) for member in job.recipe.members),
                "validation_fraction": job.recipe.validation_fraction,
                "early_stopping": job.recipe.early_stopping,
                "network": job.specification.network.architecture_key(),
                "likelihood": job.specification.likelihood.architecture_key(),
                "posterior": job.specification.posterior.architecture_key(),
                "prior": job.specification.prior.architecture_key(),
                "patches": None if job.patches is None else job.patches.side,
                "latent_dim": job.specification.latent_dim,
                "n_draws": len(job.draws),
                "random_state": (tuple(self._about["seeds"]), *map(tuple, job.seeds)),
                "the earlier fit that warm_start goes on from": _digest(_arrays(job.earlier, job.draws)),
                "the scaled training rows": (
                    *map(int, job.everything.shape),
                    _digest(_pieces(job.everything)),
                ),
                **{f"the release of {name}": release for name, release in versions().items()},
            }.items()
            if name != "the release of python"  # it decides no bits
        }
        self._progress = [None] * job.n_members
        if self._found is None:
            self._write()
        else:
            self._check(self._found["fit"])
            members = self._found["members"]
            self._progress = [member and _to_progress(member, job.specification) for member in members]
            self._found = None
            self._written_at = time.monotonic()
        return list(self._progress)

    def keep(self, position: int, progress: Progress) -> None:
        """Take note of where a member stands, and write if it is time to."""
        self._progress[position] = progress
        self._has_news = True
        if isinstance(self._every, str):
            # Another thread that is writing just now has hardly less to tell.
            if time.monotonic() - self._written_at < _WAITS * self._took or not self._lock.acquire(False):
                return
        elif progress.n_epochs % self._every:
            return
        else:
            self._lock.acquire()
        try:
            self._write()
        finally:
            self._lock.release()

    def flush(self) -> None:
        """Write what has not been written."""
        if self._has_news:
            with self._lock:
                self._write()

    def remove(self) -> None:
        """The fit has been finished."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def _check(self, found: dict[str, str]) -> None:
        now = self._about["fit"]
        differing = [name for name in now if found.get(name) != now[name]]
        if "members" in differing:  # more members draw more seeds
            differing = [name for name in differing if name != "random_state"]
        if differing:
            shown = [
                name
                if max(len(str(found.get(name))), len(now[name])) > _SHOWN
                else f"{name} ({found.get(name)} there, {now[name]} here)"
                for name in differing
            ]
            raise ValueError(
                f"the checkpoint {self._path!r} is of another fit: what differs is {', '.join(shown)}. "
                "Restore it; or fit with resume=False, which starts anew and replaces the file; or choose "
                "another path."
            )

    def _write(self) -> None:
        self._has_news = False  # an epoch that ends during the writing sets it again
        try:
            self._write_progress()
        except BaseException:
            self._has_news = True
            raise

    def _write_progress(self) -> None:
        start = time.monotonic()
        members = [progress and _to_values(progress) for progress in self._progress]
        state = {**self._about, "members": members}
        state_file.write(self._path, CHECKPOINT, state, what="checkpoint", otherwise="Set checkpoint=None")
        self._written_at = time.monotonic()
        self._took = self._written_at - start


def _read(path: str) -> Values | None:
    """What a checkpoint holds; None if there is no file."""
    try:
        with state_file.open_state(path, CHECKPOINT) as state:
            return state
    except FileNotFoundError:
        return None
    except ModelFileError as error:
        raise ModelFileError(
            f"checkpoint={path!r} cannot be used: {error} The file is left as it is; choose another path, or "
            "remove it to start anew."
        ) from error


def _to_values(progress: Progress) -> Values:
    """A progress as values that a file can hold."""
    state, best = progress.training, progress.best
    return {
        **progress._asdict(),
        "training": [np.asarray(values) for values in state[:3]],
        "non_trainable": [np.asarray(values) for values in state.non_trainable],
        "history": {name: values[: progress.n_epochs] for name, values in progress.history.items()},
        "best": best and [best[0], best[1].trainable, list(best[1].non_trainable)],
    }


def _to_progress(stored: Values, specification: Specification) -> Progress:
    best = stored["best"]
    if best is not None:
        val_loss, trainable, non_trainable = best
        best = val_loss, ModelState(specification, trainable, tuple(non_trainable))
    weights, first_moment, second_moment = stored["training"]
    state = TrainingState(weights, first_moment, second_moment, stored["non_trainable"])
    others = {name: stored[name] for name in ("n_epochs", "history", "largest", "rate_factor")}
    return Progress(training=state, best=best, **others)


def _describe(value: object) -> str:
    """Equal for equal values, in every process; a digest if it would be long."""
    text = str(_plain(value))
    return text if len(text) <= _SHOWN else hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> object:
    """Values as texts and tuples of them; classes and functions by their names."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    if isinstance(value, np.generic):
        return _plain(value.item())
    if callable(value):
        return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', type(value).__name__)}"
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _arrays(states: Sequence[ModelState] | None, draws: Rows) -> Iterable[Array]:
    """The arrays that a warm start goes on from; none without."""
    for state in states or ():
        yield from (state.trainable, *state.non_trainable, draws)


def _pieces(rows: Matrix) -> Iterable[Rows]:
    for block in blocks(rows):
        for start in range(0, len(block), _ROWS_AT_ONCE):
            yield block[start : start + _ROWS_AT_ONCE]


def _digest(arrays: Iterable[Array]) -> str:
    """SHA-256 of arrays, whatever their order in memory."""
    checksum = hashlib.sha256()
    for array in arrays:
        checksum.update(np.ascontiguousarray(array).data)
    return checksum.hexdigest()
