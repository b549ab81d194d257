"""Mistral's, Phi's, Cohere's and other families' ways, each in a small template and tokenizer of its own."""

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import CHATML, STRICT, byte_tokenizer, tiny_model
from traced import W_TOOL, Traced, call, chat
from truetune.data.rules import RowError
from truetune.data.templates import load_template
from truetune.errors import BackendError
from truetune.model.source import ModelSource
from truetune.model.tokenizer import load_tokenizer

ASKED = {"role": "user", "content": "w?"}
TOLD = {"role": "tool", "content": "7 deg"}
SAID = {"role": "assistant", "content": "It is 7."}
TALK = chat("u:q1", "a:a1", "u:q2", "a:a2")


def knows(chat_template: str, *tokens: str, **options: Any) -> Any:
    """The byte tokenizer with more special tokens."""
    tokenizer = byte_tokenizer(chat_template=chat_template, **options)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


def with_call(*, name: str = "w", content: str | None = None, **ids: str) -> dict[str, Any]:
    """A question, a call with its result, an answer."""
    turn = call(name, {"city": "Oslo"}, content)
    turn["tool_calls"] = [{**each, **ids} for each in turn["tool_calls"]]
    told = {**TOLD, "tool_call_id": ids["id"]} if ids else TOLD
    return {"messages": [ASKED, turn, told, SAID], "tools": [W_TOOL]}


# --- Mistral ----------------------------------------------------------------------------------------------

MISTRAL_TOKENS = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
# System and tools stand before the last question; a call has an id of nine letters and figures.
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='', last=-1) %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] + '\n\n' %}{% endif %}"
    "{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}"
    "{% if loop.index0 == ns.last and tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}"
    "[INST] {% if loop.index0 == ns.last %}{{ ns.system }}{% endif %}{{ m['content'] }}[/INST]"
    "{% elif m['role'] == 'tool' %}[TOOL_RESULTS] {{ m['content'] }} {{ m['tool_call_id'] }}[/TOOL_RESULTS]"
    "{% elif m['role'] == 'assistant' and m['tool_calls'] %}[TOOL_CALLS] [{% for call in m['tool_calls'] %}"
    "{% if not call['id'] or call['id'] | length != 9 %}{{ raise_exception('Nine characters!') }}{% endif %}"
    "{% if not loop.first %}, {% endif %}{{ {'name': call['function']['name'], 'id': call['id']} | tojson }}"
    "{% endfor %}]{{ eos_token }}"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


