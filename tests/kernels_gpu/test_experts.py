"""Mixtures of experts against the dialect's op: every format, few tokens and many, whatever the order of programs."""

import pytest
import torch
from support.rearranged_weights import TYPES, part_names, rearranged
from support.triton_interpreter import launch, load_kernels

from llmc.codegen.layout import Buffer, View, fresh
from llmc.codegen.regions import Experts
from llmc.codegen.select import Crossovers
from llmc.codegen.target import Target
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_experts import FEW, FULL, emit_experts
from llmc.codegen.triton.kernel import Draft, KernelText, module_text
from llmc.codegen.triton.linear_formats import FORMS
from llmc.ir.ops import activate_expert
from llmc.ir.packed_formats import unpack
from llmc.ir.packed_layout import tile_count

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i64": torch.int64}


def kernels_of(drafts: list[Draft]) -> object:
    return load_kernels(module_text({f"kernel_{i}": draft.kernel for i, draft in enumerate(drafts)}, "Experts."))


class Mixture:
    """A mixture with random weights, and the memory of its launches."""

    def __init__(self, tokens: int, format: str, *, gated: bool = True, bias: bool = False, **attrs: object) -> None:
        self.t, self.e, self.k, self.d, self.f = tokens, 5, 2, 72, 40
        self.gated, self.attrs = gated, {"act": "silu", "limit": 0.0, "up_offset": 0.0} | attrs
        generator = torch.Generator().manual_seed(tokens)
        self.x = torch.randn(tokens, self.d, generator=generator)
        self.ids = torch.rand(tokens, self.e, generator=generator).topk(self.k).indices
        self.ids[:, 0][self.ids[:, 0] == 3] = 1  # an expert of which there are few
        self.gates = torch.rand(tokens, self.k, generator=generator)
        up_rows = 2 * self.f if gated else self.f
        self.format = format
        self.memory: dict[object, torch.Tensor] = {}
        self.dense = {}
        for name, rows, columns in (("up", up_rows, self.d), ("down", self.d, self.f)):
            weight = torch.randn(self.e, rows, columns, generator=generator) / columns**0.5
            parts, memory = rearranged(name, weight, format)
            self.memory |= memory
            tiles = tile_count(rows)
            self.dense[name] = torch.stack([
                unpack([part[e * tiles : (e + 1) * tiles] for part in parts], format, rows, columns)
                for e in range(self.e)
            ])  # fmt: skip
        self.biases = {}
        for name, rows in (("up", up_rows), ("down", self.d)):
            self.biases[name] = torch.randn(self.e, rows, generator=generator) if bias else None
        self.region = self._region(up_rows)

    def _value(self, key: int, data: torch.Tensor, domain: str, place: str = "arena") -> View:
        width = data.shape[-1] if domain else data.numel()
        kind = next(name for name, dtype in DTYPES.items() if dtype == data.dtype)
        buffer = Buffer(key, f"b{key}", domain, width, kind, place)  # type: ignore[arg-type]
        self.memory[buffer.name if place == "weight" else key] = data.reshape(-1)
        return fresh(buffer, (None, width) if domain else tuple(data.shape))

    def _region(self, up_rows: int) -> Experts:
        biases = [
            None if b is None else self._value(10 + i, b, "", "weight") for i, b in enumerate(self.biases.values())
        ]
        attrs = self.attrs | {
            "up_format": self.format, "down_format": self.format, "experts": self.e, "width": self.f,
            "gated": self.gated,
        }  # fmt: skip
        self.y = torch.full((self.t, self.d), float("nan"))
        source, ids, gates, output = (
            self._value(i, data, "T") for i, data in enumerate((self.x, self.ids, self.gates, self.y))
        )
        up, down = (part_names(name, self.format) for name in ("up", "down"))
        return Experts("moe", "", "T", source, ids, gates, up, down, biases[0], biases[1], output, attrs, ())

    def run(self, level: str = "sm_80") -> list[KernelText]:
        """Run the launches of a step of so many tokens; all that they are to write must be written."""
        drafts = emit_experts(self.region, Context(Target.preset(level), Crossovers(), (), 128, 100))
        module, sizes = kernels_of(drafts), {"T": self.t}
        made = []
        for number, draft in enumerate(drafts):
            if not draft.when.holds(sizes):
                continue
            arguments = [self._argument(ref, type) for ref, (_, type) in zip(
                draft.kernel.refs, draft.kernel.parameters, strict=True)]  # fmt: skip
            done = launch(
                getattr(module, f"kernel_{number}"), tuple(extent.at(sizes) for extent in draft.grid), *arguments
            )
            done.assert_written_once(arguments[-1])
            made.append(draft.kernel)
        return made

    def _argument(self, ref: object, type: str) -> object:
        buffer, argument = ref.buffer, ref.argument  # type: ignore[attr-defined]
        if buffer is None:
            return self.t if argument.kind == "size" else self.memory[argument.name].view(TYPES[type])
        if buffer.key not in self.memory:
            rows = self.t if buffer.domain else 1
            filler = 1 << 40 if buffer.dtype == "i64" else float("nan")
            self.memory[buffer.key] = torch.full((rows * buffer.width,), filler, dtype=DTYPES[buffer.dtype])
        return self.memory[buffer.key]

    def wanted(self) -> torch.Tensor:
        """What the op means, with activations rounded as the kernels round them."""
        kind = {"f32": torch.float32, "f16": torch.float16}.get(self.format, torch.bfloat16)
        dense = self.dense
        if self.t > FEW and FORMS[self.format].group and self.format != "int4m":  # weights of many slots are rounded
            dense = {role: value.bfloat16() for role, value in dense.items()}
        y = torch.zeros(self.t, self.d, dtype=torch.float64)
        for token in range(self.t):
            for place, expert in enumerate(self.ids[token].tolist()):
                hidden = dense["up"][expert].double() @ self.x[token].to(kind).double()
                if self.biases["up"] is not None:
                    hidden += self.biases["up"][expert]
                given = (self.attrs[name] for name in ("limit", "up_offset"))
                hidden = activate_expert(hidden, str(self.attrs["act"]), self.gated, False, *given)  # type: ignore[arg-type]
                result = dense["down"][expert].double() @ hidden.float().to(kind).double()
                if self.biases["down"] is not None:
                    result += self.biases["down"][expert]
                y[token] += result * self.gates[token, place]
        return y

    def check(self, error: float = 3e-6) -> None:
        self.run()
        wanted = self.wanted()
        found = (self.y.double() - wanted).abs().max() / wanted.std()
        assert found < error, f"{self.format}, {self.t} tokens: {float(found):.2e}"


