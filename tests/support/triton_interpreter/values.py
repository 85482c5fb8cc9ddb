"""What a kernel's variable holds: a numpy array, its type, and the argument that a pointer came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton.language as tl
from triton.runtime import interpreter as stock

if TYPE_CHECKING:
    from support.triton_interpreter.formats import Array
    from support.triton_interpreter.memory import Argument


class Value(stock.TensorHandle):
    """A block of values. Replaces the interpreter's handle, whose checks in each construction cost more than its work.

    `argument` is the tensor argument that pointers were computed from, None for other values and unknown origin.
    """

    def __init__(self, data: Array, dtype: tl.dtype, argument: Argument | None = None) -> None:
        self.data = data
        self.dtype = dtype
        self.argument = argument

    @property
    def attr(self) -> dict[str, Any]:
        """Hints of the compiler, such as divisibility, which change no result."""
        return {}

    def set_attr(self, key: str, value: Any) -> None:
        """Hints change no result, but that a number is a multiple of another is believed, so it must be so.

        Raises:
            ValueError: it is not.
        """
        if key == "tt.divisibility" and self.data.size == 1 and int(self.data.item()) % value[0]:
            raise ValueError(f"tl.multiple_of says that {self.data.item()} is a multiple of {value[0]}")