def metaspace_tokenizer() -> Any:
    """A byte-fallback BPE as transformers makes of Mistral's tokenizer.model: `▁` behind every control token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", *MISTRAL_TOKENS]
    letters = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *map(chr, range(33, 127)), "▁a", "▁q"]
    vocabulary = {token: index for index, token in enumerate([*special, *letters])}
    merges = [("▁", "a"), ("▁", "q")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    built = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=MISTRAL
    )
    built.add_special_tokens({"additional_special_tokens": list(MISTRAL_TOKENS)})
    return built


@pytest.mark.parametrize("tokenizer", [knows(MISTRAL, *MISTRAL_TOKENS), metaspace_tokenizer()], ids=["bytes", "spm"])
def test_an_answer_begins_behind_its_turn_also_where_the_system_moves_to_the_last_one(tokenizer: Any) -> None:
    row = Traced({"messages": [{"role": "system", "content": "S"}, *TALK["messages"]]}, tokenizer)
    assert row.rendered.text == "<s>[INST] q1[/INST] a1</s>[INST] S\n\nq2[/INST] a2</s>"
    assert row.rendered.learned() == (" a1</s>", " a2</s>")
    assert [answer.strip() for answer in row.learned] == ["a1</s>", "a2</s>"]
    assert row.ids[: len(row.prompt_ids)] == row.prompt_ids
    assert row.ids.count(tokenizer.bos_token_id) == 1


def test_calls_are_learned_also_where_the_tools_move_to_the_last_question() -> None:
    turns = with_call(id="abcDEF123")
    turns["messages"] = [*turns["messages"], {"role": "user", "content": "And?"}, {**SAID, "content": "Warm."}]
    learned = ['[TOOL_CALLS] [{"name": "w", "id": "abcDEF123"}]</s>', " It is 7.</s>", " Warm.</s>"]
    assert Traced(turns, knows(MISTRAL, *MISTRAL_TOKENS)).learned == learned


@pytest.mark.parametrize("ids", [{}, {"id": "call_8f3c2a"}], ids=["none", "too long"])
def test_a_call_gets_an_id_that_the_template_takes_and_its_result_the_same_one(ids: dict[str, str]) -> None:
    row = Traced(with_call(**ids), knows(MISTRAL, *MISTRAL_TOKENS))
    assert row.learned == ['[TOOL_CALLS] [{"name": "w", "id": "call00000"}]</s>', " It is 7.</s>"]
    assert "[TOOL_RESULTS] 7 deg call00000[/TOOL_RESULTS]" in row.prompt
    assert row.ids[: len(row.prompt_ids)] == row.prompt_ids
    assert row.notes == ()


def test_ids_count_on_through_a_row_and_results_are_told_by_their_own() -> None:
    two = call("w", {}, None)
    two["tool_calls"] = [{**two["tool_calls"][0], "id": id_} for id_ in ("call_aaaa", "call_bbbbb")]
    results = [{**TOLD, "content": id_[-1], "tool_call_id": id_} for id_ in ("call_bbbbb", "call_aaaa")]
    turns = {"messages": [ASKED, two, *results, SAID, *with_call()["messages"]]}
    text = Traced(turns, knows(MISTRAL, *MISTRAL_TOKENS)).rendered.text
    assert "[TOOL_RESULTS] b call00001[/TOOL_RESULTS][TOOL_RESULTS] a call00000[/TOOL_RESULTS]" in text
    assert "[TOOL_RESULTS] 7 deg call00002[/TOOL_RESULTS]" in text


def test_a_template_that_knows_calls_gets_none_as_text() -> None:
    refuses = MISTRAL.replace(
        "[TOOL_CALLS] [",
        "{% if m['content'] %}{{ raise_exception('Words beside a call!') }}{% endif %}[TOOL_CALLS] [",
    )
    with pytest.raises(RowError, match="Words beside a call!"):
        Traced(with_call(content="I look.", id="abcDEF123"), knows(refuses, *MISTRAL_TOKENS))


# --- calls and results for which a template has no place (Phi, Gemma 2) --------------------------------------

AS_TEXT = '<tool_call>\n{"name": "w", "arguments": {"city": "Oslo"}}\n</tool_call>'
DROPS_TOOLS = CHATML.replace("for m in messages", "for m in messages if m['role'] in ('user', 'assistant')")


@pytest.mark.parametrize(
    ("template", "stop"),
    [(DROPS_TOOLS, "<|im_end|>"), (STRICT, "<end_of_turn>")],
    ids=["drops", "refuses"],
)
def test_results_that_a_template_has_no_place_for_are_a_user_s_turn(template: str, stop: str) -> None:
    row = Traced(with_call(), byte_tokenizer(chat_template=template))
    assert row.learned == [AS_TEXT + stop, "It is 7." + stop]
    assert "user\n<tool_response>\n7 deg\n</tool_response>" in row.prompt
    assert row.ids[: len(row.prompt_ids)] == row.prompt_ids
    assert row.notes == ("calls-as-text", "not-rendered:tools")


def test_results_as_text_are_one_turn_beside_a_folded_system() -> None:
    turns = {"messages": [{"role": "system", "content": "S"}, ASKED, call("w", {}), TOLD, TOLD, SAID]}
    row = Traced(turns, byte_tokenizer(chat_template=STRICT))
    assert "user\nS\n\nw?<end_of_turn>" in row.rendered.text
    assert row.rendered.text.count("<start_of_turn>user\n") == 2
    assert row.notes == ("system-folded", "calls-as-text")


# --- calls that close, or are written, otherwise ------------------------------------------------------------

# gpt-oss and Gemma 4: a call has a stop token of its own, and its name stands beside the result again.
ECHOES = (
    "{% for m in messages %}"
    "{% if m['role'] == 'tool' %}<|im_start|>{{ messages[loop.index0 - 1]['tool_calls'][0]['function']['name'] }} "
    "{{ m['content'] }}<|im_end|>"
    "{% else %}<|im_start|>{{ m['role'] }}{% for c in m['tool_calls'] %} to {{ c['function']['name'] }}<|call|>"
    "{% else %}:{{ m['content'] }}{{ '</s>' if loop.last and m['role'] == 'assistant' else '<|im_end|>' }}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


def test_a_call_is_learned_up_to_its_own_stop_also_where_its_name_comes_again() -> None:
    turns = {"messages": with_call(name="weather")["messages"] * 2}
    learned = [" to weather<|call|>", ":It is 7.<|im_end|>", " to weather<|call|>", ":It is 7.</s>"]
    row = Traced(turns, knows(ECHOES, "<|call|>"))
    assert row.learned == learned
    assert row.tokenizer.convert_ids_to_tokens(list(row.template.stop_token_ids)) == ["</s>", "<|call|>"]


# GigaChat and gpt-oss write a turn's first call only.
FIRST_CALL_ONLY = CHATML.replace(
    "{{ m['content'] }}", "{{ m['content'] }}{% if m['tool_calls'] %}{{ m['tool_calls'][0] | tojson }}{% endif %}"
)


def test_a_template_that_leaves_a_second_call_out_is_refused() -> None:
    tokenizer = byte_tokenizer(chat_template=FIRST_CALL_ONLY)
    assert len(Traced(with_call(), tokenizer).learned) == 2
    twice = call("w", {"city": "Oslo"})
    twice["tool_calls"] *= 2
    with pytest.raises(RowError, match="cannot be located"):
        Traced({"messages": [ASKED, twice, TOLD, TOLD, SAID]}, tokenizer)


# DeepSeek R1's distilled models: an empty answer, with a header and a stop token, behind each call.
R1 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
    "{% elif m['role'] == 'tool' %}<|result|>{{ m['content'] }}<|/result|>{% else %}"
    "{% if m['tool_calls'] %}<|bot|>"
    "{% for c in m['tool_calls'] %}<|call|>{{ c['function'] | tojson }}{% endfor %}</s>{% endif %}"
    "{% if messages[loop.index0 - 1]['role'] != 'tool' %}<|bot|>{% endif %}{{ m['content'] }}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != 'tool' %}<|bot|>{% endif %}"
)
R1_TOKENS = ("<|user|>", "<|bot|>", "<|call|>", "<|result|>", "<|/result|>")


def test_what_a_tool_answers_is_never_learned() -> None:
    written = '<|call|>{"name": "w", "arguments": {"city": "Oslo"}}</s>'
    assert Traced(with_call(), knows(R1, *R1_TOKENS)).learned == [written, "It is 7.</s>"]


# --- what opens and what closes an answer -------------------------------------------------------------------

OPENS_OTHERWISE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ ROWS if m['role'] == 'assistant' else '' }}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ PROMPT }}{% endif %}"
)


@pytest.mark.parametrize(
    ("in_rows", "in_prompts"), [("<|text|>", "<|thought|>"), ("</think>", "<think>")], ids=["cohere", "glm"]
)
def test_a_header_ends_between_tokens_where_the_prompt_opens_another_block(in_rows: str, in_prompts: str) -> None:
    template = OPENS_OTHERWISE.replace("ROWS", f"'{in_rows}'").replace("PROMPT", f"'{in_prompts}'")
    row = Traced(TALK, knows(template, "<|text|>", "<|thought|>"))
    assert row.learned == [f"{in_rows}a1<|im_end|>", f"{in_rows}a2<|im_end|>"]
    assert row.notes == ("unlike-prompt",)


# Command R7B: the next answer is opened whether asked for or not, by control tokens alone.
OPENS_ALWAYS = (
    "{% for m in messages %}<|turn|>{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}{% else %}"
    "<|bot|>{{ m['content'] }}<|done|>{% endif %}<|/turn|>{% endfor %}<|turn|><|bot|>"
)


@pytest.mark.parametrize(("eos", "stop"), [("<|/turn|>", "<|done|><|/turn|>"), ("</s>", "<|done|>")])
def test_the_header_that_always_follows_closes_nothing(eos: str, stop: str) -> None:
    row = Traced(TALK, knows(OPENS_ALWAYS, "<|turn|>", "<|/turn|>", "<|user|>", "<|bot|>", "<|done|>", eos_token=eos))
    assert row.learned == ["a1" + stop, "a2" + stop]
    assert row.template.terminator == stop
    assert row.ids[: len(row.prompt_ids)] == row.prompt_ids


def test_a_closing_in_words_and_blanks_is_found_behind_an_answer_that_ends_with_blanks() -> None:
    template = CHATML.replace("{{ m['content'] }}<|im_end|>", "{{ m['content'] }}\n\n<sep>")
    row = Traced(chat("u:q1", "a:a1 \n", "u:q2", "a:a2"), byte_tokenizer(chat_template=template))
    assert row.learned == ["a1 \n\n\n<sep>", "a2\n\n<sep>"]


def test_a_template_that_goes_nowhere_without_tools_is_probed_with_one() -> None:
    wants = "{% if not tools %}{{ raise_exception('Tools!') }}{% endif %}" + CHATML
    template = load_template(byte_tokenizer(chat_template=wants))
    assert (template.terminator, template.headers) == ("<|im_end|>", ("<|im_start|>assistant\n",))
    assert Traced({**TALK, "tools": [W_TOOL]}, template.tokenizer).learned == ["a1<|im_end|>", "a2<|im_end|>"]


# Gemma 4: a prompt has an empty thought unless thinking is asked for, a row has none.
SILENT = OPENS_OTHERWISE.replace("ROWS", "''").replace(
    "PROMPT", "'' if enable_thinking | default(false) else '<|thought|><|text|>'"
)


def test_empty_thoughts_that_prompts_have_anyway_are_put_into_rows() -> None:
    tokenizer = knows(SILENT, "<|text|>", "<|thought|>")
    assert Traced(TALK, tokenizer).notes == ("unlike-prompt",)
    row = Traced(TALK, tokenizer, thinking="empty")
    assert row.rendered.text.endswith("<|im_start|>assistant\n<|thought|><|text|>a2<|im_end|>\n")
    assert (row.learned[-1], row.notes) == ("a2<|im_end|>", ())
    assert row.ids[: len(row.prompt_ids)] == row.prompt_ids


# --- loading ------------------------------------------------------------------------------------------------


@pytest.fixture
def mistral_folder(tmp_path: Path) -> Path:
    """A model of Mistral's kind with a tokenizer.json, and the tekken.json that mistral-common would read."""
    from transformers import MistralConfig

    MistralConfig(vocab_size=261, hidden_size=32, num_attention_heads=4).save_pretrained(tmp_path)
    byte_tokenizer(chat_template=CHATML).save_pretrained(tmp_path)
    (tmp_path / "tekken.json").write_text("{}")
    return tmp_path


def test_a_tokenizer_with_offsets_is_loaded_also_where_mistral_common_is_installed(
    mistral_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations.mistral import tokenizer as mistral
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    monkeypatch.setitem(TOKENIZER_MAPPING_NAMES, "mistral", "MistralCommonBackend")
    monkeypatch.setattr(mistral, "is_mistral_common_available", lambda: True)
    loaded = load_tokenizer(ModelSource("m", str(mistral_folder)))
    assert loaded.is_fast
    assert Traced(TALK, loaded).learned == ["a1<|im_end|>", "a2<|im_end|>"]


@pytest.mark.parametrize(
    ("file", "package"), [("tokenizer.model", "sentencepiece"), ("tekken.json", "mistral-common")]
)
def test_files_that_want_another_package_name_it(tmp_path: Path, file: str, package: str) -> None:
    tiny_model().config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mistral"}))
    tekken = {"config": {"pattern": ".", "default_vocab_size": 2}, "vocab": []}
    (tmp_path / file).write_text(json.dumps(tekken) if file == "tekken.json" else "\n")
    with pytest.raises(BackendError, match="cannot load the tokenizer") as caught:
        load_tokenizer(ModelSource("m", str(tmp_path)))
    assert package in str(caught.value.hint)
