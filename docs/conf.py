"""How Sphinx builds the documentation.

The tables that come from the code are in the pages themselves; ``tables.py`` beside this file writes them.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The checkout need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fooproxy import __version__

project = "fooproxy"
author = "the fooproxy developers"
copyright = author
version = release = __version__
exclude_patterns = ["_build"]
nitpicky = True
# They would turn --listen into something that cannot be typed.
smartquotes = False
html_theme = "alabaster"
html_theme_options = {"description": "A proxy for the Foo protocol", "page_width": "70rem"}
html_show_copyright = False
