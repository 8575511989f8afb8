"""Small anomaly problems with known answers: real ones that scikit-learn bundles, and generated ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn import datasets
from sklearn.utils import check_random_state

from vae_anomaly.core.types import Floats, RandomStateLike

__all__ = ["load_tumors", "make_anomalies"]

_N_CLUSTERS = 4


def load_tumors(
    contamination: float = 0.1, random_state: RandomStateLike = 0
) -> tuple[pd.DataFrame, pd.Series]:
    """Breast tumors: the benign ones are normal, a few malignant ones are the anomalies.

    357 benign tumors with 30 measurements of their cell nuclei, and as many of the 212 malignant ones as
    make up ``contamination``, from scikit-learn's copy of the Wisconsin diagnostic breast cancer data
    (Street, Wolberg & Mangasarian 1993). Nothing is downloaded.

    Parameters
    ----------
    contamination : float, default=0.1
        Share of malignant tumors, at most 0.37, which is all of them.
    random_state : int, RandomState instance or None, default=0
        Chooses the malignant tumors and the order of the rows.

    Returns
    -------
    X : DataFrame of shape (n_rows, 30), indexed by the row of the original table
    y : Series of int, 1 = anomaly (malignant), 0 = normal (benign)

    Examples
    --------
    >>> from vae_anomaly.datasets import load_tumors
    >>> X, y = load_tumors(contamination=0.05)
    >>> X.shape, int(y.sum())
    ((376, 30), 19)
    """
    bunch = datasets.load_breast_cancer(as_frame=True)
    benign = np.flatnonzero(bunch.target == 1)
    malignant = np.flatnonzero(bunch.target == 0)
    n_anomalies = round(len(benign) * contamination / (1 - contamination)) if contamination < 1 else np.inf
    if not 0 <= n_anomalies <= len(malignant):
        raise ValueError(f"contamination must lie in [0, 0.37]; received {contamination!r}.")
    rng = check_random_state(random_state)
    rows = rng.permutation(np.r_[benign, rng.choice(malignant, int(n_anomalies), replace=False)])
    return bunch.data.iloc[rows], (bunch.target.iloc[rows] == 0).astype(int).rename("malignant")


def make_anomalies(
    n_samples: int = 1000,
    n_features: int = 8,
    *,
    kind: str = "local",
    contamination: float = 0.05,
    n_irrelevant: int = 0,
    random_state: RandomStateLike = None,
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Generate clustered, correlated rows with anomalies of one kind.

    Normal rows come from four Gaussian clusters, each with its own correlations. The kinds are those of
    Steinbuss & Böhm 2021, "Benchmarking unsupervised outlier detection with realistic synthetic data":

    - "local": a cluster's rows with its standard deviations tripled;
    - "cluster": rows of a small cluster of their own, far away;
    - "global": uniform in a box 1.1 times the normal rows' range;
    - "dependency": every feature as in normal rows, but drawn independently of the others.

    Parameters
    ----------
    n_samples : int, default=1000
    n_features : int, default=8
        Features that the clusters and anomalies live in.
    kind : {"local", "cluster", "global", "dependency"}, default="local"
    contamination : float, default=0.05
        Share of anomalies, in [0, 1).
    n_irrelevant : int, default=0
        Further features of plain noise, the same for normal rows and anomalies.
    random_state : int, RandomState instance or None, default=None

    Returns
    -------
    X : float64 array of shape (n_samples, n_features + n_irrelevant)
    y : int array of shape (n_samples,), 1 = anomaly

    Examples
    --------
    >>> from vae_anomaly.datasets import make_anomalies
    >>> X, y = make_anomalies(200, 5, kind="dependency", random_state=0)
    >>> X.shape, int(y.sum())
    ((200, 5), 10)
    """
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {sorted(_KINDS)}; received {kind!r}.")
    if not 0 <= contamination < 1:
        raise ValueError(f"contamination must lie in [0, 1); received {contamination!r}.")
    rng = check_random_state(random_state)
    n_anomalies = round(n_samples * contamination)
    if n_anomalies >= n_samples:
        raise ValueError(
            f"n_samples={n_samples} and contamination={contamination!r} leave no normal row; lower "
            "contamination."
        )
    clusters = _Clusters(n_features, rng)
    normal = clusters.draw(n_samples - n_anomalies)
    anomalies = _KINDS[kind](clusters, normal, n_anomalies, rng)
    X = np.r_[normal, anomalies]
    X = np.c_[X, rng.standard_normal((n_samples, n_irrelevant))]
    y = np.r_[np.zeros(len(normal), dtype=np.int64), np.ones(n_anomalies, dtype=np.int64)]
    order = rng.permutation(n_samples)
    return X[order], y[order]


class _Clusters:
    """A Gaussian mixture in which a third of the directions carry most of a cluster's variance."""

    def __init__(self, n_features: int, rng: np.random.RandomState) -> None:
        self._rng = rng
        self.centers = rng.normal(scale=3.0, size=(_N_CLUSTERS, n_features))
        self._mixing = rng.normal(size=(_N_CLUSTERS, n_features, max(1, n_features // 3)))

    def draw(self, n: int, scale: float = 1.0) -> Floats:
        which = self._rng.randint(_N_CLUSTERS, size=n)
        mixing = self._mixing[which]
        factors = self._rng.standard_normal((n, mixing.shape[2]))
        noise = 0.3 * self._rng.standard_normal((n, mixing.shape[1]))
        spread: Floats = np.einsum("nij,nj->ni", mixing, factors) + noise
        return np.asarray(self.centers[which] + scale * spread)


def _local(clusters: _Clusters, normal: Floats, n: int, rng: np.random.RandomState) -> Floats:
    return clusters.draw(n, scale=3.0)


def _cluster(clusters: _Clusters, normal: Floats, n: int, rng: np.random.RandomState) -> Floats:
    direction = rng.normal(size=normal.shape[1])
    center: Floats = normal.mean(axis=0) + 4 * normal.std(axis=0) * np.sign(direction)
    return center + 0.3 * rng.standard_normal((n, normal.shape[1]))


def _global(clusters: _Clusters, normal: Floats, n: int, rng: np.random.RandomState) -> Floats:
    middle, half = (normal.max(axis=0) + normal.min(axis=0)) / 2, np.ptp(normal, axis=0) / 2
    return rng.uniform(middle - 1.1 * half, middle + 1.1 * half, size=(n, normal.shape[1]))


def _dependency(clusters: _Clusters, normal: Floats, n: int, rng: np.random.RandomState) -> Floats:
    rows = rng.randint(len(normal), size=(n, normal.shape[1]))
    return normal[rows, np.arange(normal.shape[1])]


_KINDS = {"local": _local, "cluster": _cluster, "global": _global, "dependency": _dependency}
