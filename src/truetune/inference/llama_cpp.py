"""A GGUF asked the trained model's prompts in llama.cpp itself: the same ids of a text, the same greedy tokens."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from truetune.environment import usable_threads
from truetune.errors import BackendError
from truetune.inference.gguf_tokenizer import PROBES
from truetune.inference.parity import Fixture, told_answers
from truetune.listener import Listener

_PROGRAM = "from truetune.inference.llama_cpp_child import main; main()"
INSTALL = "run: pip install 'truetune[llama-cpp]'"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is put to llama.cpp: recorded answers, and the texts and conversations that it must read as training did.

    `texts` go with the ids that the tokenizer gives them; `conversations` with the prompts that its template makes,
    and how many tokens these have. `bos` is the token that llama.cpp puts before a prompt by itself, if it does.
    """

    fixtures: tuple[Fixture, ...]
    texts: tuple[tuple[str, tuple[int, ...]], ...]
    conversations: tuple[tuple[tuple[Mapping[str, Any], ...], str, int], ...]
    stop_token_ids: tuple[int, ...]
    bos: str = ""


@dataclass(frozen=True, slots=True)
class LlamaCppCheck:
    """What llama.cpp did with a GGUF.

    `equal` prompts have the recorded greedy answer, and end where it ends; `ties` differ where rounding decides.
    `tokens_equal_rate` is the share of the answers' tokens that are llama.cpp's first choice too.
    `max_abs_logit_difference` is by how much a token's lead over the second differs at most, where both choose it.
    `other_ids` is the first prompt that it makes other tokens of, `other_text` the first such text of those that are
    hard to cut, `other_prompts` and `first_difference` tell the first conversation and answer that is not the same.
    """

    prompts: int
    equal: int
    ties: int
    token_ids_equal: int
    tokens_equal_rate: float
    max_abs_logit_difference: float | None
    other_ids: str | None
    other_text: str | None
    other_prompts: str | None
    first_difference: str | None

    @property
    def is_same(self) -> bool:
        return self.equal + self.ties == self.prompts

    def told(self) -> str:
        """In a line, for people."""
        rate = f"{self.tokens_equal_rate:.0%} of the tokens are the same choice"
        return f"{told_answers(self, where=' in llama.cpp')}; {rate}"

    def as_json(self) -> dict[str, Any]:
        """As `truetune export --json` prints it."""
        return {
            "prompts": self.prompts,
            "equal": self.equal,
            "ties": self.ties,
            "max_abs_logit_difference": self.max_abs_logit_difference,
            "token_ids_equal": self.token_ids_equal,
            "tokens_equal_rate": self.tokens_equal_rate,
            "template_equal": self.other_prompts is None,
            "first_difference": self.first_difference,
        }


IsTie = Callable[[Fixture, Sequence[int]], bool]
"""Of a fixture and the first choices of llama.cpp along its answer: are those as good, but for rounding?"""


def is_installed() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None


