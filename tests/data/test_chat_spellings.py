"""Conversations in everybody's spelling: containers, roles, typed parts, tool calls, reasoning, weights."""

import json
from typing import Any

import pytest

from traced import HERMES, HI, W_CALL, W_TOOL, YO, call, parsed
from truetune.data.examples import Completion, Conversation, Location, Message, Note
from truetune.data.rules import RowError

WHERE = Location("a.jsonl", 1)
C1 = Conversation((Message("user", "hi"), Message("assistant", "yo")), WHERE)


def talk(fields: dict[str, Any], **options: Any) -> Conversation:
    example = parsed(fields, **options)
    assert isinstance(example, Conversation)
    return example


def turn(said: dict[str, Any], **options: Any) -> Message:
    """What an assistant's turn becomes."""
    return talk({"messages": [HI, {"role": "assistant", **said}], **options}).messages[1]


def refused(fields: dict[str, Any], **options: Any) -> RowError:
    with pytest.raises(RowError) as caught:
        parsed(fields, **options)
    return caught.value


# --- containers and roles ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["messages", "conversations", "conversation", "dialog", "dialogue", "chat", "contents", "Messages"]
)
def test_a_conversation_may_stand_under_many_names_and_as_text(name: str) -> None:
    assert talk({name: [HI, YO]}) == C1
    assert talk({name: json.dumps([HI, YO])}) == C1
    assert talk({name: str([HI, YO])}) == C1  # As pandas writes a CSV.


@pytest.mark.parametrize("role", ["role", "from", "speaker", "author", "sender"])
@pytest.mark.parametrize("content", ["content", "value", "text", "message", "utterance"])
def test_a_turn_has_its_role_and_its_content_under_many_keys(role: str, content: str) -> None:
    example = talk({"dialog": [{role: "user", content: "hi"}, {role: "Assistant", content: "yo"}]})
    assert example == C1
    assert example.form == f"chat from dialog ({role}/{content})"


@pytest.mark.parametrize(
    ("spelling", "role"),
    [
        ("AI", "assistant"),
        ("chatbot", "assistant"),
        ("ChatGPT", "assistant"),
        ("prompter", "user"),
        (" Human ", "user"),
        ("developer", "system"),
        ("observation", "tool"),
        ("tool_response", "tool"),
        ("ipython", "tool"),
        ("environment", "tool"),
    ],
)
def test_roles_are_understood_in_any_case(spelling: str, role: str) -> None:
    assert talk({"messages": [{"role": spelling, "content": "x"}, YO]}).messages[0].role == role


def test_names_that_also_stand_for_prose_are_conversations_only_if_a_list_is_in_them() -> None:
    assert parsed({"chat": "room 5", "text": "a"}) == Completion("", "a", WHERE)
    assert refused({"dialogue": "A: hi B: yo", "summary": "s"}).rule == "unknown-format"
    assert refused({"messages": "room 5", "text": "a"}).rule == "broken-json"


@pytest.mark.parametrize("names", [("input", "output"), ("human", "assistant"), ("prompt", "response")])
def test_a_turn_may_be_a_round(names: tuple[str, str]) -> None:
    asked, said = names
    example = talk({"conversation": [{"system": "s", asked: "hi", said: "yo"}, {asked: "a", said: "b"}]})
    assert [message.role for message in example.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [message.content for message in example.messages] == ["s", "hi", "yo", "a", "b"]
    assert example.form == f"chat from conversation ({asked}/{said})"


def test_answers_in_the_prompt_of_a_conversational_pair_are_not_learned() -> None:
    pair = talk({"prompt": [HI, YO, HI], "completion": [YO]})
    assert [message.is_learned for message in pair.messages if message.role == "assistant"] == [False, True]
    assert pair.form == "chat from prompt, completion"
    assert talk({"prompt": [HI], "completion": "yo"}) == talk({"prompt": [HI], "response": YO}) == C1
    assert talk({"prompt": [HI], "completion": [YO]}, format="chat") == C1
    assert refused({"prompt": "a", "completion": "b"}, format="chat").rule == "unknown-format"
    assert refused({"prompt": [HI, YO], "completion": [HI]}).rule == "no-answer"


# --- content ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "text", "text": "y"}, {"type": "text", "text": "o"}],
        [{"type": "text", "value": "yo"}],
        [{"type": "output_text", "content": "yo"}],
        [{"text": "y"}, "o"],
        [{"type": "text", "text": "yo", "image_url": None}],
    ],
)
def test_parts_of_text_are_joined_as_they_are(parts: list[Any]) -> None:
    assert turn({"content": parts}) == Message("assistant", "yo")


