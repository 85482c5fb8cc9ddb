"""The weights of a tile in a kernel's loop: pointers, loads, and numbers that matrix units multiply."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmc.codegen.triton.kernel import KernelText
from llmc.codegen.triton.linear_formats import Form, padded_rows, row_stride, strip_bytes
from llmc.ir.packed_layout import TILE

LINE = 128
"""Bytes of a line of the cache."""
AHEAD = 16 << 10
"""Bytes of each set of rows that a program asks for before it waits."""


@dataclass(frozen=True)
class Piece:
    """Columns of a unit that are multiplied at once."""

    offset: int
    columns: int


@dataclass(frozen=True)
class Tile:
    """The shape of the weights in a kernel: `batch` units at once, or runs of units, each with so many rows; no axis
    for one.
    """

    batch: int
    rows: int
    joined: int = 1
    """Units of a run, which lie side by side among the columns."""

    def shape(self, columns: int) -> str:
        """The sizes of a tensor of weights."""
        sizes = (self.batch, self.rows, columns) if self.batch > 1 else (self.rows, columns)
        return ", ".join(map(str, sizes))

    def unit(self, axes: int = 3) -> str:
        """What makes a vector of units broadcast to a tensor of so many axes, the units' included."""
        return f"[:{', None' * (axes - 1)}]"

    def row(self, axes: int = 3) -> str:
        """What makes a vector of rows broadcast to a tensor of so many axes, the units' included."""
        if self.batch > 1:
            return "[None, :, None]" if axes == 3 else "[None, :]"
        return "[:, None]" if axes == 3 else ""

    @property
    def spread(self) -> str:
        """What gives one number for each row of each unit another axis, of columns."""
        return "[:, :, None]" if self.batch > 1 or self.joined > 1 else "[:, None]"

    @property
    def last(self) -> str:
        """What makes a vector broadcast along the last axis."""
        return "[None, None, :]" if self.batch > 1 else "[None, :]"

    @property
    def column(self) -> str:
        """What makes a vector of columns broadcast against activations [units, columns, rows]."""
        return "[None, :, None]" if self.batch > 1 else "[:, None]"


