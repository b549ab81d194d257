"""From a YAML file, `key=value` settings and Python keywords to one Config, with every mistake told at once."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from truetune.config.names import ALIASES, REFUSED, REFUSED_VALUES, SKIP, Fallback
from truetune.config.schema import SECTIONS, Config, contradictions, setting_names
from truetune.errors import ConfigError

_NAMES = tuple(setting_names())
_LEAVES = [name.rpartition(".")[2] for name in _NAMES]
_BARE = {leaf: name for leaf, name in zip(_LEAVES, _NAMES, strict=True) if _LEAVES.count(leaf) == 1}
_TYPES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}


_STEPS = {
    "evaluation.eval_steps": "evaluation.eval_strategy",
    "checkpoints.save_steps": "checkpoints.save_strategy",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """The config, and one line for each old name that was translated."""

    config: Config
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Given:
    """One setting as it was given: its name, its value, and where."""

    name: str
    value: Any
    place: str


@dataclass(frozen=True, slots=True)
class _Named:
    """The same under our dotted name."""

    target: str
    value: Any
    given: _Given


def load_config(
    source: str | Path | Mapping[str, Any] | None = None,
    *,
    overrides: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    required: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Loaded:
    """The Config that `source` (a YAML or JSON file, or a mapping), `settings` and `overrides` say; later wins.

    `defaults` are our dotted names with what they are where none of these says it.

    `overrides` are "key=value" texts whose values are YAML 1.2. A name may be dotted, bare where it is unique, or one
    that another tool uses; `required` ones must be given. Raises ConfigError with a line for each problem of all.
    """
    problems: list[str] = []
    file = _source(source, problems)
    layers = (file or [], _mapping(settings or {}, "setting "), _overrides(overrides, problems))
    values: dict[str, _Named] = {}
    notices: list[str] = []
    for layer in layers:
        values = _over(values, _named(layer, problems, notices), notices)
    if file is not None:
        problems += [_wrong(name, None) for name in required if name not in values]
    for given in _mapping({name: value for name, value in (defaults or {}).items() if name not in values}, ""):
        values[given.name] = _Named(given.name, given.value, given)
    config = _validated(values, problems, may_miss=file is None)
    if problems or config is None:
        raise ConfigError("\n".join(problems))
    return Loaded(config, tuple(dict.fromkeys(notices)))


def dump_config(config: Config) -> str:
    """The config as YAML that load_config reads back to an equal one."""
    document = config.model_dump(mode="json")
    if config.training.warmup_steps is not None:
        # Set beside warmup_steps, the ratio would contradict it.
        del document["training"]["warmup_ratio"]
    text = StringIO()
    _yaml().dump(document, text)
    return text.getvalue()


def fields() -> Iterator[tuple[str, Any, str, str]]:
    """Each setting's dotted name, default, description and type in words."""
    for name in _NAMES:
        field = _field(name)
        yield name, field.default, field.description or "", _words(field)


# --- reading ----------------------------------------------------------------------------------------------


def _source(source: str | Path | Mapping[str, Any] | None, problems: list[str]) -> list[_Given] | None:
    """The settings of the source; None, with a problem, for a file that cannot be read."""
    match source:
        case None:
            return []
        case Mapping():
            return list(_mapping(source, ""))
    try:
        return list(_mapping(_document(Path(source)), f"{source}:"))
    except ConfigError as error:
        problems.append(f"{error.message}: {error.hint}" if error.hint else error.message)
    return None


def _document(path: Path) -> Mapping[str, Any]:
    try:
        document = _yaml().load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"config file not found: {path}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not valid UTF-8", hint="save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        reason = (error.problem or str(error)).splitlines()[0]
        raise ConfigError(f"{path}{line}: not valid YAML: {reason}") from error
    except YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply") from None
    if not isinstance(document, Mapping):
        found = "nothing" if document is None else f"a {type(document).__name__}"
        raise ConfigError(f"{path}: expected settings, found {found}", hint="write model: {name_or_path: …}")
    return document


def _mapping(settings: Mapping[str, Any], place: str) -> Iterator[_Given]:
    """Each setting of a mapping with one level of sections; a YAML mapping knows its lines."""
    for key, value in settings.items():
        name = str(key)
        if name in SECTIONS and isinstance(value, Mapping):
            yield from (
                _Given(f"{name}.{leaf}", _plain(inner), _at(value, leaf, place)) for leaf, inner in value.items()
            )
        elif name not in SECTIONS or value is not None:
            yield _Given(name, _plain(value), _at(settings, key, place))


