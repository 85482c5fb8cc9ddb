"""A Triton kernel under construction, as text.

Parameters are named for their role, not for the value at hand, so that regions that differ only in their weights,
caches and buffers spell the same text and share one kernel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count

from llmc.codegen.layout import Axis, Buffer, Scalar, View
from llmc.runtime.cuda.plan import ALWAYS, ONE, Argument, ArgumentKind, Candidate, Extent, Symbol, When

TYPES = {"f32": "*fp32", "f16": "*fp16", "bf16": "*bf16", "i64": "*i64", "u8": "*u8", "i8": "*i8", "fp8": "*fp8e4nv"}
"""Triton types of pointers to the elements of buffers."""


@dataclass(frozen=True)
class Ref:
    """What an argument refers to before the memory plan is made: a buffer, or an argument that needs no plan."""

    buffer: Buffer | None = None
    argument: Argument | None = None


@dataclass
class KernelText:
    """The body of one `@triton.jit` function and what its parameters are given."""

    kind: str
    """First part of its name: linear, attention, rows, …"""
    comment: str = ""
    """What it computes, for the reader of the generated file."""
    warps: int = 4
    stages: int = 3
    pdl: bool = False
    weight_bits: float = 0
    """Bits of a weight that the inner loop reads, with its part of what its group shares; 0 where it reads none. What
    is expected of the machine code."""
    matrix_units: bool = False
    """Whether the inner loop is expected to multiply in matrix units."""
    most_barriers: int = 2
    """Barriers that the inner loop is expected to have at most."""
    round_bytes: int = 0
    """Bytes of weights, with what groups share, that a program reads in a round of its inner loop, through shared
    memory; 0 where it has none such."""
    rounds: int = 0
    """Of that loop."""
    lines: list[str] = field(default_factory=list)
    parameters: list[tuple[str, str]] = field(default_factory=list)
    refs: list[Ref] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)
    """Functions of `llmc.codegen.triton.library` that the text calls, as "module.function"."""
    functions: dict[str, str] = field(default_factory=dict)
    """Device functions of this kernel alone, by role: parameters and body."""
    _known: dict[object, str] = field(default_factory=dict)

    def add(self, *lines: str) -> None:
        """Append lines, indented as in a function's body less one level."""
        self.lines += lines

    def call(self, module: str, function: str) -> str:
        """The name of a library function, which the generated file then imports."""
        self.imports.add(f"{module}.{function}")
        return function

    def function(self, role: str, parameters: str, lines: Sequence[str]) -> str:
        """The name of a device function of this kernel's own, such as one that library functions are to call; the name
        of the kernel, which comes later, stands for `@` in it.
        """
        self.functions[role] = "\n".join([f"({parameters}):", *("    " + line for line in lines)])
        return f"@{role}"

    def pointer(self, buffer: Buffer, role: str) -> str:
        """The parameter that points at a buffer, or at a weight that is not packed; `role` names it if it is new."""
        argument = None
        if buffer.place == "weight":
            argument = Argument("weight", buffer.name)
        elif buffer.place == "step":
            argument = Argument("step", buffer.name)
        elif buffer.place == "logits":
            argument = Argument("logits")
        ref = Ref(buffer) if argument is None else Ref(argument=argument)
        return self._parameter(ref, role, TYPES[buffer.dtype])

    def weight(self, name: str, role: str, type: str) -> str:
        """The parameter that points at a part of a packed weight, in rows; `type` is Triton's, such as "*u8"."""
        return self._parameter(Ref(argument=Argument("weight", name)), role, type)

    def step(self, name: str) -> str:
        """The parameter that points at an array of the step (int64), such as positions, slots or lengths."""
        return self._parameter(Ref(argument=Argument("step", name)), name, "*i64")

    def size(self, symbol: str) -> str:
        """The parameter that holds T, B, R or M (int32)."""
        return self._parameter(Ref(argument=Argument("size", symbol)), symbol, "i32")

    def shares(self, attention: str) -> str:
        """The parameter that says over how many programs the keys of an attention are divided (int32)."""
        return self._parameter(Ref(argument=Argument("shares", attention)), "programs", "i32")

    def cache(self, name: str, layer: int, type: str) -> str:
        """The parameter that points at a layer's k, v, k_scale or v_scale."""
        return self._parameter(Ref(argument=Argument("cache", name, layer)), f"{name}_cache", type)

    def workspace(self, name: str, type: str) -> str:
        """The parameter that points at a workspace."""
        return self._parameter(Ref(argument=Argument("workspace", name)), name, type)

    def argument(self, kind: ArgumentKind, role: str, type: str) -> str:
        """The parameter for an argument of a kind of which there is one, such as the source of a rearrangement."""
        return self._parameter(Ref(argument=Argument(kind)), role, type)

    def _parameter(self, ref: Ref, role: str, type: str) -> str:
        if ref not in self._known:
            taken = {name for name, _ in self.parameters}
            numbered = (f"{role}_{number}" for number in count(2))
            name = next(name for name in chain([role], numbered) if name not in taken)
            self._known[ref] = name
            self.parameters.append((name, type))
            self.refs.append(ref)
        return self._known[ref]

    def text(self, name: str) -> str:
        """The whole function, called `name`."""
        head = [f"# {self.comment}"] if self.comment else []
        parameters = ", ".join(parameter for parameter, _ in self.parameters)
        own = [f"@triton.jit\ndef @{role}{text}\n\n" for role, text in self.functions.items()]
        body = [f"def {name}({parameters}):", *("    " + line for line in self.lines)]
        text = "\n".join([*own, *head, "@triton.jit", *body])
        for role in self.functions:
            text = text.replace(f"@{role}", f"{name}_{role}")
        return text


