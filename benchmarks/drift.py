"""Drift: the realized rate of false alarms, and which changes are found.

``rates`` draws scores without drift, ``power`` changes held-out rows of scikit-learn's tables in four ways.
Nothing but the package is needed. What was measured is in ``benchmarks/results/drift.md``::

    python benchmarks/drift.py rates
    python benchmarks/drift.py power --out drift.csv
    python benchmarks/drift.py summary drift.csv
"""

import argparse
import csv
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine

from vae_anomaly import VAEDetector
from vae_anomaly.monitoring import Monitor, drift

RATES = (0.05, 0.01)
TABLES = {"tumors": load_breast_cancer, "diabetes": load_diabetes, "digits": load_digits, "wine": load_wine}
N_ROWS = 60


# -- false alarms ---------------------------------------------------------------------------------------
class Scores(BaseEstimator):
    """A detector whose rows are their scores."""

    def __init__(self, calibration: np.ndarray) -> None:
        self.calibration_scores_ = calibration

    def fit(self, X: np.ndarray) -> "Scores":
        return self

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        return -X


def line(what: str, share: float, alarms: np.ndarray, rate: float) -> str:
    interval = stats.binomtest(int(alarms.sum()), len(alarms)).proportion_ci(0.95, "wilson")
    realized = f"{alarms.mean():.4f} | {interval.low:.4f} to {interval.high:.4f}"
    return f"| {what} | {share:.0%} | {rate:g} | {len(alarms):,} | {realized} |"


def rates(options: argparse.Namespace) -> None:
    rng = np.random.RandomState(0)

    def draw(n_rows: int, share: float) -> np.ndarray:
        return np.where(rng.random_sample(n_rows) < share, 50.0, rng.gumbel(size=n_rows))

    print("| | anomalies | promised | trials | realized | 95 % interval |\n|---|---|---|---|---|---|")
    for n_calibration, n_rows, share in [
        (100, 10, 0),
        (100, 300, 0),
        (1000, 100, 0),
        (1000, 1000, 0),
        (1000, 1000, 0.02),
    ]:
        found = [drift(draw(n_rows, share), rng.gumbel(size=n_calibration)) for _ in range(options.repeats)]
        what = f"batch of {n_rows:,}, calibrated on {n_calibration:,}"
        for rate in RATES:
            print(line(f"{what}: drift", share, np.array([f.p_value <= rate for f in found]), rate))
            more = np.array([f.anomalies_p_value <= rate for f in found])
            print(line(f"{what}: anomalies", share, more, rate), flush=True)
    for n_calibration, n_rows, share in [(100, 1000, 0), (1000, 3000, 0), (1000, 3000, 0.02)]:
        what = f"stream of {n_rows:,}, calibrated on {n_calibration:,}"
        for rate in RATES:
            found = []
            for seed in range(options.repeats):
                monitor = Monitor(Scores(rng.gumbel(size=n_calibration)), rate, random_state=seed)
                found.append(monitor.update(draw(n_rows, share)))
            print(line(f"{what}: drift", share, np.array([f.drifted for f in found]), rate))
            more = np.array([f.more_anomalies for f in found])
            print(line(f"{what}: anomalies", share, more, rate), flush=True)


# -- power ----------------------------------------------------------------------------------------------
def changed(how: str, X: np.ndarray, rng: np.random.RandomState, spread: np.ndarray) -> np.ndarray:
    """The rows after one change of a tenth of the columns, at least one."""
    X = X.copy()
    varying = np.flatnonzero(spread > 0)
    columns = rng.choice(varying, max(1, len(varying) // 10), replace=False)
    for column in columns:
        if how == "shifted by 1 sd":
            X[:, column] += spread[column]
        elif how == "scaled by 2":
            X[:, column] *= 2
        elif how == "swapped with another":
            other = rng.choice(varying[varying != column])
            X[:, [column, other]] = X[:, [other, column]]
        elif how == "without its dependence":
            X[:, column] = rng.permutation(X[:, column])
    return X


CHANGES = ("none", "shifted by 1 sd", "scaled by 2", "swapped with another", "without its dependence")


def power(options: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    rows = []
    for name, load in TABLES.items():
        X = load().data
        for seed in options.seeds:
            rng = np.random.RandomState(seed)
            order = rng.permutation(len(X))
            new, train = X[order[: len(X) // 3]], X[order[len(X) // 3 :]]
            detector = VAEDetector(calibration=0.4, random_state=seed).fit(train)
            for how in CHANGES:
                for _ in range(options.batches):
                    batch = new[rng.choice(len(new), min(N_ROWS, len(new)), replace=False)]
                    batch = changed(how, batch, rng, train.std(axis=0))
                    found = detector.drift(batch, 0.01)
                    stream = Monitor(detector, 0.01, random_state=seed).update(batch)
                    rows.append(
                        {
                            "table": name,
                            "seed": seed,
                            "change": how,
                            "batch": int(found.drifted),
                            "stream": int(stream.drifted),
                            "first": stream.first_drifted or "",
                        }
                    )
            print(name, seed, flush=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def summary(options: argparse.Namespace) -> None:
    results = pd.read_csv(options.results)
    names = list(TABLES)
    print(f"| a tenth of the columns | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for how in CHANGES:
        of_change = results[results["change"] == how].groupby("table")[["batch", "stream"]].mean()
        cells = [f"{of_change['batch'][name]:.2f} / {of_change['stream'][name]:.2f}" for name in names]
        print(f"| {how} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    of_rates = commands.add_parser("rates")
    of_rates.add_argument("--repeats", type=int, default=2_000)
    of_rates.set_defaults(action=rates)
    of_power = commands.add_parser("power")
    of_power.add_argument("--out", type=Path, required=True)
    of_power.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    of_power.add_argument("--batches", type=int, default=20)
    of_power.set_defaults(action=power)
    summing = commands.add_parser("summary")
    summing.add_argument("results", type=Path)
    summing.set_defaults(action=summary)
    options = parser.parse_args()
    options.action(options)


if __name__ == "__main__":
    main()