def texts_of(tokenizer: Any, fixtures: Sequence[Fixture]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Texts that llama.cpp should cut as the tokenizer does: the prompts, then some that are hard to cut."""
    texts = [*(fixture.text for fixture in fixtures), *PROBES]
    backend = tokenizer.backend_tokenizer
    return tuple((text, tuple(backend.encode(text, add_special_tokens=False).ids)) for text in texts)


def ask(gguf: Path, asked: Asked, *, is_tie: IsTie, listener: Listener, adapter: Path | None = None) -> LlamaCppCheck:
    """Loads the file in llama.cpp, in a process of its own, and compares. BackendError if that fails or crashes.

    `adapter` is the GGUF of a LoRA that is put over it.
    """
    longest = max((len(each.prompt_ids) + len(each.answer_ids) for each in asked.fixtures), default=0)
    request = {
        "model": str(gguf),
        "adapter": None if adapter is None else str(adapter),
        "context": longest + 8,
        "threads": usable_threads(),
        "texts": [text for text, _ in asked.texts],
        "messages": [list(messages) for messages, *_ in asked.conversations],
        "answers": [[list(each.prompt_ids), list(each.answer_ids)] for each in asked.fixtures],
    }
    found = _run(request, listener, total=len(asked.fixtures))
    return _compared(asked, found, is_tie)


def _compared(asked: Asked, found: Mapping[str, Any], is_tie: IsTie) -> LlamaCppCheck:
    pairs = list(zip(asked.fixtures, found["answers"], strict=True))
    other = [_difference(fixture, answer, asked.stop_token_ids) for fixture, answer in pairs]
    ties = [
        told is not None and answer["tokens"] != list(fixture.answer_ids) and is_tie(fixture, answer["tokens"])
        for (fixture, answer), told in zip(pairs, other, strict=True)
    ]
    untied = [told for told, tied in zip(other, ties, strict=True) if told and not tied]
    read = [list(ids) == got for (_, ids), got in zip(asked.texts, found["tokenized"], strict=True)]
    agreed = [list(map(int.__eq__, each.answer_ids, answer["tokens"])) for each, answer in pairs]
    return LlamaCppCheck(
        prompts=len(pairs),
        equal=other.count(None),
        ties=sum(ties),
        token_ids_equal=sum(read[: len(pairs)]),
        tokens_equal_rate=_rate([same for answer in agreed for same in answer]),
        max_abs_logit_difference=_lead_difference(pairs),
        other_ids=_first_other(asked.texts[: len(pairs)], read[: len(pairs)]),
        other_text=_first_other(asked.texts[len(pairs) :], read[len(pairs) :]),
        other_prompts=_other_prompt(asked, found["rendered"]),
        first_difference=next(iter(untied or [told for told in other if told]), None),
    )


def _first_other(texts: Sequence[tuple[str, Any]], read: Sequence[bool]) -> str | None:
    return next((text for (text, _), same in zip(texts, read, strict=True) if not same), None)


def _difference(fixture: Fixture, answer: Mapping[str, Any], stops: Collection[int]) -> str | None:
    """The first token that is another one, in words; or that llama.cpp does not end where the model does."""
    for place, (recorded, found) in enumerate(zip(fixture.answer_ids, answer["tokens"], strict=True)):
        if recorded != found:
            return (
                f"token {place + 1} of the answer to {fixture.text[-60:]!r} is {found} in llama.cpp and {recorded} "
                f"in the trained model, where it leads by {fixture.margins[place]:.2g}"
            )
    if fixture.answer_ids[-1] in stops and not answer["stops"]:
        return f"llama.cpp does not stop at token {fixture.answer_ids[-1]}, where the trained model's answers end"
    return None


def _rate(same: Sequence[bool]) -> float:
    return sum(same) / len(same) if same else 1.0


def _lead_difference(pairs: Sequence[tuple[Fixture, Mapping[str, Any]]]) -> float | None:
    differences = [
        abs(margin - lead)
        for fixture, answer in pairs
        for token, margin, found, lead in zip(
            fixture.answer_ids, fixture.margins, answer["tokens"], answer["leads"], strict=True
        )
        if token == found and lead is not None
    ]
    return max(differences, default=None)


def _other_prompt(asked: Asked, rendered: Sequence[tuple[str, int]]) -> str | None:
    """The first conversation that its server prompts otherwise; a BOS that it adds itself may lack in the text."""
    for (_, text, count), (found, tokens) in zip(asked.conversations, rendered, strict=True):
        if found not in (text, text.removeprefix(asked.bos)):
            return f"{found!r}, not {text!r}"
        if tokens != count:
            return f"{tokens} tokens of {text!r}, not {count}"
    return None


# --- the process ------------------------------------------------------------------------------------------


def _run(request: Mapping[str, Any], listener: Listener, *, total: int) -> dict[str, Any]:
    # -P: a folder in the working directory must not stand for a library.
    command = [sys.executable, "-P", "-c", _PROGRAM]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with (
        tempfile.TemporaryFile("a+b") as printed,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed, env=environment
        ) as process,
    ):
        try:
            return _heard(process, json.dumps(request).encode(), printed, listener, total)
        finally:
            process.kill()


def _heard(
    process: "subprocess.Popen[bytes]", request: bytes, printed: IO[bytes], listener: Listener, total: int
) -> dict[str, Any]:
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(request)
        process.stdin.close()
    except BrokenPipeError:
        raise _failed(process, printed) from None
    for line in process.stdout:
        document: dict[str, Any] = json.loads(line)
        if "answers" in document:
            return document
        listener.progress("asking it in llama.cpp", document["done"], total)
    raise _failed(process, printed)


def _failed(process: "subprocess.Popen[bytes]", printed: IO[bytes]) -> BackendError:
    status = process.wait()
    printed.seek(0)
    lines = [line.strip() for line in printed.read().decode(errors="replace").splitlines() if line.strip()]
    reasons = [line for line in lines if "error" in line.lower() or "failed" in line.lower()] or lines[-1:]
    how = f"ended by signal {-status}" if status < 0 else f"exit status {status}"
    return BackendError(
        f"llama.cpp could not use the file ({how}): {reasons[0] if reasons else 'it said nothing'}",
        hint="truetune export --no-check leaves llama.cpp out; see that xllamacpp runs on this machine",
    )
