"""The command line: one short function a command. Nothing heavy is imported before a command needs it."""

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from truetune.environment import set_environment
from truetune.errors import ConfigError, TruetuneError

if TYPE_CHECKING:
    from truetune.config.schema import Config
    from truetune.pipeline.resume import Resume
    from truetune.pipeline.train import Run


def entry() -> NoReturn:
    """The `truetune` command: runs it and exits with its status."""
    set_environment()
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit status: 0 done, 1 data or run, 2 command or config, 128 + n for signal n."""
    options = _parse(arguments)
    try:
        return int(options.run(options) or 0)
    except TruetuneError as error:
        if options.traceback:
            raise
        from truetune.console import show_error

        show_error(error)
        return error.exit_status
    except KeyboardInterrupt:
        return _stopped_status("SIGINT")
    except BrokenPipeError:
        # The reader of our output has gone; nothing is left to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


# --- commands ---------------------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> None:
    from truetune.console import ConsoleListener, show, show_table
    from truetune.pipeline.demo import run_demo

    listener = ConsoleListener()
    outcome = run_demo(
        output_dir=options.output_dir and Path(options.output_dir),
        overwrite=options.overwrite,
        seed=options.seed,
        overrides=options.settings,
        listener=listener,
    )
    listener.close()
    rows = [(example.request, example.before, example.after, example.expected) for example in outcome.examples]
    show_table("Held-out requests", ("request", "base model", "fine-tuned", "expected"), rows)
    show(
        f"exact match on {outcome.held_out} held-out requests: {outcome.before:.0%} before, {outcome.after:.0%} after"
    )
    show(f"run: {outcome.run.directory}")
    show(f"talk to it: truetune chat {outcome.run.directory}")


def _train(options: argparse.Namespace) -> int:
    from truetune.console import ConsoleListener, show
    from truetune.pipeline.train import train_run

    listener = ConsoleListener()
    resume = _resume(options)
    config = _load(options, listener)
    if isinstance(resume, Path) and config.output_dir is None:
        config = config.model_copy(update={"output_dir": str(resume.parent.parent)})
    try:
        run = train_run(
            config, resume=resume, overwrite=options.overwrite, dry_run=options.dry_run, listener=listener
        )
    finally:
        listener.close()
    show(_summary(run))
    return _stopped_status(run.stopped_by)


def _find_lr(options: argparse.Namespace) -> int:
    from truetune.console import ConsoleListener, show_json, show_range_test
    from truetune.pipeline.find_lr import find_learning_rate

    listener = ConsoleListener()
    try:
        found = find_learning_rate(_load(options, listener), steps=options.steps, listener=listener)
    finally:
        listener.close()
    if options.json:
        show_json(found.as_json())
    else:
        show_range_test(found)
    return _stopped_status(found.stopped_by)


def _stopped_status(name: str | None) -> int:
    """A shell's status of what a signal has ended; 0 without one."""
    return 128 + signal.Signals[name] if name else 0


def _verify(options: argparse.Namespace) -> int:
    from truetune.console import ConsoleListener, show_json, show_verification
    from truetune.pipeline.verify import verify_run

    listener = ConsoleListener()
    try:
        found = verify_run(
            options.run_directory, base_model=options.base, proof_steps=options.resume_proof, listener=listener
        )
    finally:
        listener.close()
    if options.json:
        show_json(found.as_json())
    else:
        show_verification(found)
    return 0 if found.is_sound else 1


def _generate(options: argparse.Namespace) -> None:
    from truetune.console import show, show_json

    model = _trained(options)
    answer = model.generate(options.prompt, input=options.input, system=options.system, sampling=_sampling(options))
    if options.json:
        show_json({"prompt_ids": answer.prompt_ids, "text": answer.text, "stop_reason": answer.stop_reason})
    else:
        show(answer.text)


def _chat(options: argparse.Namespace) -> None:
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


