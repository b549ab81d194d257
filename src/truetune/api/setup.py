"""Another tool's config in truetune's words: import_config."""

from pathlib import Path

from truetune.migrate.importer import Imported, import_file


def import_config(path: str | Path, *, tool: str | None = None) -> Imported:
    """Another tool's config file, or a training script (which is read, not run), in truetune's words.

    `tool` is axolotl, llamafactory, trl, unsloth, litgpt or script, where the file's keys do not tell. The result's
    `translation.settings` is a config: `truetune.train(dict(imported.translation.settings))`. Raises ConfigError.
    """
    return import_file(path, tool=tool)
