"""Detection quality: any detectors × folders of data sets × two settings × seeds, one CSV row a run.

A data set is an ``.npz`` file with ``X`` and ``y`` (1 = anomaly). Protocol, after Livernoche et al. 2024,
"On diffusion modeling for anomaly detection": tables with more than 10,000 rows are subsampled; in the
setting "clean" a detector is trained on a random half of the normal rows and tested on the other half and
all anomalies; in "contaminated" it is trained and tested on all rows. Peers get standardized columns,
VAEDetector the rows as they are; no detector is told the setting or the share of anomalies. The run goes on
where an interrupted one stopped. Each folder is a suite; the tables of ``set_aside.txt`` are looked at once,
at the end of a search for better defaults::

    python benchmarks/quality.py run DATASETS MORE_DATASETS --out results.csv --part chosen_on
    python benchmarks/quality.py run DATASETS --out results.csv --parameters '{"members": 16}'
    python benchmarks/quality.py summary results.csv peers.csv --picture quality.png
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.metadata
import json
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

SETTINGS = ("clean", "contaminated")
KEY = ("dataset", "setting", "seed", "method", "parameters")
COLUMNS = ("suite", *KEY, "auroc", "ap", "fit", "score", "versions")
SET_ASIDE = Path(__file__).with_name("set_aside.txt")
PARTS = ("all", "chosen_on", "set_aside")
MOST_ROWS = 10_000
TIE = 0.005


# -- protocol -----------------------------------------------------------------------------------------
def load(path: Path, seed: int) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as data:
        X, y = data["X"].astype(float), data["y"].astype(int)
    if len(y) <= MOST_ROWS:
        return X, y
    rng = np.random.default_rng(1000 + seed)
    normal, anomalies = np.flatnonzero(y == 0), np.flatnonzero(y == 1)
    n_anomalies = min(max(10, round(MOST_ROWS * len(anomalies) / len(y))), len(anomalies))
    kept = np.r_[
        rng.choice(normal, MOST_ROWS - n_anomalies, False), rng.choice(anomalies, n_anomalies, False)
    ]
    return X[kept], y[kept]


def split(X: np.ndarray, y: np.ndarray, setting: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows, test rows, test labels."""
    if setting == "contaminated":
        return X, X, y
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(y == 0))
    half = round(0.5 * len(normal))
    tested = np.r_[normal[half:], np.flatnonzero(y == 1)]
    return X[normal[:half]], X[tested], y[tested]


# -- methods ------------------------------------------------------------------------------------------
def vae_detector(seed: int, **settings: Any) -> Any:
    from vae_anomaly import VAEDetector

    return VAEDetector(random_state=seed, **settings)


def _pyod(module: str, name: str) -> Callable[[int], Any]:
    def make(seed: int) -> Any:
        detector = getattr(importlib.import_module(f"pyod.models.{module}"), name)
        seeded = "random_state" in detector.__init__.__code__.co_varnames
        quiet = {"verbose": 0} if module in {"vae", "auto_encoder"} else {}
        return detector(**({"random_state": seed} if seeded else {}), **quiet)

    return make


def _sklearn(module: str, name: str) -> Callable[[int], Any]:
    def make(seed: int) -> Any:
        detector = getattr(importlib.import_module(f"sklearn.{module}"), name)
        return detector(random_state=seed) if name == "IsolationForest" else detector()

    return make


METHODS: dict[str, Callable[[int], Any]] = {
    "VAEDetector": vae_detector,
    "IForest": _sklearn("ensemble", "IsolationForest"),
    "OCSVM": _sklearn("svm", "OneClassSVM"),
    "KNN": _pyod("knn", "KNN"),
    "LOF": _pyod("lof", "LOF"),
    "ECOD": _pyod("ecod", "ECOD"),
    "PCA": _pyod("pca", "PCA"),
    "PyOD-VAE": _pyod("vae", "VAE"),
    "PyOD-AE": _pyod("auto_encoder", "AutoEncoder"),
}


def anomaly_scores(detector: Any, X: Any) -> np.ndarray:
    """Larger = more anomalous: scikit-learn's detectors rank the other way round than PyOD's."""
    if hasattr(detector, "score_samples"):
        return -detector.score_samples(X)
    return np.nan_to_num(detector.decision_function(X))


