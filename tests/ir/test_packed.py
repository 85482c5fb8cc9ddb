"""Packed weights: there and back at odd sizes, exact where they must be, and ops that agree with plain linears."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from llmc.errors import InvalidGraph
from llmc.ir.packed import rounded_activations
from llmc.ir.packed_formats import FLOAT_FORMATS, FORMATS, pack, unpack

llmc = torch.ops.llmc

SIZES = [(1, 1), (16, 32), (17, 33), (37, 83), (48, 160)]
INTEGER = ["int8", "int6", "int6g16", "int4", "int4g64", "int4g128", "int4m"]
WORST = {
    "int8": 0.008,
    "int6": 0.025,
    "int6g16": 0.021,
    "int4": 0.09,
    "int4g64": 0.105,
    "int4g128": 0.115,
    "int4m": 0.095,
}
"""Relative RMS error of normal values; the uniform error of 255 and of 16 levels over a group's range."""


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def relative(error: Tensor, of: Tensor) -> float:
    return (error.square().mean() / of.square().mean()).sqrt().item()


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize(("dtype", "format"), FLOAT_FORMATS.items())
def test_float_formats_give_back_every_bit(n: int, k: int, dtype: torch.dtype, format: str) -> None:
    weight = randn(n, k).to(dtype)
    assert torch.equal(unpack(pack(weight, format), format, n, k), weight.float())


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("format", INTEGER)
def test_integer_formats_round_no_further_than_their_grid(n: int, k: int, format: str) -> None:
    weight = randn(n, k)
    back = unpack(pack(weight, format), format, n, k)
    assert relative(back - weight, weight) < WORST[format]
    assert torch.equal(unpack(pack(back, format), format, n, k), back) or format != "int8"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", [0.0, 3.0, -1e-9, 1e5])
def test_constant_and_extreme_weights_stay_finite(format: str, value: float) -> None:
    back = unpack(pack(torch.full((17, 33), value), format), format, 17, 33)
    if format in ("f16", "int4m"):
        value = max(min(value, 65504.0), -65504.0)
        back = back.clamp(-65504.0, 65504.0)
    assert back.isfinite().all()
    torch.testing.assert_close(back, torch.full((17, 33), value), rtol=0.01, atol=1e-6)


def test_a_grid_of_sixteen_levels_with_a_zero_in_eighths_is_kept_exactly() -> None:
    levels = torch.stack([torch.randperm(32, generator=torch.Generator().manual_seed(row)) % 16 for row in range(20)])
    zero = torch.arange(20)[:, None] * 6
    weight = 0.25 * (levels - zero / 8)
    assert torch.equal(unpack(pack(weight, "int4"), "int4", 20, 32), weight)


def test_searching_the_range_beats_its_ends() -> None:
    weight = randn(64, 256)
    groups = weight.unflatten(-1, (-1, 32))
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    step = ((high - low) / 15).half().float()
    zero = (low / step * -8).round().clamp(0, 120)
    plain = step / 8 * (8 * (groups / step + zero / 8).round().clamp(0, 15) - zero)
    found = relative(unpack(pack(weight, "int4"), "int4", 64, 256) - weight, weight)
    assert found < 0.95 * relative(plain - groups, groups)


def test_elements_lie_where_the_layout_says() -> None:
    weight = torch.arange(20 * 40, dtype=torch.float32).reshape(20, 40)
    (data,) = pack(weight, "f32")
    assert data.shape == (2, 64, 16)
    assert data[1, 37, 2] == weight[18, 37]
    assert data[1, 37, 4:].abs().sum() == data[:, 40:].abs().sum() == 0
    (pairs,) = pack(weight, "bf16")
    assert pairs.shape == (2, 32, 16, 2)
    assert pairs[1, 18, 2, 1] == weight[18, 37].bfloat16()


