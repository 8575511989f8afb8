"""Imports go down only, from floor to floor, and few places know TensorFlow."""

import ast
import functools
import graphlib
from pathlib import Path

import pytest

import vae_anomaly

PACKAGE = Path(vae_anomaly.__file__).parent
# From the ground up: what stands in a folder imports its own folder and those of lower floors.
FLOORS = [
    {"core"},
    {"calibration", "flows", "likelihoods", "objectives"},
    {"posteriors"},
    {"data", "networks", "priors"},
    {"model"},
    {"engine"},
    {"scoring"},
    {"training"},
    {"ensemble", "files"},
    {"export", "monitoring", "plotting"},
]
FLOOR_OF = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders}
# Folders and files that may name TensorFlow; all others compute with numpy or `keras.ops`.
KNOWS_TENSORFLOW = {
    "core.adam",
    "core.columns",
    "core.backend",
    "engine",
    "export",
    "model.incomplete",
    "networks.shifted_conv",
    "scoring",
    "training",
}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
MODULES = sorted({*FILES} - {"__init__"})


@functools.cache
def _tree(module):
    return ast.parse(FILES[module].read_text())


def _imported(module):
    """Modules of the package that a module imports, anywhere in it."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vae_anomaly":
            parent = node.module.removeprefix("vae_anomaly").lstrip(".")
            for alias in node.names:
                name = f"{parent}.{alias.name}".lstrip(".")
                yield name if name in FILES else parent
        elif isinstance(node, ast.Import):
            yield from (
                a.name.removeprefix("vae_anomaly.") for a in node.names if a.name.startswith("vae_anomaly.")
            )


IMPORTS = {module: set(_imported(module)) - {module} for module in MODULES}


def _folder(module):
    """The folder that a module stands in, or None for what stands at the top."""
    folder = module.split(".")[0]
    return folder if (PACKAGE / folder).is_dir() else None


@functools.cache
def _below(module):
    """Everything that a module imports, directly or not."""
    return set(IMPORTS[module]).union(*map(_below, IMPORTS[module]))


def test_no_module_imports_itself_through_others():
    graphlib.TopologicalSorter(IMPORTS).prepare()


def test_every_folder_has_its_floor():
    assert sorted(FLOOR_OF) == sorted({folder for module in MODULES if (folder := _folder(module))})


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    below = _below(module)
    if folder := _folder(module):
        # What it imports from the top of the package must stand on lower floors itself.
        folders = {_folder(imported) for imported in below} - {None, folder}
        assert {name for name in folders if FLOOR_OF[name] >= FLOOR_OF[folder]} == set()


@pytest.mark.parametrize("module", MODULES)
def test_tensorflow_and_keras_come_only_through_the_backend(module):
    imported = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
            if node.module == "vae_anomaly.core.backend":
                names = {alias.name for alias in node.names}
                assert "tf" not in names or {module, _folder(module)} & KNOWS_TENSORFLOW
    if module != "core.backend":
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
    assert len(lines) - documentation <= 450
