"""Deciding and training a run: train, plan, find_lr."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from truetune.api.inputs import Data, config_of
from truetune.config.schema import Config
from truetune.listener import Listener, LogListener
from truetune.pipeline.find_lr import RangeTest, find_learning_rate
from truetune.pipeline.forecast import Forecast, forecast
from truetune.pipeline.outline import Outline
from truetune.pipeline.run import Run
from truetune.pipeline.stages import Formatting
from truetune.pipeline.train import train_run


def train(
    config: Config | str | Path | Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    data: Data | None = None,
    output_dir: str | Path | None = None,
    formatting: Formatting | None = None,
    callbacks: Sequence[Any] = (),
    resume: Literal["never", "auto", "newest"] | Path = "never",
    resume_from_checkpoint: bool | str | Path | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
    **settings: Any,
) -> Run:
    """Trains as `config` (a Config, a YAML file or a mapping) and the keywords say; keywords win.

    `data` is rows (mappings, or a datasets.Dataset) or a file's path; `formatting` turns one row into a text, a
    mapping with prompt and completion (or messages), or a list of messages; `callbacks` are transformers'
    TrainerCallbacks; `settings` are the config's leaf names: learning_rate=1e-4, max_steps=100. `resume` goes on from
    the newest complete checkpoint, or is an error; "auto" starts where there is none; a path is a checkpoint's.
    `resume_from_checkpoint` says the same in transformers' words.

    Raises ConfigError, DataError, BackendError or CheckpointError, all of them TruetuneError.
    """
    listener = listener or LogListener()
    resolved, rows = config_of(config, model, data, output_dir, settings, listener)
    return train_run(
        resolved,
        rows=rows,
        formatting=formatting,
        callbacks=callbacks,
        resume=_resume(resume_from_checkpoint) or resume,
        overwrite=overwrite,
        listener=listener,
    )


def _resume(resume_from_checkpoint: bool | str | Path | None) -> Literal["newest"] | Path | None:
    if isinstance(resume_from_checkpoint, str | Path):
        return Path(resume_from_checkpoint)
    return "newest" if resume_from_checkpoint else None


def plan(
    config: Config | str | Path | Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    data: Data | None = None,
    formatting: Formatting | None = None,
    device: str | None = None,
    parallel: Literal["ddp", "fsdp"] | None = None,
    probe: bool = False,
    price_per_hour: float | None = None,
    listener: Listener | None = None,
    **settings: Any,
) -> Forecast | Outline:
    """What the run that these arguments would train does and takes: steps, memory in bytes, seconds, settings, why.

    For this machine, or for another `device` ("RTX 4090", "h100:8", used in `parallel`); a `probe` trains some steps
    here and plans by what they took. `price_per_hour`, of the whole machine, tells the cost. Without `data` it is an
    Outline: what rows of the longest length take.
    """
    listener = listener or LogListener()
    resolved, rows = config_of(config, model, data, None, settings, listener)
    return forecast(
        resolved,
        rows=rows,
        formatting=formatting,
        device=device,
        parallel=parallel,
        probe=probe,
        price_per_hour=price_per_hour,
        listener=listener,
    )


def find_lr(
    config: Config | str | Path | Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    data: Data | None = None,
    formatting: Formatting | None = None,
    steps: int | None = None,
    listener: Listener | None = None,
    **settings: Any,
) -> RangeTest:
    """A range test of the learning rate on the run that these arguments would train; see `train` for them.

    Trains `steps` steps (by default 40 to 80), each at a higher rate, until the loss is lost; keeps no weights.
    """
    listener = listener or LogListener()
    resolved, rows = config_of(config, model, data, None, settings, listener)
    return find_learning_rate(resolved, rows=rows, formatting=formatting, steps=steps, listener=listener)
