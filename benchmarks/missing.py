"""Missing cells: what they cost in detection, and how well a hidden cell is guessed from others of its row.

Each table of a folder (an ``.npz`` with ``X`` and ``y``, 1 = anomaly) is split as in `quality.py`, setting
"clean". ``run`` removes 0, 10 and 30 % of the cells, in training and test rows alike, each cell with the same
chance; "VAEDetector" gets the gaps as they are, the other methods fill them first. ``cells`` hides one cell
in each of at most 2,000 normal test rows, of a column that varies in training, and measures errors of guesses
in the column's standard deviations in training; detectors and imputers were fitted on complete rows, or on
rows with 10 % of the cells missing. ``intervals`` counts, in tables of at most 40 columns, which of about
1,500 cells of normal test rows lie in their intervals: as the members have them, and calibrated by rows that
the members, or some of them, left out. It fits at most 500 rows; 0 or 10 % of all cells are missing::

    python benchmarks/missing.py run DATASETS --out missing.csv
    python benchmarks/missing.py cells DATASETS --out missing_cells.csv
    python benchmarks/missing.py intervals DATASETS --out missing_intervals.csv
    python benchmarks/missing.py summary missing.csv missing_cells.csv missing_intervals.csv

Imputers are scikit-learn's with their defaults, on standardized columns. Set OMP_NUM_THREADS=1: the iterative
one solves thousands of small problems, whose threads stand in each other's way on a busy machine.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from false_alarms import each_table
from quality import METHODS as DETECTORS
from quality import figures_of, load, split, vae_detector
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SHARES, TRAINED_SHARES = (0.0, 0.1, 0.3), (0.0, 0.1)
N_ROWS = 2000


def with_gaps(X: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(X.shape) < share, np.nan, X)


# -- detection ----------------------------------------------------------------------------------------
IMPUTERS: dict[str, Callable[[int], Any]] = {
    "mean": lambda _: SimpleImputer(),
    "KNNImputer": lambda _: KNNImputer(),
    "IterativeImputer": lambda seed: IterativeImputer(random_state=seed),
}
# The imputer, if any, and the detector after it.
METHODS: dict[str, tuple[str | None, str]] = {
    "VAEDetector": (None, "VAEDetector"),
    "mean, VAEDetector": ("mean", "VAEDetector"),
    "KNNImputer, VAEDetector": ("KNNImputer", "VAEDetector"),
    "IterativeImputer, IForest": ("IterativeImputer", "IForest"),
}


def detector_of(imputer: str | None, detector: str, seed: int) -> Any:
    made = DETECTORS[detector](seed)
    return make_pipeline(StandardScaler(), IMPUTERS[imputer](seed), made) if imputer else made


def run(options: argparse.Namespace) -> None:
    def measure(path: Path, seed: int) -> Iterator[dict[str, Any]]:
        train, test, labels = split(*load(path, seed), "clean", seed)
        rng = np.random.default_rng(seed)
        for share in SHARES:
            rows, new = with_gaps(train, share, rng), with_gaps(test, share, rng)
            found: dict[Any, dict[str, float]] = {}
            for method in options.methods:
                imputer, detector = METHODS[method]
                steps = (imputer if share else None, detector)  # without gaps, methods are their detectors
                if steps not in found:
                    found[steps] = figures_of(detector_of(*steps, seed), rows, new, labels)
                yield {"share": share, "method": method, **found[steps]}

    each_table(options, measure)


# -- hidden cells -------------------------------------------------------------------------------------
def ours(**settings: Any) -> Callable[[np.ndarray, int], Callable[[np.ndarray], np.ndarray]]:
    # Of a cell that is missing anyway, `reconstruct` says what `expected` does, and masks no others.
    return lambda train, seed: vae_detector(seed, **settings).fit(train).reconstruct


def by_imputer(name: str) -> Callable[[np.ndarray, int], Callable[[np.ndarray], np.ndarray]]:
    def fit(train: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
        scaler = StandardScaler().fit(train)
        imputer = IMPUTERS[name](seed).fit(scaler.transform(train))
        return lambda X: scaler.inverse_transform(imputer.transform(scaler.transform(X)))

    return fit


GUESSES: dict[str, Callable[[np.ndarray, int], Callable[[np.ndarray], np.ndarray]]] = {
    "VAEDetector": ours(),
    "VAEDetector(masked_fraction=0.2)": ours(masked_fraction=0.2),
    **{name: by_imputer(name) for name in IMPUTERS},
}


def hide(options: argparse.Namespace) -> None:
    def measure(path: Path, seed: int) -> Iterator[dict[str, Any]]:
        train, test, labels = split(*load(path, seed), "clean", seed)
        rng = np.random.default_rng(seed)
        rows, deviations = test[labels == 0][:N_ROWS], train.std(axis=0)
        hidden = np.arange(len(rows)), rng.choice(np.flatnonzero(deviations > 0), len(rows))
        seen = rows.copy()
        seen[hidden] = np.nan
        for share in TRAINED_SHARES:
            trained = with_gaps(train, share, rng)
            for method in options.methods:
                guessed = np.asarray(GUESSES[method](trained, seed)(seen))
                errors = np.abs(guessed[hidden] - rows[hidden]) / deviations[hidden[1]]
                rmse, median = np.sqrt((errors**2).mean()), np.median(errors)
                yield {"share": share, "method": method, "cells": len(rows), "rmse": rmse, "median": median}

    each_table(options, measure)


# -- intervals of cells -------------------------------------------------------------------------------
COVERAGES = (0.5, 0.9)
INTERVALS: dict[str, dict[str, Any]] = {
    "the members' own": {},
    "calibrated, out of bag": {"calibrate_intervals": True},
    "calibrated, a fifth held out": {"calibrate_intervals": True, "calibration": 0.2},
}
MOST_COLUMNS, N_FITTED, N_CELLS = 40, 500, 1500


def count_inside(options: argparse.Namespace) -> None:
    def measure(path: Path, seed: int) -> Iterator[dict[str, Any]]:
        train, test, labels = split(*load(path, seed), "clean", seed)
        varies = np.flatnonzero(train[:N_FITTED].std(axis=0) > 0)
        if len(varies) > MOST_COLUMNS:
            return
        train, rows = train[:N_FITTED, varies], test[labels == 0][: N_CELLS // len(varies), varies]
        rng = np.random.default_rng(seed)
        for share in TRAINED_SHARES:
            trained, new = with_gaps(train, share, rng), with_gaps(rows, share, rng)
            for method in options.methods:
                detector = vae_detector(seed, **INTERVALS[method]).fit(trained)
                for coverage in COVERAGES:
                    _, low, high = detector.expected(new, coverage=coverage)
                    inside = ((low <= rows) & (rows <= high))[~np.isnan(new)].mean()
                    by_column = ((low <= rows) & (rows <= high)).mean(axis=0)
                    width = np.nanmedian((high - low) / train.std(axis=0))
                    yield {
                        "share": share,
                        "method": method,
                        "coverage": coverage,
                        "cells": int((~np.isnan(new)).sum()),
                        "inside": round(inside, 4),
                        "least_column": round(by_column.min(), 4),
                        "width": round(width, 4),
                    }

    each_table(options, measure)


def summary_of_intervals(results: pd.DataFrame) -> str:
    lines = [
        "| missing | intervals | coverage | inside: mean | of a table | worst column | width |",
        "|---|---|---|---|---|---|---|",
    ]
    for (share, coverage, method), group in results.groupby(["share", "coverage", "method"], sort=False):
        inside = group["inside"]
        lines.append(
            f"| {share:.0%} | {method} | {coverage:.0%} | {inside.mean():.1%} | {inside.min():.1%} to "
            f"{inside.max():.1%} | {group['least_column'].mean():.1%} | {group['width'].mean():.2f} |"
        )
    return "\n".join(lines)


# -- summary ------------------------------------------------------------------------------------------
def summary(results: pd.DataFrame) -> str:
    figures = results.groupby(["method", "share"], sort=False)["auroc"].mean().unstack()
    shares = [f"{share:.0%} missing" for share in figures]
    losses = [f"loss at {share:.0%}" for share in figures.columns[1:]]
    lines = [f"| AUROC | {' | '.join([*shares, *losses])} |", "|---" * (len(shares + losses) + 1) + "|"]
    for name, means in figures.iterrows():
        lost = means.iloc[0] - means.iloc[1:]
        lines.append(f"| {name} | {' | '.join(f'{figure:.3f}' for figure in [*means, *lost])} |")
    return "\n".join(lines)


def summary_of_cells(results: pd.DataFrame) -> str:
    lines = [
        "| missing in training | guess | root mean squared error | best on tables | median error |",
        "|---|---|---|---|---|",
    ]
    for share, group in results.groupby("share"):
        by_table = group.groupby(["dataset", "method"])["rmse"].mean().unstack()
        best = by_table.idxmin(axis=1).value_counts()
        for name, found in group.groupby("method", sort=False):
            figures = f"{found['rmse'].mean():.3f} | {best.get(name, 0)} | {found['median'].mean():.3f}"
            lines.append(f"| {share:.0%} | {name} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands_of = {
        "run": (run, METHODS),
        "cells": (hide, GUESSES),
        "intervals": (count_inside, INTERVALS),
    }
    for name, (action, methods) in commands_of.items():
        measured = commands.add_parser(name)
        measured.add_argument("datasets", type=Path)
        measured.add_argument("--out", type=Path, required=True)
        measured.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
        measured.add_argument("--methods", nargs="+", choices=methods, default=list(methods))
        measured.set_defaults(action=action)
    summing = commands.add_parser("summary")
    summing.add_argument("results", nargs="+", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.command != "summary":
        options.action(options)
        return
    for path in options.results:
        results = pd.read_csv(path)
        of_kind = {"rmse": summary_of_cells, "inside": summary_of_intervals, "auroc": summary}
        print(next(text for figure, text in of_kind.items() if figure in results)(results), end="\n\n")


if __name__ == "__main__":
    main()
