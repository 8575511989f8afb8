"""Anomalies among the calibration rows: what becomes of the false-alarm rate, and of what is found?

Scores are drawn, so that it takes seconds and no detector: normal rows N(0, 1), anomalies N(shift, 1).

    python benchmarks/contaminated_calibration.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from vae_anomaly.calibration import certify, discoveries, p_values
from vae_anomaly.thresholds import Conformal

RESULTS = Path(__file__).parent / "results"
# What is trimmed, `Conformal(contamination=...)`.
TRIMMED = (0.01, 0.02)
RATE, N_CALIBRATION, N_NORMAL, N_ANOMALIES = 0.05, 1000, 450, 50


def measure(n_runs: int) -> pd.DataFrame:
    """Means over runs, each with a calibration and a batch of its own."""
    lines = []
    for shift in (2.0, 4.0):
        for share in (0.0, 0.005, 0.01, 0.02, 0.04, 0.1):
            found = []
            for seed in range(n_runs):
                rng = np.random.RandomState(seed)
                anomalies = np.arange(N_CALIBRATION) < round(share * N_CALIBRATION)
                calibration = rng.normal(size=N_CALIBRATION) + shift * anomalies
                cut = Conformal(RATE).cut(calibration)
                rate = stats.norm.sf(cut)
                batch = np.r_[rng.normal(size=N_NORMAL), rng.normal(shift, 1, size=N_ANOMALIES)]
                selected = discoveries(p_values(batch, calibration), 0.1)
                found.append(
                    (
                        rate,
                        rate <= certify(calibration, cut).rate,
                        stats.norm.sf(cut - shift),
                        selected[:N_NORMAL].sum() / max(1, selected.sum()),
                        selected[N_NORMAL:].mean(),
                        *of_trimmed_cuts(calibration, shift),
                    )
                )
            names = ["false_alarm_rate", "certificate_holds", "found", "false_discovery_rate", "selected"]
            names += [f"{name}_trimmed_{share:g}" for share in TRIMMED for name in ("rate", "found")]
            means = dict(zip(names, np.mean(found, axis=0), strict=True))
            lines.append({"shift": shift, "anomalies_in_calibration": share, **means})
    return pd.DataFrame(lines)


def of_trimmed_cuts(calibration: np.ndarray, shift: float) -> Iterator[float]:
    """Rate and found anomalies of each."""
    for share in TRIMMED:
        cut = Conformal(RATE, contamination=share).cut(calibration)
        yield from (stats.norm.sf(cut), stats.norm.sf(cut - shift))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    table = measure(parser.parse_args().runs)
    table.to_csv(RESULTS / "contaminated_calibration.csv", index=False, float_format="%.4f")
    print(table.to_string())
