"""A row at every stage of the data path, and the tokenizers of other families that its tests need."""

from typing import Any

from conftest import byte_tokenizer
from truetune.data.examples import IGNORED, Example, Location, Record, Rendered, Tokenized
from truetune.data.formats import parse_example
from truetune.data.render import render, render_prompt
from truetune.data.rules import RowError
from truetune.data.templates import load_template
from truetune.data.tokenize import _by_offsets, tokenize

ROLES = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}

HI, YO = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
W_CALL = {"type": "function", "function": {"name": "w", "arguments": {"city": "Oslo"}}}
W_TOOL = {"type": "function", "function": {"name": "w", "description": "Weather", "parameters": {"type": "object"}}}
HERMES = [
    HI,
    {
        "role": "assistant",
        "content": "I look.\n<tool_call>\n{'name': 'w', 'arguments': {'city': 'Oslo'}}\n</tool_call>",
    },
    {"role": "tool", "content": "<tool_response>\n7\n</tool_response>\n<tool_response>8</tool_response>"},
    YO,
]


def chat(*turns: str) -> dict[str, Any]:
    """`u:hi` is a user's turn, `a:yo` an assistant's, `s:` a system's, `t:` a tool's."""
    return {"messages": [{"role": ROLES[turn[0]], "content": turn[2:]} for turn in turns]}


def call(name: str, arguments: Any, content: str | None = None) -> dict[str, Any]:
    """An assistant's turn that calls a tool."""
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": content, "tool_calls": [{"type": "function", "function": function}]}


def parsed(fields: dict[str, Any], **options: Any) -> Example:
    return parse_example(Record(fields, Location("a.jsonl", 1)), **options)


def noted(rendered: Rendered) -> tuple[str, ...]:
    """The notes of a row, `code` or `code:field` each."""
    return tuple(f"{note.rule}:{note.field}" if note.field else note.rule for note in rendered.notes)


class Traced:
    """A row under one tokenizer and template; raises what its stages raise."""

    def __init__(self, fields: dict[str, Any], tokenizer: Any, **options: Any) -> None:
        self.tokenizer = tokenizer
        self.template = load_template(tokenizer, **options)
        self.example = parsed(fields)
        self.rendered = render(self.example, template=self.template)
        (tokens,) = tokenize([self.rendered], template=self.template)
        assert [tokens] == _by_offsets([self.rendered], tokenizer) or isinstance(tokens, RowError)
        if isinstance(tokens, RowError):
            raise tokens
        self.tokens: Tokenized = tokens
        self.ids, self.labels = tokens.input_ids, tokens.labels

    @property
    def notes(self) -> tuple[str, ...]:
        """What is told of the row: `code` or `code:field`."""
        return noted(self.rendered)

    @property
    def learned(self) -> list[str]:
        """The stretches of supervised tokens, decoded."""
        found: list[list[int]] = []
        for before, label in zip([IGNORED, *self.labels], self.labels, strict=False):
            if label != IGNORED:
                found = [*found, [label]] if before == IGNORED else [*found[:-1], [*found[-1], label]]
        return [self.tokenizer.decode(ids) for ids in found]

    @property
    def prompt(self) -> str:
        return render_prompt(self.example, template=self.template).text

    @property
    def prompt_ids(self) -> list[int]:
        ids: list[int] = self.tokenizer(self.prompt, add_special_tokens=False)["input_ids"]
        return ids


def words_tokenizer(*merges: tuple[str, str], **options: Any) -> Any:
    """The byte tokenizer behind GPT-2's pattern, which takes blanks at a text's end otherwise than before a word."""
    from tokenizers import pre_tokenizers

    tokenizer = byte_tokenizer(merges=merges, **options)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return tokenizer


def prefixing_tokenizer() -> Any:
    """A byte-fallback BPE as Llama 2's: `▁` in front of every text, and for each blank."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    tokens = [
        *special,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *map(chr, range(33, 127)),
        "ca",
        "cat",
        "▁4",
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [("c", "a"), ("ca", "t"), ("▁", "4")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def swallowing_tokenizer(template: str) -> Any:
    """The byte tokenizer with tokens that take the blanks behind them, as Phi 3's `<|end|>` does."""
    from tokenizers import AddedToken

    tokenizer = byte_tokenizer(chat_template=template)
    tokens = [AddedToken(name, special=True, normalized=False, rstrip=True) for name in ("<|end|>", "<|assistant|>")]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    return tokenizer
