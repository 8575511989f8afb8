"""What README and the pages of the documentation show runs as it stands, and names what exists.

Blocks of a page share one namespace and run in a folder of their own.
"""

import importlib
import re
from pathlib import Path

import pytest

import vae_anomaly

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
REFERENCE = [path for path in PAGES if path.parent.name == "api"]
MODULES = ["vae_anomaly", *(f"vae_anomaly.{name}" for name, at in vae_anomaly._ADDRESS.items() if at is None)]

pytestmark = pytest.mark.skipif(not PAGES, reason="the documentation is not part of an installed package")


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


WITH_CODE = [page for page in [README, *PAGES] if page.exists() and blocks(page)]


def name_of(page):
    return str(page.relative_to(ROOT))


def run(page, codes):
    from matplotlib import pyplot

    namespace = {"__name__": "page"}
    try:
        for number, block in enumerate(codes):
            exec(compile(block, f"{page}, block {number}", "exec"), namespace)
    finally:
        pyplot.close("all")


def test_the_first_code_of_readme_runs_with_few_epochs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = blocks(README)[0]
    assert "random_state=0)" in first
    run(README, [first.replace("random_state=0)", "random_state=0, epochs=3)", 1)])


@pytest.mark.long
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page, blocks(page))


def test_readme_is_short_and_its_first_code_stands_on_the_first_screen():
    lines = README.read_text().split("\n")
    assert len(lines) <= 150
    assert lines.index("```python") < 25


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_every_file_that_a_page_links_to_is_there(page):
    text = re.sub(r"^```(?!\{include\}).*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    linked = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) + re.findall(r"\{include\} (\S+)", text)
    for target in linked:
        generated = "auto_examples" in target
        assert target.startswith("https://") or generated or (page.parent / target).exists(), target


def test_every_benchmark_has_a_page_that_says_how_to_run_it():
    pages = [page.read_text() for page in PAGES if page.parent.name == "benchmarks"]
    for script in (ROOT / "benchmarks").glob("*.py"):
        assert any(f"benchmarks/{script.name}" in page for page in pages), script.name


def documented_names():
    """Full names that the pages of the reference list, in the order of their directives."""
    names = set()
    for page in REFERENCE:
        module = ""
        for line in page.read_text().split("\n"):
            if found := re.match(r"\.\. currentmodule:: (\S+)", line):
                module = found[1]
            elif found := re.match(r"\.\. py:data:: (\S+)", line):
                value = found[1]
            elif found := re.match(r"   :module: (\S+)", line):
                names.add(f"{found[1]}.{value}")
            elif found := re.match(r"   (\w+)$", line):
                names.add(f"{module}.{found[1]}")
    return names


@pytest.mark.parametrize("module", MODULES)
def test_the_reference_lists_every_public_name_of_a_module(module):
    documented = documented_names()
    public = importlib.import_module(module)
    for name in public.__all__:
        value = getattr(public, name)
        if getattr(value, "__name__", "").startswith("vae_anomaly."):  # a module has a page
            assert (DOCS / "api" / f"{name}.md").exists(), name
            continue
        at_the_top = getattr(vae_anomaly, name, None) is value and f"vae_anomaly.{name}" in documented
        assert f"{module}.{name}" in documented or at_the_top, f"{module}.{name} is not in docs/api"


def test_the_reference_lists_no_name_that_does_not_exist():
    for name in documented_names():
        module, _, attribute = name.rpartition(".")
        assert attribute in importlib.import_module(module).__all__, name
