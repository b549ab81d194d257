"""A tokenizer in the words of GGUF: its tokens, merges and kinds, and how llama.cpp cuts a text before merging."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from truetune.errors import BackendError

WAY_OUT = "llama.cpp's convert_hf_to_gguf.py may know it: merge the run, and give the folder to that"

# Numbers that GGUF has for a token's kind (llama_token_type).
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_SPACE = "▁"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEHIND = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class _Cut:
    """How llama.cpp cuts a text: regular expressions, one behind the other; does a whole word need no merges?"""

    name: str
    patterns: tuple[str, ...]
    ignores_merges: bool = False


CUTS = (
    _Cut("gpt-2", (_GPT2,)),
    _Cut("smollm", (r"\p{N}", _GPT2)),
    _Cut("llama-bpe", (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_BEHIND}",), True),
    _Cut("qwen2", (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_BEHIND}",)),
    _Cut("tekken", (rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_SLASHED}",), True),
    _Cut("gpt-4o", (rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_SLASHED}",)),
)

PROBES = (
    "It's THEY'LL don't camelCase HTTPServer naïve café",
    "1 22 333 4444 55555 3.14 x1y2 2026-01-02 ½ ٣٤",
    "a  b   c\td\n\ne \n  f\r\ng   \n\n\n h  ",
    "!? ... (x) [y]{z} a/b//c\n/d \"q\" 'r' -- $5 #6 @7 ~`|\\",
    "日本語のテキスト 中文 한국어 हिन्दी ไทย العربية Ελληνικά русский",
    "🙂👍🏽 👨‍👩‍👧 — “curly” ‘marks’ … \u00a0x\u200by\u3000z",
    "def f(x):\n    return x + 1  # done\n\n\nclass A:\n\tpass\n",
)
"""Texts that tell the ways to cut a text apart; NFC, since llama.cpp has no normaliser. Ours."""


@dataclass(frozen=True)
class Vocabulary:
    """A fast tokenizer, read for GGUF; `size` is the number of the model's embeddings."""

    tokenizer: Any
    size: int

    @cached_property
    def _stored(self) -> Mapping[str, Any]:
        document: Mapping[str, Any] = json.loads(self.tokenizer.backend_tokenizer.to_str())
        return document

    @cached_property
    def _added(self) -> Mapping[int, Mapping[str, Any]]:
        return {each["id"]: each for each in self._stored["added_tokens"]}

    @property
    def model(self) -> str:
        """gpt2 for byte-level BPE, llama for SentencePiece's with bytes to fall back on. BackendError for others."""
        stored = self._stored
        if stored["model"]["type"] == "BPE" and (stored["decoder"] or {}).get("type") == "ByteLevel":
            return "gpt2"
        if stored["model"]["type"] == "BPE" and stored["model"].get("byte_fallback"):
            return "llama"
        kind = stored["model"]["type"]
        raise BackendError(f"this tokenizer ({kind}) has no counterpart in a GGUF that truetune knows", hint=WAY_OUT)

    @cached_property
    def tokens(self) -> list[str]:
        """A text for every embedding; those that no token has are named [PAD…]."""
        by_id = {token: text for text, token in self.tokenizer.get_vocab().items()}
        if by_id and max(by_id) >= self.size:
            raise BackendError(f"the tokenizer has token {max(by_id)}, and the model {self.size} embeddings")
        return [by_id.get(token, f"[PAD{token}]") for token in range(self.size)]

    @cached_property
    def kinds(self) -> list[int]:
        known = set(self.tokenizer.get_vocab().values())
        return [self._kind(token, text) if token in known else _UNUSED for token, text in enumerate(self.tokens)]

    def _kind(self, token: int, text: str) -> int:
        if token in self._added:
            is_unknown = self.model == "llama" and text == self._stored["model"].get("unk_token")
            return _UNKNOWN if is_unknown else _CONTROL if self._added[token]["special"] else _USER_DEFINED
        is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        return _BYTE if self.model == "llama" and is_byte else _NORMAL

    @cached_property
    def merges(self) -> list[str]:
        """In the order of their rank, as `left right`.

        llama.cpp loads no byte-level tokenizer without any: then there is one that makes no token, of two zero bytes.
        """
        pairs = self._stored["model"]["merges"]
        return [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs] or ["Ā Ā"]

    @cached_property
    def scores(self) -> list[float]:
        """The scores by which SentencePiece merges: a token's is the rank of the first merge that makes it, negated.

        llama.cpp joins the neighbours with the highest score, tokenizers those of the lowest rank: the same, as long
        as merges that make one token follow one another, as they do in what was SentencePiece's.
        """
        rank: dict[str, int] = {}
        for number, merge in enumerate(self.merges):
            rank.setdefault(merge.replace(" ", ""), number)
        return [-float(rank[text]) if text in rank else 0.0 for text in self.tokens]

    @property
    def adds_space(self) -> bool:
        """Does a text get a blank put before it (SentencePiece's dummy prefix)?

        llama.cpp puts it at the start and behind each special token, or nowhere; tokenizers may do the one and not
        the other. What counts is where a prompt's text begins: in a chat behind a token, else at the start.
        """
        token = self.tokenizer.bos_token or self.tokenizer.eos_token or ""
        start = token if self.tokenizer.chat_template else ""
        pieces = self.tokenizer.backend_tokenizer.encode(f"{start}a", add_special_tokens=False).tokens
        return self.model == "llama" and any(piece.startswith(_SPACE) for piece in pieces)

    @cached_property
    def cut(self) -> str:
        """llama.cpp's name for how the text is cut, known by what it does to PROBES. BackendError if none fits.

        The pieces tell. A tokenizer that cuts otherwise may have no tokens by which it shows: then the ids tell.
        """
        fits = [each for each in CUTS if self._cut_by(each).ids == self._own.ids]
        same = [each for each in fits if self._cut_by(each).pieces == self._own.pieces]
        if found := same or fits:
            return found[0].name
        raise BackendError(
            "how this tokenizer cuts a text before merging is none of the ways that truetune can name in a GGUF",
            hint=WAY_OUT,
        )

    @cached_property
    def _own(self) -> "_Probed":
        return _probed(self.tokenizer.backend_tokenizer)

    def _cut_by(self, cut: _Cut) -> "_Probed":
        from tokenizers import Regex, Tokenizer, pre_tokenizers
        from tokenizers.pre_tokenizers import ByteLevel, Split

        changed = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        changed.model.ignore_merges = cut.ignores_merges
        pieces = [Split(Regex(pattern), "isolated") for pattern in cut.patterns]
        changed.pre_tokenizer = pre_tokenizers.Sequence([*pieces, ByteLevel(add_prefix_space=False, use_regex=False)])
        return _probed(changed)


