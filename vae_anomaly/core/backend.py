"""The one door to Keras and TensorFlow: opened at first use, quietly, and never at import.

`keras` and `tf` are modules that load themselves when an attribute of theirs is first read, so
that every other module can be imported, configured, cloned and printed without TensorFlow.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vae_anomaly.core import forks
from vae_anomaly.core.log_lines import load_silently, silence_log_lines

__all__ = ["in_float32", "keras", "limit_threads", "open_tensorflow", "tf", "warm_up", "without_weights"]

# Eigen's matrix products, TensorFlow's choice on processors without AVX-512, round a row by its place among
# the others; oneDNN's do not. TensorFlow reads the choice when it is imported.
_ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
_N_THREADS = "TF_NUM_INTRAOP_THREADS"
_opening = threading.RLock()
_is_open = False


class _LazyModule(ModuleType):
    def __getattr__(self, attribute: str) -> Any:
        return getattr(_load(self.__name__), attribute)

    # A class that a user defines in a script travels to workers with the modules that its methods use.
    def __reduce__(self) -> tuple[Any, ...]:
        return _LazyModule, (self.__name__,)


def open_tensorflow() -> None:
    """Import TensorFlow and Keras as everything here needs them, unless they are imported already.

    Raises
    ------
    RuntimeError
        In a forked process in which TensorFlow would hang.
    ImportError
        If Keras is configured for another backend.
    """
    global _is_open
    forks.check()
    if not _is_open:
        with _opening, forks.importing():
            if not _is_open:
                _open()
                _is_open = True


def warm_up() -> None:
    """Start to import TensorFlow in another thread, so that the first fit or score need not wait for it.

    Importing `vae_anomaly` does not import TensorFlow, which takes some seconds. Call this at the top of a
    script or notebook, and the import runs while data are read and prepared. The call returns at once;
    whatever needs TensorFlow waits for the rest of the import. An import that fails is tried again then, and
    says why. A process should not be forked meanwhile: TensorFlow would hang in the child, and refuses to
    work there.

    Examples
    --------
    >>> import vae_anomaly
    >>> vae_anomaly.warm_up()
    """

    def open_quietly() -> None:
        with contextlib.suppress(Exception):
            open_tensorflow()

    # No daemon: Python waits for the end of an import before it ends itself.
    threading.Thread(target=open_quietly, name="vae_anomaly.warm_up").start()


def limit_threads(n_threads: int) -> None:
    """Let TensorFlow use so many threads, in one process of many; unless it has begun to compute."""
    open_tensorflow()
    threading_options = importlib.import_module("tensorflow").config.threading
    with contextlib.suppress(RuntimeError):
        threading_options.set_intra_op_parallelism_threads(n_threads)
        threading_options.set_inter_op_parallelism_threads(n_threads)


def _load(name: str) -> ModuleType:
    open_tensorflow()
    return importlib.import_module(name)


def _open() -> None:
    with contextlib.ExitStack() as stack:
        if "tensorflow" not in sys.modules:
            stack.enter_context(silence_log_lines())
            stack.enter_context(_with_onednn())
            found = importlib.util.find_spec("tensorflow")
            for folder in found.submodule_search_locations or () if found else ():
                load_silently(folder)
        tensorflow = importlib.import_module("tensorflow")
        try:
            backend = importlib.import_module("keras").config.backend()
        except ImportError as error:
            backend = os.environ.get("KERAS_BACKEND", "tensorflow")
            if backend == "tensorflow":
                raise
            missing: ImportError | None = error
        else:
            missing = None
    if backend != "tensorflow":
        raise ImportError(
            f"vae_anomaly trains with TensorFlow, but Keras is configured for {backend!r}. Set the "
            "environment variable KERAS_BACKEND=tensorflow before Keras is first imported."
        ) from missing
    _leave_gpu_memory_to_others(tensorflow)
    _leave_processors_to_others(tensorflow)


@contextlib.contextmanager
def _with_onednn() -> Iterator[None]:
    """Let TensorFlow be imported with oneDNN, unless the user chose; the environment stays as it was."""
    chosen = _ONEDNN in os.environ
    os.environ.setdefault(_ONEDNN, "1")
    try:
        yield
    finally:
        if not chosen:
            os.environ.pop(_ONEDNN, None)


def _leave_gpu_memory_to_others(tensorflow: Any) -> None:
    """Let a GPU's memory grow on demand, unless the user has configured TensorFlow already."""
    for gpu in tensorflow.config.list_physical_devices("GPU"):
        # An initialized runtime refuses the setting: then the user came first, and their choice holds.
        with contextlib.suppress(RuntimeError, ValueError):
            tensorflow.config.experimental.set_memory_growth(gpu, True)


def _leave_processors_to_others(tensorflow: Any) -> None:
    """Let an operation have as many threads as OMP_NUM_THREADS says, unless the user has told TensorFlow.

    joblib and dask set it for their workers, which share the processors, and TensorFlow knows only a variable
    of its own.
    """
    n_threads, threading_of = os.environ.get("OMP_NUM_THREADS", ""), tensorflow.config.threading
    if not n_threads.isdigit() or _N_THREADS in os.environ or threading_of.get_intra_op_parallelism_threads():
        return
    with contextlib.suppress(RuntimeError):  # it computes already
        threading_of.set_intra_op_parallelism_threads(int(n_threads))


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """A scope in which Keras layers of this thread are made to compute in float32, whatever its policy."""
    policy = keras.config.dtype_policy()
    # Keras keeps the policy by thread: no other one sees this.
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def without_weights() -> contextlib.AbstractContextManager[object]:
    """A scope in which Keras models can be built, but take no memory for their weights and cannot run."""
    scope: contextlib.AbstractContextManager[object] = tf.Graph().as_default()
    return scope


if TYPE_CHECKING:
    import keras
    import tensorflow as tf
else:
    keras = _LazyModule("keras")
    tf = _LazyModule("tensorflow")
