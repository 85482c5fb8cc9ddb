"""Graphs over one sequence become packed steps over a paged cache: the same logits however the tokens come."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.tidied import TIDY
from torch import Tensor, fx, nn
from torch.nn import functional

from llmc.codegen.reference import from_model
from llmc.errors import UnsupportedModel
from llmc.frontend.hf import from_module
from llmc.ir.model import STEP_INPUTS, Model
from llmc.ir.pass_manager import run_passes
from llmc.ir.rewrite import Rewriter
from llmc.ir.verify import verify
from llmc.passes.eliminate_dead import EliminateDead
from llmc.passes.lift_masks import LiftMasks
from llmc.passes.make_incremental import MakeIncremental
from llmc.passes.recognize_attention import RecognizeAttention
from llmc.zoo.steps import Driver, run_in_pieces

VOCAB, WIDTH, HEADS, LENGTH = 32, 12, 3, 14
BEFORE = (EliminateDead(), *TIDY, RecognizeAttention(), LiftMasks(), EliminateDead())
CACHED = torch.ops.llmc.cached_attention.default
aten = torch.ops.aten


class Small(nn.Module):
    """One attention layer over embedded tokens; `before` and `after` act on [1, S, 12] and get the module, too."""

    def __init__(
        self,
        before: Callable[..., Tensor] = lambda m, x, tokens: x,
        after: Callable[..., Tensor] = lambda m, x, tokens: x,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.table = nn.Embedding(64, WIDTH)
        self.register_buffer("cut", torch.randn(1, 64, WIDTH))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.before, self.after, self.window = before, after, window

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.before(self, self.embed(tokens), tokens)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        places = torch.arange(tokens.shape[1])
        mask = places <= places[:, None]
        if self.window is not None:
            mask = mask & (places > places[:, None] - self.window)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + mixed.transpose(1, 2).flatten(2)
        return self.head(self.norm(self.after(self, x, tokens)))


def places(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1])[None]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "no positions": Small,
    "a window": lambda: Small(window=5),
    "learned positions": lambda: Small(lambda m, x, t: x + m.table(places(t))),
    "positions with an offset": lambda: Small(lambda m, x, t: x + m.table(places(t) + 2)),
    "clamped positions": lambda: Small(lambda m, x, t: x + m.table(places(t).clamp(max=6))),
    "positions clamped from below": lambda: Small(lambda m, x, t: x + m.table((places(t) - 3).clamp(min=0))),
    "positions in groups": lambda: Small(lambda m, x, t: x + m.table(places(t) // 3)),
    "positions that come again": lambda: Small(lambda m, x, t: x + m.table(places(t) % 5)),
    "positions from cumulated ones": lambda: Small(lambda m, x, t: x + m.table(t.new_ones(t.shape).cumsum(-1) - 1)),
    "rows cut from a table": lambda: Small(lambda m, x, t: x + m.cut[:, : t.shape[1]]),
    "sines of positions": lambda: Small(lambda m, x, t: x * torch.sin(places(t)[..., None] * 0.3)),
    "scores scaled by position": lambda: Small(lambda m, x, t: x * (1 + 0.1 * torch.log(places(t)[..., None] + 1.0))),
    "positions as numbers": lambda: Small(lambda m, x, t: x * (places(t) * 0.5 - 1)[..., None]),
    "a constant for each token": lambda: Small(lambda m, x, t: x * x.new_full((1, t.shape[1], 1), 1.5)),
    "capped logits": lambda: nn.Sequential(Small(), Capped()),
}


class Capped(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return torch.tanh(logits / 3.0) * 3.0


def whole(module: nn.Module) -> Model:
    """`module`, traced and with its masks lifted: what the pass is given."""
    torch.manual_seed(0)
    model = from_module(module)
    run_passes(model, {"before": BEFORE}, prove=False)
    return model


def packed(module: nn.Module) -> Model:
    model = whole(module)
    MakeIncremental().run(model, Rewriter(model))
    verify(model)
    return model


def made(name: str) -> nn.Module:
    torch.manual_seed(1)
    return MODELS[name]().eval()


TOKENS = torch.randint(0, VOCAB, (LENGTH,), generator=torch.Generator().manual_seed(4)).tolist()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_pieces_over_scattered_blocks_give_what_the_whole_gives(name: str) -> None:
    module = made(name)
    program = from_model(packed(module))
    with torch.no_grad():
        expected = module(torch.tensor([TOKENS]))[0]
    for cut in ([], [1] * (LENGTH - 1), [1, 5, 2], [4, 4]):
        close(run_in_pieces(program, TOKENS, cut), expected)


def test_sequences_of_one_step_do_not_meet() -> None:
    module = made("learned positions")
    driver = Driver(from_model(packed(module)))
    rows = driver.step({"a": TOKENS[:5], "b": TOKENS[3:10]})
    rows = {name: [part] for name, part in rows.items()}
    for name, part in driver.step({"b": TOKENS[10:], "a": TOKENS[5:6]}).items():
        rows[name].append(part)
    with torch.no_grad():
        for name, tokens in {"a": TOKENS[:6], "b": TOKENS[3:]}.items():
            close(torch.cat(rows[name]), module(torch.tensor([tokens]))[0])


def test_the_inputs_are_those_of_a_step_and_a_pair_of_caches_a_layer() -> None:
    model = packed(nn.Sequential(Small(), Again()))
    names = [node.name for node in model.inputs()]
    assert names == [*STEP_INPUTS, "k_cache_0", "v_cache_0", "k_cache_1", "v_cache_1"]
    assert names[:7] == ["tokens", "positions", "slots", "starts", "lengths", "blocks", "rows"]
    caches = [node.meta["val"] for node in model.inputs()[7:]]
    assert [tuple(cache.shape[2:]) for cache in caches] == [(3, 4), (3, 4), (1, 16), (1, 16)]
    assert MakeIncremental().run(model, Rewriter(model)) == 0


class Again(nn.Module):
    """A second attention layer, over the logits of the first, with one key head for two query heads."""

    def forward(self, x: Tensor) -> Tensor:
        q, k = x.unflatten(-1, (2, 16)).transpose(1, 2), x[..., None, :16].transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)
        return mixed.transpose(1, 2).flatten(2)


def test_layers_that_share_keys_and_values_each_have_a_cache_and_agree() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(VOCAB, WIDTH)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            k = x[:, None]
            for _ in range(2):
                x = x + functional.scaled_dot_product_attention(x[:, None], k, k, is_causal=True)[:, 0]
            return x

    torch.manual_seed(1)
    module = Shared().eval()
    program = from_model(packed(module))
    with torch.no_grad():
        expected = module(torch.tensor([TOKENS]))[0]
    close(run_in_pieces(program, TOKENS, [3, 1, 6]), expected)


def selection(model: Model) -> fx.Node:
    (node,) = model.calls(aten.index_select.default)
    return node


@pytest.mark.parametrize(("name", "before"), [("no positions", "layer_norm"), ("capped logits", "layer_norm")])
def test_rows_are_selected_before_the_last_norm_and_projection(name: str, before: str) -> None:
    model = packed(made(name))
    chosen = selection(model)
    assert [str(user.target) for user in chosen.users] == [f"aten.{before}.default"]
    assert chosen.meta["val"].shape[-1] == WIDTH
    (logits,) = model.graph.output_node().args[0]
    rows = next(node for node in model.inputs() if node.name == "rows")
    assert logits.meta["val"].shape[0] == rows.meta["val"].shape[0]
    assert logits.meta["val"].shape[1] == VOCAB


def test_the_change_is_one_numbered_rewrite() -> None:
    model = whole(made("no positions"))
    rewriter = Rewriter(model)
    assert MakeIncremental().run(model, rewriter) == 1
    assert [(done.number, done.rule, done.node) for done in rewriter.applied] == [(1, "make_incremental", "tokens")]
    model = whole(made("no positions"))
    assert MakeIncremental().run(model, Rewriter(model, stop_after=0)) == 0
    assert not list(model.calls(CACHED))


class Mixer(nn.Module):
    """Named in messages by its path."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a mean over tokens": (lambda x: x - x.mean(1, keepdim=True), r"aten\.mean\.dim .*it reduces over tokens 0 and 4"),
    "a token shift": (
        lambda x: x + torch.cat([x[:, :1], x[:, :-1]], 1),
        r"aten\.add\.Tensor .*it combines tokens 1 and 0",
    ),
    "a running sum": (lambda x: x.cumsum(1), r"aten\.cumsum .*it reduces over tokens 0 and 4"),
    "the number of tokens": (lambda x: x / x.shape[1], r"aten\.div\.Tensor .*it computes with the number of tokens"),
    "a softmax over tokens": (lambda x: x.softmax(1), r"aten\.softmax\.int .*it reduces over tokens 0 and 4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_tokens_is_refused_by_op_module_and_source_line(name: str) -> None:
    function, message = REFUSED[name]
    op, _, reason = message.partition(" .*")
    place = r" at 0\.after at test_make_incremental\.py:\d+ mixes tokens: "
    module = nn.Sequential(Small(after=lambda m, x, t: m.mixer(x)), nn.Identity())
    module[0].after, module[0].mixer = (lambda m, x, t: m.mixer(x)), Mixer(function)
    with pytest.raises(UnsupportedModel, match=f"^{op}{place.replace('after', 'mixer')}{reason}"):
        packed(module)


def test_logits_in_another_order_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="the logits are not one row a token, in order; expected logits"):
        packed(nn.Sequential(Small(), Mixer(lambda x: x.flip(1))))


def test_a_function_of_positions_without_a_spelling_is_refused() -> None:
    def odd(m: Any, x: Tensor, tokens: Tensor) -> Tensor:
        return x + m.table(torch.where(places(tokens) < 4, places(tokens) * 2, places(tokens)))

    with pytest.raises(UnsupportedModel, match=r"computes .*Piecewise.* from positions p; expected sums, products"):
        packed(Small(odd))
