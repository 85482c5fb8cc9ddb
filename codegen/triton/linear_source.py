"""The input rows of a linear, as its kernels read them: stored rows, or what one operation makes of them."""

from dataclasses import dataclass, replace

from llmc.codegen.layout import Axis, View, reshape
from llmc.codegen.regions import RowOp
from llmc.codegen.triton.kernel import KernelText, offset

STEP = 256
"""Columns read at once where the statistics of a row are taken."""


@dataclass(frozen=True)
class At:
    """Where in a kernel: names or expressions of columns and rows that broadcast, and of conditions ("" for none)."""

    column: str
    row: str
    inside: str = ""
    """The rows and columns that there are."""
    known: str = ""
    """The columns that there are, where only they matter."""


@dataclass(frozen=True)
class Source:
    """Rows of k columns."""

    value: View | RowOp
    k: int
    half: bool = False
    """Whether values will be rounded to float16, which those that are not scaled yet may not fit."""

    @property
    def op(self) -> str:
        """The operation; "" where rows are read as they are."""
        return self.value.op if isinstance(self.value, RowOp) else ""

    @property
    def squares(self) -> bool:
        """Whether a kernel adds up squares beside its products, and scales the result: a norm at no cost."""
        return self.op == "rms_norm" and not self.half

    @property
    def statistics(self) -> bool:
        """Whether means of the rows are needed before their values."""
        return self.op == "layer_norm" or (self.op == "rms_norm" and self.half)

    @property
    def plain(self) -> bool:
        """Whether the rows are read as they are."""
        return not self.op

    def read(self, kernel: KernelText, name: str, at: At, row: str, pad: str = "") -> None:
        """Add lines that set `name` to fp32 values, but for the scale of `squares`.

        row: how the statistics of the rows broadcast against the values, such as "[None, :]".
        """
        if isinstance(self.value, View):
            kernel.add(f"{pad}{name} = {load(kernel, self.value, 'inputs', at, self.k)}")
            return
        operands = [value for value in self.value.inputs if isinstance(value, View)]
        roles = ("gate", "up") if self.op == "gated_act" else ("inputs",)
        if self.op in ("rms_norm", "layer_norm"):
            kernel.add(f"{pad}{name} = {load(kernel, operands[0], 'inputs', at, self.k)}")
            if self.squares:
                return
            self._scale(kernel, name, at, row, pad)
            return
        texts = [load(kernel, view, role, at, self.k) for view, role in zip(operands, roles, strict=True)]
        if self.op == "gated_act":
            act = kernel.call("numbers", str(self.value.attrs["act"]))
            kernel.add(f"{pad}{name} = {act}({texts[0]}) * {texts[1]}")
        elif self.op == "neg":
            kernel.add(f"{pad}{name} = -{texts[0]}")
        else:
            kernel.add(f"{pad}{name} = {kernel.call('numbers', self.op)}({texts[0]})")

    @property
    def narrow_weight(self) -> bool:
        """Whether the weight of a norm is of bfloat16 as it is."""
        weight = self.value.inputs[1] if isinstance(self.value, RowOp) else None
        return isinstance(weight, View) and weight.buffer.dtype == "bf16" and not self._offset

    def weigh(
        self, kernel: KernelText, name: str, at: At, pad: str = "", *, narrow: bool = False, few: bool = False
    ) -> None:
        """Add the line that multiplies `name` by the norm's weight, if it has one.

        narrow: as bfloat16. few: whether there are fewer than two columns for each thread, so that a weight of
        bfloat16 is read by words of two: loads in the background are of four bytes at least.
        """
        assert isinstance(self.value, RowOp), "norms are operations"
        weight = self.value.inputs[1]
        if not isinstance(weight, View):
            return
        text = self._weight(kernel, weight, at)
        if few and self.narrow_weight and self.k % 2 == 0 and weight.is_contiguous and weight.offset == 0:
            words = f"{kernel.pointer(weight.buffer, 'norm_weight')}.to(tl.pointer_type(tl.int32))"
            mask = f", mask={at.known}, other=0" if at.known else ""
            word = f"tl.load({words} + {at.column} // 2{mask}) >> ({at.column} % 2 * 16)"
            text = f"({word}).to(tl.int16).to(tl.bfloat16, bitcast=True).to(tl.float32)"
        kernel.add(f"{pad}{name} *= {text.removesuffix('.to(tl.float32)') if narrow else text}")

    def scale(self, squares: str) -> str:
        """The scale of a row, of its sum of squares."""
        return f"tl.rsqrt({squares} / {self.k} + {self._eps})"

    def measure(self, kernel: KernelText, row: str, inside: str, column: str, spread: str, rows: int) -> None:
        """Add lines that set `mean` (of a layer norm) and `scale` of the rows.

        row, inside: the rows, and which there are, as they broadcast against columns; column: how columns broadcast;
        spread: how the rows' statistics do; rows: how many there are, 0 for one that is no vector.
        """
        assert isinstance(self.value, RowOp), "norms are operations"
        x = self.value.inputs[0]
        assert isinstance(x, View), "a norm has an input"
        zero = f"tl.zeros(({rows},), tl.float32)" if rows else "0.0"
        tail = self.k % STEP != 0
        centred = self.op == "layer_norm"
        for name in ("mean", "scale") if centred else ("scale",):
            kernel.add(f"{name} = {zero}", f"for start in range(0, {self.k}, {STEP}):")
            kernel.add(f"    column = (start + tl.arange(0, {STEP})){column}")
            known = f"(column < {self.k})" if tail else ""
            at = At("column", row, " & ".join(part for part in (inside, known) if part), known)
            kernel.add(f"    x = {load(kernel, x, 'inputs', at, self.k)}")
            if name == "scale" and centred:
                kernel.add(
                    f"    x -= mean{spread}" if not tail else f"    x = tl.where({known}, x - mean{spread}, 0.0)"
                )
            kernel.add(f"    {name} += tl.sum({'x' if name == 'mean' else 'x * x'}, 0)")
            kernel.add(f"mean /= {self.k}" if name == "mean" else f"scale = {self.scale('scale')}")

    def _scale(self, kernel: KernelText, name: str, at: At, row: str, pad: str) -> None:
        assert isinstance(self.value, RowOp), "norms are operations"
        text = f"({name} - mean{row}) * scale{row}" if self.op == "layer_norm" else f"{name} * scale{row}"
        weight, bias = (*self.value.inputs, None, None)[1:3]
        if isinstance(weight, View):
            text += f" * {self._weight(kernel, weight, at)}"
        if isinstance(bias, View):
            text += f" + {load(kernel, bias, 'norm_bias', replace(at, inside=at.known), self.k)}"
        kernel.add(f"{pad}{name} = {text}")

    def _weight(self, kernel: KernelText, weight: View, at: At) -> str:
        text = load(kernel, weight, "norm_weight", replace(at, inside=at.known), self.k)
        return f"({text} + {self._offset!r})" if self._offset else text

    @property
    def _offset(self) -> float:
        """What is added to the weight of a norm."""
        assert isinstance(self.value, RowOp), "norms are operations"
        return float(self.value.attrs.get("offset", 0.0))  # type: ignore[arg-type]

    @property
    def _eps(self) -> float:
        assert isinstance(self.value, RowOp), "norms are operations"
        return float(self.value.attrs["eps"])  # type: ignore[arg-type]


