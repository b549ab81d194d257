"""Is this server's model the one that was trained? Its recorded prompts, asked over HTTP as any client would."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from truetune.errors import BackendError
from truetune.inference.parity import Fixture, Fixtures, rounding_at
from truetune.inference.servers import Server
from truetune.listener import Listener
from truetune.model.fixtures import MAX_NEW_TOKENS

# No proxy: the server is this machine's.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_LARGEST_LOGIT = 32.0
"""What the largest logit is taken for, which no server tells: those of language models are some tens."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server by its address, and the name under which it serves the model."""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)

    def is_ready(self) -> bool:
        """True once it answers for this model: another server at that address does not count."""
        try:
            self._reply("/health", None, timeout=5)
            listed = json.loads(self._reply("/v1/models", None, timeout=5))
        except (OSError, HTTPException, ValueError):
            return False
        return self.model in [each.get("id") for each in listed.get("data", [])]

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The reply to a request. BackendError where it refuses, or has gone."""
        try:
            return json.loads(self._reply(path, {"model": self.model, **body}, timeout=600))
        except urllib.error.HTTPError as error:
            told = error.read().decode(errors="replace")[:300]
            raise BackendError(f"the server answers {error.code} to {path}: {told}") from error
        except (OSError, HTTPException, ValueError) as error:
            raise BackendError(f"the server does not answer {path}: {error}") from error

    def _reply(self, path: str, body: Mapping[str, Any] | None, *, timeout: float) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        with _DIRECT.open(request, timeout=timeout) as reply:
            found: bytes = reply.read()
        return found


@dataclass(frozen=True, slots=True)
class HttpParity:
    """What a server answered to the recorded prompts.

    `equal` prompts have their recorded answer, and end where it ends; of the others, `ties` differ first at a token
    that led by no more than rounding. `not_asked` prompts cannot be put to this server, which takes text alone.
    `other_prompt` tells the first conversation of which it makes another prompt, `first_difference` the first answer
    that is another one, in words. `adds_system` is True if it tells the model system messages that the training's
    template leaves out.
    """

    prompts: int
    equal: int
    ties: int
    not_asked: int
    other_prompt: str | None
    first_difference: str | None
    adds_system: bool = False

    @property
    def is_same(self) -> bool:
        """True if no prompt is put otherwise, and none has another answer than rounding explains."""
        return self.other_prompt is None and self.equal + self.ties == self.prompts

    @property
    def equal_rate(self) -> float:
        """The share of the prompts with their recorded answer."""
        return (self.equal + self.ties) / self.prompts if self.prompts else 1.0

    def as_json(self) -> dict[str, Any]:
        """As `truetune serve --json` prints it."""
        return {
            "prompts": self.prompts,
            "equal": self.equal,
            "ties": self.ties,
            "not_asked": self.not_asked,
            "template_equal": self.other_prompt is None,
            "adds_system": self.adds_system,
            "first_difference": self.first_difference,
        }


@dataclass(frozen=True, slots=True)
class Reader:
    """How ids and texts are told apart: by the training's tokenizer and its stops.

    `stop_texts` end answers and are no single token: no server knows them unless a request says so.
    """

    tokenizer: Any
    stop_token_ids: Collection[int]
    stop_texts: tuple[str, ...] = ()

    def text(self, ids: Sequence[int]) -> str:
        """What a server says of these ids: without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def sendable(self, fixture: Fixture) -> str | None:
        """The text of which a server that puts BOS first makes the prompt's ids; None if there is none."""
        without_bos = fixture.text.removeprefix(str(self.tokenizer.bos_token or ""))
        wanted = list(fixture.prompt_ids)
        texts = dict.fromkeys((fixture.text, without_bos))
        return next((text for text in texts if self.tokenizer(text)["input_ids"] == wanted), None)


def replay_over_http(
    endpoint: Endpoint, server: Server, fixtures: Fixtures, *, reader: Reader, dtype: str, listener: Listener
) -> HttpParity:
    """Asks a running server the recorded prompts: conversations through chat completions, others through completions.

    `dtype` is torch's name of what the server computes in at its coarsest. BackendError if it refuses a request.
    """
    bound = rounding_at(_LARGEST_LOGIT, fixtures.dtype, dtype)
    asker = _Asker(endpoint, server, reader)
    found = []
    for number, fixture in enumerate(fixtures.fixtures, start=1):
        if (answer := asker.ask(fixture)) is not None:
            found.append(_compared(fixture, answer, reader, bound))
        listener.progress("asking the server", number, len(fixtures.fixtures))
    other = [each for each in found if each.told is not None]
    return HttpParity(
        prompts=len(found),
        equal=len(found) - len(other),
        ties=sum(each.is_tie for each in other),
        not_asked=len(fixtures.fixtures) - len(found),
        other_prompt=next((each.prompt for each in found if each.prompt), None),
        first_difference=next((each.told for each in sorted(other, key=lambda one: one.is_tie)), None),
        adds_system=asker.adds_system,
    )


