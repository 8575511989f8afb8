"""Variational autoencoders that find anomalies in tables and images, as scikit-learn estimators."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name lives. Names are imported when first read (PEP 562), so that
# `import vae_anomaly` costs nothing and TensorFlow is loaded by the first `fit`.
_ADDRESS = {
    "VAEDetector": "detector",
    "DenseNetwork": "networks",
    "ConvNetwork": "networks",
    "KerasNetwork": "keras_network",
    "ModelFileError": "archive",
    "load": "persistence",
}
_SUBMODULES = (
    "checkpoints",
    "datasets",
    "ensemble",
    "layers",
    "likelihoods",
    "model",
    "monitoring",
    "networks",
    "persistence",
    "plotting",
    "scorers",
    "scoring",
    "thresholds",
)

__all__ = [
    "ConvNetwork",
    "DenseNetwork",
    "KerasNetwork",
    "ModelFileError",
    "VAEDetector",
    "__version__",
    "checkpoints",
    "datasets",
    "ensemble",
    "layers",
    "likelihoods",
    "load",
    "model",
    "monitoring",
    "networks",
    "persistence",
    "plotting",
    "scorers",
    "scoring",
    "thresholds",
]

if TYPE_CHECKING:
    from vae_anomaly import (
        checkpoints,
        datasets,
        ensemble,
        layers,
        likelihoods,
        model,
        monitoring,
        networks,
        persistence,
        plotting,
        scorers,
        scoring,
        thresholds,
    )
    from vae_anomaly.archive import ModelFileError
    from vae_anomaly.detector import VAEDetector
    from vae_anomaly.keras_network import KerasNetwork
    from vae_anomaly.networks import ConvNetwork, DenseNetwork
    from vae_anomaly.persistence import load


def __getattr__(name: str) -> Any:
    if name in _ADDRESS:
        return getattr(importlib.import_module(f"{__name__}.{_ADDRESS[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
