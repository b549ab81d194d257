"""Findings as SARIF 2.1.0 (OASIS), with which code hosts annotate the lines of a data file."""

from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from truetune.data.catalog import RULES, Rule
from truetune.data.examples import Location
from truetune.data.rules import Problem, Report

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def as_sarif(report: Report) -> dict[str, Any]:
    """One run of truetune with a result for each finding that the report lists.

    A row of a JSON array or of a table has no line of its own: its result is the file's, and its text names the row.
    """
    used = sorted({problem.rule for problem in report.problems}, key=lambda name: RULES[name].code)
    driver = {
        "name": "truetune",
        "version": metadata.version("truetune"),
        "rules": [_rule(RULES[name]) for name in used],
    }
    results = [_result(problem, used.index(problem.rule)) for problem in report.problems]
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.name.replace("-", " ")},
        "help": {"text": f"truetune check --explain {rule.code}"},
        "defaultConfiguration": {"level": rule.severity},
    }


def _result(problem: Problem, index: int) -> dict[str, Any]:
    related = [_location(where) for where in problem.related]
    hint = f" ({problem.hint})" if problem.hint else ""
    return {
        "ruleId": problem.code,
        "ruleIndex": index,
        "level": problem.severity,
        "message": {"text": f"{_place(problem)}{problem.message}{hint}"},
        "locations": _locations(problem),
        **({"relatedLocations": related} if related else {}),
    }


def _place(problem: Problem) -> str:
    is_whole = RULES[problem.rule].group == "guidelines"
    row = "" if is_whole or problem.where.unit == "line" else f"{problem.where.unit} {problem.where.line}, "
    field = f"field {problem.field}, " if problem.field else ""
    return f"{row}{field}".removesuffix(", ") + ": " if row or field else ""


def _locations(problem: Problem) -> list[dict[str, Any]]:
    """Where it is found; a figure of the whole set is found nowhere in particular."""
    where = problem.where
    return [_location(replace(where, unit="row") if RULES[problem.rule].group == "guidelines" else where)]


def _location(where: Location) -> dict[str, Any]:
    place: dict[str, Any] = {"artifactLocation": {"uri": _uri(where.path)}}
    if where.unit == "line":
        place["region"] = {"startLine": where.line}
    return {"physicalLocation": place}


def _uri(path: str) -> str:
    """The path as code hosts find it: relative to where check was started, if it lies there."""
    file = Path(path)
    if file.is_absolute() and file.is_relative_to(Path.cwd()):
        file = file.relative_to(Path.cwd())
    return file.as_uri() if file.is_absolute() else quote(file.as_posix())
