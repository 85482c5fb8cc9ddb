"""Plain transformer blocks, as people write them without any library: what llmc understands from the graph alone.

A `Recipe` says what a model is made of and how it is spelled; `PlainModel` is that model, from token ids [1, S] to
logits [1, S, V]. Several spellings of one thing stand side by side on purpose.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Recipe:
    """What a plain model is made of."""

    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 8
    hidden: int = 32
    intermediate: int = 40
    vocab: int = 61
    context: int = 64
    norm: str = "rms"
    """rms, rms_offset (weight around 0), rms_function, rms_float_weight, layer, layer_no_bias, layer_by_hand."""
    norm_place: str = "pre"
    """pre, post, or sandwich (around both)."""
    positions: str = "half"
    """half, interleaved, complex, polar, partial (half of a head rotates), learned, sinusoidal, alibi, none."""
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    attention: str = "sdpa"
    """sdpa, or eager: softmax(q k + mask) v."""
    mask: str = "is_causal"
    """is_causal (sdpa alone), tril_buffer, triu_inf, arange, where."""
    repeat: str = "interleave"
    """How grouped key heads are repeated: interleave, expand, or gqa (sdpa's own flag)."""
    fused_qkv: bool = False
    parallel: bool = False
    """Attention and MLP read the same normalised input and are added together."""
    bias: bool = False
    tied: bool = False
    mlp: str = "gated"
    """gated or plain."""
    activation: str = "silu"
    qk_norm: bool = False
    embedding_scale: float = 1.0
    final_softcap: float | None = None


ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_tanh_by_hand": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3)))),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).pow(2),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class Norm(nn.Module):
    def __init__(self, recipe: Recipe, size: int) -> None:
        super().__init__()
        self.kind = recipe.norm
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if self.kind in ("layer", "layer_by_hand") else None
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        if self.kind in ("layer", "layer_no_bias"):
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        if self.kind == "layer_by_hand":
            mean = x.mean(-1, keepdim=True)
            variance = (x - mean).pow(2).mean(-1, keepdim=True)
            return (x - mean) / torch.sqrt(variance + self.eps) * self.weight + self.bias
        if self.kind == "rms_function":
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.kind == "rms_offset":
            return (wide * (1.0 + self.weight.float())).to(x.dtype)
        if self.kind == "rms_float_weight":
            return (wide * self.weight.float()).type_as(x)
        return self.weight * wide.to(x.dtype)


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * torch.cat([cos, cos], -1) + torch.cat([-second, first], -1) * torch.cat([sin, sin], -1)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def rotate_complex(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.complex(cos, sin)
    return torch.view_as_real(turned).flatten(-2)


def rotate_polar(x: Tensor, turn: Tensor, _: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(3).type_as(x)


class Attention(nn.Module):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = r = recipe
        width, kv_width = r.heads * r.head_size, r.kv_heads * r.head_size
        self.scale = r.head_size**-0.5
        if r.fused_qkv:
            self.qkv = nn.Linear(r.hidden, width + 2 * kv_width, bias=r.bias)
        else:
            self.q = nn.Linear(r.hidden, width, bias=r.bias)
            self.k = nn.Linear(r.hidden, kv_width, bias=r.bias)
            self.v = nn.Linear(r.hidden, kv_width, bias=r.bias)
        self.out = nn.Linear(width, r.hidden, bias=r.bias)
        if r.qk_norm:
            self.q_norm, self.k_norm = Norm(recipe, r.head_size), Norm(recipe, r.head_size)
        if r.sinks:
            self.sinks = nn.Parameter(torch.zeros(r.heads))
        if r.mask == "tril_buffer":
            self.register_buffer("allowed", torch.ones(r.context, r.context, dtype=torch.bool).tril(), persistent=False)
        slopes = torch.tensor([2.0 ** (-8 * (head + 1) / r.heads) for head in range(r.heads)])
        self.register_buffer("slopes", slopes, persistent=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor] | None) -> Tensor:
        r = self.recipe
        batch, length, _ = x.shape
        q, k, v = self.project(x)
        q = q.view(batch, length, r.heads, r.head_size).transpose(1, 2)
        k = k.view(batch, length, r.kv_heads, r.head_size).transpose(1, 2)
        v = v.view(batch, length, r.kv_heads, r.head_size).transpose(1, 2)
        if r.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if turns is not None:
            q, k = self.rotate(q, turns), self.rotate(k, turns)
        out = self.attend(q, k, v, self.mask(length, x))
        return self.out(out.transpose(1, 2).reshape(batch, length, r.heads * r.head_size))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.recipe.fused_qkv:
            return self.q(x), self.k(x), self.v(x)
        width, kv_width = self.recipe.heads * self.recipe.head_size, self.recipe.kv_heads * self.recipe.head_size
        q, k, v = self.qkv(x).split([width, kv_width, kv_width], dim=-1)
        return q, k, v

    def rotate(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        kind = self.recipe.positions
        if kind == "partial":
            rotated, passed = x.split([x.shape[-1] // 2, x.shape[-1] // 2], dim=-1)
            return torch.cat([rotate_half(rotated, *turns), passed], -1)
        rotations = {"half": rotate_half, "interleaved": rotate_pairs, "complex": rotate_complex, "polar": rotate_polar}
        return rotations[kind](x, *turns)

    def mask(self, length: int, x: Tensor) -> Tensor | None:
        """None (is_causal), or what is added to the scores, or a boolean tensor where true attends."""
        r = self.recipe
        if r.mask == "is_causal":
            return None
        here = torch.arange(length, device=x.device)
        distance = here[:, None] - here[None, :]
        if r.mask == "tril_buffer":
            allowed = self.allowed[:length, :length]
            if r.window is not None:
                allowed = allowed & ~self.allowed[:length, :length].tril(-r.window)
            return self.with_bias(allowed, distance)
        if r.mask == "triu_inf":
            added = torch.full((length, length), float("-inf"), device=x.device).triu(1)
            if r.window is not None:
                added = added + torch.full((length, length), float("-inf"), device=x.device).tril(-r.window)
            return self.with_bias(added, distance)
        allowed = here[None, :] <= here[:, None] if r.mask == "arange" else distance >= 0
        if r.window is not None:
            allowed = allowed & (distance < r.window)
        if r.mask == "where":
            return self.with_bias(torch.where(allowed, 0.0, torch.finfo(x.dtype).min), distance)
        return self.with_bias(allowed, distance)

    def with_bias(self, mask: Tensor, distance: Tensor) -> Tensor:
        if self.recipe.positions != "alibi":
            return mask
        added = torch.where(mask, 0.0, float("-inf")) if mask.dtype == torch.bool else mask
        return added - self.slopes[:, None, None] * distance

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        r = self.recipe
        if r.repeat != "gqa":
            k, v = self.repeated(k), self.repeated(v)
        if r.attention == "sdpa":
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale, enable_gqa=r.repeat == "gqa"
            )
        scores = q @ k.transpose(-1, -2) * self.scale
        if r.softcap is not None:
            scores = torch.tanh(scores / r.softcap) * r.softcap
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        if not r.sinks:
            return torch.softmax(scores.float(), -1).to(q.dtype) @ v
        column = self.sinks.view(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[2], 1)
        return torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1] @ v

    def repeated(self, x: Tensor) -> Tensor:
        groups = self.recipe.heads // self.recipe.kv_heads
        if groups == 1:
            return x
        if self.recipe.repeat == "interleave":
            return x.repeat_interleave(groups, dim=1)
        batch, heads, length, size = x.shape
        return x[:, :, None].expand(batch, heads, groups, length, size).reshape(batch, heads * groups, length, size)


class Mlp(nn.Module):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.gated = recipe.mlp == "gated"
        self.act = ACTIVATIONS[recipe.activation]
        self.up = nn.Linear(recipe.hidden, recipe.intermediate, bias=recipe.bias)
        if self.gated:
            self.gate = nn.Linear(recipe.hidden, recipe.intermediate, bias=recipe.bias)
        self.down = nn.Linear(recipe.intermediate, recipe.hidden, bias=recipe.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x) if self.gated else self.act(self.up(x)))


class Block(nn.Module):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.attention, self.mlp = Attention(recipe), Mlp(recipe)
        self.norm1, self.norm2 = Norm(recipe, recipe.hidden), Norm(recipe, recipe.hidden)
        if recipe.norm_place == "sandwich":
            self.after1, self.after2 = Norm(recipe, recipe.hidden), Norm(recipe, recipe.hidden)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor] | None) -> Tensor:
        if self.recipe.parallel:
            h = self.norm1(x)
            return x + self.attention(h, turns) + self.mlp(h)
        if self.recipe.norm_place == "post":
            x = self.norm1(x + self.attention(x, turns))
            return self.norm2(x + self.mlp(x))
        if self.recipe.norm_place == "sandwich":
            x = x + self.after1(self.attention(self.norm1(x), turns))
            return x + self.after2(self.mlp(self.norm2(x)))
        x = x + self.attention(self.norm1(x), turns)
        return x + self.mlp(self.norm2(x))