def _inspect(options: argparse.Namespace) -> None:
    from truetune.console import ConsoleListener, show, show_json, show_pieces
    from truetune.pipeline.inspect import inspect_rows

    listener = ConsoleListener()
    found = inspect_rows(_load(options, listener), limit=options.rows)
    if options.json:
        show_json(found.as_json())
        return
    for row in found.rows:
        count = f"{len(row.tokens.input_ids)} tokens, {row.tokens.supervised} learned"
        show_pieces(f"{row.where}: {count}", row.pieces)
    for code, number in found.report.rejected.items():
        show(f"{number} of {found.report.rows_read} rows left out: {code}; first: {found.report.first(code)}")


def _check(options: argparse.Namespace) -> int:
    from truetune.config.schema import NO_MODEL
    from truetune.console import ConsoleListener, show_json, show_report
    from truetune.pipeline.check import check_rows

    listener = ConsoleListener()
    try:
        report = check_rows(_load(options, listener, model=NO_MODEL), listener=listener)
    finally:
        listener.close()
    if options.json:
        show_json(report.as_json())
    else:
        show_report(report)
    return 1 if report.rejected or not report.rows_kept else 0


def _prepare(options: argparse.Namespace) -> None:
    from truetune.console import ConsoleListener, show, show_json
    from truetune.pipeline.check import prepare, tell_prepared

    listener = ConsoleListener()
    try:
        prepared = prepare(_load(options, listener), listener=listener)
    finally:
        listener.close()
    if options.json:
        show_json({**prepared.report.as_json(), "path": str(prepared.folder), "fingerprint": prepared.fingerprint})
        return
    tell_prepared(prepared, listener)
    show(f"prepared: {prepared.folder}")


def _init(options: argparse.Namespace) -> None:
    from truetune.console import ConsoleListener, show
    from truetune.files import write_text
    from truetune.pipeline.init import initial_config

    target = options.output and Path(options.output)
    if target and target.exists() and not options.overwrite:
        raise ConfigError(f"{target} already exists", hint="choose another name with -o, or add --overwrite")
    listener = ConsoleListener()
    text = initial_config(_load(options, listener), listener=listener)
    if target:
        write_text(target, text)
        show(f"wrote {target}; train with: truetune train {target}")
    else:
        show(text.rstrip("\n"))


def _doctor(options: argparse.Namespace) -> int:
    from truetune.console import show, show_json, show_pairs
    from truetune.pipeline.doctor import diagnose

    diagnosis = diagnose()
    if options.json:
        show_json(diagnosis.as_json())
    else:
        show_pairs(diagnosis.facts)
        for problem in diagnosis.problems:
            show(f"problem: {problem}")
        if not diagnosis.problems:
            show("no problems found")
    return 1 if diagnosis.problems else 0


# --- from options to values -------------------------------------------------------------------------------


def _load(options: argparse.Namespace, listener: Any, *, model: str | None = None) -> "Config":
    """The config of the file, the flags and the key=value settings; old names are told once.

    `model` stands in where none is named.
    """
    from truetune.config.load import load_config

    flags = {
        "model.name_or_path": options.model,
        "data.path": options.data,
        "output_dir": getattr(options, "output_dir", None),
    }
    given = {name: value for name, value in flags.items() if value is not None}
    loaded = load_config(
        options.config,
        settings=given,
        overrides=options.settings,
        required=["data.path"],
        defaults={"model.name_or_path": model} if model else {},
    )
    for notice in loaded.notices:
        listener.say(notice)
    return loaded.config


def _trained(options: argparse.Namespace) -> Any:
    from truetune.inference.generate import load_trained

    return load_trained(options.run_directory, base_model=options.base, device=options.device)


def _sampling(options: argparse.Namespace) -> Any:
    from truetune.inference.generate import Sampling

    return Sampling(options.max_new_tokens, options.temperature, options.top_p)


