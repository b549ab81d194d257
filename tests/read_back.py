"""Trackers' own files, read back: what a run has left with TensorBoard, W&B and Trackio."""

import json
import sqlite3
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32_768, 7


def wandb_records(folder: Path) -> list[Any]:
    """The records of an offline run that has ended: its client's own process writes the last ones behind `finish`."""
    end = time.monotonic() + 30
    while True:
        records = _records(folder)
        if any(record.HasField("exit") for record in records):
            return records
        assert time.monotonic() < end, "the run has no end"
        time.sleep(0.1)


def _records(folder: Path) -> list[Any]:
    """A header of 7 bytes, then a log of LevelDB's form with a protobuf each."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("*.wandb")
    records = []
    for body in _log(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(body)
        records.append(record)
    return records


def _log(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    place, body = _HEADER, b""
    while place + _HEADER <= len(data):
        if (left := _BLOCK - place % _BLOCK) < _HEADER:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        assert kind in (1, 2, 3, 4)
        body += data[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        if kind in (1, 4):  # A whole record, or the last part of one.
            yield body
            body = b""


def wandb_history(records: list[Any]) -> list[dict[str, Any]]:
    """The rows that were logged."""
    found = [record.history for record in records if record.HasField("history")]
    return [{_key(item): json.loads(item.value_json) for item in each.item} for each in found]


def wandb_config(records: list[Any]) -> dict[str, Any]:
    """The newest value of each key; as keys of a run come with it first, and change later."""
    updates = [record.config for record in records if record.HasField("config")]
    updates = [record.run.config for record in records if record.HasField("run")] + updates
    return {_key(item): json.loads(item.value_json) for each in updates for item in each.update}


def wandb_summary(records: list[Any]) -> dict[str, Any]:
    """The newest value of each key."""
    updates = [record.summary for record in records if record.HasField("summary")]
    return {_key(item): json.loads(item.value_json) for each in updates for item in each.update}


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def tensorboard_events(folder: Path) -> Any:
    """What TensorBoard shows of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def tensorboard_text(events: Any, tag: str) -> list[str]:
    """The texts under a tag."""
    shown = events.Tensors(f"{tag}/text_summary")
    return [each.tensor_proto.string_val[0].decode() for each in shown]


def trackio_rows(folder: Path, project: str, run: str) -> list[dict[str, Any]]:
    """The rows of a run in Trackio's database, in the order of its steps."""
    query = "SELECT metrics FROM metrics WHERE run_name = ? ORDER BY step, id"
    return [json.loads(row) for (row,) in _asked(folder, project, query, run)]


def trackio_config(folder: Path, project: str, run: str) -> dict[str, Any]:
    """A run's config there."""
    ((row,),) = _asked(folder, project, "SELECT config FROM configs WHERE run_name = ?", run)
    return json.loads(row)


def trackio_runs(folder: Path, project: str) -> set[str]:
    """The runs of a project."""
    return {name for (name,) in _asked(folder, project, "SELECT DISTINCT run_name FROM metrics")}


def _asked(folder: Path, project: str, query: str, *values: Any) -> list[Any]:
    with sqlite3.connect(folder / f"{project}.db") as database:
        return database.execute(query, values).fetchall()
