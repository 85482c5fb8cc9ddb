"""Straight-line PTX as it stands in inline assembly, taken apart into instructions.

Comments, nested scopes, declarations of registers, guards, vectors, addresses and immediate values are understood;
labels and branches are not.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


class PtxError(NotImplementedError):
    """Assembly that the interpreter has no model for, or that is not valid."""


@dataclass(frozen=True)
class Register:
    """A register: an operand of the assembly such as `$0`, or one that it declares (made unique by its scope)."""

    name: str
    bits: int


SINK = Register("_", 64)
"""Where results go that nobody wants."""


@dataclass(frozen=True)
class Immediate:
    """A number as it was written."""

    text: str


@dataclass(frozen=True)
class Vector:
    """Operands in braces, or the two predicates of `p|q`; lowest first."""

    items: tuple["Operand", ...]


@dataclass(frozen=True)
class Address:
    """A place in memory: a register or number plus a count of bytes."""

    base: "Operand"
    offset: int


@dataclass(frozen=True)
class Special:
    """A special register such as `%globaltimer`."""

    name: str


Operand = Register | Immediate | Vector | Address | Special


@dataclass(frozen=True)
class Instruction:
    """`@guard name.modifiers operands;`."""

    text: str
    name: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None
    guard_negated: bool


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_NUMBER = re.compile(r"-?(0[xX][0-9a-fA-F]+|0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|\d+(\.\d*)?([eE][-+]?\d+)?)U?")
_DECLARATION = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)
_INSTRUCTION = re.compile(r"(?:@(!?)([\w%$]+)\s+)?([\w.:]+)\s*(.*)", re.DOTALL)
_WIDTHS = {"pred": 1, **{f"{kind}{bits}": bits for kind in "busf" for bits in (8, 16, 32, 64)}}


def parse(assembly: str, widths: Sequence[int]) -> list[Instruction]:
    """The instructions of an assembly text whose operands `$0`, `$1`, ... have registers of `widths` bits.

    Raises:
        PtxError: a label, a branch, or a name that is not declared.
    """
    scopes = [{f"${at}": Register(f"${at}", bits) for at, bits in enumerate(widths)}]
    found: list[Instruction] = []
    for statement in _statements(assembly):
        if statement == "{":
            scopes.append(dict(scopes[-1]))
        elif statement == "}":
            scopes.pop()
            if not scopes:
                raise PtxError(f"a brace closes that was not opened: {assembly!r}")
        elif declared := _DECLARATION.fullmatch(statement):
            for name in _declared(declared[2]):
                scopes[-1][name] = Register(f"{name}@{len(found)}.{len(scopes)}", _width(declared[1], statement))
        else:
            found.append(_instruction(statement, scopes[-1]))
    return found


def _statements(assembly: str) -> Iterator[str]:
    """Statements without their semicolons, and the braces that open and close scopes."""
    text, depth = "", 0
    for letter in _COMMENT.sub(" ", assembly):
        if letter in "{}" and not depth and not text.strip():
            yield letter
            text = ""
        elif letter == ";":
            if text.strip():
                yield text.strip()
            text = ""
        else:
            depth += {"{": 1, "}": -1}.get(letter, 0)
            text += letter
    if text.strip():
        raise PtxError(f"no semicolon after {text.strip()!r}")


def _declared(names: str) -> Iterator[str]:
    for name in names.split(","):
        if counted := re.fullmatch(r"\s*([\w%$]+)<(\d+)>\s*", name):
            yield from (f"{counted[1]}{at}" for at in range(int(counted[2])))
        else:
            yield name.strip()


def _width(kind: str, statement: str) -> int:
    if kind not in _WIDTHS:
        raise PtxError(f"registers of type .{kind}: {statement!r}")
    return _WIDTHS[kind]


def _instruction(statement: str, scope: dict[str, Register]) -> Instruction:
    if re.match(r"[\w%$]+\s*:(?!:)", statement):
        raise PtxError(f"labels and branches have no model: {statement!r}")
    parts = _INSTRUCTION.fullmatch(statement)
    if parts is None:
        raise PtxError(f"not understood: {statement!r}")
    negated, guard, opcode, rest = parts.groups()
    name, *modifiers = opcode.split(".")
    operands = tuple(_operand(text, scope, statement) for text in _separated(rest))
    register = None
    if guard is not None:
        read = _operand(guard, scope, statement)
        if not isinstance(read, Register) or read.bits != 1:
            raise PtxError(f"{guard} is no predicate: {statement!r}")
        register = read
    return Instruction(statement, name, tuple(modifiers), operands, register, bool(negated))


def _separated(text: str) -> list[str]:
    """Split at commas outside braces and brackets."""
    parts, depth = [""], 0
    for letter in text:
        if letter == "," and not depth:
            parts.append("")
            continue
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(letter, 0)
        parts[-1] += letter
    return [part.strip() for part in parts] if text.strip() else []


def _operand(text: str, scope: dict[str, Register], statement: str) -> Operand:
    if text.startswith("{") and text.endswith("}"):
        return Vector(tuple(_operand(item, scope, statement) for item in _separated(text[1:-1])))
    if text.startswith("[") and text.endswith("]"):
        base, _, offset = text[1:-1].partition("+")
        return Address(_operand(base.strip(), scope, statement), int(offset.strip() or "0", 0))
    if "|" in text:
        return Vector(tuple(_operand(item.strip(), scope, statement) for item in text.split("|")))
    if text in scope:
        return scope[text]
    if text == "_":
        return SINK
    if _NUMBER.fullmatch(text):
        return Immediate(text.removesuffix("U"))
    if text.startswith("%"):
        return Special(text)
    raise PtxError(f"{text} is not declared: {statement!r}")
