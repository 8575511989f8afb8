"""Seconds and megabytes beside other libraries, the arithmetic's floor, and the size of the work.

Every measurement is a process of its own on one core, libraries in turn; one JSON line each::

    python benchmarks/speed.py run --out speed.jsonl
    python benchmarks/speed.py grid --out speed.jsonl
    python benchmarks/speed.py growth --out speed.jsonl
    python benchmarks/speed.py memmap --out speed.jsonl
    python benchmarks/speed.py summary speed.jsonl --table speed.md --picture speed.png --growth growth.png

Needs the extra ``bench``; ``--python "alibi-detect=/other/venv/bin/python"`` adds a library that wants older
versions. ``--quick`` makes everything tiny, to see that it runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from speed_libraries import CASES, LIBRARIES, N_DRAWS, Case, VaeAnomaly

OURS = "vae_anomaly"
PACKAGES = {"PyOD VAE": "pyod", "PyOD AutoEncoder": "pyod", "Keras": "keras", "torch loop": "torch"}
PACKAGES |= {"alibi-detect": "alibi_detect"}
QUICK_ROWS = 600


# -- the arithmetic's floor ---------------------------------------------------------------------------
def multiply_adds(case: Case) -> tuple[int, int]:
    """Multiply-adds of the encoder and of the decoder for one row."""

    def dense(widths: list[int]) -> int:
        return sum(n_in * n_out for n_in, n_out in pairwise(widths))

    hidden, latent = list(case.hidden), case.latent_dim
    if not case.is_image:
        (n_features,) = case.shape
        return dense([n_features, *hidden, 2 * latent]), dense([latent, *hidden[::-1], n_features])
    height, width, channels = case.shape
    depths = [channels, *case.filters]
    encoder = decoder = 0
    for position, n_out in enumerate(case.filters):
        n_places = (height >> (position + 1)) * (width >> (position + 1))
        encoder += 9 * depths[position] * n_out * n_places
        deeper = case.filters[min(position + 1, len(case.filters) - 1)]
        decoder += 9 * deeper * n_out * n_places
    flat = n_places * case.filters[-1]
    encoder += dense([flat, *hidden, 2 * latent])
    decoder += dense([latent, *hidden[::-1], flat]) + 9 * case.filters[0] * channels * height * width
    return encoder, decoder


def floors(case: Case, gigaflops: float) -> dict[str, float]:
    """Seconds that the matrix products of a fit and of a scoring take at this peak.

    Training is three products for one of the forward pass; an addition and a multiplication are two
    operations.
    """
    encoder, decoder = multiply_adds(case)
    return {
        "fit": 6 * (encoder + decoder) * case.n_rows * case.epochs / gigaflops / 1e9,
        "score": 2 * (encoder + N_DRAWS * decoder) * case.n_scored / gigaflops / 1e9,
    }


def peak_gigaflops() -> float:
    """Of a large float32 matrix product."""
    a, b = np.random.default_rng(0).standard_normal((2, 3000, 3000), dtype=np.float32)
    best = min(seconds(lambda: a @ b) for _ in range(5))
    return 2 * 3000**3 / best / 1e9


# -- measurements -------------------------------------------------------------------------------------
def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def megabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def latency(action: Callable[[], Any], at_most: float = 3.0) -> float:
    """Median milliseconds of a call, of a service that has run for a while."""

    def times(n_calls: int) -> list[float]:
        spent: list[float] = []
        while len(spent) < n_calls and (len(spent) < 5 or sum(spent) < at_most):
            spent.append(seconds(action))
        return spent

    times(300)
    return 1000 * statistics.median(times(300))


def measure(name: str, case: Case) -> dict[str, Any]:
    """Everything about one library and one case, in this process."""
    if name == "peak":
        return {"gigaflops": peak_gigaflops()}
    X, scored = case.rows(case.n_rows, 1), case.rows(case.n_scored, 2)
    start = time.perf_counter()
    library = LIBRARIES[name](case)
    figures: dict[str, Any] = {"import": time.perf_counter() - start, "import_mb": megabytes()}
    figures["cold_fit"] = seconds(lambda: library.fit(X))
    figures["warm_fit"] = seconds(lambda: library.fit(X))
    if case.is_image:  # more epochs can mean another way of compiling where steps are small
        longer = LIBRARIES[name](case._replace(epochs=2 * case.epochs))
        figures["epochs"] = seconds(lambda: longer.fit(X)) - figures["warm_fit"]
    library.score(scored[:100])
    figures["score"] = seconds(lambda: library.score(scored))
    figures["peak_mb"] = megabytes()
    figures["n_draws"] = library.n_draws
    figures["latency_1_ms"] = latency(lambda: library.score(scored[:1]))
    figures["latency_100_ms"] = latency(lambda: library.score(scored[:100]))
    return figures


def in_own_process(arguments: list[str], cores: list[int], python: str = sys.executable) -> dict[str, Any]:
    """Run ``measure`` and the like in a new process on these cores."""
    # One thread each: where there are more cores, a grid search has a worker for each of them.
    environment = os.environ | {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        [python, __file__, *arguments, "--cores", *map(str, cores)],
        env=environment | {"PYTHONWARNINGS": "ignore", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{arguments}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def installed(name: str) -> bool:
    package = PACKAGES.get(name)
    return package is None or importlib.util.find_spec(package) is not None


def run(options: argparse.Namespace) -> None:
    cores = options.cores[:1]
    pythons = dict(given.split("=", 1) for given in options.python)
    names = [name for name in options.libraries if name in pythons or installed(name)]
    for case in options.cases:
        suited = [name for name in names if LIBRARIES[name].takes_images or not CASES[case].is_image]
        for repeat in range(options.repeats):
            for name in ["peak", *suited]:
                arguments = ["measure", name, case, *options.quick_flag]
                figures = in_own_process(arguments, cores, pythons.get(name, sys.executable))
                write(options.out, {"kind": "run", "case": case, "library": name, "repeat": repeat} | figures)


def write(out: Path, figures: dict[str, Any]) -> None:
    rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in figures.items()}
    line = json.dumps(rounded)
    print(line, flush=True)
    with out.open("a") as file:
        file.write(line + "\n")


def case_named(name: str, quick: bool) -> Case:
    case = CASES[name]
    return case._replace(n_rows=QUICK_ROWS, n_scored=QUICK_ROWS, epochs=2) if quick else case


# -- a grid search ------------------------------------------------------------------------------------
GRID = {"latent_dim": [2, 4, 8], "learning_rate": [1e-3, 3e-3], "batch_size": [32, 64]}
GRID_LIBRARIES = (OURS, "PyOD VAE", "Keras")


def grid_search(name: str, case: Case) -> dict[str, Any]:
    """Twelve candidates, three folds and the refit, by held-out AUROC, on all cores that this process has."""
    import speed_libraries
    from joblib import parallel_config
    from sklearn.base import BaseEstimator
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GridSearchCV

    class Detector(BaseEstimator):
        """A library's adapter as an estimator."""

        def __init__(self, latent_dim=4, learning_rate=1e-3, batch_size=32):
            self.latent_dim, self.learning_rate, self.batch_size = latent_dim, learning_rate, batch_size

        def fit(self, X, y=None):
            speed_libraries.LEARNING_RATE = self.learning_rate
            changed = {"latent_dim": self.latent_dim, "batch_size": self.batch_size}
            self.library_ = LIBRARIES[name](case._replace(**changed))
            self.library_.fit(X)
            return self

        def score_samples(self, X):
            return self.library_.score(X)

    def auroc(detector: Any, X: np.ndarray, y: np.ndarray) -> float:
        scores = detector.score_samples(X)
        return roc_auc_score(y, -scores if name == OURS else scores)

    X = case.rows(case.n_rows, 1)
    y = np.random.default_rng(3).random(len(X)) < 0.05
    X[y] += np.random.default_rng(4).standard_normal((int(y.sum()), X.shape[1]), dtype=np.float32)
    detector: Any = Detector()
    if name == OURS:
        from vae_anomaly import DenseNetwork, VAEDetector

        detector = VAEDetector(DenseNetwork(case.hidden), epochs=case.epochs, random_state=0)
    search = GridSearchCV(detector, GRID, scoring=auroc, cv=3, n_jobs=len(os.sched_getaffinity(0)))
    # Programs are shared by the threads of a process and run outside Python's lock; torch and Keras are
    # faster in processes of their own.
    backend = "threading" if name == OURS else "loky"
    with parallel_config(backend):
        return {"seconds": seconds(lambda: search.fit(X, y)), "best": float(search.best_score_)}


