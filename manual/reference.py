"""Writes what is generated from the code: the pages of docs/reference/, and docs/llms.txt. `make reference`."""

from collections.abc import Callable, Mapping
from pathlib import Path

from manual import assistants, commands, python_api, rules, run_directory, settings
from manual.contents import DOCS

_NOTICE = "<!-- Written by `make reference` from the code: change that. -->\n"


def _noticed(page: Callable[[], str]) -> Callable[[], str]:
    """The page with a word behind its title to whoever would edit it."""

    def text() -> str:
        title, _, rest = page().partition("\n\n")
        return f"{title}\n\n{_NOTICE}\n{rest.rstrip()}\n"

    return text


GENERATED: Mapping[str, Callable[[], str]] = {
    "reference/commands.md": _noticed(commands.page),
    "reference/config.md": _noticed(settings.page),
    "reference/rules.md": _noticed(rules.page),
    "reference/python.md": _noticed(python_api.page),
    "reference/run-directory.md": _noticed(run_directory.page),
    "llms.txt": assistants.text,
}
"""Each file below docs/ and what makes its text; the last one reads the others."""


def write(folder: Path = DOCS) -> None:
    """Writes all of them anew."""
    for name, text in GENERATED.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    write()
