"""What a kernel reads before it waits for its predecessor, by its PTX.

A kernel that is launched early (programmatic dependent launch) may read constants at once, so that they arrive while
the kernel before it ends; anything that a kernel writes it must read after `griddepcontrol.wait`.
"""

import re
from collections.abc import Mapping

_PARAMETER = re.compile(r"_param_(\d+)")
_REGISTER = re.compile(r"%[a-z]+\d+")
_ADDRESS = re.compile(r"\[([^\]]*)\]")
_LOAD = re.compile(r"(?:ld\.global|cp\.async)\S*")


def early_reads(assembly: str) -> frozenset[int] | None:
    """The places of the parameters whose memory is read before the wait; None if the kernel does not wait."""
    before, found, _ = assembly.partition("griddepcontrol.wait")
    if not found:
        return None
    sources: dict[str, frozenset[int]] = {}
    read: frozenset[int] = frozenset()
    for statement in before.split(";"):
        text = statement.rpartition("\n")[2] if "{" not in statement else statement
        read |= _follow(" ".join(text.split()), sources)
    return read


def _follow(text: str, sources: dict[str, frozenset[int]]) -> frozenset[int]:
    """Note what the registers written by a statement depend on; the parameters whose memory it reads."""
    registers = _REGISTER.findall(text)
    if "ld.param" in text:
        place = _PARAMETER.search(text)
        for register in registers:
            sources[register] = frozenset([int(place[1])]) if place else frozenset()
        return frozenset()
    if _LOAD.search(text):
        addresses = " ".join(_ADDRESS.findall(text))  # of a copy to shared memory the second is what it reads
        return _origins(_REGISTER.findall(addresses), sources)
    if registers:
        sources[registers[0]] = _origins(registers[1:], sources)
    return frozenset()


def _origins(registers: list[str], sources: Mapping[str, frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*(sources.get(register, frozenset()) for register in registers))
