"""Fit on a folder of Parquet files, and score it by the processes of a cluster.

A machine writes a file of measurements an hour. One pass learns from all of them, a sample is trained on, and
a cluster of two processes scores every row; the hours with a fault stand out. `LocalCluster` stands in for
any cluster that dask speaks to. It needs the extras ``parquet`` and ``dask``
(``pip install 'vae-anomaly[dask,parquet]'``). Run it with::

    python examples/cluster.py
"""

import importlib.util
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vae_anomaly import DenseNetwork, VAEDetector, score_dataset

QUICK = bool(os.environ.get("VAE_ANOMALY_QUICK"))
N_HOURS, ROWS_OF_HOUR = (6, 500) if QUICK else (48, 12_000)
FAULTY = {2, 5} if QUICK else {11, 30, 31}


def write_hours(folder: Path) -> None:
    """A file for each hour; in a faulty one, the vibration no longer follows the speed for a while."""
    rng = np.random.default_rng(0)
    for hour in range(N_HOURS):
        speed = rng.normal(50, 5, ROWS_OF_HOUR)
        vibration = 0.1 * speed + rng.normal(0, 0.2, ROWS_OF_HOUR)
        if hour in FAULTY:
            vibration[: ROWS_OF_HOUR // 4] = rng.permutation(vibration[: ROWS_OF_HOUR // 4])
        temperature = 20 + 0.5 * speed + rng.normal(0, 1, ROWS_OF_HOUR)
        frame = pd.DataFrame({"speed": speed, "vibration": vibration, "temperature": temperature})
        frame.assign(hour=hour).to_parquet(folder / f"hour-{hour:02}.parquet", index=False)


def main() -> None:
    import dask.dataframe as dd
    from distributed import Client, LocalCluster

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "measurements"
        folder.mkdir()
        write_hours(folder)
        columns = ["speed", "vibration", "temperature"]
        hours = dd.read_parquet(folder)

        start = time.perf_counter()
        quick: dict[str, Any] = (
            {"network": DenseNetwork((8,)), "epochs": 3, "max_samples": 1000} if QUICK else {}
        )
        detector = VAEDetector(threshold="conformal", random_state=0, **quick).fit(hours[columns])
        print(f"fitted in {time.perf_counter() - start:.0f} s")
        print(f"rows: {detector.n_samples_fit_:,}; trained on, or held out: {detector.n_samples_drawn_:,}")

        # Two processes of one thread each (one process, to be quick). Nothing is computed before `compute`.
        settings = {"threads_per_worker": 1, "processes": not QUICK, "dashboard_address": None}
        with LocalCluster(n_workers=2, **settings) as cluster, Client(cluster):
            hours["alarm"] = detector.predict(hours[columns]) == -1
            alarms = hours.groupby("hour")["alarm"].mean().compute().sort_index()
        print("\nhours with more than 6 % of alarms, where 5 % are promised of normal rows:")
        print(alarms[alarms > 0.06].map("{:.1%}".format).to_string())

        # On one machine: files of scores, which a killed process would go on with.
        score_dataset(detector, folder, Path(name) / "scores", columns=["hour"], verbose=0)
        scores = pd.read_parquet(Path(name) / "scores")
        lowest = scores.nsmallest(3, "score_samples")
        print(f"\n{len(scores):,} scores in files; the lowest:")
        print(lowest.round(1).to_string(index=False))


if __name__ == "__main__":
    missing = [name for name in ("dask", "distributed", "pyarrow") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped without {', '.join(missing)}: pip install 'vae-anomaly[dask,parquet]'")
    else:
        main()
