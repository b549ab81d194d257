"""Pages as single files: one look, everything in them escaped, and nothing that a browser would have to fetch."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from truetune.figures import figure

_UNSEEN = {number: 0x2400 + number for number in range(32) if chr(number) not in "\t\n\r"}
"""Control characters, which HTML must not hold, and the signs for them."""


def render_page(
    template: str,
    *,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    is_served: bool = False,
    **values: Any,
) -> str:
    """A page of templates/ with these values, which are escaped; characters that UTF-8 has not are spelled out.

    `styles` and `scripts` are files of this room that the page brings along, besides the style of all pages. No other
    script can run in it: its `policy` names these by their digests.
    """
    from markupsafe import Markup

    brought = {
        "styles": [Markup(asset(name)) for name in ("templates/style.css", *styles)],
        "scripts": [Markup(asset(name)) for name in scripts],
        "policy": Markup(policy(scripts, is_served=is_served)),
    }
    html: str = _environment().get_template(template).render(**brought, **values)
    return html.translate(_UNSEEN).encode("utf-8", "backslashreplace").decode("utf-8")


def policy(scripts: Sequence[str], *, is_served: bool = False) -> str:
    """The Content-Security-Policy of a page with these scripts, which run by the SHA-256 of what is in them.

    A page that is served may ask its own server, and show its icon, which stands in it.
    """
    digests = (base64.b64encode(hashlib.sha256(asset(name).encode()).digest()).decode() for name in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    served = "; connect-src 'self'; img-src data:" if is_served else ""
    always = "base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; {always}{served}"


def asset(name: str) -> str:
    """The text of a file of this room."""
    return files("truetune.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("truetune.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.filters["figure"] = figure
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment
