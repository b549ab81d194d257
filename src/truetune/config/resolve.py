"""From the names that people gave to ours, layer by layer."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from truetune.config.document import Given, Problem
from truetune.config.names import ALIASES, REFUSED, SKIP, Fallback
from truetune.config.schema import SECTIONS, Config, setting_names, value_of
from truetune.config.words import kind_at, type_words

_NAMES = tuple(setting_names())
_LEAVES = [name.rpartition(".")[2] for name in _NAMES]
_BARE = {leaf: name for leaf, name in zip(_LEAVES, _NAMES, strict=True) if _LEAVES.count(leaf) == 1}
_STEPS = {
    "evaluation.eval_steps": "evaluation.eval_strategy",
    "checkpoints.save_steps": "checkpoints.save_strategy",
}
_RATIO, _WARMUP_STEPS = "training.warmup_ratio", "training.warmup_steps"


def bare_names() -> Iterable[str]:
    """The names that need no section: those of one setting alone."""
    return _BARE


@dataclass(frozen=True, slots=True)
class Named:
    """A value under our dotted name."""

    target: str
    value: Any
    given: Given


@dataclass(frozen=True, slots=True)
class Notice:
    """What was read otherwise than it was written: another name of a setting, or steps that mean "steps"."""

    name: str
    target: str
    kind: Literal["renamed", "implied"]

    def told(self, config: Config) -> str | None:
        """The line for the user, with the value in force; None if a later layer has made it untrue."""
        value = value_of(config, self.target)
        if self.kind == "renamed":
            return f"{self.name} is now {self.target}{_shown(value)}"
        return f"{self.target} is steps, since {self.name} is set" if value == "steps" else None


def under_our_names(layer: Iterable[Given], problems: list[Problem], notices: list[Notice]) -> dict[str, Named]:
    """A layer's settings under our names; unknown ones and contradictions become problems."""
    values: dict[str, Named] = {}
    found = [named for given in layer if (named := _resolve(given, problems, notices)) is not None]
    firm = [named for named in found if not isinstance(named.value, Fallback)]
    settled = {named.target for named in firm}
    for named in firm + [_firmly(named) for named in found if named.target not in settled]:
        before = values.get(named.target)
        if before is not None and before.value != named.value:
            problems.append(_disagreement(before.given, named))
        values[named.target] = named
    ratio, steps = values.get(_RATIO), values.get(_WARMUP_STEPS)
    if ratio and steps and ratio.value is not None and steps.value is not None:
        place = max(ratio.given.place, steps.given.place)
        problems.append(Problem(place, "warmup_steps contradicts warmup_ratio: set one of them"))
    return values


def _firmly(named: Named) -> Named:
    return replace(named, value=named.value.value)


def _disagreement(before: Given, named: Named) -> Problem:
    given = named.given
    text = f"{given.name} = {given.value!r} contradicts {before.name} = {before.value!r} (both set {named.target})"
    return Problem(given.place, text)


def laid_over(below: dict[str, Named], above: dict[str, Named], notices: list[Notice]) -> dict[str, Named]:
    """`above` laid over `below`, with what it implies: the other form of the warm-up goes, and steps mean "steps"."""
    values = below | above
    for mine, other in ((_RATIO, _WARMUP_STEPS), (_WARMUP_STEPS, _RATIO)):
        if mine in above and above[mine].value is not None and other not in above:
            values.pop(other, None)
    for name, strategy in _STEPS.items():
        is_steps = strategy in values and values[strategy].value == "steps"
        if name in above and strategy not in above and not is_steps:
            values[strategy] = Named(strategy, "steps", above[name].given)
            notices.append(Notice(name, strategy, "implied"))
    return values


def _resolve(given: Given, problems: list[Problem], notices: list[Notice]) -> Named | None:
    """The setting under our name; None, often with a problem, if it sets nothing."""
    section, _, leaf = given.name.rpartition(".")
    if ours := given.name if given.name in _NAMES else _BARE.get(given.name):
        return Named(ours, given.value, given)
    is_placed = section in ("", *SECTIONS)
    if leaf in REFUSED and is_placed:
        # Null and false ask for nothing; other tools write them out.
        if given.value is not None and given.value is not False:
            problems.append(Problem(given.place, f"{given.name}: {REFUSED[leaf]}"))
        return None
    alias = ALIASES.get(leaf) if is_placed else None
    if alias is None or (given.name in SECTIONS and given.name != "model"):
        problems.append(Problem(given.place, f"{given.name}: {_unknown(given.name)}"))
        return None
    notices.append(Notice(leaf, alias.target, "renamed"))
    try:
        value = alias.translate(given.value)
    except ValueError as error:
        problems.append(Problem(given.place, f"{given.name}: {error}"))
        return None
    return None if value is SKIP else Named(alias.target, value, given)


def _unknown(name: str) -> str:
    if name in SECTIONS:
        return f"a section, which holds settings: {', '.join(SECTIONS[name].model_fields)}"
    above, _, leaf = name.rpartition(".")
    if whole := above if above in _NAMES else _BARE.get(above):
        kind = type_words(kind_at(whole))
        way = f"; write {whole}='{{{leaf}: …}}'" if "mapping of names" in kind else ""
        return f"unknown setting ({whole} is {kind}{way})"
    if leaf in _BARE:
        return f"unknown setting (did you mean {_BARE[leaf]}?)"
    close = difflib.get_close_matches(leaf, [*_BARE, *SECTIONS, *ALIASES], n=1, cutoff=0.6)
    if not close:
        return "unknown setting"
    found = close[0]
    target = found if found in SECTIONS else _BARE.get(found) or ALIASES[found].target
    return f"unknown setting (did you mean {target}?)"


def _shown(value: Any) -> str:
    """A value in a notice, where it is one word."""
    match value:
        case bool():
            return f": {str(value).lower()}"
        case str() | int() | float():
            return f": {value}"
        case _:
            return ""
