"""A script's calls in order, each with its arguments as far as they are written out. Nothing is run."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from truetune.errors import ConfigError
from truetune.migrate.values import Fields, Unread, called_name, is_read, value_of


@dataclass(frozen=True, slots=True)
class Call:
    """A call: its last name, what it is called on, its arguments, and the name its result is given."""

    name: str
    receiver: str
    positional: tuple[Any, ...]
    keywords: Mapping[str, Any]
    line: int
    lines: Mapping[str, int]
    result: str
    names: Mapping[str, Any]


@dataclass(slots=True)
class Walk:
    """What was met on the way: calls, functions, environment variables that are set, branches that were passed by."""

    functions: Mapping[str, ast.FunctionDef]
    calls: list[Call] = field(default_factory=list)
    environment: list[tuple[str, Any, int]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    lambdas: dict[str, ast.Lambda] = field(default_factory=dict)


def walk_script(text: str, *, name: str) -> Walk:
    """The script's calls, functions and variables. ConfigError with file and line if it is no Python."""
    try:
        tree = ast.parse(text)
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        walk = Walk(functions)
        names: dict[str, Any] = {}
        _visit(tree.body, names, walk)
        for function in functions.values():
            _visit(function.body, {**names, **_arguments(function, tree, names)}, walk)
    except SyntaxError as error:
        raise ConfigError(f"{name}:{error.lineno}: not valid Python: {error.msg}") from error
    except (RecursionError, MemoryError, ValueError):
        raise ConfigError(f"{name}: cannot be read as Python") from None
    return walk


def _arguments(function: ast.FunctionDef, tree: ast.Module, names: Mapping[str, Any]) -> dict[str, Any]:
    """What a function is given where it is called once, in the script itself."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and called_name(node) == function.name]
    parameters = [each.arg for each in function.args.args]
    first_default = len(parameters) - len(function.args.defaults)
    given: dict[str, Any] = {each: Unread(each) for each in parameters}
    if len(calls) != 1:
        return given
    for place, default in enumerate(function.args.defaults):
        given[parameters[first_default + place]] = value_of(default, names)
    given |= {name: value_of(each, names) for name, each in zip(parameters, calls[0].args, strict=False)}
    return given | {word.arg: value_of(word.value, names) for word in calls[0].keywords if word.arg in parameters}


# --- statements -------------------------------------------------------------------------------------------


def _visit(body: Sequence[ast.stmt], names: dict[str, Any], walk: Walk) -> None:
    for statement in body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                continue
            case ast.ClassDef(name=name):
                names[name] = Fields(dict(_constants(statement.body, names)))
            case ast.If():
                _branch(statement, names, walk)
            case ast.For() | ast.While():
                _read_calls(statement.iter if isinstance(statement, ast.For) else statement.test, "", names, walk)
                _repeat(statement, names, walk)
            case ast.With(items=items, body=inner):
                for item in items:
                    _read_calls(item.context_expr, "", names, walk)
                _visit(inner, names, walk)
            case ast.Try(body=inner, handlers=handlers, orelse=other, finalbody=last):
                _visit([*inner, *other, *last], names, walk)
                for handler in handlers:
                    _visit(handler.body, dict(names), walk)
            case _:
                _simple(statement, names, walk)


def _constants(body: Sequence[ast.stmt], names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The constants of a class, or the defaults of a dataclass."""
    for statement in body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value_of(value, names)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value_of(value, names)


def _branch(statement: ast.If, names: dict[str, Any], walk: Walk) -> None:
    """The branch that a constant chooses; else both, and what they set differently is not known."""
    test = value_of(statement.test, names)
    if _is_main(statement.test):
        _visit(statement.body, names, walk)
    elif isinstance(test, bool):
        _visit(statement.body if test else statement.orelse, names, walk)
        passed = statement.orelse if test else statement.body
        walk.skipped += [passed[0].lineno] if passed else []
    else:
        left, right = dict(names), dict(names)
        _visit(statement.body, left, walk)
        _visit(statement.orelse, right, walk)
        names |= _merged(left, right)


def _merged(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: left[name] if name in left and name in right and left[name] == right[name] else Unread(name)
        for name in left.keys() | right.keys()
    }