def grid(options: argparse.Namespace) -> None:
    for repeat in range(options.repeats):
        for name in GRID_LIBRARIES:
            if installed(name):
                figures = in_own_process(["measure-grid", name, "T1", *options.quick_flag], options.cores)
                write(options.out, {"kind": "grid", "library": name, "repeat": repeat} | figures)


# -- growth -------------------------------------------------------------------------------------------
GROWTH: dict[str, tuple[int, ...]] = {
    "rows": (1_000, 10_000, 100_000, 1_000_000),
    "features": (10, 30, 100, 300, 1000, 3000),
    "draws": (1, 3, 10, 30, 100),
}
QUICK_GROWTH = {"rows": (200, 400), "features": (5, 10), "draws": (1, 2)}


def measure_growth(variable: str, value: int) -> dict[str, Any]:
    """Warm fit of one epoch and scoring of its rows, one variable away from 10,000 × 32, 10 draws."""
    from vae_anomaly import VAEDetector

    n_rows = value if variable == "rows" else min(10_000, 1000 * max(GROWTH["rows"]) // value)
    n_features = value if variable == "features" else 32
    X = np.random.default_rng(0).standard_normal((n_rows, n_features), dtype=np.float32)
    detector = VAEDetector(
        epochs=1, latent_dim=8, n_draws=value if variable == "draws" else 10, batch_size=128, random_state=0
    )
    detector.fit(X[:1000])
    return {
        "fit": statistics.median(seconds(lambda: detector.fit(X)) for _ in range(3)),
        "score": statistics.median(seconds(lambda: detector.score_samples(X)) for _ in range(3)),
        "peak_mb": megabytes(),
    }


def growth(options: argparse.Namespace) -> None:
    for variable, values in (QUICK_GROWTH if options.quick else GROWTH).items():
        for value in values:
            figures = in_own_process(["measure-growth", variable, str(value)], options.cores[:1])
            write(options.out, {"kind": "growth", "variable": variable, "value": value} | figures)


# -- rows that do not fit into memory -----------------------------------------------------------------
def measure_memmap(n_rows: int) -> dict[str, Any]:
    """Memory above the data read while a file of rows is scored."""
    case = CASES["T1"]
    library = VaeAnomaly(case._replace(epochs=1))
    library.fit(case.rows(case.n_rows, 1))
    library.score(case.rows(1000, 2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.npy")
        rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n_rows, *case.shape))
        for start in range(0, n_rows, 100_000):
            rows[start : start + 100_000] = case.rows(min(100_000, n_rows - start), start)
        rows.flush()
        del rows
        mapped = np.load(path, mmap_mode="r")
        before = private_megabytes()
        most = Highest(private_megabytes)
        with most:
            spent = seconds(lambda: library.score(mapped))
    return {"n_rows": n_rows, "seconds": spent, "above_mb": most.value - before}


def private_megabytes() -> float:
    """Memory of this process that is no file's: pages of the mapped rows are the system's to drop."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) / 1024


class Highest:
    """The highest reading of something while a block runs."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read, self.value = read, 0.0

    def __enter__(self) -> Highest:
        import threading

        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.value = max(self.value, self._read())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def memmap(options: argparse.Namespace) -> None:
    n_rows = 1000 if options.quick else 10_000_000
    figures = in_own_process(["measure-memmap", str(n_rows)], options.cores[:1])
    write(options.out, {"kind": "memmap", "library": OURS} | figures)


# -- summary ------------------------------------------------------------------------------------------
FIGURES = {
    "import": "import, s",
    "cold_fit": "first fit, s",
    "warm_fit": "warm fit, s",
    "score": "score, s",
    "latency_1_ms": "1 row, ms",
    "latency_100_ms": "100 rows, ms",
    "peak_mb": "peak, MB",
}


def medians(results: pd.DataFrame) -> pd.DataFrame:
    runs = results[(results["kind"] == "run") & (results["library"] != "peak")]
    figures = [*FIGURES, "n_draws", *{"epochs"}.intersection(results)]
    return runs.groupby(["case", "library"], sort=False)[figures].median()


def markdown(results: pd.DataFrame) -> str:
    """A table for each case, with our ratio to each library and the multiple of the floor."""
    lines = []
    gigaflops = results.loc[results["library"] == "peak", "gigaflops"].max()
    table = medians(results)
    for case in table.index.unique("case"):
        figures = table.loc[case]
        floor = floors(CASES[case], gigaflops)
        lines += [
            f"\n**{case}**: the arithmetic's floor at {gigaflops:.0f} GFLOP/s is {floor['fit']:.2f} s for a "
            f"fit, {floor['score']:.2f} s for scoring with {N_DRAWS} draws.\n",
            "| library | draws | "
            + " | ".join(FIGURES.values())
            + " | warm fit / floor | our first fit / its | our warm fit / its |",
            "|---" * (len(FIGURES) + 5) + "|",
        ]
        for name, row in figures.iterrows():
            values = [f"{row[key]:.3g}" for key in FIGURES]
            has_floor = name not in {"IForest", "LOF"}
            values.append(f"{row['warm_fit'] / floor['fit']:.1f}" if has_floor else "")
            values += [f"{figures.loc[OURS, key] / row[key]:.3f}" for key in ("cold_fit", "warm_fit")]
            lines.append(f"| {name} | {row['n_draws']:.0f} | " + " | ".join(values) + " |")
        alone = figures["epochs"].dropna() if "epochs" in figures else figures.index[:0]
        if len(alone):
            lines += [
                "\nThe epochs alone: a fit of twice as many, less a warm fit.\n",
                "| library | s | / floor | ours / its |",
                "|---|---|---|---|",
            ]
            for name, spent in alone.items():
                ratios = f"{spent / floor['fit']:.2f} | {alone[OURS] / spent:.2f}"
                lines.append(f"| {name} | {spent:.1f} | {ratios} |")
    if "seconds" in results:
        searches = results[results["kind"] == "grid"].groupby("library", sort=False)["seconds"].median()
        if len(searches):
            lines += [
                "\n**Grid search**, 12 candidates × 3 folds on T1, 2 cores:\n",
                "| library | s | ours / its |",
            ]
            lines.append("|---|---|---|")
            for name, spent in searches.items():
                lines.append(f"| {name} | {spent:.1f} | {searches[OURS] / spent:.3f} |")
        for row in results[results["kind"] == "memmap"].itertuples():
            lines.append(
                f"\n{row.n_rows:,.0f} mapped rows of T1: {row.seconds:.0f} s, {row.above_mb:.0f} MB above "
                "what was held before."
            )
    grown = results[results["kind"] == "growth"]
    if len(grown):
        lines += ["\n**Growth**: seconds of one epoch and of scoring, and the exponent between neighbors.\n"]
        lines += [
            "| variable | value | fit, s | exponent | score, s | exponent |",
            "|---|---|---|---|---|---|",
        ]
        for variable, part in grown.groupby("variable", sort=False):
            steps = np.log(part[["value", "fit", "score"]].astype(float)).diff()
            for (_, row), (_, step) in zip(part.iterrows(), steps.iterrows(), strict=True):
                exponents = [
                    f"{step[key] / step['value']:.2f}" if np.isfinite(step["value"]) else ""
                    for key in ("fit", "score")
                ]
                lines.append(
                    f"| {variable} | {row['value']:,.0f} | {row['fit']:.3g} | {exponents[0]} | "
                    f"{row['score']:.3g} | {exponents[1]} |"
                )
    return "\n".join(lines).strip() + "\n"


COLOURS = ("black", "#CC79A7", "#D55E00", "#0072B2", "#009E73", "#56B4E9", "#E69F00", "#999999")


def draw(results: pd.DataFrame, path: Path) -> None:
    """Seconds of every library and case, on a logarithmic axis, with the floor as a broken line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table = medians(results)
    gigaflops = results.loc[results["library"] == "peak", "gigaflops"].max()
    colors = dict(zip(LIBRARIES, COLOURS, strict=True))
    cases = list(table.index.unique("case"))
    names = list(table.index.unique("library"))
    figure, axes = plt.subplots(
        2, len(cases), figsize=(3.2 * len(cases), 6), layout="constrained", squeeze=False
    )
    figure.suptitle("pale: the first fit in a process; broken line: the floor of the arithmetic", fontsize=10)
    for column, (case, (of_fit, of_score)) in enumerate(zip(cases, axes.T, strict=True)):
        figures = table.loc[case]
        for ax, keys, title in ((of_fit, ("cold_fit", "warm_fit"), "fit"), (of_score, ("score",), "score")):
            for key in keys:
                first = key == "cold_fit"
                ax.barh(
                    [-names.index(name) for name in figures.index],
                    figures[key],
                    height=0.8 if first else 0.5,
                    color=[colors[name] for name in figures.index],
                    alpha=0.35 if first else 1.0,
                )
            floor = floors(CASES[case], gigaflops)[title]
            ax.axvline(floor, color="#555555", ls="--", lw=1)
            ax.set_xscale("log")
            ax.set_xlim(0.01, 100)
            ax.set_yticks(
                [-place for place in range(len(names))], names if column == 0 else [""] * len(names)
            )
            ax.set_ylim(0.6 - len(names), 0.6)
            ax.set_xlabel("seconds")
            ax.set_title(f"{case}: {title}", fontsize=10)
    figure.savefig(path, dpi=110)


def draw_growth(results: pd.DataFrame, path: Path) -> None:
    """Fit and score seconds against rows, features and draws."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    grown = results[results["kind"] == "growth"]
    variables = list(grown["variable"].unique())
    figure, axes = plt.subplots(1, len(variables), figsize=(3.6 * len(variables), 3.4), layout="constrained")
    for ax, variable in zip(np.atleast_1d(axes), variables, strict=True):
        part = grown[grown["variable"] == variable]
        ax.loglog(part["value"], part["fit"], "o-", color="black", label="fit, one epoch")
        ax.loglog(part["value"], part["score"], "s--", color="#0072B2", label="score")
        ax.set_xlabel(variable)
        ax.set_ylabel("seconds")
        ax.grid(alpha=0.3)
    np.atleast_1d(axes)[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def summary(options: argparse.Namespace) -> None:
    results = pd.DataFrame([json.loads(line) for path in options.results for line in path.open()])
    text = markdown(results)
    print(text)
    if options.table:
        options.table.write_text(text)
    if options.picture:
        draw(results, options.picture)
    if options.growth:
        draw_growth(results, options.growth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measured = argparse.ArgumentParser(add_help=False)
    measured.add_argument("--quick", action="store_true")
    measured.add_argument("--cores", nargs="+", type=int, default=sorted(os.sched_getaffinity(0)))
    whole = argparse.ArgumentParser(add_help=False, parents=[measured])
    whole.add_argument("--out", type=Path, required=True)
    whole.add_argument("--repeats", type=int, default=3)
    whole.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    whole.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    whole.add_argument(
        "--python",
        nargs="*",
        default=[],
        metavar="LIBRARY=INTERPRETER",
        help="the interpreter of a library that is installed in an environment of its own",
    )
    for command in (run, grid, growth, memmap):
        commands.add_parser(command.__name__, parents=[whole]).set_defaults(action=command)
    for command, given in {
        "measure": ["library", "case"],
        "measure-grid": ["library", "case"],
        "measure-growth": ["variable", "value"],
        "measure-memmap": ["value"],
    }.items():
        one = commands.add_parser(command, parents=[measured])
        for name in given:
            one.add_argument(name)
    summing = commands.add_parser("summary")
    summing.add_argument("results", nargs="+", type=Path)
    for name in ("table", "picture", "growth"):
        summing.add_argument(f"--{name}", type=Path)
    summing.set_defaults(action=summary)
    options = parser.parse_args()
    options.quick_flag = ["--quick"] if getattr(options, "quick", False) else []
    warnings.simplefilter("ignore")
    if hasattr(options, "action"):
        options.action(options)
        return
    os.sched_setaffinity(0, options.cores)
    if options.command == "measure-growth":
        figures = measure_growth(options.variable, int(options.value))
    elif options.command == "measure-memmap":
        figures = measure_memmap(int(options.value))
    else:
        doing = {"measure": measure, "measure-grid": grid_search}[options.command]
        figures = doing(options.library, case_named(options.case, options.quick))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
