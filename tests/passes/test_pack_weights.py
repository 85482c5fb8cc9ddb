"""Packing the weights of a model: which ops are replaced, in which formats, how that is justified, and what is not."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from support.check_pass import check_pass, op_counts, trace
from support.tiny_models import tiny, tokens
from torch import Tensor, fx, nn

from llmc.codegen.cpp.emit import emit
from llmc.codegen.reference import cache_specs
from llmc.codegen.unlowered import Unlowered
from llmc.frontend.hf import from_module
from llmc.ir.cache_formats import CACHE_FORMATS, stored_width
from llmc.ir.interpret import interpret
from llmc.ir.model import Model
from llmc.ir.pass_manager import run_passes
from llmc.ir.rewrite import Rewriter
from llmc.ir.serialize import load_graph, save_graph
from llmc.ir.verify import verify
from llmc.ir.weights import Expr, Source, evaluate_each
from llmc.passes.fold_constants import FoldConstants
from llmc.passes.narrow_cache import NarrowCache
from llmc.passes.pack_weights import PackWeights
from llmc.pipeline import pipeline
from llmc.quantize import weight_packing

DYNAMIC = {0: [0]}


class Tied(nn.Module):
    """A table of 50 rows of 40, a hidden layer with a bias, and logits by the table."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(50, 40, dtype=dtype))
        self.hidden = nn.Linear(40, 40, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.relu(self.hidden(nn.functional.embedding(ids, self.table)))
        return nn.functional.linear(x, self.table)


IDS = torch.tensor([3, 49, 0, 16, 17])


def packed(module: nn.Module, step: PackWeights, example: Tensor = IDS) -> tuple[Model, Rewriter]:
    """The model of `module` after `step`, checked for validity, and the rewriter."""
    model = trace(module.eval(), example, dynamic=DYNAMIC)
    rewriter = Rewriter(model)
    step.run(model, rewriter)
    model.drop_unused_weights()
    verify(model)
    assert step.run(model, Rewriter(model)) == 0
    return model, rewriter


def formats(model: Model) -> list[str]:
    """The formats of the linears, in order."""
    return [str(node.args[3]) for node in model.calls(torch.ops.llmc.linear_packed.default)]


@pytest.mark.parametrize(
    ("dtype", "format"), [(torch.float32, "f32"), (torch.float16, "f16"), (torch.bfloat16, "bf16")]
)
def test_floats_stay_as_they_are_bit_for_bit(dtype: torch.dtype, format: str) -> None:
    model, rewriter = packed(Tied(dtype), PackWeights())
    assert formats(model) == [format, format]
    assert op_counts(model) == {"embedding_packed": 1, "linear_packed": 2, "relu": 1}
    assert sorted(model.weights) == ["hidden_bias", "hidden_weight_data", "table_data"]
    assert [done.error for done in rewriter.applied] == [0.0] * 3
    plain = trace(Tied(dtype).eval(), IDS, dynamic=DYNAMIC)
    assert torch.equal(interpret(model, (IDS,))[0], interpret(plain, (IDS,))[0])


def test_the_usual_checks_of_a_pass() -> None:
    check_pass(PackWeights(), Tied().eval(), IDS, dynamic=DYNAMIC, changes=3, refused=[])


def test_layers_are_stored_in_four_bits_and_the_logits_with_their_table_in_eight() -> None:
    model, rewriter = packed(Tied(), PackWeights("int4"))
    assert formats(model) == ["int4", "int8"]
    assert sorted(model.weights) == [
        "hidden_bias", "hidden_weight_quants", "hidden_weight_scales", "hidden_weight_zeros", "table_quants",
        "table_scales",
    ]  # fmt: skip
    by_node = {done.node: done.error for done in rewriter.applied}
    assert 0.001 < by_node["embedding"] == by_node["linear_1"] < 0.01
    assert 0.03 < by_node["linear"] < 0.1
    assert formats(packed(Tied(), PackWeights("int4", head="int4"))[0]) == ["int4", "int4"]
    assert formats(packed(Tied(), PackWeights("int8"))[0]) == ["int8", "int8"]


def test_what_the_options_ask_for() -> None:
    def asked(quantize: str | None, kind: str = "huggingface", head: str | None = None) -> list[str]:
        return formats(packed(Tied(), weight_packing(quantize, kind, head))[0])

    assert asked(None) == ["f32", "f32"]
    assert asked("int4") == ["int4", "int8"]
    assert asked("int4", head="int6") == ["int4", "int6"]
    assert asked("int4:64") == ["int4g64", "int6"]
    assert asked("int4:128", head="int8") == ["int4g128", "int8"]
    assert asked("int8") == ["int8", "int8"]
    assert asked("int6", head="float") == ["int6", "f32"]
    assert asked("fp8") == ["fp8", "fp8"]
    assert weight_packing(None, "gguf").weights == "keep"


def test_a_large_head_has_six_bits() -> None:
    assert formats(packed(Tied(), PackWeights("int4", large_head=50 * 40))[0]) == ["int4", "int6"]
    assert formats(packed(Tied(), PackWeights("int4", large_head=50 * 40 + 1))[0]) == ["int4", "int8"]
    assert formats(packed(Tied(), PackWeights("int4", head="int8", large_head=1))[0]) == ["int4", "int8"]


def test_parts_of_a_weight_are_evaluated_together_and_survive_the_artifact() -> None:
    model, _ = packed(Tied(), PackWeights("int4"))
    recipes = [model.weights[f"table_{part}"] for part in ("quants", "scales")]
    assert all(isinstance(recipe, Expr) and recipe.output == place for place, recipe in enumerate(recipes))
    values = dict(evaluate_each(model.weights))
    again = load_graph(save_graph(model.graph_module, model.weights))
    (found,) = fx.Interpreter(again).run(*(values[name] for name in again.meta["weights"]), IDS)
    assert torch.equal(found, interpret(model, (IDS,))[0])


def test_what_is_smaller_than_a_tile_stays_in_floats() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.few, self.short, self.last = nn.Linear(40, 15), nn.Linear(15, 40), nn.Linear(40, 48)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.short(self.few(x)))

    model, _ = packed(Small(), PackWeights("int8"), torch.randn(5, 40))
    assert formats(model) == ["f32", "f32", "int8"]


