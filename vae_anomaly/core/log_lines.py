"""TensorFlow's log lines, kept off the terminal without touching file descriptor 2, which is the process's.

TensorFlow reads the level of its C++ side from the environment when it is imported. Before that, static
initializers of its libraries write lines that no level holds back, through the stream `stderr` of C.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

__all__ = ["load_silently", "silence_log_lines"]

_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_SILENT = "3"
# Those whose static initializers write lines: seen in TensorFlow 2.18 and 2.21.
_LIBRARIES = (
    "libtensorflow_framework.so.2",
    "libtensorflow_cc.so.2",
    "python/profiler/internal/_pywrap_profiler_plugin.so",
)
_lock = threading.Lock()
_n_inside = 0
_before: str | None = None


@contextlib.contextmanager
def silence_log_lines() -> Iterator[None]:
    """Let TensorFlow be imported with a silent log, unless the user chose a level, which stays theirs.

    The environment is afterwards as it was before, also where something inside sets the level (tf2onnx does),
    and where several threads are inside: the last one restores it.
    """
    global _n_inside, _before
    with _lock:
        if not _n_inside:
            _before = os.environ.get(_LOG_LEVEL)
        _n_inside += 1
        os.environ.setdefault(_LOG_LEVEL, _SILENT)
    try:
        yield
    finally:
        with _lock:
            _n_inside -= 1
            if not _n_inside:
                os.environ.pop(_LOG_LEVEL, None)
                if _before is not None:
                    os.environ[_LOG_LEVEL] = _before


def load_silently(folder: str) -> None:
    """Load the libraries in TensorFlow's folder that write lines whatever the level; only if it is silent.

    Meanwhile C's variable `stderr`, which glibc lets one assign, is a stream into nothing. Python's lock is
    held, so no other thread of Python's can write to it, and file descriptor 2 stays what it is: for
    `sys.stderr`, for child processes and for C++. Where this is not possible, the lines appear.
    """
    if os.environ.get(_LOG_LEVEL) != _SILENT or sys.platform != "linux":
        return
    libc = ctypes.PyDLL(None)  # unlike CDLL, it keeps Python's lock during a call
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    libc.dlopen.restype, libc.dlopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int]
    libc.fmemopen.restype = ctypes.c_void_p
    libc.fmemopen.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    # C++ makes its own streams of C's when it is loaded.
    libc.dlopen(b"libstdc++.so.6", os.RTLD_NOW)
    stderr = ctypes.c_void_p.in_dll(libc, "stderr")
    # Never closed: a library may have kept it.
    terminal, nothing = stderr.value, libc.fmemopen(None, 1024, b"w")
    for library in _LIBRARIES if nothing else ():
        path = os.path.join(folder, library)
        if os.path.exists(path):
            stderr.value = nothing
            # A library that cannot be loaded makes the import say so.
            libc.dlopen(os.fsencode(path), os.RTLD_NOW)
            stderr.value = terminal
