"""How the site is made: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "mtlcore"
author = "the mtlcore authors"
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "components"]
exclude_patterns = ["_build", "extensions"]
root_doc = "index"

html_theme = "furo"
html_title = "mtlcore"
html_copy_source = False

# Words in single backticks are code.
default_role = "code"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
