"""The command line: one short function a command. Nothing heavy is imported before a command needs it."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from truetune.arguments import parse_arguments
from truetune.environment import set_environment
from truetune.errors import ConfigError, TruetuneError

if TYPE_CHECKING:
    from truetune.config.schema import Config
    from truetune.data.rules import Report
    from truetune.pipeline.check import Checked
    from truetune.pipeline.fix import Fixed
    from truetune.pipeline.resume import Resume
    from truetune.pipeline.train import Run


def entry() -> NoReturn:
    """The `truetune` command: runs it and exits with its status."""
    set_environment()
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit status: 0 done, 1 data or run, 2 command or config, 128 + n for signal n."""
    options = parse_arguments(arguments)
    try:
        return int(_COMMANDS[options.command](options) or 0)
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

    with closing(ConsoleListener()) as listener:
        resume = _resume(options)
        config = _load(options, listener)
        # Only now: half a second of imports, which no wrong config has to wait for.
        from truetune.pipeline.train import train_run

        if isinstance(resume, Path) and config.output_dir is None:
            config = config.model_copy(update={"output_dir": str(resume.parent.parent)})
        run = train_run(
            config, resume=resume, overwrite=options.overwrite, dry_run=options.dry_run, listener=listener
        )
    show(_summary(run))
    return _stopped_status(run.stopped_by)


def _plan(options: argparse.Namespace) -> int:
    from truetune.console import ConsoleListener, show_forecast, show_json, show_outline

    with closing(ConsoleListener()) as listener:
        config = _load(options, listener, required=())
        from truetune.pipeline.forecast import Forecast, forecast

        found = forecast(
            config,
            device=options.device,
            parallel=options.parallel,
            probe=options.probe,
            price_per_hour=options.price_per_hour,
            listener=listener,
        )
        if options.json:
            show_json(found.as_json())
        elif isinstance(found, Forecast):
            show_forecast(found)
        else:
            show_outline(found)
        if options.fit and found.changes:
            _write_changes(options, found, listener)
        elif options.fit and found.changes is not None:
            listener.say("it fits as it is: nothing to change")
    return 1 if found.fits is False and not (options.fit and found.changes) else 0


def _write_changes(options: argparse.Namespace, found: Any, listener: Any) -> None:
    """What makes the run fit, in its file; without one, as it is written on a command line."""
    from truetune.pipeline.fitting import settings_of, write_settings

    settings = settings_of(found.changes)
    if options.config:
        write_settings(Path(options.config), settings)
        listener.say(f"{options.config}: written, with {', '.join(settings)}")
    else:
        listener.say(f"fits with: {' '.join(f'{name}={value}' for name, value in settings.items())}")


def _schema(_: argparse.Namespace) -> None:
    from truetune.config.schema import json_schema
    from truetune.console import show_json

    show_json(json_schema())


def _find_lr(options: argparse.Namespace) -> int:
    from truetune.console import ConsoleListener, show_json, show_range_test
    from truetune.pipeline.find_lr import find_learning_rate

    with closing(ConsoleListener()) as listener:
        found = find_learning_rate(_load(options, listener), steps=options.steps, listener=listener)
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

    with closing(ConsoleListener()) as listener:
        found = verify_run(
            options.run_directory, base_model=options.base, proof_steps=options.resume_proof, listener=listener
        )
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
    for rule, number in found.report.rejected.items():
        show(f"{number} of {found.report.rows_read} rows left out: {rule}; first: {found.report.first(rule)}")


def _check(options: argparse.Namespace) -> int:
    from truetune.config.schema import NO_MODEL
    from truetune.console import ConsoleListener, show_json, show_report
    from truetune.pipeline.check import check_rows

    if options.explain:
        return _explain(options.explain)
    if options.fix:
        if others := [f"--{name}" for name in ("sarif", "html", "score") if getattr(options, name)]:
            message = f"--fix does not go with {', '.join(others)}"
            raise ConfigError(message, hint="mend the rows first, then check OUT")
        return _fix(options)
    if options.set or options.overwrite:
        raise ConfigError("--set and --overwrite are for --fix", hint="add --fix OUT, the file to write")
    with closing(ConsoleListener()) as listener:
        config = _load(options, listener, model=NO_MODEL)
        checked = check_rows(config, score=options.score, listener=listener)
        if options.html:
            _write_html(checked, config, Path(options.html))
    report = checked.report
    if options.json:
        show_json(report.as_json())
    else:
        show_report(report)
    if options.sarif:
        _write_sarif(report, Path(options.sarif))
    return 1 if report.fails(config.check.fail_on) else 0


def _fix(options: argparse.Namespace) -> int:
    from truetune.config.schema import NO_MODEL
    from truetune.console import ConsoleListener, show, show_json
    from truetune.pipeline.fix import fix_rows

    values = dict(map(_value, options.set))
    with closing(ConsoleListener()) as listener:
        config = _load(options, listener, model=NO_MODEL)
        fixed = fix_rows(config, options.fix, values=values, overwrite=options.overwrite, listener=listener)
    if options.json:
        show_json(fixed.as_json())
    else:
        show(_fixed(fixed))
    return 0


