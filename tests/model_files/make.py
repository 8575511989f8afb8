"""Writes the model files of this release and a monitor, with what they must find for ever after.

Run once for a release, from the project's root, and never again for a release that is out::

    python tests/model_files/make.py
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits, load_iris
from sklearn.preprocessing import RobustScaler

from vae_anomaly import ConvNetwork, DenseNetwork, KerasNetwork, Member, VAEDetector, __version__, load
from vae_anomaly.core.backend import keras
from vae_anomaly.likelihoods import Count
from vae_anomaly.monitoring import Monitor
from vae_anomaly.thresholds import Conformal

FOLDER = Path(__file__).parent / __version__
SMALL = {"network": DenseNetwork((6,)), "latent_dim": 2, "epochs": 5, "random_state": 0}


def table() -> np.ndarray:
    return load_iris().data


def with_gaps() -> np.ndarray:
    rows = table().copy()
    rows[np.random.RandomState(0).uniform(size=rows.shape) < 0.1] = np.nan
    return rows


def mixed() -> pd.DataFrame:
    rng = np.random.RandomState(0)
    frame = load_iris(as_frame=True).data.set_axis(["a", "b", "c", "d"], axis=1)
    return frame.assign(
        color=rng.choice(["red", "green", "blue"], size=len(frame)),
        bought=rng.poisson(2, size=len(frame)),
        member=rng.uniform(size=len(frame)) < 0.3,
    )


def images() -> np.ndarray:
    return load_digits().images[:100] / 16


def keras_network() -> KerasNetwork:
    x, z = keras.Input((4,)), keras.Input((2,))
    hidden = keras.layers.Dense(5, "tanh")(x)
    encoder = keras.Model(x, [keras.layers.Dense(2)(hidden), keras.layers.Dense(2)(hidden)])
    decoder = keras.Model(z, keras.layers.Dense(4)(keras.layers.Dense(5, "tanh")(z)))
    return KerasNetwork(encoder, decoder)


#: What each file holds: rows, and the settings of the detector that is fitted on them.
DETECTORS = {
    "table": (table, SMALL),
    "ensemble": (
        table,
        {
            **SMALL,
            "members": [Member(trimmed_fraction=0.1), Member(beta_factor=0.3)],
            "likelihood": "student_t",
            "scaler": RobustScaler(),
            "threshold": Conformal(0.1),
            "calibration": 0.3,
        },
    ),
    "gaps": (with_gaps, {**SMALL, "score": "iwae"}),
    "mixed": (mixed, {**SMALL, "likelihood": {"bought": Count()}}),
    "images": (images, {**SMALL, "network": ConvNetwork(filters=(4, 4), dense_units=(6,))}),
    "patches": (images, {**SMALL, "patches": 5}),
    "keras": (table, {**SMALL, "network": keras_network, "score": "reconstruction_error"}),
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    scores = {}
    for name, (rows, settings) in DETECTORS.items():
        if callable(settings["network"]):
            settings = {**settings, "network": settings["network"]()}
        detector = VAEDetector(**settings).fit(rows())
        detector.save(FOLDER / f"{name}.vae")
        scores[name] = detector.decision_function(rows())
    np.savez_compressed(FOLDER / "decision_functions.npz", **scores)
    write_monitor()


def write_monitor() -> None:
    """A monitor that has seen every other row, and the evidence once it has seen the others too."""
    monitor = Monitor(load(FOLDER / "ensemble.vae"), random_state=0)
    monitor.update(table()[::2])
    monitor.save(FOLDER / "ensemble.monitor")
    evidence = asdict(monitor.update(table()[1::2]))
    (FOLDER / "evidence.json").write_text(json.dumps(evidence, indent=1) + "\n")


if __name__ == "__main__":
    main()
