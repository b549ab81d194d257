"""Which rules are held, how severe they are, and which lines of a file they leave alone."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from truetune.data.catalog import BY_CODE, RULES, Rule, Severity
from truetune.data.examples import Location
from truetune.data.rules import Report
from truetune.data.sources import SIDECAR, SourceFile
from truetune.errors import ConfigError, DataError
from truetune.files import remedy

_SHORTEST = len("TT")
_LINE = re.compile(r"(?P<first>\d+)(?:\s*-\s*(?P<last>\d+))?\s*:?\s+(?P<rules>[A-Za-z][\w,\s-]*)")


def rules_of(name: str) -> tuple[Rule, ...]:
    """The rules that a code (TT205), the beginning of codes (TT2) or a name (placeholder) stands for. ConfigError."""
    asked = name.strip()
    found = tuple(
        rule for rule in RULES.values() if rule.name == asked.lower() or rule.code.startswith(asked.upper())
    )
    if not found or len(asked) < _SHORTEST:
        is_code = asked[:2].upper() == "TT"
        pool = [code for code in BY_CODE if code[:3] == asked[:3].upper()] or [*BY_CODE] if is_code else [*RULES]
        near = difflib.get_close_matches(asked.upper() if is_code else asked.lower(), pool, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"no rule is called {asked!r}", hint=f"{meant}truetune check --explain all lists the rules")
    return found


def _exact(name: str) -> int:
    """How exactly a rule is named: a name does it as a whole code does."""
    return len(next(iter(RULES.values())).code) if name.strip().lower() in RULES else len(name.strip())


def _exactness(names: Iterable[str]) -> dict[str, int]:
    """For each rule that is named how exactly it is."""
    found: dict[str, int] = {}
    for name in names:
        for rule in rules_of(name):
            found[rule.name] = max(found.get(rule.name, 0), _exact(name))
    return found


@dataclass(frozen=True, slots=True)
class LineIgnore:
    """Lines of a file that some rules leave alone; `where` is the line of the sidecar that says so."""

    path: str
    first: int
    last: int
    rules: frozenset[str]
    where: Location


@dataclass(frozen=True, slots=True)
class Selection:
    """The rules to hold, each with its severity, and the lines that they leave alone."""

    severities: Mapping[str, Severity]
    ignores: Mapping[str, Sequence[LineIgnore]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, *, select: Iterable[str] = (), ignore: Iterable[str] = (), severity: Mapping[str, Severity] | None = None
    ) -> "Selection":
        """All rules, or those of `select`, without those of `ignore`; what is named more exactly wins."""
        chosen = _exactness(select) or dict.fromkeys(RULES, 0)
        left = _exactness(ignore)
        held = [name for name in RULES if name in chosen and left.get(name, -1) < chosen[name]]
        vague_first = sorted((severity or {}).items(), key=lambda item: _exact(item[0]))
        given = {rule.name: worst for name, worst in vague_first for rule in rules_of(name)}
        return cls({name: given.get(name, RULES[name].severity) for name in held})

    def reading(self, files: Iterable[SourceFile]) -> "Selection":
        """The same with the sidecars of these files. DataError for a line of one that cannot be read."""
        found = {file.name: read_sidecar(file) for file in files}
        return replace(self, ignores={name: ignores for name, ignores in found.items() if ignores})

    def holds(self, rule: str) -> bool:
        return rule in self.severities

    def ignored(self, rule: str, where: Location) -> LineIgnore | None:
        """What leaves this line alone, if anything does."""
        for ignore in self.ignores.get(where.path, ()):
            if ignore.first <= where.line <= ignore.last and rule in ignore.rules:
                return ignore
        return None

    def ignoring(self, rule: str, where: Location) -> Location | None:
        """The line of a sidecar that leaves a finding there alone, if one does."""
        ignore = self.ignored(rule, where)
        return ignore.where if ignore else None

    def unused(self, used: Set[Location], *, has_model: bool) -> list[Location]:
        """The lines of sidecars that left nothing alone, of those whose rules were all held."""
        return [
            ignore.where
            for ignores in self.ignores.values()
            for ignore in ignores
            if ignore.where not in used and all(self._is_held(rule, has_model=has_model) for rule in ignore.rules)
        ]

    def _is_held(self, rule: str, *, has_model: bool) -> bool:
        return self.holds(rule) and (has_model or RULES[rule].group != "tokens")

    def wants(self, rule: str, where: Location) -> bool:
        """True if a finding of the rule there is to be told."""
        return self.holds(rule) and self.ignored(rule, where) is None

    def of_report(self, report: Report) -> Report:
        """The report with the findings that are held, each as severe as it is to be."""
        held = [problem for problem in report.problems if self.holds(problem.rule)]
        listed = Counter(problem.rule for problem in held)
        # Of more than are listed, an ignored line may hide others that are not.
        is_whole = {rule: count >= report.rows_of(rule) for rule, count in listed.items()}
        kept = [
            replace(problem, severity=self.severities[problem.rule])
            for problem in held
            if not is_whole[problem.rule] or self.wants(problem.rule, problem.where)
        ]
        found = {rule: count for rule, count in report.found.items() if self.holds(rule)}
        return replace(report, problems=tuple(kept), found=found)


def read_sidecar(file: SourceFile) -> list[LineIgnore]:
    """What DATA.ttignore says: a line or a range, rules, and perhaps a reason behind #: `12-20 TT205 # meant`."""
    sidecar = file.path.with_name(file.path.name + SIDECAR)
    try:
        lines = sidecar.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        hint = remedy(error) if isinstance(error, OSError) else "save it as UTF-8"
        raise DataError(f"{sidecar} cannot be read: {error}", hint=hint) from error
    return [
        _line_ignore(file.name, text, Location(str(sidecar), number))
        for number, line in enumerate(lines, start=1)
        if (text := line.partition("#")[0].strip())
    ]


def _line_ignore(path: str, text: str, where: Location) -> LineIgnore:
    match = _LINE.fullmatch(text)
    if match is None:
        raise DataError(
            f"{where}: {text!r} is no line number with rules",
            hint="write 12 TT205, or 12-20 TT205,TT206 # the reason",
        )
    first = int(match["first"])
    try:
        rules = frozenset(
            rule.name for name in re.split(r"[,\s]+", match["rules"].strip()) for rule in rules_of(name)
        )
    except ConfigError as error:
        raise DataError(f"{where}: {error.message}", hint=error.hint) from error
    return LineIgnore(path, first, int(match["last"] or first), rules, where)
