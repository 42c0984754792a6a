"""What the code in a TorchScript archive may look like, checked before torch compiles it.

Compiling runs code: default values of arguments and constants of classes are expressions that torch evaluates while
it loads, and ``__setstate__`` is called to rebuild objects. torch.jit.save writes only literals in the first two
places, so anything else is refused there. The parser and the compiler recurse, so nesting is limited. The check
accepts the plain subset of the language that torch.jit.save writes, and so reads it as torch's own lexer does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from wsb_engine.formats.torchscript import problems
from wsb_engine.formats.torchscript.archive.calls import Unit

CODE_BYTES = 1 << 24
"""Bytes of all source files together."""
NESTING = 200
"""Brackets within brackets, and blocks within blocks; torch itself overflows its stack at about 10 000."""
CHAIN = 4000
"""Operators, attributes and calls in one expression."""

_TOKEN = re.compile(
    r"(?P<newline>\n *)|(?P<space> +)|(?P<string>\"(?:[^\"\\\n]|\\[^\n])*\")"
    r"|(?P<number>[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?j?|\.[0-9]+(?:[eE][-+]?[0-9]+)?j?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|(?P<mark>->|\*\*|//|<<|>>|[-+*/%@&|^~<>=!]=?|[:,.?])"
)
_FORBIDDEN = frozenset({"__setstate__", "__getstate__", "__backends__"})
_LITERAL_NAMES = frozenset(
    {
        *("True", "False", "None", "float", "inf", "nan", "annotate", "CONSTANTS"),
        *("List", "Optional", "Tuple", "Dict", "Tensor", "int", "bool", "str", "complex", "Device"),
    }
)
_CONSTANT = re.compile(r"c[0-9]+")
_LITERAL_MARKS = frozenset({",", "-", ":", "."})
_CHAINED_NAMES = frozenset({"not", "and", "or", "if", "else", "in", "is"})
_UNCHAINED_MARKS = frozenset({",", ":", "->", "="})
_PAIRS = {")": "(", "]": "[", "}": "{"}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str


def check_source(name: str, source: str) -> list[Unit]:
    """Reject code that loading would run, or that torch could not compile without overflowing its stack.

    Args:
        name: The file's name within the archive: ``code/__torch__.py``.
        source: Its text.

    Returns:
        The classes and functions that the file defines, with the names that they refer to.

    Raises:
        ModelError: ``torchscript_code_refused``, ``model_too_complex``, ``model_invalid``.
    """
    blocks: list[tuple[int, str]] = []
    units: list[Unit] = []
    module = name.removeprefix("code/").removesuffix(".py").replace("/", ".")
    for number, indent, tokens in _lines(name, source):
        while blocks and blocks[-1][0] >= indent:
            blocks.pop()
        where = f"{name}, line {number}"
        _check_names(where, tokens)
        _check_chains(tokens)
        inside = blocks[-1][1] if blocks else "file"
        kind = _check_line(where, tokens, inside)
        if inside == "file" and kind in ("class", "def"):
            units.append(Unit(f"{module}.{tokens[1].text}"))
        if units:
            units[-1].functions += kind == "def"
            units[-1].references.update((reference, where) for reference in _references(tokens))
        if tokens[-1].text == ":":
            blocks.append((indent, kind))
            problems.limit("levels of nested blocks", len(blocks), NESTING)
    return units


def _references(tokens: list[_Token]) -> Iterator[str]:
    """Dotted names that begin at the root of the archive's own code."""
    for index, token in enumerate(tokens):
        if token.text != "__torch__" or token.kind != "name":
            continue
        end = index + 1
        while end + 1 < len(tokens) and tokens[end].text == "." and tokens[end + 1].kind == "name":
            end += 2
        yield "".join(each.text for each in tokens[index:end])


def _lines(name: str, source: str) -> Iterator[tuple[int, int, list[_Token]]]:
    """Logical lines: number of the first physical line, indentation, tokens."""
    position, number, first, indent = 0, 1, 1, 0
    brackets: list[str] = []
    tokens: list[_Token] = []
    while position < len(source):
        match = _TOKEN.match(source, position)
        if match is None:
            raise problems.invalid(f"{name}, line {number}: {source[position]!r} is not TorchScript code")
        position, kind, text = match.end(), str(match.lastgroup), match.group()
        if kind == "newline":
            number += 1
            if not brackets:
                if tokens:
                    yield first, indent, tokens
                tokens, first, indent = [], number, len(text) - 1
            continue
        if kind == "space":
            continue
        if kind == "string" and source[position : position + 1] == '"':
            raise problems.invalid(
                f"{name}, line {number}: a string in three quotes, which torch.jit.save never writes"
            )
        if kind == "open":
            brackets.append(text)
            problems.limit("brackets within brackets", len(brackets), NESTING)
        elif kind == "close" and (not brackets or brackets.pop() != _PAIRS[text]):
            raise problems.invalid(f"{name}, line {number}: brackets that do not match")
        tokens.append(_Token(kind, text))
    if brackets:
        raise problems.invalid(f"{name} ends within brackets")
    if tokens:
        yield first, indent, tokens


