"""How Sphinx makes the documentation site: `make docs`, which fails on any warning.

The pages are Markdown beside this file, the reference comes from the docstrings. The site fetches
nothing from anywhere, neither when it is built nor when it is read.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from noisescope.versions import versions

project = "noisescope"
copyright = "The noisescope developers, Apache-2.0"
version = release = versions()["noisescope"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "command_reference",
    "docstrings",
]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

# Names in the docstrings stand in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
# A default is shown as it is written, not as the object that it makes.
autodoc_preserve_defaults = True
# One parameter a line where a signature is longer.
maximum_signature_line_length = 78
python_use_unqualified_type_names = True
napoleon_use_ivar = True
napoleon_use_rtype = False
nitpicky = True
# Most blocks are commands and what they print.
highlight_language = "text"

html_theme = "furo"
html_title = "noisescope"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
