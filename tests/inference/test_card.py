"""A model's card: its header as the hub reads it, and a text that tells what is known and no more."""

import ast
import json
import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from truetune.errors import CheckpointError
from truetune.inference.card import (
    BaseFacts,
    CardFacts,
    FileFacts,
    PromptFacts,
    facts_document,
    facts_of,
    model_card,
)

KNOWN = CardFacts(
    repository="user/support-bot",
    kind="adapter",
    base=BaseFacts("org/base", "org/base", revision="abc123"),
    version="0.1.0",
    license="apache-2.0",
    license_reason="the base model's, by its card",
    datasets=("org/rows",),
    data={"rows from": "org/rows", "rows kept": "24"},
    settings={"learning_rate": "0.0002"},
    results={"training loss": "0.5000", "validation loss": None},
    evaluations={"test.jsonl": {"eval_loss": "1.2 (base: 2.1)"}},
    made={"versions": "torch 2"},
    prompt=PromptFacts("chat", "<|im_start|>user\nHi<|im_end|>\n", "<|im_end|>", True, (7, 9)),
    files=(FileFacts("adapter_model.safetensors", 1234, "f" * 64),),
)


def test_the_header_says_what_the_hub_sorts_models_by() -> None:
    data = ModelCard(model_card(KNOWN)).data.to_dict()
    assert data["base_model"] == "org/base"
    assert data["base_model_relation"] == "adapter"
    assert data["library_name"] == "peft"
    assert data["pipeline_tag"] == "text-generation"
    assert data["license"] == "apache-2.0"
    assert data["datasets"] == ["org/rows"]
    assert data["tags"] == ["truetune", "lora"]
    merged = ModelCard(model_card(replace(KNOWN, kind="merged"))).data.to_dict()
    assert (merged["library_name"], merged["base_model_relation"]) == ("transformers", "finetune")


def test_what_is_not_known_is_said_and_never_made_up() -> None:
    text = model_card(CardFacts("user/name", "adapter"))
    data = ModelCard(text).data.to_dict()
    assert not {"base_model", "base_model_relation", "license", "datasets"} & data.keys()
    for words in (
        "The base model is not known",
        "What it was trained on is not known",
        "No figures of the training are known",
        "How its prompts were put in training is not known",
        "The license is not known",
        "Nothing but the loss was measured",
    ):
        assert words in text
    local = model_card(replace(KNOWN, base=BaseFacts("my-base", fingerprint="d" * 64), license=None))
    assert "base_model" not in ModelCard(local).data.to_dict()
    assert "| license of this model | not known |" in local
    assert "| validation loss | not known |" in local


def test_an_evaluation_takes_the_place_of_the_sentence_that_there_is_none() -> None:
    text = model_card(KNOWN)
    assert "### Evaluated on test.jsonl" in text
    assert "Nothing but the loss was measured" not in text


def test_the_code_it_shows_is_python_and_names_base_revision_and_stops() -> None:
    for kind in ("adapter", "merged"):
        for prompt in (KNOWN.prompt, PromptFacts("text", 'He said "hi"\n', None, False), None):
            text = model_card(replace(KNOWN, kind=kind, prompt=prompt))
            (code,) = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
            ast.parse(code)
            assert ("PeftModel" in code) == (kind == "adapter")
            assert ("'org/base', revision='abc123'" in code) == (kind == "adapter")
            assert ("eos_token_id=[7, 9]" in code) == (prompt is KNOWN.prompt)
            assert ("apply_chat_template" in code) == (prompt is KNOWN.prompt)


def test_no_text_breaks_out_of_its_table_or_its_block() -> None:
    prompt = PromptFacts("completion", "```\n# not a heading\n````\n", "`end`\n", False)
    facts = replace(KNOWN, data={"rows from": "a|b\n# c <script>"}, prompt=prompt, limits=("one\n- two",))
    text = model_card(facts)
    assert "| rows from | a\\|b # c &lt;script> |" in text
    assert "`````text\n```\n# not a heading\n````\n\n`````" in text
    assert "- one - two\n" in text
    assert "`'end'\\n`" in text


def test_the_weights_are_told_with_their_digest() -> None:
    assert f"| adapter_model.safetensors | 1,234 | `{'f' * 64}` |" in model_card(KNOWN)


def test_a_card_is_written_again_from_its_facts_for_another_place() -> None:
    stored = json.loads(json.dumps(facts_document(KNOWN)))
    assert model_card(facts_of(stored)) == model_card(KNOWN)
    moved = model_card(replace(facts_of(stored), repository="desk"))
    assert "# desk\n" in moved
    assert "hf download" not in moved
    assert "truetune generate desk --prompt" in moved
    for damaged in ({}, {**stored, "kind": "no such"}, {**stored, "results": 5}):
        with pytest.raises(CheckpointError, match="no facts of a card"):
            facts_of(damaged)


def test_an_adapter_s_gguf_is_told_to_go_over_its_base() -> None:
    text = model_card(replace(KNOWN, kind="gguf-adapter"))
    data = ModelCard(text).data.to_dict()
    assert (data["base_model_relation"], data["tags"]) == ("adapter", ["truetune", "lora", "gguf"])
    assert "library_name" not in data
    assert "llama-server -m BASE.gguf --lora ADAPTER.gguf" in text
    assert "from transformers" not in text