class PlainModel(nn.Module):
    """Token ids [1, S] to logits [1, S, V]."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = r = recipe
        self.embed = nn.Embedding(r.vocab, r.hidden)
        if r.positions == "learned":
            self.places = nn.Embedding(r.context, r.hidden)
        if r.positions == "sinusoidal":
            self.register_buffer("waves", sinusoids(r.context, r.hidden), persistent=False)
        rotary = r.head_size // 2 if r.positions == "partial" else r.head_size
        frequencies = 100.0 ** (-torch.arange(0, rotary, 2) / max(rotary, 1))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.blocks = nn.ModuleList(Block(recipe) for _ in range(r.layers))
        self.norm = Norm(recipe, r.hidden)
        self.head = nn.Linear(r.hidden, r.vocab, bias=False)
        if r.tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        r = self.recipe
        here = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embed(tokens) * r.embedding_scale
        if r.positions == "learned":
            x = x + self.places(here)
        if r.positions == "sinusoidal":
            x = x + self.waves[: tokens.shape[1]]
        turns = None
        if r.positions in ("half", "interleaved", "complex", "partial"):
            angles = here[:, None].to(x.dtype) * self.frequencies[None, :]
            turns = angles.cos(), angles.sin()
        if r.positions == "polar":
            turn = torch.polar(torch.ones(tokens.shape[1], len(self.frequencies)), torch.outer(here, self.frequencies))
            turns = turn, turn
        for block in self.blocks:
            x = block(x, turns)
        logits = self.head(self.norm(x))
        return logits if r.final_softcap is None else torch.tanh(logits / r.final_softcap) * r.final_softcap


def sinusoids(length: int, size: int) -> Tensor:
    angles = torch.arange(length)[:, None] / 100.0 ** (torch.arange(0, size, 2) / size)
    return torch.cat([angles.sin(), angles.cos()], -1)
