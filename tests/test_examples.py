"""Examples are what a gallery of sphinx-gallery can show, and name nothing that does not exist.

`.ci/run` runs them.
"""

import ast
import importlib
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = sorted(path.name for path in EXAMPLES.glob("*.py"))
GALLERY = [name for name in NAMES if name.startswith("plot_")]

pytestmark = pytest.mark.skipif(not NAMES, reason="examples are not part of an installed package")


@pytest.fixture(params=NAMES)
def example(request):
    text = (EXAMPLES / request.param).read_text()
    return request.param, text, ast.parse(text)


def test_there_are_examples_for_the_gallery():
    assert len(GALLERY) >= 6


@pytest.mark.parametrize("name", GALLERY)
def test_the_docstring_begins_with_a_title_that_asks_a_question(name):
    docstring = ast.get_docstring(ast.parse((EXAMPLES / name).read_text()))
    title, underline, blank = docstring.split("\n")[:3]
    assert title.endswith("?")
    assert underline == "=" * len(title)
    assert blank == ""


@pytest.mark.parametrize("name", GALLERY)
def test_headings_are_underlined_in_full_at_the_start_of_a_block(name):
    lines = (EXAMPLES / name).read_text().split("\n")
    underlines = [i for i, line in enumerate(lines) if re.fullmatch("# -+", line)]
    assert underlines
    for i in underlines:
        assert len(lines[i]) == len(lines[i - 1])
        assert lines[i - 2] == "# %%"


@pytest.mark.parametrize("name", GALLERY)
def test_each_figure_is_shown_in_the_block_that_draws_it(name):
    blocks = (EXAMPLES / name).read_text().split("\n# %%\n")
    draws = re.compile(r"^[^#\s].*(plotting\.\w+|plt\.subplots)\(", re.MULTILINE)
    drawing = [block for block in blocks[1:] if draws.search(block)]
    assert drawing
    for block in drawing:
        assert len(re.findall(r"^plt\.show\(\)$", block, re.MULTILINE)) == 1


def test_an_example_says_how_to_run_it(example):
    name, _, tree = example
    assert f"    python examples/{name}" in ast.get_docstring(tree)


def test_every_file_that_an_example_names_is_there(example):
    named = re.findall(r"``((?:\w+/)?\w+\.py)``", example[1])
    for name in named:
        assert (EXAMPLES / name).exists() or (EXAMPLES.parent / name).exists(), name


def test_every_name_that_an_example_takes_from_the_package_exists(example):
    taken = [node for node in ast.walk(example[2]) if isinstance(node, ast.ImportFrom)]
    taken = [node for node in taken if node.module.startswith("vae_anomaly")]
    assert taken
    imported = {}
    for node in taken:
        module = importlib.import_module(node.module)
        imported |= {alias.name: getattr(module, alias.name) for alias in node.names}
    for module, name in re.findall(r"\b(plotting|VAEDetector)\.([a-z]\w*)", example[1]):
        assert hasattr(imported[module], name), f"{module}.{name}"
