"""What is done with the sums of a linear before they are stored: bias, gate, chain, or the way of heads."""

from dataclasses import dataclass, replace

from llmc.codegen.layout import Scalar, View
from llmc.codegen.regions import ChainStep, HeadPart, Linear
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_cache import store_cached
from llmc.codegen.triton.kernel import KernelText, literal
from llmc.codegen.triton.linear_rows import Owned, rotation, runs
from llmc.codegen.triton.linear_source import At, load, place

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


@dataclass(frozen=True)
class Sums:
    """Sums of products in a kernel: names of one tensor for each set of rows, and what they are the results of."""

    values: tuple[str, ...]
    index: str
    """What the program owns, as it broadcasts against the values."""
    row: str
    """Rows of activations, likewise; "0" and the like for one."""
    owned: str
    """Which of the indices there are; "" for all."""
    inside: str
    """Which of the values there are; "" for all."""
    present: str = ""
    """Which of the rows there are; "" for all."""

    def at(self, column: str) -> At:
        """A column of the values in a kernel."""
        return At(column, self.row, self.inside, self.owned)


def finishes(region: Linear, context: Context) -> bool:
    """Whether heads can be finished by the programs that compute them, which own pairs of elements and not heads."""
    turns = {(part.rotation.size, part.rotation.interleaved) for part in region.parts if part.rotation is not None}
    scaled = any(
        part.role in "kv" and context.caches[part.layer].dtype not in ("float32", "float16", "bfloat16")
        for part in region.parts
    )
    return len(turns) <= 1 and not scaled and all(part.norm is None for part in region.parts)


def finish(kernel: KernelText, context: Context, region: Linear, owned: Owned, sums: Sums) -> None:
    """Add the lines that turn sums into results and store them."""
    if region.parts:
        _heads(kernel, context, region, owned, sums)
    else:
        _chain(kernel, region, sums)


def store_sums(kernel: KernelText, target: View, sums: Sums) -> None:
    """Add the line that stores sums as they are."""
    store(kernel, target, sums.values[0], sums.at(sums.index), target.elements)


def store(kernel: KernelText, target: View, value: str, at: At, columns: int) -> None:
    """Add the line that stores values in columns of a view."""
    address = f"{kernel.pointer(target.buffer, 'y')} + {place(kernel, target, at.row, at.column, columns)}"
    if not target.domain and at.row != "0":
        address += f" + 0 * {at.row}"  # one row: the pointer gets the shape of the value
    if columns == 1:
        address += f" + 0 * {at.column}"
    kernel.add(f"tl.store({address}, {value}{f', mask={at.inside}' if at.inside else ''})")


def _chain(kernel: KernelText, region: Linear, sums: Sums) -> None:
    target = region.target
    assert target is not None, "a linear without heads has a target"
    columns = region.n // 2 if region.gate else region.n
    for number, value in enumerate(sums.values):
        if region.bias is not None:
            column = sums.index if number == 0 else f"({sums.index} + {columns})"
            kernel.add(f"{value} += {_vector(kernel, region.bias, sums, column, region.n)}")
    y = sums.values[0]
    if region.gate:
        kernel.add(f"{y} = {kernel.call('numbers', region.gate)}({y}) * {sums.values[1]}")
    for step in region.chain:
        kernel.add(f"{y} = {_step(kernel, step, sums, y, columns)}")
    store(kernel, target, y, sums.at(sums.index), columns)


def _vector(kernel: KernelText, view: View, sums: Sums, column: str, size: int) -> str:
    return load(kernel, view, "bias", At(column, sums.row, sums.owned), size)


def _step(kernel: KernelText, step: ChainStep, sums: Sums, y: str, columns: int) -> str:
    if step.operand is None:
        return f"-{y}" if step.op == "neg" else f"{kernel.call('numbers', step.op)}({y})"
    if isinstance(step.operand, Scalar):
        other = literal(Scalar(float(step.operand.value), "f32"))
    else:
        inside = sums.inside if step.operand.domain else sums.owned
        role = "residual" if step.operand.domain else "operand"
        other = load(kernel, step.operand, role, At(sums.index, sums.row, inside), columns)
    left, right = (other, y) if step.swapped else (y, other)
    return f"{left} {_INFIX[step.op]} {right}"


