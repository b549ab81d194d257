"""Sphinx's settings for the manual: Markdown as code hosts read it, and nothing fetched from elsewhere."""

import importlib.metadata
from typing import Any

from manual.contents import DOCS, SECTIONS

project = "truetune"
author = "the truetune authors"
extensions = ["myst_parser"]
html_theme = "furo"
release = importlib.metadata.version("truetune")
html_title = f"truetune {release}"
html_use_index = False
html_copy_source = False  # manual/site.py puts each page's Markdown beside it.
html_extra_path = [str(DOCS / "llms.txt")]
myst_heading_anchors = 3
nitpicky = True
smartquotes = False  # Options begin with two dashes, which are no en dash.
# Pages leave things out with "…", which no lexer knows.
suppress_warnings = ["misc.highlighting_failure"]


def setup(app: Any) -> None:
    """The contents go behind the first page, where Sphinx looks for them; code hosts would show them raw."""
    app.connect("source-read", _add_contents)


def _add_contents(_: Any, name: str, source: list[str]) -> None:
    if name == "index":
        source[0] += "".join(_toctree(section, [*pages]) for section, pages in SECTIONS.items())


def _toctree(section: str, pages: list[str]) -> str:
    names = [page.removesuffix(".md") for page in pages if page != "index.md"]
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {section}", "", *names, "```", ""])
