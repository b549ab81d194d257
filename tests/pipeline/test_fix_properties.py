"""What `--fix` writes is read back as it said: rows that it left alone as they were, every change in its list."""

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from properties import WHOLE_TEXTS, examples, json_values
from truetune.config.schema import Config, DataConfig, ModelConfig
from truetune.data.examples import Location, Record
from truetune.data.read import read_records
from truetune.data.write import to_json
from truetune.lint.mend import MENDED, mend_record
from truetune.pipeline.fix import Fixed, fix_rows

Row = dict[str, Any]

PIECES = ["Hi", " ", "\n", "\r\n", "CafÃ©", "â€™", "{{name}}", "{{ firm }}", "\ufeff", "é", "don't", "\u200b"]
TEXT = st.lists(st.sampled_from(PIECES) | WHOLE_TEXTS, max_size=4).map("".join)
VALUES = {"name": "Ada"}
ROLES = st.sampled_from(["user", "User", "human", "assistant", "GPT", "model", " system "])


def turn(role: str, text: Any) -> Row:
    return {"role": role, "content": text}


ROWS = st.one_of(
    st.fixed_dictionaries(
        {"instruction": TEXT, "output": TEXT}, optional={"input": TEXT, "id": json_values(WHOLE_TEXTS)}
    ),
    st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}),
    st.fixed_dictionaries({"text": TEXT, "extra": json_values(WHOLE_TEXTS)}),
    st.lists(
        st.builds(turn, ROLES, TEXT | st.builds(lambda text: [{"type": "text", "text": text}], TEXT)),
        min_size=1,
        max_size=4,
    ).map(lambda messages: {"messages": messages}),
)


@given(ROWS)
@examples(40)
def test_mending_what_is_mended_changes_nothing_and_every_change_is_told(row: Row) -> None:
    before = copy.deepcopy(row)
    mended = mend_record(Record(row, Location("a", 1)), rules=frozenset(MENDED), values=VALUES)
    assert row == before
    assert (to_json(mended.fields) == to_json(row)) is not bool(mended.changes)
    assert list(mended.fields) == list(row)
    again = mend_record(Record(mended.fields, Location("a", 1)), rules=frozenset(MENDED), values=VALUES)
    assert again.changes == ()
    assert again.fields is mended.fields


@given(ROWS, st.sets(st.sampled_from(MENDED)))
@examples(40)
def test_only_what_is_asked_for_is_mended(row: Row, rules: set[str]) -> None:
    mended = mend_record(Record(row, Location("a", 1)), rules=frozenset(rules), values=VALUES)
    assert {change.rule for change in mended.changes} <= rules
    for change in mended.changes:
        assert change.before != change.after


@given(st.lists(ROWS, min_size=1, max_size=6), st.sampled_from(["jsonl", "json", "parquet"]))
@examples(8)
def test_a_copy_has_every_row_once_or_the_reason_why_not(rows: list[Row], kind: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "rows.jsonl", Path(name) / f"clean.{kind}"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        fixed = fixed_copy(source, out)
        found = [record.fields for record in read_records(out)] if fixed.rows_written else []
        changes = [json.loads(line) for line in fixed.changes_path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert fixed.rows_read == len(rows) == fixed.rows_written + sum(fixed.left_out.values())
    assert len(found) == fixed.rows_written
    left_out = [change for change in changes if change.get("action") == "left out"]
    assert len(left_out) == sum(fixed.left_out.values())
    assert all(change["reason"] and change["code"] for change in left_out)
    assert len(changes) - len(left_out) == sum(fixed.changes.values())
    gone, touched = ({each["where"]["line"] for each in part} for part in (left_out, changes))
    kept = [(line, row) for line, row in enumerate(rows, start=1) if line not in gone]
    for (line, row), written in zip(kept, found, strict=True):
        if kind != "parquet" and line not in touched:
            assert to_json(written) == to_json(row)


def fixed_copy(source: Path, out: Path) -> Fixed:
    config = Config(model=ModelConfig(name_or_path="none"), data=DataConfig(path=str(source), num_proc=1))
    return fix_rows(config, out, values=VALUES)
