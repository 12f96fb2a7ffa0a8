"""Settings of the documentation site, built by ``sphinx-build -W --keep-going docs site``."""

from cnnjob import __version__

project = "cnnjob"
author = "The cnnjob developers"
copyright = author  # noqa: A001 - the name that Sphinx reads
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

# The pages are plain Markdown, which a forge shows as well: links to headings have the same names in both.
myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline"]

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"cnnjob {release}"
html_show_sourcelink = False
html_copy_source = False
