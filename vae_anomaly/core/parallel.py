"""Where independent trainings run: in threads of this process, or where joblib's active backend says.

Nobody sets a number of jobs here: `joblib.parallel_config` does, around a fit. Without it, a fit has as many
threads as there are processors. A fit that is a task itself, in a worker of a search or a cluster, has as
many as the worker is told to have, or one if it shares its process with other tasks.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, CancelledError
from typing import Any, NamedTuple

import joblib
from joblib.parallel import SequentialBackend, get_active_backend

from vae_anomaly.core.conventions import warn_user

__all__ = ["Place", "find_place", "map_elsewhere"]

_ATTEMPTS = 3


class Place(NamedTuple):
    """Where trainings run.

    Attributes
    ----------
    n_at_once : int
    elsewhere : bool
        Whether in other processes, by `map_elsewhere`; else in threads of this one.
    """

    n_at_once: int
    elsewhere: bool


def find_place() -> Place:
    """Where joblib's configuration lets trainings run that are begun here and now."""
    if _is_dask_task():  # which shares the processors, and the cluster, with others
        return Place(1, elsewhere=False)
    backend, n_jobs = get_active_backend()
    if isinstance(backend, SequentialBackend):
        return Place(1, elsewhere=False)
    if n_jobs is None:
        n_jobs = backend.default_n_jobs
        if n_jobs == 1:  # nobody has said anything
            return Place(
                _n_threads_of_task() if backend.nesting_level else joblib.cpu_count(), elsewhere=False
            )
    n_at_once = backend.effective_n_jobs(n_jobs)
    shares_memory = getattr(backend, "supports_sharedmem", False)
    return Place(n_at_once, elsewhere=n_at_once > 1 and not shares_memory)


def map_elsewhere(function: Callable[..., Any], shared: tuple[Any, ...], tasks: Iterable[Any]) -> list[Any]:
    """``function(*shared, task)`` of each task, in their order, by workers of joblib's active backend.

    What is ``shared`` is sent once: large arrays as one file in memory, to a cluster scattered. What a worker
    warns of is warned of here. Tasks of a cluster are repeated if it has lost what they share with a worker.

    Raises
    ------
    BrokenExecutor
        If a process of this machine has been killed; says what to do.
    """
    call = joblib.delayed(_call)
    calls = [call(function, *shared, task) for task in tasks]
    for n_left in reversed(range(_ATTEMPTS)):
        try:
            found = joblib.Parallel(batch_size=1)(calls)
            break
        except BrokenExecutor as error:
            error.add_note(
                "A process that trained members, or scored a fold, has been killed: most often for want of "
                "memory. Lower n_jobs in joblib.parallel_config, or use threads: backend='threading'. An "
                "earlier fit is as it was."
            )
            raise
        except CancelledError:  # dask repeats tasks of a lost worker, and cannot repeat what was sent to it
            if not n_left:
                raise
    results = []
    for result, warned in found:
        for message in warned:
            warn_user(message)
        results.append(result)
    return results


def _call(function: Callable[..., Any], *arguments: Any) -> tuple[Any, list[Warning]]:
    # In a worker of several threads they may record each other's: warned of all the same.
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        result = function(*arguments)
    return result, [each.message for each in recorded if isinstance(each.message, Warning)]


def _n_threads_of_task() -> int:
    """How many threads a task of joblib may have: what joblib has told a process that is the task's own."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    is_alone = threading.current_thread() is threading.main_thread()
    return int(told) if is_alone and told.isdigit() else 1


def _is_dask_task() -> bool:
    worker = sys.modules.get("distributed.worker")
    return hasattr(getattr(worker, "thread_state", None), "execution_state")