def _check_names(where: str, tokens: list[_Token]) -> None:
    for index, token in enumerate(tokens):
        if token.text in _FORBIDDEN:
            raise problems.refused(f"{where}: the module defines or uses {token.text}, which would run while it loads")
        torch_classes = token.text == "classes" and [t.text for t in tokens[index - 2 : index]] == ["torch", "."]
        if token.kind == "name" and torch_classes:
            raise problems.refused(
                f"{where}: the module uses an object of torch.classes (a custom or backend-lowered class)"
            )


def _check_chains(tokens: list[_Token]) -> None:
    """Long expressions nest as deep as brackets do: a + b + c is (a + b) + c."""
    counts = [0]
    for token in tokens:
        if token.kind == "open":
            counts[-1] += 1
            counts.append(0)
        elif token.kind == "close":
            counts.pop()
        elif token.text == ",":
            counts[-1] = 0
        elif (token.kind == "mark" and token.text not in _UNCHAINED_MARKS) or token.text in _CHAINED_NAMES:
            counts[-1] += 1
        if counts[-1] > CHAIN:
            raise problems.too_complex("operators in one expression", counts[-1], CHAIN)


def _check_line(where: str, tokens: list[_Token], inside: str) -> str:
    """What kind of line this is; lines that hold no more than they should pass."""
    first = tokens[0].text
    if first == "class":
        if inside != "file" or any(t.kind not in ("name", "open", "close") and t.text not in ",.:" for t in tokens):
            raise problems.invalid(f"{where}: not a class as torch.jit.save writes it")
    elif first == "def":
        if inside not in ("file", "class"):
            raise problems.invalid(f"{where}: a function within a function")
        _check_defaults(where, tokens)
    elif inside == "file":
        if [token.kind for token in tokens] != ["name", "mark", "number"] or first != "op_version_set":
            raise problems.invalid(f"{where}: neither a class nor a function")
    elif inside == "class":
        _check_attribute(where, tokens)
    elif first == "elif":
        raise problems.invalid(f"{where}: elif, which torch.jit.save never writes")
    if first in ("class", "def") and tokens[-1].text != ":":
        raise problems.invalid(f"{where}: a {first} whose body is on the same line")
    return first


def _check_attribute(where: str, tokens: list[_Token]) -> None:
    """Reject what is no attribute of a class: a name, with a type or a literal or both."""
    texts = [token.text for token in tokens]
    if texts[:2] == ["__annotations__", "["]:  # the type of an attribute whose name is not an identifier
        allowed = all(token.kind in ("name", "string") or token.text in "[].,=" for token in tokens)
    else:
        allowed = len(tokens) > 2 and tokens[0].kind == "name" and texts[1] in (":", "=")
    if not allowed:
        raise problems.invalid(f"{where}: not an attribute of a class")
    if "=" in texts and texts[0] != "__annotations__":
        _require_literal(where, f"the value of {tokens[0].text}", tokens[texts.index("=") + 1 :])


def _check_defaults(where: str, tokens: list[_Token]) -> None:
    """Reject default values in the header of a function that are no literals."""
    depth, name = 0, ""
    default: list[_Token] | None = None  # tokens so far; None outside a default
    for token in tokens:
        depth -= token.kind == "close"
        if default is not None and (depth == 0 or (depth == 1 and token.text == ",")):
            _require_literal(where, f"the default of {name}", default)
            default = None
        elif default is not None:
            default.append(token)
        elif token.text == "=":
            default = []
        elif depth == 1 and token.kind == "name":
            name = token.text
        depth += token.kind == "open"


def _require_literal(where: str, what: str, tokens: list[_Token]) -> None:
    for token in tokens:
        known = token.text in _LITERAL_NAMES or _CONSTANT.fullmatch(token.text)
        if (token.kind == "name" and not known) or (token.kind == "mark" and token.text not in _LITERAL_MARKS):
            raise problems.refused(f"{where}: {what} is an expression, which torch would run while it loads the module")
