"""generate, chat: what a trained model says."""

import argparse
import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truetune.errors import ConfigError, TruetuneError

if TYPE_CHECKING:
    from truetune.data.examples import Example
    from truetune.inference.answers import Answer
    from truetune.inference.chat import Chat
    from truetune.inference.generate import Sampling, TrainedModel


def generate(options: argparse.Namespace) -> None:
    _require_one_question(options)
    if options.input is not None:
        return _answer_file(options)
    sampling, messages, tools = _sampling(options), _messages(options), _tools(options)
    model = _trained(options)
    example = _example(options, model, messages, tools)
    if options.json:
        return _show_json(model, example, sampling, compares=options.compare_base)
    return _show_answer(model, example, sampling, compares=options.compare_base)


def chat(options: argparse.Namespace) -> None:
    from truetune.console.output import ask, show
    from truetune.inference.chat import Chat

    sampling, tools = _sampling(options), _tools(options)
    chat = Chat(_trained(options), system=options.system, tools=tools, sampling=sampling)
    if sys.stdin.isatty():
        show(_HELP if chat.keeps_turns else f"{_HELP}\nThis model was trained on single prompts: it forgets each.")
    talk = _Talk(chat, compares=options.compare_base)
    while (said := ask("> ")) is not None:
        talk.take(said.strip())


_HELP = "Ctrl-D ends; /new starts over, /undo, /system TEXT, /save FILE.jsonl, /tool RESULT, /tokens, /help."


class _Talk:
    """What a line of the user does."""

    def __init__(self, chat: "Chat", *, compares: bool) -> None:
        self._chat = chat
        self._compares = compares

    def take(self, line: str) -> None:
        """One line; a mistake of the user's is told, and the conversation goes on."""
        from truetune.console.output import show_error

        try:
            self._take(line)
        except TruetuneError as error:
            show_error(error)

    def _take(self, line: str) -> None:
        from truetune.console.output import show

        command, _, rest = line.partition(" ")
        match command, rest.strip():
            case "", _:
                return
            case "/new", "":
                self._chat.start_over()
            case "/undo", "":
                undone = self._chat.undo()
                show("nothing to take back" if undone is None else f"taken back: {undone}")
            case "/system", text:
                self._chat.system = text
                self._chat.start_over()
            case "/save", file if file:
                count = self._chat.save(Path(file).expanduser())
                show(f"{count} row{'' if count == 1 else 's'} added to {file}")
            case "/tool", result if result:
                self._ask(result, role="tool")
            case "/tokens", "":
                show(self._room())
            case "/help", "":
                show(_HELP)
            case _ if command.startswith("/") and command[1:].isalpha():
                show(f"unknown: {command}. {_HELP}")
            case _:
                self._ask(line, role="user")

    def _ask(self, text: str, *, role: str) -> None:
        from truetune.console.output import show

        answer = _spoken(self._chat.stream(text, role=role))
        for call in answer.tool_calls:
            show(f"[calls {call['function']['name']}; give its result with /tool]")
        if answer.stop_reason == "context":
            show(f"[cut off: the model's context is full, {self._room()}; /undo or /new makes room]")
        if self._compares:
            show(f"base: {self._chat.base_answer().text}")

    def _room(self) -> str:
        length = self._chat.context_length
        return f"{self._chat.tokens():,} tokens" + (f" of {length:,}" if length else "")


def _require_one_question(options: argparse.Namespace) -> None:
    """ConfigError for what does not go together, before anything loads."""
    given = [name for name in ("prompt", "messages", "input") if getattr(options, name) is not None]
    if given == ["prompt", "input"]:
        raise ConfigError(
            "--prompt and --input do not go together: --input is a file of prompts",
            hint="the input of an instruction is --context",
        )
    if len(given) != 1:
        found = " and ".join(f"--{name}" for name in given) or "none"
        raise ConfigError(f"one of --prompt, --messages and --input is needed (got {found})")
    if (options.input is None) != (options.output is None):
        raise ConfigError("--input and --output go together: a file of prompts, and the file for their answers")
    if options.input is not None and (
        wrong := [n for n in ("compare_base", "tools", "context") if getattr(options, n)]
    ):
        raise ConfigError(
            f"--{wrong[0].replace('_', '-')} does not go with --input",
            hint="a file's rows have their own tools and input" if wrong[0] != "compare_base" else _EVALUATE,
        )


_EVALUATE = "truetune eval compares both models on rows"


