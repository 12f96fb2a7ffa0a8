"""Settings of the documentation site: ``sphinx-build -W --keep-going -c docs . site`` in the root of the repository.

The root is the source folder, so that a link between any two Markdown files is the same here and in the repository.
"""

from cnnjob import __version__

project = "cnnjob"
author = "The cnnjob developers"
copyright = author  # noqa: A001 - the name that Sphinx reads
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
root_doc = "docs/index"
include_patterns = ["docs/*.md", "slurm/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "build", "cnnjob", "data", "dist", "report", "runs", "site", "tests"]
highlight_language = "none"
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"cnnjob {release}"
html_extra_path = ["redirect"]
html_show_sourcelink = False
html_copy_source = False
