"""Repeated key heads are taken away from attention, which repeats them itself."""

from collections.abc import Callable

import pytest
import torch
from support.check_pass import check_pass, trace
from torch import Tensor

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.passes.canonicalize import Canonicalize
from llmc.passes.remove_kv_repeats import RemoveKvRepeats

Q = torch.randn(1, 6, 5, 8, generator=torch.Generator().manual_seed(0))
K = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(1))
V = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(2))
DYNAMIC = {0: [2], 1: [2], 2: [2]}
SWAPPED = {0: [2], 1: [1], 2: [1]}

Repeat = Callable[[Tensor], Tensor]


def check(
    repeat_k: Repeat, repeat_v: Repeat, k: Tensor, v: Tensor, changes: int, refused: tuple[str, ...] = ()
) -> Model:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.ops.llmc.attention(q, repeat_k(k), repeat_v(v), None, None, 0.4, 0.0, True)  # type: ignore[no-any-return]

    dynamic = DYNAMIC if k.shape[2] == 5 else SWAPPED
    model = trace(attend, Q, k, v, dynamic=dynamic)
    Canonicalize().run(model, Rewriter(model))
    return check_pass(RemoveKvRepeats(), model, Q, k, v, dynamic=dynamic, changes=changes, refused=refused)


def same(x: Tensor) -> Tensor:
    return x


def expanded(x: Tensor) -> Tensor:
    heads, tokens, size = x.shape[1:]
    return x[:, :, None].expand(1, heads, 3, tokens, size).reshape(1, 3 * heads, tokens, size)


def expanded_then_swapped(x: Tensor) -> Tensor:
    tokens, heads, size = x.shape[1:]
    return x[:, :, :, None].expand(1, tokens, heads, 3, size).reshape(1, tokens, 3 * heads, size).transpose(1, 2)


def test_few_key_heads_are_left_alone() -> None:
    check(same, same, K, V, changes=0)


REPEATS: dict[str, tuple[Repeat, bool]] = {
    "expand": (expanded, False),
    "repeat_interleave": (lambda x: x.repeat_interleave(3, dim=1), False),
    "expand, then swap": (expanded_then_swapped, True),
    "repeat_interleave, then swap": (lambda x: x.repeat_interleave(3, dim=2).transpose(1, 2), True),
}


@pytest.mark.parametrize("name", REPEATS)
def test_repeated_heads_are_read_once(name: str) -> None:
    repeat, swapped = REPEATS[name]
    k, v = (K.transpose(1, 2), V.transpose(1, 2)) if swapped else (K, V)
    model = check(repeat, repeat, k.contiguous(), v.contiguous(), changes=1)
    (attention,) = model.calls(torch.ops.llmc.attention.default)
    assert [int(node.meta["val"].shape[1]) for node in attention.args[:3]] == [6, 2, 2]  # type: ignore[union-attr]


def test_one_head_for_all_is_read_once() -> None:
    def for_all(x: Tensor) -> Tensor:
        return x.expand(-1, 6, -1, -1)

    model = check(for_all, for_all, K[:, :1], V[:, :1], changes=1)
    (attention,) = model.calls(torch.ops.llmc.attention.default)
    assert [node.name for node in attention.args[1:3]] == ["k", "v"]  # type: ignore[union-attr]


def test_heads_repeated_as_a_whole_are_left_alone() -> None:
    def tiled(x: Tensor) -> Tensor:
        heads, tokens, size = x.shape[1:]
        return x[:, None].expand(1, 3, heads, tokens, size).reshape(1, 3 * heads, tokens, size)

    refused = ("the heads of the keys are repeated as a whole, not each in a row",)
    check(tiled, expanded, K, V, changes=0, refused=refused)


def test_keys_repeated_without_values_are_left_alone() -> None:
    check(expanded, same, K, torch.cat((V, V, V), 1), 0, refused=("keys are repeated 3 times, values 1 times",))