@pytest.mark.parametrize("tokens", [1, 5, 12, FEW + 5])
@pytest.mark.parametrize("format", FORMS)
def test_all_formats_compute_what_the_op_means(format: str, tokens: int) -> None:
    # a hidden value near a rounding edge may fall either way, where activations are rounded
    Mixture(tokens, format).check(3e-6 if format == "f32" else 3e-3)


@pytest.mark.parametrize("tokens", [3, FEW + 1])
def test_experts_without_a_gate_and_with_biases(tokens: int) -> None:
    Mixture(tokens, "f32", gated=False, bias=True, act="relu2").check()


@pytest.mark.parametrize("tokens", [2, FEW + 1])
def test_limits_and_offsets_of_gates(tokens: int) -> None:
    Mixture(tokens, "f32", bias=True, act="quick_gelu", limit=0.5, up_offset=1.0).check()


def test_steps_of_few_and_of_many_tokens_run_other_kernels() -> None:
    kinds = [[kernel.kind for kernel in Mixture(tokens, "int8").run("sm_90")] for tokens in (1, FEW, FEW + 1)]
    assert kinds[0] == kinds[1] == ["experts_up", "experts_down", "experts_sum"]
    assert kinds[2] == ["experts_rows", "experts_sort", "experts_up", "experts_down", "experts_sum"]


@pytest.mark.parametrize("format", ["bf16", "fp8", "int4", "int4m"])
def test_many_slots_of_each_expert(format: str) -> None:
    mixture = Mixture(FULL * 5 // 2 + 3, format)
    assert any("up to 64 slots" in kernel.comment for kernel in mixture.run("sm_90"))
    Mixture(FULL * 5 // 2 + 3, format).check(3e-3)


def test_an_expert_that_all_tokens_choose_has_several_tiles() -> None:
    mixture = Mixture(FEW, "f32")
    mixture.ids[:, 0], mixture.ids[:, 1] = 2, 4
    mixture.check()
