"""What each part of the default recipe is worth: one part taken away or changed at a time.

Protocol, data sets and peers are those of `quality.py`. Members are trained independently, so most variants
are choices among the members of one large ensemble, whose first eight are the default's own; ``--trainings``
adds others. Wide tables, which have members of their own, are left out. Goes on where an interrupted run
stopped::

    python benchmarks/ablation.py FOLDER [FOLDER ...] --peers peers.csv --out ablation.csv --table ablation.md
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
from vae_anomaly.data.wide import is_wide
from vae_anomaly.ensemble.averaging import average, weights_for
from vae_anomaly.ensemble.recipe import DEFAULT_MEMBERS, Member
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.scoring import SCORES
from vae_anomaly.scoring.passes import score_rows

COLUMNS = ("suite", "dataset", "setting", "seed", "method", "auroc", "ap")
N_DEFAULT = len(DEFAULT_MEMBERS)
BOTH = (None, "yeo-johnson")
#: The default's members, its untransformed ones once more, plain ones, and those that trim less.
PARTS = [
    list(DEFAULT_MEMBERS),
    list(DEFAULT_MEMBERS[: N_DEFAULT // 2]),
    [Member(column_transform=transform) for transform in BOTH],
    [Member(fraction, 1.0, transform) for fraction in (0.1, 0.2) for transform in BOTH],
]
POOL = [member for part in PARTS for member in part]
_ENDS = np.cumsum([len(part) for part in PARTS])
OURS, _, PLAIN, TRIMMED_LESS = (
    list(range(end - len(part), end)) for part, end in zip(PARTS, _ENDS.tolist(), strict=True)
)
TRIMMED = [position for position in OURS if POOL[position].trimmed_fraction]
SMALL_BETA = [position for position in OURS if POOL[position].beta_factor < 1]
UNTRANSFORMED = [p for p in range(PLAIN[0]) if POOL[p].column_transform is None]

DEFAULT, EQUAL_WEIGHTS = "default", "equal weights"
#: Members of the pool, and the score.
CHOICES: dict[str, tuple[list[int], str]] = {
    DEFAULT: (OURS, "beta_elbo"),
    "no trimmed members (4 members)": (SMALL_BETA, "beta_elbo"),
    "only trimmed members (4 members)": (TRIMMED, "beta_elbo"),
    "trimmed by .1 and .2": ([*SMALL_BETA, *TRIMMED_LESS], "beta_elbo"),
    "beta 1 instead of small betas (6 members)": ([*TRIMMED, *PLAIN], "beta_elbo"),
    "neither trimmed nor small beta (2 members)": (PLAIN, "beta_elbo"),
    "no column is transformed": (UNTRANSFORMED, "beta_elbo"),
    "scored by the reconstruction probability": (OURS, "reconstruction_probability"),
    "scored by the ELBO": (OURS, "elbo"),
    "scored by the squared error": (OURS, "reconstruction_error"),
    "4 members, untransformed": (OURS[: N_DEFAULT // 2], "beta_elbo"),
    "1 plain member, scored by the ELBO": (PLAIN[:1], "elbo"),
}
#: Variants that need a training of their own.
TRAININGS: dict[str, dict[str, Any]] = {
    "no early stopping": {"early_stopping": False},
    "constant learning rate": {"learning_rate_schedule": None},
    "scales down to 0.01": {"likelihood": Gaussian(minimum_scale=0.01)},
}


def scores_of_variants(
    train: np.ndarray, test: np.ndarray, seed: int, trainings: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Anomaly scores of the test rows by every choice of members and score, and by these trainings."""
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
    for name in trainings:
        yield name, -VAEDetector(random_state=seed, **TRAININGS[name]).fit(train).score_samples(test)


def run(folders: list[Path], out: Path, seeds: list[int], trainings: list[str]) -> None:
    """Add the missing rows to ``out``."""
    done = set()
    if out.exists():
        done = set(pd.read_csv(out)[list(COLUMNS[1:4])].itertuples(index=False, name=None))
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not done:
            writer.writeheader()
        for seed in seeds:
            for path in (path for folder in folders for path in sorted(folder.glob("*.npz"))):
                X, y = quality.load(path, seed)
                for setting in quality.SETTINGS:
                    train, test, labels = quality.split(X, y, setting, seed)
                    if (path.stem, setting, seed) in done or is_wide(train):
                        continue
                    key = {"suite": path.parent.name, "dataset": path.stem, "setting": setting, "seed": seed}
                    for name, scores in scores_of_variants(train, test, seed, trainings):
                        auroc, ap = roc_auc_score(labels, scores), average_precision_score(labels, scores)
                        writer.writerow(key | {"method": name, "auroc": round(auroc, 5), "ap": round(ap, 5)})
                    file.flush()
                    print(path.stem, setting, seed, flush=True)


def table(results: pd.DataFrame, peers: pd.DataFrame) -> str:
    """A row for each variant: the mean of each suite, the mean over suites and the rank, by setting."""
    suites = list(dict.fromkeys(results["suite"]))
    peers = peers[peers["dataset"].isin(results["dataset"])]
    lines = ["| variant |", "|---|"]
    for setting in quality.SETTINGS:
        lines[0] += f" {setting}: {' / '.join(suites)} | mean | rank |"
        lines[1] += "---|---|---|"
    for method in dict.fromkeys(results["method"]):
        own = results[results["method"] == method]
        means = own.groupby(["setting", "suite", "dataset"])["auroc"].mean()
        means = means.groupby(["setting", "suite"]).mean()
        summary = quality.summarize(pd.concat([own, peers]), ours=method)
        cells = [f"**{method}**" if method == DEFAULT else method]
        for setting in quality.SETTINGS:
            row = summary[(summary["setting"] == setting) & (summary["method"] == method)].iloc[0]
            cells.append(" / ".join(f"{means[setting, suite]:.3f}" for suite in suites))
            cells += [f"{row['mean']:.3f}", f"{row['mean rank']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", type=Path, nargs="+", help="folders")
    parser.add_argument("--peers", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="Markdown file whose table is replaced")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--trainings", nargs="*", choices=TRAININGS, default=[], help="variants that take longer"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    run(options.datasets, options.out, options.seeds, options.trainings)
    peers = pd.concat([quality.read(path) for path in options.peers])
    written = table(pd.read_csv(options.out), peers)
    print(written)
    if options.table:
        text = options.table.read_text() if options.table.exists() else ""
        options.table.write_text(text.partition("| variant |")[0] + written + "\n")


if __name__ == "__main__":
    main()