def _answer_file(options: argparse.Namespace) -> None:
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show, show_json
    from truetune.pipeline.generate import answer_file

    with closing(ConsoleListener()) as listener:
        done = answer_file(
            options.run_directory,
            options.input,
            options.output,
            sampling=_sampling(options),
            batch_size=options.batch_size,
            system=options.system,
            base_model=options.base,
            device=options.device,
            overwrite=options.overwrite,
            listener=listener,
        )
    if options.json:
        return show_json(done.as_json())
    new = done.rows - done.before
    rate = (
        f", {done.answer_tokens:,} tokens, {done.tokens_per_second:,.0f} a second" if done.tokens_per_second else ""
    )
    return show(f"{done.path}: {done.rows:,} answers, {new:,} of them new{rate}")


def _example(
    options: argparse.Namespace, model: "TrainedModel", messages: "Sequence[Any] | None", tools: Sequence[Any]
) -> "Example":
    from truetune.data.examples import Message

    opening = [Message("system", options.system)] if options.system else []
    if messages is not None:
        return model.prompts.of_turns([*opening, *messages], tools=tools)
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    if tools:
        question = f"{prompt}\n\n{options.context}" if options.context else prompt
        return model.prompts.of_turns([*opening, Message("user", question)], tools=tools)
    return model.as_example(prompt, input=options.context, system=options.system)


def _show_json(model: "TrainedModel", example: "Example", sampling: "Sampling", *, compares: bool) -> None:
    from truetune.console.output import show_json

    document = model.generate_batch([example], sampling=sampling)[0].as_json()
    if compares:
        base = _base_answer(model, example, sampling).as_json()
        document["base"] = {
            name: value for name, value in base.items() if name not in ("prompt_ids", "prompt_tokens")
        }
    show_json(document)


def _show_answer(model: "TrainedModel", example: "Example", sampling: "Sampling", *, compares: bool) -> None:
    from truetune.console.output import show, show_table

    if compares:
        tuned = model.generate_batch([example], sampling=sampling)[0]
        base = _base_answer(model, example, sampling)
        return show_table("", ("base", "fine-tuned"), [(base.text, tuned.text)])
    if sys.stdout.isatty():
        answer = _spoken(model.stream(example, sampling=sampling))
    else:
        answer = model.generate_batch([example], sampling=sampling)[0]
        show(answer.text)
    return None if answer.stop_reason != "context" else show("[cut off: the model's context is full]")


def _base_answer(model: "TrainedModel", example: "Example", sampling: "Sampling") -> "Answer":
    with model.without_adapter() as base:
        return base.generate_batch([example], sampling=sampling)[0]


def _spoken(pieces: "Generator[str, None, Answer]") -> "Answer":
    """Shows an answer as it is said; the whole of it."""
    from truetune.console.output import show, show_piece

    while True:
        try:
            show_piece(next(pieces))
        except StopIteration as end:
            show()
            answer: Answer = end.value
            return answer


def _messages(options: argparse.Namespace) -> "Sequence[Any] | None":
    """The turns of --messages: a list, or an object with `messages` as OpenAI's requests have it."""
    if options.messages is None:
        return None
    from truetune.data.turns import read_turns

    value = _read_json(options.messages, "--messages")
    return read_turns(value["messages"] if isinstance(value, dict) and "messages" in value else value, "messages", [])


def _tools(options: argparse.Namespace) -> tuple[Any, ...]:
    """The tools of --tools, or those beside the turns of --messages."""
    from truetune.data.calls import read_tools

    if options.tools is not None:
        value = _read_json(options.tools, "--tools")
        return read_tools(value.get("tools", value) if isinstance(value, dict) else value, "tools")
    if getattr(options, "messages", None) is not None:
        value = _read_json(options.messages, "--messages")
        return read_tools(value.get("tools"), "tools") if isinstance(value, dict) else ()
    return ()


def _read_json(path: str, option: str) -> Any:
    import json

    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"{option}: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{option}: {path} is no JSON: {error}") from error


def _trained(options: argparse.Namespace) -> "TrainedModel":
    from truetune.console.listener import ConsoleListener
    from truetune.inference.generate import load_trained

    with closing(ConsoleListener()) as listener:
        return load_trained(options.run_directory, base_model=options.base, device=options.device, listener=listener)


def _sampling(options: argparse.Namespace) -> "Sampling":
    from truetune.inference.sampling import Sampling

    return Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        stop=tuple(options.stop),
    )