def _value(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise ConfigError(f"--set {text}: a name and its value are expected", hint="write --set name=Ada")
    return name.strip(), value


def _fixed(fixed: "Fixed") -> str:
    """What was written, changed and left out, a line each."""
    from truetune.data.catalog import RULES

    changed = [f"changed: {count:,} × {RULES[rule]}" for rule, count in fixed.changes.items()]
    left_out = [f"left out: {count:,} × {RULES[rule]}" for rule, count in fixed.left_out.items()]
    left = [f"placeholder left: {count:,} × {{{{{name}}}}}" for name, count in fixed.placeholders_left.items()]
    written = f"{fixed.rows_written:,} of {fixed.rows_read:,} rows written: {fixed.path}"
    return "\n".join([*changed, *left_out, *left, written, f"every change: {fixed.changes_path}"])


def _explain(code: str) -> int:
    from truetune.console import show, show_pages
    from truetune.lint.explain import index, page
    from truetune.lint.selection import rules_of

    if code == "all":
        for code, name, severity, summary in index():
            show(f"{code}  {name:<20} {severity:<8} {summary}")
    else:
        show_pages(map(page, rules_of(code)))
    return 0


def _write_html(checked: "Checked", config: "Config", path: Path) -> None:
    from truetune.pipeline.data_report import write_data_report

    write_data_report(checked, config, path=path)


def _write_sarif(report: "Report", path: Path) -> None:
    from truetune.files import named_refusals, write_json
    from truetune.report.sarif import as_sarif

    with named_refusals(path):
        write_json(path, as_sarif(report))


def _prepare(options: argparse.Namespace) -> None:
    from truetune.console import ConsoleListener, show, show_json
    from truetune.pipeline.check import prepare, tell_prepared

    with closing(ConsoleListener()) as listener:
        prepared = prepare(_load(options, listener), listener=listener)
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


def _import(options: argparse.Namespace) -> None:
    from truetune.console import ConsoleListener, show, show_json
    from truetune.files import named_refusals, write_text
    from truetune.migrate.importer import import_file

    target = options.output and Path(options.output)
    if target and target.exists() and not options.overwrite:
        raise ConfigError(f"{target} already exists", hint="choose another name with -o, or add --overwrite")
    imported = import_file(options.file, tool=options.tool)
    if target:
        with named_refusals(target):
            write_text(target, imported.as_yaml())
    if options.json:
        show_json({**imported.as_json(), "path": target and str(target)})
        return
    with closing(ConsoleListener()) as listener:
        for line in imported.told():
            listener.say(line)
    show(f"wrote {target}; next: truetune plan {target}" if target else imported.as_yaml().rstrip("\n"))


def _models(options: argparse.Namespace) -> None:
    from truetune.console import show_json, show_model, show_models
    from truetune.pipeline.models import describe_model, list_models

    if options.name:
        described = describe_model(options.name, trust_remote_code=options.trust_remote_code)
        show_json(described.as_json()) if options.json else show_model(described)
        return
    models = list_models(Path.cwd())
    if options.json:
        show_json({"models": [model.as_json() for model in models]})
    else:
        show_models(models)


def _doctor(options: argparse.Namespace) -> int:
    from truetune.console import ConsoleListener, show_doctor, show_json
    from truetune.pipeline.doctor.diagnosis import diagnose

    with closing(ConsoleListener()) as listener:
        diagnosis = diagnose(listener)
    if options.json:
        show_json(diagnosis.as_json())
    else:
        show_doctor(diagnosis)
    return 0 if diagnosis.is_well else 1


# --- from options to values -------------------------------------------------------------------------------


def _load(
    options: argparse.Namespace, listener: Any, *, model: str | None = None, required: Sequence[str] = ("data.path",)
) -> "Config":
    """The config of the file, the flags and the key=value settings; old names are told once.

    `model` stands in where none is named.
    """
    from truetune.config.load import load_config

    flags = {
        "model.name_or_path": options.model,
        "data.path": options.data,
        "output_dir": getattr(options, "output_dir", None),
        **{f"check.{name}": getattr(options, name, None) for name in ("select", "ignore", "fail_on")},
    }
    given = {name: value for name, value in flags.items() if value is not None}
    loaded = load_config(
        options.config,
        settings=given,
        overrides=options.settings,
        required=required,
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


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int | None]] = {
    "demo": _demo,
    "train": _train,
    "plan": _plan,
    "schema": _schema,
    "find-lr": _find_lr,
    "verify": _verify,
    "generate": _generate,
    "chat": _chat,
    "check": _check,
    "prepare": _prepare,
    "inspect": _inspect,
    "init": _init,
    "import": _import,
    "models": _models,
    "doctor": _doctor,
}


if __name__ == "__main__":
    entry()
