"""Settings of Sphinx, which makes a site of the repository's Markdown: uv run sphinx-build -W -c docs . build/site"""

from sphinx.application import Sphinx

project = "fbsearch"
extensions = ["myst_parser"]
# Named, since a checkout also holds what its user has made.
include_patterns = ["*.md", "docs/*.md", "reports/*.md", "reports/race/*.md", "**/README.md"]
exclude_patterns = [".*", "build", "data", "dist", "fbsearch", "tests", "reports/*/rank-*"]
root_doc = "README"
myst_heading_anchors = 3  # what a link may have behind its #; links to other headings are warned of
highlight_language = "text"  # of blocks that name none
html_theme = "furo"
html_title = "fbsearch"
html_copy_source = False
html_show_copyright = False

NAVIGATION = """
```{toctree}
:hidden:
:caption: Use

docs/questions
docs/images
docs/study-file
docs/command-line
docs/commands
docs/python
```

```{toctree}
:hidden:
:caption: Understand

docs/network
docs/baselines
docs/performance
docs/failures
docs/scaling
SECURITY
```

```{toctree}
:hidden:
:caption: Evidence
:glob:

reports/*/README
reports/*
reports/race/recipe
reports/*/*/README
studies/tables/README
```

```{toctree}
:hidden:
:caption: Project

CONTRIBUTING
CHANGELOG
Português <README.pt-BR>
```
"""


def add_navigation(_: Sphinx, page: str, text: list[str]) -> None:
    """Add the list of pages to the README, where a reader of the bare file would see it as code."""
    if page == root_doc:
        text[0] += NAVIGATION


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_navigation)
