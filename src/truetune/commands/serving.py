"""serve: a trained model behind an OpenAI-compatible endpoint."""

import argparse
import signal
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truetune.pipeline.delivery.serve import ServeSettings, Serving


def serve(options: argparse.Namespace) -> int | None:
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show, show_json
    from truetune.pipeline.delivery.serve import serve_run, serving_command

    _require_fitting(options)
    with closing(ConsoleListener()) as listener:
        if options.print:
            command = serving_command(options.run_directory, _settings(options), listener=listener)
            if options.json:
                show_json(command.as_json())
            else:
                show(command.as_text())
            return None
        serving = serve_run(options.run_directory, _settings(options), listener=listener)
    with serving:
        if not options.check_only:
            return _handed_over(serving, is_json=options.json)
        _tell(serving, is_json=options.json)
        _require_asked(serving)
    return None


def _require_fitting(options: argparse.Namespace) -> None:
    """ConfigError for options that do not go together."""
    from truetune.errors import ConfigError

    for name in ("check_only", "no_check"):
        if options.print and getattr(options, name):
            raise ConfigError(f"--print starts no server: --{name.replace('_', '-')} has no place beside it")
    if options.check_only and options.no_check:
        raise ConfigError("--check-only and --no-check do not go together", hint="leave one of them out")


def _settings(options: argparse.Namespace) -> "ServeSettings":
    from truetune.pipeline.delivery.serve import ServeSettings

    return ServeSettings(
        server=options.server,
        host=options.host,
        port=options.port,
        api_key=options.api_key,
        quantize=options.quantize,
        context_length=options.context_length,
        check=not options.no_check,
        base_model=options.base,
        llama_cpp=options.llama_cpp,
        device=options.device,
    )


def _tell(serving: "Serving", *more: str, is_json: bool) -> None:
    from truetune.console.output import show, show_json

    if is_json:
        show_json(serving.as_json())
    else:
        show("\n".join([*serving.told(), *more]))
    sys.stdout.flush()  # Whoever reads it in a pipe waits for it, and the command goes on.


def _require_asked(serving: "Serving") -> None:
    """CheckpointError where there was nothing to check it by: a script must not take that for a check."""
    from truetune.errors import CheckpointError

    if serving.parity is None or not serving.parity.prompts:
        raise CheckpointError("the server was started, and no prompt was there to check it by")


def _handed_over(serving: "Serving", *, is_json: bool) -> int:
    """The exit status once the server has ended; BackendError if nobody asked it to."""
    from truetune.commands.status import stopped_status
    from truetune.training.signals import stopping

    received: list[signal.Signals] = []

    def stop(number: int, _: Any) -> None:
        received.append(signal.Signals(number))
        serving.ask_to_end()

    for number in stopping():
        signal.signal(number, stop)
    # Only now: what is told may be answered by a signal.
    _tell(serving, f"ask it: {serving.example()}", "Ctrl-C ends it", is_json=is_json)
    status = serving.wait()
    if not received:
        raise serving.failure(status)
    return stopped_status(received[0].name)
