"""A long life in one process: does memory or latency grow with fits and scores?

Each series runs in a process of its own and writes a line for every block: resident memory at its end, and
the median latency in it. ``summary`` adds slopes of memory over the second half of a series, by least
squares. Needs the extra ``test`` (psutil). What was measured is in ``benchmarks/results/soak.md``::

    for series in same architectures cleared own_programs xla; do
        taskset -c 0 python benchmarks/soak.py run $series --out soak.csv
    done
    python benchmarks/soak.py summary soak.csv
"""

import argparse
import csv
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from scipy import stats

from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.core.backend import keras
from vae_anomaly.ensemble.recipe import DEFAULT_MEMBERS

N_ROWS, N_FEATURES = 200, 5
FITS_OF_BLOCK, SCORES_OF_BLOCK = 50, 5_000
# More than the calls after which a model gets a program of its own.
SCORES_FOR_OWN_PROGRAM = 300

Action = Callable[[int], Any]


def table(seed: int, n_features: int = N_FEATURES) -> np.ndarray:
    rng = np.random.RandomState(seed)
    return rng.normal(size=(N_ROWS + seed % 7, 2)) @ rng.normal(size=(2, n_features))


# -- series ---------------------------------------------------------------------------------------------
def same(n_fits: int, n_scores: int) -> Iterator[tuple[str, int, int, Action]]:
    """Eight members as by default, two epochs each, on tables of other lengths; then one row at a time."""
    detectors = []

    def fit(turn: int) -> None:
        detectors[:] = [VAEDetector(members=list(DEFAULT_MEMBERS), epochs=2, random_state=turn)]
        detectors[0].fit(table(turn)).score_samples(table(turn)[:1])

    rows = table(0)
    yield "fits, one architecture", n_fits, FITS_OF_BLOCK, fit
    yield (
        "single rows",
        n_scores,
        SCORES_OF_BLOCK,
        lambda turn: detectors[0].score_samples(rows[turn % N_ROWS][None]),
    )


def architectures(n_fits: int, _n_scores: int) -> Iterator[tuple[str, int, int, Action]]:
    """Each fit has a network and a number of columns that no other has."""

    def fit(turn: int) -> None:
        network = DenseNetwork((8 + turn % 50, 8 + turn // 50))
        X = table(turn, N_FEATURES + turn % 7)
        VAEDetector(network=network, epochs=2, random_state=turn).fit(X).score_samples(X[:1])

    yield "fits, another architecture each", n_fits, FITS_OF_BLOCK, fit


def cleared(n_fits: int, n_scores: int) -> Iterator[tuple[str, int, int, Action]]:
    """As ``architectures``, and Keras is told at the end of each block to forget what it can."""
    ((_, n_turns, n_of_block, fit),) = architectures(n_fits, n_scores)

    def fit_and_clear(turn: int) -> None:
        fit(turn)
        if turn % n_of_block == n_of_block - 1:
            keras.utils.clear_session()

    yield "fits, another architecture each, cleared", n_turns, n_of_block, fit_and_clear


def own_programs(n_fits: int, _n_scores: int) -> Iterator[tuple[str, int, int, Action]]:
    """Each detector is asked for single rows until it gets a program of its own, and is then dropped."""

    def fit(turn: int) -> None:
        X = table(turn)
        detector = VAEDetector(epochs=2, random_state=turn).fit(X)
        for _ in range(SCORES_FOR_OWN_PROGRAM):
            detector.score_samples(X[:1])

    yield "fits with 300 single rows each", n_fits // 2, FITS_OF_BLOCK // 2, fit


def xla(n_fits: int, _n_scores: int) -> Iterator[tuple[str, int, int, Action]]:
    """As ``architectures``, with training compiled by XLA."""

    def fit(turn: int) -> None:
        network = DenseNetwork((8 + turn % 50, 8 + turn // 50))
        VAEDetector(network=network, epochs=2, jit_compile=True, random_state=turn).fit(table(turn))

    yield "fits by XLA, another architecture each", n_fits // 5, FITS_OF_BLOCK // 5, fit


SERIES = {series.__name__: series for series in (same, architectures, cleared, own_programs, xla)}


def run(options: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    process = psutil.Process()
    is_new = not options.out.exists()
    with options.out.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(["series", "done", "rss_mb", "median_ms"])
        for name, n_turns, n_of_block, action in SERIES[options.series](options.fits, options.scores):
            for start in range(0, n_turns, n_of_block):
                latencies = []
                for turn in range(start, start + n_of_block):
                    began = time.perf_counter()
                    action(turn)
                    latencies.append(time.perf_counter() - began)
                figures = process.memory_info().rss / 1e6, 1e3 * statistics.median(latencies)
                writer.writerow([name, start + n_of_block, *(f"{figure:.6g}" for figure in figures)])
                file.flush()


# -- summary --------------------------------------------------------------------------------------------
def summary(options: argparse.Namespace) -> None:
    print(
        "| series | memory, MB: first block | halfway | end | slope, kB for each | ± | median, ms: first "
        "block | halfway | end |\n|---|---|---|---|---|---|---|---|---|"
    )
    results = pd.read_csv(options.results)
    for name, blocks in results.groupby("series", sort=False):
        late = blocks[len(blocks) // 2 :]
        slope = stats.linregress(late["done"], 1e3 * late["rss_mb"])
        places = [0, len(blocks) // 2, -1]
        memory = " | ".join(f"{blocks['rss_mb'].iloc[place]:.0f}" for place in places)
        latency = " | ".join(f"{blocks['median_ms'].iloc[place]:.3g}" for place in places)
        turns = blocks["done"].iloc[-1]
        print(
            f"| {turns:,} {name} | {memory} | {slope.slope:+.3g} | {slope.stderr:.2g} | {latency} |",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("series", choices=list(SERIES))
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--fits", type=int, default=1_000)
    running.add_argument("--scores", type=int, default=100_000)
    running.set_defaults(action=run)
    summing = commands.add_parser("summary")
    summing.add_argument("results", type=Path)
    summing.set_defaults(action=summary)
    options = parser.parse_args()
    options.action(options)


if __name__ == "__main__":
    main()
