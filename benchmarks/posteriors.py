"""Posteriors, priors and objectives beside the default: density, detection and the cost of a step.

One model (no ensemble), trained for the same number of steps with each part, on the clean setting of
`quality.py`'s protocol. The held-out bound is the mean over the normal test rows of the importance-weighted
bound by 100 draws, in nats of the scaled rows, and the ELBO by the same draws; AUROC is that of the
detector's score, the ELBO. The data set "digits" is scikit-learn's: flat rows of 64 pixels in [0, 1], all of
them normal, with one Gaussian scale for all pixels. An implicit posterior has an estimate in the place of the
ELBO, and no importance-weighted bound; "settled" is the estimate once the ratio of densities has been learned
for 3,000 steps more, while the model stands still. On the first data set, trainings are timed, each after one
of the default::

    python benchmarks/posteriors.py DATASETS --sets 29_Pima digits --out posteriors.csv --table posteriors.md
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from vae_anomaly import VAEDetector
from vae_anomaly.core.adam import Adam
from vae_anomaly.core.backend import tf
from vae_anomaly.core.types import Floats
from vae_anomaly.model import VAE
from vae_anomaly.objectives import Chi, Renyi
from vae_anomaly.posteriors import Categorical
from vae_anomaly.scoring import SCORES
from vae_anomaly.scoring.passes import score_rows

DEFAULT = "default"
#: What is tried, by name: parameters of the detector.
PARTS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "planar": {"posterior": "planar"},
    "realnvp": {"posterior": "realnvp"},
    "iaf": {"posterior": "iaf"},
    "spline": {"posterior": "spline"},
    "categorical": {"posterior": Categorical(8, 4)},
    "implicit (estimate)": {"posterior": "implicit"},
    "prior mixture": {"prior": "mixture"},
    "prior vamp": {"prior": "vamp"},
    "prior flow": {"prior": "flow"},
    "prior aggregate": {"prior": "aggregate"},
    "elbo, 8 draws": {"n_training_draws": 8},
    "iwae, 8 draws": {"objective": "iwae", "n_training_draws": 8},
    "Renyi(0.5), 8 draws": {"objective": Renyi(0.5), "n_training_draws": 8},
    "Chi(2), 8 draws": {"objective": Chi(2), "n_training_draws": 8},
}
COLUMNS = {
    "iwae": "IWAE bound",
    "elbo": "ELBO",
    "elbo_median": "ELBO of the median row",
    "settled": "settled",
}
COLUMNS |= {"auroc": "AUROC", "step": "time"}
#: The table that is scikit-learn's, and the likelihood of its pixels.
DIGITS, PIXELS = "digits", {"likelihood": "pixel_gaussian"}
_STEPS, _DRAWS = 2000, 100
_STEPS_TO_TIME, _REPEATS = 1000, 5
_STEPS_TO_SETTLE, _RATE_TO_SETTLE = 3000, 1e-4


def load(folder: Path, name: str) -> tuple[Floats, Floats, dict[str, Any]]:
    """Rows, labels (1 = anomaly), and parameters of the detector that belong to the rows."""
    if name == DIGITS:
        X = load_digits().data / 16
        return X, np.zeros(len(X)), PIXELS
    with np.load(folder / f"{name}.npz") as file:
        return file["X"].astype(float), file["y"].astype(float), {}


def clean_split(X: Floats, y: Floats, seed: int) -> tuple[Floats, Floats, Floats]:
    """Training rows, test rows and the labels of those."""
    rng = np.random.default_rng(seed)
    normal = rng.permutation(np.flatnonzero(y == 0))
    n_train = round(0.5 * len(normal))
    test = np.r_[normal[n_train:], np.flatnonzero(y == 1)]
    return X[normal[:n_train]], X[test], y[test]


def detector_of(parts: dict[str, Any], n_rows: int, seed: int, n_steps: int = _STEPS) -> VAEDetector:
    """One model of equally many steps, whatever the parts."""
    batch_size = 128
    epochs = max(1, round(n_steps / -(-n_rows // batch_size)))
    return VAEDetector(
        members=1, epochs=epochs, batch_size=batch_size, score="elbo", random_state=seed, **parts
    )


def measure(parts: dict[str, Any], X: Floats, y: Floats, seed: int) -> dict[str, float]:
    """Bounds of new normal rows, and the AUROC."""
    train, test, labels = clean_split(X, y, seed)
    detector = detector_of(parts, len(train), seed).fit(train)
    rows = detector._fitted.rows(test[labels == 0])
    noise_width = detector.draws_.shape[1]
    draws = np.random.RandomState(seed).standard_normal((_DRAWS, noise_width)).astype(np.float32)
    has_density = detector.members_[0].specification.posterior.has_density
    bounds = {
        name: -score_rows(detector.members_, rows, draws, SCORES[name], None)
        for name in (("iwae", "elbo") if has_density else ("elbo",))
    }
    found = {name: float(of_rows.mean()) for name, of_rows in bounds.items()}
    found["elbo_median"] = float(np.median(bounds["elbo"]))
    if not has_density:
        found["settled"] = settled_elbo(detector.model_, detector._fitted.rows(train), rows, draws)
    if labels.any():
        found["auroc"] = float(roc_auc_score(labels, -detector.score_samples(test)))
    return found


def settled_elbo(model: VAE, train: Floats, rows: Floats, draws: Floats) -> float:
    """The mean ELBO of rows that an implicit posterior estimates once its ratio has been learned further."""
    posterior, own = model.posterior, model.weights_of("posterior")
    weights = {name: tf.Variable(value) for name, value in own.items()}
    learned = [value for name, value in weights.items() if name.startswith(("curve_", "ratio_"))]
    moments = [[tf.Variable(tf.zeros_like(value)) for value in learned] for _ in range(2)]
    table, shape, adam = tf.constant(train), (4, 128, draws.shape[1]), Adam()

    @tf.function
    def learn(rates: tf.Tensor) -> None:
        for step in tf.range(len(rates)):
            batch = tf.random.stateless_uniform((128,), [1, step], 0, len(train), tf.int32)
            noise = tf.random.stateless_normal(shape, [2, step])
            context = model.encode(tf.gather(table, batch))
            with tf.GradientTape() as tape:
                z, _ = posterior.sample(context, noise, weights, training=True)
                loss = tf.reduce_mean(posterior.auxiliary_loss(z, context, noise, weights))
            for value, first, second, gradient in zip(
                learned, *moments, tape.gradient(loss, learned), strict=True
            ):
                moved = adam.step(value.value(), first.value(), second.value(), gradient, rates[step])
                for variable, new in zip((value, first, second), moved, strict=True):
                    variable.assign(new)

    learn(tf.constant(adam.rates(_RATE_TO_SETTLE * np.linspace(1, 0, _STEPS_TO_SETTLE))))
    z, log_q = posterior.sample(model.encode(rows), tf.constant(draws[:, None]), weights)
    log_prob = tf.reduce_sum(model.likelihood.log_prob(rows, model.decode(z)), axis=-1)
    return float(tf.reduce_mean(log_prob + model.log_prior(z) - log_q))


def cost_of_a_step(default: dict[str, Any], parts: dict[str, Any], X: Floats) -> float:
    """Processor seconds of a training over those of the default: the shortest of several, taken in turn."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for repeat in range(_REPEATS + 1):  # the first compiles
        for position, each in enumerate((default, parts)):
            start = time.process_time()
            detector_of(each, len(X), 0, _STEPS_TO_TIME).fit(X)
            seconds[position] += [time.process_time() - start] if repeat else []
    return min(seconds[1]) / min(seconds[0])


