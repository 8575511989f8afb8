"""What a false-alarm rate means on new rows: thresholds and discoveries on real and synthetic tables.

Each table of a folder (an ``.npz`` with ``X`` and ``y``, 1 = anomaly) is split as in `quality.py`, setting
"clean": detectors are fitted on a random half of the normal rows, alarms are counted among the other half.
One CSV row for each table, seed, method and rate::

    python benchmarks/false_alarms.py run DATASETS --out false_alarms.csv
    python benchmarks/false_alarms.py discoveries DATASETS --out discoveries.csv
    python benchmarks/false_alarms.py few DATASETS --out false_alarms_few.csv
    python benchmarks/false_alarms.py default --out false_alarms_default.csv
    python benchmarks/false_alarms.py synthetic --out false_alarms_synthetic.csv
    python benchmarks/false_alarms.py summary false_alarms.csv discoveries.csv false_alarms_synthetic.csv

The rate after one calibration on n rows varies with them: m new rows make a beta-binomial number of false
alarms if all n + m are exchangeable. "Inside" counts results within the central 95 % of that law.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from quality import METHODS, load, split
from scipy import stats
from sklearn.preprocessing import StandardScaler

RATES = (0.1, 0.05, 0.01)
CONFORMAL = "VAEDetector, conformal"
TRAINING = "VAEDetector, training scores"
PEERS = ("KNN", "IForest", "PyOD-VAE")


# -- alarms among new normal rows -----------------------------------------------------------------------
def alarms_of_ours(train: np.ndarray, new: np.ndarray, seed: int) -> Iterator[dict[str, Any]]:
    from vae_anomaly import VAEDetector
    from vae_anomaly.thresholds import Conformal

    calibrated = VAEDetector(threshold=Conformal(RATES[0]), random_state=seed).fit(train)
    scores = -calibrated.score_samples(new)
    calibration = calibrated.calibration_scores_
    for rate in RATES:
        if len(calibration) >= 1 / rate - 1:
            cut = Conformal(rate).cut(calibration)
            yield row(CONFORMAL, rate, len(calibration), (scores > cut).sum(), len(new))
    plain = VAEDetector(random_state=seed).fit(train)
    yield from alarms_by_quantile(TRAINING, -plain.score_samples(train), -plain.score_samples(new))


def alarms_of_peer(name: str, train: np.ndarray, new: np.ndarray, seed: int) -> Iterator[dict[str, Any]]:
    scaler = StandardScaler().fit(train)
    detector = METHODS[name](seed).fit(scaler.transform(train))
    if name == "IForest":  # scikit-learn's
        trained, scores = (-detector.score_samples(scaler.transform(rows)) for rows in (train, new))
    else:
        trained, scores = detector.decision_scores_, detector.decision_function(scaler.transform(new))
    yield from alarms_by_quantile(f"{name}, contamination", trained, scores)


def alarms_by_quantile(method: str, trained: np.ndarray, scores: np.ndarray) -> Iterator[dict[str, Any]]:
    """What ``contamination=rate`` does in PyOD and scikit-learn."""
    for rate in RATES:
        cut = np.percentile(trained, 100 * (1 - rate))
        yield row(method, rate, len(trained), (scores > cut).sum(), len(scores))


def row(method: str, rate: float, n_rows: int, n_alarms: int, n_new: int) -> dict[str, Any]:
    above = n_rows + 1 - math.ceil(round((n_rows + 1) * (1 - rate), 9))
    law = stats.betabinom(n_new, max(above, 1), n_rows + 1 - max(above, 1))
    low, high = law.ppf(0.025), law.ppf(0.975)
    return {
        "method": method,
        "rate": rate,
        "n_rows": n_rows,
        "n_new": n_new,
        "alarms": int(n_alarms),
        "inside": int(low <= n_alarms <= high),
    }


def run(options: argparse.Namespace) -> None:
    def measure(path: Path, seed: int) -> Iterator[dict[str, Any]]:
        X, y = load(path, seed)
        train, test, labels = split(X, y, "clean", seed)
        new = test[labels == 0]
        yield from alarms_of_ours(train, new, seed)
        for name in PEERS:
            yield from alarms_of_peer(name, train, new, seed)

    each_table(options, measure)


# -- discoveries ----------------------------------------------------------------------------------------
def discovered(selected: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        "false_share": float((selected & (labels == 0)).sum() / max(1, selected.sum())),
        "power": float(selected[labels == 1].mean()),
        "selected": int(selected.sum()),
    }


def find(options: argparse.Namespace) -> None:
    """At most as many anomalies as a tenth of the normal test rows, a rate of 0.1, calibrated on a third."""

    def measure(path: Path, seed: int) -> Iterator[dict[str, Any]]:
        from vae_anomaly import VAEDetector

        X, y = load(path, seed)
        train, test, labels = split(X, y, "clean", seed)
        rng = np.random.default_rng(seed)
        normal, anomalies = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
        tested = np.r_[normal, rng.permutation(anomalies)[: math.ceil(len(normal) / 10)]]
        detector = VAEDetector(calibration=1 / 3, random_state=seed).fit(train)
        for dependence in ("positive", "any"):
            selected = detector.select_anomalies(test[tested], 0.1, dependence)
            figures = discovered(selected, labels[tested])
            yield {"method": dependence, "n_rows": len(detector.calibration_scores_), **figures}

    each_table(options, measure)


def each_table(options: argparse.Namespace, measure: Callable[[Path, int], Iterator[dict[str, Any]]]) -> None:
    """`each`, of the tables of a folder."""
    each(options, {path.stem: path for path in sorted(options.datasets.glob("*.npz"))}, measure)


def each(
    options: argparse.Namespace,
    tables: Mapping[str, Any],
    measure: Callable[[Any, int], Iterator[dict[str, Any]]],
) -> None:
    """Add the missing rows to ``options.out``."""
    done = set()
    if options.out.exists():
        done = set(pd.read_csv(options.out)[["dataset", "seed"]].itertuples(index=False, name=None))
    for seed in options.seeds:
        for name, table in tables.items():
            key = {"dataset": name, "seed": seed}
            if (name, seed) not in done and (rows := [key | found for found in measure(table, seed)]):
                append(options.out, rows)


def append(out: Path, rows: list[dict[str, Any]]) -> None:
    is_new = not out.exists()
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
    print(rows[0]["dataset"], rows[0]["seed"], flush=True)


# -- where rows are few -----------------------------------------------------------------------------------
def few(options: argparse.Namespace) -> None:
    """Alarms and discoveries after fits to few rows, judged out of bag and in folds, and seconds of a fit."""

    def measure(path: Path, seed: int) -> Iterator[dict[str, Any]]:
        from vae_anomaly import VAEDetector
        from vae_anomaly.thresholds import Conformal

        train, test, labels = split(*load(path, seed), "clean", seed)
        rng = np.random.RandomState(seed)
        new, anomalies = (rng.permutation(test[labels == of_class]) for of_class in (0, 1))
        batch = np.r_[new[:200], anomalies[:20]]
        of_anomalies = np.arange(len(batch)) >= min(200, len(new))
        for n_rows in options.rows:
            if len(train) < n_rows:
                continue
            rows = rng.permutation(train)[:n_rows]
            for calibration in ("out_of_bag", "folds"):
                start = time.perf_counter()
                detector = VAEDetector(
                    threshold=Conformal(RATES[0]), calibration=calibration, random_state=seed
                ).fit(rows)
                figures = {"seconds": round(time.perf_counter() - start, 2)}
                figures |= discovered(detector.select_anomalies(batch, 0.1), of_anomalies.astype(int))
                scores = -detector.score_samples(new)
                for rate in RATES:
                    if n_rows >= 1 / rate - 1:
                        cut = Conformal(rate).cut(detector.calibration_scores_)
                        alarms = (scores > cut).sum()
                        yield row(f"{calibration}, {n_rows} rows", rate, n_rows, alarms, len(new)) | figures

    each_table(options, measure)


# -- the default of `predict` -------------------------------------------------------------------------------
GENERATED: dict[str, Callable[[np.random.RandomState, int, int], np.ndarray]] = {
    "normal": lambda rng, n, d: rng.normal(size=(n, d)),
    "lognormal": lambda rng, n, d: rng.lognormal(size=(n, d)),
    "student_t": lambda rng, n, d: rng.standard_t(3, size=(n, d)),
    "uniform": lambda rng, n, d: rng.uniform(size=(n, d)),
    "counts": lambda rng, n, d: rng.poisson(3, size=(n, d)).astype(float),
}


def default(options: argparse.Namespace) -> None:
    """Alarms of `predict`, with all defaults, on new normal rows; beside it others with this contamination.

    Of independent columns of a kind, or of a folder's tables (``--datasets``). TensorFlow and PyTorch crash
    in one process: measure PyOD's VAE in its own, ``--methods PyOD-VAE``.
    """
    from vae_anomaly.thresholds import OutOfBag

    rate = OutOfBag().false_alarm_rate

    def alarms(train: np.ndarray, new: np.ndarray, seed: int) -> Iterator[dict[str, Any]]:
        for name in options.methods:
            detector, rows = METHODS[name](seed), (train, new)
            if name != "VAEDetector":
                detector.set_params(contamination=rate)
                scaler = StandardScaler().fit(train)
                rows = scaler.transform(train), scaler.transform(new)
            labels = detector.fit(rows[0]).predict(rows[1])
            # PyOD's 1 is an anomaly.
            n_alarms = (labels == (1 if name.startswith("PyOD") else -1)).sum()
            how = "predict" if name == "VAEDetector" else "contamination"
            yield row(f"{name}, {how}", rate, len(train), n_alarms, len(new))

    def generated(key: tuple[str, int, int], seed: int) -> Iterator[dict[str, Any]]:
        name, n_columns, n_rows = key
        rng = np.random.RandomState(seed)
        yield from alarms(*(GENERATED[name](rng, n, n_columns) for n in (n_rows, 4000)), seed)

    def on_table(path: Path, seed: int) -> Iterator[dict[str, Any]]:
        X, y = load(path, seed)
        train, test, labels = split(X, y, "clean", seed)
        yield from alarms(train, test[labels == 0], seed)

    if options.datasets is not None:
        each(options, {path.stem: path for path in sorted(options.datasets.glob("*.npz"))}, on_table)
        return
    sizes = (100,) if options.quick else options.rows
    columns = (4,) if options.quick else options.columns
    keys = [(name, d, n) for name in GENERATED for d in columns for n in sizes]
    each(options, {f"{name}, {d} columns, {n} rows": (name, d, n) for name, d, n in keys}, generated)


# -- where the truth is known ---------------------------------------------------------------------------
def synthetic(options: argparse.Namespace) -> None:
    """Rates from 1e-1 to 1e-4 on a million new rows of a known law."""
    from vae_anomaly import VAEDetector
    from vae_anomaly.thresholds import Conformal, ParetoTail

    def draw(n_rows: int, rng: np.random.Generator) -> np.ndarray:
        hidden = rng.standard_normal((n_rows, 3))
        mixed = np.tanh(hidden @ np.random.default_rng(0).standard_normal((3, 10)))
        return mixed + 0.1 * rng.standard_t(5, size=(n_rows, 10))

    for seed in options.seeds:
        rng = np.random.default_rng(seed)
        n_fitted = 20_000 if options.quick else 200_000
        detector = VAEDetector(calibration=0.5, random_state=seed).fit(draw(n_fitted, rng))
        calibration = detector.calibration_scores_
        n_new = 20_000 if options.quick else 1_000_000
        scores = -detector.score_samples(draw(n_new, rng))
        rules = [("conformal", rate, Conformal(rate)) for rate in (*RATES, 1e-3, 1e-4)]
        rules += [("pareto_tail", rate, ParetoTail(rate)) for rate in (1e-3, 1e-4, 1e-5)]
        found = [
            row(name, rate, len(calibration), (scores > r.cut(calibration)).sum(), n_new)
            for name, rate, r in rules
        ]
        append(options.out, [{"dataset": "synthetic", "seed": seed} | figures for figures in found])


# -- summary --------------------------------------------------------------------------------------------
def with_calibration(alarms: pd.DataFrame) -> pd.DataFrame:
    """Conformal fits once more for how they were calibrated: in folds, all training rows are."""
    keys = ["dataset", "seed", "rate"]
    trained = alarms[alarms["method"] == TRAINING].set_index(keys)["n_rows"]
    ours = alarms[alarms["method"] == CONFORMAL].set_index(keys, drop=False)
    in_folds = ours["n_rows"] == trained.reindex(ours.index)
    ours = ours.assign(method=np.where(in_folds, f"{CONFORMAL}, in folds", f"{CONFORMAL}, held out"))
    return pd.concat([alarms, ours.sort_values("method")], ignore_index=True)


def summary(alarms: pd.DataFrame) -> str:
    alarms = with_calibration(alarms)
    alarms = alarms.assign(realized=alarms["alarms"] / alarms["n_new"] / alarms["rate"])
    lines = [
        "| method | rate | tables × seeds | inside | realized / promised: median | worst |",
        "|---|---|---|---|---|---|",
    ]
    for (method, rate), group in alarms.groupby(["method", "rate"], sort=False):
        lines.append(
            f"| {method} | {rate:g} | {len(group)} | {group['inside'].mean():.0%} | "
            f"{group['realized'].median():.2f} | {group['realized'].max():.1f} |"
        )
    return "\n".join(lines)


def summary_of_discoveries(found: pd.DataFrame) -> str:
    lines = ["| dependence | tables × seeds | false share, mean | power, mean |", "|---|---|---|---|"]
    for method, group in found.groupby("method", sort=False):
        false, error = group["false_share"].mean(), group["false_share"].sem()
        lines.append(f"| {method} | {len(group)} | {false:.3f} ± {error:.3f} | {group['power'].mean():.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    actions = {"run": run, "discoveries": find, "few": few, "default": default, "synthetic": synthetic}
    for name, action in actions.items():
        measured = commands.add_parser(name)
        if name == "default":
            measured.add_argument("--datasets", type=Path)
            measured.add_argument("--methods", nargs="+", default=["VAEDetector", "IForest"])
            measured.add_argument("--rows", nargs="+", type=int, default=[50, 100, 300, 1000, 10_000])
            measured.add_argument("--columns", nargs="+", type=int, default=[2, 4, 10, 20])
        elif name != "synthetic":
            measured.add_argument("datasets", type=Path)
        if name == "few":
            measured.add_argument("--rows", nargs="+", type=int, default=[100, 200, 400])
        measured.add_argument("--out", type=Path, required=True)
        measured.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
        measured.add_argument("--quick", action="store_true", help="fewer synthetic rows")
        measured.set_defaults(action=action)
    summing = commands.add_parser("summary")
    summing.add_argument("results", nargs="+", type=Path)
    options = parser.parse_args()
    if options.command != "summary":
        warnings.simplefilter("ignore")
        options.action(options)
        return
    for path in options.results:
        results = pd.read_csv(path)
        print(summary(results) if "alarms" in results else summary_of_discoveries(results), end="\n\n")


if __name__ == "__main__":
    main()