class Weights:
    """One set of rows of a packed weight. `row` is the int32 vector of rows, `known` a condition on units or ""."""

    def __init__(
        self, kernel: KernelText, form: Form, names: Sequence[str], n: int, k: int, tile: Tile, number: int,
        *, plain: bool = False,
    ) -> None:  # fmt: skip
        """plain: whether the target lacks NVIDIA's instructions."""
        self.kernel, self.form, self.n, self.k, self.tile, self.number = kernel, form, n, k, tile, number
        self.padded = padded_rows(n)
        data = form.element
        self.library = "plain_weights" if plain else "weights"
        kinds = {"data": data, "quants": data, "scales": form.scale_words, "mins": "*i32", "zeros": "*i32"}
        if form.name == "fp8":
            kinds["scales"] = "*fp32"
        roles = {"data": "weight", "quants": "weight"}
        self.names = {
            part: kernel.weight(name, roles.get(part, part), kinds[part])
            for part, name in zip(form.parts, names, strict=True)
        }

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What a unit is multiplied in."""
        form = self.form
        if form.bits == 6:
            return tuple(Piece(start, 16) for start in range(0, form.unit, 16))
        size = form.group // 2 if form.bits == 4 else form.group or form.unit
        return tuple(Piece(start, size) for start in range(0, form.unit, size))

    def point(self, row: str) -> None:
        """Add lines that set the pointers to the first units of rows."""
        form, tile, s = self.form, self.tile, self.number
        base, width = self.names[form.parts[0]], self.plane
        if form.strips:
            strip = strip_bytes(form, self.k) // form.element_bytes
            at = f"({row} // {TILE}).to(tl.int64) * {strip} + {row} % {TILE} * {width}"
        else:
            at = f"{row}.to(tl.int64) * {row_stride(form, self.k)}"
        place = f"tl.arange(0, {width * tile.joined})"
        if tile.joined > 1:
            place = f"({place} // {width} * {self._step} + {place} % {width})"
        terms = [f"({at}){tile.row()}", f"{place}{tile.last}"]
        if tile.batch > 1:
            terms.insert(1, f"(unit * {self._step * tile.joined}){tile.unit()}")
        self.kernel.add(f"w_{s} = {base} + ({' + '.join(terms)})")
        if not form.strips:
            return
        for part in ("scales", "mins"):
            if part in self.names:
                each = f" * {form.words}" if form.words > 1 else ""
                self.kernel.add(f"{part}_{s} = {self.names[part]} + ({self._of_groups(row, self.padded)}){each}")
        if "zeros" in self.names:  # loads in the background are of four bytes at least: two rows have a word
            self.kernel.add(
                f"zeros_{s} = {self.names['zeros']} + ({self._of_groups(f'({row} // 2)', self.padded // 2)})"
            )
            self.kernel.add(f"half_{s} = ({row} % 2 * 16){tile.row(3 if tile.joined > 1 else 2)}")

    def _of_groups(self, row: str, rows: int) -> str:
        """The offsets of what rows have for each unit, in tables of so many rows."""
        tile = self.tile
        if tile.joined > 1:
            terms = [f"{row}{tile.row()}", f"(tl.arange(0, {tile.joined}) * {rows}){tile.last}"]
            if tile.batch > 1:
                terms.insert(0, f"(unit * {tile.joined * rows}){tile.unit()}")
        else:
            terms = [f"unit{tile.unit(2)} * {rows}"] if tile.batch > 1 else []
            terms.append(row + tile.row(2))
        return " + ".join(terms)

    def prefetch(self, first: str, rows: int = 0, splits: int = 1) -> None:
        """Add the line that asks for the first weights of the program's rows: they come into the second cache while
        the kernel before this one ends. first: the first row; rows: how many, 0 for those of the tile; splits: programs
        that share the columns, the second of the grid's axes.
        """
        form, rows = self.form, rows or self.tile.rows
        function, base = self.kernel.call("weights", "prefetch"), self.names[form.parts[0]]
        lines = form.row_bytes(self.k) * (TILE if form.strips else 1) // LINE // splits
        spans = -(-rows // TILE) if form.strips else rows
        count = 1 << (min(lines, AHEAD // (LINE * spans)).bit_length() - 1) if lines else 0
        if not count:
            return
        if form.strips:
            at = f"tl.minimum({first} // {TILE} + tl.arange(0, {spans}), {self.padded // TILE - 1})"
            stride, line = strip_bytes(form, self.k) // form.element_bytes, LINE // form.element_bytes
        else:
            at = f"tl.minimum({first} + tl.arange(0, {spans}), {self.padded - 1})"
            stride, line = row_stride(form, self.k), LINE // form.element_bytes
        start = f" + tl.program_id(1) * {form.units(self.k) // splits * self._step}" if splits > 1 else ""
        place = f"{at}.to(tl.int64)[:, None] * {stride} + tl.arange(0, {count})[None, :] * {line}{start}"
        self.kernel.add(f"{function}({base} + ({place}))")

    @property
    def plane(self) -> int:
        """Elements of a row that lie side by side."""
        if not self.form.strips:
            return self.form.unit
        return {8: 32, 6: 16}.get(self.form.bits, self.form.unit_bytes // self.form.element_bytes)

    @property
    def _step(self) -> int:
        """Elements from one unit to the next."""
        form = self.form
        return form.unit_bytes * TILE // form.element_bytes if form.strips else form.unit

    def read(self, at: str, known: str, pad: str) -> None:
        """Add lines that set `weight_<set>_<piece>` and, of forms with groups, `scale_<set>_<piece>`.

        at: the number of the first unit of the batch. known: a condition on units; where units are joined, their
        first, of which not all may be there.
        """
        form, s, add = self.form, self.number, self.kernel.add
        whole = grouped = ""
        if known and self.tile.joined > 1:
            units = [f"{known} + tl.arange(0, {size})" for size in (self.plane * self.tile.joined, self.tile.joined)]
            whole = f"({units[0]} // {self.plane} < {form.units(self.k)})[None, :]"
            grouped = f"({units[1]} < {form.units(self.k)})[None, :]"
        elif known:
            whole, grouped = f"{known}{self.tile.unit()}", f"{known}{self.tile.unit(2)}"
        self.load(at, whole, pad)
        if not form.strips:
            return
        words = self.words(at, grouped)
        spread = self.tile.spread
        for part in ("scales", "mins"):
            if part in words:
                halves = self.halves(words[part], pad)
                add(*(f"{pad}{part}_{s}_{i} = {text}{spread}" for i, text in enumerate(halves)))
        self._unpack(words, spread, pad)

    def load(self, at: str, known: str, pad: str) -> None:
        """Add lines that set `bytes_<set>_<plane>` or, of forms that are not in strips, `weight_<set>_0`.

        known: a condition that broadcasts against the weights, "" for none.
        """
        form, s, add = self.form, self.number, self.kernel.add
        mask = f", mask={known}, other=0" if known else ""
        hint = ', eviction_policy="evict_first"'
        if not form.strips:
            text = f"tl.load(w_{s} + {at} * {form.unit}{mask}{hint})"
            if form.name == "fp8":
                text = f"{self.kernel.call(self.library, 'fp8_as_numbers')}({text})"
            add(f"{pad}weight_{s}_0 = {text}")
            return
        for plane in range(form.unit_bytes // form.element_bytes // self.plane):
            shift = f" + {plane * self.plane * TILE}" if plane else ""
            add(f"{pad}bytes_{s}_{plane} = tl.load(w_{s} + ({at} * {self._step}{shift}){mask}{hint})")

    def words(self, at: str, known: str) -> dict[str, list[str]]:
        """Expressions for the words that hold the scales, zeros and minima of units, by part."""
        mask = f", mask={known}, other=0" if known else ""
        s, parts = self.number, [part for part in ("scales", "mins") if part in self.names]
        starts = [f"{at} * {self.padded * self.form.words}{f' + {i}' if i else ''}" for i in range(self.form.words)]
        found: dict[str, list[str]]
        found = {part: [f"tl.load({part}_{s} + ({start}){mask})" for start in starts] for part in parts}
        if "zeros" in self.names:
            found["zeros"] = [f"(tl.load(zeros_{s} + ({at} * {self.padded // 2}){mask}) >> half_{s})"]
        return found

    def side_by_side(self, known: str) -> str:
        """An expression for the scales of a unit's eight groups, [units, rows, groups]: 16 bytes that lie together.

        known: a condition on units, "" for none.
        """
        mask = f", mask={known}, other=0.0" if known else ""
        start = (
            f"scales_{self.number}[:, :, None].to(tl.pointer_type(tl.float16)) + u * {self.padded * self.form.groups}"
        )
        return f"tl.load({start} + tl.arange(0, {self.form.groups})[None, None, :]{mask}).to(tl.float32)"

    def halves(self, words: list[str], pad: str) -> list[str]:
        """Add lines that read words, and give expressions for the numbers of each group of a unit in them."""
        names = ["packed"] if len(words) == 1 else [f"packed_{i}" for i in range(len(words))]
        self.kernel.add(*(f"{pad}{name} = {word}" for name, word in zip(names, words, strict=True)))
        half = self.kernel.call("weights", "half_of")
        return [f"{half}({names[i // 4]}, {i % 4})" for i in range(self.form.groups)]

    def _unpack(self, words: dict[str, list[str]], spread: str, pad: str) -> None:
        form, s, add = self.form, self.number, self.kernel.add
        if form.bits > 4:
            self.centre(pad)
            return
        shape = self.tile.shape(form.group // 2)
        zeros = [f"tl.full(({shape}), -128.0, tl.bfloat16)"] * 2
        if "zeros" in words:
            zero = self.kernel.call("weights", "shifted_zero")
            add(f"{pad}packed = {words['zeros'][0]}")
            texts = (f"{zero}(packed & 255)", f"{zero}((packed >> 8) & 255)")
            zeros = [self._wide(f"{text}{spread}", form.group // 2) for text in texts]
        unpack = self.kernel.call(self.library, "nibbles_as_integers")
        add(f"{pad}{self._levels} = {unpack}(bytes_{s}_0, {zeros[0]}, {zeros[1]})")

    @property
    def _levels(self) -> str:
        """The pieces of words of four levels, from the lowest bits up."""
        return ", ".join(f"weight_{self.number}_{number}" for number in (0, 2, 1, 3))

    def centre(self, pad: str) -> None:
        """Add lines that set `weight_<set>_<piece>` of forms whose levels have one zero for all."""
        form, s, add = self.form, self.number, self.kernel.add
        if form.name == "int8":
            unpack = self.kernel.call(self.library, "bytes_as_integers")
            add(*(f"{pad}weight_{s}_{group} = {unpack}(bytes_{s}_{group})" for group in (0, 1)))
            return
        unpack = self.kernel.call(self.library, "sixes_as_integers")
        levels = ", ".join(f"weight_{s}_{number}" for number in range(len(self.pieces)))
        add(f"{pad}{levels} = {unpack}({', '.join(f'bytes_{s}_{plane}' for plane in range(3))})")

    def shift(self, pad: str) -> None:
        """Add the line that sets `weight_<set>_<piece>` of forms of four bits to 128 more than the levels."""
        unpack = self.kernel.call(self.library, "nibbles_above_128")
        self.kernel.add(f"{pad}{self._levels} = {unpack}(bytes_{self.number}_0)")

    def scale(self, pad: str) -> None:
        """Add lines that multiply weights that were read by the scales of their groups, rounded once."""
        s, add = self.number, self.kernel.add
        function = self.kernel.call(self.library, "scaled")
        for group in range(self.form.groups):
            name = f"scales_{s}_{group}"
            add(f"{pad}scale_{s}_{group} = {name}.to(tl.bfloat16)")
            add(f"{pad}rest_{s}_{group} = ({name} - scale_{s}_{group}.to(tl.float32)).to(tl.bfloat16)")
        for number, piece in enumerate(self.pieces):
            group = piece.offset // self.form.group
            parts = [self._wide(f"{part}_{s}_{group}", piece.columns) for part in ("scale", "rest")]
            add(f"{pad}weight_{s}_{number} = {function}(weight_{s}_{number}, {', '.join(parts)})")

    def _wide(self, number: str, columns: int) -> str:
        """A number for each row of each unit, with an axis of one column, for columns of a piece."""
        joined, rows = self.tile.joined, self.tile.rows
        if joined == 1:
            return f"tl.broadcast_to({number}, ({self.tile.shape(columns)}))"
        return f"tl.reshape(tl.broadcast_to({number}, ({rows}, {joined}, {columns})), ({rows}, {joined * columns}))"

    def multiply(self, number: int, x: str, pad: str, *, scaled: bool = False) -> None:
        """Add lines that add the products of a piece with `x` to `sum_<set>`; scaled: whether weights are."""
        form, s = self.form, self.number
        exact = ', input_precision="ieee"' if form.multiplied == "float32" else ""
        weight, piece = f"weight_{s}_{number}", self.pieces[number]
        if scaled or not form.group:
            self.kernel.add(f"{pad}sum_{s} = tl.dot({weight}, {x}, sum_{s}{exact})")
            return
        first, group = piece.offset % form.group == 0, piece.offset // form.group
        last = (piece.offset + piece.columns) % form.group == 0
        terms = [(f"products_{s}", weight, "scales")]
        if "mins" in self.names:
            ones = f"tl.full(({self.tile.shape(piece.columns)}), 8.0, tl.bfloat16)"
            terms.append((f"inputs_{s}", ones, "mins"))
        for name, left, factor in terms:
            product = f"tl.dot({left}, {x}{'' if first else f', {name}'})"
            if last:
                self.kernel.add(f"{pad}sum_{s} += {product} * {factor}_{s}_{group}")
            else:
                self.kernel.add(f"{pad}{name} = {product}")

    def value(self, number: int, row: str) -> str:
        """An expression for the fp32 values of a piece that was read; row: the rows."""
        form, s = self.form, self.number
        text = f"weight_{s}_{number}.to(tl.float32)"
        if form.name == "fp8":
            return f"{text} * tl.load({self.names['scales']} + {row}){self.tile.row()}"
        if not form.group:
            return text
        group = self.pieces[number].offset // form.group
        text += f" * scales_{s}_{group}"
        if "mins" in self.names:
            text += f" + mins_{s}_{group} * 8.0"
        return f"({text}) * 0.125" if form.name.startswith("int4") else text

    def finish(self, y: str, row: str, known: str) -> None:
        """Add the line that multiplies finished sums by what all of a row shares."""
        if self.form.name == "fp8":
            mask = f", mask={known}, other=0.0" if known else ""
            self.kernel.add(f"{y} *= tl.load({self.names['scales']} + {row}{mask})")
        elif self.form.name.startswith("int4"):
            self.kernel.add(f"{y} *= 0.125")
