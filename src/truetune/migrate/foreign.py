"""Where a file that is given as our config belongs to another tool, or is a script: how it becomes one of ours."""

from collections.abc import Mapping
from pathlib import Path

from truetune.errors import ConfigError
from truetune.migrate.detect import detect
from truetune.migrate.document import read_document

_TITLES = {
    "axolotl": "Axolotl's",
    "llamafactory": "LLaMA-Factory's",
    "trl": "TRL's",
    "unsloth": "Unsloth's",
    "litgpt": "LitGPT's",
}
_LEAST = 3
"""Keys of its own by which a tool is named to somebody who did not ask: one or two may stand in a config of ours."""


def way_in(path: Path) -> str | None:
    """The hint for a file that another tool is configured by; None for what may be meant as a config of ours."""
    if path.suffix == ".py":
        return f"a training script is translated first: {_import(path)}"
    try:
        document = read_document(path).values
        found = detect(document)
    except ConfigError:
        return None
    if isinstance(document.get("model"), Mapping) or len(found.because) < _LEAST:
        return None
    keys = ", ".join(found.because[:_LEAST])
    return f"by {keys} it is {_TITLES[found.tool]}, and is translated first: {_import(path)}"


def _import(path: Path) -> str:
    return f"truetune import {path} -o run.yaml (in Python, truetune.import_config)"
