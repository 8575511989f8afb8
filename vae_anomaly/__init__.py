"""Variational autoencoders that find anomalies in tables and images, as scikit-learn estimators."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vae_anomaly.core.versions import __version__

# Where each public name lives; None is a module of its own. Names are imported when first read (PEP 562), so
# that `import vae_anomaly` costs nothing and TensorFlow is loaded by the first `fit`.
_ADDRESS: dict[str, str | None] = {
    "ConvNetwork": "networks",
    "DenseNetwork": "networks",
    "KerasNetwork": "networks.keras_network",
    "Member": "ensemble.recipe",
    "ModelFileError": "files.archive",
    "VAEDetector": "detector",
    "load": "persistence",
    "score_dataset": "bulk_scoring",
    "warm_up": "core.backend",
    "calibration": None,
    "checkpoints": None,
    "datasets": None,
    "explanations": None,
    "flows": None,
    "layers": None,
    "likelihoods": None,
    "model": None,
    "masks": None,
    "model_card": None,
    "monitoring": None,
    "networks": None,
    "objectives": None,
    "persistence": None,
    "plotting": None,
    "posteriors": None,
    "preprocessing": None,
    "priors": None,
    "scorers": None,
    "scoring": None,
    "thresholds": None,
}

__all__ = ["__version__", *_ADDRESS]

if TYPE_CHECKING:
    from vae_anomaly import calibration as calibration
    from vae_anomaly import checkpoints as checkpoints
    from vae_anomaly import datasets as datasets
    from vae_anomaly import explanations as explanations
    from vae_anomaly import flows as flows
    from vae_anomaly import layers as layers
    from vae_anomaly import likelihoods as likelihoods
    from vae_anomaly import masks as masks
    from vae_anomaly import model as model
    from vae_anomaly import model_card as model_card
    from vae_anomaly import monitoring as monitoring
    from vae_anomaly import networks as networks
    from vae_anomaly import objectives as objectives
    from vae_anomaly import persistence as persistence
    from vae_anomaly import plotting as plotting
    from vae_anomaly import posteriors as posteriors
    from vae_anomaly import preprocessing as preprocessing
    from vae_anomaly import priors as priors
    from vae_anomaly import scorers as scorers
    from vae_anomaly import scoring as scoring
    from vae_anomaly import thresholds as thresholds
    from vae_anomaly.bulk_scoring import score_dataset as score_dataset
    from vae_anomaly.core.backend import warm_up as warm_up
    from vae_anomaly.detector import VAEDetector as VAEDetector
    from vae_anomaly.ensemble.recipe import Member as Member
    from vae_anomaly.files.archive import ModelFileError as ModelFileError
    from vae_anomaly.networks import ConvNetwork as ConvNetwork
    from vae_anomaly.networks import DenseNetwork as DenseNetwork
    from vae_anomaly.networks.keras_network import KerasNetwork as KerasNetwork
    from vae_anomaly.persistence import load as load


def __getattr__(name: str) -> Any:
    if name not in _ADDRESS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    address = _ADDRESS[name]
    if address is None:
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(f"{__name__}.{address}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
