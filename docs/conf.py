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
html_css_files = ["tables.css"]
html_show_sourcelink = False
html_copy_source = False
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
def _skip_fields(app, what, name, obj, skip, options):
    """Leave out the fields of named tuples, which the section "Attributes" describes."""
    doc = inspect.getdoc(obj) or ""
    return True if doc.startswith("Alias for field number") else None


def _quote_fitted_names(app, what, name, obj, options, lines):
    """Set fitted attributes in types, as in (n_rows, latent_dim_), as literals: reST takes them for links."""
    for position, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[position] = re.sub(r"(?<![`\w*])(\*?[a-z]\w*_)(?=[),])", r"``\1``", line)


def _link_within_package(app, env, node, contnode):
    """Find a name as docstrings write it, relative to the package: `VAEDetector.fit`, `monitoring.drift`."""
    if node.get("refdomain") != "py" or node.get("reftype") != "obj":
        return None
    target = re.sub(r"^vae_anomaly\.", "", node["reftarget"])
    candidates = [f"vae_anomaly.{target}"]
    candidates += [
        name for name in env.get_domain("py").objects if name.endswith(f".{target}") and target[:1].isupper()
    ]
    domain = env.get_domain("py")
    for name in candidates:
        if name in domain.objects:
            found = domain.objects[name]
            from sphinx.util.nodes import make_refnode

            return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, contnode, name)
    return None


def setup(app):
    """Register the hooks."""
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("autodoc-process-docstring", _quote_fitted_names, priority=400)
    app.connect("missing-reference", _link_within_package)
