"""What each part of the default recipe is worth: one part taken away or changed at a time.

Protocol, data sets and peers are those of `quality.py`. Members are trained independently, so most variants
are choices among the members of one large ensemble, whose first eight are the default's own; they cost no
training of their own. Goes on where an interrupted run stopped::

    python benchmarks/ablation.py DATASETS peers.csv --out ablation.csv --table ablation.md
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import quality
from sklearn.metrics import average_precision_score, roc_auc_score

from vae_anomaly import VAEDetector
from vae_anomaly.ensemble.averaging import average, weights_for
from vae_anomaly.ensemble.recipe import DEFAULT_MEMBERS, Member
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.scoring import SCORES
from vae_anomaly.scoring.passes import score_rows

COLUMNS = ("dataset", "setting", "seed", "method", "auroc", "ap")
N_DEFAULT = len(DEFAULT_MEMBERS)
# Twice the default's members, then plain ones.
POOL = [*DEFAULT_MEMBERS, *DEFAULT_MEMBERS, *[Member()] * 4]
PLAIN = list(range(2 * N_DEFAULT, len(POOL)))
TRIMMED = [position for position, member in enumerate(POOL) if member.trimmed_fraction]
SMALL_BETA = [position for position, member in enumerate(POOL) if member.beta_factor < 1]

DEFAULT = "default"
#: Members of the pool, and the score.
CHOICES: dict[str, tuple[list[int], str]] = {
    DEFAULT: (list(range(N_DEFAULT)), "beta_elbo"),
    "no trimmed members": (SMALL_BETA[:N_DEFAULT], "beta_elbo"),
    "only trimmed members": (TRIMMED[:N_DEFAULT], "beta_elbo"),
    "beta 1 instead of small betas": ([*TRIMMED[: N_DEFAULT // 2], *PLAIN], "beta_elbo"),
    "neither trimmed nor small beta (4 members)": (PLAIN, "beta_elbo"),
    "scored by the reconstruction probability": (list(range(N_DEFAULT)), "reconstruction_probability"),
    "scored by the ELBO": (list(range(N_DEFAULT)), "elbo"),
    "scored by the squared error": (list(range(N_DEFAULT)), "reconstruction_error"),
    "4 members, one of each kind": (list(range(N_DEFAULT // 2)), "beta_elbo"),
    "16 members": (list(range(2 * N_DEFAULT)), "beta_elbo"),
    "1 plain member, scored by the ELBO": (PLAIN[:1], "elbo"),
}
EQUAL_WEIGHTS = "equal weights"
#: Variants that need a training of their own.
TRAININGS: dict[str, dict[str, Any]] = {
    "no early stopping": {"early_stopping": False},
    "constant learning rate": {"learning_rate_schedule": None},
    "scales down to 0.01": {"likelihood": Gaussian(minimum_scale=0.01)},
}


def from_one_pool(train: np.ndarray, test: np.ndarray, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Anomaly scores of the test rows by every choice of members and score."""
    detector = VAEDetector(members=POOL, random_state=seed).fit(train)
    by_score = {}
    for score in {score for _, score in CHOICES.values()}:
        by_score[score] = [
            score_rows(
                detector.members_,
                detector.scaler_.transform(X).astype(np.float32),
                detector.draws_,
                SCORES[score],
                None,
            )
            for X in (train, test)
        ]
    for name, (chosen, score) in CHOICES.items():
        of_train, of_test = (values[chosen] for values in by_score[score])
        yield name, average(of_test, weights_for(of_train))
        if name == DEFAULT:
            yield EQUAL_WEIGHTS, of_test.mean(axis=0)


def run(folder: Path, out: Path, seeds: list[int], names: list[str]) -> None:
    """Add the missing rows to ``out``."""
    done = set()
    if out.exists():
        done = set(pd.read_csv(out)[list(COLUMNS[:4])].itertuples(index=False, name=None))
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not done:
            writer.writeheader()
        for path in sorted(folder.glob("*.npz")):
            for setting in quality.SETTINGS:
                for seed in seeds:
                    X, y = quality.load(path, seed)
                    train, test, labels = quality.split(X, y, setting, seed)
                    key = (path.stem, setting, seed)
                    scored: list[tuple[str, np.ndarray]] = []
                    if DEFAULT in names and (*key, DEFAULT) not in done:
                        scored += from_one_pool(train, test, seed)
                    for name in set(names) & set(TRAININGS):
                        if (*key, name) not in done:
                            detector = VAEDetector(random_state=seed, **TRAININGS[name]).fit(train)
                            scored.append((name, -detector.score_samples(test)))
                    for name, scores in scored:
                        auroc, ap = roc_auc_score(labels, scores), average_precision_score(labels, scores)
                        figures = {"auroc": round(auroc, 5), "ap": round(ap, 5)}
                        writer.writerow(dict(zip(COLUMNS, (*key, name), strict=False)) | figures)
                    file.flush()


def table(results: pd.DataFrame, peers: pd.DataFrame) -> str:
    """A row for each variant: mean and mean rank among the peers, by setting."""
    lines = ["| variant | clean | rank | contaminated | rank |", "|---|---|---|---|---|"]
    for method in dict.fromkeys(results["method"]):
        own = results[results["method"] == method]
        summary = quality.summarize(pd.concat([own, peers]), ours=method)
        cells = [f"**{method}**" if method == DEFAULT else method]
        for setting in quality.SETTINGS:
            row = summary[(summary["setting"] == setting) & (summary["method"] == method)].iloc[0]
            cells += [f"{row['mean']:.3f}", f"{row['mean rank']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", type=Path)
    parser.add_argument("peers", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="Markdown file whose table is replaced")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=[DEFAULT, *TRAININGS], default=[DEFAULT, *TRAININGS])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    run(options.datasets, options.out, options.seeds, options.variants)
    written = table(pd.read_csv(options.out), pd.read_csv(options.peers))
    print(written)
    if options.table:
        text = options.table.read_text() if options.table.exists() else ""
        options.table.write_text(text.partition("| variant |")[0] + written + "\n")


if __name__ == "__main__":
    main()