def test_integers_lie_where_the_layout_says() -> None:
    weight = torch.zeros(20, 40)
    weight[18, 37], weight[18, 32] = 127.0, 15.0
    quants, scales = pack(weight, "int8")
    assert (quants.shape, scales.shape) == ((2, 16, 16, 4), (2, 2, 16))
    assert (quants[1, 9, 2, 1], quants[1, 8, 2, 0], scales[1, 1, 2]) == (255, 143, 1.0)
    assert (quants == 128).sum() == quants.numel() - 2
    weight[18, 37] = 0.0
    weight[18, 21] = 30.0
    for format in ("int4", "int4m"):
        quants, scales, third = pack(weight, format)
        assert (quants.shape, scales.shape, third.shape) == ((2, 2, 4, 16, 4), (2, 2, 16), (2, 2, 16))
        assert quants[1, 0, 1, 2, 1] == 15 << 4  # column 21 = 16 + 4 + 1: the high half
        assert quants[1, 1, 0, 2, 0] == 15  # column 32: the low half of the next group
        assert third.abs().sum() == 0
        assert scales[1, :, 2].tolist() == [2.0, 1.0]


def test_the_search_for_six_bits_beats_the_largest_magnitude() -> None:
    groups = randn(64, 256).unflatten(-1, (-1, 32))
    step = (groups.abs().amax(-1, keepdim=True) / 31).half().float()
    plain = (groups / step).round().clamp(-31, 31) * step
    found = relative(unpack(pack(groups.flatten(1), "int6"), "int6", 64, 256) - groups.flatten(1), groups)
    assert found < 0.95 * relative(plain - groups, groups)


