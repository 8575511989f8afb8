"""Versions: of this library, and of what it computes with."""

from __future__ import annotations

import importlib.metadata
import platform

__all__ = ["__version__", "versions"]

__version__ = "0.1.0"

_LIBRARIES = ("keras", "numpy", "scikit-learn", "tensorflow")


def versions(*more: str) -> dict[str, str | None]:
    """Of this library, Python, what it computes with, and more; None for what has another name here."""
    found: dict[str, str | None] = {"vae-anomaly": __version__, "python": platform.python_version()}
    for library in (*_LIBRARIES, *more):
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:  # tensorflow-cpu and the like
            found[library] = None
    return found
