"""The JSON Schema of config files, by which editors complete and check them."""

from typing import Any

from truetune.config.schema import SECTIONS, Config

_FOR_EDITORS = """A config file of truetune: every setting in its section, under truetune's own name.

truetune reads more than is said here: names that other tools use, and a setting outside of its section. One name a \
setting is what an editor can complete and explain, so that the others are marked as unknown; `truetune train` takes \
them and says what each is called. What depends on other settings, or on the machine, is checked by truetune alone."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a config file, by which editors complete and check it.

    What it takes, load_config takes; but to JSON Schema 16.0 is a whole number. Draft 7, whose words it keeps to, is
    what editors of some years' age know as well.
    """
    schema = Config.model_json_schema()
    properties = schema["properties"]
    for name in SECTIONS.keys() - set(schema["required"]):
        # `training:` with nothing behind it is what stands there while one writes.
        section = properties[name]
        properties[name] = {"anyOf": [{"$ref": section["$ref"]}, {"type": "null"}], "default": section["default"]}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **schema,
        "title": "truetune's config",
        "description": _FOR_EDITORS,
        "properties": {"$schema": {"type": "string", "description": "this schema, for editors"}, **properties},
    }
