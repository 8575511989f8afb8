"""Detection against contamination and against the number of rows, on generated tables.

Four kinds of anomaly (`vae_anomaly.datasets.make_anomalies`), 16 features and 4 irrelevant ones. A detector
is trained on rows of which a known share are anomalies, and tested on 1,000 other normal rows and 100 other
anomalies of the same kind. Goes on where an interrupted run stopped::

    python benchmarks/synthetic.py --out synthetic.csv --picture synthetic.png
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import quality
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from vae_anomaly.datasets import make_anomalies

KINDS = ("local", "global", "cluster", "dependency")
CONTAMINATIONS = (0.0, 0.02, 0.05, 0.1, 0.2)
ROWS = (100, 300, 1000, 3000, 10_000, 30_000, 100_000)
USUAL_ROWS, USUAL_CONTAMINATION = 2000, 0.05
N_FEATURES, N_IRRELEVANT = 16, 4
N_NORMAL_TESTED, N_ANOMALIES_TESTED = 1000, 100
# Neighbors of 100,000 rows in 20 dimensions take minutes: one seed, and no local outlier factor.
LARGEST_FOR_ALL = 30_000
METHODS = ("VAEDetector", "KNN", "LOF", "IForest")


class Case(NamedTuple):
    """One training."""

    kind: str
    n_rows: int
    contamination: float
    seed: int
    method: str


def cases(seeds: list[int]) -> Iterator[Case]:
    for kind in KINDS:
        points = [(USUAL_ROWS, share) for share in CONTAMINATIONS]
        points += [(n_rows, USUAL_CONTAMINATION) for n_rows in ROWS]
        for n_rows, share in points:
            for seed in seeds:
                for method in METHODS:
                    if n_rows > LARGEST_FOR_ALL and (seed != seeds[0] or method == "LOF"):
                        continue
                    yield Case(kind, n_rows, share, seed, method)


def problem(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows, test rows, test labels."""
    n_anomalies = round(case.contamination * case.n_rows)
    n_normal = case.n_rows - n_anomalies
    total = n_normal + N_NORMAL_TESTED + n_anomalies + N_ANOMALIES_TESTED
    X, y = make_anomalies(
        total,
        N_FEATURES,
        kind=case.kind,
        contamination=(n_anomalies + N_ANOMALIES_TESTED) / total,
        n_irrelevant=N_IRRELEVANT,
        random_state=1000 + case.seed,
    )
    normal, anomalies = np.flatnonzero(y == 0), np.flatnonzero(y == 1)
    tested = np.r_[normal[:N_NORMAL_TESTED], anomalies[:N_ANOMALIES_TESTED]]
    trained = np.r_[normal[N_NORMAL_TESTED:], anomalies[N_ANOMALIES_TESTED:]]
    return X[trained], X[tested], y[tested]


def evaluate(case: Case) -> dict[str, float]:
    train, test, labels = problem(case)
    if case.method != "VAEDetector":
        scaler = StandardScaler().fit(train)
        train, test = scaler.transform(train), scaler.transform(test)
    detector: Any = quality.METHODS[case.method](case.seed)
    start = time.perf_counter()
    scores = quality.anomaly_scores(detector.fit(train), test)
    return {
        "auroc": round(roc_auc_score(labels, scores), 5),
        "seconds": round(time.perf_counter() - start, 3),
    }


def run(out: Path, seeds: list[int]) -> None:
    """Add the missing rows to ``out``."""
    columns = [*Case._fields, "auroc", "seconds"]
    done = set()
    if out.exists():
        done = set(pd.read_csv(out)[list(Case._fields)].itertuples(index=False, name=None))
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if not done:
            writer.writeheader()
        for case in cases(seeds):
            if tuple(case) not in done:
                done.add(tuple(case))
                writer.writerow(case._asdict() | evaluate(case))
                file.flush()


def summarize(results: pd.DataFrame) -> pd.DataFrame:
    """Mean AUROC by kind and method over the contaminations, and over the numbers of rows."""
    by_share = results[results["n_rows"] == USUAL_ROWS]
    by_rows = results[(results["contamination"] == USUAL_CONTAMINATION) & (results["n_rows"] != USUAL_ROWS)]
    tables = {
        "over contaminations": by_share,
        "over numbers of rows": by_rows,
    }
    return pd.concat(
        {name: part.groupby(["kind", "method"])["auroc"].mean().unstack() for name, part in tables.items()}
    ).round(3)


def draw(results: pd.DataFrame, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = dict(zip(METHODS, ("black", "#0072B2", "#009E73", "#E69F00"), strict=True))
    figure, axes = plt.subplots(2, len(KINDS), figsize=(13, 6), sharey=True, layout="constrained")
    for column, kind in enumerate(KINDS):
        own = results[results["kind"] == kind]
        panels = (
            (axes[0, column], "contamination", own[own["n_rows"] == USUAL_ROWS]),
            (axes[1, column], "n_rows", own[own["contamination"] == USUAL_CONTAMINATION]),
        )
        for ax, variable, part in panels:
            for method in METHODS:
                curve = part[part["method"] == method].groupby(variable)["auroc"].mean()
                ax.plot(curve.index, curve, marker="o", ms=4, color=colors[method], label=method)
            ax.grid(alpha=0.3)
        axes[0, column].set_title(f"{kind} anomalies")
        axes[0, column].set_xlabel(f"share of anomalies, {USUAL_ROWS:,} training rows")
        axes[1, column].set_xscale("log")
        axes[1, column].set_xlabel(f"training rows, {USUAL_CONTAMINATION:.0%} of them anomalies")
    for ax in axes[:, 0]:
        ax.set_ylabel("AUROC on new rows")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    run(options.out, options.seeds)
    results = pd.read_csv(options.out)
    print(summarize(results).to_string())
    if options.picture:
        draw(results, options.picture)


if __name__ == "__main__":
    main()
