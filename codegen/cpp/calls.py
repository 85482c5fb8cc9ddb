"""Calls of generated functions: what each parameter is given, outside of loops and inside of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmc.codegen.cpp.function import TYPES, Function
from llmc.codegen.layout import Buffer
from llmc.codegen.regions import Region
from llmc.codegen.repeats import Item
from llmc.codegen.walk import written


@dataclass(frozen=True)
class Call:
    """A region's function, with what a call of it passes told apart by kind."""

    region: Region
    function: Function
    buffers: tuple[Buffer, ...]
    """Buffers that are no weights, in the order of the parameters."""
    weights: tuple[str, ...]
    """Every weight that the call passes, in order; a name may come twice."""
    caches: tuple[str, ...]

    @property
    def item(self) -> Item:
        """The call as far as repetition is concerned."""
        outputs = {buffer.key for buffer in written(self.region)}
        return Item(
            key=(self.function.kind, self.function.text(), tuple(_shape(text) for _, text in self.function.extra)),
            inputs=tuple(_value(buffer) for buffer in self.buffers if buffer not in self.function.written),
            outputs=tuple(_value(buffer) for buffer in self.buffers if buffer.key in outputs),
            weights=self.weights,
            caches=self.caches,
        )


def _value(buffer: Buffer) -> object:
    return buffer.name if buffer.place == "step" else buffer.key


def _shape(text: str) -> str:
    """An argument without the names that differ from layer to layer."""
    kind, names = split(text)
    return kind if kind in ("weights", "cache") else f"{kind}{names}"


def split(text: str) -> tuple[str, list[str]]:
    """An argument such as `weights(a, b)` as its kind and names."""
    kind, found, rest = text.partition("(")
    return (kind, [part.strip() for part in rest.rstrip(")").split(",") if part.strip()]) if found else (text, [])


def make_call(region: Region, function: Function) -> Call:
    """The call of a region's function."""
    buffers = tuple(buffer for buffer in function.pointers if buffer.place != "weight")
    weights = [buffer.name for buffer in function.pointers if buffer.place == "weight"]
    caches: list[str] = []
    for _, text in function.extra:
        kind, names = split(text)
        weights += names if kind == "weights" else []
        caches += names if kind == "cache" else []
    return Call(region, function, buffers, tuple(weights), tuple(caches))


@dataclass
class Arguments:
    """Spells the arguments of calls."""

    index: Mapping[str, int]
    """Place of each weight among those that the program takes."""
    offsets: Mapping[object, int]
    """Place of each buffer in the arena, by key."""
    twin: Mapping[object, object]
    """The buffer in whose place another is."""
    crossovers: dict[tuple[str, ...], int] = field(default_factory=dict)

    def spell(self, call: Call, weights: Sequence[str] | None = None, caches: Sequence[str] | None = None) -> str:
        """The arguments after team and run; `weights` and `caches` are C++ in place of the call's own indices."""
        numbers = iter(weights or [str(self.index[name]) for name in call.weights])
        layers = iter(caches or call.caches)
        passed = []
        for buffer in call.function.pointers:
            kind = TYPES[buffer.dtype]
            if buffer.place == "weight":
                passed.append(f"run.weight<{kind}>({next(numbers)})")
            elif buffer.place == "logits":
                passed.append("run.logits")
            elif buffer.place == "step":
                passed.append(f"run.step.{buffer.name}")
            else:
                passed.append(f"run.buffer<{kind}>({self.offsets[self.twin.get(buffer.key, buffer.key)]})")
        for _, text in call.function.extra:
            sort, names = split(text)
            if sort == "weights":
                parts = [f"run.weights[{next(numbers)}]" for _ in names]
                passed.append(f"Weights{{{', '.join([*parts, 'nullptr', 'nullptr'][:3])}}}")
            elif sort == "cache":
                passed.append(f"run.cache<Element>({next(layers)})")
            elif sort == "crossover":
                passed.append(f"run.crossovers[{self.crossovers.setdefault(tuple(names), len(self.crossovers))}]")
            else:
                passed.append(f"run.{text}" if text.startswith("shared") else text)
        return ", ".join(["team", "run", *passed])
