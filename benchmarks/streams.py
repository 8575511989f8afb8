"""How much is learned of new rows and forgotten of earlier ones, by how many passes `partial_fit` takes.

A first fit of 500 rows of 10 columns that three normal variables generate, then a stream of 2,000 more in
batches, of the same kind or moving away: their mean goes from 0 to 2 in steps. Beside detectors that are
fitted once, on the first rows or on all. What is printed are means over seeds: AUROC against rows whose
columns are shuffled, of the first rows' kind and of the last ones', and the share of new rows of the last
kind that the default threshold (5 %) calls anomalies::

    python benchmarks/streams.py --seeds 3
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
from sklearn.metrics import roc_auc_score

from vae_anomaly import VAEDetector
from vae_anomaly.ensemble.recipe import DEFAULT_MEMBERS

N_FIRST, N_STREAM, N_TEST, N_COLUMNS, N_LATENT = 500, 2000, 1000, 10, 3
WAYS = ("first rows only", "all rows", 1, 5, 10, 100)


def source(rng: np.random.RandomState) -> Callable[[int, float], np.ndarray]:
    linear, curved = rng.normal(size=(2, N_LATENT, N_COLUMNS))

    def draw(n_rows: int, mean: float) -> np.ndarray:
        z = rng.normal(size=(n_rows, N_LATENT)) + mean
        return 2 * np.tanh(z @ linear) + 0.3 * z**2 @ curved + 0.2 * rng.normal(size=(n_rows, N_COLUMNS))

    return draw


def run(seed: int, n_batch: int, moves: bool, way: str | int) -> list[float]:
    rng = np.random.RandomState(seed)
    draw = source(rng)
    means = np.linspace(0, 2.0 * moves, N_STREAM // n_batch + 1)
    first, *batches = [draw(N_FIRST, 0.0), *(draw(n_batch, mean) for mean in means[1:])]
    detector = VAEDetector(random_state=0)
    if way == "all rows":
        detector.fit(np.concatenate([first, *batches]))
    else:
        detector.fit(first)
    if not isinstance(way, str):
        # What "auto" means, but for the passes.
        detector.set_params(epochs=way, members=list(DEFAULT_MEMBERS), validation_fraction=0.2)
        for batch in batches:
            detector.partial_fit(batch)
    found = []
    for mean in (means[0], means[-1]):
        normal, shuffled = draw(N_TEST, mean), draw(N_TEST, mean)
        shuffled = np.stack([rng.permutation(column) for column in shuffled.T], axis=1)
        scores = -detector.score_samples(np.concatenate([normal, shuffled]))
        found.append(roc_auc_score(np.repeat([0, 1], N_TEST), scores))
    return [*found, float((detector.predict(draw(N_TEST, means[-1])) == -1).mean())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    print("| rows of a batch | stream | passes | first kind | last kind | alarms | seconds |")
    print("|---|---|---|---|---|---|---|")
    for n_batch in (100, 500):
        for moves in (False, True):
            for way in WAYS:
                start = time.perf_counter()
                found = [run(seed, n_batch, moves, way) for seed in range(arguments.seeds)]
                first, last, alarms = np.mean(found, axis=0)
                seconds = (time.perf_counter() - start) / arguments.seeds
                stream = "moves" if moves else "stays"
                print(
                    f"| {n_batch} | {stream} | {way} | {first:.3f} | {last:.3f} | {100 * alarms:.1f} % | "
                    f"{seconds:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
