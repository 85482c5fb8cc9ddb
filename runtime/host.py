"""What the process that runs a native program does for it: the operations that have no native form.

A program calls its host in the middle of a step, on the thread that called the program. Errors cannot pass through
native code, so the first one is kept until the step has ended.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

from llmc.errors import ArtifactRejected

HOST_CALL = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p))


class Host(Protocol):
    """Computes the calls of a program; see `llmc.codegen.torch_host`."""

    digest: str
    """SHA-256 of the file that says what each call is."""

    def values(self, number: int) -> int:
        """How many values a call works on; 0 if there is no such call."""

    def run(self, number: int, addresses: Sequence[int], tokens: int, rows: int) -> None:
        """Compute one call on values at these addresses, in a step of so many tokens and rows of logits."""

    def clear(self, number: int, addresses: Sequence[int], tokens: int, rows: int) -> None:
        """Fill the results of one call with zeros."""


class HostCalls:
    """A host as native code calls it."""

    def __init__(self, host: Host, step: Any) -> None:  # noqa: ANN401 - a ctypes structure with T and R
        """`step` says how large the step at hand is."""
        self._host = host
        self._step = step
        self._failure: BaseException | None = None
        self.function = HOST_CALL(self._call)
        """What native code calls; it must live as long as the program."""

    def check(self) -> None:
        """Raise what went wrong in the step that has ended."""
        failure, self._failure = self._failure, None
        if failure is not None:
            failure.add_note("in a part of the native program that torch computes")
            raise failure

    def _call(self, number: int, values: "ctypes._Pointer[ctypes.c_void_p]") -> None:
        try:
            addresses = [values[place] or 0 for place in range(self._host.values(number))]
            if self._failure is None:
                self._host.run(number, addresses, self._step.T, self._step.R)
                return
        except BaseException as error:
            self._failure = error
        # The step goes on to its end: what is read of this call must at least be numbers that are no wild indices.
        self._host.clear(number, addresses, self._step.T, self._step.R)


def check_host(needed: str, host: Host | None) -> None:
    """Raise ArtifactRejected unless `host` is the one that a program with the digest `needed` was made with."""
    if needed != ("" if host is None else host.digest):
        expected = f"calls of torch with SHA-256 {needed[:12]}" if needed else "no calls of torch"
        found = "none" if host is None else host.digest[:12]
        raise ArtifactRejected(f"program: was made with {expected}, found {found}; build the artifact again")