def _resume(options: argparse.Namespace) -> "Resume":
    """As --resume says, or Hugging Face's name for it among the settings."""
    prefix = "resume_from_checkpoint="
    named = [word.removeprefix(prefix) for word in options.settings if word.startswith(prefix)]
    options.settings = [word for word in options.settings if not word.startswith(prefix)]
    match options.resume or next(iter(named), None):
        case None | "false" | "null":
            return "never"
        case "newest" | "true":
            return "newest"
        case "auto":
            return "auto"
        case path:
            return Path(path)


def _summary(run: "Run") -> str:
    if run.status == "dry run":
        return "dry run: everything is decided, nothing is written"
    losses = f"loss {run.final_loss:.4f}" if run.final_loss is not None else ""
    validation = f", validation loss {run.eval_loss:.4f}" if run.eval_loss is not None else ""
    lines = [f"{run.status}: {run.steps} steps, {losses}{validation}", f"run: {run.directory}"]
    if run.adapter:
        lines.append(f'ask it: truetune generate {run.directory} --prompt "…"')
    return "\n".join(lines)


# --- the parser -------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse with a suggestion for a misspelt command or option, and our form of an error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\nhint: {self.prog} --help shows what it takes\n")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") or not hasattr(options, "words")]
    if unknown:
        parser.error(f"unknown argument {unknown[0]}{_suggestion(unknown[0], options)}")
    if hasattr(options, "words"):
        _sort_words(parser, options, rest)
    return options


