"""Online selections: is the false-discovery rate kept, and how many anomalies are found?

Scores are drawn, so that it takes five minutes and no detector: normal rows N(0, 1), anomalies N(shift, 1).

    python benchmarks/online.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.base import clone

from vae_anomaly.calibration import p_values
from vae_anomaly.calibration.online import ONLINE

RESULTS = Path(__file__).parent / "results"
# (calibration rows, share of anomalies, shift)
SETTINGS = [
    (1000, 0.0, 0.0),
    (1000, 0.1, 3.0),
    (1000, 0.1, 4.0),
    (1000, 0.03, 6.0),
    (1000, 0.01, 6.0),
    (10_000, 0.01, 6.0),
    (10_000, 0.003, 6.0),
]


def measure(n_streams: int, n_rows: int, rate: float) -> pd.DataFrame:
    """Means over streams: shares of false rows among the selected ones, and of anomalies that are found."""
    lines = []
    for n_calibration, share, shift in SETTINGS:
        procedures = {
            (name, horizon): kind(rate, horizon=horizon)
            for name, kind in ONLINE.items()
            for horizon in (None, kind(rate).horizon_for(1 / (n_calibration + 1)))
        }
        false: dict[tuple[str, int | None], list[float]] = {which: [] for which in procedures}
        found: dict[tuple[str, int | None], list[float]] = {which: [] for which in procedures}
        for seed in range(n_streams):
            rng = np.random.RandomState(seed)
            calibration = rng.normal(size=n_calibration)
            anomalies = rng.uniform(size=n_rows) < share
            p = p_values(rng.normal(size=n_rows) + shift * anomalies, calibration)
            for which, procedure in procedures.items():
                selected = clone(procedure).update(p)
                false[which].append(selected[~anomalies].sum() / max(1, selected.sum()))
                found[which].append(selected[anomalies].mean() if anomalies.any() else np.nan)
        for name, horizon in procedures:
            lines.append(
                {
                    "calibration_rows": n_calibration,
                    "share_of_anomalies": share,
                    "shift": shift,
                    "selection": name,
                    "horizon": horizon,
                    "false_discovery_rate": np.mean(false[name, horizon]),
                    "standard_error": np.std(false[name, horizon]) / np.sqrt(n_streams),
                    "found": np.nanmean(found[name, horizon]) if share else np.nan,
                }
            )
        print(n_calibration, share, shift, flush=True)
    return pd.DataFrame(lines).astype({"horizon": "Int64"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=0.1)
    arguments = parser.parse_args()
    table = measure(arguments.streams, arguments.rows, arguments.rate)
    table.to_csv(RESULTS / "online.csv", index=False, float_format="%.4f")
    print(table.to_string())
