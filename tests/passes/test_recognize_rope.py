"""Rotary embeddings: every spelling becomes one op, what only looks like one is left alone and says why."""

from collections.abc import Callable

import pytest
import torch
from support.check_pass import assert_close, check_pass, op_counts, trace
from support.tiny_models import tiny_model, tokens
from torch import Tensor

from llmc.ir.interpret import interpret
from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.passes.canonicalize import Canonicalize
from llmc.passes.recognize_rope import RecognizeRope


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


X = randn(1, 2, 5, 8)
ANGLE = randn(1, 1, 5, 4)
HALF = (ANGLE.cos(), ANGLE.sin())
FULL = tuple(torch.cat((table, table), dim=-1) for table in HALF)
DYNAMIC = {0: [2], 1: [2], 2: [2]}


def half(x: Tensor) -> Tensor:
    size = x.shape[-1] // 2
    return torch.cat((-x[..., size:], x[..., :size]), dim=-1)


def pairs(x: Tensor) -> Tensor:
    return torch.cat(((-x[..., 1::2]).unsqueeze(-1), x[..., 0::2].unsqueeze(-1)), dim=-1).flatten(-2)


def tidied(function: Callable[..., Tensor], *examples: Tensor, rewriter: Rewriter | None = None) -> Model:
    model = trace(function, *examples, dynamic=DYNAMIC)
    Canonicalize().run(model, rewriter or Rewriter(model))
    return model


def check(
    function: Callable[..., Tensor],
    *examples: Tensor,
    counts: dict[str, int] | None = None,
    changes: int = 1,
    refused: tuple[str, ...] = (),
) -> Model:
    model = tidied(function, *examples)
    return check_pass(
        RecognizeRope(), model, *examples, dynamic=DYNAMIC, counts=counts, changes=changes, refused=refused
    )


def interleaved(model: Model) -> bool:
    (rope,) = model.calls(torch.ops.llmc.rope.default)
    return bool(rope.args[3])


def test_sums_of_products_that_turn_nothing_are_left_alone() -> None:
    check(lambda x, c, s: x * c + x * s, X, *FULL, changes=0, counts={"add": 1, "mul": 2})
    check(lambda x, c, s: (x + c) * s + half(x), X, *FULL, changes=0)


def by_chunks(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * c - b * s, b * c + a * s), dim=-1)


