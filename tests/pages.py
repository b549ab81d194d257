"""What stands in an HTML page, read by its tags."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """What stands in a page: the text of each section, of each <mark> by its class, all links and all tags."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str]]] = []
        self.sections: dict[str, str] = {}
        self.marks: list[tuple[str, str]] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.misnested: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop()[0] != tag:
            self.misnested.append(tag)

    def handle_data(self, data: str) -> None:
        for _, attributes in self.open:
            if name := attributes.get("id"):
                self.sections[name] = self.sections.get(name, "") + data
        if self.open and self.open[-1][0] == "mark":
            self.marks.append((self.open[-1][1]["class"], data))
        if self.open and self.open[-1][0] == "script":
            self.scripts[-1] += data

    def marked(self, name: str) -> list[str]:
        return [text for mark, text in self.marks if mark == name]

    def named(self, tag: str) -> list[dict[str, str]]:
        """The attributes of each of these tags."""
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def policy(self) -> str:
        """Its Content-Security-Policy."""
        return next(each["content"] for each in self.named("meta") if "http-equiv" in each)


def assert_well_formed(page: Page) -> None:
    assert (page.misnested, page.open) == ([], [])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def assert_loads_nothing(page: Page, source: str) -> None:
    assert not [tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "object", "base", "use", "form")]
    links = [attributes.get(name, "") for _, attributes in page.tags for name in ("src", "href")]
    assert all(link == "" or link.startswith("#") for link in links)
    assert "url(" not in source
    assert "@import" not in source
    assert "default-src 'none'" in page.policy


def assert_only_its_own_scripts_may_run(page: Page) -> None:
    """Those that run are named by the policy, each by its digest, and nothing else is."""
    running = [
        text for text, each in zip(page.scripts, page.named("script"), strict=True) if each.get("type") is None
    ]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
    allowed = re.search(r"script-src ([^;]*);", page.policy)
    assert allowed
    assert allowed[1].split() == [f"'sha256-{digest}'" for digest in digests]
    handlers = [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert handlers == []
