"""Images: one digit against the others, and where in an image a planted defect is.

The data is an ``.npz`` with ``X`` (uint8 images of shape (n, 28, 28)) and ``y`` (digits).

``run``: for each digit and seed, detectors are fitted on a random half of its images and tested on the
others and on all other digits. ``localize``: detectors are fitted on a random half of all images; defects
are planted in 300 of the others, and every pixel is ranked by how anomalous a map says it is::

    python benchmarks/images.py run IMAGES --out images.csv
    python benchmarks/images.py localize IMAGES --out localization.csv
    python benchmarks/images.py predict --out predict.csv
    python benchmarks/images.py summary images.csv localization.csv predict.csv

``predict``: one image of 256 x 256 x 3 is scored, and the same members' encoders and decoders are called for
the same squares and draws by `keras.Model.predict`, with the batch size of three at which it is quickest.

Peers get flat rows of pixels in [0, 1]. "ones" is the AUROC of the digit against images of a one: simple
images, which likelihoods are known to call likely whatever a model was trained on (Nalisnick et al. 2019,
Serrà et al. 2020).
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from quality import METHODS as PEERS
from quality import anomaly_scores
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

N_DEFECTS = 300


class NearestNeighbour:
    """The distance to the nearest training image."""

    def fit(self, X: np.ndarray) -> NearestNeighbour:
        self._neighbors = NearestNeighbors(n_neighbors=1).fit(X)
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return self._neighbors.kneighbors(X)[0][:, 0]


class PrincipalComponents:
    """The squared error of the components that hold 90 % of the variance."""

    def fit(self, X: np.ndarray) -> PrincipalComponents:
        self._components = PCA(0.9, svd_solver="full").fit(X)
        return self

    def expected(self, X: np.ndarray) -> np.ndarray:
        return self._components.inverse_transform(self._components.transform(X))

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return ((X - self.expected(X)) ** 2).sum(axis=1)


def of_ours(**settings: Any) -> Callable[[int], Any]:
    return lambda seed: PEERS["VAEDetector"](seed, **settings)


METHODS: dict[str, Callable[[int], Any]] = {
    "VAEDetector": of_ours(),
    "VAEDetector, elbo": of_ours(likelihood="bernoulli", score="elbo"),
    "KNN": PEERS["KNN"],
    "KNN, k=1": lambda _: NearestNeighbour(),
    "OCSVM": PEERS["OCSVM"],
    "PCA": PEERS["PCA"],
    "PCA, error": lambda _: PrincipalComponents(),
    "IForest": PEERS["IForest"],
    "PyOD-VAE": PEERS["PyOD-VAE"],
    "PyOD-AE": PEERS["PyOD-AE"],
}


def for_method(method: str, images: np.ndarray) -> np.ndarray:
    if method.startswith("VAEDetector"):
        return images
    return images.reshape(len(images), -1) / 255


# -- one class ------------------------------------------------------------------------------------------
def run(options: argparse.Namespace) -> None:
    images, digits = load(options.images)
    done = finished(options.out, ["digit", "seed", "method"])
    for seed in options.seeds:
        for digit in options.digits:
            own = np.random.default_rng(seed).permutation(np.flatnonzero(digits == digit))
            half = len(own) // 2
            train, test = own[:half], np.r_[own[half:], np.flatnonzero(digits != digit)]
            for method in options.methods:
                if (digit, seed, method) in done:
                    continue
                detector = METHODS[method](seed)
                start = time.perf_counter()
                detector.fit(for_method(method, images[train]))
                fitted = time.perf_counter()
                scores = anomaly_scores(detector, for_method(method, images[test]))
                end = time.perf_counter()
                anomaly = digits[test] != digit
                ones = ~anomaly | (digits[test] == 1)
                row = {
                    "digit": digit,
                    "seed": seed,
                    "method": method,
                    "auroc": round(roc_auc_score(anomaly, scores), 5),
                    "ones": round(roc_auc_score(anomaly[ones], scores[ones]), 5) if digit != 1 else "",
                    "fit": round(fitted - start, 3),
                    "score": round(end - fitted, 3),
                }
                append(options.out, row)


# -- where in the image ---------------------------------------------------------------------------------
def missing_stroke(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Nothing in a square of 7 pixels around a pixel of the digit."""
    row, column = rng.permutation(np.argwhere(image > 0.5))[0]
    changed = image.copy()
    changed[max(0, row - 3) : row + 4, max(0, column - 3) : column + 4] = 0
    return changed


