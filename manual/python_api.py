"""The reference of the Python side, from its signatures as they are written, and its docstrings."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from itertools import zip_longest
from types import FunctionType
from typing import Any

import truetune

HEAD = """# Python

`import truetune` costs nothing: names are loaded when they are first used. The functions mirror the commands and go
through the same schema; their `**settings` are the leaf names of the [configuration](config.md). What is wrong with
a call, a config, the data or a run is raised as one of the [errors](#errors), before any weights load.

```python
import truetune

report = truetune.check([{"instruction": "Say yes", "output": "yes"}, {"instruction": "Say no", "output": ""}])
print(report.rows_kept, [problem.code for problem in report.problems])
```

In the signatures `Data` is a path, a hub id, a list of such, or rows (mappings, a `datasets.Dataset`, a pandas
`DataFrame`); `Formatting` is a function from one of your rows to a text, a mapping with `prompt` and `completion`
(or `messages`), or a list of messages; a `Listener` hears what is said and how far long work is. Without one, words
go to the logger `truetune`.
"""


def page() -> str:
    """The public names: functions, what they return, errors."""
    named = {name: getattr(truetune, name) for name in truetune.__all__}
    errors = {name: each for name, each in named.items() if isinstance(each, type) and issubclass(each, Exception)}
    functions = {name: each for name, each in named.items() if isinstance(each, FunctionType)}
    values = {name: each for name, each in named.items() if name not in errors | functions}
    parts = [HEAD, "## Functions\n", *(_function(name, each) for name, each in functions.items())]
    parts += ["## Values\n", *(_value(name, each) for name, each in values.items())]
    parts += ["## Errors\n", *(_error(name, each) for name, each in errors.items())]
    return "\n".join(parts)


def _function(name: str, function: FunctionType) -> str:
    return f"### truetune.{name}\n\n```text\n{_signature(name, function)}\n```\n\n{_prose(function)}\n"


def _signature(name: str, function: FunctionType) -> str:
    """The call, a parameter a line where it is long."""
    node = ast.parse(inspect.getsource(function)).body[0]
    assert isinstance(node, ast.FunctionDef)
    parameters = [*_parameters(node.args)]
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{name}({', '.join(parameters)}){result}"
    return (
        line if len(line) <= 110 else "\n".join([f"{name}(", *(f"    {each}," for each in parameters), f"){result}"])
    )


def _parameters(found: ast.arguments) -> Iterator[str]:
    """Each parameter with its type and default, in the words of the source: the same in every version of Python."""
    with_defaults = [*zip_longest(reversed(found.args), reversed(found.defaults))]
    yield from (_parameter(each, default) for each, default in reversed(with_defaults))
    if found.vararg:
        yield f"*{ast.unparse(found.vararg)}"
    elif found.kwonlyargs:
        yield "*"
    yield from (_parameter(*each) for each in zip(found.kwonlyargs, found.kw_defaults, strict=True))
    if found.kwarg:
        yield f"**{ast.unparse(found.kwarg)}"


def _parameter(parameter: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(parameter) + (f" = {ast.unparse(default)}" if default else "")


def _prose(documented: Any) -> str:
    """A docstring as Markdown; a paragraph that begins as Python does is shown as it is."""
    blocks = (inspect.getdoc(documented) or "").split("\n\n")
    return "\n\n".join(f"```text\n{each}\n```" if each.startswith("with ") else each for each in blocks)


def _value(name: str, kind: type) -> str:
    listed = [*_fields(kind), *_members(kind)]
    return "\n".join([f"### truetune.{name}\n", _prose(kind), "", *listed, *([""] if listed else [])])


def _fields(kind: type) -> Iterator[str]:
    """What a dataclass holds, with the types as they are written."""
    if is_dataclass(kind):
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
        assert isinstance(body, ast.ClassDef)
        for each in body.body:
            if isinstance(each, ast.AnnAssign) and not ast.unparse(each.target).startswith("_"):
                yield f"- `{ast.unparse(each.target)}: {ast.unparse(each.annotation)}`"


def _members(kind: type) -> Iterator[str]:
    """Its own public methods and properties that say what they do."""
    for name, member in vars(kind).items():
        target = member.fget if isinstance(member, property) else inspect.unwrap(getattr(member, "__func__", member))
        if name.startswith("_") or not isinstance(target, FunctionType) or not target.__doc__:
            continue
        call = (
            "" if isinstance(member, property) else "(…)" if len(inspect.signature(target).parameters) > 1 else "()"
        )
        first = inspect.cleandoc(target.__doc__).split("\n\n")[0].replace("\n", " ")
        yield f"- `{name}{call}`: {first}"


def _error(name: str, kind: type) -> str:
    bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
    return f"### truetune.{name}\n\nIs a {bases}. {inspect.getdoc(kind)}\n"