# --- one prompt -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the server said. `prompt_tokens` is None where the prompt was not the server's to make."""

    text: str
    has_ended: bool
    prompt_tokens: int | None = None


class _Asker:
    def __init__(self, endpoint: Endpoint, server: Server, reader: Reader) -> None:
        self.endpoint, self.server, self.reader = endpoint, server, reader
        self.adds_system = False
        self.body: dict[str, Any] = {"max_tokens": MAX_NEW_TOKENS, "temperature": 0, **server.greedy}
        if reader.stop_texts:
            self.body["stop"] = list(reader.stop_texts)

    def ask(self, fixture: Fixture) -> _Answer | None:
        """The server's greedy answer; None for a prompt that it cannot be told."""
        return self._chat(fixture) if fixture.messages else self._complete(fixture)

    def _chat(self, fixture: Fixture) -> _Answer | None:
        reply = self.endpoint.post("/v1/chat/completions", {"messages": fixture.messages, **self.body})
        choice, tokens = reply["choices"][0], int(reply["usage"]["prompt_tokens"])
        message = choice["message"]
        if tokens != len(fixture.prompt_ids) and _leaves_out_system(fixture):
            # llama.cpp puts a system message before the question where the template has no place for one.
            self.adds_system = True
            return self._complete(fixture)
        if message.get("reasoning_content") or message.get("tool_calls"):
            # Taken apart, it is no longer what the model said; the same prompt as plain text is answered whole.
            whole = self._complete(fixture)
            return whole and _Answer(whole.text, whole.has_ended, tokens)
        return _Answer(message.get("content") or "", choice["finish_reason"] == "stop", tokens)

    def _complete(self, fixture: Fixture) -> _Answer | None:
        prompt = list(fixture.prompt_ids) if self.server.takes_ids else self.reader.sendable(fixture)
        if prompt is None:
            return None
        choice = self.endpoint.post("/v1/completions", {"prompt": prompt, **self.body})["choices"][0]
        return _Answer(choice["text"], choice["finish_reason"] == "stop")


def _leaves_out_system(fixture: Fixture) -> bool:
    """True of a conversation whose system message is not in the prompt that training made of it."""
    told = [str(each["content"]) for each in fixture.messages or () if each["role"] == "system"]
    return any(text not in fixture.text for text in told)


@dataclass(frozen=True, slots=True)
class _Compared:
    told: str | None = None
    is_tie: bool = False
    prompt: str | None = None


def _compared(fixture: Fixture, answer: _Answer, reader: Reader, bound: float) -> _Compared:
    told, asked = len(fixture.prompt_ids), repr(fixture.text[-60:])
    prompt = None
    if answer.prompt_tokens not in (None, told):
        prompt = f"it makes {answer.prompt_tokens} tokens of a conversation of which training made {told}, {asked}"
    recorded, said = _plain(reader.text(fixture.answer_ids)), _plain(answer.text)
    place = _first_other(fixture, said, reader)
    if said == recorded and (answer.has_ended or not _ends_early(fixture, reader)):
        return _Compared(prompt=prompt)
    difference = f"the answer to {asked} is {said!r} and was {recorded!r}"
    if said == recorded:
        difference = f"the answer to {asked} goes on behind {recorded!r}, where the trained model's ends"
    return _Compared(difference, is_tie=prompt is None and fixture.margins[place] <= bound, prompt=prompt)


def _ends_early(fixture: Fixture, reader: Reader) -> bool:
    """True of an answer that ended before there was no more room: a server must say that it has ended, too."""
    return len(fixture.answer_ids) < MAX_NEW_TOKENS and fixture.answer_ids[-1] in reader.stop_token_ids


def _first_other(fixture: Fixture, said: str, reader: Reader) -> int:
    """The place of the first recorded token that is not in what was said."""
    ids = fixture.answer_ids
    same = (said.startswith(_plain(reader.text(ids[: count + 1]))) for count in range(len(ids)))
    return next((place for place, is_same in enumerate(same) if not is_same), len(ids) - 1)


def _plain(text: str) -> str:
    """Without the blanks around it, which servers cut away, and with one mark for bytes that are no character."""
    return re.sub("\ufffd+", "\ufffd", text).strip().strip("\ufffd")
