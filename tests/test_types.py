"""What users are shown type-checks: README and the pages of the documentation, by mypy."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
WRITTEN = [path for path in sorted(ROOT.glob("docs/**/*.md")) if "_build" not in path.parts]
PAGES = [path for path in [*ROOT.glob("README.md"), *WRITTEN] if BLOCK.search(path.read_text())]
# Readers annotate nothing; all else is strict.
LENIENT = ["--allow-untyped-defs", "--allow-untyped-calls", "--allow-incomplete-defs"]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not PAGES, reason="README and docs are not part of an installed package"),
    pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed: pip install -e '.[dev]'"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all tests, so that mypy reads the libraries once."""
    return tmp_path_factory.mktemp("types")


def check(folder, *modules):
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(folder / "cache")]
    command = [sys.executable, "-m", "mypy", *options, *LENIENT, *map(str, modules)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def module_of(page):
    """The page's code in its own lines, so that mypy names the line of the page; one that goes on stands."""
    text = page.read_text()
    lines = [""] * text.count("\n")
    for block in BLOCK.finditer(text):
        start = text.count("\n", 0, block.start(1))
        code = block.group(1).split("\n")[:-1]
        lines[start : start + len(code)] = code
    return "\n".join(lines) + "\n"


def test_the_code_on_the_pages_type_checks(folder):
    modules = []
    for page in PAGES:
        name = re.sub(r"\W", "_", str(page.relative_to(ROOT).with_suffix("")))
        modules.append(folder / f"page_{name}.py")
        modules[-1].write_text(module_of(page))
    result = check(folder, *modules)
    assert result.returncode == 0, result.stdout + result.stderr


def test_what_users_write_has_the_types_that_they_expect(folder):
    user = folder / "user.py"
    user.write_text(
        """
from typing import assert_type

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vae_anomaly import VAEDetector, load, plotting, scorers
from vae_anomaly.explanations import explain
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.monitoring import Monitor
from vae_anomaly.thresholds import Conformal

X = np.zeros((100, 3))
detector = VAEDetector(
    likelihood=[(Gaussian(), [0])],
    threshold=Conformal(),
    calibration=KFold(3),
    scaler=StandardScaler(),
    learning_rate_schedule=lambda progress: 1 - progress,
    random_state=np.random.RandomState(0),
)
assert_type(detector.fit(X), VAEDetector)
for rows in (X, X.tolist(), [X[0], X[1]], pd.DataFrame(X), sparse.csr_array(X)):
    detector.fit(rows).predict(rows)
detector.score_samples([np.zeros((8, 8)), np.zeros((8, 8))])
first = detector.explain(X)[0].sum()
detector.explain(pd.DataFrame(X)).iloc[0]
expected, low, high = detector.expected(X, coverage=0.9)
detector.reconstruct(X).mean()
assert_type(detector.score(X), float)
assert_type(detector.report(X), pd.DataFrame)
assert_type(load("detector.vae"), VAEDetector)
Monitor(detector, random_state=0).update(X).drifted
assert_type(Monitor.load("stream.monitor", detector), Monitor)
for fitted in (detector, make_pipeline(StandardScaler(), detector)):
    assert_type(scorers.roc_auc(fitted, X, [0, 1] * 50), float)
    plotting.score_histogram(fitted, X, pd.Series([0, 1] * 50)).set_title("scores")
    plotting.contributions(fitted, X[0], names=["a", "b", "c"])
explain(make_pipeline(detector), pd.DataFrame(X)).iloc[0]


class Rule:
    def cut(self, scores: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
        return float(scores.max())


class Scaler:
    def fit(self, X: object, y: object = None) -> "Scaler":
        return self

    def transform(self, X: object) -> object:
        return X


VAEDetector(threshold=Rule(), scaler=Scaler())
"""
    )
    result = check(folder, user)
    assert result.returncode == 0, result.stdout + result.stderr


def test_what_no_detector_takes_is_an_error(folder):
    wrong = [
        "calibration=object()",
        "threshold=object()",
        "scaler=object()",
        "random_state='0'",
        "latent_dim=[2]",
    ]
    user = folder / "wrong.py"
    user.write_text("from vae_anomaly import VAEDetector\n" + "".join(f"VAEDetector({w})\n" for w in wrong))
    found = re.findall(r"wrong\.py:(\d+): error: .*\[arg-type\]", check(folder, user).stdout)
    assert [int(line) for line in found] == [2 + position for position in range(len(wrong))]
