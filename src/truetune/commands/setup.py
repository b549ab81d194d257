"""init, import, schema, models, doctor: what a first run needs; what writes a text, or shows it."""

import argparse
from contextlib import closing
from pathlib import Path

from truetune.commands.settings import load
from truetune.errors import ConfigError


def init(options: argparse.Namespace) -> None:
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show
    from truetune.files import write_text
    from truetune.pipeline.init import initial_config

    target = wanted_file(options)
    listener = ConsoleListener()
    text = initial_config(load(options, listener), listener=listener)
    if target:
        write_text(target, text)
        show(f"wrote {target}; train with: truetune train {target}")
    else:
        show(text.rstrip("\n"))


def import_(options: argparse.Namespace) -> None:
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show, show_json
    from truetune.files import named_refusals, write_text
    from truetune.migrate.importer import import_file

    target = wanted_file(options)
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


def schema(options: argparse.Namespace) -> None:
    from truetune.config.json_schema import json_schema
    from truetune.console.output import show, show_json
    from truetune.files import named_refusals, write_json

    if target := wanted_file(options):
        with named_refusals(target):
            write_json(target, json_schema())
        show(f"wrote {target}; a JSON config names it as $schema")
    else:
        show_json(json_schema())


def wanted_file(options: argparse.Namespace) -> Path | None:
    """The file of --output, None without one. ConfigError if it is there, and is not to be replaced."""
    target = Path(options.output) if options.output else None
    if target and target.exists() and not options.overwrite:
        raise ConfigError(f"{target} already exists", hint="choose another name with -o, or add --overwrite")
    return target


def models(options: argparse.Namespace) -> None:
    from truetune.console.models import show_model, show_models
    from truetune.console.output import show_json
    from truetune.pipeline.models.describe import describe_model
    from truetune.pipeline.models.found import list_models

    if options.name:
        described = describe_model(options.name, trust_remote_code=options.trust_remote_code)
        show_json(described.as_json()) if options.json else show_model(described)
        return
    models = list_models(Path.cwd())
    if options.json:
        show_json({"models": [model.as_json() for model in models]})
    else:
        show_models(models)


def doctor(options: argparse.Namespace) -> int:
    from truetune.console.listener import ConsoleListener
    from truetune.console.models import show_doctor
    from truetune.console.output import show_json
    from truetune.pipeline.doctor.diagnosis import diagnose

    with closing(ConsoleListener()) as listener:
        diagnosis = diagnose(listener)
    if options.json:
        show_json(diagnosis.as_json())
    else:
        show_doctor(diagnosis)
    return 0 if diagnosis.is_well else 1