def _at(settings: Mapping[str, Any], key: Any, place: str) -> str:
    """`run.yaml:7: ` for a YAML file; the prefix alone elsewhere."""
    if place.endswith(":"):
        # A key that a YAML merge (<<) brought in has no line of its own.
        found = (settings.lc.data or {}).get(key) if isinstance(settings, CommentedMap) else None
        return f"{place}{found[0] + 1}: " if found else f"{place} "
    return place


def _plain(value: Any) -> Any:
    """ruamel's types, which remember quotes and comments, as Python's own."""
    match value:
        case Mapping():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case PurePath():
            return str(value)
        case bool() | None:
            return value
        case int():
            return int(value)
        case float():
            return float(value)
        case str():
            # JSON writes a character beyond 16 bits as two escapes, which YAML reads as two characters.
            return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case _:
            return value


def _overrides(overrides: Sequence[str], problems: list[str]) -> Iterator[_Given]:
    for text in overrides:
        name, equals, value = text.partition("=")
        place = "command line: "
        if not equals or not name.strip() or not value.strip():
            problems.append(f"{place}{text}: expected key=value")
            continue
        try:
            found = _plain(_yaml().load(value))
        except (YAMLError, RecursionError):
            problems.append(f"{place}{text}: the value is not valid YAML; quote it")
            continue
        if found is None and value.strip().lower() not in ("null", "~"):
            problems.append(f"{place}{text}: to YAML this is a comment; quote it")
            continue
        yield _Given(name.strip(), found, place)


class _Constructor(RoundTripConstructor):
    """YAML 1.2 has no dates: `2024-01-01` is text."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", RoundTripConstructor.construct_yaml_str)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.Constructor = _Constructor
    yaml.version = None
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.representer.add_representer(
        NoneType, lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


# --- names ------------------------------------------------------------------------------------------------


def _named(layer: Iterable[_Given], problems: list[str], notices: list[str]) -> dict[str, _Named]:
    """A layer's settings under our names; unknown ones and contradictions become problems."""
    values: dict[str, _Named] = {}
    found = [named for given in layer if (named := _resolve(given, problems, notices)) is not None]
    firm = [named for named in found if not isinstance(named.value, Fallback)]
    settled = {named.target for named in firm}
    for named in firm + [_firmly(named) for named in found if named.target not in settled]:
        given = named.given
        before = values.get(named.target)
        if before is not None and before.value != named.value:
            problems.append(
                f"{given.place}{given.name} = {given.value!r} contradicts "
                f"{before.given.name} = {before.given.value!r} (both set {named.target})"
            )
        values[named.target] = named
    ratio, steps = values.get("training.warmup_ratio"), values.get("training.warmup_steps")
    if ratio and steps and ratio.value is not None and steps.value is not None:
        problems.append(f"{steps.given.place}warmup_steps contradicts warmup_ratio: set one of them")
    return values


def _firmly(named: _Named) -> _Named:
    return _Named(named.target, named.value.value, named.given)


def _over(below: dict[str, _Named], above: dict[str, _Named], notices: list[str]) -> dict[str, _Named]:
    """`above` laid over `below`, with what it implies: the other form of the warm-up goes, and steps mean "steps"."""
    values = below | above
    ratio, steps = "training.warmup_ratio", "training.warmup_steps"
    for mine, other in ((ratio, steps), (steps, ratio)):
        if mine in above and above[mine].value is not None and other not in above:
            values.pop(other, None)
    for name, strategy in _STEPS.items():
        is_steps = strategy in values and values[strategy].value == "steps"
        if name in above and strategy not in above and not is_steps:
            values[strategy] = _Named(strategy, "steps", above[name].given)
            notices.append(f"{strategy} is steps, since {name} is set")
    return values


def _resolve(given: _Given, problems: list[str], notices: list[str]) -> _Named | None:
    section, _, leaf = given.name.rpartition(".")
    if given.name in _NAMES:
        return _Named(given.name, given.value, given)
    if given.name in _BARE:
        return _Named(_BARE[given.name], given.value, given)
    is_placed = section in ("", *SECTIONS)
    if leaf in REFUSED and is_placed:
        # Null and false ask for nothing; other tools write them out.
        if given.value is not None and given.value is not False:
            problems.append(f"{given.place}{given.name}: {REFUSED[leaf]}")
        return None
    alias = ALIASES.get(leaf) if is_placed else None
    if alias is None or (given.name in SECTIONS and given.name != "model"):
        problems.append(f"{given.place}{given.name}: {_unknown(given.name)}")
        return None
    notices.append(f"{leaf} is now {alias.target}")
    try:
        value = alias.translate(given.value)
    except ValueError as error:
        problems.append(f"{given.place}{given.name}: {error}")
        return None
    return None if value is SKIP else _Named(alias.target, value, given)