def test_a_number_in_a_part_is_its_json_text_and_noted() -> None:
    example = talk({"messages": [HI, {"role": "assistant", "content": [{"type": "text", "text": 7}]}]})
    assert example.messages[1].content == "7"
    assert example.notes == (Note("number-as-text"),)


def test_a_number_in_a_conversation_that_is_text_keeps_its_spelling() -> None:
    text = '[{"role":"user","content":"a"},{"role":"assistant","content":1.10}]'
    assert talk({"messages": text}).messages[1].content == "1.10"


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "image-row"),
        ({"type": "image"}, "image-row"),
        ({"inlineData": {"data": "x"}}, "image-row"),
        ({"type": "input_audio", "input_audio": {}}, "audio-row"),
        ({"type": "video_url"}, "video-row"),
    ],
)
def test_pictures_sounds_and_films_are_refused_by_name(part: Any, code: str) -> None:
    error = refused({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}, YO]})
    assert (error.rule, error.field) == (code, "messages[0].content[1]")
    assert code.removesuffix("-row") in error.message


@pytest.mark.parametrize("name", ["image", "images", "audio", "audios", "video", "videos"])
def test_a_row_with_a_picture_beside_it_is_refused_and_one_with_an_empty_field_for_it_is_not(name: str) -> None:
    assert refused({"messages": [HI, YO], name: ["a.png"]}).rule == f"{name.removesuffix('s')}-row"
    assert [talk({"messages": [HI, YO], name: empty}) for empty in (None, [], "")] == [C1] * 3


def test_anthropic_s_parts_are_calls_results_and_thinking() -> None:
    parts: list[dict[str, Any]] = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "c", "name": "w", "input": {"city": "Oslo"}},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "7"}]},
        {"type": "text", "text": "And?"},
    ]
    example = talk(
        {
            "system": "s",
            "messages": [HI, {"role": "assistant", "content": parts}, {"role": "user", "content": results}],
        }
    )
    assert example.messages == (
        Message("system", "s"),
        Message("user", "hi"),
        Message("assistant", "I look.", {"reasoning_content": "hm", "tool_calls": [{"id": "c", **W_CALL}]}),
        Message("tool", "7", {"tool_call_id": "c"}),
        Message("user", "And?"),
    )
    assert example.notes == ()


def test_llamafactory_s_parts_hold_reasoning_and_calls_as_text() -> None:
    parts = [
        {"type": "reasoning", "value": "hm"},
        {"type": "tool_call", "value": json.dumps(W_CALL["function"])},
    ]
    extra = {"reasoning_content": "hm", "tool_calls": [W_CALL]}
    assert turn({"content": parts}) == Message("assistant", "", extra)


def test_text_behind_a_call_is_put_in_front_of_it_and_noted() -> None:
    parts = [{"type": "tool_use", "name": "w", "input": {}}, {"type": "text", "text": "yo"}]
    example = talk({"messages": [HI, {"role": "assistant", "content": parts}]})
    assert example.messages[1].content == "yo"
    assert example.notes == (Note("parts-reordered"),)


