"""The core: another tool's document, key by key, into our settings and into what could not be translated."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from truetune.config.contradictions import Contradiction, contradictions
from truetune.config.load import fields, load_config
from truetune.config.names import ALIASES, REFUSED, REFUSED_VALUES, SKIP, Fallback
from truetune.config.schema import NO_MODEL, SECTIONS, Config, setting_names
from truetune.errors import ConfigError
from truetune.migrate.outcomes import EMPTY, OFF, Default, Leave, Note, Outcome, Set, Tool, leaves

UNKNOWN = "unknown key"
_MODEL = "model.name_or_path"
_WARMUP = ("training.warmup_steps", "training.warmup_ratio")
_LEAVES = [name.rpartition(".")[2] for name in setting_names()]
_BARE = {name.rpartition(".")[2]: name for name in setting_names() if _LEAVES.count(name.rpartition(".")[2]) == 1}
_SECRET = re.compile(r"(hub_token|access_token|api_key|hf_token|(^|\.)token|secret|password)$")
_BOOLEANS = {**dict.fromkeys(("yes", "on", "true"), True), **dict.fromkeys(("no", "off", "false"), False)}


@dataclass(frozen=True, slots=True)
class Translated:
    """A key of the source and what it says in our words."""

    key: str
    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class Untranslated:
    """A key of the source that says nothing here; `matters` is false where the run is the same without it."""

    key: str
    value: Any
    reason: str
    matters: bool = True


@dataclass(frozen=True, slots=True)
class Translation:
    """The settings under our dotted names, and what became of every key of the source.

    `defaults` are settings that stand in no key: what the other tool does by itself.
    """

    tool: str
    settings: Mapping[str, Any]
    translated: tuple[Translated, ...]
    untranslated: tuple[Untranslated, ...]
    defaults: tuple[Default, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Ledger:
    """What is settled so far, in the order of the keys."""

    settings: dict[str, Any] = field(default_factory=dict)
    translated: list[Translated] = field(default_factory=list)
    untranslated: list[Untranslated] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def leave(self, key: str, value: Any, reason: str, *, matters: bool = True) -> None:
        self.untranslated.append(Untranslated(key, value, reason, matters))

    def drop(self, name: str, reason: str) -> None:
        """Takes a setting back: its keys are left, for this reason."""
        del self.settings[name]
        taken = [each for each in self.translated if each.name == name]
        self.translated = [each for each in self.translated if each.name != name]
        self.untranslated += [Untranslated(each.key, each.value, reason) for each in taken]


def translate(document: Mapping[str, Any], tool: Tool) -> Translation:
    """Every key of the document in our words, or with the reason why not; the settings make a valid config.

    Raises ConfigError for a method that truetune has not.
    """
    refusals = [f"{key}: {reason}" for key, reason in tool.refusals(document)]
    if refusals:
        raise ConfigError(
            "\n".join(refusals), hint="truetune trains on answers (supervised fine-tuning), and nothing else"
        )
    ledger = _Ledger()
    waiting: list[tuple[str, Any, Set]] = []
    for key, value in document.items():
        for place, inner, outcome in _answers(key, value, document, tool):
            _enter(place, inner, outcome, ledger, waiting)
    for place, inner, outcome in waiting:
        _enter(place, inner, Set(outcome.name, outcome.value.value, outcome.key), ledger, waiting)
    defaults = _add_defaults(tool.defaults(document, ledger.settings), ledger)
    _make_consistent(ledger)
    if _MODEL not in ledger.settings:
        defaults.append(Default(_MODEL, NO_MODEL, "no model was found: name it here"))
        ledger.settings[_MODEL] = NO_MODEL
        ledger.notes.append("no model was found: name it in model.name_or_path")
    if "data.path" not in ledger.settings:
        ledger.notes.append("no rows were found: name their file or hub id in data.path")
    return Translation(
        tool.name,
        {name: ledger.settings[name] for name in setting_names() if name in ledger.settings},
        tuple(ledger.translated),
        tuple(ledger.untranslated),
        tuple(each for each in defaults if each.name in ledger.settings),
        tuple(dict.fromkeys(ledger.notes)),
    )


# --- key by key -------------------------------------------------------------------------------------------


def _answers(key: str, value: Any, document: Mapping[str, Any], tool: Tool) -> Iterator[tuple[str, Any, Outcome]]:
    """What becomes of a key and of every leaf below it; a leaf that no rule speaks of is unknown."""
    below = dict(leaves(value, key))
    spoken: set[str] = set()
    for outcome in _outcomes(key, value, document, tool):
        place = key if isinstance(outcome, Note) else outcome.key or key
        # A rule that speaks of a whole key speaks of all that is below it.
        places = (
            [place]
            if place in below or isinstance(outcome, Note)
            else [each for each in below if _under(each, place)]
        )
        spoken |= set(places)
        for each in places or [place]:
            yield each, below.get(each, value), outcome
    for place, inner in below.items():
        if place not in spoken:
            yield place, inner, Leave(EMPTY, matters=False) if _is_empty(inner) else Leave(_unknown(place, tool))


def _unknown(place: str, tool: Tool) -> str:
    """The reason, with what the key may be meant to be."""
    known = [*tool.rules, *([*_BARE, *ALIASES] if tool.shares_names else [])]
    close = difflib.get_close_matches(place, known, n=1, cutoff=0.8)
    return f"{UNKNOWN} (did you mean {close[0]}?)" if close else UNKNOWN


def _under(place: str, above: str) -> bool:
    return place.startswith((f"{above}.", f"{above}["))


def _outcomes(key: str, value: Any, document: Mapping[str, Any], tool: Tool) -> Iterable[Outcome]:
    if _is_empty(value):
        return (Leave(EMPTY, matters=False),)
    if key in tool.rules:
        try:
            return tuple(tool.rules[key](value, document))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # Rules speak of the values that the tool itself takes.
            return (Leave(f"{tool.title} takes no such value either"),)
    return _shared(key, value) if tool.shares_names else ()


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value == [] or value == {}


def _shared(key: str, value: Any) -> Iterator[Outcome]:
    """The names of truetune's own config, of which most tools' are a part."""
    if key in _BARE and not isinstance(value, Mapping):
        yield Set(_BARE[key], value)
    elif key in ALIASES:
        try:
            said = ALIASES[key].translate(_scalar(value))
        except ValueError as error:
            yield Leave(str(error))
        else:
            yield Leave(OFF, matters=False) if said is SKIP else Set(ALIASES[key].target, said)
    elif key in REFUSED:
        yield Leave(OFF, matters=False) if value is False else Leave(REFUSED[key])


def _scalar(value: Any) -> Any:
    return _BOOLEANS.get(value.lower(), value) if isinstance(value, str) else value


def _enter(key: str, value: Any, outcome: Outcome, ledger: _Ledger, waiting: list[tuple[str, Any, Set]]) -> None:
    match outcome:
        case Note(text):
            ledger.notes.append(text)
        case Leave(reason, matters):
            ledger.leave(key, value, reason, matters=matters)
        case Set(_, Fallback()):
            waiting.append((key, value, outcome))
        case Set(name, said):
            _settle(key, value, name, said, ledger)


def _settle(key: str, value: Any, name: str, said: Any, ledger: _Ledger) -> None:
    fitted = _fitted(name, said)
    if fitted is SKIP:
        ledger.leave(key, value, _wrong(name, said))
        return
    before = ledger.settings.get(name, SKIP)
    if isinstance(before, dict) and isinstance(fitted, dict) and _agree(before, fitted):
        fitted = before | fitted
    elif before is not SKIP and before != fitted:
        first = next(each.key for each in ledger.translated if each.name == name)
        ledger.leave(key, value, f"{name} is {_short(before)} already, as {first} says")
        return
    ledger.settings[name] = fitted
    ledger.translated.append(Translated(key, name, fitted))


def _agree(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return all(left[name] == right[name] for name in left.keys() & right.keys())


# --- values -----------------------------------------------------------------------------------------------


def _fitted(name: str, value: Any) -> Any:
    """The value as our schema takes it, spelled otherwise if need be ("2e-4", yes, 500.0); SKIP if it takes none."""
    return next((each for each in _spellings(value) if _is_valid(name, each)), SKIP)


def _spellings(value: Any) -> Iterator[Any]:
    yield value
    match value:
        case str():
            yield _scalar(value)
            for kind in (int, float):
                try:
                    yield kind(value)
                except ValueError:
                    continue
        case float() if value.is_integer():
            yield int(value)


def _is_valid(name: str, value: Any) -> bool:
    section, _, leaf = name.rpartition(".")
    model: type[BaseModel] = SECTIONS.get(section, Config)
    document = {leaf: value} if section not in ("", "model") else {"name_or_path": "x", leaf: value}
    if not section:
        document = {"model": {"name_or_path": "x"}, leaf: value}
    try:
        model.model_validate(document)
    except ValidationError:
        return False
    return True


def _wrong(name: str, value: Any) -> str:
    if reason := REFUSED_VALUES.get(name, {}).get(str(value).lower()):
        return f"{value} {reason}"
    words = next(words for setting, _, _, words in fields() if setting == name)
    return f"{name} takes {words}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def shown(key: str, value: Any) -> Any:
    """The value as it may be told: passwords and tokens of services are not."""
    return "(hidden)" if value and _SECRET.search(key.lower()) else value


# --- all together -----------------------------------------------------------------------------------------


def _add_defaults(defaults: Iterable[Default], ledger: _Ledger) -> list[Default]:
    """Adds what the other tool does by itself, where no key says otherwise; returns what was added."""
    added: list[Default] = []
    for default in defaults:
        taken = _WARMUP if default.name in _WARMUP else (default.name,)
        if not any(name in ledger.settings for name in taken):
            ledger.settings[default.name] = default.value
            added.append(default)
    return added


def _make_consistent(ledger: _Ledger) -> None:
    """Takes settings back that contradict others, each with the contradiction as its reason."""
    if all(name in ledger.settings for name in _WARMUP):
        ledger.drop("training.warmup_ratio", "training.warmup_steps says how long the warm-up is")
    while found := next(contradictions(_config(ledger.settings)), None):
        ledger.drop(_to_drop(found, ledger), found.text)


def _to_drop(found: Contradiction, ledger: _Ledger) -> str:
    """The setting that gives way: a share of rows to a file of them, else the first that is named; a default last."""
    if "data.validation_path" in found.names:
        return "data.test_size"
    said = {each.name for each in ledger.translated}
    return next(
        (name for name in found.names if name in said), next(name for name in found.names if name in ledger.settings)
    )


def _config(settings: Mapping[str, Any]) -> Config:
    nested: dict[str, Any] = {}
    for name, value in {_MODEL: NO_MODEL, **settings}.items():
        section, _, leaf = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[leaf] = value
    return Config.model_validate(nested)


def resolved(translation: Translation) -> Config:
    """The config that the settings make, through the same door as any config file."""
    return load_config(dict(translation.settings)).config
