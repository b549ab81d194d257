"""demo, plan, find-lr, train, verify: a run, and what comes before it."""

import argparse
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truetune.commands.settings import load
from truetune.commands.status import stopped_status
from truetune.errors import CheckpointError, ConfigError
from truetune.launched import is_launched
from truetune.listener import Unheard

if TYPE_CHECKING:
    from truetune.config.schema import Config
    from truetune.pipeline.resume import Resume


def demo(options: argparse.Namespace) -> None:
    from truetune.console.logged import logged
    from truetune.console.output import show, show_table
    from truetune.console.summary import show_outcome

    with logged() as (listener, log):
        from truetune.pipeline.demo import run_demo
        from truetune.pipeline.review.outcome import outcome

        found = run_demo(
            output_dir=options.output_dir and Path(options.output_dir),
            overwrite=options.overwrite,
            seed=options.seed,
            overrides=options.settings,
            listener=listener,
            log=log,
        )
    rows = [(example.request, example.before, example.after, example.expected) for example in found.examples]
    show_table("Held-out requests", ("request", "base model", "fine-tuned", "expected"), rows)
    show(f"exact match on {found.held_out} held-out requests: {found.before:.0%} before, {found.after:.0%} after\n")
    show_outcome(outcome(found.run.directory))


def plan(options: argparse.Namespace) -> int:
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show_json
    from truetune.console.plans import show_forecast, show_outline

    with closing(ConsoleListener()) as listener:
        config = load(options, listener, required=())
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


def find_lr(options: argparse.Namespace) -> int:
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show_json
    from truetune.console.plans import show_range_test
    from truetune.pipeline.find_lr import find_learning_rate

    with closing(ConsoleListener()) as listener:
        found = find_learning_rate(load(options, listener), steps=options.steps, listener=listener)
    if options.json:
        show_json(found.as_json())
    else:
        show_range_test(found)
    return stopped_status(found.stopped_by)


def train(options: argparse.Namespace) -> int:
    from truetune.console.logged import logged
    from truetune.console.output import is_first_process, show
    from truetune.console.summary import show_outcome

    resume = _resume(options)
    if (processes := _to_start(options)) > 1:
        from truetune.pipeline.launch import launch

        return launch(options.given, processes=processes)
    with logged() as (listener, log):
        config = load(options, listener)
        # Only now: half a second of imports, which no wrong config has to wait for.
        from truetune.pipeline.review.outcome import outcome
        from truetune.pipeline.train import train_run

        if resume != "never" and (moved := _moved_to(options, config)):
            listener.say(f"the run lies in {moved} now")
            config = config.model_copy(update={"output_dir": moved})
        run = train_run(
            config,
            resume=resume,
            overwrite=options.overwrite,
            dry_run=options.dry_run,
            listener=listener,
            log=log,
        )
    if run.status == "dry run":
        show("dry run: everything is decided, nothing is written")
    elif is_first_process():
        show_outcome(outcome(run.directory))
    # A launcher takes any other status for a failure, and kills those that are not at their end yet.
    return stopped_status(run.stopped_by) if is_first_process() else 0


def _to_start(options: argparse.Namespace) -> int:
    """How many processes the run asks for, if no launcher has started them."""
    if options.dry_run or is_launched():
        return 1
    return load(options, Unheard()).training.num_processes or 1


def _resume(options: argparse.Namespace) -> "Resume":
    """As --resume says, or Hugging Face's name for it among the settings."""
    prefix = "resume_from_checkpoint="
    named = [word.removeprefix(prefix) for word in options.settings if word.startswith(prefix)]
    options.settings = [word for word in options.settings if not word.startswith(prefix)]
    match options.resume or next(iter(named), None):
        case None | "false" | "null":
            return "never"
        case "newest" | "true":
            if not (options.config or options.model or options.data or options.settings):
                raise ConfigError("what is to go on is not said", hint=_run_to_name())
            return "newest"
        case "auto":
            return "auto"
        case path:
            return _from_place(Path(path), options)


def _from_place(place: Path, options: argparse.Namespace) -> "Resume":
    """A checkpoint, or a run whose newest one is meant; where no config is given, the run's own is the config."""
    is_run = (place / "run.json").is_file()
    run = place if is_run else place.parent.parent
    names_none = not (options.config or options.model or options.data)
    if names_none and (run / "config.yaml").is_file():
        options.config, options.output_dir = str(run / "config.yaml"), options.output_dir or str(run)
    elif names_none and not options.settings:
        raise CheckpointError(f"there is no run {place}, and no checkpoint", hint=_run_to_name())
    if is_run and options.output_dir is None:
        options.output_dir = str(place)
    return "newest" if is_run else place


def _run_to_name() -> str:
    from truetune.arguments.guesses import newest_run

    return f"name the run: truetune train --resume {newest_run() or 'RUN'}"


def _moved_to(options: argparse.Namespace, config: "Config") -> str | None:
    """The folder of a run's own config.yaml, if the place that stands in it is gone: the run was moved."""
    if not options.config or options.output_dir or any(word.startswith("output_dir=") for word in options.settings):
        return None
    folder = Path(options.config).parent
    is_run = (folder / "run.json").is_file()
    return str(folder) if is_run and config.output_dir and not Path(config.output_dir).exists() else None


def verify(options: argparse.Namespace) -> int:
    from truetune.console.findings import show_verification
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show_json
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
