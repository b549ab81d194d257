"""Somebody with a file that was made for a hosted fine-tuning service: it is read as it is, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from typed import Terminal

from conftest import write_jsonl

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
OLD_CALL = {"name": "weather", "arguments": '{"city": "Oslo"}'}
END = "<|im_end|>"


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ASKED = said("user", "How is Oslo?")
SHAPES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "OpenAI": (
        {"messages": [said("system", "Be brief."), ASKED, said("assistant", "Wet.")]},
        [f"Wet.{END}"],
    ),
    "OpenAI, developer role and an answer of weight 0": (
        {
            "messages": [
                said("developer", "Be brief."),
                ASKED,
                said("assistant", "Dunno.", weight=0),
                said("user", "Look it up."),
                said("assistant", "Wet.", weight=1),
            ]
        },
        [f"Wet.{END}"],
    ),
    "OpenAI, tools": (
        {
            "messages": [
                ASKED,
                said("assistant", None, tool_calls=[CALL]),
                said("tool", "rain", tool_call_id="c1"),
                said("assistant", "Wet."),
            ],
            "tools": [WEATHER],
            "parallel_tool_calls": False,
        },
        ["weather", f"Wet.{END}"],
    ),
    "OpenAI, functions": (
        {
            "messages": [
                ASKED,
                said("assistant", None, function_call=OLD_CALL),
                said("function", "rain", name="weather"),
                said("assistant", "Wet."),
            ],
            "functions": [WEATHER["function"]],
        },
        ["weather", f"Wet.{END}"],
    ),
    "OpenAI, typed parts": (
        {"messages": [said("user", [{"type": "text", "text": "How is Oslo?"}]), said("assistant", "Wet.")]},
        [f"Wet.{END}"],
    ),
    "Fireworks, with reasoning": (
        {"messages": [ASKED, said("assistant", "Wet.", reasoning_content="It is autumn.")]},
        [f"Wet.{END}"],
    ),
    "Gemini": (
        {
            "systemInstruction": {"role": "system", "parts": [{"text": "Be brief."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "How is Oslo?"}]},
                {"role": "model", "parts": [{"text": "Wet."}]},
            ],
        },
        [f"Wet.{END}"],
    ),
    "Bedrock, Converse": (
        {
            "schemaVersion": "bedrock-conversation-2024",
            "system": [{"text": "Be brief."}],
            "messages": [said("user", [{"text": "How is Oslo?"}]), said("assistant", [{"text": "Wet."}])],
        },
        [f"Wet.{END}"],
    ),
    "Anthropic on Bedrock": (
        {"system": "Be brief.", "messages": [ASKED, said("assistant", "Wet.")]},
        [f"Wet.{END}"],
    ),
    "Cohere": (
        {"messages": [said("System", "Be brief."), said("User", "How is Oslo?"), said("Chatbot", "Wet.")]},
        [f"Wet.{END}"],
    ),
    "Mistral": (
        {
            "messages": [ASKED, said("assistant", "", tool_calls=[{**CALL, "type": None}]), said("tool", "rain")],
            "tools": [WEATHER],
        },
        ["weather"],
    ),
    "Vertex, PaLM": ({"input_text": "How is Oslo?", "output_text": "Wet."}, [f"Wet.{END}"]),
    "Together, instruction": ({"prompt": "How is Oslo?", "completion": " Wet."}, [" Wet.</s>"]),
    "OpenAI, the old pairs": ({"prompt": "How is Oslo? ->", "completion": " Wet. END"}, [" Wet. END</s>"]),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "OpenAI, preferences": (
        {
            "input": {"messages": [ASKED]},
            "preferred_output": [said("assistant", "Wet.")],
            "non_preferred_output": [said("assistant", "Dunno.")],
        },
        "TT109",
    ),
    "Together, preferences": ({"prompt": "How is Oslo?", "chosen": "Wet.", "rejected": "Dunno."}, "TT109"),
    "OpenAI, pictures": (
        {
            "messages": [
                said("user", [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]),
                said("assistant", "A cat."),
            ]
        },
        "TT110",
    ),
}


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A shell in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Terminal(capsys)


@pytest.mark.parametrize("service", SHAPES)
def test_a_file_for_a_service_is_read_as_it_is_and_its_answers_are_learned(
    service: str, terminal: Terminal, tiny_base: Path
) -> None:
    row, learned = SHAPES[service]
    write_jsonl(Path("train.jsonl"), [row] * 2)
    found = json.loads(terminal.done("check", "train.jsonl", "--json").out)
    assert (found["rows_kept"], found["rows_rejected"]) == (2, 0)
    assert not {problem["code"] for problem in found["problems"]} & {"TT114"}
    shown = json.loads(terminal.done("inspect", "train.jsonl", "--model", tiny_base, "--json").out)
    for spans in (each["spans"] for each in shown["rows"]):
        assert len(spans) == len(learned)
        for span, expected in zip(spans, learned, strict=True):
            assert expected in span if expected == "weather" else span == expected


@pytest.mark.parametrize("service", REFUSED)
def test_a_file_for_another_kind_of_training_is_refused_by_name(service: str, terminal: Terminal) -> None:
    row, code = REFUSED[service]
    write_jsonl(Path("train.jsonl"), [row] * 2)
    told = terminal("check", "train.jsonl")
    assert told.status == 1
    assert code in told.out


def test_the_settings_of_a_job_are_understood_or_answered(terminal: Terminal, tiny_base: Path) -> None:
    rows = [
        {"messages": [said("user", f"How is day {n}?"), said("assistant", f"It has {n} hours.")]} for n in range(12)
    ]
    write_jsonl(Path("train.jsonl"), rows)
    job = ("--model", tiny_base, "training_file=train.jsonl", "n_epochs=1")
    terminal.done("train", *job, "--output-dir", "runs/job", "max_steps=1")
    refusals = {
        "learning_rate_multiplier=2": "it multiplies a base rate",
        "batch_size=4": "per_device_train_batch_size",
        "suffix=support": "--output-dir",
        "n_evals=3": "evaluation.eval_strategy",
        "n_checkpoints=2": "checkpoints.save_strategy",
    }
    told = terminal.refused("train", *job, *refusals, "--output-dir", "runs/other", status=2)
    for remedy in refusals.values():
        assert remedy in told
    again = terminal.done("train", *job, "from_checkpoint=runs/job", "--output-dir", "runs/more", "--dry-run")
    assert "from_checkpoint is now adapter.init_from: runs/job" in again.err