@dataclass(frozen=True)
class Draft:
    """A launch before names and memory are given."""

    kernel: KernelText
    grid: tuple[Extent, Extent, Extent] = (ONE, ONE, ONE)
    when: When = ALWAYS
    candidate: Candidate | None = None
    """Of which variant of a linear it is a launch, where there are several."""

    @property
    def refs(self) -> Sequence[Ref]:
        """What its kernel is given."""
        return self.kernel.refs


def module_text(kernels: Mapping[str, KernelText], title: str) -> str:
    """A Python module of `kernels`, by name."""
    imports: dict[str, set[str]] = {}
    for text in kernels.values():
        for path in text.imports:
            module, _, function = path.rpartition(".")
            imports.setdefault(module, set()).add(function)
    library = [
        f"from llmc.codegen.triton.library.{module} import {', '.join(sorted(names))}"
        for module, names in sorted(imports.items())
    ]
    head = [f'"""{title}"""', "", "import triton", "import triton.language as tl", *library]
    return "\n\n\n".join(["\n".join(head), *(text.text(name) for name, text in kernels.items())]) + "\n"


def rows_of(domain: str) -> Symbol:
    """The size that counts the rows of a domain."""
    return "T" if domain == "T" else "R" if domain == "R" else ""


def offset(view: View, row: str, indices: Sequence[str], rows: str = "rows") -> str:
    """The offset of elements of a view in its buffer: int64 `row` (a tensor or number), and one index for each fixed
    axis, all of which broadcast. A row that is read through the step's `rows` is looked up there, at pointer `rows`.
    """
    terms = [] if not view.buffer.domain else [f"{_row(view, row, rows)} * {view.buffer.width}"]
    terms += [
        index if axis.stride == 1 else f"({index}) * {axis.stride}"
        for axis, index in zip(view.fixed, indices, strict=True)
        if axis.stride and axis.size != 1
    ]
    terms += [str(view.offset)] if view.offset else []
    return " + ".join(terms) or "0"


def _row(view: View, row: str, rows: str) -> str:
    return f"tl.load({rows} + {row})" if view.indirect else row


def literal(value: Scalar) -> str:
    """A number in a kernel."""
    number = value.value
    if isinstance(number, bool | int):
        return str(int(number))
    if number != number:
        return 'float("nan")'
    if number in (float("inf"), float("-inf")):
        return f'float("{"-" if number < 0 else ""}inf")'
    return repr(float(number))


__all__ = ["Axis", "Draft", "KernelText", "Ref", "literal", "module_text", "offset", "rows_of"]
