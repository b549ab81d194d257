"""The values of a script's expressions, without running it: constants, their names, simple arithmetic."""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_DTYPES = ("float32", "bfloat16", "float16", "float", "half")
_BF16 = ("is_bf16_supported", "is_bfloat16_supported")
_MOST = 10**12
_OPERATIONS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


@dataclass(frozen=True, slots=True)
class Unread:
    """An expression whose value does not stand in the script; its text is kept."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Fields:
    """Something with named values: a class of constants, or the defaults of a command line."""

    values: Mapping[str, Any]


Names = Mapping[str, Any]


def value_of(node: ast.expr, names: Names) -> Any:
    """The expression's value, or Unread. Nothing is called, imported or run.

    What depends on whether a GPU has bf16 is "auto".
    """
    match node:
        case ast.Constant(value=value) if not isinstance(value, bytes | complex) and value is not ...:
            return value
        case ast.Name(id=name):
            return names.get(name, _unread(node))
        case ast.List(elts=inner) | ast.Tuple(elts=inner) | ast.Set(elts=inner):
            return _whole([value_of(each, names) for each in inner], node)
        case ast.Dict(keys=keys, values=values):
            return _mapping(node, keys, values, names)
        case ast.JoinedStr(values=parts):
            return _joined(node, parts, names)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            number = value_of(operand, names)
            return -number if _is_number(number) else _unread(node)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            said = value_of(operand, names)
            return said if said == "auto" else (not said if isinstance(said, bool) else _unread(node))
        case ast.BinOp(left=left, op=op, right=right):
            return _computed(node, value_of(left, names), op, value_of(right, names))
        case ast.IfExp(test=test, body=body, orelse=other):
            return _chosen(node, value_of(test, names), body, other, names)
        case ast.Attribute():
            return _attribute(node, names)
        case ast.Subscript(value=base, slice=index):
            return _item(node, value_of(base, names), value_of(index, names))
        case ast.Call():
            return _called(node, names)
        case ast.BoolOp() | ast.Compare():
            return "auto" if any(_asks_for_bf16(each) for each in ast.walk(node)) else _unread(node)
        case _:
            return _unread(node)


def is_read(value: Any) -> bool:
    """Whether nothing in the value is Unread."""
    match value:
        case Unread() | Fields():
            return False
        case list():
            return all(map(is_read, value))
        case dict():
            return all(map(is_read, value.values()))
        case _:
            return True


def _unread(node: ast.expr) -> Unread:
    # A call's arguments are told by themselves, and may hold a password.
    return Unread(f"{ast.unparse(node.func)}(…)" if isinstance(node, ast.Call) else ast.unparse(node))


def _whole(values: list[Any], node: ast.expr) -> Any:
    return values if all(map(is_read, values)) else _unread(node)


def _mapping(node: ast.expr, keys: list[ast.expr | None], values: list[ast.expr], names: Names) -> Any:
    found: dict[Any, Any] = {}
    for key, value in zip(keys, values, strict=True):
        said = value_of(value, names)
        if key is None:
            if not isinstance(said, dict):
                return _unread(node)
            found |= said
        elif isinstance(named := value_of(key, names), str | int):
            found[named] = said
        else:
            return _unread(node)
    return found


def _joined(node: ast.expr, parts: list[ast.expr], names: Names) -> Any:
    texts: list[str] = []
    for part in parts:
        inner = part.value if isinstance(part, ast.FormattedValue) else part
        is_plain = not isinstance(part, ast.FormattedValue) or (part.format_spec is None and part.conversion == -1)
        said = value_of(inner, names)
        if not is_plain or not isinstance(said, str | int | float):
            return _unread(node)
        texts.append(str(said))
    return "".join(texts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _computed(node: ast.expr, left: Any, op: ast.operator, right: Any) -> Any:
    """Sums and products of numbers, texts joined by + or (as paths) by /."""
    operation = _OPERATIONS.get(type(op))
    match left, right:
        case str(), str() if isinstance(op, ast.Add):
            return left + right
        case str(), str() if isinstance(op, ast.Div):
            return f"{left}/{right}"
        case list(), list() if isinstance(op, ast.Add):
            return left + right
    is_small = _is_number(left) and _is_number(right) and abs(left) < _MOST and abs(right) < _MOST
    if operation is None or not is_small or (isinstance(op, ast.Pow) and (abs(right) > 64 or abs(left) > 1000)):
        return _unread(node)
    try:
        return operation(left, right)
    except (ArithmeticError, ValueError):
        return _unread(node)


def _chosen(node: ast.expr, test: Any, body: ast.expr, other: ast.expr, names: Names) -> Any:
    if test == "auto":
        return "auto"
    return value_of(body if test else other, names) if isinstance(test, bool) else _unread(node)


def _attribute(node: ast.Attribute, names: Names) -> Any:
    base = value_of(node.value, names)
    if isinstance(base, Fields):
        return base.values.get(node.attr, _unread(node))
    if isinstance(node.value, ast.Name) and node.value.id == "torch" and node.attr in _DTYPES:
        return {"float": "float32", "half": "float16"}.get(node.attr, node.attr)
    return _unread(node)


def _item(node: ast.expr, base: Any, index: Any) -> Any:
    match base, index:
        case dict(), str() | int():
            return base.get(index, _unread(node))
        case list(), int() if -len(base) <= index < len(base):
            return base[index]
        case _:
            return _unread(node)


def called_name(node: ast.Call) -> str:
    """The last name of what is called: `from_pretrained` of FastLanguageModel.from_pretrained."""
    match node.func:
        case ast.Name(id=name):
            return name
        case ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _asks_for_bf16(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and called_name(node) in _BF16


def _called(node: ast.Call, names: Names) -> Any:
    """The few calls that only spell a value: dict(…), Path(…), os.path.join(…), a class of constants."""
    name = called_name(node)
    arguments = [value_of(each, names) for each in node.args]
    if name in _BF16:
        return "auto"
    if isinstance(node.func, ast.Name) and isinstance(names.get(name), Fields):
        own = {word.arg: value_of(word.value, names) for word in node.keywords if word.arg}
        return Fields({**names[name].values, **own})
    match name:
        case "dict" if not arguments and all(word.arg for word in node.keywords):
            return {str(word.arg): value_of(word.value, names) for word in node.keywords}
        case "Path" | "str" if len(arguments) == 1 and isinstance(arguments[0], str):
            return arguments[0]
        case "join" if arguments and all(isinstance(each, str) for each in arguments):
            return "/".join(arguments)
        case "float" | "int" if len(arguments) == 1 and _is_number(arguments[0]):
            return float(arguments[0]) if name == "float" else int(arguments[0])
        case _:
            return _unread(node)
