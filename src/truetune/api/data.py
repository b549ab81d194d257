"""The rows before they are trained on: inspect, check, fix, prepare."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truetune.api.inputs import Data, config_of
from truetune.config.schema import NO_MODEL, Config
from truetune.data.rules import Report
from truetune.listener import Listener, LogListener
from truetune.pipeline.check import check_rows
from truetune.pipeline.check import prepare as prepare_data
from truetune.pipeline.fix import Fixed, fix_rows
from truetune.pipeline.inspect import Inspection, inspect_rows
from truetune.pipeline.prepare import PreparedDataset
from truetune.pipeline.stages import Formatting


def inspect(
    config: Config | str | Path | Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    data: Data | None = None,
    formatting: Formatting | None = None,
    rows: int = 3,
    **settings: Any,
) -> Inspection:
    """What the model will read and learn of the first `rows` usable rows. Loads no weights."""
    resolved, source = config_of(config, model, data, None, settings, LogListener())
    return inspect_rows(resolved, source=source, formatting=formatting, limit=rows)


def check(
    data: Data,
    *,
    model: str = NO_MODEL,
    formatting: Formatting | None = None,
    score: int | None = None,
    listener: Listener | None = None,
    **settings: Any,
) -> Report:
    """Every finding in the rows of `data`, none of them raised: with a model as it takes them, else by themselves.

    `score` is how many rows the model's own loss is measured on, which loads its weights.
    """
    resolved, rows = config_of(None, model, data, None, settings, listener or LogListener())
    return check_rows(resolved, source=rows, formatting=formatting, score=score, listener=listener).report


def fix(
    data: Data,
    out: str | Path,
    *,
    values: Mapping[str, str] | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
    **settings: Any,
) -> Fixed:
    """Writes a cleaned copy of `data` to `out` (.jsonl, .json, .csv, .parquet), and a list of every change beside it.

    Mends broken encodings, blanks around answers, spelled roles and, with `values` for their names, placeholders;
    leaves out repeated rows and those that cannot be used. `select` and `ignore` choose the rules.
    """
    listener = listener or LogListener()
    resolved, rows = config_of(None, NO_MODEL, data, None, settings, listener)
    return fix_rows(resolved, out, values=values, overwrite=overwrite, source=rows, listener=listener)


def prepare(
    config: Config | str | Path | Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    data: Data | None = None,
    formatting: Formatting | None = None,
    listener: Listener | None = None,
    **settings: Any,
) -> PreparedDataset:
    """The rows as training will read them: tokens, labels, split and report, memory-mapped. Loads no weights.

    Rows of files are kept in the cache, where the next run finds them. Raises DataError as training does.
    """
    resolved, rows = config_of(config, model, data, None, settings, listener or LogListener())
    return prepare_data(resolved, source=rows, formatting=formatting, listener=listener)
