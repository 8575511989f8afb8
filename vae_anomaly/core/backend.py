"""The one door to Keras and TensorFlow: opened at first use, quietly, and never at import.

`keras` and `tf` are modules that load themselves when an attribute of theirs is first read, so
that every other module can be imported, configured, cloned and printed without TensorFlow.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["in_float32", "keras", "silence_log_lines", "tf", "without_weights"]

_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# How TensorFlow's C++ side formats its log lines, which ignore every Python-level log setting.
_LOG_LINE = re.compile(rb"^(WARNING: All log messages before absl|[IWE]\d{4} |\d{4}-\d\d-\d\d .*: [IWE] )")
# Eigen's matrix products, TensorFlow's choice on processors without AVX-512, round a row by its place among
# the others; oneDNN's do not. TensorFlow reads the choice when it is imported.
_ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
_opening = threading.RLock()
_opened: set[str] = set()


class _LazyModule(ModuleType):
    def __getattr__(self, attribute: str) -> Any:
        return getattr(_load(self.__name__), attribute)

    # A class that a user defines in a script travels to workers with the modules that its methods use.
    def __reduce__(self) -> tuple[Any, ...]:
        return _LazyModule, (self.__name__,)


def _load(name: str) -> ModuleType:
    if "forked" in _opened:
        raise RuntimeError(
            "TensorFlow was started before this process was forked, and would hang here: its threads stay "
            "in the parent. Start workers with joblib's default (loky) or "
            "multiprocessing.get_context('spawn'). In a server that forks its workers, load the detector in "
            "each of them (gunicorn: in post_fork), or let them score with the file that to_onnx writes."
        )
    with _opening:
        if not _opened:
            _open()
            _opened.add("tensorflow")
            os.register_at_fork(after_in_child=lambda: _opened.add("forked"))
        return importlib.import_module(name)


def _open() -> None:
    with contextlib.ExitStack() as stack:
        if "tensorflow" not in sys.modules:
            stack.enter_context(silence_log_lines())
            stack.enter_context(_with_onednn())
        tensorflow = importlib.import_module("tensorflow")
        backend = importlib.import_module("keras").config.backend()
    if backend != "tensorflow":
        raise ImportError(
            f"vae_anomaly trains with TensorFlow, but Keras is configured for {backend!r}. Set the "
            "environment variable KERAS_BACKEND=tensorflow before Keras is first imported."
        )
    _leave_gpu_memory_to_others(tensorflow)


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


@contextlib.contextmanager
def silence_log_lines() -> Iterator[None]:
    """Keep TensorFlow's log lines off the terminal, unless the user chose a log level, which stays theirs."""
    chosen = os.environ.get(_LOG_LEVEL)
    os.environ.setdefault(_LOG_LEVEL, "3")
    try:
        with _drop_log_lines() if chosen is None else contextlib.nullcontext():
            yield
    finally:
        # What runs inside may have set it: tf2onnx does.
        os.environ.pop(_LOG_LEVEL, None)
        if chosen is not None:
            os.environ[_LOG_LEVEL] = chosen


@contextlib.contextmanager
def _drop_log_lines() -> Iterator[None]:
    """Hold back file descriptor 2, then pass on every line that is not a TensorFlow log line."""
    try:
        terminal = os.dup(2)
    except OSError:  # a process without a standard error has nothing to keep quiet
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            kept = b"".join(line for line in held if not _LOG_LINE.match(line))
            if kept:
                os.write(2, kept)


def _leave_gpu_memory_to_others(tensorflow: Any) -> None:
    """Let a GPU's memory grow on demand, unless the user has configured TensorFlow already."""
    for gpu in tensorflow.config.list_physical_devices("GPU"):
        # An initialized runtime refuses the setting: then the user came first, and their choice holds.
        with contextlib.suppress(RuntimeError, ValueError):
            tensorflow.config.experimental.set_memory_growth(gpu, True)


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