@pytest.mark.parametrize(
    "system", ["s", {"parts": [{"text": "s"}]}, [{"text": "s"}], {"role": "user", "parts": ["s"]}]
)
def test_gemini_s_contents_are_read(system: Any) -> None:
    contents = [
        {"parts": [{"text": "w?"}]},
        {"role": "model", "parts": [{"functionCall": {"name": "w", "args": {"city": "Oslo"}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "w", "response": {"t": 7}}}]},
        {"role": "model", "parts": [{"text": "7 "}, {"text": "C"}]},
    ]
    tools = [{"functionDeclarations": [W_TOOL["function"]]}]
    example = talk({"systemInstruction": system, "contents": contents, "tools": tools})
    assert example.messages == (
        Message("system", "s"),
        Message("user", "w?"),
        Message("assistant", "", {"tool_calls": [W_CALL]}),
        Message("tool", '{"t": 7}', {"name": "w"}),
        Message("assistant", "7 C"),
    )
    assert example.tools == (W_TOOL,)


# --- tool calls -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ['{"city": "Oslo"}', {"city": "Oslo"}])
def test_calls_in_every_field_are_openai_s(arguments: Any) -> None:
    flat = {"name": "w", "arguments": arguments}
    for said in (
        {"tool_calls": [{"type": "function", "function": flat}]},
        {"tool_calls": [flat]},
        {"tool_calls": json.dumps([flat])},
        {"tool_calls": {"function": None, **flat}},
        {"function_call": flat},
    ):
        assert turn({"content": None, **said}) == Message("assistant", "", {"tool_calls": [W_CALL]})


@pytest.mark.parametrize("arguments", [None, "", {}])
def test_no_arguments_are_an_empty_object(arguments: Any) -> None:
    (made,) = turn(call("w", arguments)).extra["tool_calls"]
    assert made["function"] == {"name": "w", "arguments": {}}


@pytest.mark.parametrize("role", ["function_call", "tool_call"])
def test_a_calling_role_s_json_is_a_call_and_other_text_stays_an_answer(role: str) -> None:
    def said(value: str) -> Message:
        return talk({"conversations": [{"from": "human", "value": "w?"}, {"from": role, "value": value}]}).messages[1]

    written = json.dumps({"name": "w", "arguments": {"city": "Oslo"}})
    assert said(written) == Message("assistant", "", {"tool_calls": [W_CALL]})
    assert said(f"[{written}, {written}]") == Message("assistant", "", {"tool_calls": [W_CALL, W_CALL]})
    for text in ("w(Oslo)", "[]", "7", '{"name": "w", "then": 1}', "{'name'"):
        assert said(text) == Message("assistant", text)


def test_openai_s_older_functions_are_read() -> None:
    turns = [
        HI,
        {"role": "assistant", "content": None, "function_call": {"name": "w", "arguments": '{"city": "Oslo"}'}},
        {"role": "function", "name": "w", "content": "7"},
        YO,
    ]
    example = talk({"messages": turns, "functions": [W_TOOL["function"]]})
    assert example.messages[1:3] == (
        Message("assistant", "", {"tool_calls": [W_CALL]}),
        Message("tool", "7", {"name": "w"}),
    )
    assert example.tools == (W_TOOL,)


def test_hermes_calls_are_calls_beside_tools() -> None:
    assert talk({"messages": HERMES, "tools": [W_TOOL]}).messages[1:4] == (
        Message("assistant", "I look.", {"tool_calls": [W_CALL]}),
        Message("tool", "7"),
        Message("tool", "8"),
    )


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Call <tools>[]</tools>"}]])
def test_hermes_calls_stay_text_without_tools_or_where_the_system_text_describes_them(system: list[Any]) -> None:
    example = talk({"messages": [*system, *HERMES], **({"tools": [W_TOOL]} if system else {})})
    assert [message.content for message in example.messages] == [each["content"] for each in [*system, *HERMES]]
    assert example.tools == ()


@pytest.mark.parametrize("text", ["<tool_call>no</tool_call>", '<tool_call>{"name": "w"}</tool_call> and more'])
def test_what_only_looks_like_a_hermes_call_stays_text(text: str) -> None:
    assert turn({"content": text}, tools=[W_TOOL]) == Message("assistant", text)


