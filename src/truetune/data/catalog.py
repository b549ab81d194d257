"""Every rule that data is held against: its stable code, its name, its severity, and what a finding of it says.

A rule has a page in lint/pages, which `truetune check --explain` shows. Codes are never given to another rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""From the worst down."""

Group = Literal["structure", "text", "tokens", "set", "guidelines"]
GROUPS: Mapping[str, Group] = {"1": "structure", "2": "text", "3": "tokens", "4": "set", "5": "guidelines"}
"""The groups of rules by the first digit of their codes."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule. `message` is for findings that are counted over rows; `counts_turns`: and over turns, too.

    `is_harmless` is a finding of rows that are learned just as they stand, which strict data may have.
    """

    code: str
    name: str
    severity: Severity
    message: str = ""
    hint: str | None = None
    counts_turns: bool = False
    is_harmless: bool = False

    @property
    def group(self) -> Group:
        return GROUPS[self.code[2]]

    def __str__(self) -> str:
        return f"{self.code} {self.name}"


_STRUCTURE = (
    Rule(
        "TT101", "empty-answer", "error", hint="give the answer, or leave the row out: check DATA --fix OUT does so"
    ),
    Rule("TT102", "empty-prompt", "error"),
    Rule("TT103", "no-answer", "error"),
    Rule("TT104", "wrong-type", "error"),
    Rule("TT105", "unknown-role", "error"),
    Rule("TT106", "unknown-format", "error"),
    Rule("TT107", "broken-json", "error"),
    Rule("TT108", "two-systems", "error"),
    Rule("TT109", "preference-row", "error"),
    Rule("TT110", "image-row", "error"),
    Rule("TT111", "audio-row", "error"),
    Rule("TT112", "video-row", "error"),
    Rule("TT113", "zero-weight", "error"),
    Rule(
        "TT114",
        "not-rendered",
        "warning",
        'the field "{field}" is filled and not used by the prompt',
        "take it out of the rows, correct its name if that is misspelt, or name a data.template that uses it",
    ),
    Rule("TT115", "number-as-text", "note", "numbers or booleans in text fields are read as their JSON text"),
    Rule(
        "TT116",
        "unknown-column",
        "warning",
        'the field "{field}" of data.columns is missing',
        "correct the name in data.columns, if it is meant for these rows",
    ),
    Rule(
        "TT117",
        "absent-group",
        "warning",
        'the field "{field}" of data.group_by is missing or null: each such row is a group of its own',
    ),
    Rule(
        "TT118",
        "parts-reordered",
        "note",
        "typed parts of a turn were put into the order of templates: thinking, text, tool calls",
        counts_turns=True,
    ),
    Rule(
        "TT119",
        "parallel-calls",
        "warning",
        "several tool calls stand in one turn, though parallel_tool_calls is false",
        "split the turn, or take parallel_tool_calls out",
        counts_turns=True,
    ),
    Rule("TT120", "answer-first", "warning", hint="begin with what the user said, or make it a system message"),
    Rule("TT121", "turn-order", "warning", hint="merge or take out the turns that stand beside their like"),
    Rule("TT122", "open-question", "warning", hint="take the last question out: nothing is learned of it"),
    Rule("TT123", "blank-turn", "warning", hint="fill the turn, or take it out"),
    Rule("TT124", "null-word", "warning", hint="a null was written as a word: give the value, or leave the row out"),
    Rule(
        "TT125",
        "mixed-formats",
        "note",
        hint="nothing need be done if that is meant; data.format reads one of them only",
        is_harmless=True,
    ),
)
_TEXT = (
    Rule("TT201", "broken-text", "error"),
    Rule("TT202", "control-token", "error"),
    Rule("TT203", "encoding-damage", "warning", hint="read the source in its own encoding; check --fix mends most"),
    Rule(
        "TT204",
        "template-text",
        "warning",
        hint="take the markers out: the template writes its own around each turn",
    ),
    Rule("TT205", "placeholder", "warning", hint="fill it: truetune check DATA --fix OUT --set NAME=VALUE"),
    Rule("TT206", "markup", "warning", hint="turn it into plain text, or leave it if the answers must hold it"),
    Rule("TT207", "refusal", "warning", hint="leave the row out, unless this is to be refused"),
    Rule("TT208", "boilerplate", "warning", hint="cut the phrase, or leave the row out"),
    Rule("TT209", "secret", "warning", hint="revoke it and take it out: a trained model repeats it"),
    Rule("TT210", "personal-data", "warning", hint="take it out, unless everyone may read it"),
    Rule("TT211", "edge-blanks", "note", hint="check --fix takes them off"),
)
_TOKENS = (
    Rule("TT301", "overlong", "error"),
    Rule("TT302", "empty-mask", "error"),
    Rule("TT303", "unverifiable-mask", "error"),
    Rule("TT304", "no-marker", "error"),
    Rule("TT305", "template-refused", "error"),
    Rule(
        "TT306",
        "removed-by-template",
        "warning",
        "text (thinking, as a rule) was removed by the template",
        "data.one_example_per_turn: true makes a row of each turn, with its thinking",
        counts_turns=True,
    ),
    Rule(
        "TT307",
        "system-folded",
        "note",
        "system messages were folded into the first user turn, since the template refuses the role",
    ),
    Rule(
        "TT308",
        "turns-merged",
        "note",
        "neighbours of one role were merged, since the template refuses them",
        counts_turns=True,
    ),
    Rule(
        "TT309",
        "calls-as-text",
        "warning",
        "tool calls were written as text: the template has no place for them",
        "use a model (or a data.template) that knows tool calls",
        counts_turns=True,
    ),
    Rule(
        "TT310",
        "unlike-prompt",
        "warning",
        "the template opens answers otherwise in rows than at inference (around thinking, as a rule)",
        "set data.thinking to empty or mask, or train on answers with their thinking",
    ),
    Rule("TT311", "no-stop-token", "warning", hint="name another data.template"),
    Rule(
        "TT312",
        "dated-template",
        "warning",
        hint="name a data.template (.jinja) with a fixed date, if answers must not hang on it",
        is_harmless=True,
    ),
    Rule("TT313", "joined-as-text", "note", is_harmless=True),
    Rule(
        "TT314",
        "answer-cut",
        "warning",
        "answers were cut at the length limit",
        "raise data.max_length, or leave such rows out (data.overlong: drop)",
    ),
    Rule("TT315", "stop-not-learned", "warning", hint="close the row with the model's stop token"),
    Rule("TT316", "other-terminator", "note", is_harmless=True),
    Rule(
        "TT317",
        "no-bos",
        "note",
        hint="name a data.template that begins with it, if the model was trained so",
        is_harmless=True,
    ),
    Rule("TT318", "two-bos", "warning", hint="take the token out of the rows, or out of data.template"),
    Rule("TT319", "unknown-tokens", "warning", hint="use a model whose tokenizer knows these characters"),
    Rule(
        "TT320",
        "few-learned",
        "note",
        hint="shorten the prompts: each is computed for a few learned tokens",
        is_harmless=True,
    ),
    Rule("TT321", "surprising-answer", "warning", hint="read the row: the answer may be wrong, cut or misplaced"),
    Rule("TT322", "known-answer", "note", hint="the row teaches this model little: others may deserve its place"),
)
_SET = (
    Rule(
        "TT401",
        "duplicate-rows",
        "warning",
        hint="take them out, unless they are meant to count so often",
        is_harmless=True,
    ),
    Rule(
        "TT402",
        "near-duplicates",
        "warning",
        hint="keep one of each, unless they are meant to count so often",
        is_harmless=True,
    ),
    Rule("TT403", "contradiction", "warning", hint="keep the right answer, or say in the prompts what differs"),
    Rule("TT404", "leaked-rows", "warning", hint="take them out of data.validation_path"),
    Rule("TT405", "near-leaked", "warning", hint="take them out of data.validation_path"),
    Rule("TT406", "mixed-languages", "warning", hint="take them out, unless the model is to answer in it"),
    Rule("TT407", "length-outlier", "note", hint="look at it: other rows are nowhere near this length"),
    Rule("TT408", "same-answer", "warning", hint="balance the rows, or the model learns to say this to all"),
    Rule("TT409", "too-few-rows", "warning", hint="ten rows or more make a training; a hundred a useful one"),
    Rule(
        "TT410",
        "one-form",
        "warning",
        hint="hold out rows of other forms: data.validation_path, or data.group_by",
        is_harmless=True,
    ),
)
_GUIDELINES = (
    Rule("TT501", "quantity", "note"),
    Rule("TT502", "quality", "note"),
    Rule("TT503", "diversity", "note"),
    Rule("TT504", "consistency", "note"),
    Rule("TT505", "length", "note"),
)

RULES: Mapping[str, Rule] = {rule.name: rule for rule in (*_STRUCTURE, *_TEXT, *_TOKENS, *_SET, *_GUIDELINES)}
"""Every rule by its name."""

BY_CODE: Mapping[str, Rule] = {rule.code: rule for rule in RULES.values()}
