"""How the site is made: `make docs`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "mtlcore"
author = "the mtlcore authors"
copyright = author
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "components",
    "equations",
    "house",
]
exclude_patterns = ["_build", "extensions", "results/tables"]
root_doc = "index"

html_theme = "furo"
html_title = "mtlcore"
html_copy_source = False
html_math_renderer = "svg"
html_static_path = ["static"]
html_css_files = ["site.css"]

# Words in single backticks are code.
default_role = "code"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Links that lead out of the site: `make linkcheck`.
linkcheck_ignore = [r"https://example\.invalid/"]
linkcheck_retries = 3
linkcheck_timeout = 30

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {
    "members": True,
    "special-members": "__len__, __getitem__",
    "show-inheritance": True,
}
# Torch's own words about its modules are torch's.
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def readable(*event: Any) -> tuple[str, str] | None:
    """A signature as people write it."""
    *_, signature, returns = event
    if signature is None:
        return None
    if signature.startswith("(*args: "):  # torch's, of a module that takes nothing itself
        return "()", ""
    signature = signature.replace("NOTHING", "...").replace("<factory>", "...")
    signature = re.sub(
        r"<mtlcore\.distributed\.Distributed object[^>]*>", "SINGLE_PROCESS", signature
    )
    return re.sub(r"~[\w.]*\.", "", signature), returns


def setup(app: Any) -> None:
    app.connect("autodoc-process-signature", readable)