@pytest.mark.parametrize(
    "tools",
    [
        [W_TOOL],
        json.dumps([W_TOOL]),
        str([W_TOOL]),
        [json.dumps(W_TOOL)],
        [W_TOOL["function"]],
        [{"type": "function", **W_TOOL["function"]}],
        [{"name": "w", "description": "Weather", "input_schema": {"type": "object"}}],
        [{"function_declarations": [W_TOOL["function"]]}],
    ],
)
def test_tools_in_every_spelling_are_openai_s(tools: Any) -> None:
    assert talk({"messages": [HI, YO], "tools": tools}).tools == (W_TOOL,)


def test_two_calls_in_a_turn_beside_parallel_tool_calls_false_are_noted() -> None:
    twice = {"role": "assistant", "content": None, "tool_calls": [W_CALL, W_CALL]}
    row = {"messages": [HI, twice, HI, twice, HI, call("w", {})]}
    assert talk({**row, "parallel_tool_calls": False}).notes == (Note("parallel-calls", count=2),)
    assert talk({**row, "parallel_tool_calls": True}).notes == talk(row).notes == ()


@pytest.mark.parametrize(
    ("said", "code", "field", "words"),
    [
        (call("w", '{"city": '), "broken-json", "messages[1].tool_calls.arguments", "arguments"),
        (
            call("w", [1]),
            "wrong-type",
            "messages[1].tool_calls.arguments",
            "arguments must be an object, found a list",
        ),
        ({"role": "assistant", "tool_calls": 5}, "wrong-type", "messages[1].tool_calls", "found a number"),
        ({"role": "assistant", "function_call": "w"}, "broken-json", "messages[1].function_call", "JSON"),
        ({"role": "user", "content": "a", "tool_calls": [W_CALL]}, "wrong-type", "messages[1].tool_calls", "only an"),
        ({"role": "assistant", "content": [5]}, "wrong-type", "messages[1].content[0]", "found a number"),
        ({"role": "assistant", "content": [{"type": "poem"}]}, "wrong-type", "messages[1].content[0].type", "'poem'"),
        (
            {"role": "assistant", "content": [{"type": "text"}]},
            "wrong-type",
            "messages[1].content[0]",
            "must have text",
        ),
        ({"from": "gpt", "value": {}}, "wrong-type", "messages[1].value", "value must be text, found an object"),
        ({"from": "gpt", "value": " "}, "empty-answer", "messages[1].value", "empty"),
    ],
)
def test_a_broken_turn_says_where_and_why(said: Any, code: str, field: str, words: str) -> None:
    error = refused({"messages": [HI, said, YO]})
    assert (error.rule, error.field) == (code, field)
    assert words in error.message


# --- reasoning --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking", "thought", "thoughts"])
def test_reasoning_has_one_name(name: str) -> None:
    assert turn({"content": "yo", name: "hm"}) == Message("assistant", "yo", {"reasoning_content": "hm"})
    for empty in (None, "", True):
        assert turn({"content": "yo", name: empty}) == Message("assistant", "yo")


def test_reasoning_that_stands_twice_is_kept_once() -> None:
    twice = turn({"content": "yo", "reasoning": "hm", "reasoning_content": "hm"})
    assert twice.extra == {"reasoning_content": "hm"}


# --- weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "weight", "loss_weight"])
@pytest.mark.parametrize(("value", "learned"), [(0, False), (1, True), (0.0, False), (False, False), (True, True)])
def test_an_answer_s_weight_says_if_it_is_learned_and_reaches_no_template(
    name: str, value: Any, learned: bool
) -> None:
    example = talk({"messages": [HI, {**YO, name: value}, {**HI, name: 0}, YO]})
    assert example.messages[1] == Message("assistant", "yo", {}, learned)
    assert example.messages[2] == Message("user", "hi")


def test_ms_swift_s_loss_is_a_wish_only_if_it_is_a_boolean() -> None:
    assert talk({"messages": [HI, {**YO, "loss": False}, HI, YO]}).messages[1] == Message(
        "assistant", "yo", {}, False
    )
    assert turn({"content": "yo", "loss": 2.31}) == Message("assistant", "yo")