def by_chunks_of_tables(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    (a, b), (c, d), (s, t) = x.chunk(2, dim=-1), c.chunk(2, dim=-1), s.chunk(2, dim=-1)
    return torch.cat((a * c - b * s, b * d + a * t), dim=-1)


SPELLINGS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], bool, dict[str, int]]] = {
    "halves": (lambda x, c, s: x * c + half(x) * s, FULL, False, {"rope": 1}),
    "halves, swapped": (lambda x, c, s: s * half(x) + c * x, FULL, False, {"rope": 1}),
    "halves, chunked": (by_chunks, HALF, False, {"cat": 2, "rope": 1}),
    "halves, tables chunked": (by_chunks_of_tables, FULL, False, {"cat": 2, "rope": 1, "slice": 4}),
    "pairs": (lambda x, c, s: x * c + pairs(x) * s, FULL, True, {"rope": 1}),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_becomes_one_rope(name: str) -> None:
    function, tables, is_interleaved, counts = SPELLINGS[name]
    found = check(function, X, *tables)
    assert interleaved(found) == is_interleaved
    assert {op: count for op, count in op_counts(found).items() if op in ("rope", "cat", "neg", "mul")} == {
        op: count for op, count in counts.items() if op != "slice"
    }


def test_pairs_of_half_sized_tables_have_their_tables_interleaved() -> None:
    def split(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.cat(((a * c - b * s).unsqueeze(-1), (b * c + a * s).unsqueeze(-1)), dim=-1).flatten(-2)

    assert interleaved(check(split, X, *HALF))


def test_neighbours_written_to_halves_are_rearranged_first() -> None:
    def split(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.cat((a * c - b * s, b * c + a * s), dim=-1)

    found = check(split, X, *HALF, counts={"cat": 2, "permute": 1, "reshape": 2, "rope": 1})
    assert not interleaved(found)


def test_halves_written_to_neighbours_are_rearranged_first() -> None:
    def joined(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        a, b = x[..., :4], x[..., 4:]
        return torch.cat(((a * c - b * s).unsqueeze(-1), (b * c + a * s).unsqueeze(-1)), dim=-1).flatten(-2)

    assert interleaved(check(joined, X, *HALF))


def test_complex_products_become_real_ones() -> None:
    def turned(x: Tensor, length: Tensor, angle: Tensor) -> Tensor:
        turn = torch.polar(length, angle) * 1.5
        value = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(value * turn).flatten(3)

    found = check(turned, X, torch.ones_like(ANGLE), ANGLE)
    assert interleaved(found)
    assert not any("complex" in op or op in ("polar", "view_as_real") for op in op_counts(found))


def test_complex_tables_are_taken_apart() -> None:
    def turned(x: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
        value = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(value * torch.complex(real, imaginary)).flatten(3)

    assert op_counts(check(turned, X, *HALF))["rope"] == 1


def test_complex_tables_of_pairs_leave_nothing_complex() -> None:
    def turned(x: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
        turn = torch.view_as_complex(torch.stack((real, imaginary), dim=-1)) * 1.5
        value = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(value * turn).flatten(3)

    found = check(turned, X, *HALF)
    assert interleaved(found)
    assert not any("complex" in op or op == "view_as_real" for op in op_counts(found))


def test_a_complex_product_of_two_complex_numbers_is_no_rotation_of_one() -> None:
    def squared(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        value = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(value * value).flatten(3) * torch.cat((c, s), -1)

    check(squared, X, *HALF, changes=0)


@pytest.mark.parametrize("split", [True, False])
def test_lanes_that_pass_through_belong_to_the_rope(split: bool) -> None:
    def partial(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        turned, rest = x.split([8, 4], dim=-1) if split else (x[..., :8], x[..., 8:])
        return torch.cat((turned * c + half(turned) * s, rest), dim=-1)

    check(partial, randn(1, 2, 5, 12), *FULL, counts={"rope": 1})


def test_lanes_before_the_turned_ones_stay_outside() -> None:
    def last(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        rest, turned = x[..., :4], x[..., 4:]
        return torch.cat((rest, turned * c + half(turned) * s), dim=-1)

    check(last, randn(1, 2, 5, 12), *FULL, counts={"cat": 1, "rope": 1, "slice": 2})


def test_the_other_direction_negates_the_sine() -> None:
    check(lambda x, c, s: x * c - half(x) * s, X, *FULL, counts={"neg": 1, "rope": 1})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casts_around_a_rotation_in_float_are_part_of_it(dtype: torch.dtype) -> None:
    def wide(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return (x.float() * c + half(x.float()) * s).to(dtype)

    def late(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return (x.float() * c + half(x).float() * s).to(dtype)

    check(wide, X.to(dtype), *FULL, counts={"rope": 1})
    check(late, X.to(dtype), *FULL, counts={"rope": 1})


def test_a_wider_result_of_wider_tables_is_cast_first() -> None:
    found = check(lambda x, c, s: x * c + half(x) * s, X.bfloat16(), *FULL, counts={"rope": 1, "to_copy": 1})
    assert found.graph.output_node().args[0][0].meta["val"].dtype == torch.float32  # type: ignore[index,union-attr]


def test_tables_in_the_models_dtype_are_kept() -> None:
    tables = [table.bfloat16() for table in FULL]
    check(lambda x, c, s: x * c + half(x) * s, X.bfloat16(), *tables, counts={"rope": 1})


NO_ROTATION = "add mixes lanes of x in pairs, but not as a rotation does"


def test_a_wrong_sign_is_a_near_miss() -> None:
    def mirrored(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return x * c + torch.cat((x[..., 4:], x[..., :4]), dim=-1) * s

    check(mirrored, X, *FULL, changes=0, refused=(NO_ROTATION,))


def test_one_number_for_all_lanes_is_a_near_miss() -> None:
    tables = [table[..., :1] for table in FULL]
    check(lambda x, c, s: x * c + half(x) * s, X, *tables, changes=0, refused=(NO_ROTATION,))


def test_a_product_used_elsewhere_is_a_near_miss() -> None:
    def shared(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        scaled = x * c
        return (scaled + half(x) * s) * torch.exp(scaled)

    check(shared, X, *FULL, changes=0, refused=("a product or sum of the rotation is also used by exp",))


FAMILIES: dict[str, tuple[int, bool, dict[str, object]]] = {
    "llama": (4, False, {}),
    "gpt_neox": (4, False, {}),
    "phi": (4, False, {}),
    "gptj": (4, True, {"rotary_dim": 4}),
    "glm4": (4, True, {}),
    "cohere": (4, True, {}),
    "gpt_oss": (4, False, {}),
    "llama4_text": (4, True, {}),
    "glm4_moe_lite": (4, False, {}),
    "gemma3_text": (4, False, {}),
    "gpt2": (0, False, {}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_every_kind_of_rotation(family: str) -> None:
    count, is_interleaved, options = FAMILIES[family]
    model = tiny_model(family, **options)
    rewriter = Rewriter(model)
    expected = interpret(model, (tokens(),))
    Canonicalize().run(model, rewriter)
    assert RecognizeRope().run(model, rewriter) == count
    assert not rewriter.refused
    assert RecognizeRope().run(model, rewriter) == 0
    ropes = list(model.calls(torch.ops.llmc.rope.default))
    assert [rope.args[3] for rope in ropes] == [is_interleaved] * count
    for have, want in zip(interpret(model, (tokens(),)), expected, strict=True):
        assert_close(have, want)
