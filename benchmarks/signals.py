"""Signals: which of three small defects are found in windows of three channels, beside other methods.

300 windows of 128 steps train: two oscillations of a common phase, slightly detuned, and their product, with
noise of .05. 150 others are normal, and 150 each have a spike in one channel (1.5, at one step), a channel
that stands still for 20 steps, or 30 steps that run backwards. Everything is generated; nothing but the
package is needed::

    python benchmarks/signals.py --seeds 0 1 2 --out signals.csv
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from vae_anomaly import ConvNetwork, VAEDetector

LENGTH, N_TRAINING, N_NEW = 128, 300, 150
Signals = np.ndarray
Score = Callable[[Signals], np.ndarray]


# -- data ------------------------------------------------------------------------------------------------
def draw(n: int, rng: np.random.Generator) -> Signals:
    steps = np.arange(LENGTH)
    phase, tune = rng.uniform(0, 2 * np.pi, (n, 1)), rng.uniform(0.95, 1.05, (n, 1))
    slow = np.sin(2 * np.pi * tune * steps / 32 + phase)
    fast = np.cos(2 * np.pi * tune * steps / 16 + phase)
    clean = np.stack([slow, 0.5 * fast + 0.3 * slow, slow * fast], axis=-1)
    return clean + 0.05 * rng.normal(size=clean.shape)


def add_spikes(signals: Signals, rng: np.random.Generator) -> Signals:
    n = len(signals)
    places = np.arange(n), rng.integers(10, 118, n), rng.integers(0, 3, n)
    signals[places] += 1.5 * rng.choice([-1, 1], n)
    return signals


def hold_channels(signals: Signals, rng: np.random.Generator) -> Signals:
    for signal, start, channel in zip(
        signals, rng.integers(10, 100, len(signals)), rng.integers(0, 3, len(signals)), strict=True
    ):
        signal[start : start + 20, channel] = signal[start, channel]
    return signals


def reverse_pieces(signals: Signals, _: np.random.Generator) -> Signals:
    signals[:, 50:80] = signals[:, 50:80][:, ::-1].copy()
    return signals


DEFECTS = {"spike": add_spikes, "still": hold_channels, "backwards": reverse_pieces}


# -- methods ---------------------------------------------------------------------------------------------
def flat(signals: Signals) -> np.ndarray:
    return signals.reshape(len(signals), -1)


def signals_default(training: Signals) -> tuple[Score, Any]:
    detector = VAEDetector(ConvNetwork(dimensions=1), random_state=0).fit(training)
    return lambda X: -detector.score_samples(X), lambda X: detector.predict(X) < 0


def flat_rows(training: Signals) -> tuple[Score, Any]:
    detector = VAEDetector(random_state=0).fit(flat(training))
    return lambda X: -detector.score_samples(flat(X)), lambda X: detector.predict(flat(X)) < 0


def nearest_neighbors(training: Signals) -> tuple[Score, Any]:
    neighbors = NearestNeighbors(n_neighbors=1).fit(flat(training))
    return lambda X: neighbors.kneighbors(flat(X))[0][:, 0], None


def pca_error(training: Signals) -> tuple[Score, Any]:
    pca = PCA(0.95).fit(flat(training))
    return lambda X: ((flat(X) - pca.inverse_transform(pca.transform(flat(X)))) ** 2).sum(axis=1), None


METHODS = {
    "ConvNetwork(dimensions=1)": signals_default,
    "flat rows": flat_rows,
    "nearest neighbor": nearest_neighbors,
    "PCA, error": pca_error,
}


def measured(seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    training, normal = draw(N_TRAINING, rng), draw(N_NEW, rng)
    wrong = {name: add(draw(N_NEW, rng), rng) for name, add in DEFECTS.items()}
    labels = np.repeat([0, 1], N_NEW)
    for name, method in METHODS.items():
        start = time.perf_counter()
        score, alarms = method(training)
        row = {"seed": seed, "method": name, "seconds": round(time.perf_counter() - start, 1)}
        for defect, signals in wrong.items():
            both = np.concatenate([score(normal), score(signals)])
            row[defect] = round(roc_auc_score(labels, both), 3)
        row["false_alarms"] = "" if alarms is None else round(float(alarms(normal).mean()), 3)
        print(row, flush=True)
        yield row


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--out", default="signals.csv")
    options = arguments.parse_args()
    rows = [row for seed in options.seeds for row in measured(seed)]
    with open(options.out, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