def test_why_a_linear_is_left_alone() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.shared, self.plain = nn.Parameter(torch.randn(40, 40)), nn.Parameter(torch.randn(40, 40))

        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.linear(x, self.shared) * self.shared[0]
            return nn.functional.linear(y, torch.relu(self.plain))

    model, rewriter = packed(Odd(), PackWeights("int8"), torch.randn(5, 40))
    assert [near.reason for near in rewriter.refused] == [
        "select also reads its weight shared",
        "its weight relu is computed in the graph",
    ]
    assert op_counts(model)["linear"] == 2


@dataclass
class Rows:
    data: npt.NDArray[np.uint8]


class Stored:
    """A reader of one Q8_0 matrix [40, 64] and one of floats that were Q5_K, as a GGUF reader gives them."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self.scales = (draw.random((40, 2)) / 100 + 0.01).astype(np.float16)
        self.q = draw.integers(-127, 128, (40, 2, 32)).astype(np.int8)

    def names(self) -> list[str]:
        return ["kept", "rounded"]

    def key(self, name: str) -> str:
        return name

    def shape(self, key: str) -> tuple[int, ...]:
        return (40, 64) if key == "kept" else (64, 40)

    def dtype(self, key: str) -> torch.dtype:
        return torch.float32

    def read(self, key: str) -> Tensor:
        values = torch.from_numpy(self.scales.astype(np.float32)[..., None] * self.q).reshape(40, 64)
        return values if key == "kept" else values.reshape(64, 40)

    def stored_type(self, key: str) -> str:
        return "Q8_0" if key == "kept" else "Q5_K"

    def blocks(self, key: str) -> Rows:
        joined = np.concatenate([self.scales[..., None].view(np.uint8), self.q.view(np.uint8)], axis=-1)
        return Rows(joined.reshape(40, 68) if key == "kept" else np.zeros((64, 33), np.uint8))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept, self.rounded = nn.Parameter(torch.zeros(40, 64)), nn.Parameter(torch.zeros(64, 40))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.kept), self.rounded)


def stored_model() -> Model:
    model, reader = trace(Two().eval(), torch.randn(5, 64), dynamic=DYNAMIC), Stored()
    for name in ("kept", "rounded"):
        model.weights[name] = Source.of(reader, name)
    return model


def test_what_a_file_stores_is_kept_and_other_types_are_rounded_to_eight_bits() -> None:
    model = stored_model()
    rewriter = Rewriter(model)
    assert PackWeights("keep").run(model, rewriter) == 2
    verify(model)
    assert formats(model) == ["int8", "int8"]
    assert [done.error == 0 for done in rewriter.applied] == [True, False]
    assert model.weights["kept_quants"].describe() == "pack_blocks(kept, 'Q8_0', 64)[0]"
    assert model.weights["rounded_quants"].describe() == "pack_weight(rounded, 'int8')[0]"


def test_joined_weights_of_one_type_are_kept_too() -> None:
    model = stored_model()
    kept = model.weights["kept"]
    model.weights["kept"] = Expr.of(torch.ops.aten.cat.default, [kept], 0)
    rewriter = Rewriter(model)
    PackWeights("keep").run(model, rewriter)
    assert rewriter.applied[0].error == 0
    assert model.weights["kept_quants"].describe() == "pack_blocks(cat((kept), 0), 'Q8_0', 64)[0]"


FAMILIES: dict[str, dict[str, object]] = {
    "llama": {"intermediate_size": 40},
    "mixtral": {},
    "gpt_oss": {},
    "qwen2_moe": {"shared_expert_intermediate_size": 24},
}


def compiled(family: str) -> Model:
    """The packed step of a tiny model, its weights as they are."""
    model = from_module(tiny(family, hidden_size=64, **FAMILIES[family]))
    run_passes(model, pipeline(), prove=False)
    return model


def step_inputs(model: Model) -> list[Tensor]:
    """One step of a sequence of 9 tokens, with caches of one block of 16."""
    ids = tokens(9)[0]
    caches = [node.meta["val"] for node in model.inputs() if "_cache_" in node.name]
    numbers = torch.arange(9)
    return [
        ids, numbers, numbers, torch.tensor([0, 9]), torch.tensor([9]), torch.tensor([[0]]), numbers,
        *(torch.zeros(1, 16, *cache.shape[2:], dtype=cache.dtype) for cache in caches),
    ]  # fmt: skip


def before_and_after(model: Model, step: PackWeights | NarrowCache) -> tuple[Tensor, Tensor]:
    """Logits before `step` and after it."""
    before = interpret(model, step_inputs(model))[0]
    run_passes(model, {"pack": (step, FoldConstants())})
    return before, interpret(model, step_inputs(model))[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_models_compute_the_same_with_packed_floats(family: str) -> None:
    model = compiled(family)
    wanted, found = before_and_after(model, PackWeights())
    assert not {"linear", "moe", "pack_weight", "permute"} & set(op_counts(model))
    assert set(formats(model)) == {"f32"}
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_are_rounded_and_what_chooses_among_them_is_not(family: str) -> None:
    model = compiled(family)
    wanted, found = before_and_after(model, PackWeights("int8"))
    assert [node.args[7:9] for node in model.calls(torch.ops.llmc.moe_packed.default)] == [("int8", "int8")] * 2
    assert formats(model) == ["int8", "int8", "f32"] * 2 + ["int8"]
    assert ((found - wanted).square().mean() / wanted.square().mean()).sqrt() < 0.1


def test_a_table_of_its_own_stays_in_floats() -> None:
    model = compiled("llama")
    before_and_after(model, PackWeights("int4"))
    assert op_counts(model)["embedding"] == 1
    assert formats(model) == ["int4"] * 8 + ["int8"]


def test_stopping_early_leaves_a_valid_model() -> None:
    model = trace(Tied().eval(), IDS, dynamic=DYNAMIC)
    rewriter = Rewriter(model, stop_after=2)
    assert PackWeights("int4").run(model, rewriter) == 2
    model.drop_unused_weights()
    verify(model)
    assert "table" in model.weights


@pytest.mark.parametrize(("name", "error"), [("float16", 0.01), ("bfloat16", 0.02), ("int8", 0.04), ("fp8", 0.2)])
def test_a_narrow_cache_rounds_keys_and_values(name: str, error: float) -> None:
    model = compiled("llama")
    widths = [int(node.meta["val"].shape[3]) for node in caches_of(model)]
    wanted, found = before_and_after(model, NarrowCache(name))
    rewriter = Rewriter(model)
    assert NarrowCache(name).run(model, rewriter) == 0
    dtype = CACHE_FORMATS[name]
    assert {node.meta["val"].dtype for node in caches_of(model)} == {dtype}
    assert [int(node.meta["val"].shape[3]) for node in caches_of(model)] == [stored_width(w, dtype) for w in widths]
    assert [(spec.dtype, spec.key_size) for spec in cache_specs(model)] == [(name, width) for width in widths[::2]]
    assert 0 < ((found - wanted).square().mean() / wanted.square().mean()).sqrt() < error


def caches_of(model: Model) -> list[fx.Node]:
    """The inputs of a packed step that are caches: K and V of each layer."""
    return [node for node in model.inputs() if "_cache_" in node.name]


def test_a_cache_in_fp8_has_no_native_form() -> None:
    model = compiled("llama")
    run_passes(model, {"pack": (NarrowCache("fp8"), PackWeights(), FoldConstants())})
    with pytest.raises(Unlowered, match="a cache in fp8; use float32, float16, bfloat16, int8"):
        emit(model, cache_specs(model))


def test_folding_and_keeping_apart_follow_from_how_weights_are_stored() -> None:
    def names(pack: PackWeights | None) -> list[str]:
        return [step.name for step in pipeline(pack)["specialize"]]

    assert "fold_norm_weights" in names(None)
    assert "fold_norm_weights" in names(PackWeights())
    assert "fold_norm_weights" not in names(PackWeights("int8"))
    assert list(pipeline(PackWeights(), "float16"))[-2:] == ["cache", "pack"]
    assert isinstance(pipeline(PackWeights())["pack"][-1], FoldConstants)