def _unknown(name: str) -> str:
    if name in SECTIONS:
        return f"a section, which holds settings: {', '.join(SECTIONS[name].model_fields)}"
    leaf = name.rpartition(".")[2]
    if leaf in _BARE:
        return f"unknown setting (did you mean {_BARE[leaf]}?)"
    close = difflib.get_close_matches(leaf, [*_BARE, *SECTIONS, *ALIASES], n=1, cutoff=0.6)
    if not close:
        return "unknown setting"
    found = close[0]
    target = found if found in SECTIONS else _BARE.get(found) or ALIASES[found].target
    return f"unknown setting (did you mean {target}?)"


# --- values -----------------------------------------------------------------------------------------------


def _validated(values: Mapping[str, _Named], problems: list[str], *, may_miss: bool) -> Config | None:
    """The Config, or None with a problem for each wrong value; also one for each contradiction of right values."""
    document = {name: named.value for name, named in values.items()}
    try:
        config = Config.model_validate(_nested(document))
    except ValidationError as error:
        wrong = dict.fromkeys(_location(each["loc"]) for each in error.errors())
        problems += [_wrong(name, values.get(name)) for name in wrong if name in values or not may_miss]
        right = {name: value for name, value in document.items() if name not in wrong}
        rest = Config.model_validate(_nested({"model.name_or_path": "unknown", **right}))
        # A contradiction with the default that stands in for a wrong value is none.
        blind = [name for name in wrong if name in values]
        problems += [text for text in contradictions(rest) if not any(name in text for name in blind)]
        return None
    problems += contradictions(config)
    return config


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in values.items():
        section, _, leaf = name.rpartition(".")
        (document.setdefault(section, {}) if section else document)[leaf] = value
    return document


def _location(loc: tuple[int | str, ...]) -> str:
    return ".".join(map(str, loc[: 2 if loc[0] in SECTIONS else 1]))


def _wrong(name: str, named: _Named | None) -> str:
    if named is None:
        missing = "model.name_or_path" if name == "model" else name
        return f"{missing} is missing: {_field(missing).description}"
    if reason := REFUSED_VALUES.get(name, {}).get(str(named.value).lower()):
        return f"{named.given.place}{name}: {str(named.value).lower()} {reason}"
    choices = _choices(_field(name).annotation)
    close = difflib.get_close_matches(str(named.value), choices, n=1)
    suggestion = f"; did you mean {close[0]}?" if close else ""
    words = _words(_field(name))
    if isinstance(named.given.value, str) and "number" in words and _is_number(named.given.value):
        suggestion = "; write it without quotes"
    return f"{named.given.place}{name} must be {words} (got {named.given.value!r}){suggestion}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _field(name: str) -> FieldInfo:
    section, _, leaf = name.rpartition(".")
    return (SECTIONS[section] if section else Config).model_fields[leaf]


def _words(field: FieldInfo) -> str:
    """What a setting takes, in words."""
    return _type_words(field.annotation, field.metadata)


def _type_words(kind: Any, metadata: Sequence[Any] = ()) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        described = [item.description for item in arguments[1:] if getattr(item, "description", None)]
        return described[0] if described else _type_words(arguments[0], arguments[1:])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type_words(argument) for argument in arguments))
    if origin is Literal:
        values = [str(value) for value in arguments]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if origin is tuple:
        return f"a list of {_type_words(arguments[0])}"
    if origin is dict:
        return "a mapping of names"
    return _TYPES[kind] + _bounds(metadata)


def _bounds(metadata: Sequence[Any]) -> str:
    """ " of at least 1", " above 0 and below 1" and the like."""
    words = {"ge": "of at least", "gt": "above", "lt": "below", "le": "of at most"}
    flat = [inner for item in metadata for inner in getattr(item, "metadata", [item])]
    found = [
        f"{text} {getattr(item, key):g}"
        for item in flat
        for key, text in words.items()
        if getattr(item, key, None) is not None
    ]
    return f" {' and '.join(found)}" if found else ""


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [choice for argument in get_args(kind) for choice in _choices(argument)]