def _sort_words(parser: _Parser, options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Tells the config file (or DATA) from key=value settings; argparse stops at the first option between them."""
    words = [*options.words, *rest]
    if getattr(options, "resume", None) and ("=" in options.resume or _is_config(options.resume)):
        words.append(options.resume)
        options.resume = "newest"
    options.settings = [word for word in words if "=" in word and not Path(word).exists()]
    names = [word for word in words if word not in options.settings]
    if len(names) > 1:
        parser.error(f"one file is expected, got {', '.join(names)}; settings are written key=value")
    options.config = None
    if options.takes == "config":
        options.config = names[0] if names else None
    elif names and _is_config(names[0]):
        options.config = names[0]
    elif names:
        options.data = names[0]


def _is_config(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _suggestion(word: str, options: argparse.Namespace) -> str:
    known = [option for action in options.parser._actions for option in action.option_strings]
    close = difflib.get_close_matches(word.partition("=")[0], known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _parser() -> _Parser:
    parser = _Parser(
        prog="truetune",
        description="Fine-tune language models on your own data, and be told the truth about it.",
        epilog="Start with: truetune demo",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")

    demo = _command(commands, "demo", _demo, "fine-tune a real 135M model offline, before and after shown")
    demo.add_argument("--output-dir", help="the run's directory (default: runs/demo-<n>)")
    demo.add_argument("--overwrite", action="store_true", help="replace the run in --output-dir")
    demo.add_argument("--seed", type=int, default=42, help="of the rows and the training (default: 42)")
    _add_settings(demo, takes="config", metavar="key=value")
    demo.set_defaults(model=None, data=None)

    train = _command(commands, "train", _train, "train a model as a config file, or flags and settings, say")
    _add_settings(train, takes="config", metavar="RUN.yaml | key=value")
    _add_model_and_data(train)
    train.add_argument("--output-dir", help="the run's directory (default: runs/<data>-<n>)")
    train.add_argument(
        "--resume",
        nargs="?",
        const="newest",
        metavar="auto|PATH",
        help="go on from the newest complete checkpoint; auto: or start where there is none; PATH: from this one",
    )
    train.add_argument("--overwrite", action="store_true", help="replace the run in the output directory")
    train.add_argument("--dry-run", action="store_true", help="check everything, train nothing, write nothing")

    find_lr = _command(commands, "find-lr", _find_lr, "a learning rate for this run, from a short test of many")
    _add_settings(find_lr, takes="config", metavar="RUN.yaml | key=value")
    _add_model_and_data(find_lr)
    find_lr.add_argument("--steps", type=_positive, help="how many rates to try (default: 40 to 80, by the rows)")
    find_lr.add_argument("--json", action="store_true", help="print the curve and the suggestion as JSON")

    verify = _command(
        commands, "verify", _verify, "whether a run's files are what was written, and can be gone on from"
    )
    verify.add_argument("run_directory", metavar="RUN", help="a run's directory")
    verify.add_argument("--base", help="the base model, where the recorded one is not there")
    verify.add_argument(
        "--resume-proof",
        nargs="?",
        const=8,
        type=_positive,
        metavar="STEPS",
        help="train so many steps (8) on the run's rows, and half of them again from a checkpoint: the same bits?",
    )
    verify.add_argument("--json", action="store_true", help="print what was found as JSON")

    generate = _command(commands, "generate", _generate, "one answer from a trained model")
    _add_trained(generate)
    generate.add_argument("--prompt", required=True, help="what to ask")
    generate.add_argument("--input", default="", help="the input of an instruction")
    generate.add_argument("--json", action="store_true", help="print prompt_ids, text and stop_reason as JSON")

    chat = _command(commands, "chat", _chat, "talk to a trained model")
    _add_trained(chat)

    check = _command(commands, "check", _check, "everything that would ruin the run, before it costs anything")
    _add_settings(check, takes="data", metavar="DATA | RUN.yaml | key=value")
    _add_model_and_data(check)
    check.add_argument("--json", action="store_true", help="print rows, problems and counts as JSON")

    prepare = _command(commands, "prepare", _prepare, "tokens ready for training, kept on disk")
    _add_settings(prepare, takes="data", metavar="DATA | RUN.yaml | key=value")
    _add_model_and_data(prepare)
    prepare.add_argument("--json", action="store_true", help="print the report and where the rows lie as JSON")

    inspect = _command(commands, "inspect", _inspect, "what the model reads and what it learns, row by row")
    _add_settings(inspect, takes="data", metavar="DATA | RUN.yaml | key=value")
    _add_model_and_data(inspect)
    inspect.add_argument("--rows", type=_positive, default=3, help="how many rows to show (default: 3)")
    inspect.add_argument("--json", action="store_true", help="print rows, tokens and labels as JSON")

    init = _command(commands, "init", _init, "a complete config for these rows and this model, with reasons")
    _add_settings(init, takes="data", metavar="DATA | key=value")
    _add_model_and_data(init)
    init.add_argument("-o", "--output", help="the file to write (default: print it)")
    init.add_argument("--overwrite", action="store_true", help="replace the file")

    doctor = _command(commands, "doctor", _doctor, "what this machine and its environment can do")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    return parser


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], help: str) -> _Parser:
    parser: _Parser = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    parser.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.set_defaults(run=run, parser=parser)
    return parser


def _add_settings(parser: _Parser, *, takes: str, metavar: str) -> None:
    parser.add_argument("words", nargs="*", metavar=metavar, help="settings win over the file, flags over neither")
    parser.set_defaults(takes=takes)


def _add_model_and_data(parser: _Parser) -> None:
    parser.add_argument("--model", help="a hub id, a folder, a .gguf file, or demo")
    parser.add_argument("--data", help="a file, a folder, a glob or a hub id")


def _add_trained(parser: _Parser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="the directory of a finished run")
    parser.add_argument("--base", help="the base model, where the recorded one is not there")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--system", default="", help="a system message")
    parser.add_argument("--max-new-tokens", type=_positive, default=256, help="the longest answer (default: 256)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (the default) is greedy")
    parser.add_argument("--top-p", type=float, default=1.0)


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number (got {text!r})")
    return number


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        parser.exit(0, f"truetune {version('truetune')}\n")


if __name__ == "__main__":
    entry()
