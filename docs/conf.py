"""How `make docs` builds the API reference from the docstrings; nothing is fetched."""

import irnet

project = "irnet"
author = "The irnet authors"
release = irnet.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
default_role = "code"
html_theme = "alabaster"
html_theme_options = {"description": "Iterative visual reasoning over image regions", "fixed_sidebar": True}
