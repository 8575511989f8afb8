"""Textures, parts and digits with small defects: is the image found, and where the defect is.

Surfaces of 64 x 64 pixels are generated, or cut out of scikit-image's photographs of brick, grass and gravel
(the left half trains, the right half is tested). Digits are those of an ``.npz`` with ``X`` (uint8 images of
shape (n, 28, 28)) and ``y``. Every method is fitted on the same normal images and scores normal ones and ones
with a defect: a scratch, a blob, a square in which the texture is missing, a spot of another color, a smooth
stain::

    python benchmarks/textures.py run --out textures.csv --images IMAGES
    python benchmarks/textures.py contrast --out contrast.csv --images IMAGES
    python benchmarks/textures.py summary textures.csv contrast.csv

``contrast`` is one digit against the others: as it is, at lower contrast, inverted, in 12 of 16 bits.

Figures: AUROC over images; AUROC over pixels; AUPRO, the mean fraction of a defect's pixels above a cut,
integrated over cuts up to a fraction of 0.3 of normal pixels above them (Bergmann et al. 2020, "Uninformed
students: Student-teacher anomaly detection with discriminative latent embeddings"); false alarms, the
fraction of new normal images that `predict` calls anomalies.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from images import DEFECTS as DEFECTS_OF_DIGITS
from images import NearestNeighbour, append, finished, load
from quality import METHODS as PEERS
from scipy.ndimage import gaussian_filter, label
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

SIDE = 64
DOWN, ACROSS = np.mgrid[:SIDE, :SIDE]
N_TRAIN, N_NORMAL, N_DAMAGED = 300, 100, 60
MOST_FALSE_PIXELS = 0.3


# -- surfaces -------------------------------------------------------------------------------------------
def grain(rng: np.random.Generator, n: int) -> np.ndarray:
    noise = gaussian_filter(rng.normal(size=(n, SIDE, SIDE)), (0, 1.5, 1.5))
    return 0.5 + 0.12 * noise / noise.std()


def stripes(rng: np.random.Generator, n: int) -> np.ndarray:
    phase, angle = rng.uniform(0, 2 * np.pi, (n, 1, 1)), rng.normal(0, 0.05, (n, 1, 1))
    waves = np.sin(2 * np.pi * (ACROSS * np.cos(angle) + DOWN * np.sin(angle)) / 8 + phase)
    return 0.5 + 0.2 * waves + 0.04 * rng.normal(size=(n, SIDE, SIDE))


def weave(rng: np.random.Generator, n: int) -> np.ndarray:
    phases, frequency = rng.uniform(0, 2 * np.pi, (2, n, 1, 1)), 2 * np.pi / rng.uniform(7.5, 8.5, (n, 1, 1))
    warp, weft = np.sin(frequency * ACROSS + phases[0]), np.sin(frequency * DOWN + phases[1])
    over = np.sin(frequency / 2 * ACROSS + phases[0] / 2) * np.sin(frequency / 2 * DOWN + phases[1] / 2) > 0
    return 0.4 + 0.22 * np.where(over, np.abs(warp), np.abs(weft)) + 0.04 * rng.normal(size=(n, SIDE, SIDE))


def mesh(rng: np.random.Generator, n: int) -> np.ndarray:
    shifts = rng.uniform(0, 8, (2, n, 1, 1))
    radius = np.hypot((ACROSS + shifts[0]) % 8 - 4, (DOWN + shifts[1]) % 8 - 4)
    return 0.7 - 0.45 / (1 + np.exp(3 * (radius - 2.3))) + 0.05 * rng.normal(size=(n, SIDE, SIDE))


def wood(rng: np.random.Generator, n: int) -> np.ndarray:
    fine, slow = (gaussian_filter(rng.normal(size=(n, SIDE, SIDE)), (0, *w)) for w in ((12, 1.2), (20, 6)))
    rings = sum(
        weight * wave / wave.std((1, 2), keepdims=True) for weight, wave in ((0.1, fine), (0.06, slow))
    )
    colors = np.array([0.6, 0.42, 0.25]) + rings[..., None] * np.array([1.0, 0.8, 0.5])
    return colors + 0.02 * rng.normal(size=(n, SIDE, SIDE, 3))


def part(rng: np.random.Generator, n: int) -> np.ndarray:
    """A disk of metal with four holes, nearly in place."""
    x, y, turn = *rng.uniform(-1.5, 1.5, (2, n, 1, 1)), rng.uniform(0, 0.1, (n, 1, 1))
    middle = (SIDE - 1) / 2
    x, y = ACROSS - middle - x, DOWN - middle - y
    disk = 1 / (1 + np.exp(1.5 * (np.hypot(x, y) - 26)))
    images = 0.2 + disk[..., None] * np.array([0.4, 0.45, 0.5])
    for quarter in np.arange(4) * np.pi / 2:
        to_hole = np.hypot(x - 16 * np.cos(turn + quarter), y - 16 * np.sin(turn + quarter))
        images -= 0.35 / (1 + np.exp(1.5 * (to_hole - 4)))[..., None]
    return images * rng.uniform(0.95, 1.05, (n, 1, 1, 1)) + 0.02 * rng.normal(size=images.shape)


GENERATED = {f.__name__: f for f in (grain, stripes, weave, mesh, wood, part)}
PHOTOGRAPHS = ("brick", "grass", "gravel")


def crops(name: str, half: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Squares of one half of a photograph."""
    from skimage import data

    photograph = getattr(data, name)() / 255
    width = photograph.shape[1] // 2
    photograph = photograph[:, half * width : (half + 1) * width]

    def cut(rng: np.random.Generator, n: int) -> np.ndarray:
        upper, left = (rng.integers(0, extent - SIDE + 1, n) for extent in photograph.shape)
        return np.stack([photograph[u : u + SIDE, v : v + SIDE] for u, v in zip(upper, left, strict=True)])

    return cut