def _is_main(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"


def _repeat(statement: ast.For | ast.While, names: dict[str, Any], walk: Walk) -> None:
    inside = dict(names)
    if isinstance(statement, ast.For):
        inside |= {node.id: Unread(node.id) for node in ast.walk(statement.target) if isinstance(node, ast.Name)}
    _visit(statement.body, inside, walk)
    names |= _merged(inside, names)


def _simple(statement: ast.stmt, names: dict[str, Any], walk: Walk) -> None:
    match statement:
        case ast.Assign(targets=[target], value=value):
            _read_calls(value, _name_of(target), names, walk)
            _assign(target, value, names, walk)
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            _read_calls(value, _name_of(target), names, walk)
            _assign(target, value, names, walk)
        case ast.AugAssign(target=ast.Name(id=name)):
            _read_calls(statement.value, "", names, walk)
            names[name] = Unread(name)
        case _:
            _read_calls(statement, "", names, walk)


def _name_of(target: ast.expr) -> str:
    match target:
        case ast.Name(id=name):
            return name
        case ast.Tuple(elts=[ast.Name(id=name), *_]):
            return name
        case _:
            return ""


def _assign(target: ast.expr, value: ast.expr, names: dict[str, Any], walk: Walk) -> None:
    match target:
        case ast.Name(id=name):
            if isinstance(value, ast.Lambda):
                walk.lambdas |= {name: value, ast.unparse(value): value}
            names[name] = _or_name(_parsed(value, names), value, name)
        case ast.Tuple(elts=targets) if isinstance(value, ast.Tuple) and len(value.elts) == len(targets):
            for each, said in zip(targets, value.elts, strict=True):
                _assign(each, said, names, walk)
        case ast.Subscript(value=ast.Attribute(attr="environ"), slice=ast.Constant(value=str(variable))):
            walk.environment.append((variable, value_of(value, names), target.lineno))
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=key)) if isinstance(
            names.get(name), dict
        ):
            names[name] = {**names[name], key: value_of(value, names)}
        case ast.Tuple(elts=targets):
            names |= {_name_of(each): Unread(_name_of(each)) for each in targets if _name_of(each)}


def _parsed(value: ast.expr, names: dict[str, Any]) -> Any:
    """A name's value; the result of parse_args is what add_argument has given as defaults."""
    if isinstance(value, ast.Call) and called_name(value) in ("parse_args", "parse_known_args"):
        return Fields(dict(names.get("", {})))
    return value_of(value, names)


def _or_name(said: Any, value: ast.expr, name: str) -> Any:
    """What a call has made is known by the name it was given."""
    return Unread(name) if isinstance(said, Unread) and isinstance(value, ast.Call) else said


# --- calls ------------------------------------------------------------------------------------------------


def _read_calls(node: ast.AST, result: str, names: dict[str, Any], walk: Walk) -> None:
    """Every call inside, the innermost first, as they would be made."""
    calls = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
    for call in reversed(calls):
        if called_name(call) == "add_argument":
            _option(call, names)
        walk.calls.append(_call(call, result if call is node else "", names, walk))


def _option(call: ast.Call, names: dict[str, Any]) -> None:
    """argparse: `--learning-rate`, default=2e-4 is args.learning_rate."""
    flags = [value_of(each, names) for each in call.args]
    words = {word.arg: value_of(word.value, names) for word in call.keywords if word.arg}
    named = [str(flag).lstrip("-").replace("-", "_") for flag in flags if str(flag).startswith("--")]
    if named and "default" in words:
        names[""] = {**names.get("", {}), str(words.get("dest", named[0])): words["default"]}


def _call(node: ast.Call, result: str, names: Mapping[str, Any], walk: Walk) -> Call:
    keywords: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for word in node.keywords:
        said = value_of(word.value, names)
        if word.arg is None and isinstance(said, dict) and is_read(list(said)):
            spread = {str(name): value for name, value in said.items()}
        else:
            spread = {word.arg or f"**{ast.unparse(word.value)}": said}
        keywords |= spread
        lines |= dict.fromkeys(spread, word.value.lineno)
    receiver = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
    positional = tuple(value_of(each, names) for each in node.args)
    for each in node.args:
        if isinstance(each, ast.Lambda):
            walk.lambdas[ast.unparse(each)] = each
    return Call(called_name(node), receiver, positional, keywords, node.lineno, lines, result, dict(names))
