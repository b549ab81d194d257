"""generate, chat: what becomes of a trained model."""

import argparse
import sys
from typing import Any


def generate(options: argparse.Namespace) -> None:
    from truetune.console import show, show_json

    model = _trained(options)
    answer = model.generate(options.prompt, input=options.input, system=options.system, sampling=_sampling(options))
    if options.json:
        show_json({"prompt_ids": answer.prompt_ids, "text": answer.text, "stop_reason": answer.stop_reason})
    else:
        show(answer.text)


def chat(options: argparse.Namespace) -> None:
    from truetune.console import ask, show
    from truetune.inference.chat import Chat

    chat = Chat(_trained(options), system=options.system, sampling=_sampling(options))
    if sys.stdin.isatty():
        show("Ctrl-D ends, /new starts over.")
    while (said := ask("> ")) is not None:
        match said.strip():
            case "":
                continue
            case "/new":
                chat.start_over()
            case question:
                show(chat.answer(question))


def _trained(options: argparse.Namespace) -> Any:
    from truetune.inference.generate import load_trained

    return load_trained(options.run_directory, base_model=options.base, device=options.device)


def _sampling(options: argparse.Namespace) -> Any:
    from truetune.inference.generate import Sampling

    return Sampling(options.max_new_tokens, options.temperature, options.top_p)