def evaluate(
    make: Callable[[int], Any], scale: bool, path: Path, setting: str, seed: int
) -> dict[str, float]:
    X, y = load(path, seed)
    train, test, labels = split(X, y, setting, seed)
    if scale:
        scaler = StandardScaler().fit(train)
        train, test = scaler.transform(train), scaler.transform(test)
    return figures_of(make(seed), train, test, labels)


def figures_of(detector: Any, train: Any, test: Any, labels: np.ndarray) -> dict[str, float]:
    """AUROC, average precision, seconds of fit and score."""
    start = time.perf_counter()
    detector.fit(train)
    fitted = time.perf_counter()
    scores = anomaly_scores(detector, test)
    end = time.perf_counter()
    return {
        "auroc": round(roc_auc_score(labels, scores), 5),
        "ap": round(average_precision_score(labels, scores), 5),
        "fit": round(fitted - start, 3),
        "score": round(end - fitted, 3),
    }


def run(
    folders: list[Path],
    out: Path,
    methods: dict[str, Callable[[int], Any]],
    seeds: list[int],
    settings: tuple[str, ...] = SETTINGS,
    parameters: str = "{}",
    part: str = "all",
) -> None:
    """Add the missing rows to ``out``."""
    done = set()
    if out.exists():
        done = set(read(out)[list(KEY)].itertuples(index=False, name=None))
    versions = versions_of("vae-anomaly", "scikit-learn", "tensorflow", "pyod", "torch")
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not done:
            writer.writeheader()
        for path, setting, seed, method in _runs(folders, methods, seeds, settings, part):
            key = (path.stem, setting, seed, method, parameters)
            if key in done:
                continue
            figures = evaluate(methods[method], not method.startswith("VAEDetector"), path, setting, seed)
            row = {"suite": path.parent.name, **dict(zip(KEY, key, strict=True))}
            writer.writerow(row | figures | {"versions": versions})
            file.flush()
            print(*key, figures["auroc"], f"{figures['fit']:.1f}s", flush=True)


def read(path: Path) -> pd.DataFrame:
    """Figures of runs; of peers' files, without a column of parameters."""
    results = pd.read_csv(path)
    return results.assign(parameters=results.get("parameters", pd.Series("{}", results.index)).fillna("{}"))


def is_in(part: str, name: str) -> bool:
    """Whether the table belongs to "all", to those "chosen_on", or to those "set_aside"."""
    return part == "all" or (name in SET_ASIDE.read_text().split()) == (part == "set_aside")


def _runs(
    folders: list[Path], methods: dict[str, Any], seeds: list[int], settings: tuple[str, ...], part: str
) -> Iterator[tuple[Path, str, int, str]]:
    for path in (path for folder in folders for path in sorted(folder.glob("*.npz"))):
        for setting in settings if is_in(part, path.stem) else ():
            for seed in seeds:
                for method in methods:
                    yield path, setting, seed, method


def versions_of(*packages: str) -> str:
    """Of those that are installed."""
    return " ".join(f"{name}={version}" for name in packages if (version := _version(name)))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# -- summary ------------------------------------------------------------------------------------------
def summarize(results: pd.DataFrame, ours: str = "VAEDetector", metric: str = "auroc") -> pd.DataFrame:
    """Mean, mean rank, wins / ties / losses of ``ours`` and Wilcoxon's p, for each setting and method.

    The mean is that of the suites' means, if there are several.
    """
    table = results.groupby(["setting", "dataset", "method"])[metric].mean().unstack()
    suites = suites_of(results)
    tables = []
    for setting in results["setting"].unique():
        figures = table.loc[setting].dropna(axis=1)
        ranks = figures.rank(axis=1, ascending=False).mean()
        mean = figures.groupby(figures.index.map(suites)).mean().mean()
        summary = pd.DataFrame({"setting": setting, "mean": mean, "mean rank": ranks})
        for method in figures.columns.drop(ours):
            gain = figures[ours] - figures[method]
            wins, losses = (gain > TIE).sum(), (gain < -TIE).sum()
            summary.loc[method, "wins/ties/losses"] = f"{wins}/{len(gain) - wins - losses}/{losses}"
            summary.loc[method, "p"] = wilcoxon(gain).pvalue if gain.any() else 1.0
        tables.append(summary.sort_values("mean", ascending=False))
    return pd.concat(tables).reset_index()


