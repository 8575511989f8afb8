"""Seconds of a default fit: the first in a process, later ones, and an isolation forest beside them.

Rows are of correlated normal columns. Each version of the library and each size has a process of its own; the
start of TensorFlow is measured apart. With ``--against``, another version of the library, in a folder, takes
turns with this one, so that both see the same machine::

    python benchmarks/default_fit.py
    python benchmarks/default_fit.py --against ../earlier --sizes 1000x10
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parents[1]
SIZES = ("200x10", "1000x10", "10000x30", "100000x30")


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(size: str, repeats: int) -> dict[str, float]:
    """What this process's version of the library takes."""
    warnings.simplefilter("ignore")
    from sklearn.ensemble import IsolationForest

    from vae_anomaly import VAEDetector
    from vae_anomaly.core.backend import open_tensorflow

    n_rows, n_columns = map(int, size.split("x"))
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_rows, n_columns)) @ rng.normal(size=(n_columns, n_columns))
    forest = IsolationForest(random_state=0)
    return {
        "start": seconds(open_tensorflow),
        "first": seconds(lambda: VAEDetector(random_state=0).fit(X)),
        "warm": statistics.median(
            seconds(lambda seed=seed: VAEDetector(random_state=seed).fit(X)) for seed in range(repeats)
        ),
        "forest": statistics.median(seconds(lambda: forest.fit(X)) for _ in range(repeats)),
    }


def in_own_process(folder: Path, size: str, repeats: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", size, "--repeats", str(repeats)]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="rows x columns")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=3, help="whose medians are printed")
    parser.add_argument("--against", type=Path, help="a folder with another version of the library")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.repeats)))
        return
    versions = {"this": HERE} | ({"other": options.against.resolve()} if options.against else {})
    columns = [f"{name}, {figure}" for figure in ("first", "warm") for name in versions]
    print("| rows x columns |", " | ".join(columns), "| isolation forest | TensorFlow's start |")
    print("|---" * (len(columns) + 3) + "|")
    for size in options.sizes:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
        for _ in range(options.processes):
            for name, folder in versions.items():
                runs[name].append(in_own_process(folder, size, options.repeats))
        found = {
            (name, figure): statistics.median(run[figure] for run in of_version)
            for name, of_version in runs.items()
            for figure in of_version[0]
        }
        cells = [f"{found[name, figure]:.2f}" for figure in ("first", "warm") for name in versions]
        print(
            f"| {size} |",
            " | ".join(cells),
            f"| {found['this', 'forest']:.2f} | {found['this', 'start']:.2f} |",
        )


if __name__ == "__main__":
    main()
