"""One VAE, and what it is made of.

`VAE` and `Inference` are imported when they are first read: they are Keras' classes, and load TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["VAE", "Inference"]

if TYPE_CHECKING:
    from vae_anomaly.model.vae import VAE, Inference


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("vae_anomaly.model.vae"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
