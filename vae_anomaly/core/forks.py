"""Forks: whether TensorFlow can work in this process, if it was forked from another.

A forked process has none of its parent's other threads, and TensorFlow waits for its own without end. That is
so once TensorFlow has started them, whoever used it, and if a thread was about to import it; a process that
has merely been importing it before can be forked. What there was is looked at in the child, right after the
fork.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["check", "importing"]

# What the parent had done with TensorFlow, if it will hang in this process for that.
_before_fork = ""
_imports = False


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Let processes that are forked meanwhile know that one thread, this one, imports TensorFlow."""
    global _imports
    _imports = True
    try:
        yield
    finally:
        _imports = False


def check() -> None:
    """Refuse to use TensorFlow where it would hang.

    Raises
    ------
    RuntimeError
        If this process was forked after TensorFlow had been started, or while it was being imported.
    """
    if _before_fork:
        raise RuntimeError(
            f"TensorFlow {_before_fork} when this process was forked, and would hang here: its threads stay "
            "in the parent. Start workers with joblib's default (loky) or "
            "multiprocessing.get_context('spawn'). In a server that forks its workers, load the detector in "
            "each of them (gunicorn: in post_fork), or let them score with the file that to_onnx writes."
        )


def _look_at_parent() -> None:
    global _before_fork
    if not _before_fork:
        if _imports or any(map(_is_importing, ("tensorflow", "keras"))):
            _before_fork = "was being imported"
        elif _is_started():
            _before_fork = "had been started"


def _is_importing(name: str) -> bool:
    specification = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(specification, "_initializing", False))


def _is_started() -> bool:
    """Whether TensorFlow had threads in the parent, or had taken hold of its GPUs."""
    module = sys.modules.get("tensorflow.python.eager.context")
    if module is None:
        return False
    context: Any = getattr(module, "_context", None)
    if context is not None:
        devices = context._physical_devices or ()
        if context._initialized or context._initialize_lock.locked() or context._device_lock.locked():
            return True
        if any(device.device_type == "GPU" for device in devices):
            return True
    return _has_threads_of_tensorflow(os.getppid())


def _has_threads_of_tensorflow(process: int) -> bool:
    """Whether a process computes with TensorFlow by sessions, which have no eager context; Linux tells."""
    folder = f"/proc/{process}/task"
    with contextlib.suppress(OSError):
        for thread in os.listdir(folder):
            with open(f"{folder}/{thread}/comm") as file:
                if file.read().startswith("tf_Compute"):
                    return True
    return False


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_look_at_parent)