@pytest.mark.parametrize("value", [0.5, 2, -1, "0", [0]])
def test_a_message_s_weight_that_is_neither_0_nor_1_is_refused(value: Any) -> None:
    error = refused({"messages": [HI, {**YO, "weight": value}]})
    assert (error.rule, error.field) == ("wrong-type", "messages[1].weight")


def test_a_row_that_leaves_every_answer_out_is_refused() -> None:
    error = refused({"messages": [HI, {**YO, "weight": 0}]})
    assert (error.rule, error.field) == ("no-answer", "messages")
    assert "left" in error.message


def test_what_a_turn_asks_for_and_does_not_get_is_noted() -> None:
    assert talk({"messages": [{**HI, "train": True}, YO]}).notes == (Note("not-rendered", "train"),)
    assert talk({"messages": [HI, {**YO, "mask": True}]}).notes == (Note("not-rendered", "mask"),)
    assert talk({"messages": [{**HI, "reasoning": "hm"}, YO]}).notes == (Note("not-rendered", "reasoning"),)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [HI, YO]},
        {"prompt": [HI], "completion": [YO]},
        {"instruction": "Add", "output": "3"},
        {"prompt": "a", "completion": "b"},
        {"text": "a"},
    ],
)
def test_a_row_s_weight_scales_it_in_every_form(row: dict[str, Any]) -> None:
    for value, weight in ((0.5, 0.5), (2, 2.0), ("0.9", 0.9), (None, 1.0), ("", 1.0)):
        assert parsed({**row, "weight": value}).weight == weight
    assert refused({**row, "weight": 0}).rule == "zero-weight"
    for value in (-1, float("inf"), float("nan"), True, "heavy", [1], 10**400):
        assert refused({**row, "weight": value}).rule == "wrong-type"


# --- beside the turns -------------------------------------------------------------------------------------


def test_a_row_s_system_text_goes_first_and_stands_once() -> None:
    whole = Conversation((Message("system", "s"), *C1.messages), WHERE)
    assert talk({"system": "s", "messages": [HI, YO]}) == whole
    assert talk({"system_prompt": [{"text": "s"}], "messages": [HI, YO]}) == whole
    assert talk({"system": "s", "messages": [{"role": "system", "content": "s"}, HI, YO]}) == whole
    assert talk({"system": " ", "messages": [HI, YO]}) == C1
    error = refused({"system": "t", "messages": [{"role": "system", "content": "s"}, HI, YO]})
    assert (error.rule, error.field) == ("two-systems", "system")


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"text": "<s>hi yo"}, ["text"]),
        ({"history": [["a", "b"]], "input": "x"}, ["history", "input"]),
        ({"prompt": "hi"}, []),  # Ultrachat's, which is the first question.
        ({"prompt": "other"}, ["prompt"]),
        ({"id": 7, "source": "web", "text": None, "history": [], "input": ""}, []),
    ],
)
def test_known_fields_beside_the_turns_are_named_if_they_are_not_said(
    fields: dict[str, Any], names: list[str]
) -> None:
    assert talk({"messages": [HI, YO], **fields}).notes == tuple(Note("not-rendered", name) for name in names)


@pytest.mark.parametrize(
    "row",
    [
        {"input": {"messages": [HI]}, "preferred_output": [YO], "non_preferred_output": [YO]},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"chosen": [HI, YO], "rejected": [HI, YO]},
        {"prompt": "a", "completion": "b", "label": False},
        {"prompt": [HI], "completion": [YO], "label": True},
        {"messages": [HI, YO], "kto_tag": True},
    ],
)
def test_preference_rows_are_refused_by_name(row: dict[str, Any]) -> None:
    assert refused(row).rule == "preference-row"


def test_a_label_that_may_judge_a_conversation_is_told() -> None:
    assert talk({"messages": [HI, YO], "label": False}).notes == (Note("not-rendered", "label"),)
    assert talk({"messages": [HI, YO], "label": "sports"}).notes == ()
