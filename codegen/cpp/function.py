"""A C++ function in the making: its parameters by the buffers they stand for, and its lines.

Functions are told apart by their text alone, so regions that do the same to other buffers share one.
"""

from dataclasses import dataclass, field

from llmc.codegen.layout import Buffer, View

TYPES = {"f32": "float", "f16": "f16", "bf16": "bf16", "i64": "int64_t", "u8": "uint8_t"}
"""C++ types of buffer elements."""
FORMATS = {
    "f32": "F32",
    "f16": "F16",
    "bf16": "BF16",
    "fp8": "FP8",
    "int8": "Int8",
    "int6": "Int6",
    "int6g16": "Int6G16",
    "int4": "Int4",
    "int4g64": "Int4G64",
    "int4g128": "Int4G128",
    "int4m": "Int4M",
}
"""C++ names of the weight formats."""


@dataclass
class Function:
    """Lines of a function's body, and what its parameters stand for."""

    kind: str
    """First part of the function's name."""
    lines: list[str] = field(default_factory=list)
    pointers: dict[Buffer, str] = field(default_factory=dict)
    written: set[Buffer] = field(default_factory=set)
    local: dict[Buffer, str] = field(default_factory=dict)
    """Buffers that are local variables of the function: one row each."""
    extra: list[tuple[str, str]] = field(default_factory=list)
    """Other parameters, and what a call passes for each."""

    def pointer(self, buffer: Buffer, *, written: bool = False) -> str:
        """The name of the parameter that points to a buffer."""
        if buffer in self.local:
            return self.local[buffer]
        if written:
            self.written.add(buffer)
        return self.pointers.setdefault(buffer, f"p{len(self.pointers)}")

    def base(self, view: View, row: str, *, written: bool = False) -> str:
        """A pointer to the first element of a row of a view."""
        text = self.pointer(view.buffer, written=written)
        if view.buffer.domain and view.buffer not in self.local:
            index = f"step.rows[{row}]" if view.indirect else row
            text += f" + {index} * {view.buffer.width}" if view.buffer.width != 1 else f" + {index}"
        return text + (f" + {view.offset}" if view.offset else "")

    def argument(self, parameter: str, passed: str) -> None:
        """Add a parameter that is no buffer."""
        if (parameter, passed) not in self.extra:
            self.extra.append((parameter, passed))

    def add(self, *lines: str) -> None:
        """Append lines to the body."""
        self.lines.extend(lines)

    def parameters(self) -> str:
        """The parameter list after the team and the run."""
        listed = [
            f"{'' if buffer in self.written else 'const '}{TYPES[buffer.dtype]}* __restrict {name}"
            for buffer, name in self.pointers.items()
        ]
        return ", ".join([*listed, *(parameter for parameter, _ in self.extra)])

    def text(self) -> str:
        """Parameters and body: what makes two functions the same."""
        return "\n".join([self.parameters(), *self.lines])
