"""Small kernels in PTX for tests."""

import re

HEAD = ".version 8.8\n.target sm_90a\n.address_size 64\n"
GLOBAL_INDEX = """mov.u32 %block, %ctaid.x;
    mov.u32 %size, %ntid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.u32 %index, %block, %size, %thread;"""


def kernel(body: str, *, parameters: str = "", name: str = "test", outside: str = "", threads: int = 0) -> str:
    """A module with one function.

    Its parameters are 64-bit pointers, loaded into registers of the same name; registers are declared by how they are
    named: %p… predicates, %h… of 16 bits, %d… of 64, others of 32.
    """
    names = parameters.split()
    loads = "\n    ".join(f"ld.param.b64 %d_{name}, [{name}];" for name in names)
    declared = ", ".join(f".param .u64 {name}" for name in names)
    text = f"{loads}\n    {body}"
    special = r"%(?:tid|ntid|ctaid|nctaid|laneid|warpid|lanemask)\b"
    used = sorted(set(re.findall(r"%\w+", re.sub(special, "", text))))
    kinds = {"p": "pred", "h": "b16", "d": "b64"}
    registers = "\n    ".join(f".reg .{kinds.get(register[1], 'b32')} {register};" for register in used)
    required = f"\n.reqntid {threads}" if threads else ""
    head = f"{HEAD}{outside}\n.visible .entry {name}({declared}){required}"
    return f"{head}\n{{\n    {registers}\n    {text}\n    ret;\n}}\n"


def at(pointer: str, index: str, bytes: int) -> str:
    """Lines that make %d_at, the address of an element."""
    return f"mul.wide.u32 %d_by, {index}, {bytes};\n    add.s64 %d_at, %d_{pointer}, %d_by;"
