"""The dialect: every op against a formula written another way, and against torch's own rules for custom ops."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from llmc.ir.ops import ACTIVATIONS, DIALECT, accumulate_dtype, declare

llmc = torch.ops.llmc


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def samples(dtype: torch.dtype) -> dict[str, tuple[object, ...]]:
    """One call of each op."""
    ids = torch.tensor([[0, 2], [1, 2], [2, 0], [0, 1], [1, 0]])
    experts = (randn(3, 12, 8, dtype=dtype), randn(3, 12, dtype=dtype), randn(3, 8, 6, dtype=dtype), None)
    return {
        "rms_norm": (randn(2, 5, 8, dtype=dtype), randn(8, dtype=dtype), 1e-5, 0.0, False),
        "layer_norm": (randn(2, 5, 8, dtype=dtype), randn(8, dtype=dtype), None, 1e-5, True),
        "rope": (randn(2, 4, 5, 8, dtype=dtype), randn(5, 6, dtype=dtype), randn(5, 6, dtype=dtype), False),
        "gated_act": (randn(5, 8, dtype=dtype), randn(5, 8, dtype=dtype), "silu"),
        "attention": (
            randn(1, 4, 5, 8, dtype=dtype),
            randn(1, 2, 5, 8, dtype=dtype),
            randn(1, 2, 5, 6, dtype=dtype),
            None,
            randn(4, dtype=dtype),
            0.3,
            20.0,
            True,
        ),
        "moe": (randn(5, 8, dtype=dtype), ids, randn(5, 2), *experts, "silu", True, False, False, 0.0, 0.0),
    }


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "rope", "gated_act", "attention", "moe"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_op_is_a_lawful_custom_op(name: str, dtype: torch.dtype) -> None:
    opcheck(getattr(llmc, name).default, samples(dtype)[name])


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "rope", "gated_act", "attention", "moe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_results_are_near_the_fp64_results(name: str, dtype: torch.dtype) -> None:
    op = getattr(llmc, name).default
    narrow = samples(dtype)[name]
    wide = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in narrow]
    error = (op(*narrow).double() - op(*wide)).abs().max().item()
    assert error <= {torch.float32: 1e-4, torch.bfloat16: 0.5}[dtype]
    assert op(*narrow).dtype == dtype


def test_every_op_has_a_document_that_names_the_shapes() -> None:
    assert all("[" in op.document for op in DIALECT.values())


def test_declaring_a_name_again_keeps_the_first_registration() -> None:
    before = DIALECT["rms_norm"]
    declare(before.signature, before.fake)(before.reference)
    assert llmc.rms_norm.default(*samples(torch.float64)["rms_norm"]).shape == (2, 5, 8)


def test_references_accumulate_in_fp32_and_fp64_in_fp64() -> None:
    assert accumulate_dtype(torch.bfloat16) == accumulate_dtype(torch.float32) == torch.float32
    assert accumulate_dtype(torch.float64) == torch.float64


@pytest.mark.parametrize("weight_in_float", [False, True])
def test_rms_norm_matches_atens(weight_in_float: bool) -> None:
    x, weight = randn(3, 5, 8), randn(8)
    torch.testing.assert_close(
        llmc.rms_norm(x, weight, 1e-5, 0.0, weight_in_float), torch.nn.functional.rms_norm(x, (8,), weight, 1e-5)
    )


def test_rms_norm_without_weight_and_with_offset() -> None:
    x, weight = randn(3, 5, 8), randn(5, 8)
    plain = llmc.rms_norm(x, None, 1e-5, 0.0, True)
    torch.testing.assert_close(llmc.rms_norm(x, weight, 1e-5, 1.0, True), plain * (1 + weight))


def test_rms_norm_rounds_where_it_is_told() -> None:
    x, weight = randn(64, 8, dtype=torch.bfloat16), randn(8, dtype=torch.bfloat16)
    unit = llmc.rms_norm(x, None, 1e-5, 0.0, False)
    assert torch.equal(llmc.rms_norm(x, weight, 1e-5, 0.0, False), weight * unit)
    assert not torch.equal(llmc.rms_norm(x, weight, 1e-5, 0.0, True), weight * unit)


def test_layer_norm_matches_atens() -> None:
    x, weight, bias = randn(3, 5, 8), randn(8), randn(8)
    expected = torch.nn.functional.layer_norm(x, (8,), weight, bias, 1e-5)
    torch.testing.assert_close(llmc.layer_norm(x, weight, bias, 1e-5, True), expected)


def test_rope_rotates_each_pair_as_a_complex_number() -> None:
    x, angle = randn(2, 3, 5, 8), randn(5, 3)
    turn = torch.polar(torch.ones_like(angle), angle)
    halves = llmc.rope(x, angle.cos().repeat(1, 2), angle.sin().repeat(1, 2), False)
    torch.testing.assert_close(
        torch.complex(halves[..., :3], halves[..., 3:6]), torch.complex(x[..., :3], x[..., 3:6]) * turn
    )
    pairs = llmc.rope(x, angle.cos().repeat_interleave(2, 1), angle.sin().repeat_interleave(2, 1), True)
    expected = torch.view_as_real(torch.view_as_complex(x[..., :6].unflatten(-1, (3, 2)).contiguous()) * turn)
    torch.testing.assert_close(pairs[..., :6], expected.flatten(-2))
    assert torch.equal(halves[..., 6:], x[..., 6:])
    assert torch.equal(pairs[..., 6:], x[..., 6:])


@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_gated_act_is_the_product_of_the_activated_gate_and_up(act: str) -> None:
    gate, up = randn(5, 8), randn(5, 9)[:, :8]
    torch.testing.assert_close(llmc.gated_act(gate, up, act), ACTIVATIONS[act](gate) * up)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_matches_sdpa_with_grouped_heads(causal: bool) -> None:
    q, k, v = randn(2, 4, 5, 8), randn(2, 2, 5, 8), randn(2, 2, 5, 6)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(llmc.attention(q, k, v, None, None, 0.3, 0.0, causal), expected)


@pytest.mark.parametrize("additive", [False, True])
def test_attention_takes_bool_and_additive_masks(additive: bool) -> None:
    q, k, v = randn(2, 4, 5, 8), randn(2, 4, 7, 8), randn(2, 4, 7, 6)
    mask = randn(1, 1, 5, 7) if additive else randn(1, 1, 5, 7) > -1
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(llmc.attention(q, k, v, mask, None, 0.3, 0.0, False), expected)


def test_attention_sinks_and_softcap_follow_their_definition() -> None:
    q, k, v, sinks = randn(1, 2, 5, 8), randn(1, 2, 5, 8), randn(1, 2, 5, 8), randn(2)
    scores = torch.tanh(q @ k.transpose(-2, -1) * 0.3 / 2.0) * 2.0
    with_sink = torch.cat((scores, sinks[None, :, None, None].expand(1, 2, 5, 1)), dim=-1).softmax(-1)[..., :5]
    torch.testing.assert_close(llmc.attention(q, k, v, None, sinks, 0.3, 2.0, False), with_sink @ v)


def test_a_query_that_attends_to_nothing_gives_zeros_and_nan_is_not_hidden() -> None:
    q, k, v = randn(1, 1, 2, 4), randn(1, 1, 3, 4), randn(1, 1, 3, 4)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert torch.equal(
        llmc.attention(q, k, v, mask, None, 0.5, 0.0, False)[0, 0, 1], torch.zeros(4, dtype=torch.float64)
    )
    q[0, 0, 0, 0] = torch.nan
    assert llmc.attention(q, k, v, mask, None, 0.5, 0.0, False)[0, 0, 0].isnan().all()


def test_causal_attention_lets_the_last_query_see_every_key() -> None:
    q, k, v = randn(1, 1, 5, 4), randn(1, 1, 5, 4), randn(1, 1, 5, 4)
    whole = llmc.attention(q, k, v, None, None, 0.5, 0.0, True)
    torch.testing.assert_close(llmc.attention(q[:, :, 3:], k, v, None, None, 0.5, 0.0, True), whole[:, :, 3:])


def experts_by_token(x: Tensor, ids: Tensor, weights: Tensor, expert: Callable[[Tensor, int], Tensor]) -> Tensor:
    rows = [
        sum(w * expert(row, int(e)) for e, w in zip(chosen, shares, strict=True))
        for row, chosen, shares in zip(x, ids, weights, strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_gated_moe_is_a_weighted_sum_over_the_experts_of_each_token(
    transposed: bool, interleaved: bool, limit: float
) -> None:
    x, weights, ids = randn(6, 8), randn(6, 2), torch.tensor([[0, 2], [1, 2], [2, 0], [0, 1], [1, 0], [3, 1]])
    up, up_bias, down, down_bias = randn(4, 12, 8), randn(4, 12), randn(4, 8, 6), randn(4, 8)

    def expert(row: Tensor, e: int) -> Tensor:
        h = up[e] @ row + up_bias[e]
        gate, value = (h[::2], h[1::2]) if interleaved else (h[:6], h[6:])
        if limit:
            gate, value = torch.clamp(gate, max=limit), torch.clamp(value, -limit, limit)
        return down[e] @ (gate * torch.sigmoid(1.702 * gate) * (value + 1)) + down_bias[e]

    stored = [w.transpose(1, 2).contiguous() if transposed else w for w in (up, down)]
    result = llmc.moe(
        x,
        ids,
        weights,
        stored[0],
        up_bias,
        stored[1],
        down_bias,
        "quick_gelu",
        True,
        interleaved,
        transposed,
        limit,
        1.0,
    )
    torch.testing.assert_close(result, experts_by_token(x, ids, weights, expert))


def test_plain_moe_has_no_gate() -> None:
    x, weights, ids = randn(3, 8), randn(3, 1), torch.tensor([[0], [1], [1]])
    up, down = randn(2, 6, 8), randn(2, 8, 6)
    result = llmc.moe(x, ids, weights, up, None, down, None, "relu2", False, False, False, 0.0, 0.0)
    expected = experts_by_token(x, ids, weights, lambda row, e: down[e] @ torch.relu(up[e] @ row).square())
    torch.testing.assert_close(result, expected)
