"""Which column is wrong: explanations of rows with planted cells, against other ways to find them.

For each table of a folder (an ``.npz`` with ``X`` and ``y``, 1 = anomaly), methods are fitted on a random
half of the normal rows; in 200 other normal rows, one to three cells each are replaced by the values that
other rows have in these columns, so that every column stays as it was by itself. A hit: the column that a
method ranks first is a planted one; "guess" is the chance of one. Tables with fewer than 5 columns are left
out::

    python benchmarks/explaining.py run DATASETS --out explaining.csv
    python benchmarks/explaining.py summary explaining.csv

SHAP is left out where it is not installed, or with ``--without``.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from false_alarms import each_table
from quality import load, split
from sklearn.ensemble import IsolationForest
from sklearn.preprocessing import StandardScaler

N_ROWS, FEWEST_COLUMNS = 200, 5


def planted(X: np.ndarray, n_cells: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows with ``n_cells`` cells each from other rows, and where they are."""
    rows, where = X.copy(), np.zeros(X.shape, dtype=bool)
    for row in range(len(X)):
        varied = np.flatnonzero((X[row] != X).mean(axis=0) > 0.05)
        for column in rng.permutation(varied)[:n_cells]:
            others = np.flatnonzero(X[:, column] != X[row, column])
            rows[row, column] = X[rng.choice(others), column]
            where[row, column] = True
    return rows, where


# -- methods: fit on rows, return a function from rows to a number for each cell --------------------------
def ours(train: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    from vae_anomaly import VAEDetector

    return VAEDetector(random_state=seed).fit(train).explain


def reconstruction(train: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Squared reconstruction errors of PyOD's autoencoder, on standardized columns."""
    import torch
    from pyod.models.auto_encoder import AutoEncoder

    detector = AutoEncoder(random_state=seed, verbose=0).fit(train)
    scaler = StandardScaler().fit(train)

    def errors(X: np.ndarray) -> np.ndarray:
        rows = torch.tensor(scaler.transform(X), dtype=torch.float32)
        detector.model.eval()
        with torch.no_grad():
            return ((rows - detector.model(rows)) ** 2).numpy()

    return errors


def z_score(train: np.ndarray, _: int) -> Callable[[np.ndarray], np.ndarray]:
    scaler = StandardScaler().fit(train)
    return lambda X: np.abs(scaler.transform(X))


def shap_of_forest(train: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    import shap

    explainer = shap.TreeExplainer(IsolationForest(random_state=seed).fit(train))
    return lambda X: -explainer.shap_values(X)


METHODS: dict[str, Callable[[np.ndarray, int], Callable[[np.ndarray], np.ndarray]]] = {
    "VAEDetector.explain": ours,
    "PyOD AutoEncoder, error": reconstruction,
    "z-score": z_score,
    "SHAP of IForest": shap_of_forest,
}
NEEDS = {"SHAP of IForest": "shap", "PyOD AutoEncoder, error": "pyod"}


def run(options: argparse.Namespace) -> None:
    methods = {
        name: make
        for name, make in METHODS.items()
        if name not in options.without and (name not in NEEDS or importlib.util.find_spec(NEEDS[name]))
    }

    def each(path: Path, seed: int) -> Iterator[dict[str, Any]]:
        X, y = load(path, seed)
        if X.shape[1] >= FEWEST_COLUMNS:
            yield from measure(methods, *split(X, y, "clean", seed), seed)

    each_table(options, each)


def measure(
    methods: dict[str, Any], train: np.ndarray, test: np.ndarray, labels: np.ndarray, seed: int
) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    normal = test[labels == 0][:N_ROWS]
    fitted = {name: make(train, seed) for name, make in methods.items()}
    for n_cells in (1, 2, 3):
        rows, where = planted(normal, n_cells, rng)
        changed = where.any(axis=1)
        rows, where = rows[changed], where[changed]
        yield {"cells": n_cells, "method": "guess", "hit": where.mean(), "ms_per_row": 0.0}
        for name, explain in fitted.items():
            explain(rows)
            start = time.perf_counter()
            ranked_first = np.asarray(explain(rows)).argmax(axis=1)
            spent = time.perf_counter() - start
            hit = where[np.arange(len(rows)), ranked_first].mean()
            yield {"cells": n_cells, "method": name, "hit": hit, "ms_per_row": 1000 * spent / len(rows)}


def summary(results: pd.DataFrame) -> str:
    hits = results.groupby(["method", "cells"], sort=False)["hit"].mean().unstack()
    spent = results.groupby("method")["ms_per_row"].median()
    ours = results.groupby(["dataset", "method"])["hit"].mean().unstack()
    lines = [
        "| ranked by | 1 cell | 2 cells | 3 cells | tables won / lost by explain | ms a row |",
        "|---|---|---|---|---|---|",
    ]
    for name, by_cells in hits.sort_values(1, ascending=False).iterrows():
        gain = ours["VAEDetector.explain"] - ours[name]
        compared = f"{(gain > 0.005).sum()} / {(gain < -0.005).sum()}" if gain.any() else ""
        shares = " | ".join(f"{hit:.3f}" for hit in by_cells)
        lines.append(f"| {name} | {shares} | {compared} | {spent[name]:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("datasets", type=Path)
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    running.add_argument("--without", nargs="+", choices=METHODS, default=[])
    summing = commands.add_parser("summary")
    summing.add_argument("results", type=Path)
    options = parser.parse_args()
    if options.command == "run":
        warnings.simplefilter("ignore")
        run(options)
    else:
        print(summary(pd.read_csv(options.results)))


if __name__ == "__main__":
    main()