def suites_of(results: pd.DataFrame) -> dict[str, str]:
    """The suite of each data set; peers' files need not say it."""
    if "suite" not in results:
        return dict.fromkeys(results["dataset"], "")
    known = results.dropna(subset=["suite"])
    return dict.fromkeys(results["dataset"], "") | dict(zip(known["dataset"], known["suite"], strict=True))


def markdown(summary: pd.DataFrame) -> str:
    rows = ["| setting | method | mean | mean rank | wins/ties/losses | p |", "|---|---|---|---|---|---|"]
    for method, setting, mean, rank, wins, p in summary[
        ["method", "setting", "mean", "mean rank", "wins/ties/losses", "p"]
    ].itertuples(index=False, name=None):
        compared = f"{wins} | {p:.3f}" if isinstance(wins, str) else " | "
        rows.append(f"| {setting} | {method} | {mean:.3f} | {rank:.2f} | {compared} |")
    return "\n".join(rows)


def draw(results: pd.DataFrame, path: Path, ours: str = "VAEDetector") -> None:
    """A dot for each data set and method, ours on top, data sets ordered by our figure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table = results.groupby(["setting", "dataset", "method"])["auroc"].mean().unstack()
    figure, axes = plt.subplots(1, 2, figsize=(11, 6.5), sharex=True, layout="constrained")
    for ax, setting in zip(axes, SETTINGS, strict=True):
        figures = table.loc[setting].dropna(axis=1).sort_values(ours)
        places = np.arange(len(figures))
        for method, marker, color in zip(
            ("KNN", "IForest", "LOF", "PyOD-VAE"),
            "o^sD",
            ("#0072B2", "#E69F00", "#009E73", "#CC79A7"),
            strict=True,
        ):
            if method in figures:
                ax.scatter(figures[method], places, s=28, marker=marker, color=color, label=method, alpha=0.8)
        ax.scatter(figures[ours], places, s=70, marker="|", color="black", linewidths=3, label=ours)
        ax.set_yticks(places, [name.split("_", 1)[-1] for name in figures.index])
        ax.set_title(f"{setting} training data")
        ax.set_xlabel("AUROC, mean of the seeds")
        ax.grid(axis="x", alpha=0.3)
    axes[0].legend(loc="center left", frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("datasets", type=Path, nargs="+", help="folders")
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--methods", nargs="+", choices=METHODS, default=["VAEDetector"])
    running.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    running.add_argument("--parameters", default="{}", help="of VAEDetector, as JSON")
    running.add_argument("--part", choices=PARTS, default="all")
    summing = commands.add_parser("summary")
    summing.add_argument("results", nargs="+", type=Path)
    summing.add_argument("--metric", choices=("auroc", "ap"), default="auroc")
    summing.add_argument("--parameters", default="{}", help="which VAEDetector, as JSON")
    summing.add_argument("--part", choices=PARTS, default="all")
    summing.add_argument("--picture", type=Path)
    options = parser.parse_args()
    if options.command == "run":
        warnings.simplefilter("ignore")
        methods = {name: METHODS[name] for name in options.methods}
        if "VAEDetector" in methods:
            methods["VAEDetector"] = partial(vae_detector, **json.loads(options.parameters))
        run(
            options.datasets,
            options.out,
            methods,
            options.seeds,
            parameters=options.parameters,
            part=options.part,
        )
        return
    results = pd.concat([read(path) for path in options.results])
    results = results[(results["parameters"] == options.parameters) | (results["method"] != "VAEDetector")]
    ours = results.loc[results["method"] == "VAEDetector", "dataset"]
    results = results[results["dataset"].isin([name for name in ours.unique() if is_in(options.part, name)])]
    suites = suites_of(results)
    for suite in sorted(set(suites.values())) if len(set(suites.values())) > 1 else []:
        print(f"\n{suite}\n")
        print(markdown(summarize(results[results["dataset"].map(suites) == suite], metric=options.metric)))
    print("\nall tables; the mean is that of the suites' means\n")
    print(markdown(summarize(results, metric=options.metric)))
    if options.picture:
        draw(results, options.picture)


if __name__ == "__main__":
    main()