def table_of(found: pd.DataFrame) -> str:
    """For each data set means over the seeds, and the time of a training beside the default's where known."""
    lines = []
    by_set = found.groupby(["dataset", "part"], sort=False).mean(numeric_only=True)
    for dataset in found["dataset"].unique():
        rows = by_set.loc[dataset]
        names = [name for name in COLUMNS if name in rows and rows[name].notna().any()]
        lines += [f"## {dataset}", "", f"| part | {' | '.join(COLUMNS[name] for name in names)} |"]
        lines.append("|---|" + "--:|" * len(names))
        for part, row in rows.iterrows():
            figures = [
                "" if np.isnan(row[name]) else f"{row[name]:{'.3f' if name == 'auroc' else '.2f'}}"
                for name in names
            ]
            lines.append(f"| {part} | {' | '.join(figures)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure every part on every data set, and write what was found so far after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", type=Path, help="folder of .npz files with X and y")
    parser.add_argument(
        "--sets", nargs="+", required=True, help="names of files without their ending, or digits"
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    known = pd.read_csv(arguments.out) if arguments.out.exists() else pd.DataFrame()
    lines = known.to_dict("records")
    done = {(line["dataset"], line["part"], line["seed"]) for line in lines}
    warnings.simplefilter("ignore")
    for dataset in arguments.sets:
        X, y, of_rows = load(arguments.datasets, dataset)
        for part in arguments.parts:
            seeds = [seed for seed in range(arguments.seeds) if (dataset, part, seed) not in done]
            is_timed = seeds and dataset == arguments.sets[0]
            parts = {**of_rows, **PARTS[part]}
            step = cost_of_a_step(of_rows, parts, clean_split(X, y, 0)[0]) if is_timed else np.nan
            for seed in seeds:
                figures = measure(parts, X, y, seed)
                lines.append({"dataset": dataset, "part": part, "seed": seed, "step": step, **figures})
                print(lines[-1], flush=True)
            pd.DataFrame(lines).to_csv(arguments.out, index=False)
    if arguments.table:
        arguments.table.write_text(f"# Posteriors, priors and objectives\n\n{table_of(pd.DataFrame(lines))}")


if __name__ == "__main__":
    main()
