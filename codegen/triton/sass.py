"""What a cubin's machine code says of a kernel's speed, without a GPU to run it on.

read_sass(code: bytes) -> Machine              needs nvdisasm and cuobjdump, which Triton brings
Machine.loops                                  innermost loops, largest first
Machine.loads                                  widths in bytes of the loads from global memory, one for each
bytes_in_flight(machine)                       bytes that a thread has asked for at once before it waits for any
"""

import importlib.util
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmc.errors import MissingTool

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);")
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_TARGET = re.compile(r"(\.L_x_\d+)")
_REGISTER = re.compile(r"\bR(\d+)\b")
INTEGER = frozenset(
    ("FMNMX", "FSEL", "FSETP", "F2FP", "I2FP", "IADD3", "ISETP", "LEA", "LOP3", "PRMT", "SEL", "SGXT", "SHF", "VIMNMX")
)
"""What half of a scheduler's lanes do: the CUDA programming guide gives 64 results a cycle of a multiprocessor for
logic, shifts, additions and comparisons of integers, for compute capabilities from 8.0 to 10.0, and 128 for fp32."""
TIMEOUT = 120
"""Seconds that a disassembly may take."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: the operation with its modifiers, and the operands as text."""

    op: str
    operands: str

    @property
    def name(self) -> str:
        """The operation without modifiers."""
        return self.op.partition(".")[0]

    @property
    def width(self) -> int:
        """Bytes that a load or store moves for each thread."""
        found = re.search(r"\.(?:[US])?(8|16|32|64|128)\b", self.op)
        return int(found[1]) // 8 if found else 4


@dataclass(frozen=True)
class Loop:
    """The instructions of an innermost loop."""

    body: tuple[Instruction, ...]

    @property
    def counts(self) -> Counter[str]:
        """How often each operation stands in it, by name."""
        return Counter(item.name for item in self.body)

    @property
    def cycles(self) -> int:
        """Cycles that a scheduler needs for a round of one warp: one to issue each instruction, or two for each of
        those for which it has half the lanes, whichever take longer.
        """
        return max(len(self.body), 2 * sum(item.name in INTEGER for item in self.body))


@dataclass(frozen=True)
class Machine:
    """A disassembled kernel."""

    instructions: tuple[Instruction, ...]
    loops: tuple[Loop, ...]
    registers: int
    """Of each thread."""
    stack: int
    """Bytes of each thread's stack: registers that were spilled."""

    @property
    def counts(self) -> Counter[str]:
        """How often each operation stands in the kernel, by name."""
        return Counter(item.name for item in self.instructions)

    @property
    def loads(self) -> tuple[int, ...]:
        """The width in bytes of each load from global memory, asynchronous copies to shared memory included."""
        return tuple(item.width for item in self.instructions if item.name in ("LDG", "LDGSTS"))


def read_sass(code: bytes) -> Machine:
    """Disassemble a cubin. Raises MissingTool where Triton, and with it the disassembler, is not installed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(code)
        text = _run("nvdisasm", "-c", str(path))
        usage = _run("cuobjdump", "-res-usage", str(path))
    instructions, labels = _parse(text)
    registers, stack = re.search(r"REG:(\d+)", usage), re.search(r"STACK:(\d+)", usage)
    assert registers is not None and stack is not None, "cuobjdump says what a kernel uses"
    loops = sorted(_loops(instructions, labels), key=lambda loop: -len(loop.body))
    return Machine(tuple(instructions), tuple(loops), int(registers[1]), int(stack[1]))


def bytes_in_flight(machine: Machine) -> int:
    """The most bytes of global loads that a thread waits for at once, by the order of its instructions.

    A load is in flight until an instruction reads a register that it writes; asynchronous copies are not counted.
    """
    waiting: dict[int, int] = {}
    most = 0
    for item in machine.instructions:
        registers = [int(number) for number in _REGISTER.findall(item.operands)]
        is_load = item.name == "LDG"
        read = registers[1:] if is_load else registers
        for first, width in list(waiting.items()):
            if any(first <= register < first + max(1, width // 4) for register in read):
                del waiting[first]
        if is_load and registers:
            waiting[registers[0]] = item.width
            most = max(most, sum(waiting.values()))
    return most


def _run(tool: str, *arguments: str) -> str:
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        raise MissingTool(f"{tool}: comes with Triton, which is not installed; pip install triton==3.9.0")
    path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / tool
    done = subprocess.run([str(path), *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode != 0:
        raise MissingTool(f"{path}: does not run: {done.stderr.strip()[:200]}")
    return done.stdout


def _parse(text: str) -> tuple[list[Instruction], dict[str, int]]:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append(Instruction(found[1], found[2]))
    return instructions, labels


def _loops(instructions: Sequence[Instruction], labels: dict[str, int]) -> list[Loop]:
    """Spans from a label to a branch back to it that hold no other such span."""
    spans = []
    for place, item in enumerate(instructions):
        target = _TARGET.search(item.operands) if item.name == "BRA" else None
        start = labels.get(target[1], place) if target else place
        if start < place:  # the branch that parks a finished thread goes to itself
            spans.append((start, place + 1))
    inner = [
        span
        for span in spans
        if not any(span != other and span[0] <= other[0] and other[1] <= span[1] for other in spans)
    ]
    return [Loop(tuple(instructions[start:stop])) for start, stop in inner]