def test_weights_that_share_a_scale_are_those_of_whole_groups() -> None:
    weight = randn(20, 288)
    for format, shared in (("int4g64", 64), ("int4g128", 128)):
        parts = pack(weight, format)
        assert parts[1].shape == parts[2].shape == (2, -(-288 // shared), 16)
        for start in range(0, 288, shared):
            alone = pack(weight[:, start : start + shared].contiguous(), format)
            place = start // shared
            assert torch.equal(parts[1][:, place], alone[1][:, 0])
            assert torch.equal(parts[0][:, start // 32 : (start + shared) // 32], alone[0])


def test_eight_bit_floats_round_to_the_nearest_and_keep_what_they_hold() -> None:
    weight = randn(37, 83)
    back = unpack(pack(weight, "fp8"), "fp8", 37, 83)
    assert relative(back - weight, weight) < 0.03
    numbers = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float()
    every = torch.where(numbers.isnan(), 448.0, numbers)[None] / 4
    assert torch.equal(unpack(pack(every, "fp8"), "fp8", 1, 256), every)
    assert unpack(pack(torch.tensor([[torch.nan, 1.0], [2.0, 3.0]]), "fp8"), "fp8", 2, 2)[:, 0].isnan().tolist() == [
        True,
        False,
    ]


def test_threads_pack_the_same_and_leave_torch_as_it_was() -> None:
    weight, before = randn(5000, 300), torch.get_num_threads()
    expected = pack(weight.requires_grad_(), "int4")
    try:
        torch.set_num_threads(3)
        found = pack(weight, "int4")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_experts_begin_with_a_tile_of_their_own() -> None:
    weight = randn(3, 20, 40)
    for format in FORMATS:
        parts = pack(weight, format)
        for expert in range(3):
            own = [part[2 * expert : 2 * expert + 2] for part in parts]
            assert all(torch.equal(a, b) for a, b in zip(own, pack(weight[expert], format), strict=True))


@pytest.mark.parametrize("format", FORMATS)
def test_packing_reads_any_layout(format: str) -> None:
    weight = randn(40, 20)
    for one, other in zip(pack(weight.t(), format), pack(weight.t().contiguous(), format), strict=True):
        assert torch.equal(one, other)


def test_long_weights_are_packed_piece_by_piece() -> None:
    weight = randn(3001, 300)
    back = unpack(pack(weight, "int8"), "int8", 3001, 300)
    assert relative(back - weight, weight) < WORST["int8"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize(("dtype", "format"), FLOAT_FORMATS.items())
def test_float_linears_are_the_plain_ones_bit_for_bit(
    n: int, k: int, dtype: torch.dtype, format: str, bias: bool
) -> None:
    x, weight, offset = randn(2, 3, k).to(dtype), randn(n, k).to(dtype), randn(n).to(dtype) if bias else None
    assert torch.equal(
        llmc.linear_packed(x, pack(weight, format), offset, format, n, k),
        torch.nn.functional.linear(x, weight, offset),
    )


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("format", INTEGER)
def test_integer_linears_multiply_rounded_activations(n: int, k: int, format: str) -> None:
    x, bias, parts = randn(5, k), randn(n), pack(randn(n, k), format)
    groups = torch.nn.functional.pad(x, (0, -k % 32)).unflatten(-1, (-1, 32)).double()
    scale = (groups.abs().amax(-1, keepdim=True).float() / 127).double()
    xq = (groups / scale).round().clamp(-127, 127)
    expected = (xq * scale).flatten(1)[:, :k] @ unpack(parts, format, n, k).double().t() + bias
    torch.testing.assert_close(
        llmc.linear_packed(x, parts, bias, format, n, k).double(), expected, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bit_floats_meet_activations_as_they_are(n: int, k: int, dtype: torch.dtype) -> None:
    x, bias, parts = randn(5, k).to(dtype), randn(n).to(dtype), pack(randn(n, k), "fp8")
    expected = x.double() @ unpack(parts, "fp8", n, k).double().t() + bias.double()
    assert torch.equal(llmc.linear_packed(x, parts, bias, "fp8", n, k), expected.to(dtype))


def test_activations_that_are_zero_stay_zero() -> None:
    x = randn(2, 70)
    x[0] = 0
    x[1, 32:64] = 0
    rounded = rounded_activations(x)
    assert rounded[0].abs().sum() == rounded[1, 32:64].abs().sum() == 0
    assert relative(rounded - x, x) < 0.01


@pytest.mark.parametrize("format", FORMATS)
def test_embeddings_are_rows_of_the_table(format: str) -> None:
    parts = pack(randn(50, 40), format)
    tokens = torch.tensor([[0, 49, 17], [17, 16, 15]])
    found = llmc.embedding_packed(tokens, parts, format, 50, 40, torch.bfloat16)
    assert torch.equal(found, unpack(parts, format, 50, 40)[tokens].bfloat16())
    with pytest.raises(IndexError, match="expected 0 to 49"):
        llmc.embedding_packed(torch.tensor([50]), parts, format, 50, 40, torch.float32)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_packed_experts_are_experts_with_the_unpacked_weights(format: str, gated: bool) -> None:
    x, width = randn(5, 40), 20
    ids, shares = torch.tensor([[0, 2], [1, 2], [2, 0], [0, 1], [1, 0]]), randn(5, 2).abs()
    up, down = randn(3, width * (2 if gated else 1), 40) / 8, randn(3, 40, width) / 8
    biases = randn(*up.shape[:2]), randn(3, 40)
    packed = llmc.moe_packed(
        x, ids, shares, pack(up, format), biases[0], pack(down, format), biases[1], format, format, 3, width, "silu",
        gated, 7.0 if gated else 0.0, 1.0,
    )  # fmt: skip
    near = [torch.stack([unpack(pack(expert, format), format, *expert.shape) for expert in w]) for w in (up, down)]
    plain = llmc.moe(
        x, ids, shares, near[0], biases[0], near[1], biases[1], "silu", gated, False, False, 7.0 if gated else 0.0, 1.0
    )
    assert relative(packed - plain, plain) < (0.02 if format in INTEGER else 0.01 if format == "bf16" else 1e-6)


@pytest.mark.parametrize("format", FORMATS)
def test_every_packed_op_is_a_lawful_custom_op(format: str) -> None:
    weight, x = randn(37, 83), randn(3, 83)
    opcheck(llmc.pack_weight.default, (weight, format))
    opcheck(llmc.pack_weight.default, (randn(2, 37, 83), format))
    parts = pack(weight, format)
    opcheck(llmc.linear_packed.default, (x, parts, randn(37), format, 37, 83))
    opcheck(llmc.embedding_packed.default, (torch.tensor([3, 4]), parts, format, 37, 83, torch.float32))


def test_parts_of_another_size_and_unknown_formats_are_refused() -> None:
    parts = pack(randn(37, 83), "int4")
    with pytest.raises(InvalidGraph, match="expected one of f32"):
        pack(randn(2, 2), "int5")
    for n, k in ((49, 83), (37, 97)):
        with pytest.raises(InvalidGraph, match="parts of int4"):
            llmc.linear_packed(randn(3, k), parts, None, "int4", n, k)
