"""Conformal detection beside other libraries: false alarms and anomalies found at stated rates.

Each table of a folder (an ``.npz`` with ``X`` and ``y``, 1 = anomaly) is split as in `quality.py`, setting
"clean". Methods are fitted on at most 1,000 normal rows, those that they hold out for calibration among them;
alarms are counted among all normal and anomalous test rows, at most 2,000 of each. "selected" and "false" are
what is selected of a batch of at most 200 normal rows and 20 anomalies at a false-discovery rate of 10 %. One
CSV row for each table, seed, method and rate::

    pip install nonconform pyod  # Python 3.12
    python benchmarks/conformal_libraries.py run DATASETS --out conformal_libraries.csv
    python benchmarks/conformal_libraries.py summary conformal_libraries.csv

"contamination" is the cut of scikit-learn and PyOD at the quantile of the training scores, which promises
nothing for new rows. nonconform's Split holds out a fifth of the rows, as here; its CrossValidation has five
folds. Its JackknifeBootstrap is left out: one fit took 215 s where CrossValidation took 16 s.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from false_alarms import RATES, discovered, each_table, row
from quality import load, split, vae_detector
from sklearn.ensemble import IsolationForest
from sklearn.preprocessing import StandardScaler

N_TRAINED, N_TESTED, N_NORMAL, N_ANOMALIES = 1000, 2000, 200, 20
HELD_OUT, FALSE_DISCOVERY_RATE = 0.2, 0.1

#: Which rows raise an alarm at each of `RATES`, (n_rates, n_rows); and which of a batch are selected, if any.
Alarms = Callable[[np.ndarray], np.ndarray]
Selects = Callable[[np.ndarray], np.ndarray] | None


# -- methods: fitted on rows, how many of them calibrate, and what they say of others -------------------
def ours(train: np.ndarray, seed: int) -> tuple[int, Alarms, Selects]:
    detector = vae_detector(seed, threshold="conformal", calibration=HELD_OUT).fit(train)
    n_rows = len(detector.calibration_scores_)
    return n_rows, lambda X: by_p_values(detector.p_values(X)), detector.select_anomalies


def by_p_values(p: np.ndarray) -> np.ndarray:
    return np.asarray(p) <= np.array(RATES)[:, None]


def nonconform_around(make: Callable[[int], Any], strategy: str) -> Callable[..., Any]:
    def fit(train: np.ndarray, seed: int) -> tuple[int, Alarms, Selects]:
        import nonconform

        strategies = {
            "Split": lambda: nonconform.Split(n_calib=HELD_OUT),
            "CrossValidation": nonconform.CrossValidation,
        }
        detector = nonconform.ConformalDetector(
            make(seed), strategies[strategy](), score_polarity="higher_is_normal", seed=seed
        ).fit(train)

        def select(X: np.ndarray) -> np.ndarray:
            return np.asarray(detector.select(X, alpha=FALSE_DISCOVERY_RATE))

        n_rows = len(detector.calibration_set)
        return n_rows, lambda X: by_p_values(detector.compute_p_values(X)), select

    return fit


def by_contamination(make: Callable[[int], Any]) -> Callable[..., Any]:
    def fit(train: np.ndarray, seed: int) -> tuple[int, Alarms, Selects]:
        scaler = StandardScaler().fit(train)
        detector = make(seed).fit(scaler.transform(train))
        sign = -1 if isinstance(detector, IsolationForest) else 1

        def scores(X: np.ndarray) -> np.ndarray:
            return np.asarray(sign * detector.decision_function(scaler.transform(X)))

        trained = getattr(detector, "decision_scores_", None)
        trained = scores(train) if trained is None else trained
        cuts = np.percentile(trained, 100 * (1 - np.array(RATES)))
        return len(train), lambda X: scores(X) > cuts[:, None], None

    return fit


def forest(seed: int) -> Any:
    return IsolationForest(random_state=seed)


def neighbors(_: int) -> Any:
    from pyod.models.knn import KNN

    return KNN()


METHODS: dict[str, Callable[[np.ndarray, int], tuple[int, Alarms, Selects]]] = {
    "VAEDetector, conformal": ours,
    "nonconform Split, VAEDetector": nonconform_around(vae_detector, "Split"),
    "nonconform Split, IsolationForest": nonconform_around(forest, "Split"),
    "nonconform CrossValidation, IsolationForest": nonconform_around(forest, "CrossValidation"),
    "IsolationForest, contamination": by_contamination(forest),
    "PyOD KNN, contamination": by_contamination(neighbors),
}


def run(options: argparse.Namespace) -> None:
    def measure(path: Path, seed: int) -> Iterator[dict[str, Any]]:
        train, test, labels = split(*load(path, seed), "clean", seed)
        rng = np.random.RandomState(seed)
        train = rng.permutation(train)[:N_TRAINED]
        normal, anomalies = (rng.permutation(test[labels == of_class])[:N_TESTED] for of_class in (0, 1))
        batch = np.r_[normal[:N_NORMAL], anomalies[:N_ANOMALIES]]
        of_batch = (np.arange(len(batch)) >= len(normal[:N_NORMAL])).astype(int)
        for name in options.methods:
            start = time.perf_counter()
            n_rows, alarms, select = METHODS[name](train, seed)
            figures: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 2)}
            chosen = np.zeros(len(batch), dtype=bool) if select is None else select(batch)
            figures |= discovered(chosen, of_batch)
            for rate, false, true in zip(RATES, alarms(normal), alarms(anomalies), strict=True):
                found = {"found": round(float(true.mean()), 4)}
                yield row(name, rate, n_rows, false.sum(), len(normal)) | found | figures

    each_table(options, measure)


def summary(results: pd.DataFrame) -> str:
    results = results.assign(realized=results["alarms"] / results["n_new"])
    lines = [
        "| method | 10 %: alarms | inside | found | 5 %: alarms | inside | found "
        "| 1 %: alarms | inside | found | selected | false |",
        "|---" * 12 + "|",
    ]
    for name, of_method in results.groupby("method", sort=False):
        cells = []
        for rate in RATES:
            group = of_method[of_method["rate"] == rate]
            cells += [f"{group['realized'].mean():.1%}", f"{group['inside'].mean():.0%}"]
            cells += [f"{group['found'].mean():.3f}"]
        cells += [f"{of_method['power'].mean():.2f}", f"{of_method['false_share'].mean():.3f}"]
        if "contamination" in name:
            cells[-2:] = ["", ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measured = commands.add_parser("run")
    measured.add_argument("datasets", type=Path)
    measured.add_argument("--out", type=Path, required=True)
    measured.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    measured.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    summing = commands.add_parser("summary")
    summing.add_argument("results", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("nonconform").setLevel(logging.ERROR)
    if options.command == "run":
        run(options)
    else:
        print(summary(pd.read_csv(options.results)))


if __name__ == "__main__":
    main()
