"""From a laptop to a cluster: what fits and scores of many rows in Parquet files cost, in seconds and memory.

Each step runs in a process of its own, whose peak of resident memory it writes. Needs the extras ``parquet``
and ``dask``. What was measured is in ``benchmarks/results/scale.md``::

    for n in 1e5 1e6 1e7 1e8; do
        python benchmarks/scale.py make $n rows
        for step in fit epoch score svm; do python benchmarks/scale.py $step rows --out scale.csv; done
        rm -r rows
    done
    python benchmarks/scale.py summary scale.csv
"""

import argparse
import csv
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import SGDOneClassSVM
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import vae_anomaly
from vae_anomaly import VAEDetector

N_COLUMNS, N_FACTORS, ROWS_OF_FILE = 20, 5, 1_000_000
# What `VAEDetector` draws of more rows, and the machine is given for its rival.
ROWS_TO_FIT = 500_000
N_TO_TELL = 10**9


def make(n_rows: int, folder: Path) -> None:
    """Rows of five factors in twenty columns with noise, in files of a million rows."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(N_FACTORS, N_COLUMNS))
    names = [f"x{column}" for column in range(N_COLUMNS)]
    for number, start in enumerate(range(0, n_rows, ROWS_OF_FILE)):
        n = min(ROWS_OF_FILE, n_rows - start)
        X = rng.normal(size=(n, N_FACTORS)) @ loadings + 0.3 * rng.normal(size=(n, N_COLUMNS))
        pd.DataFrame(X, columns=names).to_parquet(
            folder / f"part-{number:04}.parquet", row_group_size=250_000
        )


# -- steps: rows -> seconds by the clock, and of the processor ---------------------------------------------
class Stopwatch:
    """Seconds since it was made: by the clock, and of the processor in this process."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._start[0], time.process_time() - self._start[1]


def fit(rows: Path, model: Path) -> tuple[float, float]:
    """The default detector, from files to a model file."""
    watch = Stopwatch()
    detector = VAEDetector(random_state=0).fit(rows)
    seconds = watch.read()
    detector.save(model)
    return seconds


def epoch(rows: Path, _: Path) -> tuple[float, float]:
    """One model, and one pass over all rows."""
    watch = Stopwatch()
    VAEDetector(epochs=1, random_state=0).fit(rows)
    return watch.read()


def score(rows: Path, model: Path) -> tuple[float, float]:
    """All rows by `score_dataset`, without the compilation of the first of them."""
    detector = vae_anomaly.load(model)
    detector.score_samples(next_rows(rows, 300_000))
    with tempfile.TemporaryDirectory() as folder:
        watch = Stopwatch()
        vae_anomaly.score_dataset(detector, rows, Path(folder) / "scores", verbose=0)
        return watch.read()


def svm(rows: Path, _: Path) -> tuple[float, float]:
    """The rival of the same rows."""
    rival = fit_rival(rows)
    with tempfile.TemporaryDirectory() as folder:
        watch = Stopwatch()
        vae_anomaly.score_dataset(rival, rows, Path(folder) / "scores", verbose=0)
        return watch.read()


def fit_rival(rows: Path) -> Pipeline:
    """scikit-learn's linear one-class SVM on a kernel's approximation, fitted on as many rows."""
    rival = make_pipeline(StandardScaler(), Nystroem(random_state=0), SGDOneClassSVM(random_state=0))
    return rival.fit(next_rows(rows, ROWS_TO_FIT))


