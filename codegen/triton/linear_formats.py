"""How packed weights lie in the memory of a GPU, and how kernels read them.

Columns come in *units*. Formats with a scale for each group of columns lie in strips of 16 rows, units one after
another in a strip, rows one after another in a unit: what the threads of a warp ask for at once lies side by side.
Their scales, zeros and minima are stored [units, rows, groups of a unit]: two, four of int6, eight of int6g16. Others
lie row after row.

    f32, f16, bf16   [rows, columns]
    fp8              [rows, columns] bytes, scales as they are stored
    int8             a unit is 64 bytes of a row: 32 of either group
    int6, int6g16    a unit is three planes of 16 words of 16 bits, of which words i hold levels of columns 16 p + i of
                     the unit, for p from 0 to 7: two whole levels in each, from the lowest bits up; of the seventh, the
                     low four bits on top of the first word, and two above the levels of the second; of the eighth, the
                     same of the third word and on top of the second
    int4, int4m      words of 16 bits, of which word i holds four levels, from the lowest bits up: column i of the
                     first group and of the second, then the same of the groups' second halves
"""

from dataclasses import dataclass

from llmc.ir.packed_layout import GROUP, TILE, padded_columns, tile_count

UNIT = 64
"""Columns of a unit, where groups are not longer."""


@dataclass(frozen=True)
class Form:
    """A format in the memory of a GPU."""

    name: str
    bits: int
    """Of a weight, without what a group shares."""
    unit: int = UNIT
    group: int = 0
    """Columns that share a scale; 0 where a whole row does, or nothing."""
    multiplied: str = "bfloat16"
    """The type in which weights and activations meet."""
    element: str = "*u8"
    """Triton type of a pointer to the weights."""
    parts: tuple[str, ...] = ("data",)

    @property
    def strips(self) -> bool:
        """Whether 16 rows lie together, a unit of each after another."""
        return self.group > 0

    @property
    def groups(self) -> int:
        """Groups of a unit."""
        return self.unit // self.group if self.group else 0

    @property
    def short(self) -> bool:
        """Whether a unit is multiplied in so few columns at once that tiles of many rows take several side by side."""
        return self.unit < 128 or self.bits == 6

    @property
    def words(self) -> int:
        """Words that hold the scales of a unit of a row."""
        return max(1, self.groups // 4)

    @property
    def scale_words(self) -> str:
        """Triton type of a pointer to words that hold the scales of a unit of a row: halves, up to four in each."""
        return {2: "*i32", 4: "*i64", 8: "*i64"}.get(self.groups, "*fp32")

    @property
    def element_bytes(self) -> int:
        """Bytes of what a pointer to the weights points at."""
        return {"*u8": 1, "*fp32": 4}.get(self.element, 2)

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit of one row."""
        return self.unit * self.bits // 8

    @property
    def stored_bits(self) -> float:
        """Of a weight, with its part of what its group shares."""
        sizes = {"scales": 16, "zeros": 8, "mins": 16}
        return self.bits + sum(sizes.get(part, 0) for part in self.parts) / self.group if self.group else self.bits

    def tile_bytes(self, units: int) -> int:
        """Bytes of units of rows, with what groups share."""
        return int(units * self.unit * self.stored_bits) // 8

    def units(self, k: int) -> int:
        """Units in a row of k columns."""
        return -(-padded_columns(k) // self.unit)

    def row_bytes(self, k: int) -> int:
        """Bytes of a row of k columns, filled up to whole units."""
        return self.units(k) * self.unit_bytes


_FLOATS = {"f32": ("float32", "*fp32", 32), "f16": ("float16", "*fp16", 16), "bf16": ("bfloat16", "*bf16", 16)}
_SCALED = ("quants", "scales")


def _levels(name: str, group: int, shift: str) -> Form:
    return Form(name, 4, unit=2 * group, group=group, element="*i16", parts=(*_SCALED, shift))


FORMS: dict[str, Form] = {
    **{
        name: Form(name, bits, multiplied=multiplied, element=element)
        for name, (multiplied, element, bits) in _FLOATS.items()
    },
    "fp8": Form("fp8", 8, parts=("data", "scales")),
    "int8": Form("int8", 8, group=GROUP, parts=_SCALED),
    "int6": Form("int6", 6, unit=128, group=GROUP, element="*i16", parts=_SCALED),
    "int6g16": Form("int6g16", 6, unit=128, group=GROUP // 2, element="*i16", parts=_SCALED),
    "int4": _levels("int4", 32, "zeros"),
    "int4g64": _levels("int4g64", 64, "zeros"),
    "int4g128": _levels("int4g128", 128, "zeros"),
    "int4m": _levels("int4m", 32, "mins"),
}
"""The forms of all formats, by name."""


def padded_rows(n: int) -> int:
    """Rows of a weight of n, filled up to whole tiles."""
    return tile_count(n) * TILE


def row_stride(form: Form, k: int) -> int:
    """Elements from one row to the next, of forms that are not in strips."""
    assert not form.strips, f"{form.name} has no rows"
    return form.units(k) * form.unit


def strip_bytes(form: Form, k: int) -> int:
    """Bytes from one strip to the next."""
    return form.row_bytes(k) * TILE
