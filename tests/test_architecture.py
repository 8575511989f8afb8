"""Imports go down only, and only the second floor knows TensorFlow."""

import ast
from pathlib import Path

import pytest

import vae_anomaly

PACKAGE = Path(vae_anomaly.__file__).parent
# From the ground up: a module imports only modules that stand before it.
ORDER = [
    "backend",
    "rows",
    "sparse_rows",
    "spec",
    "likelihoods.base",
    "likelihoods.location_scale",
    "likelihoods.unit_interval",
    "likelihoods.discrete",
    "likelihoods.mixed",
    "likelihoods",
    "images",
    "plotting.canvas",
    "objective",
    "thresholds",
    "datasets",
    "layers",
    "networks.base",
    "networks.dense",
    "convolution",
    "networks.conv",
    "networks",
    "keras_network",
    "adam",
    "incomplete",
    "model",
    "states",
    "programs",
    "steps",
    "tiles",
    "scoring",
    "interruption",
    "listeners",
    "training",
    "ensemble",
    "calibration",
    "monitoring",
    "explanations",
    "tables",
    "fitted",
    "conventions",
    "archive",
    "keras_config",
    "vocabulary",
    "encoding",
    "decoding",
    "model_card",
    "saving",
    "checkpoints",
    "onnx_graph",
    "onnx_export",
    "detector",
    "scorers",
    "plotting.scores",
    "plotting.models",
    "plotting.rows",
    "plotting",
    "persistence",
]
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
MODULES = sorted({*FILES} - {"__init__"})
KNOWS_TENSORFLOW = {
    "adam",
    "backend",
    "convolution",
    "incomplete",
    "onnx_export",
    "onnx_graph",
    "programs",
    "scoring",
    "steps",
    "tiles",
    "training",
}


def _tree(module):
    return ast.parse(FILES[module].read_text())


def _package_imports(module):
    """Modules of the package that a module imports, anywhere in it."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vae_anomaly":
            if node.module == "vae_anomaly":
                yield from (alias.name for alias in node.names if alias.name != "__version__")
            else:
                yield node.module.removeprefix("vae_anomaly.")
        elif isinstance(node, ast.Import):
            yield from (
                a.name.removeprefix("vae_anomaly.") for a in node.names if a.name.startswith("vae_anomaly.")
            )


def test_every_module_has_its_place_in_the_order():
    assert sorted(ORDER) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    below = ORDER[: ORDER.index(module)]
    assert set(_package_imports(module)) <= set(below)


@pytest.mark.parametrize("module", MODULES)
def test_tensorflow_and_keras_come_only_through_the_backend(module):
    imported = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
            if node.module == "vae_anomaly.backend":
                names = {alias.name for alias in node.names}
                assert "tf" not in names or module in KNOWS_TENSORFLOW
    if module != "backend":
        assert not imported & {"keras", "tensorflow"}


@pytest.mark.parametrize("module", MODULES)
def test_no_file_outgrows_one_question(module):
    lines = FILES[module].read_text().splitlines()
    documentation = sum(
        len(docstring.splitlines())
        for node in ast.walk(_tree(module))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and (docstring := ast.get_docstring(node, clean=False))
    )
    assert len(lines) - documentation <= 400