def workers(rows: Path, model: Path, n_workers: int, of_rival: bool) -> tuple[float, float]:
    """All rows by a cluster of so many processes of one thread, from lazy rows to their mean score.

    What is said of the processor is of these processes together.
    """
    import dask.dataframe as dd
    from distributed import Client, LocalCluster

    X = dd.read_parquet(rows, split_row_groups=True)
    if of_rival:
        rival = fit_rival(rows)
        scores = X.map_partitions(rival.score_samples, meta=np.zeros(0))
        other_scores = X.map_partitions(rival.decision_function, meta=np.zeros(0))
    else:
        detector = vae_anomaly.load(model)
        scores, other_scores = detector.score_samples(X), detector.decision_function(X)
    with (
        LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        # Each worker imports TensorFlow and compiles before the time is taken, by what dask does not keep.
        other_scores.mean().compute()
        before = sum(client.run(time.process_time).values())
        watch = Stopwatch()
        scores.mean().compute()
        seconds, _ = watch.read()
        return seconds, sum(client.run(time.process_time).values()) - before


STEPS = {"fit": fit, "epoch": epoch, "score": score, "svm": svm}


def next_rows(rows: Path, n: int) -> pd.DataFrame:
    """The first rows, at most so many."""
    return pd.read_parquet(sorted(rows.glob("*.parquet"))[0])[:n]


def n_rows_of(rows: Path) -> int:
    import pyarrow.dataset

    return pyarrow.dataset.dataset(rows).count_rows()


# -- what was measured ---------------------------------------------------------------------------------------
def summary(path: Path) -> str:
    """Medians of each step, how they grow, and what a thousand million rows would take."""
    measured = pd.read_csv(path)
    columns = ["seconds", "cpu_seconds", "peak_mb"]
    table = measured.groupby(["step", "rows"])[columns].median().reset_index()
    lines = [
        "| step | rows | seconds | of the processor | peak memory, MB |",
        "|---|---|---|---|---|",
    ]
    for line in table.itertuples():
        of_step = f"{line.seconds:.1f} | {line.cpu_seconds:.1f} | {line.peak_mb:,.0f}"
        lines.append(f"| {line.step} | {line.rows:,} | {of_step} |")
    lines += [
        "",
        "| step | exponent of processor time | of memory | of both, last two sizes | hours at 1e9 rows |",
        "|---|---|---|---|---|",
    ]
    for step, of_step in table.groupby("step"):
        if len(of_step) > 1:
            (of_time, last_time), (of_memory, last_memory) = (
                (exponent(of_step, name), exponent(of_step[-2:], name)) for name in ("cpu_seconds", "peak_mb")
            )
            first, last = of_step.iloc[-2], of_step.iloc[-1]
            slope = (last["cpu_seconds"] - first["cpu_seconds"]) / (last["rows"] - first["rows"])
            hours = (last["cpu_seconds"] + slope * (N_TO_TELL - last["rows"])) / 3600
            of_last = f"{last_time:.2f}, {last_memory:.2f}"
            lines.append(f"| {step} | {of_time:.2f} | {of_memory:.2f} | {of_last} | {hours:.1f} |")
    return "\n".join(lines)


def exponent(of_step: pd.DataFrame, name: str) -> float:
    """By which power of the rows a figure grows: the slope between its logarithms, by least squares."""
    return float(np.polyfit(np.log(of_step["rows"]), np.log(of_step[name]), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("step", choices=["make", *STEPS, "workers", "svm-workers", "summary"])
    parser.add_argument("arguments", nargs="+", help="make: ROWS FOLDER; workers: NUMBER FOLDER; else: PATH")
    parser.add_argument("--out", type=Path, default=Path("scale.csv"))
    parser.add_argument("--model", type=Path, default=Path("scale.vae"))
    given = parser.parse_args()
    if given.step == "summary":
        print(summary(Path(given.arguments[0])))
        return
    rows = Path(given.arguments[-1])
    if given.step == "make":
        shutil.rmtree(rows, ignore_errors=True)
        make(int(float(given.arguments[0])), rows)
        return
    name, n_rows = given.step, n_rows_of(rows)
    if name.endswith("workers"):
        n_workers, of_rival = int(given.arguments[0]), name.startswith("svm")
        name = f"{'svm, ' * of_rival}{n_workers} workers"
        seconds, cpu_seconds = workers(rows, given.model, n_workers, of_rival)
    else:
        seconds, cpu_seconds = STEPS[name](rows, given.model)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    is_new = not given.out.exists()
    with given.out.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(["step", "rows", "seconds", "cpu_seconds", "peak_mb"])
        writer.writerow([name, n_rows, round(seconds, 2), round(cpu_seconds, 2), round(peak)])
    print(name, n_rows, f"{seconds:.1f} s", f"{cpu_seconds:.1f} s of the processor", f"{peak:.0f} MB")


if __name__ == "__main__":
    main()
