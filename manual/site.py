"""Builds the manual as a site, strictly: `make site`.

Beside each page of the site lies its Markdown, and llms-full.txt has all of them, for coding assistants.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from manual.contents import DOCS, ROOT, pages

SITE = ROOT / "build" / "site"


class BrokenSiteError(Exception):
    """Sphinx's own words on what is wrong."""


def build(docs: Path = DOCS, site: Path = SITE) -> Path:
    """The page that the site opens with. Raises BrokenSiteError for any warning, as of a link to nowhere."""
    shutil.rmtree(site, ignore_errors=True)
    strictly = ("--fail-on-warning", "--keep-going", "--nitpicky", "--quiet", "--fresh-env")
    places = ("--conf-dir", Path(__file__).parent, "--doctree-dir", site / ".doctrees", docs, site)
    command = [sys.executable, "-m", "sphinx", *strictly, *map(str, places)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BrokenSiteError(done.stdout + done.stderr)
    shutil.rmtree(site / ".doctrees")
    add_markdown(docs, site)
    return site / "index.html"


def add_markdown(docs: Path, site: Path) -> None:
    """Each page's Markdown beside its HTML, and all of them in one file."""
    texts = {page.path: (docs / page.path).read_text(encoding="utf-8") for page in pages()}
    for path, text in texts.items():
        (site / path).write_text(text, encoding="utf-8")
    (site / "llms-full.txt").write_text("\n\n".join(texts.values()), encoding="utf-8")


if __name__ == "__main__":
    try:
        print(build())
    except BrokenSiteError as error:
        sys.exit(str(error))