@dataclass(frozen=True, slots=True)
class _Probed:
    """What a tokenizer makes of PROBES: the pieces before merging, and the ids."""

    pieces: list[list[str]]
    ids: list[list[int]]


def _probed(backend: Any) -> _Probed:
    cut = backend.pre_tokenizer
    return _Probed(
        [[piece for piece, _ in cut.pre_tokenize_str(text)] for text in PROBES] if cut else [],
        [backend.encode(text, add_special_tokens=False).ids for text in PROBES],
    )


def write_vocabulary(
    writer: Any, vocabulary: Vocabulary, *, stop_token_ids: Sequence[int], adds_bos: bool, chat_template: str | None
) -> None:
    """Puts tokens, special tokens and the chat template into the GGUF.

    `stop_token_ids` end an answer: llama.cpp has a place for three of them (end of sequence, of turn, of message).
    """
    tokenizer = vocabulary.tokenizer
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.cut if vocabulary.model == "gpt2" else "default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.adds_space)
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(token)
    _write_stops(writer, stop_token_ids, tokenizer.eos_token_id)
    writer.add_add_bos_token(adds_bos)
    writer.add_add_eos_token(False)
    if chat_template:
        writer.add_chat_template(chat_template)


def _write_stops(writer: Any, stop_token_ids: Sequence[int], eos: int | None) -> None:
    ends = [eos, *(each for each in stop_token_ids if each != eos)] if eos is not None else list(stop_token_ids)
    if len(ends) > len(("eos", "eot", "eom")):
        raise BackendError(f"a GGUF has a place for three stop tokens, and this model has {len(ends)}", hint=WAY_OUT)
    places = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, token in zip(places, ends, strict=False):
        add(token)
