"""Pages as single files: one look, everything in them escaped, and nothing that a browser would have to fetch."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

_UNSEEN = {number: 0x2400 + number for number in range(32) if chr(number) not in "\t\n\r"}
"""Control characters, which HTML must not hold, and the signs for them."""


def render_page(template: str, *, styles: Sequence[str] = (), scripts: Sequence[str] = (), **values: Any) -> str:
    """A page of templates/ with these values, which are escaped; characters that UTF-8 has not are spelled out.

    `styles` and `scripts` are files of this room that the page brings along, besides the style of all pages. No other
    script can run in it: its security policy names these by their digests.
    """
    from markupsafe import Markup

    brought = {
        "styles": [Markup(asset(name)) for name in ("templates/style.css", *styles)],
        "scripts": [Markup(asset(name)) for name in scripts],
    }
    html: str = _environment().get_template(template).render(**brought, **values)
    return html.translate(_UNSEEN).encode("utf-8", "backslashreplace").decode("utf-8")


def asset(name: str) -> str:
    """The text of a file of this room."""
    return files("truetune.report").joinpath(name).read_text(encoding="utf-8")


def figures(value: float) -> str:
    """A number as people read it.

    >>> figures(0.000_02), figures(1_234_567.8), figures(2.345_67)
    ('2e-05', '1,234,568', '2.346')
    """
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


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
    environment.filters["figures"] = figures
    environment.filters["policy"] = _policy
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def _policy(scripts: Sequence[str]) -> Any:
    """The sources that a Content-Security-Policy lets run: these scripts, by the SHA-256 of what is in them."""
    from markupsafe import Markup

    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return Markup(" ".join(f"'sha256-{digest}'" for digest in digests) or "'none'")
