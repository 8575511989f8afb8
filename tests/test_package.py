"""The package's public names, and what importing it costs."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from conftest import wide

import vae_anomaly


def run(code):
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran


def test_every_public_name_can_be_imported_and_is_listed():
    assert set(vae_anomaly.__all__) <= set(dir(vae_anomaly))
    for name in vae_anomaly.__all__:
        assert getattr(vae_anomaly, name) is not None


@pytest.mark.parametrize("name", [name for name, address in vae_anomaly._ADDRESS.items() if address is None])
def test_every_submodules_public_names_exist(name):
    module = importlib.import_module(f"vae_anomaly.{name}")
    for public in module.__all__:
        assert hasattr(module, public)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'VAEDetectr'"):
        vae_anomaly.VAEDetectr  # noqa: B018


USES = [
    "import vae_anomaly",
    "from vae_anomaly import VAEDetector, DenseNetwork; repr(VAEDetector(network=DenseNetwork()))",
    "from sklearn.base import clone; from vae_anomaly import VAEDetector; clone(VAEDetector())",
    "from vae_anomaly.likelihoods import Gaussian; Gaussian().n_params",
    "from vae_anomaly import datasets, scorers, thresholds; datasets.load_tumors()",
]


@pytest.fixture(scope="module")
def loaded_after():
    """Which of TensorFlow and Keras a process had loaded after each use, one after another."""
    code = (
        "import json, sys\n"
        "loaded = {}\n"
        f"for use in {USES!r}:\n"
        "    exec(use, {})\n"
        "    loaded[use] = sorted({'tensorflow', 'keras'} & set(sys.modules))\n"
        "print(json.dumps(loaded))"
    )
    return json.loads(run(code).stdout)


@pytest.mark.parametrize("use", USES)
def test_tensorflow_is_not_loaded_before_the_first_fit(loaded_after, use):
    assert loaded_after[use] == []


@pytest.mark.wide
def test_importing_costs_under_a_quarter_of_what_scikit_learn_and_pandas_cost():
    code = (
        "import time\n"
        "before = time.process_time()\n"
        "import sklearn.base, sklearn.model_selection, sklearn.preprocessing, sklearn.metrics, pandas\n"
        "start = time.process_time()\n"
        "import vae_anomaly\n"
        "from vae_anomaly import VAEDetector\n"
        "print((time.process_time() - start) / (start - before))"
    )
    assert any(float(run(code).stdout) < 0.25 for _ in range(3))


A_FIT = """
import os
import numpy as np
from vae_anomaly import DenseNetwork, VAEDetector
detector = VAEDetector(DenseNetwork(()), epochs=2, n_draws=1, random_state=0)
detector.fit(np.random.RandomState(0).normal(size=(50, 3)))
detector.set_params(jit_compile=True).fit(np.random.RandomState(0).normal(size=(50, 3)))
"""
AN_EXPORT = """
before = os.environ.copy()
detector.to_onnx("detector.onnx")
assert os.environ == before, os.environ.keys() ^ before.keys()
"""


@pytest.mark.parametrize(
    "code", [wide(A_FIT, name="a fit"), wide(A_FIT + AN_EXPORT, name="a fit and an export")]
)
def test_the_first_fit_and_the_first_export_print_nothing_and_leave_the_environment_as_it_was(code, tmp_path):
    if not all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "skl2onnx", "tf2onnx"))):
        code = A_FIT
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert (tmp_path / "detector.onnx").exists() is ("to_onnx" in code)


@pytest.mark.parametrize("name", vae_anomaly.__all__)
def test_every_public_name_resolves_in_a_fresh_namespace(name, monkeypatch):
    """As in a process in which nothing else has imported the module: no attribute is left over."""
    monkeypatch.delitem(vars(vae_anomaly), name, raising=False)
    if name != "__version__":
        assert getattr(vae_anomaly, name) is not None
