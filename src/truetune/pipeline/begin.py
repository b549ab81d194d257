"""A run's directory as it stands before the first step."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from truetune.config.schema import Config
from truetune.data.examples import Record
from truetune.files import write_json, write_text
from truetune.listener import Listener
from truetune.pipeline.commented import commented_config
from truetune.pipeline.duration import reckoned_duration
from truetune.pipeline.machine import Machine
from truetune.pipeline.plan import RunPlan
from truetune.pipeline.prepare import PreparedDataset
from truetune.pipeline.stages import Formatting, Rows, shaped_records, training_files
from truetune.runs.directory import RunDirectory, now, public
from truetune.training.session import LoadedModel


def begin_run(
    directory: RunDirectory,
    plan: RunPlan,
    *,
    machine: Machine,
    prepared: PreparedDataset,
    model: LoadedModel,
    own_rows: Iterable[Record] | None,
    resume_from: Path | None,
    listener: Listener,
) -> None:
    """Writes config, data report and record, and rows from Python; what is later than the checkpoint goes aside."""
    directory.path.mkdir(parents=True, exist_ok=True)
    config = _own_config(directory, plan.config, own_rows)
    write_text(directory.config, commented_config(config, plan.settings))
    write_json(directory.data_report, prepared.report.as_json())
    if resume_from is not None:
        for later in directory.go_back_to(resume_from):
            listener.say(f"{later.name} is set aside: the run goes on from {resume_from.name}")
    directory.begin_record(
        started=now(),
        command=public(sys.argv),
        resumed_from=resume_from and str(resume_from),
        **machine.as_record(model),
        data=_data_facts(config, prepared),
        total_steps=plan.steps.total_steps,
        effective_batch_size=plan.steps.effective_batch_size,
        config=config.model_dump(mode="json"),
        settings=[asdict(choice) for choice in plan.settings],
        planned=_planned(plan, machine, prepared),
    )


def rows_to_keep(
    config: Config, rows: Rows | None, formatting: Formatting | None, listener: Listener
) -> Iterable[Record] | None:
    """The rows as the run's directory keeps them: from Python, or through a function of the user's."""
    if rows is not None:
        return shaped_records(rows, formatting)
    if formatting is None:
        return None
    return (record for file in training_files(config.data, listener) for record in shaped_records(file, formatting))


def _own_config(directory: RunDirectory, config: Config, own_rows: Iterable[Record] | None) -> Config:
    """The config that trains this run again from its directory, where rows from Python are kept."""
    config = config.model_copy(update={"output_dir": str(directory.path)})
    if own_rows is None:
        return config
    lines = (json.dumps(record.fields, ensure_ascii=False) + "\n" for record in own_rows)
    write_text(directory.own_data, "".join(lines))
    data = config.data.model_copy(update={"path": str(directory.own_data)})
    return config.model_copy(update={"data": data})


def _data_facts(config: Config, prepared: PreparedDataset) -> dict[str, Any]:
    return {
        "path": config.data.path,
        "fingerprint": prepared.fingerprint,
        "rows_read": prepared.report.rows_read,
        "rows_kept": prepared.report.rows_kept,
    }


def _planned(plan: RunPlan, machine: Machine, prepared: PreparedDataset) -> dict[str, Any]:
    """What the run is held to at its end."""
    duration = reckoned_duration(plan, machine, prepared)
    memory = {"peak_bytes": plan.memory.peak, "parts": plan.memory.parts}
    return {"memory": memory, "seconds": duration and duration.total, "disk_bytes": plan.disk_bytes}
