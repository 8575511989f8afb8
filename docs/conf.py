"""Configuration of the documentation, built by ``sphinx-build -W docs docs/_build/html``."""

import inspect
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
# The gallery runs its examples with a few epochs; VAE_ANOMALY_QUICK="" gives the full pictures.
os.environ.setdefault("VAE_ANOMALY_QUICK", "1")

from docutils import nodes  # noqa: E402
from sphinx.util.nodes import make_refnode  # noqa: E402

import vae_anomaly  # noqa: E402

# -- project ------------------------------------------------------------------------------------------------
project = "vae-anomaly"
author = "The vae-anomaly developers"
copyright = author  # noqa: A001
release = version = vae_anomaly.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates", "api/generated/*.txt", "auto_examples/*.md5"]
templates_path = ["_templates"]
default_role = "py:obj"
smartquotes = False
toc_object_entries_show_parents = "hide"
highlight_language = "python"
pygments_style = "friendly"

# -- pages in Markdown --------------------------------------------------------------------------------------
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# -- reference ----------------------------------------------------------------------------------------------
autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

# -- gallery ------------------------------------------------------------------------------------------------
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"(^|/)(?!plot_)[^/]*\.py$",
    "abort_on_example_error": True,
    "capture_repr": (),
    "download_all_examples": False,
    "min_reported_time": 1e9,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "write_computation_times": False,
}

# -- pages in HTML ------------------------------------------------------------------------------------------
html_theme = "pydata_sphinx_theme"
html_title = "vae-anomaly"
html_static_path = ["_static"]
html_css_files = ["layout.css"]
html_show_sourcelink = False
html_copy_source = False
# Pages without pages below them have no navigation of a section.
html_sidebars = {page: [] for page in ("getting_started", "choosing", "speed", "glossary", "changelog")}
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}


# -- hooks --------------------------------------------------------------------------------------------------
def _skip_members(app, what, name, obj, skip, options):
    """Leave out the fields of named tuples, which have a section, and what scikit-learn adds for metadata."""
    doc = inspect.getdoc(obj) or ""
    return True if doc.startswith("Alias for field number") or re.fullmatch("set_.*_request", name) else None


def _quote_fitted_names(app, what, name, obj, options, lines):
    """Set fitted attributes in types, as in (n_rows, latent_dim_), as literals: reST takes them for links."""
    for position, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[position] = re.sub(r"(?<![`\w*])(\*?[a-z]\w*_)(?=[),])", r"``\1``", line)


def _say_that_it_is_quick(app, docname, source):
    """Say on the page of an example, under its title, that its figures are those of the quick mode."""
    if docname.startswith("auto_examples/plot_") and os.environ["VAE_ANOMALY_QUICK"]:
        note = "This page was built in a quick mode with very few epochs: its figures mean nothing."
        source[0] = re.sub(r"(\n=+\n)", rf"\1\n.. warning::\n\n   {note}\n", source[0], count=1)


def _documented(objects, name):
    """Full name of what texts call `VAEDetector.fit`, `fit`, `monitoring.drift` or `Conformal`, or None."""
    name = name.removesuffix("()").removeprefix("vae_anomaly.")
    for full in (f"vae_anomaly.{name}", f"vae_anomaly.VAEDetector.{name}"):
        if full in objects and name not in {"sample", "score"}:  # a likelihood's method and a parameter, too
            return full
    ending = [full for full in sorted(objects) if full.endswith(f".{name}")]
    if name[:1].isupper():
        return next(iter(ending), None)
    return ending[0] if "_" in name and len(ending) == 1 else None


def _reference(app, docname, name, content):
    found = app.env.get_domain("py").objects[name]
    return make_refnode(app.builder, docname, found.docname, found.node_id, content, name)


def _link_within_package(app, env, node, contnode):
    """Resolve names as docstrings write them, relative to the package."""
    if (node.get("refdomain"), node.get("reftype")) != ("py", "obj"):
        return None
    name = _documented(env.get_domain("py").objects, node["reftarget"])
    return None if name is None else _reference(app, node["refdoc"], name, contnode)


def _link_code_in_pages(app, doctree, docname):
    """Link inline code of the Markdown pages that is a documented name."""
    if not str(app.env.doc2path(docname)).endswith(".md"):
        return
    objects = app.env.get_domain("py").objects
    for node in list(doctree.findall(nodes.literal)):
        name = _documented(objects, node.astext())
        if name and not isinstance(node.parent, (nodes.reference, nodes.title)):
            node.replace_self(_reference(app, docname, name, node.deepcopy()))


def setup(app):
    """Register the hooks."""
    app.connect("source-read", _say_that_it_is_quick)
    app.connect("autodoc-skip-member", _skip_members)
    app.connect("autodoc-process-docstring", _quote_fitted_names, priority=400)
    app.connect("missing-reference", _link_within_package)
    app.connect("doctree-resolved", _link_code_in_pages)
