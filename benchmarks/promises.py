"""Do promises hold on scores of real tables: certificates, selections, streams and counts?

For each table of a folder (an ``.npz`` with ``X`` and ``y``, 1 = anomaly) one detector is fitted on half of
the normal rows. The scores of the other half are split again and again at random into calibration rows and
new rows: a promise says how often it holds over such splits. Tables with fewer than 1,000 such rows are left
out, because the rate of a cut has to be known, not estimated: it is that among all of them.

    python benchmarks/promises.py DATASETS
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from quality import load, split

from vae_anomaly import VAEDetector
from vae_anomaly.calibration import certified_cut, certify, count_anomalies, discoveries, p_values
from vae_anomaly.calibration.online import SAFFRON
from vae_anomaly.thresholds import Conformal

RESULTS = Path(__file__).parent / "results"
N_CERTIFIED, RATE, CONFIDENCE = 150, 0.05, 0.95
N_NORMAL, N_ANOMALIES, ALPHA = 200, 20, 0.1


def once(normal: np.ndarray, anomalies: np.ndarray, rng: np.random.RandomState) -> dict[str, float]:
    """One split."""
    normal = rng.permutation(normal)
    known = normal[:N_CERTIFIED]
    cut = Conformal(RATE).cut(known)
    held = {
        "certificate": (normal > cut).mean() <= certify(known, cut, CONFIDENCE).rate,
        "certified_cut": (normal > certified_cut(known, RATE, CONFIDENCE)).mean() <= RATE,
    }
    new, known = normal[:N_NORMAL], normal[N_NORMAL:]
    batch = np.r_[new, rng.choice(anomalies, min(N_ANOMALIES, len(anomalies)), replace=False)]
    order = rng.permutation(len(batch))
    p, true = p_values(batch, known)[order], (np.arange(len(batch)) >= N_NORMAL)[order]
    held["count"] = count_anomalies(p, confidence=CONFIDENCE) <= true.sum()
    top = np.argsort(p, kind="stable")[: true.sum()]
    held["count_of_top"] = count_anomalies(p, top, CONFIDENCE) <= true[top].sum()
    online = SAFFRON(ALPHA)
    online.set_params(horizon=online.horizon_for(1 / (len(known) + 1)))
    for name, selected in (("batch", discoveries(p, ALPHA)), ("stream", online.update(p))):
        held[f"false_in_{name}"] = selected[~true].sum() / max(1, selected.sum())
        held[f"found_in_{name}"] = selected[true].mean()
    held["counted"] = count_anomalies(p, confidence=CONFIDENCE) / true.sum()
    return {name: float(value) for name, value in held.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", type=Path)
    parser.add_argument("--splits", type=int, default=500)
    arguments = parser.parse_args()
    lines = []
    for path in sorted(arguments.datasets.glob("*.npz")):
        train, tested, y = split(*load(path, 0), "clean", 0)
        if (y == 0).sum() < 1000:
            continue
        detector = VAEDetector(epochs=30, random_state=0).fit(train)
        scores, rng = -detector.score_samples(tested), np.random.RandomState(0)
        runs = [once(scores[y == 0], scores[y == 1], rng) for _ in range(arguments.splits)]
        lines.append({"table": path.stem, "rows": int((y == 0).sum()), **pd.DataFrame(runs).mean()})
        print(lines[-1], flush=True)
    table = pd.DataFrame(lines)
    table.to_csv(RESULTS / "promises.csv", index=False, float_format="%.3f")
    print(table.drop(columns="table").mean().to_string())
