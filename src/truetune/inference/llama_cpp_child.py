"""The process that llama.cpp runs in: it takes one request on its standard input and answers on its standard output.

A crash there, or what the library prints, is for `llama_cpp.py`, its other end, to tell.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# No proxy: what answers is this process itself.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main() -> None:
    """A line of JSON for every prompt done, {"done": n}, and one with what was found."""
    asked = json.loads(sys.stdin.read())
    tell = _channel()
    # `alive` keeps the server: it ends with the object that holds it.
    alive, post = _server(asked)
    tokenized = [_tokens(post, text) for text in asked["texts"]]
    rendered = [_rendered(post, messages) for messages in asked["messages"]]
    answers = []
    for number, (prompt, answer) in enumerate(asked["answers"], start=1):
        answers.append(_answer(post, prompt, answer))
        tell({"done": number})
    tell({"tokenized": tokenized, "rendered": rendered, "answers": answers})
    # Not the server's own end: it waits for requests that may come.
    del alive
    os._exit(0)


def _channel() -> Callable[[Mapping[str, Any]], None]:
    """Standard output for documents alone; whatever a library prints goes where errors go."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(document: Mapping[str, Any]) -> None:
        out.write(json.dumps(document) + "\n")
        out.flush()

    return tell


def _server(asked: Mapping[str, Any]) -> tuple[Any, Callable[[str, Any], Any]]:
    import xllamacpp as llama

    params = llama.CommonParams()
    params.model.path = asked["model"]
    if asked["adapter"]:
        params.lora_adapters = [llama.CommonAdapterLoraInfo(asked["adapter"], 1.0)]
    params.n_ctx, params.n_parallel, params.port = asked["context"], 1, 0
    params.cpuparams.n_threads = asked["threads"]
    params.warmup, params.ui, params.n_gpu_layers = False, False, 0
    # By default keys and values are kept in f16, which is a rounding that transformers does not do.
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = llama.Server(params)

    def post(path: str, body: Any) -> Any:
        request = urllib.request.Request(
            server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with _DIRECT.open(request) as reply:
            return json.load(reply)

    return server, post


def _tokens(post: Callable[[str, Any], Any], text: str) -> list[int]:
    found: list[int] = post("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]
    return found


def _rendered(post: Callable[[str, Any], Any], messages: Sequence[Mapping[str, Any]]) -> tuple[str, int]:
    """The prompt that llama.cpp's server makes of a conversation, by the template in the file, and its tokens."""
    try:
        text = str(post("/apply-template", {"messages": messages})["prompt"])
        made = post("/v1/chat/completions", {"messages": messages, "max_tokens": 1, "temperature": 0})
    except urllib.error.HTTPError as error:
        return f"(refused: {error.read().decode(errors='replace')[:200]})", 0
    return text, int(made["usage"]["prompt_tokens"])


def _answer(post: Callable[[str, Any], Any], prompt: Sequence[int], answer: Sequence[int]) -> dict[str, Any]:
    """The likeliest token at each place of a given answer, how far it leads the second, and whether it ends there.

    Of a token that is a part of a character the server tells no figures: its lead is None.
    """
    tokens, leads, stops = [], [], False
    for place in range(len(answer)):
        made = post("/completion", {"prompt": [*prompt, *answer[:place]], **_ONE_TOKEN})
        tokens.append(made["tokens"][0])
        leads.append(_lead(made.get("completion_probabilities")))
        stops = made["stop_type"] == "eos"
    return {"tokens": tokens, "leads": leads, "stops": stops}


def _lead(told: Sequence[Mapping[str, Any]] | None) -> float | None:
    if not told:
        return None
    first, second = told[0]["top_logprobs"][:2]
    return float(first["logprob"] - second["logprob"])


_ONE_TOKEN = {
    "n_predict": 1,
    "n_probs": 2,
    "temperature": 0,
    "top_k": 1,
    "cache_prompt": True,
    "return_tokens": True,
}
