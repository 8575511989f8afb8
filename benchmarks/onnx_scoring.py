"""What a fitted detector costs where it is put to use: as ONNX graph, in TensorFlow, and beside PyOD's VAE.

Detectors are fitted on 2,000 × 10 rows and written once; each is then read and asked for scores in processes
of its own, on one thread, and the medians are printed. "first score": from the start of the process until one
row is scored, as seconds of the clock and of the processor. Needs Linux, and the extras ``bench``, ``onnx``::

    taskset -c 0 python benchmarks/onnx_scoring.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROWS = np.random.RandomState(0).normal(size=(2000, 10)) @ np.random.RandomState(1).normal(size=(10, 10))
N_SCORED, SCORED_AT_ONCE, N_SINGLE_ROWS = 100_000, 4096, 1000


# -- writing ---------------------------------------------------------------------------------------------
def write(folder: Path, epochs: int) -> None:
    import joblib
    from pyod.models.vae import VAE

    from vae_anomaly import DenseNetwork, VAEDetector

    detectors = {
        "one": VAEDetector(DenseNetwork((64, 32)), latent_dim=4, epochs=epochs, random_state=0),
        "eight": VAEDetector(epochs=epochs, members=8, random_state=0),
    }
    for name, detector in detectors.items():
        detector.fit(ROWS).save(folder / f"{name}.vae")
        detector.to_onnx(folder / f"{name}.onnx")
    layers = {"encoder_neuron_list": [64, 32], "decoder_neuron_list": [32, 64], "latent_dim": 4}
    pyods = VAE(**layers, epoch_num=epochs, batch_norm=False, dropout_rate=0.0, random_state=0, verbose=0)
    joblib.dump(pyods.fit(ROWS), folder / "pyod.joblib")


# -- reading: each returns rows -> scores ----------------------------------------------------------------
def from_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    return lambda X: session.run(["score_samples"], {"X": X})[0]


def from_tensorflow(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import vae_anomaly

    return vae_anomaly.load(path).score_samples


def from_pyod(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import joblib
    import torch

    torch.set_num_threads(1)
    return joblib.load(path).decision_function


METHODS = {
    "VAEDetector, one model: ONNX": (from_onnx, "one.onnx"),
    "VAEDetector, one model: TensorFlow": (from_tensorflow, "one.vae"),
    "VAEDetector, eight members: ONNX": (from_onnx, "eight.onnx"),
    "VAEDetector, eight members: TensorFlow": (from_tensorflow, "eight.vae"),
    "PyOD VAE": (from_pyod, "pyod.joblib"),
}


def measure(method: str, folder: Path, started: float) -> dict[str, float]:
    import warnings

    warnings.simplefilter("ignore")
    read, file = METHODS[method]
    scores = read(folder / file)
    scores(ROWS[:1])
    figures = {"first score, s": time.time() - started, "first score, s of processor": time.process_time()}
    figures["first score, MB"] = peak()
    for row in ROWS[:600]:  # often enough for whatever a library does only after many calls
        scores(row[None])
    spent: list[float] = []
    for row in ROWS[:N_SINGLE_ROWS]:
        start = time.perf_counter()
        scores(row[None])
        spent.append(time.perf_counter() - start)
    figures["one row, ms"] = 1000 * statistics.median(spent)
    X = np.resize(ROWS, (N_SCORED, ROWS.shape[1]))
    scores(X[:SCORED_AT_ONCE])
    start = time.process_time()
    for position in range(0, N_SCORED, SCORED_AT_ONCE):
        scores(X[position : position + SCORED_AT_ONCE])
    figures["100,000 rows, s of processor"] = time.process_time() - start
    figures["peak, MB"] = peak()
    return figures


def peak() -> float:
    """Most memory that this process had so far, in MB; what `resource` says may be that of its parent."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--measure", nargs=3, metavar=("METHOD", "FOLDER", "STARTED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        method, folder, started = options.measure
        print(json.dumps(measure(method, Path(folder), float(started))))
        return
    alone = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
    results: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.epochs)
        for _ in range(options.repeats):
            for method, figures in results.items():
                command = [sys.executable, __file__, "--measure", method, folder, str(time.time())]
                ran = subprocess.run(
                    command, env=os.environ | alone, stdout=subprocess.PIPE, text=True, check=True
                )
                figures.append(json.loads(ran.stdout))
    names = list(results["PyOD VAE"][0])
    print("| |", " | ".join(names), "|\n|---|" + "---|" * len(names))
    for method, figures in results.items():
        medians = (statistics.median(figure[name] for figure in figures) for name in names)
        print(f"| {method} |", " | ".join(f"{median:.3g}" for median in medians), "|")


if __name__ == "__main__":
    main()