def scratch(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    x, y, angle = *rng.uniform(14, 50, 2), rng.uniform(0, np.pi)
    along = (ACROSS - x) * np.cos(angle) + (DOWN - y) * np.sin(angle)
    aside = (DOWN - y) * np.cos(angle) - (ACROSS - x) * np.sin(angle)
    where = (np.abs(along) < 9) & (np.abs(aside) < 1)
    image[where] += 0.3 * rng.choice([-1, 1])
    return where


def blob(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    x, y = rng.uniform(14, 50, 2)
    where = np.hypot(ACROSS - x, DOWN - y) < 4
    image[where] += 0.25 * rng.choice([-1, 1])
    return where


def missing(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    x, y = rng.uniform(14, 50, 2)
    where = (np.abs(ACROSS - x) < 6) & (np.abs(DOWN - y) < 6)
    image[where] = image[where].mean(axis=0)
    return where


def color(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    x, y = rng.uniform(14, 50, 2)
    where = np.hypot(ACROSS - x, DOWN - y) < 6
    image[where] += rng.choice([-1, 1]) * np.array([0.12, -0.12, 0.0])
    return where


def stain(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    x, y = rng.uniform(14, 50, 2)
    bump = np.exp(-((ACROSS - x) ** 2 + (DOWN - y) ** 2) / (2 * 5**2))
    image += 0.15 * rng.choice([-1, 1]) * bump.reshape(*bump.shape, *[1] * (image.ndim - 2))
    return bump > 0.3


DEFECTS = {f.__name__: f for f in (scratch, blob, missing, color, stain)}
Damaged = dict[str, tuple[np.ndarray, np.ndarray]]


def as_bytes(images: np.ndarray) -> np.ndarray:
    return (np.clip(images, 0, 1) * 255).round().astype(np.uint8)


def surface(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, Damaged]:
    """Training images, new normal ones, and of each kind of defect images and where it is, uint8."""
    rng = np.random.default_rng(seed)
    train, test = (GENERATED[name] if name in GENERATED else crops(name, half) for half in (0, 1))
    normal = train(rng, N_TRAIN)
    new, damaged = test(rng, N_NORMAL), {}
    for kind, plant in DEFECTS.items():
        if kind == "color" and normal.ndim == 3:
            continue
        images = test(rng, N_DAMAGED)
        masks = np.stack([plant(rng, image) for image in images])
        damaged[kind] = as_bytes(images), masks
    return as_bytes(normal), as_bytes(new), damaged


def digits(path: Path, seed: int) -> tuple[np.ndarray, np.ndarray, Damaged]:
    """All digits, with the defects of `images.py`."""
    rng = np.random.default_rng(seed)
    images = load(path)[0]
    images = images[rng.permutation(len(images))]
    normal, new, intact = np.split(images[: 1500 + N_NORMAL + N_DAMAGED], [1500, 1500 + N_NORMAL])
    damaged = {}
    for kind, plant in DEFECTS_OF_DIGITS.items():
        changed = np.stack([plant(image / 255, rng) for image in intact])
        damaged[kind] = as_bytes(changed), np.abs(changed - intact / 255) > 0.1
    return normal, new, damaged


# -- methods --------------------------------------------------------------------------------------------
class Ours:
    """`VAEDetector` with its defaults."""

    def __init__(self, seed: int, **settings: Any) -> None:
        from vae_anomaly import VAEDetector

        self._detector = VAEDetector(random_state=seed, **settings)

    def fit(self, images: np.ndarray) -> Ours:
        self._detector.fit(images)
        return self

    def scores(self, images: np.ndarray) -> np.ndarray:
        return -self._detector.score_samples(images)

    def maps(self, images: np.ndarray) -> np.ndarray:
        return sum_channels(self._detector.explain(images), images)

    def alarms(self, images: np.ndarray) -> float:
        return float((self._detector.predict(images) < 0).mean())


class OfRows:
    """A method of flat rows of pixels in [0, 1]; a map only if it expects something."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def fit(self, images: np.ndarray) -> OfRows:
        self._method.fit(flat(images))
        return self

    def scores(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self._method.decision_function(flat(images)))


class Components(OfRows):
    """The squared error of the components that hold 90 % of the variance."""

    def __init__(self) -> None:
        super().__init__(PCA(0.9, svd_solver="full"))

    def errors(self, images: np.ndarray) -> np.ndarray:
        rows = flat(images)
        return (rows - self._method.inverse_transform(self._method.transform(rows))) ** 2

    def scores(self, images: np.ndarray) -> np.ndarray:
        return self.errors(images).sum(axis=1)

    def maps(self, images: np.ndarray) -> np.ndarray:
        return gaussian_filter(sum_channels(self.errors(images), images), (0, 1, 1))


class ComponentsMap(Components):
    """The largest value of the smoothed map of that error."""

    def scores(self, images: np.ndarray) -> np.ndarray:
        return self.maps(images).max(axis=(1, 2))


class PatchComponents:
    """The error of 12 components of squares of 8 pixels; the largest is the image's."""

    side, step = 8, 4

    def squares(self, images: np.ndarray) -> np.ndarray:
        images = (images / 255).reshape(*images.shape[:3], -1)
        views = np.lib.stride_tricks.sliding_window_view(images, (self.side, self.side), axis=(1, 2))
        views = views[:, :: self.step, :: self.step]
        return views.reshape(*views.shape[:3], -1)

    def fit(self, images: np.ndarray) -> PatchComponents:
        squares = self.squares(images)
        squares = squares.reshape(-1, squares.shape[-1])
        chosen = np.random.default_rng(0).permutation(len(squares))[:20_000]
        self._components = PCA(12, random_state=0).fit(squares[chosen])
        return self

    def errors(self, images: np.ndarray) -> np.ndarray:
        squares = self.squares(images)
        rows = squares.reshape(-1, squares.shape[-1])
        errors = (rows - self._components.inverse_transform(self._components.transform(rows))) ** 2
        return errors.sum(axis=1).reshape(squares.shape[:3])

    def scores(self, images: np.ndarray) -> np.ndarray:
        return self.errors(images).max(axis=(1, 2))

    def maps(self, images: np.ndarray) -> np.ndarray:
        """Each pixel has the mean error of the squares over it."""
        errors = self.errors(images)
        total, times = np.zeros(images.shape[:3]), np.zeros(images.shape[1:3])
        for row in range(errors.shape[1]):
            for column in range(errors.shape[2]):
                place = np.s_[
                    row * self.step : row * self.step + self.side,
                    column * self.step : column * self.step + self.side,
                ]
                total[:, *place] += errors[:, row, column, None, None]
                times[place] += 1
        return total / times


METHODS: dict[str, Callable[[int], Any]] = {
    "VAEDetector": Ours,
    "KNN, k=1": lambda _: OfRows(NearestNeighbour()),
    "KNN": lambda seed: OfRows(PEERS["KNN"](seed)),
    "PCA, error": lambda _: Components(),
    "PCA, map": lambda _: ComponentsMap(),
    "PCA of patches": lambda _: PatchComponents(),
    "PyOD-AE": lambda seed: OfRows(PEERS["PyOD-AE"](seed)),
}


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255


def sum_channels(values: np.ndarray, images: np.ndarray) -> np.ndarray:
    return values.reshape(*images.shape[:3], -1).sum(axis=-1)


# -- figures --------------------------------------------------------------------------------------------
def aupro(maps: np.ndarray, masks: np.ndarray) -> float:
    false = np.linspace(0, MOST_FALSE_PIXELS, 61)[1:]
    cuts = np.quantile(maps[~masks], 1 - false)
    overlaps = []
    for values, mask in zip(maps, masks, strict=True):
        regions, n_regions = label(mask, np.ones((3, 3)))
        for region in range(1, n_regions + 1):
            inside = np.sort(values[regions == region])
            overlaps.append(1 - np.searchsorted(inside, cuts, side="right") / len(inside))
    return float(np.trapezoid(np.mean(overlaps, axis=0), false) / (false[-1] - false[0]))


def run(options: argparse.Namespace) -> None:
    done = finished(options.out, ["surface", "seed", "method"])
    for seed in options.seeds:
        for name in options.surfaces:
            if name == "digits" and options.images is None:
                continue
            train, new, damaged = digits(options.images, seed) if name == "digits" else surface(name, seed)
            for method in options.methods:
                if (name, seed, method) in done:
                    continue
                fitted = METHODS[method](seed)
                start = time.perf_counter()
                fitted.fit(train)
                seconds = time.perf_counter() - start
                normal = fitted.scores(new)
                for kind, (images, masks) in damaged.items():
                    scores = np.concatenate([normal, fitted.scores(images)])
                    row: dict[str, Any] = {"surface": name, "seed": seed, "method": method, "defect": kind}
                    row["auroc"] = round(roc_auc_score(np.arange(len(scores)) >= len(normal), scores), 4)
                    maps = fitted.maps(images) if hasattr(fitted, "maps") else None
                    row["pixels"] = (
                        "" if maps is None else round(roc_auc_score(masks.ravel(), maps.ravel()), 4)
                    )
                    row["aupro"] = "" if maps is None else round(aupro(maps, masks), 4)
                    alarms = getattr(fitted, "alarms", None)
                    row["false_alarms"] = "" if alarms is None else round(alarms(new), 4)
                    row["found"] = "" if alarms is None else round(alarms(images), 4)
                    row["fit"] = round(seconds, 2)
                    append(options.out, row)


CONTRASTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda images: images,
    "contrast 0.5": lambda images: 0.25 + 0.5 * images,
    "contrast 0.2": lambda images: 0.4 + 0.2 * images,
    "contrast 0.1": lambda images: 0.45 + 0.1 * images,
    "inverted": lambda images: 1 - images,
    "12 of 16 bits": lambda images: np.round(4095 * images) / 65_535,
}


def contrast(options: argparse.Namespace) -> None:
    done = finished(options.out, ["digit", "seed", "contrast"])
    images, names = load(options.images)
    images = images / 255
    for seed in options.seeds:
        for digit in options.digits:
            rng = np.random.default_rng(seed)
            own, others = (rng.permutation(images[chosen]) for chosen in (names == digit, names != digit))
            test, anomaly = np.concatenate([own[400:600], others[:400]]), np.arange(600) >= 200
            test = test if len(own) >= 600 else np.concatenate([own[400:], others[:400]])
            anomaly = np.arange(len(test)) >= len(test) - 400
            for kind, change in CONTRASTS.items():
                if (digit, seed, kind) in done:
                    continue
                ours = Ours(seed).fit(change(own[:400]))
                neighbors = NearestNeighbour().fit(change(own[:400]).reshape(400, -1))
                rows = change(test).reshape(len(test), -1)
                append(
                    options.out,
                    {
                        "digit": digit,
                        "seed": seed,
                        "contrast": kind,
                        "VAEDetector": round(roc_auc_score(anomaly, ours.scores(change(test))), 4),
                        "KNN, k=1": round(roc_auc_score(anomaly, neighbors.decision_function(rows)), 4),
                        "false_alarms": round(ours.alarms(change(own[400:600])), 4),
                    },
                )


# -- tables ---------------------------------------------------------------------------------------------
def summary(results: pd.DataFrame) -> str:
    if "contrast" in results:
        means = results.groupby("contrast", sort=False)[["VAEDetector", "KNN, k=1", "false_alarms"]].mean()
        return table_of(means.round(4))
    parts = []
    for figure in ("auroc", "pixels", "aupro"):
        cells = results.pivot_table(index="method", columns="surface", values=figure, sort=False)
        cells = cells.dropna(how="all")
        cells.insert(0, "mean", cells.mean(axis=1))
        parts.append(f"{figure}\n\n" + table_of(cells.sort_values("mean", ascending=False).round(3)))
    cells = results.pivot_table(index=["surface", "defect"], columns="method", values="auroc", sort=False)
    others = cells.drop(columns="VAEDetector").max(axis=1)
    behind = (others - cells["VAEDetector"]).sort_values(ascending=False).head(5).round(3)
    parts.append("furthest behind the best peer\n\n" + table_of(behind.to_frame("AUROC")))
    ours = results[results["method"] == "VAEDetector"]
    decided = ours.groupby("surface", sort=False)[["false_alarms", "found", "fit"]].mean()
    parts.append("what predict says\n\n" + table_of(decided.round(3)))
    return "\n\n".join(parts)


def table_of(frame: pd.DataFrame) -> str:
    names = [*(frame.index.names if frame.index.nlevels > 1 else [frame.index.name or ""]), *frame.columns]
    lines = ["| " + " | ".join(map(str, names)) + " |", "|---" * len(names) + "|"]
    for index, row in frame.iterrows():
        keys = index if isinstance(index, tuple) else (index,)
        lines.append("| " + " | ".join(map(str, [*keys, *row])) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    every = [*GENERATED, *PHOTOGRAPHS, "digits"]
    for name, action in (("run", run), ("contrast", contrast)):
        measured = commands.add_parser(name)
        measured.add_argument("--out", type=Path, required=True)
        measured.add_argument("--images", type=Path, required=name == "contrast")
        measured.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
        if name == "run":
            measured.add_argument("--surfaces", nargs="+", choices=every, default=every)
            measured.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
        else:
            measured.add_argument("--digits", nargs="+", type=int, default=[2, 3, 5, 8])
        measured.set_defaults(action=action)
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
