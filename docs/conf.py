"""Sphinx: `python -m sphinx -W docs build/docs` executes every chapter; warnings are errors."""

import importlib.metadata

project = "fgd"
author = "The fgd authors"
copyright = "2026, The fgd authors"
release = importlib.metadata.version("fgd")

extensions = ["myst_nb", "sphinx_design", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["README.md"]
myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes are in the docstrings
napoleon_google_docstring = True

html_theme = "furo"
html_title = "fgd"
html_show_sourcelink = False