def extra_blob(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A soft spot, two pixels wide, anywhere in the inner 20 by 20 pixels that is empty."""
    empty = np.argwhere(gaussian_filter(image, 1.5)[4:24, 4:24] < 0.1) + 4
    spot = np.zeros_like(image)
    spot[tuple(rng.permutation(empty)[0])] = 1
    spot = gaussian_filter(spot, 1.2)
    return np.maximum(image, np.minimum(1, 1.5 * spot / spot.max()))


def shifted_patch(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A square of 9 pixels around a pixel of the digit, moved by 3 pixels within itself."""
    row, column = rng.permutation(np.argwhere(image[4:24, 4:24] > 0.5))[0] + 4
    changed, square = image.copy(), np.s_[row - 4 : row + 5, column - 4 : column + 5]
    changed[square] = np.roll(image[square], rng.choice([-3, 3]), axis=rng.integers(2))
    return changed


DEFECTS = {"missing stroke": missing_stroke, "extra blob": extra_blob, "shifted patch": shifted_patch}


def map_of_ours(train: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    return of_ours()(seed).fit(train).explain


def error_of_ours(train: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    detector = of_ours()(seed).fit(train)
    return lambda images: np.abs(images - detector.reconstruct(images))


def error_of_autoencoder(train: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Errors of PyOD's autoencoder, which standardizes the pixels, in the units of the pixels."""
    import torch

    train = train.reshape(len(train), -1)
    detector = PEERS["PyOD-AE"](seed).fit(train)
    scaler = StandardScaler().fit(train)

    def errors(images: np.ndarray) -> np.ndarray:
        rows = torch.tensor(scaler.transform(images.reshape(len(images), -1)), dtype=torch.float32)
        detector.model.eval()
        with torch.no_grad():
            difference = (rows - detector.model(rows)).numpy()
        return np.abs(difference * scaler.scale_).reshape(images.shape)

    return errors


def error_of_components(train: np.ndarray, _: int) -> Callable[[np.ndarray], np.ndarray]:
    detector = PrincipalComponents().fit(train.reshape(len(train), -1))
    return lambda images: np.abs(
        images - detector.expected(images.reshape(len(images), -1)).reshape(images.shape)
    )


MAPS = {
    "explain": map_of_ours,
    "VAEDetector, absolute error": error_of_ours,
    "PyOD-AE, absolute error": error_of_autoencoder,
    "PCA, absolute error": error_of_components,
}


def localize(options: argparse.Namespace) -> None:
    """Of all pixels of the images with defects: AUROC of the map for those that the defect changed."""
    images = load(options.images)[0] / 255
    done = finished(options.out, ["seed", "method"])
    for seed in options.seeds:
        rng = np.random.default_rng(seed)
        shuffled = images[rng.permutation(len(images))]
        half = len(shuffled) // 2
        intact = shuffled[half : half + N_DEFECTS]
        for method in options.methods or MAPS:
            if (seed, method) in done:
                continue
            of_images = MAPS[method](shuffled[:half], seed)
            for kind, plant in DEFECTS.items():
                own = np.random.default_rng(seed)
                damaged = np.array([plant(image, own) for image in intact])
                changed = np.abs(damaged - intact) > 0.1
                found = of_images(damaged)
                append(
                    options.out,
                    {
                        "seed": seed,
                        "method": method,
                        "defect": kind,
                        "auroc": round(roc_auc_score(changed.ravel(), found.ravel()), 5),
                        "auroc_of_image": round(mean_of_images(changed, found), 5),
                    },
                )


# -- beside keras.Model.predict ---------------------------------------------------------------------------
KINDS: dict[str, dict[str, Any]] = {
    "patches, eight dense networks": {},
    "whole images, one convolutional network": {"patches": None, "network": "conv", "members": 1},
}
BATCH_SIZES = (32, 1024, 8192)


def predict(options: argparse.Namespace) -> None:
    from vae_anomaly import VAEDetector

    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(10, 256, 256, 3)), (0, 2, 2, 0))
    images = np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    done = finished(options.out, ["kind"])
    for kind in options.kinds:
        if (kind,) in done:
            continue
        detector = VAEDetector(epochs=1, batch_size=5, random_state=0, **KINDS[kind]).fit(images)
        calls = [calls_of_keras(detector, images[:1], batch_size) for batch_size in BATCH_SIZES]
        row = {
            "kind": kind,
            "score_samples": processor_seconds(partial(detector.score_samples, images[:1])),
            "explain": processor_seconds(partial(detector.explain, images[:1])),
            "keras": min(map(processor_seconds, calls)),
        }
        append(options.out, row)


def calls_of_keras(detector: Any, image: np.ndarray, batch_size: int) -> Callable[[], None]:
    """What `keras.Model.predict` has to be called for: every member, square and draw of an image."""
    rows = detector.scaler_.transform(image.reshape(1, -1) / 255).astype(np.float32)
    seen = [rows] * len(detector.members_)
    if detector.patches_ is not None:
        scales = map(detector.patches_.pooled, detector.member_poolings_)
        seen = [np.concatenate(list(patches.blocks(rows))) for patches in scales]
    model = detector.model_  # all are of one architecture

    def call() -> None:
        for of_member in seen:
            mean, log_variance = model.encoder.predict(of_member, batch_size=batch_size, verbose=0)
            z = mean[:, None] + np.exp(log_variance / 2)[:, None] * detector.draws_
            z = z.reshape(-1, z.shape[-1]).astype(np.float32)
            model.decoder.predict(z, batch_size=batch_size, verbose=0)

    return call


def processor_seconds(call: Callable[[], Any], n_times: int = 5) -> float:
    """The median of some calls, after one that compiles."""
    call()
    seconds = []
    for _ in range(n_times):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return round(float(np.median(seconds)), 4)


def mean_of_images(changed: np.ndarray, found: np.ndarray) -> float:
    pairs = zip(changed, found, strict=True)
    return float(np.mean([roc_auc_score(c.ravel(), f.ravel()) for c, f in pairs if c.any()]))


# -- files ----------------------------------------------------------------------------------------------
def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as data:
        return data["X"].reshape(-1, 28, 28), data["y"].astype(int)


def finished(out: Path, columns: list[str]) -> set[Any]:
    return set(pd.read_csv(out)[columns].itertuples(index=False, name=None)) if out.exists() else set()


def append(out: Path, row: dict[str, Any]) -> None:
    is_new = not out.exists()
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)
    print(*row.values(), flush=True)


def summary(results: pd.DataFrame) -> str:
    if "keras" in results:
        return "\n".join(_lines_of_seconds(results))
    return "\n".join(_lines_of_maps(results) if "defect" in results else _lines_of_digits(results))


def _lines_of_digits(results: pd.DataFrame) -> Iterator[str]:
    """Mean over the seeds of each digit, most successful method first."""
    table = results.pivot_table(index="method", columns="digit", values="auroc")
    ones = results.groupby("method")["ones"].mean()
    cost = results.groupby("method")[["fit", "score"]].median()
    yield (
        "| method | mean | " + " | ".join(map(str, table.columns)) + " | others against 1 | fit, score (s) |"
    )
    yield "|---|" + "---|" * (len(table.columns) + 3)
    for method, figures in table.loc[table.mean(axis=1).sort_values(ascending=False).index].iterrows():
        digits = " | ".join(f"{figure:.3f}" for figure in figures)
        fit, score = cost.loc[method]
        yield f"| {method} | {figures.mean():.4f} | {digits} | {ones[method]:.3f} | {fit:.1f}, {score:.1f} |"


def _lines_of_maps(results: pd.DataFrame) -> Iterator[str]:
    """Over all pixels; in brackets, the mean of the images' own."""
    table = results.groupby(["method", "defect"])[["auroc", "auroc_of_image"]].mean()
    yield "| map | " + " | ".join(DEFECTS) + " |"
    yield "|---|" + "---|" * len(DEFECTS)
    for method in table.index.levels[0]:
        cells = (table.loc[(method, defect)] for defect in DEFECTS)
        yield f"| {method} | " + " | ".join(f"{pooled:.3f} ({own:.3f})" for pooled, own in cells) + " |"


def _lines_of_seconds(results: pd.DataFrame) -> Iterator[str]:
    """Processor seconds for one image of 256 x 256 x 3."""
    yield "| models | score_samples | explain | keras.Model.predict |"
    yield "|---|---|---|---|"
    for row in results.itertuples():
        yield f"| {row.kind} | {row.score_samples:.3f} | {row.explain:.3f} | {row.keras:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, action, methods in (("run", run, METHODS), ("localize", localize, MAPS)):
        measured = commands.add_parser(name)
        measured.add_argument("images", type=Path)
        measured.add_argument("--out", type=Path, required=True)
        measured.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
        measured.add_argument("--methods", nargs="+", choices=methods, default=list(methods))
        if name == "run":
            measured.add_argument("--digits", nargs="+", type=int, default=list(range(10)))
        measured.set_defaults(action=action)
    timed = commands.add_parser("predict")
    timed.add_argument("--out", type=Path, required=True)
    timed.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    timed.set_defaults(action=predict)
    summing = commands.add_parser("summary")
    summing.add_argument("results", nargs="+", type=Path)
    options = parser.parse_args()
    if options.command != "summary":
        warnings.simplefilter("ignore")
        options.action(options)
        return
    for path in options.results:
        print(summary(pd.read_csv(path)), end="\n\n")


if __name__ == "__main__":
    main()