def _heads(kernel: KernelText, context: Context, region: Linear, owned: Owned, sums: Sums) -> None:
    size = region.head_size
    per_head = owned.half or size
    kernel.add(f"unit = {sums.index} // {per_head}", f"element = {sums.index} % {per_head}")
    elements = owned.elements("element") if owned.half else ("element",)
    if region.bias is not None:
        for value, element in zip(sums.values, elements, strict=True):
            kernel.add(f"{value} += {_vector(kernel, region.bias, sums, f'(unit * {size} + {element})', region.n)}")
    period, found = runs(region.head_of)
    place_of, head = "unit", ""
    if period < len(region.head_of):
        kernel.add(f"place = unit % {period}")
        place_of, head = "place", f" + unit // {period} * "
    for run in found:
        part = region.parts[run.part]
        conditions = [f"({place_of} >= {run.first})"] if run.first else []
        conditions += [f"({place_of} < {run.last})"] if run.last < period else []
        among = " & ".join(part for part in [*conditions, sums.inside] if part)
        known = " & ".join(part for part in [*conditions, sums.owned] if part)
        shift = run.head - run.first
        text = place_of + (f" + {shift}" if shift > 0 else f" - {-shift}" if shift < 0 else "")
        text += f"{head}{run.step}" if head and run.step else ""
        here = replace(sums, inside=among, owned=known)
        values = _rotated(kernel, part, owned, here) if part.rotation is not None else sums.values
        for value, element in zip(values, elements, strict=True):
            put_head(kernel, context, part, value, here, text, element, size)


def put_head(
    kernel: KernelText, context: Context, part: HeadPart, value: str, sums: Sums, head: str, element: str, size: int
) -> None:
    """Add the line that stores elements of heads where the part says: in its target, or in the cache of its layer."""
    if part.role in ("k", "v"):
        slots = kernel.step("slots")
        rows = f", mask={sums.present}, other=0" if sums.present else ""
        store_cached(
            kernel, context, part.layer, part.role, slot=f"tl.load({slots} + {sums.row}{rows})", head=f"({head})",
            row=sums.row, column=element, value=value, mask=sums.inside or "True",
        )  # fmt: skip
        return
    assert part.target is not None, "heads that are not cached are stored"
    total = part.target.elements
    store(kernel, part.target, value, At(f"(({head}) * {size} + {element})", sums.row, sums.inside), total)


def _rotated(kernel: KernelText, part: HeadPart, owned: Owned, sums: Sums) -> tuple[str, str]:
    turn = part.rotation
    assert turn is not None and len(sums.values) == 2, "RoPE turns pairs"
    first, second = ("2 * element", "(2 * element + 1)") if turn.interleaved else (
        "element", f"(element + {turn.size // 2})")  # fmt: skip
    inside = sums.inside
    if turn.size < owned.size:
        inside = " & ".join(part for part in (f"(element < {turn.size // 2})", inside) if part)
    texts = {}
    for name, view in (("cos", turn.cos), ("sin", turn.sin)):
        for number, element in enumerate((first, second)):
            text = load(kernel, view, name, At(element, sums.row, inside), turn.size)
            texts[f"{name}{number}"] = text.replace("other=0.0", "other=1.0") if name == "cos" else text
    a, b = sums.values
    kernel.add(f"turned_0 = {a} * {texts['cos0']} - {b} * {texts['sin0']}")
    kernel.add(f"turned_1 = {b} * {texts['cos1']} + {a} * {texts['sin1']}")
    return "turned_0", "turned_1"


__all__ = ["Sums", "finish", "finishes", "put_head", "rotation", "store", "store_sums"]
