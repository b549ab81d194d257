"""The manual as a site: it builds without a warning, and no link or anchor in it leads nowhere."""

import os
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from filelock import FileLock

from manual.contents import pages
from manual.site import BrokenSiteError, build


class Addresses(HTMLParser):
    """What a page of the site can be addressed by, and where it leads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.targets.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manual, built once for all workers of pytest-xdist."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return build(site=tmp_path_factory.mktemp("manual") / "site").parent
    folder = tmp_path_factory.getbasetemp().parent / "site"
    with FileLock(f"{folder}.lock"):
        return folder if (folder / "llms-full.txt").exists() else build(site=folder).parent


@pytest.fixture(scope="module")
def addresses(site: Path) -> dict[Path, Addresses]:
    return {page: Addresses(page) for page in site.rglob("*.html")}


def test_every_page_of_the_contents_is_built_and_the_first_one_leads_to_it(
    site: Path, addresses: dict[Path, Addresses]
) -> None:
    first = addresses[site / "index.html"]
    for page in pages():
        built = (site / page.path).with_suffix(".html")
        assert f"<title>{page.title}" in unescape(built.read_text(encoding="utf-8"))
        assert page.path == "index.md" or built.relative_to(site).as_posix() in first.targets


def test_no_link_and_no_anchor_in_the_site_leads_nowhere(addresses: dict[Path, Addresses]) -> None:
    assert sum(len(found.targets) for found in addresses.values()) > 1_000
    assert not [
        f"{page.name}: {target}"
        for page, found in addresses.items()
        for target in found.targets
        if not leads_somewhere(page, target, addresses)
    ]


def leads_somewhere(page: Path, target: str, addresses: dict[Path, Addresses]) -> bool:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return True
    path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    anchors = addresses[path].ids if path in addresses else {parts.fragment}
    return path.is_file() and (not parts.fragment or unquote(parts.fragment) in anchors)


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    """Scripts, styles and pictures are its own, and so is the search: it can be read without a network."""
    assert (site / "searchindex.js").is_file()
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//[^\"]+", html), page
        assert not re.findall(r"<link[^>]+rel=\"(?:stylesheet|preload|icon)\"[^>]+href=\"(?:https?:)?//", html), page
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_the_markdown_of_all_pages_lies_beside_them_for_assistants(site: Path) -> None:
    whole = (site / "llms-full.txt").read_text(encoding="utf-8")
    assert all(f"# {page.title}\n" in whole for page in pages())
    targets = re.findall(r"\]\(([^)]+)\)", (site / "llms.txt").read_text(encoding="utf-8"))
    assert [target for target in targets if (site / target).is_file()] == [page.path for page in pages()]


def test_a_broken_link_and_a_broken_anchor_end_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(
        "# A\n\n[a](lost-page.md), [b](data.md#lost-anchor), [c](data.md#anchor)\n", encoding="utf-8"
    )
    (docs / "data.md").write_text("# B\n\n## Anchor\n", encoding="utf-8")
    with pytest.raises(BrokenSiteError) as broken:
        build(docs, tmp_path / "site")
    assert "lost-page.md" in str(broken.value)
    assert "lost-anchor" in str(broken.value)
    assert "'anchor'" not in str(broken.value)