def load(kernel: KernelText, view: View, role: str, at: At, size: int) -> str:
    """The fp32 values of columns of a view of `size` columns, or of one that is the same for all."""
    address = f"{kernel.pointer(view.buffer, role)} + {place(kernel, view, at.row, at.column, size)}"
    address = address.removesuffix(" + 0")
    inside = at.inside
    if view.elements == 1:
        if view.domain:
            address += f" + 0 * {at.column}"  # one column: the pointer gets the shape of what is inside
        else:
            inside = ""
    text = f"tl.load({address}, mask={inside}, other=0.0)" if inside else f"tl.load({address})"
    return text if view.buffer.dtype == "f32" else f"{text}.to(tl.float32)"


def place(kernel: KernelText, view: View, row: str, column: str, size: int) -> str:
    """The offset of columns of a view's rows, whatever its axes; row "0" is the first."""
    rows = kernel.step("rows") if view.indirect else "rows"
    flat = View(view.buffer, _columns(view, size), view.offset, view.indirect)
    inner, indices = 1, list[str]()
    for number, axis in reversed(list(enumerate(flat.axes))):
        assert axis.size is not None, "the row axis is no column"
        text = column if inner == 1 else f"({column} // {inner})"
        indices.insert(0, text if number == 0 else f"({text} % {axis.size})")
        inner *= axis.size
    found = offset(flat, row, indices, rows)
    return found if view.indirect or row != "0" else found.removeprefix(f"0 * {view.buffer.width} + ")


def _columns(view: View, size: int) -> tuple[Axis, ...]:
    if view.elements == 1 and size != 1:
        return ()
    fixed = replace(view, axes=view.fixed)
    merged = reshape(fixed, (size,))
    return merged.axes if merged is not None else tuple(axis for axis in fixed.axes if axis.size != 1)
